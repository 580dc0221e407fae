//! Which of several placement services leads: whoever created the leader's key, for as long as it stands.
//!
//! ```text
//!  grant a lease -> create the key under it, if there is none -> keep the lease alive, each second
//!                        |                                            |
//!                        lost: somebody else's is there               no longer possible: the key goes
//! ```

use super::EtcdAddress;
use super::gateway::{Fault, Gateway, Repeat};
use super::messages::{
    Bytes, Compare, GRANT, Grant, Granted, KEEP_ALIVE, KeptAlive, KeyValue, Number, OfLease,
    Operation, Put, RANGE, REVOKE, Range, Ranged, Revoked, TXN, Txn, Txned,
};
use super::tls::client_tls;
use crate::catalog::CatalogError;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A leader that etcd has not heard of for this long is given up for another. Longer than etcd takes
/// to choose its own leader, which leases wait for.
pub const LEASE: Duration = Duration::from_secs(5);

/// An etcd cluster, and our folder in it.
pub struct Etcd {
    pub(super) gateway: Gateway,
    address: EtcdAddress,
}

/// What a placement service that leads says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Announcement {
    /// Its host.
    pub name: String,
    /// Where nodes reach it, if it can tell.
    #[serde(default)]
    pub nodes: Option<SocketAddr>,
    /// Where operators reach it, if it can tell.
    #[serde(default)]
    pub operators: Option<SocketAddr>,
}

pub enum Campaign {
    Won(Leadership),
    /// Who leads instead, if it says so understandably.
    Lost(Option<Announcement>),
}

/// The leader's key as this service created it. Nobody else's is ever the same.
#[derive(Debug)]
pub struct Leadership {
    key: String,
    value: Vec<u8>,
    created: i64,
    /// The revision at which it was last written.
    written: AtomicI64,
    lease: Number,
    /// Until then the lease holds for certain.
    holds_until: Mutex<Instant>,
    lost: AtomicBool,
}

impl Etcd {
    /// `pki`: for `etcds://`, what [`client_tls`] reads.
    pub fn new(address: EtcdAddress, pki: Option<&Path>) -> Result<Self, CatalogError> {
        let tls = match (pki, address.tls) {
            (Some(dir), true) => Some(client_tls(dir)?),
            (None, false) => None,
            (Some(_), false) => {
                return Err(CatalogError::EtcdTls(
                    "are given, and the address begins with etcd://: write etcds://",
                ));
            }
            (None, true) => {
                return Err(CatalogError::EtcdTls(
                    "are needed for etcds://: say --etcd-pki",
                ));
            }
        };
        let gateway = Gateway::new(&address, tls)
            .map_err(|error| CatalogError::Failed(format!("cannot start: {error}")))?;
        Ok(Etcd { gateway, address })
    }

    pub fn address(&self) -> &EtcdAddress {
        &self.address
    }

    /// Who leads, if anybody does who says so understandably.
    pub fn leads(&self) -> Result<Option<Announcement>, CatalogError> {
        let leader = self.leader().map_err(failed)?;
        Ok(leader.as_ref().and_then(announced))
    }

    /// Tries to lead.
    pub fn campaign(&self, me: &Announcement) -> Result<Campaign, CatalogError> {
        if let Some(leader) = self.leader().map_err(failed)? {
            return Ok(Campaign::Lost(announced(&leader)));
        }
        let asked = Instant::now();
        let value = serde_json::to_vec(me).expect("plain data");
        let grant = Grant {
            ttl: Number(LEASE.as_secs() as i64),
        };
        let granted: Granted = self
            .gateway
            .ask(GRANT, &grant, Repeat::Harmless)
            .map_err(failed)?;
        let create = Txn {
            compare: vec![Compare::created_at(self.leader_key(), 0)],
            success: vec![Operation::Put(Put {
                key: Bytes(self.leader_key().into_bytes()),
                value: Bytes(value.clone()),
                lease: Some(granted.id),
            })],
            failure: vec![],
        };
        let outcome: Result<Txned, Fault> = self.gateway.ask(TXN, &create, Repeat::Never);
        // Whatever came of it, the key says: ours is the one under our lease.
        let leader = match &outcome {
            Ok(_) | Err(Fault::Unknown(_)) => self.leader().map_err(failed)?,
            Err(_) => None,
        };
        match leader {
            Some(leader) if leader.lease == granted.id => Ok(Campaign::Won(Leadership {
                key: self.leader_key(),
                value,
                created: leader.create_revision.0,
                written: AtomicI64::new(leader.mod_revision.0),
                lease: granted.id,
                holds_until: Mutex::new(asked + LEASE),
                lost: AtomicBool::new(false),
            })),
            other => {
                self.revoke(granted.id);
                outcome.map_err(failed)?;
                Ok(Campaign::Lost(other.as_ref().and_then(announced)))
            }
        }
    }

    /// Goes on leading. False: it is over.
    pub fn keep_alive(&self, leadership: &Leadership) -> Result<bool, CatalogError> {
        if leadership.is_lost() {
            return Ok(false);
        }
        let question = OfLease {
            id: leadership.lease,
        };
        let asked = Instant::now();
        let kept: KeptAlive = self
            .gateway
            .ask(KEEP_ALIVE, &question, Repeat::Harmless)
            .map_err(failed)?;
        if kept.result.ttl.0 <= 0 {
            leadership.lose();
            return Ok(false);
        }
        leadership.holds_until(asked + LEASE);
        Ok(true)
    }

    /// Leaves the lead to others at once. Where that fails, they wait for the lease to end.
    pub fn resign(&self, leadership: &Leadership) {
        leadership.lose();
        self.revoke(leadership.lease);
    }

    pub(super) fn revoke(&self, lease: Number) {
        let revoke = OfLease { id: lease };
        let revoked: Result<Revoked, Fault> = self.gateway.ask(REVOKE, &revoke, Repeat::Harmless);
        if let Err(fault) = revoked {
            tracing::debug!("a lease ends by itself: {fault}");
        }
    }

    fn leader(&self) -> Result<Option<KeyValue>, Fault> {
        let question = Range {
            key: Bytes(self.leader_key().into_bytes()),
            ..Range::default()
        };
        let found: Ranged = self.gateway.ask(RANGE, &question, Repeat::Harmless)?;
        Ok(found.kvs.into_iter().next())
    }

    fn leader_key(&self) -> String {
        format!("{}/leader", self.address.folder)
    }

    /// Where one of the catalog's keys stands in etcd.
    pub(super) fn key(&self, key: &str) -> String {
        format!("{}/key/{key}", self.address.folder)
    }

    /// The reverse of [`Etcd::key`].
    pub(super) fn own<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.address.folder)?
            .strip_prefix("/key/")
    }
}

impl Leadership {
    /// What every transaction has to find.
    pub(super) fn guard(&self) -> Compare {
        // Implies who created it.
        Compare::changed_at(self.key.clone(), self.written())
    }

    /// The revision at which it was last written, as far as is known.
    pub(super) fn written(&self) -> i64 {
        self.written.load(Ordering::Relaxed)
    }

    /// What has to hold to write the key again.
    pub(super) fn created(&self) -> Compare {
        Compare::created_at(self.key.clone(), self.created)
    }

    /// Writes the key again, as it is.
    pub(super) fn put(&self) -> Operation {
        Operation::Put(Put {
            key: Bytes(self.key.clone().into_bytes()),
            value: Bytes(self.value.clone()),
            lease: Some(self.lease),
        })
    }

    pub(super) fn was_written_at(&self, revision: i64) {
        self.written.fetch_max(revision, Ordering::Relaxed);
    }

    /// Whether nobody else can lead now.
    pub(super) fn has_lease(&self) -> bool {
        !self.is_lost() && Instant::now() < *self.until()
    }

    fn holds_until(&self, until: Instant) {
        let mut known = self.until();
        *known = until.max(*known);
    }

    fn until(&self) -> MutexGuard<'_, Instant> {
        self.holds_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn is(&self, leader: &KeyValue) -> bool {
        leader.create_revision.0 == self.created && leader.mod_revision.0 >= self.written()
    }

    /// Whether somebody has noticed that it is over. Nothing depends on that: every transaction is guarded.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Leadership {
    pub(super) fn lease_for_tests(&self) -> Number {
        self.lease
    }

    pub(super) fn unaware_for_tests(&self) -> Leadership {
        Leadership {
            key: self.key.clone(),
            value: self.value.clone(),
            created: self.created,
            written: AtomicI64::new(self.written()),
            lease: self.lease,
            holds_until: Mutex::new(*self.until()),
            lost: AtomicBool::new(false),
        }
    }
}

fn announced(leader: &KeyValue) -> Option<Announcement> {
    serde_json::from_slice(&leader.value.0).ok()
}

fn failed(fault: Fault) -> CatalogError {
    match fault {
        Fault::Unknown(_) => CatalogError::Failed(fault.to_string()),
        Fault::Unreachable(_) | Fault::Refused(_) => CatalogError::Refused(fault.to_string()),
    }
}
