//! What a disk's backends are told: its writer what the move under way wants, and whoever may open it what
//! policy wants where it is.

use super::{Deciding, Decision};
use crate::api::{MoveKind, MoveState, Wanted};
use crate::model::{Attachment, MoveRecord};
use crate::planner::{Retired, Subject};
use replicator::words::{
    BackendId, Change, DatacenterName, DiskRecord, Generation, HostName, Life, NewSet, Owner, State,
};
use replicator::writer::{FillOrders, Orders};
use std::collections::BTreeSet;

impl Deciding<'_> {
    pub(super) fn orders(&self, decision: &mut Decision) {
        let moving = decision.moving.as_ref();
        let owner = self.writer().map(|writer| writer.backend);
        for attachment in &self.disk.attachments.0 {
            let orders = match attachment.wanted {
                Wanted::Detached => continue,
                _ if Some(attachment.backend) == owner => self.for_writer(moving),
                Wanted::Copying => self.for_writer(moving),
                Wanted::Attached | Wanted::Standby => self.for_arrival(attachment, moving),
            };
            decision.orders.insert(attachment.backend, orders);
        }
    }

    fn for_writer(&self, moving: Option<&MoveRecord>) -> Orders {
        let goes =
            moving.is_some_and(|m| m.kind == MoveKind::Move && m.state == MoveState::Switching);
        let sets = self.plan.next_sets().filter(|_| goes).unwrap_or_default();
        let seeds = moving.filter(|m| m.kind == MoveKind::Prepare && !m.paused);
        Orders {
            sets: sets.to_vec(),
            seed: seeds.map(|m| m.seeds.clone()).unwrap_or_default(),
            fill: self.fill(sets, moving),
            verify: None,
            min_copies: self.planner.min_copies(&self.disk.subject()),
        }
    }

    /// For a backend that may open the disk: it begins with what policy wants where it is.
    fn for_arrival(&self, attachment: &Attachment, moving: Option<&MoveRecord>) -> Orders {
        let Some(at) = self.datacenter_of(attachment) else {
            return Orders::default();
        };
        let with_seeds = self.with_seeds(moving);
        let subject = Subject {
            retired: &with_seeds,
            ..self.disk.subject()
        };
        let arrival = self.planner.arrival(&subject, at, attachment.place.node());
        let fill = self.fill(&arrival.sets, None);
        Orders {
            sets: arrival.sets,
            seed: Vec::new(),
            fill,
            verify: None,
            min_copies: self.planner.min_copies(&self.disk.subject()),
        }
    }

    /// Copies that were made ahead are as good a reason to choose a store as ones that were kept.
    fn with_seeds(&self, moving: Option<&MoveRecord>) -> Vec<Retired> {
        let mut retired = self.disk.subject().retired.to_vec();
        let seeds = moving.into_iter().flat_map(MoveRecord::each);
        for set in seeds.flat_map(|m| &m.seeds) {
            retired.extend(set.stores.iter().map(|store| Retired {
                store: *store,
                extents: vec![set.extents],
                since: self.scene.wall,
                ejected: false,
            }));
        }
        retired
    }

    /// The limits that hold once `sets` are the members.
    fn fill(&self, sets: &[NewSet], moving: Option<&MoveRecord>) -> FillOrders {
        let switched = switched(self.record(), sets);
        let record = switched.as_ref().unwrap_or(self.record());
        let subject = Subject {
            record,
            ..self.disk.subject()
        };
        let ahead = moving.filter(|m| m.kind == MoveKind::Prepare);
        let seeds = ahead.map_or(&[][..], |m| &m.seeds);
        let filling = record.map.iter().flat_map(|range| range.history.live());
        let targets = filling
            .filter(|e| !e.whole)
            .flat_map(|e| e.stores.iter().copied())
            .chain(seeds.iter().flat_map(|set| set.stores.iter().copied()));
        let places: BTreeSet<DatacenterName> =
            self.scene.datacenters(targets).into_iter().collect();
        let sharing = places.iter().filter_map(|dc| self.seen.filling.get(dc));
        let sharing = sharing.max().copied().unwrap_or(1);
        let mut limits = self.planner.limits(&subject, sharing);
        let ahead = self.planner.seed_limits(&subject, seeds, sharing);
        let both = limits
            .bytes_per_second
            .into_iter()
            .chain(ahead.bytes_per_second);
        limits.bytes_per_second = both.min();
        let own = moving.and_then(|m| m.own_limit);
        FillOrders {
            paused: moving.is_some_and(|m| m.paused) || limits.paused_until.is_some(),
            bytes_per_second: own.or(limits.bytes_per_second),
            // What an operator orders for this move is meant as it is.
            yields: own.is_none(),
        }
    }
}

/// The record as a writer would make it of these sets; none: it could not.
fn switched(record: &DiskRecord, sets: &[NewSet]) -> Option<DiskRecord> {
    if sets.is_empty() {
        return None;
    }
    let somebody = Owner {
        backend: BackendId::from_u128(0),
        life: Life(0),
        host: HostName::new("planned").expect("a name"),
    };
    let by = (somebody.backend, somebody.life);
    let open = DiskRecord {
        state: State::Open { owner: somebody },
        ..record.clone()
    };
    let sets = sets.to_vec();
    let generation: Generation = record.epoch.generation();
    open.apply(generation, &Change::Switch { by, sets }).ok()
}
