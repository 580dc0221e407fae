//! Stopping: drain, sync every member, close the epoch, all within a bound (rules A1, A2, S4).

use super::{Effect, Failure, Now, Phase, Writer};
use crate::plant::{Plant, planted};
use crate::words::{BackendId, Change, Version};

pub(super) struct Stopping {
    successor: Option<BackendId>,
    deadline: Now,
    /// The sync that began after the last request was done.
    round: Option<u64>,
    /// Requests that came before the stop and have not begun; later ones are the next start's.
    before: usize,
}

impl Stopping {
    /// Whether a request that waits is to be done before the end; counts it.
    pub fn admits(&mut self) -> bool {
        let admits = self.before > 0;
        self.before = self.before.saturating_sub(1);
        admits
    }
}

impl Stopping {
    /// Nothing waits any more of what came before the stop.
    pub fn expects_no_more(&mut self) {
        self.before = 0;
    }
}

impl Writer {
    pub(super) fn stop(&mut self, successor: Option<BackendId>) {
        if self.stopping.is_some() {
            return;
        }
        match self.phase {
            Phase::Idle => self.effects.push_back(Effect::Stopped {
                clean: !self.stale && self.record.owner().is_none(),
            }),
            Phase::Superseded => {
                self.effects.push_back(Effect::Stopped { clean: false });
            }
            _ => {
                let deadline = self.now + self.config.close_patience;
                self.stopping = Some(Stopping {
                    successor,
                    deadline,
                    round: None,
                    before: self.waiting.len(),
                });
                if !matches!(self.phase, Phase::Switching) {
                    self.let_go_of_switch();
                }
            }
        }
    }

    /// Goes on with a stop as far as possible.
    pub(super) fn go_on_stopping(&mut self) {
        let Some(stopping) = &self.stopping else {
            return;
        };
        let begun = self.waiting.is_empty() || stopping.before == 0;
        let drained = begun && self.requests.is_empty() && self.writes.is_empty();
        // An entry that is being called whole is one errand; the close is the next.
        let busy = self.errand.is_some();
        if !drained || busy || stopping.round.is_some() || !matches!(self.phase, Phase::Open) {
            return;
        }
        if planted(Plant::CloseWithoutSync) {
            return self.close();
        }
        // Every member answers this sync in the incarnation in which it was whole, or the disk is
        // not closed: so a member of a closed disk holds all of it, synced, whatever it loses later.
        let round = self.start_round();
        if let Some(stopping) = &mut self.stopping {
            stopping.round = Some(round);
        }
    }

    pub(super) fn stop_synced(&mut self, round: u64) {
        let open = matches!(self.phase, Phase::Open);
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        if stopping.round != Some(round) {
            return;
        }
        // An ejection is on its way: closing now would race it, and lose to our own next epoch.
        // Whatever becomes of it, what is left of the members is synced anew.
        stopping.round = None;
        if open {
            self.close();
        }
    }

    fn close(&mut self) {
        assert!(
            self.requests.is_empty() && self.writes.is_empty(),
            "A1: an epoch is closed after its last write is done"
        );
        let Some(stopping) = &self.stopping else {
            return;
        };
        let change = Change::Close {
            by: (self.owner.backend, self.owner.life),
            last: Version::new(self.record.epoch, self.sequencer.last()),
            successor: stopping.successor,
        };
        self.phase = Phase::Closing;
        self.swap(change);
    }

    pub(super) fn closed(&mut self) {
        self.phase = Phase::Idle;
        self.void_calls();
        self.stopped(true);
    }

    /// The epoch changed while we stop: what was synced under the old one does not count.
    pub(super) fn stop_begins_again(&mut self) {
        if let Some(stopping) = &mut self.stopping {
            stopping.round = None;
        }
    }

    pub(super) fn stop_timeout(&self) -> Option<Now> {
        self.stopping.as_ref().map(|stopping| stopping.deadline)
    }

    /// Gives a stop up when its time is over: the epoch stays open (rule A2).
    pub(super) fn give_up_stopping(&mut self) {
        if self
            .stop_timeout()
            .is_none_or(|deadline| deadline > self.now)
        {
            return;
        }
        let starting = matches!(self.phase, Phase::Starting(_));
        let before = self.stopping.as_ref().map_or(0, |stopping| stopping.before);
        self.phase = Phase::Idle;
        self.stale = true;
        self.errand = None;
        self.blocked = None;
        self.fail_all(Failure::Stopped, before);
        if starting {
            let why = super::NotStarted::Stopped;
            self.effects.push_back(Effect::NotStarted { why });
        }
        self.stopped(false);
    }

    pub(super) fn stopped(&mut self, clean: bool) {
        self.stopping = None;
        self.effects.push_back(Effect::Stopped { clean });
        if let Some(take_over) = self.start_after_stop.take() {
            self.start(take_over);
        }
    }
}
