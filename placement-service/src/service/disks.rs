//! Disks: made, shown, deleted.

use super::pulse::Moment;
use super::{Kind, MAX_TRIES, Service, ServiceError};
use crate::api::{
    CreateDisk, Created, Deleted, Disk, DiskMap, EntryView, MapStore, RangeView, RetiredView,
};
use crate::catalog::{CatalogError, Committed, Expect, Transaction};
use crate::choose::{Candidate, Impossible, Wish, choose};
use crate::model::{
    Attachments, Dropping, HostRecord, Kept, RetiredCopy, StoreRecord, Terms, json, key, list,
    load, load_disk,
};
use crate::planner::copies_without;
use crate::policy::{Health, Home, Policies, UnixSeconds};
use crate::service::terms::Places;
use replicator::words::{
    BLOCK_BYTES, DiskId, DiskName, DiskRecord, Entry, Epoch, ExtentSize, History, MapRange,
    Revision, State, StoreId, Version,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The largest disk: 2^28 of the smallest extents still count in 32 bits.
const MAX_DISK_BYTES: u64 = 256 << 40;

impl Service {
    /// Makes a disk of this size, on stores that are up. It occupies nothing until it is written.
    pub fn create_disk(
        &self,
        request: &CreateDisk,
        id: DiskId,
        now: Moment,
    ) -> Result<Created, ServiceError> {
        let name = &request.name;
        let exists = || {
            ServiceError::new(
                Kind::NotNow,
                format!("disk {name} was not created"),
                "there is a disk of that name",
                "use another name, or delete that disk first",
            )
        };
        if self.catalog.get(&key::name(name))?.is_some() {
            return Err(exists());
        }
        if request.bytes == 0 || request.bytes > MAX_DISK_BYTES {
            return Err(ServiceError::new(
                Kind::Impossible,
                format!("disk {name} was not created"),
                format!("a size of {} bytes is not possible", request.bytes),
                format!("use 1 to {MAX_DISK_BYTES} bytes"),
            ));
        }
        let bytes = request.bytes.next_multiple_of(BLOCK_BYTES);
        let wish = self.wish(request, bytes)?;
        let choice = choose(&self.candidates(now)?, &wish)
            .map_err(|why| not_placed(name, &why, request.extent_size))?;
        let epoch = Epoch::first(self.generation());
        let range = |(extents, stores): (_, Vec<StoreId>)| MapRange {
            extents,
            history: History(vec![Entry::whole(epoch, stores)]),
        };
        let record = DiskRecord {
            id,
            name: name.clone(),
            bytes,
            extent_size: request.extent_size,
            copies: request.copies,
            revision: Revision(0),
            epoch,
            even_below: epoch,
            state: State::Closed {
                last: Version::ZERO,
                successor: None,
            },
            map: choice.ranges.into_iter().map(range).collect(),
        };
        assert_eq!(record.check(), Ok(()), "a new record is a true one");
        let standing = self.standing(now)?;
        let (_, mut terms) = self.terms(&record, &standing.places)?;
        let places = &standing.places;
        if let Some(near) = request.near.as_ref().and_then(|h| places.hosts.get(h)) {
            terms.home = Home::new(near.clone());
        }
        terms.class = request.class.clone();
        let write = Transaction::new()
            .expect(key::name(name), Expect::Absent)
            .expect(key::disk(id), Expect::Absent)
            .put(key::name(name), json(&id))
            .put(key::disk(id), json(&record))
            .put(key::terms(id), json(&terms));
        match self.catalog.commit(&write)? {
            Committed::Yes => {}
            Committed::No => return Err(exists()),
        }
        let promised = self.unwritten_of(&record);
        self.course().add_unwritten(&promised);
        let notes: Vec<String> = choice.notes.iter().map(ToString::to_string).collect();
        tracing::info!(disk = %name, %id, bytes, copies = request.copies, ?notes, "disk created");
        Ok(Created {
            disk: self.view(&record, &terms, &Attachments::default(), &standing, now)?,
            notes,
        })
    }

    /// The wish in words that [`choose`] knows, once the places that it names are known to exist.
    fn wish(&self, request: &CreateDisk, bytes: u64) -> Result<Wish, ServiceError> {
        let unknown = |what: String| {
            ServiceError::new(
                Kind::NoSuchThing,
                format!("disk {} was not created", request.name),
                format!("there is no {what}"),
                "see `ukai status` and `ukai datacenter list` for those that there are",
            )
        };
        if let Some(datacenter) = &request.datacenter
            && self.catalog.get(&key::datacenter(datacenter))?.is_none()
        {
            return Err(unknown(format!("datacenter {datacenter}")));
        }
        if let Some(host) = &request.near
            && self.catalog.get(&key::host(host))?.is_none()
        {
            return Err(unknown(format!("host {host}")));
        }
        Ok(Wish {
            bytes,
            extent_size: request.extent_size,
            copies: request.copies,
            datacenter: request.datacenter.clone(),
            near: request.near.clone(),
        })
    }

    /// Stores that are up, accepted and well, and neither lost nor to be emptied.
    fn candidates(&self, now: Moment) -> Result<Vec<Candidate>, ServiceError> {
        let unwritten = self.unwritten()?;
        let states = self.store_states()?;
        let mut candidates = Vec::new();
        for record in list::<StoreRecord>(&*self.catalog, key::STORES)? {
            let StoreRecord { id, host, .. } = record.into_value();
            if states.get(&id).is_some_and(|state| state.order.is_some()) {
                continue;
            }
            let Some(place) = load::<HostRecord>(&*self.catalog, &key::host(&host))? else {
                continue;
            };
            let up = self.pulses.liveness(&host, now) == crate::api::Liveness::Up;
            let report = self.pulses.store(&host, id);
            let Some(report) = report.filter(|report| up && report.trouble.is_none()) else {
                continue;
            };
            candidates.push(Candidate {
                store: id,
                host,
                rack: place.value.rack.clone(),
                datacenter: place.value.datacenter.clone(),
                capacity_bytes: report.capacity_bytes,
                used_bytes: report.used_bytes,
                unwritten_bytes: unwritten.get(&id).copied().unwrap_or(0),
            });
        }
        Ok(candidates)
    }

    pub fn disks(&self, now: Moment) -> Result<Vec<Disk>, ServiceError> {
        let standing = self.standing(now)?;
        let mut disks = Vec::new();
        for kept in list::<DiskRecord>(&*self.catalog, key::DISKS)? {
            disks.push(self.shown(&kept.value, &standing, now)?);
        }
        disks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(disks)
    }

    pub fn disk(&self, name: &DiskName, now: Moment) -> Result<Disk, ServiceError> {
        let record = self.disk_named(name)?;
        Ok(self.shown(&record.value, &self.standing(now)?, now)?)
    }

    fn shown(
        &self,
        record: &DiskRecord,
        standing: &Standing,
        now: Moment,
    ) -> Result<Disk, CatalogError> {
        let attachments = self.attachments(record.id)?.map(|kept| kept.value);
        let attachments = attachments.unwrap_or_default();
        let (_, terms) = self.terms(record, &standing.places)?;
        self.view(record, &terms, &attachments, standing, now)
    }

    fn standing(&self, now: Moment) -> Result<Standing, CatalogError> {
        let states = self.store_states()?;
        let places = self.places()?;
        let stores = places.stores.iter();
        let health = stores.map(|(id, (host, _))| {
            let state = states.get(id);
            (*id, self.health(*id, host, state, now))
        });
        Ok(Standing {
            health: health.collect(),
            wall: self.wall(now),
            policies: self.policies()?,
            places,
        })
    }

    /// Which extents stand on which stores.
    pub fn disk_map(&self, name: &DiskName, now: Moment) -> Result<DiskMap, ServiceError> {
        let record = self.disk_named(name)?.into_value();
        let allocated = self.pulses.occupied(record.id);
        let places = self.places()?;
        let (_, terms) = self.terms(&record, &places)?;
        let retired = self.retired_copies(record.id)?.map(|kept| kept.value);
        let retired = retired.unwrap_or_default();
        let mut named: BTreeSet<StoreId> = record.stores().into_iter().collect();
        named.extend(retired.iter().map(|copy| copy.store));
        let mut stores = Vec::new();
        for id in named {
            let found = load::<StoreRecord>(&*self.catalog, &key::store(id))?;
            let host = found.map(|store| store.value.host.clone());
            let heard = host.as_ref().and_then(|h| self.pulses.store(h, id));
            stores.push(MapStore {
                id,
                datacenter: places.datacenter(id).cloned(),
                liveness: host.as_ref().map_or(crate::api::Liveness::Unheard, |h| {
                    self.pulses.liveness(h, now)
                }),
                host,
                allocated_bytes: heard.map(|_| allocated.get(&id).copied().unwrap_or(0)),
            });
        }
        let entry = |entry: Entry| EntryView {
            from: entry.from,
            until: entry.until,
            whole: entry.whole,
            stores: entry.stores,
        };
        let range = |range: MapRange| RangeView {
            extents: range.extents,
            history: range.history.0.into_iter().map(entry).collect(),
        };
        Ok(DiskMap {
            disk: record.name,
            id: record.id,
            extent_size: record.extent_size,
            epoch: record.epoch,
            home: terms.home.datacenter,
            retired: retired.iter().map(retired_view).collect(),
            ranges: record.map.into_iter().map(range).collect(),
            stores,
        })
    }

    /// Deletes a disk that is attached nowhere. Every store is told to drop it until each has.
    pub fn delete_disk(&self, name: &DiskName) -> Result<Deleted, ServiceError> {
        for _ in 0..MAX_TRIES {
            let (record, attachments) = self.disk_and_attachments(name)?;
            // An older catalog may not know that it is attached.
            self.not_in_doubt(&record.value, "deleted")?;
            if attachments.is_some() {
                return Err(ServiceError::new(
                    Kind::NotNow,
                    format!("disk {name} was not deleted"),
                    "it is attached",
                    format!("detach it first: ukai disk detach {name}"),
                ));
            }
            let id = record.value.id;
            // Every store that there is, not only those of the map: one that was ejected may still
            // hold blocks, and dropping what one does not have costs nothing.
            let stores: Vec<StoreId> = list::<StoreRecord>(&*self.catalog, key::STORES)?
                .into_iter()
                .map(|kept| kept.value.id)
                .collect();
            let dropping = Dropping {
                disk: id,
                name: name.clone(),
                stores,
            };
            let write = Transaction::new()
                .expect(key::disk(id), record.unchanged())
                .expect(key::attachment(id), Expect::Absent)
                .delete(key::disk(id))
                .delete(key::name(name))
                .delete(key::terms(id))
                .delete(key::moving(id))
                .delete(key::retired(id))
                .delete(key::deletions(id));
            let write = if dropping.stores.is_empty() {
                write
            } else {
                write.put(key::dropping(id), json(&dropping))
            };
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(disk = %name, %id, "disk deleted");
                let promised = self.unwritten_of(&record.value);
                self.course().remove_unwritten(&promised);
                self.touch(id);
                // Every store drops it.
                self.changed();
                return Ok(Deleted {
                    name: name.clone(),
                    id,
                    dropping: dropping.stores,
                });
            }
        }
        Err(ServiceError::contended(&format!("disk {name}")))
    }

    pub(super) fn disk_named(&self, name: &DiskName) -> Result<Kept<DiskRecord>, ServiceError> {
        let found = match load::<DiskId>(&*self.catalog, &key::name(name))? {
            Some(id) => load_disk(&*self.catalog, *id.value)?,
            None => None,
        };
        found.ok_or_else(|| {
            ServiceError::new(
                Kind::NoSuchThing,
                format!("there is no disk {name}"),
                "no disk has that name",
                "see `ukai disk list` for those that there are",
            )
        })
    }

    fn view(
        &self,
        record: &DiskRecord,
        terms: &Terms,
        attachments: &Attachments,
        standing: &Standing,
        now: Moment,
    ) -> Result<Disk, CatalogError> {
        let home = &terms.home.datacenter;
        let places = &standing.places;
        let class = standing.policies.class(home, terms.class.as_ref());
        let wanted = class.total(record.copies);
        let count = |so: &dyn Fn(&History) -> bool| -> u64 {
            let ranges = record.map.iter().filter(|range| so(&range.history));
            ranges.map(|range| u64::from(range.extents.count())).sum()
        };
        let is_home = |store: &StoreId| places.datacenter(*store) == Some(home);
        let at_home = |entry: &Entry| entry.stores.iter().any(is_home);
        let is_gone = |store: StoreId| match standing.health.get(&store) {
            Some(Health::Gone) => true,
            Some(Health::Silent { since }) => since.after(class.repair_after) <= standing.wall,
            Some(Health::Up) | None => false,
        };
        let copies = |history: &History| copies_without(history, &is_gone);
        Ok(Disk {
            id: record.id,
            name: record.name.clone(),
            bytes: record.bytes,
            extent_size: record.extent_size,
            copies: record.copies,
            epoch: record.epoch,
            open_for: record.owner().map(|owner| owner.host.clone()),
            allocated_bytes: self.pulses.occupied(record.id).values().sum(),
            attachment: attachments.main().map(|a| self.attachment_view(a, now)),
            standbys: attachments
                .standbys()
                .map(|a| self.attachment_view(a, now))
                .collect(),
            class: terms.class.clone(),
            home: home.clone(),
            wanted_copies: wanted,
            copies_now: record
                .map
                .iter()
                .map(|range| copies(&range.history))
                .min()
                .unwrap_or(0)
                .min(usize::from(u8::MAX)) as u8,
            short_extents: count(&|history| copies(history) < usize::from(wanted)),
            extents: u64::from(record.extents().count()),
            near_extents: count(&|history| history.live().any(|e| e.whole && at_home(e))),
            near_member_extents: count(&|history| history.live().any(at_home)),
            moving: self.move_brief(record.id)?,
        })
    }
}

/// What a disk is shown against.
struct Standing {
    places: Arc<Places>,
    policies: Arc<Policies>,
    health: BTreeMap<StoreId, Health>,
    wall: UnixSeconds,
}

fn retired_view(copy: &RetiredCopy) -> RetiredView {
    RetiredView {
        store: copy.store,
        extents: copy.extents.clone(),
        since: copy.since,
        superseded_by: copy.superseded_by.clone(),
        dropping: copy.ordered.is_some(),
    }
}

fn not_placed(name: &DiskName, why: &Impossible, extent_size: ExtentSize) -> ServiceError {
    let try_next = match why {
        Impossible::Copies { .. } => "use --copies 2".to_owned(),
        Impossible::TooFewHosts { hosts: 0, .. } => {
            "start nodes with stores; `ukai status` shows which are up".to_owned()
        }
        Impossible::TooFewHosts { hosts, .. } => {
            format!("use {hosts} copies, drop the datacenter if you named one, or start more nodes")
        }
        Impossible::TooLarge {
            largest_bytes: 0, ..
        } => format!(
            "add stores, or delete disks: there is no room for one extent of {} bytes",
            extent_size.bytes()
        ),
        Impossible::TooLarge { largest_bytes, .. } => {
            format!("use {largest_bytes} bytes or less, fewer copies, or add stores")
        }
    };
    ServiceError::new(
        Kind::Impossible,
        format!("disk {name} was not created"),
        why.to_string(),
        try_next,
    )
}
