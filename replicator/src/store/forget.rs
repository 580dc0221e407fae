//! Forgetting: deleted disks, replicas that are not needed any more, and what only older entries needed.

use super::frame::{Header, Kind, ReplicaChange};
use super::holdings::{Superseded, block_range, edges};
use super::index::{CHUNK_BLOCKS, blocks_of, chunk_of};
use super::media::Media;
use super::{Handled, Promise, Store};
use crate::message::{Asker, Refusal, Reply};
use crate::plant::{Plant, planted};
use crate::words::{Block, DiskId, Epoch, Extent, Extents};
use zerocopy::IntoBytes;

/// Chunks of the index that are let go of at once: bounds how long that holds the store.
const MOST_CHUNKS: u64 = 64;

impl<M: Media> Store<M> {
    /// The disk was deleted: all that it has here is void, and only its epoch is kept. The answer waits for a sync;
    /// the space comes free by and by (gone.rs).
    pub fn drop_disk(&mut self, disk: DiskId) -> Result<Promise, Refusal> {
        if self.has_failed() {
            return Err(Refusal::Failed);
        }
        let shown = self.shown(disk);
        if self.holdings.disks.contains_key(&disk) {
            let header = Header {
                disk,
                epoch: shown.as_u64(),
                ..Header::control(Kind::Drop)
            };
            self.append_control(header, &[])?;
            self.holdings.drop_disk(disk);
            self.cleaning.earn(u64::MAX);
        }
        Ok(Promise::new(self.log.end(), disk, shown, Reply::Synced))
    }

    /// The replica of `extents` is not needed any more, as far as it joined below an epoch: one that joined
    /// later is needed again. Frees some of it; the answer waits for a sync, and says nothing of what is left.
    /// None: nothing is left.
    pub fn drop_replica(
        &mut self,
        disk: DiskId,
        extents: Extents,
        joined_below: Epoch,
    ) -> Result<Option<Promise>, Refusal> {
        if self.has_failed() {
            return Err(Refusal::Failed);
        }
        let Some(state) = self.holdings.disks.get(&disk) else {
            return Ok(None);
        };
        let joined_below = match planted(Plant::DropIgnoresRejoin) {
            true => Epoch::MAX,
            false => joined_below,
        };
        let gone = state.replicas.joined_below(extents, joined_below);
        let (Some(gone), Some(extent_size)) = (gone.first(), state.extent_size) else {
            return Ok(None);
        };
        let shown = state.shown;
        let most = (MOST_CHUNKS * u64::from(CHUNK_BLOCKS) / u64::from(extent_size.blocks())).max(1);
        let end = (u64::from(gone.first.0) + most).min(u64::from(gone.end.0)) as u32;
        let gone = Extents::new(gone.first, Extent(end));
        let (first, end) = block_range(gone, extent_size);
        for shared in edges(first, end) {
            self.load(disk, shared)?;
        }
        let change = ReplicaChange {
            extents: gone,
            extent_size,
            from: joined_below,
            incarnation: self.incarnation,
        };
        let header = Header {
            disk,
            ..Header::control(Kind::Forget)
        };
        self.append_control(header, change.encode().as_bytes())?;
        self.holdings.forget(disk, gone);
        self.cleaning.earn(u64::MAX);
        self.holdings.disk(disk).replicas.forget(gone);
        Ok(Some(Promise::new(
            self.log.end(),
            disk,
            shown,
            Reply::Synced,
        )))
    }

    /// Somebody joins beside this member at epoch `below` (rule R2).
    pub(super) fn keep_below(
        &mut self,
        asker: Asker,
        extents: Extents,
        below: Epoch,
    ) -> Result<Handled<M>, Refusal> {
        self.check(&asker)?;
        let invalid = |why| Refusal::Invalid { why };
        let disk = &self.holdings.disks[&asker.disk];
        if extents.count() == 0 || !disk.replicas.cover(extents) {
            return Err(Refusal::NoReplica);
        }
        if below > asker.epoch {
            return Err(invalid("an epoch that is not the disk's"));
        }
        let is_bound = disk.is_bound(extents);
        let is_news = disk.replicas.may_keep(extents, below, &is_bound);
        if is_news.map_err(invalid)? {
            let change = ReplicaChange {
                extents,
                extent_size: disk.extent_size.expect("a replica has joined"),
                from: below,
                incarnation: self.incarnation,
            };
            let header = Header {
                disk: asker.disk,
                ..Header::control(Kind::Keep)
            };
            self.append_control(header, change.encode().as_bytes())?;
            let disk = self.holdings.disk(asker.disk);
            disk.replicas.keep(extents, below, is_bound);
            // Below other epochs nothing may be needed any more.
            let (first, end) = block_range(extents, change.extent_size);
            self.look_again(asker.disk, first, end);
        }
        Ok(self.promise(asker.disk, asker.epoch, Reply::Kept(self.reach())))
    }

    /// No entry of `extents` began before `oldest` any more. Not synced: where it is lost, more is kept than
    /// is needed.
    pub(super) fn collapse(
        &mut self,
        asker: Asker,
        extents: Extents,
        oldest: Epoch,
    ) -> Result<Reply, Refusal> {
        self.check(&asker)?;
        let disk = &self.holdings.disks[&asker.disk];
        if extents.count() == 0 || !disk.replicas.cover(extents) {
            return Err(Refusal::NoReplica);
        }
        if !disk.replicas.has_older_than(extents, oldest) {
            return Ok(Reply::Collapsed);
        }
        let change = ReplicaChange {
            extents,
            extent_size: disk.extent_size.expect("a replica has joined"),
            from: oldest,
            incarnation: self.incarnation,
        };
        let header = Header {
            disk: asker.disk,
            ..Header::control(Kind::Collapse)
        };
        self.append_control(header, change.encode().as_bytes())?;
        let disk = self.holdings.disk(asker.disk);
        disk.replicas.collapse(extents, oldest);
        let (first, end) = block_range(extents, change.extent_size);
        self.look_again(asker.disk, first, end);
        Ok(Reply::Collapsed)
    }

    /// The next sync sees which predecessors of these blocks are still needed. Those of chunks that are not
    /// in memory are looked at when they are loaded.
    fn look_again(&mut self, disk: DiskId, first: Block, end: Block) {
        let state = &self.holdings.disks[&disk];
        let touched = chunk_of(first)..=chunk_of(Block(end.0 - 1));
        for (number, slot) in state.chunks.range(touched) {
            let base = blocks_of(*number).first.0;
            let with_older = slot.chunk.iter().flat_map(|chunk| chunk.with_older());
            let blocks = with_older.map(|block| Block(base + u64::from(block)));
            let ours = blocks.filter(|block| first <= *block && *block < end);
            self.holdings
                .superseded
                .extend(ours.map(|block| Superseded {
                    disk,
                    block,
                    at: Default::default(),
                }));
        }
    }
}
