//! Guest requests: cut into pieces that each lie in one extent, and complete when all pieces did.

use super::block_locks::Claim;
use super::read::Target;
use super::write::{Draft, WriteOwner};
use super::{Effect, Failure, GuestOp, Now, Phase, PieceId, RequestId, Writer};
use crate::message::MAX_DATA_BLOCKS;
use crate::words::{BLOCK_BYTES, Block, Blocks, ExtentSize, Span};
use bytes::Bytes;
use smallvec::SmallVec;

/// What a piece without payload counts for in the room: a header in each member's queue.
pub(super) const PIECE_WEIGHT: u64 = 1024;

/// A request that came while the disk was not open.
pub(super) struct Waiting {
    pub id: RequestId,
    pub op: GuestOp,
    pub since: Now,
}

/// A request that is under way.
pub(super) struct Guest {
    pub span: Span,
    /// Pieces that have not ended.
    pub left: usize,
    pub failure: Option<Failure>,
    /// What it takes of the room.
    pub bytes: u64,
    pub since: Now,
}

impl Writer {
    pub(super) fn guest(&mut self, id: RequestId, op: GuestOp) {
        if matches!(self.phase, Phase::Superseded) {
            let result = Err(Failure::Superseded);
            return self.effects.push_back(Effect::Complete { id, result });
        }
        if self.has_too_many_orphans(&op) {
            let result = Err(Failure::TooLate);
            return self.effects.push_back(Effect::Complete { id, result });
        }
        self.guest_seen = Some(self.now);
        self.in_flight_bytes += self.weight(&op);
        let since = self.now;
        self.waiting.push_back(Waiting { id, op, since });
        self.admit_waiting();
    }

    /// Begins the requests that came while the disk was not open.
    pub(super) fn admit_waiting(&mut self) {
        while self.is_serving() && !self.waiting.is_empty() {
            if self.stopping.as_mut().is_some_and(|stop| !stop.admits()) {
                return;
            }
            let Some(waiting) = self.waiting.pop_front() else {
                return;
            };
            self.admit(waiting);
        }
    }

    fn admit(&mut self, waiting: Waiting) {
        let Waiting { id, op, since } = waiting;
        let span = op.span();
        assert!(
            span.end() <= self.record.bytes,
            "the device checks that a request lies on the disk"
        );
        let bytes = self.weight(&op);
        // One is added for ourselves, so that no piece that ends at once ends the request.
        let guest = Guest {
            span,
            left: 1,
            failure: None,
            bytes,
            since,
        };
        let known = self.requests.insert(id, guest);
        assert!(known.is_none(), "a request's id is not in use");
        let extent_size = self.record.extent_size;
        match op {
            GuestOp::Read { span } => {
                for blocks in split(extent_size, span.touched(), MAX_DATA_BLOCKS) {
                    self.begin_read(Target::Guest(id), blocks);
                }
            }
            GuestOp::Write { span, data } => {
                assert_eq!(data.len() as u64, span.len, "as much data as the span");
                for (blocks, part) in parts(extent_size, span, MAX_DATA_BLOCKS) {
                    let draft = draft(span, part, blocks, |range| Some(data.slice(range)));
                    self.begin_write(WriteOwner::Guest(id), blocks, draft);
                }
            }
            GuestOp::Zero { span } => {
                for (blocks, part) in parts(extent_size, span, u32::MAX) {
                    let draft = draft(span, part, blocks, |_| None);
                    self.begin_write(WriteOwner::Guest(id), blocks, draft);
                }
            }
            GuestOp::Flush => self.begin_flush(id),
        }
        self.piece_ended(id, None);
    }

    pub(super) fn piece_begins(&mut self, id: RequestId) {
        self.requests
            .get_mut(&id)
            .expect("a piece's request is under way")
            .left += 1;
    }

    pub(super) fn piece_ended(&mut self, id: RequestId, failure: Option<Failure>) {
        let guest = self
            .requests
            .get_mut(&id)
            .expect("a piece's request is under way");
        guest.failure = guest.failure.or(failure);
        guest.left -= 1;
        if guest.left == 0 {
            self.complete(id);
        }
    }

    fn complete(&mut self, id: RequestId) {
        let guest = self.requests.remove(&id).expect("completes once");
        self.in_flight_bytes -= guest.bytes;
        let result = guest.failure.map_or(Ok(()), Err);
        assert!(
            result.is_err() || !matches!(self.phase, Phase::Superseded),
            "I3: a superseded writer completes nothing"
        );
        self.effects.push_back(Effect::Complete { id, result });
    }

    /// Ends everything under way with `failure`; reads that may still land do so when they cannot
    /// any more. Of those that have not begun the first `waiting` end, too.
    pub(super) fn fail_all(&mut self, failure: Failure, waiting: usize) {
        self.void_calls();
        self.fail_writes();
        self.fail_syncs();
        let kept = self.keep_only_landing_reads();
        let mut done = Vec::new();
        for (id, guest) in &mut self.requests {
            guest.failure = guest.failure.or(Some(failure));
            guest.left = kept.iter().filter(|request| *request == id).count();
            if guest.left == 0 {
                done.push(*id);
            }
        }
        for id in done {
            self.complete(id);
        }
        self.fail_waiting(failure, waiting);
    }

    /// Whether any request of the guest's was begun and has not ended.
    pub fn has_begun(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Ends the requests that have not begun.
    pub(super) fn give_back(&mut self) {
        if let Some(stopping) = &mut self.stopping {
            stopping.expects_no_more();
        }
        self.fail_waiting(Failure::Stopped, self.waiting.len());
    }

    fn fail_waiting(&mut self, failure: Failure, count: usize) {
        let count = count.min(self.waiting.len());
        for Waiting { id, op, .. } in self.waiting.drain(..count).collect::<Vec<_>>() {
            self.in_flight_bytes -= self.weight(&op);
            let result = Err(failure);
            self.effects.push_back(Effect::Complete { id, result });
        }
    }

    pub(super) fn next_piece(&mut self) -> PieceId {
        self.last_piece += 1;
        PieceId(self.last_piece)
    }

    pub(super) fn claim(&mut self, piece: PieceId, blocks: Blocks, claim: Claim) -> bool {
        self.locks.acquire(piece, blocks, claim)
    }

    pub(super) fn release(&mut self, blocks: Blocks) {
        for piece in self.locks.release(blocks) {
            if self.writes.contains_key(&piece) {
                self.write_granted(piece);
            } else {
                self.route(piece);
            }
        }
    }
}

impl Writer {
    /// What `op` takes of the room: the payload that is held for it, and the questions that it is cut
    /// into, so that no guest can fill the links that it shares with others.
    pub(super) fn weight(&self, op: &GuestOp) -> u64 {
        let piece_bytes = match op {
            GuestOp::Write { data, .. } => return data.len() as u64,
            GuestOp::Read { .. } => u64::from(MAX_DATA_BLOCKS) * BLOCK_BYTES,
            GuestOp::Zero { .. } => self.record.extent_size.bytes(),
            GuestOp::Flush => return 0,
        };
        (op.span().len / piece_bytes + 1) * PIECE_WEIGHT
    }
}

impl GuestOp {
    fn span(&self) -> Span {
        match self {
            GuestOp::Read { span } | GuestOp::Write { span, .. } | GuestOp::Zero { span } => *span,
            GuestOp::Flush => Span::new(0, 0),
        }
    }
}

/// What a piece of a write does to its blocks, as a range of the disk's bytes.
struct Part {
    whole: bool,
    from: u64,
    end: u64,
}

fn draft(
    span: Span,
    part: Part,
    blocks: Blocks,
    data: impl Fn(std::ops::Range<usize>) -> Option<Bytes>,
) -> Draft {
    let range = (part.from - span.offset) as usize..(part.end - span.offset) as usize;
    let len = range.len();
    let patch = data(range);
    if part.whole {
        return Draft::whole(patch);
    }
    let at = (part.from - blocks.first.0 * BLOCK_BYTES) as usize;
    Draft::Merge { at, len, patch }
}

/// Cuts a write into runs of whole blocks, each within one extent and of at most `most` blocks, and
/// into the partial blocks at its ends, each alone.
fn parts(extent_size: ExtentSize, span: Span, most: u32) -> SmallVec<[(Blocks, Part); 1]> {
    let mut parts = SmallVec::new();
    let mut from = span.offset;
    while from < span.end() {
        let block = Block(from / BLOCK_BYTES);
        let block_end = (block.0 + 1) * BLOCK_BYTES;
        if from.is_multiple_of(BLOCK_BYTES) && span.end() >= block_end {
            let whole = Blocks::new(block, ((span.end() - from) / BLOCK_BYTES) as u32);
            for blocks in split(extent_size, whole, most) {
                let end = from + blocks.bytes();
                let part = Part {
                    whole: true,
                    from,
                    end,
                };
                parts.push((blocks, part));
                from = end;
            }
        } else {
            let end = span.end().min(block_end);
            let part = Part {
                whole: false,
                from,
                end,
            };
            parts.push((Blocks::new(block, 1), part));
            from = end;
        }
    }
    parts
}

/// Cuts `blocks` at the ends of extents, where histories may change, and after `most`.
pub(super) fn split(
    extent_size: ExtentSize,
    blocks: Blocks,
    most: u32,
) -> impl Iterator<Item = Blocks> {
    let mut left = blocks;
    std::iter::from_fn(move || {
        if left.is_empty() {
            return None;
        }
        let extent_end = extent_size.blocks_of(extent_size.of(left.first)).end();
        let count = (extent_end.0 - left.first.0)
            .min(u64::from(left.count))
            .min(u64::from(most)) as u32;
        let head = Blocks::new(left.first, count);
        left = Blocks::new(head.end(), left.count - count);
        Some(head)
    })
}
