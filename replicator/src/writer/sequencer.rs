//! Numbers writes, and knows up to which number all members hold them (rules W1, W4).

use super::PieceId;
use crate::plant::{Plant, planted};
use crate::words::Seq;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Sequencer {
    last: Seq,
    in_flight: BTreeMap<Seq, PieceId>,
    /// The last of those reissued at the beginning of this epoch: before all of them are held by
    /// all members, blocks that the epoch before left uneven may still be uneven.
    reissued: Seq,
}

impl Sequencer {
    /// A new epoch counts from one. Returns what was in flight, in order, to be reissued (rule W7).
    pub fn begin_epoch(&mut self) -> Vec<PieceId> {
        let old = std::mem::take(self);
        old.in_flight.into_values().collect()
    }

    pub fn issue(&mut self, piece: PieceId) -> Seq {
        self.last = self.last.next();
        self.in_flight.insert(self.last, piece);
        self.last
    }

    /// All that was issued so far was a reissue.
    pub fn end_reissue(&mut self) {
        self.reissued = self.last;
    }

    pub fn done(&mut self, seq: Seq) {
        let was = self.in_flight.remove(&seq);
        assert!(was.is_some(), "W3: a write completes once");
    }

    /// Nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Every write of this epoch up to here is held by all members; zero: nothing is known.
    pub fn watermark(&self) -> Seq {
        let held = match self.in_flight.first_key_value() {
            Some((first, _)) => Seq(first.0 - 1),
            None => self.last,
        };
        if planted(Plant::WatermarkRunsAhead) {
            return self.last;
        }
        if held < self.reissued {
            Seq::ZERO
        } else {
            held
        }
    }

    /// Nothing is in flight any more, whatever became of it; numbers are still not used twice.
    pub fn forget(&mut self) {
        self.in_flight.clear();
    }

    pub fn last(&self) -> Seq {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_follows_the_oldest_write_in_flight() {
        let mut sequencer = Sequencer::default();
        for piece in 1..=3 {
            sequencer.issue(PieceId(piece));
        }
        assert_eq!(sequencer.watermark(), Seq(0));
        sequencer.done(Seq(2));
        assert_eq!(sequencer.watermark(), Seq(0));
        sequencer.done(Seq(1));
        assert_eq!(sequencer.watermark(), Seq(2));
        sequencer.done(Seq(3));
        assert_eq!(sequencer.watermark(), Seq(3));
    }

    #[test]
    fn after_an_ejection_nothing_is_known_until_all_that_was_reissued_is_held() {
        let mut sequencer = Sequencer::default();
        sequencer.issue(PieceId(1));
        sequencer.issue(PieceId(2));
        assert_eq!(sequencer.begin_epoch(), [PieceId(1), PieceId(2)]);
        sequencer.issue(PieceId(1));
        sequencer.issue(PieceId(2));
        sequencer.end_reissue();
        sequencer.done(Seq(1));
        assert_eq!(sequencer.watermark(), Seq::ZERO);
        sequencer.done(Seq(2));
        assert_eq!(sequencer.watermark(), Seq(2));
    }
}
