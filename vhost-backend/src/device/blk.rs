//! The device itself, without sockets, threads or time: rings, memory, requests in flight.
//!
//! A request's way: [`Blk::turn`] takes heads off the rings, [`super::chain`] reads their
//! descriptors, [`super::request`] judges them, the disk gets them ([`take`]); [`Blk::complete`] puts
//! marks, status and answer back, and [`Blk::interrupt`] tells the guest, once a batch ([`answer`]).
//! Here are the messages, and when the disk is ours.
//!
//! Promises: a guest's mistakes end its request with an error, or its ring; never this process. What
//! it can make us hold is bounded by the number and size of its rings and by [`Disk::room`].

mod answer;
mod take;

use super::chain::Chain;
use super::config_space::ConfigSpace;
use super::dirty_log::DirtyLog;
use super::features::Features;
use super::in_flight::Table;
use super::inflight::Inflight;
use super::memory::Memory;
use super::message::{Message, ToRing};
use super::request::{Limits, SERIAL_BYTES};
use super::ring::{RING_SIZE_MAX, Ring};
use super::{Options, Refused, features};
use crate::disk::Disk;
use std::sync::Arc;
use vhost_user_backend::VringT;

pub struct Blk {
    limits: Limits,
    serial: [u8; SERIAL_BYTES],
    offered: Features,
    features: Features,
    write_cache: bool,
    memory: Arc<Memory>,
    log: Option<DirtyLog>,
    inflight: Option<Arc<Inflight>>,
    /// Those that are offered, up to the last that was told anything: each turn looks at all of them, and
    /// of the many that are offered few are used.
    rings: Vec<Ring>,
    rings_offered: u16,
    requests: Table,
    /// Whether the disk has been started and not been stopped since.
    disk_started: bool,
    next_generation: u64,
    bad_requests: u64,
    chain: Chain,
    /// Each turn looks at all rings, and none is asked for kicks.
    watching: bool,
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
            rings: Vec::new(),
            rings_offered: options.queues,
            requests: Table::default(),
            disk_started: options.disk_started,
            next_generation: 0,
            bad_requests: 0,
            chain: Chain::default(),
            watching: false,
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
            Message::Ring(index, to_ring) => self.tell_ring(index, to_ring, disk),
            Message::Detach => {
                for ring in &mut self.rings {
                    *ring = Ring::new();
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
            self.have_rings(self.rings_offered);
            for index in 0..self.rings_offered {
                self.rings[usize::from(index)].vring.set_enabled(true);
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

    fn have_rings(&mut self, count: u16) {
        let count = self.rings.len().max(usize::from(count));
        self.rings.resize_with(count, Ring::new);
    }

    fn tell_ring(&mut self, index: u16, to_ring: ToRing, disk: &mut impl Disk) -> Outcome {
        if index >= self.rings_offered {
            return Outcome::Done(Err(Refused::new("no such ring")));
        }
        self.have_rings(index + 1);
        let ring = &mut self.rings[usize::from(index)];
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
                ring.vring.set_call(call);
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
                ring.vring.set_enabled(true);
                ring.pending = ring.live.is_some();
                self.start_if_ready(index, disk)
            }
            ToRing::Enable(false) => {
                ring.vring.set_enabled(false);
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
}

/// A ring that was paused, and has nothing in flight, may be told anew where it stands; then it
/// starts anew too.
fn told_anew(ring: &mut Ring) -> Result<(), Refused> {
    if ring.live.is_some() && (ring.enabled() || !ring.quiet()) {
        return Err(Refused::new("the ring runs"));
    }
    ring.stop();
    Ok(())
}
