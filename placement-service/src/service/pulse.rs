//! What nodes said last, and how long ago. In memory only: a node says it again within a second.

use crate::api::Liveness;
use crate::node_protocol::{
    BackendReport, BackendState, DiskUse, Heartbeat, LinkReport, SILENT_AFTER, StoreFault,
    StoreRefused, StoreReport,
};
use replicator::words::{BackendId, DiskId, Epoch, HostName, Revision, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A point in time: how long the service had been running.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(pub Duration);

/// A node's last heartbeat.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Pulse {
    pub at: Moment,
    /// Those that were accepted.
    pub stores: Vec<Arc<StoreReport>>,
    pub refused: Vec<StoreRefused>,
    /// The name of the lists in it.
    pub lists: Option<u64>,
    pub backends: Vec<BackendReport>,
    pub links: Vec<LinkReport>,
}

impl Pulse {
    /// Whether the same stores are shown, as well as before: other nodes measure their links to them.
    pub fn shows_what(&self, other: &Pulse) -> bool {
        let shown = |pulse: &Pulse| -> Vec<StoreId> { pulse.stores.iter().map(|s| s.id).collect() };
        self.refused == other.refused && shown(self) == shown(other)
    }

    /// Whether it says the same that somebody may be waiting to hear.
    pub fn is_like(&self, other: &Pulse) -> bool {
        fn state(report: &BackendReport) -> (BackendId, &BackendState, Option<Epoch>) {
            (report.backend, &report.state, report.epoch)
        }
        self.backends
            .iter()
            .map(state)
            .eq(other.backends.iter().map(state))
    }
}

#[derive(Default)]
pub(super) struct Pulses(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    nodes: BTreeMap<HostName, Arc<Pulse>>,
    /// How many stores they show that were refused.
    refused: usize,
    /// What every disk occupies in each store that has said so: the same once more, found by disk.
    occupied: BTreeMap<DiskId, Arc<Occupied>>,
}

/// Bytes in each store.
pub(super) type Occupied = BTreeMap<StoreId, u64>;

impl Heard {
    /// Follows from what a store said before to what it says now; in both each disk is named once.
    fn occupy(&mut self, store: StoreId, before: &[DiskUse], now: &[DiskUse]) {
        let same_disks = before.len() == now.len()
            && before
                .iter()
                .zip(now)
                .all(|(before, now)| before.disk == now.disk);
        if !same_disks {
            for gone in before {
                self.vacate(store, gone.disk);
            }
        }
        for (n, usage) in now.iter().enumerate() {
            if same_disks && before[n] == *usage {
                continue;
            }
            let stores = self.occupied.entry(usage.disk).or_default();
            Arc::make_mut(stores).insert(store, usage.allocated_bytes);
        }
    }

    fn vacate(&mut self, store: StoreId, disk: DiskId) {
        if let Some(stores) = self.occupied.get_mut(&disk) {
            let stores = Arc::make_mut(stores);
            stores.remove(&store);
            if stores.is_empty() {
                self.occupied.remove(&disk);
            }
        }
    }
}

impl Pulses {
    /// Returns what the node had said before.
    pub fn beat(&self, host: &HostName, pulse: Arc<Pulse>) -> Option<Arc<Pulse>> {
        let mut all = self.all();
        let before = all.nodes.insert(host.clone(), pulse.clone());
        all.refused += pulse.refused.len();
        all.refused -= before.as_ref().map_or(0, |before| before.refused.len());
        let stores = |pulse: &Arc<Pulse>| pulse.stores.clone();
        let mut former = before.as_ref().map(stores).unwrap_or_default();
        for report in &pulse.stores {
            let place = former.iter().position(|one| one.id == report.id);
            let had = place.map(|place| former.swap_remove(place));
            let had = had.as_ref().map_or(&[][..], |report| &report.disks);
            all.occupy(report.id, had, &report.disks);
        }
        for gone in former {
            all.occupy(gone.id, &gone.disks, &[]);
            // Another node may show it by now.
            let elsewhere = all.nodes.values().flat_map(|pulse| &pulse.stores);
            let elsewhere = elsewhere.filter(|report| report.id == gone.id).cloned();
            for report in elsewhere.collect::<Vec<_>>() {
                all.occupy(report.id, &[], &report.disks);
            }
        }
        before
    }

    /// Gives a heartbeat the lists that its node told before, under that name. False: they are not known.
    pub fn fill_in(&self, host: &HostName, name: u64, heartbeat: &mut Heartbeat) -> bool {
        let Some(pulse) = self.of(host).filter(|pulse| pulse.lists == Some(name)) else {
            return false;
        };
        for report in &mut heartbeat.stores {
            let Some(before) = pulse.stores.iter().find(|before| before.id == report.id) else {
                return false;
            };
            report.disks.clone_from(&before.disks);
            report.shown.clone_from(&before.shown);
        }
        heartbeat.backends.clone_from(&pulse.backends);
        true
    }

    pub fn liveness(&self, host: &HostName, now: Moment) -> Liveness {
        let Some(at) = self.all().nodes.get(host).map(|pulse| pulse.at) else {
            return Liveness::Unheard;
        };
        // Calls run side by side: a heartbeat may be a moment younger than `now`.
        let silent = now.0.saturating_sub(at.0);
        if silent <= SILENT_AFTER {
            Liveness::Up
        } else {
            Liveness::Silent {
                for_ms: silent.as_millis() as u64,
            }
        }
    }

    /// What an accepted store said last.
    pub fn store(&self, host: &HostName, store: StoreId) -> Option<Arc<StoreReport>> {
        let all = self.all();
        let mut stores = all.nodes.get(host)?.stores.iter();
        stores.find(|report| report.id == store).cloned()
    }

    /// Whether a store, wherever it is, was heard to say what it was shown of every disk.
    pub fn has_heard(&self, store: StoreId) -> bool {
        let all = self.all();
        let mut stores = all.nodes.values().flat_map(|pulse| &pulse.stores);
        stores.any(|report| report.id == store && report.all_shown)
    }

    /// What a host's node said last.
    pub fn of(&self, host: &HostName) -> Option<Arc<Pulse>> {
        self.all().nodes.get(host).cloned()
    }

    /// Why a store is refused; the host that shows it may not be the one that it belongs to.
    pub fn refused(&self, store: StoreId) -> Option<StoreFault> {
        let all = self.all();
        if all.refused == 0 {
            return None;
        }
        let mut refused = all.nodes.values().flat_map(|pulse| &pulse.refused);
        refused
            .find(|refused| refused.store == store)
            .map(|refused| refused.why.clone())
    }

    pub fn refused_at(&self, host: &HostName) -> Vec<StoreRefused> {
        let all = self.all();
        all.nodes
            .get(host)
            .map_or(vec![], |pulse| pulse.refused.clone())
    }

    pub fn backend(&self, host: &HostName, backend: BackendId) -> Option<BackendState> {
        let all = self.all();
        let mut backends = all.nodes.get(host)?.backends.iter();
        backends
            .find(|report| report.backend == backend)
            .map(|report| report.state.clone())
    }

    /// The epoch that a backend has open.
    pub fn open_epoch(&self, host: &HostName, backend: BackendId) -> Option<Epoch> {
        let all = self.all();
        let mut backends = all.nodes.get(host)?.backends.iter();
        backends.find(|report| report.backend == backend)?.epoch
    }

    /// The accepted stores of a host.
    pub fn stores_at(&self, host: &HostName) -> Vec<StoreId> {
        let all = self.all();
        let stores = |pulse: &Arc<Pulse>| pulse.stores.iter().map(|report| report.id).collect();
        all.nodes.get(host).map(stores).unwrap_or_default()
    }

    /// How long nothing was heard of a host; none: nothing ever was.
    pub fn silence(&self, host: &HostName, now: Moment) -> Option<Duration> {
        let at = self.all().nodes.get(host)?.at;
        Some(now.0.saturating_sub(at.0))
    }

    /// What each node measured.
    pub fn links(&self) -> Vec<(HostName, LinkReport)> {
        let all = self.all();
        let each = |(host, pulse): (&HostName, &Arc<Pulse>)| -> Vec<(HostName, LinkReport)> {
            let links = pulse.links.iter();
            links.map(|link| (host.clone(), *link)).collect()
        };
        all.nodes.iter().flat_map(each).collect()
    }

    pub fn backends(&self, host: &HostName) -> u64 {
        let all = self.all();
        all.nodes
            .get(host)
            .map_or(0, |pulse| pulse.backends.len() as u64)
    }

    /// Whether one of these stores keeps the disk's record of that revision, or a later one.
    pub fn is_kept(&self, disk: DiskId, revision: Revision, stores: &BTreeSet<StoreId>) -> bool {
        let all = self.all();
        let reports = all.nodes.values().flat_map(|pulse| &pulse.stores);
        let mut shown = reports
            .filter(|report| stores.contains(&report.id))
            .flat_map(|report| &report.shown);
        shown.any(|shown| shown.disk == disk && shown.revision >= Some(revision))
    }

    /// What a disk occupies in each store that has said so.
    pub fn occupied(&self, disk: DiskId) -> Arc<Occupied> {
        let known = self.all().occupied.get(&disk).cloned();
        known.unwrap_or_default()
    }

    fn all(&self) -> MutexGuard<'_, Heard> {
        // Nothing above panics between the two that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
