//! An operator's own placement: what is proposed, and what is refused.

use super::*;
use crate::policy::{Hold, Until};

impl Case {
    fn propose(&self, order: Order) -> Result<Proposal, Refused> {
        self.planner().propose(&self.subject(), &order, "by hand")
    }
}

fn move_to(to: &str) -> Order {
    Order::Move {
        to: dc(to),
        extents: None,
    }
}

fn add(n: u128) -> Order {
    Order::AddCopy {
        to: Target::Store(store(n)),
        extents: None,
    }
}

fn drop_copy(n: u128, force: bool) -> Order {
    Order::DropCopy {
        store: store(n),
        extents: None,
        force,
    }
}

#[test]
fn a_move_is_a_pin_and_its_plan_and_holds_until_the_vm_leaves() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    let proposal = case.propose(move_to("osaka")).unwrap();
    assert_eq!(
        story(&proposal.plan),
        ["switch 11 12", "fill", "complete", "retire 1 3"]
    );
    assert_eq!(
        proposal.plan.steps[0].write_round_trip,
        Some(Duration::from_millis(8))
    );
    assert_eq!(proposal.pins[0].until, Until::VmLeaves(dc("tokyo")));
    case.pins = proposal.pins;
    assert_eq!(case.plan(), proposal.plan, "what was shown is what is done");
    // The latest order counts.
    let back = case.propose(move_to("tokyo")).unwrap();
    assert!(back.plan.is_empty());
    assert_eq!(back.pins.len(), 1);
}

#[test]
fn a_range_is_moved_by_itself() {
    let case = Case::new(&[], "tokyo", &[1, 3]);
    let part = Some(extents(0, 4));
    let proposal = case
        .propose(Order::Move {
            to: dc("osaka"),
            extents: part,
        })
        .unwrap();
    assert_eq!(
        story(&proposal.plan),
        ["switch 11 12", "fill", "complete", "retire 1 3"]
    );
    assert_eq!(proposal.plan.next_sets().unwrap()[0].extents, extents(0, 4));
    let beyond = Some(extents(8, 17));
    let refused = case
        .propose(Order::Move {
            to: dc("osaka"),
            extents: beyond,
        })
        .unwrap_err();
    assert!(refused.why.contains("8..17 are not in it"), "{refused}");
}

#[test]
fn a_move_that_cannot_be_made_is_refused_with_the_reason() {
    let mut case = Case::new(&[("tokyo", "never = [\"frankfurt\"]")], "tokyo", &[1, 3]);
    let says = |order, case: &Case| case.propose(order).unwrap_err().to_string();
    assert!(says(move_to("frankfurt"), &case).contains("policy of tokyo says that no block"));
    assert!(says(move_to("oska"), &case).contains("did you mean osaka?"));
    case.fleet.stores.remove(&store(12));
    assert!(says(move_to("osaka"), &case).contains("no room for all copies"));
}

#[test]
fn an_added_copy_stays_until_it_is_dropped() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    let to = Target::Datacenter(dc("osaka"));
    let proposal = case.propose(Order::AddCopy { to, extents: None }).unwrap();
    assert_eq!(story(&proposal.plan), ["switch 1 3 11", "fill", "complete"]);
    case.pins = proposal.pins;
    for step in proposal.plan.steps {
        case.act(&step.action);
    }
    assert!(case.plan().is_empty());
    let dropped = case.propose(drop_copy(11, false)).unwrap();
    assert_eq!(story(&dropped.plan), ["switch 1 3", "retire 11"]);
    assert_eq!(dropped.losses, [] as [&str; 0]);
    assert_eq!(dropped.pins.len(), 1);
    assert_eq!(dropped.pins[0].hold, Hold::Off(vec![store(11)]));
    // A part of it: the pin goes on for the rest.
    let part = Order::DropCopy {
        store: store(11),
        extents: Some(extents(4, 8)),
        force: false,
    };
    let dropped = case.propose(part).unwrap();
    assert_eq!(dropped.plan.next_sets().unwrap()[0].extents, extents(4, 8));
    assert_eq!(dropped.pins.len(), 3);
    case.pins = dropped.pins;
    assert_eq!(case.plan().next_sets(), dropped.plan.next_sets());
}

#[test]
fn copies_that_were_added_ahead_are_the_near_ones_when_the_vm_arrives() {
    // The old way: add a location, wait, go there.
    let mut case = Case::new(&[], "tokyo", &[1, 3, 11, 12]);
    for n in [11, 12] {
        case.pins.push(Pin {
            disk: case.record.id,
            extents: None,
            hold: Hold::Also(vec![store(n)]),
            reason: "ahead".into(),
            until: Until::Lifted,
        });
    }
    add_store(&mut case.fleet, 13, ("osaka", "r3", "o3"), 1000);
    assert!(case.plan().is_empty());
    case.home = Home::new(dc("osaka"));
    assert_eq!(
        story(&case.plan()),
        ["switch 11 12", "retire 1 3"],
        "and no third one"
    );
    // In the VM's own datacenter an added copy is one more.
    let mut near = Case::new(&[], "tokyo", &[1, 3]);
    near.pins = near.propose(add(2)).unwrap().pins;
    assert_eq!(near.goal_stores(), [1, 2, 3]);
}

#[test]
fn a_copy_is_added_where_it_can_stand() {
    let mut case = Case::new(&[("tokyo", "never = [\"frankfurt\"]")], "tokyo", &[1, 3]);
    case.fleet.stores.get_mut(&store(12)).unwrap().health = Health::Silent { since: NOW };
    let says = |n, case: &Case| case.propose(add(n)).unwrap_err().to_string();
    assert!(says(1, &case).contains("a member already"));
    assert!(says(12, &case).contains("not up"));
    assert!(says(21, &case).contains("no block"));
    assert!(says(99, &case).contains("there is no store"));
    add_store(&mut case.fleet, 4, ("tokyo", "r1", "t1"), 10);
    assert!(says(4, &case).contains("same host"));
    add_store(&mut case.fleet, 5, ("tokyo", "r1", "t5"), 0);
    assert!(says(5, &case).contains("room for 0 more"));
}

#[test]
fn dropping_what_policy_promises_is_refused_or_names_what_is_lost() {
    let mut case = Case::new(&[("tokyo", "away = { osaka = 1 }")], "tokyo", &[1, 3, 11]);
    let refused = case.propose(drop_copy(3, false)).unwrap_err().to_string();
    assert!(
        refused.contains("asks for 3 copies of extents 0..16, and without"),
        "{refused}"
    );
    let refused = case.propose(drop_copy(11, false)).unwrap_err().to_string();
    assert!(refused.contains("one of them in osaka"), "{refused}");
    // Forced, and there is another store: nothing is lost.
    let forced = case.propose(drop_copy(3, true)).unwrap();
    assert_eq!(
        story(&forced.plan),
        ["switch 1 2 11", "fill", "complete", "retire 3"]
    );
    assert_eq!((forced.losses, forced.plan.least_copies), (vec![], 3));
    // And where there is none, the losses are named.
    for n in [2, 12, 21, 22] {
        case.fleet.stores.remove(&store(n));
    }
    assert!(case.propose(drop_copy(3, false)).is_err());
    let forced = case.propose(drop_copy(3, true)).unwrap();
    assert_eq!(story(&forced.plan), ["switch 1 11", "retire 3"]);
    assert_eq!(
        forced.losses,
        [
            "extents 0..16 are left with 2 copies; policy asks for 3, and there is no room for another"
        ]
    );
    case.pins = forced.pins;
    assert_eq!(case.plan(), forced.plan, "the pin alone leads there");
    for step in forced.plan.steps {
        case.act(&step.action);
    }
    assert!(case.plan().is_empty(), "{:?}", story(&case.plan()));
}

#[test]
fn a_copy_is_replaced_by_adding_one_and_dropping_the_other() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    let added = case.propose(add(2)).unwrap();
    case.pins = added.pins;
    case.act(&added.plan.steps[0].action);
    assert!(
        case.propose(drop_copy(1, false)).is_err(),
        "not complete yet"
    );
    case.act(&added.plan.steps[2].action);
    let dropped = case.propose(drop_copy(1, false)).unwrap();
    assert_eq!(story(&dropped.plan), ["switch 2 3", "retire 1"]);
    assert_eq!(dropped.losses, [] as [&str; 0]);
    case.pins = dropped.pins;
    for step in dropped.plan.steps {
        case.act(&step.action);
    }
    assert!(case.plan().is_empty(), "and it does not come back");
    // One that stands elsewhere takes nobody's place.
    let mut far = Case::new(&[], "tokyo", &[1, 3, 11]);
    far.pins = vec![Pin {
        disk: far.record.id,
        extents: None,
        hold: Hold::Also(vec![store(11)]),
        reason: "far".into(),
        until: Until::Lifted,
    }];
    far.fleet.stores.remove(&store(2));
    assert!(far.propose(drop_copy(1, false)).is_err());
}

#[test]
fn the_last_copy_is_dropped_by_no_force() {
    let mut case = Case::new(&[], "tokyo", &[1]);
    let none = case.propose(drop_copy(3, false)).unwrap_err().to_string();
    assert!(none.contains("has none of"), "{none}");
    let moved = case.propose(drop_copy(1, true)).unwrap();
    assert_eq!(story(&moved.plan)[0], "switch 2 3", "others can have it");
    case.record = switch(&case.record, extents(0, 16), &[2, 3]);
    let sealed = case.propose(drop_copy(1, true)).unwrap_err().to_string();
    assert!(sealed.contains("still filled from it"), "{sealed}");
    case.record = disk(&[1]);
    case.fleet.stores.retain(|id, _| *id == store(1));
    let refused = case.propose(drop_copy(1, true)).unwrap_err().to_string();
    assert!(
        refused.contains("all that is in them would be lost"),
        "{refused}"
    );
}

#[test]
fn a_copy_that_is_kept_for_a_way_back_can_be_dropped_by_hand() {
    let mut case = Case::new(&[("osaka", "drop = \"manual\"")], "osaka", &[11, 12]);
    case.retired = vec![Retired {
        store: store(1),
        extents: vec![extents(0, 16)],
        since: NOW,
        ejected: false,
    }];
    assert!(case.plan().is_empty());
    assert_eq!(
        story(&case.propose(drop_copy(1, false)).unwrap().plan),
        ["retire 1"]
    );
}
