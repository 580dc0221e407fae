//! From the disk back to the guest: marks, status, answer, interrupt; the order is in
//! docs/vhost-user.md.

use super::Blk;
use crate::device::dirty_log::DirtyLog;
use crate::device::features::Features;
use crate::device::in_flight::{InFlight, Key};
use crate::device::memory::{Memory, Piece};
use crate::device::request::{Ask, Request, Status};
use crate::disk::{Disk, Failure, Op, RequestId};
use vhost_user_backend::VringT;
use vm_memory::{Bytes, GuestAddress};

impl Blk {
    /// The disk has ended (a part of) a request.
    pub fn complete(&mut self, id: RequestId, result: Result<(), Failure>, disk: &mut impl Disk) {
        let key = Key::of(id);
        let request = self.requests.get_mut(key);
        if let Err(failure) = result {
            if !request.failed {
                tracing::warn!(ring = request.ring, %failure, "a guest's request failed");
            }
            request.failed = true;
        }
        request.parts_left -= 1;
        if request.parts_left > 0 {
            return;
        }
        if request.then_flush && !request.failed {
            request.then_flush = false;
            request.parts_left = 1;
            disk.submit(id, Op::Flush);
            return;
        }
        let request = self.requests.remove(key);
        self.end(&request);
        for ring in &mut self.rings {
            ring.pending |= std::mem::take(&mut ring.blocked);
        }
    }

    /// Marks the data, writes the status, answers.
    fn end(&mut self, request: &InFlight) {
        let index = usize::from(request.ring);
        let ring = &mut self.rings[index];
        let Some(live) = ring
            .live
            .as_mut()
            .filter(|live| live.generation == request.generation)
        else {
            // Its front-end has gone. The next one learns from the inflight region that it is open,
            // or begins again at the used index: either way it is asked for again.
            return;
        };
        let log = logging(&self.log, self.features);
        if let Some(log) = log {
            mark_all(log, &request.data);
        }
        let status = if request.failed {
            Status::IoError
        } else {
            Status::Ok
        };
        let told = Request {
            ask: Ask::Done(status),
            status: Some(request.status),
            data_in: request.data_in,
        };
        let written = put_status(&request.memory, log, &told, status);
        let answered = live.answer(
            ring.vring.get_mut().get_queue_mut(),
            &self.memory,
            log,
            request.head,
            written,
        );
        if let Err(fault) = answered {
            ring.give_up(request.ring, fault);
        }
    }

    /// One interrupt for each ring that has new answers and whose driver wants to know.
    pub fn interrupt(&mut self) {
        for ring in &mut self.rings {
            ring.interrupt_if_wanted(&self.memory);
        }
    }
}

/// The log, while LOG_ALL is set.
pub(super) fn logging(log: &Option<DirtyLog>, features: Features) -> Option<&DirtyLog> {
    log.as_ref().filter(|_| features.has(Features::LOG_ALL))
}

pub(super) fn mark_all(log: &DirtyLog, pieces: &[Piece]) {
    for piece in pieces {
        log.mark(piece.addr, u64::from(piece.len));
    }
}

/// Writes the status byte and answers how many bytes the guest has got in all.
pub(super) fn put_status(
    memory: &Memory,
    log: Option<&DirtyLog>,
    request: &Request,
    status: Status,
) -> u32 {
    let Some(addr) = request.status else { return 0 };
    if memory
        .guest()
        .write_obj(status.byte(), GuestAddress(addr))
        .is_err()
    {
        return 0;
    }
    if let Some(log) = log {
        log.mark(addr, 1);
    }
    match status {
        Status::Ok => u32::try_from(request.data_in + 1).unwrap_or(u32::MAX),
        _ => 1,
    }
}
