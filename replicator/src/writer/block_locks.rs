//! One write in flight a block (rule W2): who holds which blocks, and who waits for them, in order.

use super::PieceId;
use crate::plant::{Plant, planted};
use crate::words::Blocks;
use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    /// A write: nobody else writes or begins to read these blocks until it is released.
    Write,
    /// A read: it waits for the writes before it, and then holds nothing. A read that waited sees
    /// them; so no read can see a write that a later read does not.
    Read,
}

#[derive(Default)]
pub(super) struct BlockLocks {
    /// First block held -> end. They do not overlap.
    held: BTreeMap<u64, u64>,
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    piece: PieceId,
    blocks: Blocks,
    claim: Claim,
}

impl BlockLocks {
    /// Whether `piece` may go on at once; otherwise [`BlockLocks::release`] names it later.
    pub fn acquire(&mut self, piece: PieceId, blocks: Blocks, claim: Claim) -> bool {
        if planted(Plant::NoBlockLock) {
            return true;
        }
        let behind =
            |waiter: &Waiter| waiter.claim == Claim::Write && waiter.blocks.overlaps(blocks);
        if self.is_held(blocks) || self.waiting.iter().any(behind) {
            self.waiting.push_back(Waiter {
                piece,
                blocks,
                claim,
            });
            return false;
        }
        self.grant(blocks, claim);
        true
    }

    /// Gives up what a write held; returns those that may go on now, in the order in which they came.
    pub fn release(&mut self, blocks: Blocks) -> Vec<PieceId> {
        if planted(Plant::NoBlockLock) {
            return Vec::new();
        }
        let end = self.held.remove(&blocks.first.0);
        assert_eq!(end, Some(blocks.end().0), "W2: a write held its blocks");
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let mut granted = Vec::new();
        let mut still: VecDeque<Waiter> = VecDeque::new();
        for waiter in std::mem::take(&mut self.waiting) {
            let behind = |earlier: &Waiter| {
                earlier.claim == Claim::Write && earlier.blocks.overlaps(waiter.blocks)
            };
            if self.is_held(waiter.blocks) || still.iter().any(behind) {
                still.push_back(waiter);
            } else {
                self.grant(waiter.blocks, waiter.claim);
                granted.push(waiter.piece);
            }
        }
        self.waiting = still;
        granted
    }

    /// A read that waits does so no more; it holds nobody up.
    pub fn forget_read(&mut self, piece: PieceId) {
        self.waiting
            .retain(|waiter| waiter.claim == Claim::Write || waiter.piece != piece);
    }

    pub fn clear(&mut self) {
        self.held.clear();
        self.waiting.clear();
    }

    fn grant(&mut self, blocks: Blocks, claim: Claim) {
        if claim == Claim::Write {
            self.held.insert(blocks.first.0, blocks.end().0);
        }
    }

    fn is_held(&self, blocks: Blocks) -> bool {
        self.held
            .range(..blocks.end().0)
            .next_back()
            .is_some_and(|(_, end)| *end > blocks.first.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Block;

    fn at(first: u64, count: u32) -> Blocks {
        Blocks::new(Block(first), count)
    }

    #[test]
    fn overlapping_writes_take_turns_and_others_pass() {
        let mut locks = BlockLocks::default();
        assert!(locks.acquire(PieceId(1), at(0, 4), Claim::Write));
        assert!(!locks.acquire(PieceId(2), at(3, 4), Claim::Write));
        assert!(locks.acquire(PieceId(3), at(8, 1), Claim::Write));
        // Behind 2, although nobody holds block 6: otherwise 2 could starve.
        assert!(!locks.acquire(PieceId(4), at(6, 1), Claim::Write));
        assert_eq!(locks.release(at(0, 4)), [PieceId(2)]);
        assert_eq!(locks.release(at(3, 4)), [PieceId(4)]);
    }

    #[test]
    fn a_read_waits_for_the_writes_before_it_and_holds_nobody_up() {
        let mut locks = BlockLocks::default();
        assert!(locks.acquire(PieceId(1), at(5, 1), Claim::Write));
        assert!(!locks.acquire(PieceId(2), at(0, 8), Claim::Read));
        assert!(!locks.acquire(PieceId(3), at(5, 1), Claim::Write));
        assert!(locks.acquire(PieceId(4), at(0, 1), Claim::Write));
        assert_eq!(locks.release(at(0, 1)), []);
        assert_eq!(locks.release(at(5, 1)), [PieceId(2), PieceId(3)]);
    }
}
