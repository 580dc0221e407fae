//! Residency over durability over locality.

use super::*;
use crate::policy::{Hold, Until};

fn sites(case: &Case) -> Vec<String> {
    let goal = case.goal();
    let stores = goal.ranges.iter().flat_map(GoalRange::stores);
    let mut sites: Vec<String> = stores
        .map(|s| case.fleet.datacenter_of(s).unwrap().to_string())
        .collect();
    sites.sort();
    sites
}

#[test]
fn residency_beats_locality() {
    // The VM runs where its blocks may not be: they stay elsewhere, as near as possible.
    let case = Case::new(&[("osaka", "never = [\"osaka\"]")], "osaka", &[11, 12]);
    assert_eq!(sites(&case), ["tokyo", "tokyo"]);
    let plan = case.plan();
    assert_eq!(story(&plan).last().unwrap(), "retire 11 12");
    assert_eq!(
        plan.least_copies, 2,
        "and yet two copies stand at any moment"
    );
}

#[test]
fn residency_goes_along_with_the_disk() {
    let files = [("tokyo", "never = [\"frankfurt\"]")];
    let mut case = Case::new(&files, "tokyo", &[1, 3]);
    let arrival = case.arrival("frankfurt");
    assert!(arrival.sets.is_empty(), "{:?}", arrival.sets);
    case.home = arrival.home;
    assert_eq!(sites(&case), ["tokyo", "tokyo"]);
    let elsewhere = Case::new(&files, "frankfurt", &[1, 3]);
    assert_eq!(
        sites(&elsewhere),
        ["frankfurt", "frankfurt"],
        "a disk that never was in tokyo"
    );
}

#[test]
fn residency_beats_durability() {
    // Only one host is left where copies may be: one copy, and the other is said to be missing.
    let files = [
        (
            "tokyo",
            "copies = 2\naway = { osaka = 1 }\nnever = [\"frankfurt\"]",
        ),
        ("osaka", "never = [\"tokyo\"]"),
    ];
    let mut case = Case::new(&files, "tokyo", &[1]);
    for n in [2, 3, 11, 12] {
        case.fleet.stores.get_mut(&store(n)).unwrap().health = Health::Gone;
    }
    let goal = case.goal();
    assert_eq!(case.goal_stores(), [1]);
    assert_eq!(goal.shortfalls[0].missing, 2);
    assert!(
        goal.shortfalls[0].why.contains("frankfurt is barred"),
        "{:?}",
        goal.shortfalls
    );
    assert!(case.plan().is_empty());
    // Barred by where the disk ran before, though `away` asks for it here.
    let mut case = Case::new(
        &[
            ("tokyo", "away = { osaka = 1 }"),
            ("frankfurt", "never = [\"osaka\"]"),
        ],
        "frankfurt",
        &[21, 22],
    );
    case.home = case.home.moved_to(&dc("tokyo"), NOW, Duration::ZERO);
    assert_eq!(sites(&case), ["frankfurt", "tokyo", "tokyo"]);
}

#[test]
fn durability_beats_locality() {
    // Osaka has one host: the second copy stands where it is rather than nowhere.
    let mut case = Case::new(&[], "osaka", &[1, 3]);
    case.fleet.stores.remove(&store(12));
    assert_eq!(case.goal_stores(), [1, 11]);
    let goal = case.goal();
    assert_eq!(goal.ranges[0].copies[0].1, Role::StandIn);
    assert_eq!(goal.shortfalls, []);
    let plan = case.plan();
    assert_eq!(
        story(&plan),
        ["switch 1 11", "fill", "complete", "retire 3"]
    );
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("stand in elsewhere")),
        "{:?}",
        plan.notes
    );
}

#[test]
fn strict_spread_goes_elsewhere_rather_than_share_a_rack() {
    let mut prefer = Case::new(&[], "tokyo", &[1]);
    prefer.fleet.stores.remove(&store(3));
    assert_eq!(prefer.goal_stores(), [1, 2]);
    let mut strict = Case::new(&[("tokyo", "rigor = \"strict\"")], "tokyo", &[1, 2]);
    strict.fleet.stores.remove(&store(3));
    assert_eq!(strict.goal_stores(), [1, 11], "nearer than frankfurt");
    strict.fleet = fleet();
    assert_eq!(strict.goal_stores(), [1, 3]);
    let host = Case::new(
        &[("tokyo", "spread = \"host\"\nrigor = \"strict\"")],
        "tokyo",
        &[1, 2],
    );
    assert!(host.plan().is_empty());
}

#[test]
fn what_is_kept_away_stays_away_whatever_happens() {
    let files = [
        ("tokyo", "away = { osaka = 1 }"),
        ("osaka", "away = { tokyo = 1 }"),
    ];
    let mut case = Case::new(&files, "tokyo", &[1, 3]);
    assert_eq!(sites(&case), ["osaka", "tokyo", "tokyo"]);
    assert!(case.plan().repair, "one is missing");
    case.record = disk(&[1, 3, 11]);
    assert!(case.plan().is_empty());
    case.home = case.arrival("osaka").home;
    let plan = case.plan();
    assert_eq!(
        story(&plan),
        ["switch 1 11 12", "fill", "complete", "retire 3"],
        "one joins, one leaves"
    );
    assert_eq!(plan.least_copies, 3);
}

#[test]
fn pins_beat_locality_and_not_what_is_above_it() {
    let pin = |hold| Pin {
        disk: disk(&[1]).id,
        extents: None,
        hold,
        reason: "audit".into(),
        until: Until::Time(NOW.after(Duration::from_secs(60))),
    };
    let mut case = Case::new(
        &[("osaka", "away = { frankfurt = 1 }")],
        "osaka",
        &[1, 3, 21],
    );
    case.pins = vec![pin(Hold::In(dc("tokyo")))];
    assert!(case.plan().is_empty(), "{:?}", story(&case.plan()));
    case.now = NOW.after(Duration::from_secs(60));
    assert_eq!(
        sites(&case),
        ["frankfurt", "osaka", "osaka"],
        "it has ended"
    );
    let mut barred = Case::new(&[("osaka", "never = [\"tokyo\"]")], "osaka", &[11, 12]);
    barred.pins = vec![pin(Hold::In(dc("tokyo"))), pin(Hold::Also(vec![store(1)]))];
    assert!(barred.plan().is_empty(), "residency beats pins");
    let mut one = Case::new(&[], "tokyo", &[1, 3]);
    one.pins = vec![pin(Hold::On(vec![store(2)]))];
    assert_eq!(
        one.goal_stores(),
        [2, 3],
        "the second copy that durability asks for is placed by policy"
    );
}

#[test]
fn a_copy_that_must_go_stays_until_another_is_there() {
    let mut case = Case::new(
        &[("tokyo", "never = [\"osaka\", \"frankfurt\"]")],
        "tokyo",
        &[11, 12],
    );
    for n in [2, 3] {
        case.fleet.stores.get_mut(&store(n)).unwrap().health = Health::Gone;
    }
    assert_eq!(case.goal_stores(), [1, 11]);
    assert_eq!(case.goal().ranges[0].copies[1].1, Role::Retained);
    assert_eq!(case.plan().least_copies, 2);
    assert_eq!(case.goal().shortfalls[0].missing, 1);
}
