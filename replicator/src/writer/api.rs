//! What goes into the writer and what comes out of it: plain data, so that a test can be read as a script.

use super::verdict::{Verdict, VerifyOrder};
use crate::message::{Reply, Request};
use crate::words::{
    BackendId, Change, ChangeRefused, DiskRecord, Epoch, HostName, NewSet, Revision, Span, StoreId,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A point in time, counted from whenever the shell likes; it only has to go forward.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Now(pub Duration);

impl std::ops::Add<Duration> for Now {
    type Output = Now;

    fn add(self, wait: Duration) -> Now {
        Now(self.0 + wait)
    }
}

/// Names a guest's request from [`Event::Guest`] to [`Effect::Complete`]; unique among those between.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RequestId(pub u64);

/// Names one question of the writer; never used twice by one [`super::Writer`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct CallId(pub u64);

/// Spans are whole sectors and lie on the disk: whoever takes them from a guest has checked that.
#[derive(Clone, PartialEq, Debug)]
pub enum GuestOp {
    Read {
        span: Span,
    },
    /// `data` is the one copy of the guest's buffer (rule W1), exactly `span.len` bytes.
    Write {
        span: Span,
        data: Bytes,
    },
    /// Discard or write-zeroes: reads as zeroes afterwards.
    Zero {
        span: Span,
    },
    Flush,
}

/// How a request ended without success.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    #[error("another writer has taken the disk over")]
    Superseded,
    #[error("no copy of the block could be read intact")]
    Unreadable,
    #[error("it waited longer than is allowed; whether it takes place some day is unknown")]
    TooLate,
    #[error("the disk was stopped before the request was done; whether it took place is unknown")]
    Stopped,
}

/// Whose epoch a start may end without a clean close (rule A3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakeOver {
    /// Only this backend's own: the node was restarted under the same VM.
    Own,
    /// Whoever has it, because an operator or VM manager says that this one is dead.
    Ordered,
}

/// What a writer may be told; every number of it is the shell's choice.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store to read from where it is a member; a function call away.
    pub near: Option<StoreId>,
    /// How long a member may leave a write or a sync unanswered before it is ejected (rule W6), counted
    /// from when another member answered the same question: who is as slow as all others is not at fault.
    /// `None`: for ever, the guest waits.
    pub eject_after: Option<Duration>,
    /// After this, a read that was not answered is asked of another member.
    pub read_patience: Duration,
    /// How long a take-over waits for members that do not answer its seal (rule A5).
    pub settle_patience: Duration,
    /// How long a stop tries to drain, sync and close (rule A2).
    pub close_patience: Duration,
    /// Between two tries at something that must succeed some day: a full store, an absent placement service.
    pub pause: Duration,
    /// A request that waits longer ends with [`Failure::TooLate`]; `None`: it waits. What of a write was
    /// begun goes on, before whatever is written to the same blocks later.
    pub stall_deadline: Option<Duration>,
    /// How often it looks unasked whether its whole copies agree and are intact; `None`: never.
    pub audit_every: Option<Duration>,
    /// Bounds [`super::Writer::room`].
    pub max_in_flight_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            near: None,
            eject_after: Some(Duration::from_secs(2)),
            read_patience: Duration::from_secs(1),
            settle_patience: Duration::from_secs(5),
            close_patience: Duration::from_secs(8),
            pause: Duration::from_millis(200),
            stall_deadline: None,
            audit_every: None,
            max_in_flight_bytes: 16 << 20,
        }
    }
}

/// What the placement service wants of a writer beyond serving its guest; replaced as a whole.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Orders {
    /// The members that the disk should have; extents that are not named keep theirs.
    #[serde(default)]
    pub sets: Vec<NewSet>,
    /// Stores that are to have copies ahead, though they are no members (yet).
    #[serde(default)]
    pub seed: Vec<NewSet>,
    #[serde(default)]
    pub fill: FillOrders,
    /// No ejection is made that would leave an extent with fewer complete copies than this; the guest waits
    /// instead. 0 and 1 say the same: the last one is never ejected.
    #[serde(default)]
    pub min_copies: u8,
    /// Verify the disk, once for each id; taken back, it is cancelled.
    #[serde(default)]
    pub verify: Option<VerifyOrder>,
}

/// How members that are not whole are filled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct FillOrders {
    /// Begin no more pulls, but for what the guest reads.
    #[serde(default)]
    pub paused: bool,
    /// None: as fast as it goes.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
    /// At half of that while the guest is busy.
    #[serde(default)]
    pub yields: bool,
}

/// How far the filling is, and who answers reads, since this writer was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Extents that have to be filled, and those of them that are. Both 0: all is whole.
    pub extents: u64,
    pub extents_done: u64,
    /// Bytes of the blocks that were copied.
    pub copied_bytes: u64,
    /// What that took on the links.
    pub link_bytes: u64,
    /// Bytes that were there already in the same version.
    pub same_bytes: u64,
    /// Bytes that are known to be missing still, of the extents that were surveyed.
    pub missing_bytes: u64,
    /// Blocks that the guest read and found near, and those that had to come from elsewhere.
    pub near_blocks: u64,
    pub far_blocks: u64,
    /// Of those copied: because the guest read them.
    pub read_through_bytes: u64,
    /// The same as `extents`, of the stores that are to have copies ahead.
    #[serde(default)]
    pub seed_extents: u64,
    #[serde(default)]
    pub seed_extents_done: u64,
    /// Blocks that were damaged in a store and were given back to it by another.
    #[serde(default)]
    pub healed_blocks: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// Carried out at the next attach, and while the disk is open.
    Orders(Orders),
    /// Measured round trips, for the choice between stores that are not near.
    Distances(Vec<(StoreId, Duration)>),
    /// Become the writer: attach if the disk is closed, with the members that the orders want; take it over
    /// if it is open and that is allowed. Ends in [`Effect::Opened`] or [`Effect::NotStarted`].
    Start {
        take_over: TakeOver,
    },
    /// May come at any time; waits until the disk is open.
    Guest {
        id: RequestId,
        op: GuestOp,
    },
    /// Whoever asked for what has not begun has gone: it ends as failed.
    GiveBack,
    /// A store's answer. Where the aim was [`Aim::Guest`] the shell has put the data into its landing
    /// already and passes [`crate::message::ReadBlocks`] with empty data. Unknown and repeated answers do no harm.
    Reply {
        call: CallId,
        reply: Reply,
    },
    /// The call was withdrawn: nothing of it will land from now on. Answers [`Effect::Withdraw`].
    Withdrawn {
        call: CallId,
    },
    /// A session with the store stands. Everything unanswered is sent (again) in it.
    Connected {
        store: StoreId,
    },
    /// The session is gone: nothing that was sent in it is answered, or lands, from now on.
    Disconnected {
        store: StoreId,
    },
    Swapped {
        call: CallId,
        outcome: SwapOutcome,
    },
    /// Answers [`Effect::Inspect`]; `None` where the placement service could not be reached.
    Inspected {
        call: CallId,
        record: Option<Box<DiskRecord>>,
    },
    /// Drain, sync and close, naming the backend expected next. Ends in [`Effect::Stopped`].
    Stop {
        successor: Option<BackendId>,
    },
    /// With `true`, sync whenever something is not synced, so that the sync at a stop is short (rule S4).
    SyncContinuously(bool),
    /// [`super::Writer::next_timeout`] has come.
    Timeout,
}

/// How a compare-and-swap ended.
#[derive(Clone, PartialEq, Debug)]
pub enum SwapOutcome {
    /// The record as the change left it.
    Done(Box<DiskRecord>),
    /// The revision was another one; the record as it is.
    Conflict(Box<DiskRecord>),
    /// The revision was right, the change was not.
    Refused(ChangeRefused),
    /// No answer, or none that says whether it happened. The writer asks again with the same
    /// revision: at most one of its tries can have happened (I8).
    Unknown,
}

/// Where the data of a read goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aim {
    /// Not a read.
    Nowhere,
    /// Into the near store, by a pull that a guest's read waits for: before all other pulls.
    Near,
    /// Into the reply.
    Engine,
    /// Into the landing of request `id`, whose span is `span`: each block that the reply calls
    /// `Found::Data` lands at its own place, clipped to `span`. Other blocks are left alone; an
    /// [`Effect::Zero`] follows where they read as zeroes.
    Guest { id: RequestId, span: Span },
}

#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Keep a session with this store from now on, and report it with [`Event::Connected`]. The near
    /// store is connected at once.
    Connect {
        store: StoreId,
    },
    /// The near store will soon be told to pull from this one.
    PrepareToPull {
        store: StoreId,
    },
    /// Only while the store is connected.
    Send {
        store: StoreId,
        call: CallId,
        request: Request,
        aim: Aim,
    },
    /// Let nothing of this guest-aimed read land any more, then say [`Event::Withdrawn`], at once; or give its answer, if
    /// that is there already.
    Withdraw {
        call: CallId,
    },
    Swap {
        call: CallId,
        expected: Revision,
        change: Change,
    },
    /// Fetch the disk's record.
    Inspect {
        call: CallId,
    },
    /// Fill this part of the request's landing with zeroes.
    Zero {
        id: RequestId,
        span: Span,
    },
    Complete {
        id: RequestId,
        result: Result<(), Failure>,
    },
    /// This writer serves the disk in `epoch`. Comes again for each epoch.
    Opened {
        epoch: Epoch,
    },
    NotStarted {
        why: NotStarted,
    },
    /// `clean`: closed, another may attach. Otherwise the next start is a take-over (rule A2).
    Stopped {
        clean: bool,
    },
    /// Another writer has a later epoch: everything in flight fails, nothing is served until a start.
    Superseded {
        shown: Epoch,
    },
    /// The guest waits for something, and nothing is wrong with its data: for logs and status.
    Stalled(Stall),
    /// What the last [`Effect::Stalled`] said is over.
    Resumed,
    /// The orders cannot be carried out now; the guest does not notice. For logs and status.
    Hindered(Hindrance),
    /// What the last [`Effect::Hindered`] said is over.
    Unhindered,
    /// The disk was verified, by order, or unasked with something to say: for logs.
    Verified(Box<Verdict>),
}

/// Why a start ended without an open disk.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotStarted {
    #[error("the disk is open for {host}; close it there, or order a take-over")]
    AlreadyOpen { host: HostName },
    #[error("{0}")]
    Refused(ChangeRefused),
    #[error("it was stopped before it was open")]
    Stopped,
}

impl NotStarted {
    /// Whether a later try may come to another end without anybody saying so: its writer closes the disk, or the placement
    /// service knows again what it was in doubt about.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            NotStarted::AlreadyOpen { .. } | NotStarted::Refused(ChangeRefused::InDoubt { .. })
        )
    }
}

/// What a guest waits for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Stall {
    #[error("the placement service does not answer")]
    PlacementAway,
    #[error("stores {0:?} are missing, and without them some extents would have no replica left")]
    LastMembers(Vec<StoreId>),
    #[error(
        "stores {stores:?} are missing, and without them some extents would have fewer complete copies than min-copies, {least}"
    )]
    TooFewCopies { stores: Vec<StoreId>, least: u8 },
    #[error("stores {0:?} may hold whole replicas that are needed, and do not answer")]
    SettleWaits(Vec<StoreId>),
    #[error("store {0} is full")]
    Full(StoreId),
    #[error("store {0} does not accept the placement service's grant")]
    NotGranted(StoreId),
    #[error("what is to be read stands on stores {0:?}, and none of them answers")]
    Unreachable(Vec<StoreId>),
}

/// What keeps orders from being carried out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Hindrance {
    #[error("the members cannot be changed: {0}")]
    Refused(ChangeRefused),
    #[error("stores {0:?} are to join, and do not answer")]
    NoAnswer(Vec<StoreId>),
    #[error(
        "members are changed between two writes, and some that are in flight do not end: what the guest waits for has to end first"
    )]
    InFlight,
    #[error("store {0} is full: it is filled on when it has room")]
    Full(StoreId),
    #[error("what is to be copied stands on stores {0:?}, and none of them gives it")]
    NoSource(Vec<StoreId>),
    #[error("store {0} refuses to be filled")]
    Refuses(StoreId),
}
