//! What operators say of stores, and what that comes to.

use super::Store;
use crate::policy::UnixSeconds;
use replicator::words::{DiskName, StoreId};
use serde::{Deserialize, Serialize};

/// An operator's word about a store, until it is taken back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreOrder {
    pub kind: StoreOrderKind,
    pub reason: String,
    pub by: String,
    pub at: UnixSeconds,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreOrderKind {
    /// Nothing is expected of it any more.
    Lost,
    /// It works, and is to be emptied.
    Evacuate,
}

/// What a store that was declared lost, or is being emptied, still has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StoreTask {
    /// Disks of which some map or list still names it.
    pub disks_left: u64,
    /// What they occupy there, as the store last said.
    pub bytes_left: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DeclareLost {
    #[serde(default)]
    pub reason: String,
}

/// What a lost store had.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bereaved {
    pub store: Store,
    /// Disks with copies there: they are repaired.
    pub disks: Vec<DiskName>,
    /// Those of them that have no other complete copy of some extents: only the store itself can bring these back.
    pub last_copies: Vec<DiskName>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Evacuate {
    #[serde(default)]
    pub reason: String,
    /// Only say what would be done.
    #[serde(default)]
    pub plan_only: bool,
}

/// What emptying a store comes to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Evacuation {
    pub store: Store,
    pub disks: Vec<EvacuatedDisk>,
    /// What is to be copied for them, all in all.
    pub bytes: u64,
    /// Why some would not leave it; it is refused then.
    pub stuck: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EvacuatedDisk {
    pub disk: DiskName,
    /// The stores that get copies instead.
    pub to: Vec<StoreId>,
    pub bytes: u64,
}
