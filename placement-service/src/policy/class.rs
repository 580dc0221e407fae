//! What can be promised about a class of disks, and the defaults.

use super::units::Window;
use super::{UnixSeconds, units};
use crate::choose::MAX_COPIES;
use replicator::words::DatacenterName;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// Copying into one datacenter is held to this unless its file says otherwise: enough to move a
/// tebibyte in three hours, and a tenth of a 10 Gbit/s link, so that guests hardly feel it.
pub const DEFAULT_LIMIT_BYTES_PER_SECOND: u64 = 100 << 20;
/// A VM that moves again within this time has probably not arrived yet.
pub const DEFAULT_HOLD_DOWN: Duration = Duration::from_secs(30);

/// A store that is away comes back more often than not: a host restarts within this time, and copying
/// is dearer than waiting.
pub const DEFAULT_REPAIR_AFTER: Duration = Duration::from_secs(600);
/// Two stores of a datacenter whose fill differs by less than this are left as they are.
pub const DEFAULT_REBALANCE_PERCENT: u8 = 20;

/// What a policy file (or one of its classes) says, complete: what it left out is filled in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Class {
    /// Copies where the VM runs; none: as many as the disk was created with.
    pub copies: Option<u8>,
    /// A guest's writes go on as long as so many complete copies take them; with fewer it waits.
    pub min_copies: u8,
    /// How long a copy whose store is away is waited for before another one is made.
    pub repair_after: Duration,
    /// Copies go from a store to an emptier one of its datacenter when they differ by more than so many
    /// percent of their capacity; none: never.
    pub rebalance: Option<u8>,
    pub spread: Spread,
    pub rigor: Rigor,
    /// Copies kept in other datacenters, whatever happens, besides `copies`.
    pub away: BTreeMap<DatacenterName, u8>,
    pub follow: Follow,
    /// A VM that changes datacenter again within this time takes no write set along until it has
    /// stayed for so long.
    pub hold_down: Duration,
    pub drop: DropWhen,
    pub never: BTreeSet<DatacenterName>,
    pub prepare: Prepare,
    pub copy: Copying,
}

impl Default for Class {
    fn default() -> Self {
        Class {
            copies: None,
            min_copies: 1,
            repair_after: DEFAULT_REPAIR_AFTER,
            rebalance: Some(DEFAULT_REBALANCE_PERCENT),
            spread: Spread::Rack,
            rigor: Rigor::Prefer,
            away: BTreeMap::new(),
            follow: Follow::Switch,
            hold_down: DEFAULT_HOLD_DOWN,
            drop: DropWhen::Complete,
            never: BTreeSet::new(),
            prepare: Prepare::Manual,
            copy: Copying::default(),
        }
    }
}

impl Class {
    /// Copies where the VM runs, of a disk that was created with `own`.
    pub fn copies_for(&self, own: u8) -> u8 {
        self.copies.unwrap_or(own).clamp(1, MAX_COPIES)
    }

    /// The fewest copies that a disk which was created with `own` may go on with: never more than it has
    /// when nothing is amiss.
    pub fn min_copies_for(&self, own: u8) -> u8 {
        self.min_copies.clamp(1, self.total(own))
    }

    /// All copies of a disk that was created with `own`.
    pub fn total(&self, own: u8) -> u8 {
        let away: u8 = self.away.values().fold(0, |sum, n| sum.saturating_add(*n));
        self.copies_for(own).saturating_add(away)
    }
}

/// What the copies in one datacenter do not share. They never share a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    Host,
    Rack,
}

/// What happens when `spread` cannot be kept: no copy there, or one that shares a rack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rigor {
    Strict,
    Prefer,
}

/// What happens to the write set when the VM arrives in another datacenter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Follow {
    /// Near stores at once: near latency from the first write.
    Switch,
    /// Both sides acknowledge each write until the near copies are complete.
    Extend,
    /// Nothing, until somebody moves the disk.
    Manual,
}

/// When copies that were made superfluous are deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropWhen {
    /// As soon as those that made them superfluous are complete.
    Complete,
    /// So long after that: meanwhile they are the base for a way back.
    After(Duration),
    /// When somebody says so.
    Manual,
}

/// Whether blocks are copied ahead to a place where the VM is about to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prepare {
    /// When somebody says so.
    Manual,
    /// From the moment that a backend stands by there.
    Standby,
}

/// How fast and when blocks are copied. Repairs ignore the windows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copying {
    /// Bytes per second into one datacenter, for all disks that are copied there; none: as fast as it goes.
    pub limit: Option<u64>,
    /// The same for single destinations.
    pub to: BTreeMap<DatacenterName, Option<u64>>,
    /// Times of day; none: always.
    pub windows: Vec<Window>,
}

impl Default for Copying {
    fn default() -> Self {
        Copying {
            limit: Some(DEFAULT_LIMIT_BYTES_PER_SECOND),
            to: BTreeMap::new(),
            windows: Vec::new(),
        }
    }
}

impl Copying {
    /// Bytes per second into `destination`.
    pub fn limit_to(&self, destination: &DatacenterName) -> Option<u64> {
        self.to.get(destination).copied().unwrap_or(self.limit)
    }

    /// When copying may go on: now, or when the next window opens.
    pub fn opens(&self, now: UnixSeconds) -> UnixSeconds {
        self.windows
            .iter()
            .map(|window| window.opens(now))
            .min()
            .unwrap_or(now)
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Spread::Host => "host",
            Spread::Rack => "rack",
        })
    }
}

impl fmt::Display for Rigor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rigor::Strict => "strict",
            Rigor::Prefer => "prefer",
        })
    }
}

impl fmt::Display for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Follow::Switch => "switch",
            Follow::Extend => "extend",
            Follow::Manual => "manual",
        })
    }
}

impl fmt::Display for DropWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DropWhen::Complete => f.write_str("when-complete"),
            DropWhen::After(time) => write!(f, "after {}", humantime::format_duration(*time)),
            DropWhen::Manual => f.write_str("manual"),
        }
    }
}

impl fmt::Display for Prepare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Prepare::Manual => "manual",
            Prepare::Standby => "standby",
        })
    }
}

/// A class as a file would say it, with every key.
impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(copies) = self.copies {
            writeln!(f, "copies = {copies}")?;
        }
        writeln!(f, "min-copies = {}", self.min_copies)?;
        let repair_after = humantime::format_duration(self.repair_after);
        writeln!(f, "repair-after = \"{repair_after}\"")?;
        match self.rebalance {
            Some(percent) => writeln!(f, "rebalance = \"{percent}%\"")?,
            None => writeln!(f, "rebalance = \"off\"")?,
        }
        writeln!(f, "spread = \"{}\"", self.spread)?;
        writeln!(f, "rigor = \"{}\"", self.rigor)?;
        let away: Vec<String> = self.away.iter().map(|(dc, n)| key_value(dc, n)).collect();
        writeln!(f, "away = {{{}}}", away.join(", "))?;
        writeln!(f, "follow = \"{}\"", self.follow)?;
        let hold_down = humantime::format_duration(self.hold_down);
        writeln!(f, "hold-down = \"{hold_down}\"")?;
        writeln!(f, "drop = \"{}\"", self.drop)?;
        let never: Vec<String> = self.never.iter().map(|dc| format!("\"{dc}\"")).collect();
        writeln!(f, "never = [{}]", never.join(", "))?;
        writeln!(f, "prepare = \"{}\"", self.prepare)?;
        let rate = |rate: &Option<u64>| format!("\"{}\"", units::rate(*rate));
        writeln!(f, "copy.limit = {}", rate(&self.copy.limit))?;
        let to = self.copy.to.iter();
        let to: Vec<String> = to.map(|(dc, limit)| key_value(dc, rate(limit))).collect();
        writeln!(f, "copy.to = {{{}}}", to.join(", "))?;
        let windows = self.copy.windows.iter();
        let windows: Vec<String> = windows.map(|window| format!("\"{window}\"")).collect();
        writeln!(f, "copy.windows = [{}]", windows.join(", "))
    }
}

/// Quoted: a datacenter's name may hold a dot.
fn key_value(datacenter: &DatacenterName, value: impl fmt::Display) -> String {
    format!("\"{datacenter}\" = {value}")
}
