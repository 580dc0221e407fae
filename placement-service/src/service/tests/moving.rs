//! Disks that follow their VMs, over nodes that do what they are told. Each story is told twice: with one
//! service, and with a service that is killed and started anew before every step (I8).

use super::{FROM, GIB, backend, disk, host, node, store, store_id};
use crate::api::{
    AddCopy, AddPin, ApplyPolicy, Attach, Control, CreateDisk, Detach, DropCopy, Evacuate,
    LiftPins, Move, MoveDisk, MoveState, MoveWhy, Place, PolicyText, PrepareDisk, Wanted,
};
use crate::catalog::{Catalog, Committed, MemoryCatalog, Transaction};
use crate::model::{Attachment, json, key};
use crate::node_protocol::{
    BackendReport, BackendState, Desired, DiskShown, DiskUse, DropReplica, Heartbeat, LinkReport,
    Lists, Request, Response, SILENT_AFTER, StoreReport,
};
use crate::planner::Target;
use crate::policy::{Hold, UnixSeconds, Until};
use crate::service::decide::begin;
use crate::service::wish::put_attachments;
use crate::service::{AttachState, DetachState, Kind, Moment, Service, ServiceError};
use replicator::words::{
    BackendId, Change, DatacenterName, DiskId, DiskRecord, ExtentSize, Life, NewSet, Owner,
    RackName, Seq, StoreId, Version,
};
use replicator::writer::{Orders, Progress};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Noon: no window is near.
const START: UnixSeconds = UnixSeconds(1_795_262_400);
const NODES: [(&str, &str, &str, u128); 5] = [
    ("t1", "tokyo", "r1", 1),
    ("t2", "tokyo", "r2", 2),
    ("t3", "tokyo", "r3", 3),
    ("o1", "osaka", "r1", 11),
    ("o2", "osaka", "r2", 12),
];

/// A backend as its node runs it.
#[derive(Clone, Default)]
pub(super) struct Runs {
    disk: Option<DiskId>,
    wanted: Option<Wanted>,
    pub orders: Orders,
    successor: Option<BackendId>,
}

pub(super) struct World {
    catalog: Arc<MemoryCatalog>,
    pub service: Service,
    started: UnixSeconds,
    pub now: Moment,
    dies_each_step: bool,
    /// A service that is started anew has waited for so long as it takes to know that others are silent.
    pub outlives_silence: bool,
    /// By node.
    pub running: BTreeMap<&'static str, BTreeMap<BackendId, Runs>>,
    pub down: BTreeSet<&'static str>,
    /// Stores that have deleted nothing yet although they were told to.
    slow: BTreeSet<StoreId>,
    pub dropped: BTreeMap<StoreId, Vec<DropReplica>>,
    hindrance: Option<String>,
    /// Writers die before they tell stores how the record has become.
    stores_hear_nothing: bool,
    pub fills: bool,
    ids: u128,
}

fn dc(name: &str) -> DatacenterName {
    DatacenterName::new(name).unwrap()
}

pub(super) fn stores(sets: &[NewSet]) -> Vec<u128> {
    let mut all: Vec<u128> = sets
        .iter()
        .flat_map(|set| set.stores.iter().map(|store| store.as_u128()))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Runs `story` with a service that lives, and with one that dies before each step.
pub(super) fn twice(story: impl Fn(&mut World)) {
    for dies_each_step in [false, true] {
        story(&mut World::new(dies_each_step));
    }
}

impl World {
    pub fn new(dies_each_step: bool) -> World {
        let catalog = Arc::new(MemoryCatalog::new());
        let mut world = World {
            service: Service::new(catalog.clone(), START).unwrap(),
            catalog,
            started: START,
            now: Moment(Duration::ZERO),
            dies_each_step,
            outlives_silence: false,
            running: NODES.iter().map(|node| (node.0, BTreeMap::new())).collect(),
            down: BTreeSet::new(),
            slow: BTreeSet::new(),
            dropped: BTreeMap::new(),
            hindrance: None,
            stores_hear_nothing: false,
            fills: true,
            ids: 1000,
        };
        world.step();
        world
    }

    /// Time passes, nodes speak, the service looks, writers do what they were told.
    pub fn step(&mut self) {
        self.now.0 += Duration::from_secs(3);
        if self.dies_each_step {
            self.die();
        }
        self.beat();
        self.look();
        self.beat();
        self.write();
    }

    pub fn steps(&mut self, count: usize) {
        (0..count).for_each(|_| self.step());
    }

    fn die(&mut self) {
        self.started = self.started.after(self.now.0);
        self.now = Moment(Duration::ZERO);
        self.service = Service::new(self.catalog.clone(), self.started).unwrap();
        if self.outlives_silence {
            self.now.0 += SILENT_AFTER + Duration::from_secs(1);
        }
    }

    /// Nobody speaks meanwhile, and nobody looks.
    pub fn pass_time(&mut self, time: Duration) {
        self.now.0 += time;
    }

    fn look(&mut self) {
        let ids = &mut self.ids;
        let mut fresh = || {
            *ids += 1;
            backend(*ids)
        };
        self.service.course().look_at_all();
        self.service.pass(self.now, &mut fresh).unwrap();
    }

    fn beat(&mut self) {
        for node in NODES {
            if !self.down.contains(node.0) {
                // A node acts upon the first answer and says so in the next heartbeat.
                let desired = self.say(node, 0);
                self.follow(node.0, &desired);
                let desired = self.say(node, desired.digest);
                self.follow(node.0, &desired);
            }
        }
    }

    fn say(
        &self,
        (name, datacenter, rack, number): (&'static str, &str, &str, u128),
        seen: u64,
    ) -> Desired {
        let backends = self.running[name].iter().map(|(id, runs)| BackendReport {
            disk: runs.disk.unwrap(),
            backend: *id,
            state: BackendState::Ready {
                socket: format!("/run/ukai/{name}.sock"),
                status: String::new(),
            },
            epoch: None,
            stall: None,
            hindrance: self.hindrance.clone(),
            verdict: None,
            unreachable: vec![],
            progress: Some(self.progress(runs)),
        });
        let disks = self.service.disks(self.now).unwrap();
        let disks = disks.iter().map(|disk| DiskUse {
            disk: disk.id,
            allocated_bytes: GIB / 2,
        });
        let records = self.service.disks(self.now).unwrap();
        let records = records.iter().map(|disk| self.record_of(disk.id));
        let kept = records.filter(|record| record.stores().contains(&store_id(number)));
        let shown = kept.map(|record| DiskShown {
            disk: record.id,
            epoch: record.epoch,
            revision: (!self.stores_hear_nothing).then_some(record.revision),
        });
        let report = StoreReport {
            disks: disks.collect(),
            shown: shown.collect(),
            dropped_replicas: self
                .dropped
                .get(&store_id(number))
                .cloned()
                .unwrap_or_default(),
            ..store(number)
        };
        let heartbeat = Heartbeat {
            datacenter: dc(datacenter),
            rack: RackName::new(rack).unwrap(),
            listen: "0.0.0.0:7000".parse().unwrap(),
            stores: vec![report],
            backends: backends.collect(),
            links: vec![],
            seen,
            lists: Lists::default(),
        };
        let request = Request::Heartbeat(heartbeat);
        match self.service.handle(&node(name), FROM, request, self.now) {
            Response::Desired(desired) => desired,
            other => panic!("{other:?}"),
        }
    }

    fn progress(&self, runs: &Runs) -> Progress {
        let record = self.record_of(runs.disk.unwrap());
        let filling = record.map.iter().filter(|range| !range.history.is_whole());
        Progress {
            extents: filling.map(|range| u64::from(range.extents.count())).sum(),
            copied_bytes: 4096,
            ..Progress::default()
        }
    }

    fn follow(&mut self, name: &'static str, desired: &Desired) {
        for drop in &desired.drop_replicas {
            if !self.slow.contains(&drop.store) {
                self.dropped
                    .entry(drop.store)
                    .or_default()
                    .push(drop.clone());
            }
        }
        let mut ended = Vec::new();
        let running = self.running.get_mut(name).unwrap();
        for (id, runs) in running.iter_mut() {
            match desired.attachments.iter().find(|a| a.backend == *id) {
                Some(a) if a.wanted != Wanted::Detached => {
                    runs.wanted = Some(a.wanted);
                    runs.successor = a.successor;
                    if let Some(orders) = &a.orders {
                        runs.orders = orders.clone();
                    }
                }
                _ => ended.push((*id, runs.disk.unwrap())),
            }
        }
        for (id, disk) in ended {
            // As a node does: what is open is closed first, if that is still allowed.
            self.close(name, disk, id);
            self.running.get_mut(name).unwrap().remove(&id);
        }
        for attachment in &desired.attachments {
            let running = self.running.get_mut(name).unwrap();
            let known = running.contains_key(&attachment.backend);
            if attachment.wanted == Wanted::Detached || known {
                continue;
            }
            let runs = Runs {
                disk: Some(attachment.disk),
                wanted: Some(attachment.wanted),
                orders: attachment.orders.clone().unwrap_or_default(),
                successor: attachment.successor,
            };
            running.insert(attachment.backend, runs);
            if attachment.wanted == Wanted::Copying {
                self.open(name, attachment.disk, attachment.backend);
            }
        }
    }

    /// Writers switch, fill and call whole what they were told to.
    fn write(&mut self) {
        let running: Vec<(&'static str, BackendId, Runs)> = self
            .running
            .iter()
            .flat_map(|(name, all)| all.iter().map(|(id, runs)| (*name, *id, runs.clone())))
            .collect();
        for (name, id, runs) in running {
            let disk = runs.disk.unwrap();
            if !self.is_open_by(disk, id) || self.down.contains(name) {
                continue;
            }
            let by = (id, Life(1));
            let record = self.record_of(disk);
            if !runs.orders.sets.is_empty() {
                if !self.can_switch(name, disk, id, &runs.orders) {
                    continue;
                }
                let record = self.record_of(disk);
                let sets = runs.orders.sets.clone();
                if let Ok(next) =
                    record.apply(record.epoch.generation(), &Change::Switch { by, sets })
                    && next.members() != record.members()
                {
                    let sets = runs.orders.sets.clone();
                    self.swap(name, disk, id, Change::Switch { by, sets });
                    continue;
                }
            }
            let fills = self.fills && self.hindrance.is_none() && !runs.orders.fill.paused;
            for range in record.map.iter().filter(|range| !range.history.is_whole()) {
                let from = range
                    .history
                    .live()
                    .find(|entry| !entry.whole)
                    .unwrap()
                    .from;
                if fills {
                    let extents = range.extents;
                    self.swap(name, disk, id, Change::Complete { by, extents, from });
                }
            }
        }
    }

    /// A writer calls those that are to join, and syncs its members; one that does not answer it ejects, if enough
    /// others are left.
    fn can_switch(&self, name: &str, disk: DiskId, id: BackendId, orders: &Orders) -> bool {
        let is_down = |store: &StoreId| {
            let mut nodes = NODES.iter().filter(|node| store_id(node.3) == *store);
            nodes.any(|node| self.down.contains(node.0))
        };
        let record = self.record_of(disk);
        let members = record.members();
        let mut joining = orders.sets.iter().flat_map(|set| &set.stores);
        if joining.any(|store| is_down(store) && !members.contains(store)) {
            return false;
        }
        let by = (id, Life(1));
        let stores: Vec<StoreId> = members.into_iter().filter(|s| is_down(s)).collect();
        if stores.is_empty() {
            return true;
        }
        let eject = Change::Eject { by, stores };
        let Ok(left) = record.apply(record.epoch.generation(), &eject) else {
            return false;
        };
        let copies = left.map.iter().map(|range| range.history.copies());
        if copies.min() < Some(usize::from(orders.min_copies)) {
            return false;
        }
        self.swap(name, disk, id, eject);
        true
    }

    pub fn record_of(&self, disk: DiskId) -> DiskRecord {
        match self
            .service
            .handle(&node("t1"), FROM, Request::Record { disk }, self.now)
        {
            Response::Record(record) => record.record,
            other => panic!("{other:?}"),
        }
    }

    fn is_open_by(&self, disk: DiskId, backend: BackendId) -> bool {
        let record = self.record_of(disk);
        record.owner().is_some_and(|owner| owner.backend == backend)
    }

    pub fn swap(&self, name: &str, disk: DiskId, backend: BackendId, change: Change) -> Response {
        let expected = self.record_of(disk).revision;
        let request = Request::Swap {
            disk,
            backend,
            expected,
            change,
        };
        self.service.handle(&node(name), FROM, request, self.now)
    }

    /// The VM's rings start: the backend opens the disk with the members that it was told.
    fn open(&mut self, name: &'static str, disk: DiskId, id: BackendId) -> Response {
        let sets = self.running[name]
            .get(&id)
            .map(|runs| runs.orders.sets.clone());
        let owner = Owner {
            backend: id,
            life: Life(1),
            host: host(name),
        };
        let sets = sets.unwrap_or_default();
        self.swap(name, disk, id, Change::Attach { owner, sets })
    }

    pub fn close(&self, name: &str, disk: DiskId, id: BackendId) -> Option<Response> {
        if !self.is_open_by(disk, id) {
            return None;
        }
        let last = Version::new(self.record_of(disk).epoch, Seq(9));
        let by = (id, Life(1));
        Some(self.swap(
            name,
            disk,
            id,
            Change::Close {
                by,
                last,
                successor: None,
            },
        ))
    }

    pub fn create(&self, name: &str) -> DiskId {
        self.create_of(name, 1)
    }

    /// A disk of so many GiB.
    pub fn create_of(&self, name: &str, gib: u64) -> DiskId {
        let request = CreateDisk {
            name: disk(name),
            bytes: gib * GIB,
            copies: 2,
            extent_size: ExtentSize::DEFAULT,
            datacenter: Some(dc("tokyo")),
            near: Some(host("t1")),
            class: None,
        };
        let id = DiskId::random();
        self.service.create_disk(&request, id, self.now).unwrap();
        id
    }

    pub fn attach(&mut self, name: &str, to: &str) -> BackendId {
        let request = Attach {
            node: host(to),
            take_over: false,
            wait_ms: None,
        };
        self.ids += 1;
        let fresh = backend(self.ids);
        let id = self
            .service
            .attach(&disk(name), &request, fresh, self.now)
            .unwrap();
        self.step();
        id
    }

    /// A disk that is open on t1, on the stores of t1 and another node of tokyo.
    pub fn running_on_t1(&mut self, name: &str) -> (DiskId, BackendId) {
        let id = self.create(name);
        let mine = self.attach(name, "t1");
        let opened = self.open("t1", id, mine);
        assert!(matches!(opened, Response::Swapped(_)), "{opened:?}");
        self.step();
        (id, mine)
    }

    /// The VM migrates: its source closes, its destination opens.
    pub fn migrate(
        &mut self,
        id: DiskId,
        from: (&'static str, BackendId),
        to: (&'static str, BackendId),
    ) {
        let closed = self.close(from.0, id, from.1);
        assert!(matches!(closed, Some(Response::Swapped(_))), "{closed:?}");
        let opened = self.open(to.0, id, to.1);
        assert!(matches!(opened, Response::Swapped(_)), "{opened:?}");
    }

    pub fn members(&self, id: DiskId) -> Vec<u128> {
        let members = self.record_of(id).members();
        members.iter().map(|store| store.as_u128()).collect()
    }

    pub fn moving(&self, name: &str) -> Move {
        self.service.disk_move(&disk(name), self.now).unwrap()
    }

    fn order_move(
        &self,
        name: &str,
        to: &str,
        plan_only: bool,
    ) -> Result<crate::api::Ordered, ServiceError> {
        let request = MoveDisk {
            to: dc(to),
            range: None,
            reason: String::new(),
            plan_only,
        };
        self.service
            .move_disk(&disk(name), &request, "alice", self.now)
    }

    pub fn apply(
        &self,
        datacenter: &str,
        text: &str,
        at_once: u32,
    ) -> Result<crate::api::PolicyDiff, ServiceError> {
        let request = ApplyPolicy {
            text: text.into(),
            at_once: Some(at_once),
        };
        self.service
            .apply_policy(&dc(datacenter), &request, "alice", self.now)
    }
}

#[test]
fn a_disk_follows_its_vm_and_what_is_left_behind_is_dropped_with_a_record() {
    twice(|world| {
        let (id, source) = world.running_on_t1("web1");
        let near = world.members(id);
        let standby = world.attach("web1", "o1");
        let state = world
            .service
            .attach_state(&disk("web1"), standby, world.now);
        let Ok(AttachState::NotOpen(ready)) = state else {
            panic!("{state:?}");
        };
        assert_eq!(ready.standby_of, Some(host("t1")));
        assert_eq!(world.running["t1"][&source].successor, Some(standby));
        assert_eq!(stores(&world.running["o1"][&standby].orders.sets), [11, 12]);
        assert_eq!(world.members(id), near, "a standby changes nothing");

        world.fills = false;
        world.migrate(id, ("t1", source), ("o1", standby));
        assert_eq!(world.members(id), [11, 12], "near from the first write");
        world.step();
        assert!(
            world.running["t1"].is_empty(),
            "the source has lost its disk"
        );
        let view = world.service.disk(&disk("web1"), world.now).unwrap();
        assert_eq!(view.attachment.unwrap().wanted, Wanted::Attached);
        assert_eq!((view.home, view.near_extents), (dc("osaka"), 0));
        world.step();
        let moving = world.moving("web1");
        assert_eq!(moving.state, MoveState::Filling);
        assert_eq!(moving.why, MoveWhy::Arrival(host("o1")));
        assert_eq!(
            (moving.from, moving.to),
            (vec![dc("tokyo")], vec![dc("osaka")])
        );
        assert!(moving.limit.is_some(), "policy's default limit");
        assert!(world.dropped.is_empty(), "the far copies are still needed");

        world.fills = true;
        world.steps(2);
        world.fills = false;
        world.steps(5);
        assert_eq!(world.moving("web1").state, MoveState::Done);
        let told: Vec<u128> = world.dropped.keys().map(|store| store.as_u128()).collect();
        assert_eq!(told, near);
        let deletions = world.service.deletions(&disk("web1")).unwrap();
        assert_eq!(deletions.len(), near.len());
        assert_eq!(deletions[0].superseded_by, [store_id(11), store_id(12)]);
        assert_eq!(deletions[0].bytes, GIB / 2);
        let map = world.service.disk_map(&disk("web1"), world.now).unwrap();
        assert!(map.retired.is_empty());
        assert!(world.service.status(world.now).unwrap().problems.is_empty());
        assert!(
            world
                .service
                .plan(&disk("web1"), world.now)
                .unwrap()
                .is_empty()
        );
    });
}

#[test]
fn a_migration_that_fails_leaves_the_source_as_it_was_and_the_standby_standing_by() {
    twice(|world| {
        let (id, source) = world.running_on_t1("web1");
        let near = world.members(id);
        let standby = world.attach("web1", "o1");
        world.close("t1", id, source);
        world.step();
        let again = world.open("t1", id, source);
        assert!(matches!(again, Response::Swapped(_)), "{again:?}");
        world.step();
        assert_eq!(world.members(id), near);
        let late = world.open("o1", id, standby);
        assert!(matches!(late, Response::ChangeRefused(_)), "{late:?}");
        let view = world.service.disk(&disk("web1"), world.now).unwrap();
        assert_eq!(view.attachment.unwrap().backend, source);
        assert_eq!(view.standbys[0].backend, standby);
        let only = Detach {
            node: Some(host("o1")),
            ..Detach::default()
        };
        world
            .service
            .detach(&disk("web1"), &only, world.now)
            .unwrap();
        world.step();
        let state = world
            .service
            .detach(&disk("web1"), &only, world.now)
            .unwrap();
        assert!(matches!(state, DetachState::Done(_)), "{state:?}");
        assert!(world.is_open_by(id, source));
    });
}

#[test]
fn of_two_standbys_the_one_that_opens_first_has_the_disk() {
    twice(|world| {
        let (id, source) = world.running_on_t1("web1");
        let first = world.attach("web1", "o1");
        let second = world.attach("web1", "t2");
        world.close("t1", id, source);
        let opened = world.open("t2", id, second);
        assert!(matches!(opened, Response::Swapped(_)), "{opened:?}");
        let late = world.open("o1", id, first);
        assert!(matches!(late, Response::ChangeRefused(_)), "{late:?}");
        world.step();
        let view = world.service.disk(&disk("web1"), world.now).unwrap();
        assert_eq!(view.attachment.unwrap().backend, second);
        assert_eq!(view.standbys[0].backend, first);
        assert!(world.running["t1"].is_empty());
    });
}

#[test]
fn a_copy_is_kept_until_those_that_took_its_place_are_up() {
    twice(|world| {
        let (id, source) = world.running_on_t1("web1");
        let standby = world.attach("web1", "o1");
        world.migrate(id, ("t1", source), ("o1", standby));
        world.down.insert("o2");
        world.steps(5);
        assert!(world.dropped.is_empty(), "store 12 is silent");
        // A service that was just started waits until it has heard everybody.
        if !world.dies_each_step {
            let problems = world.service.status(world.now).unwrap().problems;
            assert!(
                problems.iter().any(|p| p.contains("stays for now")),
                "{problems:?}"
            );
        }
        world.down.clear();
        world.steps(4);
        assert_eq!(world.dropped.len(), 2);
    });
}

#[test]
fn a_copy_is_kept_until_another_store_has_heard_that_it_is_superfluous() {
    let mut world = World::new(false);
    let (id, source) = world.running_on_t1("web1");
    let standby = world.attach("web1", "o1");
    world.stores_hear_nothing = true;
    world.migrate(id, ("t1", source), ("o1", standby));
    world.steps(5);
    assert!(
        world.dropped.is_empty(),
        "a lost catalog would be rebuilt with it"
    );
    let problems = world.service.status(world.now).unwrap().problems;
    assert!(
        problems.iter().any(|p| p.contains("has heard yet")),
        "{problems:?}"
    );
    world.stores_hear_nothing = false;
    world.steps(4);
    assert_eq!(world.dropped.len(), 2);
}

#[test]
fn nobody_stands_by_for_a_node_that_is_silent_while_it_has_the_disk_open() {
    let mut world = World::new(false);
    let (id, _) = world.running_on_t1("web1");
    world.down.insert("t1");
    world.steps(3);
    let mut request = Attach {
        node: host("t2"),
        take_over: false,
        wait_ms: None,
    };
    let attach = |world: &World, request: &Attach| {
        let fresh = backend(77);
        world
            .service
            .attach(&disk("web1"), request, fresh, world.now)
    };
    let refused = attach(&world, &request).unwrap_err();
    assert!(refused.to_string().contains("take-over"), "{refused}");
    request.take_over = true;
    let taker = attach(&world, &request).unwrap();
    let owner = Owner {
        backend: taker,
        life: Life(1),
        host: host("t2"),
    };
    let taken = world.swap("t2", id, taker, Change::TakeOver { owner });
    assert!(matches!(taken, Response::Swapped(_)), "{taken:?}");
}

#[test]
fn a_copy_that_an_operator_drops_goes_whatever_policy_keeps() {
    twice(|world| {
        world.apply("tokyo", "drop = \"manual\"", 4).unwrap();
        let (id, _) = world.running_on_t1("web1");
        let add = AddCopy {
            to: Target::Datacenter(dc("osaka")),
            range: None,
            reason: String::new(),
            plan_only: false,
        };
        world
            .service
            .add_copy(&disk("web1"), &add, "alice", world.now)
            .unwrap();
        world.steps(5);
        let far = world.members(id)[2];
        let drop = DropCopy {
            store: store_id(far),
            range: None,
            force: false,
            reason: String::new(),
            plan_only: false,
        };
        world
            .service
            .drop_copy(&disk("web1"), &drop, "alice", world.now)
            .unwrap();
        world.steps(6);
        assert_eq!(world.members(id).len(), 2);
        assert_eq!(world.service.deletions(&disk("web1")).unwrap().len(), 1);
    });
}

#[test]
fn a_kept_copy_is_the_base_for_the_way_back() {
    twice(|world| {
        for datacenter in ["tokyo", "osaka"] {
            world
                .apply(datacenter, "drop = \"manual\"\nhold-down = \"0s\"", 4)
                .unwrap();
        }
        let (id, source) = world.running_on_t1("web1");
        let near = world.members(id);
        let standby = world.attach("web1", "o1");
        world.migrate(id, ("t1", source), ("o1", standby));
        world.steps(4);
        assert_eq!(
            world.moving("web1").state,
            MoveState::Done,
            "kept copies hold nothing up"
        );
        let map = world.service.disk_map(&disk("web1"), world.now).unwrap();
        assert_eq!(map.retired.len(), 2);
        assert_eq!(world.service.status(world.now).unwrap().retired_copies, 2);

        let back = world.attach("web1", "t1");
        assert_eq!(stores(&world.running["t1"][&back].orders.sets), near[..]);
        world.migrate(id, ("o1", standby), ("t1", back));
        assert_eq!(world.members(id), near);
        let map = world.service.disk_map(&disk("web1"), world.now).unwrap();
        assert!(map.retired.is_empty(), "they are members again");
        assert!(world.dropped.is_empty());
    });
}

#[test]
fn a_disk_is_moved_by_order_paused_throttled_and_taken_back() {
    twice(|world| {
        let (id, _) = world.running_on_t1("web1");
        let near = world.members(id);
        let planned = world.order_move("web1", "osaka", true).unwrap();
        assert_eq!(stores(planned.plan.next_sets().unwrap()), [11, 12]);
        assert!(planned.under_way.is_none());
        assert!(planned.plan.least_copies >= 2);
        world.step();
        assert_eq!(world.members(id), near, "only planned");
        let error = world.order_move("web1", "kyoto", false).unwrap_err();
        assert_eq!(error.kind, Kind::Impossible);

        world.fills = false;
        let ordered = world.order_move("web1", "osaka", false).unwrap();
        assert_eq!(ordered.plan, planned.plan, "exactly that plan");
        world.steps(3);
        assert_eq!(world.members(id), [11, 12]);
        let moving = world.moving("web1");
        assert_eq!(moving.state, MoveState::Filling);
        assert!(matches!(moving.why, MoveWhy::Order(_)));
        let control = |world: &World, control| {
            let name = disk("web1");
            world
                .service
                .control_move(&name, control, "alice", world.now)
        };
        let orders = |world: &World| {
            let running = world.running["t1"].values().next().unwrap();
            running.orders.clone()
        };
        control(world, Control::Pause).unwrap();
        world.step();
        assert_eq!(world.moving("web1").state, MoveState::Paused);
        assert!(orders(world).fill.paused);
        control(world, Control::Resume).unwrap();
        control(world, Control::Limit(7 << 20)).unwrap();
        world.step();
        assert!(!orders(world).fill.paused);
        assert_eq!(orders(world).fill.bytes_per_second, Some(7 << 20));
        assert_eq!(
            control(world, Control::Limit(0)).unwrap_err().kind,
            Kind::Impossible
        );

        let ended = control(world, Control::Cancel).unwrap();
        assert_eq!(ended.state, MoveState::Cancelled);
        world.fills = true;
        world.steps(5);
        assert_eq!(world.members(id), near, "as if nothing had been");
        assert!(world.service.pins(&disk("web1")).unwrap().is_empty());
        let moves = world.service.moves(world.now).unwrap();
        assert!(moves.under_way.is_empty(), "{:?}", moves.under_way);
        assert!(moves.ended.iter().any(|m| m.number == ended.number));
    });
}

#[test]
fn the_move_of_a_vm_is_taken_back_by_pinning_the_disk_where_it_was() {
    twice(|world| {
        let (id, source) = world.running_on_t1("web1");
        let near = world.members(id);
        let standby = world.attach("web1", "o1");
        world.fills = false;
        world.migrate(id, ("t1", source), ("o1", standby));
        world.steps(2);
        let name = disk("web1");
        world
            .service
            .control_move(&name, Control::Cancel, "alice", world.now)
            .unwrap();
        world.fills = true;
        world.steps(6);
        assert_eq!(world.members(id), near);
        assert_eq!(world.service.pins(&name).unwrap().len(), 1);
        world
            .service
            .lift_pins(&name, &LiftPins::default())
            .unwrap();
        world.steps(6);
        assert_eq!(world.members(id), [11, 12], "it follows after all");
    });
}

#[test]
fn a_full_store_stops_a_move_which_says_so_and_goes_on_when_there_is_room() {
    twice(|world| {
        let (id, source) = world.running_on_t1("web1");
        let standby = world.attach("web1", "o1");
        world.hindrance = Some("store 11 is full: it is filled on when it has room".into());
        world.migrate(id, ("t1", source), ("o1", standby));
        world.steps(2);
        let state = world.moving("web1").state;
        assert!(
            matches!(&state, MoveState::Stuck { why } if why.contains("full")),
            "{state:?}"
        );
        let problems = world.service.status(world.now).unwrap().problems;
        assert!(problems.iter().any(|p| p.contains("stuck")), "{problems:?}");
        world.hindrance = None;
        world.steps(5);
        assert_eq!(world.moving("web1").state, MoveState::Done);
    });
}

#[test]
fn of_a_disk_that_stays_far_from_its_vm_it_is_said_why() {
    twice(|world| {
        let (id, source) = world.running_on_t1("web1");
        let far = |world: &World| world.service.status(world.now).unwrap().far;
        assert!(far(world).is_empty());
        let emptied = Evacuate {
            reason: "new racks".into(),
            plan_only: false,
        };
        for store in [11, 12] {
            let store = store_id(store);
            world
                .service
                .evacuate(store, &emptied, "alice", world.now)
                .unwrap();
        }
        let standby = world.attach("web1", "o1");
        world.migrate(id, ("t1", source), ("o1", standby));
        world.steps(3);
        let one = &far(world)[0];
        assert_eq!((&one.disk, &one.home), (&disk("web1"), &dc("osaka")));
        assert_eq!(one.near_extents, 0);
        let why = |world: &World| far(world)[0].why.clone().unwrap();
        assert!(why(world).contains("no store in osaka"), "{}", why(world));

        world.apply("osaka", "follow = \"manual\"\n", 1).unwrap();
        assert!(why(world).contains("manual"), "{}", why(world));
        let pin = AddPin {
            hold: Hold::In(dc("tokyo")),
            range: None,
            reason: "its readers are there".into(),
            until: Until::Lifted,
        };
        world.service.add_pin(&disk("web1"), &pin).unwrap();
        assert!(why(world).contains("its readers"), "{}", why(world));
    });
}

#[test]
fn a_detached_disk_is_moved_by_a_node_that_lets_it_go_when_somebody_wants_it() {
    twice(|world| {
        let (id, source) = world.running_on_t1("web1");
        world.close("t1", id, source);
        world
            .service
            .detach(&disk("web1"), &Detach::default(), world.now)
            .unwrap();
        world.steps(2);
        assert!(world.running["t1"].is_empty());
        world.fills = false;
        world.order_move("web1", "osaka", false).unwrap();
        world.steps(4);
        let (name, copier) = ["o1", "o2"]
            .into_iter()
            .find_map(|name| Some((name, *world.running[name].keys().next()?)))
            .expect("a node of osaka copies");
        assert_eq!(world.running[name][&copier].wanted, Some(Wanted::Copying));
        assert_eq!(world.members(id), [11, 12]);
        assert_eq!(
            world.service.disk(&disk("web1"), world.now).unwrap().home,
            dc("tokyo")
        );

        // Somebody wants it before it is done: the copier closes, the VM opens, the rest goes on.
        let mine = world.attach("web1", "t2");
        world.steps(2);
        assert!(world.running[name].is_empty());
        let opened = world.open("t2", id, mine);
        assert!(matches!(opened, Response::Swapped(_)), "{opened:?}");
        world.fills = true;
        world.steps(5);
        assert_eq!(world.moving("web1").state, MoveState::Done);
        assert_eq!(world.members(id), [11, 12], "until its VM leaves tokyo");
    });
}

#[test]
fn nobody_copies_for_a_disk_where_only_its_next_backend_is_left_and_stands_by() {
    twice(|world| {
        let (id, source) = world.running_on_t1("web1");
        world.fills = false;
        world.order_move("web1", "osaka", false).unwrap();
        world.steps(3);
        assert_eq!(world.moving("web1").state, MoveState::Filling);
        // A VM that is stopped here and started there.
        let standby = world.attach("web1", "o2");
        world.close("t1", id, source);
        let only = Detach {
            node: Some(host("t1")),
            ..Detach::default()
        };
        world
            .service
            .detach(&disk("web1"), &only, world.now)
            .unwrap();
        world.steps(4);
        let runs = world.running.values().flat_map(BTreeMap::keys);
        assert_eq!(runs.collect::<Vec<_>>(), [&standby]);
        let state = world.moving("web1").state;
        assert!(
            matches!(&state, MoveState::Planned { waits_for } if waits_for.contains("o2 stands by")),
            "{state:?}"
        );
        let opened = world.open("o2", id, standby);
        assert!(matches!(opened, Response::Swapped(_)), "{opened:?}");
        world.fills = true;
        world.steps(7);
        assert_eq!(world.moving("web1").state, MoveState::Done);
    });
}

/// A disk that a node of osaka copies while nobody else has it, and a backend on t2 that stands by for it.
fn copied_beside_a_standby(world: &mut World) -> (DiskId, BackendId) {
    let (id, source) = world.running_on_t1("web1");
    world.close("t1", id, source);
    world
        .service
        .detach(&disk("web1"), &Detach::default(), world.now)
        .unwrap();
    world.steps(2);
    world.fills = false;
    world.order_move("web1", "osaka", false).unwrap();
    world.steps(4);
    assert!(world.record_of(id).owner().is_some(), "it is being copied");
    let before = world.service.attachments(id).unwrap().unwrap();
    let standby = Attachment {
        backend: backend(77),
        place: Place::Node(host("t2")),
        wanted: Wanted::Standby,
        ..before.value.0[0].clone()
    };
    let after = before.value.with(standby);
    let write = put_attachments(Transaction::new(), id, &before.value, &after);
    assert_eq!(world.catalog.commit(&write).unwrap(), Committed::Yes);
    (id, backend(77))
}

#[test]
fn whoever_copies_lets_a_disk_go_that_somebody_stands_by_for() {
    twice(|world| {
        let (id, standby) = copied_beside_a_standby(world);
        world.steps(3);
        let opened = world.open("t2", id, standby);
        assert!(matches!(opened, Response::Swapped(_)), "{opened:?}");
        assert!(world.running["o1"].is_empty() && world.running["o2"].is_empty());
    });
}

#[test]
fn whoever_copies_lets_a_disk_go_at_once_when_a_standby_is_to_have_it() {
    let mut world = World::new(false);
    let (id, standby) = copied_beside_a_standby(&mut world);
    let request = Attach {
        node: host("t2"),
        take_over: false,
        wait_ms: None,
    };
    let name = disk("web1");
    let given = world
        .service
        .attach(&name, &request, backend(78), world.now)
        .unwrap();
    assert_eq!(given, standby);
    let attachments = world.service.attachments(id).unwrap().unwrap();
    let wanted = |wanted| attachments.value.0.iter().any(|a| a.wanted == wanted);
    assert!(wanted(Wanted::Attached) && wanted(Wanted::Detached));
    assert!(!wanted(Wanted::Copying) && !wanted(Wanted::Standby));
}

#[test]
fn a_detached_disk_is_closed_again_when_its_move_is_done() {
    twice(|world| {
        let id = world.create("web1");
        world.order_move("web1", "osaka", false).unwrap();
        world.steps(8);
        assert_eq!(world.members(id), [11, 12]);
        assert_eq!(world.moving("web1").state, MoveState::Done);
        assert!(world.running.values().all(BTreeMap::is_empty));
        assert!(world.record_of(id).owner().is_none());
        assert!(
            world
                .service
                .disk(&disk("web1"), world.now)
                .unwrap()
                .attachment
                .is_none()
        );
    });
}

#[test]
fn a_policy_is_checked_shown_and_rolled_out_a_few_disks_at_a_time() {
    twice(|world| {
        let ids: Vec<DiskId> = ["web1", "web2", "web3"]
            .iter()
            .map(|name| world.running_on_t1(name).0)
            .collect();
        let text = |text: &str| PolicyText { text: text.into() };
        let tokyo = dc("tokyo");
        let check = |world: &World, policy: &str| {
            let check = world.service.check_policy(&tokyo, &text(policy), world.now);
            check.unwrap()
        };
        assert!(check(world, "copis = 3").faults[0].contains("copies"));
        assert!(!check(world, "copies = 9").may_be_applied());
        assert!(world.apply("tokyo", "copies = 7", 1).is_err());
        let more = "copies = 2\naway = { osaka = 1 }";
        assert!(check(world, more).may_be_applied());
        let diff = world
            .service
            .diff_policy(&tokyo, &text(more), world.now)
            .unwrap();
        assert_eq!(diff.diff.unwrap().disks.len(), 3);
        assert!(!diff.applied);
        assert!(world.service.policy_view(&tokyo).unwrap().text.is_none());

        world.fills = false;
        assert!(world.apply("tokyo", "copies = 3", 1).unwrap().applied);
        world.steps(4);
        let begun = |world: &World| {
            let three = |id: &&DiskId| world.members(**id).len() == 3;
            ids.iter().filter(three).count()
        };
        // Copies are missing now, so these are repairs, which are not held back.
        assert_eq!(begun(world), 3);
        world.fills = true;
        world.steps(4);
        world.fills = false;
        world
            .apply(
                "tokyo",
                "copies = 3\nnever = []\n[class.cold]\naway = { osaka = 1 }\ncopies = 2",
                1,
            )
            .unwrap();
        for name in ["web1", "web2", "web3"] {
            let class = crate::api::SetClass {
                class: Some("cold".parse().unwrap()),
            };
            world
                .service
                .set_class(&disk(name), &class, world.now)
                .unwrap();
        }
        world.steps(4);
        let in_osaka = |world: &World| {
            let there = |id: &&DiskId| world.members(**id).iter().any(|store| *store > 10);
            ids.iter().filter(there).count()
        };
        assert_eq!(in_osaka(world), 1, "one at a time");
        world.fills = true;
        world.steps(12);
        assert_eq!(in_osaka(world), 3);
    });
}

#[test]
fn copies_are_added_and_dropped_by_hand_and_promises_kept() {
    twice(|world| {
        let (id, _) = world.running_on_t1("web1");
        let near = world.members(id);
        let add = AddCopy {
            to: Target::Datacenter(dc("osaka")),
            range: None,
            reason: "before the typhoon".into(),
            plan_only: false,
        };
        world
            .service
            .add_copy(&disk("web1"), &add, "alice", world.now)
            .unwrap();
        world.steps(5);
        assert_eq!(world.members(id).len(), 3);
        let drop = |store: u128, force| DropCopy {
            store: store_id(store),
            range: None,
            force,
            reason: String::new(),
            plan_only: false,
        };
        let explained = world.service.explain(&disk("web1"), world.now).unwrap();
        assert_eq!(explained.copies.len(), 3);
        let far = world.members(id)[2];
        world
            .service
            .drop_copy(&disk("web1"), &drop(far, false), "alice", world.now)
            .unwrap();
        world.steps(5);
        assert_eq!(world.members(id), near);
        assert_eq!(world.dropped.len(), 1);

        let refused =
            world
                .service
                .drop_copy(&disk("web1"), &drop(near[1], false), "alice", world.now);
        assert_eq!(refused.unwrap_err().kind, Kind::Impossible);
        let forced =
            world
                .service
                .drop_copy(&disk("web1"), &drop(near[1], true), "alice", world.now);
        assert!(
            forced.unwrap().losses.is_empty(),
            "another store has room for a copy"
        );
        world.steps(6);
        assert!(!world.members(id).contains(&near[1]));
        assert_eq!(world.members(id).len(), 2);
    });
}

#[test]
fn a_disk_is_prepared_where_its_vm_will_be_and_the_prepared_stores_are_chosen() {
    twice(|world| {
        let (id, source) = world.running_on_t1("web1");
        let near = world.members(id);
        let request = PrepareDisk {
            to: dc("osaka"),
            node: Some(host("o2")),
        };
        let moving = world
            .service
            .prepare_disk(&disk("web1"), &request, "alice", world.now)
            .unwrap();
        assert_eq!(moving.state, MoveState::Filling);
        world.steps(2);
        assert_eq!(world.members(id), near, "what is prepared is no member");
        let seeds = world.running["t1"][&source].orders.seed.clone();
        assert_eq!(stores(&seeds), [11, 12]);
        let again = world
            .service
            .prepare_disk(&disk("web1"), &request, "alice", world.now);
        assert_eq!(again.unwrap_err().kind, Kind::NotNow);

        let standby = world.attach("web1", "o2");
        world.migrate(id, ("t1", source), ("o2", standby));
        assert_eq!(world.members(id), stores(&seeds)[..]);
        world.steps(6);
        let ended = world.service.moves(world.now).unwrap().ended;
        assert!(
            ended.iter().all(|m| m.state == MoveState::Done),
            "{ended:?}"
        );
        assert_eq!(ended.len(), 2, "the preparation, and the arrival");
    });
}

#[test]
fn what_was_prepared_for_nothing_is_dropped() {
    twice(|world| {
        let (_, source) = world.running_on_t1("web1");
        let request = PrepareDisk {
            to: dc("osaka"),
            node: None,
        };
        world
            .service
            .prepare_disk(&disk("web1"), &request, "alice", world.now)
            .unwrap();
        world.steps(2);
        world
            .service
            .control_move(&disk("web1"), Control::Cancel, "alice", world.now)
            .unwrap();
        world.steps(5);
        assert!(world.running["t1"][&source].orders.seed.is_empty());
        let told: Vec<u128> = world.dropped.keys().map(|store| store.as_u128()).collect();
        assert_eq!(told, [11, 12]);
        assert_eq!(world.service.status(world.now).unwrap().retired_copies, 0);
    });
}

#[test]
fn what_was_prepared_is_dropped_when_an_order_takes_the_place_of_it() {
    twice(|world| {
        let (id, _) = world.running_on_t1("web1");
        let request = PrepareDisk {
            to: dc("osaka"),
            node: None,
        };
        world
            .service
            .prepare_disk(&disk("web1"), &request, "alice", world.now)
            .unwrap();
        world.steps(2);
        let third = if world.members(id).contains(&2) { 3 } else { 2 };
        let add = AddCopy {
            to: Target::Store(store_id(third)),
            range: None,
            reason: String::new(),
            plan_only: false,
        };
        world
            .service
            .add_copy(&disk("web1"), &add, "alice", world.now)
            .unwrap();
        world.steps(6);
        assert_eq!(world.members(id), [1, 2, 3]);
        let told: Vec<u128> = world.dropped.keys().map(|store| store.as_u128()).collect();
        assert_eq!(told, [11, 12]);
        assert_eq!(world.service.status(world.now).unwrap().retired_copies, 0);
    });
}

#[test]
fn policy_prepares_as_soon_as_somebody_stands_by() {
    twice(|world| {
        world.apply("tokyo", "prepare = \"standby\"", 4).unwrap();
        let (_, source) = world.running_on_t1("web1");
        world.attach("web1", "o1");
        world.steps(2);
        assert_eq!(stores(&world.running["t1"][&source].orders.seed), [11, 12]);
    });
}

#[test]
fn a_disk_that_is_deleted_during_a_pass_leaves_no_move_behind() {
    let mut world = World::new(false);
    let id = world.create("web1");
    world.apply("tokyo", "copies = 3", 1).unwrap();
    let scene = world.service.scene(world.now).unwrap();
    let record = world.service.disk_named(&disk("web1")).unwrap();
    let judged = world.service.disk_now(record, &scene).unwrap();
    let planner = scene.planner();
    let (subject, plan) = (judged.subject(), planner.plan(&judged.subject()));
    let moving = begin(&scene, &planner, &subject, &plan, MoveWhy::Repair).unwrap();
    world.service.delete_disk(&disk("web1")).unwrap();
    world
        .service
        .keep_moves(&judged, Vec::new(), Some(moving.clone()))
        .unwrap();
    let under_way = |world: &World| world.service.moves(world.now).unwrap().under_way.len();
    assert_eq!(under_way(&world), 0);

    // One that an earlier version has left behind.
    let write = Transaction::new().put(key::moving(id), json(&moving));
    assert_eq!(world.catalog.commit(&write).unwrap(), Committed::Yes);
    assert_eq!(under_way(&world), 1);
    world.step();
    assert_eq!(under_way(&world), 0);
}

#[test]
fn a_pin_holds_a_disk_where_it_is_put() {
    twice(|world| {
        let (id, _) = world.running_on_t1("web1");
        let pin = AddPin {
            hold: Hold::In(dc("osaka")),
            range: None,
            reason: "its readers are there".into(),
            until: Until::Lifted,
        };
        world.service.add_pin(&disk("web1"), &pin).unwrap();
        world.steps(5);
        assert_eq!(world.members(id), [11, 12]);
        let nowhere = AddPin {
            hold: Hold::In(dc("kyoto")),
            ..pin
        };
        let refused = world.service.add_pin(&disk("web1"), &nowhere);
        assert_eq!(refused.unwrap_err().kind, Kind::NoSuchThing);
        world
            .service
            .lift_pins(&disk("web1"), &LiftPins { pin: Some(0) })
            .unwrap();
        world.steps(5);
        assert!(world.members(id).iter().all(|store| *store < 10));
    });
}

#[test]
fn a_service_that_has_just_started_decides_nothing_before_it_has_heard_the_fleet() {
    let mut world = World::new(false);
    let (id, _) = world.running_on_t1("web1");
    let near = world.members(id);
    world.die();
    let text = PolicyText {
        text: "copies = 2".into(),
    };
    let check = world.service.check_policy(&dc("tokyo"), &text, world.now);
    assert!(check.is_ok(), "operators are answered all the same");
    world.look();
    let desired = world.service.desired(&host("t1")).unwrap();
    assert_eq!(
        desired.attachments[0].orders, None,
        "what it was told holds on"
    );
    world.steps(2);
    assert_eq!(world.members(id), near);
    assert!(world.service.moves(world.now).unwrap().under_way.is_empty());
}

#[test]
fn a_store_that_stays_away_is_replaced_and_a_short_silence_is_not() {
    let mut world = World::new(false);
    let (id, _) = world.running_on_t1("web1");
    let before = world.members(id);
    let second = if before.contains(&2) { "t2" } else { "t3" };
    world.down.insert(second);
    world.steps(4);
    assert_eq!(world.members(id), before, "it may only be restarting");
    world.now.0 += crate::policy::class::DEFAULT_REPAIR_AFTER;
    world.steps(4);
    assert_ne!(world.members(id), before);
    assert_eq!(world.members(id).len(), 2);
}

#[test]
fn links_are_shown_by_datacenter_and_one_store_in_each_other_one_is_probed() {
    let world = World::new(false);
    assert_eq!(
        world.service.desired(&host("t1")).unwrap().probe,
        [store_id(11)]
    );
    let report = |to: u128, us| LinkReport {
        to: store_id(to),
        round_trip_us: us,
        bytes_per_second: Some(us * 1000),
        compression_permille: Some(1500),
    };
    for (name, links) in [
        ("t1", vec![report(11, 20_000), report(2, 200)]),
        ("t2", vec![report(12, 22_000)]),
    ] {
        let heartbeat = Heartbeat {
            datacenter: dc("tokyo"),
            rack: RackName::new("r1").unwrap(),
            listen: "0.0.0.0:7000".parse().unwrap(),
            stores: vec![store(name[1..].parse().unwrap())],
            backends: vec![],
            links,
            seen: 0,
            lists: Lists::default(),
        };
        let request = Request::Heartbeat(heartbeat);
        world.service.handle(&node(name), FROM, request, world.now);
    }
    let links = world.service.links().unwrap();
    assert_eq!(links.len(), 2);
    let across = links.iter().find(|link| link.to == dc("osaka")).unwrap();
    assert_eq!(across.nodes, 2);
    assert_eq!(across.round_trip_us, 22_000);
    assert_eq!(across.compression, Some(1.5));
}
