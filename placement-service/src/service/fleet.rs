//! Datacenters, hosts and stores, and how they are.

use super::afar::is_far;
use super::pulse::Moment;
use super::{Kind, MAX_TRIES, Service, ServiceError};
use crate::api::{
    Datacenter, Host, Liveness, MoveState, MoveStore, MoveWhy, Status, Store, Wanted,
};
use crate::catalog::{CatalogError, Committed, Expect, Transaction};
use crate::model::{
    Attachments, DatacenterRecord, Dropping, HostRecord, Kept, MoveRecord, StoreRecord, json, key,
    list, load, suffixes,
};
use crate::text::{counted, with_hosts};
use replicator::words::{DatacenterName, DiskId, DiskRecord, HostName, StoreId};
use std::collections::{BTreeMap, BTreeSet};

impl Service {
    pub fn create_datacenter(
        &self,
        name: &DatacenterName,
        now: Moment,
    ) -> Result<Datacenter, ServiceError> {
        let key = key::datacenter(name);
        let record = DatacenterRecord { name: name.clone() };
        let create = Transaction::new()
            .expect(&key, Expect::Absent)
            .put(&key, json(&record));
        // One that is there already is as good as a new one.
        if self.catalog.commit(&create)? == Committed::Yes {
            tracing::info!(datacenter = %name, "datacenter added");
        }
        let found = self
            .datacenters(now)?
            .into_iter()
            .find(|dc| dc.name == *name);
        found.ok_or_else(|| ServiceError::contended(&format!("datacenter {name}")))
    }

    pub fn datacenters(&self, now: Moment) -> Result<Vec<Datacenter>, ServiceError> {
        let hosts = self.hosts(now)?;
        let stores = self.stores(now)?;
        let records = list::<DatacenterRecord>(&*self.catalog, key::DATACENTERS)?;
        let view = |name: DatacenterName| {
            let hosts: Vec<&Host> = hosts.iter().filter(|h| h.datacenter == name).collect();
            let stores: Vec<&Store> = stores.iter().filter(|s| s.datacenter == name).collect();
            let racks: BTreeSet<_> = hosts.iter().map(|host| &host.rack).collect();
            let up = hosts.iter().filter(|host| host.liveness == Liveness::Up);
            Datacenter {
                racks: racks.len() as u64,
                hosts: hosts.len() as u64,
                hosts_up: up.count() as u64,
                stores: stores.len() as u64,
                capacity_bytes: stores.iter().filter_map(|s| s.capacity_bytes).sum(),
                used_bytes: stores.iter().filter_map(|s| s.used_bytes).sum(),
                name,
            }
        };
        Ok(records
            .into_iter()
            .map(|kept| view(kept.into_value().name))
            .collect())
    }

    pub fn hosts(&self, now: Moment) -> Result<Vec<Host>, ServiceError> {
        let mut stores: BTreeMap<HostName, Vec<StoreId>> = BTreeMap::new();
        for kept in list::<StoreRecord>(&*self.catalog, key::STORES)? {
            stores
                .entry(kept.value.host.clone())
                .or_default()
                .push(kept.value.id);
        }
        let records = list::<HostRecord>(&*self.catalog, key::HOSTS)?;
        let view = |record: HostRecord| Host {
            liveness: self.pulses.liveness(&record.name, now),
            address: Some(record.listen),
            stores: stores.remove(&record.name).unwrap_or_default(),
            backends: self.pulses.backends(&record.name),
            datacenter: record.datacenter,
            rack: record.rack,
            name: record.name,
        };
        Ok(records
            .into_iter()
            .map(Kept::into_value)
            .map(view)
            .collect())
    }

    pub fn stores(&self, now: Moment) -> Result<Vec<Store>, ServiceError> {
        let provisioned = provisioned(self)?;
        let states = self.store_states()?;
        let ordered = states.values().filter(|state| state.order.is_some());
        let tasks = self.tasks(&ordered.map(|state| state.store).collect())?;
        let mut stores = Vec::new();
        for kept in list::<StoreRecord>(&*self.catalog, key::STORES)? {
            let StoreRecord {
                id, host, starts, ..
            } = kept.into_value();
            let Some(place) = load::<HostRecord>(&*self.catalog, &key::host(&host))? else {
                continue;
            };
            let report = self.pulses.store(&host, id);
            let state = states.get(&id);
            stores.push(Store {
                id,
                datacenter: place.value.datacenter.clone(),
                rack: place.value.rack.clone(),
                address: Some(place.value.listen),
                // A node that is up without the store says that the store is not.
                liveness: match (&report, self.pulses.liveness(&host, now)) {
                    (None, _) => Liveness::Unheard,
                    (Some(_), liveness) => liveness,
                },
                starts: starts.0,
                capacity_bytes: report.as_ref().map(|report| report.capacity_bytes),
                used_bytes: report.as_ref().map(|report| report.used_bytes),
                provisioned_bytes: provisioned.get(&id).copied().unwrap_or(0),
                refused: self.pulses.refused(id).map(|fault| fault.to_string()),
                media: report.as_ref().map(|report| report.media),
                trouble: report.and_then(|report| report.trouble.clone()),
                away_since: state.and_then(|state| state.away_since),
                order: state.and_then(|state| state.order.clone()),
                task: tasks.get(&id).copied().unwrap_or_default(),
                host,
            });
        }
        Ok(stores)
    }

    /// Takes the operator's word that a store's directory was carried to another host.
    pub fn move_store(
        &self,
        id: StoreId,
        request: &MoveStore,
        now: Moment,
    ) -> Result<Store, ServiceError> {
        let unknown = |what: String| {
            ServiceError::new(
                Kind::NoSuchThing,
                format!("there is no {what}"),
                "nothing of that name has announced itself",
                "see `ukai store list` and `ukai status` for what there is",
            )
        };
        if self.catalog.get(&key::host(&request.host))?.is_none() {
            return Err(unknown(format!("host {}", request.host)));
        }
        let key = key::store(id);
        for _ in 0..MAX_TRIES {
            let Some(kept) = load::<StoreRecord>(&*self.catalog, &key)? else {
                return Err(unknown(format!("store {id}")));
            };
            let expect = kept.unchanged();
            let moved = StoreRecord {
                host: request.host.clone(),
                ..kept.into_value()
            };
            let write = Transaction::new()
                .expect(&key, expect)
                .put(&key, json(&moved));
            let committed = self.catalog.commit(&write);
            self.course().places_changed();
            if committed? == Committed::Yes {
                tracing::info!(store = %id, host = %request.host, "store moved by an operator's word");
                self.changed();
                let found = self.stores(now)?.into_iter().find(|store| store.id == id);
                return found.ok_or_else(|| unknown(format!("store {id}")));
            }
        }
        Err(ServiceError::contended(&format!("store {id}")))
    }

    pub fn status(&self, now: Moment) -> Result<Status, ServiceError> {
        let hosts = self.hosts(now)?;
        let stores = self.stores(now)?;
        let disks = self.disks(now)?;
        let datacenters = list::<DatacenterRecord>(&*self.catalog, key::DATACENTERS)?;
        let attachments = list::<Attachments>(&*self.catalog, key::ATTACHMENTS)?;
        let (retired_copies, retired_bytes) = self.count_retired()?;
        let up = |store: &&Store| store.liveness == Liveness::Up;
        let serves_a_vm = |kept: &&Kept<Attachments>| {
            let main = kept.value.main();
            main.is_some_and(|main| main.wanted != Wanted::Copying)
        };
        let copies = |disk: &crate::api::Disk| disk.bytes.saturating_mul(disk.copies.into());
        let mut problems = self.doubts()?;
        for host in &hosts {
            match host.liveness {
                Liveness::Up => {}
                Liveness::Silent { for_ms } => problems.push(format!(
                    "host {} has been silent for {} s",
                    host.name,
                    for_ms / 1000
                )),
                Liveness::Unheard => problems.push(format!(
                    "host {} has not been heard of since the placement service started",
                    host.name
                )),
            }
        }
        for store in &stores {
            if let Some(why) = store.refused.as_ref().or(store.trouble.as_ref()) {
                problems.push(format!("store {} on {}: {why}", store.id, store.host));
            }
        }
        for store in &stores {
            let damaged = store.media.map_or(0, |media| media.damaged_blocks);
            if damaged > 0 {
                problems.push(format!(
                    "store {} on {}: {} damaged and not healed yet; verify its disks",
                    store.id,
                    store.host,
                    counted(damaged, "block")
                ));
            }
        }
        problems.extend(self.store_troubles(&stores, &self.evacuating()?));
        problems.extend(self.shortages(&disks, now)?);
        for moving in disks.iter().filter_map(|disk| disk.moving.as_ref()) {
            if let MoveState::Stuck { why } = &moving.state {
                problems.push(format!("the move of disk {} is stuck: {why}", moving.disk));
            }
        }
        for disk in &disks {
            let held = self.course().held(disk.id);
            let say = |why| format!("disk {}: {why}", disk.name);
            problems.extend(held.into_iter().map(say));
            let stalls = self.course().stalls(disk.id);
            let waits = |why| format!("disk {}: its guest waits: {why}", disk.name);
            problems.extend(stalls.into_iter().map(waits));
        }
        for kept in list::<Dropping>(&*self.catalog, key::DROPPING)? {
            problems.push(format!(
                "deleted disk {}: not dropped yet by {}",
                kept.value.name,
                counted(kept.value.stores.len() as u64, "store")
            ));
        }
        let named = |line| with_hosts(line, stores.iter().map(|store| (store.id, &store.host)));
        let problems = problems.into_iter().map(named).collect();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            generation: self.generation(),
            datacenters: datacenters.len() as u64,
            hosts_up: hosts.iter().filter(|h| h.liveness == Liveness::Up).count() as u64,
            hosts: hosts.len() as u64,
            stores_up: stores.iter().filter(up).count() as u64,
            capacity_bytes: stores
                .iter()
                .filter(up)
                .filter_map(|s| s.capacity_bytes)
                .sum(),
            used_bytes: stores.iter().filter(up).filter_map(|s| s.used_bytes).sum(),
            stores: stores.len() as u64,
            attached: attachments.iter().filter(serves_a_vm).count() as u64,
            provisioned_bytes: disks.iter().map(copies).sum(),
            disks_short: disks.iter().filter(|d| d.short_extents > 0).count() as u64,
            disks_far: disks.iter().filter(|disk| is_far(disk)).count() as u64,
            far: self.far_disks(&disks, now)?,
            moving: disks.iter().filter_map(|d| d.moving.clone()).collect(),
            retired_copies,
            retired_bytes,
            disks: disks.len() as u64,
            problems,
        })
    }
}

impl Service {
    /// How many disks are leaving each store that is being emptied.
    fn evacuating(&self) -> Result<BTreeMap<StoreId, usize>, CatalogError> {
        let mut leaving: BTreeMap<StoreId, usize> = BTreeMap::new();
        for kept in list::<MoveRecord>(&*self.catalog, key::MOVES)? {
            if let MoveWhy::Evacuation(store) = kept.value.why {
                *leaving.entry(store).or_default() += 1;
            }
        }
        Ok(leaving)
    }

    /// Superfluous copies that are not deleted yet, and what they occupy at most.
    fn count_retired(&self) -> Result<(u64, u64), ServiceError> {
        let (mut copies, mut bytes) = (0, 0);
        for disk in suffixes(&*self.catalog, key::RETIRED)? {
            let Ok(disk) = disk.parse::<DiskId>() else {
                continue;
            };
            let retired = self.retired_copies(disk)?.map(Kept::into_value);
            let occupied = self.pulses.occupied(disk);
            for copy in retired.unwrap_or_default() {
                copies += 1;
                bytes += occupied.get(&copy.store).copied().unwrap_or(0);
            }
        }
        Ok((copies, bytes))
    }
}

/// What all disks promise of each store.
fn provisioned(service: &Service) -> Result<BTreeMap<StoreId, u64>, CatalogError> {
    let mut sums: BTreeMap<StoreId, u64> = BTreeMap::new();
    for kept in list::<DiskRecord>(&*service.catalog, key::DISKS)? {
        for (store, bytes) in promised(&kept.value) {
            *sums.entry(store).or_default() += bytes;
        }
    }
    Ok(sums)
}

/// What they promise and have not written there yet.
pub(super) fn unwritten(service: &Service) -> Result<BTreeMap<StoreId, u64>, CatalogError> {
    let mut sums: BTreeMap<StoreId, u64> = BTreeMap::new();
    for kept in list::<DiskRecord>(&*service.catalog, key::DISKS)? {
        for (store, bytes) in service.unwritten_of(&kept.value) {
            *sums.entry(store).or_default() += bytes;
        }
    }
    Ok(sums)
}

impl Service {
    /// What one disk promises, and has not written there yet.
    pub(super) fn unwritten_of(&self, record: &DiskRecord) -> BTreeMap<StoreId, u64> {
        let written = self.pulses.occupied(record.id);
        let mut unwritten = promised(record);
        for (store, bytes) in &mut unwritten {
            *bytes = bytes.saturating_sub(written.get(store).copied().unwrap_or(0));
        }
        unwritten
    }
}

fn promised(record: &DiskRecord) -> BTreeMap<StoreId, u64> {
    let mut promised: BTreeMap<StoreId, u64> = BTreeMap::new();
    for range in &record.map {
        let bytes = u64::from(range.extents.count()) * record.extent_size.bytes();
        for store in range.history.members() {
            *promised.entry(store).or_default() += bytes;
        }
    }
    promised
}
