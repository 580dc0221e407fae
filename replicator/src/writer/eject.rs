//! Ejecting members that missed a write, before that write is acknowledged (rule W6), and never the
//! last one, nor where that would leave fewer complete copies than are ordered: then the guest waits.

use super::calls::{Call, Purpose};
use super::{Now, Phase, Writer};
use crate::plant::{Plant, planted};
use crate::words::{Change, StoreId};
use std::collections::BTreeSet;

/// Members without which it cannot go on.
pub(super) struct Blocked {
    pub stores: Vec<StoreId>,
    /// They could be ejected, but for the fewest copies that are ordered.
    pub too_few_copies: Option<u8>,
}

impl Writer {
    /// `store` has missed writes, or will not take any.
    pub(super) fn member_lost(&mut self, store: StoreId) {
        self.peer(store).lost = true;
        self.consider_ejection();
    }

    /// Ejects whoever has to go, if every range of extents keeps a member.
    pub(super) fn consider_ejection(&mut self) {
        if self.errand.is_some() {
            // One errand at a time; this is looked at again when it has ended.
            return;
        }
        let fresh = match &self.phase {
            Phase::Open => None,
            Phase::Opening(opening) => opening.fresh,
            _ => return,
        };
        let members = self.record.members();
        let of = |which: fn(&super::peers::Peer) -> bool| -> Vec<StoreId> {
            let chosen = members.iter().filter(|store| which(&self.peers[store]));
            chosen.copied().collect()
        };
        let lost = of(|peer| peer.lost);
        let missing = of(|peer| peer.lost || peer.overdue);
        self.blocked = None;
        // Whoever is only silent may still hold everything, and may be all that is left.
        let out = [missing.clone(), lost]
            .into_iter()
            .find(|out| !out.is_empty() && self.leaves_members(out) && self.leaves_copies(out));
        let Some(stores) = out else {
            if !missing.is_empty() {
                let enough = !self.leaves_members(&missing) || self.leaves_copies(&missing);
                self.blocked = Some(Blocked {
                    stores: missing,
                    too_few_copies: (!enough).then_some(self.orders.min_copies),
                });
            }
            return;
        };
        if planted(Plant::AcknowledgeBeforeEject) {
            self.acknowledge_without(&stores);
        }
        let serving = matches!(self.phase, Phase::Open);
        self.phase = Phase::Ejecting { fresh, serving };
        let by = (self.owner.backend, self.owner.life);
        self.swap(Change::Eject { by, stores });
    }

    pub(super) fn leaves_members(&self, out: &[StoreId]) -> bool {
        self.record.may_remove(out)
    }

    /// Whether no range of extents would have fewer complete copies than are ordered, because of `out`.
    pub(super) fn leaves_copies(&self, out: &[StoreId]) -> bool {
        let least = usize::from(self.orders.min_copies);
        self.record.map.iter().all(|range| {
            let whole = range.history.live().filter(|entry| entry.whole);
            let stores = whole.flat_map(|entry| &entry.stores);
            let (before, after) = stores.fold((0, 0), |(before, after), store| {
                (before + 1, after + usize::from(!out.contains(store)))
            });
            after == before || after >= least
        })
    }

    /// Whether every member of now has answered in time whatever it was asked, as far as anybody knows.
    pub(super) fn nobody_is_missing(&self) -> bool {
        let here = |peer: &super::peers::Peer| !peer.lost && !peer.overdue;
        self.record
            .members()
            .iter()
            .all(|store| self.peers.get(store).is_none_or(here))
    }

    /// An ejection is asked for, and the placement service does not answer; meanwhile whoever was to be
    /// ejected has come back with everything. The swap may have happened and cannot be taken back; but
    /// until it is known, what all members of now hold is held by those of any later epoch, too.
    pub(super) fn goes_on_while_ejecting(&self) -> bool {
        matches!(self.phase, Phase::Ejecting { serving: true, .. })
            && !self.holds_writes()
            && self.nobody_is_missing()
    }

    /// Looks for members that owe an answer for too long.
    pub(super) fn find_overdue(&mut self) {
        let settling = matches!(self.phase, Phase::Settling(_));
        let patience = if settling {
            Some(self.config.settle_patience)
        } else {
            self.config.eject_after
        };
        let Some(patience) = patience else {
            return;
        };
        // Reads are asked of others (read.rs), and a take-over's seals have a bound of their own.
        let owes = |purpose: Purpose| match purpose {
            Purpose::Read { .. } | Purpose::Through { .. } => false,
            // Filling takes its time.
            Purpose::Survey { .. } | Purpose::Pull { .. } | Purpose::Seed { .. } => false,
            Purpose::Heal { .. } | Purpose::Look { .. } | Purpose::Collapse => false,
            Purpose::Seal => !settling,
            _ => true,
        };
        let overdue: BTreeSet<StoreId> = self
            .calls
            .iter()
            .filter(|(_, call)| {
                self.owed_since(call) + patience <= self.now
                    && call.hold_until.is_none()
                    && owes(call.purpose)
                    && self.is_member(call.store)
            })
            .map(|(_, call)| call.store)
            .collect();
        if settling {
            if !overdue.is_empty() {
                self.restart_settling();
            }
            return;
        }
        for store in self.record.members() {
            self.peer(store).overdue = overdue.contains(&store);
        }
        if !overdue.is_empty() || self.blocked.is_some() {
            self.consider_ejection();
        }
    }

    /// From when on a store's answer is late. Where nobody has answered yet (all of them sync at the same
    /// time, say) it is not the store that is slow.
    fn owed_since(&self, call: &Call) -> Now {
        let first = match call.purpose {
            Purpose::Write { piece } => self.first_held(piece),
            Purpose::Sync { round } => self.flushes.first_answer(round),
            _ => None,
        };
        first.map_or(call.issued, |at| at.max(call.issued))
    }
}
