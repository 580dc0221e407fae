//! Stores that stand still, and a placement service that is away at that moment: who waits, and who does not.

use super::*;
use replicator::message::{Reply, Request};
use replicator::net::Serve;
use replicator::writer::Stall;
use std::sync::Condvar;
use vhost_backend::disk::RequestId;

const OTHER: StoreId = StoreId::from_u128(0xc);

/// While it is closed a far node does nothing at all, as a process that was stopped.
#[derive(Default)]
pub struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let closed = self.closed.lock().unwrap();
        drop(self.opened.wait_while(closed, |closed| *closed).unwrap());
    }
}

#[derive(Clone)]
pub struct Gated {
    store: SharedStore,
    gate: Arc<Gate>,
}

impl Gated {
    pub fn new(store: SharedStore, gate: Arc<Gate>) -> Gated {
        Gated { store, gate }
    }

    pub fn id(&self) -> StoreId {
        self.store.id()
    }
}

impl Serve for Gated {
    fn submit(&self, request: Request, done: impl FnOnce(Reply) + Send + 'static) {
        // It blocks the one thread that the node has.
        self.gate.pass();
        Serve::submit(&self.store, request, done);
    }

    fn shown_by(&self, disk: DiskId) -> (Epoch, Bytes) {
        Serve::shown_by(&self.store, disk)
    }
}

/// Lets the disk work, with a write that waits, until the guest is said to wait for this.
async fn stalls(io: &mut DiskIo, id: RequestId, wanted: &Stall) {
    let until = Instant::now() + PATIENCE;
    while io.disk().status().now().stall.as_ref() != Some(wanted) {
        assert!(Instant::now() < until, "{:?}", io.disk().status().now());
        let ended = tokio::time::timeout(Duration::from_millis(20), io.end(id)).await;
        assert!(ended.is_err(), "it waits");
    }
}

#[tokio::test]
async fn a_store_that_stands_still_holds_up_only_the_disks_that_use_it() {
    let (mut world, far) = World::new();
    world.config.eject_after = None;
    // Another disk of the same thread, near store and links, with another far store.
    let dir = world.dir.path().join("other");
    SharedStore::format(&dir, OTHER, &Options::default()).unwrap();
    let anywhere = (Ipv4Addr::LOCALHOST, 0).into();
    let other = FarNode::start_in(&dir, &world.credentials[1], anywhere);
    let places = [(FAR, far.addr), (OTHER, other.addr)];
    let resolve = move |id| {
        let (_, addr) = places.iter().find(|(store, _)| *store == id)?;
        let host = host("osaka-1");
        Some(Place { addr: *addr, host })
    };
    let links = Links::new(&world.credentials[0], resolve).unwrap();
    let near = NearStore::new(world.near.clone()).unwrap();
    let disk = |number: u128, store: StoreId| {
        let mut record = new_record();
        record.id = DiskId::from_u128(number);
        record.map[0].history.0[0].stores = vec![NEAR, store];
        let catalog = Catalog {
            record: Mutex::new(record.clone()),
            away: AtomicBool::new(false),
            grants: AtomicBool::new(true),
            credentials: world.catalog.credentials.clone(),
        };
        let owner = Owner {
            backend: BackendId::from_u128(number),
            life: Life(1),
            host: host("tokyo-1"),
        };
        let around = Surroundings {
            near: Some(near.clone()),
            links: links.clone(),
            placement: Arc::new(Service(Arc::new(catalog))),
        };
        ReplicatedDisk::new(record, owner, world.config.clone(), around)
    };
    let mut slow = within(DiskIo::open(disk(1, FAR))).await.unwrap();
    let mut quick = within(DiskIo::open(disk(2, OTHER))).await.unwrap();

    far.gate.close();
    // As much as a guest may have in flight.
    let mut waiting = Vec::new();
    for at in 0..6 {
        waiting.push(
            slow.begin_write(at * MIB, vec![1; MIB as usize].into())
                .await
                .unwrap(),
        );
    }
    let flush = tokio::time::timeout(Duration::from_millis(100), slow.end(waiting[0])).await;
    assert!(flush.is_err(), "it waits for its store");
    for round in 0..100 {
        let data = vec![round; 64 << 10];
        within(quick.write(u64::from(round % 8) * 65536, data))
            .await
            .unwrap();
        within(quick.flush()).await.unwrap();
    }
    let read = within(quick.read(3 * 65536, 65536)).await.unwrap();
    assert_eq!(read, vec![99; 65536]);
    within(quick.close()).await;

    far.gate.open();
    for id in waiting {
        within(slow.end(id)).await.unwrap();
    }
    let read = within(slow.read(5 * MIB, MIB)).await.unwrap();
    assert_eq!(read, vec![1; MIB as usize]);
    within(slow.close()).await;
    far.kill();
    other.kill();
}

#[tokio::test]
async fn what_was_in_flight_when_a_store_stood_still_completes_once_without_it() {
    let (mut world, far) = World::new();
    world.config.eject_after = Some(Duration::from_millis(500));
    let mut io = world.open().await;
    far.gate.close();
    let mut ids = Vec::new();
    for at in 0..64 {
        let data = vec![at as u8 + 1; 8192];
        ids.push(io.begin_write(at * 8192, data.into()).await.unwrap());
    }
    for id in ids {
        within(io.end(id)).await.unwrap();
    }
    assert_eq!(world.catalog.now().members(), [NEAR]);
    for at in 0..64 {
        let read = within(io.read(at * 8192, 8192)).await.unwrap();
        assert_eq!(read, vec![at as u8 + 1; 8192]);
    }
    far.gate.open();
    within(io.close()).await;
    far.kill();
}

#[tokio::test]
async fn with_the_placement_service_away_too_it_waits_for_whichever_is_back_first() {
    let (mut world, far) = World::new();
    world.config.eject_after = Some(Duration::from_millis(500));
    let mut io = world.open().await;
    let epoch = world.catalog.now().epoch;

    // The store is back first.
    world.catalog.away.store(true, Ordering::Relaxed);
    far.kill();
    let id = io.begin_write(0, vec![1; 4096].into()).await.unwrap();
    stalls(&mut io, id, &Stall::PlacementAway).await;
    let far = world.restart_far();
    within(io.end(id)).await.unwrap();
    within(io.write(4096, vec![2; 4096])).await.unwrap();
    within(io.flush()).await.unwrap();
    assert_eq!(world.catalog.now().epoch, epoch, "nothing has changed");
    assert_eq!(io.disk().status().now().stall, None);

    // The service is.
    far.kill();
    let id = io.begin_write(8192, vec![3; 4096].into()).await.unwrap();
    stalls(&mut io, id, &Stall::PlacementAway).await;
    world.catalog.away.store(false, Ordering::Relaxed);
    within(io.end(id)).await.unwrap();
    assert_eq!(world.catalog.now().members(), [NEAR]);
    for (at, byte) in [(0, 1), (4096, 2), (8192, 3)] {
        let read = within(io.read(at, 4096)).await.unwrap();
        assert_eq!(read, vec![byte; 4096]);
    }
    within(io.close()).await;
}

#[tokio::test]
async fn a_deadline_makes_an_error_of_a_stall_and_keeps_the_order_of_writes() {
    let (mut world, far) = World::new();
    world.config.eject_after = None;
    world.config.stall_deadline = Some(Duration::from_millis(500));
    let mut io = world.open().await;
    within(io.write(0, vec![1; 4096])).await.unwrap();
    far.gate.close();
    let late = within(io.write(0, vec![2; 4096])).await;
    let too_late =
        |result: &Result<(), IoError>| matches!(result, Err(IoError::Failed(Failure::TooLate)));
    assert!(too_late(&late), "{late:?}");
    let flush = within(io.flush()).await;
    assert!(too_late(&flush), "{flush:?}");
    far.gate.open();
    // Behind the one that failed: that may take until its deadline, too, on a slow machine.
    while within(io.write(0, vec![3; 4096])).await.is_err() {}
    assert_eq!(within(io.read(0, 4096)).await.unwrap(), vec![3; 4096]);
    let disk = within(io.close()).await;
    assert_eq!(disk.status().now().phase, Phase::Closed);
    far.kill();
}
