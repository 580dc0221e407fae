//! The device itself, without sockets, threads or time: rings, memory, requests in flight.
//!
//! A request's way: [`Blk::turn`] takes heads off the rings, [`super::chain`] reads their
//! descriptors, [`super::request`] judges them, the disk gets them; [`Blk::complete`] puts data
//! marks, status and answer back; [`Blk::interrupt`] tells the guest, once a batch.
//!
//! Promises: a guest's mistakes end its request with an error, or its ring; never this process. What
//! it can make us hold is bounded by the number and size of its rings and by [`Disk::room`].

use super::chain::Chain;
use super::config_space::ConfigSpace;
use super::dirty_log::DirtyLog;
use super::features::Features;
use super::in_flight::{InFlight, Key, Table};
use super::inflight::Inflight;
use super::memory::Memory;
use super::message::{Message, ToRing};
use super::request::{Ask, HEADER_BYTES, Limits, Request, SERIAL_BYTES, Status, parse};
use super::ring::{Head, RING_SIZE_MAX, Ring, RingFault};
use super::{Options, Refused, features};
use crate::disk::{Disk, Failure, Landing, Op, RequestId};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

pub struct Blk {
    limits: Limits,
    serial: [u8; SERIAL_BYTES],
    offered: Features,
    features: Features,
    write_cache: bool,
    memory: Arc<Memory>,
    log: Option<DirtyLog>,
    inflight: Option<Arc<Inflight>>,
    rings: Vec<Ring>,
    requests: Table,
    /// Whether the disk has been started and not been stopped since.
    disk_started: bool,
    next_generation: u64,
    bad_requests: u64,
    chain: Chain,
}

/// What has become of a message.
#[derive(Debug)]
pub enum Outcome {
    Done(Result<u64, Refused>),
    /// To be answered by [`Blk::conclude`] once [`Blk::is_over`].
    After(Wait),
}

/// What a message waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// A disabled ring has nothing in flight.
    Paused(u16),
    /// The same, to end the ring.
    Stopped(u16),
    /// Nothing is in flight, of a front-end that has gone.
    Settled,
    /// Nothing is in flight in any ring.
    Quiesced,
}

impl Blk {
    pub fn new(options: &Options, disk: &impl Disk) -> Blk {
        let geometry = disk.geometry();
        let mut serial = [0; SERIAL_BYTES];
        let name = options.serial.as_deref().unwrap_or(geometry.name.as_str());
        for (to, from) in serial.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Blk {
            limits: Limits {
                disk_bytes: geometry.bytes,
                read_only: options.read_only,
            },
            serial,
            offered: features::offered(options.read_only, options.config_wce),
            features: Features::default(),
            write_cache: true,
            memory: Arc::default(),
            log: None,
            inflight: None,
            rings: (0..options.queues).map(|_| Ring::default()).collect(),
            requests: Table::default(),
            disk_started: false,
            next_generation: 0,
            bad_requests: 0,
            chain: Chain::default(),
        }
    }

    pub fn config_space(options: &Options, disk: &impl Disk) -> ConfigSpace {
        ConfigSpace::new(disk.geometry().bytes, options.queues)
    }

    pub fn disk_started(&self) -> bool {
        self.disk_started
    }

    pub fn in_flight(&self) -> usize {
        self.requests.len()
    }

    pub fn rings_running(&self) -> usize {
        self.rings.iter().filter(|ring| ring.running()).count()
    }

    pub fn rings_broken(&self) -> usize {
        let broken = |ring: &&Ring| ring.live.as_ref().is_some_and(|live| live.broken);
        self.rings.iter().filter(broken).count()
    }

    /// A kick has come.
    pub fn kicked(&mut self, ring: u16) {
        if let Some(ring) = self.rings.get_mut(usize::from(ring)) {
            ring.pending = ring.live.is_some();
        }
    }

    pub fn apply(&mut self, message: Message, disk: &mut impl Disk) -> Outcome {
        match message {
            Message::SetFeatures(features) => Outcome::Done(self.set_features(features, disk)),
            Message::SetWriteCache(on) => {
                self.write_cache = on;
                Outcome::Done(Ok(0))
            }
            Message::SetMemory(regions) => {
                let memory = Memory::new(regions);
                Outcome::Done(memory.and_then(|memory| self.set_memory(memory)))
            }
            Message::AddRegion(region) => {
                let memory = self.memory.with(region);
                Outcome::Done(memory.and_then(|memory| self.set_memory(memory)))
            }
            Message::RemoveRegion {
                guest_addr,
                bytes,
                user_addr,
            } => {
                let memory = self.memory.without(guest_addr, bytes, user_addr);
                Outcome::Done(memory.and_then(|memory| self.set_memory(memory)))
            }
            Message::SetInflight(inflight) => {
                // Rings that run keep the record that they began with.
                self.inflight = Some(Arc::new(inflight));
                Outcome::Done(Ok(0))
            }
            Message::SetLog(log) => {
                // Every mark is made on this thread: none is on its way into the old log.
                self.log = Some(log);
                Outcome::Done(Ok(0))
            }
            Message::Ring(index, to_ring) => self.to_ring(index, to_ring, disk),
            Message::Detach => {
                for ring in &mut self.rings {
                    *ring = Ring::default();
                }
                Outcome::Done(Ok(0))
            }
            Message::Settle => Outcome::After(Wait::Settled),
            Message::Quiesce => {
                for ring in &mut self.rings {
                    if let Some(live) = &mut ring.live {
                        live.stopping = true;
                        ring.pending = true;
                    }
                }
                Outcome::After(Wait::Quiesced)
            }
        }
    }

    fn set_features(&mut self, features: Features, disk: &mut impl Disk) -> Result<u64, Refused> {
        if !features.within(self.offered) {
            return Err(Refused::new("features that were not offered"));
        }
        let logging = features.has(Features::LOG_ALL);
        if logging != self.features.has(Features::LOG_ALL) {
            disk.sync_continuously(logging);
        }
        self.features = features;
        if !features.has(Features::PROTOCOL_FEATURES) {
            // Such a front-end cannot enable rings: they are, from the start.
            for index in 0..self.rings.len() as u16 {
                self.rings[usize::from(index)].enabled = true;
                self.start_if_ready(index, disk)?;
            }
        }
        Ok(0)
    }

    /// Puts a new table in force, if every ring that runs is still to be found in it.
    fn set_memory(&mut self, memory: Memory) -> Result<u64, Refused> {
        for ring in &self.rings {
            if ring.running() && !ring.fits(&memory) {
                return Err(Refused::new("the new memory table lacks a ring that runs"));
            }
        }
        for ring in &mut self.rings {
            if ring.fits(&memory) {
                ring.replace(&memory)?;
            } else if ring.quiet() {
                // Paused: it will be told anew where it is before it runs again.
                ring.stop();
            }
        }
        self.memory = Arc::new(memory);
        Ok(0)
    }

    #[cfg(any(test, feature = "testing"))]
    pub fn replace_memory(&mut self, memory: Memory) {
        self.memory = Arc::new(memory);
    }

    fn to_ring(&mut self, index: u16, to_ring: ToRing, disk: &mut impl Disk) -> Outcome {
        let Some(ring) = self.rings.get_mut(usize::from(index)) else {
            return Outcome::Done(Err(Refused::new("no such ring")));
        };
        let done = match to_ring {
            ToRing::Size(size) => {
                if !size.is_power_of_two() || size > RING_SIZE_MAX {
                    Err(Refused::new("a ring of a forbidden size"))
                } else if ring.size == size {
                    Ok(())
                } else {
                    told_anew(ring).map(|()| ring.size = size)
                }
            }
            ToRing::Base(base) => told_anew(ring).map(|()| ring.base = base),
            ToRing::Addresses(addresses) => {
                // On a ring that runs this is how logging is switched on and off.
                let before = ring.addresses.replace(addresses);
                let replaced = ring.replace(&self.memory);
                if replaced.is_err() {
                    ring.addresses = before;
                }
                replaced
            }
            // The descriptor itself is with the event loop.
            ToRing::Kick(_) => {
                ring.kick = true;
                ring.pending = ring.live.is_some();
                self.start_if_ready(index, disk)
            }
            ToRing::Call(call) => {
                ring.call = call;
                if ring.live.is_some() {
                    // What was signalled to the old descriptor may not have been heard.
                    ring.interrupt();
                }
                Ok(())
            }
            ToRing::Error(error) => {
                ring.error = error;
                Ok(())
            }
            ToRing::Enable(true) => {
                ring.enabled = true;
                ring.pending = ring.live.is_some();
                self.start_if_ready(index, disk)
            }
            ToRing::Enable(false) => {
                ring.enabled = false;
                ring.pending = ring.live.is_some();
                return Outcome::After(Wait::Paused(index));
            }
            ToRing::Stop => {
                if let Some(live) = &mut ring.live {
                    live.stopping = true;
                }
                ring.pending = ring.live.is_some();
                return Outcome::After(Wait::Stopped(index));
            }
        };
        Outcome::Done(done.map(|()| 0))
    }

    fn start_if_ready(&mut self, index: u16, disk: &mut impl Disk) -> Result<(), Refused> {
        let ring = &mut self.rings[usize::from(index)];
        if !ring.may_start() {
            return Ok(());
        }
        self.next_generation += 1;
        ring.start(
            index,
            &self.memory,
            self.inflight.as_ref(),
            self.features,
            self.next_generation,
        )?;
        if !self.disk_started {
            self.disk_started = true;
            disk.start();
        }
        Ok(())
    }

    pub fn is_over(&self, wait: Wait) -> bool {
        match wait {
            Wait::Paused(index) | Wait::Stopped(index) => self.rings[usize::from(index)].quiet(),
            Wait::Quiesced => self.rings.iter().all(Ring::quiet),
            Wait::Settled => self.requests.is_empty(),
        }
    }

    /// What is left to do once a wait is over. The answer is only to be given after the disk has
    /// been stopped, where that is due: [`Blk::disk_stopped`].
    pub fn conclude(&mut self, wait: Wait, disk: &mut impl Disk) -> u64 {
        assert!(self.is_over(wait));
        match wait {
            Wait::Paused(_) | Wait::Quiesced => 0,
            Wait::Stopped(index) => {
                let ring = &mut self.rings[usize::from(index)];
                ring.kick = false;
                u64::from(ring.stop())
            }
            Wait::Settled => {
                if self.features.has(Features::LOG_ALL) {
                    disk.sync_continuously(false);
                }
                self.features = Features::default();
                self.memory = Arc::default();
                self.log = None;
                self.inflight = None;
                0
            }
        }
    }

    /// The last ring has ended.
    pub fn disk_is_idle(&self) -> bool {
        self.disk_started
            && self.requests.is_empty()
            && self.rings.iter().all(|ring| ring.live.is_none())
    }

    pub fn disk_stopped(&mut self) {
        assert!(
            self.requests.is_empty(),
            "a disk is stopped after its last request"
        );
        self.disk_started = false;
    }

    /// Takes what the rings have, at most one ring's fill from each. `true`: there is more.
    pub fn turn(&mut self, disk: &mut impl Disk) -> bool {
        let mut more = false;
        for index in 0..self.rings.len() {
            if !self.rings[index].pending {
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

    fn take_from(&mut self, index: usize, disk: &mut impl Disk) -> Result<bool, RingFault> {
        let memory = Arc::clone(&self.memory);
        let ring = &mut self.rings[index];
        let enabled = ring.enabled;
        let Some(live) = ring.live.as_mut().filter(|live| !live.broken) else {
            return Ok(false);
        };
        ring.blocked = false;
        // A ring that is about to pause or to end still owes what a predecessor had begun.
        let only_again = !enabled || live.stopping;
        if !only_again {
            live.hush(&memory, logging(&self.log, self.features))?;
        }
        for _ in 0..live_size(&self.rings[index]) {
            let live = self.rings[index].live.as_mut().expect("it was there");
            match live.next(&memory, only_again)? {
                Some(head) => {
                    if !self.begin(index, head, &memory, disk)? {
                        self.rings[index].blocked = true;
                        return Ok(false);
                    }
                }
                None if only_again => return Ok(false),
                None => {
                    if !live.listen(&memory, logging(&self.log, self.features))? {
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
        memory: &Arc<Memory>,
        disk: &mut impl Disk,
    ) -> Result<bool, RingFault> {
        let live = self.rings[index].live.as_mut().expect("a live ring");
        let read = self
            .chain
            .read(memory, live.descriptors(), live.size(), head.index);
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
        if let Ask::Write(span) = &request.ask
            // A write of any size may go alone: else one larger than all the room would wait for ever.
            && disk.room() < span.len
            && !self.requests.is_empty()
        {
            live.put_back(head);
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
                live.answer(memory, log, head.index, written)?;
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
    ) -> Result<(Vec<Op>, Vec<super::memory::Piece>), Status> {
        match &request.ask {
            Ask::Done(status) => Err(*status),
            Ask::Serial => {
                let len = SERIAL_BYTES.min(request.data_in as usize);
                memory
                    .write(&self.chain.writable, &self.serial[..len])
                    .map_err(|_| Status::IoError)?;
                if let Some(log) = logging(&self.log, self.features) {
                    mark_all(log, &self.chain.writable);
                }
                Err(Status::Ok)
            }
            Ask::Flush => Ok((vec![Op::Flush], Vec::new())),
            Ask::Zero(spans) => {
                let ops = spans.iter().map(|&span| Op::Zero { span }).collect();
                Ok((ops, Vec::new()))
            }
            Ask::Write(span) => {
                let data = memory
                    .copy_out(&self.chain.readable, HEADER_BYTES, span.len as usize)
                    .map_err(|_| Status::IoError)?;
                Ok((vec![Op::Write { span: *span, data }], Vec::new()))
            }
            Ask::Read(span) => {
                let mut parts = Vec::with_capacity(self.chain.writable.len());
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
                    vec![Op::Read { span: *span, into }],
                    self.chain.writable.clone(),
                ))
            }
        }
    }

    /// A driver that does not know of flushes, or has switched the cache off, relies on each write.
    fn write_through(&self) -> bool {
        !self.features.has(Features::FLUSH)
            || (self.features.has(Features::CONFIG_WCE) && !self.write_cache)
    }

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
        if let Err(fault) = live.answer(&self.memory, log, request.head, written) {
            ring.give_up(request.ring, fault);
        }
    }

    /// One interrupt for each ring that has new answers and whose driver wants to know.
    pub fn interrupt(&mut self) {
        for ring in &mut self.rings {
            if let Some(live) = &mut ring.live
                && live.wants_interrupt(&self.memory)
            {
                ring.interrupt();
            }
        }
    }
}

/// The log, while LOG_ALL is set.
fn logging(log: &Option<DirtyLog>, features: Features) -> Option<&DirtyLog> {
    log.as_ref().filter(|_| features.has(Features::LOG_ALL))
}

fn mark_all(log: &DirtyLog, pieces: &[super::memory::Piece]) {
    for piece in pieces {
        log.mark(piece.addr, u64::from(piece.len));
    }
}

/// Writes the status byte and answers how many bytes the guest has got in all.
fn put_status(memory: &Memory, log: Option<&DirtyLog>, request: &Request, status: Status) -> u32 {
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

/// A ring that was paused, and has nothing in flight, may be told anew where it stands; then it
/// starts anew too.
fn told_anew(ring: &mut Ring) -> Result<(), Refused> {
    if ring.live.is_some() && (ring.enabled || !ring.quiet()) {
        return Err(Refused::new("the ring runs"));
    }
    ring.stop();
    Ok(())
}

fn live_size(ring: &Ring) -> u16 {
    ring.live.as_ref().map_or(0, |live| live.size())
}

/// Says that a request was bad; seldom, for a guest that does nothing else.
fn grumble(count: &mut u64, ring: usize, what: &dyn std::fmt::Display) {
    *count += 1;
    if *count < 4 || count.is_power_of_two() {
        tracing::warn!(ring, count, %what, "a guest's request was malformed");
    }
}
