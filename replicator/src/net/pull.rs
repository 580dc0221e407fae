//! Pulls: a node fetches for its own store from another one, whoever's writer ordered it.
//!
//! A thin shell around [`Pull`]: it asks the own store what is missing, the other one for that, and hands
//! the answer to the own store. Nothing is held meanwhile but the place in the queue. A source that does
//! not answer is given up soon; the writer decides what then.

use super::client::Links;
use super::compression::Compression;
use super::link::{Link, LinkEvent};
use super::server::Serve;
use crate::message::{Fetch, Refusal, Reply, Request, SourceFault};
use crate::store::{Pull, SharedStore};
use crate::words::{BLOCK_BYTES, DiskId, Epoch, StoreId};
use crate::writer::CallId;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, timeout};

/// Pulls under way at once, of all peers. Each may hold 2 MiB: what arrived, and the same unpacked. Others wait
/// without any of that, as many as each session lets in (session.rs).
const AT_ONCE: usize = 32;
/// A source that cannot be reached within this, or from which nothing comes for so long, is away.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is no sign of an answer on its way: keep-alives and acknowledgements.
const CHATTER_BYTES: u64 = 16 << 10;
/// However slow the link is.
const MOST_PATIENCE: Duration = Duration::from_secs(30);
/// Of so many disks it is remembered how well their data from one source compresses.
const MEASURED_DISKS: usize = 256;
/// A connection to a source is kept so long after its last use.
const KEPT: Duration = Duration::from_secs(30);

/// Carries out pulls on the runtime of its links. Clones share everything.
#[derive(Clone)]
pub struct Puller {
    inner: Arc<Inner>,
}

struct Inner {
    links: Links,
    permits: Semaphore,
    sources: Mutex<HashMap<StoreId, Arc<Source>>>,
    /// Its own thread, if it has one, ends with this.
    _alive: Option<oneshot::Sender<()>>,
}

impl Puller {
    pub fn new(links: Links) -> Puller {
        Puller::living(links, None)
    }

    fn living(links: Links, alive: Option<oneshot::Sender<()>>) -> Puller {
        Puller {
            inner: Arc::new(Inner {
                links,
                permits: Semaphore::new(AT_ONCE),
                sources: Mutex::default(),
                _alive: alive,
            }),
        }
    }

    /// One with a thread of its own, so that unpacking and filling in take no other's time. `links` is called
    /// there. The thread ends with the last clone.
    pub fn spawn(links: impl FnOnce() -> io::Result<Links> + Send + 'static) -> io::Result<Puller> {
        let (made, ready) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("puller".into())
            .spawn(move || {
                let runtime = match Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(made.send(Err(error))),
                };
                let guard = runtime.enter();
                let (alive, over) = oneshot::channel();
                let puller = links().map(|links| Puller::living(links, Some(alive)));
                drop(guard);
                if made.send(puller).is_ok() {
                    let _ = runtime.block_on(over);
                }
            })?;
        ready.recv().map_err(io::Error::other)?
    }

    pub fn links(&self) -> &Links {
        &self.inner.links
    }

    /// Connects to a store that will be pulled from, and keeps the connection as long as what is returned.
    pub fn keep(&self, source: StoreId) -> KeptSource {
        KeptSource {
            source: self.inner.source(source),
        }
    }

    /// Carries out a [`Request::Pull`] into `store`. `done` is called once, on the links' runtime; it must
    /// not block.
    pub fn pull(&self, store: SharedStore, pull: Pull, done: impl FnOnce(Reply) + Send + 'static) {
        let inner = self.inner.clone();
        self.inner.links.runtime().spawn(async move {
            let pulled = inner.carry_out(&store, &pull).await;
            if let Err(refusal) = &pulled {
                tracing::debug!(disk = %pull.asker.disk, blocks = %pull.blocks, source = %pull.source.store, %refusal, "nothing was pulled");
            }
            done(pulled.unwrap_or_else(Reply::Refused));
        });
    }
}

impl Inner {
    async fn carry_out(&self, store: &SharedStore, pull: &Pull) -> Result<Reply, Refusal> {
        let _permit = self.permits.acquire().await.expect("it is never closed");
        let missing = store.missing(pull)?;
        if missing.blocks.is_empty() {
            return Ok(Reply::Pulled(Default::default()));
        }
        let answer = if pull.source.store == store.id() {
            ask_itself(store, pull.fetch(&missing, false)).await
        } else {
            let source = self.source(pull.source.store);
            let disk = pull.asker.disk;
            let compress = source.compress(disk);
            let began = Instant::now();
            let grant = store.shown_by(disk).1;
            let fetch = pull.quoting(pull.fetch(&missing, compress), &grant);
            let answer = source.ask(&fetch).await;
            source.measure(disk, compress, &answer, began);
            answer
        };
        let filling = pull.filling(answer)?;
        let pulled = store.fill(pull.asker, pull.below, &missing, &filling)?;
        Ok(Reply::Pulled(pulled))
    }

    /// The source, used just now; those that nobody has used for a while are let go.
    fn source(&self, store: StoreId) -> Arc<Source> {
        let mut sources = self.sources.lock();
        let now = Instant::now();
        let used = |source: &mut Arc<Source>| {
            Arc::strong_count(source) > 1 || now - *source.used.lock() < KEPT
        };
        sources.retain(|id, source| *id == store || used(source));
        let source = sources
            .entry(store)
            .or_insert_with(|| Source::new(&self.links, store));
        *source.used.lock() = now;
        source.clone()
    }
}

/// The store is a store of the older entry itself: what it held before it joined again is proven so.
async fn ask_itself(store: &SharedStore, request: Request) -> Reply {
    let (answer, answered) = oneshot::channel();
    store.submit(request, move |reply| drop(answer.send(reply)));
    answered.await.unwrap_or(AWAY)
}

const AWAY: Reply = Reply::Refused(Refusal::Source(SourceFault::Away));

/// Another store that is pulled from.
struct Source {
    link: Link,
    calls: Arc<Calls>,
    /// How well each disk's data compresses is its own matter.
    compression: Mutex<HashMap<DiskId, Compression>>,
    /// When it last answered: one answer comes behind the other.
    answered: Mutex<Instant>,
    used: Mutex<Instant>,
}

#[derive(Default)]
struct Calls {
    state: Mutex<CallState>,
    connected: Notify,
}

#[derive(Default)]
struct CallState {
    connected: bool,
    next: u64,
    waiting: HashMap<CallId, oneshot::Sender<Reply>>,
}

/// See [`Puller::keep`].
pub struct KeptSource {
    source: Arc<Source>,
}

impl Drop for KeptSource {
    fn drop(&mut self) {
        *self.source.used.lock() = Instant::now();
    }
}

impl Source {
    fn new(links: &Links, store: StoreId) -> Arc<Source> {
        let calls: Arc<Calls> = Arc::default();
        let heard = calls.clone();
        Arc::new(Source {
            link: links.link(store, move |event| heard.hear(event)),
            calls,
            compression: Mutex::default(),
            answered: Mutex::new(Instant::now()),
            used: Mutex::new(Instant::now()),
        })
    }

    async fn ask(&self, request: &Request) -> Reply {
        if timeout(PATIENCE, self.calls.connected()).await.is_err() {
            return AWAY;
        }
        let (call, mut answered) = self.calls.begin();
        self.link.send(call, request);
        let deadline = Instant::now() + MOST_PATIENCE;
        let mut received = self.link.received();
        while Instant::now() < deadline {
            if let Ok(answer) = timeout(PATIENCE, &mut answered).await {
                // Without an answer when the session ends.
                return answer.unwrap_or(AWAY);
            }
            // On a slow link answers to many pulls may be on their way.
            let now = self.link.received();
            if now.saturating_sub(received) < CHATTER_BYTES {
                break;
            }
            received = now;
        }
        self.calls.forget(call);
        AWAY
    }

    /// Whether to ask for this disk's data compressed.
    fn compress(&self, disk: DiskId) -> bool {
        let mut compression = self.compression.lock();
        if compression.len() >= MEASURED_DISKS && !compression.contains_key(&disk) {
            // They are soon measured anew.
            compression.clear();
        }
        compression.entry(disk).or_default().decide()
    }

    fn measure(&self, disk: DiskId, compressed: bool, answer: &Reply, asked: Instant) {
        let before = std::mem::replace(&mut *self.answered.lock(), Instant::now());
        let took = before.max(asked).elapsed();
        let Reply::Fetched(fetched) = answer else {
            return;
        };
        let data = fetched
            .found
            .iter()
            .filter(|found| matches!(found, Fetch::Data { .. }));
        let bytes = data.count() as u64 * BLOCK_BYTES;
        let wire_bytes = fetched.data.len() as u64;
        if let Some(compression) = self.compression.lock().get_mut(&disk) {
            compression.measured(compressed, bytes, wire_bytes, took);
        }
    }
}

impl Calls {
    fn hear(&self, event: LinkEvent) {
        let mut state = self.state.lock();
        match event {
            LinkEvent::Connected => {
                state.connected = true;
                drop(state);
                self.connected.notify_waiters();
            }
            LinkEvent::Disconnected => {
                state.connected = false;
                state.waiting.clear();
            }
            LinkEvent::Reply { call, reply } => {
                let waiting = state.waiting.remove(&call);
                drop(state);
                if let Some(waiting) = waiting {
                    let _ = waiting.send(reply);
                }
            }
        }
    }

    async fn connected(&self) {
        loop {
            let connected = self.connected.notified();
            tokio::pin!(connected);
            // Before the look, so that nothing is missed between the look and the wait.
            connected.as_mut().enable();
            if self.state.lock().connected {
                return;
            }
            connected.await;
        }
    }

    fn begin(&self) -> (CallId, oneshot::Receiver<Reply>) {
        let (answer, answered) = oneshot::channel();
        let mut state = self.state.lock();
        let call = CallId(state.next);
        state.next += 1;
        state.waiting.insert(call, answer);
        (call, answered)
    }

    fn forget(&self, call: CallId) {
        self.state.lock().waiting.remove(&call);
    }
}

/// A store as a node serves it: requests go to the store, pulls to the puller.
#[derive(Clone)]
pub struct PullingStore {
    pub store: SharedStore,
    pub puller: Puller,
}

impl Serve for PullingStore {
    fn submit(&self, request: Request, done: impl FnOnce(Reply) + Send + 'static) {
        match Pull::of(&request) {
            Some(pull) => self.puller.pull(self.store.clone(), pull, done),
            None => self.store.submit(request, done),
        }
    }

    fn submit_writes(
        &self,
        writes: Vec<Request>,
        done: impl Fn(usize, Reply) + Clone + Send + 'static,
    ) {
        Serve::submit_writes(&self.store, writes, done);
    }

    fn shown_by(&self, disk: DiskId) -> (Epoch, Bytes) {
        self.store.shown_by(disk)
    }
}

#[cfg(test)]
mod tests;
