//! Ejecting members that missed a write, before that write is acknowledged (rule W6), and never the
//! last one: then the guest waits.

use super::calls::Purpose;
use super::{Phase, Writer};
use crate::plant::{Plant, planted};
use crate::words::{Change, StoreId};

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
            Phase::Open => false,
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
            .find(|out| !out.is_empty() && self.leaves_members(out));
        let Some(stores) = out else {
            if !missing.is_empty() {
                self.blocked = Some(missing);
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

    fn leaves_members(&self, out: &[StoreId]) -> bool {
        self.record.may_remove(out)
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
            Purpose::Collapse => false,
            Purpose::Seal => !settling,
            _ => true,
        };
        let mut overdue: Vec<StoreId> = self
            .calls
            .iter()
            .filter(|(_, call)| {
                call.issued + patience <= self.now
                    && call.hold_until.is_none()
                    && owes(call.purpose)
                    && self.is_member(call.store)
            })
            .map(|(_, call)| call.store)
            .collect();
        overdue.dedup();
        if overdue.is_empty() {
            return;
        }
        if settling {
            return self.restart_settling();
        }
        for store in overdue {
            self.peer(store).overdue = true;
        }
        self.consider_ejection();
    }
}
