//! Where a frame stands.

use super::frame::{ALIGN, LogPoint};
use std::fmt;

/// A frame's place: a segment, and how many 64-byte units into it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub segment: u32,
    pub unit: u32,
}

/// No segment is larger than 4 GiB.
pub const MAX_UNITS: u64 = (4 << 30) / ALIGN;

impl Place {
    pub fn new(segment: u32, offset: u64) -> Place {
        assert!(
            offset.is_multiple_of(ALIGN),
            "frames stand at multiples of 64"
        );
        let unit = u32::try_from(offset / ALIGN).expect("segments are far below 256 GiB");
        Place { segment, unit }
    }

    /// Bytes from the segment's start.
    pub fn offset(self) -> u64 {
        u64::from(self.unit) * ALIGN
    }

    pub fn point(self) -> LogPoint {
        LogPoint {
            segment: self.segment,
            offset: self.offset(),
        }
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
