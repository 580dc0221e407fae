//! A catalog that lasts as long as its process: for tests.

use super::{Catalog, CatalogError, KeyRevision, PAGE_KEYS, Stored, Transaction};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};

#[derive(Default)]
pub struct MemoryCatalog(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    last: u64,
    keys: BTreeMap<String, Stored>,
}

impl MemoryCatalog {
    pub fn new() -> Self {
        Self::default()
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Every commit below is one step: a panicking test leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Catalog for MemoryCatalog {
    fn get(&self, key: &str) -> Result<Option<Stored>, CatalogError> {
        Ok(self.kept().keys.get(key).cloned())
    }

    fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, Stored)>, CatalogError> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let kept = self.kept();
        Ok(kept
            .keys
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(PAGE_KEYS)
            .map(|(key, stored)| (key.clone(), stored.clone()))
            .collect())
    }

    fn snapshot(
        &self,
        each: &mut dyn FnMut(&str, &Stored) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let keys = self.kept().keys.clone();
        keys.iter().try_for_each(|(key, stored)| each(key, stored))
    }

    fn commit_at(&self, transaction: &Transaction) -> Result<Option<KeyRevision>, CatalogError> {
        transaction.check()?;
        let mut kept = self.kept();
        for (key, expect) in &transaction.expect {
            if !expect.holds(kept.keys.get(key).map(|stored| stored.revision)) {
                return Ok(None);
            }
        }
        kept.last += 1;
        let revision = KeyRevision(kept.last);
        for (key, value) in &transaction.write {
            match value.clone() {
                Some(value) => {
                    let value = value.into();
                    kept.keys.insert(key.clone(), Stored { revision, value })
                }
                None => kept.keys.remove(key),
            };
        }
        Ok(Some(revision))
    }
}
