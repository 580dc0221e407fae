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
    /// The segment's file goes on behind it.
    pub more: bool,
    /// Where the segment's last frame ends. Its block stands behind that.
    pub end: u64,
}

/// Where a frame may stand.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Spot {
    /// Bytes from the segment's start.
    pub offset: u64,
    /// So many blocks stand behind the page of the frame that ends here.
    pub blocks: u8,
}

/// What stands at a point of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stands<'a> {
    Frame {
        header: Header,
        place: Place,
        payload: &'a [u8],
        next: Spot,
    },
    /// Blocks or padding, and behind it a mark that says so.
    Gap { mark: u64, next: Spot },
    /// The segment's end: no frame stands here or behind it.
    End,
    /// The stretch ends before one could tell.
    Unknown,
    /// No frame, where one should be.
    Nothing,
}

impl Spot {
    /// What stands behind a page of headers are blocks, if it has any, whatever they look like.
    pub fn is_among_blocks(self) -> bool {
        self.blocks > 0 && self.offset.is_multiple_of(PAGE)
    }

    /// Where the log goes on if not here: behind the blocks, or at the next page.
    pub fn behind(self) -> u64 {
        match self.blocks {
            0 => self.offset.next_multiple_of(PAGE),
            blocks => payload_of(self.offset - ALIGN, blocks) + BLOCK_BYTES,
        }
    }

    /// Behind this frame, which stands here.
    pub fn after(self, header: &Header) -> Spot {
        let offset = self.offset + header.frame_bytes();
        let same_page = (offset - 1) / PAGE == self.offset / PAGE;
        let blocks = match header.apart {
            0 if same_page => self.blocks,
            apart => apart,
        };
        Spot { offset, blocks }
    }

    /// The next one where a frame may stand, none being here.
    pub fn skip(self) -> Spot {
        let next = Spot {
            offset: self.offset + ALIGN,
            ..self
        };
        match (self.is_among_blocks(), next.is_among_blocks()) {
            (true, _) => Spot {
                offset: self.behind(),
                blocks: 0,
            },
            (false, true) => Spot {
                offset: next.behind(),
                blocks: 0,
            },
            (false, false) => next,
        }
    }
}

impl<'a> Stretch<'a> {
    /// Where a stretch has to begin for the frame at `offset` to be found.
    pub fn start_for(offset: u64) -> u64 {
        offset.saturating_sub(1) / PAGE * PAGE
    }

    pub fn at(&self, spot: Spot) -> Stands<'a> {
        if spot.offset >= self.end {
            return Stands::End;
        }
        if !spot.is_among_blocks() {
            let Some(raw) = self.get(spot.offset, HEADER_BYTES) else {
                return Stands::Unknown;
            };
            let place = Place::new(self.segment, spot.offset);
            if let Some(header) = RawHeader::decode(raw, self.store, place) {
                let place = header.place_at(place.point());
                return match self.get(place.payload(), header.payload_bytes()) {
                    Some(payload) => Stands::Frame {
                        header,
                        place,
                        payload,
                        next: spot.after(&header),
                    },
                    None => Stands::Unknown,
                };
            }
        }
        let mark = spot.behind();
        if mark >= self.end || mark == spot.offset {
            return Stands::Nothing;
        }
        let Some(raw) = self.get(mark, HEADER_BYTES) else {
            return Stands::Unknown;
        };
        let ended = LogPoint {
            segment: self.segment,
            offset: spot.offset,
        };
        let header = RawHeader::decode(raw, self.store, Place::new(self.segment, mark));
        match header.filter(|header| is_mark_behind(header, ended)) {
            Some(header) => {
                let offset = mark + header.frame_bytes();
                let next = Spot { offset, blocks: 0 };
                Stands::Gap { mark, next }
            }
            None => Stands::Nothing,
        }
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

/// Whether a frame says that the log before it ended there.
pub fn is_mark_behind(mark: &Header, ended: LogPoint) -> bool {
    mark.kind == Kind::Mark && mark.link().is_some_and(|link| link.ended == ended)
}

/// Whether a frame's payload is what was written.
pub fn is_intact(header: &Header, payload: &[u8]) -> bool {
    header.kind == Kind::Zeroes || checksum(payload) == header.data_sum
}
