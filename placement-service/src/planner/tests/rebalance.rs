//! Which copies leave full stores for emptier ones, and when that ends.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Disks of so many extents each, on these stores of tokyo, wholly written; stores of 100 extents.
fn disks(of: &[(u32, &[u128])]) -> (Case, Vec<Case>) {
    let mut fleet = Topology::default();
    for (n, rack) in [(1, "r1"), (2, "r2"), (3, "r3"), (4, "r4")] {
        add_store(&mut fleet, n, ("tokyo", rack, &format!("t{n}")), 0);
        let place = fleet.stores.get_mut(&store(n)).unwrap();
        place.capacity_bytes = 100 * ExtentSize::DEFAULT.bytes();
    }
    let of = of.iter().zip(1..).map(|((extents, stores), id)| {
        let mut case = Case::new(&[], "tokyo", stores);
        case.record = disk_of(*extents, stores);
        case.record.id = DiskId::from_u128(id);
        for store in case.record.members() {
            let bytes = u64::from(*extents) * ExtentSize::DEFAULT.bytes();
            case.allocated.insert(store, bytes);
        }
        case
    });
    let mut case = Case::new(&[], "tokyo", &[1]);
    case.fleet = fleet;
    (case, of.collect())
}

fn shift(case: &Case, disks: &[Case], busy: &[u128]) -> Option<(u128, u128, u128)> {
    let mut fleet = case.fleet.clone();
    for (id, place) in &mut fleet.stores {
        place.used_bytes = disks.iter().filter_map(|disk| disk.allocated.get(id)).sum();
    }
    let planner = Planner::new(&fleet, &case.policies, NOW);
    let subjects: Vec<Subject> = disks.iter().map(Case::subject).collect();
    let busy: BTreeSet<StoreId> = busy.iter().map(|n| store(*n)).collect();
    let shift = planner.shift(&subjects, &busy)?;
    Some((
        shift.disk.as_u128(),
        shift.from.as_u128(),
        shift.to.as_u128(),
    ))
}

/// As if it had been carried out.
fn carry_out(disks: &mut [Case], (disk, from, to): (u128, u128, u128)) {
    let disk = disks
        .iter_mut()
        .find(|one| one.record.id.as_u128() == disk)
        .unwrap();
    let bytes = disk.allocated.remove(&store(from)).unwrap();
    disk.allocated.insert(store(to), bytes);
    let stores = disk
        .record
        .members()
        .into_iter()
        .map(|s| if s == store(from) { store(to) } else { s });
    disk.record.map[0].history = History(vec![Entry::whole(disk.record.epoch, stores)]);
}

#[test]
fn a_new_store_attracts_copies_until_it_is_like_the_others_and_not_one_more() {
    let (case, mut all) = disks(&[(10, &[1, 2]), (10, &[1, 2]), (10, &[1, 3]), (10, &[2, 3])]);
    // 30, 30, 20 and none: they differ by 30 % of a store.
    assert_eq!(shift(&case, &all, &[]), Some((1, 1, 4)));
    carry_out(&mut all, (1, 1, 4));
    assert_eq!(shift(&case, &all, &[]), None, "20 % are let be");
}

#[test]
fn nothing_is_shifted_that_would_only_change_places() {
    let (case, all) = disks(&[(60, &[1, 2])]);
    assert_eq!(shift(&case, &all, &[]), None);
}

#[test]
fn what_policy_pins_or_the_vm_hold_in_place_is_not_shifted() {
    let (mut case, mut all) = disks(&[(20, &[1, 2]), (20, &[1, 2])]);
    assert_eq!(shift(&case, &all, &[]), Some((1, 1, 3)));
    assert_eq!(
        shift(&case, &all, &[1]),
        Some((1, 2, 3)),
        "1 is taking part in another shift"
    );
    all[0].host = Some(host("t1"));
    assert_eq!(
        shift(&case, &all, &[]),
        Some((2, 1, 3)),
        "the copy on the VM's own host stays"
    );
    all[1].pins = vec![Pin {
        disk: all[1].record.id,
        extents: None,
        hold: crate::policy::Hold::On(vec![store(1), store(2)]),
        reason: "by hand".into(),
        until: crate::policy::Until::Lifted,
    }];
    assert_eq!(shift(&case, &all, &[]), Some((1, 2, 3)));
    case.policies = policies(&[("tokyo", "rebalance = \"off\"")]);
    assert_eq!(shift(&case, &all, &[]), None);
    case.policies = policies(&[("tokyo", "rebalance = \"50%\"")]);
    assert_eq!(shift(&case, &all, &[]), None);
}

#[test]
fn nobody_is_shifted_to_a_store_that_is_being_emptied_or_away() {
    let (mut case, all) = disks(&[(20, &[1, 2]), (20, &[1, 2])]);
    case.fleet.stores.get_mut(&store(3)).unwrap().evacuating = true;
    assert_eq!(shift(&case, &all, &[]), Some((1, 1, 4)));
    case.fleet.stores.get_mut(&store(4)).unwrap().health = Health::Silent { since: NOW };
    assert_eq!(shift(&case, &all, &[]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn shifting_ends_and_every_shift_makes_the_stores_more_alike(
        of in prop::collection::vec((1u32..20, 0usize..6), 1..8),
    ) {
        let pairs: [&[u128]; 6] = [&[1, 2], &[1, 3], &[1, 4], &[2, 3], &[2, 4], &[3, 4]];
        let of: Vec<(u32, &[u128])> = of.iter().map(|(extents, pair)| (*extents, pairs[*pair])).collect();
        let (case, mut all) = disks(&of);
        let unevenness = |all: &[Case]| -> u128 {
            let fill = |n: u128| -> u128 {
                let there = all.iter().filter_map(|disk| disk.allocated.get(&store(n)));
                u128::from(there.sum::<u64>() / ExtentSize::DEFAULT.bytes())
            };
            (1..=4).map(|n| fill(n) * fill(n)).sum()
        };
        let mut shifts = 0;
        while let Some(next) = shift(&case, &all, &[]) {
            let before = unevenness(&all);
            carry_out(&mut all, next);
            prop_assert!(unevenness(&all) < before);
            shifts += 1;
            prop_assert!(shifts <= 40, "it ends");
        }
    }
}
