//! The operator's deadline: what has waited longer ends with an error, where that was asked for.
//!
//! Nothing is taken back. A write that was begun may be held by some members, or be on its way there: it
//! keeps its blocks, goes on, and is never acknowledged; whoever writes there later comes after it. A read
//! that may still land in the guest's memory is withdrawn first (rule R5).

use super::requests::Waiting;
use super::{Effect, Failure, GuestOp, RequestId, Writer};
use std::collections::BTreeSet;

impl Writer {
    pub(super) fn watches_deadline(&self) -> bool {
        let waits = !self.requests.is_empty() || !self.waiting.is_empty();
        self.config.stall_deadline.is_some() && waits
    }

    /// Ends what has waited for longer than the deadline.
    pub(super) fn give_up_late(&mut self) {
        let Some(deadline) = self.config.stall_deadline else {
            return;
        };
        let now = self.now;
        let late = |waiting: &Waiting| waiting.since + deadline <= now;
        while self.waiting.front().is_some_and(late) {
            let Waiting { id, op, .. } = self.waiting.pop_front().expect("just seen");
            self.in_flight_bytes -= self.weight(&op);
            if let Some(stopping) = &mut self.stopping {
                stopping.admits();
            }
            let result = Err(Failure::TooLate);
            self.effects.push_back(Effect::Complete { id, result });
        }
        let late = self.requests.iter().filter(|(_, request)| {
            request.since + deadline <= now && request.failure != Some(Failure::TooLate)
        });
        let late: BTreeSet<RequestId> = late.map(|(id, _)| *id).collect();
        if late.is_empty() {
            return;
        }
        self.give_up_flushes(&late);
        self.give_up_reads(&late);
        self.orphan_writes(&late);
    }

    /// Writes that failed and are still to be done take memory that no guest holds back for any more: they
    /// are bounded as those in flight are, and beyond that nothing is begun.
    pub(super) fn has_too_many_orphans(&self, op: &GuestOp) -> bool {
        let writes = matches!(op, GuestOp::Write { .. } | GuestOp::Zero { .. });
        writes && self.orphan_bytes >= self.config.max_in_flight_bytes
    }
}
