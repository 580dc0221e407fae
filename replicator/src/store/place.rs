//! Where a frame stands.

use super::frame::{ALIGN, HEADER_BYTES, LogPoint};
use crate::words::BLOCK_BYTES;
use std::fmt;

/// A frame's place: a segment, how many 64-byte units into it the header stands, and where its block does.
///
/// ```text
///  unit:  31       26 25                        0
///        +-----------+---------------------------+
///        |   apart   |   units to the header     |
///        +-----------+---------------------------+
/// ```
///
/// `apart` says how many pages behind the header's own page the block of a data frame stands; 0: right behind the
/// header, as up to format 4 and as the payload of any other frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub segment: u32,
    pub unit: u32,
}

/// What blocks stand at multiples of.
pub const PAGE: u64 = BLOCK_BYTES;
/// No segment is larger than 4 GiB.
pub const MAX_UNITS: u64 = (4 << 30) / ALIGN;
/// So many blocks have their headers in one page: `apart` has no room for more, and behind blocks a page begins with
/// a mark.
pub const MAX_APART: u8 = 63;

const APART_SHIFT: u32 = MAX_UNITS.ilog2();
const UNITS_MASK: u32 = (1 << APART_SHIFT) - 1;
const UNITS_A_PAGE: u64 = PAGE / ALIGN;

impl Place {
    /// Of a frame that is in one piece.
    pub fn new(segment: u32, offset: u64) -> Place {
        Place::of(segment, offset, 0)
    }

    /// Of a frame whose block stands `apart` pages behind the page of its header.
    pub fn of(segment: u32, offset: u64, apart: u8) -> Place {
        assert!(
            offset.is_multiple_of(ALIGN) && offset / ALIGN < MAX_UNITS && apart <= MAX_APART,
            "frames stand at multiples of 64, in segments of 4 GiB at most"
        );
        let unit = (offset / ALIGN) as u32 | (u32::from(apart) << APART_SHIFT);
        Place { segment, unit }
    }

    /// Bytes from the segment's start to the header.
    pub fn offset(self) -> u64 {
        u64::from(self.unit & UNITS_MASK) * ALIGN
    }

    /// See [`Place`].
    pub fn apart(self) -> u8 {
        (self.unit >> APART_SHIFT) as u8
    }

    /// Bytes from the segment's start to the payload.
    pub fn payload(self) -> u64 {
        payload_of(self.offset(), self.apart())
    }

    /// How many more headers of blocks that stand apart have room in the page of this one.
    pub fn left_in_page(self) -> u32 {
        let slot = u64::from(self.unit & UNITS_MASK) % UNITS_A_PAGE;
        u32::from(MAX_APART) - (slot as u32).max(u32::from(self.apart()))
    }

    /// The place of the `i`th data frame of those that were appended together, this being the first.
    pub fn nth(self, i: u32) -> Place {
        let (units, apart) = self.units_of_nth(i);
        // What comes from media was seen to be within a segment.
        let units = u32::try_from(units).expect("within a segment") & UNITS_MASK;
        Place {
            segment: self.segment,
            unit: units | (u32::from(apart) << APART_SHIFT),
        }
    }

    /// Of its `i`th neighbour: units to the header, and its `apart`.
    fn units_of_nth(self, i: u32) -> (u64, u8) {
        let (units, apart) = (u64::from(self.unit & UNITS_MASK), self.apart());
        let i = u64::from(i);
        if apart == 0 {
            return (units + i * (HEADER_BYTES + BLOCK_BYTES) / ALIGN, 0);
        }
        let left = u64::from(self.left_in_page());
        if i <= left {
            return (units + i, apart + i as u8);
        }
        // Behind the last block of that page the next page of headers begins, with a mark; and so on.
        let full = u64::from(MAX_APART);
        let next_page = units / UNITS_A_PAGE + u64::from(apart) + left + 1;
        let (pages, behind) = ((i - left - 1) / full, (i - left - 1) % full);
        let page = next_page + pages * (full + 1);
        (page * UNITS_A_PAGE + 1 + behind, behind as u8 + 1)
    }

    /// Whether data frames of so many blocks, this being the first one's place, end within the largest segment. No blocks:
    /// whether it can be a frame of zeroes.
    pub fn has_room_for(self, blocks: u32) -> bool {
        let Some(last) = blocks.checked_sub(1) else {
            return self.apart() == 0;
        };
        let (units, apart) = self.units_of_nth(last);
        payload_of(units * ALIGN, apart) + BLOCK_BYTES <= MAX_UNITS * ALIGN
    }

    pub fn point(self) -> LogPoint {
        LogPoint {
            segment: self.segment,
            offset: self.offset(),
        }
    }
}

/// Where the payload of a frame begins whose header stands at `offset`.
pub fn payload_of(offset: u64, apart: u8) -> u64 {
    match apart {
        0 => offset + HEADER_BYTES,
        pages => offset / PAGE * PAGE + u64::from(pages) * PAGE,
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.point(), f)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.point(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_stand_one_behind_another_with_a_mark_before_each_page() {
        let first = Place::of(3, 64, 1);
        assert_eq!((first.offset(), first.payload()), (64, PAGE));
        let place = first.nth(62);
        assert_eq!((place.offset(), place.payload()), (63 * 64, 63 * PAGE));
        let place = first.nth(63);
        assert_eq!(
            (place.offset(), place.payload()),
            (64 * PAGE + 64, 65 * PAGE)
        );
        // One by one, or at once.
        for start in [Place::of(3, 64, 1), Place::of(3, 4096 + 640, 3)] {
            let mut one = start;
            for i in 0..400 {
                assert_eq!(start.nth(i), one, "{i}");
                let next = one.nth(1);
                let gap = next.payload() - one.payload();
                assert_eq!(gap, if one.left_in_page() == 0 { 2 } else { 1 } * PAGE);
                one = next;
            }
        }
        let old = Place::new(1, 128);
        assert_eq!((old.nth(2).offset(), old.payload()), (128 + 2 * 4160, 192));
    }

    #[test]
    fn a_page_takes_no_more_headers_than_can_say_where_their_blocks_are() {
        // Without a mark before it.
        let first = Place::of(1, 4096, 1);
        assert_eq!(first.nth(62).apart(), 63);
        assert_eq!(first.nth(62).left_in_page(), 0);
        assert_eq!(first.nth(63).payload(), 4096 + 65 * PAGE);
    }

    #[test]
    fn no_frame_ends_beyond_the_largest_segment() {
        let last_page = (MAX_UNITS * ALIGN) - 2 * PAGE;
        let last = Place::of(1, last_page, 1);
        assert!(last.has_room_for(1) && !last.has_room_for(2));
        assert!(!Place::of(1, last_page + PAGE, 1).has_room_for(1));
        assert!(!Place::of(1, last_page, 63).has_room_for(1));
    }
}
