//! Over loopback, with real certificates: what arrives is what was sent, and a peer that misbehaves
//! costs only itself.

use super::identity::{Credentials, DEFAULT_VALIDITY, Dial, Expected, Gate, Pki, Role};
use super::*;
use crate::message::{Asker, Content, Found, Payload, ReadBlocks, Refusal, Reply, Request, Source};
use crate::wire::{ALPN, Call, Decoder, Hello, Message, Verdict, VersionRange, Welcome};
use crate::words::{
    BLOCK_BYTES, Block, Blocks, DiskId, Epoch, Extent, Extents, HostName, Incarnation, Seq, Version,
};
use crate::writer::CallId;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

pub(super) const STORE: StoreId = StoreId::from_u128(42);
const PATIENCE: Duration = Duration::from_secs(10);

/// Holds blocks in memory, and answers when it is let.
#[derive(Default)]
struct Shelf {
    blocks: Mutex<HashMap<Block, Bytes>>,
    /// While set, calls are kept here unanswered.
    held: Mutex<Option<Vec<Held>>>,
    submitted: Mutex<usize>,
    /// With which every disk was shown its epoch.
    grant: Mutex<Bytes>,
}

type Held = (Request, Box<dyn FnOnce(Reply) + Send>);

impl Shelf {
    fn hold(&self) {
        *self.held.lock() = Some(Vec::new());
    }

    fn release(&self, order: impl Fn(&mut Vec<Held>)) {
        let mut held = self.held.lock().take().expect("it was holding");
        order(&mut held);
        for (request, done) in held {
            done(self.answer(&request));
        }
    }

    fn answer(&self, request: &Request) -> Reply {
        match request {
            Request::Write {
                blocks,
                content: Content::Data(payload),
                ..
            } => {
                assert!(payload.is_intact(), "checked before it gets here");
                let mut shelf = self.blocks.lock();
                for (i, block) in blocks.iter().enumerate() {
                    shelf.insert(block, payload.data.slice(i * 4096..(i + 1) * 4096));
                }
                Reply::WRITTEN
            }
            Request::Read { blocks, .. } => {
                let shelf = self.blocks.lock();
                let mut data = Vec::new();
                let found = blocks.iter().map(|block| match shelf.get(&block) {
                    None => Found::Absent,
                    Some(bytes) => {
                        data.extend_from_slice(bytes);
                        Found::Data {
                            version: Version::new(Epoch::from_u64(1), Seq(1)),
                            sum: crate::message::checksum(bytes),
                        }
                    }
                });
                let found = found.collect();
                let data = data.into();
                Reply::Read(ReadBlocks { found, data })
            }
            Request::Sync { .. } => Reply::Synced,
            _ => Reply::Refused(Refusal::NoReplica),
        }
    }
}

impl Serve for Arc<Shelf> {
    fn submit(&self, request: Request, done: impl FnOnce(Reply) + Send + 'static) {
        *self.submitted.lock() += 1;
        if let Some(held) = &mut *self.held.lock() {
            held.push((request, Box::new(done)));
            return;
        }
        done(self.answer(&request));
    }

    fn shown_by(&self, _: DiskId) -> (Epoch, Bytes) {
        let grant = self.grant.lock().clone();
        (asker().epoch, grant)
    }
}

pub(super) fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

pub(super) fn credentials(dir: &Path, role: Role, name: &str) -> Credentials {
    let pki = Pki::open(dir).or_else(|_| Pki::init(dir)).unwrap();
    Credentials::load(dir, role, &host(name)).unwrap_or_else(|_| {
        pki.issue(role, &host(name), DEFAULT_VALIDITY).unwrap();
        Credentials::load(dir, role, &host(name)).unwrap()
    })
}

/// A node with one store, and the keys of its cluster.
struct Node {
    shelf: Arc<Shelf>,
    addr: SocketAddr,
    endpoint: quinn::Endpoint,
    task: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start(credentials: &Credentials, shelf: Arc<Shelf>, listen: SocketAddr) -> Node {
        let bind = || {
            let shelf = shelf.clone();
            Server::bind(listen, credentials, move |id| {
                (id == STORE).then(|| shelf.clone())
            })
        };
        // Grants have tests of their own.
        let bind = || bind().map(|server| server.accept_ungranted(true));
        // The socket of one that was here before is closed a moment after the last task lets it go.
        let server = timeout(PATIENCE, async {
            loop {
                match bind() {
                    Ok(server) => return server,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await
        .expect("an address to listen on");
        Node {
            shelf,
            addr: server.local_addr().unwrap(),
            endpoint: server.endpoint(),
            task: tokio::spawn(server.run()),
        }
    }
}

pub(super) fn anywhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub(super) struct Heard(mpsc::UnboundedReceiver<LinkEvent>);

impl Heard {
    pub(super) async fn next(&mut self) -> LinkEvent {
        timeout(PATIENCE, self.0.recv())
            .await
            .expect("an event in time")
            .expect("the link lives")
    }

    pub(super) async fn reply(&mut self) -> (CallId, Reply) {
        match self.next().await {
            LinkEvent::Reply { call, reply } => (call, reply),
            other => panic!("{other:?} instead of a reply"),
        }
    }
}

pub(super) fn link(links: &Links, store: StoreId) -> (Link, Heard) {
    let (tx, rx) = mpsc::unbounded_channel();
    let link = links.link(store, move |event| drop(tx.send(event)));
    (link, Heard(rx))
}

pub(super) struct Cluster {
    pub dir: tempfile::TempDir,
    node: Node,
    pub links: Links,
}

impl Cluster {
    pub async fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(
            &credentials(dir.path(), Role::Node, "osaka-1"),
            Arc::default(),
            anywhere(),
        )
        .await;
        let links = links(&credentials(dir.path(), Role::Node, "tokyo-1"), node.addr);
        Cluster { dir, node, links }
    }

    /// A connection of a peer that does not follow the protocol.
    pub async fn raw(&self) -> (quinn::Endpoint, quinn::Connection) {
        let (endpoint, connection) = self.try_raw().await;
        (endpoint, connection.unwrap())
    }

    pub fn addr(&self) -> SocketAddr {
        self.node.addr
    }

    pub async fn try_raw(
        &self,
    ) -> (
        quinn::Endpoint,
        Result<quinn::Connection, super::identity::DialError>,
    ) {
        let credentials = credentials(self.dir.path(), Role::Operator, "mallory");
        let dial = Dial::new(
            &credentials,
            Expected::host(Role::Node, host("osaka-1")),
            &[ALPN],
        )
        .with_transport(transport::config(0));
        let endpoint = transport::connecting(transport::any_socket().unwrap()).unwrap();
        let connection = dial.connect(&endpoint, self.node.addr).await;
        (endpoint, connection)
    }
}

pub(super) fn links(credentials: &Credentials, addr: SocketAddr) -> Links {
    let place = Place {
        addr,
        host: host("osaka-1"),
    };
    Links::new(credentials, move |_| Some(place.clone())).unwrap()
}

pub(super) fn asker() -> Asker {
    Asker {
        disk: DiskId::from_u128(1),
        epoch: Epoch::from_u64(1),
        incarnation: Incarnation(1),
    }
}

pub(super) fn write(block: u64, data: Vec<u8>) -> Request {
    let blocks = Blocks::new(Block(block), (data.len() as u64 / BLOCK_BYTES) as u32);
    Request::Write {
        asker: asker(),
        seq: Seq(1),
        watermark: Seq::ZERO,
        blocks,
        content: Content::Data(Payload::new(data.into())),
    }
}

fn read(block: u64, count: u32) -> Request {
    Request::Read {
        asker: asker(),
        from: Epoch::ZERO,
        below: Epoch::MAX,
        blocks: Blocks::new(Block(block), count),
    }
}

pub(super) fn pattern(blocks: usize, seed: u64) -> Vec<u8> {
    let words = (0..blocks as u64 * BLOCK_BYTES / 8).map(|i| (i + 1).wrapping_mul(seed | 1));
    words.flat_map(u64::to_le_bytes).collect()
}

pub(super) async fn close_code(connection: &quinn::Connection) -> (u64, String) {
    match timeout(PATIENCE, connection.closed()).await.unwrap() {
        quinn::ConnectionError::ApplicationClosed(close) => (
            close.error_code.into(),
            String::from_utf8_lossy(&close.reason).into_owned(),
        ),
        other => panic!("closed by {other}"),
    }
}

#[tokio::test]
async fn small_and_large_writes_arrive_and_read_back() {
    let cluster = Cluster::start().await;
    let (link, mut heard) = link(&cluster.links, STORE);
    assert_eq!(heard.next().await, LinkEvent::Connected);
    let sizes = [1, 256, 2, 255, 17];
    for (n, &blocks) in sizes.iter().enumerate() {
        let data = pattern(blocks, n as u64 * 7919);
        link.send(CallId(n as u64), &write(n as u64 * 1000, data));
    }
    for _ in sizes {
        assert_eq!(heard.reply().await.1, Reply::WRITTEN);
    }
    for (n, &blocks) in sizes.iter().enumerate() {
        link.send(CallId(n as u64), &read(n as u64 * 1000, blocks as u32));
        let (call, reply) = heard.reply().await;
        let Reply::Read(read) = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(call, CallId(n as u64));
        assert_eq!(read.data, pattern(blocks, n as u64 * 7919));
    }
    link.send(CallId(99), &read(77_777, 3));
    let (_, Reply::Read(none)) = heard.reply().await else {
        panic!("a read is answered with one");
    };
    assert_eq!((none.found, none.data.len()), (vec![Found::Absent; 3], 0));
}

#[tokio::test]
async fn answers_come_in_any_order_and_find_their_link() {
    let cluster = Cluster::start().await;
    let (one, mut heard_one) = link(&cluster.links, STORE);
    let (two, mut heard_two) = link(&cluster.links, STORE);
    assert_eq!(heard_one.next().await, LinkEvent::Connected);
    assert_eq!(heard_two.next().await, LinkEvent::Connected);
    cluster.node.shelf.hold();
    for n in 0..8 {
        one.send(CallId(n), &write(n, pattern(1, n)));
        two.send(CallId(n), &Request::Sync { asker: asker() });
    }
    while *cluster.node.shelf.submitted.lock() < 16 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.node.shelf.release(|held| held.reverse());
    for n in (0..8).rev() {
        assert_eq!(heard_one.reply().await, (CallId(n), Reply::WRITTEN));
        assert_eq!(heard_two.reply().await, (CallId(n), Reply::Synced));
    }
    drop(one);
    two.send(CallId(9), &Request::Sync { asker: asker() });
    assert_eq!(heard_two.reply().await, (CallId(9), Reply::Synced));
}

#[tokio::test]
async fn pulls_whose_source_hangs_do_not_hold_up_what_comes_behind_them() {
    let cluster = Cluster::start().await;
    let (link, mut heard) = link(&cluster.links, STORE);
    assert_eq!(heard.next().await, LinkEvent::Connected);
    let shelf = &cluster.node.shelf;
    shelf.hold();
    // As many as 32 disks have under way, each of as many blocks as there may be.
    let pulls = 256;
    for n in 0..pulls {
        let pull = Request::Pull {
            asker: asker(),
            source: Source {
                store: StoreId::from_u128(43),
                incarnation: Incarnation(1),
            },
            from: Epoch::ZERO,
            below: Epoch::MAX,
            blocks: Blocks::new(Block(n * 256), 256),
        };
        link.send(CallId(n), &pull);
    }
    link.send(CallId(pulls), &Request::Sync { asker: asker() });
    let all = timeout(PATIENCE, async {
        while *shelf.submitted.lock() < pulls as usize + 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    all.await.expect("the sync was read");
    shelf.release(|held| held.reverse());
    assert_eq!(heard.reply().await, (CallId(pulls), Reply::Synced));
}

#[tokio::test]
async fn a_link_comes_back_when_the_node_does() {
    let cluster = Cluster::start().await;
    let (link, mut heard) = link(&cluster.links, STORE);
    assert_eq!(heard.next().await, LinkEvent::Connected);
    cluster.node.shelf.hold();
    link.send(CallId(1), &write(5, pattern(1, 5)));
    let (shelf, addr) = (cluster.node.shelf.clone(), cluster.node.addr);
    cluster.node.endpoint.close(0u32.into(), b"a restart");
    timeout(PATIENCE, cluster.node.task).await.unwrap().unwrap();
    cluster.node.endpoint.wait_idle().await;
    drop(cluster.node.endpoint);
    assert_eq!(heard.next().await, LinkEvent::Disconnected);
    link.send(CallId(2), &write(6, pattern(1, 6)));

    shelf.held.lock().take();
    let credentials = credentials(cluster.dir.path(), Role::Node, "osaka-2");
    // The certificate of another host is not taken, though the address is right.
    let wrong = Node::start(&credentials, shelf.clone(), addr).await;
    let nothing = timeout(Duration::from_millis(300), heard.0.recv()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    wrong.endpoint.close(0u32.into(), b"");
    wrong.task.await.unwrap();
    drop(wrong.endpoint);

    let credentials = Credentials::load(cluster.dir.path(), Role::Node, &host("osaka-1")).unwrap();
    let _node = Node::start(&credentials, shelf, addr).await;
    assert_eq!(heard.next().await, LinkEvent::Connected);
    link.send(CallId(3), &write(5, pattern(1, 5)));
    assert_eq!(
        heard.reply().await,
        (CallId(3), Reply::WRITTEN),
        "and nothing of before"
    );
}

#[tokio::test]
async fn garbage_ends_its_own_connection_with_a_reason() {
    let cluster = Cluster::start().await;
    let (good, mut heard) = link(&cluster.links, STORE);
    assert_eq!(heard.next().await, LinkEvent::Connected);

    let (_endpoint, connection) = cluster.raw().await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let second = timeout(Duration::from_millis(100), connection.open_bi()).await;
    assert!(second.is_err(), "one stream is all that a peer gets");
    send.write_all(&Hello::to(STORE).encode()).await.unwrap();
    send.write_all(&[0xee; 500]).await.unwrap();
    let (code, reason) = close_code(&connection).await;
    assert_eq!(code, Close::Malformed as u64);
    assert!(reason.contains("kind 0xee"), "{reason}");

    let (_endpoint, connection) = cluster.raw().await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(close_code(&connection).await.0, Close::Malformed as u64);

    good.send(CallId(1), &Request::Sync { asker: asker() });
    assert_eq!(heard.reply().await, (CallId(1), Reply::Synced));
}

#[tokio::test]
async fn damage_on_the_way_is_refused() {
    let cluster = Cluster::start().await;
    let (link, mut heard) = link(&cluster.links, STORE);
    assert_eq!(heard.next().await, LinkEvent::Connected);
    let Request::Write {
        asker,
        seq,
        watermark,
        blocks,
        content: Content::Data(mut payload),
    } = write(1, pattern(2, 3))
    else {
        unreachable!("write() makes writes");
    };
    payload.sums[1] ^= 1;
    let content = Content::Data(payload);
    link.send(
        CallId(1),
        &Request::Write {
            asker,
            seq,
            watermark,
            blocks,
            content,
        },
    );
    let refused = Reply::Refused(Refusal::BadChecksum);
    assert_eq!(heard.reply().await, (CallId(1), refused));
    assert_eq!(
        *cluster.node.shelf.submitted.lock(),
        0,
        "the store never saw it"
    );
}

#[tokio::test]
async fn a_newer_peer_and_an_unknown_store_are_told_so() {
    let cluster = Cluster::start().await;
    let newer = Hello {
        versions: VersionRange { min: 4, max: 5 },
        store: STORE,
    };
    let elsewhere = Hello::to(StoreId::from_u128(7));
    for (hello, verdict, close, says) in [
        (
            newer,
            Verdict::NoCommonVersion,
            Close::Version,
            "upgrade the store's node",
        ),
        (
            elsewhere,
            Verdict::NoSuchStore,
            Close::NoSuchStore,
            "no store",
        ),
    ] {
        let (_endpoint, connection) = cluster.raw().await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&hello.encode()).await.unwrap();
        let answer = recv.read_to_end(1024).await.unwrap();
        assert_eq!(Welcome::decode(&answer).unwrap().0.verdict, verdict);
        let (code, reason) = close_code(&connection).await;
        assert_eq!(code, close as u64);
        assert!(reason.contains(says), "{reason}");
    }
    let (_link, mut heard) = link(&cluster.links, StoreId::from_u128(7));
    let nothing = timeout(Duration::from_millis(300), heard.0.recv()).await;
    assert!(nothing.is_err(), "{nothing:?}");
}

#[tokio::test]
async fn a_peer_of_the_version_before_is_spoken_to_as_it_understands() {
    let cluster = Cluster::start().await;
    let older = Hello {
        versions: VersionRange { min: 1, max: 2 },
        store: STORE,
    };
    let (_endpoint, connection) = cluster.raw().await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&older.encode()).await.unwrap();
    let mut welcome = [0; 48];
    let welcomed = timeout(PATIENCE, recv.read_exact(&mut welcome)).await;
    welcomed.unwrap().unwrap();
    let welcome = Welcome::decode(&welcome).unwrap().0;
    assert_eq!(welcome.verdict, Verdict::Speak(2));

    let mut decoder = Decoder::<Reply>::new();
    let mut answers = Vec::new();
    for (call, request) in [write(3, pattern(2, 3)), read(3, 2)].iter().enumerate() {
        assert!(crate::wire::since(request) <= 2);
        let frame = request.encode(Call(call as u64));
        send.write_all(&frame.head).await.unwrap();
        send.write_all(&frame.data).await.unwrap();
        while answers.len() <= call {
            let chunk = timeout(PATIENCE, recv.read_chunk(1 << 20, true)).await;
            decoder.push(chunk.unwrap().unwrap().expect("more").bytes);
            while let Some((_, reply)) = decoder.next().unwrap() {
                answers.push(reply);
            }
        }
    }
    assert_eq!(answers[0], Reply::WRITTEN);
    let Reply::Read(read) = &answers[1] else {
        panic!("{:?}", answers[1]);
    };
    assert_eq!(read.data[..], pattern(2, 3)[..]);
}

/// What a store's node of the version before does: it greets, and hears a seal.
async fn older_store(endpoint: quinn::Endpoint) {
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let (mut send, mut recv) = connection.accept_bi().await.unwrap();
    let mut hello = [0; 48];
    recv.read_exact(&mut hello).await.unwrap();
    let hello = Hello::decode(&hello).unwrap().0;
    let welcome = hello.judge(VersionRange { min: 1, max: 2 }, true);
    send.write_all(&welcome.encode()).await.unwrap();
    let mut frame = [0; 88];
    recv.read_exact(&mut frame).await.unwrap();
    let (call, seal) = Request::decode(&frame, Bytes::new()).unwrap();
    assert_eq!(seal, Request::seal(asker().disk, asker().epoch));
    let answer = Reply::Refused(Refusal::NoReplica).encode(call);
    send.write_all(&answer.head).await.unwrap();
    connection.closed().await;
}

#[tokio::test]
async fn a_store_of_the_version_before_is_asked_only_what_it_understands() {
    let dir = tempfile::tempdir().unwrap();
    let keys = credentials(dir.path(), Role::Node, "osaka-1");
    let gate = Gate::new(&keys, &[Role::Node], &[ALPN]).with_transport(transport::config(1));
    let endpoint = quinn::Endpoint::server(gate.quic(), anywhere()).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let store = tokio::spawn(older_store(endpoint));

    let links = links(&credentials(dir.path(), Role::Node, "tokyo-1"), addr);
    let (link, mut heard) = link(&links, STORE);
    assert_eq!(heard.next().await, LinkEvent::Connected);
    let digest = Request::Digest {
        asker: asker(),
        from: Epoch::ZERO,
        extents: Extents::new(Extent(0), Extent(1)),
    };
    link.send(CallId(1), &digest);
    let (call, reply) = heard.reply().await;
    let refused = matches!(reply, Reply::Refused(Refusal::Invalid { .. }));
    assert!(call == CallId(1) && refused, "{reply:?}");
    let seal = Request::Seal {
        disk: asker().disk,
        epoch: asker().epoch,
        grant: Bytes::from_static(b"granted"),
        record: Bytes::from_static(b"the record"),
        known: Default::default(),
    };
    link.send(CallId(2), &seal);
    let answer = (CallId(2), Reply::Refused(Refusal::NoReplica));
    assert_eq!(heard.reply().await, answer);
    drop((link, links));
    timeout(PATIENCE, store).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_peer_that_does_not_read_stops_being_read() {
    let cluster = Cluster::start().await;
    let (good, mut heard) = link(&cluster.links, STORE);
    assert_eq!(heard.next().await, LinkEvent::Connected);
    good.send(CallId(0), &write(0, pattern(256, 1)));
    assert_eq!(heard.reply().await.1, Reply::WRITTEN);

    let (_endpoint, connection) = cluster.raw().await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&Hello::to(STORE).encode()).await.unwrap();
    // 400 MiB of answers, none of which it takes.
    for n in 0..400 {
        let frame = read(0, 256).encode(Call(n));
        send.write_all(&frame.head).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let submitted = *cluster.node.shelf.submitted.lock();
    assert!(
        submitted < 64,
        "{submitted} reads were carried out for nobody"
    );
    good.send(CallId(1), &Request::Sync { asker: asker() });
    assert_eq!(heard.reply().await, (CallId(1), Reply::Synced));

    // It may still change its mind: nothing was lost.
    let mut decoder = Decoder::<Reply>::new();
    let mut greeted = false;
    let mut answers = 0;
    while answers < 400 {
        let chunk = timeout(PATIENCE, recv.read_chunk(1 << 20, true))
            .await
            .unwrap()
            .unwrap()
            .expect("more");
        let skip = if greeted { 0 } else { 48 };
        greeted = true;
        decoder.push(chunk.bytes.slice(skip..));
        while let Some((call, reply)) = decoder.next().unwrap() {
            assert_eq!(call, Call(answers));
            assert!(matches!(reply, Reply::Read(_)));
            answers += 1;
        }
    }
}

#[tokio::test]
async fn a_foreign_or_wrong_peer_gets_no_session() {
    let cluster = Cluster::start().await;
    let foreign = tempfile::tempdir().unwrap();
    for credentials in [
        credentials(foreign.path(), Role::Node, "tokyo-1"),
        credentials(cluster.dir.path(), Role::Placement, "control"),
    ] {
        let links = links(&credentials, cluster.node.addr);
        let (_link, mut heard) = link(&links, STORE);
        let nothing = timeout(Duration::from_millis(300), heard.0.recv()).await;
        assert!(nothing.is_err(), "{nothing:?}");
    }
}

#[tokio::test]
async fn links_that_are_kept_open_are_measured() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.links.measurements(), []);
    cluster.links.keep_open([STORE]);
    let (link, mut heard) = link(&cluster.links, STORE);
    assert_eq!(heard.next().await, LinkEvent::Connected);
    let first = cluster.links.measurements();
    assert_eq!((first.len(), first[0].store), (1, STORE));
    assert_eq!(first[0].host, Some(host("osaka-1")));
    assert!(first[0].round_trip < Duration::from_secs(1));
    link.send(CallId(1), &write(0, pattern(256, 7)));
    assert_eq!(heard.reply().await.1, Reply::WRITTEN);
    tokio::time::sleep(Duration::from_millis(150)).await;
    let rate = cluster.links.measurements()[0].bytes_per_second;
    assert!(rate > 1 << 18, "{rate} bytes/s");
    drop((link, heard));
    cluster.links.keep_open([STORE]);
    assert_eq!(cluster.links.measurements().len(), 1);
    cluster.links.keep_open([]);
    let gone = timeout(PATIENCE, async {
        while !cluster.links.measurements().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    gone.await.expect("nobody wants it any more");
}
