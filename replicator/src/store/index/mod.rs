//! The index: which frame holds the newest version of each block.
//!
//! It is kept in memory, so its size matters. A disk's blocks are split into chunks of 4096 blocks
//! (16 MiB), what a checkpoint writes and a first touch loads; a chunk into pages of 256 blocks; a
//! page is a short sorted list of runs of 20 bytes. Blocks that were written in order share a run,
//! so a run costs 20 bytes for 4 KiB at worst (0.49 %) and for 1 MiB at best.

mod blob;
mod chunk;
mod run;
#[cfg(test)]
mod tests;

pub use blob::Reader;
pub use chunk::{Chunk, Entry, TooManyEras};

use crate::words::{Block, Blocks};

/// Blocks of a page: what a byte can count.
pub const PAGE_BLOCKS: u32 = 256;
/// Blocks of a chunk.
pub const CHUNK_BLOCKS: u32 = 4096;

/// The chunk that holds `block`.
pub fn chunk_of(block: Block) -> u64 {
    block.0 / u64::from(CHUNK_BLOCKS)
}

/// The blocks of a chunk.
pub fn blocks_of(chunk: u64) -> Blocks {
    Blocks::new(Block(chunk * u64::from(CHUNK_BLOCKS)), CHUNK_BLOCKS)
}

/// Each chunk that `blocks` touches, with the part of `blocks` in it.
pub fn chunks_of(blocks: Blocks) -> impl Iterator<Item = (u64, Blocks)> {
    let chunks = match blocks.count {
        0 => 0..0,
        count => chunk_of(blocks.first)..chunk_of(Block(blocks.first.0 + u64::from(count) - 1)) + 1,
    };
    chunks.filter_map(move |chunk| Some((chunk, blocks_of(chunk).intersect(blocks)?)))
}
