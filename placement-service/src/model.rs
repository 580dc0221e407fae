//! What the catalog's keys mean.
//!
//! ```text
//! generation                  Generation: how often the catalog was restored
//! unverified                  Unverified: it was restored or lost, and not compared with the stores since
//! restoring                   a backup is being put back: no catalog yet
//! datacenter/<name>           DatacenterRecord
//! host/<name>                 HostRecord
//! store/<id>                  StoreRecord
//! state/<store id>            StoreState: since when it is away, and what an operator said of it
//! name/<disk name>            DiskId
//! disk/<id>                   DiskRecord
//! terms/<disk id>             Terms: what governs where the disk stands
//! attachment/<disk id>        Attachments: who may write the disk, and who stands by
//! at/<host>/<disk id>         (empty) the same, found by node
//! policy/<datacenter>         PolicyRecord: the text, as it was applied
//! rollout                     Rollout: how many disks policy moves at a time
//! move/<disk id>              MoveRecord: what the disk is doing towards its goal
//! ended/<number>              MoveRecord: the last moves that ended
//! moves                       u64: the number of the last move
//! retired/<disk id>           [RetiredCopy]: copies that the map names no more, not deleted yet
//! deletions/<disk id>         [Deletion]: the last copies that were deleted, and what made that safe (I7)
//! dropping/<disk id>          Dropping: a deleted disk that some stores still have to drop
//! ```
//!
//! Values grow with the ranges of a map, not with its extents.
//!
//! What a node says every second (usage, backends) is not kept: it says it again.

use crate::api::{MoveKind, MoveProgress, MoveState, MoveWhy, Place, StoreOrder, Wanted};
use crate::catalog::{Catalog, CatalogError, Expect, KeyRevision, Value};
use crate::node_protocol::StoreRun;
use crate::planner::Plan;
use crate::policy::{ClassName, Home, Pin, UnixSeconds};
use replicator::words::{
    BackendId, DatacenterName, DiskId, DiskName, DiskRecord, Epoch, Extents, Generation, HostName,
    NewSet, RackName, Revision, Starts, StoreId,
};
use replicator::writer::Progress;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatacenterRecord {
    pub name: DatacenterName,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostRecord {
    pub name: HostName,
    pub datacenter: DatacenterName,
    pub rack: RackName,
    pub listen: SocketAddr,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreRecord {
    pub id: StoreId,
    pub host: HostName,
    /// The most starts that it ever showed. One that shows fewer was rolled back.
    pub starts: Starts,
    /// The last run that it showed; none: its node knew of none.
    #[serde(default)]
    pub run: Option<StoreRun>,
}

/// What is kept of a store besides where it is; none: it is up, and nobody said anything of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreState {
    pub store: StoreId,
    /// Since when it is not up.
    #[serde(default)]
    pub away_since: Option<UnixSeconds>,
    #[serde(default)]
    pub order: Option<StoreOrder>,
}

impl StoreState {
    pub fn new(store: StoreId) -> StoreState {
        StoreState {
            store,
            away_since: None,
            order: None,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    pub disk: DiskId,
    pub name: DiskName,
    pub backend: BackendId,
    pub place: Place,
    pub wanted: Wanted,
    /// Whether an epoch that another backend holds open may be taken over (rule A3).
    pub take_over: bool,
}

/// A disk's attachments: one a place (besides one that is ending there), at most one of them
/// [`Wanted::Attached`], never none.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attachments(pub Vec<Attachment>);

impl Attachments {
    /// More backends than this never stand by for one disk.
    pub const MAX: usize = 8;

    /// The one that the disk is, or was last, attached to.
    pub fn main(&self) -> Option<&Attachment> {
        let serves = |a: &&Attachment| a.wanted == Wanted::Attached;
        self.0.iter().find(serves).or_else(|| {
            let goes = |a: &&Attachment| a.wanted != Wanted::Standby;
            self.0.iter().find(goes)
        })
    }

    pub fn standbys(&self) -> impl Iterator<Item = &Attachment> {
        let standby = |a: &&Attachment| a.wanted == Wanted::Standby;
        self.0.iter().filter(standby)
    }

    /// The one at that place; rather one that goes on than one that ends.
    pub fn at(&self, place: &Place) -> Option<&Attachment> {
        let there = self.0.iter().filter(|a| a.place == *place);
        there.min_by_key(|a| a.wanted == Wanted::Detached)
    }

    pub fn backend(&self, backend: BackendId) -> Option<&Attachment> {
        self.0.iter().find(|a| a.backend == backend)
    }

    /// The same, with this one in place of the former one of its backend.
    pub fn with(&self, attachment: Attachment) -> Attachments {
        let mut all = self.without(attachment.backend);
        all.0.push(attachment);
        all
    }

    pub fn without(&self, backend: BackendId) -> Attachments {
        let others = self.0.iter().filter(|a| a.backend != backend);
        Attachments(others.cloned().collect())
    }
}

/// What governs where a disk stands, besides the policies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Terms {
    #[serde(default)]
    pub class: Option<ClassName>,
    pub home: Home,
    #[serde(default)]
    pub pins: Vec<Pin>,
}

impl Terms {
    /// More pins than this are more than somebody can have meant.
    pub const MAX_PINS: usize = 64;
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyRecord {
    pub datacenter: DatacenterName,
    pub text: String,
    pub applied: UnixSeconds,
    pub by: String,
}

/// How many disks policy moves at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rollout {
    pub at_once: u32,
}

impl Default for Rollout {
    /// Few enough that a mistake in a policy is seen before it has moved much.
    fn default() -> Self {
        Rollout { at_once: 4 }
    }
}

/// A move that is under way, or has ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MoveRecord {
    pub number: u64,
    pub disk: DiskId,
    pub name: DiskName,
    pub kind: MoveKind,
    pub from: Vec<DatacenterName>,
    pub to: Vec<DatacenterName>,
    pub why: MoveWhy,
    pub state: MoveState,
    pub paused: bool,
    pub own_limit: Option<u64>,
    pub began: UnixSeconds,
    pub ended: Option<UnixSeconds>,
    /// As it was last kept; while a backend tells how far it is, that counts.
    pub progress: MoveProgress,
    /// What the disk's backend had copied before, for other moves.
    #[serde(default)]
    pub base: Option<Base>,
    /// As of its start.
    pub plan: Plan,
    /// The pins before the operator's order that it carries out; a cancellation restores them.
    #[serde(default)]
    pub pins_before: Option<Vec<Pin>>,
    /// The store whose copy the operator wants gone, whatever policy says of copies that moves leave behind.
    #[serde(default)]
    pub drops: Option<StoreId>,
    /// Of [`MoveKind::Prepare`]: what is copied ahead.
    #[serde(default)]
    pub seeds: Vec<NewSet>,
    /// Stores that its copies are to leave, for this move's sake alone.
    #[serde(default)]
    pub leaves: Vec<StoreId>,
    /// Where its VM ran when it began; a move is over when the VM goes elsewhere.
    #[serde(default)]
    pub home: Option<DatacenterName>,
    /// A preparation that gave way to it, and goes on afterwards.
    #[serde(default)]
    pub afterwards: Option<Box<MoveRecord>>,
}

impl MoveRecord {
    /// It, and the preparation that goes on afterwards.
    pub fn each(&self) -> impl Iterator<Item = &MoveRecord> {
        std::iter::once(self).chain(self.afterwards.as_deref())
    }

    /// The preparation that goes on now, from what the disk's backend has copied so far for others.
    pub fn resumed(&self, base: Option<Base>) -> Option<MoveRecord> {
        let ahead = self.afterwards.as_deref()?.clone();
        Some(MoveRecord { base, ..ahead })
    }
}

/// Where a backend's counters stood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Base {
    pub backend: BackendId,
    pub progress: Progress,
}

/// How many moves are remembered after they ended.
pub const ENDED_MOVES_KEPT: usize = 200;
/// How many deletions are remembered of a disk.
pub const DELETIONS_KEPT: usize = 64;

/// A copy that the map names no more. It is the base for a way back until it is deleted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RetiredCopy {
    pub store: StoreId,
    pub extents: Vec<Extents>,
    pub since: UnixSeconds,
    /// The stores whose copies took its place when it was retired.
    pub superseded_by: Vec<StoreId>,
    /// Of the disk's record, when that happened.
    pub revision: Revision,
    /// What joined the disk at this epoch or later is not meant.
    pub joined_below: Epoch,
    /// Its store missed a write: the copy is missing rather than superfluous, until another one is complete.
    #[serde(default)]
    pub ejected: bool,
    /// Somebody asked for its deletion, whatever policy says.
    #[serde(default)]
    pub unwanted: bool,
    /// Set once it is safe and wanted: from then on its store is told.
    #[serde(default)]
    pub ordered: Option<DropOrder>,
}

/// What made the deletion of a copy safe.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DropOrder {
    pub at: UnixSeconds,
    /// Complete, and alive.
    pub superseded_by: Vec<StoreId>,
    pub revision: Revision,
    /// What the copy occupied, as its store had last said.
    pub bytes: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Dropping {
    pub disk: DiskId,
    pub name: DiskName,
    pub stores: Vec<StoreId>,
}

/// Why the catalog is not relied upon before the stores were heard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unverified {
    pub why: String,
}

/// A value with the revision at which it was read, shared with whoever else has read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept<T> {
    pub revision: KeyRevision,
    pub value: Arc<T>,
}

impl<T: Clone> Kept<T> {
    pub fn into_value(self) -> T {
        Arc::unwrap_or_clone(self.value)
    }
}

impl<T> Kept<T> {
    pub fn unchanged(&self) -> Expect {
        Expect::At(self.revision)
    }
}

/// What has to hold for something read as `kept` to be so still.
pub fn unchanged<T>(kept: &Option<Kept<T>>) -> Expect {
    kept.as_ref().map_or(Expect::Absent, Kept::unchanged)
}

pub mod key {
    use super::{DatacenterName, DiskId, DiskName, HostName, StoreId};

    pub const GENERATION: &str = "generation";
    pub const UNVERIFIED: &str = "unverified";
    pub const RESTORING: &str = "restoring";
    pub const DATACENTERS: &str = "datacenter/";
    pub const HOSTS: &str = "host/";
    pub const STORES: &str = "store/";
    pub const STORE_STATES: &str = "state/";
    pub const DISKS: &str = "disk/";
    pub const ATTACHMENTS: &str = "attachment/";
    pub const TERMS: &str = "terms/";
    pub const POLICIES: &str = "policy/";
    pub const ROLLOUT: &str = "rollout";
    pub const MOVES: &str = "move/";
    pub const ENDED: &str = "ended/";
    pub const LAST_MOVE: &str = "moves";
    pub const RETIRED: &str = "retired/";
    pub const DELETIONS: &str = "deletions/";
    pub const DROPPING: &str = "dropping/";

    pub fn datacenter(name: &DatacenterName) -> String {
        format!("{DATACENTERS}{name}")
    }

    pub fn host(name: &HostName) -> String {
        format!("{HOSTS}{name}")
    }

    pub fn store(id: StoreId) -> String {
        format!("{STORES}{id}")
    }

    pub fn store_state(id: StoreId) -> String {
        format!("{STORE_STATES}{id}")
    }

    pub fn name(name: &DiskName) -> String {
        format!("name/{name}")
    }

    pub fn disk(id: DiskId) -> String {
        format!("{DISKS}{id}")
    }

    pub fn terms(disk: DiskId) -> String {
        format!("{TERMS}{disk}")
    }

    pub fn attachment(disk: DiskId) -> String {
        format!("{ATTACHMENTS}{disk}")
    }

    pub fn policy(datacenter: &DatacenterName) -> String {
        format!("{POLICIES}{datacenter}")
    }

    pub fn moving(disk: DiskId) -> String {
        format!("{MOVES}{disk}")
    }

    /// In the order of the numbers.
    pub fn ended(number: u64) -> String {
        format!("{ENDED}{number:020}")
    }

    pub fn retired(disk: DiskId) -> String {
        format!("{RETIRED}{disk}")
    }

    pub fn deletions(disk: DiskId) -> String {
        format!("{DELETIONS}{disk}")
    }

    /// Everything attached at `host`; the slash keeps `tokyo-1` from finding what is at `tokyo-10`.
    pub fn at_host(host: &HostName) -> String {
        format!("at/{host}/")
    }

    pub fn at(host: &HostName, disk: DiskId) -> String {
        format!("{}{disk}", at_host(host))
    }

    pub fn dropping(disk: DiskId) -> String {
        format!("{DROPPING}{disk}")
    }
}

/// What a value can be read as.
pub trait Readable: DeserializeOwned + Send + Sync + 'static {}

impl<T: DeserializeOwned + Send + Sync + 'static> Readable for T {}

pub fn load<T: Readable>(
    catalog: &dyn Catalog,
    key: &str,
) -> Result<Option<Kept<T>>, CatalogError> {
    let Some(stored) = catalog.get(key)? else {
        return Ok(None);
    };
    Ok(Some(Kept {
        revision: stored.revision,
        value: parse(key, &stored.value)?,
    }))
}

/// Every value whose key begins with `prefix`, in the keys' order.
pub fn list<T: Readable>(
    catalog: &dyn Catalog,
    prefix: &str,
) -> Result<Vec<Kept<T>>, CatalogError> {
    let mut all = Vec::new();
    for_each(catalog, prefix, |key, revision, value| {
        let value = parse(key, value)?;
        all.push(Kept { revision, value });
        Ok(())
    })?;
    Ok(all)
}

/// What stands behind `prefix` in each key that begins with it.
pub fn suffixes(catalog: &dyn Catalog, prefix: &str) -> Result<Vec<String>, CatalogError> {
    let mut all = Vec::new();
    for_each(catalog, prefix, |key, _, _| {
        all.push(key[prefix.len()..].to_owned());
        Ok(())
    })?;
    Ok(all)
}

fn for_each(
    catalog: &dyn Catalog,
    prefix: &str,
    mut each: impl FnMut(&str, KeyRevision, &Value) -> Result<(), CatalogError>,
) -> Result<(), CatalogError> {
    let mut after: Option<String> = None;
    loop {
        let page = catalog.page(prefix, after.as_deref())?;
        for (key, stored) in &page {
            each(key, stored.revision, &stored.value)?;
        }
        match page.into_iter().last() {
            Some((last, _)) => after = Some(last),
            None => return Ok(()),
        }
    }
}

/// The value, or what stands for a missing one.
pub fn load_or_default<T: Readable + Clone + Default>(
    catalog: &dyn Catalog,
    key: &str,
) -> Result<(Expect, T), CatalogError> {
    let kept = load::<T>(catalog, key)?;
    let expect = unchanged(&kept);
    Ok((expect, kept.map(Kept::into_value).unwrap_or_default()))
}

/// A disk's record, checked: what a file holds is foreign input, too.
pub fn load_disk(
    catalog: &dyn Catalog,
    disk: DiskId,
) -> Result<Option<Kept<DiskRecord>>, CatalogError> {
    let key = key::disk(disk);
    let Some(kept) = load::<DiskRecord>(catalog, &key)? else {
        return Ok(None);
    };
    match kept.value.check() {
        Ok(()) if kept.value.id == disk => Ok(Some(kept)),
        Ok(()) => Err(malformed(&key, "it is another disk's record")),
        Err(fault) => Err(malformed(&key, &fault.to_string())),
    }
}

/// The generation that epochs are issued in: a new catalog's is 0.
pub fn generation(catalog: &dyn Catalog) -> Result<Generation, CatalogError> {
    if catalog.get(key::RESTORING)?.is_some() {
        let why = "a backup was being restored to it and is not all there: restore it again, to an empty place";
        return Err(malformed(key::RESTORING, why));
    }
    let kept = load::<Generation>(catalog, key::GENERATION)?;
    Ok(kept.map_or(Generation(0), |kept| *kept.value))
}

pub fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("the model's types are plain data")
}

fn parse<T: Readable>(key: &str, value: &Value) -> Result<Arc<T>, CatalogError> {
    value
        .read()
        .map_err(|error| malformed(key, &error.to_string()))
}

fn malformed(key: &str, why: &str) -> CatalogError {
    CatalogError::Malformed {
        key: key.to_owned(),
        why: why.to_owned(),
    }
}
