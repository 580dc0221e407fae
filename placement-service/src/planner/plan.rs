//! A plan as data: what is shown before anything is done, and then done.

use crate::policy::UnixSeconds;
use replicator::words::{DatacenterName, DiskId, DiskName, Extents, NewSet, StoreId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where the extents of a disk should stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Goal {
    /// All extents in order, neighbours differ.
    pub ranges: Vec<GoalRange>,
    pub shortfalls: Vec<Shortfall>,
    pub awaited: Vec<Awaited>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GoalRange {
    pub extents: Extents,
    /// How many copies policy asks for.
    pub wanted: u8,
    /// Sorted by store.
    pub copies: Vec<(StoreId, Role)>,
}

impl GoalRange {
    pub fn stores(&self) -> Vec<StoreId> {
        self.copies.iter().map(|(store, _)| *store).collect()
    }
}

/// Why a store is to have a copy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// One of `copies`, where the VM runs or a pin wants them.
    Near,
    /// One of `away`, whatever happens.
    Away,
    /// It stands here because there is no place where it should stand: durability before locality.
    StandIn,
    /// A pin wants it besides what policy asks for.
    Also,
    /// It should not be here, and goes only when another one has taken its place.
    Retained,
}

/// Copies that policy asks for and that can stand nowhere.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shortfall {
    pub extents: Extents,
    pub missing: u8,
    pub why: String,
}

/// A copy that is missing because its store is away. It is waited for until then: if the store comes back, the
/// copy takes the difference only; if not, another one is made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Awaited {
    pub extents: Extents,
    pub store: StoreId,
    pub until: UnixSeconds,
}

/// What an attachment in a datacenter begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// The disk's home once its VM runs there; to be kept when the attachment has opened the disk.
    pub home: crate::policy::Home,
    /// The write sets to open with; empty: as they are.
    pub sets: Vec<NewSet>,
    /// Why `sets` leaves something as it is that policy would have near the VM.
    pub held: Vec<String>,
}

/// The steps from a disk's map as it is to the one that its policy asks for. Each step leaves a
/// state from which the rest, or another plan, goes on (I8).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub disk: DiskId,
    pub name: DiskName,
    pub steps: Vec<Step>,
    /// What policy asks for, of the extents for which it asks least.
    pub wanted_copies: u8,
    /// Complete copies of the worst placed extent, now.
    pub copies_now: u8,
    /// The least number of complete copies of any extent at any moment of the plan.
    pub least_copies: u8,
    /// Some extent has fewer complete copies than policy asks for: windows do not hold it up.
    pub repair: bool,
    /// When copying may begin, if not now.
    pub waits_until: Option<UnixSeconds>,
    pub shortfalls: Vec<Shortfall>,
    /// Copies that are missing and waited for.
    #[serde(default)]
    pub awaited: Vec<Awaited>,
    /// Complete copies of the worst placed extent now, on stores that are not lost.
    #[serde(default)]
    pub copies_left: u8,
    /// What somebody should know who reads it: what is held back, and which promise does not hold.
    pub notes: Vec<String>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Bytes that cross some link.
    pub fn bytes(&self) -> u64 {
        self.steps.iter().map(Step::bytes).sum()
    }

    /// The write sets that its next step asks the writer for, if that is what comes next.
    pub fn next_sets(&self) -> Option<&[NewSet]> {
        match &self.steps.first()?.action {
            Action::Switch { sets } => Some(sets),
            _ => None,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    pub action: Action,
    /// Complete copies of the worst placed extent before and after it.
    pub copies_before: u8,
    pub copies_after: u8,
    /// What crosses which link; empty for a step that copies nothing.
    pub crossings: Vec<Crossing>,
    /// How long copying takes at the configured limits and the measured rates; none: not known, or
    /// nothing to copy.
    pub time: Option<Duration>,
    /// What a guest's write waits for when the step is done; none: nobody writes, or not measured.
    pub write_round_trip: Option<Duration>,
}

impl Step {
    pub fn bytes(&self) -> u64 {
        self.crossings.iter().map(|crossing| crossing.bytes).sum()
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Open the next epoch with these write sets.
    Switch { sets: Vec<NewSet> },
    /// Copy into the members of these extents that are not whole.
    Fill { extents: Vec<Extents> },
    /// Record that they are; the entries that nobody needs then go.
    Complete { extents: Vec<Extents> },
    /// Delete what these stores have, once what made it superfluous is complete and alive (I7).
    Retire { copies: Vec<RetiredCopy> },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RetiredCopy {
    pub store: StoreId,
    pub extents: Vec<Extents>,
    /// Not before; none: at once.
    pub not_before: Option<UnixSeconds>,
}

/// Bytes from one datacenter into another one, or within one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Crossing {
    pub from: DatacenterName,
    pub to: DatacenterName,
    /// What the source occupies. Of a kept or prepared copy only the difference will cross.
    pub bytes: u64,
    /// The destination has an older copy of some of it, so it will be less.
    pub at_most: bool,
}
