//! Which stores are taken, and what pins do to that.

use super::*;
use crate::policy::{Hold, Until};

fn pinned(case: &Case, part: Option<Extents>, hold: Hold) -> Pin {
    Pin {
        disk: case.record.id,
        extents: part,
        hold,
        reason: "by hand".into(),
        until: Until::Lifted,
    }
}

#[test]
fn only_what_is_missing_is_placed_anew() {
    let mut case = Case::new(&[("tokyo", "copies = 3")], "tokyo", &[1, 3]);
    assert_eq!(story(&case.plan()), ["switch 1 2 3", "fill", "complete"]);
    case.policies = policies(&[("tokyo", "copies = 1")]);
    assert_eq!(story(&case.plan()), ["switch 1", "retire 3"]);
}

#[test]
fn a_store_that_is_gone_is_replaced_and_one_that_is_silent_is_not() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    case.fleet.stores.get_mut(&store(3)).unwrap().health = Health::Silent { since: NOW };
    assert!(case.plan().is_empty());
    case.fleet.stores.get_mut(&store(3)).unwrap().health = Health::Gone;
    assert_eq!(case.goal_stores(), [1, 2]);
    case.fleet.stores.get_mut(&store(2)).unwrap().health = Health::Silent { since: NOW };
    assert_eq!(case.goal_stores(), [1, 11], "a silent one gets nothing new");
}

#[test]
fn a_disk_that_no_pair_can_hold_is_split() {
    let mut case = Case::new(&[], "osaka", &[1, 3]);
    case.record = disk_of(15, &[1, 3]);
    case.fleet.stores.retain(|id, _| id.as_u128() < 10);
    for (n, name) in [(11, "o1"), (12, "o2"), (13, "o3")] {
        add_store(&mut case.fleet, n, ("osaka", name, name), 0);
        // Room for ten extents: half of everything, which no greedy choice of pairs finds.
        case.fleet.stores.get_mut(&store(n)).unwrap().capacity_bytes =
            (10 * (64 << 20)) * 100 / 90 + 100;
    }
    let goal = case.goal();
    assert_eq!(goal.ranges.len(), 3, "{goal:?}");
    assert!(goal.ranges.iter().all(|range| range.copies.len() == 2));
    assert_eq!(goal.shortfalls, []);
    let plan = case.plan();
    assert_eq!(plan.next_sets().unwrap().len(), 3);
}

#[test]
fn disks_that_are_planned_together_do_not_take_the_same_room() {
    let mut case = Case::new(&[("osaka", "copies = 1")], "osaka", &[1, 3]);
    for n in [11, 12] {
        case.fleet.stores.get_mut(&store(n)).unwrap().capacity_bytes =
            (20 * (64 << 20)) * 100 / 90 + 100;
    }
    let planner = case.planner();
    let plans = planner.plan_all([case.subject(), case.subject()]);
    let sets = |plan: &Plan| numbers(&plan.next_sets().unwrap()[0].stores);
    assert_eq!((sets(&plans[0]), sets(&plans[1])), (vec![11], vec![12]));
}

#[test]
fn a_pinned_range_is_cut_out_of_the_map() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    case.pins = vec![pinned(&case, Some(extents(4, 8)), Hold::In(dc("osaka")))];
    assert_eq!(story(&case.plan())[0], "switch 4..8: 11 12");
    let plan = case.plan();
    for step in plan.steps {
        case.act(&step.action);
    }
    assert_eq!(case.record.map.len(), 3);
    assert!(case.plan().is_empty(), "{:?}", story(&case.plan()));
    case.pins.clear();
    case.retired.clear();
    assert_eq!(
        story(&case.plan()),
        ["switch 4..8: 1 3", "fill", "complete", "retire 11 12"]
    );
}

#[test]
fn copies_besides_policys_and_stores_that_get_none() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    case.pins = vec![pinned(&case, None, Hold::Also(vec![store(11)]))];
    assert_eq!(story(&case.plan()), ["switch 1 3 11", "fill", "complete"]);
    case.pins = vec![pinned(&case, None, Hold::Off(vec![store(1)]))];
    assert_eq!(
        story(&case.plan()),
        ["switch 2 3", "fill", "complete", "retire 1"]
    );
    case.pins = vec![pinned(&case, None, Hold::On(vec![store(12)]))];
    assert_eq!(case.goal_stores(), [1, 12]);
}

#[test]
fn the_latest_of_two_pins_counts() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    let on = pinned(&case, None, Hold::On(vec![store(2)]));
    let off = pinned(&case, None, Hold::Off(vec![store(2)]));
    case.pins = vec![off.clone(), on.clone()];
    assert_eq!(case.goal_stores(), [2, 3]);
    case.pins = vec![on, off];
    assert_eq!(case.goal_stores(), [1, 3]);
}

#[test]
fn a_pin_for_a_move_ahead_ends_when_the_vm_leaves() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    let mut pin = pinned(&case, None, Hold::In(dc("osaka")));
    pin.until = Until::VmLeaves(dc("tokyo"));
    case.pins = vec![pin];
    assert_eq!(case.goal_stores(), [11, 12]);
    case.home = case.home.moved_to(&dc("frankfurt"), NOW, Duration::ZERO);
    assert_eq!(case.goal_stores(), [21, 22]);
}

#[test]
fn an_unlabelled_store_gets_nothing() {
    let mut case = Case::new(&[], "tokyo", &[1]);
    case.fleet.hosts.get_mut(&host("t3")).unwrap().rack = None;
    assert_eq!(case.goal_stores(), [1, 2]);
}
