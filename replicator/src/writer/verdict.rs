//! What is to be verified, and what came of it: plain data, for orders, heartbeats and the CLI.

use crate::words::{Block, StoreId, Version};
use serde::{Deserialize, Serialize};

/// How many blocks a verdict names; all are counted.
pub const MOST_NAMED: usize = 64;

/// Verify the disk, once for each `id`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct VerifyOrder {
    pub id: u64,
    /// Read everything from the media and check it; otherwise only compare digests.
    #[serde(default)]
    pub deep: bool,
}

/// What the verifying of a disk came to, or how far it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Of the order that it answers.
    pub order: u64,
    pub deep: bool,
    pub finished: bool,
    /// Extents of the disk, and those that have been looked at.
    pub extents: u64,
    pub extents_done: u64,
    /// Blocks that were read from media and checked, on all stores together.
    pub blocks_read: u64,
    /// Extents with fewer than two whole copies within reach: nothing to compare.
    pub single: u64,
    /// Extents that were written all the time: their copies could not be compared.
    pub busy: u64,
    /// Stores whose copies are not whole yet, or that did not answer: left out.
    pub filling: Vec<StoreId>,
    pub silent: Vec<StoreId>,
    /// Blocks that a store had damaged, and those of them that were healed.
    pub damaged_blocks: u64,
    pub healed_blocks: u64,
    /// Of those that could not be healed, the first.
    pub damaged: Vec<DamagedCopy>,
    /// Blocks in which whole copies differ, and the first of them.
    pub differing_blocks: u64,
    pub differing: Vec<Difference>,
}

/// A block of one store that is damaged and could not be healed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DamagedCopy {
    pub store: StoreId,
    pub block: Block,
    /// Which one; none: a part of the store's index is damaged, and nobody knows.
    pub version: Option<Version>,
}

/// A block that whole copies do not agree about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Difference {
    pub block: Block,
    pub copies: Vec<CopyOfBlock>,
}

/// What one store holds of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CopyOfBlock {
    pub store: StoreId,
    /// None: the store does not have the block.
    pub version: Option<Version>,
    pub zeroes: bool,
}

impl Verdict {
    /// Every copy that is to be whole was looked at, agrees with the others, and is intact (by now).
    pub fn is_good(&self) -> bool {
        self.finished && self.silent.is_empty() && self.has_no_faults()
    }

    /// Nothing that was looked at is wrong (any more).
    pub fn has_no_faults(&self) -> bool {
        self.differing_blocks == 0 && self.damaged_blocks == self.healed_blocks
    }
}
