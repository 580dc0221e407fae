//! What a copy in memory must not get wrong: outcomes that nobody told, and news that come in another order.

use super::*;
use crate::catalog::{Committed, Expect, MemoryCatalog};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What becomes of a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Told,
    /// Done, and nobody hears of it.
    Done,
    /// Done when it is waited out, and not before.
    Late,
    Never,
    /// Not done, and said so.
    Refused,
}

/// A catalog that fails as it is told to, and counts who reads.
#[derive(Default)]
struct Troubled {
    kept: MemoryCatalog,
    fate: Mutex<Option<Fate>>,
    on_its_way: Mutex<Vec<Transaction>>,
    unreachable: AtomicBool,
    others: AtomicBool,
    reads: AtomicU64,
}

impl Troubled {
    fn with(fate: Fate) -> Arc<Troubled> {
        let troubled = Arc::new(Troubled::default());
        *troubled.fate.lock() = Some(fate);
        troubled
    }

    fn reachable(&self) -> Result<(), CatalogError> {
        match self.unreachable.load(Ordering::Relaxed) {
            true => Err(CatalogError::Failed("nobody answers".into())),
            false => Ok(()),
        }
    }

    fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

impl Catalog for Troubled {
    fn get(&self, key: &str) -> Result<Option<Stored>, CatalogError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.reachable()?;
        self.kept.get(key)
    }

    fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, Stored)>, CatalogError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.reachable()?;
        self.kept.page(prefix, after)
    }

    fn snapshot(
        &self,
        each: &mut dyn FnMut(&str, &Stored) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        self.kept.snapshot(each)
    }

    fn commit_at(&self, transaction: &Transaction) -> Result<Option<KeyRevision>, CatalogError> {
        let fate = self.fate.lock().take().unwrap_or(Fate::Told);
        let unheard = || Err(CatalogError::Failed("no answer".into()));
        match fate {
            Fate::Told => {
                self.reachable()?;
                let committed = self.kept.commit_at(transaction);
                // Others go on before this one is heard of.
                std::thread::yield_now();
                committed
            }
            Fate::Done => self.kept.commit_at(transaction).and_then(|_| unheard()),
            Fate::Late => {
                self.on_its_way.lock().push(transaction.clone());
                unheard()
            }
            Fate::Never => unheard(),
            Fate::Refused => Err(CatalogError::Refused("no room".into())),
        }
    }

    fn is_alone(&self) -> bool {
        !self.others.load(Ordering::Relaxed)
    }

    fn settle(&self) -> Result<(), CatalogError> {
        self.reachable()?;
        for late in self.on_its_way.lock().drain(..) {
            let _ = self.kept.commit(&late)?;
        }
        Ok(())
    }
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction::new().put(key, value.into())
}

fn change(catalog: &dyn Catalog, write: &Transaction) {
    assert_eq!(catalog.commit(write).unwrap(), Committed::Yes);
}

fn value(catalog: &dyn Catalog, key: &str) -> Option<String> {
    let stored = catalog.get(key).unwrap()?;
    Some(String::from_utf8(stored.value.to_vec()).unwrap())
}

fn keys(catalog: &dyn Catalog) -> Vec<(String, Stored)> {
    catalog.page("", None).unwrap()
}

#[test]
fn what_is_known_is_not_asked_for() {
    let below = Arc::new(Troubled::default());
    change(&below.kept, &put("old", "1"));
    let catalog = CachedCatalog::new(below.clone()).unwrap();
    change(&catalog, &put("new", "2"));
    assert_eq!(value(&catalog, "old").unwrap(), "1");
    assert_eq!(value(&catalog, "new").unwrap(), "2");
    assert_eq!(value(&catalog, "none"), None);
    assert_eq!(keys(&catalog).len(), 2);
    assert_eq!(below.reads(), 0);
    // What it says is what stands there, to the revision.
    assert_eq!(keys(&catalog), keys(&*below));
}

#[test]
fn an_outcome_that_nobody_told_is_found_out_before_anything_is_read() {
    for (fate, stands) in [
        (Fate::Done, Some("1")),
        (Fate::Late, Some("1")),
        (Fate::Never, None),
    ] {
        let below = Troubled::with(fate);
        let catalog = CachedCatalog::new(below.clone()).unwrap();
        assert!(catalog.commit(&put("k", "1")).is_err(), "{fate:?}");
        assert_eq!(value(&catalog, "k").as_deref(), stands, "{fate:?}");
        let again = put("k", "2").expect("k", Expect::Absent);
        let expected = match stands {
            Some(_) => Committed::No,
            None => Committed::Yes,
        };
        assert_eq!(catalog.commit(&again).unwrap(), expected, "{fate:?}");
        assert_eq!(keys(&catalog), keys(&*below), "{fate:?}");
    }
}

#[test]
fn what_is_in_doubt_stays_so_while_nobody_answers() {
    let below = Troubled::with(Fate::Late);
    let catalog = CachedCatalog::new(below.clone()).unwrap();
    assert!(catalog.commit(&put("k", "1")).is_err());
    below.unreachable.store(true, Ordering::Relaxed);
    assert!(catalog.get("k").is_err());
    assert!(catalog.page("", None).is_err());
    assert!(catalog.commit(&put("other", "1")).is_err());
    below.unreachable.store(false, Ordering::Relaxed);
    assert_eq!(value(&catalog, "k").unwrap(), "1");
    assert_eq!(value(&catalog, "other"), None);
}

#[test]
fn what_was_refused_leaves_no_doubt() {
    let below = Troubled::with(Fate::Refused);
    let catalog = CachedCatalog::new(below.clone()).unwrap();
    assert!(catalog.commit(&put("k", "1")).is_err());
    below.unreachable.store(true, Ordering::Relaxed);
    assert_eq!(value(&catalog, "k"), None);
}

#[test]
fn while_another_may_lead_what_stands_there_is_asked_for() {
    let below = Arc::new(Troubled::default());
    let catalog = CachedCatalog::new(below.clone()).unwrap();
    change(&catalog, &put("k", "1"));
    below.others.store(true, Ordering::Relaxed);
    change(&below.kept, &put("k", "theirs"));
    assert_eq!(value(&catalog, "k").unwrap(), "theirs");
    assert_eq!(keys(&catalog), keys(&*below));
}

#[test]
fn a_commit_that_loses_to_somebody_unknown_reads_what_there_is() {
    let below = Arc::new(Troubled::default());
    let catalog = CachedCatalog::new(below.clone()).unwrap();
    let revision = catalog.commit_at(&put("k", "1")).unwrap().unwrap();
    // As where the catalog below was set back under a service that runs.
    change(&below.kept, &put("k", "theirs"));
    let swap = put("k", "2").expect("k", Expect::At(revision));
    assert_eq!(catalog.commit(&swap).unwrap(), Committed::No);
    assert_eq!(value(&catalog, "k").unwrap(), "theirs");
    assert_eq!(keys(&catalog), keys(&*below));
}

#[test]
fn news_in_another_order_end_as_what_stands_there() {
    let below = Arc::new(Troubled::default());
    let catalog = Arc::new(CachedCatalog::new(below.clone()).unwrap());
    let workers: Vec<_> = (0..4u64)
        .map(|worker| {
            let catalog = catalog.clone();
            std::thread::spawn(move || {
                for step in 0..3000 {
                    let key = format!("key/{}", (step * (worker + 1)) % 5);
                    let write = match (step + worker) % 3 {
                        0 => Transaction::new().delete(key),
                        _ => put(&key, &format!("{worker}.{step}")),
                    };
                    change(&*catalog, &write);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    assert_eq!(keys(&*catalog), keys(&*below));
    assert_eq!(below.reads(), 1);
}
