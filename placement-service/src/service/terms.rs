//! What governs where a disk stands: its home, its class, its pins.

use super::Service;
use crate::catalog::CatalogError;
use crate::model::{HostRecord, Kept, StoreRecord, Terms, key, list, load};
use crate::policy::Home;
use replicator::words::{DatacenterName, DiskRecord, HostName, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the stores and hosts are that nobody moved since it was made.
#[derive(Default)]
pub(super) struct Places {
    pub stores: BTreeMap<StoreId, (HostName, DatacenterName)>,
    pub hosts: BTreeMap<HostName, DatacenterName>,
}

impl Places {
    pub fn datacenter(&self, store: StoreId) -> Option<&DatacenterName> {
        self.stores.get(&store).map(|(_, datacenter)| datacenter)
    }

    pub fn stores_at(&self, host: &HostName) -> impl Iterator<Item = StoreId> {
        let here = self.stores.iter().filter(move |(_, (at, _))| at == host);
        here.map(|(store, _)| *store)
    }

    pub fn host(&self, store: StoreId) -> Option<&HostName> {
        self.stores.get(&store).map(|(host, _)| host)
    }
}

impl Service {
    /// Read again only when a host or a store was admitted or moved: every heartbeat asks.
    pub(super) fn places(&self) -> Result<Arc<Places>, CatalogError> {
        let (known, as_of) = self.course().places();
        if let Some(known) = known {
            return Ok(known);
        }
        let places = Arc::new(self.read_places()?);
        self.course().set_places(places.clone(), as_of);
        Ok(places)
    }

    fn read_places(&self) -> Result<Places, CatalogError> {
        let mut places = Places::default();
        for kept in list::<HostRecord>(&*self.catalog, key::HOSTS)? {
            let HostRecord {
                name, datacenter, ..
            } = kept.into_value();
            places.hosts.insert(name, datacenter);
        }
        for kept in list::<StoreRecord>(&*self.catalog, key::STORES)? {
            let StoreRecord { id, host, .. } = kept.into_value();
            if let Some(datacenter) = places.hosts.get(&host) {
                let datacenter = datacenter.clone();
                places.stores.insert(id, (host, datacenter));
            }
        }
        Ok(places)
    }

    /// A disk's terms; those of one that has none yet begin where most of it stands.
    pub(super) fn terms(
        &self,
        record: &DiskRecord,
        places: &Places,
    ) -> Result<(Option<Kept<Terms>>, Terms), CatalogError> {
        let kept = load::<Terms>(&*self.catalog, &key::terms(record.id))?;
        let terms = match &kept {
            Some(kept) => kept.clone().into_value(),
            None => Terms {
                class: None,
                home: Home::new(most_of(record, places)),
                pins: Vec::new(),
            },
        };
        Ok((kept, terms))
    }
}

/// The datacenter where most members of the disk are; of several the first by name.
fn most_of(record: &DiskRecord, places: &Places) -> DatacenterName {
    let mut counts: BTreeMap<&DatacenterName, u64> = BTreeMap::new();
    for range in &record.map {
        let members = range.history.members();
        for datacenter in members.filter_map(|store| places.datacenter(store)) {
            *counts.entry(datacenter).or_default() += u64::from(range.extents.count());
        }
    }
    let most = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    most.map_or_else(nowhere, |(datacenter, _)| datacenter.clone())
}

/// The home of a disk none of whose stores ever announced itself here.
fn nowhere() -> DatacenterName {
    DatacenterName::new("unknown").expect("a name")
}
