//! What is known and wished of one single disk, above its policy.

use super::UnixSeconds;
use replicator::words::{DatacenterName, DiskId, Extents, StoreId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// An operator's own placement of a disk, or of some of its extents. It beats locality, never
/// residency, and takes no copy away that durability asks for unless it was forced ([`Hold::Without`]).
/// The service keeps it.
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
    /// These stores have copies besides those that policy asks for; where one of those is missing they
    /// count for it.
    Also(Vec<StoreId>),
    /// These stores have none, as soon as others have them.
    Off(Vec<StoreId>),
    /// These stores have none, even if no others can have them: the one pin that goes below what
    /// durability asks for, made by a forced order that named what is lost. One copy always stays.
    Without(Vec<StoreId>),
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

impl Hold {
    pub fn names(&self, store: StoreId) -> bool {
        match self {
            Hold::In(_) => false,
            Hold::On(stores) | Hold::Also(stores) | Hold::Off(stores) | Hold::Without(stores) => {
                stores.contains(&store)
            }
        }
    }
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
    /// When its VM last changed datacenter; none: it never did.
    #[serde(default)]
    pub arrived: Option<UnixSeconds>,
    /// Its VM came so soon after the last change that the disk does not follow it before this time.
    #[serde(default)]
    pub held_until: Option<UnixSeconds>,
}

impl Home {
    pub fn new(datacenter: DatacenterName) -> Home {
        Home {
            datacenter,
            before: Vec::new(),
            arrived: None,
            held_until: None,
        }
    }

    /// The home of a disk whose VM runs in `datacenter` from `now` on, where changes within
    /// `hold_down` of one another count as a bounce.
    pub fn moved_to(
        &self,
        datacenter: &DatacenterName,
        now: UnixSeconds,
        hold_down: Duration,
    ) -> Home {
        if self.datacenter == *datacenter {
            return self.clone();
        }
        let bounces = self.arrived.is_some_and(|at| now.since(at) < hold_down);
        let mut before = self.before.clone();
        before.push(self.datacenter.clone());
        before.sort_unstable();
        before.dedup();
        before.retain(|before| before != datacenter);
        Home {
            datacenter: datacenter.clone(),
            before,
            arrived: Some(now),
            held_until: bounces.then(|| now.after(hold_down)),
        }
    }

    /// Whether the disk stays where it is for now, wherever its VM runs.
    pub fn is_held(&self, now: UnixSeconds) -> bool {
        self.held_until.is_some_and(|until| now < until)
    }
}
