//! A small fleet to plan over, and the plans that are expected there.

mod follow;
mod orders;
mod placement;
mod precedence;
mod properties;
mod rebalance;
mod repair;
mod telling;

use super::*;
use crate::policy::{Health, HostPlace, Link, Pin, Policy, StorePlace};
use replicator::words::{
    BackendId, Change, DiskId, DiskName, DiskRecord, Entry, Epoch, Extent, ExtentSize, Generation,
    Life, MapRange, Owner, RackName, Revision, State, Version,
};
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) const GIB: u64 = 1 << 30;
pub(super) const NOW: UnixSeconds = UnixSeconds(1_795_298_400);

pub(super) fn dc(name: &str) -> DatacenterName {
    DatacenterName::new(name).unwrap()
}

pub(super) fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

pub(super) fn store(n: u128) -> StoreId {
    StoreId::from_u128(n)
}

pub(super) fn extents(first: u32, end: u32) -> Extents {
    Extents::new(Extent(first), Extent(end))
}

/// A host with one store of this number; `gib` of room.
pub(super) fn add_store(fleet: &mut Topology, n: u128, at: (&str, &str, &str), gib: u64) {
    let (datacenter, rack, name) = at;
    fleet.datacenters.insert(dc(datacenter));
    let place = HostPlace {
        datacenter: Some(dc(datacenter)),
        rack: Some(RackName::new(rack).unwrap()),
    };
    fleet.hosts.insert(host(name), place);
    let place = StorePlace {
        host: host(name),
        capacity_bytes: (gib * GIB).div_ceil(90) * 100,
        used_bytes: 0,
        unwritten_bytes: 0,
        health: Health::Up,
        evacuating: false,
    };
    fleet.stores.insert(store(n), place);
}

pub(super) fn add_link(fleet: &mut Topology, from: &str, to: &str, ms: u64, mib: u64) {
    let link = Link {
        round_trip: Duration::from_millis(ms),
        bytes_per_second: Some(mib << 20),
    };
    fleet.links.insert((dc(from), dc(to)), link);
}

/// tokyo: 1, 2, 3 in racks r1, r1, r2; osaka: 11, 12 in two racks; frankfurt: 21, 22.
pub(super) fn fleet() -> Topology {
    let mut fleet = Topology::default();
    for (n, datacenter, rack, name) in [
        (1, "tokyo", "r1", "t1"),
        (2, "tokyo", "r1", "t2"),
        (3, "tokyo", "r2", "t3"),
        (11, "osaka", "r1", "o1"),
        (12, "osaka", "r2", "o2"),
        (21, "frankfurt", "r1", "f1"),
        (22, "frankfurt", "r2", "f2"),
    ] {
        add_store(&mut fleet, n, (datacenter, rack, name), 1000);
    }
    add_link(&mut fleet, "tokyo", "osaka", 8, 50);
    add_link(&mut fleet, "tokyo", "frankfurt", 230, 20);
    add_link(&mut fleet, "osaka", "frankfurt", 240, 20);
    fleet
}

pub(super) fn policies(files: &[(&str, &str)]) -> Policies {
    let parse = |(name, text): &(&str, &str)| Policy::parse(dc(name), text).unwrap();
    files.iter().map(parse).collect()
}

pub(super) fn owner() -> Owner {
    Owner {
        backend: BackendId::from_u128(7),
        life: Life(7),
        host: host("t1"),
    }
}

pub(super) fn by() -> (BackendId, Life) {
    (owner().backend, owner().life)
}

/// A disk of 16 extents that is open, on these stores.
pub(super) fn disk(stores: &[u128]) -> DiskRecord {
    disk_of(16, stores)
}

pub(super) fn disk_of(count: u32, stores: &[u128]) -> DiskRecord {
    let epoch = Epoch::first(Generation(0));
    DiskRecord {
        id: DiskId::from_u128(1),
        name: DiskName::new("web1").unwrap(),
        bytes: u64::from(count) * ExtentSize::DEFAULT.bytes(),
        extent_size: ExtentSize::DEFAULT,
        copies: 2,
        revision: Revision(0),
        epoch,
        even_below: epoch,
        state: State::Open { owner: owner() },
        map: vec![MapRange {
            extents: extents(0, count),
            history: History(vec![Entry::whole(epoch, stores.iter().map(|n| store(*n)))]),
        }],
    }
}

pub(super) fn apply(record: &DiskRecord, change: &Change) -> DiskRecord {
    record.apply(Generation(0), change).unwrap()
}

pub(super) fn switch(record: &DiskRecord, part: Extents, stores: &[u128]) -> DiskRecord {
    let stores = stores.iter().map(|n| store(*n)).collect();
    let sets = vec![NewSet {
        extents: part,
        stores,
    }];
    apply(record, &Change::Switch { by: by(), sets })
}

/// Everything that a plan depends on, owned.
pub(super) struct Case {
    pub fleet: Topology,
    pub policies: Policies,
    pub record: DiskRecord,
    pub class: Option<crate::policy::ClassName>,
    pub home: Home,
    pub host: Option<HostName>,
    pub pins: Vec<Pin>,
    pub allocated: BTreeMap<StoreId, u64>,
    pub retired: Vec<Retired>,
    pub leaving: Vec<StoreId>,
    pub unreachable: Vec<StoreId>,
    pub now: UnixSeconds,
}

impl Case {
    /// A disk of two copies whose VM runs in `home`, in the small fleet.
    pub fn new(files: &[(&str, &str)], home: &str, stores: &[u128]) -> Case {
        Case {
            fleet: fleet(),
            policies: policies(files),
            record: disk(stores),
            class: None,
            home: Home::new(dc(home)),
            host: None,
            pins: Vec::new(),
            allocated: BTreeMap::new(),
            retired: Vec::new(),
            leaving: Vec::new(),
            unreachable: Vec::new(),
            now: NOW,
        }
    }

    pub fn subject(&self) -> Subject<'_> {
        Subject {
            record: &self.record,
            class: self.class.as_ref(),
            home: &self.home,
            host: self.host.as_ref(),
            pins: &self.pins,
            allocated: &self.allocated,
            retired: &self.retired,
            leaving: &self.leaving,
            unreachable: &self.unreachable,
        }
    }

    pub fn planner(&self) -> Planner<'_> {
        Planner::new(&self.fleet, &self.policies, self.now)
    }

    pub fn plan(&self) -> Plan {
        self.planner().plan(&self.subject())
    }

    pub fn goal(&self) -> Goal {
        self.planner().goal(&self.subject())
    }

    pub fn arrival(&self, at: &str) -> Arrival {
        self.planner().arrival(&self.subject(), &dc(at), None)
    }

    /// The stores of the goal, as numbers; the goal has one range.
    pub fn goal_stores(&self) -> Vec<u128> {
        let goal = self.goal();
        assert_eq!(goal.ranges.len(), 1, "{goal:?}");
        numbers(&goal.ranges[0].stores())
    }

    /// Does what a plan's step says, as the writer and the service would.
    pub fn act(&mut self, action: &Action) {
        let before = self.record.clone();
        match action {
            Action::Switch { sets } => {
                let sets = sets.clone();
                self.record = apply(&self.record, &Change::Switch { by: by(), sets });
            }
            Action::Fill { .. } => {}
            Action::Complete { extents } => {
                for part in extents {
                    self.complete(*part);
                }
            }
            Action::Retire { copies } => {
                for copy in copies.iter().filter(|copy| copy.not_before.is_none()) {
                    self.retired.retain(|retired| retired.store != copy.store);
                }
            }
        }
        self.note_retired(&before);
    }

    fn complete(&mut self, part: Extents) {
        loop {
            let filling = self.record.map.iter().find_map(|range| {
                let inside = part.first <= range.extents.first && range.extents.end <= part.end;
                let entry = range.history.live().find(|entry| inside && !entry.whole)?;
                Some((range.extents, entry.from))
            });
            let Some((extents, from)) = filling else {
                return;
            };
            let change = Change::Complete {
                by: by(),
                extents,
                from,
            };
            self.record = apply(&self.record, &change);
        }
    }

    /// What the service notes when a map stops naming a store.
    fn note_retired(&mut self, before: &DiskRecord) {
        for range in &before.map {
            for store in range.history.0.iter().flat_map(|entry| &entry.stores) {
                for extent in range.extents.iter() {
                    let here = self
                        .record
                        .map
                        .iter()
                        .find(|now| now.extents.contains(extent))
                        .unwrap();
                    let named = here.history.0.iter().any(|entry| entry.has(*store));
                    let part = Extents::new(extent, Extent(extent.0 + 1));
                    let noted = self
                        .retired
                        .iter_mut()
                        .find(|retired| retired.store == *store);
                    match noted {
                        _ if named => {}
                        Some(retired) if retired.extents.contains(&part) => {}
                        Some(retired) => retired.extents.push(part),
                        None => self.retired.push(Retired {
                            store: *store,
                            extents: vec![part],
                            since: self.now,
                            ejected: false,
                        }),
                    }
                }
            }
        }
    }
}

pub(super) fn numbers(stores: &[StoreId]) -> Vec<u128> {
    stores.iter().map(|store| store.as_u128()).collect()
}

/// The steps in short: `switch 11 12`, `fill`, `complete`, `retire 1 2`.
pub(super) fn story(plan: &Plan) -> Vec<String> {
    let list = |stores: &mut dyn Iterator<Item = StoreId>| {
        let stores: Vec<String> = stores.map(|store| store.as_u128().to_string()).collect();
        stores.join(" ")
    };
    let one = |step: &Step| match &step.action {
        Action::Switch { sets } => {
            let sets: Vec<String> = sets
                .iter()
                .map(|set| match sets.len() {
                    1 if set.extents.first == Extent(0) => list(&mut set.stores.iter().copied()),
                    _ => format!("{}: {}", set.extents, list(&mut set.stores.iter().copied())),
                })
                .collect();
            format!("switch {}", sets.join(", "))
        }
        Action::Fill { .. } => "fill".into(),
        Action::Complete { .. } => "complete".into(),
        Action::Retire { copies } => {
            format!("retire {}", list(&mut copies.iter().map(|copy| copy.store)))
        }
    };
    plan.steps.iter().map(one).collect()
}
