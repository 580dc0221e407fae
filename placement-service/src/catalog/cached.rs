//! A catalog whose keys and values are all in memory as well: the service that leads is the only one that
//! changes them, so it need not ask what stands there.
//!
//! ```text
//!  read    ---------------------------> memory           asks below only when somebody else may lead
//!  commit  ---> below, durable -------> memory           in the order of the revisions
//!               outcome unknown ------> these keys are in doubt: before anything else is read or committed, what was
//!                                       on its way is waited out ([`Catalog::settle`]) and they are read again
//! ```
//!
//! A reader whose service no longer leads, and has not noticed, reads what is old. That is harmless as it is for one
//! who read and then was held up: every commit is guarded by what was read, and by the lead.

use super::{Catalog, CatalogError, KeyRevision, PAGE_KEYS, Stored, Transaction};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(test)]
mod tests;

/// Deleted keys that are remembered before they are forgotten together.
const MAX_GONE: usize = 1024;

pub struct CachedCatalog {
    below: Arc<dyn Catalog>,
    known: RwLock<Known>,
    /// Shared by commits that are under way; whoever reads keys again has it alone.
    under_way: RwLock<()>,
    /// Keys of commits whose outcome is not known.
    in_doubt: Mutex<BTreeSet<String>>,
    /// How often it was tried in vain to find out.
    failures: AtomicU64,
}

#[derive(Default)]
struct Known {
    keys: BTreeMap<String, Stored>,
    /// When keys were deleted: a commit that went through before may be heard of later.
    gone: BTreeMap<String, KeyRevision>,
}

impl CachedCatalog {
    /// Reads all that there is. From here on nobody else may change it, but for who leads next.
    pub fn new(below: Arc<dyn Catalog>) -> Result<Self, CatalogError> {
        let mut known = Known::default();
        below.snapshot(&mut |key, stored| {
            known.keys.insert(key.to_owned(), stored.clone());
            Ok(())
        })?;
        Ok(CachedCatalog {
            below,
            known: RwLock::new(known),
            under_way: RwLock::default(),
            in_doubt: Mutex::default(),
            failures: AtomicU64::new(0),
        })
    }

    /// After that no key is in doubt.
    fn clear_up(&self) -> Result<(), CatalogError> {
        if self.in_doubt.lock().is_empty() {
            return Ok(());
        }
        let failures = self.failures.load(Ordering::Relaxed);
        let _alone = self.under_way.write();
        let keys = self.in_doubt.lock().clone();
        if keys.is_empty() {
            return Ok(());
        }
        // Each try may take seconds; who waited for another's does not try after it.
        if self.failures.load(Ordering::Relaxed) != failures {
            return Err(CatalogError::Failed(
                "what came of an earlier transaction could not be found out yet".into(),
            ));
        }
        let found = self.below.settle();
        let found = found.and_then(|()| self.read_again(keys.iter()));
        match &found {
            // Nobody has added to them: that takes a commit under way.
            Ok(()) => self.in_doubt.lock().clear(),
            Err(_) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        found
    }

    /// No commit may be under way.
    fn read_again<'a>(&self, keys: impl Iterator<Item = &'a String>) -> Result<(), CatalogError> {
        for key in keys {
            let found = self.below.get(key)?;
            let mut known = self.known.write();
            match found {
                Some(stored) => known.keys.insert(key.clone(), stored),
                None => known.keys.remove(key),
            };
        }
        Ok(())
    }

    /// Whether all that the transaction expects holds, as far as is known here.
    fn expects_what_is_known(&self, transaction: &Transaction) -> bool {
        let known = self.known.read();
        let revision = |key| known.keys.get(key).map(|stored| stored.revision);
        let mut expected = transaction.expect.iter();
        expected.all(|(key, expect)| expect.holds(revision(key)))
    }
}

impl Known {
    /// Commits may be heard of in another order than they went through in.
    fn apply(&mut self, transaction: &Transaction, revision: KeyRevision) {
        let last: BTreeMap<&String, &Option<Vec<u8>>> = transaction
            .write
            .iter()
            .map(|(key, value)| (key, value))
            .collect();
        for (key, value) in last {
            let here = self.keys.get(key).map(|stored| stored.revision);
            if here.max(self.gone.get(key).copied()) > Some(revision) {
                continue;
            }
            match value.clone() {
                Some(value) => {
                    let value = value.into();
                    self.keys.insert(key.clone(), Stored { revision, value });
                    self.gone.remove(key);
                }
                None => {
                    self.keys.remove(key);
                    self.gone.insert(key.clone(), revision);
                }
            }
        }
    }
}

impl Catalog for CachedCatalog {
    fn get(&self, key: &str) -> Result<Option<Stored>, CatalogError> {
        if !self.below.is_alone() {
            return self.below.get(key);
        }
        self.clear_up()?;
        Ok(self.known.read().keys.get(key).cloned())
    }

    fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, Stored)>, CatalogError> {
        if !self.below.is_alone() {
            return self.below.page(prefix, after);
        }
        self.clear_up()?;
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let known = self.known.read();
        let found = known.keys.range::<str, _>((from, Bound::Unbounded));
        Ok(found
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(PAGE_KEYS)
            .map(|(key, stored)| (key.clone(), stored.clone()))
            .collect())
    }

    /// Of one moment, which only the catalog below can tell.
    fn snapshot(
        &self,
        each: &mut dyn FnMut(&str, &Stored) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        self.below.snapshot(each)
    }

    fn commit_at(&self, transaction: &Transaction) -> Result<Option<KeyRevision>, CatalogError> {
        self.clear_up()?;
        let committed = {
            let _under_way = self.under_way.read();
            let committed = self.below.commit_at(transaction);
            match &committed {
                Ok(Some(revision)) => self.known.write().apply(transaction, *revision),
                Err(CatalogError::Failed(_)) => {
                    let keys = transaction.write.iter().map(|(key, _)| key.clone());
                    self.in_doubt.lock().extend(keys);
                }
                Ok(None) | Err(_) => {}
            }
            committed?
        };
        // It lost to somebody whom we have not heard of: to another commit under way, as a rule.
        if committed.is_none() && self.expects_what_is_known(transaction) {
            let _alone = self.under_way.write();
            self.read_again(transaction.expect.iter().map(|(key, _)| key))?;
        }
        if self.known.read().gone.len() > MAX_GONE {
            let _alone = self.under_way.write();
            self.known.write().gone.clear();
        }
        Ok(committed)
    }

    fn is_alone(&self) -> bool {
        self.below.is_alone()
    }

    fn settle(&self) -> Result<(), CatalogError> {
        self.clear_up()
    }
}
