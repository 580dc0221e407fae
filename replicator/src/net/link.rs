//! A link: one disk's way to one far store. Several links to a store share one connection.

use super::meter::Meter;
use crate::message::{Found, Refusal, Reply, Request, checksum};
use crate::wire::{Call, Frame, Message, since, spoken};
use crate::words::{BLOCK_BYTES, StoreId};
use crate::writer::CallId;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Requests that wait for the network, in bytes. Writers bound what they have in flight; one
/// that sends more than this to a peer that does not take it loses the session instead of memory.
const MAX_QUEUED_BYTES: usize = 64 << 20;

/// What happens on a link, in order.
#[derive(Clone, PartialEq, Debug)]
pub enum LinkEvent {
    /// A session stands: what is sent from now on travels in it.
    Connected,
    /// The session is gone. Nothing that was sent in it is answered any more.
    Disconnected,
    /// The answer to a call. The data of a read has been checked against its checksums.
    Reply { call: CallId, reply: Reply },
}

pub(super) type Events = Arc<dyn Fn(LinkEvent) + Send + Sync>;

/// See [`super::Links::link`].
pub struct Link {
    remote: Arc<Remote>,
    me: Subscriber,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Subscriber(u64);

/// A far store: what the links to it and the task that keeps the connection share.
pub(super) struct Remote {
    pub store: StoreId,
    /// The connection that stands, or stood last.
    connection: Mutex<Option<quinn::Connection>>,
    meter: Mutex<Meter>,
    state: Mutex<RemoteState>,
    /// Something is to be sent, or nobody is left to send for.
    pub wake: Notify,
}

#[derive(Default)]
struct RemoteState {
    connected: bool,
    /// What is spoken in the session that stands.
    version: u16,
    ended: bool,
    queue: Vec<Bytes>,
    queued_bytes: usize,
    overflowed: bool,
    pending: HashMap<Call, Pending>,
    next_call: u64,
    subscribers: HashMap<Subscriber, Events>,
    next_subscriber: u64,
}

/// A request that was sent, and what may answer it.
struct Pending {
    subscriber: Subscriber,
    call: CallId,
    expected: Expected,
}

#[derive(Clone, Copy)]
enum Expected {
    Sealed,
    Joined,
    Written,
    /// This many blocks.
    Read(usize),
    Synced,
    Listed,
    Settled,
    Surveyed,
    Pulled,
    /// This many blocks.
    Fetched(usize),
    Kept,
    Collapsed,
    Digested,
    Verified,
}

impl Link {
    /// `None` if the connection has been given up in this moment.
    pub(super) fn join(remote: &Arc<Remote>, events: Events) -> Option<Link> {
        let mut state = remote.state.lock();
        if state.ended {
            return None;
        }
        let me = Subscriber(state.next_subscriber);
        state.next_subscriber += 1;
        if state.connected {
            events(LinkEvent::Connected);
        }
        state.subscribers.insert(me, events);
        Some(Link {
            remote: remote.clone(),
            me,
        })
    }

    pub fn store(&self) -> StoreId {
        self.remote.store
    }

    /// The round trip of the connection that stands.
    pub fn round_trip(&self) -> Option<Duration> {
        let connection = self.remote.connection.lock();
        let open = connection
            .as_ref()
            .filter(|connection| connection.close_reason().is_none());
        open.map(|connection| connection.rtt())
    }

    pub fn is_connected(&self) -> bool {
        self.remote.state.lock().connected
    }

    /// How many bytes have come in over the connection that stands.
    pub(super) fn received(&self) -> u64 {
        let connection = self.remote.connection.lock();
        let stats = connection.as_ref().map(|connection| connection.stats());
        stats.map_or(0, |stats| stats.udp_rx.bytes)
    }

    /// Sends in the session that stands; without one, nothing happens, and whoever hears
    /// [`LinkEvent::Connected`] sends again what matters.
    pub fn send(&self, call: CallId, request: &Request) {
        let mut state = self.remote.state.lock();
        if !state.connected || state.overflowed {
            return;
        }
        if since(request) > state.version {
            // An older program, which would hang up: it is as if it had said so itself.
            let why = "the store is of an older version";
            let reply = Reply::Refused(Refusal::Invalid { why });
            if let Some(events) = state.subscribers.get(&self.me) {
                events(LinkEvent::Reply { call, reply });
            }
            return;
        }
        let on_wire = Call(state.next_call);
        state.next_call += 1;
        let frame = spoken(request, state.version).encode(on_wire);
        tracing::trace!(store = %self.remote.store, call = on_wire.0, kind = request.kind(), bytes = frame.len(), "send");
        let pending = Pending {
            subscriber: self.me,
            call,
            expected: Expected::of(request),
        };
        state.pending.insert(on_wire, pending);
        state.enqueue(frame);
        drop(state);
        self.remote.wake.notify_one();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.remote.state.lock().subscribers.remove(&self.me);
        self.remote.wake.notify_one();
    }
}

/// Why what a peer answered cannot be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Nonsense {
    #[error("it answered call {0}, which was not asked")]
    Unasked(u64),
    #[error("its answer is not one to the request")]
    OtherKind,
}

impl Remote {
    pub fn new(store: StoreId) -> Arc<Remote> {
        Arc::new(Remote {
            store,
            connection: Mutex::default(),
            meter: Mutex::default(),
            state: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Whether any link is left. After `false` none can join any more.
    pub fn is_wanted(&self) -> bool {
        let mut state = self.state.lock();
        state.ended = state.subscribers.is_empty();
        !state.ended
    }

    /// The round trip, and the best rate lately, of the connection that stands.
    pub fn measure(&self) -> Option<(Duration, u64)> {
        let connection = self.connection.lock().clone()?;
        if connection.close_reason().is_some() {
            return None;
        }
        let stats = connection.stats();
        let bytes = [stats.udp_tx.bytes, stats.udp_rx.bytes];
        let rate = self.meter.lock().look(Instant::now(), bytes);
        Some((connection.rtt(), rate))
    }

    pub fn connected(&self, connection: &quinn::Connection, version: u16) {
        *self.connection.lock() = Some(connection.clone());
        let mut state = self.state.lock();
        state.connected = true;
        state.version = version;
        state.tell_all(&LinkEvent::Connected);
    }

    pub fn disconnected(&self) {
        *self.connection.lock() = None;
        let mut state = self.state.lock();
        state.connected = false;
        state.queue.clear();
        state.queued_bytes = 0;
        state.overflowed = false;
        state.pending.clear();
        state.tell_all(&LinkEvent::Disconnected);
    }

    /// What is to be sent; `None` where there is more than a peer that works would have left.
    pub fn take_queue(&self, into: &mut Vec<Bytes>) -> Option<()> {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.queue, into);
        state.queued_bytes = 0;
        (!state.overflowed).then_some(())
    }

    /// Hands an answer to the link that asked.
    pub fn answered(&self, call: Call, reply: Reply) -> Result<(), Nonsense> {
        let mut state = self.state.lock();
        let pending = state
            .pending
            .remove(&call)
            .ok_or(Nonsense::Unasked(call.0))?;
        tracing::trace!(store = %self.store, call = call.0, "answer");
        let reply = pending.expected.check(reply)?;
        // A link that was dropped meanwhile does not want it.
        if let Some(events) = state.subscribers.get(&pending.subscriber) {
            events(LinkEvent::Reply {
                call: pending.call,
                reply,
            });
        }
        Ok(())
    }
}

impl RemoteState {
    fn enqueue(&mut self, frame: Frame) {
        self.queued_bytes += frame.len();
        if self.queued_bytes > MAX_QUEUED_BYTES {
            self.overflowed = true;
            self.queue.clear();
            return;
        }
        self.queue.push(frame.head);
        if !frame.data.is_empty() {
            self.queue.push(frame.data);
        }
    }

    fn tell_all(&self, event: &LinkEvent) {
        for events in self.subscribers.values() {
            events(event.clone());
        }
    }
}

impl Expected {
    fn of(request: &Request) -> Expected {
        match request {
            Request::Seal { .. } => Expected::Sealed,
            Request::Join { .. } => Expected::Joined,
            Request::Write { .. } => Expected::Written,
            Request::Read { blocks, .. } => Expected::Read(blocks.count as usize),
            Request::Sync { .. } => Expected::Synced,
            Request::List { .. } => Expected::Listed,
            Request::Settle { .. } => Expected::Settled,
            Request::Survey { .. } => Expected::Surveyed,
            Request::Pull { .. } | Request::Heal { .. } => Expected::Pulled,
            Request::Digest { .. } => Expected::Digested,
            Request::Verify { .. } => Expected::Verified,
            Request::Fetch { blocks, .. } => {
                Expected::Fetched(blocks.iter().map(|part| part.count as usize).sum())
            }
            Request::Keep { .. } => Expected::Kept,
            Request::Collapse { .. } => Expected::Collapsed,
        }
    }

    /// The reply, if it can answer the request; a refusal where its data was damaged on the way.
    fn check(self, reply: Reply) -> Result<Reply, Nonsense> {
        let fits = match (self, &reply) {
            (_, Reply::Refused(_))
            | (Expected::Sealed, Reply::Sealed(_))
            | (Expected::Joined, Reply::Joined(_))
            | (Expected::Written, Reply::Written(_))
            | (Expected::Synced, Reply::Synced)
            | (Expected::Listed, Reply::Listed { .. })
            | (Expected::Settled, Reply::Settled(_))
            | (Expected::Surveyed, Reply::Surveyed { .. })
            | (Expected::Pulled, Reply::Pulled(_))
            | (Expected::Digested, Reply::Digested(_))
            | (Expected::Verified, Reply::Verified(_))
            | (Expected::Kept, Reply::Kept(_))
            | (Expected::Collapsed, Reply::Collapsed) => true,
            (Expected::Fetched(blocks), Reply::Fetched(fetched)) => fetched.found.len() == blocks,
            (Expected::Read(blocks), Reply::Read(read)) => read.found.len() == blocks,
            _ => false,
        };
        if !fits {
            return Err(Nonsense::OtherKind);
        }
        if is_intact(&reply) {
            Ok(reply)
        } else {
            Ok(Reply::Refused(Refusal::BadChecksum))
        }
    }
}

/// Whether the data of a read has the checksums that the store says it has.
fn is_intact(reply: &Reply) -> bool {
    let Reply::Read(read) = reply else {
        return true;
    };
    let sums = read.found.iter().filter_map(|found| match found {
        Found::Data { sum, .. } => Some(*sum),
        _ => None,
    });
    let blocks = read.data.chunks_exact(BLOCK_BYTES as usize);
    blocks.zip(sums).all(|(block, sum)| checksum(block) == sum)
}
