//! The disk as a device sees it, over a near and a far store with real files and real QUIC, against
//! a model in memory: what was written is what is read, across restarts of everything.

mod damage;
mod returns;
mod stalls;

use bytes::Bytes;
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use replicator::net::identity::{Claims, Credentials, DEFAULT_VALIDITY, Identity, Pki, Role};
use replicator::net::{Links, Place, Server};
use replicator::store::{Options, SharedStore};
use replicator::words::{
    BackendId, Change, DiskId, DiskName, DiskRecord, Entry, Epoch, ExtentSize, Generation, History,
    HostName, Life, MapRange, Owner, Revision, State, StoreId, Version,
};
use replicator::writer::{Config, NotStarted, SwapOutcome, TakeOver};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use vhost_backend::disk::{
    Answer, DiskIo, Failure, IoError, NearStore, Phase, Placement, ReplicatedDisk, Surroundings,
    WithGrant, image,
};

const NEAR: StoreId = StoreId::from_u128(0xa);
const FAR: StoreId = StoreId::from_u128(0xb);
const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 6 * MIB;
/// Nothing here may take longer, whatever the machine is busy with.
const PATIENCE: Duration = Duration::from_secs(60);

/// The placement service, as far as a disk can tell.
struct Catalog {
    record: Mutex<DiskRecord>,
    away: AtomicBool,
    /// Whether it proves to writers what they own, and with what.
    grants: AtomicBool,
    credentials: Credentials,
}

impl Catalog {
    fn now(&self) -> DiskRecord {
        self.record.lock().unwrap().clone()
    }

    fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    /// The answer, with the grant of the epoch that the writer has.
    fn granted<T>(&self, answer: T) -> WithGrant<T> {
        let record = self.now();
        let (Some(owner), true) = (record.owner(), self.grants.load(Ordering::Relaxed)) else {
            return answer.into();
        };
        let claims = Claims {
            disk: record.id,
            epoch: record.epoch,
            life: owner.life,
            holder: Identity::new(Role::Node, owner.host.clone()),
        };
        WithGrant {
            value: answer,
            grant: self.credentials.grant(&claims).unwrap(),
        }
    }

    fn change(&self, expected: Revision, change: &Change) -> SwapOutcome {
        let mut record = self.record.lock().unwrap();
        if record.revision != expected {
            return SwapOutcome::Conflict(Box::new(record.clone()));
        }
        match record.apply(Generation(0), change) {
            Ok(next) => {
                *record = next.clone();
                SwapOutcome::Done(Box::new(next))
            }
            Err(why) => SwapOutcome::Refused(why),
        }
    }
}

struct Service(Arc<Catalog>);

impl Placement for Service {
    fn record(&self, _disk: DiskId) -> Answer<Option<WithGrant<DiskRecord>>> {
        let record = (!self.0.is_away()).then(|| self.0.granted(self.0.now()));
        Box::pin(async move { record })
    }

    fn swap(
        &self,
        _disk: DiskId,
        _backend: BackendId,
        expected: Revision,
        change: Change,
    ) -> Answer<WithGrant<SwapOutcome>> {
        let outcome = match self.0.is_away() {
            true => SwapOutcome::Unknown.into(),
            false => {
                let outcome = self.0.change(expected, &change);
                self.0.granted(outcome)
            }
        };
        Box::pin(async move { outcome })
    }
}

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

fn new_record() -> DiskRecord {
    let extent_size = ExtentSize::new(MIB).unwrap();
    let epoch = Epoch::first(Generation(0));
    let mut record = DiskRecord {
        id: DiskId::from_u128(1),
        name: DiskName::new("web1").unwrap(),
        bytes: DISK_BYTES,
        extent_size,
        copies: 2,
        revision: Revision(0),
        epoch,
        even_below: epoch,
        state: State::Closed {
            last: Version::ZERO,
            successor: None,
        },
        map: Vec::new(),
    };
    record.map = vec![MapRange {
        extents: record.extents(),
        history: History(vec![Entry::whole(epoch, [NEAR, FAR])]),
    }];
    record
}

/// A node with the far store: a thread with a runtime of its own, so that it can be killed.
struct FarNode {
    addr: SocketAddr,
    gate: Arc<stalls::Gate>,
    kill: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl FarNode {
    fn start(dir: &Path, credentials: &Credentials, listen: SocketAddr) -> FarNode {
        FarNode::start_in(&dir.join("far"), credentials, listen)
    }

    fn start_in(dir: &Path, credentials: &Credentials, listen: SocketAddr) -> FarNode {
        FarNode::start_taking(dir, credentials, listen, false)
    }

    /// `ungranted`: it takes writers that show no grant.
    fn start_taking(
        dir: &Path,
        credentials: &Credentials,
        listen: SocketAddr,
        ungranted: bool,
    ) -> FarNode {
        let (kill, killed) = tokio::sync::oneshot::channel();
        let (ready, started) = mpsc::channel();
        let (dir, credentials) = (dir.to_path_buf(), credentials.clone());
        let gate = Arc::new(stalls::Gate::default());
        let its_gate = gate.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let store = open(&dir);
            let serving = stalls::Gated::new(store.clone(), its_gate);
            runtime.block_on(async move {
                let find = move |id| (id == serving.id()).then(|| serving.clone());
                let server = Server::bind(listen, &credentials, find).unwrap();
                let server = server.accept_ungranted(ungranted);
                ready.send(server.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = server.run() => panic!("nobody closes it"),
                    _ = killed => {}
                }
            });
            drop(runtime);
            store.close().unwrap();
        });
        let addr = started.recv_timeout(PATIENCE).unwrap();
        FarNode {
            addr,
            gate,
            kill,
            thread,
        }
    }

    fn kill(self) {
        self.kill.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

fn open(dir: &Path) -> SharedStore {
    SharedStore::open(dir, Options::default()).unwrap().0
}

struct World {
    dir: tempfile::TempDir,
    near: SharedStore,
    credentials: [Credentials; 2],
    catalog: Arc<Catalog>,
    far_addr: SocketAddr,
    lives: u64,
    config: Config,
}

impl World {
    fn new() -> (World, FarNode) {
        let dir = tempfile::tempdir().unwrap();
        for (name, id) in [("near", NEAR), ("far", FAR)] {
            SharedStore::format(&dir.path().join(name), id, &Options::default()).unwrap();
        }
        let keys = dir.path().join("keys");
        let pki = Pki::init(&keys).unwrap();
        let credentials = ["tokyo-1", "osaka-1"].map(|name| {
            pki.issue(Role::Node, &host(name), DEFAULT_VALIDITY)
                .unwrap();
            Credentials::load(&keys, Role::Node, &host(name)).unwrap()
        });
        let control = host("control-1");
        pki.issue(Role::Placement, &control, DEFAULT_VALIDITY)
            .unwrap();
        let control = Credentials::load(&keys, Role::Placement, &control).unwrap();
        let anywhere = (Ipv4Addr::LOCALHOST, 0).into();
        let far = FarNode::start(dir.path(), &credentials[1], anywhere);
        let world = World {
            near: open(&dir.path().join("near")),
            far_addr: far.addr,
            dir,
            credentials,
            catalog: Arc::new(Catalog {
                record: Mutex::new(new_record()),
                away: AtomicBool::new(false),
                grants: AtomicBool::new(true),
                credentials: control,
            }),
            lives: 0,
            config: Config {
                // A loaded machine is no reason to eject anybody.
                eject_after: Some(Duration::from_secs(30)),
                ..Config::default()
            },
        };
        (world, far)
    }

    fn restart_far(&self) -> FarNode {
        FarNode::start(self.dir.path(), &self.credentials[1], self.far_addr)
    }

    /// The next run of the backend.
    fn disk(&mut self) -> ReplicatedDisk {
        self.lives += 1;
        self.disk_of(7, self.lives)
    }

    fn disk_of(&self, backend: u128, life: u64) -> ReplicatedDisk {
        let owner = Owner {
            backend: BackendId::from_u128(backend),
            life: Life(life),
            host: host("tokyo-1"),
        };
        let place = Place {
            addr: self.far_addr,
            host: host("osaka-1"),
        };
        let resolve = move |id| (id == FAR).then(|| place.clone());
        let around = Surroundings {
            near: Some(NearStore::new(self.near.clone()).unwrap()),
            links: Links::new(&self.credentials[0], resolve).unwrap(),
            placement: Arc::new(Service(self.catalog.clone())),
        };
        ReplicatedDisk::new(self.catalog.now(), owner, self.config.clone(), around)
    }

    async fn open(&mut self) -> DiskIo {
        let disk = self.disk();
        within(DiskIo::open(disk)).await.unwrap()
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

/// What the disk should hold.
struct Model {
    bytes: Vec<u8>,
    dice: ChaCha8Rng,
}

impl Model {
    fn new(seed: u64) -> Model {
        Model {
            bytes: vec![0; DISK_BYTES as usize],
            dice: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// A range of whole sectors: mostly small, sometimes whole blocks, sometimes large.
    fn range(&mut self) -> (u64, u64) {
        let (unit, most) = match self.dice.random_range(0..10) {
            0..5 => (512, 20),
            5..9 => (4096, 16),
            _ => (512, 3000),
        };
        let len = unit * self.dice.random_range(1..=most);
        let offset = self.dice.random_range(0..=(DISK_BYTES - len) / unit) * unit;
        (offset, len)
    }

    fn data(&mut self, len: u64) -> Vec<u8> {
        let mut data = vec![0; len as usize];
        self.dice.fill_bytes(&mut data);
        data
    }

    fn put(&mut self, offset: u64, data: &[u8]) {
        self.bytes[offset as usize..][..data.len()].copy_from_slice(data);
    }

    /// A batch of overlapping requests, all under way at once.
    async fn change(&mut self, io: &mut DiskIo) {
        let mut begun = Vec::new();
        for _ in 0..self.dice.random_range(1..12) {
            let (offset, len) = self.range();
            if self.dice.random_bool(0.2) {
                self.put(offset, &vec![0; len as usize]);
                begun.push(io.begin_zero(offset, len).unwrap());
            } else {
                let data = self.data(len);
                self.put(offset, &data);
                begun.push(within(io.begin_write(offset, data.into())).await.unwrap());
            }
        }
        for id in begun {
            within(io.end(id)).await.unwrap();
        }
    }

    async fn compare(&mut self, io: &mut DiskIo) {
        for _ in 0..4 {
            let (offset, len) = self.range();
            let read = within(io.read(offset, len)).await.unwrap();
            let model = &self.bytes[offset as usize..][..len as usize];
            assert!(read == model, "{len} bytes at {offset} differ");
        }
    }

    async fn compare_all(&self, io: &mut DiskIo) {
        for at in (0..DISK_BYTES).step_by(MIB as usize) {
            let read = within(io.read(at, MIB)).await.unwrap();
            let model = &self.bytes[at as usize..][..MIB as usize];
            assert!(read == model, "the MiB at {at} differs");
        }
    }
}

#[tokio::test]
async fn what_is_written_is_read_across_restarts_of_the_backend() {
    let (mut world, far) = World::new();
    let mut model = Model::new(1);
    let mut kept = None;
    for round in 0..4 {
        // A new run of the backend, or (a migration that failed) the old one starts again.
        let disk = match kept.take() {
            Some(disk) if round % 2 == 1 => disk,
            _ => world.disk(),
        };
        let mut io = within(DiskIo::open(disk)).await.unwrap();
        model.compare_all(&mut io).await;
        for _ in 0..20 {
            model.change(&mut io).await;
            model.compare(&mut io).await;
        }
        within(io.flush()).await.unwrap();
        let disk = within(io.close()).await;
        assert_eq!(disk.status().now().phase, Phase::Closed, "round {round}");
        kept = Some(disk);
    }
    let record = world.catalog.now();
    assert!(matches!(record.state, State::Closed { .. }));
    assert_eq!(record.members(), [NEAR, FAR], "nobody was ejected");

    // The far copy alone serves the same.
    world.near.close().unwrap();
    let mut world = World {
        near: {
            let elsewhere = world.dir.path().join("other");
            SharedStore::format(&elsewhere, StoreId::from_u128(0xc), &Options::default()).unwrap();
            open(&elsewhere)
        },
        ..world
    };
    world.catalog.record.lock().unwrap().map[0].history.0[0].stores = vec![FAR];
    let mut io = world.open().await;
    model.compare_all(&mut io).await;
    within(io.close()).await;
    far.kill();
}

#[tokio::test]
async fn a_far_store_that_comes_back_in_time_is_not_missed() {
    let (mut world, far) = World::new();
    let mut model = Model::new(2);
    let mut io = world.open().await;
    let epoch = world.catalog.now().epoch;
    model.change(&mut io).await;
    far.kill();
    let late = model.data(8192);
    model.put(4096, &late);
    let id = io.begin_write(4096, late.into()).await.unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(300), io.end(id)).await;
    assert!(
        waits.is_err(),
        "a write is not acknowledged by the near store alone"
    );
    let far = world.restart_far();
    within(io.end(id)).await.unwrap();
    for _ in 0..5 {
        model.change(&mut io).await;
    }
    model.compare_all(&mut io).await;
    let status = io.disk().status().now();
    assert_eq!(status.members, [(NEAR, true), (FAR, true)]);
    assert_eq!((status.phase, status.epoch), (Phase::Open, epoch));
    assert_eq!(world.catalog.now().epoch, epoch);
    within(io.close()).await;
    far.kill();
}

/// As in an upgrade: the epoch began when nobody had grants, and goes on where they are wanted.
#[tokio::test]
async fn a_store_that_was_shown_no_grant_is_shown_it_when_it_asks() {
    let (mut world, far) = World::new();
    let (dir, keys) = (world.dir.path().join("far"), world.credentials[1].clone());
    far.kill();
    let old = FarNode::start_taking(&dir, &keys, world.far_addr, true);
    world.catalog.grants.store(false, Ordering::Relaxed);
    let mut model = Model::new(9);
    let mut io = world.open().await;
    model.change(&mut io).await;
    within(io.flush()).await.unwrap();
    let epoch = world.catalog.now().epoch;
    old.kill();
    world.catalog.grants.store(true, Ordering::Relaxed);
    let far = FarNode::start_taking(&dir, &keys, world.far_addr, false);
    for _ in 0..5 {
        model.change(&mut io).await;
    }
    model.compare_all(&mut io).await;
    assert_eq!(world.catalog.now().epoch, epoch, "nobody was ejected");
    within(io.close()).await;
    far.kill();
}

#[tokio::test]
async fn a_far_store_that_stays_away_is_ejected_and_the_guest_goes_on() {
    let (mut world, far) = World::new();
    world.config.eject_after = Some(Duration::from_secs(1));
    let mut model = Model::new(3);
    let mut io = world.open().await;
    model.change(&mut io).await;
    far.kill();
    let began = Instant::now();
    for _ in 0..5 {
        model.change(&mut io).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(900));
    within(io.flush()).await.unwrap();
    model.compare_all(&mut io).await;
    assert_eq!(world.catalog.now().members(), [NEAR]);
    assert_eq!(io.disk().status().now().epoch, world.catalog.now().epoch);
    let disk = within(io.close()).await;
    assert_eq!(disk.status().now().phase, Phase::Closed);
}

#[tokio::test]
async fn one_writer_at_a_time() {
    let (mut world, far) = World::new();
    let mut first = world.open().await;
    within(first.write(0, vec![1; 4096])).await.unwrap();

    let second = world.disk_of(8, 1);
    let refused = within(DiskIo::open(second)).await.err();
    assert!(
        matches!(refused, Some(NotStarted::AlreadyOpen { .. })),
        "{refused:?}"
    );

    let second = world.disk_of(8, 2);
    second
        .orders()
        .change(|orders| orders.take_over = TakeOver::Ordered);
    let mut second = within(DiskIo::open(second)).await.unwrap();
    let late = within(first.write(0, vec![2; 4096])).await;
    assert!(
        matches!(late, Err(IoError::Failed(Failure::Superseded))),
        "{late:?}"
    );
    assert_eq!(first.disk().status().now().phase, Phase::Superseded);
    let read = within(second.read(0, 4096)).await.unwrap();
    assert_eq!(read, vec![1; 4096]);
    within(first.close()).await;
    within(second.write(4096, vec![3; 512])).await.unwrap();
    within(second.close()).await;
    far.kill();
}

#[tokio::test]
async fn without_the_placement_service_data_flows_and_only_the_close_is_left_undone() {
    let (mut world, far) = World::new();
    world.config.close_patience = Duration::from_millis(500);
    let mut model = Model::new(5);
    let mut io = world.open().await;
    world.catalog.away.store(true, Ordering::Relaxed);
    for _ in 0..5 {
        model.change(&mut io).await;
        within(io.flush()).await.unwrap();
    }
    let disk = within(io.close()).await;
    assert_eq!(disk.status().now().phase, Phase::LeftOpen);
    drop(disk);
    world.catalog.away.store(false, Ordering::Relaxed);
    let mut io = world.open().await;
    model.compare_all(&mut io).await;
    within(io.close()).await;
    far.kill();
}

#[tokio::test]
async fn an_image_comes_out_as_it_went_in_and_its_holes_stay_holes() {
    let (mut world, far) = World::new();
    let mut model = Model::new(6);
    let dir = world.dir.path().to_path_buf();
    let path = |name| dir.join(name);
    let (first, second) = (path("first.raw"), path("second.raw"));
    let data = model.data(300_000);
    let image = File::create(&first).unwrap();
    image.set_len(DISK_BYTES - 5000).unwrap();
    for at in [0, 2 * MIB + 700, DISK_BYTES - 400_000] {
        std::os::unix::fs::FileExt::write_all_at(&image, &data, at).unwrap();
        model.put(at, &data);
    }
    let image = File::open(&first).unwrap();

    let mut io = world.open().await;
    let mut shown = 0;
    let imported = within(image::import(
        &mut io,
        &image,
        image::Before::Empty,
        |progress| {
            assert!(progress.done > shown);
            shown = progress.done;
        },
    ))
    .await
    .unwrap();
    assert_eq!(imported.done, DISK_BYTES);
    assert!(imported.copied < MIB, "{} bytes copied", imported.copied);
    model.compare_all(&mut io).await;

    let out = File::create_new(&second).unwrap();
    within(image::export(&mut io, &out, |_| {})).await.unwrap();
    assert!(std::fs::read(&second).unwrap() == model.bytes);
    let allocated = out.metadata().unwrap().blocks() * 512;
    assert!(allocated < 2 * MIB, "{allocated} bytes on disk");

    // Over something else, zeroes count.
    within(io.write(MIB, vec![9; 8192])).await.unwrap();
    within(io.write(DISK_BYTES - 512, vec![9; 512]))
        .await
        .unwrap();
    let anything = image::Before::Anything;
    within(image::import(&mut io, &image, anything, |_| {}))
        .await
        .unwrap();
    model.compare_all(&mut io).await;

    let larger = File::create_new(path("larger.raw")).unwrap();
    larger.set_len(DISK_BYTES + 512).unwrap();
    let refused = within(image::import(&mut io, &larger, anything, |_| {})).await;
    assert!(refused.unwrap_err().to_string().contains("larger disk"));
    let nothing = io.write(100, Bytes::from_static(&[0; 512])).await;
    assert!(matches!(nothing, Err(IoError::Range { .. })));
    within(io.close()).await;
    far.kill();
}
