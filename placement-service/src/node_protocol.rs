//! What nodes and the placement service say to one another: JSON over QUIC, ALPN `ukai-placement/1`.
//!
//! ```text
//!  node                                   placement service
//!   | --- bidirectional stream: Hello ------> |   once a connection, before anything else
//!   | <-- Welcome | Refusal ----------------- |
//!   | --- stream: Request, FIN -------------> |   one stream a call, any number at once
//!   | <-- Response | Refusal, FIN ----------- |   in any order
//! ```
//!
//! A frame is a length (u32, little-endian) and that many bytes of JSON. Unknown fields are ignored
//! and missing ones have defaults, so that a minor change needs no new version.

use crate::api::{StoreAddress, Wanted};
use crate::catalog::CatalogError;
pub use crate::granted::{Grant, Granted};
use replicator::words::{
    BackendId, Change, ChangeRefused, DatacenterName, DiskId, DiskName, DiskRecord, Epoch, Extents,
    HostName, Incarnation, RackName, Revision, Starts, StoreId,
};
use replicator::writer::{Orders, Progress, Verdict};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

pub const ALPN: &[u8] = b"ukai-placement/1";
/// The newest version of this protocol that this program speaks, and the oldest.
pub const VERSION: u16 = 1;
pub const OLDEST_VERSION: u16 = 1;
/// The longest frame. A heartbeat of 30,000 replicas still fits.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// A call is answered, or its stream given up, after this long.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A heartbeat whose sender has seen everything is answered after this long.
pub const HEARTBEAT_WAIT: Duration = Duration::from_secs(1);
/// A node that has said nothing for this long is silent: five heartbeats.
pub const SILENT_AFTER: Duration = Duration::from_secs(5);

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The newest and oldest version that the node speaks.
    pub newest: u16,
    pub oldest: u16,
    /// The program's version, for messages.
    pub program: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both will speak.
    pub version: u16,
    pub program: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    Heartbeat(Heartbeat),
    /// One whose lists are left out. A service of an earlier version would take it for one that has none: it
    /// does not know this request.
    Brief(Heartbeat),
    /// A disk's record as it is.
    Record {
        disk: DiskId,
    },
    /// Change a disk's record if its revision is still `expected` (I8).
    Swap {
        disk: DiskId,
        backend: BackendId,
        expected: Revision,
        change: Change,
    },
    /// Where these stores are reached.
    Stores {
        stores: Vec<StoreId>,
    },
    /// What a store keeps of disks' records, in parts: the service has asked for it.
    Records(Records),
}

/// The longest part of that, in records: the longest of them fit into a frame.
pub const MAX_RECORDS: usize = 7;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Records {
    /// [`Desired::records`].
    pub round: u64,
    pub store: StoreId,
    /// Nothing follows.
    pub last: bool,
    pub disks: Vec<KeptDisk>,
}

/// What a store was shown of a disk, and the record that it keeps, which may be of an earlier epoch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct KeptDisk {
    pub disk: DiskId,
    pub epoch: Epoch,
    #[serde(default)]
    pub record: Option<Box<DiskRecord>>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    Desired(Desired),
    /// What is wanted is still what the heartbeat says that it has seen. Only to one whose lists have a name.
    Same,
    /// The lists that the heartbeat leaves out are not known: tell them.
    TellAll,
    Record(Box<Granted>),
    Swapped(Box<Granted>),
    /// The revision was another one; nothing was changed.
    Conflict(Box<Granted>),
    /// The change is not possible; nothing was changed.
    ChangeRefused(ChangeRefused),
    /// Only those that are known and not refused.
    Stores(Vec<StoreAddress>),
    /// Records were taken in.
    Noted,
    Refused(Refusal),
}

/// Why a call was not done. Nothing was changed, except where it says so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    #[error(
        "the placement service speaks versions {oldest} to {newest} of the node protocol ({program}), this peer {peer_oldest} to {peer_newest}: update the older one"
    )]
    Version {
        newest: u16,
        oldest: u16,
        program: String,
        peer_newest: u16,
        peer_oldest: u16,
    },
    #[error("there is no disk {disk}")]
    NoSuchDisk { disk: DiskId },
    #[error("a {role} certificate does not allow this")]
    NotAllowed { role: String },
    #[error("the placement service does not understand the request: {why}")]
    Malformed { why: String },
    /// It is not known whether a swap was made.
    #[error("the placement service's catalog failed: {why}")]
    Catalog { why: String },
    /// The catalog was restored or lost, and has not been compared with the stores yet: no swap is made.
    #[error("the disk is waited for: {why}")]
    InDoubt { why: String },
    /// Another placement service has to be asked.
    #[error("this placement service only stands by; {}", leads(.leader))]
    NotLeader { leader: Option<Leader> },
}

/// The placement service that leads.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Leader {
    /// Its host.
    pub name: String,
    /// Where nodes reach it, if it can tell.
    #[serde(default)]
    pub at: Option<SocketAddr>,
}

fn leads(leader: &Option<Leader>) -> String {
    match leader {
        Some(Leader { name, at: Some(at) }) => format!("{name} leads, at {at}"),
        Some(Leader { name, at: None }) => format!("{name} leads"),
        None => "none leads at the moment".into(),
    }
}

impl From<CatalogError> for Refusal {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::NotLeader => Refusal::NotLeader { leader: None },
            error => Refusal::Catalog {
                why: error.to_string(),
            },
        }
    }
}

/// What a node says of itself, about once a second, and at once when something changed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    pub datacenter: DatacenterName,
    pub rack: RackName,
    /// Where other nodes reach it. An unspecified IP address (0.0.0.0, ::) means: where the
    /// placement service sees it come from.
    pub listen: SocketAddr,
    #[serde(default)]
    pub stores: Vec<StoreReport>,
    /// Every backend that the node has begun to run and that is not gone yet.
    #[serde(default)]
    pub backends: Vec<BackendReport>,
    /// What it measured to the stores that it speaks to.
    #[serde(default)]
    pub links: Vec<LinkReport>,
    /// [`Desired::digest`] of the last answer that the node acts upon; 0 before the first. `backends`
    /// has to be read after that answer was taken in.
    #[serde(default)]
    pub seen: u64,
    /// Of `backends`, and of `disks` and `shown` of each store.
    #[serde(default)]
    pub lists: Lists,
}

/// Whether a heartbeat has its long lists with it ([`crate::brief`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lists {
    /// All are there, and so is all that is wanted to be in the answer: a node of an earlier version.
    #[default]
    Told,
    /// All are there, and get a name.
    Named(u64),
    /// None is there: they are as they were under this name.
    AsNamed(u64),
}

impl Lists {
    pub fn name(self) -> Option<u64> {
        match self {
            Lists::Told => None,
            Lists::Named(name) | Lists::AsNamed(name) => Some(name),
        }
    }
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StoreReport {
    pub id: StoreId,
    pub starts: Starts,
    /// The runs that its directory has been through, newest first: this one, then those before it.
    #[serde(default)]
    pub runs: Vec<StoreRun>,
    /// None: it has not looked yet, or knows no such thing.
    #[serde(default)]
    pub log: Option<LogReport>,
    pub incarnation: Incarnation,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    #[serde(default)]
    pub disks: Vec<DiskUse>,
    /// What the store has been shown of each disk: more than the catalog knows only if that is an older
    /// copy of itself.
    #[serde(default)]
    pub shown: Vec<DiskShown>,
    /// No: of some disk something newer waits for a sync, and `shown` leaves that disk out.
    #[serde(default = "yes")]
    pub all_shown: bool,
    /// Disks from [`Desired::drop`] that the store durably has no more.
    #[serde(default)]
    pub dropped: Vec<DiskId>,
    /// Of [`Desired::drop_replicas`], what the store durably has no more.
    #[serde(default)]
    pub dropped_replicas: Vec<DropReplica>,
    /// What is wrong with it (full, failed, damaged), in words.
    #[serde(default)]
    pub trouble: Option<String>,
    #[serde(default)]
    pub media: MediaReport,
}

impl StoreReport {
    /// What a new store says, which has nothing yet.
    pub fn of_new(id: StoreId, capacity_bytes: u64) -> StoreReport {
        StoreReport {
            id,
            starts: Starts(1),
            runs: Vec::new(),
            log: None,
            incarnation: Incarnation(1),
            capacity_bytes,
            used_bytes: 0,
            disks: Vec::new(),
            shown: Vec::new(),
            all_shown: true,
            dropped: Vec::new(),
            dropped_replicas: Vec::new(),
            trouble: None,
            media: MediaReport::default(),
        }
    }
}

/// A node of an earlier version leaves nothing out.
fn yes() -> bool {
    true
}

/// How far a store's log goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogReport {
    /// Where it ended when the store's run began.
    pub began: LogPlace,
    /// Up to here it is on media: a later run begins no earlier.
    pub synced: LogPlace,
}

/// Segment, and bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct LogPlace(pub u32, pub u64);

/// What a store has found out about its media.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MediaReport {
    /// Blocks that are damaged, as far as it is known, and not healed yet.
    pub damaged_blocks: u64,
    /// Those that were healed since the store was started.
    pub healed_blocks: u64,
    /// How often the scrub has read everything, and how far it is with the next pass.
    pub scrub_passes: u64,
    pub scrub_permille: u16,
}

/// A number drawn when a store starts. A directory that does not know its store's last run is a copy from
/// before that.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreRun(pub u64);

/// The highest epoch that a store was shown of a disk, and of which revision the record is that it keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskShown {
    pub disk: DiskId,
    pub epoch: Epoch,
    /// None: it keeps no record of that epoch.
    #[serde(default)]
    pub revision: Option<Revision>,
}

/// What a disk occupies in a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskUse {
    pub disk: DiskId,
    pub allocated_bytes: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackendReport {
    pub disk: DiskId,
    pub backend: BackendId,
    pub state: BackendState,
    /// The epoch that it has open, and serves in.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    /// What its guest waits for, if for anything unusual, in words.
    #[serde(default)]
    pub stall: Option<String>,
    /// What keeps its orders from being carried out, in words.
    #[serde(default)]
    pub hindrance: Option<String>,
    /// Stores that are to join its disk, and do not answer it.
    #[serde(default)]
    pub unreachable: Vec<StoreId>,
    /// How far copying is; none: it does not say.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// What came of the last order to verify its disk, or how far that is.
    #[serde(default)]
    pub verdict: Option<Verdict>,
}

/// What a node measured to one store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkReport {
    pub to: StoreId,
    pub round_trip_us: u64,
    /// As last seen under load; none: it was never loaded.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
    /// Bytes before compression for a thousand bytes after it; none: nothing was sent lately.
    #[serde(default)]
    pub compression_permille: Option<u32>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    Starting,
    /// QEMU may connect.
    Ready {
        socket: String,
        /// What its disk is doing, in words.
        #[serde(default)]
        status: String,
    },
    Stopping,
    /// It cannot go on by itself; why, in words.
    Failed {
        why: String,
    },
}

/// What the placement service wants of a node.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, Default)]
pub struct Desired {
    /// Names the content of everything below; send it back in [`Heartbeat::seen`].
    pub digest: u64,
    /// The name of the lists that the service has of the node. None: it remembers none, as in earlier versions.
    #[serde(default)]
    pub remembered: Option<u64>,
    /// Every backend that may run on the node. One that runs and is not named here has lost its
    /// disk: it stops, and cannot close its epoch any more.
    pub attachments: Vec<DesiredAttachment>,
    /// Disks that were deleted; every store of the node drops what it has of them.
    pub drop: Vec<DiskId>,
    /// Copies that became superfluous; send each back in [`StoreReport::dropped_replicas`] when it is gone.
    #[serde(default)]
    pub drop_replicas: Vec<DropReplica>,
    /// Far stores whose links are to be measured also while no disk uses them: one a datacenter.
    #[serde(default)]
    pub probe: Vec<StoreId>,
    /// When it is another number than before: tell the records that the node's stores keep
    /// ([`Request::Records`]). Zero: nobody asks.
    #[serde(default)]
    pub records: u64,
    /// Stores of the node that are in no set, and why.
    pub refused: Vec<StoreRefused>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct DesiredAttachment {
    pub disk: DiskId,
    pub name: DiskName,
    pub backend: BackendId,
    /// `Detached`: drain, close the epoch, and then leave the backend out of the heartbeats.
    /// `Copying`: open the disk at once, without a socket.
    pub wanted: Wanted,
    /// Whether an epoch that another backend holds open may be taken over. A backend may always take
    /// over what it held open itself before it was restarted.
    pub take_over: bool,
    /// None: those that it has hold on.
    #[serde(default)]
    pub orders: Option<Orders>,
    /// Who is expected to open the disk next.
    #[serde(default)]
    pub successor: Option<BackendId>,
}

/// What a store is to delete of a disk, as far as its replica joined below that epoch.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct DropReplica {
    pub disk: DiskId,
    pub store: StoreId,
    pub extents: Vec<Extents>,
    pub joined_below: Epoch,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct StoreRefused {
    pub store: StoreId,
    pub why: StoreFault,
}

/// Why a store is in no set.
#[derive(Clone, PartialEq, Eq, Hash, Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreFault {
    #[error(
        "the store was started {recorded} times before, and now says {shown}: its directory is an older copy of itself, and what was written since is not in it; format it anew"
    )]
    RolledBack { recorded: u64, shown: u64 },
    #[error(
        "the store does not know of its own last start, its {recorded}th: its directory is an older copy of itself, and what was written since is not in it; put the right directory back, or format it anew"
    )]
    Forked { recorded: u64 },
    #[error(
        "the store's log ends before what it was known to have on media: its directory is an older copy of itself, and what was written since is not in it; put the right directory back, or format it anew"
    )]
    Shortened,
    #[error(
        "the store belongs to host {recorded}, and now shows itself on {shown}: if its directory was carried over on purpose, say so with POST /v1/stores/ID/host; if it was copied, format the copy anew"
    )]
    Moved { recorded: HostName, shown: HostName },
}
