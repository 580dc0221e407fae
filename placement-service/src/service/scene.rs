//! The fleet and its disks as the planner is told of them: from the catalog, and from what nodes said.

use super::Service;
use super::fleet::unwritten;
use super::pulse::{Moment, Occupied};
use super::retire::for_planner;
use super::terms::Places;
use crate::api::{StoreOrderKind, Wanted};
use crate::catalog::CatalogError;
use crate::model::{
    Attachments, DatacenterRecord, HostRecord, Kept, MoveRecord, RetiredCopy, StoreRecord,
    StoreState, Terms, key, list, load,
};
use crate::planner::{Planner, Retired, Subject};
use crate::policy::{Health, HostPlace, Policies, StorePlace, Topology, UnixSeconds};
use replicator::words::{DatacenterName, DiskRecord, HostName, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) struct Scene {
    pub topology: Topology,
    pub policies: Arc<Policies>,
    pub places: Arc<Places>,
    pub wall: UnixSeconds,
    pub now: Moment,
}

impl Scene {
    pub fn planner(&self) -> Planner<'_> {
        Planner::new(&self.topology, &self.policies, self.wall)
    }

    pub fn is_well(&self, store: StoreId) -> bool {
        let place = self.topology.stores.get(&store);
        place.is_some_and(|place| place.health == Health::Up)
    }

    /// Each once, in order.
    pub fn datacenters(&self, stores: impl IntoIterator<Item = StoreId>) -> Vec<DatacenterName> {
        let stores = stores.into_iter();
        let mut names: Vec<DatacenterName> = stores
            .filter_map(|store| self.places.datacenter(store).cloned())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// One disk, with all that is kept about it.
pub(super) struct DiskNow {
    pub record: Kept<DiskRecord>,
    pub terms_kept: Option<Kept<Terms>>,
    pub terms: Terms,
    pub attachments_kept: Option<Kept<Attachments>>,
    pub attachments: Attachments,
    pub retired_kept: Option<Kept<Vec<RetiredCopy>>>,
    pub moving: Option<Kept<MoveRecord>>,
    pub allocated: Arc<Occupied>,
    /// Where its VM runs.
    pub host: Option<HostName>,
    retired: Vec<Retired>,
    /// Stores that its writer lately called in vain.
    unreachable: Vec<StoreId>,
}

impl DiskNow {
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            record: &self.record.value,
            class: self.terms.class.as_ref(),
            home: &self.terms.home,
            host: self.host.as_ref(),
            pins: &self.terms.pins,
            allocated: &self.allocated,
            retired: &self.retired,
            leaving: self.moving().map_or(&[], |moving| &moving.leaves[..]),
            unreachable: &self.unreachable,
        }
    }

    pub fn retired(&self) -> &[RetiredCopy] {
        self.retired_kept
            .as_ref()
            .map_or(&[], |kept| &kept.value[..])
    }

    pub fn moving(&self) -> Option<&MoveRecord> {
        self.moving.as_ref().map(|kept| &*kept.value)
    }
}

impl Service {
    pub(super) fn scene(&self, now: Moment) -> Result<Scene, CatalogError> {
        let unwritten = self.unwritten()?;
        let mut topology = Topology::default();
        for kept in list::<DatacenterRecord>(&*self.catalog, key::DATACENTERS)? {
            topology.datacenters.insert(kept.into_value().name);
        }
        for kept in list::<HostRecord>(&*self.catalog, key::HOSTS)? {
            let host = kept.into_value();
            let place = HostPlace {
                datacenter: Some(host.datacenter),
                rack: Some(host.rack),
            };
            topology.hosts.insert(host.name, place);
        }
        let states = self.store_states()?;
        for kept in list::<StoreRecord>(&*self.catalog, key::STORES)? {
            let StoreRecord { id, host, .. } = kept.into_value();
            let state = states.get(&id);
            let ordered = state.and_then(|state| Some(state.order.as_ref()?.kind));
            let report = self.pulses.store(&host, id);
            let place = StorePlace {
                health: self.health(id, &host, state, now),
                evacuating: ordered == Some(StoreOrderKind::Evacuate),
                capacity_bytes: report.as_ref().map_or(0, |report| report.capacity_bytes),
                used_bytes: report.as_ref().map_or(0, |report| report.used_bytes),
                unwritten_bytes: unwritten.get(&id).copied().unwrap_or(0),
                host,
            };
            topology.stores.insert(id, place);
        }
        let places = self.places()?;
        topology.links = self.measured_links(&places);
        Ok(Scene {
            topology,
            policies: self.policies()?,
            places,
            wall: self.wall(now),
            now,
        })
    }

    /// As of the last look at all disks, and of those made and deleted since.
    pub(super) fn unwritten(&self) -> Result<Arc<BTreeMap<StoreId, u64>>, CatalogError> {
        // Not in the match: the lock would be held through it.
        let known = self.course().unwritten();
        match known {
            Some(known) => Ok(known),
            None => self.count_unwritten(),
        }
    }

    /// Reads every disk: what the stores' disks promise and have not written yet.
    pub(super) fn count_unwritten(&self) -> Result<Arc<BTreeMap<StoreId, u64>>, CatalogError> {
        let counted = Arc::new(unwritten(self)?);
        self.course().set_unwritten(counted.clone());
        Ok(counted)
    }

    pub(super) fn health(
        &self,
        store: StoreId,
        host: &HostName,
        state: Option<&StoreState>,
        now: Moment,
    ) -> Health {
        let ordered = state.and_then(|state| Some(state.order.as_ref()?.kind));
        // What its own host shows. A copy of it that is shown elsewhere says nothing of the right one.
        let shown = self.pulses.refused_at(host);
        let refused = shown.iter().any(|refused| refused.store == store);
        if ordered == Some(StoreOrderKind::Lost) || refused {
            return Health::Gone;
        }
        if self.is_up(store, host, now) {
            return Health::Up;
        }
        // What was kept goes further back than this service, and than the host's silence.
        let kept = state.and_then(|state| state.away_since);
        Health::Silent {
            since: kept.unwrap_or_else(|| self.away_since(host, now)),
        }
    }

    /// Whether the fleet is known well enough to decide anything: every node has been heard, or has been
    /// silent for so long that it counts as silent.
    pub(crate) fn fleet_is_known(&self, now: Moment) -> Result<bool, CatalogError> {
        if now.0 > crate::node_protocol::SILENT_AFTER {
            return Ok(true);
        }
        let hosts = list::<HostRecord>(&*self.catalog, key::HOSTS)?;
        let heard = |host: &Kept<HostRecord>| self.pulses.silence(&host.value.name, now).is_some();
        Ok(hosts.iter().all(heard))
    }

    pub(super) fn disk_now(
        &self,
        record: Kept<DiskRecord>,
        scene: &Scene,
    ) -> Result<DiskNow, CatalogError> {
        let id = record.value.id;
        let (terms_kept, terms) = self.terms(&record.value, &scene.places)?;
        let attachments_kept = self.attachments(id)?;
        let attachments = attachments_kept.clone().map(Kept::into_value);
        let attachments = attachments.unwrap_or_default();
        let retired_kept = self.retired_copies(id)?;
        let retired = retired_kept
            .as_ref()
            .map_or(Vec::new(), |kept| for_planner(&kept.value));
        let runs = |wanted| wanted == Wanted::Attached;
        let main = attachments.main().filter(|main| runs(main.wanted));
        let host = main.and_then(|main| main.place.node()).cloned();
        let writer = record.value.owner().map(|owner| owner.backend);
        let unreachable = writer.map(|backend| self.course().unreachable(backend, scene.now));
        Ok(DiskNow {
            terms_kept,
            terms,
            attachments,
            attachments_kept,
            retired,
            retired_kept,
            moving: load::<MoveRecord>(&*self.catalog, &key::moving(id))?,
            allocated: self.pulses.occupied(id),
            host,
            unreachable: unreachable.unwrap_or_default(),
            record,
        })
    }
}
