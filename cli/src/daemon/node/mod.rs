//! A node: its store, its backends, and the conversation with the placement service.
//!
//! ```text
//!  heartbeat loop ── Desired ──> supervisor ── spawn/stop ──> backends, each on a reactor's thread
//!        ^                           |                              | function calls
//!        '── reports ────────────────'            store <───────────'
//!                                                  ^── server: QUIC from other nodes' writers
//! ```

mod backend;
mod heartbeat;
mod kept;
mod reactor;
mod runs;
mod serving;
mod supervisor;

use crate::addresses::Addresses;
use anyhow::Context;
use backend::Backends;
use heartbeat::Heart;
use placement_service::client::PlacementClient;
use placement_service::service_name::ServiceName;
use reactor::Reactors;
use replicator::net::identity::Credentials;
use replicator::net::{Links, Puller, PullingStore};
use replicator::store::{Options, ScrubRate, SharedStore};
use replicator::words::{DatacenterName, HostName, RackName, StoreId};
use serving::Serving;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use supervisor::Supervisor;
use tokio::sync::Notify;
use vhost_backend::disk::NearStore;

/// How long a node that is about to stop has its disks synced before it stops them.
const SYNC_AHEAD: Duration = Duration::from_millis(100);
/// And how long it waits for a checkpoint, so that its successor has little to read.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(3);

pub struct Config {
    pub credentials: Credentials,
    pub datacenter: DatacenterName,
    pub rack: RackName,
    pub placement: Vec<ServiceName>,
    pub listen: SocketAddr,
    pub via: BTreeMap<HostName, SocketAddr>,
    pub store: Option<PathBuf>,
    pub capacity_bytes: Option<u64>,
    pub scrub: ScrubRate,
    pub sockets: PathBuf,
    pub socket_mode: u32,
    pub threads: usize,
    pub eject_after: Option<Duration>,
    /// None: a guest waits.
    pub stall_deadline: Option<Duration>,
    /// Let writers of an older version use the store, which show no grant.
    pub accept_ungranted: bool,
}

/// Runs until `stop`; then lets every disk go cleanly, and syncs the store.
pub async fn run(mut config: Config, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let began = Instant::now();
    super::files::allow_many();
    let host = config.credentials.identity().host.clone();
    if let Some(dir) = &config.store {
        // Before we listen: a second node of one store would share the first one's port, and take packets from it.
        SharedStore::check_unused(dir)?;
    }
    // Then all that may fail because of the host: a start that fails then leaves no trace in the store.
    std::fs::create_dir_all(&config.sockets).with_context(|| {
        format!(
            "cannot make the folder for sockets {}",
            config.sockets.display()
        )
    })?;
    // Operators are given the sockets' paths to paste elsewhere.
    config.sockets = config.sockets.canonicalize()?;
    let addresses = Addresses::via(config.via.clone());
    let puller = {
        let (credentials, addresses) = (config.credentials.clone(), addresses.clone());
        Puller::spawn(move || Links::new(&credentials, move |store| addresses.place(store)))
            .context("cannot start a thread that pulls from other nodes")?
    };
    let served: Arc<OnceLock<SharedStore>> = Arc::default();
    let (opened, pulls) = (served.clone(), puller.clone());
    let find = move |id| {
        let store = opened.get().filter(|store| store.id() == id)?;
        Some(PullingStore {
            store: store.clone(),
            puller: pulls.clone(),
        })
    };
    let mut serving = Serving::bind(&config, find)?;
    let listen = serving.listen;
    let client = PlacementClient::new(&config.credentials, config.placement.clone())?;
    let reactors = Reactors::spawn(config.threads).context("cannot start a thread")?;
    let store = config
        .store
        .as_deref()
        .map(|dir| open_store(dir, config.capacity_bytes, config.scrub))
        .transpose()?;
    let runs = match &config.store {
        Some(dir) => runs::begin(dir)
            .with_context(|| format!("cannot note in {} that the store runs", dir.display()))?,
        None => Vec::new(),
    };
    if let Some(store) = &store {
        let _ = served.set(store.clone());
    }
    serving.begin();
    tracing::info!(%host, datacenter = %config.datacenter, rack = %config.rack, %listen, threads = config.threads, took_ms = millis(began), "node is up");

    let probing = puller.links().clone();
    let keeping = tokio::spawn(addresses.clone().keep(client.clone()));
    let changed = Arc::new(Notify::new());
    let near = store.clone().map(NearStore::new).transpose();
    let near = near.context("cannot start a thread")?;
    let (watched, told) = (reactors.clone(), changed.clone());
    let backends = Backends::new(
        &config,
        client.clone(),
        addresses,
        (near, puller),
        reactors,
        changed.clone(),
    );
    let mut supervisor = Supervisor::new(backends, changed);
    let mut heart = Heart::new(&config, listen, client, (store.clone(), runs), probing);
    // Threads stand still only in a store.
    let watching = store
        .is_some()
        .then(|| tokio::spawn(watch(watched, heart.away(), told)));
    tokio::select! {
        () = heart.beat(&mut supervisor) => {}
        () = stop => {}
    }
    // Guests are served until here: what they then wait for is as short as it can be.
    tracing::info!("stopping: syncing ahead");
    let stopping = Instant::now();
    supervisor.sync_ahead();
    tokio::select! {
        () = heart.beat(&mut supervisor) => {}
        () = checkpoint(store.clone()) => {}
    }
    tracing::info!(took_ms = millis(stopping), "letting the disks go");
    let pause = Instant::now();
    supervisor.stop_all().await;
    let disks_ms = millis(pause);
    keeping.abort();
    if let Some(watching) = watching {
        watching.abort();
    }
    serving.stop().await;
    let close = async move {
        match store {
            Some(store) => tokio::task::spawn_blocking(move || store.close())
                .await?
                .context("the store could not be synced at the end"),
            None => Ok(()),
        }
    };
    let (closed, ()) = tokio::join!(close, heart.last(&supervisor));
    tracing::info!(disks_ms, pause_ms = millis(pause), "stopped");
    closed
}

/// Gives up reactors that stand still, for as long as the node runs. Not while the placement service is away: nobody could
/// open their disks anew, which go on by themselves if the media do.
async fn watch(reactors: Reactors, away: Arc<AtomicBool>, changed: Arc<Notify>) {
    loop {
        tokio::time::sleep(reactor::LOOK).await;
        if !away.load(Ordering::Relaxed) && reactors.look() {
            changed.notify_one();
        }
    }
}

async fn checkpoint(store: Option<SharedStore>) {
    // Writers sync their other members meanwhile.
    tokio::time::sleep(SYNC_AHEAD).await;
    if let Some(store) = store {
        let done = tokio::task::spawn_blocking(move || store.checkpoint(CHECKPOINT_PATIENCE));
        // It panics only with the store, and that is said where it closes. Where media hang it waits for them.
        let _ = tokio::time::timeout(CHECKPOINT_PATIENCE * 2, done).await;
    }
}

fn millis(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}

/// Opens the store in `dir`, or makes one there if there is nothing yet.
fn open_store(
    dir: &Path,
    capacity_bytes: Option<u64>,
    scrub: ScrubRate,
) -> anyhow::Result<SharedStore> {
    let options = Options {
        capacity_bytes,
        scrub,
        ..Options::default()
    };
    if is_empty(dir)? {
        SharedStore::format(dir, StoreId::random(), &options)?;
    }
    let began = Instant::now();
    let (store, recovery) = SharedStore::open(dir, options)?;
    tracing::info!(store = %store.id(), took_ms = millis(began), dir = %dir.display(), incarnation = store.incarnation().0, starts = store.starts().0, clean = recovery.clean, frames_replayed = recovery.frames, "store is open");
    for damage in &recovery.damage {
        tracing::error!(store = %store.id(), "damaged: {damage}");
    }
    if recovery.lost_tail {
        tracing::warn!(store = %store.id(), "unsynced data may be missing after the host crashed: its replicas count only once they are settled");
    }
    Ok(store)
}

/// Only an empty folder, or none, becomes a store by itself: what has anything in it is somebody's.
fn is_empty(dir: &Path) -> anyhow::Result<bool> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("cannot look into {}", dir.display())),
    }
}
