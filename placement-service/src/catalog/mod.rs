//! What the placement service must not lose: keys and values, changed by compare-and-swap only (I8).
//!
//! Three implementations pass one suite of tests: [`RedbCatalog`], a file beside the service;
//! [`EtcdCatalog`], which outlives a machine and is shared by several services, of which one leads; and
//! [`MemoryCatalog`] for tests. The trait asks for no more than etcd gives: a revision a key, transactions
//! of comparisons and writes, pages of a prefix, values and transactions of a bounded size.
//!
//! Calls block. The decisions above it are plain functions that the simulator and the tests run
//! without a runtime; the shells call them with `spawn_blocking`, where waiting for a sync is allowed.

mod cached;
mod etcd;
mod memory;
mod redb;
mod value;

pub use self::cached::CachedCatalog;
pub use self::etcd::{
    Announcement, BadEtcdAddress, Campaign, Etcd, EtcdAddress, EtcdCatalog, LEASE, Leadership,
};
pub use self::memory::MemoryCatalog;
pub use self::redb::RedbCatalog;
pub use self::value::Value;

use std::path::PathBuf;

#[cfg(test)]
mod tests;

/// Well below the 1.5 MiB that etcd takes for a whole request.
pub const MAX_VALUE_BYTES: usize = 512 << 10;
pub const MAX_KEY_BYTES: usize = 256;
/// Comparisons and writes of one transaction together; etcd takes 128 of each.
pub const MAX_TRANSACTION_KEYS: usize = 64;
/// Keys and values of one transaction together, below those 1.5 MiB.
pub const MAX_TRANSACTION_BYTES: usize = 1 << 20;
/// How many keys [`Catalog::page`] returns at most.
pub const PAGE_KEYS: usize = 256;

/// A key's state is named by the revision of the transaction that last wrote it. Never reused, also
/// not after the key was deleted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct KeyRevision(pub u64);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    pub revision: KeyRevision,
    pub value: Value,
}

/// What a key has to be for a transaction to go through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    Absent,
    At(KeyRevision),
}

/// Writes that all happen if every expectation holds, and otherwise not at all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Transaction {
    pub expect: Vec<(String, Expect)>,
    /// `None` deletes.
    pub write: Vec<(String, Option<Vec<u8>>)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a transaction that lost has changed nothing"]
pub enum Committed {
    /// Done, and durable.
    Yes,
    /// An expectation did not hold. Nothing was changed.
    No,
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Nothing was changed.
    #[error("{what} of {size} is more than a catalog takes ({limit})")]
    TooLarge {
        what: &'static str,
        size: usize,
        limit: usize,
    },
    #[error("{path} cannot be opened: {why}")]
    Open { path: PathBuf, why: String },
    #[error("etcd's authority and certificates {0}")]
    EtcdTls(&'static str),
    #[error("{key} holds something that this version does not understand: {why}")]
    Malformed { key: String, why: String },
    /// Nothing was changed.
    #[error("another placement service leads now")]
    NotLeader,
    /// Nothing was changed.
    #[error("the catalog failed: {0}")]
    Refused(String),
    /// A read failed, or a commit whose outcome is not known.
    #[error("the catalog failed: {0}")]
    Failed(String),
}

pub trait Catalog: Send + Sync + 'static {
    fn get(&self, key: &str) -> Result<Option<Stored>, CatalogError>;

    /// Keys that begin with `prefix`, in order, behind `after` if given; at most [`PAGE_KEYS`].
    /// A shorter page is the last.
    fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, Stored)>, CatalogError>;

    /// Every key, in order, as all of them stood at one moment.
    fn snapshot(
        &self,
        each: &mut dyn FnMut(&str, &Stored) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError>;

    /// All or nothing, and durable before it returns. Of several writes of one key the last one counts. Returns
    /// the revision that the keys have now; none: an expectation did not hold, and nothing was changed.
    fn commit_at(&self, transaction: &Transaction) -> Result<Option<KeyRevision>, CatalogError>;

    fn commit(&self, transaction: &Transaction) -> Result<Committed, CatalogError> {
        Ok(match self.commit_at(transaction)? {
            Some(_) => Committed::Yes,
            None => Committed::No,
        })
    }

    /// Nobody else can have changed anything by now.
    fn is_alone(&self) -> bool {
        true
    }

    /// Waits out what has failed: a commit whose outcome was not known is done by now, or never will be.
    fn settle(&self) -> Result<(), CatalogError> {
        Ok(())
    }
}

impl Transaction {
    pub fn new() -> Self {
        Transaction::default()
    }

    pub fn expect(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.expect.push((key.into(), expect));
        self
    }

    pub fn put(mut self, key: impl Into<String>, value: Vec<u8>) -> Self {
        self.write.push((key.into(), Some(value)));
        self
    }

    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.write.push((key.into(), None));
        self
    }

    /// The bounds are the same for every catalog, so that none takes what another could not.
    fn check(&self) -> Result<(), CatalogError> {
        let keys = self.expect.len() + self.write.len();
        within("a transaction", keys, MAX_TRANSACTION_KEYS)?;
        for (key, _) in &self.expect {
            within("a key", key.len(), MAX_KEY_BYTES)?;
        }
        for (key, value) in &self.write {
            within("a key", key.len(), MAX_KEY_BYTES)?;
            let bytes = value.as_ref().map_or(0, Vec::len);
            within("a value", bytes, MAX_VALUE_BYTES)?;
        }
        let keys = self.expect.iter().map(|(key, _)| key.len());
        let written = self.write.iter();
        let written = written.map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
        let bytes = keys.sum::<usize>() + written.sum::<usize>();
        within("the content of a transaction", bytes, MAX_TRANSACTION_BYTES)
    }
}

impl Expect {
    fn holds(self, current: Option<KeyRevision>) -> bool {
        match self {
            Expect::Absent => current.is_none(),
            Expect::At(revision) => current == Some(revision),
        }
    }
}

fn within(what: &'static str, size: usize, limit: usize) -> Result<(), CatalogError> {
    if size > limit {
        return Err(CatalogError::TooLarge { what, size, limit });
    }
    Ok(())
}
