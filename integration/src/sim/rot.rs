//! Rot: bits flip in what was synced, while things run and in the quiet end, where another complete replica has
//! the block intact. What is rotten everywhere is lost, and no software helps: so a sector reads well again in
//! the moment in which the last other replica goes.

use super::oracle::Content;
use super::store_node::name;
use super::world::World;
use replicator::store::media::Media;
use replicator::store::media::sim::{SimMedia, Unsynced};
use replicator::words::{BLOCK_BYTES, Block, Entry, SECTOR_BYTES, StoreId};

const SECTOR: usize = SECTOR_BYTES as usize;

/// One sector of one block of one disk, on one store.
#[derive(Clone, Debug)]
pub(super) struct Rotten {
    pub disk: usize,
    pub block: u64,
    pub store: StoreId,
    flipped: Flipped,
}

/// The bit, and what the sector held before.
#[derive(Clone, Debug)]
struct Flipped {
    /// Of the byte within the sector.
    at: usize,
    bit: u8,
    content: [u8; SECTOR],
}

impl World {
    /// A bit flips on this store, if there is one that may.
    pub(super) fn rot(&mut self, store: usize) {
        let id = self.stores[store].id;
        if self.stores[store].core.is_none() {
            return;
        }
        let disk = self.dice.range(0..self.disks.len() as u64) as usize;
        let sectors: Vec<(u64, u64)> = self.disks[disk].oracle.certain().collect();
        if sectors.is_empty() {
            return;
        }
        let at = self.dice.range(0..sectors.len() as u64) as usize;
        let (sector, number) = sectors[at];
        let block = sector * SECTOR_BYTES / BLOCK_BYTES;
        let elsewhere = |other: &Rotten| (other.disk, other.block) == (disk, block);
        if self.rotten.iter().any(elsewhere) || !self.is_elsewhere(disk, block, id) {
            return;
        }
        let content = Content::bytes(number, sector);
        let Some((file, start)) = self.find(store, &content) else {
            return;
        };
        if !self.stores[store].may_rot(&file, start) {
            return;
        }
        let flipped = Flipped {
            at: self.dice.range(16..SECTOR_BYTES) as usize,
            bit: self.dice.range(0..8) as u8,
            content,
        };
        let media = &self.stores[store].media;
        media.flip(&file, start + flipped.at as u64, flipped.bit);
        self.say(format_args!("a bit of block {block} flips at {}", name(id)));
        self.stats.count("bits that flipped");
        self.stats
            .count_if(!self.quiet, "bits that flipped while things went on");
        self.stores[store].rots(&file, start);
        self.rotten.push(Rotten {
            disk,
            block,
            store: id,
            flipped,
        });
    }

    /// Whether another replica has the block, whole and with nothing lost since.
    fn is_elsewhere(&self, disk: usize, block: u64, id: StoreId) -> bool {
        let of = &self.disks[disk];
        let range = of.placement.record.range_of(Block(block));
        let history = &range.expect("a block of the disk").history;
        let has_lost = |other: StoreId| {
            let mut stores = self.stores.iter();
            let node = stores.find(|node| node.id == other);
            let losses = node.expect("a store of this world").losses;
            losses > of.whole_at.get(&other).copied().unwrap_or(0)
        };
        // Whichever of its entries it is that the block stands in.
        let is_covered = |own: &Entry| {
            let same = |entry: &&Entry| {
                entry.whole
                    && match own.is_live() {
                        true => entry.is_live(),
                        false => (entry.from, entry.until) == (own.from, own.until),
                    }
            };
            let others = history
                .0
                .iter()
                .filter(same)
                .flat_map(|entry| &entry.stores);
            let mut others = others.filter(|other| **other != id);
            own.whole && others.any(|other| !has_lost(*other))
        };
        let mut own = history.0.iter().filter(|entry| entry.has(id)).peekable();
        own.peek().is_some() && own.all(is_covered)
    }

    /// Sectors of which no other replica is left read well again.
    pub(super) fn spare_the_last(&mut self) {
        for rotten in std::mem::take(&mut self.rotten) {
            if self.is_elsewhere(rotten.disk, rotten.block, rotten.store) {
                self.rotten.push(rotten);
                continue;
            }
            // It may have been healed since, or moved with the rest of its segment.
            let Flipped { at, bit, content } = rotten.flipped;
            let mut spoilt = content;
            spoilt[at] ^= 1 << bit;
            let media = &self.store(rotten.store).media;
            let mut spared = false;
            for (file, start) in places(media, &spoilt) {
                media.flip(&file, start + at as u64, bit);
                spared = true;
            }
            if spared {
                self.stats.count("rotten sectors that were the last");
                let (block, id) = (rotten.block, rotten.store);
                self.say(format_args!(
                    "block {block} reads well again at {}",
                    name(id)
                ));
            }
        }
    }

    /// Where the newest copy of this sector stands, if it is synced.
    fn find(&self, store: usize, content: &[u8; SECTOR]) -> Option<(String, u64)> {
        let media = &self.stores[store].media;
        let (file, at) = places(media, content).pop()?;
        let unsynced = media.unsynced();
        let is_there = |one: &Unsynced| match one {
            Unsynced::Name(name) => *name == file,
            Unsynced::Sector { file: name, sector } => {
                *name == file && (at / SECTOR_BYTES).abs_diff(*sector) <= 1
            }
        };
        (!unsynced.iter().any(is_there)).then_some((file, at))
    }
}

/// Every place in a store's segments where this stands, the newest last.
fn places(media: &SimMedia, content: &[u8; SECTOR]) -> Vec<(String, u64)> {
    let mut names = media.list().expect("simulated media list their files");
    names.retain(|name| name.starts_with("segment."));
    names.sort_unstable();
    let mut all = Vec::new();
    for name in names {
        let bytes = media.content(&name);
        let places = (0..bytes.len().saturating_sub(SECTOR - 1)).step_by(16);
        let found = places.filter(|at| bytes[*at..*at + SECTOR] == *content);
        all.extend(found.map(|at| (name.clone(), at as u64)));
    }
    all
}
