//! Letting go of much at once: a little at a time, across a restart in the middle of it, and where the index is damaged.

use super::{Bench, DISK, STORE};
use crate::message::{Refusal, Reply};
use crate::store::frame::{Kind, RawHeader};
use crate::store::media::Media;
use crate::store::place::Place;
use crate::store::segment::parse_name;
use crate::words::{Block, Epoch, Extent, Extents};

const SEGMENT: u64 = 64 << 10;
/// Chunks of the index that the disk has something in.
const CHUNKS: u64 = 40;
const EXTENTS: u32 = 16 * CHUNKS as u32;
/// What is live of one chunk is less: six blocks, some predecessors, and the part of the index.
const MOST_LIVE: u64 = 16 * 4160;

/// A disk with much that is live, and nothing of its index in memory.
fn with_large_disk() -> Bench {
    let mut bench = Bench::new();
    bench.seal(1);
    bench.join(0..EXTENTS, 1);
    for round in 0..2 {
        for chunk in 0..CHUNKS {
            bench.write(4096 * chunk + 3 * round, 6 - 3 * round as u32, false);
        }
    }
    bench.flush();
    bench.store.start_checkpoint();
    bench.tidy();
    let bench = bench.kill();
    assert!(bench.store.usage().used > 15 * SEGMENT);
    bench
}

/// Deletes the disk, or only the replica of all its extents.
fn delete(bench: &mut Bench, whole_disk: bool) {
    if whole_disk {
        let promise = bench.store.drop_disk(DISK).unwrap();
        assert_eq!(bench.wait(promise), Reply::Synced);
        return;
    }
    let all = Extents::new(Extent(0), Extent(EXTENTS));
    let below = Epoch::from_u64(2);
    while let Some(promise) = bench.store.drop_replica(DISK, all, below).unwrap() {
        assert_eq!(bench.wait(promise), Reply::Synced);
    }
}

#[test]
fn what_is_deleted_is_uncounted_a_chunk_at_a_time() {
    for whole_disk in [true, false] {
        let mut bench = with_large_disk();
        let read = bench.media.work().bytes_read;
        delete(&mut bench, whole_disk);
        assert_eq!(bench.media.work().bytes_read, read, "nothing is read first");
        assert_eq!(bench.read(0, 1), Err(Refusal::NoReplica));
        let mut steps = 0;
        while !bench.store.holdings.gone.is_empty() {
            let before = bench.store.usage().live;
            assert!(bench.store.housekeep());
            assert!(bench.store.usage().live + MOST_LIVE >= before);
            steps += 1;
        }
        assert!(steps >= CHUNKS, "{steps}");
        bench.flush();
        bench.tidy();
        assert!(bench.store.usage().used <= 6 * SEGMENT);
    }
}

#[test]
fn a_restart_while_it_is_uncounted_loses_no_space() {
    for whole_disk in [true, false] {
        for steps in [0, 20] {
            let mut bench = with_large_disk();
            delete(&mut bench, whole_disk);
            for _ in 0..steps {
                assert!(bench.store.housekeep());
            }
            // Whoever asks for a checkpoint now gets one that knows of no more than is needed.
            bench.store.start_checkpoint();
            bench.store.housekeep();
            let mut bench = bench.kill();
            assert_eq!(bench.read(0, 1), Err(Refusal::NoReplica));
            assert_eq!(bench.store.holdings.gone.len() as u64, CHUNKS);
            bench.tidy();
            bench.flush();
            bench.tidy();
            let used = bench.store.usage().used;
            assert!(used <= 6 * SEGMENT, "{used}");
        }
    }
}

/// The media spoil the index of a chunk.
fn spoil_index(bench: &Bench, chunk: u64) {
    let mut spoilt = 0;
    for name in bench.media.list().unwrap() {
        let Some(segment) = parse_name(&name) else {
            continue;
        };
        let bytes = bench.media.content(&name);
        for at in (0..bytes.len()).step_by(64) {
            let place = Place::new(segment, at as u64);
            let header = RawHeader::decode(&bytes[at..], STORE, place);
            if header.is_some_and(|of| of.kind == Kind::Index && of.block == 4096 * chunk) {
                bench.media.flip(&name, at as u64 + 70, 1);
                spoilt += 1;
            }
        }
    }
    assert!(spoilt > 0);
}

#[test]
fn what_is_deleted_need_not_be_readable() {
    for whole_disk in [true, false] {
        for restart in [true, false] {
            let mut bench = with_large_disk();
            // The first, the last, one between them.
            for chunk in [0, CHUNKS / 2, CHUNKS - 1] {
                spoil_index(&bench, chunk);
            }
            let damaged = Refusal::Damaged { block: Block(0) };
            assert_eq!(bench.read(0, 1), Err(damaged));
            // A start would go along it otherwise.
            bench.store.start_checkpoint();
            bench.tidy();
            delete(&mut bench, whole_disk);
            if restart {
                bench = bench.kill();
            }
            bench.tidy();
            bench.flush();
            bench.tidy();
            // Nobody knows where their blocks were: those segments may stay until there is more to be had.
            let used = bench.store.usage().used;
            assert!(used <= 6 * SEGMENT, "{used}");
            let mut bench = bench.kill();
            assert_eq!(bench.read(0, 1), Err(Refusal::NoReplica));
        }
    }
}
