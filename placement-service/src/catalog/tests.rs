//! One suite for every catalog. It needs an etcd program; `cargo xtask setup` installs it.

use super::etcd::testing::TestEtcd;
use super::*;
use std::sync::Arc;
use tempfile::TempDir;

/// Runs `test` against each implementation.
fn each(test: impl Fn(Arc<dyn Catalog>)) {
    let cached = |below| Arc::new(CachedCatalog::new(below).unwrap());
    test(Arc::new(MemoryCatalog::new()));
    test(cached(Arc::new(MemoryCatalog::new())));
    let dir = TempDir::new().unwrap();
    let file = |name: &str| RedbCatalog::open(&dir.path().join(name)).unwrap();
    test(Arc::new(file("one.redb")));
    test(cached(Arc::new(file("two.redb"))));
    let etcd = TestEtcd::start();
    test(Arc::new(etcd.catalog("one")));
    test(cached(Arc::new(etcd.catalog("two"))));
}

fn put(catalog: &dyn Catalog, key: &str, value: &str) -> KeyRevision {
    let write = Transaction::new().put(key, value.into());
    assert_eq!(catalog.commit(&write).unwrap(), Committed::Yes);
    catalog.get(key).unwrap().unwrap().revision
}

fn value(catalog: &dyn Catalog, key: &str) -> Option<String> {
    let stored = catalog.get(key).unwrap()?;
    Some(String::from_utf8(stored.value.to_vec()).unwrap())
}

#[test]
fn a_swap_goes_through_only_from_what_was_read() {
    each(|catalog| {
        let first = put(&*catalog, "a", "1");
        let swap = |at, to: &str| {
            catalog
                .commit(
                    &Transaction::new()
                        .expect("a", Expect::At(at))
                        .put("a", to.into()),
                )
                .unwrap()
        };
        assert_eq!(swap(first, "2"), Committed::Yes);
        assert_eq!(swap(first, "3"), Committed::No);
        assert_eq!(value(&*catalog, "a").unwrap(), "2");
    });
}

#[test]
fn a_key_is_created_once() {
    each(|catalog| {
        let create = Transaction::new()
            .expect("a", Expect::Absent)
            .put("a", b"1".to_vec());
        assert_eq!(catalog.commit(&create).unwrap(), Committed::Yes);
        assert_eq!(catalog.commit(&create).unwrap(), Committed::No);
    });
}

#[test]
fn a_deleted_and_recreated_key_is_not_the_old_one() {
    each(|catalog| {
        let old = put(&*catalog, "a", "1");
        assert_eq!(
            catalog.commit(&Transaction::new().delete("a")).unwrap(),
            Committed::Yes
        );
        assert_eq!(catalog.get("a").unwrap(), None);
        put(&*catalog, "a", "1");
        let swap = Transaction::new()
            .expect("a", Expect::At(old))
            .put("a", b"2".to_vec());
        assert_eq!(catalog.commit(&swap).unwrap(), Committed::No);
    });
}

#[test]
fn a_transaction_happens_whole_or_not_at_all() {
    each(|catalog| {
        let at = put(&*catalog, "a", "1");
        let both = Transaction::new()
            .expect("a", Expect::At(at))
            .expect("b", Expect::Absent)
            .put("a", b"2".to_vec())
            .put("b", b"2".to_vec())
            .delete("c");
        put(&*catalog, "c", "1");
        assert_eq!(catalog.commit(&both).unwrap(), Committed::Yes);
        assert_eq!(value(&*catalog, "b").unwrap(), "2");
        assert_eq!(value(&*catalog, "c"), None);

        let again = Transaction::new()
            .put("a", b"3".to_vec())
            .expect("b", Expect::Absent);
        assert_eq!(catalog.commit(&again).unwrap(), Committed::No);
        assert_eq!(value(&*catalog, "a").unwrap(), "2");
    });
}

#[test]
fn of_several_writes_of_a_key_the_last_one_counts() {
    each(|catalog| {
        let write = Transaction::new()
            .put("a", b"1".to_vec())
            .delete("a")
            .put("a", b"2".to_vec())
            .put("b", b"1".to_vec())
            .delete("b");
        assert_eq!(catalog.commit(&write).unwrap(), Committed::Yes);
        assert_eq!(value(&*catalog, "a").unwrap(), "2");
        assert_eq!(value(&*catalog, "b"), None);
    });
}

#[test]
fn a_snapshot_is_of_one_moment() {
    each(|catalog| {
        let count = PAGE_KEYS + 3;
        for i in 0..count {
            put(&*catalog, &format!("key/{i:05}"), "before");
        }
        let mut seen = Vec::new();
        let looked = catalog.snapshot(&mut |key, stored| {
            if seen.is_empty() {
                put(&*catalog, "key/00001", "after");
                put(&*catalog, "later", "after");
            }
            seen.push((key.to_owned(), stored.value.clone()));
            Ok(())
        });
        looked.unwrap();
        assert_eq!(seen.len(), count);
        assert!(seen.iter().map(|(key, _)| key).is_sorted());
        let later = seen.iter().skip(PAGE_KEYS);
        assert!(later.clone().all(|(_, value)| value[..] == *b"before"));
        assert_eq!(value(&*catalog, "later").unwrap(), "after");
        let failing = catalog.snapshot(&mut |_, _| Err(CatalogError::NotLeader));
        assert!(matches!(failing, Err(CatalogError::NotLeader)));
    });
}

#[test]
fn pages_end_where_the_prefix_does() {
    each(|catalog| {
        put(&*catalog, "disk0", "not behind the slash");
        put(&*catalog, "disk.", "nor this");
        let count = PAGE_KEYS + 3;
        for i in 0..count {
            put(&*catalog, &format!("disk/{i:05}"), "x");
        }
        let first = catalog.page("disk/", None).unwrap();
        assert_eq!(first.len(), PAGE_KEYS);
        let last = &first.last().unwrap().0;
        let rest = catalog.page("disk/", Some(last)).unwrap();
        assert_eq!(rest.len(), 3);
        assert!(first.iter().chain(&rest).map(|(key, _)| key).is_sorted());
        assert!(catalog.page("none/", None).unwrap().is_empty());
    });
}

#[test]
fn what_no_catalog_could_take_is_refused_by_all() {
    each(|catalog| {
        let long = Transaction::new().put("a", vec![0; MAX_VALUE_BYTES + 1]);
        let wide = (0..=MAX_TRANSACTION_KEYS)
            .fold(Transaction::new(), |t, i| t.put(format!("k{i}"), vec![]));
        let key = Transaction::new().put("k".repeat(MAX_KEY_BYTES + 1), vec![]);
        let heavy = (0..3).fold(Transaction::new(), |t, i| {
            t.put(format!("k{i}"), vec![0; MAX_VALUE_BYTES])
        });
        for transaction in [long, wide, key, heavy] {
            let error = catalog.commit(&transaction).unwrap_err();
            assert!(matches!(error, CatalogError::TooLarge { .. }), "{error}");
        }
        for key in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            let largest = Transaction::new().put(key, vec![7; MAX_VALUE_BYTES]);
            assert_eq!(catalog.commit(&largest).unwrap(), Committed::Yes);
        }
        let all = catalog.page("", None).unwrap();
        assert_eq!(all.len(), 10);
        assert!(
            all.iter()
                .all(|(_, stored)| stored.value.len() == MAX_VALUE_BYTES)
        );
    });
}

#[test]
fn of_many_that_race_for_one_key_each_revision_is_won_once() {
    each(|catalog| {
        put(&*catalog, "counter", "0");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        increment(&*catalog);
                    }
                });
            }
        });
        assert_eq!(value(&*catalog, "counter").unwrap(), "40");
    });
}

fn increment(catalog: &dyn Catalog) {
    loop {
        let stored = catalog.get("counter").unwrap().unwrap();
        let count: u32 = String::from_utf8(stored.value.to_vec())
            .unwrap()
            .parse()
            .unwrap();
        let swap = Transaction::new()
            .expect("counter", Expect::At(stored.revision))
            .put("counter", (count + 1).to_string().into());
        if catalog.commit(&swap).unwrap() == Committed::Yes {
            return;
        }
    }
}

#[test]
fn a_file_keeps_what_was_committed_and_is_opened_once() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("made/on/demand/catalog.redb");
    let catalog = RedbCatalog::open(&path).unwrap();
    let revision = put(&catalog, "a", "1");
    let second = RedbCatalog::open(&path).err().unwrap().to_string();
    assert!(second.contains("another placement service"), "{second}");
    drop(catalog);
    let catalog = RedbCatalog::open(&path).unwrap();
    assert_eq!(catalog.get("a").unwrap().unwrap().revision, revision);
    assert!(put(&catalog, "b", "1") > revision);
}

#[test]
fn a_file_of_a_newer_format_or_of_something_else_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("catalog.redb");
    let catalog = RedbCatalog::open(&path).unwrap();
    let write = catalog.database_for_tests().begin_write().unwrap();
    write
        .open_table(::redb::TableDefinition::<&str, u64>::new("meta"))
        .unwrap()
        .insert("format", 2)
        .unwrap();
    write.commit().unwrap();
    drop(catalog);
    let error = RedbCatalog::open(&path).err().unwrap().to_string();
    assert!(error.contains("its format is 2"), "{error}");

    let other = dir.path().join("other");
    std::fs::write(&other, b"this is no catalog").unwrap();
    let error = RedbCatalog::open(&other).err().unwrap().to_string();
    assert!(error.contains("other"), "{error}");
    assert_eq!(std::fs::read(&other).unwrap(), b"this is no catalog");
}
