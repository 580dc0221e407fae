//! Moves, as operators order, see and steer them.

use crate::planner::{Plan, Target};
use crate::policy::UnixSeconds;
use replicator::words::{DatacenterName, DiskId, DiskName, Extents, HostName, Revision, StoreId};
use serde::{Deserialize, Serialize};

/// Bytes of a disk from `first` to before `end`; what they touch of extents is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ByteRange {
    pub first: u64,
    pub end: u64,
}

/// The copies that follow the VM are to stand in `to` instead, until the VM goes elsewhere.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MoveDisk {
    pub to: DatacenterName,
    /// None: all of it.
    #[serde(default)]
    pub range: Option<ByteRange>,
    #[serde(default)]
    pub reason: String,
    /// Only say what would be done.
    #[serde(default)]
    pub plan_only: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddCopy {
    pub to: Target,
    #[serde(default)]
    pub range: Option<ByteRange>,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub plan_only: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DropCopy {
    pub store: StoreId,
    #[serde(default)]
    pub range: Option<ByteRange>,
    /// Although it breaks what policy promises.
    #[serde(default)]
    pub force: bool,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub plan_only: bool,
}

/// What an order comes to, and that it is under way unless only the plan was asked for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ordered {
    pub plan: Plan,
    /// What is lost by it; only a forced order loses something.
    pub losses: Vec<String>,
    /// None: only planned, or there is nothing to do.
    pub under_way: Option<Move>,
}

/// Copy ahead to where the VM is about to run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PrepareDisk {
    pub to: DatacenterName,
    /// The host that it will run on, if that is known: its store is chosen if it can be.
    #[serde(default)]
    pub node: Option<HostName>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ControlMove {
    pub control: Control,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// Nothing is copied but what the guest reads.
    Pause,
    Resume,
    /// Back to where it stood; refused where that would break what policy promises.
    Cancel,
    /// Bytes per second instead of policy's limit.
    Limit(u64),
    /// Policy's limit again.
    NoLimit,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Moves {
    pub under_way: Vec<Move>,
    /// Newest first; the last [`crate::model::ENDED_MOVES_KEPT`].
    pub ended: Vec<Move>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Move {
    pub number: u64,
    pub disk: DiskName,
    pub id: DiskId,
    pub kind: MoveKind,
    /// Datacenters of the stores that it leaves, and of those that it comes to.
    pub from: Vec<DatacenterName>,
    pub to: Vec<DatacenterName>,
    pub why: MoveWhy,
    pub state: MoveState,
    pub paused: bool,
    /// What the operator allows instead of policy's limit.
    pub own_limit: Option<u64>,
    /// Bytes per second that hold now; none: as fast as it goes.
    pub limit: Option<u64>,
    pub began: UnixSeconds,
    pub ended: Option<UnixSeconds>,
    pub progress: MoveProgress,
    /// As of its start.
    pub plan: Plan,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveKind {
    /// Members change.
    Move,
    /// Blocks are copied ahead to stores that are no members yet.
    Prepare,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveWhy {
    /// Its VM came to this node.
    Arrival(HostName),
    /// What policy asks for, or what the fleet can give, has changed.
    Policy,
    /// Copies are missing.
    Repair,
    /// Its copy leaves this store, which is to be emptied.
    Evacuation(StoreId),
    /// Its copy leaves this store for an emptier one.
    Rebalance(StoreId),
    /// Somebody's order, in words.
    Order(String),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveState {
    /// It has not begun; what it waits for, in words.
    Planned {
        waits_for: String,
    },
    /// The writer is to open the next epoch with the new write sets.
    Switching,
    Filling,
    /// All is copied; it remains to be recorded.
    Completing,
    /// Superfluous copies are being deleted.
    Dropping,
    Paused,
    /// It cannot go on, and will when this changes.
    Stuck {
        why: String,
    },
    Done,
    Cancelled,
}

impl MoveWhy {
    /// Whether it waits for its turn: nobody is there who wants it now.
    pub fn takes_turns(&self) -> bool {
        match self {
            MoveWhy::Arrival(_) | MoveWhy::Order(_) => false,
            MoveWhy::Policy | MoveWhy::Repair | MoveWhy::Evacuation(_) | MoveWhy::Rebalance(_) => {
                true
            }
        }
    }
}

impl MoveState {
    pub fn has_ended(&self) -> bool {
        matches!(self, MoveState::Done | MoveState::Cancelled)
    }
}

/// How far a move is, as the backend last said.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct MoveProgress {
    pub copied_bytes: u64,
    /// Bytes that were there already, in the same version.
    pub same_bytes: u64,
    /// None: not known yet.
    pub left_bytes: Option<u64>,
    /// What copying took on the links.
    pub link_bytes: u64,
    /// Of those copied: because the guest read them.
    pub read_through_bytes: u64,
    pub extents: u64,
    pub extents_done: u64,
    /// Lately; of copying.
    pub bytes_per_second: u64,
    pub seconds_left: Option<u64>,
    /// Of the blocks that the guest read lately: how many of a thousand were served near. None: it read nothing.
    pub near_reads_permille: Option<u16>,
}

/// A move in one line.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MoveBrief {
    pub number: u64,
    pub disk: DiskName,
    pub kind: MoveKind,
    pub from: Vec<DatacenterName>,
    pub to: Vec<DatacenterName>,
    pub state: MoveState,
    pub progress: MoveProgress,
}

/// The record of a copy that was deleted (I7).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deletion {
    pub disk: DiskId,
    pub store: StoreId,
    pub extents: Vec<Extents>,
    /// What it occupied, as its store had last said.
    pub bytes: u64,
    /// The stores whose copies made it superfluous; complete and alive when it was ordered.
    pub superseded_by: Vec<StoreId>,
    /// Of the disk's record, when that was so.
    pub revision: Revision,
    pub ordered: UnixSeconds,
    /// When its store said that it durably has it no more.
    pub done: UnixSeconds,
}
