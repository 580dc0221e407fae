//! What the media spoilt: blocks whose frames do not say any more what was written, until they are healed.
//!
//! ```text
//!  a read, a scrub     finds that a frame does not match: refused, and noted here
//!  the writer          hears of it, and lets this store pull the block from another member (writer/heal.rs)
//!  spoilt              says which blocks are to be asked for
//!  heal                takes them only in the very version that is noted, and writes their frames anew, as
//!                      the cleaner moves frames: the version, and what proves it, stay as they are
//! ```
//!
//! A version names one content, so a block of the same version is what was there. One of another version
//! heals nothing: a store never learns from a heal what its writer has not written to it.

use super::Store;
use super::append::{Purpose, Room};
use super::fill::Filling;
use super::frame::{Header, Kind};
use super::holdings::moved;
use super::index::Entry;
use super::media::Media;
use super::place::Place;
use crate::message::{DamagedBlock, Fetch, MAX_DAMAGED, Pulled, Refusal};
use crate::words::{BLOCK_BYTES, Block, Blocks, DiskId, Version};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is remembered at once; a store that is spoilt more than this is found to be so again.
pub const MOST_SPOILT: usize = 4096;

/// One version of a block that cannot be read as it was written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Spoilt {
    pub disk: DiskId,
    pub block: Block,
    pub version: Version,
}

impl Spoilt {
    pub fn named(&self) -> DamagedBlock {
        DamagedBlock {
            block: self.block,
            version: self.version,
        }
    }
}

/// Where reads, which run without the store, leave what they find.
#[derive(Clone, Default, Debug)]
pub struct Finds(Arc<Mutex<Vec<Find>>>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Find {
    spoilt: Spoilt,
    /// Where it stood: by the time that the store hears of it, another read may have found the same, and it may be healed.
    /// None: found by an earlier process.
    place: Option<Place>,
}

impl Finds {
    pub fn add(&self, spoilt: Spoilt, place: Option<Place>) {
        let find = Find { spoilt, place };
        let mut finds = self.0.lock();
        if finds.len() < MOST_SPOILT && !finds.contains(&find) {
            finds.push(find);
        }
    }

    fn take(&self) -> Vec<Find> {
        std::mem::take(&mut *self.0.lock())
    }
}

#[derive(Default, Debug)]
pub struct Damages {
    pub finds: Finds,
    known: BTreeSet<Spoilt>,
    /// Since the store was opened.
    pub found: u64,
    pub healed: u64,
}

impl Damages {
    /// Everything known of the blocks from `first` on, below `end`, in order.
    fn of(&self, disk: DiskId, first: Block, end: Block) -> impl Iterator<Item = &Spoilt> {
        let at = |block: Block| Spoilt {
            disk,
            block,
            version: Version::ZERO,
        };
        self.known.range(at(first)..at(end))
    }

    pub fn all(&self) -> impl Iterator<Item = &Spoilt> {
        self.known.iter()
    }

    /// This version stands somewhere else now.
    pub fn forget(&mut self, disk: DiskId, blocks: Blocks, version: Version) {
        if self.known.is_empty() {
            return;
        }
        for block in blocks.iter() {
            self.known.remove(&Spoilt {
                disk,
                block,
                version,
            });
        }
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    fn note(&mut self, spoilt: Spoilt) -> bool {
        let new = self.known.len() < MOST_SPOILT && self.known.insert(spoilt);
        self.found += u64::from(new);
        new
    }
}

impl<M: Media> Store<M> {
    /// Takes in what reads have found since.
    pub(super) fn note_finds(&mut self) {
        for Find { spoilt, place } in self.damages.finds.take() {
            // Those of an earlier process were found before their index was in memory.
            if self
                .load(spoilt.disk, Blocks::new(spoilt.block, 1))
                .is_err()
            {
                continue;
            }
            let entry = self.spoilt_entry(&spoilt);
            let stands = entry.is_some_and(|entry| place.is_none_or(|place| place == entry.place));
            if stands && self.damages.note(spoilt) {
                tracing::error!(
                    store = %self.id, disk = %spoilt.disk, block = spoilt.block.0, version = %spoilt.version,
                    "a block is damaged; it is healed from another copy when its disk's writer asks for it"
                );
            }
        }
        self.forget_gone();
    }

    /// Versions that nobody needs any more are no damage.
    fn forget_gone(&mut self) {
        if self.damages.known.is_empty() {
            return;
        }
        let gone: Vec<Spoilt> = self
            .damages
            .known
            .iter()
            .filter(|spoilt| self.spoilt_entry(spoilt).is_none())
            .copied()
            .collect();
        for spoilt in gone {
            self.damages.known.remove(&spoilt);
        }
    }

    /// How many blocks are known to be damaged.
    pub fn damaged_blocks(&mut self) -> usize {
        self.note_finds();
        self.damages.len()
    }

    /// The blocks of `blocks` that are known to be damaged in some version.
    pub(super) fn spoilt_of(&mut self, disk: DiskId, blocks: Blocks) -> BTreeSet<Block> {
        self.note_finds();
        let spoilt = self.damages.of(disk, blocks.first, blocks.end());
        spoilt.map(|spoilt| spoilt.block).collect()
    }

    /// What is known to be damaged of the blocks from `first` on, below `end`; not more than an answer names.
    pub(super) fn damaged_in(
        &mut self,
        disk: DiskId,
        first: Block,
        end: Block,
    ) -> Vec<DamagedBlock> {
        self.note_finds();
        let spoilt = self.damages.of(disk, first, end).take(MAX_DAMAGED);
        spoilt.map(Spoilt::named).collect()
    }

    /// What the index says of a spoilt version. Its part of the index was loaded when it was found.
    fn spoilt_entry(&self, spoilt: &Spoilt) -> Option<Entry> {
        let such = |entry: &Entry| entry.version == spoilt.version && !entry.zeroes;
        self.holdings.entry(spoilt.disk, spoilt.block, such)
    }

    /// Writes the frames of damaged blocks anew, as far as another store gave them in the very version that
    /// is damaged here.
    pub(super) fn heal(
        &mut self,
        disk: DiskId,
        blocks: &[Block],
        filling: &Filling,
    ) -> Result<Pulled, Refusal> {
        let mut pulled = Pulled {
            bytes: filling.wire_bytes,
            ..Pulled::default()
        };
        let mut data = filling.data.clone();
        for (block, found) in blocks.iter().zip(&filling.found) {
            let Fetch::Data { version, sum } = *found else {
                continue;
            };
            let content = data.split_to(BLOCK_BYTES as usize);
            let spoilt = Spoilt {
                disk,
                block: *block,
                version,
            };
            if self.damages.known.contains(&spoilt) {
                self.heal_block(&spoilt, sum, &content)?;
                pulled.copied += 1;
            }
        }
        pulled.reach = self.reach();
        Ok(pulled)
    }

    fn heal_block(&mut self, spoilt: &Spoilt, sum: u32, content: &[u8]) -> Result<(), Refusal> {
        let Some(entry) = self.spoilt_entry(spoilt) else {
            return Ok(());
        };
        let header = Header {
            disk: spoilt.disk,
            block: spoilt.block.0,
            count: 1,
            epoch: spoilt.version.epoch.as_u64(),
            seq: spoilt.version.seq.0,
            data_sum: sum,
            ..Header::control(Kind::Data)
        };
        // As the cleaner moves a frame: what proves it is what the index says.
        let header = moved(&header, Blocks::new(spoilt.block, 1), entry.filled);
        self.make_room(Room::Blocks(1), Purpose::Data)?;
        let places = self.append([(header, content)].into_iter())?;
        self.note(&header, header.blocks(), places[0])?;
        self.damages.known.remove(spoilt);
        self.damages.healed += 1;
        tracing::warn!(
            store = %self.id, disk = %spoilt.disk, block = spoilt.block.0, version = %spoilt.version,
            "a damaged block is healed from another copy"
        );
        Ok(())
    }
}
