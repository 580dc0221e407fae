//! Who gets in with what, without a network; and that the server asks.

use super::super::identity::{Claims, Credentials, Role};
use super::super::tests::{anywhere, credentials, host, link};
use super::super::{LinkEvent, Links, Place, Puller, PullingStore, Server};
use super::*;
use crate::message::{Content, Payload, Reply, Sealed, Source};
use crate::store::{Options, SharedStore};
use crate::words::{
    Block, Blocks, Epoch, Extent, ExtentSize, Extents, Incarnation, Life, Seq, StoreId,
};
use crate::writer::CallId;
use std::net::SocketAddr;
use std::path::Path;

const DISK: DiskId = DiskId::from_u128(9);
const OTHER_DISK: DiskId = DiskId::from_u128(10);
const OLD: StoreId = StoreId::from_u128(1);
const NEW: StoreId = StoreId::from_u128(2);

fn epoch(number: u64) -> Epoch {
    Epoch::from_u64(number)
}

fn node(name: &str) -> Identity {
    Identity::new(Role::Node, host(name))
}

/// A cluster's keys, and a store's memory of what it was shown.
struct Play {
    dir: tempfile::TempDir,
    shown: (Epoch, Bytes),
    accept_ungranted: bool,
}

impl Play {
    fn new() -> Play {
        Play {
            dir: tempfile::tempdir().unwrap(),
            shown: (Epoch::ZERO, Bytes::new()),
            accept_ungranted: false,
        }
    }

    fn credentials(&self, role: Role, name: &str) -> Credentials {
        credentials(self.dir.path(), role, name)
    }

    fn grant(&self, number: u64, holder: &str) -> Bytes {
        grant(self.dir.path(), DISK, number, holder)
    }

    fn admission(&self, peer: &str) -> Admission {
        let rules = Rules {
            credentials: self.credentials(Role::Node, "store-1"),
            accept_ungranted: self.accept_ungranted,
        };
        Admission::new(rules, node(peer))
    }

    fn ask(&self, peer: &mut Admission, request: &Request) -> Result<(), Refusal> {
        peer.admit(request, |_| self.shown.clone())
    }

    /// Shows the store an epoch, if it lets `peer`.
    fn seal(&mut self, peer: &str, number: u64, grant: Bytes) -> Result<(), Refusal> {
        let request = seal(DISK, number, grant.clone());
        self.ask(&mut self.admission(peer), &request)?;
        self.shown = (epoch(number), grant);
        Ok(())
    }
}

fn grant(dir: &Path, disk: DiskId, number: u64, holder: &str) -> Bytes {
    let claims = Claims {
        disk,
        epoch: epoch(number),
        life: Life(7),
        holder: node(holder),
    };
    credentials(dir, Role::Placement, "control-1")
        .grant(&claims)
        .unwrap()
}

fn seal(disk: DiskId, number: u64, grant: Bytes) -> Request {
    Request::Seal {
        known: Default::default(),
        disk,
        epoch: epoch(number),
        grant,
        record: Bytes::new(),
    }
}

fn asker(number: u64) -> Asker {
    Asker {
        disk: DISK,
        epoch: epoch(number),
        incarnation: Incarnation(1),
    }
}

fn sync(number: u64) -> Request {
    Request::Sync {
        asker: asker(number),
    }
}

fn fetch(number: u64, proof: Option<GrantDigest>) -> Request {
    Request::Fetch {
        asker: asker(number),
        from: epoch(1),
        below: epoch(2),
        blocks: vec![Blocks::new(Block(0), 1)],
        known: Vec::new(),
        compress: false,
        proof,
    }
}

fn is_not_granted(result: &Result<(), Refusal>) -> bool {
    matches!(result, Err(Refusal::NotGranted { .. }))
}

#[test]
fn only_the_holder_of_a_grant_uses_its_epoch() {
    let mut play = Play::new();
    let grant = play.grant(1, "tokyo-1");
    assert!(is_not_granted(&play.seal("tokyo-2", 1, grant.clone())));
    play.seal("tokyo-1", 1, grant.clone()).unwrap();
    let (mut holder, mut other) = (play.admission("tokyo-1"), play.admission("tokyo-2"));
    for _ in 0..2 {
        assert_eq!(play.ask(&mut holder, &sync(1)), Ok(()));
        assert!(is_not_granted(&play.ask(&mut other, &sync(1))));
    }
    // An operator of the same name is somebody else.
    let rules = holder.rules.clone();
    let operator = Identity::new(Role::Operator, host("tokyo-1"));
    let mut operator = Admission::new(rules, operator);
    assert!(is_not_granted(&play.ask(&mut operator, &sync(1))));
}

#[test]
fn a_replayed_grant_opens_nothing() {
    let mut play = Play::new();
    let (first, second) = (play.grant(1, "tokyo-1"), play.grant(2, "tokyo-2"));
    play.seal("tokyo-1", 1, first.clone()).unwrap();
    let mut before = play.admission("tokyo-1");
    play.ask(&mut before, &sync(1)).unwrap();
    play.seal("tokyo-2", 2, second.clone()).unwrap();
    // The old one as it was, for the new epoch, and another's.
    let superseded = Err(Refusal::Superseded { shown: epoch(2) });
    assert_eq!(play.seal("tokyo-1", 1, first.clone()), superseded);
    assert!(is_not_granted(&play.seal("tokyo-1", 2, first.clone())));
    assert!(is_not_granted(&play.seal("tokyo-1", 3, first)));
    assert!(is_not_granted(&play.seal("tokyo-1", 2, second.clone())));
    assert!(is_not_granted(&play.ask(&mut before, &sync(2))));
    // For a later epoch there is none yet: also not by a request that comes before its seal.
    let early = play.ask(&mut before, &sync(3));
    assert_eq!(early, Err(Refusal::NotShown { shown: epoch(2) }));
    let elsewhere = play.admission("tokyo-2");
    let of_another_disk = elsewhere.seal(OTHER_DISK, epoch(2), &second, Default::default());
    assert!(is_not_granted(&of_another_disk));
}

#[test]
fn a_grant_that_was_forged_or_changed_opens_nothing() {
    let mut play = Play::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = grant(elsewhere.path(), DISK, 1, "tokyo-1");
    assert!(is_not_granted(&play.seal("tokyo-1", 1, foreign)));
    // Signed by a node of this cluster.
    let claims = Claims {
        disk: DISK,
        epoch: epoch(1),
        life: Life(7),
        holder: node("tokyo-1"),
    };
    let own = play
        .credentials(Role::Node, "tokyo-1")
        .grant(&claims)
        .unwrap();
    assert!(is_not_granted(&play.seal("tokyo-1", 1, own)));
    let good = play.grant(1, "tokyo-1");
    for at in 0..good.len() {
        let mut changed = good.to_vec();
        changed[at] ^= 1;
        let result = play.seal("tokyo-1", 1, changed.into());
        assert!(is_not_granted(&result), "byte {at}");
    }
    for len in 1..good.len() {
        assert!(is_not_granted(&play.seal("tokyo-1", 1, good.slice(..len))));
    }
    play.seal("tokyo-1", 1, good).unwrap();
}

#[test]
fn a_peer_without_a_grant_is_let_in_for_the_time_of_an_upgrade_only() {
    let mut play = Play::new();
    let none = Bytes::new();
    assert!(is_not_granted(&play.seal("tokyo-1", 1, none.clone())));
    play.accept_ungranted = true;
    play.seal("tokyo-1", 1, none.clone()).unwrap();
    let mut peer = play.admission("tokyo-1");
    assert_eq!(play.ask(&mut peer, &sync(1)), Ok(()));
    assert_eq!(play.ask(&mut peer, &fetch(1, None)), Ok(()));
    // An epoch that was granted is its holder's all the same.
    play.seal("tokyo-2", 2, play.grant(2, "tokyo-2")).unwrap();
    assert!(is_not_granted(&play.ask(&mut peer, &sync(2))));
    assert!(is_not_granted(&play.seal("tokyo-1", 2, none.clone())));
    // And it is over when the operator says so.
    play.shown = (epoch(3), none);
    play.accept_ungranted = false;
    let mut peer = play.admission("tokyo-1");
    assert!(is_not_granted(&play.ask(&mut peer, &sync(3))));
    assert!(is_not_granted(&play.ask(&mut peer, &fetch(3, None))));
    // Its writer gets a grant for the epoch that it has, and shows that.
    play.seal("tokyo-1", 3, play.grant(3, "tokyo-1")).unwrap();
    assert_eq!(play.ask(&mut peer, &sync(3)), Ok(()));
}

#[test]
fn a_store_that_pulls_quotes_its_writers_grant() {
    let mut play = Play::new();
    let grant = play.grant(1, "tokyo-1");
    play.seal("tokyo-1", 1, grant.clone()).unwrap();
    let mut puller = play.admission("osaka-1");
    let wrong = digest(&play.grant(1, "tokyo-1"));
    assert!(is_not_granted(&play.ask(&mut puller, &fetch(1, None))));
    assert!(is_not_granted(
        &play.ask(&mut puller, &fetch(1, Some(wrong)))
    ));
    let right = fetch(1, Some(digest(&grant)));
    assert_eq!(play.ask(&mut puller, &right), Ok(()));
    // It may read what it was ordered to pull, and do nothing else.
    assert!(is_not_granted(&play.ask(&mut puller, &sync(1))));
    // The holder's own node needs no proof.
    let mut holder = play.admission("tokyo-1");
    assert_eq!(play.ask(&mut holder, &fetch(1, None)), Ok(()));
}

/// Two nodes with real stores, a writer's node, and somebody else's.
struct Cluster {
    dir: tempfile::TempDir,
    old: SharedStore,
    addr: [SocketAddr; 2],
}

fn open(dir: &Path, id: StoreId) -> SharedStore {
    let options = Options {
        segment_bytes: 4 << 20,
        ..Options::default()
    };
    SharedStore::format(dir, id, &options).unwrap();
    SharedStore::open(dir, options).unwrap().0
}

impl Cluster {
    fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let old = open(&dir.path().join("o"), OLD);
        let new = open(&dir.path().join("n"), NEW);
        let bind = |name| credentials(dir.path(), Role::Node, name);
        let store = old.clone();
        let server = Server::bind(anywhere(), &bind("osaka-1"), move |id| {
            (id == OLD).then(|| store.clone())
        });
        let server = server.unwrap();
        let old_at = server.local_addr().unwrap();
        tokio::spawn(server.run());
        let keys = bind("osaka-2");
        let place = Place {
            addr: old_at,
            host: host("osaka-1"),
        };
        let links = Links::new(&keys, move |_| Some(place.clone())).unwrap();
        let pulling = PullingStore {
            store: new,
            puller: Puller::new(links),
        };
        let server = Server::bind(anywhere(), &keys, move |id| {
            (id == NEW).then(|| pulling.clone())
        });
        let server = server.unwrap();
        let new_at = server.local_addr().unwrap();
        tokio::spawn(server.run());
        Cluster {
            dir,
            old,
            addr: [old_at, new_at],
        }
    }

    fn links(&self, name: &str) -> Links {
        let keys = credentials(self.dir.path(), Role::Node, name);
        let addr = self.addr;
        Links::new(&keys, move |store| {
            Some(match store {
                OLD => Place {
                    addr: addr[0],
                    host: host("osaka-1"),
                },
                _ => Place {
                    addr: addr[1],
                    host: host("osaka-2"),
                },
            })
        })
        .unwrap()
    }
}

async fn ask(links: &Links, store: StoreId, request: &Request) -> Reply {
    let (link, mut heard) = link(links, store);
    assert_eq!(heard.next().await, LinkEvent::Connected);
    link.send(CallId(1), request);
    heard.reply().await.1
}

#[tokio::test]
async fn one_node_cannot_write_a_disk_that_was_granted_to_another() {
    let cluster = Cluster::start();
    let (writer, thief) = (cluster.links("tokyo-1"), cluster.links("tokyo-2"));
    let granted = |number, holder| grant(cluster.dir.path(), DISK, number, holder);
    let first = seal(DISK, 1, granted(1, "tokyo-1"));
    let Reply::Sealed(Sealed { incarnation, .. }) = ask(&writer, OLD, &first).await else {
        panic!("the writer was granted the epoch");
    };
    let asker = Asker {
        incarnation,
        ..asker(1)
    };
    let join = |asker: Asker| Request::Join {
        asker,
        extents: Extents::new(Extent(0), Extent(4)),
        extent_size: ExtentSize::new(1 << 20).unwrap(),
        from: asker.epoch,
    };
    let write = |data: u8| Request::Write {
        asker,
        seq: Seq(u64::from(data)),
        watermark: Seq::ZERO,
        blocks: Blocks::new(Block(0), 1),
        content: Content::Data(Payload::new(vec![data; 4096].into())),
    };
    assert!(matches!(
        ask(&writer, OLD, &join(asker)).await,
        Reply::Joined(_)
    ));
    assert!(matches!(
        ask(&writer, OLD, &write(1)).await,
        Reply::Written(_)
    ));
    let read = Request::Read {
        asker,
        from: epoch(1),
        below: Epoch::MAX,
        blocks: Blocks::new(Block(0), 1),
    };
    let stolen = fetch(1, Some(GrantDigest([7; 32])));
    for request in [
        &write(2),
        &read,
        &stolen,
        &first,
        &seal(DISK, 2, Bytes::new()),
    ] {
        let reply = ask(&thief, OLD, request).await;
        assert!(
            matches!(reply, Reply::Refused(Refusal::NotGranted { .. })),
            "{}: {reply:?}",
            request.kind()
        );
    }
    assert_eq!(
        cluster.old.shown_by(DISK).0,
        epoch(1),
        "nothing has changed"
    );

    // The granted writer has another node's store pull: that one proves it.
    let second = granted(2, "tokyo-1");
    let mut sealed = Vec::new();
    for store in [OLD, NEW] {
        let Reply::Sealed(answer) = ask(&writer, store, &seal(DISK, 2, second.clone())).await
        else {
            panic!("granted");
        };
        sealed.push(answer.incarnation);
    }
    let at_new = Asker {
        disk: DISK,
        epoch: epoch(2),
        incarnation: sealed[1],
    };
    assert!(matches!(
        ask(&writer, NEW, &join(at_new)).await,
        Reply::Joined(_)
    ));
    let pull = Request::Pull {
        asker: at_new,
        source: Source {
            store: OLD,
            incarnation: sealed[0],
        },
        from: epoch(1),
        below: epoch(2),
        blocks: Blocks::new(Block(0), 1),
    };
    let Reply::Pulled(pulled) = ask(&writer, NEW, &pull).await else {
        panic!("the old store believes the new one");
    };
    assert_eq!(pulled.copied, 1);
    let reply = ask(&thief, NEW, &pull).await;
    assert!(matches!(reply, Reply::Refused(Refusal::NotGranted { .. })));

    // The epoch's grant was made anew: only that is believed from then on.
    let anew = seal(DISK, 2, granted(2, "tokyo-1"));
    assert!(matches!(ask(&writer, OLD, &anew).await, Reply::Sealed(_)));
    let next = Request::Pull {
        asker: at_new,
        source: Source {
            store: OLD,
            incarnation: sealed[0],
        },
        from: epoch(1),
        below: epoch(2),
        blocks: Blocks::new(Block(1), 1),
    };
    // A session that has quoted the one before has proved enough for the epoch.
    assert!(matches!(ask(&writer, NEW, &next).await, Reply::Pulled(_)));
    let fresh = cluster.links("osaka-2");
    let quoted = fetch(2, Some(digest(&second)));
    let reply = ask(&fresh, OLD, &quoted).await;
    assert!(matches!(reply, Reply::Refused(Refusal::NotGranted { .. })));
}
