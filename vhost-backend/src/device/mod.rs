//! The vhost-user-blk device: a Unix socket in front, a [`Disk`] behind.
//!
//! ```text
//!  front-end (QEMU, cloud-hypervisor)
//!     | messages                          | rings and data in shared memory, eventfds
//!  control ---- message, answer ----> run (the reactor's thread, shared with the disk)
//!     | handler: vhost-user messages      | blk: ring -> chain -> request -> disk -> answer
//!     | socket: permissions, one owner    | memory, dirty_log, inflight
//! ```
//!
//! One small blocking thread a backend reads control messages and hands each to the reactor, which
//! answers when it is *done*: GET_VRING_BASE, say, when the ring's requests have ended, and for the
//! last ring when the disk is synced and closed. All state of the device belongs to the reactor's
//! thread; no lock is waited for on a request's way.
//!
//! docs/vhost-user.md says what is offered, and where this stands on the `vhost` crate instead of on
//! `vhost-user-backend`.

mod blk;
mod chain;
mod config_space;
mod control;
mod dirty_log;
mod event;
mod features;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod handler;
mod in_flight;
mod inflight;
mod memory;
mod message;
mod request;
mod ring;
mod run;
mod shared;
mod socket;
#[cfg(feature = "testing")]
pub mod testing;
mod watch;

use crate::disk::Disk;
use control::{Control, End};
use message::{Mailbox, Message};
use parking_lot::Mutex;
use replicator::store::visit::unless_given_up;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::JoinHandle;

pub use ring::RING_SIZE_MAX;

/// Rings that a device may offer.
pub const QUEUES_MAX: u16 = 256;

#[derive(Clone, Debug)]
pub struct Options {
    pub socket: PathBuf,
    /// Permissions of the socket: 0o600, or 0o660 where the VM runs as another user of the group.
    pub mode: u32,
    /// Rings that are offered. QEMU asks for as many as the guest has vCPUs, and fails where there
    /// are fewer; unused ones cost nothing.
    pub queues: u16,
    pub read_only: bool,
    /// What GET_ID says: at most 20 bytes. The disk's name unless given.
    pub serial: Option<String>,
    /// Lets the guest switch the write cache off. Neither front-end carries that setting over to
    /// another backend process (a restart of the node, a live migration), which would then treat
    /// writes as cached that the guest believes to be durable: off unless the VM never moves.
    pub config_wce: bool,
    /// How long a backend that ends waits at most for requests in flight; then they stay open, and the inflight region
    /// says so. And how long a front-end that stops a ring waits for requests that were not begun, because the disk is
    /// not open; then its connection is closed. For those that were begun it waits as long as it takes.
    pub drain_timeout: Duration,
    /// The disk has been started already, before any ring: after a take-over, so that the former writer is
    /// fenced without waiting for a VM. It is stopped as one that a ring started.
    pub disk_started: bool,
}

impl Options {
    pub fn new(socket: impl Into<PathBuf>) -> Options {
        Options {
            socket: socket.into(),
            mode: 0o600,
            queues: 64,
            read_only: false,
            serial: None,
            config_wce: false,
            drain_timeout: Duration::from_secs(60),
            disk_started: false,
        }
    }
}

/// What a device is doing, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Status {
    pub connected: bool,
    pub rings_running: usize,
    /// Rings that are given up because the guest's driver broke their rules.
    pub rings_broken: usize,
    pub requests_in_flight: usize,
    /// Between the start of the first ring and the end of the last: this backend is, or becomes,
    /// the writer.
    pub disk_started: bool,
}

#[derive(Debug, Default)]
struct Shared {
    connected: AtomicBool,
    /// The front-end's, while it is served.
    connection: Mutex<Option<UnixStream>>,
    rings_running: AtomicUsize,
    rings_broken: AtomicUsize,
    requests_in_flight: AtomicUsize,
    disk_started: AtomicBool,
}

impl Shared {
    /// Nobody is at the other end of the connection any more, whether or not that was noticed already.
    fn front_end_has_gone(&self) -> bool {
        let connection = self.connection.lock();
        let Some(stream) = &*connection else {
            return true;
        };
        let mut poll = [PollFd::new(stream, PollFlags::RDHUP)];
        let polled = rustix::event::poll(&mut poll, Some(&Timespec::default()));
        polled.is_ok_and(|ready| ready > 0)
    }
}

/// A device that serves. Dropping it ends it as a crash would, as far as the guest can tell: open
/// requests stay open. [`Backend::shutdown`] is the orderly way.
pub struct Backend<D> {
    mailbox: Mailbox,
    shared: Arc<Shared>,
    control: Control,
    device: JoinHandle<D>,
    drain_timeout: Duration,
}

impl<D: Disk + 'static> Backend<D> {
    /// Listens, and serves one front-end after another. To be called on the thread of the disk's
    /// reactor, within its `LocalSet`.
    pub fn spawn(disk: D, options: Options) -> io::Result<Backend<D>> {
        if !(1..=QUEUES_MAX).contains(&options.queues) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a device has 1 to {QUEUES_MAX} queues, not {}",
                    options.queues
                ),
            ));
        }
        let listener = socket::listen(&options.socket, options.mode)?;
        let (mailbox, letters) = Mailbox::new();
        let shared = Arc::new(Shared::default());
        let config = blk::Blk::config_space(&options, &disk);
        let control = Control::spawn(
            listener,
            mailbox.clone(),
            Arc::clone(&shared),
            config,
            &options,
        )?;
        let drain_timeout = options.drain_timeout;
        let run = run::run(disk, options, letters, Arc::clone(&shared));
        let device = tokio::task::spawn_local(unless_given_up(run));
        Ok(Backend {
            mailbox,
            shared,
            control,
            device,
            drain_timeout,
        })
    }

    pub fn lifeline(&self) -> Lifeline {
        Lifeline(self.control.handle())
    }

    pub fn status(&self) -> Status {
        Status {
            connected: self.shared.connected.load(Ordering::Relaxed),
            rings_running: self.shared.rings_running.load(Ordering::Relaxed),
            rings_broken: self.shared.rings_broken.load(Ordering::Relaxed),
            requests_in_flight: self.shared.requests_in_flight.load(Ordering::Relaxed),
            disk_started: self.shared.disk_started.load(Ordering::Relaxed),
        }
    }

    /// Answers what is in flight, takes nothing more, disconnects, stops the disk and gives it back.
    /// `None`: requests did not end within the drain timeout, so the disk could not be stopped and
    /// its epoch stays open.
    pub async fn shutdown(self) -> Option<D> {
        let Backend {
            mailbox,
            control,
            mut device,
            drain_timeout,
            ..
        } = self;
        if let Err(refused) = mailbox.ask_async(Message::Quiesce).await {
            tracing::warn!(%refused, "a backend ends with requests open");
        }
        control.end();
        drop(mailbox);
        match tokio::time::timeout(drain_timeout, &mut device).await {
            Ok(Ok(disk)) => {
                control.join();
                Some(disk)
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "a backend's device had died");
                None
            }
            Err(_) => {
                // Dropping the device drops the answers that the control thread waits for.
                device.abort();
                let _ = device.await;
                control.join();
                None
            }
        }
    }
}

/// Takes the socket from a device whose thread was given up ([`replicator::store::visit`]): for that thread nothing of it is
/// done any more. Its requests stay open, as after a crash; who serves the disk next finds them in the inflight region.
#[derive(Clone)]
pub struct Lifeline(Weak<End>);

impl Lifeline {
    /// From any thread, and after the device's own was given up.
    pub fn cut(&self) {
        // None: the device has ended in good order.
        if let Some(end) = self.0.upgrade() {
            end.give_up();
        }
    }
}

/// Why the device does not do what a message says.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

impl Refused {
    fn new(why: &str) -> Refused {
        Refused(why.to_owned())
    }

    fn gone() -> Refused {
        Refused::new("the device has ended")
    }
}
