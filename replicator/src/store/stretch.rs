//! Frames, one after another, in bytes that were read of a segment.

use super::frame::{ALIGN, HEADER_BYTES, Header, Kind, LogPoint, RawHeader};
use super::place::{PAGE, Place, payload_of};
use crate::message::checksum;
use crate::words::{BLOCK_BYTES, StoreId};

/// So much of a segment, from [`Stretch::start_for`] on, surely holds the frame there, wherever its payload is: a page of headers,
/// the page before it, and the blocks behind.
pub const LEAST_BYTES: u64 = (2 + super::place::MAX_APART as u64) * PAGE;

/// A part of a segment.
#[derive(Clone, Copy)]
pub struct Stretch<'a> {
    pub store: StoreId,
    pub segment: u32,
    /// Where it begins.
    pub start: u64,
    pub bytes: &'a [u8],
    /// Where the segment's last frame ends, its block included.
    pub end: u64,
}

/// What stands at a point of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stands<'a> {
    Frame {
        header: Header,
        place: Place,
        payload: &'a [u8],
    },
    /// Blocks or padding: the next frame is there, a mark that says so.
    Gap { next: u64 },
    /// The segment's end: no frame stands here or behind it.
    End,
    /// The stretch ends before one could tell.
    Unknown,
    /// No frame, where one should be.
    Nothing,
}

impl<'a> Stretch<'a> {
    /// Where a stretch has to begin for the frame at `offset` to be found.
    pub fn start_for(offset: u64) -> u64 {
        offset.saturating_sub(1) / PAGE * PAGE
    }

    /// Where the stretch ends.
    pub fn stop(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub fn at(&self, offset: u64) -> Stands<'a> {
        if offset >= self.end {
            return Stands::End;
        }
        // What stands behind a page of headers are blocks, if it has any, whatever they look like.
        let among_blocks = offset.is_multiple_of(PAGE) && self.blocks_before(offset) > 0;
        if !among_blocks {
            let Some(raw) = self.get(offset, HEADER_BYTES) else {
                return Stands::Unknown;
            };
            let place = Place::new(self.segment, offset);
            if let Some(header) = RawHeader::decode(raw, self.store, place) {
                let place = header.place_at(place.point());
                return match self.get(place.payload(), header.payload_bytes()) {
                    Some(payload) => Stands::Frame {
                        header,
                        place,
                        payload,
                    },
                    None => Stands::Unknown,
                };
            }
        }
        let next = behind(offset, self.blocks_before(offset));
        if next >= self.end {
            return Stands::End;
        }
        let Some(raw) = self.get(next, HEADER_BYTES) else {
            return Stands::Unknown;
        };
        let ended = LogPoint {
            segment: self.segment,
            offset,
        };
        let mark = RawHeader::decode(raw, self.store, Place::new(self.segment, next));
        match mark.filter(|mark| is_mark_behind(mark, ended)) {
            Some(_) if next > offset => Stands::Gap { next },
            _ => Stands::Nothing,
        }
    }

    /// How many blocks stand behind the page of the frame that ends at `offset`.
    fn blocks_before(&self, offset: u64) -> u8 {
        let page = Self::start_for(offset).max(self.start);
        let headers = self.get(page, offset.saturating_sub(page));
        blocks_of(headers.unwrap_or_default(), self.store, self.segment, page)
    }

    fn get(&self, from: u64, count: u64) -> Option<&'a [u8]> {
        let from = from.checked_sub(self.start)? as usize;
        self.bytes.get(from..from.checked_add(count as usize)?)
    }
}

/// How many blocks stand behind a page that has these headers, from `page` on.
pub fn blocks_of(headers: &[u8], store: StoreId, segment: u32, page: u64) -> u8 {
    let units = headers.chunks_exact(ALIGN as usize).enumerate().rev();
    let mut apart = units.filter_map(|(i, raw)| {
        let place = Place::new(segment, page + i as u64 * ALIGN);
        RawHeader::decode(raw, store, place).map(|header| header.apart)
    });
    apart.find(|apart| *apart > 0).unwrap_or(0)
}

/// Where the log goes on if not at `ended`: behind so many blocks, or at the next page.
pub fn behind(ended: u64, blocks: u8) -> u64 {
    match blocks {
        0 => ended.next_multiple_of(PAGE),
        blocks => payload_of(ended - ALIGN, blocks) + BLOCK_BYTES,
    }
}

/// Whether a frame says that the log before it ended there.
pub fn is_mark_behind(mark: &Header, ended: LogPoint) -> bool {
    mark.kind == Kind::Mark && mark.link().is_some_and(|link| link.ended == ended)
}

/// Whether a frame's payload is what was written.
pub fn is_intact(header: &Header, payload: &[u8]) -> bool {
    header.kind == Kind::Zeroes || checksum(payload) == header.data_sum
}
