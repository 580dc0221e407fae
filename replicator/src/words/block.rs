//! Where things stand on a disk: bytes, sectors, blocks, extents.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A block: the unit that a version names.
pub const BLOCK_BYTES: u64 = 4096;
/// A sector: the unit that a guest addresses (virtio 1.2, 5.2: always 512 bytes).
pub const SECTOR_BYTES: u64 = 512;

/// A block of a disk, counted from its start.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Block(pub u64);

/// A range of blocks: the first, and how many (may be none).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Blocks {
    pub first: Block,
    pub count: u32,
}

impl Blocks {
    pub const fn new(first: Block, count: u32) -> Self {
        Blocks { first, count }
    }

    /// The block behind the last one.
    pub const fn end(self) -> Block {
        Block(self.first.0 + self.count as u64)
    }

    pub const fn is_empty(self) -> bool {
        self.count == 0
    }

    pub const fn bytes(self) -> u64 {
        self.count as u64 * BLOCK_BYTES
    }

    pub fn iter(self) -> impl DoubleEndedIterator<Item = Block> + ExactSizeIterator + Clone {
        (0..self.count).map(move |i| Block(self.first.0 + u64::from(i)))
    }

    pub const fn contains(self, block: Block) -> bool {
        self.first.0 <= block.0 && block.0 < self.end().0
    }

    pub const fn overlaps(self, other: Blocks) -> bool {
        self.first.0 < other.end().0 && other.first.0 < self.end().0
    }

    /// What both ranges hold, if anything.
    pub fn intersect(self, other: Blocks) -> Option<Blocks> {
        let first = self.first.max(other.first);
        let end = self.end().min(other.end());
        (first < end).then(|| Blocks::new(first, (end.0 - first.0) as u32))
    }
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first.0, self.end().0)
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A range of bytes of a disk as a guest names it: whole sectors, not always whole blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Span {
    /// First byte, a multiple of [`SECTOR_BYTES`].
    pub offset: u64,
    /// Bytes, a multiple of [`SECTOR_BYTES`].
    pub len: u64,
}

impl Span {
    pub const fn new(offset: u64, len: u64) -> Self {
        Span { offset, len }
    }

    pub const fn end(self) -> u64 {
        self.offset + self.len
    }

    /// The blocks that it touches, partly or wholly.
    pub const fn touched(self) -> Blocks {
        let first = self.offset / BLOCK_BYTES;
        let end = self.end().div_ceil(BLOCK_BYTES);
        Blocks::new(Block(first), (end - first) as u32)
    }

    /// The blocks that lie wholly inside (possibly none).
    pub const fn whole(self) -> Blocks {
        let first = self.offset.div_ceil(BLOCK_BYTES);
        let end = self.end() / BLOCK_BYTES;
        if end <= first {
            Blocks::new(Block(first), 0)
        } else {
            Blocks::new(Block(first), (end - first) as u32)
        }
    }

    pub const fn is_block_aligned(self) -> bool {
        self.offset.is_multiple_of(BLOCK_BYTES) && self.len.is_multiple_of(BLOCK_BYTES)
    }
}

/// An extent of a disk, counted from its start: the unit of placement.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Extent(pub u32);

/// A range of extents, first included, end excluded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extents {
    pub first: Extent,
    pub end: Extent,
}

impl Extents {
    pub const fn new(first: Extent, end: Extent) -> Self {
        Extents { first, end }
    }

    pub const fn count(self) -> u32 {
        self.end.0.saturating_sub(self.first.0)
    }

    pub const fn contains(self, extent: Extent) -> bool {
        self.first.0 <= extent.0 && extent.0 < self.end.0
    }

    pub const fn overlaps(self, other: Extents) -> bool {
        self.first.0 < other.end.0 && other.first.0 < self.end.0
    }

    /// What both ranges hold, if anything.
    pub fn intersect(self, other: Extents) -> Option<Extents> {
        let (first, end) = (self.first.max(other.first), self.end.min(other.end));
        (first < end).then_some(Extents { first, end })
    }

    pub fn iter(self) -> impl Iterator<Item = Extent> {
        (self.first.0..self.end.0).map(Extent)
    }
}

impl fmt::Debug for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first.0, self.end.0)
    }
}

impl fmt::Display for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// How large a disk's extents are: a power of two from 1 MiB to 1 GiB, chosen at creation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct ExtentSize {
    bytes: u64,
}

impl ExtentSize {
    pub const DEFAULT: ExtentSize = ExtentSize { bytes: 64 << 20 };
    pub const MIN_BYTES: u64 = 1 << 20;
    pub const MAX_BYTES: u64 = 1 << 30;

    pub fn new(bytes: u64) -> Result<Self, String> {
        if bytes.is_power_of_two() && (Self::MIN_BYTES..=Self::MAX_BYTES).contains(&bytes) {
            Ok(ExtentSize { bytes })
        } else {
            Err(format!(
                "an extent of {bytes} bytes is not possible; use a power of two from 1 MiB to 1 GiB"
            ))
        }
    }

    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    pub const fn blocks(self) -> u32 {
        (self.bytes / BLOCK_BYTES) as u32
    }

    pub const fn of(self, block: Block) -> Extent {
        Extent((block.0 / self.blocks() as u64) as u32)
    }

    /// The blocks of one extent.
    pub const fn blocks_of(self, extent: Extent) -> Blocks {
        Blocks::new(Block(extent.0 as u64 * self.blocks() as u64), self.blocks())
    }

    /// How many extents a disk of `bytes` has; the last may reach beyond its end.
    pub const fn count(self, bytes: u64) -> u32 {
        bytes.div_ceil(self.bytes) as u32
    }

    /// The extents that a range of blocks touches.
    pub const fn touched(self, blocks: Blocks) -> Extents {
        if blocks.is_empty() {
            return Extents::new(self.of(blocks.first), self.of(blocks.first));
        }
        let last = Block(blocks.end().0 - 1);
        Extents::new(self.of(blocks.first), Extent(self.of(last).0 + 1))
    }
}

impl Default for ExtentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u64> for ExtentSize {
    type Error = String;

    fn try_from(bytes: u64) -> Result<Self, String> {
        Self::new(bytes)
    }
}

impl From<ExtentSize> for u64 {
    fn from(size: ExtentSize) -> u64 {
        size.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_knows_which_blocks_it_touches_and_which_it_fills() {
        let inside = Span::new(512, 1024);
        assert_eq!(inside.touched(), Blocks::new(Block(0), 1));
        assert!(inside.whole().is_empty());
        let across = Span::new(3584, 4096 + 1024);
        assert_eq!(across.touched(), Blocks::new(Block(0), 3));
        assert_eq!(across.whole(), Blocks::new(Block(1), 1));
        let aligned = Span::new(4096, 8192);
        assert_eq!(aligned.touched(), aligned.whole());
    }

    #[test]
    fn extents_of_a_range_of_blocks() {
        let size = ExtentSize::new(1 << 20).unwrap();
        assert_eq!(size.blocks(), 256);
        assert_eq!(
            size.touched(Blocks::new(Block(255), 2)),
            Extents::new(Extent(0), Extent(2))
        );
        assert_eq!(
            size.touched(Blocks::new(Block(256), 256)),
            Extents::new(Extent(1), Extent(2))
        );
        assert!(ExtentSize::new(3 << 20).is_err());
    }
}
