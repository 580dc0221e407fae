//! Whether the catalog's record of a disk is the newest there is. It always is, unless the catalog is an
//! older copy of itself: restored from a backup, or lost and begun anew. The stores know better then, for
//! each keeps the highest epoch that it was shown, and the record that went with it.
//!
//! A disk in doubt gets no epoch, is not moved, and nothing of it is deleted; whatever serves it goes on.

use super::{Kind, Service, ServiceError};
use crate::api::{StoreOrderKind, Wanted};
use crate::catalog::{CatalogError, Transaction};
use crate::model::{Kept, Unverified, json, key, list, load, load_disk};
use crate::node_protocol::{BackendReport, DesiredAttachment, StoreReport};
use replicator::plant::{Plant, planted};
use replicator::words::{DiskId, DiskName, DiskRecord, Epoch, HostName, Revision, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// What stores have been shown, as they said since this service started.
#[derive(Default)]
pub(super) struct Shown {
    /// Of each disk the latest, and who said so.
    latest: BTreeMap<DiskId, (Epoch, Option<Revision>, StoreId)>,
    /// Disks of which the catalog has an older record than somebody was shown.
    behind: BTreeSet<DiskId>,
    /// The catalog itself is an older copy, or new: nothing in it counts before the stores were heard.
    pub unverified: Option<Unverified>,
    /// It has, or had, disks: a catalog that was lost has none.
    has_disks: bool,
}

impl Shown {
    /// No record is in doubt.
    pub(super) fn is_sound(&self) -> bool {
        self.unverified.is_none() && self.behind.is_empty()
    }

    /// These were asked what they keep of a disk, and this is the latest. A later one of the same epoch that one of
    /// them once spoke of is gone: nodes of an earlier version spoke of what was not on media yet.
    pub(super) fn agreed(&mut self, record: &DiskRecord, answered: &BTreeSet<StoreId>) {
        if let Some((epoch, revision, store)) = self.latest.get_mut(&record.id)
            && *epoch == record.epoch
            && answered.contains(store)
        {
            *revision = Some(record.revision);
        }
    }
}

/// Why a record is not relied upon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Doubt {
    Behind {
        store: StoreId,
        shown: Epoch,
        record: Epoch,
    },
    /// Since the catalog was restored these have not said what they were shown.
    Unheard(Vec<StoreId>),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doubt::Behind {
                store,
                shown,
                record,
            } => write!(
                f,
                "the catalog has an older record of the disk (epoch {record}) than store {store} was shown (epoch {shown}): it was restored from a backup or lost"
            ),
            Doubt::Unheard(stores) => {
                let stores: Vec<String> = stores.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "the catalog was restored, and what stores have been shown since is not known before all have answered; silent: {} (declare those lost that are gone for good)",
                    stores.join(", ")
                )
            }
        }
    }
}

/// What to do about it.
pub(super) const REBUILD: &str = "rebuild the records from the stores: `ukai placement rebuild --from-stores --plan` shows what that would do";

impl Service {
    /// Takes in what a node's stores say.
    pub(super) fn hear_shown(&self, stores: &[Arc<StoreReport>]) -> Result<(), CatalogError> {
        let mut news = BTreeSet::new();
        {
            let mut shown = self.shown_epochs();
            for report in stores {
                for disk in &report.shown {
                    let said = (disk.epoch, disk.revision, report.id);
                    let known = shown.latest.get(&disk.disk);
                    if known.is_none_or(|known| (known.0, known.1) < (said.0, said.1)) {
                        shown.latest.insert(disk.disk, said);
                        news.insert(disk.disk);
                    }
                }
            }
        }
        for disk in news {
            self.look_behind(disk)?;
        }
        Ok(())
    }

    /// Compares once more what the catalog has of a disk with what stores were shown.
    pub(super) fn look_behind(&self, disk: DiskId) -> Result<(), CatalogError> {
        let record = load_disk(&*self.catalog, disk)?;
        let behind = record.is_some_and(|record| self.behind(&record.value).is_some());
        let mut shown = self.shown_epochs();
        let changed = match behind {
            true => shown.behind.insert(disk),
            false => shown.behind.remove(&disk),
        };
        drop(shown);
        if changed && behind {
            tracing::error!(%disk, "the catalog has an older record of the disk than its stores were shown; {REBUILD}");
        }
        Ok(())
    }

    /// Why this record, as it was just read, is not relied upon.
    pub(super) fn doubt(&self, record: &DiskRecord) -> Option<Doubt> {
        if let Some(behind) = self.behind(record) {
            return Some(behind);
        }
        if planted(Plant::DoubtIgnored) {
            return None;
        }
        self.shown_epochs().unverified.as_ref()?;
        let unheard = |store: &StoreId| !self.pulses.has_heard(*store);
        let mut silent: BTreeSet<StoreId> = record.stores().into_iter().filter(unheard).collect();
        // What cannot be read now says nothing either.
        silent.extend(self.stores_but(unheard).unwrap_or_else(|_| record.stores()));
        (!silent.is_empty()).then(|| Doubt::Unheard(silent.into_iter().collect()))
    }

    /// Of all stores that the catalog knows and nobody declared lost those of which this is true. Any of them may
    /// have been shown a later epoch of any disk than those that the disk's record names: members that were
    /// replaced before they were ever written to, or were out of reach at that moment, have not heard of it.
    pub(super) fn stores_but(
        &self,
        of: impl Fn(&StoreId) -> bool,
    ) -> Result<Vec<StoreId>, CatalogError> {
        let (places, states) = (self.places()?, self.store_states()?);
        let is_lost = |store: &StoreId| {
            let order = states.get(store).and_then(|state| state.order.as_ref());
            order.is_some_and(|order| order.kind == StoreOrderKind::Lost)
        };
        let all = places.stores.keys().copied();
        Ok(all.filter(|store| of(store) && !is_lost(store)).collect())
    }

    /// Who was shown a later record than this one, and is none of these; and of which epoch.
    pub(super) fn knew_better(
        &self,
        record: &DiskRecord,
        answered: &BTreeSet<StoreId>,
    ) -> Option<(StoreId, Epoch)> {
        match self.behind(record)? {
            Doubt::Behind { store, shown, .. } if !answered.contains(&store) => {
                Some((store, shown))
            }
            _ => None,
        }
    }

    fn behind(&self, record: &DiskRecord) -> Option<Doubt> {
        if planted(Plant::DoubtIgnored) {
            return None;
        }
        let shown = self.shown_epochs();
        let (epoch, revision, store) = *shown.latest.get(&record.id)?;
        let known = (record.epoch, Some(record.revision));
        ((epoch, revision) > known).then_some(Doubt::Behind {
            store,
            shown: epoch,
            record: record.epoch,
        })
    }

    /// What there is of it, for `ukai status`.
    pub(super) fn doubts(&self) -> Result<Vec<String>, CatalogError> {
        let (unverified, none) = {
            let shown = self.shown_epochs();
            (shown.unverified.clone(), shown.behind.is_empty())
        };
        if unverified.is_none() && none {
            return Ok(Vec::new());
        }
        let mut lines = Vec::new();
        let mut unheard = 0;
        for record in list::<DiskRecord>(&*self.catalog, key::DISKS)? {
            match self.doubt(&record.value) {
                Some(doubt @ Doubt::Behind { .. }) => {
                    lines.push(format!("disk {}: {doubt}", record.value.name));
                }
                Some(Doubt::Unheard(_)) => unheard += 1,
                None => {}
            }
        }
        match unheard {
            0 => {}
            1 => {
                lines.push("1 disk is left as it is until all of its stores have been heard".into())
            }
            more => lines.push(format!(
                "{more} disks are left as they are until all of their stores have been heard"
            )),
        }
        let why = unverified.map(|unverified| unverified.why);
        let why = why.unwrap_or_else(|| "stores know better".into());
        lines.insert(0, format!("the catalog is an older one: {why}; {REBUILD}"));
        Ok(lines)
    }

    /// For an operator who wants it attached, moved or deleted: `what` is not done while it is in doubt.
    pub(super) fn not_in_doubt(&self, record: &DiskRecord, what: &str) -> Result<(), ServiceError> {
        match self.doubt(record) {
            None => Ok(()),
            Some(doubt) => Err(ServiceError::new(
                Kind::NotNow,
                format!("disk {} cannot be {what}", record.name),
                doubt.to_string(),
                REBUILD,
            )),
        }
    }

    /// Whether what serves this disk is left alone, whatever the catalog says: in doubt, or not known to a
    /// catalog that may have known it.
    pub(super) fn leaves_alone(&self, disk: DiskId) -> Result<bool, CatalogError> {
        let (unverified, behind) = {
            let shown = self.shown_epochs();
            (shown.unverified.is_some(), shown.behind.contains(&disk))
        };
        if !unverified {
            return Ok(behind);
        }
        match load_disk(&*self.catalog, disk)? {
            Some(record) => Ok(self.doubt(&record.value).is_some()),
            None => self.may_be_forgotten(disk),
        }
    }

    /// Whether a disk that this catalog does not know may be one that it has lost: it was restored, or knows
    /// no disk at all.
    pub(super) fn may_be_forgotten(&self, disk: DiskId) -> Result<bool, CatalogError> {
        if self.catalog.get(&key::dropping(disk))?.is_some() {
            return Ok(false);
        }
        let (unverified, has_disks) = {
            let shown = self.shown_epochs();
            (shown.unverified.is_some(), shown.has_disks)
        };
        Ok(unverified || !(has_disks || self.knows_disks()?))
    }

    /// Whether there are disks in the catalog, or were not long ago.
    fn knows_disks(&self) -> Result<bool, CatalogError> {
        let any = !self.catalog.page(key::DISKS, None)?.is_empty()
            || !self.catalog.page(key::DROPPING, None)?.is_empty();
        if any {
            self.shown_epochs().has_disks = true;
        }
        Ok(any)
    }

    /// A node runs backends, and the catalog knows no disk at all: it is not a new cluster, but one that has
    /// lost its catalog.
    pub(super) fn notice_loss(&self, backends: &[BackendReport]) -> Result<(), CatalogError> {
        let is_settled = {
            let shown = self.shown_epochs();
            shown.has_disks || shown.unverified.is_some()
        };
        if backends.is_empty() || is_settled {
            return Ok(());
        }
        if self.knows_disks()? {
            return Ok(());
        }
        let unverified = Unverified {
            why: "nodes serve disks that this catalog has never known".into(),
        };
        let write = Transaction::new().put(key::UNVERIFIED, json(&unverified));
        let _ = self.catalog.commit(&write)?;
        tracing::error!("{}; {REBUILD}", unverified.why);
        self.shown_epochs().unverified = Some(unverified);
        Ok(())
    }

    /// Of a host's backends those that are left alone, as they are.
    pub(super) fn left_alone(
        &self,
        host: &HostName,
    ) -> Result<Vec<DesiredAttachment>, CatalogError> {
        let mut alone = Vec::new();
        let pulse = self.pulses.of(host);
        for report in pulse.iter().flat_map(|pulse| &pulse.backends) {
            if !self.leaves_alone(report.disk)? {
                continue;
            }
            let record = load_disk(&*self.catalog, report.disk)?;
            let name = match record {
                Some(record) => record.value.name.clone(),
                None => DiskName::new(report.disk.to_string()).expect("an id is a name"),
            };
            alone.push(DesiredAttachment {
                disk: report.disk,
                name,
                backend: report.backend,
                wanted: Wanted::Attached,
                take_over: false,
                orders: None,
                successor: None,
            });
        }
        Ok(alone)
    }

    pub(super) fn shown_epochs(&self) -> std::sync::MutexGuard<'_, Shown> {
        // Each change is one insertion or removal.
        let locked = self.shown.lock();
        locked.unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Every disk is compared anew: after a rebuild.
    pub(super) fn look_behind_all(&self) -> Result<(), CatalogError> {
        for record in list::<DiskRecord>(&*self.catalog, key::DISKS)? {
            self.look_behind(record.value.id)?;
        }
        Ok(())
    }
}

pub(super) fn load_shown(catalog: &dyn crate::catalog::Catalog) -> Result<Shown, CatalogError> {
    let kept = load::<Unverified>(catalog, key::UNVERIFIED)?;
    Ok(Shown {
        unverified: kept.map(Kept::into_value),
        ..Shown::default()
    })
}
