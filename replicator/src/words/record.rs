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
    /// Versions of epochs below this one are synced, and the same, on every member that was one then.
    /// Settling never has to look at them (protocol rule S4).
    pub even_below: Epoch,
    pub state: State,
    /// Every extent, in order, each exactly once.
    pub map: Vec<MapRange>,
}

/// Whether somebody may write.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nobody writes. All that was written is synced on every member.
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

/// Who holds what was written in which epochs: newest entry first, then by what follows; never empty;
/// at most [`History::MAX_ENTRIES`] long. Entries that began together stand side by side, live one first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(pub Vec<Entry>);

/// "Of what was written in these epochs, each of these stores holds everything."
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub from: Epoch,
    /// None: the entry is live, its stores are in the write set. Otherwise it is sealed: its stores
    /// hold what was written below this epoch, synced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Epoch>,
    /// Its stores hold what was written before `from`, too: what they do not have was never written.
    /// A live entry that is not whole is being filled.
    pub whole: bool,
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
    #[error("no store of extents {0} is live")]
    NobodyLive(Extents),
    #[error("some epochs of extents {0} are held by no store")]
    Uncovered(Extents),
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

    /// The entries whose stores are in the write set, newest first.
    pub fn live(&self) -> impl Iterator<Item = &Entry> + Clone {
        self.0.iter().filter(|entry| entry.is_live())
    }

    /// The write set: every store of every live entry, each once.
    pub fn members(&self) -> impl Iterator<Item = StoreId> + Clone + '_ {
        self.live().flat_map(|entry| entry.stores.iter().copied())
    }

    /// The live entry that `store` is in.
    pub fn member(&self, store: StoreId) -> Option<&Entry> {
        self.live().find(|entry| entry.has(store))
    }

    /// Whether every live entry is whole: then nobody needs a sealed one.
    pub fn is_whole(&self) -> bool {
        self.live().all(|entry| entry.whole)
    }

    /// Who can say what stands in the entries that began at `from`, of what was written below
    /// `below` ([`Epoch::MAX`]: of all, so live ones only).
    pub fn holders(&self, from: Epoch, below: Epoch) -> impl Iterator<Item = StoreId> + Clone + '_ {
        self.0
            .iter()
            .filter(move |entry| entry.from == from && entry.reaches(below))
            .flat_map(|entry| entry.stores.iter().copied())
    }

    /// Where to look for a block that the entries that began at `from` do not have: the beginning of
    /// the newest older ones that reach up to there; to be read below `from` (rule R2). None: nowhere,
    /// it was never written.
    pub fn older(&self, from: Epoch) -> Option<Epoch> {
        let whole = self.0.iter().any(|entry| entry.from == from && entry.whole);
        if whole {
            return None;
        }
        self.0
            .iter()
            .filter(|entry| entry.from < from && entry.reaches(from))
            .map(|entry| entry.from)
            .max()
    }

    /// On how many stores each block's newest acknowledged version stands, at the least.
    pub fn copies(&self) -> usize {
        let mut edges: Vec<Epoch> = self.0.iter().map(|entry| entry.from).collect();
        edges.extend(self.0.iter().filter_map(|entry| entry.until));
        edges.push(Epoch::ZERO);
        edges.sort_unstable();
        edges.dedup();
        let holds = |entry: &&Entry, after: Epoch, before: Epoch| {
            (entry.whole || entry.from <= after) && entry.reaches(before)
        };
        let base = self.0.iter().map(|entry| entry.from).min();
        edges
            .iter()
            .enumerate()
            .filter(|(_, edge)| Some(**edge) >= base)
            .map(|(i, after)| {
                let before = edges.get(i + 1).copied().unwrap_or(Epoch::MAX);
                let mut stores: Vec<StoreId> = self
                    .0
                    .iter()
                    .filter(|entry| holds(entry, *after, before))
                    .flat_map(|entry| entry.stores.iter().copied())
                    .collect();
                stores.sort_unstable();
                stores.dedup();
                stores.len()
            })
            .min()
            .unwrap_or(0)
    }
}

impl Entry {
    /// A live entry that is being filled.
    pub fn new(from: Epoch, stores: impl IntoIterator<Item = StoreId>) -> Self {
        Entry {
            from,
            until: None,
            whole: false,
            stores: sorted(stores),
        }
    }

    /// A live entry that holds all there is.
    pub fn whole(from: Epoch, stores: impl IntoIterator<Item = StoreId>) -> Self {
        Entry {
            whole: true,
            ..Entry::new(from, stores)
        }
    }

    pub fn sealed(self, until: Epoch) -> Self {
        Entry {
            until: Some(until),
            ..self
        }
    }

    pub const fn is_live(&self) -> bool {
        self.until.is_none()
    }

    pub fn has(&self, store: StoreId) -> bool {
        self.stores.binary_search(&store).is_ok()
    }

    /// Whether it holds what was written right below `below`.
    pub fn reaches(&self, below: Epoch) -> bool {
        self.until.is_none_or(|until| until >= below)
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

    /// Whether a member of the entries that began at `from` may never have joined them: there was no moment since
    /// at which all of them were even. The entries that a disk is created with begin before it is first opened.
    pub fn may_be_unjoined(&self, from: Epoch) -> bool {
        let created = from == Epoch::first(from.generation());
        let next = from.next(self.even_below.generation());
        from >= self.even_below || (created && self.even_below == next)
    }

    /// Every store that a live entry names, sorted: all that a writer has to reach.
    pub fn members(&self) -> Vec<StoreId> {
        sorted(self.map.iter().flat_map(|range| range.history.members()))
    }

    /// Every store that any entry names, sorted.
    pub fn stores(&self) -> Vec<StoreId> {
        sorted(
            self.map
                .iter()
                .flat_map(|range| &range.history.0)
                .flat_map(|entry| entry.stores.iter().copied()),
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
        let history = &range.history;
        let entries = &history.0;
        let in_order = entries.windows(2).all(|pair| {
            (pair[0].from, pair[0].is_live(), pair[0].until)
                > (pair[1].from, pair[1].is_live(), pair[1].until)
        });
        // Those that began together are filled together.
        let alike = entries
            .windows(2)
            .all(|pair| pair[0].from != pair[1].from || pair[0].whole == pair[1].whole);
        let lasts = |entry: &Entry| entry.until.is_none_or(|until| until > entry.from);
        if entries.is_empty()
            || entries.len() > History::MAX_ENTRIES
            || !in_order
            || !alike
            || !entries.iter().all(lasts)
        {
            return Err(RecordFault::History(range.extents));
        }
        for entry in entries {
            if entry.stores.is_empty() || !entry.stores.windows(2).all(|pair| pair[0] < pair[1]) {
                return Err(RecordFault::Stores(range.extents));
            }
            let latest = entry.from.max(entry.until.unwrap_or(entry.from));
            if latest > self.epoch {
                return Err(RecordFault::Future {
                    extents: range.extents,
                    from: latest,
                    epoch: self.epoch,
                });
            }
        }
        let mut members: Vec<StoreId> = history.members().collect();
        members.sort_unstable();
        if members.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(RecordFault::Stores(range.extents));
        }
        if members.is_empty() {
            return Err(RecordFault::NobodyLive(range.extents));
        }
        if !history.covers() {
            return Err(RecordFault::Uncovered(range.extents));
        }
        Ok(())
    }
}

impl History {
    /// Whether whatever a live entry may lack is found in older ones, down to a whole one.
    pub fn covers(&self) -> bool {
        self.live().all(|entry| {
            let mut from = entry.from;
            while let Some(older) = self.older(from) {
                from = older;
            }
            self.0.iter().any(|entry| entry.from == from && entry.whole)
        })
    }

    /// The same where these stores have nothing at all.
    pub fn covers_without(&self, stores: &[StoreId]) -> bool {
        let has_others = |entry: &&Entry| entry.stores.iter().any(|store| !stores.contains(store));
        let left = History(self.0.iter().filter(has_others).cloned().collect());
        left.live().next().is_some() && left.covers()
    }
}

fn sorted(stores: impl IntoIterator<Item = StoreId>) -> Vec<StoreId> {
    let mut stores: Vec<StoreId> = stores.into_iter().collect();
    stores.sort_unstable();
    stores.dedup();
    stores
}
