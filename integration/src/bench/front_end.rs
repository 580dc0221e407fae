//! The guest's half of a virtio-blk device, over a vhost-user socket: somebody else's driver (the
//! virtio-driver crate), the same one for us and for every peer.
//!
//! It does as a guest does: it announces requests with one kick for many, sleeps on the interrupt's
//! event descriptor, and asks for no interrupts while it is awake. It never polls, and is bound to no
//! processor.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};
use vm_memory::{FileOffset, MmapRegion};

/// Three descriptors a request, and 128 requests at once.
const RING: u16 = 512;
const SECTOR: u64 = 512;

/// What a guest asks of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Read { offset: u64 },
    Write { offset: u64 },
    Flush,
}

/// A connection to one disk.
pub struct FrontEnd {
    // Before the transport, whose memory they use.
    queues: Vec<Queue>,
    transport: Box<VirtioBlkTransport>,
    abandoned: Arc<AtomicBool>,
}

/// One queue, for one thread: so many slots, each with a buffer and at most one request.
pub struct Queue {
    ring: VirtioBlkQueue<'static, u16>,
    kick: Box<dyn QueueNotifier>,
    interrupt: Arc<EventFd>,
    abandoned: Arc<AtomicBool>,
    memory: MmapRegion,
    slot_bytes: usize,
}

impl FrontEnd {
    /// Connects as one driver: queues, each with `slots` buffers of `slot_bytes`.
    pub fn connect(
        socket: &Path,
        queues: usize,
        slots: u16,
        slot_bytes: usize,
    ) -> Result<FrontEnd> {
        let path = socket.to_str().context("a path of text")?;
        let features = (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX).bits()
            | (VirtioBlkFeatureFlags::FLUSH | VirtioBlkFeatureFlags::MQ).bits();
        let connected = VhostUser::new(path, features);
        let connected = connected.with_context(|| format!("connect to {path}"))?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(connected);
        ensure!(
            transport.get_features() & VirtioBlkFeatureFlags::FLUSH.bits() != 0,
            "{path} offers no FLUSH"
        );
        let rings = VirtioBlkQueue::setup_queues(transport.as_mut(), queues, RING)
            .context("set up the queues")?;
        let abandoned = Arc::new(AtomicBool::new(false));
        let queues = rings.into_iter().enumerate().map(|(index, mut ring)| {
            let memory = Queue::memory(usize::from(slots) * slot_bytes)?;
            let file = memory.file_offset().expect("made from a file").file();
            let descriptor = std::os::fd::AsRawFd::as_raw_fd(file);
            let at = memory.as_ptr() as usize;
            transport
                .map_mem_region(at, memory.size(), descriptor, 0)
                .context("show the buffers")?;
            ring.set_used_notif_enabled(true);
            Ok(Queue {
                ring,
                kick: transport.get_submission_notifier(index),
                interrupt: transport.get_completion_fd(index),
                abandoned: abandoned.clone(),
                memory,
                slot_bytes,
            })
        });
        let queues = queues.collect::<Result<_>>()?;
        Ok(FrontEnd {
            queues,
            transport,
            abandoned,
        })
    }

    /// The size of the disk.
    pub fn bytes(&self) -> Result<u64> {
        Ok(u64::from(self.transport.get_config()?.capacity) * SECTOR)
    }

    pub fn queues(&mut self) -> &mut [Queue] {
        &mut self.queues
    }

    /// What ends all waiting on this connection's queues with an error.
    pub fn watchdog(&self) -> Watchdog {
        Watchdog {
            abandoned: self.abandoned.clone(),
            interrupts: self
                .queues
                .iter()
                .map(|queue| queue.interrupt.clone())
                .collect(),
        }
    }
}

pub struct Watchdog {
    abandoned: Arc<AtomicBool>,
    interrupts: Vec<Arc<EventFd>>,
}

impl Watchdog {
    /// The other side does not answer any more: nobody waits for it.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        for interrupt in &self.interrupts {
            // It can only fail if it would overflow, and then the waiter is awake.
            let _ = interrupt.write(1);
        }
    }
}

impl Queue {
    fn memory(bytes: usize) -> Result<MmapRegion> {
        let file = File::from(memfd_create("ukai-bench", MemfdFlags::CLOEXEC)?);
        file.set_len(bytes as u64)?;
        MmapRegion::from_file(FileOffset::new(file, 0), bytes).context("map the buffers")
    }

    /// The bytes that a request of this slot writes or has read; none is under way.
    pub fn buffer(&mut self, slot: u16) -> &mut [u8] {
        let at = self.slot(slot);
        // SAFETY: within the mapping, which lives as long as we do; callers have no request under way in
        // this slot, so that nobody else writes to it, and `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(at, self.slot_bytes) }
    }

    /// Puts a request into the ring; [`Queue::announce`] tells the other side.
    pub fn submit(&mut self, slot: u16, request: Request) -> Result<()> {
        let (at, bytes) = (self.slot(slot), self.slot_bytes);
        match request {
            // SAFETY: the slot's buffer lives as long as the ring, and has no other request.
            Request::Read { offset } => unsafe { self.ring.read_raw(offset, at, bytes, slot) },
            // SAFETY: the same.
            Request::Write { offset } => unsafe { self.ring.write_raw(offset, at, bytes, slot) },
            Request::Flush => self.ring.flush(slot),
        }
        .with_context(|| format!("submit {request:?}"))
    }

    /// One kick for all that was submitted, if the other side sleeps.
    pub fn announce(&mut self) -> Result<()> {
        if self.ring.avail_notif_needed() {
            self.kick.notify().context("kick")?;
        }
        Ok(())
    }

    /// Sleeps until requests are done, and names their slots.
    pub fn wait(&mut self, done: &mut Vec<u16>) -> Result<()> {
        self.wait_until(done, None)
    }

    /// The same; with a moment when it is over, perhaps with none done.
    pub fn wait_until(&mut self, done: &mut Vec<u16>, until: Option<Instant>) -> Result<()> {
        done.clear();
        loop {
            self.collect(done)?;
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if !done.is_empty() || left.is_some_and(|left| left.is_zero()) {
                return Ok(());
            }
            self.sleep(left).context("wait for an interrupt")?;
            if self.abandoned.load(Ordering::Acquire) {
                bail!("the disk does not answer any more");
            }
        }
    }

    /// The descriptor is shared with the other side, and some make it non-blocking.
    fn sleep(&self, at_most: Option<Duration>) -> std::io::Result<()> {
        let at_most = at_most.map(|time| Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: time.subsec_nanos().into(),
        });
        let mut interrupt = [PollFd::new(&self.interrupt, PollFlags::IN)];
        if poll(&mut interrupt, at_most.as_ref())? == 0 {
            return Ok(());
        }
        match self.interrupt.read() {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            other => other.map(drop),
        }
    }

    /// All that is done by now; afterwards the next one interrupts.
    fn collect(&mut self, done: &mut Vec<u16>) -> Result<()> {
        self.ring.set_used_notif_enabled(false);
        loop {
            for completion in self.ring.completions() {
                ensure!(
                    completion.ret == 0,
                    "a request failed: {}",
                    std::io::Error::from_raw_os_error(-completion.ret)
                );
                done.push(completion.context);
            }
            self.ring.set_used_notif_enabled(true);
            if !self.ring.completions().has_next() {
                return Ok(());
            }
            self.ring.set_used_notif_enabled(false);
        }
    }

    fn slot(&self, slot: u16) -> *mut u8 {
        let from = usize::from(slot) * self.slot_bytes;
        assert!(
            from + self.slot_bytes <= self.memory.size(),
            "a slot of ours"
        );
        // SAFETY: within the mapping, as just asserted.
        unsafe { self.memory.as_ptr().add(from) }
    }
}
