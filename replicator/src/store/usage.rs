//! What a store uses, and for whom.

use super::Store;
use super::frame::LogPoint;
use super::media::Media;
use super::scrub::ScrubProgress;
use crate::words::{BLOCK_BYTES, DiskId, Extent};

/// All in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// What segments may take at most.
    pub capacity: u64,
    /// What segments with content take.
    pub used: u64,
    /// What new segments may still take.
    pub free: u64,
    /// What of `used` is needed; the rest is garbage that the cleaner may collect. After a recovery
    /// an estimate.
    pub live: u64,
    /// The index in memory.
    pub index: u64,
    pub disks: Vec<DiskUsage>,
    /// Blocks that are damaged, as far as it is known, and not healed yet.
    pub damaged_blocks: u64,
    /// Since the store was opened.
    pub healed_blocks: u64,
    pub scrub: ScrubProgress,
    /// None: the store has not said.
    pub log: Option<LogSpan>,
}

/// How much of the log is certainly there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogSpan {
    /// Where the log ended when the store was opened.
    pub began: LogPoint,
    /// Up to here it is on media now.
    pub synced: LogPoint,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskUsage {
    pub disk: DiskId,
    /// Bytes of blocks with data.
    pub allocated: u64,
    /// The same, extent by extent, in order, where there are any.
    pub extents: Vec<(Extent, u64)>,
}

impl<M: Media> Store<M> {
    pub fn usage(&self) -> Usage {
        let (capacity, free) = self.log.space();
        Usage {
            capacity,
            used: self.log.bytes(),
            free,
            live: self.holdings.live.weight(),
            index: self.index_bytes(),
            disks: self.disk_usage(),
            damaged_blocks: self.damages.len() as u64,
            healed_blocks: self.damages.healed,
            scrub: self.scrub_progress(),
            log: Some(LogSpan {
                began: self.log.began(),
                synced: self.log.synced(),
            }),
        }
    }

    fn index_bytes(&self) -> u64 {
        let disks = self.holdings.disks.values();
        let slots = disks.flat_map(|disk| disk.chunks.values());
        slots
            .map(|slot| {
                let chunk = slot.chunk.as_ref().map_or(0, |chunk| chunk.memory_bytes());
                // A slot in its tree: key, slot, and the tree's own slack.
                (chunk + (8 + size_of_val(slot)) * 3 / 2) as u64
            })
            .sum()
    }

    fn disk_usage(&self) -> Vec<DiskUsage> {
        let of = |(id, disk): (&DiskId, &super::disk::Disk)| {
            let extents: Vec<(Extent, u64)> = disk
                .extents
                .iter()
                .filter(|(_, state)| state.allocated > 0)
                .map(|(extent, state)| (*extent, u64::from(state.allocated) * BLOCK_BYTES))
                .collect();
            DiskUsage {
                disk: *id,
                allocated: extents.iter().map(|(_, bytes)| bytes).sum(),
                extents,
            }
        };
        self.holdings.disks.iter().map(of).collect()
    }
}
