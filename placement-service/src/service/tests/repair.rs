//! Stores that fail, come back, are lost, and are emptied: as stories, each told twice: with one service, and
//! with one that is killed and started anew before every step (I8).

use super::moving::{World, stores, twice};
use super::{disk, store_id};
use crate::api::{DeclareLost, Evacuate, MoveKind, MoveState, MoveWhy, PrepareDisk};
use crate::policy::class::DEFAULT_REPAIR_AFTER;
use crate::service::Kind;
use replicator::words::{BackendId, Change, DatacenterName, DiskId, Life, StoreId};

/// The store of the second copy, and its node.
fn second(world: &World, id: DiskId) -> (u128, &'static str) {
    match world.members(id).contains(&2) {
        true => (2, "t2"),
        false => (3, "t3"),
    }
}

fn other(store: u128) -> u128 {
    5 - store
}

fn eject(world: &World, id: DiskId, by: BackendId, store: u128) {
    let stores = vec![store_id(store)];
    let by_life = (by, Life(1));
    world.swap(
        "t1",
        id,
        by,
        Change::Eject {
            by: by_life,
            stores,
        },
    );
}

fn problems(world: &World) -> String {
    world.service.status(world.now).unwrap().problems.join("\n")
}

fn lost(world: &World, store: u128) -> crate::api::Bereaved {
    let request = DeclareLost {
        reason: "its disk burnt".into(),
    };
    let store = store_id(store);
    world
        .service
        .declare_lost(store, &request, "alice", world.now)
        .unwrap()
}

fn evacuate(
    world: &World,
    store: u128,
    plan_only: bool,
) -> Result<crate::api::Evacuation, crate::service::ServiceError> {
    let request = Evacuate {
        reason: "new disks".into(),
        plan_only,
    };
    world
        .service
        .evacuate(store_id(store), &request, "alice", world.now)
}

fn names(world: &World, id: DiskId, store: u128) -> bool {
    world.record_of(id).stores().contains(&store_id(store))
}

#[test]
fn an_ejected_copy_is_waited_for_across_restarts_and_then_made_elsewhere() {
    twice(|world| {
        world.outlives_silence = true;
        let (id, mine) = world.running_on_t1("web1");
        let (gone, node) = second(world, id);
        world.down.insert(node);
        eject(world, id, mine, gone);
        world.steps(6);
        assert_eq!(world.members(id), [1], "it may only be restarting");
        assert!(world.service.moves(world.now).unwrap().under_way.is_empty());
        let said = problems(world);
        assert!(said.contains("is waited for until"), "{said}");
        let explained = world.service.explain(&disk("web1"), world.now).unwrap();
        assert_eq!(explained.awaited[0].store, store_id(gone));

        world.pass_time(DEFAULT_REPAIR_AFTER);
        world.steps(6);
        assert_eq!(world.members(id), [1, other(gone)]);
        assert!(world.record_of(id).map[0].history.is_whole());
        assert_eq!(world.moving("web1").why, MoveWhy::Repair);
        assert_eq!(world.moving("web1").state, MoveState::Done);
        assert!(!problems(world).contains("fewer"), "{}", problems(world));
        // Back too late, it is told to delete what it has.
        world.down.clear();
        world.steps(4);
        assert!(world.dropped.contains_key(&store_id(gone)));
        assert_eq!(world.members(id), [1, other(gone)]);
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
fn a_store_that_is_back_in_time_joins_the_same_disk_again() {
    twice(|world| {
        world.outlives_silence = true;
        let (id, mine) = world.running_on_t1("web1");
        let (gone, node) = second(world, id);
        world.down.insert(node);
        eject(world, id, mine, gone);
        world.steps(3);
        world.pass_time(DEFAULT_REPAIR_AFTER / 2);
        world.steps(3);
        world.down.clear();
        world.steps(5);
        assert_eq!(world.members(id), [1, gone]);
        assert!(world.record_of(id).map[0].history.is_whole());
        assert!(
            world.dropped.is_empty(),
            "it is the base: only the difference crosses"
        );
    });
}

#[test]
fn a_lost_store_is_replaced_at_once_and_found_again_it_is_one_of_many() {
    twice(|world| {
        world.outlives_silence = true;
        let (id, mine) = world.running_on_t1("web1");
        let (gone, node) = second(world, id);
        world.down.insert(node);
        world.steps(3);
        let bereaved = lost(world, gone);
        assert_eq!(bereaved.disks, [disk("web1")]);
        assert!(bereaved.last_copies.is_empty());
        assert_eq!(
            world
                .service
                .disk(&disk("web1"), world.now)
                .unwrap()
                .copies_now,
            1
        );
        assert!(problems(world).contains("declared lost"));
        // The writer cannot change its members before it has given up the one that is silent.
        eject(world, id, mine, gone);
        world.steps(6);
        assert_eq!(world.members(id), [1, other(gone)]);
        assert!(world.record_of(id).map[0].history.is_whole());

        world.down.clear();
        world.steps(4);
        let said = problems(world);
        assert!(said.contains("is declared lost, and is up"), "{said}");
        let again = world
            .service
            .declare_lost(store_id(gone), &DeclareLost::default(), "bob", world.now)
            .unwrap();
        assert_eq!(
            again.store.order.unwrap().by,
            "alice",
            "asking again changes nothing"
        );
        let found = world
            .service
            .declare_found(store_id(gone), "alice", world.now)
            .unwrap();
        assert_eq!(found.order, None);
        let not = world
            .service
            .declare_found(store_id(gone), "alice", world.now)
            .unwrap_err();
        assert_eq!(not.kind, Kind::NotNow);
        world.steps(3);
        assert_eq!(world.members(id), [1, other(gone)], "nothing moves for it");
    });
}

#[test]
fn what_only_a_lost_store_has_is_named_and_nothing_is_given_up() {
    twice(|world| {
        world.outlives_silence = true;
        let (id, mine) = world.running_on_t1("web1");
        let (gone, _) = second(world, id);
        eject(world, id, mine, 1);
        world.close("t1", id, mine);
        let bereaved = lost(world, gone);
        assert_eq!(bereaved.last_copies, [disk("web1")]);
        world.steps(4);
        assert_eq!(world.members(id), [gone]);
        assert_eq!(
            world
                .service
                .disk(&disk("web1"), world.now)
                .unwrap()
                .copies_now,
            0
        );
    });
}

#[test]
fn guests_are_told_how_few_copies_they_may_go_on_with() {
    twice(|world| {
        world.outlives_silence = true;
        world
            .apply(
                "tokyo",
                "copies = 2\nmin-copies = 2\nrebalance = \"off\"",
                4,
            )
            .unwrap();
        let (id, mine) = world.running_on_t1("web1");
        let least = |world: &World| world.running["t1"][&mine].orders.min_copies;
        world.step();
        assert_eq!(least(world), 2);
        let (gone, node) = second(world, id);
        world.down.insert(node);
        world.pass_time(DEFAULT_REPAIR_AFTER * 2);
        world.steps(3);
        assert_eq!(least(world), 2, "it waits for as long as it takes");
        assert_eq!(world.members(id), [1, gone]);
        lost(world, gone);
        world.step();
        assert_eq!(
            least(world),
            1,
            "nobody comes back: on with what is left, and repair"
        );
    });
}

#[test]
fn a_store_that_is_lost_does_not_let_a_guest_go_on_without_the_others() {
    twice(|world| {
        world.outlives_silence = true;
        let text = "copies = 3\nmin-copies = 2\nrebalance = \"off\"";
        world.apply("tokyo", text, 4).unwrap();
        let (id, mine) = world.running_on_t1("web1");
        world.steps(4);
        assert_eq!(world.members(id), [1, 2, 3]);
        let least = |world: &World| world.running["t1"][&mine].orders.min_copies;
        world.down.extend(["t2", "t3"]);
        world.steps(3);
        lost(world, 3);
        world.steps(4);
        assert_eq!(least(world), 2, "nobody said that the other one is lost");
        assert_eq!(world.members(id), [1, 2, 3]);
        lost(world, 2);
        world.step();
        assert_eq!(least(world), 1);
    });
}

#[test]
fn one_that_only_restarts_is_back_and_the_lost_one_is_replaced() {
    twice(|world| {
        world.outlives_silence = true;
        let text = "copies = 3\nmin-copies = 2\nrebalance = \"off\"";
        world.apply("tokyo", text, 4).unwrap();
        let (id, _) = world.running_on_t1("web1");
        world.steps(4);
        world.down.extend(["t2", "t3"]);
        world.steps(3);
        lost(world, 3);
        world.steps(3);
        world.down.remove("t2");
        world.steps(6);
        let members = world.members(id);
        assert_eq!(members.len(), 3, "{members:?}");
        assert!(members.starts_with(&[1, 2]) && !members.contains(&3));
    });
}

#[test]
fn a_store_is_emptied_with_every_copy_there_until_another_is() {
    twice(|world| {
        world.apply("tokyo", "drop = \"manual\"", 4).unwrap();
        let (id, _) = world.running_on_t1("web1");
        let (from, _) = second(world, id);
        let planned = evacuate(world, from, true).unwrap();
        assert_eq!(planned.disks.len(), 1);
        assert_eq!(planned.disks[0].to, [store_id(other(from))]);
        assert!(planned.bytes > 0 && planned.stuck.is_empty());
        assert_eq!(planned.store.order, None, "only planned");
        world.steps(2);
        assert_eq!(world.members(id).len(), 2);

        world.fills = false;
        let begun = evacuate(world, from, false).unwrap();
        assert_eq!(begun.store.task.disks_left, 1);
        world.steps(3);
        assert_eq!(world.members(id), [1, 2, 3], "added first");
        let moving = world.moving("web1");
        assert_eq!(moving.why, MoveWhy::Evacuation(store_id(from)));
        assert_eq!(moving.state, MoveState::Filling);
        let create = world.service.stores(world.now).unwrap();
        assert_eq!(
            create.iter().filter(|store| store.order.is_some()).count(),
            1
        );
        world.fills = true;
        world.steps(8);
        assert_eq!(world.members(id), [1, other(from)]);
        assert!(!names(world, id, from));
        assert!(
            world.dropped.contains_key(&store_id(from)),
            "whatever policy keeps"
        );
        let emptied = world.service.stores(world.now).unwrap();
        let emptied = emptied
            .iter()
            .find(|store| store.id == store_id(from))
            .unwrap();
        assert_eq!(emptied.task.disks_left, 0);
        assert!(problems(world).is_empty(), "{}", problems(world));
        assert!(
            world
                .service
                .plan(&disk("web1"), world.now)
                .unwrap()
                .is_empty()
        );
        // A new disk does not come to it.
        let next = world.create("web2");
        assert!(!names(world, next, from));
    });
}

/// Copies ahead to osaka, for as long as it takes the VM to come.
fn prepare(world: &World) -> u64 {
    let request = PrepareDisk {
        to: DatacenterName::new("osaka").unwrap(),
        node: None,
    };
    let prepared = world
        .service
        .prepare_disk(&disk("web1"), &request, "alice", world.now);
    prepared.unwrap().number
}

fn under_way(world: &World) -> Vec<(u64, MoveKind)> {
    let moves = world.service.moves(world.now).unwrap().under_way;
    moves.iter().map(|one| (one.number, one.kind)).collect()
}

#[test]
fn what_is_copied_ahead_gives_way_to_a_repair_and_goes_on_afterwards() {
    twice(|world| {
        world.outlives_silence = true;
        let (id, mine) = world.running_on_t1("web1");
        let seed = |world: &World| stores(&world.running["t1"][&mine].orders.seed);
        let number = prepare(world);
        world.steps(2);
        assert_eq!(seed(world), [11, 12]);

        let (gone, node) = second(world, id);
        world.down.insert(node);
        eject(world, id, mine, gone);
        world.steps(3);
        assert_eq!(under_way(world), [(number, MoveKind::Prepare)], "no hurry");
        world.fills = false;
        lost(world, gone);
        world.steps(4);
        assert_eq!(world.members(id), [1, other(gone)]);
        assert_eq!(world.moving("web1").why, MoveWhy::Repair);
        let [first, second] = under_way(world)[..] else {
            panic!("{:?}", under_way(world));
        };
        assert_eq!(first, (number, MoveKind::Prepare));
        assert_eq!(second.1, MoveKind::Move);
        assert!(seed(world).is_empty(), "one after the other");

        world.fills = true;
        world.steps(4);
        assert!(world.record_of(id).map[0].history.is_whole());
        assert_eq!(under_way(world), [(number, MoveKind::Prepare)]);
        assert_eq!(seed(world), [11, 12]);
        assert_eq!(world.service.status(world.now).unwrap().retired_copies, 1);
    });
}

#[test]
fn a_store_is_emptied_of_a_disk_that_is_prepared_and_that_nobody_has_open() {
    twice(|world| {
        let (id, mine) = world.running_on_t1("web1");
        let number = prepare(world);
        world.steps(2);
        world.close("t1", id, mine);
        let detach = crate::api::Detach::default();
        world
            .service
            .detach(&disk("web1"), &detach, world.now)
            .unwrap();
        let (from, _) = second(world, id);
        evacuate(world, from, false).unwrap();
        world.steps(12);
        assert_eq!(world.members(id), [1, other(from)]);
        assert!(!names(world, id, from));
        assert!(world.record_of(id).owner().is_none(), "and is closed again");
        assert_eq!(under_way(world), [(number, MoveKind::Prepare)]);
    });
}

#[test]
fn what_is_copied_ahead_is_over_with_the_move_that_it_gave_way_to_when_its_vm_arrives() {
    twice(|world| {
        world.outlives_silence = true;
        let (id, mine) = world.running_on_t1("web1");
        let number = prepare(world);
        world.fills = false;
        let (from, _) = second(world, id);
        evacuate(world, from, false).unwrap();
        world.steps(4);
        assert_eq!(under_way(world).len(), 2);
        let standby = world.attach("web1", "o1");
        world.migrate(id, ("t1", mine), ("o1", standby));
        world.steps(2);
        let ended = world.service.moves(world.now).unwrap().ended;
        let ended: Vec<(u64, MoveState)> = ended
            .into_iter()
            .map(|one| (one.number, one.state))
            .collect();
        let both = [
            (number + 1, MoveState::Cancelled),
            (number, MoveState::Done),
        ];
        assert_eq!(ended, both);
    });
}

#[test]
fn an_evacuation_is_taken_back_wherever_it_is() {
    for steps in 0..6 {
        twice(|world| {
            let (id, _) = world.running_on_t1("web1");
            let (from, _) = second(world, id);
            evacuate(world, from, false).unwrap();
            world.fills = steps > 3;
            world.steps(steps);
            let store: StoreId = store_id(from);
            let stays = world
                .service
                .cancel_evacuation(store, "alice", world.now)
                .unwrap();
            assert_eq!(stays.order, None);
            world.fills = true;
            world.steps(6);
            assert_eq!(world.members(id).len(), 2);
            assert!(world.record_of(id).map[0].history.is_whole());
            assert!(
                world
                    .service
                    .plan(&disk("web1"), world.now)
                    .unwrap()
                    .is_empty()
            );
            let not = world
                .service
                .cancel_evacuation(store, "alice", world.now)
                .unwrap_err();
            assert_eq!(not.kind, Kind::NotNow);
        });
    }
}

#[test]
fn a_store_whose_copies_nobody_can_take_is_not_evacuated() {
    let mut world = World::new(false);
    world.apply("tokyo", "never = [\"osaka\"]", 4).unwrap();
    let (id, _) = world.running_on_t1("web1");
    let (from, _) = second(&world, id);
    let free: &'static str = if from == 2 { "t3" } else { "t2" };
    world.down.insert(free);
    world.steps(4);
    let refused = evacuate(&world, from, false).unwrap_err();
    assert_eq!(refused.kind, Kind::Impossible);
    assert!(refused.to_string().contains("disk web1"), "{refused}");
    let planned = evacuate(&world, from, true).unwrap();
    assert_eq!(planned.stuck.len(), 1);
    world.steps(3);
    assert!(names(&world, id, from));
    let unknown = evacuate(&world, 99, true).unwrap_err();
    assert_eq!(unknown.kind, Kind::NoSuchThing);
}

#[test]
fn a_detached_disk_leaves_a_store_that_is_emptied_and_one_that_is_lost() {
    twice(|world| {
        world.outlives_silence = true;
        let (id, mine) = world.running_on_t1("web1");
        world.close("t1", id, mine);
        let detach = crate::api::Detach::default();
        world
            .service
            .detach(&disk("web1"), &detach, world.now)
            .unwrap();
        world.steps(2);
        let (from, _) = second(world, id);
        evacuate(world, from, false).unwrap();
        world.steps(10);
        assert!(!names(world, id, from), "{:?}", world.record_of(id).map);
        assert_eq!(world.members(id).len(), 2);
        assert!(world.record_of(id).owner().is_none(), "and is closed again");
    });
}

#[test]
fn a_new_store_takes_its_share_a_disk_at_a_time() {
    twice(|world| {
        // Two stores of tokyo are full of disks before the third one is there.
        world.down.insert("t3");
        world.steps(3);
        world
            .apply(
                "tokyo",
                "copies = 2\nnever = [\"osaka\"]\nrebalance = \"off\"",
                2,
            )
            .unwrap();
        let disks: Vec<DiskId> = (0..4)
            .map(|n| world.create_of(&format!("web{n}"), 40))
            .collect();
        let on = |world: &World, store: u128| {
            disks.iter().filter(|id| names(world, **id, store)).count()
        };
        assert_eq!((on(world, 1), on(world, 2), on(world, 3)), (4, 4, 0));
        world.down.clear();
        world.steps(4);
        assert_eq!(on(world, 3), 0, "policy has said so");
        world
            .apply(
                "tokyo",
                "copies = 2\nnever = [\"osaka\"]\nrebalance = \"15%\"",
                2,
            )
            .unwrap();
        for _ in 0..60 {
            world.step();
            let moves = world.service.moves(world.now).unwrap().under_way;
            assert!(moves.len() <= 2, "{moves:?}");
            assert!(
                moves
                    .iter()
                    .all(|one| matches!(one.why, MoveWhy::Rebalance(_)))
            );
            for id in &disks {
                assert!(world.record_of(*id).map[0].history.copies() >= 2);
            }
        }
        assert!(on(world, 3) > 0);
        assert!(
            on(world, 3) <= on(world, 1).max(on(world, 2)),
            "no more than its share"
        );
        let spread = [on(world, 1), on(world, 2), on(world, 3)];
        world.steps(6);
        assert_eq!(
            [on(world, 1), on(world, 2), on(world, 3)],
            spread,
            "and there it ends"
        );
        assert!(world.service.moves(world.now).unwrap().under_way.is_empty());
    });
}
