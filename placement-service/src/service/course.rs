//! What the service keeps in memory between its passes over the disks. All of it follows from the catalog
//! and from what nodes say: after a restart the first pass finds it again.

use super::Service;
use super::links::Probed;
use super::pulse::Moment;
use super::terms::Places;
use super::verify::Verifications;
use crate::api::{MoveKind, MoveProgress};
use crate::catalog::KeyRevision;
use crate::model::Base;
use crate::node_protocol::{BackendReport, DropReplica};
use crate::policy::Policies;
use replicator::words::{BackendId, DiskId, StoreId};
use replicator::writer::{Orders, Progress};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

/// Rates are of this time: long enough to be calm, short enough to follow.
const LATELY: Duration = Duration::from_secs(10);

/// A writer that is not asked for a store any more does not call it either: what it said of it holds for so long.
const UNREACHABLE_FOR: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Course {
    orders: BTreeMap<DiskId, BTreeMap<BackendId, Orders>>,
    drops: BTreeMap<DiskId, Vec<DropReplica>>,
    /// Disks that policy may begin to move now.
    admitted: BTreeSet<DiskId>,
    touched: BTreeSet<DiskId>,
    look_at_all: bool,
    tracks: BTreeMap<BackendId, Track>,
    unwritten: Option<Arc<BTreeMap<StoreId, u64>>>,
    places: Option<Arc<Places>>,
    probed: Option<Arc<Probed>>,
    /// Counts what makes them old.
    places_changed: u64,
    policies: Option<(Vec<KeyRevision>, Arc<Policies>)>,
    /// Why copies of these disks are not deleted although policy would have it.
    held: BTreeMap<DiskId, Vec<String>>,
    pub verifications: Verifications,
    pub last_whole_pass: Option<(Moment, Duration)>,
}

/// What a backend said lately about its copying.
#[derive(Default)]
struct Track {
    heard: VecDeque<(Moment, Progress)>,
    hindrance: Option<String>,
    /// The disk, and what its guest waits for.
    stall: Option<(DiskId, String)>,
    /// Stores that it called in vain, and when it last said so.
    unreachable: BTreeMap<StoreId, Moment>,
}

impl Service {
    pub(super) fn course(&self) -> MutexGuard<'_, Course> {
        // Each change below is complete in itself.
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Course {
    pub fn orders(&self, disk: DiskId, backend: BackendId) -> Option<Orders> {
        let of = self.orders.get(&disk);
        let orders = of.and_then(|of| of.get(&backend)).cloned();
        self.verifications.added(disk, backend, orders)
    }

    /// True: they are others than before.
    pub fn set_orders(&mut self, disk: DiskId, orders: BTreeMap<BackendId, Orders>) -> bool {
        let before = match orders.is_empty() {
            true => self.orders.remove(&disk),
            false => self.orders.insert(disk, orders.clone()),
        };
        before.unwrap_or_default() != orders
    }

    /// What these stores are to delete.
    pub fn drops(&self, stores: &[StoreId]) -> Vec<DropReplica> {
        let all = self.drops.values().flatten();
        all.filter(|drop| stores.contains(&drop.store))
            .cloned()
            .collect()
    }

    /// True: they are others than before.
    pub fn set_drops(&mut self, disk: DiskId, drops: Vec<DropReplica>) -> bool {
        let before = match drops.is_empty() {
            true => self.drops.remove(&disk),
            false => self.drops.insert(disk, drops.clone()),
        };
        before.unwrap_or_default() != drops
    }

    pub fn set_held(&mut self, disk: DiskId, why: Vec<String>) {
        match why.is_empty() {
            true => self.held.remove(&disk),
            false => self.held.insert(disk, why),
        };
    }

    pub fn held(&self, disk: DiskId) -> Vec<String> {
        self.held.get(&disk).cloned().unwrap_or_default()
    }

    pub fn forget(&mut self, disk: DiskId) {
        self.orders.remove(&disk);
        self.drops.remove(&disk);
        self.held.remove(&disk);
        self.verifications.forget(disk);
        self.admitted.remove(&disk);
    }

    pub fn is_admitted(&self, disk: DiskId) -> bool {
        self.admitted.contains(&disk)
    }

    pub fn admit(&mut self, disks: BTreeSet<DiskId>) {
        self.admitted = disks;
    }

    pub fn look_at_all(&mut self) {
        self.look_at_all = true;
    }

    pub fn take_look_at_all(&mut self) -> bool {
        std::mem::take(&mut self.look_at_all)
    }

    /// In the next pass.
    pub fn look_at(&mut self, disk: DiskId) {
        self.touched.insert(disk);
    }

    pub fn take_touched(&mut self) -> BTreeSet<DiskId> {
        std::mem::take(&mut self.touched)
    }

    pub fn unwritten(&self) -> Option<Arc<BTreeMap<StoreId, u64>>> {
        self.unwritten.clone()
    }

    pub fn set_unwritten(&mut self, unwritten: Arc<BTreeMap<StoreId, u64>>) {
        self.unwritten = Some(unwritten);
    }

    /// There is another disk since they were counted.
    pub fn add_unwritten(&mut self, of: &BTreeMap<StoreId, u64>) {
        if let Some(known) = &mut self.unwritten {
            let known = Arc::make_mut(known);
            for (store, bytes) in of {
                *known.entry(*store).or_default() += bytes;
            }
        }
    }

    /// A disk is gone since they were counted.
    pub fn remove_unwritten(&mut self, of: &BTreeMap<StoreId, u64>) {
        if let Some(known) = &mut self.unwritten {
            let known = Arc::make_mut(known);
            for (store, bytes) in of {
                let sum = known.entry(*store).or_default();
                *sum = sum.saturating_sub(*bytes);
            }
        }
    }

    /// None: they have to be read; the number is for [`Course::set_places`].
    pub fn places(&self) -> (Option<Arc<Places>>, u64) {
        (self.places.clone(), self.places_changed)
    }

    /// What was read is kept, unless it has become old meanwhile.
    pub fn set_places(&mut self, places: Arc<Places>, as_of: u64) {
        if self.places_changed == as_of {
            self.places = Some(places);
        }
    }

    pub fn places_changed(&mut self) {
        self.places = None;
        self.stores_shown_changed();
    }

    /// As [`Course::places`].
    pub fn probed(&self) -> (Option<Arc<Probed>>, u64) {
        (self.probed.clone(), self.places_changed)
    }

    pub fn set_probed(&mut self, probed: Arc<Probed>, as_of: u64) {
        if self.places_changed == as_of {
            self.probed = Some(probed);
        }
    }

    pub fn stores_shown_changed(&mut self) {
        self.probed = None;
        self.places_changed += 1;
    }

    pub fn policies(&self, of: &[KeyRevision]) -> Option<Arc<Policies>> {
        let (revisions, policies) = self.policies.as_ref()?;
        (revisions == of).then(|| policies.clone())
    }

    pub fn set_policies(&mut self, of: Vec<KeyRevision>, policies: Arc<Policies>) {
        self.policies = Some((of, policies));
    }

    /// Takes in what the backends of a node say about their copying.
    pub fn hear(&mut self, reports: &[BackendReport], now: Moment) {
        for report in reports {
            self.verifications.hear(report);
            let track = self.tracks.entry(report.backend).or_default();
            let hindrance = report.hindrance.as_ref().or(report.stall.as_ref());
            track.hindrance = hindrance.cloned();
            track.stall = report.stall.clone().map(|why| (report.disk, why));
            let called = report.unreachable.iter().map(|store| (*store, now));
            track.unreachable.extend(called);
            let lately = |at: Moment| now.0.saturating_sub(at.0) <= UNREACHABLE_FOR;
            track.unreachable.retain(|_, at| lately(*at));
            let Some(progress) = report.progress else {
                continue;
            };
            // A backend that began anew counts from zero again.
            let goes_back = |before: &Progress| before.copied_bytes > progress.copied_bytes;
            if track.heard.back().is_some_and(|(_, last)| goes_back(last)) {
                track.heard.clear();
            }
            track.heard.push_back((now, progress));
            while track
                .heard
                .front()
                .is_some_and(|(at, _)| now.0.saturating_sub(at.0) > LATELY)
            {
                track.heard.pop_front();
            }
        }
    }

    /// Forgets backends that nobody has any more.
    pub fn keep_tracks(&mut self, backends: &BTreeSet<BackendId>) {
        self.tracks.retain(|backend, _| backends.contains(backend));
    }

    /// The stores that a backend lately called in vain.
    pub fn unreachable(&self, backend: BackendId, now: Moment) -> Vec<StoreId> {
        let track = self.tracks.get(&backend);
        let all = track.into_iter().flat_map(|track| &track.unreachable);
        let lately = all.filter(|(_, at)| now.0.saturating_sub(at.0) <= UNREACHABLE_FOR);
        lately.map(|(store, _)| *store).collect()
    }

    /// What keeps a backend from going on.
    pub fn hindrance(&self, backend: BackendId) -> Option<String> {
        self.tracks.get(&backend)?.hindrance.clone()
    }

    /// What the guests of a disk wait for.
    pub fn stalls(&self, disk: DiskId) -> Vec<String> {
        let stalls = self.tracks.values().filter_map(|t| t.stall.as_ref());
        let of = stalls.filter(|(of, _)| *of == disk);
        of.map(|(_, why)| why.clone()).collect()
    }

    /// How far a backend's copying is, since it began; none: it has not said.
    pub fn heard(&self, backend: BackendId) -> Option<Heard> {
        let track = self.tracks.get(&backend)?;
        let (at, last) = track.heard.back()?;
        let (since, first) = track.heard.front()?;
        let time = at.0.saturating_sub(since.0).as_secs_f64();
        let copied = last.copied_bytes.saturating_sub(first.copied_bytes);
        let near = last.near_blocks.saturating_sub(first.near_blocks);
        let far = last.far_blocks.saturating_sub(first.far_blocks);
        Some(Heard {
            backend,
            progress: *last,
            bytes_per_second: match time > 0.0 {
                true => (copied as f64 / time) as u64,
                false => 0,
            },
            near_reads_permille: (near + far > 0).then(|| (near * 1000 / (near + far)) as u16),
        })
    }
}

/// What a backend said last of its copying, and what follows from what it said lately.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub backend: BackendId,
    pub progress: Progress,
    bytes_per_second: u64,
    near_reads_permille: Option<u16>,
}

impl Heard {
    pub fn base(&self) -> Base {
        Base {
            backend: self.backend,
            progress: self.progress,
        }
    }

    /// The part of it that belongs to a move which began when the backend had copied `base`.
    pub fn since(&self, base: Option<&Base>, kind: MoveKind) -> MoveProgress {
        let base = base.filter(|base| base.backend == self.backend);
        let base = base.map(|base| base.progress).unwrap_or_default();
        let now = &self.progress;
        let (extents, extents_done) = match kind {
            MoveKind::Move => (now.extents, now.extents_done),
            MoveKind::Prepare => (now.seed_extents, now.seed_extents_done),
        };
        let copied = now.copied_bytes.saturating_sub(base.copied_bytes);
        let same = now.same_bytes.saturating_sub(base.same_bytes);
        let left = left(now.missing_bytes, copied + same, extents, extents_done);
        let rate = self.bytes_per_second;
        MoveProgress {
            copied_bytes: copied,
            same_bytes: same,
            left_bytes: left,
            link_bytes: now.link_bytes.saturating_sub(base.link_bytes),
            read_through_bytes: now
                .read_through_bytes
                .saturating_sub(base.read_through_bytes),
            extents,
            extents_done,
            bytes_per_second: rate,
            seconds_left: left.filter(|_| rate > 0).map(|left| left / rate),
            near_reads_permille: self.near_reads_permille,
        }
    }
}

/// What is known to be missing, and of the extents that were not looked into yet as much as the others had.
fn left(missing: u64, done: u64, extents: u64, extents_done: u64) -> Option<u64> {
    if extents == extents_done {
        return Some(0);
    }
    if extents_done == 0 {
        return Some(missing).filter(|bytes| *bytes > 0);
    }
    let to_do = extents.saturating_sub(extents_done);
    let estimate = u128::from(done) * u128::from(to_do) / u128::from(extents_done);
    Some((estimate.min(u128::from(u64::MAX)) as u64).max(missing))
}
