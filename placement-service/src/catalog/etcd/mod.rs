//! The catalog in etcd, which outlives a machine: several placement services share one, and one of them
//! leads.
//!
//! ```text
//! <folder>/leader      Announcement of the service that leads, under its lease
//! <folder>/key/<key>   the catalog's keys and values
//! ```
//!
//! A key's revision is the one at which etcd last changed it. Every transaction is guarded: it goes through
//! only while the leader's key is the very one that its service created, and last wrote ([`Leadership`]). A service that
//! was paused, cut off, or whose clock runs wild thus commits nothing once another leads, whatever it
//! believes itself; leases, which are about time, decide only when another one may try, and how long a service may
//! answer from memory. A service writes the leader's key again when it does not know what came of a transaction:
//! what was on its way until then comes too late.

mod address;
mod election;
mod gateway;
mod messages;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
mod tls;

pub use address::{BadEtcdAddress, EtcdAddress};
pub use election::{Announcement, Campaign, Etcd, LEASE, Leadership};

use super::{Catalog, CatalogError, Expect, KeyRevision, PAGE_KEYS, Stored, Transaction};
use gateway::{Fault, Repeat};
use messages::{
    Bytes, Compare, Delete, KeyValue, Number, Operation, Put, RANGE, Range, Ranged, TXN, Txn, Txned,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Cheap to clone; good for as long as its service leads.
#[derive(Clone)]
pub struct EtcdCatalog {
    etcd: Arc<Etcd>,
    leadership: Arc<Leadership>,
}

impl EtcdCatalog {
    pub fn new(etcd: Arc<Etcd>, leadership: Arc<Leadership>) -> Self {
        EtcdCatalog { etcd, leadership }
    }

    fn range(&self, range: &Range) -> Result<Ranged, CatalogError> {
        let asked = self.etcd.gateway.ask(RANGE, range, Repeat::Harmless);
        asked.map_err(failed)
    }

    fn read_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        revision: Option<Number>,
    ) -> Result<Ranged, CatalogError> {
        let prefix = self.etcd.key(prefix);
        let from = match after.map(|after| self.etcd.key(after)) {
            // The first key behind it.
            Some(after) if after >= prefix => [after.as_bytes(), &[0]].concat(),
            _ => prefix.clone().into_bytes(),
        };
        self.range(&Range {
            key: Bytes(from),
            range_end: Some(Bytes(behind(prefix.as_bytes()))),
            limit: Some(Number(PAGE_KEYS as i64)),
            revision,
        })
    }

    fn stored(&self, found: KeyValue) -> Result<(String, Stored), CatalogError> {
        let odd = || CatalogError::Failed("etcd names a key that we never wrote".into());
        let key = String::from_utf8(found.key.0).map_err(|_| odd())?;
        let key = self.etcd.own(&key).ok_or_else(odd)?.to_owned();
        let revision = KeyRevision(u64::try_from(found.mod_revision.0).map_err(|_| odd())?);
        let value = found.value.0.into();
        Ok((key, Stored { revision, value }))
    }

    fn txn(&self, transaction: &Transaction) -> Txn {
        let mut compare = vec![self.leadership.guard()];
        compare.extend(transaction.expect.iter().map(|(key, expect)| {
            let revision = match expect {
                Expect::Absent => 0,
                Expect::At(revision) => revision.0 as i64,
            };
            Compare::changed_at(self.etcd.key(key), revision)
        }));
        // Of several writes of a key the last one counts, as in every catalog; etcd takes but one.
        let last: BTreeMap<&String, &Option<Vec<u8>>> = transaction
            .write
            .iter()
            .map(|(key, value)| (key, value))
            .collect();
        let write = |(key, value): (&String, &Option<Vec<u8>>)| {
            let key = Bytes(self.etcd.key(key).into_bytes());
            match value.clone() {
                Some(value) => Operation::Put(Put {
                    key,
                    value: Bytes(value),
                    lease: None,
                }),
                None => Operation::DeleteRange(Delete { key }),
            }
        };
        Txn {
            compare,
            success: last.into_iter().map(write).collect(),
            // At the moment at which it did not go through.
            failure: vec![self.who_leads()],
        }
    }

    fn who_leads(&self) -> Operation {
        Operation::Range(Range {
            key: Bytes(self.leadership.key().as_bytes().to_vec()),
            ..Range::default()
        })
    }

    /// Whether it is still we who lead, by what a transaction that did not go through found.
    fn still_leads(&self, done: Txned) -> Result<(), CatalogError> {
        let leader = done.responses.into_iter().find_map(|o| o.response_range);
        let leader = leader.and_then(|range| range.kvs.into_iter().next());
        match leader.filter(|leader| self.leadership.is(leader)) {
            Some(leader) => {
                // An answer of [`Catalog::settle`] was lost.
                self.leadership.was_written_at(leader.mod_revision.0);
                Ok(())
            }
            // Or it is the key as it was before: etcd was set back.
            None => {
                self.leadership.lose();
                Err(CatalogError::NotLeader)
            }
        }
    }
}

impl Catalog for EtcdCatalog {
    fn get(&self, key: &str) -> Result<Option<Stored>, CatalogError> {
        let found = self.range(&Range {
            key: Bytes(self.etcd.key(key).into_bytes()),
            ..Range::default()
        })?;
        let found = found.kvs.into_iter().next();
        let stored = found.map(|found| self.stored(found)).transpose()?;
        Ok(stored.map(|(_, stored)| stored))
    }

    fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, Stored)>, CatalogError> {
        let page = self.read_page(prefix, after, None)?;
        page.kvs
            .into_iter()
            .map(|found| self.stored(found))
            .collect()
    }

    /// Pages of one revision. If it takes so long that etcd compacts that away, it fails.
    fn snapshot(
        &self,
        each: &mut dyn FnMut(&str, &Stored) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let mut at: Option<Number> = None;
        let mut after: Option<String> = None;
        loop {
            let page = self.read_page("", after.as_deref(), at)?;
            at.get_or_insert(page.header.revision);
            if page.kvs.is_empty() {
                return Ok(());
            }
            for found in page.kvs {
                let (key, stored) = self.stored(found)?;
                each(&key, &stored)?;
                after = Some(key);
            }
        }
    }

    fn commit_at(&self, transaction: &Transaction) -> Result<Option<KeyRevision>, CatalogError> {
        transaction.check()?;
        if self.leadership.is_lost() {
            return Err(CatalogError::NotLeader);
        }
        let done = loop {
            let written = self.leadership.written();
            let txn = self.txn(transaction);
            // Not twice: if the first one went through, the second one would say that it lost.
            let done: Result<Txned, Fault> = self.etcd.gateway.ask(TXN, &txn, Repeat::Never);
            let done = done.map_err(failed)?;
            if done.succeeded {
                break done;
            }
            self.still_leads(done)?;
            // Otherwise it went by a guard of ours that is old, and says nothing of what was expected.
            if self.leadership.written() == written {
                return Ok(None);
            }
        };
        let odd = || CatalogError::Failed("etcd gave a revision that cannot be".into());
        let revision = u64::try_from(done.header.revision.0).map_err(|_| odd())?;
        Ok(Some(KeyRevision(revision)))
    }

    fn is_alone(&self) -> bool {
        self.leadership.has_lease()
    }

    fn settle(&self) -> Result<(), CatalogError> {
        let again = Txn {
            compare: vec![self.leadership.created()],
            success: vec![self.leadership.put()],
            failure: vec![self.who_leads()],
        };
        let done: Result<Txned, Fault> = self.etcd.gateway.ask(TXN, &again, Repeat::Harmless);
        let done = done.map_err(failed)?;
        if !done.succeeded {
            self.still_leads(done)?;
            return Err(CatalogError::Failed(
                "etcd contradicts itself about who leads".into(),
            ));
        }
        self.leadership.was_written_at(done.header.revision.0);
        Ok(())
    }
}

/// The first key behind all that begin with `prefix`.
fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    let last = end.last_mut().expect("a folder is not empty");
    assert!(*last < u8::MAX, "keys are text");
    *last += 1;
    end
}

fn failed(fault: Fault) -> CatalogError {
    match fault {
        Fault::Unknown(_) => CatalogError::Failed(fault.to_string()),
        Fault::Unreachable(_) | Fault::Refused(_) => CatalogError::Refused(fault.to_string()),
    }
}
