//! What is known and wished of one single disk, above its policy.

use super::UnixSeconds;
use replicator::words::{DatacenterName, DiskId, Extents, StoreId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An operator's own placement of a disk, or of some of its extents. It beats locality, never
/// residency, and takes no copy away that durability asks for. The service keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pin {
    pub disk: DiskId,
    /// None: all of them.
    #[serde(default)]
    pub extents: Option<Extents>,
    pub hold: Hold,
    /// Why, in the operator's words.
    pub reason: String,
    pub until: Until,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// The copies stand in this datacenter, wherever the VM runs.
    In(DatacenterName),
    /// The copies stand on these stores; those that policy asks for beyond them are placed by policy.
    On(Vec<StoreId>),
    /// These stores have copies besides those that policy asks for.
    Also(Vec<StoreId>),
}

/// When a pin ends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// When somebody lifts it.
    Lifted,
    Time(UnixSeconds),
    /// When the VM runs in a datacenter other than this one: for a move ahead of the VM's own.
    VmLeaves(DatacenterName),
}

impl Pin {
    /// Whether it still holds.
    pub fn holds(&self, home: &Home, now: UnixSeconds) -> bool {
        match &self.until {
            Until::Lifted => true,
            Until::Time(end) => now < *end,
            Until::VmLeaves(datacenter) => home.datacenter == *datacenter,
        }
    }

    pub fn covers(&self, extents: Extents) -> bool {
        self.extents
            .is_none_or(|own| own.first <= extents.first && extents.end <= own.end)
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Until::Lifted => f.write_str("until it is lifted"),
            Until::Time(time) => write!(f, "until {time}"),
            Until::VmLeaves(datacenter) => write!(f, "until its VM runs outside {datacenter}"),
        }
    }
}

/// Whose rules a disk is under.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Home {
    /// Where its VM runs or, when it is detached, ran last: that datacenter's policy governs.
    pub datacenter: DatacenterName,
    /// Other datacenters where it ran before. What their policies bar a disk of its class from it
    /// stays barred from: a promise of residency does not end by leaving.
    #[serde(default)]
    pub before: Vec<DatacenterName>,
}

impl Home {
    pub fn new(datacenter: DatacenterName) -> Home {
        Home {
            datacenter,
            before: Vec::new(),
        }
    }

    /// The home of a disk whose VM has arrived in `datacenter`.
    pub fn moved_to(mut self, datacenter: DatacenterName) -> Home {
        let left = std::mem::replace(&mut self.datacenter, datacenter);
        self.before.push(left);
        self.before.sort_unstable();
        self.before.dedup();
        self.before.retain(|before| *before != self.datacenter);
        self
    }
}
