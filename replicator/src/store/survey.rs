//! Surveys and lists: which blocks an entry has, for a backfill; which versions, to compare members.

use super::Store;
use super::index::{Entry, blocks_of, chunks_of};
use super::media::Media;
use super::replica::{Proof, Replica};
use crate::message::{Asker, ListedBlock, MAX_LISTED, MAX_SURVEYED, Refusal, Reply};
use crate::plant::{Plant, planted};
use crate::words::{Block, Blocks, Epoch, Extents, Version};
use std::ops::ControlFlow;

/// Chunks of the index that one look goes through: bounds how long it holds the store.
const MOST_CHUNKS: usize = 64;

/// What to look through: blocks from `start` on of extents that hold a version above `above`.
#[derive(Clone, Copy)]
struct Look {
    asker: Asker,
    extents: Extents,
    start: Block,
    above: Version,
}

type Find<'a> = &'a dyn Fn(&dyn Fn(&Entry) -> bool) -> Option<Entry>;

impl<M: Media> Store<M> {
    /// What the entry that began at `from` has of `extents` below epoch `below`, in runs.
    pub(super) fn survey(
        &mut self,
        asker: Asker,
        (from, below): (Epoch, Epoch),
        extents: Extents,
        start: Block,
    ) -> Result<Reply, Refusal> {
        let look = Look {
            asker,
            extents,
            start,
            above: Version::ZERO,
        };
        let mut runs: Vec<Blocks> = Vec::new();
        let proof = |replica: &Replica| replica.proof(from);
        let next = self.look_through(look, proof, |block, find| {
            if find(&|entry| entry.version.epoch < below).is_some() {
                let full = runs.len() == MAX_SURVEYED;
                match runs.last_mut() {
                    Some(last) if last.end() == block => last.count += 1,
                    _ if full => return ControlFlow::Break(()),
                    _ => runs.push(Blocks::new(block, 1)),
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(Reply::Surveyed { runs, next })
    }

    /// Which versions above `above` the newest membership has of `extents`.
    pub(super) fn list(
        &mut self,
        asker: Asker,
        extents: Extents,
        above: Version,
        start: Block,
    ) -> Result<Reply, Refusal> {
        let mut look = Look {
            asker,
            extents,
            start,
            above,
        };
        let mut blocks: Vec<ListedBlock> = Vec::new();
        let proof = |replica: &Replica| replica.proof(replica.from);
        loop {
            let next = self.look_through(look, proof, |block, find| {
                let listed = find(&|_| true).filter(|entry| {
                    let deleted = entry.zeroes && planted(Plant::DiscardDeletes);
                    entry.version > above && !deleted
                });
                if let Some(entry) = listed {
                    if blocks.len() == MAX_LISTED {
                        return ControlFlow::Break(());
                    }
                    blocks.push(ListedBlock {
                        block,
                        version: entry.version,
                        zeroes: entry.zeroes,
                    });
                }
                ControlFlow::Continue(())
            })?;
            match next {
                // Whoever asks goes on behind the last block that is named: there must be one.
                Some(next) if blocks.is_empty() => look.start = next,
                next => {
                    let more = next.is_some();
                    return Ok(Reply::Listed { blocks, more });
                }
            }
        }
    }

    /// Shows `each` the blocks that have any version, in order, with the way to find its newest proven version
    /// that is such a one. Returns where to go on, where it was told to stop, or had looked at enough.
    fn look_through(
        &mut self,
        look: Look,
        proof: impl Fn(&Replica) -> Proof,
        mut each: impl FnMut(Block, Find<'_>) -> ControlFlow<()>,
    ) -> Result<Option<Block>, Refusal> {
        self.check(&look.asker)?;
        let disk = &self.holdings.disks[&look.asker.disk];
        let size = disk.extent_size.ok_or(Refusal::NoReplica)?;
        if look.extents.count() == 0 || !disk.replicas.cover(look.extents) {
            return Err(Refusal::NoReplica);
        }
        let candidates: Vec<Blocks> = disk
            .extents
            .range(look.extents.first..look.extents.end)
            .filter(|(_, state)| state.highest > look.above)
            .map(|(extent, _)| size.blocks_of(*extent))
            .filter(|blocks| blocks.end() > look.start)
            .collect();
        let mut looked_at = 0;
        let mut last = None;
        for (number, part) in candidates.into_iter().flat_map(chunks_of) {
            if part.end() <= look.start {
                continue;
            }
            if last.replace(number) != Some(number) {
                looked_at += 1;
                if looked_at > MOST_CHUNKS {
                    return Ok(Some(part.first.max(look.start)));
                }
            }
            self.load(look.asker.disk, part)?;
            let disk = &self.holdings.disks[&look.asker.disk];
            let slot = disk.chunks.get(&number);
            let Some(chunk) = slot.and_then(|slot| slot.chunk.as_ref()) else {
                continue;
            };
            let replica = disk.extent_of(part.first).and_then(|e| disk.replicas.of(e));
            let proof = proof(replica.expect("the replicas cover the extents"));
            let base = blocks_of(number).first.0;
            for (within, _) in chunk.entries((part.first.0 - base) as u16, part.count) {
                let block = Block(base + u64::from(within));
                let find = |such: &dyn Fn(&Entry) -> bool| {
                    let mut versions = chunk.versions(within);
                    versions.find(|entry| proof.covers(entry) && such(entry))
                };
                if block >= look.start && each(block, &find).is_break() {
                    return Ok(Some(block));
                }
            }
        }
        Ok(None)
    }
}
