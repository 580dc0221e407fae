//! Two real stores on loopback: what the one lacks it gets from the other, by order of a third party.

use super::*;
use crate::message::{Asker, Content, Found, Payload, Pulled, Sealed, Source as From};
use crate::net::identity::Role;
use crate::net::tests::{Heard, anywhere, credentials, host, link};
use crate::net::{Place, Server};
use crate::store::Options;
use crate::words::{Block, Blocks, DiskId, Epoch, Extent, ExtentSize, Extents, Incarnation, Seq};
use bytes::Bytes;
use std::net::SocketAddr;
use std::path::Path;

const OLD: StoreId = StoreId::from_u128(1);
const NEW: StoreId = StoreId::from_u128(2);
const GONE: StoreId = StoreId::from_u128(3);
const MUTE: StoreId = StoreId::from_u128(4);
const DISK: DiskId = DiskId::from_u128(9);

/// Takes everything and never answers, like a store whose media hang.
#[derive(Clone, Default)]
struct Mute(Arc<Mutex<Vec<Box<dyn Send>>>>);

impl Serve for Mute {
    fn submit(&self, _: Request, done: impl FnOnce(Reply) + Send + 'static) {
        self.0.lock().push(Box::new(done));
    }

    fn shown_by(&self, _: DiskId) -> (Epoch, Bytes) {
        (Epoch::from_u64(2), Bytes::new())
    }
}

fn open(dir: &Path, id: StoreId) -> SharedStore {
    let options = Options {
        segment_bytes: 4 << 20,
        ..Options::default()
    };
    SharedStore::format(dir, id, &options).unwrap();
    SharedStore::open(dir, options).unwrap().0
}

async fn ask(store: &SharedStore, request: Request) -> Reply {
    ask_itself(store, request).await
}

async fn seal(store: &SharedStore, epoch: u64) -> Asker {
    let epoch = Epoch::from_u64(epoch);
    let reply = ask(store, Request::seal(DISK, epoch)).await;
    let Reply::Sealed(Sealed { incarnation, .. }) = reply else {
        panic!("{reply:?}");
    };
    Asker {
        disk: DISK,
        epoch,
        incarnation,
    }
}

async fn join(store: &SharedStore, asker: Asker) {
    let request = Request::Join {
        asker,
        extents: Extents::new(Extent(0), Extent(4)),
        extent_size: ExtentSize::new(1 << 20).unwrap(),
        from: asker.epoch,
    };
    assert!(matches!(ask(store, request).await, Reply::Joined(_)));
}

fn text(block: u64) -> Vec<u8> {
    let line = format!("block {block} says so. ");
    line.into_bytes().into_iter().cycle().take(4096).collect()
}

async fn write(store: &SharedStore, asker: Asker, seq: u64, blocks: Blocks) {
    let data: Vec<u8> = blocks.iter().flat_map(|block| text(block.0)).collect();
    let request = Request::Write {
        asker,
        seq: Seq(seq),
        watermark: Seq::ZERO,
        blocks,
        content: Content::Data(Payload::new(Bytes::from(data))),
    };
    assert!(matches!(ask(store, request).await, Reply::Written(_)));
}

fn serve<S: Serve + Clone>(dir: &Path, name: &str, id: StoreId, store: S) -> SocketAddr {
    let credentials = credentials(dir, Role::Node, name);
    let find = move |wanted| (wanted == id).then(|| store.clone());
    let server = Server::bind(anywhere(), &credentials, find).unwrap();
    let server = server.accept_ungranted(true);
    let addr = server.local_addr().unwrap();
    tokio::spawn(server.run());
    addr
}

fn pull(asker: Asker, source: From, blocks: Blocks) -> Request {
    Request::Pull {
        asker,
        source,
        from: Epoch::from_u64(1),
        below: Epoch::from_u64(2),
        blocks,
    }
}

async fn pulled(heard: &mut Heard) -> Result<Pulled, Refusal> {
    match heard.reply().await.1 {
        Reply::Pulled(pulled) => Ok(pulled),
        Reply::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_store_gets_what_it_lacks_from_another_node() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (
        open(&dir.path().join("o"), OLD),
        open(&dir.path().join("n"), NEW),
    );
    let asker = seal(&old, 1).await;
    join(&old, asker).await;
    write(&old, asker, 1, Blocks::new(Block(0), 200)).await;
    write(&old, asker, 2, Blocks::new(Block(256), 256)).await;
    let source = From {
        store: OLD,
        incarnation: seal(&old, 2).await.incarnation,
    };
    let asker = seal(&new, 2).await;
    join(&new, asker).await;

    let old_at = serve(dir.path(), "tokyo-1", OLD, old.clone());
    let mute_at = serve(dir.path(), "tokyo-2", MUTE, Mute::default());
    let node = credentials(dir.path(), Role::Node, "osaka-1");
    let place = move |addr, name| Place {
        addr,
        host: host(name),
    };
    let puller = Puller::spawn(move || {
        Links::new(&node, move |store| match store {
            OLD => Some(place(old_at, "tokyo-1")),
            MUTE => Some(place(mute_at, "tokyo-2")),
            _ => None,
        })
    })
    .unwrap();
    let pulling = PullingStore {
        store: new.clone(),
        puller,
    };
    let new_at = serve(dir.path(), "osaka-1", NEW, pulling);
    let writer = credentials(dir.path(), Role::Node, "tokyo-1");
    let links = Links::new(&writer, move |_| Some(place(new_at, "osaka-1"))).unwrap();
    let (link, mut heard) = link(&links, NEW);
    assert_eq!(heard.next().await, LinkEvent::Connected);

    // In small pieces, so that both ways are tried: compressed and not.
    for (call, first) in (0..256).step_by(16).enumerate() {
        let blocks = Blocks::new(Block(first), 16);
        link.send(CallId(call as u64), &pull(asker, source, blocks));
        let pulled = pulled(&mut heard).await.unwrap();
        let expected = (200 - first.min(200)).min(16) as u32;
        assert_eq!(pulled.copied, expected);
        assert_eq!(
            pulled.absent.iter().map(|part| part.count).sum::<u32>(),
            16 - expected
        );
        assert!(pulled.bytes <= u64::from(expected) * 4096);
    }
    link.send(
        CallId(90),
        &pull(asker, source, Blocks::new(Block(256), 256)),
    );
    link.send(
        CallId(91),
        &pull(asker, source, Blocks::new(Block(256), 256)),
    );
    let first = pulled(&mut heard).await.unwrap();
    let second = pulled(&mut heard).await.unwrap();
    assert_eq!(
        first.copied + second.copied,
        256,
        "doubled pulls do no harm"
    );
    link.send(
        CallId(92),
        &pull(asker, source, Blocks::new(Block(256), 256)),
    );
    assert_eq!(
        pulled(&mut heard).await,
        Ok(Pulled::default()),
        "nothing is missing"
    );

    let read = Request::Read {
        asker,
        from: asker.epoch,
        below: Epoch::MAX,
        blocks: Blocks::new(Block(256), 256),
    };
    let Reply::Read(read) = ask(&new, read).await else {
        panic!("a read is answered with one");
    };
    assert!(
        read.found
            .iter()
            .all(|found| matches!(found, Found::Data { .. }))
    );
    let expected: Vec<u8> = (256..512).flat_map(text).collect();
    assert_eq!(read.data, expected);

    // Sources that are no help, each with its reason.
    let faults = [
        (
            From {
                store: MUTE,
                ..source
            },
            SourceFault::Away,
        ),
        (
            From {
                store: GONE,
                ..source
            },
            SourceFault::Away,
        ),
        (
            From {
                incarnation: Incarnation(77),
                ..source
            },
            SourceFault::Unsealed,
        ),
    ];
    for (source, fault) in faults {
        link.send(CallId(93), &pull(asker, source, Blocks::new(Block(201), 1)));
        assert_eq!(pulled(&mut heard).await, Err(Refusal::Source(fault)));
    }
}
