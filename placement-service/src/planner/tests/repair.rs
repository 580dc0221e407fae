//! Copies that are missing, stores that are lost or to be emptied: what is waited for, and what is done.

use super::*;
use crate::policy::class::DEFAULT_REPAIR_AFTER;

const A_MINUTE_AGO: UnixSeconds = UnixSeconds(NOW.0 - 60);

fn set_health(case: &mut Case, n: u128, health: Health) {
    case.fleet.stores.get_mut(&store(n)).unwrap().health = health;
}

/// A disk on 1 and 3, of which 3 was ejected a minute ago, with its host.
fn ejected() -> Case {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    let change = Change::Eject {
        by: by(),
        stores: vec![store(3)],
    };
    case.record = apply(&case.record, &change);
    case.retired = vec![Retired {
        store: store(3),
        extents: vec![case.record.extents()],
        since: A_MINUTE_AGO,
        ejected: true,
    }];
    let since = A_MINUTE_AGO;
    set_health(&mut case, 3, Health::Silent { since });
    case
}

#[test]
fn an_ejected_copy_is_waited_for_and_then_another_one_is_made() {
    let mut case = ejected();
    let plan = case.plan();
    assert_eq!(story(&plan), [] as [&str; 0]);
    assert!(plan.repair);
    let until = A_MINUTE_AGO.after(DEFAULT_REPAIR_AFTER);
    assert_eq!(plan.awaited.len(), 1);
    assert_eq!(
        (plan.awaited[0].store, plan.awaited[0].until),
        (store(3), until)
    );
    assert!(
        plan.shortfalls.is_empty(),
        "it is not that there is no room"
    );

    case.now = until;
    assert_eq!(story(&case.plan())[..3], ["switch 1 2", "fill", "complete"]);
    assert!(case.plan().awaited.is_empty());
}

#[test]
fn a_store_that_is_back_in_time_gets_its_copy_back() {
    let mut case = ejected();
    set_health(&mut case, 3, Health::Up);
    assert_eq!(story(&case.plan()), ["switch 1 3", "fill", "complete"]);
    // Late it does too, as long as nobody else has begun.
    case.now = NOW.after(DEFAULT_REPAIR_AFTER * 3);
    assert_eq!(story(&case.plan()), ["switch 1 3", "fill", "complete"]);
}

#[test]
fn a_store_that_is_declared_lost_is_not_waited_for() {
    let mut case = ejected();
    set_health(&mut case, 3, Health::Gone);
    let plan = case.plan();
    assert_eq!(story(&plan)[..3], ["switch 1 2", "fill", "complete"]);
    assert_eq!((plan.copies_left, plan.repair), (1, true));
}

#[test]
fn a_member_that_is_lost_is_short_at_once_and_one_that_is_away_when_its_time_is_up() {
    let mut case = Case::new(&[("tokyo", "repair-after = \"1h\"")], "tokyo", &[1, 3]);
    let since = NOW;
    set_health(&mut case, 3, Health::Silent { since });
    case.now = NOW.after(Duration::from_secs(3599));
    assert!(case.plan().is_empty() && !case.plan().repair);
    let why = |case: &Case| {
        let told = case.planner().explain(&case.subject());
        told.copies.last().unwrap().why_here.clone()
    };
    let until = format!("back by {}", NOW.after(Duration::from_secs(3600)));
    assert!(why(&case).contains(&until), "{}", why(&case));
    case.now = NOW.after(Duration::from_secs(3600));
    let plan = case.plan();
    assert_eq!(
        (plan.copies_now, plan.copies_left, plan.repair),
        (2, 1, true)
    );
    assert_eq!(story(&plan)[0], "switch 1 2");
    case.now = NOW;
    set_health(&mut case, 3, Health::Gone);
    assert!(case.plan().repair);
}

#[test]
fn a_store_that_comes_and_goes_is_waited_for_from_the_ejection_on() {
    let mut case = ejected();
    case.now = A_MINUTE_AGO.after(DEFAULT_REPAIR_AFTER);
    let since = case.now;
    set_health(&mut case, 3, Health::Silent { since });
    assert_eq!(story(&case.plan())[0], "switch 1 2");
}

#[test]
fn a_store_that_the_writer_calls_in_vain_is_given_up_when_its_time_is_up() {
    let mut case = ejected();
    set_health(&mut case, 3, Health::Up);
    case.unreachable = vec![store(3)];
    assert_eq!(story(&case.plan())[0], "switch 1 3", "it goes on trying");
    case.now = A_MINUTE_AGO.after(DEFAULT_REPAIR_AFTER);
    assert_eq!(story(&case.plan())[0], "switch 1 2");
}

#[test]
fn nothing_is_given_up_while_a_copy_is_waited_for() {
    // Its VM has moved away meanwhile: what stands in tokyo would go.
    let mut case = ejected();
    case.home = case.home.moved_to(&dc("osaka"), NOW, Duration::ZERO);
    assert_eq!(
        story(&case.plan())[0],
        "switch 11 12",
        "not waited for elsewhere"
    );
    // It is pinned off the one that is left.
    let mut case = ejected();
    case.pins = vec![Pin {
        disk: case.record.id,
        extents: None,
        hold: crate::policy::Hold::Off(vec![store(1)]),
        reason: "noisy".into(),
        until: crate::policy::Until::Lifted,
    }];
    let plan = case.plan();
    assert_eq!(story(&plan)[0], "switch 1 2", "1 stays until 3 is back");
}

#[test]
fn the_most_endangered_disks_are_repaired_first() {
    let plan = |n: u128, copies_left: u8, repair: bool| {
        let mut case = Case::new(&[("tokyo", "copies = 3")], "tokyo", &[1, 3]);
        case.record.id = DiskId::from_u128(n);
        let plan = case.plan();
        assert!(!plan.is_empty());
        Plan {
            copies_left,
            repair,
            ..plan
        }
    };
    let plans = [
        plan(1, 0, false),
        plan(2, 2, true),
        plan(3, 1, true),
        plan(4, 2, true),
    ];
    let order = |under_way: &[u128], at_once| {
        let under_way = under_way.iter().map(|n| DiskId::from_u128(*n)).collect();
        let order = rollout(&plans, &under_way, at_once);
        order.iter().map(|disk| disk.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(order(&[], 3), [3, 2, 4]);
    assert_eq!(order(&[4], 2), [4, 3], "what has begun goes on");
}

#[test]
fn a_store_is_emptied_without_a_copy_less_at_any_time() {
    let mut case = Case::new(&[("tokyo", "drop = \"manual\"")], "tokyo", &[1, 3]);
    case.fleet.stores.get_mut(&store(1)).unwrap().evacuating = true;
    let plan = case.plan();
    assert_eq!(
        story(&plan),
        ["switch 1 2 3", "fill", "complete", "switch 2 3", "retire 1"],
        "added, complete, then dropped, whatever policy keeps for a way back"
    );
    assert_eq!((plan.copies_now, plan.least_copies), (2, 2));
    assert!(!plan.repair);
    for step in &plan.steps {
        case.act(&step.action);
    }
    assert!(case.plan().is_empty());
    // Taken back midway: what stood before stands.
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    case.fleet.stores.get_mut(&store(1)).unwrap().evacuating = true;
    let first = case.plan().steps[0].action.clone();
    case.act(&first);
    case.fleet.stores.get_mut(&store(1)).unwrap().evacuating = false;
    assert_eq!(story(&case.plan()), ["switch 1 3", "retire 2"]);
}

#[test]
fn what_nothing_else_can_take_stays_on_a_store_that_is_to_be_emptied() {
    let mut case = Case::new(
        &[("tokyo", "copies = 2\nnever = [\"osaka\", \"frankfurt\"]")],
        "tokyo",
        &[1, 3],
    );
    case.fleet.stores.get_mut(&store(1)).unwrap().evacuating = true;
    set_health(&mut case, 2, Health::Silent { since: NOW });
    assert_eq!(case.goal_stores(), [1, 3]);
    assert_eq!(case.plan().shortfalls.len(), 1);
    assert!(case.plan().is_empty());
    // Rather than what is lost.
    set_health(&mut case, 3, Health::Gone);
    assert!(case.goal_stores().contains(&1));
}

#[test]
fn a_store_that_is_to_be_emptied_gets_nothing_new() {
    let mut case = Case::new(&[("tokyo", "copies = 3")], "tokyo", &[1, 3]);
    case.fleet.stores.get_mut(&store(2)).unwrap().evacuating = true;
    assert!(!case.goal_stores().contains(&2));
    let refused = case.planner().propose(
        &case.subject(),
        &Order::AddCopy {
            to: Target::Store(store(2)),
            extents: None,
        },
        "",
    );
    assert!(refused.unwrap_err().to_string().contains("being emptied"));
}

#[test]
fn guests_wait_below_min_copies_unless_what_they_wait_for_is_given_up() {
    let mut case = Case::new(&[("tokyo", "copies = 2\nmin-copies = 2")], "tokyo", &[1, 3]);
    let least = |case: &Case| case.planner().min_copies(&case.subject());
    assert_eq!(least(&case), 2);
    set_health(
        &mut case,
        3,
        Health::Silent {
            since: UnixSeconds(0),
        },
    );
    assert_eq!(least(&case), 2, "however long it is away");
    set_health(&mut case, 3, Health::Gone);
    assert_eq!(least(&case), 1);
}

#[test]
fn a_member_that_left_in_the_middle_of_a_fill_is_waited_for_as_others_are() {
    // It came from osaka, is being filled in tokyo, and its store on 3 goes away meanwhile.
    let mut case = Case::new(&[], "tokyo", &[11, 12]);
    case.record = switch(&case.record, case.record.extents(), &[1, 3]);
    // What it had then is synced, and stands sealed when it goes.
    case.record = apply(&case.record, &Change::TakeOver { owner: owner() });
    let settle = Change::Settle {
        by: by(),
        drop: vec![],
    };
    case.record = apply(&case.record, &settle);
    let change = Change::Eject {
        by: by(),
        stores: vec![store(3)],
    };
    case.record = apply(&case.record, &change);
    let since = A_MINUTE_AGO;
    set_health(&mut case, 3, Health::Silent { since });
    let plan = case.plan();
    assert_eq!(plan.awaited.len(), 1, "{plan:?}");
    assert_eq!(plan.awaited[0].store, store(3));
    assert!(story(&plan).iter().all(|step| !step.starts_with("switch")));
    set_health(&mut case, 3, Health::Up);
    assert_eq!(story(&case.plan())[0], "switch 1 3");
    set_health(&mut case, 3, Health::Silent { since });
    case.now = A_MINUTE_AGO.after(DEFAULT_REPAIR_AFTER);
    assert_eq!(story(&case.plan())[0], "switch 1 2");
}
