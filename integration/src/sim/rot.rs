//! Rot: bits flip in what was synced long ago. Only where another whole member has the block intact: what
//! is rotten everywhere is lost, and no software helps.

use super::oracle::Content;
use super::store_node::name;
use super::world::World;
use replicator::store::media::Media;
use replicator::words::{BLOCK_BYTES, Block, SECTOR_BYTES, StoreId};

const SECTOR: usize = SECTOR_BYTES as usize;

/// One block of one disk, on one store.
#[derive(Clone, Debug)]
pub(super) struct Rotten {
    pub disk: usize,
    pub block: u64,
    pub store: StoreId,
    file: String,
    offset: u64,
    bit: u8,
    /// The byte as it is now.
    byte: u8,
}

impl World {
    pub(super) fn rot(&mut self, store: usize) {
        let node = &self.stores[store];
        let id = node.id;
        if node.core.is_none() || !node.media.unsynced().is_empty() {
            return;
        }
        let disk = self.dice.range(0..self.disks.len() as u64) as usize;
        let of = &self.disks[disk];
        let sectors: Vec<(u64, u64)> = of.oracle.certain().collect();
        if sectors.is_empty() {
            return;
        }
        let at = self.dice.range(0..sectors.len() as u64) as usize;
        let (sector, number) = sectors[at];
        let block = sector * SECTOR_BYTES / BLOCK_BYTES;
        let history = of.placement.record.range_of(Block(block));
        let history = &history.expect("a block of the disk").history;
        let whole = |entry: &&replicator::words::Entry| entry.whole;
        let members: Vec<StoreId> = history
            .live()
            .filter(whole)
            .flat_map(|entry| entry.stores.iter().copied())
            .collect();
        let elsewhere = |other: &Rotten| (other.disk, other.block) == (disk, block);
        if !members.contains(&id) || members.len() < 2 || self.rotten.iter().any(elsewhere) {
            return;
        }
        let Some((file, offset)) = self.find(store, number, sector) else {
            return;
        };
        let bit = self.dice.range(0..8) as u8;
        let offset = offset + self.dice.range(16..SECTOR_BYTES);
        let media = &self.stores[store].media;
        media.flip(&file, offset, bit);
        let byte = media.content(&file)[offset as usize];
        self.say(format_args!("a bit of block {block} flips at {}", name(id)));
        self.stats.count("bits that flipped");
        self.stores[store].rotted = true;
        self.rotten.push(Rotten {
            disk,
            block,
            store: id,
            file,
            offset,
            bit,
            byte,
        });
    }

    /// Where the newest copy of what this write put into this sector stands.
    fn find(&self, store: usize, number: u64, sector: u64) -> Option<(String, u64)> {
        let bytes = Content::bytes(number, sector);
        let media = &self.stores[store].media;
        let mut names = media.list().expect("simulated media list their files");
        names.retain(|name| name.starts_with("segment."));
        names.sort_unstable();
        names.iter().rev().find_map(|name| {
            let content = media.content(name);
            let found = (0..content.len().saturating_sub(SECTOR - 1) / 16).rev();
            let mut found = found.map(|i| i * 16);
            let at = found.find(|at| content[*at..*at + SECTOR] == bytes)?;
            Some((name.clone(), at as u64))
        })
    }

    /// In the end somebody brings a block back that is intact on no member any more, because those that
    /// had it are members no longer, or never ended being filled.
    pub(super) fn undo_hopeless_rot(&mut self) {
        for rotten in self.rotten.clone() {
            let record = &self.disks[rotten.disk].placement.record;
            let history = record.range_of(Block(rotten.block));
            let history = &history.expect("a block of the disk").history;
            let whole = history.live().filter(|entry| entry.whole);
            let mut others = whole.flat_map(|entry| entry.stores.iter());
            if others.any(|store| *store != rotten.store) {
                continue;
            }
            let at = self.stores.iter().position(|s| s.id == rotten.store);
            let media = &self.stores[at.expect("a store")].media;
            let there = media.list().expect("simulated media list their files");
            if there.contains(&rotten.file)
                && media.content(&rotten.file).get(rotten.offset as usize) == Some(&rotten.byte)
            {
                media.flip(&rotten.file, rotten.offset, rotten.bit);
            }
        }
    }
}
