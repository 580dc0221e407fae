//! Who syncs the near store for a disk: the disk's own thread, or the store's.
//!
//! To have the store's thread do it costs two wake-ups, there and back, which together may take as long as the sync. The
//! disk's own thread can do it instead, if nobody misses that thread meanwhile: no other store has a copy, nothing else is in
//! flight on the thread, syncs are short, and what guests ask for seldom comes just then. Whether it does is seen afterwards.
//!
//! And when: where several flushes came together the last time, more are waited for as long as something keeps coming, since one
//! sync serves all that came before it.

use super::RequestId;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Syncs that usually take longer go to the store's thread: two wake-ups matter little beside them, and who comes
/// meanwhile would wait long.
const SHORT: Duration = Duration::from_micros(500);
/// Where several flushes come together, their guest has paused once nothing has come for so long.
const PAUSE: Duration = Duration::from_micros(5);
/// What a disk is given so soon after its sync has come during it: no guest has heard of the sync's end yet.
const SOON: Duration = Duration::from_micros(5);
/// After one that somebody waited for some more go to the store's thread; after each further one twice as many, up to this.
const MOST_ELSEWHERE: u32 = 1024;

thread_local! {
    /// Of all disks of this thread.
    static GIVEN: Cell<Given> = const { Cell::new(Given { in_flight: 0, others: 0 }) };
}

/// Requests that disks were given.
#[derive(Clone, Copy)]
struct Given {
    in_flight: usize,
    /// All so far, but for flushes.
    others: u64,
}

fn count(change: impl FnOnce(&mut Given)) {
    let mut given = GIVEN.get();
    change(&mut given);
    GIVEN.set(given);
}

/// Whether flushes that have not begun wait for others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gathers {
    /// Look once more: others may come.
    More,
    /// No more will come, as it seems: they begin once there is nothing else to do.
    All,
    /// They begin now, whatever else there is to do.
    TooLong,
}

/// Flushes that wait for others.
#[derive(Clone, Copy)]
struct Gathering {
    since: Instant,
    /// What the disk was given last, and since when that is so.
    given: u64,
    at: Instant,
}

/// Of one disk. The clock is given to it.
#[derive(Default)]
pub(super) struct Syncing {
    in_flight: usize,
    /// Which of these are flushes.
    flushes: Vec<RequestId>,
    /// See [`Given::others`].
    others: u64,
    /// What other disks of the thread had been given when this one synced last.
    elsewhere: u64,
    /// When it did so itself, if nothing has come since.
    synced_at: Option<Instant>,
    /// So many more go to the store's thread.
    to_thread: u32,
    /// So many did after the last that somebody waited for.
    penalty: u32,
    /// Nobody has waited for the last one that the disk's own thread did.
    fine: bool,
    gathering: Option<Gathering>,
    /// Several flushes came together the last time.
    several: bool,
}

impl Syncing {
    /// The disk is given a request.
    pub fn given(&mut self, id: RequestId, is_flush: bool, now: impl FnOnce() -> Instant) {
        self.in_flight += 1;
        count(|given| given.in_flight += 1);
        if is_flush {
            self.flushes.push(id);
            return;
        }
        self.others += 1;
        count(|given| given.others += 1);
        if let Some(synced_at) = self.synced_at.take()
            && now().saturating_duration_since(synced_at) < SOON
        {
            self.was_missed();
        }
    }

    /// To be asked after each look, while there are flushes that have not begun. A sync of the near store, if there is one,
    /// usually takes so long: nobody waits longer for others to come.
    pub fn gathers(&mut self, usual: Duration, now: Instant) -> Gathers {
        let given = self.others + self.flushes.len() as u64;
        let Some(gathering) = &mut self.gathering else {
            self.gathering = Some(Gathering {
                since: now,
                given,
                at: now,
            });
            return Gathers::More;
        };
        if gathering.given != given {
            gathering.given = given;
            gathering.at = now;
        }
        let quiet = now.saturating_duration_since(gathering.at);
        let waited = now.saturating_duration_since(gathering.since);
        if waited > usual.min(SHORT) {
            Gathers::TooLong
        } else if self.several && quiet < PAUSE {
            Gathers::More
        } else {
            Gathers::All
        }
    }

    /// So many begin now, as one.
    pub fn flushes(&mut self, count: usize) {
        self.gathering = None;
        self.several = count > 1;
    }

    /// A request has ended.
    pub fn ended(&mut self, id: RequestId) {
        self.in_flight -= 1;
        count(|given| given.in_flight = given.in_flight.saturating_sub(1));
        if let Some(at) = self.flushes.iter().position(|flush| *flush == id) {
            self.flushes.swap_remove(at);
        }
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// To be asked once for each sync: whether the disk's own thread is to do it, where one usually takes so long.
    pub fn is_for_us(&mut self, usual: Duration) -> bool {
        if std::mem::take(&mut self.fine) {
            self.penalty /= 2;
        }
        let given = GIVEN.get();
        let elsewhere = given.others.wrapping_sub(self.others);
        if std::mem::replace(&mut self.elsewhere, elsewhere) != elsewhere {
            self.was_missed();
        }
        if self.to_thread > 0 {
            self.to_thread -= 1;
            return false;
        }
        usual <= SHORT && given.in_flight == self.flushes.len()
    }

    /// The disk's thread has done one.
    pub fn synced(&mut self, now: Instant) {
        self.fine = true;
        self.synced_at = Some(now);
    }

    /// Somebody waited for the thread, or would have.
    fn was_missed(&mut self) {
        self.fine = false;
        self.penalty = (self.penalty * 2).clamp(1, MOST_ELSEWHERE);
        self.to_thread = self.penalty;
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        count(|given| {
            // Should it end on another thread than it lived on, that one is not wronged.
            given.in_flight = given.in_flight.saturating_sub(self.in_flight);
            given.others = given.others.wrapping_sub(self.others);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(120);

    /// A disk, what the clock says, and how many requests it was given.
    struct Bench {
        syncing: Syncing,
        now: Instant,
        next: u64,
    }

    impl Bench {
        fn new() -> Bench {
            Bench {
                syncing: Syncing::default(),
                now: Instant::now(),
                next: 0,
            }
        }

        fn given(&mut self, is_flush: bool) -> RequestId {
            let id = RequestId(self.next);
            self.next += 1;
            self.syncing.given(id, is_flush, || self.now);
            id
        }

        /// A request that is answered at once.
        fn write(&mut self) {
            let write = self.given(false);
            self.syncing.ended(write);
        }

        /// A flush, and its sync. Whether the disk's own thread did it; `meanwhile` it was wanted.
        fn flush(&mut self, meanwhile: bool) -> bool {
            let flush = self.given(true);
            let here = self.syncing.is_for_us(QUICK);
            self.now += QUICK;
            if here {
                self.syncing.synced(self.now);
            }
            self.syncing.ended(flush);
            if meanwhile {
                self.now += Duration::from_micros(1);
                self.write();
            }
            self.now += Duration::from_micros(30);
            here
        }

        fn count(&mut self, meanwhile: impl Fn(u32) -> bool) -> u32 {
            (0..10_000)
                .map(|i| u32::from(self.flush(meanwhile(i))))
                .sum()
        }
    }

    #[test]
    fn a_guest_that_writes_and_flushes_in_turn_has_its_syncs_done_by_the_disks_own_thread() {
        let mut bench = Bench::new();
        for _ in 0..100 {
            bench.write();
            assert!(bench.flush(false));
        }
        bench.given(true);
        assert!(!bench.syncing.is_for_us(SHORT * 2), "it takes long");
    }

    #[test]
    fn where_anything_else_is_in_flight_on_the_thread_it_is_the_stores() {
        let mut bench = Bench::new();
        let read = bench.given(false);
        assert!(!bench.flush(false));
        bench.syncing.ended(read);
        assert!(bench.flush(false));

        let mut another = Bench::new();
        let flush = another.given(true);
        assert!(
            !bench.flush(false),
            "of another disk, whose flush may want more than this sync"
        );
        another.syncing.ended(flush);
        assert!(bench.flush(false));
        another.given(true);
        drop(another);
        assert!(
            bench.flush(false),
            "what has gone with its disk is not in flight"
        );
        let elsewhere = std::thread::spawn(|| Bench::new().flush(false));
        bench.given(false);
        assert!(elsewhere.join().unwrap(), "another thread's");
    }

    #[test]
    fn who_often_comes_meanwhile_is_soon_not_kept_waiting_and_who_seldom_does_hardly_ever() {
        let always = Bench::new().count(|_| true);
        assert!(always < 50, "{always} of 10000");
        let seldom = Bench::new().count(|i| i % 100 == 0);
        assert!(seldom > 9_000, "{seldom} of 10000");
        let mut later = Bench::new();
        later.count(|_| true);
        let quiet = later.count(|_| false);
        assert!(quiet > 8_000, "{quiet} of 10000 after it had gone");
    }

    #[test]
    fn a_busy_neighbour_is_not_kept_waiting_either() {
        let mut bench = Bench::new();
        let mut neighbour = Bench::new();
        let mut here = 0;
        for _ in 0..1000 {
            neighbour.write();
            here += u32::from(bench.flush(false));
        }
        assert!(here == 0, "{here} of 1000");
        let quiet = bench.count(|_| false);
        assert!(quiet > 8_000, "{quiet} of 10000 after it had gone to sleep");
    }

    #[test]
    fn where_flushes_come_together_all_of_them_are_waited_for_and_not_for_ever() {
        const LOOK: Duration = Duration::from_micros(1);
        let mut bench = Bench::new();
        let looks = |bench: &mut Bench, come: &dyn Fn(u32) -> bool| {
            let mut looks = 0;
            loop {
                let gathers = bench.syncing.gathers(QUICK, bench.now);
                if gathers != Gathers::More {
                    return (looks, gathers);
                }
                looks += 1;
                bench.now += LOOK;
                if come(looks) {
                    bench.given(true);
                }
            }
        };
        bench.given(true);
        let came_with_it = looks(&mut bench, &|_| false);
        assert_eq!(came_with_it, (1, Gathers::All));
        bench.syncing.flushes(1);
        let by_itself = looks(&mut bench, &|_| true);
        assert_eq!(by_itself, (1, Gathers::All), "one came alone the last time");
        bench.syncing.flushes(2);
        let (sixteen, end) = looks(&mut bench, &|look| look < 32 && look % 2 == 0);
        assert!(sixteen > 32 && end == Gathers::All, "{sixteen}: {end:?}");
        bench.syncing.flushes(16);
        let (ever, end) = looks(&mut bench, &|_| true);
        assert!(
            LOOK * ever <= QUICK + LOOK && end == Gathers::TooLong,
            "{ever}: {end:?}"
        );
    }

    #[test]
    fn who_is_always_busy_with_something_else_begins_them_all_the_same() {
        let mut bench = Bench::new();
        bench.given(true);
        assert_eq!(bench.syncing.gathers(QUICK, bench.now), Gathers::More);
        bench.now += QUICK;
        assert_eq!(bench.syncing.gathers(QUICK, bench.now), Gathers::All);
        bench.now += QUICK;
        assert_eq!(bench.syncing.gathers(QUICK, bench.now), Gathers::TooLong);
        bench.syncing.flushes(1);
        // Without a near store there is no sync to wait for.
        bench.given(true);
        assert_eq!(
            bench.syncing.gathers(Duration::ZERO, bench.now),
            Gathers::More
        );
    }
}
