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

use super::{Hindrance, Now, Phase, Writer};
use crate::plant::{Plant, planted};
use crate::words::{Change, ChangeRefused, DiskRecord, NewSet, StoreId};

pub(super) struct Switching {
    sets: Vec<NewSet>,
    stage: Stage,
    since: Now,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Who is to join shows that it is there. The guest notices nothing.
    Calling,
    /// New writes are held, those in flight end.
    Draining,
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
                self.switching.as_mut().expect("it was begun").stage = Stage::Draining;
                self.orders_hindrance = None;
                if planted(Plant::SwitchWithoutDrain) {
                    return self.commit_switch();
                }
                self.go_on_switching();
            }
            Stage::Draining if self.sequencer.is_idle() && planted(Plant::SwitchWithoutSync) => {
                self.commit_switch();
            }
            Stage::Draining if self.sequencer.is_idle() => {
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
        });
        true
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

    /// When a store that was ejected may be called again.
    pub(super) fn switch_timeout(&self) -> Option<Now> {
        let switching = self.switching.as_ref()?;
        let open = matches!(self.phase, Phase::Open) && switching.stage == Stage::Calling;
        let joiners = joiners(&self.record, &switching.sets);
        let at = |store: &StoreId| self.peers.get(store)?.rejoins_at;
        let next = joiners.iter().filter_map(at).filter(|at| *at > self.now);
        next.min().filter(|_| open)
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
