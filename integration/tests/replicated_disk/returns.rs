//! A store that was away and comes back: it joins the disk again, and only what it missed crosses.

use super::*;
use replicator::net::{Puller, PullingStore};
use replicator::words::NewSet;
use replicator::writer::Orders;

/// What is written while the store is away.
const MISSED: [u64; 10] = [0, 3, 4, 5, 100, 101, 500, 900, 1200, 1535];
const BLOCK: u64 = 4096;

/// Serves the store at `listen` until the runtime ends.
fn serve(
    listen: SocketAddr,
    credentials: &Credentials,
    store: SharedStore,
    puller: Puller,
) -> SocketAddr {
    let find = move |id| {
        let (store, puller) = (store.clone(), puller.clone());
        (id == store.id()).then_some(PullingStore { store, puller })
    };
    let server = Server::bind(listen, credentials, find).unwrap();
    let server = server.accept_ungranted(true);
    let addr = server.local_addr().unwrap();
    tokio::spawn(server.run());
    addr
}

/// One that finds the near store's node, if that has been started.
fn puller(credentials: &Credentials, near: Option<SocketAddr>) -> Puller {
    let credentials = credentials.clone();
    let place = near.map(|addr| Place {
        addr,
        host: host("tokyo-1"),
    });
    let resolve = move |id| place.clone().filter(|_| id == NEAR);
    Puller::spawn(move || Links::new(&credentials, resolve)).unwrap()
}

#[tokio::test]
async fn a_store_that_comes_back_takes_the_difference_and_has_everything_then() {
    let (mut world, far) = World::new();
    world.config.eject_after = Some(Duration::from_secs(1));
    let mut model = Model::new(9);
    let mut io = world.open().await;
    for at in (0..DISK_BYTES).step_by(MIB as usize) {
        let data = model.data(MIB);
        model.put(at, &data);
        within(io.write(at, data)).await.unwrap();
    }
    within(io.flush()).await.unwrap();
    far.kill();
    for block in MISSED {
        let data = model.data(BLOCK);
        model.put(block * BLOCK, &data);
        within(io.write(block * BLOCK, data)).await.unwrap();
    }
    assert_eq!(world.catalog.now().members(), [NEAR]);

    // It is back, and the placement service wants it to be a member again.
    let anywhere = (Ipv4Addr::LOCALHOST, 0).into();
    let [near_keys, far_keys] = &world.credentials;
    let near_at = serve(
        anywhere,
        near_keys,
        world.near.clone(),
        puller(near_keys, None),
    );
    let far_store = open(&world.dir.path().join("far"));
    let pulls = puller(far_keys, Some(near_at));
    serve(world.far_addr, far_keys, far_store, pulls);
    let sets = vec![NewSet {
        extents: world.catalog.now().extents(),
        stores: vec![NEAR, FAR],
    }];
    io.disk().orders().change(|orders| {
        orders.placement = Orders {
            sets,
            ..Orders::default()
        };
    });
    let is_whole = |record: &DiskRecord| {
        let whole = record.map.iter().all(|range| range.history.is_whole());
        whole && record.members() == [NEAR, FAR]
    };
    let began = Instant::now();
    while !is_whole(&world.catalog.now()) {
        assert!(began.elapsed() < PATIENCE, "{:?}", io.disk().status().now());
        within(io.flush()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Progress is told a quarter of a second late at most.
    while io.disk().status().now().progress.copied_bytes == 0 {
        assert!(began.elapsed() < PATIENCE);
        within(io.flush()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let progress = io.disk().status().now().progress;
    let missed = MISSED.len() as u64 * BLOCK;
    assert_eq!(progress.copied_bytes, missed, "{progress:?}");
    assert_eq!(progress.same_bytes, DISK_BYTES - missed, "{progress:?}");
    within(io.close()).await;

    // It alone has all of it: whoever opens the disk now without the other one reads the same.
    let owner = Owner {
        backend: BackendId::from_u128(9),
        life: Life(1),
        host: host("osaka-1"),
    };
    let place = Place {
        addr: world.far_addr,
        host: host("osaka-1"),
    };
    let resolve = move |id| (id == FAR).then(|| place.clone());
    let around = Surroundings {
        near: None,
        links: Links::new(&world.credentials[1], resolve).unwrap(),
        placement: Arc::new(Service(world.catalog.clone())),
    };
    let record = world.catalog.now();
    let disk = ReplicatedDisk::new(record, owner, world.config.clone(), around);
    let mut io = within(DiskIo::open(disk)).await.unwrap();
    model.compare_all(&mut io).await;
}
