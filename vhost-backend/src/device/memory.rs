//! The guest's memory as the front-end told us of it: one immutable snapshot per memory table.
//!
//! A change of the table makes a new snapshot; requests in flight keep the one that they began with,
//! so that a region which vanishes stays mapped until the last of them has ended.

use super::{Refused, shared};
use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use std::fs::File;
use std::sync::Arc;
use vm_memory::{
    Bytes as _, GuestAddress, GuestMemory, GuestMemoryMmap, GuestRegionMmap, Permissions,
};

/// How many regions a table may have: what a front-end with all its slots for hot-plug uses.
pub const MAX_REGIONS: usize = 256;

/// A region of guest memory as a message describes it.
#[derive(Debug)]
pub struct NewRegion {
    pub guest_addr: u64,
    pub bytes: u64,
    /// Where the front-end has it mapped: ring addresses are given in these terms.
    pub user_addr: u64,
    pub file_offset: u64,
    pub file: File,
}

/// A stretch of guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    pub addr: u64,
    pub len: u32,
}

/// Where pieces are mapped: starts and lengths. A request has three or four, seldom more.
pub type HostParts = SmallVec<[(*mut u8, usize); 4]>;

#[derive(Clone, Copy, Debug)]
struct Place {
    guest_addr: u64,
    bytes: u64,
    user_addr: u64,
}

#[derive(Debug, Default)]
pub struct Memory {
    guest: GuestMemoryMmap,
    places: Vec<Place>,
}

impl Memory {
    pub fn new(regions: Vec<NewRegion>) -> Result<Memory, Refused> {
        regions
            .into_iter()
            .try_fold(Memory::default(), |memory, region| memory.with(region))
    }

    /// This memory and one region more.
    pub fn with(&self, region: NewRegion) -> Result<Memory, Refused> {
        let place = Place {
            guest_addr: region.guest_addr,
            bytes: region.bytes,
            user_addr: region.user_addr,
        };
        if self.places.len() >= MAX_REGIONS {
            return Err(Refused::new("too many memory regions"));
        }
        let ends = [place.guest_addr, place.user_addr, region.file_offset]
            .map(|start| start.checked_add(place.bytes));
        if place.bytes == 0 || ends.contains(&None) {
            return Err(Refused::new("a memory region of an absurd size"));
        }
        if self.places.iter().any(|other| other.overlaps(&place)) {
            return Err(Refused::new("memory regions overlap"));
        }
        let mapping = shared::map(
            "a memory region",
            region.file,
            region.file_offset,
            place.bytes,
        )?;
        let mapped = GuestRegionMmap::new(mapping, GuestAddress(place.guest_addr))
            .ok_or_else(|| Refused::new("a memory region of an absurd size"))?;
        let guest = self
            .guest
            .insert_region(Arc::new(mapped))
            .map_err(|error| Refused(format!("memory region: {error}")))?;
        let mut places = self.places.clone();
        places.push(place);
        Ok(Memory { guest, places })
    }

    /// This memory without one region, which must be there exactly so.
    pub fn without(&self, guest_addr: u64, bytes: u64, user_addr: u64) -> Result<Memory, Refused> {
        let mut places = self.places.clone();
        let index = places
            .iter()
            .position(|place| {
                (place.guest_addr, place.bytes, place.user_addr) == (guest_addr, bytes, user_addr)
            })
            .ok_or_else(|| Refused::new("no such memory region"))?;
        places.remove(index);
        let (guest, _) = self
            .guest
            .remove_region(GuestAddress(guest_addr), bytes)
            .map_err(|error| Refused(format!("memory region: {error}")))?;
        Ok(Memory { guest, places })
    }

    pub fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }

    /// The guest address of a stretch that the front-end names by its own address. It must lie in
    /// one region.
    pub fn guest_addr(&self, user_addr: u64, len: u64) -> Option<u64> {
        self.places.iter().find_map(|place| {
            let offset = user_addr.checked_sub(place.user_addr)?;
            let end = offset.checked_add(len)?;
            (end <= place.bytes).then_some(place.guest_addr + offset)
        })
    }

    /// Where the bytes of `piece` are mapped. More than one part where it crosses regions.
    pub fn host_parts(&self, piece: Piece, parts: &mut HostParts) -> Result<(), OutOfMemory> {
        let slices = GuestMemory::get_slices(
            &self.guest,
            GuestAddress(piece.addr),
            piece.len as usize,
            Permissions::ReadWrite,
        )
        .map_err(|_| OutOfMemory)?;
        for slice in slices {
            let slice = slice.map_err(|_| OutOfMemory)?;
            parts.push((slice.ptr_guard_mut().as_ptr(), slice.len()));
        }
        Ok(())
    }

    /// The one copy of what the guest wants written: `len` bytes of `pieces` from `skip` on.
    pub fn copy_out(
        &self,
        pieces: &[Piece],
        skip: usize,
        len: usize,
    ) -> Result<Bytes, OutOfMemory> {
        let mut parts = HostParts::new();
        for &piece in pieces {
            self.host_parts(piece, &mut parts)?;
        }
        let mut copy = BytesMut::with_capacity(len);
        let mut skip = skip;
        for (start, part) in parts {
            let from = skip.min(part);
            skip -= from;
            let take = (part - from).min(len - copy.len());
            let filled = copy.len();
            // SAFETY: `start..start + part` is mapped while `self` lives (`host_parts`), `from + take`
            // is at most `part`, and the buffer has room for `len` bytes in all. The guest may write
            // there meanwhile: then the copy holds some mix of old and new, which is the guest's
            // affair; nothing has been decided on what it holds.
            unsafe {
                let to = copy.spare_capacity_mut().as_mut_ptr().cast::<u8>();
                std::ptr::copy_nonoverlapping(start.add(from), to, take);
                copy.set_len(filled + take);
            }
        }
        if copy.len() < len {
            return Err(OutOfMemory);
        }
        Ok(copy.freeze())
    }

    /// Copies the start of `pieces`, from `skip` on, into a buffer of our own.
    pub fn read(
        &self,
        pieces: &[Piece],
        skip: usize,
        mut into: &mut [u8],
    ) -> Result<(), OutOfMemory> {
        let mut skip = skip;
        for piece in pieces {
            let from = skip.min(piece.len as usize);
            skip -= from;
            let take = (piece.len as usize - from).min(into.len());
            if take == 0 {
                continue;
            }
            let addr = piece.addr.checked_add(from as u64).ok_or(OutOfMemory)?;
            let (now, rest) = into.split_at_mut(take);
            self.guest
                .read_slice(now, GuestAddress(addr))
                .map_err(|_| OutOfMemory)?;
            into = rest;
        }
        if into.is_empty() {
            Ok(())
        } else {
            Err(OutOfMemory)
        }
    }

    /// Writes `bytes` to the start of `pieces`.
    pub fn write(&self, pieces: &[Piece], mut bytes: &[u8]) -> Result<(), OutOfMemory> {
        for piece in pieces {
            let (now, rest) = bytes.split_at(bytes.len().min(piece.len as usize));
            self.guest
                .write_slice(now, GuestAddress(piece.addr))
                .map_err(|_| OutOfMemory)?;
            bytes = rest;
        }
        if bytes.is_empty() {
            Ok(())
        } else {
            Err(OutOfMemory)
        }
    }

    /// Guest memory without a file behind it, for the fuzzer.
    #[cfg(any(test, feature = "testing"))]
    pub fn anonymous(bytes: usize) -> Memory {
        let guest = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)])
            .expect("anonymous memory can be mapped");
        Memory {
            guest,
            places: vec![Place {
                guest_addr: 0,
                bytes: bytes as u64,
                user_addr: 0,
            }],
        }
    }
}

impl Place {
    fn overlaps(&self, other: &Place) -> bool {
        let overlap = |a: u64, b: u64| a < b + other.bytes && b < a + self.bytes;
        overlap(self.guest_addr, other.guest_addr) || overlap(self.user_addr, other.user_addr)
    }
}

/// A descriptor points to where there is no guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfMemory;
