//! Rot: bits flip in what was synced long ago. Only in the quiet end, where another whole member has the block
//! intact and keeps it: what is rotten everywhere is lost, and no software helps.

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
        self.say(format_args!("a bit of block {block} flips at {}", name(id)));
        self.stats.count("bits that flipped");
        self.stores[store].rotted = true;
        self.rotten.push(Rotten {
            disk,
            block,
            store: id,
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
}
