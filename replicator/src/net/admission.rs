//! Who may ask a store for what: only the peer to whom the placement service granted an epoch uses it (I3).
//!
//! One [`Admission`] a session, in front of the store. It checks a grant when it is shown with a seal, and
//! what the store has kept of it when an epoch is first used in the session; then a look into a map a
//! request. A store pulling from another one quotes the digest of the grant that its writer showed it.
//!
//! What an epoch below or above the one shown asks for is refused here in the store's own words: by the
//! time that the store looked at it, another seal might have made it the right one.

use super::identity::{Claims, Credentials, GrantFault, Identity, sha256};
use crate::message::{Asker, GrantDigest, Refusal, Request};
use crate::words::{DiskId, Epoch};
use bytes::Bytes;
use std::collections::HashMap;

/// Disks that a session remembers; a node has fewer.
const MAX_REMEMBERED: usize = 4096;

/// What a node's stores ask of their peers.
#[derive(Clone)]
pub(super) struct Rules {
    /// Whose authority signs the placement service's certificate.
    pub credentials: Credentials,
    /// Let peers in that show no grant, because they know none: for the time of an upgrade.
    pub accept_ungranted: bool,
}

/// What one peer has shown in one session.
pub(super) struct Admission {
    rules: Rules,
    peer: Identity,
    /// Epochs that the peer was found to hold.
    held: HashMap<DiskId, Epoch>,
    /// Epochs whose grant the peer has quoted.
    quoted: HashMap<DiskId, Epoch>,
}

/// What quotes a grant.
pub(crate) fn digest(grant: &[u8]) -> GrantDigest {
    GrantDigest(sha256(grant))
}

impl Admission {
    pub fn new(rules: Rules, peer: Identity) -> Admission {
        Admission {
            rules,
            peer,
            held: HashMap::new(),
            quoted: HashMap::new(),
        }
    }

    /// Whether the peer may ask for this. `shown` says which epoch the store was shown of a disk, and the
    /// grant that it was shown with.
    pub fn admit(
        &mut self,
        request: &Request,
        shown: impl FnOnce(DiskId) -> (Epoch, Bytes),
    ) -> Result<(), Refusal> {
        match request {
            Request::Seal {
                disk, epoch, grant, ..
            } => self.seal(*disk, *epoch, grant, shown(*disk)),
            Request::Fetch { asker, proof, .. } => {
                let Asker { disk, epoch, .. } = *asker;
                if self.quoted.get(&disk) == Some(&epoch) || self.held.get(&disk) == Some(&epoch) {
                    return Ok(());
                }
                self.fetch(asker, *proof, shown(disk))
            }
            Request::Join { asker, .. }
            | Request::Write { asker, .. }
            | Request::Read { asker, .. }
            | Request::Survey { asker, .. }
            | Request::Pull { asker, .. }
            | Request::Heal { asker, .. }
            | Request::Digest { asker, .. }
            | Request::Verify { asker, .. }
            | Request::Sync { asker, .. }
            | Request::List { asker, .. }
            | Request::Settle { asker, .. }
            | Request::Keep { asker, .. }
            | Request::Collapse { asker, .. } => {
                if self.held.get(&asker.disk) == Some(&asker.epoch) {
                    return Ok(());
                }
                self.hold(asker, shown(asker.disk))
            }
        }
    }

    fn seal(
        &self,
        disk: DiskId,
        epoch: Epoch,
        grant: &Bytes,
        (shown, kept): (Epoch, Bytes),
    ) -> Result<(), Refusal> {
        if epoch < shown {
            return Err(Refusal::Superseded { shown });
        }
        if grant.is_empty() {
            let known = epoch == shown && !kept.is_empty();
            return match self.rules.accept_ungranted && !known {
                true => Ok(()),
                false => refused("a seal without the placement service's grant"),
            };
        }
        // What was good when it was kept is good: certificates end, epochs do not.
        let claims = match epoch == shown && *grant == kept {
            true => Claims::of_verified(grant),
            false => {
                let now = rustls::pki_types::UnixTime::now();
                self.rules.credentials.granted(grant, now)
            }
        };
        let claims = claims.or_else(|fault| self.bad_grant(disk, &fault))?;
        if claims.disk != disk || claims.epoch != epoch {
            return refused("the grant is of another disk or epoch");
        }
        if claims.holder != self.peer {
            return refused("the grant is another host's");
        }
        Ok(())
    }

    fn bad_grant(&self, disk: DiskId, fault: &GrantFault) -> Result<Claims, Refusal> {
        tracing::warn!(peer = %self.peer, %disk, "a grant that proves nothing: {fault}");
        refused("the grant proves nothing; the log of the store's node says why")
    }

    fn hold(&mut self, asker: &Asker, shown: (Epoch, Bytes)) -> Result<(), Refusal> {
        match self.holder(asker, &shown)? {
            Some(holder) if holder == self.peer => {
                remember(&mut self.held, asker);
                Ok(())
            }
            Some(_) => refused("another host has it"),
            None => Ok(()),
        }
    }

    fn fetch(
        &mut self,
        asker: &Asker,
        proof: Option<GrantDigest>,
        shown: (Epoch, Bytes),
    ) -> Result<(), Refusal> {
        match self.holder(asker, &shown)? {
            Some(holder) if holder == self.peer => remember(&mut self.held, asker),
            Some(_) if proof == Some(digest(&shown.1)) => remember(&mut self.quoted, asker),
            Some(_) if self.rules.accept_ungranted && proof.is_none() => {}
            Some(_) => return refused("who pulls has not shown its writer's grant"),
            None => {}
        }
        Ok(())
    }

    /// To whom the epoch that is asked in was granted; `None`: nobody said, and that will do.
    fn holder(
        &self,
        asker: &Asker,
        (shown, kept): &(Epoch, Bytes),
    ) -> Result<Option<Identity>, Refusal> {
        let shown = *shown;
        if asker.epoch < shown {
            return Err(Refusal::Superseded { shown });
        }
        if asker.epoch > shown {
            return Err(Refusal::NotShown { shown });
        }
        if kept.is_empty() {
            return match self.rules.accept_ungranted {
                true => Ok(None),
                false => refused("the epoch was shown without the placement service's grant"),
            };
        }
        match Claims::of_verified(kept) {
            Ok(claims) if (claims.disk, claims.epoch) == (asker.disk, shown) => {
                Ok(Some(claims.holder))
            }
            _ => refused("the store has kept a grant that says nothing of the epoch"),
        }
    }
}

fn refused<T>(why: &'static str) -> Result<T, Refusal> {
    Err(Refusal::NotGranted { why })
}

fn remember(map: &mut HashMap<DiskId, Epoch>, asker: &Asker) {
    if map.len() >= MAX_REMEMBERED {
        map.clear();
    }
    map.insert(asker.disk, asker.epoch);
}

#[cfg(test)]
mod tests;
