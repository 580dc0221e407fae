//! Flushes: a round asks every member to sync, bound to its incarnation, and ends when all have
//! (rules S1, S4). It covers every write that was acknowledged before it began.

use super::calls::Purpose;
use super::{Aim, Failure, Now, Phase, RequestId, Writer};
use crate::message::Request;
use crate::words::StoreId;
use std::collections::{BTreeSet, VecDeque};

/// Rounds under way at once: one that is being answered, and one for those that came since. All
/// later flushes share the next.
const MAX_ROUNDS: usize = 2;

#[derive(Default)]
pub(super) struct Flushes {
    /// Writes acknowledged since the writer began; a clock for what a round covers.
    pub acknowledged: u64,
    /// How many of them the rounds that ended cover.
    synced: u64,
    last_round: u64,
    rounds: VecDeque<Round>,
    /// Flushes for the next round.
    next: Vec<RequestId>,
}

struct Round {
    id: u64,
    flushes: Vec<RequestId>,
    missing: BTreeSet<StoreId>,
    /// When the first member answered.
    first_answer: Option<Now>,
    covers: u64,
}

impl Flushes {
    /// When the first member answered that round.
    pub fn first_answer(&self, round: u64) -> Option<Now> {
        let round = self.rounds.iter().find(|r| r.id == round);
        round.and_then(|round| round.first_answer)
    }
}

impl Writer {
    pub(super) fn give_up_flushes(&mut self, of: &BTreeSet<RequestId>) {
        let flushes = &mut self.flushes;
        let rounds = flushes.rounds.iter_mut().map(|round| &mut round.flushes);
        let mut given_up = Vec::new();
        for list in rounds.chain([&mut flushes.next]) {
            given_up.extend(list.extract_if(.., |id| of.contains(id)));
        }
        for id in given_up {
            self.piece_ended(id, Some(Failure::TooLate));
        }
    }

    pub(super) fn begin_flush(&mut self, id: RequestId) {
        self.piece_begins(id);
        self.flushes.next.push(id);
        self.start_syncs();
    }

    /// Begins a round if one is wanted and there is room for it.
    pub(super) fn start_syncs(&mut self) {
        if !matches!(self.phase, Phase::Open) && !self.goes_on_while_ejecting() {
            return;
        }
        let wanted = !self.flushes.next.is_empty() && self.flushes.rounds.len() < MAX_ROUNDS;
        let ahead = self.sync_continuously
            && self.flushes.rounds.is_empty()
            && self.flushes.synced < self.flushes.acknowledged;
        if wanted || ahead {
            self.start_round();
        }
    }

    /// Asks all members to sync what they hold now; returns the round's number.
    pub(super) fn start_round(&mut self) -> u64 {
        let members = self.record.members();
        let flushes = &mut self.flushes;
        flushes.last_round += 1;
        let id = flushes.last_round;
        flushes.rounds.push_back(Round {
            id,
            flushes: std::mem::take(&mut flushes.next),
            missing: members.iter().copied().collect(),
            first_answer: None,
            covers: flushes.acknowledged,
        });
        for store in members {
            let request = Request::Sync {
                asker: self.asker(store),
            };
            self.call(store, request, Aim::Nowhere, Purpose::Sync { round: id });
        }
        id
    }

    pub(super) fn synced(&mut self, round: u64, store: StoreId) {
        if matches!(self.phase, Phase::Settling(_)) {
            return self.settle_synced(store);
        }
        let rounds = &mut self.flushes.rounds;
        let Some(at) = rounds.iter().position(|r| r.id == round) else {
            return;
        };
        rounds[at].missing.remove(&store);
        rounds[at].first_answer.get_or_insert(self.now);
        if !rounds[at].missing.is_empty() {
            return;
        }
        let done = rounds.remove(at).expect("found above");
        self.flushes.synced = self.flushes.synced.max(done.covers);
        for id in done.flushes {
            self.piece_ended(id, None);
        }
        self.stop_synced(round);
        self.switch_synced(round);
        self.fill_synced(round);
    }

    /// A new epoch: rounds that have not ended begin again with the members that are left.
    pub(super) fn take_back_syncs(&mut self) {
        for round in std::mem::take(&mut self.flushes.rounds) {
            self.flushes.next.extend(round.flushes);
        }
    }

    pub(super) fn fail_syncs(&mut self) {
        self.flushes.rounds.clear();
        self.flushes.next.clear();
    }
}
