//! Writes: data and zeroes, each block under its version.

use super::Store;
use super::append::{NoRoom, Places, Purpose, Room};
use super::frame::{Header, Kind};
use super::holdings::entry_of;
use super::index::{blocks_of, chunks_of};
use super::media::Media;
use super::place::Place;
use crate::message::{Asker, Content, MAX_DATA_BLOCKS, Payload, Refusal, Reply};
use crate::words::{BLOCK_BYTES, Blocks, Seq, Version};
use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Zero frames in one append: bounds what a write over many newer blocks appends at once.
const ZERO_FRAMES: usize = 256;

impl<M: Media> Store<M> {
    pub(super) fn write(
        &mut self,
        asker: Asker,
        seq: Seq,
        watermark: Seq,
        blocks: Blocks,
        content: Content,
    ) -> Result<Reply, Refusal> {
        self.check(&asker)?;
        if seq == Seq::ZERO || seq > Seq::MAX || watermark > Seq::MAX {
            return Err(Refusal::Invalid {
                why: "a sequence number that no write has",
            });
        }
        let most = match &content {
            Content::Data(payload) => {
                let whole = payload.data.len() == payload.sums.len() * BLOCK;
                if payload.blocks() != blocks.count || !whole {
                    return Err(Refusal::Invalid {
                        why: "data of another length than its blocks",
                    });
                }
                if !self.log.fits_into_segment(Room::Blocks(blocks.count)) {
                    return Err(Refusal::Invalid {
                        why: "a write larger than a segment of this store",
                    });
                }
                MAX_DATA_BLOCKS
            }
            Content::Zeroes => u32::MAX,
        };
        self.check_blocks(asker.disk, blocks, most)?;
        self.load(asker.disk, blocks)?;

        let header = Header {
            disk: asker.disk,
            epoch: asker.epoch.as_u64(),
            seq: seq.0,
            watermark: watermark.0,
            ..Header::control(Kind::Data)
        };
        let wanted = self.older_than(blocks, &header);
        match content {
            Content::Data(payload) => self.write_data(header, blocks, &wanted, &payload)?,
            Content::Zeroes => self.write_zeroes(header, &wanted)?,
        }
        if watermark > Seq::ZERO {
            let disk = self.holdings.disk(asker.disk);
            disk.note_watermark(asker.epoch, watermark.0);
        }
        Ok(Reply::Written(self.reach()))
    }

    /// The parts of `blocks` that hold nothing as new as this: a newer version is never overwritten
    /// by an older one, and the same again is here already.
    fn older_than(&self, blocks: Blocks, header: &Header) -> SmallVec<[Blocks; 1]> {
        let disk = &self.holdings.disks[&header.disk];
        let version: Version = header.version();
        let highest = disk
            .extent_of(blocks.first)
            .and_then(|extent| disk.extents.get(&extent))
            .map_or(Version::ZERO, |state| state.highest);
        if highest < version {
            return smallvec![blocks];
        }
        let mut wanted: SmallVec<[Blocks; 1]> = SmallVec::new();
        for (number, part) in chunks_of(blocks) {
            let base = blocks_of(number).first.0;
            let first = (part.first.0 - base) as u16;
            let chunk = disk
                .chunks
                .get(&number)
                .and_then(|slot| slot.chunk.as_ref());
            match chunk {
                Some(chunk) if !chunk.all_below(first, part.count, version) => {
                    for block in part.iter() {
                        let newest = chunk.newest((block.0 - base) as u16);
                        if newest.is_none_or(|newest| newest.version < version) {
                            add(&mut wanted, Blocks::new(block, 1));
                        }
                    }
                }
                _ => add(&mut wanted, part),
            }
        }
        wanted
    }

    fn write_data(
        &mut self,
        header: Header,
        blocks: Blocks,
        wanted: &[Blocks],
        payload: &Payload,
    ) -> Result<(), Refusal> {
        let count: u32 = wanted.iter().map(|part| part.count).sum();
        if count == 0 {
            return Ok(());
        }
        self.make_room(Room::Blocks(count), Purpose::Data)?;
        let frames = wanted.iter().flat_map(|part| part.iter()).map(|block| {
            let i = (block.0 - blocks.first.0) as usize;
            let header = Header {
                block: block.0,
                count: 1,
                data_sum: payload.sums[i],
                ..header
            };
            (header, payload.data.slice(i * BLOCK..(i + 1) * BLOCK))
        });
        let places = self.hold(frames)?;
        let mut first = 0;
        for part in wanted {
            self.note(&header, *part, places[first])?;
            first += part.count as usize;
        }
        Ok(())
    }

    fn write_zeroes(&mut self, header: Header, wanted: &[Blocks]) -> Result<(), Refusal> {
        let blocks = wanted.iter().map(|part| u64::from(part.count));
        self.cleaning.earn(blocks.sum::<u64>() * BLOCK_BYTES);
        for some in wanted.chunks(ZERO_FRAMES) {
            let frames = some.iter().map(|part| {
                let header = Header {
                    kind: Kind::Zeroes,
                    block: part.first.0,
                    count: part.count,
                    ..header
                };
                (header, Bytes::new())
            });
            let room = Room::Mixed {
                empty: some.len() as u32,
                blocks: 0,
            };
            self.make_room(room, Purpose::Control)?;
            let places = self.hold(frames.clone())?;
            for ((header, _), place) in frames.zip(places) {
                self.note(&header, header.blocks(), place)?;
            }
        }
        Ok(())
    }

    /// Notes in the index what was appended.
    pub(super) fn note(
        &mut self,
        header: &Header,
        blocks: Blocks,
        place: Place,
    ) -> Result<(), Refusal> {
        let put = self
            .holdings
            .put(header.disk, blocks, entry_of(header, place));
        put.map_err(|_| Refusal::Invalid {
            why: "too many epochs in one chunk of the index",
        })
    }

    pub(super) fn make_room(&mut self, room: Room, purpose: Purpose) -> Result<(), Refusal> {
        let bytes = room.most();
        if purpose == Purpose::Data && !self.keeps_room_for_index(bytes) {
            self.log.look_at_space();
        }
        if purpose == Purpose::Data && !self.keeps_room_for_index(bytes) {
            let NoRoom { free, needed } = self.log.no_room();
            let needed = needed + self.holdings.dirty_bytes;
            return Err(Refusal::Full { free, needed });
        }
        let made = self.log.make_room(room, purpose);
        made.map_err(|NoRoom { free, needed }| Refusal::Full { free, needed })
    }

    /// Gives frames that room was made for their places; [`Store::write_out`] writes them.
    pub(super) fn hold(
        &mut self,
        frames: impl Iterator<Item = (Header, Bytes)>,
    ) -> Result<Places, Refusal> {
        match self.has_failed() {
            true => Err(Refusal::Failed),
            false => Ok(self.log.hold(frames)),
        }
    }

    /// Writes the frames of the writes that were taken. An error stops the store: the log's end may be torn.
    pub(super) fn write_out(&mut self) {
        if let Err(error) = self.log.write_out() {
            tracing::error!(store = %self.id, %error, "a write to the log failed: the store stops");
            self.note_failed_sync();
        }
    }

    /// Appends frames that room was made for. An error stops the store: the log's end may be torn.
    pub(super) fn append<'a>(
        &mut self,
        frames: impl Iterator<Item = (Header, &'a [u8])>,
    ) -> Result<Places, Refusal> {
        if self.has_failed() {
            return Err(Refusal::Failed);
        }
        self.log.append(frames).map_err(|error| {
            tracing::error!(store = %self.id, %error, "a write to the log failed: the store stops");
            self.note_failed_sync();
            Refusal::Failed
        })
    }
}

/// Adds `part`, which lies behind all of `parts`, to them.
fn add(parts: &mut SmallVec<[Blocks; 1]>, part: Blocks) {
    match parts.last_mut() {
        Some(last) if last.end() == part.first => last.count += part.count,
        _ => parts.push(part),
    }
}
