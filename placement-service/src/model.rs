//! What the catalog's keys mean.
//!
//! ```text
//! generation                  Generation: how often the catalog was restored
//! datacenter/<name>           DatacenterRecord
//! host/<name>                 HostRecord
//! store/<id>                  StoreRecord
//! name/<disk name>            DiskId
//! disk/<id>                   DiskRecord
//! attachment/<disk id>        Attachment: who may write the disk; one at a time
//! at/<host>/<disk id>         (empty) the same, found by node
//! dropping/<disk id>          Dropping: a deleted disk that some stores still have to drop
//! ```
//!
//! What a node says every second (usage, backends) is not kept: it says it again.

use crate::api::{Place, Wanted};
use crate::catalog::{Catalog, CatalogError, Expect, KeyRevision};
use replicator::words::{
    BackendId, DatacenterName, DiskId, DiskName, DiskRecord, Generation, HostName, RackName,
    Starts, StoreId,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

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

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Dropping {
    pub disk: DiskId,
    pub name: DiskName,
    pub stores: Vec<StoreId>,
}

/// A value with the revision at which it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept<T> {
    pub revision: KeyRevision,
    pub value: T,
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
    pub const DATACENTERS: &str = "datacenter/";
    pub const HOSTS: &str = "host/";
    pub const STORES: &str = "store/";
    pub const DISKS: &str = "disk/";
    pub const ATTACHMENTS: &str = "attachment/";
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

    pub fn name(name: &DiskName) -> String {
        format!("name/{name}")
    }

    pub fn disk(id: DiskId) -> String {
        format!("{DISKS}{id}")
    }

    pub fn attachment(disk: DiskId) -> String {
        format!("{ATTACHMENTS}{disk}")
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

pub fn load<T: DeserializeOwned>(
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
pub fn list<T: DeserializeOwned>(
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
    mut each: impl FnMut(&str, KeyRevision, &[u8]) -> Result<(), CatalogError>,
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
    let kept = load::<Generation>(catalog, key::GENERATION)?;
    Ok(kept.map_or(Generation(0), |kept| kept.value))
}

pub fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("the model's types are plain data")
}

fn parse<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, CatalogError> {
    serde_json::from_slice(bytes).map_err(|error| malformed(key, &error.to_string()))
}

fn malformed(key: &str, why: &str) -> CatalogError {
    CatalogError::Malformed {
        key: key.to_owned(),
        why: why.to_owned(),
    }
}
