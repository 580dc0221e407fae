//! Runs: neighbouring blocks of a page whose versions and places follow one another.
//!
//! ```text
//! 0       1      2      3      4     6          8         12       16     20
//! +-------+------+------+------+-----+----------+---------+--------+------+
//! | first | last | done | each | era | seq high | seq low | segment| unit |
//! +-------+------+------+------+-----+----------+---------+--------+------+
//! ```
//!
//! `each` says how many blocks share a sequence number before the next follows (writes of 16 KiB in
//! order: 4); 0 says that all do. `done` is how many of the first number's blocks lie before the
//! run. Data frames stand as they do that were appended together ([`Place::nth`]); blocks of zeroes share one frame.

use crate::store::place::Place;
use crate::words::Seq;
use std::ops::Range;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const RUN_BYTES: usize = 20;

#[derive(
    Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug,
)]
#[repr(C)]
pub struct Run {
    /// First block of the page.
    pub first: u8,
    /// Last block, included.
    pub last: u8,
    done: u8,
    each: u8,
    /// Which of the chunk's eras: epoch, kind and origin.
    pub era: U16,
    seq_high: U16,
    seq_low: U32,
    segment: U32,
    unit: U32,
}

impl Run {
    /// Blocks of one write, or of one zero frame.
    pub fn new(first: u8, last: u8, era: u16, seq: Seq, place: Place) -> Run {
        assert!(first <= last && seq <= Seq::MAX);
        Run {
            first,
            last,
            done: 0,
            each: 0,
            era: era.into(),
            seq_high: ((seq.0 >> 32) as u16).into(),
            seq_low: (seq.0 as u32).into(),
            segment: place.segment.into(),
            unit: place.unit.into(),
        }
    }

    pub fn len(&self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    fn seq(&self) -> Seq {
        Seq((u64::from(self.seq_high.get()) << 32) | u64::from(self.seq_low.get()))
    }

    /// How many sequence numbers behind the first one block `i` of the run is.
    fn seqs_behind(&self, i: u32) -> u32 {
        match self.each {
            0 => 0,
            each => (u32::from(self.done) + i) / u32::from(each),
        }
    }

    pub fn seq_of(&self, block: u8) -> Seq {
        Seq(self.seq().0 + u64::from(self.seqs_behind(u32::from(block - self.first))))
    }

    pub fn last_seq(&self) -> Seq {
        self.seq_of(self.last)
    }

    fn place(&self) -> Place {
        Place {
            segment: self.segment.get(),
            unit: self.unit.get(),
        }
    }

    pub fn place_of(&self, block: u8, zeroes: bool) -> Place {
        match zeroes {
            true => self.place(),
            false => self.place().nth(u32::from(block - self.first)),
        }
    }

    /// Whether it may have the header of a frame among these bytes of a segment.
    pub fn may_stand_in(&self, segment: u32, bytes: &Range<u64>, zeroes: bool) -> bool {
        let last = self.place_of(self.last, zeroes);
        self.segment.get() == segment
            && self.place().offset() < bytes.end
            && bytes.start <= last.offset()
    }

    /// The part from `first` to `last`.
    pub fn part(&self, first: u8, last: u8, zeroes: bool) -> Run {
        assert!(self.first <= first && first <= last && last <= self.last);
        let place = self.place_of(first, zeroes);
        let mut part = Run::new(first, last, self.era.get(), self.seq_of(first), place);
        if self.each > 0 {
            let skipped = u32::from(self.done) + u32::from(first - self.first);
            part.done = (skipped % u32::from(self.each)) as u8;
            part.each = self.each;
        }
        part
    }

    /// This run and `next` as one run, if `next` carries it on. `next` has one sequence number.
    pub fn joined(&self, next: &Run, zeroes: bool) -> Option<Run> {
        let adjacent = self.last.checked_add(1) == Some(next.first)
            && self.era == next.era
            && self.segment == next.segment;
        if !adjacent || next.each != 0 {
            return None;
        }
        let last = self.place_of(self.last, zeroes);
        let behind = if zeroes { last } else { last.nth(1) };
        if behind != next.place() {
            return None;
        }
        let mut joined = *self;
        joined.last = next.last;
        let (len, more) = (self.len(), next.len());
        match (self.each, next.seq().0.checked_sub(self.last_seq().0)?) {
            // One write, cut in two by somebody.
            (0, 0) => Some(joined),
            // The second write of what may become a sequence. Its first may have begun before the page.
            (0, 1) => {
                let each = len.max(more);
                joined.each = u8::try_from(each).ok()?;
                joined.done = (each - len) as u8;
                Some(joined)
            }
            // On with the sequence: the blocks must fit into the number's share.
            (each, step) if each > 0 => {
                let each = u32::from(each);
                let used = (u32::from(self.done) + len - 1) % each + 1;
                let fits = match step {
                    0 => used + more <= each,
                    1 => used == each && more <= each,
                    _ => false,
                };
                fits.then_some(joined)
            }
            _ => None,
        }
    }

    /// Whether bytes from media can be a run at all. `zeroes`: what its era says, if there is one.
    pub fn makes_sense(&self, zeroes: Option<bool>) -> bool {
        let Some(zeroes) = zeroes.filter(|_| self.first <= self.last) else {
            return false;
        };
        let blocks = if zeroes { 0 } else { self.len() };
        self.place().has_room_for(blocks)
            && ((self.each == 0 && self.done == 0) || self.done < self.each)
            && self.seq() > Seq::ZERO
            && self.last_seq() <= Seq::MAX
    }
}
