//! From the rings to the disk.

use super::Blk;
use super::answer::{logging, mark_all, put_status};
use crate::device::features::Features;
use crate::device::in_flight::{InFlight, Pieces};
use crate::device::memory::{HostParts, Memory, Piece};
use crate::device::request::{Ask, HEADER_BYTES, Request, SERIAL_BYTES, Status, parse};
use crate::device::ring::{Head, RingFault};
use crate::disk::{Disk, Landing, Op};
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;
use vhost_user_backend::VringT;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

/// Requests taken from a ring before others have their turn: what goes over the network is on its way while the
/// next ones are taken.
const TURN: u16 = 16;

/// What the disk is to do for one request: one thing, but for zeroes.
type Ops = SmallVec<[Op; 1]>;

impl Blk {
    /// Takes what the rings have, some from each. `true`: there is more.
    pub fn turn(&mut self, disk: &mut impl Disk) -> bool {
        let mut more = false;
        for index in 0..self.rings.len() {
            if !(self.rings[index].pending || self.watching) {
                continue;
            }
            match self.take_from(index, disk) {
                Ok(again) => {
                    self.rings[index].pending = again;
                    more |= again;
                }
                Err(fault) => self.rings[index].give_up(index as u16, fault),
            }
        }
        more
    }

    /// While the guest is watched, every turn looks at each ring, and asks for no kicks. `true`: that has
    /// just ended, and the next turn, which asks for them, is due before anybody sleeps.
    pub fn watch(&mut self, on: bool) -> bool {
        let over = self.watching && !on;
        self.watching = on;
        for ring in self.rings.iter_mut().filter(|_| over) {
            ring.pending = ring.live.is_some();
        }
        over
    }

    fn take_from(&mut self, index: usize, disk: &mut impl Disk) -> Result<bool, RingFault> {
        let memory = Arc::clone(&self.memory);
        let ring = &mut self.rings[index];
        // One lock for all that is taken now.
        let vring = ring.vring.clone();
        let mut vring = vring.get_mut();
        let enabled = vring.is_enabled();
        let queue = vring.get_queue_mut();
        let Some(live) = ring.live.as_mut().filter(|live| !live.broken) else {
            return Ok(false);
        };
        ring.blocked = false;
        // A ring that is about to pause or to end still owes what a predecessor had begun.
        let only_again = !enabled || live.stopping;
        if !only_again {
            live.hush(queue, &memory, logging(&self.log, self.features))?;
        }
        for _ in 0..TURN {
            let live = self.rings[index].live.as_mut().expect("it was there");
            match live.next(queue, &memory, only_again)? {
                Some(head) => {
                    if !self.begin(index, head, queue, &memory, disk)? {
                        self.rings[index].blocked = true;
                        return Ok(false);
                    }
                }
                None if only_again || self.watching => return Ok(false),
                None => {
                    if !live.listen(queue, &memory, logging(&self.log, self.features))? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Begins one request. `false`: the disk has no room for it, it stays in the ring.
    fn begin(
        &mut self,
        index: usize,
        head: Head,
        queue: &mut Queue,
        memory: &Arc<Memory>,
        disk: &mut impl Disk,
    ) -> Result<bool, RingFault> {
        let live = self.rings[index].live.as_mut().expect("a live ring");
        let descriptors = GuestAddress(queue.desc_table());
        let read = self
            .chain
            .read(memory, descriptors, queue.size(), head.index);
        let mut request = match read {
            Ok(()) => parse(&mut self.chain, memory, &self.limits),
            Err(fault) => {
                grumble(&mut self.bad_requests, index, &fault);
                // Where its status byte is, nobody knows.
                Request {
                    ask: Ask::Done(Status::IoError),
                    status: None,
                    data_in: 0,
                }
            }
        };
        let needed = match &request.ask {
            Ask::Write(span) => span.len,
            _ => 1,
        };
        // A request of any size may go alone: else one larger than all the room would wait for ever.
        if disk.room() < needed && !self.requests.is_empty() {
            live.put_back(queue, head);
            return Ok(false);
        }
        live.keep(head);

        let (ops, data) = match self.prepare(&mut request, memory) {
            Ok(prepared) => prepared,
            Err(status) => {
                if status != Status::Ok {
                    grumble(&mut self.bad_requests, index, &"refused");
                }
                let log = logging(&self.log, self.features);
                let live = self.rings[index].live.as_mut().expect("a live ring");
                let written = put_status(memory, log, &request, status);
                live.answer(queue, memory, log, head.index, written)?;
                return Ok(true);
            }
        };
        let changes = matches!(request.ask, Ask::Write(_) | Ask::Zero(_));
        let key = self.requests.insert(InFlight {
            ring: index as u16,
            generation: self.rings[index]
                .live
                .as_ref()
                .expect("a live ring")
                .generation,
            head: head.index,
            memory: Arc::clone(memory),
            status: request
                .status
                .expect("a request without one is answered at once"),
            data,
            data_in: request.data_in,
            parts_left: ops.len() as u16,
            failed: false,
            then_flush: changes && self.write_through(),
        });
        for (part, op) in ops.into_iter().enumerate() {
            disk.submit(key.id(part as u8), op);
        }
        Ok(true)
    }

    /// What the disk is to do, and which guest memory that will fill; or the answer, where there is
    /// one already.
    fn prepare(
        &mut self,
        request: &mut Request,
        memory: &Arc<Memory>,
    ) -> Result<(Ops, Pieces), Status> {
        match &request.ask {
            Ask::Done(status) => Err(*status),
            Ask::Serial => {
                // The buffers may be larger than all memory: what is written counts, and is marked.
                let len = request.data_in.min(SERIAL_BYTES as u64);
                request.data_in = len;
                cut_to(&mut self.chain.writable, len);
                memory
                    .write(&self.chain.writable, &self.serial[..len as usize])
                    .map_err(|_| Status::IoError)?;
                if let Some(log) = logging(&self.log, self.features) {
                    mark_all(log, &self.chain.writable);
                }
                Err(Status::Ok)
            }
            Ask::Flush => Ok((smallvec![Op::Flush], Pieces::new())),
            Ask::Zero(spans) => {
                let ops = spans.iter().map(|&span| Op::Zero { span }).collect();
                Ok((ops, Pieces::new()))
            }
            Ask::Write(span) => {
                let data = memory
                    .copy_out(&self.chain.readable, HEADER_BYTES, span.len as usize)
                    .map_err(|_| Status::IoError)?;
                Ok((smallvec![Op::Write { span: *span, data }], Pieces::new()))
            }
            Ask::Read(span) => {
                let mut parts = HostParts::new();
                for &piece in &self.chain.writable {
                    memory
                        .host_parts(piece, &mut parts)
                        .map_err(|_| Status::IoError)?;
                }
                let owner: Arc<Memory> = Arc::clone(memory);
                // SAFETY: the parts are mapped writable while `memory` lives, which `owner` ensures,
                // and nothing here makes Rust references of guest memory.
                let into = unsafe { Landing::new(parts, owner) };
                assert_eq!(
                    into.len() as u64,
                    span.len,
                    "the request was judged by its pieces"
                );
                Ok((
                    smallvec![Op::Read { span: *span, into }],
                    Pieces::from_slice(&self.chain.writable),
                ))
            }
        }
    }

    /// A driver that does not know of flushes, or has switched the cache off, relies on each write.
    fn write_through(&self) -> bool {
        !self.features.has(Features::FLUSH)
            || (self.features.has(Features::CONFIG_WCE) && !self.write_cache)
    }
}

/// Leaves of the pieces what `len` bytes fill.
fn cut_to(pieces: &mut Vec<Piece>, mut len: u64) {
    pieces.retain_mut(|piece| {
        piece.len = len.min(u64::from(piece.len)) as u32;
        len -= u64::from(piece.len);
        piece.len > 0
    });
}

/// Says that a request was bad; seldom, for a guest that does nothing else.
fn grumble(count: &mut u64, ring: usize, what: &dyn std::fmt::Display) {
    *count += 1;
    if *count < 4 || count.is_power_of_two() {
        tracing::warn!(ring, count, %what, "a guest's request was malformed");
    }
}
