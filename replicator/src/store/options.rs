//! What an operator may choose about a store.

use super::error::StoreError;
use super::scrub::ScrubRate;

/// A store has at least so many segments, unless they would be very small.
const SEGMENTS: u64 = 128;
/// Holds the largest write, and a few.
const LEAST_SEGMENT_BYTES: u64 = 4 << 20;

#[derive(Clone, Debug)]
pub struct Options {
    /// Size of new segments; smaller in a small store, see [`Options::fit`]. A write of n blocks needs room for n
    /// frames in one segment.
    pub segment_bytes: u64,
    /// At most so much of the file system, counted in whole segments; None: all of it.
    pub capacity_bytes: Option<u64>,
    /// A checkpoint is written after this much of log, or less in a small store: bounds what a recovery replays.
    pub checkpoint_bytes: u64,
    /// The cleaner starts when this share of all segments is garbage. While there is much free space besides, it
    /// takes only what is nearly dead...
    pub garbage_percent: u64,
    /// ...until this share is garbage.
    pub roomy_garbage_percent: u64,
    /// Overwritten versions that may still be asked for are looked through, and a sync is wanted for that, when there are so
    /// many: bounds the memory that they take, some 100 bytes each.
    pub most_superseded: usize,
    /// How many segments' files are kept open.
    pub open_files: usize,
    /// How fast all of it is read and checked, again and again.
    pub scrub: ScrubRate,
    /// A number that no other start of the store has (rule S6); zero: it tells nobody how far it is.
    /// [`SharedStore`](super::SharedStore) draws its own.
    pub run: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            segment_bytes: 64 << 20,
            capacity_bytes: None,
            checkpoint_bytes: 256 << 20,
            garbage_percent: 25,
            roomy_garbage_percent: 50,
            most_superseded: 1 << 20,
            open_files: 512,
            scrub: ScrubRate::Monthly,
            run: 0,
        }
    }
}

impl Options {
    /// Tiny segments, frequent checkpoints and an eager cleaner, for tests and simulation. Writes of up to 12 blocks fit.
    pub fn tiny() -> Options {
        Options {
            segment_bytes: 64 << 10,
            checkpoint_bytes: 256 << 10,
            most_superseded: 1 << 12,
            open_files: 4,
            roomy_garbage_percent: 25,
            ..Options::default()
        }
    }

    pub const MIN_SEGMENT_BYTES: u64 = 64 << 10;
    pub const MAX_SEGMENT_BYTES: u64 = 4 << 30;

    /// What is kept free is counted in whole segments, and what came after the last checkpoint cannot be
    /// cleaned: in a store that may take `capacity` bytes both have to be a small part of that.
    pub(super) fn fit(&mut self, capacity: u64) {
        let segment = capacity / SEGMENTS;
        let segment = segment.checked_ilog2().map_or(0, |log| 1 << log);
        self.segment_bytes = self.segment_bytes.min(segment.max(LEAST_SEGMENT_BYTES));
        let checkpoint = (capacity / 16).max(4 * self.segment_bytes);
        self.checkpoint_bytes = self.checkpoint_bytes.min(checkpoint);
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
        let range = Self::MIN_SEGMENT_BYTES..=Self::MAX_SEGMENT_BYTES;
        if range.contains(&self.segment_bytes) && self.segment_bytes.is_multiple_of(4096) {
            Ok(())
        } else {
            Err(StoreError::Options {
                bytes: self.segment_bytes,
            })
        }
    }
}
