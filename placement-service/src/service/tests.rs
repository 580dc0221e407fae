//! The decisions, without sockets: what nodes say, what operators want, who may change what.

mod fleet;
mod lost;
mod moving;
mod repair;
mod verify;

use super::*;
use crate::api::{Attach, CreateDisk, Detach, Liveness, MoveStore, Place, TakeWriter, Wanted};
use crate::catalog::{MemoryCatalog, RedbCatalog};
use crate::node_protocol::{
    BackendReport, BackendState, DiskUse, Heartbeat, Lists, LogPlace, LogReport, SILENT_AFTER,
    StoreFault, StoreReport, StoreRun,
};
use replicator::words::{
    BackendId, Change, ChangeRefused, DatacenterName, DiskId, DiskName, DiskRecord, ExtentSize,
    Life, Owner, RackName, Revision, Seq, Starts, StoreId, Version,
};
use std::net::Ipv4Addr;
use std::time::Duration;

const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
const GIB: u64 = 1 << 30;

/// A service with nodes that say what the test has them say.
struct Play {
    service: Service,
    now: Moment,
}

fn at(seconds: u64) -> Moment {
    Moment(Duration::from_secs(seconds))
}

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

fn disk(name: &str) -> DiskName {
    DiskName::new(name).unwrap()
}

fn node(name: &str) -> Identity {
    Identity::new(Role::Node, host(name))
}

fn store_id(n: u128) -> StoreId {
    StoreId::from_u128(n)
}

fn backend(n: u128) -> BackendId {
    BackendId::from_u128(n)
}

fn store(n: u128) -> StoreReport {
    StoreReport::of_new(store_id(n), 100 * GIB)
}

fn heartbeat(stores: Vec<StoreReport>) -> Heartbeat {
    Heartbeat {
        datacenter: DatacenterName::new("tokyo").unwrap(),
        rack: RackName::new("r1").unwrap(),
        listen: "0.0.0.0:7000".parse().unwrap(),
        stores,
        backends: vec![],
        links: vec![],
        seen: 0,
        lists: Lists::default(),
    }
}

impl Play {
    /// Three nodes, a store each: t1 (1), t2 (2), t3 (3), all of one rack but t3.
    fn new() -> Play {
        let mut play = Play::over(Arc::new(MemoryCatalog::new()));
        play.all_beat();
        play
    }

    fn over(catalog: Arc<dyn Catalog>) -> Play {
        Play {
            service: Service::new(catalog, UnixSeconds(1_795_298_400)).unwrap(),
            now: at(0),
        }
    }

    fn all_beat(&mut self) {
        self.beat("t1", heartbeat(vec![store(1)]));
        self.beat("t2", heartbeat(vec![store(2)]));
        let rack = RackName::new("r2").unwrap();
        let t3 = heartbeat(vec![store(3)]);
        self.beat("t3", Heartbeat { rack, ..t3 });
    }

    fn beat(&self, name: &str, heartbeat: Heartbeat) -> Desired {
        let request = Request::Heartbeat(heartbeat);
        match self.service.handle(&node(name), FROM, request, self.now) {
            Response::Desired(desired) => desired,
            other => panic!("{other:?}"),
        }
    }

    /// What `name`'s node says when it runs `runs`, and has acted upon all that it was told.
    fn beat_running(&self, name: &str, runs: &[(DiskId, BackendId, BackendState)]) -> Desired {
        let backends = runs.iter().map(|(disk, backend, state)| BackendReport {
            disk: *disk,
            backend: *backend,
            state: state.clone(),
            epoch: None,
            stall: None,
            hindrance: None,
            verdict: None,
            unreachable: vec![],
            progress: None,
        });
        let number = name[1..].parse().unwrap();
        let heartbeat = Heartbeat {
            seen: self.service.desired(&host(name)).unwrap().digest,
            backends: backends.collect(),
            ..heartbeat(vec![store(number)])
        };
        self.beat(name, heartbeat)
    }

    fn create(&self, name: &str) -> DiskId {
        let request = CreateDisk {
            name: disk(name),
            bytes: GIB,
            copies: 2,
            extent_size: ExtentSize::DEFAULT,
            datacenter: None,
            near: None,
            class: None,
        };
        let id = DiskId::random();
        self.service.create_disk(&request, id, self.now).unwrap();
        id
    }

    fn attach(&self, name: &str, to: &str, take_over: bool) -> Result<BackendId, ServiceError> {
        let request = Attach {
            node: host(to),
            take_over,
            wait_ms: None,
        };
        let fresh = BackendId::random();
        self.service.attach(&disk(name), &request, fresh, self.now)
    }

    fn record(&self, disk: DiskId) -> DiskRecord {
        match self
            .service
            .handle(&node("t1"), FROM, Request::Record { disk }, self.now)
        {
            Response::Record(record) => record.record,
            other => panic!("{other:?}"),
        }
    }

    fn swap(&self, who: &Identity, disk: DiskId, backend: BackendId, change: Change) -> Response {
        let expected = self.record(disk).revision;
        self.swap_at(who, disk, backend, expected, change)
    }

    fn swap_at(
        &self,
        who: &Identity,
        disk: DiskId,
        backend: BackendId,
        expected: Revision,
        change: Change,
    ) -> Response {
        let request = Request::Swap {
            disk,
            backend,
            expected,
            change,
        };
        self.service.handle(who, FROM, request, self.now)
    }
}

fn owner(backend: BackendId, life: u64, name: &str) -> Owner {
    Owner {
        backend,
        life: Life(life),
        host: host(name),
    }
}

fn open(backend: BackendId, life: u64, name: &str) -> Change {
    Change::Attach {
        owner: owner(backend, life, name),
        sets: vec![],
    }
}

fn close(backend: BackendId, life: u64) -> Change {
    Change::Close {
        by: (backend, Life(life)),
        last: Version::new(replicator::words::Epoch::from_u64(2), Seq(9)),
        successor: None,
    }
}

fn ready() -> BackendState {
    BackendState::Ready {
        status: String::new(),
        socket: "/run/ukai/web1.sock".into(),
    }
}

#[test]
fn a_node_is_admitted_with_its_datacenter_rack_and_store() {
    let play = Play::new();
    let hosts = play.service.hosts(play.now).unwrap();
    assert_eq!(hosts.len(), 3);
    assert_eq!(hosts[0].address, Some("192.0.2.7:7000".parse().unwrap()));
    let datacenters = play.service.datacenters(play.now).unwrap();
    assert_eq!((datacenters[0].hosts, datacenters[0].racks), (3, 2));
    assert_eq!(play.service.status(play.now).unwrap().stores_up, 3);
}

#[test]
fn a_silent_node_is_silent_and_its_stores_are_not_chosen() {
    let mut play = Play::new();
    play.now = at(0);
    play.beat("t3", heartbeat(vec![store(3)]));
    play.now = Moment(SILENT_AFTER + Duration::from_secs(1));
    play.beat("t1", heartbeat(vec![store(1)]));
    let hosts = play.service.hosts(play.now).unwrap();
    assert_eq!(hosts[0].liveness, Liveness::Up);
    assert_eq!(hosts[2].liveness, Liveness::Silent { for_ms: 6000 });
    let request = CreateDisk {
        name: disk("web1"),
        bytes: GIB,
        copies: 2,
        extent_size: ExtentSize::DEFAULT,
        datacenter: None,
        near: None,
        class: None,
    };
    let refused = play
        .service
        .create_disk(&request, DiskId::random(), play.now)
        .unwrap_err();
    assert_eq!(refused.kind, Kind::Impossible);
    assert!(refused.to_string().contains("there are 1"), "{refused}");
    let status = play.service.status(play.now).unwrap();
    assert!(
        status
            .problems
            .iter()
            .any(|p| p.contains("host t3 has been silent"))
    );
}

#[test]
fn a_store_that_was_rolled_back_or_shows_up_elsewhere_is_refused_by_name() {
    let play = Play::new();
    let started = |starts| StoreReport {
        starts: Starts(starts),
        ..store(1)
    };
    play.beat("t1", heartbeat(vec![started(5)]));
    let desired = play.beat("t1", heartbeat(vec![started(4)]));
    let rolled_back = StoreFault::RolledBack {
        recorded: 5,
        shown: 4,
    };
    assert_eq!(desired.refused[0].why, rolled_back);
    let addresses = |play: &Play| {
        let request = Request::Stores {
            stores: vec![store_id(1)],
        };
        match play.service.handle(&node("t2"), FROM, request, play.now) {
            Response::Stores(addresses) => addresses,
            other => panic!("{other:?}"),
        }
    };
    assert!(addresses(&play).is_empty(), "nobody is led to it");
    let problems = play.service.status(play.now).unwrap().problems;
    assert!(problems.iter().any(|p| p.contains("older copy of itself")));

    let desired = play.beat("t1", heartbeat(vec![started(6)]));
    assert!(desired.refused.is_empty());
    assert_eq!(addresses(&play).len(), 1);

    let desired = play.beat("t2", heartbeat(vec![store(2), started(7)]));
    assert!(matches!(desired.refused[0].why, StoreFault::Moved { .. }));
    let moved = MoveStore { host: host("t2") };
    play.service
        .move_store(store_id(1), &moved, play.now)
        .unwrap();
    let desired = play.beat("t2", heartbeat(vec![store(2), started(7)]));
    assert!(desired.refused.is_empty());
}

#[test]
fn a_copy_of_a_running_store_is_refused_when_it_lacks_what_was_synced_since() {
    let play = Play::new();
    let report = |runs: &[u64], began: LogPlace, synced: LogPlace| StoreReport {
        starts: Starts(runs.len() as u64),
        runs: runs.iter().copied().map(StoreRun).collect(),
        log: Some(LogReport { began, synced }),
        ..store(1)
    };
    let refused = |report: StoreReport| play.beat("t1", heartbeat(vec![report])).refused;
    let (start, first) = (LogPlace(0, 0), &[11][..]);
    assert!(refused(report(first, start, LogPlace(1, 4096))).is_empty());
    // Here the copy is made.
    assert!(refused(report(first, start, LogPlace(2, 8192))).is_empty());
    let copy = || report(&[22, 11], LogPlace(1, 9000), LogPlace(7, 4096));
    assert_eq!(refused(copy())[0].why, StoreFault::Shortened);
    assert_eq!(
        refused(copy())[0].why,
        StoreFault::Shortened,
        "and stays so"
    );
    let problems = play.service.status(play.now).unwrap().problems;
    assert!(problems.iter().any(|p| p.contains("older copy of itself")));
    // The right directory: what was not synced may be gone, after a power loss.
    let right = || report(&[12, 11], LogPlace(2, 8192), LogPlace(3, 4096));
    assert!(refused(right()).is_empty());
    assert!(refused(right()).is_empty());
    assert!(!refused(copy()).is_empty());
    // A node of an older version does not say.
    let silent = StoreReport {
        log: None,
        ..report(&[13, 12, 11], start, start)
    };
    assert!(refused(silent).is_empty());
}

#[test]
fn a_copy_of_a_store_from_before_its_last_start_is_refused_however_often_it_is_started() {
    let play = Play::new();
    let started = |starts, runs: &[u64]| StoreReport {
        starts: Starts(starts),
        runs: runs.iter().copied().map(StoreRun).collect(),
        ..store(1)
    };
    let refused = |report: StoreReport| play.beat("t1", heartbeat(vec![report])).refused;
    assert!(refused(started(5, &[15, 14])).is_empty());
    assert!(refused(started(6, &[16, 15, 14])).is_empty());
    // The copy was made after the fifth start: its next one is a sixth, too.
    let forked = StoreFault::Forked { recorded: 6 };
    assert_eq!(refused(started(6, &[26, 15, 14]))[0].why, forked);
    assert_eq!(refused(started(7, &[27, 26, 15, 14]))[0].why, forked);
    let problems = play.service.status(play.now).unwrap().problems;
    assert!(problems.iter().any(|p| p.contains("older copy of itself")));
    // The right directory; also after starts that nobody heard of.
    assert!(refused(started(9, &[19, 18, 17, 16, 15, 14])).is_empty());
    assert!(!refused(started(8, &[28, 27, 26, 15, 14])).is_empty());
}

#[test]
fn a_disk_is_made_on_two_racks_listed_mapped_and_its_name_taken() {
    let play = Play::new();
    let id = play.create("web1");
    let map = play.service.disk_map(&disk("web1"), play.now).unwrap();
    assert_eq!(map.ranges.len(), 1);
    assert_eq!(map.stores.len(), 2);
    assert!(map.stores.iter().any(|s| s.host == Some(host("t3"))));
    assert_eq!(map.stores[0].allocated_bytes, Some(0));

    let uses = DiskUse {
        disk: id,
        allocated_bytes: 4096,
    };
    let with_disk = StoreReport {
        disks: vec![uses],
        ..store(3)
    };
    play.beat("t3", heartbeat(vec![with_disk]));
    let view = play.service.disk(&disk("web1"), play.now).unwrap();
    assert_eq!(view.allocated_bytes, 4096);

    let again = CreateDisk {
        name: disk("web1"),
        bytes: GIB,
        copies: 2,
        extent_size: ExtentSize::DEFAULT,
        datacenter: None,
        near: None,
        class: None,
    };
    let refused = play.service.create_disk(&again, DiskId::random(), play.now);
    assert_eq!(refused.unwrap_err().kind, Kind::NotNow);
    let nowhere = CreateDisk {
        name: disk("web2"),
        near: Some(host("mars-1")),
        ..again
    };
    let refused = play
        .service
        .create_disk(&nowhere, DiskId::random(), play.now);
    assert_eq!(refused.unwrap_err().kind, Kind::NoSuchThing);
}

#[test]
fn a_disk_is_attached_served_detached_and_deleted() {
    let play = Play::new();
    let id = play.create("web1");
    let mine = play.attach("web1", "t1", false).unwrap();
    assert_eq!(play.attach("web1", "t1", false), Ok(mine), "idempotent");
    let wanted = play.service.desired(&host("t1")).unwrap().attachments;
    assert_eq!(
        (wanted[0].backend, wanted[0].wanted),
        (mine, Wanted::Attached)
    );
    assert!(
        play.service
            .desired(&host("t2"))
            .unwrap()
            .attachments
            .is_empty()
    );

    let state = play.service.attach_state(&disk("web1"), mine, play.now);
    assert!(matches!(state, Ok(AttachState::Waiting { .. })));
    play.beat_running("t1", &[(id, mine, ready())]);
    let state = play.service.attach_state(&disk("web1"), mine, play.now);
    let Ok(AttachState::Ready(attached)) = state else {
        panic!("{state:?}");
    };
    assert_eq!(attached.socket, "/run/ukai/web1.sock");
    let opened = play.swap(&node("t1"), id, mine, open(mine, 1, "t1"));
    assert!(matches!(opened, Response::Swapped(_)), "{opened:?}");

    assert_eq!(
        play.service.delete_disk(&disk("web1")).unwrap_err().kind,
        Kind::NotNow
    );
    let detach = Detach::default();
    let state = play.service.detach(&disk("web1"), &detach, play.now);
    assert!(
        matches!(state, Ok(DetachState::Waiting { .. })),
        "{state:?}"
    );
    // The backend still runs; then it has closed its epoch, and is gone.
    play.beat_running("t1", &[(id, mine, BackendState::Stopping)]);
    let closed = play.swap(&node("t1"), id, mine, close(mine, 1));
    assert!(matches!(closed, Response::Swapped(_)), "{closed:?}");
    play.beat_running("t1", &[]);
    let state = play
        .service
        .detach(&disk("web1"), &detach, play.now)
        .unwrap();
    let DetachState::Done(done) = state else {
        panic!("{state:?}");
    };
    assert!(done.clean);

    let deleted = play.service.delete_disk(&disk("web1")).unwrap();
    assert_eq!(deleted.dropping.len(), 3);
    assert_eq!(play.service.desired(&host("t2")).unwrap().drop, [id]);
    for (name, number) in [("t1", 1), ("t2", 2), ("t3", 3)] {
        let dropped = StoreReport {
            dropped: vec![id],
            ..store(number)
        };
        let desired = play.beat(name, heartbeat(vec![dropped]));
        assert!(desired.drop.is_empty(), "told until it has, not longer");
    }
    assert!(play.service.status(play.now).unwrap().problems.is_empty());
    assert!(play.service.disks(play.now).unwrap().is_empty());
}

#[test]
fn a_node_that_has_not_heard_of_the_detachment_does_not_end_it() {
    let play = Play::new();
    let id = play.create("web1");
    let mine = play.attach("web1", "t1", false).unwrap();
    let before = play.service.desired(&host("t1")).unwrap();
    play.service
        .detach(&disk("web1"), &Detach::default(), play.now)
        .unwrap();
    let late = Heartbeat {
        seen: before.digest,
        ..heartbeat(vec![store(1)])
    };
    let desired = play.beat("t1", late);
    assert_eq!(desired.attachments[0].wanted, Wanted::Detached);
    let view = play.service.disk(&disk("web1"), play.now).unwrap();
    assert_eq!(view.attachment.unwrap().backend, mine);
    let refused = play.swap(&node("t1"), id, mine, open(mine, 1, "t1"));
    assert_eq!(
        refused,
        Response::ChangeRefused(ChangeRefused::NotOwner),
        "a backend that is to go opens nothing"
    );
}

#[test]
fn only_the_attached_backend_of_the_right_node_changes_a_disk() {
    let play = Play::new();
    let id = play.create("web1");
    let mine = play.attach("web1", "t1", false).unwrap();
    let not_owner = Response::ChangeRefused(ChangeRefused::NotOwner);
    let other = backend(77);
    assert_eq!(
        play.swap(&node("t2"), id, mine, open(mine, 1, "t2")),
        not_owner,
        "the same backend id on another node"
    );
    assert_eq!(
        play.swap(&node("t1"), id, other, open(other, 1, "t1")),
        not_owner
    );
    let operator = Identity::new(Role::Operator, host("t1"));
    assert_eq!(
        play.swap(&operator, id, mine, open(mine, 1, "t1")),
        not_owner
    );
    let forged = play.swap(&node("t1"), id, mine, open(other, 1, "t1"));
    assert!(matches!(
        forged,
        Response::Refused(Refusal::Malformed { .. })
    ));
    let placement = Identity::new(Role::Placement, host("t1"));
    let refused = play.swap(&placement, id, mine, open(mine, 1, "t1"));
    assert!(matches!(
        refused,
        Response::Refused(Refusal::NotAllowed { .. })
    ));
    assert_eq!(play.record(id).revision, Revision(0));
}

#[test]
fn taking_over_needs_an_operators_word_or_ones_own_former_life() {
    let play = Play::new();
    let id = play.create("web1");
    let first = play.attach("web1", "t1", false).unwrap();
    play.swap(&node("t1"), id, first, open(first, 1, "t1"));
    // The node restarts: the same backend, another life.
    let own = Change::TakeOver {
        owner: owner(first, 2, "t1"),
    };
    let taken = play.swap(&node("t1"), id, first, own);
    assert!(matches!(taken, Response::Swapped(_)), "{taken:?}");

    let standby = play.attach("web1", "t2", false).unwrap();
    let take = Change::TakeOver {
        owner: owner(standby, 3, "t2"),
    };
    let refused = play.swap(&node("t2"), id, standby, take);
    assert!(
        matches!(
            refused,
            Response::ChangeRefused(ChangeRefused::AlreadyOpen { .. })
        ),
        "who stands by waits until the disk is closed: {refused:?}"
    );
    let second = play.attach("web1", "t2", true).unwrap();
    assert_eq!(second, standby, "its VM may be there already");
    // The old backend has lost the right to change anything, before the new one has begun.
    let late = play.swap(&node("t1"), id, first, close(first, 2));
    assert_eq!(late, Response::ChangeRefused(ChangeRefused::NotOwner));
    assert!(
        play.service
            .desired(&host("t1"))
            .unwrap()
            .attachments
            .is_empty()
    );
    let take = Change::TakeOver {
        owner: owner(second, 3, "t2"),
    };
    let taken = play.swap(&node("t2"), id, second, take);
    assert!(matches!(taken, Response::Swapped(_)), "{taken:?}");
}

#[test]
fn after_a_forced_detachment_the_next_attachment_may_take_over() {
    let play = Play::new();
    let id = play.create("web1");
    let first = play.attach("web1", "t1", false).unwrap();
    play.swap(&node("t1"), id, first, open(first, 1, "t1"));
    let force = Detach {
        force: true,
        ..Detach::default()
    };
    let done = play
        .service
        .detach(&disk("web1"), &force, play.now)
        .unwrap();
    assert!(matches!(done, DetachState::Done(done) if !done.clean));
    let second = play.attach("web1", "t2", false).unwrap();
    let desired = play.service.desired(&host("t2")).unwrap();
    assert!(desired.attachments[0].take_over);
    let opened = play.swap(&node("t2"), id, second, open(second, 1, "t2"));
    assert!(
        matches!(
            opened,
            Response::ChangeRefused(ChangeRefused::AlreadyOpen { .. })
        ),
        "an open epoch is taken over, never just opened again: {opened:?}"
    );
}

#[test]
fn an_operators_own_writer_has_the_disk_to_itself() {
    let play = Play::new();
    let id = play.create("web1");
    let alice = Identity::new(Role::Operator, host("alice"));
    let take = |fresh| {
        let request = TakeWriter::default();
        play.service
            .take_writer(&disk("web1"), &alice.host, &request, fresh, play.now)
    };
    let writer = take(backend(1)).unwrap();
    assert_eq!((writer.backend, writer.stores.len()), (backend(1), 2));
    assert_eq!(
        take(backend(2)).unwrap_err().kind,
        Kind::NotNow,
        "also for alice"
    );
    assert_eq!(
        play.attach("web1", "t1", false).unwrap_err().kind,
        Kind::NotNow
    );

    let opened = play.swap(&alice, id, writer.backend, open(writer.backend, 1, "alice"));
    assert!(matches!(opened, Response::Swapped(_)), "{opened:?}");
    let detach = || {
        play.service
            .detach(&disk("web1"), &Detach::default(), play.now)
    };
    assert_eq!(
        detach().unwrap_err().kind,
        Kind::NotNow,
        "it is being written"
    );
    play.swap(&alice, id, writer.backend, close(writer.backend, 1));
    assert!(matches!(detach(), Ok(DetachState::Done(done)) if done.clean));
    let place = Place::Operator(host("alice"));
    assert!(format!("{place:?}").contains("alice"));
}

#[test]
fn whoever_wrote_a_disk_for_a_while_gives_back_its_own_attachment_only() {
    let play = Play::new();
    let id = play.create("web1");
    let (alice, fresh) = (host("alice"), backend(1));
    let taken = play.service.take_writer(
        &disk("web1"),
        &alice,
        &TakeWriter::default(),
        fresh,
        play.now,
    );
    let detach = Detach {
        backend: Some(taken.unwrap().backend),
        force: true,
        ..Detach::default()
    };
    let give_back = || play.service.detach(&disk("web1"), &detach, play.now);
    // A VM that could not wait took the disk over meanwhile.
    let vm = play.attach("web1", "t1", true).unwrap();
    play.swap(&node("t1"), id, vm, open(vm, 1, "t1"));
    for _ in 0..2 {
        assert!(matches!(give_back(), Ok(DetachState::Done(_))));
        let (_, kept) = play.service.disk_and_attachments(&disk("web1")).unwrap();
        let left = kept.unwrap().into_value().0;
        assert_eq!(left.iter().map(|a| a.backend).collect::<Vec<_>>(), [vm]);
        assert_eq!(left[0].wanted, Wanted::Attached);
    }
}

#[test]
fn a_swap_asked_again_after_a_lost_answer_shows_what_it_did() {
    let play = Play::new();
    let id = play.create("web1");
    let mine = play.attach("web1", "t1", false).unwrap();
    let change = open(mine, 1, "t1");
    let first = play.swap_at(&node("t1"), id, mine, Revision(0), change.clone());
    let Response::Swapped(record) = first else {
        panic!("{first:?}");
    };
    let again = play.swap_at(&node("t1"), id, mine, Revision(0), change);
    assert_eq!(again, Response::Conflict(record));
}

#[test]
fn of_two_that_race_for_a_swap_one_wins() {
    let dir = tempfile::TempDir::new().unwrap();
    let catalog = RedbCatalog::open(&dir.path().join("catalog")).unwrap();
    let mut play = Play::over(Arc::new(catalog));
    play.all_beat();
    let id = play.create("web1");
    let mine = play.attach("web1", "t1", false).unwrap();
    let race = |life| play.swap_at(&node("t1"), id, mine, Revision(0), open(mine, life, "t1"));
    let answers: Vec<Response> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8).map(|life| scope.spawn(move || race(life))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let won = |answer: &&Response| matches!(answer, Response::Swapped(_));
    assert_eq!(answers.iter().filter(won).count(), 1);
    let lost = |answer: &&Response| matches!(answer, Response::Conflict(_));
    assert_eq!(answers.iter().filter(lost).count(), 7);
}

#[test]
fn a_restart_forgets_nothing_that_matters() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("catalog");
    let mut play = Play::over(Arc::new(RedbCatalog::open(&path).unwrap()));
    play.all_beat();
    let id = play.create("web1");
    let mine = play.attach("web1", "t1", false).unwrap();
    play.swap(&node("t1"), id, mine, open(mine, 1, "t1"));
    let before = (play.record(id), play.service.desired(&host("t1")).unwrap());
    drop(play);

    let mut play = Play::over(Arc::new(RedbCatalog::open(&path).unwrap()));
    let after = (play.record(id), play.service.desired(&host("t1")).unwrap());
    assert_eq!(before, after);
    let hosts = play.service.hosts(play.now).unwrap();
    assert!(hosts.iter().all(|host| host.liveness == Liveness::Unheard));
    // Who orders a move now would hear that there is no store: nodes come first, or do not come any more.
    assert!(!play.service.fleet_is_known(at(0)).unwrap());
    assert!(play.service.fleet_is_known(at(60)).unwrap());
    play.all_beat();
    assert!(play.service.fleet_is_known(at(0)).unwrap());
    assert_eq!(play.service.status(play.now).unwrap().hosts_up, 3);
    let closed = play.swap(&node("t1"), id, mine, close(mine, 1));
    assert!(matches!(closed, Response::Swapped(_)), "{closed:?}");
}
