//! The rules of placement, by example and over random clusters.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

const GIB: u64 = 1 << 30;
/// Capacity that leaves `extents` of 64 MiB usable, and a little.
fn capacity_for(extents: u64) -> u64 {
    (extents * ExtentSize::DEFAULT.bytes()).div_ceil(USABLE_PERCENT) * 100 + 100
}

fn store(id: u128, host: &str, rack: &str, datacenter: &str, extents: u64) -> Candidate {
    Candidate {
        store: StoreId::from_u128(id),
        host: HostName::new(host).unwrap(),
        rack: RackName::new(rack).unwrap(),
        datacenter: DatacenterName::new(datacenter).unwrap(),
        capacity_bytes: capacity_for(extents),
        used_bytes: 0,
        unwritten_bytes: 0,
    }
}

fn wish(extents: u64) -> Wish {
    Wish {
        bytes: extents * ExtentSize::DEFAULT.bytes(),
        extent_size: ExtentSize::DEFAULT,
        copies: 2,
        datacenter: None,
        near: None,
    }
}

fn ids(choice: &Choice) -> Vec<Vec<u128>> {
    let as_numbers = |stores: &Vec<StoreId>| stores.iter().map(|s| s.as_u128()).collect();
    choice
        .ranges
        .iter()
        .map(|(_, stores)| as_numbers(stores))
        .collect()
}

#[test]
fn two_copies_stand_in_two_racks_of_one_datacenter() {
    let stores = [
        store(1, "t1", "r1", "tokyo", 40),
        store(2, "t2", "r1", "tokyo", 90),
        store(3, "t3", "r2", "tokyo", 50),
        store(4, "o1", "r1", "osaka", 99),
    ];
    let choice = choose(&stores, &wish(32)).unwrap();
    assert_eq!(ids(&choice), [[2, 3]]);
    assert_eq!(choice.notes, []);
}

#[test]
fn another_datacenter_is_better_than_a_shared_rack_and_both_are_said() {
    let mut stores = vec![
        store(1, "t1", "r1", "tokyo", 90),
        store(2, "t2", "r1", "tokyo", 80),
        store(3, "o1", "r1", "osaka", 70),
    ];
    let choice = choose(&stores, &wish(32)).unwrap();
    assert_eq!(ids(&choice), [[1, 3]]);
    assert!(matches!(choice.notes[..], [Note::AcrossDatacenters { .. }]));
    stores.pop();
    let choice = choose(&stores, &wish(32)).unwrap();
    assert_eq!(ids(&choice), [[1, 2]]);
    let text = choice.notes[0].to_string();
    assert!(text.contains("tokyo/r1"), "{text}");
}

#[test]
fn a_wished_datacenter_binds_and_a_near_host_comes_first() {
    let stores = [
        store(1, "t1", "r1", "tokyo", 90),
        store(2, "t2", "r1", "tokyo", 80),
        store(3, "o1", "r1", "osaka", 40),
        store(4, "o2", "r2", "osaka", 50),
        store(5, "o3", "r3", "osaka", 60),
    ];
    let tokyo = Wish {
        datacenter: Some(DatacenterName::new("tokyo").unwrap()),
        ..wish(32)
    };
    assert_eq!(ids(&choose(&stores, &tokyo).unwrap()), [[1, 2]]);
    let near = Wish {
        near: Some(HostName::new("o1").unwrap()),
        ..wish(32)
    };
    let choice = choose(&stores, &near).unwrap();
    assert_eq!(ids(&choice), [[3, 5]]);
    assert_eq!(choice.notes, []);
}

#[test]
fn a_disk_that_no_pair_can_hold_is_split_over_several() {
    let stores = [
        store(1, "t1", "r1", "tokyo", 10),
        store(2, "t2", "r2", "tokyo", 10),
        store(3, "t3", "r3", "tokyo", 10),
    ];
    // Half of everything: no greedy choice of pairs finds this.
    let choice = choose(&stores, &wish(15)).unwrap();
    assert_eq!(choice.ranges.len(), 3);
    assert!(matches!(choice.notes[..], [Note::Split { ranges: 3 }]));
    let refused = choose(&stores, &wish(16)).unwrap_err();
    let largest_bytes = 15 * ExtentSize::DEFAULT.bytes();
    assert!(
        matches!(refused, Impossible::TooLarge { largest_bytes: l, .. } if l == largest_bytes),
        "{refused}"
    );
}

#[test]
fn refusals_say_what_would_be_possible() {
    let one = [
        store(1, "t1", "r1", "tokyo", 10),
        store(2, "t1", "r1", "tokyo", 10),
    ];
    let refused = choose(&one, &wish(1)).unwrap_err();
    assert_eq!(
        refused,
        Impossible::TooFewHosts {
            copies: 2,
            hosts: 1
        }
    );
    let none = Wish {
        copies: 0,
        ..wish(1)
    };
    assert_eq!(
        choose(&one, &none).unwrap_err(),
        Impossible::Copies { copies: 0 }
    );
}

#[test]
fn promises_count_a_quarter_and_what_is_written_counts_whole() {
    let with = |used_bytes, unwritten_bytes| {
        let mut stores = [
            store(1, "t1", "r1", "tokyo", 160),
            store(2, "t2", "r2", "tokyo", 160),
        ];
        for store in &mut stores {
            store.used_bytes = used_bytes;
            store.unwritten_bytes = unwritten_bytes;
        }
        choose(&stores, &wish(100)).is_ok()
    };
    assert!(with(0, 10 * GIB), "thin disks may promise what there is");
    assert!(with(0, 20 * GIB), "and more");
    assert!(!with(0, 36 * GIB), "but not without end");
    assert!(with(3 * GIB, 0));
    assert!(!with(5 * GIB, 0), "the disk alone must fit");
}

fn clusters() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (0u8..6, 0u64..40);
    prop::collection::vec(one, 0..10).prop_map(|stores| {
        let candidate = |(i, (host, extents)): (usize, (u8, u64))| {
            // Two hosts a rack, two racks in the one datacenter and one in the other.
            let datacenter = u8::from(host >= 4);
            store(
                i as u128 + 1,
                &format!("h{host}"),
                &format!("r{}", host / 2),
                &format!("d{datacenter}"),
                extents,
            )
        };
        stores.into_iter().enumerate().map(candidate).collect()
    })
}

/// Whether copies can be kept apart by `place`: what each place holds, at most all extents, is enough.
fn feasible<K: Ord>(stores: &[Candidate], wish: &Wish, place: impl Fn(&Candidate) -> K) -> bool {
    let mut by_place: BTreeMap<K, u64> = BTreeMap::new();
    for store in stores {
        *by_place.entry(place(store)).or_default() += room(store, wish.extent_size);
    }
    let row = u64::from(extents_of(wish));
    let held: u64 = by_place.values().map(|room| (*room).min(row)).sum();
    held >= row * u64::from(wish.copies)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_choice_keeps_the_rules(
        stores in clusters(), extents in 1u64..60, copies in 1u8..4, near in prop::option::of(0u8..6),
    ) {
        let wish = Wish {
            copies,
            near: near.map(|host| HostName::new(format!("h{host}")).unwrap()),
            ..wish(extents)
        };
        let chosen = choose(&stores, &wish);
        prop_assert_eq!(&chosen, &choose(&stores, &wish), "deterministic");
        let by_host = feasible(&stores, &wish, |c| c.host.clone());
        prop_assert_eq!(chosen.is_ok(), by_host, "found exactly when there is one");
        let choice = match chosen {
            Ok(choice) => choice,
            Err(Impossible::TooLarge { largest_bytes, .. }) => {
                let smaller = Wish { bytes: largest_bytes, ..wish };
                prop_assert!(largest_bytes == 0 || choose(&stores, &smaller).is_ok());
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        let mut next = 0;
        let mut given: BTreeMap<StoreId, u64> = BTreeMap::new();
        let mut shared_rack = false;
        for (extents, set) in &choice.ranges {
            prop_assert_eq!(extents.first.0, next, "covers the disk exactly");
            prop_assert!(extents.count() > 0);
            next = extents.end.0;
            prop_assert_eq!(set.len(), usize::from(copies));
            let members: Vec<&Candidate> = set
                .iter()
                .map(|id| stores.iter().find(|c| c.store == *id).unwrap())
                .collect();
            let hosts: HashSet<_> = members.iter().map(|c| &c.host).collect();
            prop_assert_eq!(hosts.len(), set.len(), "never two on one host");
            let racks: HashSet<_> = members.iter().map(|c| (&c.datacenter, &c.rack)).collect();
            shared_rack |= racks.len() < set.len();
            for store in set {
                *given.entry(*store).or_default() += u64::from(extents.count());
            }
        }
        prop_assert_eq!(u64::from(next), extents);
        for store in &stores {
            let given = given.get(&store.store).copied().unwrap_or(0);
            prop_assert!(given <= room(store, wish.extent_size), "no store is overfilled");
        }
        let by_rack = feasible(&stores, &wish, |c| (c.datacenter.clone(), c.rack.clone()));
        prop_assert_eq!(shared_rack, !by_rack, "one rack exactly when nothing else is possible");
        let said = choice.notes.iter().any(|n| matches!(n, Note::SharedRack { .. }));
        prop_assert_eq!(said, shared_rack);
    }
}
