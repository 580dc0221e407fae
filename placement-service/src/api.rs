//! What operators and the placement service say to one another: JSON over HTTPS.
//!
//! ```text
//! GET    /v1/status                       Status
//! GET    /v1/datacenters                  [Datacenter]
//! POST   /v1/datacenters                  CreateDatacenter -> Datacenter
//! GET    /v1/hosts                        [Host]
//! GET    /v1/stores                       [Store]
//! POST   /v1/stores/{id}/host             MoveStore -> Store
//! GET    /v1/disks                        [Disk]
//! POST   /v1/disks                        CreateDisk -> Created
//! GET    /v1/disks/{name}                 Disk
//! DELETE /v1/disks/{name}                 -> Deleted
//! GET    /v1/disks/{name}/map             DiskMap
//! POST   /v1/disks/{name}/attach          Attach -> Attached   (waits until the socket is there)
//! POST   /v1/disks/{name}/detach          Detach -> Detached   (waits until the backend is gone)
//! POST   /v1/disks/{name}/writer          TakeWriter -> Writer (for a writer in the operator's own process)
//! ```
//!
//! Only a certificate of role operator gets as far as a request; any other is refused in the handshake.
//! Everything that goes wrong is an [`ErrorBody`], with a status of 400 (not possible as asked), 404
//! (no such thing), 409 (not now), 503 (the catalog failed) or 504 (accepted, but it has not come
//! about yet).

use replicator::words::{
    BackendId, DatacenterName, DiskId, DiskName, DiskRecord, Epoch, ExtentSize, Extents,
    Generation, HostName, RackName, StoreId,
};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The protocol's name in ALPN; ordinary HTTP.
pub const ALPN: &[u8] = b"http/1.1";
/// A request's body is at most this long.
pub const MAX_BODY_BYTES: usize = 64 << 10;
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
    /// Of the stores that are up, as they last said.
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// What all disks promise, times their copies.
    pub provisioned_bytes: u64,
    /// A line for everything that somebody should look at.
    pub problems: Vec<String>,
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
    pub attachment: Option<AttachmentView>,
    /// Extents that stand on fewer stores than `copies`.
    pub short_extents: u64,
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

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    Attached,
    Detached,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskMap {
    pub disk: DiskName,
    pub id: DiskId,
    pub extent_size: ExtentSize,
    pub ranges: Vec<RangeView>,
    pub stores: Vec<MapStore>,
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
    pub stores: Vec<StoreId>,
}

/// A store that a map names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapStore {
    pub id: StoreId,
    /// None: the map names a store that never announced itself to this catalog.
    pub host: Option<HostName>,
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
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct Detach {
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
