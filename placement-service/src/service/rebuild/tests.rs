//! Which record counts, and when nobody can tell.

use super::*;
use replicator::words::{Change, DiskName, Entry, ExtentSize, History, MapRange, Version};

const A: StoreId = StoreId::from_u128(1);
const B: StoreId = StoreId::from_u128(2);
const C: StoreId = StoreId::from_u128(3);

fn new_disk(stores: &[StoreId]) -> DiskRecord {
    let extent_size = ExtentSize::new(1 << 20).unwrap();
    let epoch = Epoch::first(Generation(0));
    let mut record = DiskRecord {
        id: DiskId::from_u128(9),
        name: DiskName::new("web1").unwrap(),
        bytes: 4 << 20,
        extent_size,
        copies: 2,
        revision: Revision(0),
        epoch,
        even_below: epoch,
        state: State::Closed {
            last: Version::ZERO,
            successor: None,
        },
        map: vec![],
    };
    record.map = vec![MapRange {
        extents: record.extents(),
        history: History(vec![Entry::whole(epoch, stores.iter().copied())]),
    }];
    record
}

fn owner() -> Owner {
    Owner {
        backend: BackendId::from_u128(1),
        life: Life(1),
        host: HostName::new("tokyo-1").unwrap(),
    }
}

fn opened(record: &DiskRecord) -> DiskRecord {
    let attach = Change::Attach {
        owner: owner(),
        sets: vec![],
    };
    record.apply(Generation(0), &attach).unwrap()
}

fn ejected(record: &DiskRecord, store: StoreId) -> DiskRecord {
    let eject = Change::Eject {
        by: (owner().backend, owner().life),
        stores: vec![store],
    };
    record.apply(Generation(0), &eject).unwrap()
}

fn word(store: StoreId, record: &DiskRecord) -> Word<'_> {
    Word {
        store,
        epoch: record.epoch,
        record: Some(record),
    }
}

fn all(stores: &[StoreId]) -> BTreeSet<StoreId> {
    stores.iter().copied().collect()
}

#[test]
fn the_record_with_the_highest_epoch_and_revision_counts() {
    let first = opened(&new_disk(&[A, B, C]));
    let second = ejected(&first, C);
    let said = [word(A, &second), word(B, &second), word(C, &first)];
    let found = judge(None, &said, &all(&[A, B, C])).unwrap();
    assert_eq!(found.verdict, RebuildVerdict::Found);
    assert_eq!(found.record, second);
    assert_eq!(found.from, [A, B]);
    let newer = judge(Some(&first), &said, &all(&[A, B, C])).unwrap();
    assert_eq!(newer.verdict, RebuildVerdict::Newer);
    let same = judge(Some(&second), &said, &all(&[A, B, C])).unwrap();
    assert_eq!(same.verdict, RebuildVerdict::AsItIs);
}

#[test]
fn an_ejected_store_alone_is_not_believed() {
    let first = opened(&new_disk(&[A, B, C]));
    let said = [word(C, &first)];
    let judged = judge(None, &said, &all(&[C])).unwrap();
    assert_eq!(judged.verdict, RebuildVerdict::Refused);
    let why = judged.why.unwrap();
    assert!(why.contains("have not answered"), "{why}");
    // Nor is the catalog, if it has the same old record.
    let judged = judge(Some(&first), &said, &all(&[C])).unwrap();
    assert_eq!(judged.verdict, RebuildVerdict::Refused);
}

#[test]
fn members_that_are_all_there_suffice_whoever_else_is_silent() {
    let second = ejected(&opened(&new_disk(&[A, B, C])), C);
    // The ejected store is named no more, unless what it has from before is still needed.
    let named = second.stores();
    let said: Vec<Word> = named.iter().map(|store| word(*store, &second)).collect();
    let found = judge(None, &said, &all(&named)).unwrap();
    assert_eq!(found.verdict, RebuildVerdict::Found);
}

#[test]
fn an_epoch_that_nobody_keeps_the_record_of_is_not_guessed() {
    let first = opened(&new_disk(&[A, B]));
    let later = Word {
        store: B,
        epoch: first.epoch.next(Generation(0)),
        record: Some(&first),
    };
    let judged = judge(None, &[word(A, &first), later], &all(&[A, B])).unwrap();
    assert_eq!(judged.verdict, RebuildVerdict::Refused);
    assert!(judged.why.unwrap().contains("nobody keeps its record"));
}

#[test]
fn stores_that_contradict_each_other_are_left_to_people() {
    let first = opened(&new_disk(&[A, B]));
    let mut other = first.clone();
    other.copies = 3;
    let judged = judge(None, &[word(A, &first), word(B, &other)], &all(&[A, B])).unwrap();
    assert_eq!(judged.verdict, RebuildVerdict::Refused);
}

#[test]
fn a_disk_that_was_never_opened_is_as_the_catalog_says() {
    let new = new_disk(&[A, B]);
    let judged = judge(Some(&new), &[], &all(&[A, B])).unwrap();
    assert_eq!(judged.verdict, RebuildVerdict::AsItIs);
    assert_eq!(judge(None, &[], &all(&[A])), None);
}

#[test]
fn what_is_accepted_is_taken_and_one_name_is_not_taken_twice() {
    let first = opened(&new_disk(&[A, B]));
    let mut judged = judge(None, &[word(A, &first)], &all(&[A])).unwrap();
    judged.accept(None);
    assert_eq!(judged.verdict, RebuildVerdict::Found);
    let mut twin = judged.clone();
    twin.record.id = DiskId::from_u128(10);
    let mut both = [judged, twin];
    refuse_names_twice(&mut both);
    assert!(both.iter().all(|j| j.verdict == RebuildVerdict::Refused));
}

#[test]
fn what_an_operator_accepts_counts_for_all_that_was_shown_and_is_taken_over_next() {
    let record = new_disk(&[A, B]);
    let open = opened(&record);
    let shown = open.epoch.next(Generation(0));
    for known in [record, open] {
        let later = Word {
            epoch: shown,
            ..word(A, &known)
        };
        let said = [later, word(B, &known)];
        let mut judged = judge(Some(&known), &said, &all(&[A, B])).unwrap();
        assert_eq!(judged.verdict, RebuildVerdict::Refused);
        judged.accept(Some(&known));
        assert_eq!(judged.verdict, RebuildVerdict::Newer);
        let DiskRecord {
            epoch,
            ref map,
            even_below,
            ..
        } = judged.record;
        assert_eq!(
            (epoch, map, even_below),
            (shown, &known.map, known.even_below)
        );
        // Nobody attaches it as if it had been closed, and a take-over opens a later epoch than all that were shown.
        let attach = Change::Attach {
            owner: owner(),
            sets: vec![],
        };
        assert!(judged.record.apply(Generation(1), &attach).is_err());
        let again = judge(Some(&judged.record), &said, &all(&[A, B])).unwrap();
        assert_eq!(again.verdict, RebuildVerdict::AsItIs, "{:?}", again.why);
    }
}
