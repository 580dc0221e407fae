//! A started ring: what is taken off it and answered, with the marks and records that belong to that.

use crate::device::dirty_log::DirtyLog;
use crate::device::inflight::QueueRecord;
use crate::device::memory::Memory;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// What a started ring has besides its queue.
#[derive(Debug)]
pub struct Live {
    /// Tells requests of this start of the ring from those of an earlier one.
    pub generation: u64,
    /// GET_VRING_BASE has come: take nothing more.
    pub stopping: bool,
    pub broken: bool,
    pub in_flight: u16,
    taken: Vec<bool>,
    record: Option<QueueRecord>,
    /// What a predecessor had begun, in the order of taking.
    resubmit: VecDeque<u16>,
    pub(super) log_at: u64,
    /// There are answers that the driver has not been interrupted for.
    pub(super) answered: bool,
}

/// A head taken off the ring, not yet kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub index: u16,
    /// A predecessor had taken it already.
    again: bool,
}

impl Live {
    pub(super) fn new(
        generation: u64,
        size: u16,
        record: Option<QueueRecord>,
        resubmit: VecDeque<u16>,
        log_at: u64,
    ) -> Live {
        Live {
            generation,
            stopping: false,
            broken: false,
            in_flight: 0,
            taken: vec![false; usize::from(size)],
            record,
            resubmit,
            log_at,
            answered: false,
        }
    }

    /// Nothing of it is in flight, here or still to be submitted again.
    pub(super) fn quiet(&self) -> bool {
        self.in_flight == 0 && (self.broken || self.resubmit.is_empty())
    }

    /// The next head, or `None` where the ring is empty. With `only_again`, only what a predecessor
    /// had begun.
    pub fn next(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
        only_again: bool,
    ) -> Result<Option<Head>, RingFault> {
        let head = if let Some(index) = self.resubmit.pop_front() {
            Head { index, again: true }
        } else if only_again {
            return Ok(None);
        } else {
            let mut available = queue
                .iter(memory.guest())
                .map_err(|_| RingFault::Available)?;
            match available.next() {
                None => return Ok(None),
                Some(chain) => Head {
                    index: chain.head_index(),
                    again: false,
                },
            }
        };
        match self.taken.get(usize::from(head.index)) {
            None => Err(RingFault::Head),
            Some(true) => Err(RingFault::Twice),
            Some(false) => Ok(Some(head)),
        }
    }

    /// Leaves `head`, just taken, where it was.
    pub fn put_back(&mut self, queue: &mut Queue, head: Head) {
        if head.again {
            self.resubmit.push_front(head.index);
        } else {
            queue.go_to_previous_position();
        }
    }

    /// `head` is now ours to answer.
    pub fn keep(&mut self, head: Head) {
        self.taken[usize::from(head.index)] = true;
        self.in_flight += 1;
        if let (Some(record), false) = (&mut self.record, head.again) {
            record.take(head.index);
        }
    }

    /// Puts the answer into the used ring. Data and status have been written, and marked, before.
    pub fn answer(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
        log: Option<&DirtyLog>,
        head: u16,
        written: u32,
    ) -> Result<(), RingFault> {
        assert!(
            self.taken[usize::from(head)],
            "only what is in flight is answered"
        );
        self.taken[usize::from(head)] = false;
        self.in_flight -= 1;
        if let Some(record) = &mut self.record {
            record.answering(head);
        }
        let slot = u64::from(queue.next_used() % queue.size());
        queue
            .add_used(memory.guest(), head, written)
            .map_err(|_| RingFault::Used)?;
        if let Some(log) = log {
            log.mark(self.log_at + 4 + 8 * slot, 8);
            log.mark(self.log_at + 2, 2);
        }
        if let Some(record) = &mut self.record {
            record.answered(head, queue.next_used());
        }
        self.answered = true;
        Ok(())
    }

    /// Asks the driver not to kick while we look at the ring anyway.
    pub fn hush(
        &self,
        queue: &mut Queue,
        memory: &Memory,
        log: Option<&DirtyLog>,
    ) -> Result<(), RingFault> {
        queue
            .disable_notification(memory.guest())
            .map_err(|_| RingFault::Used)?;
        if let (Some(log), false) = (log, queue.event_idx_enabled()) {
            log.mark(self.log_at, 2);
        }
        Ok(())
    }

    /// Asks for kicks again. `true`: something has come meanwhile, look once more.
    pub fn listen(
        &self,
        queue: &mut Queue,
        memory: &Memory,
        log: Option<&DirtyLog>,
    ) -> Result<bool, RingFault> {
        let more = queue
            .enable_notification(memory.guest())
            .map_err(|_| RingFault::Used)?;
        if let Some(log) = log {
            if queue.event_idx_enabled() {
                log.mark(self.log_at + 4 + 8 * u64::from(queue.size()), 2);
            } else {
                log.mark(self.log_at, 2);
            }
        }
        Ok(more)
    }
}

/// Whether the driver wants an interrupt for what has been answered since it was last asked.
pub(super) fn wants_interrupt(queue: &mut Queue, memory: &Memory) -> bool {
    // The fence between the used index and what the driver says is in here.
    let wanted = queue.needs_notification(memory.guest()).unwrap_or(true);
    if queue.event_idx_enabled() {
        return wanted;
    }
    let flags = memory
        .guest()
        .load::<u16>(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
        .map_or(0, u16::from_le);
    u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
}

/// A driver broke the rules of the ring itself: there is no going on with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RingFault {
    #[error("the available index jumped, or the ring cannot be read")]
    Available,
    #[error("a head beyond the ring")]
    Head,
    #[error("a head that is in flight already")]
    Twice,
    #[error("the used ring cannot be written")]
    Used,
}
