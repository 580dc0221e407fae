//! Errands to the placement service: one at a time, asked again until the outcome is known (I8).
//!
//! An unknown outcome is never taken for a success or a failure. The same change is asked for again
//! against the same revision: either it happens now, or the record shows that it happened before
//! (only an epoch's owner changes an open disk), or that it never can.

use super::{CallId, Effect, Now, Phase, SwapOutcome, Writer};
use crate::plant::{Plant, planted};
use crate::words::{
    Change, ChangeRefused, DiskRecord, Epoch, MapRange, Revision, State, opened_by,
};

pub(super) struct Errand {
    kind: Kind,
    /// The try under way.
    call: Option<CallId>,
    /// When to try again, where none is under way.
    again_at: Option<Now>,
    /// A try ended without an answer.
    pub unanswered: bool,
}

#[derive(Clone)]
enum Kind {
    Inspect,
    Swap { expected: Revision, change: Change },
}

impl Writer {
    pub(super) fn inspect(&mut self) {
        self.run_errand(Kind::Inspect);
    }

    /// Asks for `change` of the record as we know it.
    pub(super) fn swap(&mut self, change: Change) {
        let expected = self.record.revision;
        self.run_errand(Kind::Swap { expected, change });
    }

    /// The same, after a pause.
    pub(super) fn swap_later(&mut self, change: Change) {
        let expected = self.record.revision;
        self.errand = Some(Errand {
            kind: Kind::Swap { expected, change },
            call: None,
            again_at: Some(self.now + self.config.pause),
            unanswered: false,
        });
    }

    fn run_errand(&mut self, kind: Kind) {
        self.errand = Some(Errand {
            kind,
            call: None,
            again_at: Some(self.now),
            unanswered: false,
        });
        self.go_on_errand();
    }

    /// Sends the next try when its time has come.
    pub(super) fn go_on_errand(&mut self) {
        let Some(errand) = &mut self.errand else {
            return;
        };
        if errand.again_at.is_none_or(|at| at > self.now) {
            return;
        }
        let call = self.calls.next_id();
        errand.again_at = None;
        errand.call = Some(call);
        self.effects.push_back(match errand.kind.clone() {
            Kind::Inspect => Effect::Inspect { call },
            Kind::Swap { expected, change } => Effect::Swap {
                call,
                expected,
                change,
            },
        });
    }

    pub(super) fn errand_timeout(&self) -> Option<Now> {
        self.errand.as_ref().and_then(|errand| errand.again_at)
    }

    pub(super) fn inspected(&mut self, call: CallId, record: Option<Box<DiskRecord>>) {
        if !self.is_awaited(call) {
            return;
        }
        match record.and_then(|record| self.trusted(*record)) {
            None => self.try_again(),
            Some(record) => {
                self.errand = None;
                self.record = record;
                self.stale = false;
                self.begin_with_record();
            }
        }
    }

    pub(super) fn swapped(&mut self, call: CallId, outcome: SwapOutcome) {
        if !self.is_awaited(call) {
            return;
        }
        let Some(Kind::Swap { change, .. }) = self.errand.as_ref().map(|e| e.kind.clone()) else {
            return;
        };
        let (record, conflict) = match outcome {
            SwapOutcome::Unknown if planted(Plant::UnknownIsSuccess) => {
                let generation = self.record.epoch.generation();
                match self.record.apply(generation, &change) {
                    Ok(record) => (Box::new(record), false),
                    Err(_) => return self.try_again(),
                }
            }
            SwapOutcome::Unknown => return self.try_again(),
            SwapOutcome::Refused(why) => {
                self.errand = None;
                return self.swap_refused(&change, why);
            }
            SwapOutcome::Done(record) => (record, false),
            SwapOutcome::Conflict(record) => (record, true),
        };
        let Some(record) = self.trusted(*record) else {
            return self.try_again();
        };
        self.errand = None;
        if !conflict || self.happened(&change, &record) {
            self.swap_done(change, record);
        } else {
            self.swap_conflict(change, record);
        }
    }

    fn is_awaited(&self, call: CallId) -> bool {
        self.errand.as_ref().is_some_and(|e| e.call == Some(call))
    }

    fn try_again(&mut self) {
        let again_at = Some(self.now + self.config.pause);
        let errand = self.errand.as_mut().expect("it was awaited");
        errand.call = None;
        errand.again_at = again_at;
        errand.unanswered = true;
    }

    /// A record that can be true, is this disk's, and is no older than the one that we know. An older one comes of
    /// a catalog that was put back: it says nothing of today, and supersedes nobody.
    fn trusted(&self, record: DiskRecord) -> Option<DiskRecord> {
        let at = |record: &DiskRecord| (record.epoch, record.revision);
        if at(&record) < at(&self.record) {
            return None;
        }
        let same = record.id == self.record.id
            && record.bytes == self.record.bytes
            && record.extent_size == self.record.extent_size;
        (same && record.check().is_ok()).then_some(record)
    }

    /// Whether `record`, which is later than the one that we know, shows that our change of it went
    /// through in a try whose answer was lost.
    fn happened(&self, change: &Change, record: &DiskRecord) -> bool {
        let (backend, life) = (self.owner.backend, self.owner.life);
        match change {
            Change::Attach { .. }
            | Change::TakeOver { .. }
            | Change::Eject { .. }
            | Change::Switch { .. } => opened_by(record, backend, life, self.record.epoch),
            Change::Complete { extents, from, .. } => {
                let whole = |range: &MapRange| {
                    let entry = range.history.live().find(|entry| entry.from == *from);
                    entry.is_some_and(|entry| entry.whole)
                };
                self.owns(record)
                    && record.epoch == self.record.epoch
                    && record
                        .map
                        .iter()
                        .filter(|range| extents.overlaps(range.extents))
                        .all(whole)
            }
            Change::Settle { .. } => {
                self.owns(record)
                    && record.epoch == self.record.epoch
                    && record.even_below == record.epoch
            }
            Change::Close { last, .. } => {
                record.epoch == self.record.epoch
                    && matches!(&record.state, State::Closed { last: l, .. } if l == last)
            }
        }
    }

    pub(super) fn owns(&self, record: &DiskRecord) -> bool {
        record.owner().is_some_and(|owner| {
            owner.backend == self.owner.backend && owner.life == self.owner.life
        })
    }

    fn swap_done(&mut self, change: Change, record: DiskRecord) {
        let closes = matches!(change, Change::Close { .. });
        assert!(
            closes || self.owns(&record),
            "I3: what we opened or changed is ours"
        );
        let before = self.record.epoch;
        self.note_unfinished();
        self.record = record;
        self.stale = false;
        match change {
            Change::Attach { .. } | Change::Switch { .. } => {
                // Of a disk that never was open nobody has a replica yet.
                let first = self.record.revision == Revision(1);
                let fresh = if first {
                    Epoch::ZERO
                } else {
                    self.record.epoch
                };
                self.begin_opening(before, Some(fresh));
            }
            Change::TakeOver { .. } => self.begin_settling(before),
            Change::Eject { stores, .. } => {
                // Who comes and goes would hold the guest's writes up each time.
                let rejoins_at = Some(self.now + self.config.settle_patience * 2);
                for store in stores {
                    self.peer(store).rejoins_at = rejoins_at;
                }
                // An epoch that was never open goes on being opened, with those that are left.
                let fresh = match self.phase {
                    Phase::Ejecting { fresh, .. } => fresh,
                    _ => None,
                };
                self.begin_opening(before, fresh);
            }
            Change::Complete { .. } => {
                self.fill.look_for_whole = true;
                // Before anybody lets go of what only the former record names.
                self.tell_record();
                self.collapse_whole();
                self.consider_ejection();
            }
            Change::Settle { .. } => {
                self.tell_record();
                self.settle_committed();
            }
            Change::Close { .. } => self.closed(),
        }
        self.orders_are_new = true;
        self.find_jobs();
    }

    fn swap_conflict(&mut self, change: Change, record: DiskRecord) {
        if matches!(self.phase, Phase::Starting(_)) {
            return self.start_conflict(record);
        }
        // Something that is not the map may have changed beside us, such as the disk's name.
        let ours = self.owns(&record)
            && record.epoch == self.record.epoch
            && record.map == self.record.map;
        if ours {
            self.record = record;
            self.swap(change);
        } else {
            let shown = record.epoch;
            self.record = record;
            self.superseded(shown);
        }
    }

    fn swap_refused(&mut self, change: &Change, why: ChangeRefused) {
        let ours = why != ChangeRefused::NotOwner;
        match (&self.phase, change) {
            (Phase::Starting(_), Change::Attach { sets, .. }) if !sets.is_empty() => {
                self.attach_as_it_is(why);
            }
            (Phase::Starting(_), _) => self.not_started(super::NotStarted::Refused(why)),
            (Phase::Switching, _) if ours => self.switch_refused(why),
            // The jobs were made from a record that is not the service's; the next one will tell.
            (Phase::Open, Change::Complete { .. }) if ours => self.consider_ejection(),
            _ => self.superseded(self.record.epoch),
        }
    }
}
