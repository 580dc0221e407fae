//! A disk that is written all the while, for tests of what goes on around it: a node without a store, as a
//! thread of this process, with no guest behind it. It checks what it reads, and knows what the disk holds.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use placement_service::api::Wanted;
use placement_service::client::PlacementClient;
use placement_service::node_protocol::{
    BackendReport, BackendState, Desired, DesiredAttachment, Heartbeat, Lists,
};
use replicator::net::identity::{Credentials, DEFAULT_VALIDITY, Pki, Role};
use replicator::net::{Links, Place};
use replicator::words::{DatacenterName, HostName, Life, Owner, RackName, StoreId};
use replicator::writer;
use tokio::sync::oneshot;
use vhost_backend::disk::{
    DiskIo, OrdersHandle, Phase, ReplicatedDisk, StatusHandle, Surroundings,
};

use crate::cluster::{Cluster, wait_for};

pub const HOST: &str = "lone";
/// Nothing of it may take longer, whatever the machine is busy with.
const BOUND: Duration = Duration::from_secs(120);
const MOMENT: Duration = Duration::from_millis(200);
const BETWEEN_WRITES: Duration = Duration::from_millis(10);
/// Members that are merely slow on a busy machine stay.
const EJECT_AFTER: Duration = Duration::from_secs(4);
const CHUNK: u64 = 64 << 10;

pub struct LoneWriter {
    told: Arc<Mutex<Told>>,
    stop: Option<oneshot::Sender<()>>,
    quit: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Told {
    rounds: u64,
    /// What the disk holds, all of it, once it was closed; or why it was not.
    ended: Option<Result<Vec<u8>, String>>,
}

impl LoneWriter {
    /// Returns when the disk, which nobody has written yet, is open and written.
    pub fn attach(cluster: &Cluster, disk: &str, datacenter: &'static str) -> Result<LoneWriter> {
        let host = HostName::new(HOST)?;
        Pki::open(&cluster.pki())?.issue(Role::Node, &host, DEFAULT_VALIDITY)?;
        let credentials = Credentials::load(&cluster.pki(), Role::Node, &host)?;
        let servers = cluster.nodes_at();
        let stores = cluster.ukai(&["store", "list"])?;
        let stores = stores.as_array().context("a list of stores")?.iter();
        let stores = stores.map(|store| Ok(store["id"].as_str().context("an id")?.parse()?));
        let stores = stores.collect::<Result<Vec<StoreId>>>()?;
        let (stop, stopped) = oneshot::channel();
        let (quit, done) = oneshot::channel::<()>();
        let told = Arc::<Mutex<Told>>::default();
        let tells = told.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let ended = run(&credentials, servers, stores, datacenter, &tells, stopped).await;
                let ended = ended.map_err(|error| format!("{error:#}"));
                tells.lock().expect("no panic").ended = Some(ended);
                // Its heartbeats go on: that the disk is detached has to be heard, and said.
                let _ = done.await;
            });
        });
        let writer = LoneWriter {
            told,
            stop: Some(stop),
            quit: Some(quit),
            thread: Some(thread),
        };
        wait_for("the node without a store", BOUND, || {
            let datacenters = cluster.ukai(&["status"])?;
            let up = datacenters["hosts_up"].as_u64();
            Ok((up > Some(cluster.hosts() as u64)).then_some(()))
        })?;
        cluster.attach(disk, HOST)?;
        writer.progress(1)?;
        Ok(writer)
    }

    /// Waits until that much more was written and read back.
    pub fn progress(&self, rounds: u64) -> Result<()> {
        let from = self.told.lock().expect("no panic").rounds;
        wait_for("progress of the disk", BOUND, || {
            let told = self.told.lock().expect("no panic");
            if let Some(ended) = &told.ended {
                bail!("it has ended: {:?}", ended.as_ref().map(Vec::len));
            }
            Ok((told.rounds >= from + rounds).then_some(()))
        })
    }

    /// Reads all of it once more, and closes it; what it holds.
    pub fn finish(&mut self) -> Result<Vec<u8>> {
        let stop = self.stop.take().context("it is finished once")?;
        // If nobody hears it, it has ended, and says why.
        let _ = stop.send(());
        let ended = wait_for("the end of the disk's writer", BOUND, || {
            Ok(self.told.lock().expect("no panic").ended.take())
        })?;
        ended.map_err(|why| anyhow!("{why}"))
    }
}

impl Drop for LoneWriter {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.quit.take());
        if let Some(thread) = self.thread.take() {
            // Its panic is the test's already, or about to be.
            let _ = thread.join();
        }
    }
}

/// What the node has been told, and what its backend is.
#[derive(Default)]
struct Backend {
    attachment: Option<DesiredAttachment>,
    handles: Option<(OrdersHandle, StatusHandle)>,
    gone: bool,
}

async fn run(
    credentials: &Credentials,
    servers: Vec<std::net::SocketAddr>,
    stores: Vec<StoreId>,
    datacenter: &str,
    told: &Mutex<Told>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<Vec<u8>> {
    let client = PlacementClient::new(credentials, servers)?;
    let backend = Rc::<RefCell<Backend>>::default();
    let datacenter = DatacenterName::new(datacenter)?;
    tokio::task::spawn_local(beat(client.clone(), datacenter, backend.clone()));
    let attachment = loop {
        if let Some(attachment) = backend.borrow().attachment.clone() {
            break attachment;
        }
        tokio::time::sleep(MOMENT).await;
    };
    let places = Arc::<Mutex<BTreeMap<StoreId, Place>>>::default();
    tokio::task::spawn_local(find(client.clone(), stores, places.clone()));
    let links = Links::new(credentials, move |store| {
        places.lock().expect("no panic").get(&store).cloned()
    })?;
    let owner = Owner {
        backend: attachment.backend,
        life: Life(1),
        host: credentials.identity().host.clone(),
    };
    let config = writer::Config {
        eject_after: Some(EJECT_AFTER),
        ..writer::Config::default()
    };
    let record = within(client.record(attachment.disk)).await??.record;
    let around = Surroundings {
        near: None,
        links,
        placement: Arc::new(client),
    };
    let disk = ReplicatedDisk::new(record, owner, config, around);
    backend.borrow_mut().handles = Some((disk.orders(), disk.status()));
    let opened = within(DiskIo::open(disk)).await?;
    let mut io = opened.map_err(|why| anyhow!("it does not open: {why}"))?;
    let mut image = vec![0; io.len() as usize];
    let written = write(&mut io, &mut image, told, &mut stopped).await;
    let disk = within(io.close()).await?;
    backend.borrow_mut().gone = true;
    written?;
    let phase = disk.status().now().phase;
    ensure!(phase == Phase::Closed, "it does not close: {phase:?}");
    Ok(image)
}

/// Chunk after chunk, each of them read back, until it is told to stop; then all of it is read.
async fn write(
    io: &mut DiskIo,
    image: &mut [u8],
    told: &Mutex<Told>,
    stopped: &mut oneshot::Receiver<()>,
) -> Result<()> {
    let chunks = io.len() / CHUNK;
    for round in 0u64.. {
        // Far apart, and every one of them in time: a prime number does not divide their count.
        let offset = round * 37 % chunks * CHUNK;
        let bytes = pattern(round);
        image[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        let written = within(io.write(offset, bytes)).await?;
        written.with_context(|| format!("round {round} is written"))?;
        compare(io, image, offset, CHUNK).await?;
        if round % 16 == 15 {
            within(io.flush()).await?.context("it is synced")?;
        }
        told.lock().expect("no panic").rounds += 1;
        if stopped.try_recv() != Err(oneshot::error::TryRecvError::Empty) {
            break;
        }
        tokio::time::sleep(BETWEEN_WRITES).await;
    }
    within(io.flush()).await?.context("it is synced")?;
    let step = 16 * CHUNK;
    for offset in (0..io.len()).step_by(step as usize) {
        compare(io, image, offset, step).await?;
    }
    Ok(())
}

async fn compare(io: &mut DiskIo, image: &[u8], offset: u64, len: u64) -> Result<()> {
    let len = len.min(io.len() - offset);
    let read = within(io.read(offset, len)).await?;
    let read = read.with_context(|| format!("{len} bytes at {offset} are read"))?;
    let expected = &image[offset as usize..][..len as usize];
    ensure!(read == expected, "{len} bytes at {offset} read otherwise");
    Ok(())
}

fn pattern(round: u64) -> Vec<u8> {
    let words = (0..CHUNK / 8).map(|word| (round << 32 | word).to_le_bytes());
    words.flatten().collect()
}

/// A node's heartbeats, with one backend once one is wanted.
async fn beat(client: PlacementClient, datacenter: DatacenterName, backend: Rc<RefCell<Backend>>) {
    let mut seen = 0;
    loop {
        let heartbeat = Heartbeat {
            datacenter: datacenter.clone(),
            rack: RackName::new("lone").expect("a name"),
            listen: "127.0.0.1:1".parse().expect("an address"),
            stores: vec![],
            backends: backend.borrow().report().into_iter().collect(),
            links: vec![],
            seen,
            lists: Lists::default(),
        };
        match client.heartbeat(heartbeat).await {
            Ok(desired) => {
                seen = desired.digest;
                backend.borrow_mut().follow(desired);
            }
            Err(_) => tokio::time::sleep(MOMENT).await,
        }
    }
}

impl Backend {
    fn report(&self) -> Option<BackendReport> {
        let attachment = self.attachment.as_ref().filter(|_| !self.gone)?;
        let status = self.handles.as_ref().map(|(_, status)| status.now());
        let status = status.as_ref();
        Some(BackendReport {
            disk: attachment.disk,
            backend: attachment.backend,
            state: BackendState::Ready {
                socket: "/nowhere".into(),
                status: String::new(),
            },
            stall: status.and_then(|s| s.stall.as_ref().map(ToString::to_string)),
            hindrance: status.and_then(|s| s.hindrance.as_ref().map(ToString::to_string)),
            epoch: status.filter(|s| s.phase == Phase::Open).map(|s| s.epoch),
            verdict: None,
            unreachable: vec![],
            progress: status.map(|s| s.progress),
        })
    }

    /// It takes one attachment, and its orders; it ends when the test says so.
    fn follow(&mut self, desired: Desired) {
        let wanted = |a: &DesiredAttachment| a.wanted == Wanted::Attached;
        for attachment in desired.attachments.into_iter().filter(wanted) {
            if let (Some((orders, _)), Some(given)) = (&self.handles, &attachment.orders) {
                orders.change(|orders| orders.placement.clone_from(given));
            }
            self.attachment.get_or_insert(attachment);
        }
    }
}

/// Keeps the addresses of the stores, as a node does.
async fn find(
    client: PlacementClient,
    stores: Vec<StoreId>,
    places: Arc<Mutex<BTreeMap<StoreId, Place>>>,
) {
    loop {
        if let Ok(found) = client.stores(stores.clone()).await {
            let mut places = places.lock().expect("no panic");
            for store in found {
                let place = Place {
                    addr: store.address,
                    host: store.host,
                };
                places.insert(store.store, place);
            }
        }
        tokio::time::sleep(MOMENT).await;
    }
}

async fn within<T>(work: impl Future<Output = T>) -> Result<T> {
    let ended = tokio::time::timeout(BOUND, work).await;
    ended.context("it takes too long")
}
