//! Numbers that order things: epochs, versions, incarnations. None of them is a time.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How often the catalog was restored from a backup: the high part of every epoch.
///
/// A restored catalog takes the next generation, so it cannot issue an epoch that was issued before.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Generation(pub u16);

/// A disk's configuration number. Only the placement service issues one.
///
/// 64 bits: catalog generation (16) above a counter (48). Zero is before every epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// Before every epoch that was ever issued.
    pub const ZERO: Epoch = Epoch(0);
    pub const MAX: Epoch = Epoch(u64::MAX);

    pub const fn from_u64(bits: u64) -> Self {
        Epoch(bits)
    }

    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The first epoch of a disk that is created while the catalog is in `generation`.
    pub const fn first(generation: Generation) -> Self {
        Epoch(((generation.0 as u64) << 48) | 1)
    }

    /// The epoch to issue after this one, above the first of `generation`: in that one only disks are that
    /// were made in this generation and that nobody has opened yet.
    pub fn next(self, generation: Generation) -> Self {
        Epoch(self.max(Epoch::first(generation)).0 + 1)
    }

    pub const fn generation(self) -> Generation {
        Generation((self.0 >> 48) as u16)
    }
}

impl fmt::Display for Epoch {
    /// `7`, or `2.7` once the catalog was restored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counter = self.0 & ((1 << 48) - 1);
        match self.generation().0 {
            0 => write!(f, "{counter}"),
            generation => write!(f, "{generation}.{counter}"),
        }
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A write's place in its epoch: 1, 2, 3... At most 48 bits, which a million writes a second
/// would use up in nine years of one epoch.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    pub const ZERO: Seq = Seq(0);
    pub const MAX: Seq = Seq((1 << 48) - 1);

    pub fn next(self) -> Seq {
        assert!(
            self < Seq::MAX,
            "an epoch has used up its 2^48 sequence numbers"
        );
        Seq(self.0 + 1)
    }
}

/// The name of one write of a disk: compared epoch first, then sequence number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Version {
    pub epoch: Epoch,
    pub seq: Seq,
}

impl Version {
    pub const ZERO: Version = Version {
        epoch: Epoch::ZERO,
        seq: Seq::ZERO,
    };

    pub const fn new(epoch: Epoch, seq: Seq) -> Self {
        Version { epoch, seq }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.seq.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A store's number that changes when data that it had not synced may have been lost (rule S1).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// How often a store's directory was opened; durable. A store that shows fewer than before was
/// rolled back to an older copy of itself.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Starts(pub u64);

/// One run of a backend: drawn at random when it starts, so that two runs of the same backend differ.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Life(pub u64);

/// How often a disk's record was changed: what a compare-and-swap compares (I8).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    pub fn next(self) -> Self {
        Revision(self.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_catalog_never_issues_an_epoch_twice() {
        let before = Epoch::first(Generation(0))
            .next(Generation(0))
            .next(Generation(0));
        let after_restore = Epoch::first(Generation(0)).next(Generation(1));
        assert!(after_restore > before);
        assert_eq!(after_restore.to_string(), "1.2", "it was opened");
        assert_eq!(after_restore.next(Generation(1)).to_string(), "1.3");
        assert_eq!(before.to_string(), "3");
    }

    #[test]
    fn versions_compare_epoch_first() {
        let old = Version::new(Epoch::from_u64(1), Seq(900));
        let new = Version::new(Epoch::from_u64(2), Seq(1));
        assert!(old < new);
    }
}
