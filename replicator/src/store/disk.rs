//! What a store knows of one disk.

use super::frame::LogPoint;
use super::index::{Chunk, Entry};
use super::place::Place;
use super::replica::Replicas;
use crate::message::Digest;
use crate::plant::{Plant, planted};
use crate::words::{self, Block, DiskRecord, Epoch, Extent, ExtentSize, Extents, Version};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::BTreeMap;

#[derive(Default, Debug)]
pub struct Disk {
    /// The highest epoch shown; every lower one is refused, for ever (I4).
    pub shown: Epoch,
    /// Where the log says so. Before that is synced nothing is answered in this epoch (rule S3).
    pub shown_at: LogPoint,
    /// What proved that epoch when it was shown; empty: nothing did.
    pub grant: Bytes,
    /// The disk's record as the last writer that told one had it; empty: none did.
    pub record: Bytes,
    /// Where the log has it.
    pub record_at: LogPoint,
    /// Known from the first join on.
    pub extent_size: Option<ExtentSize>,
    pub replicas: Replicas,
    /// How many joins there were.
    pub joins: u16,
    /// The highest version that some writer said all members hold (rule W4).
    pub watermark: Version,
    /// What it was shown when it was deleted: no replica joins at this epoch or below. Versions of it may be filled
    /// in again where the disk comes back.
    pub dropped: Epoch,
    pub extents: BTreeMap<Extent, ExtentState>,
    pub chunks: BTreeMap<u64, Slot>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ExtentState {
    /// The highest version that this extent ever had here; outlives cleaning (rule F4).
    pub highest: Version,
    /// Blocks with data.
    pub allocated: u32,
    /// What the newest membership has, once somebody has asked (digest.rs).
    pub digest: Option<Digest>,
}

/// A chunk of the index: in memory, or where the log has it.
#[derive(Default, Debug)]
pub struct Slot {
    pub chunk: Option<Box<Chunk>>,
    /// The frames that hold it as of the last checkpoint that wrote it.
    pub blob: SmallVec<[Place; 1]>,
    /// What each of these frames counts for in its segment; known while the chunk is in memory.
    pub blob_weight: u64,
    /// The chunk has changed since.
    pub dirty: bool,
    /// What it counts for in [`super::holdings::Holdings::dirty_bytes`].
    pub counted: u64,
}

impl Disk {
    /// The extent that holds `block`, once a join has said how large extents are.
    pub fn extent_of(&self, block: Block) -> Option<Extent> {
        let size = self.extent_size?;
        let extent = block.0 / u64::from(size.blocks());
        u32::try_from(extent).ok().map(Extent)
    }

    /// Which of the epochs below which something of `extents` is kept are needed still (rule R2): those with which an entry
    /// of the disk's record begins. Who joined then may have left since, before it was whole. What the record cannot
    /// know is needed.
    pub fn is_bound(&self, extents: Extents) -> impl Fn(Epoch) -> bool + use<> {
        let record = match self.replicas.keep_any(extents) {
            true => DiskRecord::from_kept(&self.record).ok(),
            false => None,
        };
        move |below| {
            let Some(record) = record.as_ref().filter(|record| below <= record.epoch) else {
                return true;
            };
            let mut ranges = record.map.iter();
            ranges.any(|range| {
                let begins = |entry: &words::Entry| entry.from == below;
                range.extents.overlaps(extents) && range.history.0.iter().any(begins)
            })
        }
    }

    /// Somebody joins beside this member of `extents` at epoch `below` (rule R2).
    pub fn keep(&mut self, extents: Extents, below: Epoch) {
        let is_bound = self.is_bound(extents);
        self.replicas.keep(extents, below, is_bound);
    }

    /// Whether a predecessor must be kept (rule R2): its successor may be unsynced or unacknowledged,
    /// or the read of an older entry is bounded between the two.
    pub fn needs(
        &self,
        block: Block,
        predecessor: &Entry,
        successor: &Entry,
        synced: LogPoint,
    ) -> bool {
        if planted(Plant::PredecessorDropped) {
            return false;
        }
        let (before, after) = (predecessor.version, successor.version);
        let unsynced = successor.place.point() >= synced;
        // Of earlier epochs, too: a member that was ejected is asked for what stood before it, and hears
        // of no watermark any more.
        let unacknowledged = after > self.watermark;
        let between = || {
            let replica = self
                .extent_of(block)
                .and_then(|extent| self.replicas.of(extent));
            replica.is_some_and(|replica| {
                let mut bounds = replica.bounds();
                bounds.any(|bound| before.epoch < bound && bound <= after.epoch)
            })
        };
        unsynced || unacknowledged || between()
    }
}
