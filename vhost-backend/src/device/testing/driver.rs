//! The driver's half of a split ring, and block requests on it.

use super::ram::GuestRam;
use super::{PATIENCE, eventually};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_STATUS: u8 = 0xee;

/// Where the parts of one request lie within its slot of memory.
const SLOT_BYTES: u64 = 128 << 10;
const STATUS: u64 = 512;
const TABLE: u64 = 1024;
const DATA: u64 = 4096;
/// The ring's own parts: descriptors, then available, then used, each in pages of their own.
const RING_BYTES: u64 = 64 << 10;

/// One ring as a driver has it.
pub struct DriverRing {
    pub index: u16,
    pub size: u16,
    pub event_idx: bool,
    pub indirect: bool,
    /// Into how many descriptors data is split.
    pub pieces: usize,
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
    ram: Arc<GuestRam>,
    base: u64,
    next_available: u16,
    next_used: u16,
    /// Descriptors of each open request, by head.
    open: Vec<Option<Vec<u16>>>,
    free: Vec<u16>,
}

/// A request under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    pub head: u16,
    pub data: u64,
    pub data_in: usize,
    status: u64,
}

/// What became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    pub head: u16,
    pub status: u8,
    pub data: Vec<u8>,
    /// What the used ring says was written.
    pub written: u32,
}

impl DriverRing {
    /// How much memory a ring of `size` takes, its requests included.
    pub fn bytes(size: u16) -> u64 {
        RING_BYTES + SLOT_BYTES * u64::from(size)
    }

    pub fn new(ram: Arc<GuestRam>, index: u16, size: u16, base: u64) -> DriverRing {
        let ring = DriverRing {
            index,
            size,
            event_idx: false,
            indirect: false,
            pieces: 1,
            kick: EventFd::new(EFD_NONBLOCK).expect("eventfd"),
            call: EventFd::new(EFD_NONBLOCK).expect("eventfd"),
            error: EventFd::new(EFD_NONBLOCK).expect("eventfd"),
            ram,
            base,
            next_available: 0,
            next_used: 0,
            open: vec![None; usize::from(size)],
            free: (0..size).rev().collect(),
        };
        ring.ram.write(base, &vec![0; RING_BYTES as usize]);
        ring
    }

    pub fn descriptors(&self) -> u64 {
        self.base
    }

    pub fn available(&self) -> u64 {
        self.base + (32 << 10)
    }

    pub fn used(&self) -> u64 {
        self.base + (48 << 10)
    }

    pub fn used_idx(&self) -> u16 {
        self.ram.load(self.used() + 2)
    }

    pub fn slot(&self, head: u16) -> u64 {
        self.base + RING_BYTES + SLOT_BYTES * u64::from(head)
    }

    pub fn open_requests(&self) -> usize {
        self.open.iter().flatten().count()
    }

    pub fn read(&mut self, sector: u64, len: usize) -> Reply {
        let ticket = self.begin(VIRTIO_BLK_T_IN, sector, &[], len);
        self.finish(ticket)
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> Reply {
        let ticket = self.begin(VIRTIO_BLK_T_OUT, sector, data, 0);
        self.finish(ticket)
    }

    pub fn flush(&mut self) -> Reply {
        let ticket = self.begin(VIRTIO_BLK_T_FLUSH, 0, &[], 0);
        self.finish(ticket)
    }

    pub fn serial(&mut self) -> Reply {
        let ticket = self.begin(VIRTIO_BLK_T_GET_ID, 0, &[], 20);
        self.finish(ticket)
    }

    /// Segments are (sector, sectors, flags).
    pub fn discard(&mut self, segments: &[(u64, u32, u32)]) -> Reply {
        let ticket = self.begin(VIRTIO_BLK_T_DISCARD, 0, &encode(segments), 0);
        self.finish(ticket)
    }

    pub fn write_zeroes(&mut self, segments: &[(u64, u32, u32)]) -> Reply {
        let ticket = self.begin(VIRTIO_BLK_T_WRITE_ZEROES, 0, &encode(segments), 0);
        self.finish(ticket)
    }

    /// Offers a request and kicks, if the device wants that.
    pub fn begin(&mut self, kind: u32, sector: u64, out: &[u8], data_in: usize) -> Ticket {
        let ticket = self.prepare(kind, sector, out, data_in);
        self.offer(ticket.head);
        self.publish();
        ticket
    }

    /// Lays a request out, without offering it.
    pub fn prepare(&mut self, kind: u32, sector: u64, out: &[u8], data_in: usize) -> Ticket {
        assert!(
            DATA + (out.len() + data_in) as u64 <= SLOT_BYTES,
            "fits its slot"
        );
        let pieces = if out.len() + data_in == 0 {
            0
        } else {
            self.pieces
        };
        let needed = if self.indirect { 1 } else { 2 + pieces };
        assert!(self.free.len() >= needed, "descriptors left");
        let mut descriptors: Vec<u16> = self.free.split_off(self.free.len() - needed);
        descriptors.reverse();
        let head = descriptors[0];
        let slot = self.slot(head);

        let mut header = [0; 16];
        header[0..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        self.ram.write(slot, &header);
        self.ram.write(slot + STATUS, &[NO_STATUS]);
        self.ram.write(slot + DATA, out);

        let mut parts = vec![(slot, 16, 0)];
        let len = out.len() + data_in;
        for piece in 0..pieces {
            let from = len * piece / pieces;
            let to = len * (piece + 1) / pieces;
            let flags = if data_in > 0 { WRITE } else { 0 };
            parts.push((slot + DATA + from as u64, (to - from) as u32, flags));
        }
        parts.push((slot + STATUS, 1, WRITE));

        if self.indirect {
            let ids: Vec<u16> = (0..parts.len() as u16).collect();
            self.chain(slot + TABLE, &ids, &parts);
            let len = 16 * parts.len() as u32;
            self.descriptor(self.descriptors(), head, slot + TABLE, len, INDIRECT, 0);
        } else {
            self.chain(self.descriptors(), &descriptors, &parts);
        }
        self.open[usize::from(head)] = Some(descriptors);
        Ticket {
            head,
            data: slot + DATA,
            data_in,
            status: slot + STATUS,
        }
    }

    fn chain(&self, table: u64, ids: &[u16], parts: &[(u64, u32, u16)]) {
        for (index, &(addr, len, flags)) in parts.iter().enumerate() {
            let next = ids.get(index + 1).copied();
            let flags = flags | if next.is_some() { NEXT } else { 0 };
            self.descriptor(table, ids[index], addr, len, flags, next.unwrap_or(0));
        }
    }

    /// Writes one descriptor, whatever it says.
    pub fn descriptor(&self, table: u64, id: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[0..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&next.to_le_bytes());
        self.ram.write(table + 16 * u64::from(id), &bytes);
    }

    /// Puts a head into the available ring; not seen before [`DriverRing::publish`].
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.ram.store(self.available() + 4 + 2 * slot, head);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Makes what has been offered available. Kicks if the device wants it; answers whether it did.
    pub fn publish(&mut self) -> bool {
        let before = self.ram.load(self.available() + 2);
        self.ram.store(self.available() + 2, self.next_available);
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.ram.load(self.used() + 4 + 8 * u64::from(self.size));
            let new = self.next_available;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(before)
        } else {
            self.ram.load(self.used()) & 1 == 0
        };
        if wanted {
            self.kick.write(1).expect("a kick");
        }
        wanted
    }

    /// Sets the available index as a broken driver might.
    pub fn jump(&mut self, by: u16) {
        self.next_available = self.next_available.wrapping_add(by);
        self.ram.store(self.available() + 2, self.next_available);
        self.kick.write(1).expect("a kick");
    }

    /// The next answer in the used ring, if there is one.
    pub fn poll(&mut self) -> Option<(u16, u32)> {
        if self.used_idx() == self.next_used {
            if self.event_idx {
                // Ask for an interrupt for the next one, and look again.
                let used_event = self.available() + 4 + 2 * u64::from(self.size);
                self.ram.store(used_event, self.next_used);
                fence(Ordering::SeqCst);
            }
            if self.used_idx() == self.next_used {
                return None;
            }
        }
        let slot = u64::from(self.next_used % self.size);
        let element = self.ram.read(self.used() + 4 + 8 * slot, 8);
        let head = u32::from_le_bytes(element[0..4].try_into().expect("four")) as u16;
        let written = u32::from_le_bytes(element[4..8].try_into().expect("four"));
        self.next_used = self.next_used.wrapping_add(1);
        let descriptors = self.open[usize::from(head)]
            .take()
            .expect("each request is answered once");
        self.free.extend(descriptors.into_iter().rev());
        Some((head, written))
    }

    /// The next answer; waits for the interrupt that has to come with it.
    pub fn wait(&mut self) -> (u16, u32) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.poll() {
                return answer;
            }
            // SAFETY: the descriptor is open for as long as `self.call` lives, which is this long.
            let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
            let a_second = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            let ready =
                rustix::event::poll(&mut [PollFd::new(&call, PollFlags::IN)], Some(&a_second))
                    .expect("polled");
            if ready > 0 {
                let _ = self.call.read();
            } else {
                assert_eq!(
                    self.used_idx(),
                    self.next_used,
                    "an answer came without its interrupt"
                );
            }
            assert!(
                Instant::now() < end,
                "no answer in time, ring {}: used {}, available {}, flags {}, event {}",
                self.index,
                self.used_idx(),
                self.next_available,
                self.ram.load(self.used()),
                self.ram.load(self.used() + 4 + 8 * u64::from(self.size)),
            );
        }
    }

    /// Waits for this request, which must be the only one, or the first to be answered.
    pub fn finish(&mut self, ticket: Ticket) -> Reply {
        let (head, written) = self.wait();
        assert_eq!(head, ticket.head);
        self.reply(ticket, written)
    }

    pub fn reply(&self, ticket: Ticket, written: u32) -> Reply {
        Reply {
            head: ticket.head,
            status: self.ram.read(ticket.status, 1)[0],
            data: self.ram.read(ticket.data, ticket.data_in),
            written,
        }
    }

    /// Waits until the device has taken this many requests more than it has answered.
    pub fn until_answered(&self, count: u16) {
        eventually("requests are answered", || {
            self.used_idx().wrapping_sub(self.next_used) >= count
        });
    }
}

fn encode(segments: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sector, sectors, flags) in segments {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}
