//! Each member by itself, when nothing is in flight: what it proves, and whether that is right.

use super::oracle::Content;
use super::store_node::name;
use super::world::{Violation, World};
use bytes::Bytes;
use replicator::message::{Asker, Digest, Found, Refusal, Reply, Request};
use replicator::store::Handled;
use replicator::words::{
    BLOCK_BYTES, Block, Blocks, Epoch, Extents, SECTOR_BYTES, StoreId, Version,
};
use std::collections::{BTreeMap, BTreeSet};

/// What a member has, block by block; `None` for zeroes.
type Proven = BTreeMap<Block, (Version, Option<Bytes>)>;

const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES / SECTOR_BYTES;

impl World {
    /// I6: whole members have the same blocks in the same versions, and each of them alone has what
    /// a guest may read.
    pub(super) fn compare_members(&mut self, disk: usize) -> Result<(), Violation> {
        let record = self.disks[disk].placement.record.clone();
        for range in &record.map {
            let mut first: Option<(StoreId, Proven)> = None;
            for entry in range.history.live().filter(|entry| entry.whole) {
                for id in &entry.stores {
                    let (proven, spoilt) =
                        self.proven(disk, *id, record.epoch, entry.from, range.extents)?;
                    if !spoilt.is_empty() {
                        self.stats.count("members with rot that nobody has read");
                        continue;
                    }
                    self.ask_alone(disk, *id, range.extents, &proven)?;
                    self.sum_up(disk, *id, record.epoch, entry.from, range.extents, &proven)?;
                    match &first {
                        None => first = Some((*id, proven)),
                        Some((one, same)) => {
                            self.stats.count("members compared");
                            same_blocks(*one, same, *id, &proven)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What this member answers for all blocks that it says it has, and all that a guest ever touched.
    fn proven(
        &mut self,
        disk: usize,
        id: StoreId,
        epoch: Epoch,
        from: Epoch,
        extents: Extents,
    ) -> Result<(Proven, BTreeSet<Block>), Violation> {
        let per_extent = super::placement::EXTENT_BYTES / BLOCK_BYTES;
        let (first, end) = (u64::from(extents.first.0), u64::from(extents.end.0));
        let here = first * per_extent..end * per_extent;
        let known = self.disks[disk]
            .oracle
            .known_sectors()
            .map(|s| s / SECTORS_PER_BLOCK);
        let mut asked: BTreeSet<u64> = known.filter(|block| here.contains(block)).collect();
        let of = self.disks[disk].id;
        let rotten = self.rotten.iter();
        let rotten = rotten.filter(|r| r.disk == disk && r.store == id);
        let rotten: BTreeSet<u64> = rotten.map(|r| r.block).collect();
        let core = self.store(id).core.as_mut().expect("all stores are up");
        let asker = Asker {
            disk: of,
            epoch,
            incarnation: core.incarnation(),
        };
        let mut start = Some(Block(here.start));
        while let Some(at) = start {
            let request = Request::Survey {
                asker,
                from,
                below: Epoch::MAX,
                extents,
                start: at,
            };
            start = match core.handle(request) {
                Handled::Now(Reply::Surveyed { runs, next }) => {
                    asked.extend(runs.iter().flat_map(|run| run.iter()).map(|b| b.0));
                    next
                }
                Handled::Now(other) => {
                    return Err(Violation(format!("I6: {} surveys {other:?}", name(id))));
                }
                _ => return Err(Violation("a survey is answered at once".into())),
            };
        }
        let (mut proven, mut spoilt) = (Proven::new(), BTreeSet::new());
        for block in asked {
            let request = Request::Read {
                asker,
                from,
                below: Epoch::MAX,
                blocks: Blocks::new(Block(block), 1),
            };
            let Handled::Read(plan) = core.handle(request) else {
                return Err(Violation(format!("I6: {} refuses a read", name(id))));
            };
            let read = match plan.run() {
                Ok(read) => read,
                // Nobody has read it, so nobody has healed it.
                Err(Refusal::Damaged { block }) if rotten.contains(&block.0) => {
                    spoilt.insert(block);
                    continue;
                }
                Err(why) => return Err(Violation(format!("I6: {} reads {why}", name(id)))),
            };
            match read.found[0] {
                Found::Absent => {}
                Found::Zeroes(version) => drop(proven.insert(Block(block), (version, None))),
                Found::Data { version, .. } => {
                    proven.insert(Block(block), (version, Some(read.data)));
                }
            }
        }
        Ok((proven, spoilt))
    }

    /// What it says of itself in a few bytes is the sum of what it has.
    fn sum_up(
        &mut self,
        disk: usize,
        id: StoreId,
        epoch: Epoch,
        from: Epoch,
        extents: Extents,
        proven: &Proven,
    ) -> Result<(), Violation> {
        let of = self.disks[disk].id;
        let core = self.store(id).core.as_mut().expect("all stores are up");
        let asker = Asker {
            disk: of,
            epoch,
            incarnation: core.incarnation(),
        };
        let request = Request::Digest {
            asker,
            from,
            extents,
        };
        let Handled::Now(Reply::Digested(digested)) = core.handle(request) else {
            return Err(Violation(format!("I6: {} has no digest", name(id))));
        };
        let per_extent = super::placement::EXTENT_BYTES / BLOCK_BYTES;
        for (extent, told) in extents.iter().zip(&digested.digests) {
            let first = Block(u64::from(extent.0) * per_extent);
            let end = Block(first.0 + per_extent);
            let mut sum = Digest::default();
            for (block, (version, data)) in proven.range(first..end) {
                sum.add(*block, *version, data.is_none());
            }
            if sum != *told {
                return Err(Violation(format!(
                    "I6: {} has a digest of extent {} that is not the sum of its blocks",
                    name(id),
                    extent.0
                )));
            }
        }
        self.stats.count("digests compared");
        Ok(())
    }

    /// A guest that could reach no other member.
    fn ask_alone(
        &mut self,
        disk: usize,
        id: StoreId,
        extents: Extents,
        proven: &Proven,
    ) -> Result<(), Violation> {
        let per_extent = super::placement::EXTENT_BYTES / SECTOR_BYTES;
        let (first, end) = (u64::from(extents.first.0), u64::from(extents.end.0));
        let here = first * per_extent..end * per_extent;
        let sectors: Vec<u64> = self.disks[disk].oracle.known_sectors().collect();
        let sectors = sectors.into_iter().filter(|sector| here.contains(sector));
        let ticket = self.disks[disk].oracle.read(sectors);
        let content = |sector: u64| {
            let found = proven.get(&Block(sector / SECTORS_PER_BLOCK));
            let Some((_, Some(data))) = found else {
                return Content::Zeroes;
            };
            let at = (sector % SECTORS_PER_BLOCK * SECTOR_BYTES) as usize;
            Content::of(&data[at..at + SECTOR_BYTES as usize], sector)
        };
        self.stats.count("members asked alone");
        let read = self.disks[disk].oracle.read_done(ticket, true, content);
        read.map_err(|wrong| {
            Violation(format!(
                "I6: {} alone has {:?} in sector {} where one of {:?} must be",
                name(id),
                wrong.got,
                wrong.sector,
                wrong.may
            ))
        })
    }
}

fn same_blocks(one: StoreId, a: &Proven, other: StoreId, b: &Proven) -> Result<(), Violation> {
    let differs = |block: &&Block| a.get(*block) != b.get(*block);
    let Some(block) = a.keys().chain(b.keys()).find(differs) else {
        return Ok(());
    };
    let what = |proven: &Proven| match proven.get(block) {
        None => "nothing".to_owned(),
        Some((version, None)) => format!("zeroes of {version}"),
        Some((version, Some(_))) => format!("data of {version}"),
    };
    Err(Violation(format!(
        "I6: in block {} {} has {} and {} has {}",
        block.0,
        name(one),
        what(a),
        name(other),
        what(b)
    )))
}
