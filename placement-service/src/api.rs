//! What operators and the placement service say to one another: JSON over HTTPS.
//!
//! ```text
//! GET    /v1/status                       Status
//! GET    /v1/datacenters                  [Datacenter]
//! POST   /v1/datacenters                  CreateDatacenter -> Datacenter
//! GET    /v1/links                        [Link]
//! GET    /v1/hosts                        [Host]
//! GET    /v1/stores                       [Store]
//! POST   /v1/stores/{id}/host             MoveStore -> Store
//! POST   /v1/stores/{id}/lost             DeclareLost -> Bereaved
//! DELETE /v1/stores/{id}/lost             -> Store             (it is found)
//! POST   /v1/stores/{id}/evacuate         Evacuate -> Evacuation
//! DELETE /v1/stores/{id}/evacuate         -> Store             (it is to be emptied no more)
//! GET    /v1/backup                       String               (the catalog; see `crate::backup`)
//! POST   /v1/rebuild                      Rebuild -> Rebuilt
//! GET    /v1/disks                        [Disk]
//! POST   /v1/disks                        CreateDisk -> Created
//! GET    /v1/disks/{name}                 Disk
//! DELETE /v1/disks/{name}                 -> Deleted
//! GET    /v1/disks/{name}/map             DiskMap
//! POST   /v1/disks/{name}/attach          Attach -> Attached   (waits until the socket is there; of a
//!                                         take-over, until the disk is open, too)
//! POST   /v1/disks/{name}/detach          Detach -> Detached   (waits until the backend is gone)
//! POST   /v1/disks/{name}/writer          TakeWriter -> Writer (for a writer in the operator's own process)
//!
//! GET    /v1/disks/{name}/plan            planner::Plan        (what is still to be done; empty: nothing)
//! GET    /v1/disks/{name}/explain         planner::Explanation
//! GET    /v1/disks/{name}/deletions       [Deletion]           (copies that were dropped, newest first)
//! PUT    /v1/disks/{name}/class           SetClass -> Disk
//! GET    /v1/disks/{name}/pins            [policy::Pin]
//! POST   /v1/disks/{name}/pins            AddPin -> [policy::Pin]
//! DELETE /v1/disks/{name}/pins            LiftPins -> [policy::Pin]
//!
//! POST   /v1/disks/{name}/move            MoveDisk -> Ordered
//! POST   /v1/disks/{name}/copies          AddCopy -> Ordered
//! DELETE /v1/disks/{name}/copies          DropCopy -> Ordered
//! POST   /v1/disks/{name}/prepare         PrepareDisk -> Move
//! GET    /v1/disks/{name}/move            Move                 (the one under way, else the last one)
//! PATCH  /v1/disks/{name}/move            ControlMove -> Move
//! GET    /v1/moves                        Moves
//!
//! GET    /v1/policies                     [PolicyView]
//! GET    /v1/policies/{datacenter}        PolicyView
//! POST   /v1/policies/{datacenter}/check  PolicyText -> PolicyCheck
//! POST   /v1/policies/{datacenter}/diff   PolicyText -> PolicyDiff
//! PUT    /v1/policies/{datacenter}        ApplyPolicy -> PolicyDiff (refused, if it cannot be kept)
//! ```
//!
//! A move is what a disk is doing towards where it should stand; each disk has one at most. So moves are
//! named by their disk; a move's number names it in the history.
//!
//! Only a certificate of role operator gets as far as a request; any other is refused in the handshake.
//! Everything that goes wrong is an [`ErrorBody`], with a status of 400 (not possible as asked), 404
//! (no such thing), 409 (not now), 421 (another placement service leads), 503 (the catalog failed) or
//! 504 (accepted, but it has not come about yet).

mod moves;
mod policies;
mod stores;
mod verify;

pub use moves::{
    AddCopy, ByteRange, Control, ControlMove, Deletion, DropCopy, Move, MoveBrief, MoveDisk,
    MoveKind, MoveProgress, MoveState, MoveWhy, Moves, Ordered, PrepareDisk,
};
pub use policies::{
    AddPin, ApplyPolicy, LiftPins, PolicyCheck, PolicyDiff, PolicyText, PolicyView, SetClass,
};
pub use verify::{Verification, VerifyDisk};

pub use stores::{
    Bereaved, DeclareLost, Evacuate, EvacuatedDisk, Evacuation, StoreOrder, StoreOrderKind,
    StoreTask,
};

use crate::node_protocol::MediaReport;
use crate::policy::{ClassName, UnixSeconds};
use replicator::words::{
    BackendId, DatacenterName, DiskId, DiskName, DiskRecord, Epoch, ExtentSize, Extents,
    Generation, HostName, RackName, Revision, StoreId,
};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The protocol's name in ALPN; ordinary HTTP.
pub const ALPN: &[u8] = b"http/1.1";
/// A request's body is at most this long: a policy file, as JSON.
pub const MAX_BODY_BYTES: usize = 128 << 10;
/// How long attach and detach wait when the request does not say.
pub const DEFAULT_WAIT_MS: u64 = 15_000;
/// The longest that a request may wait.
pub const MAX_WAIT_MS: u64 = 120_000;

/// What happened, why, and what to try next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
    pub why: String,
    #[serde(rename = "try")]
    pub try_next: String,
    /// With status 421: where the placement service that leads is asked, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<SocketAddr>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the placement service's program.
    pub version: String,
    pub generation: Generation,
    pub datacenters: u64,
    pub hosts: u64,
    pub hosts_up: u64,
    pub stores: u64,
    pub stores_up: u64,
    pub disks: u64,
    pub attached: u64,
    /// Disks with fewer complete copies than their policy asks for.
    pub disks_short: u64,
    /// Disks that are open, and not all of whose blocks have a complete copy in the datacenter of their VM.
    pub disks_far: u64,
    /// The first of these.
    #[serde(default)]
    pub far: Vec<FarDisk>,
    /// What is under way, worst first.
    pub moving: Vec<MoveBrief>,
    /// Copies that were made superfluous and are not deleted yet, and what they occupy.
    pub retired_copies: u64,
    pub retired_bytes: u64,
    /// Of the stores that are up, as they last said.
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// What all disks promise, times their copies.
    pub provisioned_bytes: u64,
    /// A line for everything that somebody should look at.
    pub problems: Vec<String>,
}

/// A disk that is open, and not all of whose blocks have a complete copy in the datacenter of its VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FarDisk {
    pub disk: DiskName,
    /// Where its VM runs.
    pub home: DatacenterName,
    /// Of all extents, those with a complete copy there.
    pub extents: u64,
    pub near_extents: u64,
    /// Why no move changes that, in words; none: one does.
    pub why: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CreateDatacenter {
    pub name: DatacenterName,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Datacenter {
    pub name: DatacenterName,
    pub racks: u64,
    pub hosts: u64,
    pub hosts_up: u64,
    pub stores: u64,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
}

/// What nodes measured between two datacenters, in one direction, or inside one. Their own traffic shows it,
/// and one probe a second where there is none.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Link {
    pub from: DatacenterName,
    pub to: DatacenterName,
    pub round_trip_us: u64,
    /// As last seen under load; none: never loaded yet.
    pub bytes_per_second: Option<u64>,
    /// Bytes before compression to bytes after it, of copies that were sent lately; none: nothing was.
    pub compression: Option<f64>,
    /// Nodes that say so.
    pub nodes: u64,
}

/// Whether a host or store has been heard of lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Liveness {
    Up,
    /// Not heard for `for_ms` milliseconds.
    Silent {
        for_ms: u64,
    },
    /// Not heard of since the placement service started.
    Unheard,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Host {
    pub name: HostName,
    pub datacenter: DatacenterName,
    pub rack: RackName,
    pub liveness: Liveness,
    /// Where its node listens for other nodes.
    pub address: Option<SocketAddr>,
    pub stores: Vec<StoreId>,
    pub backends: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Store {
    pub id: StoreId,
    pub host: HostName,
    pub datacenter: DatacenterName,
    pub rack: RackName,
    pub address: Option<SocketAddr>,
    pub liveness: Liveness,
    pub starts: u64,
    /// As the store last said; none before it has.
    pub capacity_bytes: Option<u64>,
    pub used_bytes: Option<u64>,
    /// What the disks that it holds replicas of may come to need of it.
    pub provisioned_bytes: u64,
    /// Why it is in no set, if it is refused.
    pub refused: Option<String>,
    /// What the store says is wrong with it, if anything.
    pub trouble: Option<String>,
    /// Since when it is not up, as far as the placement service knows.
    #[serde(default)]
    pub away_since: Option<UnixSeconds>,
    /// What an operator said of it, and what it still has then.
    #[serde(default)]
    pub order: Option<StoreOrder>,
    #[serde(default)]
    pub task: StoreTask,
    /// What it has found out about its media; none before it has said.
    #[serde(default)]
    pub media: Option<MediaReport>,
}

/// The operator's word that a store's directory was carried to another host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MoveStore {
    pub host: HostName,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CreateDisk {
    pub name: DiskName,
    /// Size in bytes; rounded up to whole 4 KiB blocks.
    pub bytes: u64,
    #[serde(default = "two")]
    pub copies: u8,
    #[serde(default)]
    pub extent_size: ExtentSize,
    /// Only stores of this datacenter.
    #[serde(default)]
    pub datacenter: Option<DatacenterName>,
    /// The host where the VM will be: a copy there if possible, the others close to it.
    #[serde(default)]
    pub near: Option<HostName>,
    /// None: the default class of the datacenter where its VM runs.
    #[serde(default)]
    pub class: Option<ClassName>,
}

fn two() -> u8 {
    2
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Created {
    pub disk: Disk,
    /// What its owner should know of where it stands: a shared rack, several datacenters, a split.
    pub notes: Vec<String>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Disk {
    pub id: DiskId,
    pub name: DiskName,
    pub bytes: u64,
    pub extent_size: ExtentSize,
    pub copies: u8,
    pub epoch: Epoch,
    /// Whether an epoch is open, and for which host.
    pub open_for: Option<HostName>,
    /// Bytes that its replicas occupy on all stores, as they last said.
    pub allocated_bytes: u64,
    /// Who serves it, or is to.
    pub attachment: Option<AttachmentView>,
    /// Backends that are ready to take it over when their VM arrives.
    pub standbys: Vec<AttachmentView>,
    pub class: Option<ClassName>,
    /// Where its VM runs or ran last: that datacenter's policy governs.
    pub home: DatacenterName,
    /// What policy asks for, all in all.
    pub wanted_copies: u8,
    /// Complete copies of the worst placed extent, on stores that nobody has given up.
    pub copies_now: u8,
    /// Extents with fewer complete copies than `wanted_copies`.
    pub short_extents: u64,
    /// Of all extents, those with a complete copy at home, and those with a member there.
    pub extents: u64,
    pub near_extents: u64,
    pub near_member_extents: u64,
    pub moving: Option<MoveBrief>,
}

/// Who is to serve a disk, and how far that has come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AttachmentView {
    pub backend: BackendId,
    pub place: Place,
    pub wanted: Wanted,
    /// Where QEMU connects, once the backend is ready.
    pub socket: Option<String>,
    /// What the node last said of it, in words.
    pub status: String,
}

/// Where a writer runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A backend of this host's node.
    Node(HostName),
    /// This operator's own process: an import or an export.
    Operator(HostName),
}

impl Place {
    /// The node, if it is one.
    pub fn node(&self) -> Option<&HostName> {
        match self {
            Place::Node(host) => Some(host),
            Place::Operator(_) => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// To serve the disk.
    Attached,
    /// To be ready for a VM that is about to arrive: it opens the disk when that VM's rings start. The
    /// disk is attached elsewhere until then.
    Standby,
    /// To move the disk's blocks while it is attached nowhere: opens it without a device, and lets it go
    /// as soon as somebody wants it.
    Copying,
    /// To drain, close and go.
    Detached,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskMap {
    pub disk: DiskName,
    pub id: DiskId,
    pub extent_size: ExtentSize,
    pub epoch: Epoch,
    pub home: DatacenterName,
    pub ranges: Vec<RangeView>,
    /// Copies that the map names no more and that are not deleted yet.
    pub retired: Vec<RetiredView>,
    /// Every store that is named above.
    pub stores: Vec<MapStore>,
}

/// A copy that is superfluous, and the base for a way back until it is dropped.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RetiredView {
    pub store: StoreId,
    pub extents: Vec<Extents>,
    pub since: UnixSeconds,
    /// The stores whose copies took its place.
    pub superseded_by: Vec<StoreId>,
    /// Its store has been told to delete it.
    pub dropping: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RangeView {
    pub extents: Extents,
    /// Newest first.
    pub history: Vec<EntryView>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EntryView {
    pub from: Epoch,
    /// None: live, in the write set. Otherwise sealed: it holds what was written below this epoch.
    pub until: Option<Epoch>,
    /// It holds what was written before `from`, too. A live entry that does not is being filled.
    pub whole: bool,
    pub stores: Vec<StoreId>,
}

/// A store that a map names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapStore {
    pub id: StoreId,
    /// None: the map names a store that never announced itself to this catalog.
    pub host: Option<HostName>,
    pub datacenter: Option<DatacenterName>,
    pub liveness: Liveness,
    /// What the disk occupies there, as the store last said; none before it has.
    pub allocated_bytes: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deleted {
    pub name: DiskName,
    pub id: DiskId,
    /// Stores that have still to drop it; they are told until each has.
    pub dropping: Vec<StoreId>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attach {
    pub node: HostName,
    /// Take the disk from whoever has it: only when that writer's VM is known to be gone.
    #[serde(default)]
    pub take_over: bool,
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attached {
    pub disk: DiskName,
    pub id: DiskId,
    pub bytes: u64,
    pub node: HostName,
    pub backend: BackendId,
    /// Where QEMU connects.
    pub socket: String,
    /// It stands by: the disk is attached to this node until the VM arrives.
    #[serde(default)]
    pub standby_of: Option<HostName>,
    /// The epoch that it has open. After a take-over: the old writer is fenced, the copies agree, and the VM
    /// may start. Otherwise a disk is opened when its VM's driver starts.
    #[serde(default)]
    pub open: Option<Epoch>,
    /// Of a take-over: how long it took from the request until it was open.
    #[serde(default)]
    pub open_after_ms: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct Detach {
    /// Only what is attached, or stands by, there. None: everything.
    #[serde(default)]
    pub node: Option<HostName>,
    /// Only this one: for whoever has become a disk's writer, and would end nobody else's attachment.
    #[serde(default)]
    pub backend: Option<BackendId>,
    /// Forget the attachment without waiting for its writer, which then can write no more. What it
    /// had not acknowledged is lost to it, nothing else.
    #[serde(default)]
    pub force: bool,
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Detached {
    pub disk: DiskName,
    /// Whether the last writer closed its epoch; if not, the next one settles the copies first.
    pub clean: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct TakeWriter {
    #[serde(default)]
    pub take_over: bool,
}

/// All that a writer in the operator's own process needs. It attaches and closes through the node
/// protocol (`ukai-placement/1`) with the operator's certificate, and detaches when it has closed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Writer {
    pub backend: BackendId,
    pub record: DiskRecord,
    pub take_over: bool,
    pub stores: Vec<StoreAddress>,
    /// UDP port of the node protocol, on the address where this API answers.
    pub node_port: u16,
}

/// Where a store is reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreAddress {
    pub store: StoreId,
    /// Whose node certificate to expect there.
    pub host: HostName,
    pub address: SocketAddr,
    pub up: bool,
}

/// `POST /v1/rebuild`: the disks' records from what the stores keep.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rebuild {
    /// Only show what would be done.
    #[serde(default)]
    pub plan: bool,
    /// Disks, by name, that are rebuilt although somebody who may know better is silent.
    #[serde(default)]
    pub accept: Vec<String>,
    /// How long to wait for stores that are up.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rebuilt {
    /// False: it was a plan.
    pub done: bool,
    /// Nothing was refused.
    pub complete: bool,
    pub generation: Generation,
    pub answered: Vec<StoreId>,
    pub silent: Vec<StoreId>,
    pub disks: Vec<RebuildDisk>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RebuildDisk {
    pub id: DiskId,
    pub name: DiskName,
    pub bytes: u64,
    pub verdict: RebuildVerdict,
    pub epoch: Epoch,
    pub revision: Revision,
    /// Whoever had it open; a disk whose writer is gone is settled when it is attached with --takeover.
    pub open_for: Option<HostName>,
    /// The stores that keep this very record.
    pub from: Vec<StoreId>,
    /// Why it is refused.
    pub why: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebuildVerdict {
    /// The catalog has the newest record.
    AsItIs,
    /// The catalog has an older one.
    Newer,
    /// The catalog has none.
    Found,
    /// It is not certain which record is the newest.
    Refused,
}
