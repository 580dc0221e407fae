//! The disk follows its VM: how, when, at what cost.

use super::*;

#[test]
fn a_disk_that_stands_where_its_vm_runs_stays_as_it_is() {
    let case = Case::new(&[], "tokyo", &[1, 3]);
    assert_eq!(case.goal_stores(), [1, 3]);
    assert!(case.plan().is_empty());
    let sharing_a_rack = Case::new(&[], "tokyo", &[1, 2]);
    assert!(
        sharing_a_rack.plan().is_empty(),
        "a preference moves nothing"
    );
}

#[test]
fn switch_writes_near_at_once_and_drops_the_far_copies_last() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    case.allocated = BTreeMap::from([(store(1), 100 << 20), (store(3), 100 << 20)]);
    let arrival = case.arrival("osaka");
    let set = NewSet {
        extents: extents(0, 16),
        stores: vec![store(11), store(12)],
    };
    assert_eq!(arrival.sets, [set]);
    assert_eq!(arrival.held, [] as [&str; 0]);
    case.home = arrival.home;
    let plan = case.plan();
    assert_eq!(
        story(&plan),
        ["switch 11 12", "fill", "complete", "retire 1 3"]
    );
    assert_eq!((plan.wanted_copies, plan.least_copies), (2, 2));
    assert!(!plan.repair);
    let fill = &plan.steps[1];
    let crossing = |from, to| Crossing {
        from: dc(from),
        to: dc(to),
        bytes: 100 << 20,
        at_most: false,
    };
    // The wide link is crossed once, whatever the number of copies.
    assert_eq!(
        fill.crossings,
        [crossing("osaka", "osaka"), crossing("tokyo", "osaka")]
    );
    assert_eq!(
        fill.time,
        Some(Duration::from_secs(2)),
        "the link's 50 MiB/s, not the limit's 100"
    );
    // A restarted service plans the rest from the map alone.
    case.act(&plan.steps[0].action.clone());
    assert_eq!(story(&case.plan()), ["fill", "complete", "retire 1 3"]);
    case.act(&plan.steps[2].action.clone());
    assert_eq!(story(&case.plan()), ["retire 1 3"]);
    case.act(&plan.steps[3].action.clone());
    assert!(case.plan().is_empty());
}

#[test]
fn extend_acknowledges_on_both_sides_until_the_near_side_is_whole() {
    let mut case = Case::new(&[("osaka", "follow = \"extend\"")], "osaka", &[1, 3]);
    case.home = Home::new(dc("osaka"));
    let plan = case.plan();
    assert_eq!(
        story(&plan),
        [
            "switch 1 3 11 12",
            "fill",
            "complete",
            "switch 11 12",
            "retire 1 3"
        ]
    );
    let trips: Vec<_> = plan
        .steps
        .iter()
        .map(|step| step.write_round_trip)
        .collect();
    let far = Some(Duration::from_millis(8));
    assert_eq!(
        trips,
        [far, far, far, None, None],
        "near is not measured here"
    );
    let copies: Vec<u8> = plan.steps.iter().map(|step| step.copies_after).collect();
    assert_eq!(copies, [2, 2, 4, 2, 2]);
    assert_eq!(case.arrival("osaka").sets[0].stores.len(), 4);
}

#[test]
fn manual_follows_nowhere_but_repairs() {
    let manual = [("osaka", "follow = \"manual\"")];
    let case = Case::new(&manual, "osaka", &[1, 3]);
    assert!(case.plan().is_empty());
    let arrival = Case::new(&manual, "tokyo", &[1, 3]).arrival("osaka");
    assert!(arrival.sets.is_empty() && arrival.held[0].contains("manual"));
    let short = Case::new(&manual, "osaka", &[1]);
    assert_eq!(story(&short.plan()), ["switch 1 3", "fill", "complete"]);
    assert!(short.plan().repair);
}

#[test]
fn a_bounce_within_the_hold_down_changes_nothing_until_the_vm_has_stayed() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    let there = case.arrival("osaka");
    assert!(!there.sets.is_empty(), "the first move is followed at once");
    case.home = there.home;
    case.record = switch(&case.record, extents(0, 16), &[11, 12]);
    case.now = NOW.after(Duration::from_secs(10));
    let back = case.arrival("tokyo");
    assert!(
        back.sets.is_empty() && back.held[0].contains("hold-down"),
        "{back:?}"
    );
    case.home = back.home;
    assert_eq!(
        story(&case.plan()),
        ["fill", "complete", "retire 1 3"],
        "what began goes on"
    );
    case.now = NOW.after(Duration::from_secs(39));
    assert!(case.plan().next_sets().is_none());
    case.now = NOW.after(Duration::from_secs(40));
    // Back on the sealed copies: they are the base, only the difference crosses.
    assert_eq!(
        story(&case.plan()),
        ["switch 1 3", "fill", "complete", "retire 11 12"]
    );
    case.now = NOW.after(Duration::from_secs(60));
    assert_eq!(
        case.arrival("osaka").held,
        [] as [&str; 0],
        "and it may move on"
    );
}

#[test]
fn a_new_near_copy_stands_on_the_vms_own_host() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    case.fleet.stores.get_mut(&store(12)).unwrap().used_bytes = 500 * GIB;
    add_store(&mut case.fleet, 13, ("osaka", "r1", "o3"), 2000);
    let sets = |host: Option<&HostName>| {
        let arrival = case.planner().arrival(&case.subject(), &dc("osaka"), host);
        numbers(&arrival.sets[0].stores)
    };
    assert_eq!(sets(None), [12, 13], "two racks, most room");
    assert_eq!(sets(Some(&host("o1"))), [11, 12]);
}

#[test]
fn a_disk_that_was_never_written_moves_without_copying() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    case.record.state = State::Closed {
        last: Version::ZERO,
        successor: None,
    };
    let arrival = case.arrival("osaka");
    assert_eq!(
        arrival.home,
        Home::new(dc("osaka")),
        "it did not come from anywhere"
    );
    case.home = arrival.home;
    let plan = case.plan();
    assert_eq!(story(&plan), ["switch 11 12", "retire 1 3"]);
    assert_eq!(plan.bytes(), 0);
}

#[test]
fn drop_says_when_the_far_copies_go() {
    let after = |drop: &str| {
        let file = format!("drop = \"{drop}\"");
        let mut case = Case::new(&[("osaka", &file)], "osaka", &[11, 12]);
        let since = NOW;
        case.retired = vec![Retired {
            store: store(1),
            extents: vec![extents(0, 16)],
            since,
            ejected: false,
        }];
        case.now = NOW.after(Duration::from_secs(60));
        let plan = case.plan();
        plan.steps.first().map(|step| match &step.action {
            Action::Retire { copies } => copies[0].not_before,
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(after("when-complete"), Some(None));
    assert_eq!(
        after("after 30m"),
        Some(Some(NOW.after(Duration::from_secs(1800))))
    );
    assert_eq!(after("50s"), Some(None), "the time is over");
    assert_eq!(after("manual"), None);
}

#[test]
fn windows_hold_up_moves_and_not_repairs() {
    // NOW is 22:00.
    let closed = [(
        "osaka",
        "copy.windows = [\"02:00-04:00\"]\ncopy.to.osaka = \"30MiB/s\"",
    )];
    let mut moving = Case::new(&closed, "osaka", &[1, 3]);
    let opens = Some(NOW.after(Duration::from_secs(4 * 3600)));
    assert_eq!(moving.plan().waits_until, opens);
    moving.record = switch(&moving.record, extents(0, 16), &[11, 12]);
    let limits = moving.planner().limits(&moving.subject(), 3);
    assert_eq!(
        limits,
        Limits {
            paused_until: opens,
            bytes_per_second: Some(10 << 20)
        }
    );
    let mut short = Case::new(&closed, "osaka", &[11]);
    assert_eq!(
        (short.plan().waits_until, short.plan().repair),
        (None, true)
    );
    short.record = switch(&short.record, extents(0, 16), &[11, 12]);
    assert_eq!(
        short.planner().limits(&short.subject(), 1).paused_until,
        None
    );
    moving.now = NOW.after(Duration::from_secs(7 * 3600));
    assert!(moving.plan().waits_until.is_some(), "over for today");
    moving.now = NOW.after(Duration::from_secs(4 * 3600));
    assert_eq!(moving.plan().waits_until, None);
}

#[test]
fn a_full_history_waits_for_its_moves_to_complete() {
    let mut case = Case::new(&[], "osaka", &[1, 3]);
    for n in 0..History::MAX_ENTRIES as u128 {
        let Some(open) = case
            .record
            .apply(
                Generation(0),
                &Change::Switch {
                    by: by(),
                    sets: vec![NewSet {
                        extents: extents(0, 16),
                        stores: vec![store([21, 22, 1, 3][n as usize % 4])],
                    }],
                },
            )
            .ok()
        else {
            break;
        };
        case.record = open;
    }
    let plan = case.plan();
    assert!(
        matches!(plan.steps[0].action, Action::Fill { .. }),
        "{:?}",
        story(&plan)
    );
    assert!(
        plan.notes[0].contains("history is full"),
        "{:?}",
        plan.notes
    );
    for step in plan.steps {
        case.act(&step.action);
    }
    assert_eq!(story(&case.plan())[0], "switch 11 12");
}

#[test]
fn a_switch_that_would_split_many_live_entries_waits_too() {
    let mut case = Case::new(&[], "frankfurt", &[1]);
    // Each joins at an epoch of its own, and none is whole yet.
    let joining = [1, 2, 3, 11, 12, 31, 32, 33];
    for count in 2..=joining.len() {
        case.record = switch(&case.record, extents(0, 16), &joining[..count]);
    }
    let plan = case.plan();
    assert!(plan.notes[0].contains("history is full"), "{plan:?}");
    assert_eq!(story(&plan)[0], "fill");
    assert!(case.arrival("frankfurt").sets.is_empty());
}

#[test]
fn manual_leaves_every_member_where_it_is() {
    let manual = [("frankfurt", "follow = \"manual\"")];
    let spread_out = Case::new(&manual, "frankfurt", &[1, 11]);
    assert!(
        spread_out.plan().is_empty(),
        "{:?}",
        story(&spread_out.plan())
    );
    // What is kept away counts first; what is missing then is made near the VM.
    let away = [(
        "tokyo",
        "copies = 1\naway = { osaka = 1 }\nfollow = \"manual\"",
    )];
    let mut case = Case::new(&away, "tokyo", &[11]);
    assert_eq!(case.goal_stores().len(), 2);
    let plan = case.plan();
    for step in plan.steps {
        case.act(&step.action);
    }
    assert!(case.plan().is_empty());
}

#[test]
fn seeds_are_what_the_destination_will_lack() {
    let case = Case::new(&[("tokyo", "prepare = \"standby\"")], "tokyo", &[1, 3]);
    assert!(case.planner().prepares_by_itself(&case.subject()));
    let seeds = case.planner().seeds(&case.subject(), &dc("osaka"), None);
    assert_eq!(seeds, case.arrival("osaka").sets);
    let limits = case.planner().seed_limits(&case.subject(), &seeds, 2);
    assert_eq!(
        limits.bytes_per_second,
        Some(50 << 20),
        "half of the default limit"
    );
    let barred = Case::new(&[("tokyo", "never = [\"osaka\"]")], "tokyo", &[1, 3]);
    assert!(
        barred
            .planner()
            .seeds(&barred.subject(), &dc("osaka"), None)
            .iter()
            .all(|seed| {
                seed.stores
                    .iter()
                    .all(|s| barred.fleet.datacenter_of(*s) != Some(&dc("osaka")))
            })
    );
}
