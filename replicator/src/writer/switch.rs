//! Changing the members of an open disk, as the placement service orders it (rules W8, S4).
//!
//! ```text
//!  guest       writer                    members      joining        placement
//!    |           |--- Seal, in this epoch ------------->|                |   nobody waits for a store
//!    |           |<-- Sealed ---------------------------|                |   that is not there (A6)
//!    | write --->| (held)                 |             |                |
//!    |           |<-- Written: the last --|             |                |
//!    |           |--- Sync -------------->|             |                |
//!    |           |<-- Synced -------------|             |                |
//!    |           |--- Swap(Switch) ----------------------------------->  |   epoch E+1
//!    |           |--- Seal E+1 ---------->|             |                |
//!    |           |--- Seal E+1, Join ------------------>|                |
//!    |           |--- Write (E+1, 1) ---->|------------>|                |
//!    |<-- done --|                        |             |                |
//! ```
//!
//! Without the drain, what was in flight could be uneven below the new epoch, where no take-over looks;
//! without the sync, the entries that begin or end there would claim what a power loss could take.
//! Reads go on, but while the new epoch is shown. What cannot be done is said once, and looked at again
//! when the orders or the record change.
//!
//! Nobody else's write waits behind one that does not end, because a store is full, say: then the switch waits. A full
//! store that the orders want gone leaves like one that failed, where the others suffice; else that write waits for it,
//! and the switch for that write.

use super::calls::Purpose;
use super::{Hindrance, Now, Phase, Writer};
use crate::plant::{Plant, planted};
use crate::words::{Change, ChangeRefused, DiskRecord, NewSet, StoreId};

pub(super) struct Switching {
    sets: Vec<NewSet>,
    stage: Stage,
    since: Now,
    /// What was in flight did not end: not before then again.
    drains_at: Option<Now>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Who is to join shows that it is there. The guest notices nothing.
    Calling,
    /// New writes are held since then, those in flight end.
    Draining(Now),
    /// The sync round that covers them all.
    Syncing(u64),
    Committing,
}

impl Writer {
    /// Begins a switch where the orders want one, or goes on with it.
    pub(super) fn go_on_switching(&mut self) {
        if !matches!(self.phase, Phase::Open) || self.stopping.is_some() || self.errand.is_some() {
            return;
        }
        if self.switching.is_none() && !self.begin_switching() {
            return;
        }
        let stage = self.switching.as_ref().expect("it was begun").stage;
        match stage {
            // What is about to be whole is so first: that needs a member less, perhaps.
            Stage::Calling if self.fill.completing.is_none() && self.joiners_answered() => {
                if !self.may_drain() {
                    return;
                }
                let stage = Stage::Draining(self.now);
                self.switching.as_mut().expect("it was begun").stage = stage;
                self.orders_hindrance = None;
                if planted(Plant::SwitchWithoutDrain) {
                    return self.commit_switch();
                }
                self.go_on_switching();
            }
            Stage::Draining(_) | Stage::Syncing(_) if self.is_held_up() => self.drain_later(),
            Stage::Draining(_) if self.sequencer.is_idle() && planted(Plant::SwitchWithoutSync) => {
                self.commit_switch();
            }
            Stage::Draining(_) if self.sequencer.is_idle() => {
                let round = self.start_round();
                self.switching.as_mut().expect("it was begun").stage = Stage::Syncing(round);
            }
            _ => {}
        }
    }

    fn begin_switching(&mut self) -> bool {
        if !std::mem::take(&mut self.orders_are_new) {
            return false;
        }
        let sets = differing(&self.record, &self.orders.sets);
        self.orders_hindrance = None;
        if sets.is_empty() {
            return false;
        }
        let by = (self.owner.backend, self.owner.life);
        let change = Change::Switch {
            by,
            sets: sets.clone(),
        };
        // Nobody has to wait to hear that it cannot be done.
        if let Err(why) = self.record.apply(self.record.epoch.generation(), &change) {
            self.orders_hindrance = Some(Hindrance::Refused(why));
            return false;
        }
        self.switching = Some(Switching {
            sets,
            stage: Stage::Calling,
            since: self.now,
            drains_at: None,
        });
        true
    }

    /// Whether what is in flight is about to end, as far as anybody knows.
    fn may_drain(&mut self) -> bool {
        let switching = self.switching.as_ref().expect("only while switching");
        let waits = switching.drains_at.is_some_and(|at| at > self.now);
        let patience = self.config.settle_patience;
        let is_stuck = self.calls.iter().any(|(_, call)| {
            matches!(call.purpose, Purpose::Write { .. }) && call.begun + patience <= self.now
        });
        let full = self.waits_for_room();
        if !is_stuck && full.is_none() && self.blocked.is_none() {
            return !waits;
        }
        self.orders_hindrance = Some(Hindrance::InFlight);
        if let Some((store, since)) = full {
            self.eject_full(store, since);
        }
        false
    }

    /// A member that has no room for what it was asked, and since when it has been asked.
    fn waits_for_room(&self) -> Option<(StoreId, Now)> {
        let full = self.calls.iter().filter(|(_, call)| call.full);
        let members = full.filter(|(_, call)| self.is_member(call.store));
        members
            .map(|(_, call)| (call.store, call.begun))
            .min_by_key(|(_, begun)| *begun)
    }

    /// A member that has been full for long, and that the switch lets go of: what waits for it need not.
    fn eject_full(&mut self, store: StoreId, since: Now) {
        let patience = self.config.eject_after;
        if patience.is_none_or(|patience| since + patience > self.now) {
            return;
        }
        let switching = self.switching.as_ref().expect("only while switching");
        let (by, sets) = (
            (self.owner.backend, self.owner.life),
            switching.sets.clone(),
        );
        let change = Change::Switch { by, sets };
        let after = self.record.apply(self.record.epoch.generation(), &change);
        let leaves = after.is_ok_and(|after| !after.members().contains(&store));
        if leaves && self.leaves_members(&[store]) && self.leaves_copies(&[store]) {
            self.member_lost(store);
        }
    }

    /// Whether what the held writes wait for does not end.
    fn is_held_up(&self) -> bool {
        let switching = self.switching.as_ref().expect("only while switching");
        let patience = self.config.settle_patience;
        let too_long =
            matches!(switching.stage, Stage::Draining(since) if since + patience <= self.now);
        too_long || self.waits_for_room().is_some()
    }

    /// Lets writes go on, and tries again when those that are in flight now had some time.
    fn drain_later(&mut self) {
        let drains_at = Some(self.now + self.config.settle_patience * 2);
        let switching = self.switching.as_mut().expect("only while switching");
        switching.stage = Stage::Calling;
        switching.drains_at = drains_at;
        self.orders_hindrance = Some(Hindrance::InFlight);
        self.send_ready();
    }

    /// Whether every store that is to join was shown this epoch, and is connected.
    fn joiners_answered(&mut self) -> bool {
        let switching = self.switching.as_ref().expect("only while switching");
        let since = switching.since;
        let mut missing = Vec::new();
        for store in joiners(&self.record, &switching.sets) {
            if self.peer(store).rejoins_at.is_some_and(|at| at > self.now) {
                missing.push(store);
                continue;
            }
            self.seal(store);
            let peer = &self.peers[&store];
            if !peer.connected || peer.sealed.is_none() {
                missing.push(store);
            }
        }
        if !missing.is_empty() && since + self.config.settle_patience <= self.now {
            self.orders_hindrance = Some(Hindrance::NoAnswer(missing.clone()));
        }
        missing.is_empty()
    }

    /// When a store that was ejected may be called again, or writes may be held, or were held for too long.
    pub(super) fn switch_timeout(&self) -> Option<Now> {
        let switching = self.switching.as_ref()?;
        if !matches!(self.phase, Phase::Open) {
            return None;
        }
        let ahead = |at: &Now| *at > self.now;
        match switching.stage {
            Stage::Calling => {
                let joiners = joiners(&self.record, &switching.sets);
                let at = |store: &StoreId| self.peers.get(store)?.rejoins_at;
                let next = joiners.iter().filter_map(at).chain(switching.drains_at);
                next.filter(ahead).min()
            }
            Stage::Draining(since) => Some(since + self.config.settle_patience).filter(ahead),
            Stage::Syncing(_) | Stage::Committing => None,
        }
    }

    pub(super) fn switch_synced(&mut self, round: u64) {
        let synced = |switching: &Switching| switching.stage == Stage::Syncing(round);
        let open = matches!(self.phase, Phase::Open) && self.errand.is_none();
        if self.switching.as_ref().is_some_and(synced) && open {
            assert!(
                self.sequencer.is_idle(),
                "W8: nothing is in flight when members are added"
            );
            self.commit_switch();
        }
    }

    fn commit_switch(&mut self) {
        let switching = self.switching.as_mut().expect("only while switching");
        switching.stage = Stage::Committing;
        let sets = switching.sets.clone();
        let by = (self.owner.backend, self.owner.life);
        self.phase = Phase::Switching;
        self.swap(Change::Switch { by, sets });
    }

    /// Whether new writes wait for the next epoch.
    pub(super) fn holds_writes(&self) -> bool {
        let calling = |switching: &Switching| switching.stage == Stage::Calling;
        self.switching.as_ref().is_some_and(|s| !calling(s))
    }

    /// The placement service sees it otherwise than the record that we had: go on as before.
    pub(super) fn switch_refused(&mut self, why: ChangeRefused) {
        self.orders_hindrance = Some(Hindrance::Refused(why));
        self.phase = Phase::Open;
        self.let_go_of_switch();
        self.consider_ejection();
    }

    /// Gives up a switch that was not committed; the writes that it held go out.
    pub(super) fn let_go_of_switch(&mut self) {
        let held = self.holds_writes();
        self.switching = None;
        if held && matches!(self.phase, Phase::Open) {
            self.send_ready();
        }
    }
}

/// What of `sets` differs from the members as they are, range by range.
pub(super) fn differing(record: &DiskRecord, sets: &[NewSet]) -> Vec<NewSet> {
    let mut out: Vec<NewSet> = Vec::new();
    for set in sets {
        let mut wanted = set.stores.clone();
        wanted.sort_unstable();
        wanted.dedup();
        for range in &record.map {
            let Some(extents) = set.extents.intersect(range.extents) else {
                continue;
            };
            let mut members: Vec<StoreId> = range.history.members().collect();
            members.sort_unstable();
            if members == wanted {
                continue;
            }
            let stores = wanted.clone();
            match out.last_mut() {
                Some(last) if last.extents.end == extents.first && last.stores == stores => {
                    last.extents.end = extents.end;
                }
                _ => out.push(NewSet { extents, stores }),
            }
        }
    }
    out
}

/// The stores that `sets` makes members of extents of which they are none.
pub(super) fn joiners(record: &DiskRecord, sets: &[NewSet]) -> Vec<StoreId> {
    let mut joiners = Vec::new();
    for set in sets {
        for range in &record.map {
            if range.extents.overlaps(set.extents) {
                let stores = set.stores.iter().copied();
                joiners.extend(stores.filter(|store| range.history.member(*store).is_none()));
            }
        }
    }
    joiners.sort_unstable();
    joiners.dedup();
    joiners
}
