//! Digests: what a membership has of an extent, summed up, so that two stores can tell that they agree
//! without moving data.
//!
//! A digest is worked out from the index when it is first asked for, and from then on kept up to date by
//! whatever changes the index ([`Holdings::put`] and those beside it): the touched blocks are summed up
//! before and after; where a write finds nothing but older versions, on its way, without looking for them. It is not written to media: after a recovery it is worked out anew, so that it always
//! says what the index says.

use super::Store;
use super::disk::Disk;
use super::holdings::block_range;
use super::index::{Entry, blocks_of, chunks_of};
use super::media::Media;
use super::replica::Proof;
use crate::message::{Asker, Digest, Digested, MAX_DIGESTS, Refusal, Reply};
use crate::words::{Block, Blocks, Epoch, Extent, Extents};

/// Chunks of the index that are summed up for one answer: bounds how long it holds the store.
const MOST_CHUNKS: usize = 16;

impl<M: Media> Store<M> {
    pub(super) fn digest(
        &mut self,
        asker: Asker,
        from: Epoch,
        extents: Extents,
    ) -> Result<Reply, Refusal> {
        self.check(&asker)?;
        let disk = &self.holdings.disks[&asker.disk];
        let size = disk.extent_size.ok_or(Refusal::NoReplica)?;
        if extents.count() == 0 || !disk.replicas.cover(extents) {
            return Err(Refusal::NoReplica);
        }
        let mut digests = Vec::new();
        let mut chunks = 0;
        for extent in extents.iter().take(MAX_DIGESTS) {
            let disk = &self.holdings.disks[&asker.disk];
            let replica = disk.replicas.of(extent).expect("just checked");
            let (newest, proof) = (from == replica.from, replica.proof(from));
            let digest = match disk.extents.get(&extent) {
                None => Digest::default(),
                Some(state) if newest && state.digest.is_some() => {
                    state.digest.expect("just checked")
                }
                Some(_) => {
                    let blocks = size.blocks_of(extent);
                    chunks += chunks_of(blocks).count();
                    if chunks > MOST_CHUNKS && !digests.is_empty() {
                        break;
                    }
                    self.load(asker.disk, blocks)?;
                    let disk = self.holdings.disk(asker.disk);
                    let digest = disk.sum_up(blocks, proof);
                    if newest {
                        let state = disk.extents.get_mut(&extent).expect("just seen");
                        state.digest = Some(digest);
                    }
                    digest
                }
            };
            digests.push(digest);
        }
        let end = Extent(extents.first.0 + digests.len() as u32);
        let (first, end) = block_range(Extents::new(extents.first, end), size);
        let damaged = self.damaged_in(asker.disk, first, end);
        Ok(Reply::Digested(Digested { digests, damaged }))
    }
}

impl Disk {
    /// Sums up what is proven of `blocks`, as far as their index is in memory.
    pub fn sum_up(&self, blocks: Blocks, proof: Proof) -> Digest {
        let mut digest = Digest::default();
        for (number, part) in chunks_of(blocks) {
            let slot = self.chunks.get(&number);
            let Some(chunk) = slot.and_then(|slot| slot.chunk.as_ref()) else {
                continue;
            };
            let base = blocks_of(number).first.0;
            for (within, newest) in chunk.entries((part.first.0 - base) as u16, part.count) {
                let proven = match proof.covers(&newest) {
                    true => Some(newest),
                    false => chunk.versions(within).find(|entry| proof.covers(entry)),
                };
                if let Some(Entry {
                    version, zeroes, ..
                }) = proven
                {
                    digest.add(Block(base + u64::from(within)), version, zeroes);
                }
            }
        }
        digest
    }

    /// What the digest of an extent counts for `blocks` of it; `None` where nobody has asked for it.
    pub fn counted_in_digest(&self, blocks: Blocks) -> Option<(Extent, Digest)> {
        let extent = self.extent_of(blocks.first)?;
        self.extents.get(&extent)?.digest?;
        let replica = self.replicas.of(extent)?;
        let sum = self.sum_up(blocks, replica.proof(replica.from));
        Some((extent, sum))
    }

    /// The index of `blocks` has changed since [`Disk::counted_in_digest`] said `before`.
    pub fn recount_digest(&mut self, blocks: Blocks, before: Option<(Extent, Digest)>) {
        let Some((extent, before)) = before else {
            return;
        };
        let after = self.counted_in_digest(blocks);
        if let Some(state) = self.extents.get_mut(&extent) {
            let known = state.digest.zip(after);
            state.digest = known.map(|(digest, (_, after))| digest.replaced(before, after));
        }
    }

    /// If the digest of an extent counts `blocks` and nothing of it is as new as `entry`: what to do to it while that
    /// is put in.
    pub fn digest_of_older(&self, blocks: Blocks, entry: &Entry) -> Option<Recount> {
        let extent = self.extent_of(blocks.first)?;
        let state = self.extents.get(&extent)?;
        let digest = state.digest?;
        let replica = self.replicas.of(extent)?;
        let proof = replica.proof(replica.from);
        let all_older = state.highest < entry.version && proof.covers(entry);
        all_older.then(|| Recount {
            extent,
            digest,
            proof,
            before: Digest::default(),
            known: true,
        })
    }

    /// `entry` is the newest of all `blocks` now.
    pub fn finish_recount(&mut self, recount: Recount, blocks: Blocks, entry: Entry) {
        let mut after = Digest::default();
        for block in blocks.iter() {
            after.add(block, entry.version, entry.zeroes);
        }
        let digest = recount.digest.replaced(recount.before, after);
        if let Some(state) = self.extents.get_mut(&recount.extent) {
            state.digest = recount.known.then_some(digest);
        }
    }

    /// Another membership proves other things.
    pub fn forget_digests(&mut self, extents: Extents) {
        for (_, state) in self.extents.range_mut(extents.first..extents.end) {
            state.digest = None;
        }
    }
}

/// A digest while blocks of its extent are overwritten.
pub(super) struct Recount {
    extent: Extent,
    digest: Digest,
    proof: Proof,
    before: Digest,
    /// What is replaced is what was counted.
    known: bool,
}

impl Recount {
    /// `before` was the newest entry of a block. If it did not count, an older one may have: then the digest is
    /// worked out anew when it is asked for.
    pub fn replaces(&mut self, block: Block, before: Entry) {
        match self.proof.covers(&before) {
            true => self.before.add(block, before.version, before.zeroes),
            false => self.known = false,
        }
    }
}
