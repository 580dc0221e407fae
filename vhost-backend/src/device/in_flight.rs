//! The requests that the disk has and the guest waits for.

use super::memory::{Memory, Piece};
use crate::disk::RequestId;
use smallvec::SmallVec;
use std::sync::Arc;

/// Pieces of guest memory of one request: one or two, mostly.
pub type Pieces = SmallVec<[Piece; 2]>;

/// One request of the guest; it may be several of the disk.
#[derive(Debug)]
pub struct InFlight {
    pub ring: u16,
    /// Which start of the ring it belongs to.
    pub generation: u64,
    pub head: u16,
    /// The memory that it began with: stays mapped until here, whatever the table says by then.
    pub memory: Arc<Memory>,
    pub status: u64,
    /// What the disk fills, to be marked in the dirty log.
    pub data: Pieces,
    pub data_in: u64,
    pub parts_left: u16,
    pub failed: bool,
    /// Write-through: not done before this has followed.
    pub then_flush: bool,
}

/// A table of fixed cost: slots are reused, ids carry a serial number so that a stale one shows.
#[derive(Debug, Default)]
pub struct Table {
    slots: Vec<Option<(u32, InFlight)>>,
    free: Vec<u32>,
    next_serial: u32,
}

const SLOT_BITS: u32 = 24;
const PART_BITS: u32 = 8;

impl Table {
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a request and answers its key. At most one for each descriptor of each ring.
    pub fn insert(&mut self, request: InFlight) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        assert!(
            slot < 1 << SLOT_BITS,
            "rings are bounded in number and size"
        );
        let serial = self.next_serial;
        self.next_serial = self.next_serial.wrapping_add(1);
        self.slots[slot as usize] = Some((serial, request));
        Key { slot, serial }
    }

    pub fn get_mut(&mut self, key: Key) -> &mut InFlight {
        match &mut self.slots[key.slot as usize] {
            Some((serial, request)) if *serial == key.serial => request,
            _ => panic!("the disk completed a request that is not in flight"),
        }
    }

    pub fn remove(&mut self, key: Key) -> InFlight {
        self.get_mut(key);
        self.free.push(key.slot);
        let (_, request) = self.slots[key.slot as usize].take().expect("just seen");
        request
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    slot: u32,
    serial: u32,
}

impl Key {
    /// The id of one part of the request.
    pub fn id(self, part: u8) -> RequestId {
        let id = u64::from(self.serial) << (SLOT_BITS + PART_BITS)
            | u64::from(part) << SLOT_BITS
            | u64::from(self.slot);
        RequestId(id)
    }

    pub fn of(id: RequestId) -> Key {
        Key {
            slot: (id.0 & ((1 << SLOT_BITS) - 1)) as u32,
            serial: (id.0 >> (SLOT_BITS + PART_BITS)) as u32,
        }
    }
}
