//! How much room there is for data, and what follows from it as it gets less: the cleaner is called, syncs run
//! though nobody asks (what was overwritten is garbage only once its successor is synced), writers are slowed
//! down, and at last they are refused.
//!
//! ```text
//!   free segments        many ............. low .......... a little less ...... reserve
//!   what happens                            cleaner, syncs  writers slow down   data is refused
//! ```
//!
//! So a guest that overwrites faster than the cleaner can move gets as much as that can free, evenly, and does
//! not stop and go.

use super::Store;
use super::append::RESERVE;
use super::media::Media;
use std::time::{Duration, Instant};

/// A part of all segments, and a few, are low.
const LOW_PART: u64 = 32;
const LOW_LEAST: u64 = 4;
/// Nobody needs more than that to be cleaned ahead.
const LOW_MOST: u64 = 64;
/// What a writer is slowed down to half-way between no pause and no room.
const SLOW_BYTES_A_SECOND: u64 = 64 << 20;
/// What a version that is superseded costs while there are far too many of them.
const SUPERSEDED_PRICE: Duration = Duration::from_micros(1);
/// The longest that anybody waits for one step.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// The most that is credited to who was slower than it might be: writes come in bursts.
const CREDIT: Duration = Duration::from_millis(2);

/// How far a writer is with what it has to wait for: what it writes has a price in time, and time passes by itself, so
/// that only who writes faster than there is room waits at all.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    paid_until: Option<Instant>,
}

impl Pace {
    pub const fn new() -> Pace {
        Pace { paid_until: None }
    }

    /// Nothing was to be waited for lately.
    pub fn is_new(&self) -> bool {
        self.paid_until.is_none()
    }

    /// How long to wait at `now` after a write of this price ([`Store::price_of`]).
    pub fn wait(&mut self, price: Duration, now: Instant) -> Duration {
        if price.is_zero() {
            self.paid_until = None;
            return Duration::ZERO;
        }
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let latest = now + LONGEST_PAUSE;
        let from = self.paid_until.map_or(earliest, |at| at.max(earliest));
        let until = (from + price).min(latest);
        self.paid_until = Some(until);
        until.saturating_duration_since(now)
    }
}

impl<M: Media> Store<M> {
    /// How many segments beside the reserve are few.
    fn low_segments(&self) -> u64 {
        LOW_LEAST + (self.log.all_segments() / LOW_PART).min(LOW_MOST)
    }

    fn low_bytes(&self) -> u64 {
        self.low_segments() * self.options.segment_bytes
    }

    /// Free segments are few.
    pub(super) fn is_low(&self) -> bool {
        self.log.free_segments() <= RESERVE as u64 + self.low_segments()
    }

    /// The same, and those that only wait for a checkpoint are not enough to mend it.
    pub(super) fn wants_cleaning(&self) -> bool {
        let dead = || self.holdings.live.dead(self.next_replay_segment()).count() as u64;
        self.is_low() && self.log.free_segments() + dead() <= RESERVE as u64 + self.low_segments()
    }

    /// So much data may still come before it is refused.
    pub(super) fn headroom(&self) -> u64 {
        let segment = self.options.segment_bytes;
        let index = self.holdings.dirty_bytes + segment * 3 / 2;
        let kept = index.max(RESERVE as u64 * segment);
        self.log.room().saturating_sub(kept)
    }

    /// Whether so much is unsynced that garbage which nobody may clean yet takes the room.
    pub(super) fn needs_sync_for_room(&self) -> bool {
        self.is_low() && self.log.unsynced() > self.low_bytes() / 4
    }

    /// How long writes of `bytes` should take, one with another.
    pub fn price_of(&self, bytes: u64) -> Duration {
        let (slow, headroom) = (self.low_bytes() * 3 / 4, self.headroom());
        if headroom >= slow {
            return Duration::ZERO;
        }
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(SLOW_BYTES_A_SECOND);
        // Steep: the index takes a good part at once when a checkpoint writes it.
        let (slow, headroom) = (u128::from(slow), u128::from(headroom.max(slow / 64)));
        let nanos = nanos * slow.saturating_sub(headroom) * slow / (headroom * headroom);
        Duration::from_nanos(nanos.min(LONGEST_PAUSE.as_nanos()) as u64)
    }

    /// The same of writes that have superseded so many versions, where there are far too many of those: what lets go
    /// of them, a sync and the looking through, is under way.
    pub fn price_of_superseded(&self, added: usize) -> Duration {
        match self.superseded() > 2 * self.options.most_superseded {
            true => SUPERSEDED_PRICE.saturating_mul(added as u32),
            false => Duration::ZERO,
        }
    }

    /// Housekeeping should look after so many bytes of writes.
    pub fn look_bytes(&self) -> u64 {
        (self.options.segment_bytes / 8).min(4 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Duration = Duration::from_micros(400);

    #[test]
    fn who_writes_slower_than_there_is_room_never_waits() {
        let (begun, mut pace) = (Instant::now(), Pace::new());
        // Five at once after five times as long.
        for turn in 0..100 {
            for _ in 0..5 {
                let now = begun + 5 * PRICE * turn;
                assert_eq!(pace.wait(PRICE, now), Duration::ZERO, "turn {turn}");
            }
        }
    }

    #[test]
    fn who_writes_faster_is_slowed_down_to_the_price() {
        let (begun, mut pace) = (Instant::now(), Pace::new());
        let mut now = begun;
        for _ in 0..100 {
            now += PRICE / 4 + pace.wait(PRICE, now);
        }
        let fair = 100 * PRICE;
        assert!(
            now - begun + LONGEST_PAUSE + PRICE >= fair,
            "{:?}",
            now - begun
        );
        assert!(now - begun <= fair + PRICE, "{:?}", now - begun);
    }

    #[test]
    fn nobody_waits_longer_than_bearable_and_what_is_over_is_forgotten() {
        let (now, mut pace) = (Instant::now(), Pace::new());
        for _ in 0..100 {
            assert!(pace.wait(PRICE, now) <= LONGEST_PAUSE);
        }
        assert_eq!(pace.wait(PRICE, now), LONGEST_PAUSE);
        assert_eq!(pace.wait(Duration::ZERO, now), Duration::ZERO);
        assert_eq!(
            pace.wait(PRICE, now),
            Duration::ZERO,
            "there was room again"
        );
    }
}
