//! What a large fleet needs: nobody looks at what does not concern it, and sums follow what they are of.

use super::*;
use crate::brief::Brief;

fn detach(play: &Play, name: &str, force: bool) {
    let request = Detach {
        node: None,
        force,
        ..Detach::default()
    };
    let detached = play.service.detach(&disk(name), &request, play.now);
    assert!(detached.is_ok());
}

/// The nodes that have to look again after `change`.
fn woken(play: &Play, change: impl FnOnce()) -> Vec<&'static str> {
    const ALL: [&str; 3] = ["t1", "t2", "t3"];
    let news = || ALL.map(|name| play.service.news_for(&host(name)));
    let changes = play.service.changes();
    let before = news();
    change();
    assert!(changes.has_changed().unwrap());
    let after = news();
    let other = |n: &usize| before[*n] != after[*n];
    (0..3).filter(other).map(|n| ALL[n]).collect()
}

#[test]
fn a_change_wakes_only_the_nodes_that_it_concerns() {
    let play = Play::new();
    let id = play.create("web1");
    let mut mine = None;
    let attach = || mine = Some(play.attach("web1", "t1", false).unwrap());
    assert_eq!(woken(&play, attach), ["t1"]);
    let mine = mine.unwrap();
    let opened = || {
        play.swap(&node("t1"), id, mine, open(mine, 1, "t1"));
    };
    assert_eq!(woken(&play, opened), ["t1"]);
    // Who stands by is told whom it waits for, and the other one who comes next.
    let standby = || {
        play.attach("web1", "t2", false).unwrap();
    };
    assert_eq!(woken(&play, standby), ["t1", "t2"]);
    // Who has lost it hears so, though the disk no longer says that it was there.
    assert_eq!(woken(&play, || detach(&play, "web1", true)), ["t1", "t2"]);
    // What its own node says concerns nobody else; a store that comes or goes may concern all.
    let running = || {
        play.beat_running("t3", &[(id, mine, BackendState::Starting)]);
    };
    assert_eq!(woken(&play, running), ["t3"]);
    let gone = || {
        play.beat("t3", heartbeat(vec![]));
    };
    assert_eq!(woken(&play, gone), ["t1", "t2", "t3"]);
}

#[test]
fn room_is_counted_as_disks_come_and_go_between_two_looks_at_all() {
    let play = Play::new();
    let wish = |name: &str, gib: u64| CreateDisk {
        name: disk(name),
        bytes: gib * GIB,
        copies: 3,
        extent_size: ExtentSize::DEFAULT,
        datacenter: None,
        near: None,
        class: None,
    };
    let create = |name: &str, gib: u64| {
        let created = play
            .service
            .create_disk(&wish(name, gib), DiskId::random(), play.now);
        created.map(|_| ()).map_err(|error| error.to_string())
    };
    let unwritten = |play: &Play| play.service.unwritten().unwrap();
    create("one", 60).unwrap();
    assert_eq!(unwritten(&play)[&store_id(1)], 60 * GIB);
    assert_eq!(unwritten(&play), play.service.count_unwritten().unwrap());
    create("two", 30).unwrap();
    assert_eq!(unwritten(&play)[&store_id(1)], 90 * GIB);
    play.service.delete_disk(&disk("one")).unwrap();
    assert_eq!(unwritten(&play)[&store_id(1)], 30 * GIB);
    create("three", 60).unwrap();
    assert_eq!(unwritten(&play), play.service.count_unwritten().unwrap());
}

#[test]
fn what_a_disk_occupies_is_what_the_stores_said_last() {
    let play = Play::new();
    let (one, two) = (play.create("web1"), play.create("web2"));
    let says = |n: u128, disks: &[(DiskId, u64)]| {
        let used = |(disk, allocated_bytes): &(DiskId, u64)| DiskUse {
            disk: *disk,
            allocated_bytes: *allocated_bytes,
        };
        StoreReport {
            disks: disks.iter().map(used).collect(),
            ..store(n)
        }
    };
    let occupied = |disk| -> Vec<(StoreId, u64)> {
        let stores = play.service.pulses.occupied(disk);
        stores
            .iter()
            .map(|(store, bytes)| (*store, *bytes))
            .collect()
    };
    play.beat("t1", heartbeat(vec![says(1, &[(one, 10), (two, 20)])]));
    play.beat("t2", heartbeat(vec![says(2, &[(one, 11)])]));
    assert_eq!(occupied(one), [(store_id(1), 10), (store_id(2), 11)]);
    play.beat("t1", heartbeat(vec![says(1, &[(one, 10), (two, 25)])]));
    assert_eq!(occupied(two), [(store_id(1), 25)]);
    play.beat("t1", heartbeat(vec![says(1, &[(two, 25)])]));
    assert_eq!(occupied(one), [(store_id(2), 11)]);
    // Its store is carried over to another node, which says so before the first one misses it.
    let moved = MoveStore { host: host("t2") };
    let by_word = play.service.move_store(store_id(1), &moved, play.now);
    assert!(by_word.is_ok());
    play.beat(
        "t2",
        heartbeat(vec![says(2, &[(one, 11)]), says(1, &[(two, 30)])]),
    );
    play.beat("t1", heartbeat(vec![]));
    assert_eq!(occupied(two), [(store_id(1), 30)]);
    play.beat("t2", heartbeat(vec![]));
    assert_eq!(occupied(one), []);
    assert_eq!(occupied(two), []);
}

/// One heartbeat as a node sends it, and all of it again where the service asks for that. Returns what was sent.
fn tell(play: &Play, brief: &mut Brief, heartbeat: &Heartbeat) -> Vec<Lists> {
    let mut sent = Vec::new();
    loop {
        let request = brief.shorten(heartbeat.clone());
        let (short, left_out) = match &request {
            Request::Heartbeat(whole) => (whole, false),
            Request::Brief(short) => (short, true),
            other => panic!("{other:?}"),
        };
        sent.push(short.lists);
        let listed = short.stores.iter().any(|store| !store.disks.is_empty());
        assert_eq!(listed, !left_out);
        let seen = short.seen;
        let answer = match play.service.handle(&node("t1"), FROM, request, play.now) {
            // As the server says it a second later.
            Response::Desired(desired) if desired.digest == seen => Response::Same,
            answer => answer,
        };
        if brief.hear(answer).unwrap().is_some() {
            return sent;
        }
    }
}

#[test]
fn a_heartbeat_leaves_out_what_the_service_remembers() {
    let play = Play::new();
    let id = play.create("web1");
    let with = |bytes| {
        let usage = DiskUse {
            disk: id,
            allocated_bytes: bytes,
        };
        heartbeat(vec![StoreReport {
            disks: vec![usage],
            ..store(1)
        }])
    };
    let occupied = |play: &Play| play.service.pulses.occupied(id).get(&store_id(1)).copied();
    let mut brief = Brief::new(7);
    assert_eq!(tell(&play, &mut brief, &with(10)), [Lists::Named(8)]);
    assert_eq!(tell(&play, &mut brief, &with(10)), [Lists::AsNamed(8)]);
    assert_eq!(occupied(&play), Some(10));
    assert_eq!(tell(&play, &mut brief, &with(20)), [Lists::Named(9)]);
    assert_eq!(tell(&play, &mut brief, &with(20)), [Lists::AsNamed(9)]);
    assert_eq!(occupied(&play), Some(20));
    // Another service leads, which has heard nothing.
    let other = Play::new();
    let asked = tell(&other, &mut brief, &with(20));
    assert_eq!(asked, [Lists::AsNamed(9), Lists::Named(10)]);
    assert_eq!(occupied(&other), Some(20));
    // It has seen what is wanted, and hears no more than that it is the same.
    let seen = Heartbeat {
        seen: other.service.desired(&host("t1")).unwrap().digest,
        ..with(40)
    };
    assert_eq!(tell(&other, &mut brief, &seen), [Lists::Named(11)]);
    assert_eq!(tell(&other, &mut brief, &seen), [Lists::AsNamed(11)]);
    assert_eq!(occupied(&other), Some(40));
    // What an earlier process of the node told is not what this one means.
    let mut restarted = Brief::new(99);
    assert_eq!(tell(&other, &mut restarted, &with(30)), [Lists::Named(100)]);
    let asked = tell(&other, &mut brief, &seen);
    assert_eq!(asked, [Lists::AsNamed(11), Lists::Named(12)]);
    assert_eq!(occupied(&other), Some(40));
    // An error may be that of another service, of whatever version.
    brief.forget();
    assert_eq!(tell(&other, &mut brief, &seen), [Lists::Named(13)]);
}

#[test]
fn the_same_means_what_the_heartbeat_had_seen() {
    let mut brief = Brief::new(0);
    let _ = brief.shorten(heartbeat(vec![]));
    assert!(brief.hear(Response::Same).is_err());
    assert!(brief.hear(Response::TellAll).is_err());
    let wanted = Desired {
        digest: 5,
        remembered: Some(1),
        ..Desired::default()
    };
    let heard = brief.hear(Response::Desired(wanted.clone()));
    assert_eq!(heard.unwrap(), Some(wanted.clone()));
    // It has begun anew, and acts on nothing that it heard before.
    let _ = brief.shorten(heartbeat(vec![]));
    assert!(brief.hear(Response::Same).is_err());
    let seen = Heartbeat {
        seen: 5,
        ..heartbeat(vec![])
    };
    let _ = brief.shorten(seen);
    assert_eq!(brief.hear(Response::Same).unwrap(), Some(wanted));
}
