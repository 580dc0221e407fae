//! Scripts of joining again, filling, adopting and dropping.

use super::bench::STORE;
use super::{Bench, DISK};
use crate::message::{Fetch, Found, Pulled, Refusal, Reply, Request};
use crate::words::{
    Block, Blocks, DiskName, DiskRecord, Entry, Epoch, Extent, ExtentSize, Extents, History,
    MapRange, Revision, Seq, State, StoreId, Version,
};
use bytes::Bytes;

const ALL: Extents = Extents::new(Extent(0), Extent(64));

fn v(epoch: u64, seq: u64) -> Version {
    Version::new(Epoch::from_u64(epoch), Seq(seq))
}

/// What the entry that began at `from` says below `below`: versions, and whether they are zeroes.
fn says(bench: &mut Bench, first: u64, count: u32, from: u64, below: u64) -> Vec<Option<Version>> {
    let read = bench.read_bounded(first, count, from, below).unwrap();
    let version = |found: &Found| match found {
        Found::Absent => None,
        Found::Zeroes(version) => Some(*version),
        Found::Data { version, .. } => Some(*version),
    };
    read.found.iter().map(version).collect()
}

fn surveyed(bench: &mut Bench, from: u64, below: u64) -> Vec<(u64, u32)> {
    let request = Request::Survey {
        asker: bench.asker(),
        from: Epoch::from_u64(from),
        below: Epoch::from_u64(below),
        extents: Extents::new(Extent(0), Extent(64)),
        start: Block(0),
    };
    match bench.ask(request) {
        Reply::Surveyed { runs, next: None } => {
            runs.iter().map(|run| (run.first.0, run.count)).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Checkpoints and restarts in between must not change anything.
fn restarts(bench: Bench) -> [Bench; 2] {
    let mut tidied = Bench::open(
        {
            let media = bench.media.fork();
            media.kill();
            media
        },
        bench.options.clone(),
        bench.oracle.clone(),
    )
    .unwrap();
    tidied.flush();
    tidied.store.start_checkpoint();
    tidied.tidy();
    [bench.kill(), tidied.kill()]
}

#[test]
fn a_rejoined_store_is_filled_and_then_says_all_of_it() {
    let mut bench = Bench::ready();
    bench.write(0, 4, false);
    bench.write(1, 1, false);
    bench.seal(5);
    bench.join(0..64, 5);
    assert_eq!(says(&mut bench, 0, 4, 5, u64::MAX), [None; 4]);
    // The other store has 0 and 2 as they are here, another version of 1, zeroes at 3, 4 and 5, nothing at 6.
    let source = |block: Block| match block.0 {
        0 | 2 => Some((v(1, 1), false)),
        1 => Some((v(2, 9), false)),
        3..=5 => Some((v(3, 7), true)),
        _ => None,
    };
    let pulled = bench.fill(5, Blocks::new(Block(0), 7), source).unwrap();
    let expected = Pulled {
        absent: vec![Blocks::new(Block(6), 1)],
        copied: 1,
        zeroes: 3,
        same: 2,
        ..Pulled::default()
    };
    assert_eq!(pulled, expected);
    let all = [
        Some(v(1, 1)),
        Some(v(2, 9)),
        Some(v(1, 1)),
        Some(v(3, 7)),
        Some(v(3, 7)),
        Some(v(3, 7)),
        None,
    ];
    assert_eq!(says(&mut bench, 0, 7, 5, u64::MAX), all);
    assert_eq!(surveyed(&mut bench, 5, u64::MAX), [(0, 6)]);
    // Again: everything is proven, but for what nobody has.
    let again = bench
        .fill(5, Blocks::new(Block(0), 7), |_| panic_on_all_but(6))
        .unwrap();
    assert_eq!((again.copied, again.same), (0, 0));
    for mut bench in restarts(bench) {
        assert_eq!(says(&mut bench, 0, 7, 5, u64::MAX), all);
        assert_eq!(
            bench.read(1, 1).unwrap().data,
            super::bench::content(DISK, Block(1), v(2, 9))
        );
        // The entry before still says what it said.
        assert_eq!(says(&mut bench, 0, 1, 1, 5), [Some(v(1, 1))]);
        // Filled blocks are no proof for the next membership, and again one for it when they are adopted.
        bench.seal(8);
        bench.join(0..64, 8);
        assert_eq!(says(&mut bench, 0, 2, 8, u64::MAX), [None; 2]);
        assert_eq!(
            says(&mut bench, 0, 7, 5, 8),
            all,
            "a sealed entry has what was filled in"
        );
        assert_eq!(surveyed(&mut bench, 5, 8), [(0, 6)]);
        let same = |block: Block| {
            all[block.0 as usize].map(|version| (version, version.epoch.as_u64() == 3))
        };
        let pulled = bench.fill(8, Blocks::new(Block(0), 7), same).unwrap();
        assert_eq!((pulled.same, pulled.copied, pulled.zeroes), (6, 0, 0));
        for mut bench in restarts(bench) {
            assert_eq!(says(&mut bench, 0, 7, 8, u64::MAX), all);
            assert_eq!(
                says(&mut bench, 0, 7, 5, 8),
                all,
                "adopted later, it is still the older entry's"
            );
        }
    }
}

fn panic_on_all_but(_: u64) -> Option<(Version, bool)> {
    None
}

#[test]
fn a_dead_tail_gives_way_to_an_older_version() {
    let mut bench = Bench::ready();
    bench.write(0, 2, false);
    bench.write(0, 3, false);
    bench.seal(4);
    bench.join(0..64, 4);
    // Nobody acknowledged version 1.2: the others have 1.1 of block 0, zeroes of block 1, nothing of block 2.
    let source = |block: Block| match block.0 {
        0 => Some((v(1, 1), false)),
        1 => Some((v(1, 1), true)),
        _ => None,
    };
    bench.fill(4, Blocks::new(Block(0), 3), source).unwrap();
    let all = [Some(v(1, 1)), Some(v(1, 1)), None];
    assert_eq!(says(&mut bench, 0, 3, 4, u64::MAX), all);
    bench.flush();
    for mut bench in restarts(bench) {
        assert_eq!(says(&mut bench, 0, 3, 4, u64::MAX), all);
        let usage = bench.store.usage();
        bench.write(0, 1, false);
        assert_eq!(says(&mut bench, 0, 1, 4, u64::MAX), [Some(v(4, 1))]);
        assert!(usage.disks[0].allocated <= 3 * 4096, "{usage:?}");
        for mut bench in restarts(bench) {
            assert_eq!(
                says(&mut bench, 0, 2, 4, u64::MAX),
                [Some(v(4, 1)), Some(v(1, 1))]
            );
        }
    }
}

#[test]
fn what_the_writer_wrote_meanwhile_is_never_replaced() {
    let mut bench = Bench::ready();
    bench.write(0, 2, false);
    bench.seal(4);
    bench.join(0..64, 4);
    let below = Epoch::from_u64(4);
    let blocks = Blocks::new(Block(0), 2);
    let missing = bench.store.missing(bench.asker(), below, blocks).unwrap();
    assert_eq!(
        (missing.blocks, missing.known),
        (vec![blocks], vec![v(1, 1); 2])
    );
    bench.write(1, 1, false);
    let old = |_| Some((v(2, 2), false));
    let pulled = bench.fill(4, blocks, old).unwrap();
    assert_eq!(pulled.copied, 1);
    assert_eq!(
        says(&mut bench, 0, 2, 4, u64::MAX),
        [Some(v(2, 2)), Some(v(4, 1))]
    );
    // A pull of an epoch that is over, or of a version that its own entry cannot have.
    let late = bench.asker();
    bench.seal(6);
    let refused = bench.store.missing(late, below, blocks);
    assert_eq!(
        refused,
        Err(Refusal::Superseded {
            shown: Epoch::from_u64(6)
        })
    );
    let future = |_| Some((v(6, 1), false));
    let blocks = Blocks::new(Block(8), 1);
    let refused = bench.fill(4, blocks, future);
    assert!(
        matches!(refused, Err(Refusal::Invalid { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_fetch_leaves_out_what_the_asker_holds() {
    let mut bench = Bench::ready();
    bench.write(0, 2, false);
    bench.write(8, 1, true);
    bench.write(9, 1, false);
    let request = |bench: &Bench, known: Vec<Version>, compress| Request::Fetch {
        asker: bench.asker(),
        from: Epoch::from_u64(1),
        below: Epoch::from_u64(2),
        blocks: vec![Blocks::new(Block(0), 3), Blocks::new(Block(8), 2)],
        known,
        compress,
        proof: None,
    };
    for compress in [false, true] {
        let known = vec![Version::ZERO, v(1, 1), Version::ZERO, v(1, 2), v(1, 1)];
        let ask = request(&bench, known, compress);
        let Reply::Fetched(fetched) = bench.ask(ask) else {
            panic!("a fetch is answered with one");
        };
        let data =
            |version| matches!(version, Fetch::Data { version, .. } if version > Version::ZERO);
        assert!(data(fetched.found[0]) && data(fetched.found[4]));
        assert_eq!(
            fetched.found[1..4],
            [Fetch::Same, Fetch::Absent, Fetch::Same]
        );
        let expected = [
            super::bench::content(DISK, Block(0), v(1, 1)),
            super::bench::content(DISK, Block(9), v(1, 3)),
        ];
        assert_eq!(fetched.data.unpack(8192).unwrap(), expected.concat());
    }
    let wrong = request(&bench, vec![Version::ZERO; 4], false);
    assert!(matches!(
        bench.ask(wrong),
        Reply::Refused(Refusal::Invalid { .. })
    ));
}

#[test]
fn a_dropped_replica_frees_its_blocks_and_nothing_of_it_comes_back() {
    let mut bench = Bench::ready();
    // Two extents that share a chunk of the index, and one far away.
    for first in [0, 256, 5000] {
        bench.write(first, 6, false);
    }
    bench.flush();
    let drop_of = |bench: &mut Bench, first: u32, end: u32, below: u64| {
        let extents = Extents::new(Extent(first), Extent(end));
        let mut steps = 0;
        while let Some(promise) = bench
            .store
            .drop_replica(DISK, extents, Epoch::from_u64(below))
            .unwrap()
        {
            assert_eq!(bench.wait(promise), Reply::Synced);
            steps += 1;
        }
        steps
    };
    assert_eq!(
        drop_of(&mut bench, 0, 64, 1),
        0,
        "it joined at that very epoch"
    );
    assert!(drop_of(&mut bench, 1, 64, 2) > 0);
    for mut bench in restarts(bench) {
        assert_eq!(bench.read(256, 1), Err(Refusal::NoReplica));
        assert_eq!(bench.read(5000, 1), Err(Refusal::NoReplica));
        assert_eq!(says(&mut bench, 0, 1, 1, 9), [Some(v(1, 1))]);
        assert_eq!(bench.store.usage().disks[0].allocated, 6 * 4096);
        // It comes again later, and has only what it got since.
        bench.seal(3);
        bench.join(1..64, 3);
        assert_eq!(bench.read(256, 1).unwrap().found, [Found::Absent]);
        bench
            .fill(3, Blocks::new(Block(256), 2), |_| Some((v(1, 2), false)))
            .unwrap();
        bench.write(260, 1, false);
        for mut bench in restarts(bench) {
            let has = says(&mut bench, 256, 6, 0, u64::MAX);
            assert_eq!(
                has,
                [
                    Some(v(1, 2)),
                    Some(v(1, 2)),
                    None,
                    None,
                    Some(v(3, 1)),
                    None
                ]
            );
            assert_eq!(bench.read(5000, 1).unwrap().found, [Found::Absent]);
        }
    }
}

#[test]
fn a_deleted_disk_that_comes_back_keeps_the_versions_that_it_had_before() {
    let mut bench = Bench::ready();
    for first in [0, 5000] {
        bench.write(first, 6, false);
    }
    // Of a membership before: what is filled in has versions that were here already.
    bench.seal(2);
    bench.join(0..64, 2);
    let source = |block: Block| (block.0 < 4).then_some((v(1, 1), block.0 == 3));
    bench.fill(2, Blocks::new(Block(0), 2), source).unwrap();
    bench.write(4, 1, false);
    bench.flush();
    for mut bench in restarts(bench) {
        let promise = bench.store.drop_disk(DISK).unwrap();
        assert_eq!(bench.wait(promise), Reply::Synced);
        for mut bench in restarts(bench) {
            assert_eq!(bench.read(0, 1), Err(Refusal::NoReplica));
            bench.seal(3);
            bench.join(0..64, 3);
            assert_eq!(says(&mut bench, 0, 6, 0, u64::MAX), [None; 6]);
            bench.fill(3, Blocks::new(Block(1), 3), source).unwrap();
            // Once more: the versions that stand here already are adopted, and moved as that.
            bench.seal(4);
            bench.join(0..64, 4);
            bench.fill(4, Blocks::new(Block(2), 1), source).unwrap();
            bench.write(5, 1, false);
            let was = [
                None,
                Some(v(1, 1)),
                Some(v(1, 1)),
                Some(v(1, 1)),
                None,
                Some(v(4, 1)),
            ];
            let adopted = [None, None, Some(v(1, 1)), None, None, Some(v(4, 1))];
            for mut bench in restarts(bench) {
                assert_eq!(says(&mut bench, 0, 6, 3, u64::MAX), was);
                assert_eq!(says(&mut bench, 0, 6, 4, u64::MAX), adopted);
                // The cleaner moves them.
                for _ in 0..60 {
                    bench.write(8, 8, false);
                    bench.flush();
                    bench.tidy();
                }
                for mut bench in restarts(bench) {
                    assert_eq!(says(&mut bench, 0, 6, 3, u64::MAX), was);
                    assert_eq!(says(&mut bench, 0, 6, 4, u64::MAX), adopted);
                    assert_eq!(says(&mut bench, 5000, 1, 0, u64::MAX), [None]);
                    assert_eq!(bench.recovery.damage, Vec::<String>::new());
                }
            }
        }
    }
}

#[test]
fn a_collapse_lets_predecessors_go_and_allows_joining_for_ever() {
    let mut bench = Bench::ready();
    bench.write(0, 8, false);
    for epoch in 2..30 {
        bench.seal(epoch);
        bench.join(0..64, epoch);
        let newest = bench.newest();
        let source = |block: Block| newest.get(&block).map(|version| (*version, false));
        bench.fill(epoch, Blocks::new(Block(0), 8), source).unwrap();
        bench.write(0, 8, false);
        bench.flush();
        let request = Request::Collapse {
            asker: bench.asker(),
            extents: Extents::new(Extent(0), Extent(64)),
            oldest: Epoch::from_u64(epoch),
        };
        if epoch % 3 == 0 {
            assert_eq!(bench.ask(request.clone()), Reply::Collapsed);
            assert_eq!(bench.ask(request), Reply::Collapsed, "again, for nothing");
            bench.write(100, 1, false);
            // The writer's word that everybody has it comes with a later write.
            for _ in 0..6 {
                bench.write(100, 1, false);
            }
            bench.flush();
            bench.tidy();
            assert_eq!(says(&mut bench, 0, 1, 0, epoch), [None]);
        }
    }
    bench.oracle.bounds.clear();
    bench.check(true);
    bench.kill().check(true);
}

/// As its writer tells it: the store is whole since epoch 1, and others joined at these epochs and are being filled.
fn record(epoch: u64, joined: &[u64]) -> Bytes {
    let mut entries = vec![Entry::whole(Epoch::from_u64(1), [STORE])];
    let younger = joined.iter().map(|from| {
        let other = StoreId::from_u128(u128::from(*from));
        Entry::new(Epoch::from_u64(*from), [other])
    });
    entries.extend(younger);
    entries.reverse();
    let record = DiskRecord {
        id: DISK,
        name: DiskName::new("web1").unwrap(),
        bytes: 64 << 20,
        extent_size: ExtentSize::new(1 << 20).unwrap(),
        copies: 2,
        revision: Revision(epoch),
        epoch: Epoch::from_u64(epoch),
        even_below: Epoch::from_u64(epoch),
        state: State::Closed {
            last: v(1, 1),
            successor: None,
        },
        map: vec![MapRange {
            extents: ALL,
            history: History(entries),
        }],
    };
    record.check().unwrap();
    record.to_kept()
}

fn keep(bench: &mut Bench, below: u64) -> Reply {
    let request = Request::Keep {
        asker: bench.asker(),
        extents: ALL,
        below: Epoch::from_u64(below),
    };
    bench.ask(request)
}

#[test]
fn what_is_kept_for_those_who_left_before_they_were_whole_is_let_go_when_another_joins() {
    let mut bench = Bench::ready();
    bench.write(0, 1, false);
    let was = says(&mut bench, 0, 1, 1, 2);
    // One joins at epoch 2 and is filled for long. Others come and go, and nobody tells the store the record.
    let mut last = 2;
    bench.seal(last);
    while keep(&mut bench, last) == Reply::KEPT {
        for _ in 0..6 {
            bench.write(0, 1, false);
        }
        bench.flush();
        last += 1;
        bench.seal(last);
    }
    assert!(last > 2 + History::MAX_ENTRIES as u64);
    let full = keep(&mut bench, last);
    assert!(matches!(full, Reply::Refused(Refusal::Invalid { .. })));
    // Whoever is the writer next has told it.
    for epoch in last + 1..last + 40 {
        bench.seal_with(epoch, record(epoch, &[2, epoch]));
        assert_eq!(keep(&mut bench, epoch), Reply::KEPT);
        for _ in 0..6 {
            bench.write(0, 1, false);
        }
        bench.flush();
        bench.tidy();
        assert_eq!(says(&mut bench, 0, 1, 1, 2), was, "it is needed still");
        // What stood there when somebody joined who has left is not.
        if epoch > last + 2 {
            assert_eq!(says(&mut bench, 0, 1, 1, epoch - 1), was);
        }
    }
    for mut bench in restarts(bench) {
        assert_eq!(says(&mut bench, 0, 1, 1, 2), was);
    }
}

#[test]
fn who_stays_keeps_what_stood_there_when_another_joined() {
    let mut bench = Bench::ready();
    bench.write(0, 2, false);
    let was = says(&mut bench, 0, 1, 1, 2);
    bench.seal(2);
    let extents = Extents::new(Extent(0), Extent(64));
    let below = Epoch::from_u64(2);
    let asker = bench.asker();
    let keep = Request::Keep {
        asker,
        extents,
        below,
    };
    assert_eq!(bench.ask(keep.clone()), Reply::KEPT);
    assert_eq!(bench.ask(keep), Reply::KEPT, "again, for nothing");
    bench.oracle.bounds.push(below.as_u64());
    let overwrite = |bench: &mut Bench| {
        // The last of them say that all members hold the first.
        for _ in 0..6 {
            bench.write(0, 1, false);
        }
        bench.seal(bench.asker().epoch.as_u64() + 1);
        bench.flush();
        bench.tidy();
    };
    overwrite(&mut bench);
    for mut bench in restarts(bench) {
        overwrite(&mut bench);
        assert_eq!(
            says(&mut bench, 0, 1, 1, 2),
            was,
            "it is read below the join"
        );
        let collapse = Request::Collapse {
            asker: bench.asker(),
            extents,
            oldest: below,
        };
        assert_eq!(bench.ask(collapse), Reply::Collapsed);
        bench.flush();
        overwrite(&mut bench);
        assert_eq!(says(&mut bench, 0, 1, 1, 2), [None]);
        bench.oracle.bounds.clear();
        bench.check(true);
    }
}
