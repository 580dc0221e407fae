//! Copies that a map names no more: noted in the transaction that made them superfluous, kept as the base
//! for a way back, and deleted only when those that took their place are complete and alive (I7).

use super::pulse::Moment;
use super::scene::{DiskNow, Scene};
use super::{MAX_TRIES, Service, ServiceError};
use crate::api::Deletion;
use crate::catalog::{CatalogError, Committed, Transaction};
use crate::model::{
    DELETIONS_KEPT, DropOrder, Kept, RetiredCopy, json, key, load, load_or_default,
};
use crate::node_protocol::{DropReplica, StoreReport};
use crate::planner::{Action, Plan, Retired};
use crate::policy::UnixSeconds;
use replicator::plant::{Plant, planted};
use replicator::words::{
    DiskId, DiskName, DiskRecord, Entry, Extents, Generation, History, State, StoreId, Version,
};
use std::collections::{BTreeMap, BTreeSet};

/// What is retired once `before` has become `after`: what no entry names any more, without what one names
/// again. `ejected`: they missed a write, and nobody took their place.
pub(super) fn retired(
    before: &DiskRecord,
    after: &DiskRecord,
    known: &[RetiredCopy],
    ejected: bool,
    generation: Generation,
    now: UnixSeconds,
) -> Vec<RetiredCopy> {
    if before.map == after.map {
        return known.to_vec();
    }
    let named = named_in(after);
    let mut left = still_retired(after, known);
    // Before its first epoch nobody has written anything.
    if matches!(&before.state, State::Closed { last, .. } if *last == Version::ZERO) {
        return left;
    }
    for (store, extents) in named_in(before) {
        let none = Vec::new();
        let extents = minus(&extents, named.get(&store).unwrap_or(&none));
        if extents.is_empty() {
            continue;
        }
        left.push(RetiredCopy {
            store,
            superseded_by: members(after, &extents).into_iter().collect(),
            extents,
            since: now,
            revision: after.revision,
            joined_below: after.epoch.next(generation),
            ejected,
            unwanted: false,
            ordered: None,
        });
    }
    joined(left)
}

/// Of what was retired: what the record does not name again.
pub(super) fn still_retired(record: &DiskRecord, known: &[RetiredCopy]) -> Vec<RetiredCopy> {
    let named = named_in(record);
    let mut left: Vec<RetiredCopy> = known.to_vec();
    for copy in &mut left {
        if let Some(named) = named.get(&copy.store) {
            copy.extents = minus(&copy.extents, named);
        }
    }
    left.retain(|copy| !copy.extents.is_empty());
    left
}

/// Copies of one store that wait for the same are one: the list stays as short as the fleet is.
pub(super) fn joined(copies: Vec<RetiredCopy>) -> Vec<RetiredCopy> {
    let mut all: Vec<RetiredCopy> = Vec::with_capacity(copies.len());
    for copy in copies {
        let waits = |other: &&mut RetiredCopy| {
            other.store == copy.store
                && other.ejected == copy.ejected
                && other.ordered.is_none()
                && copy.ordered.is_none()
        };
        match all.iter_mut().find(waits) {
            Some(other) => {
                other.extents.extend(copy.extents);
                other.extents = tidy(std::mem::take(&mut other.extents));
                other.superseded_by.extend(copy.superseded_by);
                other.superseded_by.sort_unstable();
                other.superseded_by.dedup();
                other.since = other.since.max(copy.since);
                other.revision = other.revision.max(copy.revision);
                other.joined_below = other.joined_below.max(copy.joined_below);
                other.unwanted |= copy.unwanted;
            }
            None => all.push(copy),
        }
    }
    all
}

/// Which extents each store is named for, by whatever entry.
fn named_in(record: &DiskRecord) -> BTreeMap<StoreId, Vec<Extents>> {
    let mut named: BTreeMap<StoreId, Vec<Extents>> = BTreeMap::new();
    for range in &record.map {
        let needed = |entry: &&Entry| entry.is_live() || !planted(Plant::DeletedBeforeComplete);
        let entries = range.history.0.iter().filter(needed);
        for store in entries.flat_map(|entry| &entry.stores) {
            let extents = named.entry(*store).or_default();
            match extents.last_mut() {
                Some(last) if last.end >= range.extents.end => {}
                Some(last) if last.end == range.extents.first => last.end = range.extents.end,
                _ => extents.push(range.extents),
            }
        }
    }
    named
}

/// The members of any of these extents.
fn members(record: &DiskRecord, extents: &[Extents]) -> BTreeSet<StoreId> {
    histories(record, extents)
        .flat_map(History::members)
        .collect()
}

fn histories<'a>(
    record: &'a DiskRecord,
    extents: &'a [Extents],
) -> impl Iterator<Item = &'a History> {
    let inside = |range: Extents| extents.iter().any(|part| part.overlaps(range));
    let ranges = record.map.iter();
    ranges
        .filter(move |range| inside(range.extents))
        .map(|range| &range.history)
}

/// `all` without `some`; both in order and without overlaps.
pub(super) fn minus(all: &[Extents], some: &[Extents]) -> Vec<Extents> {
    let mut left = Vec::with_capacity(all.len());
    for part in all {
        let mut first = part.first;
        for cut in some.iter().filter(|cut| cut.overlaps(*part)) {
            if first < cut.first {
                left.push(Extents::new(first, cut.first));
            }
            first = first.max(cut.end);
        }
        if first < part.end {
            left.push(Extents::new(first, part.end));
        }
    }
    left
}

/// In order, neighbours and overlaps joined.
fn tidy(mut extents: Vec<Extents>) -> Vec<Extents> {
    extents.sort_unstable_by_key(|part| part.first);
    let mut tidy: Vec<Extents> = Vec::with_capacity(extents.len());
    for part in extents {
        match tidy.last_mut() {
            Some(last) if last.end >= part.first => last.end = last.end.max(part.end),
            _ => tidy.push(part),
        }
    }
    tidy
}

/// What the planner is told of them.
pub(super) fn for_planner(retired: &[RetiredCopy]) -> Vec<Retired> {
    let retired = retired.iter().filter(|copy| copy.ordered.is_none());
    retired
        .map(|copy| Retired {
            store: copy.store,
            extents: copy.extents.clone(),
            since: copy.since,
            ejected: copy.ejected,
        })
        .collect()
}

/// What stores are told to delete.
pub(super) fn drops(disk: DiskId, retired: &[RetiredCopy]) -> Vec<DropReplica> {
    let ordered = retired.iter().filter(|copy| copy.ordered.is_some());
    ordered
        .map(|copy| DropReplica {
            disk,
            store: copy.store,
            extents: copy.extents.clone(),
            joined_below: copy.joined_below,
        })
        .collect()
}

impl Service {
    pub(super) fn retired_copies(
        &self,
        disk: DiskId,
    ) -> Result<Option<Kept<Vec<RetiredCopy>>>, CatalogError> {
        load::<Vec<RetiredCopy>>(&*self.catalog, &key::retired(disk))
    }

    /// Orders the deletions that `plan` says are due, as far as they are safe now. The record must still
    /// be the one that was judged. Returns why others have to wait.
    pub(super) fn order_drops(
        &self,
        disk: &DiskNow,
        kept: &Kept<Vec<RetiredCopy>>,
        plan: &Plan,
        scene: &Scene,
    ) -> Result<Vec<String>, CatalogError> {
        let record = &disk.record.value;
        let due = due(plan);
        let planner = scene.planner();
        let mut waiting = Vec::new();
        let mut copies = kept.clone().into_value();
        for copy in &mut copies {
            let store = copy.store;
            copy.unwanted |= disk.moving().is_some_and(|m| m.drops == Some(store));
            let wanted = copy.unwanted || due.contains(&store);
            if planted(Plant::DeletedBeforeComplete) && copy.ordered.is_none() {
                copy.ordered = Some(DropOrder {
                    at: scene.wall,
                    superseded_by: Vec::new(),
                    revision: record.revision,
                    bytes: 0,
                });
                continue;
            }
            // While copies are missing, what is left of an old one is a base for a new one.
            if copy.ordered.is_some() || !wanted || (plan.repair && !copy.unwanted) {
                continue;
            }
            let mut instead = BTreeSet::new();
            let parts = copy.extents.iter();
            let judged: Result<Vec<()>, String> = parts
                .map(|part| {
                    let stores = planner.may_delete(&disk.subject(), store, *part)?;
                    instead.extend(stores);
                    Ok(())
                })
                .collect();
            if let Err(why) = judged {
                waiting.push(format!("the copy on store {store} stays for now: {why}"));
                continue;
            }
            // Or a catalog that is lost now would be rebuilt with a copy that has nothing any more.
            if !self.pulses.is_kept(record.id, copy.revision, &instead) {
                waiting.push(format!(
                    "the copy on store {store} stays for now: no other store has heard yet that it is superfluous"
                ));
                continue;
            }
            copy.ordered = Some(DropOrder {
                at: scene.wall,
                superseded_by: instead.into_iter().collect(),
                revision: record.revision,
                bytes: disk.allocated.get(&store).copied().unwrap_or(0),
            });
            tracing::info!(disk = %record.name, %store, "a superfluous copy is to be deleted");
        }
        if copies != *kept.value {
            let write = Transaction::new()
                .expect(key::disk(record.id), disk.record.unchanged())
                .expect(key::retired(record.id), kept.unchanged())
                .put(key::retired(record.id), json(&copies));
            // If it lost, the next pass judges what stands then.
            if self.catalog.commit(&write)? == Committed::No {
                self.touch(record.id);
            }
        }
        Ok(waiting)
    }

    /// Keeps the record of what a store says that it has deleted.
    pub(super) fn note_dropped_replicas(
        &self,
        report: &StoreReport,
        now: Moment,
    ) -> Result<bool, CatalogError> {
        let mut changed = false;
        for dropped in &report.dropped_replicas {
            if dropped.store == report.id {
                changed |= self.note_dropped_replica(dropped, now)?;
            }
        }
        Ok(changed)
    }

    fn note_dropped_replica(
        &self,
        dropped: &DropReplica,
        now: Moment,
    ) -> Result<bool, CatalogError> {
        let disk = dropped.disk;
        for _ in 0..MAX_TRIES {
            let Some(kept) = self.retired_copies(disk)? else {
                return Ok(false);
            };
            let mut copies = kept.clone().into_value();
            let is_it = |copy: &RetiredCopy| {
                copy.store == dropped.store
                    && copy.ordered.is_some()
                    && copy.joined_below == dropped.joined_below
                    && minus(&copy.extents, &dropped.extents).is_empty()
            };
            let Some(at) = copies.iter().position(is_it) else {
                return Ok(false);
            };
            let copy = copies.remove(at);
            let order = copy.ordered.expect("only what was ordered is meant");
            let (expect, mut deletions) =
                load_or_default::<Vec<Deletion>>(&*self.catalog, &key::deletions(disk))?;
            deletions.insert(
                0,
                Deletion {
                    disk,
                    store: copy.store,
                    extents: copy.extents,
                    bytes: order.bytes,
                    superseded_by: order.superseded_by,
                    revision: order.revision,
                    ordered: order.at,
                    done: self.wall(now),
                },
            );
            deletions.truncate(DELETIONS_KEPT);
            let write = Transaction::new()
                .expect(key::retired(disk), kept.unchanged())
                .expect(key::deletions(disk), expect)
                .put(key::deletions(disk), json(&deletions));
            let write = put_retired(write, disk, &copies);
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(%disk, store = %dropped.store, "a superfluous copy was deleted");
                self.touch(disk);
                return Ok(true);
            }
        }
        // The store says it again in its next heartbeat.
        Ok(false)
    }

    /// The copies of a disk that were deleted, newest first.
    pub fn deletions(&self, name: &DiskName) -> Result<Vec<Deletion>, ServiceError> {
        let id = self.disk_named(name)?.value.id;
        let (_, deletions) = load_or_default(&*self.catalog, &key::deletions(id))?;
        Ok(deletions)
    }
}

/// The stores whose superfluous copies the plan would delete now.
fn due(plan: &Plan) -> BTreeSet<StoreId> {
    let retired = plan.steps.iter().filter_map(|step| match &step.action {
        Action::Retire { copies } => Some(copies),
        _ => None,
    });
    let due = retired.flatten().filter(|copy| copy.not_before.is_none());
    due.map(|copy| copy.store).collect()
}

/// Adds the list as it is to be; an empty one is none.
pub(super) fn put_retired(write: Transaction, disk: DiskId, copies: &[RetiredCopy]) -> Transaction {
    match copies {
        [] => write.delete(key::retired(disk)),
        copies => write.put(key::retired(disk), json(&copies)),
    }
}
