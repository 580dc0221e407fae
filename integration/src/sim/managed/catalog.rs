//! The catalog of the simulated placement service, as its two kinds fail.
//!
//! - A file: what was committed is there when the service comes back, whenever it died: before a commit, or
//!   after it and before it could say so.
//! - etcd: every transaction is guarded by the leader's key, and its answer may get lost: then nobody knows. It may
//!   also be slow, and arrive only when the service has already given it up.
//!
//! It also sees what no reader of it can: that a change went into a disk's record over another one's head (I8).

use placement_service::catalog::{
    Catalog, CatalogError, KeyRevision, MemoryCatalog, Stored, Transaction,
};
use placement_service::model::key;
use replicator::plant::{Plant, planted};
use replicator::words::DiskRecord;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What all services that share it share.
#[derive(Clone, Default)]
pub(super) struct Shared {
    pub kept: Arc<MemoryCatalog>,
    /// Names the leader's key as it is: each service that is elected creates another one.
    pub leader: Arc<AtomicU64>,
    /// Counts commits.
    pub changes: Arc<AtomicU64>,
}

/// As one service sees it.
pub(super) struct SimCatalog {
    shared: Shared,
    /// The leader's key as this service created it.
    mine: u64,
    now: Mutex<Now>,
    on_its_way: Mutex<Option<Transaction>>,
    /// What it has read before it was interrupted: it goes on with that, and does not know how long it slept.
    stale: Mutex<Option<MemoryCatalog>>,
}

/// What becomes of a commit to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trouble {
    /// So many others go well before it.
    pub after: u32,
    pub fate: Fate,
}

/// What nobody hears of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Never,
    Done,
    /// At the last moment at which it can be.
    Late,
}

#[derive(Default)]
struct Now {
    trouble: Option<Trouble>,
    struck: bool,
    refused: bool,
    lost: Option<String>,
}

/// What became of the commits of one call.
pub(super) struct Ended {
    /// The trouble came.
    pub struck: bool,
    /// Somebody else leads.
    pub refused: bool,
    /// A change that another one undid, unseen.
    pub lost: Option<String>,
}

impl SimCatalog {
    pub fn new(shared: Shared, mine: u64) -> SimCatalog {
        SimCatalog {
            shared,
            mine,
            now: Mutex::default(),
            on_its_way: Mutex::default(),
            stale: Mutex::default(),
        }
    }

    /// From now on it reads what stands there at this moment.
    pub fn falls_asleep(&self) {
        let asleep = MemoryCatalog::new();
        let copied = self.shared.kept.snapshot(&mut |key, stored| {
            let put = Transaction::new().put(key, stored.value.to_vec());
            asleep.commit(&put).map(|_| ())
        });
        copied.expect("memory does not fail");
        *self.stale() = Some(asleep);
    }

    fn stale(&self) -> std::sync::MutexGuard<'_, Option<MemoryCatalog>> {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn late(&self) -> std::sync::MutexGuard<'_, Option<Transaction>> {
        let late = self.on_its_way.lock();
        late.unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, read: impl FnOnce(&MemoryCatalog) -> T) -> T {
        read(self.stale().as_ref().unwrap_or(&self.shared.kept))
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin_call(&self, trouble: Option<Trouble>) {
        *self.now() = Now {
            trouble,
            ..Now::default()
        };
    }

    pub fn end_call(&self) -> Ended {
        let now = std::mem::take(&mut *self.now());
        Ended {
            struck: now.struck,
            refused: now.refused,
            lost: now.lost,
        }
    }

    /// Each change of a record gives it the next revision: one that does not was made from an older record.
    fn lost_by(&self, transaction: &Transaction) -> Option<String> {
        let record = |bytes: &[u8]| serde_json::from_slice::<DiskRecord>(bytes).ok();
        let disks = transaction.write.iter();
        let disks = disks.filter(|(key, _)| key.starts_with(key::DISKS));
        disks.into_iter().find_map(|(key, value)| {
            let stands = self.shared.kept.get(key).expect("memory does not fail")?;
            let (stands, next) = (record(&stands.value)?, record(value.as_deref()?)?);
            let lost = next != stands && next.revision <= stands.revision;
            lost.then(|| {
                let (stands, next) = (stands.revision.0, next.revision.0);
                format!("I8: a change of {key} to revision {next} over {stands}")
            })
        })
    }
}

impl Catalog for SimCatalog {
    fn get(&self, key: &str) -> Result<Option<Stored>, CatalogError> {
        self.read(|kept| kept.get(key))
    }

    fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, Stored)>, CatalogError> {
        self.read(|kept| kept.page(prefix, after))
    }

    fn snapshot(
        &self,
        each: &mut dyn FnMut(&str, &Stored) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        self.read(|kept| kept.snapshot(each))
    }

    fn commit_at(&self, transaction: &Transaction) -> Result<Option<KeyRevision>, CatalogError> {
        let mut now = self.now();
        // A process that died commits nothing more; one that lost an answer goes on.
        let unguarded = planted(Plant::CatalogUnguarded);
        if self.shared.leader.load(Ordering::Relaxed) != self.mine && !unguarded {
            now.refused = true;
            return Err(CatalogError::NotLeader);
        }
        let strikes = match &mut now.trouble {
            Some(trouble) if trouble.after == 0 => now.trouble.take(),
            Some(trouble) => {
                trouble.after -= 1;
                None
            }
            None => None,
        };
        now.struck |= strikes.is_some();
        let unheard = || CatalogError::Failed("no answer".into());
        match strikes.map(|trouble| trouble.fate) {
            None | Some(Fate::Done) => {}
            Some(Fate::Never) => return Err(unheard()),
            Some(Fate::Late) => {
                *self.late() = Some(transaction.clone());
                return Err(unheard());
            }
        }
        let committed = self.carry_out(transaction, unguarded, &mut now)?;
        match strikes {
            Some(_) => Err(unheard()),
            None => Ok(committed),
        }
    }

    /// Asleep it does not know that its lease has ended.
    fn is_alone(&self) -> bool {
        self.stale().is_some() || self.shared.leader.load(Ordering::Relaxed) == self.mine
    }

    fn settle(&self) -> Result<(), CatalogError> {
        let mut now = self.now();
        let late = self.late().take();
        if self.shared.leader.load(Ordering::Relaxed) != self.mine {
            now.refused = true;
            return Err(CatalogError::NotLeader);
        }
        match late {
            Some(late) => self.carry_out(&late, false, &mut now).map(|_| ()),
            None => Ok(()),
        }
    }
}

impl SimCatalog {
    fn carry_out(
        &self,
        transaction: &Transaction,
        unguarded: bool,
        now: &mut Now,
    ) -> Result<Option<KeyRevision>, CatalogError> {
        let lost = self.lost_by(transaction);
        let committed = match unguarded {
            true => self.shared.kept.commit_at(&Transaction {
                expect: Vec::new(),
                write: transaction.write.clone(),
            }),
            false => self.shared.kept.commit_at(transaction),
        }?;
        if committed.is_some() {
            now.lost = now.lost.take().or(lost);
        }
        self.shared.changes.fetch_add(1, Ordering::Relaxed);
        Ok(committed)
    }
}
