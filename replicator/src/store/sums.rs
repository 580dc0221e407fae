//! Checksums of blocks of one segment, as far as they were written or read since its file was opened: a block that is read
//! again needs no look at its header.
//!
//! A block that has the checksum with which it was appended is the one that stands there: nothing is written twice to
//! the same place, and numbers of segments are never used again.

use super::place::{PAGE, Place};
use std::sync::atomic::{AtomicU32, Ordering};

/// Four bytes for each page of the segment: a thousandth.
pub struct Sums {
    /// By the page that the block stands on; 0: not known. (A sum that is 0 is just never known.)
    pages: Box<[AtomicU32]>,
}

impl Sums {
    /// Of a segment of so many bytes. Knows none.
    pub fn new(bytes: u64) -> Sums {
        let pages = (0..bytes.div_ceil(PAGE)).map(|_| AtomicU32::new(0));
        Sums {
            pages: pages.collect(),
        }
    }

    /// The checksum of the block whose frame stands there, if it is known and stands on a page of its own.
    pub fn get(&self, place: Place) -> Option<u32> {
        let sum = self.of(place)?.load(Ordering::Relaxed);
        (sum != 0).then_some(sum)
    }

    pub fn note(&self, place: Place, sum: u32) {
        if let Some(known) = self.of(place) {
            known.store(sum, Ordering::Relaxed);
        }
    }

    fn of(&self, place: Place) -> Option<&AtomicU32> {
        let page = place.payload() / PAGE;
        self.pages.get(page as usize).filter(|_| place.apart() > 0)
    }
}
