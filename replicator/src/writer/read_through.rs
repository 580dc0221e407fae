//! What a guest reads and the near store lacks is pulled into it and then read there, so that nobody has
//! to bring it near a second time (rule F3).
//!
//! ```text
//!  guest      writer            near store               far store
//!    | read     |                    |                       |
//!    |--------->|---- Read --------->|                       |
//!    |          |<--- Absent --------|                       |
//!    |          |---- Pull --------->|---- Fetch ----------->|
//!    |          |                    |<--- data, version ----|
//!    |          |<--- Pulled --------|                       |
//!    |          |---- Read --------->|                       |
//!    |<-- data -|<--- into the guest |                       |
//! ```
//!
//! Where it cannot be pulled (the near store is full, or too slow) it is read from afar at once: the
//! guest waits for no copy.

use super::calls::Purpose;
use super::read::{Holder, Target};
use super::{Aim, PieceId, Writer};
use crate::message::{Pulled, Refusal, Request, Source};
use crate::words::{BLOCK_BYTES, Blocks, Epoch};

impl Writer {
    /// Whether what `piece` asks of `holder` should rather be pulled near.
    pub(super) fn may_pull_through(&self, piece: PieceId, holder: &Holder) -> bool {
        let read = &self.reads[&piece];
        let Some(near) = read.through else {
            return false;
        };
        let can = self
            .peers
            .get(&near)
            .is_some_and(|peer| peer.connected && peer.sealed.is_some() && !peer.lost);
        let fills = self
            .history_of(read.blocks)
            .member(near)
            .is_some_and(|entry| !entry.whole);
        can && fills && holder.store != near && matches!(read.target, Target::Guest(_))
    }

    pub(super) fn pull_through(&mut self, piece: PieceId, holder: Holder) {
        let read = &self.reads[&piece];
        let near = read.through.expect("that is where it goes");
        let request = Request::Pull {
            asker: self.asker(near),
            source: self.source(holder.store),
            from: holder.from,
            below: holder.bound(read.below),
            blocks: read.blocks,
        };
        self.call(near, request, Aim::Near, Purpose::Through { piece });
        self.asked(piece, holder);
    }

    /// How a pull names the store that it pulls from.
    pub(super) fn source(&self, store: crate::words::StoreId) -> Source {
        Source {
            store,
            incarnation: self.asker(store).incarnation,
        }
    }

    pub(super) fn pulled_through(&mut self, piece: PieceId, pulled: Pulled) {
        let read = &self.reads[&piece];
        let (target, blocks) = (read.target, read.blocks);
        let (holder, near) = (read.asked.expect("it was asked"), read.through);
        self.count_pulled(&pulled);
        self.progress.read_through_bytes += u64::from(pulled.copied) * BLOCK_BYTES;
        self.fill.spend(pulled.bytes);
        if self.is_stale(&self.reads[&piece]) {
            self.seek(piece);
            return self.route(piece);
        }
        let mut next = blocks.first;
        for gone in pulled.absent {
            let here = Blocks::new(next, (gone.first.0 - next.0) as u32);
            self.read_near(piece, here);
            if holder.last {
                self.reads_as_zeroes(target, gone);
            } else {
                self.read_part(piece, gone, |child| {
                    child.below = holder.from;
                    child.through = near;
                });
            }
            next = gone.end();
        }
        let rest = Blocks::new(next, (blocks.end().0 - next.0) as u32);
        self.read_near(piece, rest);
        self.end_read(piece, None);
    }

    /// What was pulled is read like anything else now, but not pulled once more.
    fn read_near(&mut self, piece: PieceId, blocks: Blocks) {
        if !blocks.is_empty() {
            self.read_part(piece, blocks, |child| {
                child.below = Epoch::MAX;
                child.through = None;
            });
        }
    }

    /// The near store did not pull.
    pub(super) fn pull_through_refused(&mut self, piece: PieceId, refusal: &Refusal) {
        let near = self.reads[&piece].through.expect("that is where it went");
        match refusal {
            Refusal::OtherIncarnation { .. }
            | Refusal::NotShown { .. }
            | Refusal::NoReplica
            | Refusal::Failed => {
                self.seek(piece);
                self.member_lost(near);
                self.retry_reads();
            }
            // Whatever it is, the block itself will say when it is read from the source.
            _ => self.pull_through_failed(piece),
        }
    }

    /// Reads from afar what cannot be brought near now.
    pub(super) fn pull_through_failed(&mut self, piece: PieceId) {
        self.reads.get_mut(&piece).expect("it was there").through = None;
        self.route(piece);
    }
}
