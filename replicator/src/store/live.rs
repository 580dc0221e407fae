//! How much of each segment the index refers to: kept so that what is dead, and what is worth cleaning, is
//! found without a look at every segment.
//!
//! A segment that takes frames no more is *closed*, and stands in a set ordered by how full of live frames it
//! is. A write moves it there only when it crosses a level.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Default, Debug)]
pub struct Live {
    segments: BTreeMap<u32, Counted>,
    /// The closed ones.
    by_level: BTreeSet<(u16, u32)>,
    weight: u64,
    /// Of the closed ones: how much is live, and how much there is.
    closed: (u64, u64),
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    weight: u64,
    /// What it takes, once it is closed; and where it stands then.
    closed: Option<(u64, u16)>,
    /// A recovery cannot tell exactly: the cleaner looks for itself before it lets go of a segment.
    exact: bool,
}

const NEW: Counted = Counted {
    weight: 0,
    closed: None,
    exact: true,
};

/// Nothing refers to it, for certain.
const DEAD: u16 = 0;
/// How finely the rest is told apart.
pub const LEVELS: u64 = 512;

impl Counted {
    fn level(&self, bytes: u64) -> u16 {
        match self.weight {
            0 if self.exact => DEAD,
            weight => 1 + (weight * LEVELS / bytes.max(1)).min(LEVELS) as u16,
        }
    }
}

/// As large as segments may be made.
const MOST_WEIGHT: u64 = 4 << 30;

impl Live {
    pub fn add(&mut self, segment: u32, weight: u64) {
        self.change(segment, |counted| counted.weight += weight);
    }

    pub fn sub(&mut self, segment: u32, weight: u64) {
        if !self.segments.contains_key(&segment) {
            return;
        }
        self.change(segment, |counted| {
            assert!(
                !counted.exact || counted.weight >= weight,
                "an exact count never goes below zero (segment {segment:08x})"
            );
            counted.weight = counted.weight.saturating_sub(weight);
        });
    }

    /// What a checkpoint says of a segment: never more than the largest one holds.
    pub fn load(&mut self, segment: u32, weight: u64) {
        self.change(segment, |counted| {
            counted.weight = weight.min(MOST_WEIGHT);
            counted.exact = false;
        });
    }

    /// After a recovery: what was counted is an estimate.
    pub fn doubt_all(&mut self) {
        let all: Vec<u32> = self.segments.keys().copied().collect();
        for segment in all {
            self.change(segment, |counted| counted.exact = false);
        }
    }

    /// It takes no frames any more, and so many bytes of the media.
    pub fn close(&mut self, segment: u32, bytes: u64) {
        let counted = *self.segments.entry(segment).or_insert(NEW);
        self.take_out(segment, counted);
        let level = counted.level(bytes);
        self.put_in(
            segment,
            Counted {
                closed: Some((bytes, level)),
                ..counted
            },
        );
    }

    /// The cleaner has looked at all of it and moved what was live.
    pub fn cleaned(&mut self, segment: u32) {
        self.change(segment, |counted| {
            assert!(
                !counted.exact || counted.weight == 0,
                "every live frame of an intact segment was moved"
            );
            counted.weight = 0;
            counted.exact = true;
        });
    }

    pub fn forget(&mut self, segment: u32) {
        if let Some(counted) = self.segments.get(&segment).copied() {
            self.take_out(segment, counted);
            self.segments.remove(&segment);
        }
    }

    pub fn of(&self, segment: u32) -> u64 {
        self.segments.get(&segment).map_or(0, |live| live.weight)
    }

    /// Nothing refers to it, for certain; or nobody knows of it.
    pub fn is_dead(&self, segment: u32) -> bool {
        let counted = self.segments.get(&segment);
        counted.is_none_or(|counted| counted.exact && counted.weight == 0)
    }

    /// All that is live anywhere.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Of the closed segments: how much is live, and how much there is.
    pub fn closed(&self) -> (u64, u64) {
        self.closed
    }

    /// Closed segments before `before` that nothing refers to, for certain.
    pub fn dead(&self, before: u32) -> impl Iterator<Item = u32> + '_ {
        let dead = self.by_level.range((DEAD, 0)..(DEAD, before));
        dead.map(|(_, segment)| *segment)
    }

    /// The closed segments that are not dead, those with the least live first.
    pub fn emptiest(&self) -> impl Iterator<Item = u32> + '_ {
        let rest = self.by_level.range((DEAD + 1, 0)..);
        rest.map(|(_, segment)| *segment)
    }

    fn change(&mut self, segment: u32, change: impl FnOnce(&mut Counted)) {
        let counted = self.segments.entry(segment).or_insert(NEW);
        let before = *counted;
        change(counted);
        self.weight = self.weight - before.weight + counted.weight;
        let Some((bytes, level)) = counted.closed else {
            return;
        };
        self.closed.0 = self.closed.0 - before.weight + counted.weight;
        let now = counted.level(bytes);
        if now != level {
            counted.closed = Some((bytes, now));
            self.by_level.remove(&(level, segment));
            self.by_level.insert((now, segment));
        }
    }

    fn take_out(&mut self, segment: u32, counted: Counted) {
        self.weight -= counted.weight;
        if let Some((bytes, level)) = counted.closed {
            self.by_level.remove(&(level, segment));
            self.closed.0 -= counted.weight;
            self.closed.1 -= bytes;
        }
    }

    fn put_in(&mut self, segment: u32, counted: Counted) {
        self.weight += counted.weight;
        if let Some((bytes, level)) = counted.closed {
            self.by_level.insert((level, segment));
            self.closed.0 += counted.weight;
            self.closed.1 += bytes;
        }
        self.segments.insert(segment, counted);
    }
}
