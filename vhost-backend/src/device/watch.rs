//! When the device keeps looking for what comes next, instead of going to sleep.
//!
//! Sleep costs a request twice: the wake-up's latency, and CPU time on both sides, of who sleeps and of who wakes him (the
//! guest that kicks, a far store that answers). Looking on for a moment costs less, if what is waited for comes soon. So the
//! guest, while nothing is in flight, and the disk, while something is, are each *watched* for a window, as long as they
//! usually come within it. A watched guest is not asked to kick.

use std::time::{Duration, Instant};

/// How long a guest is watched after its last answer at most: about what it costs both sides in time if the device sleeps
/// instead, so that a watch never costs more than twice of what the better choice would have cost (the ski rental problem).
/// Well above the pause of a guest that has slept until its answer came, so that it is not watched now and then only.
const GUEST: Duration = Duration::from_micros(100);

/// The disk, after the last request that it was given or has answered. Longer, because much of it is our own work for
/// that request. A store behind a quick network answers within it; one that is a millisecond away cannot, and a sync does not.
const DISK: Duration = Duration::from_micros(150);

/// Looks while a request is in flight before who watches the guest stops because the disk is not worth it: what is answered
/// at once is no reason to ask the guest for kicks, and then for none.
const PATIENCE: u32 = 2;

/// So much longer a wait seems that was slept through.
const WAKE_UP: Duration = Duration::from_micros(45);

/// A wait counts for so many windows at most: after a rest a quick guest is soon watched again.
const LONG: u32 = 4;

/// Of one device. The clock is given to it.
#[derive(Debug)]
pub struct Watch {
    guest: Wait,
    disk: Wait,
    /// Since the guest asked last.
    looks_in_flight: u32,
    on: bool,
}

impl Watch {
    pub fn new() -> Watch {
        Watch {
            guest: Wait::new(GUEST),
            disk: Wait::new(DISK),
            looks_in_flight: 0,
            on: false,
        }
    }

    /// The guest has asked for something.
    pub fn asked(&mut self, now: Instant) {
        self.guest.ended_one_of(1, now);
        self.disk.since = None;
        self.looks_in_flight = 0;
    }

    /// The disk has answered one of `in_flight` requests, if it was `waited` for.
    pub fn answered(&mut self, in_flight: usize, waited: bool, now: Instant) {
        match waited {
            // So long a request takes, by Little's law: many in flight make answers frequent, not soon.
            true => self.disk.ended_one_of(in_flight as u32, now),
            // It says nothing of the answers that are.
            false => self.disk.since = None,
        }
    }

    /// To be asked after each look, with the number of requests in flight: whether to look again instead of
    /// going to sleep.
    pub fn goes_on(&mut self, in_flight: usize, now: Instant) -> bool {
        if in_flight == 0 {
            self.on = self.guest.goes_on(now);
        } else {
            self.looks_in_flight += 1;
            let patient = self.on && self.looks_in_flight <= PATIENCE;
            self.on = self.disk.goes_on(now) || patient;
        }
        self.on
    }

    /// Whether the last look in flight was worth it for the disk's sake, not only for a guest that is watched anyway.
    pub fn is_for_answers(&self) -> bool {
        self.disk.watched
    }
}

/// For one of them.
#[derive(Debug)]
struct Wait {
    window: Duration,
    /// How long it usually takes: a moving average.
    usual: Duration,
    since: Option<Instant>,
    watched: bool,
}

impl Wait {
    fn new(window: Duration) -> Wait {
        Wait {
            window,
            usual: window * LONG,
            since: None,
            watched: false,
        }
    }

    fn goes_on(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        self.watched = self.usual <= self.window && now < since + self.window;
        self.watched
    }

    fn ended_one_of(&mut self, count: u32, now: Instant) {
        let Some(since) = self.since.take() else {
            return;
        };
        let slept = if self.watched {
            Duration::ZERO
        } else {
            WAKE_UP
        };
        let waited = now.saturating_duration_since(since).saturating_sub(slept);
        let took = waited.saturating_mul(count).min(self.window * LONG);
        self.usual = (self.usual * 7 + took) / 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A watch, and what the clock says.
    struct Bench {
        watch: Watch,
        now: Instant,
    }

    impl Bench {
        fn new() -> Bench {
            Bench {
                watch: Watch::new(),
                now: Instant::now(),
            }
        }

        /// Waits for something that takes so long, and longer where it has to wake us. How long it was watched
        /// in vain, or `None` where it was still watched when it came.
        fn wait(&mut self, in_flight: usize, takes: Duration) -> Option<Duration> {
            const LOOK: Duration = Duration::from_micros(1);
            let began = self.now;
            while self.now < began + takes {
                if !self.watch.goes_on(in_flight, self.now) {
                    let in_vain = self.now - began;
                    self.now = began + takes + WAKE_UP;
                    return Some(in_vain);
                }
                self.now += LOOK;
            }
            None
        }

        /// A guest that asks so long after each answer, and a disk that takes so long to give it.
        fn request(&mut self, pause: Duration, takes: Duration) -> [Option<Duration>; 2] {
            let guest = self.wait(0, pause);
            self.watch.asked(self.now);
            let disk = self.wait(1, takes);
            self.watch.answered(1, !takes.is_zero(), self.now);
            [guest, disk]
        }

        fn pauses(&mut self, pauses: impl Iterator<Item = Duration>) -> Vec<Option<Duration>> {
            pauses
                .map(|pause| self.request(pause, Duration::ZERO)[0])
                .collect()
        }
    }

    fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    #[test]
    fn a_guest_that_asks_again_soon_is_watched_until_it_does() {
        let seen = Bench::new().pauses(std::iter::repeat_n(micros(30), 100));
        assert!(seen[0].is_some(), "nobody knows it yet");
        assert!(seen[40..].iter().all(Option::is_none), "{seen:?}");
    }

    #[test]
    fn a_guest_that_takes_its_time_is_not_watched_and_a_quick_one_that_rests_no_longer_than_the_window()
     {
        let mut bench = Bench::new();
        let slow = bench.pauses(std::iter::repeat_n(micros(300), 100));
        assert!(slow.iter().all(|seen| *seen == Some(micros(0))), "{slow:?}");

        bench.pauses(std::iter::repeat_n(micros(20), 100));
        let rest = bench.pauses(std::iter::once(Duration::from_secs(3600)));
        assert_eq!(rest, [Some(GUEST)]);
        let again = bench.pauses(std::iter::repeat_n(micros(20), 10));
        assert!(
            again.last().unwrap().is_none(),
            "one rest is soon forgotten: {again:?}"
        );
    }

    #[test]
    fn a_disk_is_watched_while_it_answers_soon_whatever_it_answers_at_once() {
        let mut bench = Bench::new();
        let mut seen = Vec::new();
        for _ in 0..100 {
            seen.push(bench.request(micros(20), micros(90))[1]);
            bench.request(micros(20), Duration::ZERO);
        }
        bench.watch.asked(bench.now);
        assert!(bench.watch.goes_on(1, bench.now) && bench.watch.is_for_answers());
        assert!(seen[0].is_some(), "nobody knows it yet");
        assert!(seen[40..].iter().all(Option::is_none), "{seen:?}");
    }

    #[test]
    fn a_disk_that_takes_longer_is_not_watched_just_because_it_is_hardly_longer_or_quick_with_others()
     {
        for takes in [160, 300, 5000].map(micros) {
            let mut bench = Bench::new();
            // Once it was quick.
            for _ in 0..50 {
                bench.request(micros(20), micros(60));
            }
            let mut seen = Vec::new();
            for _ in 0..100 {
                bench.request(micros(20), Duration::ZERO);
                seen.push(bench.request(micros(20), takes)[1]);
            }
            let not_for_long = |seen: &Option<Duration>| seen.is_some_and(|for_| for_ <= micros(2));
            assert!(seen[50..].iter().all(not_for_long), "{takes:?}: {seen:?}");
            bench.pauses(std::iter::repeat_n(micros(20), 10));
            assert!(bench.watch.goes_on(0, bench.now), "the guest still is");
            bench.watch.asked(bench.now);
            assert!(bench.watch.goes_on(1, bench.now) && !bench.watch.is_for_answers());
        }
    }

    #[test]
    fn a_disk_that_is_far_away_is_not_watched_because_many_requests_are_in_flight() {
        for (in_flight, watched) in [(1, true), (2, true), (4, false), (32, false)] {
            let mut bench = Bench::new();
            let mut last = None;
            for _ in 0..100 {
                last = bench.wait(in_flight, micros(60));
                bench.watch.answered(in_flight, true, bench.now);
            }
            assert_eq!(last.is_none(), watched, "{in_flight} in flight");
        }
    }
}
