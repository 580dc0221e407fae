//! What operators say of a store beyond where it is: that it is lost, that it is to be emptied, and both
//! taken back.
//!
//! None of it is needed for safety: what a store may serve rests on epochs and histories (I3), whatever is
//! said of it here. It only tells the planner what to count on.

use super::pulse::Moment;
use super::scene::DiskNow;
use super::{Kind, MAX_TRIES, Service, ServiceError};
use crate::api::{
    Bereaved, DeclareLost, Evacuate, EvacuatedDisk, Evacuation, Liveness, Store, StoreOrder,
    StoreOrderKind, StoreTask,
};
use crate::catalog::{CatalogError, Committed, Transaction};
use crate::model::{
    Dropping, Kept, RetiredCopy, StoreRecord, StoreState, json, key, list, load, load_or_default,
    suffixes, unchanged,
};
use crate::planner::{Action, Plan, Planner, copies_without};
use crate::policy::UnixSeconds;
use replicator::words::{DiskId, DiskName, DiskRecord, HostName, StoreId};
use std::collections::{BTreeMap, BTreeSet};

impl Service {
    /// From now on nothing is expected of the store: its copies are made anew elsewhere at once.
    pub fn declare_lost(
        &self,
        id: StoreId,
        request: &DeclareLost,
        by: &str,
        now: Moment,
    ) -> Result<Bereaved, ServiceError> {
        self.order_store(id, StoreOrderKind::Lost, &request.reason, by, now)?;
        let gone = |store: StoreId| store == id;
        let mut bereaved = Bereaved {
            store: self.store(id, now)?,
            disks: Vec::new(),
            last_copies: Vec::new(),
        };
        for record in self.disks_on(id)? {
            let map = record.map.iter();
            if { map }.any(|range| copies_without(&range.history, &gone) == 0) {
                bereaved.last_copies.push(record.name.clone());
            }
            bereaved.disks.push(record.name);
        }
        Ok(bereaved)
    }

    /// Takes back that it is lost. What it still has is used again as far as it is needed: it joins anew, and
    /// takes the difference.
    pub fn declare_found(&self, id: StoreId, by: &str, now: Moment) -> Result<Store, ServiceError> {
        let what = format!("store {id} is not declared found");
        if let Some(fault) = self.pulses.refused(id) {
            return Err(ServiceError::new(
                Kind::NotNow,
                what,
                format!("it is refused: {fault}"),
                "mend that first; a store that was formatted anew is another store",
            ));
        }
        self.lift_order(id, StoreOrderKind::Lost, &what, by)?;
        self.store(id, now)
    }

    /// Empties a store that works: each copy goes when another one is complete.
    pub fn evacuate(
        &self,
        id: StoreId,
        request: &Evacuate,
        by: &str,
        now: Moment,
    ) -> Result<Evacuation, ServiceError> {
        self.known_store(id)?;
        let evacuation = self.evacuation(id, now)?;
        if request.plan_only {
            return Ok(evacuation);
        }
        if let [stuck, others @ ..] = &evacuation.stuck[..] {
            let more = match others.len() {
                0 => String::new(),
                more => format!(" (and {more} more disks)"),
            };
            return Err(ServiceError::new(
                Kind::Impossible,
                format!("store {id} is not evacuated"),
                format!("{stuck}{more}"),
                "start a node with a store where they may stand, or make room; --plan lists them all",
            ));
        }
        self.order_store(id, StoreOrderKind::Evacuate, &request.reason, by, now)?;
        Ok(Evacuation {
            store: self.store(id, now)?,
            ..evacuation
        })
    }

    /// What has gone stays gone; what has not, stays.
    pub fn cancel_evacuation(
        &self,
        id: StoreId,
        by: &str,
        now: Moment,
    ) -> Result<Store, ServiceError> {
        let what = format!("the evacuation of store {id} was not cancelled");
        self.lift_order(id, StoreOrderKind::Evacuate, &what, by)?;
        self.store(id, now)
    }

    /// What emptying the store would come to, beside all that the fleet is to carry anyway.
    fn evacuation(&self, id: StoreId, now: Moment) -> Result<Evacuation, ServiceError> {
        let mut scene = self.scene(now)?;
        if let Some(place) = scene.topology.stores.get_mut(&id) {
            place.evacuating = true;
        }
        let mut disks: Vec<DiskNow> = Vec::new();
        for kept in list::<DiskRecord>(&*self.catalog, key::DISKS)? {
            disks.push(self.disk_now(kept, &scene)?);
        }
        let planner = scene.planner();
        let plans = planner.plan_all(disks.iter().map(DiskNow::subject));
        let mut evacuation = Evacuation {
            store: self.store(id, now)?,
            disks: Vec::new(),
            bytes: 0,
            stuck: Vec::new(),
        };
        for (disk, plan) in disks.iter().zip(&plans) {
            if !is_on(&disk.record.value, id) {
                continue;
            }
            if let Some(why) = stuck(&planner, disk, plan, id) {
                evacuation.stuck.push(why);
            }
            let bytes = plan.bytes();
            evacuation.bytes = evacuation.bytes.saturating_add(bytes);
            evacuation.disks.push(EvacuatedDisk {
                disk: disk.record.value.name.clone(),
                to: joins(&disk.record.value, plan),
                bytes,
            });
        }
        Ok(evacuation)
    }

    fn order_store(
        &self,
        id: StoreId,
        kind: StoreOrderKind,
        reason: &str,
        by: &str,
        now: Moment,
    ) -> Result<(), ServiceError> {
        let order = StoreOrder {
            kind,
            reason: reason.to_owned(),
            by: by.to_owned(),
            at: self.wall(now),
        };
        self.change_order(id, by, |state| {
            // Asking again changes nothing.
            if state.order.as_ref().is_none_or(|old| old.kind != kind) {
                state.order = Some(order.clone());
            }
            Ok(())
        })
    }

    fn lift_order(
        &self,
        id: StoreId,
        kind: StoreOrderKind,
        what: &str,
        by: &str,
    ) -> Result<(), ServiceError> {
        self.change_order(id, by, |state| match &state.order {
            Some(order) if order.kind == kind => {
                state.order = None;
                Ok(())
            }
            _ => Err(ServiceError::new(
                Kind::NotNow,
                what,
                match kind {
                    StoreOrderKind::Lost => "nobody declared it lost",
                    StoreOrderKind::Evacuate => "it is not being evacuated",
                },
                "see `ukai store list`",
            )),
        })
    }

    fn change_order(
        &self,
        id: StoreId,
        by: &str,
        change: impl Fn(&mut StoreState) -> Result<(), ServiceError>,
    ) -> Result<(), ServiceError> {
        self.known_store(id)?;
        let key = key::store_state(id);
        for _ in 0..MAX_TRIES {
            let kept = load::<StoreState>(&*self.catalog, &key)?;
            let before = kept.clone().map(Kept::into_value);
            let mut state = before.clone().unwrap_or_else(|| StoreState::new(id));
            change(&mut state)?;
            if before.as_ref() == Some(&state) {
                return Ok(());
            }
            let write = Transaction::new()
                .expect(&key, unchanged(&kept))
                .put(&key, json(&state));
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(store = %id, by, order = ?state.order, "an operator's word about a store");
                self.course().look_at_all();
                self.changed();
                return Ok(());
            }
        }
        Err(ServiceError::contended(&format!("store {id}")))
    }

    fn known_store(&self, id: StoreId) -> Result<(), ServiceError> {
        if self.catalog.get(&key::store(id))?.is_some() {
            return Ok(());
        }
        Err(ServiceError::new(
            Kind::NoSuchThing,
            format!("there is no store {id}"),
            "nothing of that id has announced itself",
            "see `ukai store list` for those that there are",
        ))
    }

    fn store(&self, id: StoreId, now: Moment) -> Result<Store, ServiceError> {
        let found = self.stores(now)?.into_iter().find(|store| store.id == id);
        found.ok_or_else(|| ServiceError::contended(&format!("store {id}")))
    }

    fn disks_on(&self, id: StoreId) -> Result<Vec<DiskRecord>, CatalogError> {
        let records = list::<DiskRecord>(&*self.catalog, key::DISKS)?;
        let records = records.into_iter().map(Kept::into_value);
        Ok(records.filter(|record| is_on(record, id)).collect())
    }

    pub(super) fn store_states(&self) -> Result<BTreeMap<StoreId, StoreState>, CatalogError> {
        let states = list::<StoreState>(&*self.catalog, key::STORE_STATES)?;
        let states = states.into_iter().map(Kept::into_value);
        Ok(states.map(|state| (state.store, state)).collect())
    }

    /// What stores have of disks still, by whatever map or list; only of stores that are asked for.
    pub(super) fn tasks(
        &self,
        of: &BTreeSet<StoreId>,
    ) -> Result<BTreeMap<StoreId, StoreTask>, CatalogError> {
        let mut tasks: BTreeMap<StoreId, StoreTask> = of
            .iter()
            .map(|store| (*store, StoreTask::default()))
            .collect();
        if of.is_empty() {
            return Ok(tasks);
        }
        let mut add = |store: StoreId, disk: DiskId| {
            if let Some(task) = tasks.get_mut(&store) {
                let bytes = self.pulses.occupied(disk).get(&store).copied();
                task.disks_left += 1;
                task.bytes_left += bytes.unwrap_or(0);
            }
        };
        for kept in list::<DiskRecord>(&*self.catalog, key::DISKS)? {
            let id = kept.value.id;
            let (_, retired) =
                load_or_default::<Vec<RetiredCopy>>(&*self.catalog, &key::retired(id))?;
            let mut stores: BTreeSet<StoreId> = kept.value.stores().into_iter().collect();
            stores.extend(retired.iter().map(|copy| copy.store));
            stores.into_iter().for_each(|store| add(store, id));
        }
        for disk in suffixes(&*self.catalog, key::DROPPING)? {
            let Ok(disk) = disk.parse::<DiskId>() else {
                continue;
            };
            let (_, dropping) =
                load_or_default::<Option<Dropping>>(&*self.catalog, &key::dropping(disk))?;
            let stores = dropping.map(|dropping| dropping.stores).unwrap_or_default();
            stores.into_iter().for_each(|store| add(store, disk));
        }
        Ok(tasks)
    }

    /// Notes since when stores are away: a placement service that was restarted goes on waiting, and does not
    /// begin to.
    pub(super) fn note_absences(&self, now: Moment) -> Result<(), CatalogError> {
        for kept in list::<StoreRecord>(&*self.catalog, key::STORES)? {
            let StoreRecord { id, host, .. } = kept.into_value();
            let key = key::store_state(id);
            let kept = load::<StoreState>(&*self.catalog, &key)?;
            let state = kept.clone().map(Kept::into_value);
            let state = state.unwrap_or_else(|| StoreState::new(id));
            let away_since = match (self.is_up(id, &host, now), state.away_since) {
                (true, Some(_)) => None,
                (false, None) => Some(self.away_since(&host, now)),
                (true, None) | (false, Some(_)) => continue,
            };
            match away_since {
                None => tracing::info!(store = %id, %host, "a store is back"),
                Some(since) => tracing::warn!(store = %id, %host, %since, "a store is away"),
            }
            let state = StoreState {
                away_since,
                ..state
            };
            let write = Transaction::new()
                .expect(&key, unchanged(&kept))
                .put(&key, json(&state));
            // If an operator spoke of it at the same moment, the next pass notes it.
            let _ = self.catalog.commit(&write)?;
        }
        Ok(())
    }

    pub(super) fn is_up(&self, id: StoreId, host: &HostName, now: Moment) -> bool {
        let report = self.pulses.store(host, id);
        let well = report.is_some_and(|report| report.trouble.is_none());
        well && self.pulses.refused(id).is_none() && self.pulses.liveness(host, now) == Liveness::Up
    }

    /// As far as this service can tell by itself.
    pub(super) fn away_since(&self, host: &HostName, now: Moment) -> UnixSeconds {
        let silence = match self.pulses.liveness(host, now) {
            // The host speaks, and says that the store is in trouble, or says nothing of it.
            Liveness::Up => None,
            _ => self.pulses.silence(host, now),
        };
        let wall = self.wall(now);
        UnixSeconds(wall.0.saturating_sub(silence.unwrap_or_default().as_secs()))
    }
}

fn is_on(record: &DiskRecord, store: StoreId) -> bool {
    let mut entries = record.map.iter().flat_map(|range| &range.history.0);
    entries.any(|entry| entry.has(store))
}

/// Why a disk would not leave a store that is to be emptied.
fn stuck(planner: &Planner, disk: &DiskNow, plan: &Plan, store: StoreId) -> Option<String> {
    let name: &DiskName = &disk.record.value.name;
    if let Some(shortfall) = plan.shortfalls.first() {
        return Some(format!(
            "disk {name}, extents {}: {}",
            shortfall.extents, shortfall.why
        ));
    }
    let goal = planner.goal(&disk.subject());
    let mut ranges = goal.ranges.iter();
    let stays = ranges.find(|range| range.stores().contains(&store))?;
    let awaited = goal.awaited.first();
    Some(match awaited {
        Some(awaited) => format!(
            "disk {name}, extents {}: a copy is missing, and store {} is waited for until {}",
            stays.extents, awaited.store, awaited.until
        ),
        None => format!(
            "disk {name}, extents {}: nothing else can take them",
            stays.extents
        ),
    })
}

/// The stores that the plan brings in.
fn joins(record: &DiskRecord, plan: &Plan) -> Vec<StoreId> {
    let members = record.members();
    let sets = plan.steps.iter().filter_map(|step| match &step.action {
        Action::Switch { sets } => Some(sets),
        _ => None,
    });
    let stores = sets.flatten().flat_map(|set| &set.stores);
    let new: BTreeSet<StoreId> = stores
        .filter(|store| !members.contains(store))
        .copied()
        .collect();
    new.into_iter().collect()
}
