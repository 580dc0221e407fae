//! A store that the program before the current format wrote is opened, keeps what it has, and has the
//! current format from then on.
//!
//! `format_2.zst` to `format_4.zst` are the directories of stores as programs of these formats left them when their
//! processes were killed: a checkpoint with a disk (epoch 1: blocks 0 to 2), then a log (epoch 2: blocks 2 to 4); those of
//! formats 3 and 4 with a grant of the epoch. Packed: for each file u16 length of its name, name, u32 length, content.

use super::DISK;
use super::bench::content;
use crate::message::{Asker, Content, Found, Payload, Reply, Request};
use crate::store::check::check;
use crate::store::frame::FORMAT_VERSION;
use crate::store::media::FileMedia;
use crate::store::{BootId, Options, SharedStore, Store};
use crate::words::{Block, Blocks, Epoch, Incarnation, Seq, Version};
use bytes::Bytes;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

fn ask(store: &SharedStore, request: Request) -> Reply {
    let (done, answer) = mpsc::channel();
    store.submit(request, move |reply| done.send(reply).unwrap());
    answer
        .recv_timeout(Duration::from_secs(20))
        .expect("every request is answered")
}

fn asker(epoch: u64, incarnation: Incarnation) -> Asker {
    Asker {
        disk: DISK,
        epoch: Epoch::from_u64(epoch),
        incarnation,
    }
}

fn unpack(packed: &[u8], dir: &Path) {
    let bytes = zstd::decode_all(packed).unwrap();
    let mut rest = &bytes[..];
    let mut take = |bytes: usize| {
        let (taken, after) = rest.split_at(bytes);
        rest = after;
        (taken, after.is_empty())
    };
    loop {
        let name = take(2).0.try_into().unwrap();
        let name = take(u16::from_le_bytes(name).into()).0;
        let len = take(4).0.try_into().unwrap();
        let (content, last) = take(u32::from_le_bytes(len) as usize);
        std::fs::write(dir.join(std::str::from_utf8(name).unwrap()), content).unwrap();
        if last {
            return;
        }
    }
}

fn format_of(dir: &Path) -> u32 {
    let bytes = std::fs::read(dir.join("UKAI-STORE")).unwrap();
    u32::from_le_bytes(bytes[12..16].try_into().unwrap())
}

fn assert_holds_it_all(store: &SharedStore, asker: Asker) {
    let request = Request::Read {
        asker,
        from: Epoch::from_u64(1),
        below: Epoch::MAX,
        blocks: Blocks::new(Block(0), 6),
    };
    let Reply::Read(read) = ask(store, request) else {
        panic!("it is readable");
    };
    let version = |epoch, seq| Version::new(Epoch::from_u64(epoch), Seq(seq));
    let written = [(0, version(1, 1)), (1, version(1, 1))]
        .into_iter()
        .chain((2..5).map(|block| (block, version(2, 1))));
    let mut data = read.data.chunks_exact(4096);
    for ((block, version), found) in written.zip(&read.found) {
        let Found::Data { version: has, .. } = found else {
            panic!("block {block}: {found:?}");
        };
        let expected = content(DISK, Block(block), version);
        assert_eq!((*has, data.next()), (version, Some(&expected[..])));
    }
    // Whole, and never written: the entry is the first.
    assert!(!matches!(read.found[5], Found::Data { .. }));
}

#[test]
fn a_store_of_the_format_before_is_opened_and_goes_on_in_this_one() {
    goes_on(4, include_bytes!("format_4.zst"), b"granted");
}

#[test]
fn those_of_the_formats_before_that_are_too() {
    goes_on(3, include_bytes!("format_3.zst"), b"granted");
    goes_on(2, include_bytes!("format_2.zst"), b"");
}

/// `shown`: the grant with which epoch 2 was shown.
fn goes_on(format: u32, packed: &[u8], shown: &'static [u8]) {
    let dir = tempfile::tempdir().unwrap();
    unpack(packed, dir.path());
    assert_eq!(format_of(dir.path()), format);
    let (store, recovery) = SharedStore::open(dir.path(), Options::tiny()).unwrap();
    assert!(recovery.damage.is_empty(), "{:?}", recovery.damage);
    assert_eq!(format_of(dir.path()), FORMAT_VERSION);
    let epoch = Epoch::from_u64(2);
    assert_eq!(store.shown_by(DISK), (epoch, Bytes::from_static(shown)));
    let seal = |grant: &'static [u8]| Request::Seal {
        disk: DISK,
        epoch,
        grant: Bytes::from_static(grant),
        record: Bytes::new(),
        known: Default::default(),
    };
    let Reply::Sealed(sealed) = ask(&store, seal(b"granted anew")) else {
        panic!("the epoch that it was shown last");
    };
    assert_holds_it_all(&store, asker(2, sealed.incarnation));
    // From its log, and from a checkpoint.
    store.close().unwrap();
    drop(store);
    assert!(check(dir.path()).unwrap().damage.is_empty());
    for _ in 0..2 {
        let (store, _) = SharedStore::open(dir.path(), Options::tiny()).unwrap();
        assert_eq!(
            store.shown_by(DISK),
            (epoch, Bytes::from_static(b"granted anew"))
        );
        assert_holds_it_all(&store, asker(2, store.incarnation()));
        store.close().unwrap();
        drop(store);
        let media = FileMedia::new(dir.path()).unwrap();
        let boot = BootId::of_this_host().unwrap();
        let (mut store, _) = Store::open(media, Options::tiny(), boot).unwrap();
        store.start_checkpoint();
        while store.housekeep() {}
    }
    // Beside much that is garbage: what is left of the old segments is moved, and is in the layout of today then.
    let (store, _) = SharedStore::open(dir.path(), Options::tiny()).unwrap();
    let asker = asker(2, store.incarnation());
    assert!(matches!(
        ask(&store, seal(b"granted anew")),
        Reply::Sealed(_)
    ));
    for seq in 10..100 {
        let blocks = Blocks::new(Block(100), 8);
        let request = Request::Write {
            asker,
            seq: Seq(seq),
            watermark: Seq(seq - 1),
            blocks,
            content: Content::Data(Payload::new(Bytes::from(vec![7; 8 * 4096]))),
        };
        assert!(matches!(ask(&store, request), Reply::Written(_)));
    }
    assert_eq!(ask(&store, Request::Sync { asker }), Reply::Synced);
    store.close().unwrap();
    drop(store);
    let media = FileMedia::new(dir.path()).unwrap();
    let boot = BootId::of_this_host().unwrap();
    let (mut raw, _) = Store::open(media, Options::tiny(), boot).unwrap();
    for _ in 0..8 {
        raw.start_checkpoint();
        while raw.housekeep() {}
    }
    drop(raw);
    assert!(
        !dir.path().join("segment.00000001").exists(),
        "the first segment of the format before stays"
    );
    let (store, _) = SharedStore::open(dir.path(), Options::tiny()).unwrap();
    let asker = Asker {
        incarnation: store.incarnation(),
        ..asker
    };
    assert_holds_it_all(&store, asker);
    store.close().unwrap();
    drop(store);
    assert!(check(dir.path()).unwrap().damage.is_empty());
}
