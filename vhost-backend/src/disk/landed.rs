//! The data of a read on its way into a landing: each block at its own place, clipped to what the
//! guest asked for.

use super::Landing;
use replicator::message::{Found, ReadBlocks};
use replicator::store::Destination;
use replicator::words::{BLOCK_BYTES, Block, Blocks, Span, StoreId};

const BLOCK: usize = BLOCK_BYTES as usize;

/// The part of a guest's landing that one question to one store may fill.
pub(super) struct Aimed {
    /// Who was asked.
    pub store: StoreId,
    pub landing: Landing,
    /// What the landing is of.
    pub span: Span,
    pub blocks: Blocks,
}

impl Aimed {
    /// Copies what a far store sent to its places. `read` has been checked: one descriptor a block,
    /// and as much data as they say.
    pub fn copy(&self, read: &ReadBlocks) {
        let mut data = read.data.chunks_exact(BLOCK);
        for (block, found) in self.blocks.iter().zip(&read.found) {
            if let Found::Data { .. } = found {
                let bytes = data.next().expect("as much data as the descriptors say");
                self.put_block(block, bytes);
            }
        }
    }

    fn put_block(&self, block: Block, bytes: &[u8]) {
        if let Some(Place { at, skip, len }) = self.place(block) {
            self.landing.write(at, &bytes[skip..skip + len]);
        }
    }

    /// Where in the landing which part of a block goes.
    fn place(&self, block: Block) -> Option<Place> {
        let begin = block.0 * BLOCK_BYTES;
        let from = begin.max(self.span.offset);
        let until = (begin + BLOCK_BYTES).min(self.span.end());
        (from < until).then(|| Place {
            at: (from - self.span.offset) as usize,
            skip: (from - begin) as usize,
            len: (until - from) as usize,
        })
    }

    fn block(&self, index: u32) -> Block {
        Block(self.blocks.first.0 + u64::from(index))
    }
}

struct Place {
    at: usize,
    skip: usize,
    len: usize,
}

// SAFETY: the pieces are those of the landing, which stay mapped and writable and are not referenced
// while it lives (`Landing::new`), and `self` holds it.
unsafe impl Destination for Aimed {
    fn memory(&self, index: u32, piece: &mut dyn FnMut(*mut u8, usize)) -> bool {
        match self.place(self.block(index)) {
            Some(place) if place.len == BLOCK => {
                for (start, len) in self.landing.pieces(place.at, place.len) {
                    piece(start, len);
                }
                true
            }
            _ => false,
        }
    }

    fn put(&self, index: u32, block: &[u8; BLOCK]) {
        self.put_block(self.block(index), block);
    }
}
