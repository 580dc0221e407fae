//! Which extents the guest uses most: what is filled first. Counters that halve as time passes, of
//! a bounded number of extents; a guess that costs nothing when it is wrong.

use super::Now;
use crate::words::Extent;
use std::collections::BTreeMap;
use std::time::Duration;

/// A read that had to go far: what filling is for.
pub(super) const MISSED: u32 = 64;
/// A write: where there is one there are others, and reads.
pub(super) const WRITTEN: u32 = 8;

const HALF_LIFE: Duration = Duration::from_secs(30);
/// Extents that are remembered: 128 KiB of memory at most.
const MOST: usize = 2048;

#[derive(Default)]
pub(super) struct Heat {
    extents: BTreeMap<Extent, Warm>,
}

struct Warm {
    heat: u32,
    at: Now,
}

impl Warm {
    fn now(&self, now: Now) -> u32 {
        let passed = now.0.saturating_sub(self.at.0).as_secs() / HALF_LIFE.as_secs();
        self.heat
            .checked_shr(passed.min(32) as u32)
            .unwrap_or_default()
    }
}

impl Heat {
    pub fn add(&mut self, extent: Extent, heat: u32, now: Now) {
        if self.extents.len() >= MOST && !self.extents.contains_key(&extent) {
            self.cool(now);
        }
        let warm = self
            .extents
            .entry(extent)
            .or_insert(Warm { heat: 0, at: now });
        let left = warm.now(now);
        // The clock of an extent only moves by whole half-lives, or busy ones would never cool.
        if left != warm.heat || warm.heat == 0 {
            warm.at = now;
        }
        warm.heat = left.saturating_add(heat);
    }

    /// The hottest first; extents of equal heat in order.
    pub fn hottest(&self, now: Now) -> Vec<Extent> {
        let mut all: Vec<(u32, Extent)> = self
            .extents
            .iter()
            .map(|(extent, warm)| (warm.now(now), *extent))
            .filter(|(heat, _)| *heat > 0)
            .collect();
        all.sort_unstable_by_key(|(heat, extent)| (std::cmp::Reverse(*heat), *extent));
        all.into_iter().map(|(_, extent)| extent).collect()
    }

    pub fn forget(&mut self, extent: Extent) {
        self.extents.remove(&extent);
    }

    /// Forgets the colder half.
    fn cool(&mut self, now: Now) {
        for extent in self.hottest(now).split_off(MOST / 2) {
            self.extents.remove(&extent);
        }
        self.extents.retain(|_, warm| warm.now(now) > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now(Duration::from_secs(seconds))
    }

    #[test]
    fn what_is_used_now_is_hotter_than_what_was_used_more_long_ago() {
        let mut heat = Heat::default();
        for _ in 0..4 {
            heat.add(Extent(1), MISSED, at(0));
        }
        heat.add(Extent(2), MISSED, at(100));
        assert_eq!(heat.hottest(at(0)), [Extent(1), Extent(2)]);
        assert_eq!(heat.hottest(at(100)), [Extent(2), Extent(1)]);
        assert_eq!(heat.hottest(at(100_000)), []);
    }

    #[test]
    fn it_remembers_a_bounded_number_of_extents() {
        let mut heat = Heat::default();
        for n in 0..100_000 {
            heat.add(Extent(n), 1 + n % 7, at(0));
        }
        assert!(heat.extents.len() <= MOST);
    }
}
