//! What is said of a disk: explanations, differences between policies, and their rollout.

use super::*;
use crate::policy::{Hold, Until};
use std::collections::BTreeSet;

fn explained(case: &Case, n: u128) -> ExplainedCopy {
    let explanation = case.planner().explain(&case.subject());
    let copy = explanation
        .copies
        .into_iter()
        .find(|copy| copy.store == store(n));
    copy.unwrap_or_else(|| panic!("store {n} is explained"))
}

#[test]
fn every_copy_is_explained_by_what_put_it_there() {
    let files = [("tokyo", "away = { osaka = 1 }\nnever = [\"frankfurt\"]")];
    let mut case = Case::new(&files, "tokyo", &[1, 3, 11]);
    let near = explained(&case, 1);
    assert_eq!(
        (near.state, near.role),
        (CopyState::Complete, Some(Role::Near))
    );
    assert!(
        near.why_here
            .contains("one of the 2 copies that the policy of tokyo asks for"),
        "{near:?}"
    );
    assert!(explained(&case, 11).why_here.contains("kept away in osaka"));
    let all = case.planner().explain(&case.subject());
    assert!(
        all.governed_by[0].contains("The policy of tokyo asks for 2 copies where the VM runs"),
        "{:?}",
        all.governed_by
    );
    assert!(all.governed_by[1].contains("frankfurt: the policy of tokyo says never"));

    case.home = case.home.moved_to(&dc("osaka"), NOW, Duration::ZERO);
    let leaving = explained(&case, 1);
    assert_eq!(leaving.role, None);
    assert!(
        leaving.why_not_elsewhere.contains("next switch"),
        "{leaving:?}"
    );
    assert_eq!(explained(&case, 12).state, CopyState::Planned);
    case.record = switch(&case.record, extents(0, 16), &[11, 12]);
    assert!(matches!(
        explained(&case, 1).state,
        CopyState::Sealed { .. }
    ));
    assert!(explained(&case, 1).why_here.contains("are filled from it"));
    assert_eq!(explained(&case, 12).state, CopyState::Filling);
    case.record = disk(&[11, 12]);
    case.retired = vec![Retired {
        store: store(1),
        extents: vec![extents(0, 16)],
        since: NOW,
        ejected: false,
    }];
    case.policies = policies(&[("osaka", "drop = \"30m\"")]);
    let kept = explained(&case, 1);
    assert_eq!(kept.state, CopyState::Retired);
    assert!(
        kept.why_not_elsewhere
            .contains("until 2026-11-21 22:30 UTC"),
        "{kept:?}"
    );
}

#[test]
fn what_stands_in_says_for_what_and_a_pin_says_its_reason() {
    let mut case = Case::new(&[("tokyo", "rigor = \"strict\"")], "tokyo", &[1, 11]);
    case.fleet.stores.remove(&store(3));
    let stands_in = explained(&case, 11);
    assert_eq!(stands_in.role, Some(Role::StandIn));
    assert!(
        stands_in
            .why_not_elsewhere
            .contains("No other host in tokyo"),
        "{stands_in:?}"
    );
    let mut case = Case::new(&[], "tokyo", &[11, 12]);
    case.pins = vec![Pin {
        disk: case.record.id,
        extents: None,
        hold: Hold::In(dc("osaka")),
        reason: "audit".into(),
        until: Until::Lifted,
    }];
    let pinned = explained(&case, 11);
    assert!(
        pinned
            .why_here
            .contains("pinned in osaka (\"audit\", until it is lifted)"),
        "{pinned:?}"
    );
    let held = Case::new(&[("osaka", "follow = \"manual\"")], "osaka", &[1, 3]);
    assert!(explained(&held, 1).why_here.contains("follow = \"manual\""));
}

#[test]
fn a_copy_is_deleted_only_when_those_instead_of_it_are_complete_and_up() {
    let mut case = Case::new(&[], "osaka", &[1, 3]);
    let all = extents(0, 16);
    let may = |case: &Case| {
        let planner = case.planner();
        planner.may_delete(&case.subject(), store(1), all)
    };
    assert!(may(&case).unwrap_err().contains("still on it"));
    case.record = switch(&case.record, extents(0, 8), &[11, 12]);
    assert!(may(&case).is_err(), "sealed");
    case.record = disk(&[11, 12]);
    assert_eq!(numbers(&may(&case).unwrap()), [11, 12]);
    case.record = switch(&case.record, extents(0, 8), &[12, 21]);
    assert!(may(&case).unwrap_err().contains("0..8 are not complete"));
    case.record = disk(&[11, 12]);
    case.fleet.stores.get_mut(&store(12)).unwrap().health = Health::Silent { since: NOW };
    assert!(may(&case).unwrap_err().contains("is not up"));
}

#[test]
fn a_pin_that_cannot_be_kept_is_said() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    case.fleet.stores.get_mut(&store(11)).unwrap().health = Health::Silent { since: NOW };
    case.pins = vec![Pin {
        disk: case.record.id,
        extents: None,
        hold: Hold::Also(vec![store(11)]),
        reason: "audit".into(),
        until: Until::Lifted,
    }];
    let plan = case.plan();
    assert!(
        plan.is_empty() && plan.notes[0].contains("\"audit\") is not kept"),
        "{plan:?}"
    );
}

#[test]
fn a_difference_names_the_disks_that_would_change_and_the_bytes() {
    let mut case = Case::new(&[], "tokyo", &[1, 3]);
    case.allocated = BTreeMap::from([(store(1), 64 << 20), (store(3), 64 << 20)]);
    let elsewhere = Home::new(dc("osaka"));
    let stays = disk(&[11, 12]);
    let old = case.planner();
    let new_policies = policies(&[("tokyo", "away = { osaka = 1 }\ncopy.limit = \"1MiB/s\"")]);
    let new = Planner::new(&case.fleet, &new_policies, NOW);
    let other = Subject {
        record: &stays,
        home: &elsewhere,
        ..case.subject()
    };
    let changes = diff(&old, &new, [case.subject(), other]);
    assert_eq!(
        (changes.looked_at, changes.disks.len(), changes.bytes),
        (2, 1, 64 << 20)
    );
    let disk = &changes.disks[0];
    assert_eq!(
        (numbers(&disk.joins), numbers(&disk.leaves)),
        (vec![11], vec![])
    );
    assert_eq!((disk.wanted_copies, disk.least_copies), (3, 2));
    assert_eq!(diff(&old, &old, [case.subject()]).disks, []);
}

#[test]
fn a_rollout_goes_on_with_what_has_begun_then_repairs_then_moves_the_least_first() {
    let plan = |n: u128, repair: bool, bytes: u64| Plan {
        disk: DiskId::from_u128(n),
        repair,
        steps: vec![Step {
            action: Action::Fill { extents: vec![] },
            copies_before: 2,
            copies_after: 2,
            crossings: vec![Crossing {
                from: dc("tokyo"),
                to: dc("osaka"),
                bytes,
                at_most: false,
            }],
            time: None,
            write_round_trip: None,
        }],
        ..Case::new(&[], "tokyo", &[1]).plan()
    };
    let plans = [
        plan(1, false, 10),
        plan(2, false, 5),
        plan(3, true, 90),
        plan(4, false, 99),
    ];
    let begun = BTreeSet::from([DiskId::from_u128(4)]);
    let names = |at_once| -> Vec<u128> {
        rollout(&plans, &begun, at_once)
            .iter()
            .map(|id| id.as_u128())
            .collect()
    };
    assert_eq!(names(3), [4, 3, 2]);
    assert_eq!(names(0), [4], "what has begun goes on");
}

#[test]
fn the_map_of_a_disk_that_never_moved_is_a_handful_of_bytes() {
    let mut record = disk(&[1, 3]);
    record.bytes = 1 << 40;
    record.map[0].extents.end = Extent(record.extent_size.count(record.bytes));
    let map = serde_json::to_vec(&record.map).unwrap();
    assert!(
        map.len() < 200,
        "{} bytes: {}",
        map.len(),
        String::from_utf8_lossy(&map)
    );
    assert!(serde_json::to_vec(&record).unwrap().len() < 600);
}
