//! When the device keeps looking at its rings for a moment instead of going to sleep.
//!
//! A kick that has to wake us costs a request twice: the wake-up's latency, and CPU time on both sides, ours and that
//! of the guest's kick. Looking on for a moment costs less, if the next request comes soon. So a guest
//! that usually asks again soon after an answer is watched for that moment, and is not asked to kick;
//! any other is not. Answers of the disk are not watched for: that was tried and won nothing (docs/performance.md).

use std::time::{Duration, Instant};

/// How long a guest is watched after its last answer at most: about what a sleep and a wake-up cost in CPU time.
/// So a watch never costs more than twice of what the better choice would have cost (the ski rental problem).
const WINDOW: Duration = Duration::from_micros(50);

/// A guest is watched whose pauses are usually no longer. While it is not watched, they seem longer by the
/// time in which we wake up, so this is more than the window.
const WORTH_IT: Duration = Duration::from_micros(90);

/// No pause counts for more: after a rest a quick guest is soon watched again.
const LONG: Duration = Duration::from_micros(400);

/// Looks at the rings while a request is in flight, before its answer is taken for one that comes later.
const PATIENCE: u32 = 2;

/// Of one device. The clock is given to it.
#[derive(Debug)]
pub struct Watch {
    /// From the last answer to the next request: a moving average.
    usual_pause: Duration,
    idle_since: Option<Instant>,
    looks_in_flight: u32,
    on: bool,
}

impl Watch {
    pub fn new() -> Watch {
        Watch {
            usual_pause: LONG,
            idle_since: None,
            looks_in_flight: 0,
            on: false,
        }
    }

    /// To be asked after each look at the rings, with the number of requests in flight: whether to look again instead of
    /// going to sleep. `now` is only asked where it matters.
    pub fn goes_on(&mut self, in_flight: usize, now: impl FnOnce() -> Instant) -> bool {
        if in_flight == 0 {
            let now = now();
            let since = *self.idle_since.get_or_insert(now);
            self.on = self.usual_pause <= WORTH_IT && now < since + WINDOW;
            return self.on;
        }
        if let Some(since) = self.idle_since.take() {
            let pause = now().saturating_duration_since(since).min(LONG);
            self.usual_pause = (self.usual_pause * 7 + pause) / 8;
            self.looks_in_flight = 0;
        }
        self.looks_in_flight += 1;
        self.on &= self.looks_in_flight <= PATIENCE;
        self.on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device whose guest asks again after each of `pauses`, and whose disk answers at once. How long it
    /// was watched in vain each time, or `None` where it was still watched when the guest asked.
    fn watched(watch: &mut Watch, pauses: impl Iterator<Item = Duration>) -> Vec<Option<Duration>> {
        const LOOK: Duration = Duration::from_micros(1);
        let mut now = Instant::now();
        let mut seen = Vec::new();
        for pause in pauses {
            let answered = now;
            let mut in_vain = None;
            while now < answered + pause {
                now += LOOK;
                if !watch.goes_on(0, || now) {
                    in_vain = Some(now - answered);
                    now = answered + pause;
                }
            }
            seen.push(in_vain);
            watch.goes_on(1, || now);
        }
        seen
    }

    fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    #[test]
    fn a_guest_that_asks_again_soon_is_watched_until_it_does() {
        let mut watch = Watch::new();
        let seen = watched(&mut watch, std::iter::repeat_n(micros(30), 100));
        assert!(seen[0].is_some(), "nobody knows it yet");
        assert!(seen[40..].iter().all(Option::is_none), "{seen:?}");
    }

    #[test]
    fn a_guest_that_takes_its_time_is_not_watched_and_a_quick_one_that_rests_no_longer_than_the_window()
     {
        let mut watch = Watch::new();
        let slow = watched(&mut watch, std::iter::repeat_n(micros(300), 100));
        assert!(slow.iter().all(|seen| *seen == Some(micros(1))), "{slow:?}");

        watched(&mut watch, std::iter::repeat_n(micros(20), 100));
        let rest = watched(&mut watch, std::iter::once(Duration::from_secs(3600)));
        assert_eq!(rest, [Some(WINDOW + micros(1))]);
        let again = watched(&mut watch, std::iter::repeat_n(micros(20), 10));
        assert!(
            again.last().unwrap().is_none(),
            "one rest is soon forgotten: {again:?}"
        );
    }

    #[test]
    fn an_answer_that_comes_later_is_not_watched_for() {
        let mut watch = Watch::new();
        watched(&mut watch, std::iter::repeat_n(micros(20), 100));
        let now = Instant::now();
        assert!(watch.goes_on(0, || now));
        assert!(watch.goes_on(1, || now + micros(5)));
        assert!(watch.goes_on(1, || unreachable!("it is the same request")));
        assert!(!watch.goes_on(1, || unreachable!("it is the same request")));
        assert!(!watch.goes_on(1, || unreachable!("nor does it begin again")));
    }
}
