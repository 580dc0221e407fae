//! How far each store's log was known to be on media. A store that comes back with less is an older copy of
//! itself, made while the run that the catalog knows was under way: by its runs it cannot be told from the
//! right one.
//!
//! In memory only, as heartbeats are. What a copy lacks is thereby noticed if it was made more than a heartbeat
//! before the store stopped, and the placement service has heard the store since it leads.

use crate::node_protocol::{LogPlace, StoreFault, StoreReport};
use replicator::words::StoreId;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default)]
pub(super) struct Reached(Mutex<BTreeMap<StoreId, LogPlace>>);

impl Reached {
    /// Takes in what an accepted store says.
    pub fn hear(&self, report: &StoreReport) {
        let Some(log) = report.log else { return };
        let mut all = self.all();
        let reached = all.entry(report.id).or_insert(log.synced);
        *reached = log.synced.max(*reached);
    }

    /// Of a store that begins another run: whether it lacks what it had.
    pub fn lacks(&self, report: &StoreReport) -> Option<StoreFault> {
        let began = report.log?.began;
        let reached = *self.all().get(&report.id)?;
        (began < reached).then_some(StoreFault::Shortened)
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<StoreId, LogPlace>> {
        // Each change is one insertion.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
