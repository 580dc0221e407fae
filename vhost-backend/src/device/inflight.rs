//! The record of requests in flight that outlives this process (INFLIGHT_SHMFD).
//!
//! The memory belongs to both: we make it, the front-end keeps it and gives it to whoever serves the
//! device next, which then finishes what we had begun. Per queue (vhost-user.rst, "Inflight I/O
//! tracking", split virtqueue; queue regions are aligned to 64 bytes):
//!
//! ```text
//!   0 u64 features (0)         8 u16 version (1; 0: fresh)   10 u16 desc_num
//!  12 u16 last_batch_head     14 u16 used_idx
//!  16 + 16 i: u8 inflight, 5 pad, u16 next, u64 counter        of head descriptor i
//! ```
//!
//! What makes it exact, whenever we are killed:
//!
//! - taking a request: counter, then inflight = 1, and only then is it submitted;
//! - answering: `next` and `last_batch_head` (one request is one batch), then the used ring's element
//!   and index, then inflight = 0, then `used_idx`. Killed in between, the used ring's index is ahead
//!   of `used_idx` by one, and the successor knows from `last_batch_head` which one was answered.
//!
//! The contents are foreign input: the front-end could write anything there.

use super::{Refused, shared};
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{Bytes as _, MmapRegion, VolatileMemory};

const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const QUEUE_ALIGN: usize = 64;
const VERSION: u16 = 1;

fn queue_bytes(queue_size: u16) -> usize {
    (HEADER_BYTES + ENTRY_BYTES * usize::from(queue_size)).next_multiple_of(QUEUE_ALIGN)
}

/// Fresh memory for GET_INFLIGHT_FD.
pub fn create(queues: u16, queue_size: u16) -> io::Result<(File, VhostUserInflight)> {
    let bytes = queue_bytes(queue_size) * usize::from(queues);
    let fd = rustix::fs::memfd_create(
        "ukai-inflight",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    rustix::fs::ftruncate(&fd, bytes as u64)?;
    // Nobody can take the memory away under the other's feet.
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let told = VhostUserInflight::new(bytes as u64, 0, queues, queue_size);
    Ok((File::from(fd), told))
}

/// The memory of all queues.
#[derive(Debug)]
pub struct Inflight {
    memory: MmapRegion,
    queues: u16,
    queue_size: u16,
}

impl Inflight {
    /// What SET_INFLIGHT_FD gives us: ours, or that of a predecessor.
    pub fn adopt(file: File, told: &VhostUserInflight) -> Result<Inflight, Refused> {
        let needed = queue_bytes(told.queue_size) * usize::from(told.num_queues);
        if told.num_queues == 0 || told.queue_size == 0 || (told.mmap_size as usize) < needed {
            return Err(Refused::new(
                "the inflight region is too small for its queues",
            ));
        }
        let memory = shared::map("the inflight region", file, told.mmap_offset, needed as u64)?;
        Ok(Inflight {
            memory,
            queues: told.num_queues,
            queue_size: told.queue_size,
        })
    }

    /// The record of one queue of at most the size that the region was made for.
    pub fn queue(self: &Arc<Self>, index: u16, size: u16) -> Result<QueueRecord, Refused> {
        if index >= self.queues || size > self.queue_size {
            return Err(Refused::new(
                "the inflight region has no room for this queue",
            ));
        }
        Ok(QueueRecord {
            base: queue_bytes(self.queue_size) * usize::from(index),
            region: Arc::clone(self),
            size,
            next_counter: 1,
        })
    }
}

/// What a new owner of the queue has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    pub next_avail: u16,
    /// Heads to submit again, in the order in which they were first taken.
    pub resubmit: Vec<u16>,
}

/// The record of one queue.
#[derive(Debug)]
pub struct QueueRecord {
    region: Arc<Inflight>,
    base: usize,
    size: u16,
    next_counter: u64,
}

impl QueueRecord {
    /// Reads what a predecessor left. `used` is the used ring's index, `base` what SET_VRING_BASE
    /// said: it counts only where the record is fresh.
    pub fn recover(&mut self, used: u16, base: u16) -> Result<Recovered, Refused> {
        match self.load_u16(8) {
            0 => {
                self.begin(used);
                return Ok(Recovered {
                    next_avail: base,
                    resubmit: Vec::new(),
                });
            }
            VERSION => {}
            other => {
                return Err(Refused(format!(
                    "inflight region of unknown version {other}"
                )));
            }
        }
        if self.load_u16(10) != self.region.queue_size {
            return Err(Refused::new("inflight region of another queue size"));
        }
        let heads = self.in_flight();
        if heads.is_empty() {
            // Nothing hangs on the rest (the ring may even have been reset since).
            self.store_u16(14, used);
            return Ok(Recovered {
                next_avail: used,
                resubmit: Vec::new(),
            });
        }
        // Answered, but the record had not been brought up to date.
        let answered = used.wrapping_sub(self.load_u16(14));
        if answered > self.size {
            return Err(Refused::new("the inflight region belongs to another ring"));
        }
        let mut head = self.load_u16(12);
        for _ in 0..answered {
            if head >= self.size {
                return Err(Refused::new("the inflight region is corrupt"));
            }
            self.clear(head);
            head = self.load_u16(self.entry(head) + 6);
        }
        self.store_u16(14, used);

        let mut heads = self.in_flight();
        heads.sort_unstable();
        self.next_counter = heads
            .last()
            .map_or(0, |(counter, _)| *counter)
            .wrapping_add(1);
        Ok(Recovered {
            next_avail: used.wrapping_add(heads.len() as u16),
            resubmit: heads.into_iter().map(|(_, head)| head).collect(),
        })
    }

    /// A request has been taken from the available ring.
    pub fn take(&mut self, head: u16) {
        let entry = self.entry(head);
        self.store_u64(entry + 8, self.next_counter);
        self.store_u8(entry, 1);
        self.next_counter = self.next_counter.wrapping_add(1);
    }

    /// Its answer is about to be put into the used ring.
    pub fn answering(&mut self, head: u16) {
        let entry = self.entry(head);
        self.store_u16(entry + 6, self.load_u16(12));
        self.store_u16(12, head);
    }

    /// Its answer stands in the used ring, whose index is now `used`.
    pub fn answered(&mut self, head: u16, used: u16) {
        self.clear(head);
        self.store_u16(14, used);
    }

    fn begin(&mut self, used: u16) {
        for head in 0..self.size {
            self.clear(head);
        }
        self.store_u64(0, 0);
        self.store_u16(10, self.region.queue_size);
        self.store_u16(12, 0);
        self.store_u16(14, used);
        self.store_u16(8, VERSION);
    }

    fn in_flight(&self) -> Vec<(u64, u16)> {
        (0..self.size)
            .filter(|&head| self.load_u8(self.entry(head)) == 1)
            .map(|head| (self.load_u64(self.entry(head) + 8), head))
            .collect()
    }

    fn clear(&mut self, head: u16) {
        self.store_u8(self.entry(head), 0);
    }

    fn entry(&self, head: u16) -> usize {
        assert!(head < self.size, "heads are checked before they come here");
        HEADER_BYTES + ENTRY_BYTES * usize::from(head)
    }
}

/// Access to the shared memory. Program order is what counts here: a process that is killed leaves
/// all stores that came before; release and acquire keep the compiler from reordering them.
macro_rules! access {
    ($load:ident, $store:ident, $type:ty) => {
        impl QueueRecord {
            fn $load(&self, offset: usize) -> $type {
                self.region
                    .memory
                    .as_volatile_slice()
                    .load(self.base + offset, Ordering::Acquire)
                    .expect("the region is as large as its queues need, and aligned")
            }

            fn $store(&mut self, offset: usize, value: $type) {
                self.region
                    .memory
                    .as_volatile_slice()
                    .store(value, self.base + offset, Ordering::Release)
                    .expect("the region is as large as its queues need, and aligned");
            }
        }
    };
}

access!(load_u8, store_u8, u8);
access!(load_u16, store_u16, u16);
access!(load_u64, store_u64, u64);

#[cfg(test)]
mod tests {
    use super::*;

    fn region(queue_size: u16) -> Arc<Inflight> {
        let (file, told) = create(2, queue_size).unwrap();
        Arc::new(Inflight::adopt(file, &told).unwrap())
    }

    #[test]
    fn a_fresh_record_begins_where_the_front_end_says() {
        let mut record = region(8).queue(1, 8).unwrap();
        let fresh = record.recover(3, 5).unwrap();
        assert_eq!((fresh.next_avail, fresh.resubmit.len()), (5, 0));
    }

    #[test]
    fn a_successor_resubmits_in_the_order_of_taking() {
        let region = region(8);
        let mut record = region.queue(0, 8).unwrap();
        record.recover(0, 0).unwrap();
        for head in [4, 1, 6] {
            record.take(head);
        }
        record.answering(1);
        record.answered(1, 1);
        let mut successor = region.queue(0, 8).unwrap();
        let found = successor.recover(1, 99).unwrap();
        assert_eq!(found.resubmit, [4, 6]);
        assert_eq!(found.next_avail, 3);
        // What the successor takes comes after what it found.
        successor.take(2);
        let again = region.queue(0, 8).unwrap().recover(1, 0).unwrap();
        assert_eq!(again.resubmit, [4, 6, 2]);
    }

    #[test]
    fn killed_at_each_step_of_an_answer() {
        // (steps done, used index of the ring) -> is head 3 still to be done?
        for (steps, used, open) in [(0, 0, true), (1, 0, true), (1, 1, false), (2, 1, false)] {
            let region = region(8);
            let mut record = region.queue(0, 8).unwrap();
            record.recover(0, 0).unwrap();
            record.take(3);
            record.take(5);
            if steps >= 1 {
                record.answering(3);
            }
            if steps >= 2 {
                record.clear(3);
            }
            let found = region.queue(0, 8).unwrap().recover(used, 77).unwrap();
            let expected: &[u16] = if open { &[3, 5] } else { &[5] };
            assert_eq!(found.resubmit, expected, "after {steps} steps, used {used}");
            assert_eq!(found.next_avail, 2);
        }
    }

    #[test]
    fn a_corrupt_record_is_refused_and_never_a_panic() {
        for (offset, value) in [(8, 7u16), (10, 3), (12, 400), (14, 100)] {
            let region = region(8);
            let mut record = region.queue(0, 8).unwrap();
            record.recover(0, 0).unwrap();
            record.take(3);
            record.store_u16(offset, value);
            assert!(
                region.queue(0, 8).unwrap().recover(1, 0).is_err(),
                "{offset}"
            );
        }
        assert!(region(8).queue(2, 8).is_err());
        assert!(region(8).queue(0, 16).is_err());
    }
}
