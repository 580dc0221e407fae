//! One virtqueue: what messages have told of it, and, once it is started, its place in the rings.
//!
//! Ring state is computed when the ring starts, from all that has been told until then: QEMU sends
//! SET_VRING_BASE before SET_VRING_ADDR, cloud-hypervisor after it. A ring runs once it has a kick
//! descriptor and is enabled; it is over with GET_VRING_BASE. In between it may be disabled and
//! enabled again (cloud-hypervisor pauses so, and sets up a rebooted guest's rings anew like that).
//!
//! The state of a ring is `vhost_user_backend`'s: queue, enabled or not, call descriptor. The queue in
//! it is `virtio_queue::Queue`: indices, event suppression and their fences. What both leave to their
//! user is in [`live`]: the mark in the dirty log after each write of the queue, the record of requests
//! in flight around them, and NO_INTERRUPT, which they do not know.
//!
//! That state lies behind a lock. Nobody else takes it, so it is never waited for, but it must not be
//! taken twice: what works on a [`Live`] ring is handed the queue by whoever holds the lock.

mod live;

pub use live::{Head, Live, RingFault};

use super::Refused;
use super::features::Features;
use super::inflight::Inflight;
use super::memory::Memory;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vhost_user_backend::{VringMutex, VringT};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::event::EventNotifier;

/// Descriptors of a ring at most: what QEMU allows.
pub const RING_SIZE_MAX: u16 = 1024;

/// Where the front-end has put the ring, in its own addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    /// The guest address by which writes to the used ring are to be logged, where it says so.
    pub log: Option<u64>,
}

/// The memory that it knows of is empty, for good: those of its methods that write to the used ring
/// know neither dirty log nor record, so they are to fail.
pub type Vring = VringMutex<Arc<GuestMemoryMmap>>;

pub struct Ring {
    /// Its queue means something only while the ring is live.
    pub vring: Vring,
    pub size: u16,
    pub addresses: Option<Addresses>,
    pub base: u16,
    /// There is a kick descriptor: the event loop has it.
    pub kick: bool,
    /// A vring would keep it as something to read.
    pub error: Option<EventNotifier>,
    pub live: Option<Live>,
    /// There may be something to take.
    pub pending: bool,
    /// What comes next did not fit into the disk's room.
    pub blocked: bool,
}

impl Ring {
    pub fn new() -> Ring {
        Ring {
            vring: Vring::new(Arc::default(), RING_SIZE_MAX).expect("a power of two"),
            size: 0,
            addresses: None,
            base: 0,
            kick: false,
            error: None,
            live: None,
            pending: false,
            blocked: false,
        }
    }

    pub fn enabled(&self) -> bool {
        self.vring.get_ref().is_enabled()
    }

    pub fn may_start(&self) -> bool {
        self.live.is_none() && self.kick && self.addresses.is_some() && self.enabled()
    }

    /// Starts the ring from all that has been told.
    pub fn start(
        &mut self,
        index: u16,
        memory: &Memory,
        inflight: Option<&Arc<Inflight>>,
        features: Features,
        generation: u64,
    ) -> Result<(), Refused> {
        let addresses = self
            .addresses
            .ok_or_else(|| Refused::new("a ring without addresses"))?;
        let mut vring = self.vring.get_mut();
        let queue = vring.get_queue_mut();
        queue.reset();
        queue
            .try_set_size(self.size)
            .map_err(|_| Refused::new("a ring of a forbidden size"))?;
        queue.set_event_idx(features.has(Features::EVENT_IDX));
        let log_at = place(queue, &addresses, memory)?;

        let used = queue
            .used_idx(memory.guest(), Ordering::Acquire)
            .map_err(|_| Refused::new("the used ring cannot be read"))?
            .0;
        queue.set_next_used(used);
        let mut record = inflight
            .map(|all| all.queue(index, self.size))
            .transpose()?;
        let mut resubmit = VecDeque::new();
        match &mut record {
            None => queue.set_next_avail(self.base),
            Some(record) => {
                let found = record.recover(used, self.base)?;
                queue.set_next_avail(found.next_avail);
                resubmit = found.resubmit.into();
                if !resubmit.is_empty() {
                    tracing::info!(
                        ring = index,
                        requests = resubmit.len(),
                        "finishing what was in flight"
                    );
                }
            }
        }
        // The interrupt below takes the lock again.
        drop(vring);
        self.live = Some(Live::new(generation, self.size, record, resubmit, log_at));
        self.pending = true;
        self.blocked = false;
        // A predecessor may have been killed between the used index and its interrupt.
        self.interrupt();
        Ok(())
    }

    /// The guest memory has changed: find the ring in the new one.
    pub fn replace(&mut self, memory: &Memory) -> Result<(), Refused> {
        if let (Some(live), Some(addresses)) = (&mut self.live, &self.addresses) {
            live.log_at = place(self.vring.get_mut().get_queue_mut(), addresses, memory)?;
        }
        Ok(())
    }

    /// Whether it could be found there.
    pub fn fits(&self, memory: &Memory) -> bool {
        let (Some(_), Some(addresses)) = (&self.live, &self.addresses) else {
            return true;
        };
        resolve(addresses, self.size, memory).is_some()
    }

    /// Ends the ring and says where it stood, for GET_VRING_BASE.
    pub fn stop(&mut self) -> u16 {
        if self.live.take().is_some() {
            self.base = self.vring.queue_next_avail();
            self.vring.set_queue_ready(false);
        }
        self.pending = false;
        self.blocked = false;
        self.base
    }

    pub fn running(&self) -> bool {
        self.live.as_ref().is_some_and(|live| !live.broken) && self.enabled()
    }

    /// Nothing of it is in flight, here or still to be submitted again.
    pub fn quiet(&self) -> bool {
        self.live.as_ref().is_none_or(Live::quiet)
    }

    pub fn interrupt(&self) {
        // Full: then the other side has not even read what came before.
        let _ = self.vring.signal_used_queue();
    }

    /// Interrupts the driver if there are answers since the last call, and it wants to know of them.
    pub fn interrupt_if_wanted(&mut self, memory: &Memory) {
        let Some(live) = &mut self.live else { return };
        if !std::mem::take(&mut live.answered) {
            return;
        }
        let mut vring = self.vring.get_mut();
        if live::wants_interrupt(vring.get_queue_mut(), memory) {
            let _ = vring.signal_used_queue();
        }
    }

    /// Gives up on a ring whose driver breaks the rules. What is in flight still ends.
    pub fn give_up(&mut self, index: u16, fault: RingFault) {
        let Some(live) = &mut self.live else { return };
        if !live.broken {
            tracing::warn!(ring = index, %fault, "the guest's driver broke the ring: no more is taken from it");
            live.broken = true;
        }
        self.pending = false;
        self.blocked = false;
        if let Some(error) = &self.error {
            let _ = error.notify();
        }
    }
}

/// The ring's parts as guest addresses: descriptors, available, used.
fn resolve(addresses: &Addresses, size: u16, memory: &Memory) -> Option<[u64; 3]> {
    let size = u64::from(size);
    Some([
        memory.guest_addr(addresses.descriptors, 16 * size)?,
        memory.guest_addr(addresses.available, 6 + 2 * size)?,
        memory.guest_addr(addresses.used, 6 + 8 * size)?,
    ])
}

/// Tells `queue` where it lies; answers where its used ring is logged.
fn place(queue: &mut Queue, addresses: &Addresses, memory: &Memory) -> Result<u64, Refused> {
    let unmapped = || Refused::new("a ring outside of the guest's memory");
    let [descriptors, available, used] =
        resolve(addresses, queue.size(), memory).ok_or_else(unmapped)?;
    queue
        .try_set_desc_table_address(GuestAddress(descriptors))
        .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(available)))
        .and_then(|()| queue.try_set_used_ring_address(GuestAddress(used)))
        .map_err(|error| Refused(format!("ring: {error}")))?;
    queue.set_ready(true);
    if !queue.is_valid(memory.guest()) {
        return Err(unmapped());
    }
    // Without an IOMMU both are the same; a log address is believed only as far as it can be added to.
    let log_at = addresses.log.unwrap_or(used);
    match log_at.checked_add(6 + 8 * u64::from(queue.size())) {
        Some(_) => Ok(log_at),
        None => Err(Refused::new("an absurd log address")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn no_answer_gets_past_the_log_and_the_record() {
        let memory = Memory::anonymous(0x4000);
        let mut ring = Ring::new();
        ring.size = 8;
        ring.addresses = Some(Addresses {
            descriptors: 0,
            available: 0x1000,
            used: 0x2000,
            log: None,
        });
        ring.start(0, &memory, None, Features::default(), 1)
            .expect("it lies in memory");
        assert!(ring.vring.add_used(0, 1).is_err());
        assert!(ring.vring.enable_notification().is_err());
        assert!(ring.vring.disable_notification().is_err());
        let mut used = [0xff; 16];
        memory
            .guest()
            .read_slice(&mut used, GuestAddress(0x2000))
            .expect("there is memory");
        assert_eq!(used, [0; 16]);
    }
}
