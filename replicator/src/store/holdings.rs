//! What the frames of the log amount to: disks, their index, and how much of each segment is live.
//! Appending changes it frame by frame, and so does recovery: by the same functions.

use super::disk::{Disk, Slot};
use super::frame::{
    AdoptedRun, FLAG_FILLED, FLAG_MOVED, HEADER_BYTES, Header, Kind, LogPoint, MAX_PAYLOAD,
    RawHeader, ReplicaChange, frame_bytes,
};
use super::gone::Gone;
use super::index::{Chunk, Entry, TooManyEras, blocks_of, chunk_of, chunks_of};
use super::live::Live;
use super::media::{Media, MediaFile};
use super::place::Place;
use super::segment::Files;
use crate::message::checksum;
use crate::plant::{Plant, planted};
use crate::words::{Block, Blocks, DiskId, Epoch, Extent, ExtentSize, Extents, StoreId, Version};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::io;

#[derive(Default)]
pub struct Holdings {
    pub disks: BTreeMap<DiskId, Disk>,
    pub live: Live,
    /// Blocks that got a new version, in the order of the log: their predecessors may go once that
    /// is synced and acknowledged.
    pub superseded: VecDeque<Superseded>,
    /// What was let go of and still counts in `live`.
    pub gone: VecDeque<Gone>,
    /// How many control frames there were (epochs, joins, settlings, drops): what a checkpoint has
    /// seen is not done again.
    pub controls: u64,
    /// How much log writing all changed chunks of the index takes, padding included.
    pub dirty_bytes: u64,
    /// Off while a recovery goes over what the checkpoint has counted already.
    pub counting: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Superseded {
    pub disk: DiskId,
    pub block: Block,
    pub at: LogPoint,
}

/// How many of them are looked through at once where nobody is in a hurry.
pub const PRUNED_AT_ONCE: usize = 256;

/// Why a part of the index could not be loaded.
#[derive(Debug)]
pub enum LoadFault {
    Damaged { place: Place, blocks: Blocks },
    Io(io::Error),
}

impl Holdings {
    pub fn disk(&mut self, disk: DiskId) -> &mut Disk {
        self.disks.entry(disk).or_default()
    }

    /// Makes sure that the index of `blocks` is in memory.
    pub fn load<M: Media>(
        &mut self,
        files: &mut Files<M>,
        store: StoreId,
        disk: DiskId,
        blocks: Blocks,
    ) -> Result<(), LoadFault> {
        let Some(state) = self.disks.get_mut(&disk) else {
            return Ok(());
        };
        let Holdings { superseded, .. } = self;
        for (number, _) in chunks_of(blocks) {
            let Some(slot) = state.chunks.get_mut(&number) else {
                continue;
            };
            if slot.chunk.is_some() {
                continue;
            }
            let (chunk, bytes) = read_blob(files, store, disk, number, &slot.blob)?;
            slot.blob_weight = blob_weight(bytes, slot.blob.len());
            // Some may not be needed any more; the next sync looks.
            superseded.extend(chunk.with_older().into_iter().map(|block| Superseded {
                disk,
                block: Block(blocks_of(number).first.0 + u64::from(block)),
                at: LogPoint::default(),
            }));
            slot.chunk = Some(Box::new(chunk));
        }
        Ok(())
    }

    /// Data or zeroes at `place` are the content of `blocks` under a version. The index of these
    /// blocks is loaded.
    pub fn put(&mut self, disk: DiskId, blocks: Blocks, entry: Entry) -> Result<(), TooManyEras> {
        if let Some(mut recount) = self.disk(disk).digest_of_older(blocks, &entry) {
            let put = self.put_entry(disk, blocks, entry, |block, before| {
                recount.replaces(block, before);
            });
            self.disk(disk).finish_recount(recount, blocks, entry);
            return put;
        }
        let before = self.disk(disk).counted_in_digest(blocks);
        let put = self.put_entry(disk, blocks, entry, |_, _| ());
        self.disk(disk).recount_digest(blocks, before);
        put
    }

    fn put_entry(
        &mut self,
        disk: DiskId,
        blocks: Blocks,
        entry: Entry,
        mut displaced: impl FnMut(Block, Entry),
    ) -> Result<(), TooManyEras> {
        let counting = self.counting;
        let state = self.disks.entry(disk).or_default();
        let live = &mut self.live;
        let extent = state.extent_of(blocks.first);
        for (number, part) in chunks_of(blocks) {
            let slot = state.chunks.entry(number).or_default();
            let base = blocks_of(number).first.0;
            let entry = entry.nth((part.first.0 - blocks.first.0) as u32);
            let chunk = slot.chunk.get_or_insert_with(|| {
                assert!(slot.blob.is_empty(), "the chunk was loaded before");
                Box::new(Chunk::new())
            });
            slot.dirty = true;
            if counting {
                live.add(entry.place.segment, entry.weight() * u64::from(part.count));
            }
            let put = chunk.put(
                (part.first.0 - base) as u16,
                part.count,
                entry,
                |block, before| {
                    let block = Block(base + u64::from(block));
                    displaced(block, before);
                    if !entry.hides(&before) {
                        self.superseded.push_back(Superseded {
                            disk,
                            block,
                            at: entry.place.point(),
                        });
                    }
                },
                |freed| {
                    if counting {
                        live.sub(freed.place.segment, freed.weight());
                    }
                },
            )?;
            count_dirty(&mut self.dirty_bytes, slot);
            if let Some(extent) = extent {
                let extent = state.extents.entry(extent).or_default();
                extent.highest = extent.highest.max(entry.version);
                if counting {
                    let now = if entry.zeroes { 0 } else { put.newest };
                    extent.allocated = (extent.allocated + now).saturating_sub(put.was_data);
                }
            }
        }
        Ok(())
    }

    /// A block that was filled in for the membership that began at `from`, or was found to be what it is to
    /// have: like [`Holdings::put`], but versions above it that stood here before are dead (rule F1).
    pub fn fill(
        &mut self,
        disk: DiskId,
        blocks: Blocks,
        entry: Entry,
        from: Epoch,
    ) -> Result<(), TooManyEras> {
        let before = self.disk(disk).counted_in_digest(blocks);
        for block in blocks.iter() {
            self.supersede(disk, block, &entry, from);
        }
        self.disk(disk).recount_digest(blocks, before);
        self.put(disk, blocks, entry)
    }

    fn supersede(&mut self, disk: DiskId, block: Block, entry: &Entry, from: Epoch) {
        let counting = self.counting;
        let state = self.disks.entry(disk).or_default();
        let number = chunk_of(block);
        let Some(slot) = state.chunks.get_mut(&number) else {
            return;
        };
        let chunk = slot.chunk.as_mut().expect("the chunk was loaded before");
        let within = (block.0 - blocks_of(number).first.0) as u16;
        let before = chunk.newest(within);
        let stands = planted(Plant::DeadTailStands);
        if stands || before.is_none_or(|before| before.version <= entry.version) {
            return;
        }
        let live = &mut self.live;
        chunk.supersede(
            within,
            entry.version,
            |newer| newer.version.epoch < from && newer.filled != entry.filled,
            |freed| {
                if counting {
                    live.sub(freed.place.segment, freed.weight());
                }
            },
        );
        let is_data = |entry: Option<Entry>| u32::from(entry.is_some_and(|entry| !entry.zeroes));
        let (was, is) = (is_data(before), is_data(chunk.newest(within)));
        slot.dirty = true;
        count_dirty(&mut self.dirty_bytes, slot);
        if counting && let Some(extent) = state.extent_of(block) {
            let extent = state.extents.entry(extent).or_default();
            extent.allocated = (extent.allocated + is).saturating_sub(was);
        }
    }

    /// The version of `block` that stands here is what the membership that began at `from` is to have.
    /// Nothing happens where it does not stand here (any more).
    pub fn adopt(
        &mut self,
        disk: DiskId,
        block: Block,
        version: Version,
        (from, join): (Epoch, u16),
    ) -> Result<(), TooManyEras> {
        let Some(entry) = self.entry(disk, block, |entry| entry.version == version) else {
            return Ok(());
        };
        let filled = Some(join);
        self.fill(disk, Blocks::new(block, 1), Entry { filled, ..entry }, from)
    }

    /// The newest entry of a block that is such a one. Its index is loaded.
    pub fn entry(
        &self,
        disk: DiskId,
        block: Block,
        mut such: impl FnMut(&Entry) -> bool,
    ) -> Option<Entry> {
        let number = chunk_of(block);
        let slot = self.disks.get(&disk)?.chunks.get(&number)?;
        let within = (block.0 - blocks_of(number).first.0) as u16;
        slot.chunk
            .as_ref()?
            .versions(within)
            .find(|entry| such(entry))
    }

    /// Everything of these extents is void. What of the index they share with others ([`edges`]) is loaded.
    pub fn forget(&mut self, disk: DiskId, extents: Extents) {
        let counting = self.counting;
        let Some(state) = self.disks.get_mut(&disk) else {
            return;
        };
        let Some(size) = state.extent_size else {
            return;
        };
        let (first, end) = block_range(extents, size);
        let touched = chunk_of(first)..=chunk_of(Block(end.0 - 1));
        let numbers: Vec<u64> = state
            .chunks
            .range(touched)
            .map(|(number, _)| *number)
            .collect();
        let mut whole_chunks = Vec::new();
        for number in numbers {
            let whole = blocks_of(number);
            let from = first.max(whole.first);
            let count = (end.min(whole.end()).0 - from.0) as u32;
            if count == whole.count {
                whole_chunks.extend(state.chunks.remove(&number).map(|slot| (number, slot)));
                continue;
            }
            let slot = state.chunks.get_mut(&number).expect("just seen");
            let chunk = slot.chunk.as_mut().expect("the chunk was loaded before");
            let live = &mut self.live;
            chunk.forget((from.0 - whole.first.0) as u16, count, |entry| {
                if counting {
                    live.sub(entry.place.segment, entry.weight());
                }
            });
            slot.dirty = true;
            count_dirty(&mut self.dirty_bytes, slot);
        }
        if counting {
            state.extents.retain(|extent, _| !extents.contains(*extent));
        }
        for (number, slot) in whole_chunks {
            self.let_go(disk, number, slot);
        }
    }

    /// Which chunks of the index a frame found by recovery needs in memory.
    pub fn needed_by(&self, header: &Header, payload: &[u8]) -> Vec<Blocks> {
        let in_one_extent = |blocks: Blocks| {
            self.disks.get(&header.disk).is_some_and(|disk| {
                let extent = disk.extent_of(blocks.first);
                extent.is_some() && extent == disk.extent_of(Block(blocks.end().0 - 1))
            })
        };
        // The rest of what they say is checked by the replay.
        match header.kind {
            Kind::Data | Kind::Zeroes if in_one_extent(header.blocks()) => vec![header.blocks()],
            Kind::Adopt => {
                let runs = AdoptedRun::decode(payload).unwrap_or_default();
                let blocks = runs.into_iter().map(|(blocks, _)| blocks);
                blocks.filter(|blocks| in_one_extent(*blocks)).collect()
            }
            Kind::Forget => {
                let Some(change) = ReplicaChange::decode(payload) else {
                    return Vec::new();
                };
                let (first, end) = block_range(change.extents, change.extent_size);
                edges(first, end).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether [`Holdings::prune`] has something to look through.
    pub fn prunable(&self, synced: LogPoint) -> bool {
        self.superseded.front().is_some_and(|next| next.at < synced)
    }

    /// Looks through some of the blocks whose successors are synced now, and drops the predecessors
    /// that nobody needs. Bounded, so that nobody waits for a million overwrites to be looked through.
    pub fn prune(&mut self, synced: LogPoint, most: usize) {
        for _ in 0..self.superseded.len().min(most) {
            let next = self.superseded.front().copied();
            let Some(next) = next.filter(|next| next.at < synced) else {
                break;
            };
            self.superseded.pop_front();
            if self.prune_block(next, synced) {
                // Waits for the writer's word that all members have it: look again at a later sync.
                self.superseded.push_back(Superseded { at: synced, ..next });
            }
        }
        // Once there were many.
        if self.superseded.len() < self.superseded.capacity() / 8 {
            self.superseded.shrink_to(PRUNED_AT_ONCE);
        }
    }

    /// True: something is kept only because it may be unacknowledged.
    fn prune_block(&mut self, next: Superseded, synced: LogPoint) -> bool {
        let Some(disk) = self.disks.get_mut(&next.disk) else {
            return false;
        };
        let number = chunk_of(next.block);
        let taken = disk
            .chunks
            .get_mut(&number)
            .and_then(|slot| slot.chunk.take());
        let Some(mut chunk) = taken else {
            return false;
        };
        let block = (next.block.0 - blocks_of(number).first.0) as u16;
        let live = &mut self.live;
        let mut changed = false;
        chunk.prune(
            block,
            |before, after| disk.needs(next.block, before, after, synced),
            |freed| {
                changed = true;
                live.sub(freed.place.segment, freed.weight());
            },
        );
        let waits = chunk
            .versions(block)
            .zip(chunk.versions(block).skip(1))
            .any(|(after, _)| after.version > disk.watermark);
        let slot = disk.chunks.get_mut(&number).expect("just seen");
        slot.dirty |= changed;
        slot.chunk = Some(chunk);
        count_dirty(&mut self.dirty_bytes, slot);
        waits
    }

    /// What a frame found by recovery says. The index of its blocks is loaded. False: it makes no sense.
    pub fn replay(&mut self, header: &Header, payload: &[u8], place: Place) -> bool {
        match header.kind {
            Kind::Data | Kind::Zeroes => self.replay_blocks(header, place),
            Kind::Adopt => self.replay_adopt(header, payload),
            Kind::Forget => {
                let Some(change) = ReplicaChange::decode(payload) else {
                    return false;
                };
                // Like the frames of data before and behind it this is done again, also where a
                // checkpoint has seen it: whatever still holds comes again behind it.
                let known = self
                    .disks
                    .get(&header.disk)
                    .and_then(|disk| disk.extent_size);
                if known != Some(change.extent_size) {
                    return header.seq <= self.controls;
                }
                self.forget(header.disk, change.extents);
                self.replay_numbered(header, payload, place)
            }
            // The same. Versions do not tell what came after it: a replica that joins again is filled with those that
            // it had.
            Kind::Drop => {
                self.forget_index(header.disk);
                self.replay_numbered(header, payload, place)
            }
            Kind::Epoch
            | Kind::Join
            | Kind::Settle
            | Kind::Collapse
            | Kind::Keep
            | Kind::Record => self.replay_numbered(header, payload, place),
            Kind::Begin | Kind::Opened | Kind::Mark | Kind::Index | Kind::Clean => true,
        }
    }

    fn replay_numbered(&mut self, header: &Header, payload: &[u8], place: Place) -> bool {
        // What the checkpoint saw happened before it, whatever the frame's place.
        if header.seq <= self.controls {
            return true;
        }
        let next = header.seq == self.controls + 1;
        self.controls = header.seq;
        next && self.replay_control(header, payload, place)
    }

    fn replay_adopt(&mut self, header: &Header, payload: &[u8]) -> bool {
        let Some(runs) = AdoptedRun::decode(payload) else {
            return false;
        };
        let membership = (Epoch::from_u64(header.epoch), header.join);
        runs.into_iter().all(|(blocks, version)| {
            let mut blocks = blocks.iter();
            blocks.all(|block| self.adopt(header.disk, block, version, membership).is_ok())
        })
    }

    fn replay_blocks(&mut self, header: &Header, place: Place) -> bool {
        let disk = self.disk(header.disk);
        let version = header.version();
        let blocks = header.blocks();
        let last = Block(blocks.end().0 - 1);
        let extent = disk.extent_of(blocks.first);
        if extent.is_none() || extent != disk.extent_of(last) || version.epoch > disk.shown {
            // Where a checkpoint has seen that the disk was deleted, this may come before that.
            return version.epoch <= disk.dropped;
        }
        let entry = entry_of(header, place);
        if let Some(from) = header.filled_for() {
            return self.fill(header.disk, blocks, entry, from).is_ok();
        }
        if header.watermark > 0 && !header.is_moved() {
            disk.note_watermark(version.epoch, header.watermark);
        }
        self.put(header.disk, blocks, entry).is_ok()
    }

    fn replay_control(&mut self, header: &Header, payload: &[u8], place: Place) -> bool {
        let disk = self.disk(header.disk);
        match header.kind {
            Kind::Epoch => {
                disk.show(Epoch::from_u64(header.epoch), place.point());
                disk.grant = Bytes::copy_from_slice(payload);
            }
            Kind::Join => match ReplicaChange::decode(payload) {
                Some(change) => disk.join(&change, header.join),
                None => return false,
            },
            Kind::Settle => match ReplicaChange::decode(payload) {
                Some(change) => disk.replicas.settle(change.extents, change.incarnation),
                None => return false,
            },
            Kind::Forget => match ReplicaChange::decode(payload) {
                Some(change) => disk.replicas.forget(change.extents),
                None => return false,
            },
            Kind::Collapse => match ReplicaChange::decode(payload) {
                Some(change) => disk.replicas.collapse(change.extents, change.from),
                None => return false,
            },
            Kind::Keep => match ReplicaChange::decode(payload) {
                Some(change) => disk.keep(change.extents, change.from),
                None => return false,
            },
            Kind::Record => disk.keep_record(Bytes::copy_from_slice(payload), place.point()),
            Kind::Drop => self.drop_disk(header.disk),
            _ => unreachable!("only control frames come here"),
        }
        true
    }

    /// Everything of a disk is void; the epoch that it was shown is not.
    pub fn drop_disk(&mut self, disk: DiskId) {
        self.forget_index(disk);
        if let Some(state) = self.disks.get_mut(&disk) {
            *state = Disk {
                shown: state.shown,
                shown_at: state.shown_at,
                dropped: state.shown,
                joins: state.joins,
                watermark: state.watermark,
                ..Disk::default()
            };
        }
    }

    fn forget_index(&mut self, disk: DiskId) {
        let state = self.disks.get_mut(&disk);
        let chunks = state.map(|state| std::mem::take(&mut state.chunks));
        for (number, slot) in chunks.unwrap_or_default() {
            self.let_go(disk, number, slot);
        }
    }
}

/// Brings the sum up to date after a change of `slot`. The frames of a chunk do not fill a segment to its
/// end, and a sync may come between any two of them: half as much again, and a little.
pub fn count_dirty(total: &mut u64, slot: &mut Slot) {
    let chunk = slot.chunk.as_ref().filter(|_| slot.dirty);
    let now = chunk.map_or(0, |chunk| chunk.encoded_bytes() as u64 * 3 / 2 + 512);
    *total = *total - slot.counted + now;
    slot.counted = now;
}

/// What each frame of a part of the index weighs in its segment: about what it takes.
pub fn blob_weight(bytes: usize, frames: usize) -> u64 {
    frame_bytes(bytes.div_ceil(frames) as u64)
}

impl Disk {
    pub fn show(&mut self, epoch: Epoch, at: LogPoint) {
        if epoch > self.shown {
            self.shown = epoch;
            self.shown_at = at;
        }
    }

    pub fn keep_record(&mut self, record: Bytes, at: LogPoint) {
        self.record = record;
        self.record_at = at;
    }

    pub fn join(&mut self, change: &ReplicaChange, join: u16) {
        self.extent_size = Some(change.extent_size);
        self.joins = join;
        self.replicas
            .join(change.extents, change.from, join, change.incarnation);
        self.forget_digests(change.extents);
    }

    pub fn note_watermark(&mut self, epoch: Epoch, seq: u64) {
        let said = Version::new(epoch, crate::words::Seq(seq));
        self.watermark = self.watermark.max(said);
    }
}

/// The index entry of the first block of a data or zero frame.
pub fn entry_of(header: &Header, place: Place) -> Entry {
    Entry {
        version: header.version(),
        place,
        zeroes: header.kind == Kind::Zeroes,
        filled: (header.flags & FLAG_FILLED != 0).then_some(header.join),
    }
}

/// The header of a frame that the cleaner writes again: what the index says of fills counts, since blocks
/// are adopted without touching their frames.
pub fn moved(header: &Header, blocks: Blocks, filled: Option<u16>) -> Header {
    let fill = if filled.is_some() { FLAG_FILLED } else { 0 };
    Header {
        flags: FLAG_MOVED | fill,
        join: filled.unwrap_or(0),
        block: blocks.first.0,
        count: blocks.count,
        ..*header
    }
}

/// What of the index the blocks from `first` on, below `end`, share with others.
pub fn edges(first: Block, end: Block) -> impl Iterator<Item = Blocks> {
    let edges = [first, Block(end.0 - 1)].map(|block| blocks_of(chunk_of(block)));
    let shared = move |chunk: &Blocks| chunk.first < first || end < chunk.end();
    edges.into_iter().filter(shared)
}

/// The blocks of some extents: the first, and the one behind the last.
pub fn block_range(extents: Extents, size: ExtentSize) -> (Block, Block) {
    let blocks = u64::from(size.blocks());
    let at = |extent: Extent| Block(u64::from(extent.0) * blocks);
    (at(extents.first), at(extents.end))
}

pub(super) fn read_blob<M: Media>(
    files: &mut Files<M>,
    store: StoreId,
    disk: DiskId,
    chunk: u64,
    parts: &[Place],
) -> Result<(Chunk, usize), LoadFault> {
    let blocks = blocks_of(chunk);
    let damaged = |place: &Place| LoadFault::Damaged {
        place: *place,
        blocks,
    };
    let mut bytes = Vec::new();
    for (i, place) in parts.iter().enumerate() {
        let part = read_part(files, store, *place).map_err(LoadFault::Io)?;
        match part {
            Some((header, payload))
                if header.kind == Kind::Index
                    && header.disk == disk
                    && header.block == blocks.first.0
                    && header.epoch == i as u64 =>
            {
                bytes.extend(payload);
            }
            _ => return Err(damaged(place)),
        }
    }
    let last = parts
        .last()
        .expect("a chunk that is not in memory is on media");
    let chunk = Chunk::decode(&bytes).ok_or_else(|| damaged(last))?;
    Ok((chunk, bytes.len()))
}

/// A control frame with its payload, if it is intact.
pub fn read_part<M: Media>(
    files: &mut Files<M>,
    store: StoreId,
    place: Place,
) -> io::Result<Option<(Header, Vec<u8>)>> {
    let file = match files.of(place.segment) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = [0; HEADER_BYTES as usize];
    file.read_at(place.offset(), &mut bytes)?;
    let Some(header) = RawHeader::decode(&bytes, store, place) else {
        return Ok(None);
    };
    if header.payload_bytes() > u64::from(MAX_PAYLOAD) {
        return Ok(None);
    }
    let mut payload = vec![0; header.payload_bytes() as usize];
    file.read_at(place.offset() + HEADER_BYTES, &mut payload)?;
    Ok((checksum(&payload) == header.data_sum).then_some((header, payload)))
}
