//! The disk record: a disk's configuration as the placement catalog keeps it.
//!
//! A record says which epoch a disk is in, who owns it, and for each range of extents its history:
//! newest first, from which epoch on which stores hold everything written since. A disk that never
//! moved is one range with one entry, a handful of bytes whatever its size.

use super::{
    BackendId, Block, Blocks, DiskId, DiskName, Epoch, Extent, ExtentSize, Extents, HostName, Life,
    Revision, StoreId, Version,
};
use serde::{Deserialize, Serialize};

/// What the catalog knows of a disk, changed only by compare-and-swap on [`DiskRecord::revision`] (I8).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskRecord {
    pub id: DiskId,
    pub name: DiskName,
    /// Size in bytes, a multiple of the block.
    pub bytes: u64,
    pub extent_size: ExtentSize,
    /// How many copies its owner asked for.
    pub copies: u8,
    pub revision: Revision,
    pub epoch: Epoch,
    /// Versions of epochs below this one are synced, and the same, on every member of the newest
    /// entries. Settling never has to look at them (protocol rule S4).
    pub even_below: Epoch,
    pub state: State,
    /// Every extent, in order, each exactly once.
    pub map: Vec<MapRange>,
}

/// Whether somebody may write.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nobody writes. All that was written is synced on every member of the newest entries.
    Closed {
        /// The last write of the epoch that was closed.
        last: Version,
        /// The backend that the closing writer expected to come next.
        successor: Option<BackendId>,
    },
    /// `owner` numbers the writes of this epoch.
    Open { owner: Owner },
}

/// The one backend run that may complete writes (I3).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Owner {
    pub backend: BackendId,
    pub life: Life,
    /// For people and errors only.
    pub host: HostName,
}

/// The history that a range of extents shares.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapRange {
    pub extents: Extents,
    pub history: History,
}

/// Newest entry first; never empty; at most [`History::MAX_ENTRIES`] long.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(pub Vec<Entry>);

/// "From this epoch on, each of these stores holds every write."
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub from: Epoch,
    /// Sorted, without repetition, not empty.
    pub stores: Vec<StoreId>,
}

/// Why a record cannot be true. A record from a peer or a file is checked before it is used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    #[error("the size of {0} bytes is not a positive multiple of the 4 KiB block")]
    Size(u64),
    #[error("the map does not cover the disk's {extents} extents in order and once each")]
    Coverage { extents: u32 },
    #[error("the history of extents {0} is empty, too long, or not newest first")]
    History(Extents),
    #[error("an entry of extents {0} has no stores, or has them unsorted or twice")]
    Stores(Extents),
    #[error(
        "an entry of extents {extents} begins at epoch {from}, after the disk's own epoch {epoch}"
    )]
    Future {
        extents: Extents,
        from: Epoch,
        epoch: Epoch,
    },
}

impl History {
    /// How long a history may grow before voluntary moves are refused (rule F3).
    pub const MAX_ENTRIES: usize = 8;

    pub fn newest(&self) -> &Entry {
        self.0.first().expect("a history is never empty")
    }

    /// Each entry with the bound below which its reads look: newest first, the newest unbounded (rule R2).
    pub fn bounded(&self) -> impl Iterator<Item = (&Entry, Epoch)> {
        let bounds = std::iter::once(Epoch::MAX).chain(self.0.iter().map(|entry| entry.from));
        self.0.iter().zip(bounds)
    }
}

impl Entry {
    pub fn new(from: Epoch, stores: impl IntoIterator<Item = StoreId>) -> Self {
        let mut stores: Vec<StoreId> = stores.into_iter().collect();
        stores.sort_unstable();
        stores.dedup();
        Entry { from, stores }
    }

    pub fn has(&self, store: StoreId) -> bool {
        self.stores.binary_search(&store).is_ok()
    }
}

impl DiskRecord {
    pub fn extents(&self) -> Extents {
        Extents::new(Extent(0), Extent(self.extent_size.count(self.bytes)))
    }

    pub fn blocks(&self) -> u64 {
        self.bytes / super::BLOCK_BYTES
    }

    /// The range that holds `block`, or nothing beyond the disk's end.
    pub fn range_of(&self, block: Block) -> Option<&MapRange> {
        let extent = self.extent_size.of(block);
        let behind = self
            .map
            .partition_point(|range| range.extents.end <= extent);
        self.map
            .get(behind)
            .filter(|range| range.extents.contains(extent))
    }

    /// The part of `blocks` that starts at its first block and shares one history.
    pub fn shared_prefix(&self, blocks: Blocks) -> Option<(&MapRange, Blocks)> {
        let range = self.range_of(blocks.first)?;
        let end = u64::from(range.extents.end.0) * u64::from(self.extent_size.blocks());
        let count = (end - blocks.first.0).min(u64::from(blocks.count));
        Some((range, Blocks::new(blocks.first, count as u32)))
    }

    /// Every store that a newest entry names, sorted: all that a writer has to reach.
    pub fn members(&self) -> Vec<StoreId> {
        sorted(
            self.map
                .iter()
                .flat_map(|range| &range.history.newest().stores),
        )
    }

    /// Every store that any entry names, sorted.
    pub fn stores(&self) -> Vec<StoreId> {
        sorted(
            self.map
                .iter()
                .flat_map(|range| &range.history.0)
                .flat_map(|entry| &entry.stores),
        )
    }

    pub fn owner(&self) -> Option<&Owner> {
        match &self.state {
            State::Open { owner } => Some(owner),
            State::Closed { .. } => None,
        }
    }

    /// Checks what every true record fulfils. Use it wherever a record comes in.
    pub fn check(&self) -> Result<(), RecordFault> {
        if self.bytes == 0 || !self.bytes.is_multiple_of(super::BLOCK_BYTES) {
            return Err(RecordFault::Size(self.bytes));
        }
        let extents = self.bytes.div_ceil(self.extent_size.bytes());
        let coverage = RecordFault::Coverage {
            extents: extents.min(u64::from(u32::MAX)) as u32,
        };
        let mut next = 0u64;
        for range in &self.map {
            if u64::from(range.extents.first.0) != next || range.extents.count() == 0 {
                return Err(coverage);
            }
            next = u64::from(range.extents.end.0);
            self.check_history(range)?;
        }
        if next == extents {
            Ok(())
        } else {
            Err(coverage)
        }
    }

    fn check_history(&self, range: &MapRange) -> Result<(), RecordFault> {
        let entries = &range.history.0;
        let in_order = entries.windows(2).all(|pair| pair[0].from > pair[1].from);
        if entries.is_empty() || entries.len() > History::MAX_ENTRIES || !in_order {
            return Err(RecordFault::History(range.extents));
        }
        for entry in entries {
            if entry.stores.is_empty() || !entry.stores.windows(2).all(|pair| pair[0] < pair[1]) {
                return Err(RecordFault::Stores(range.extents));
            }
            if entry.from > self.epoch {
                return Err(RecordFault::Future {
                    extents: range.extents,
                    from: entry.from,
                    epoch: self.epoch,
                });
            }
        }
        Ok(())
    }
}

fn sorted<'a>(stores: impl Iterator<Item = &'a StoreId>) -> Vec<StoreId> {
    let mut stores: Vec<StoreId> = stores.copied().collect();
    stores.sort_unstable();
    stores.dedup();
    stores
}
