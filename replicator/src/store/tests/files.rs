//! The shared store on real files.

use super::bench::content;
use super::{DISK, STORE};
use crate::message::{Asker, Content, Found, Payload, Refusal, Reply, Request};
use crate::store::shared::{MOST_READS, READERS};
use crate::store::{BootId, Options, SharedStore, Store, StoreError, check};
use crate::words::{Block, Blocks, Epoch, Extent, ExtentSize, Extents, Incarnation, Seq, Version};
use bytes::Bytes;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

const E1: Epoch = Epoch::from_u64(1);

fn small() -> Options {
    Options {
        segment_bytes: 1 << 20,
        checkpoint_bytes: 4 << 20,
        ..Options::default()
    }
}

fn ask(store: &SharedStore, request: Request) -> Reply {
    let (done, answer) = mpsc::channel();
    store.submit(request, move |reply| done.send(reply).unwrap());
    answer
        .recv_timeout(Duration::from_secs(20))
        .expect("every request is answered")
}

fn asker(incarnation: Incarnation) -> Asker {
    Asker {
        disk: DISK,
        epoch: E1,
        incarnation,
    }
}

fn ready(dir: &Path) -> SharedStore {
    SharedStore::format(dir, STORE, &small()).unwrap();
    let (store, _) = SharedStore::open(dir, small()).unwrap();
    let seal = Request::seal(DISK, E1);
    assert!(matches!(ask(&store, seal), Reply::Sealed(_)));
    let join = Request::Join {
        asker: asker(store.incarnation()),
        extents: Extents::new(Extent(0), Extent(64)),
        extent_size: ExtentSize::new(1 << 20).unwrap(),
        from: E1,
    };
    assert!(matches!(ask(&store, join), Reply::Joined(_)));
    store
}

fn write(incarnation: Incarnation, seq: u64, first: u64, count: u32) -> Request {
    let blocks = Blocks::new(Block(first), count);
    let version = Version::new(E1, Seq(seq));
    let data: Vec<u8> = blocks
        .iter()
        .flat_map(|block| content(DISK, block, version))
        .collect();
    Request::Write {
        asker: asker(incarnation),
        seq: Seq(seq),
        watermark: Seq(seq.saturating_sub(1)),
        blocks,
        content: Content::Data(Payload::new(Bytes::from(data))),
    }
}

fn read(incarnation: Incarnation, first: u64, count: u32) -> Request {
    Request::Read {
        asker: asker(incarnation),
        from: E1,
        below: Epoch::MAX,
        blocks: Blocks::new(Block(first), count),
    }
}

#[test]
fn many_threads_write_sync_and_read_and_a_reopened_store_has_it_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = ready(dir.path());
    let incarnation = store.incarnation();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                for i in 0..150u64 {
                    let seq = thread * 1000 + i + 1;
                    let first = thread * 1024 + i * 7 % 240;
                    assert!(matches!(
                        ask(store, write(incarnation, seq, first, 8)),
                        Reply::Written(_)
                    ));
                    if i % 20 == 0 {
                        let sync = Request::Sync {
                            asker: asker(incarnation),
                        };
                        assert_eq!(ask(store, sync), Reply::Synced);
                    }
                    let Reply::Read(blocks) = ask(store, read(incarnation, first, 8)) else {
                        panic!("what was just written can be read");
                    };
                    for (i, found) in blocks.found.iter().enumerate() {
                        let block = Block(first + i as u64);
                        let Found::Data { version, .. } = found else {
                            panic!("{found:?}");
                        };
                        let data = &blocks.data[i * 4096..(i + 1) * 4096];
                        assert_eq!(data, &content(DISK, block, *version)[..]);
                    }
                }
            });
        }
    });
    let usage = store.usage();
    assert!(
        usage.disks[0].allocated > 0 && usage.used >= usage.live,
        "{usage:?}"
    );
    let in_use = SharedStore::open(dir.path(), small());
    assert!(matches!(in_use, Err(StoreError::InUse { .. })));
    let in_use = SharedStore::check_unused(dir.path());
    assert!(matches!(in_use, Err(StoreError::InUse { .. })));
    drop(store);
    SharedStore::check_unused(dir.path()).unwrap();

    let report = check::check(dir.path()).unwrap();
    assert!(
        report.damage.is_empty() && report.frames > 1000,
        "{report:?}"
    );
    let (store, recovery) = SharedStore::open(dir.path(), small()).unwrap();
    assert!(recovery.clean && !recovery.lost_tail, "{recovery:?}");
    assert_eq!(store.incarnation(), incarnation);
    let Reply::Read(blocks) = ask(&store, read(incarnation, 3 * 1024, 100)) else {
        panic!("it is all there");
    };
    assert!(
        blocks
            .found
            .iter()
            .all(|found| matches!(found, Found::Data { .. }))
    );
    store.close().unwrap();
    let refused = ask(&store, read(incarnation, 0, 1));
    assert_eq!(refused, Reply::Refused(Refusal::Failed), "closed");
}

#[test]
fn reads_past_the_page_cache_are_answered_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = ready(dir.path());
    let incarnation = store.incarnation();
    for i in 0..64 {
        assert!(matches!(
            ask(&store, write(incarnation, i + 1, i * 4, 4)),
            Reply::Written(_)
        ));
    }
    drop(store);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let file = std::fs::File::open(entry.unwrap().path()).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    let (store, _) = SharedStore::open(dir.path(), small()).unwrap();
    for i in 0..64 {
        let Reply::Read(blocks) = ask(&store, read(incarnation, i * 4, 4)) else {
            panic!("block {i}");
        };
        let version = Version::new(E1, Seq(i + 1));
        assert_eq!(
            blocks.data[..4096],
            content(DISK, Block(i * 4), version)[..]
        );
    }
}

/// Where media hang, whoever asks gives up and asks again: that must not pile up.
#[test]
fn reads_that_wait_for_the_media_are_bounded() {
    const MORE: usize = 5;
    let dir = tempfile::tempdir().unwrap();
    let store = ready(dir.path());
    let incarnation = store.incarnation();
    let written = ask(&store, write(incarnation, 1, 0, 1));
    assert!(matches!(written, Reply::Written(_)));
    // Who has answered one stands still until it is let go.
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock();
    let (done, answers) = mpsc::channel();
    let all = READERS + MOST_READS + MORE;
    for _ in 0..all {
        let (done, gate) = (done.clone(), gate.clone());
        let plan = store.plan_read(read(incarnation, 0, 1));
        store.wait_on_thread(Box::new(plan.expect("it is to be read")), move |reply| {
            let refused = matches!(reply, Reply::Refused(_));
            done.send(refused).unwrap();
            if !refused {
                drop(gate.lock());
            }
        });
    }
    // Those that are being read besides may not have been taken yet.
    let at_once: Vec<bool> = answers.try_iter().collect();
    let refused = at_once.iter().filter(|refused| **refused).count();
    assert!((MORE..=MORE + READERS).contains(&refused), "{refused}");
    drop(held);
    drop(done);
    drop(store);
    assert_eq!(at_once.len() + answers.iter().count(), all, "each once");
}

#[test]
fn another_boot_of_the_host_is_another_incarnation() {
    let dir = tempfile::tempdir().unwrap();
    let store = ready(dir.path());
    let before = store.incarnation();
    assert!(matches!(
        ask(&store, write(before, 1, 0, 4)),
        Reply::Written(_)
    ));
    // Not a clean end: the process is gone without a word. Its files stay as they are.
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let same = SharedStore::open(copy.path(), small()).unwrap();
    assert!(!same.1.lost_tail && same.0.incarnation() == before);
    drop(same);
    let media = crate::store::media::FileMedia::new(copy.path()).unwrap();
    let (other, recovery) = Store::open(media.clone(), small(), BootId(99)).unwrap();
    assert!(
        recovery.clean && !recovery.lost_tail,
        "it was closed in between"
    );
    drop(other);
    let (other, recovery) = Store::open(media, small(), BootId(100)).unwrap();
    assert!(recovery.lost_tail && other.incarnation() > before);
}

#[test]
fn a_missing_directory_and_a_foreign_one_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let missing = SharedStore::open(&dir.path().join("nowhere"), small());
    assert!(matches!(missing, Err(StoreError::Io { .. })));
    std::fs::write(dir.path().join("photos.txt"), "x").unwrap();
    let foreign = SharedStore::open(dir.path(), small());
    assert!(matches!(foreign, Err(StoreError::NotAStore { .. })));
    let made = SharedStore::format(dir.path(), STORE, &small());
    assert!(matches!(made, Err(StoreError::NotEmpty { .. })));
    assert!(matches!(
        check::check(dir.path()),
        Err(StoreError::NotAStore { .. })
    ));
}

#[test]
fn a_thread_that_panics_stops_the_store_and_nobody_waits_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let store = ready(dir.path());
    let incarnation = store.incarnation();
    assert!(matches!(
        ask(&store, write(incarnation, 1, 0, 1)),
        Reply::Written(_)
    ));
    let sync = || Request::Sync {
        asker: asker(incarnation),
    };
    store.submit(sync(), |_| panic!("on purpose, on the thread for syncs"));
    let (done, answer) = mpsc::channel();
    for _ in 0..3 {
        let done = done.clone();
        store.submit(sync(), move |reply| done.send(reply).unwrap());
        let reply = answer.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(matches!(
            reply,
            Reply::Synced | Reply::Refused(Refusal::Failed)
        ));
    }
    while !store.has_failed() {
        std::thread::yield_now();
    }
    let failed = Reply::Refused(Refusal::Failed);
    assert_eq!(ask(&store, write(incarnation, 2, 0, 1)), failed);
    assert_eq!(ask(&store, sync()), failed);
    assert!(store.close().is_err());
}

#[test]
fn whoever_syncs_answers_all_that_wait() {
    const THREADS: u64 = 4;
    const SYNCS: u64 = 100;
    let dir = tempfile::tempdir().unwrap();
    let store = ready(dir.path());
    let sync = Request::Sync {
        asker: asker(store.incarnation()),
    };
    // Some do it themselves, some have the store's thread do it, and they meet in any way.
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, sync) = (&store, &sync);
            scope.spawn(move || {
                for i in 1..=SYNCS {
                    let seq = thread * SYNCS + i;
                    let wrote = ask(store, write(store.incarnation(), seq, thread * 8, 1));
                    assert!(matches!(wrote, Reply::Written(_)));
                    let (done, answers) = mpsc::channel();
                    match (thread + i) % 2 {
                        0 => store.submit(sync.clone(), move |reply| done.send(reply).unwrap()),
                        _ => {
                            let twice = [done.clone(), done];
                            let twice = twice
                                .map(|done| (sync.clone(), move |reply| done.send(reply).unwrap()));
                            store.sync_here(twice);
                        }
                    }
                    let patience = Duration::from_secs(20);
                    let answer = answers.recv_timeout(patience).expect("it is answered");
                    assert_eq!(answer, Reply::Synced);
                    assert!(answers.iter().all(|answer| answer == Reply::Synced));
                }
            });
        }
    });
    assert!(store.usual_sync() < Duration::from_secs(1));
    store.close().unwrap();
    let (done, answer) = mpsc::channel();
    store.sync_here([(sync, move |reply| done.send(reply).unwrap())]);
    assert_eq!(answer.recv().unwrap(), Reply::Refused(Refusal::Failed));
}

#[test]
fn who_syncs_alone_is_answered_before_the_call_returns() {
    let dir = tempfile::tempdir().unwrap();
    let store = ready(dir.path());
    let incarnation = store.incarnation();
    for seq in 1..=50 {
        let wrote = ask(&store, write(incarnation, seq, seq % 8, 1));
        assert!(matches!(wrote, Reply::Written(_)));
        let (done, answer) = mpsc::channel();
        let sync = Request::Sync {
            asker: asker(incarnation),
        };
        store.sync_here([(sync, move |reply| {
            let here = std::thread::current().id();
            done.send((reply, here)).unwrap();
        })]);
        let me = std::thread::current().id();
        match answer.try_recv() {
            Ok(answer) => assert_eq!(answer, (Reply::Synced, me)),
            // The store's own thread was at it, for housekeeping.
            Err(_) => assert_eq!(answer.recv().unwrap().0, Reply::Synced),
        }
    }
}
