//! Reading back: whether the media still have what was written, past the cache of the kernel.

use super::Store;
use super::damage::{Finds, Spoilt};
use super::frame::{HEADER_BYTES, Header, Kind, RawHeader};
use super::index::{blocks_of, chunks_of};
use super::media::{Media, MediaFile};
use super::place::Place;
use super::segment::{Window, file_name};
use super::stretch::is_intact;
use crate::message::{Asker, MAX_DAMAGED, MAX_DATA_BLOCKS, Refusal, Verified};
use crate::words::{BLOCK_BYTES, Block, Blocks, StoreId};
use std::io;
use std::sync::Arc;

/// Frames to be read from the media and checked, planned under the store's lock, carried out without it.
pub struct VerifyPlan<M: Media> {
    store: StoreId,
    media: M,
    /// In the order in which they stand in the log. The file is held so that it can be read also when the
    /// cleaner has moved what was in it.
    frames: Vec<(Place, Spoilt, Arc<M::File>)>,
    finds: Finds,
}

impl<M: Media> Store<M> {
    /// Everything that stands here of `blocks`, older versions included.
    pub(super) fn plan_verify(
        &mut self,
        asker: Asker,
        blocks: Blocks,
    ) -> Result<VerifyPlan<M>, Refusal> {
        self.check(&asker)?;
        self.check_blocks(asker.disk, blocks, MAX_DATA_BLOCKS)?;
        self.load(asker.disk, blocks)?;
        let disk = &self.holdings.disks[&asker.disk];
        let mut frames = Vec::new();
        for (number, part) in chunks_of(blocks) {
            let slot = disk.chunks.get(&number);
            let Some(chunk) = slot.and_then(|slot| slot.chunk.as_ref()) else {
                continue;
            };
            for block in part.iter() {
                let within = (block.0 - blocks_of(number).first.0) as u16;
                for (i, entry) in chunk.versions(within).enumerate() {
                    // A checkpoint of the directory alone lets go of segments though what refers to them is not written
                    // anew: after a restart predecessors may seem to stand there that were not needed any more.
                    let gone = i > 0 && !self.log.segments.contains_key(&entry.place.segment);
                    if entry.zeroes || gone {
                        continue;
                    }
                    let frame = Spoilt {
                        disk: asker.disk,
                        block,
                        version: entry.version,
                    };
                    let file = self.log.files.of(entry.place.segment).map_err(|error| {
                        tracing::error!(%error, place = %entry.place, "cannot open a segment");
                        Refusal::Damaged { block }
                    })?;
                    frames.push((entry.place, frame, file));
                }
            }
        }
        frames.sort_by_key(|(place, frame, _)| (place.point(), *frame));
        Ok(VerifyPlan {
            store: self.id,
            media: self.log.media.clone(),
            frames,
            finds: self.damages.finds.clone(),
        })
    }
}

impl<M: Media> VerifyPlan<M> {
    pub fn run(&self) -> Verified {
        let mut verified = Verified {
            blocks: self.frames.len() as u64,
            damaged: Vec::new(),
        };
        let mut window: Option<(u32, Window<M::File>)> = None;
        for (place, frame, file) in &self.frames {
            if window.as_ref().is_none_or(|(id, _)| *id != place.segment) {
                let opened = self.media.open_direct(&file_name(place.segment));
                window = opened
                    .and_then(Window::new)
                    .ok()
                    .map(|w| (place.segment, w));
            }
            let read = match &mut window {
                Some((_, window)) => self.read_through(window, *place, frame),
                // Its name is gone: it was cleaned meanwhile.
                None => self.read_held(*place, frame, file),
            };
            if let Err(error) = &read {
                tracing::error!(%error, %place, "the media failed to read");
                window = None;
            }
            if !read.unwrap_or(false) {
                self.finds.add(*frame, Some(*place));
                verified.damaged.push(frame.named());
            }
        }
        verified.damaged.sort_unstable();
        verified.damaged.dedup();
        verified.damaged.truncate(MAX_DAMAGED);
        verified
    }

    fn read_through(
        &self,
        window: &mut Window<M::File>,
        place: Place,
        frame: &Spoilt,
    ) -> io::Result<bool> {
        let header = window.get(place.offset(), HEADER_BYTES)?;
        let Some(header) = header.and_then(|raw| self.header(raw, place, frame)) else {
            return Ok(false);
        };
        let block = window.get_beside(place.offset(), place.payload(), BLOCK_BYTES)?;
        Ok(block.is_some_and(|block| is_intact(&header, block)))
    }

    fn read_held(&self, place: Place, frame: &Spoilt, file: &M::File) -> io::Result<bool> {
        let mut raw = [0; HEADER_BYTES as usize];
        file.read_at(place.offset(), &mut raw)?;
        let mut block = vec![0; BLOCK_BYTES as usize];
        file.read_at(place.payload(), &mut block)?;
        let header = self.header(&raw, place, frame);
        Ok(header.is_some_and(|header| is_intact(&header, &block)))
    }

    /// The header, if it is the one of that block and version as it was written there.
    fn header(&self, raw: &[u8], place: Place, of: &Spoilt) -> Option<Header> {
        let header = RawHeader::decode(raw, self.store, place)?;
        let matches = header.kind == Kind::Data
            && header.apart == place.apart()
            && header.disk == of.disk
            && Block(header.block) == of.block
            && header.version() == of.version;
        matches.then_some(header)
    }
}
