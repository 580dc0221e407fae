//! Space and cost: a full disk, what the cleaner gives back, what a recovery reads.

use super::{Bench, DISK};
use crate::message::{Refusal, Reply, Request};
use crate::store::Options;
use crate::store::media::Media;
use crate::words::{Block, Extent, Extents};

fn limited() -> Options {
    Options {
        capacity_bytes: Some(16 * (64 << 10)),
        ..Options::tiny()
    }
}

#[test]
fn a_full_disk_refuses_writes_untorn_and_discards_bring_it_back() {
    let mut bench = Bench::ready_with(limited());
    let mut full = None;
    for i in 0..400 {
        match bench.write(i * 8 % 2048, 8, false) {
            Reply::WRITTEN => {}
            Reply::Refused(Refusal::Full { needed, .. }) => {
                assert!(needed > 0);
                full = Some(i);
                break;
            }
            other => panic!("{other:?}"),
        }
        bench.tidy();
    }
    let full = full.expect("16 segments do not hold 400 writes");
    bench.flush();
    bench.check(true);
    assert!(matches!(
        bench.write(0, 8, false),
        Reply::Refused(Refusal::Full { .. })
    ));
    // Discards, reads, syncs and seals go on.
    for i in 0..full {
        assert_eq!(
            bench.write(i * 8 % 2048, 8, true),
            Reply::WRITTEN,
            "discard {i} of {full}"
        );
        if i % 16 == 0 {
            bench.flush();
        }
    }
    bench.seal(2);
    let refused = bench.asker();
    assert_eq!(bench.ask(Request::Sync { asker: refused }), Reply::Synced);
    bench.tidy();
    bench.check(true);
    assert!(
        bench.store.usage().used < 8 * (64 << 10),
        "{:?}",
        bench.store.usage()
    );
    assert_eq!(
        bench.write(0, 8, false),
        Reply::WRITTEN,
        "it recovered by itself"
    );
    bench.kill().check(true);
}

#[test]
fn a_file_system_without_space_is_the_same_and_the_store_opens_when_some_returns() {
    let mut bench = Bench::ready();
    bench.media.set_capacity(Some(12 * (64 << 10)));
    let mut i = 0;
    while bench.write(i * 8, 8, false) == Reply::WRITTEN {
        i += 1;
        assert!(i < 200);
    }
    bench.flush();
    bench.check(true);
    let mut bench = bench.kill();
    bench.check(true);
    assert!(matches!(
        bench.write(0, 8, false),
        Reply::Refused(Refusal::Full { .. })
    ));
    bench.media.set_capacity(None);
    assert_eq!(bench.write(0, 8, false), Reply::WRITTEN);
}

#[test]
fn a_checkpoint_that_does_not_fit_is_given_room_and_keeps_it() {
    let mut bench = Bench::ready();
    bench.write(0, 8, false);
    bench.flush();
    bench.tidy();
    let before = bench.store.checkpoint_number();
    // Somebody else has taken all that was free.
    let space = bench.media.space().unwrap();
    bench.media.set_capacity(Some(space.capacity - space.free));
    bench.store.start_checkpoint();
    let mut steps = 0;
    while bench.store.is_checkpointing() && steps < 100 {
        steps += 1;
        bench.flush();
        bench.store.housekeep();
    }
    assert!(
        bench.store.checkpoint_number() > before,
        "after {steps} steps"
    );
    assert!(steps < 20, "{steps}");
    bench.kill().check(true);
}

#[test]
fn overwriting_for_ever_takes_bounded_space_and_the_cleaner_loses_nothing() {
    let mut bench = Bench::ready();
    // A cold half that the cleaner has to carry along, among a hot half.
    for i in 0..3000u64 {
        let first = match i % 20 {
            0 => 512 + i / 20 * 3 % 250,
            _ => i * 7 % 250,
        };
        bench.write(first, 3, i % 11 == 0);
        if i % 10 == 0 {
            bench.flush();
        }
        bench.store.housekeep();
    }
    bench.flush();
    bench.tidy();
    let usage = bench.store.usage();
    assert!(usage.used < 8 * usage.live.max(1 << 20), "{usage:?}");
    bench.check(true);
    let mut bench = bench.crash(|| false);
    bench.check(true);
    // Again after a restart, when nothing is known exactly.
    let epoch = bench.epoch.as_u64() + 1;
    bench.seal(epoch);
    for i in 0..1500u64 {
        bench.write(i * 7 % 250, 3, false);
        if i % 10 == 0 {
            bench.flush();
        }
        bench.store.housekeep();
    }
    bench.tidy();
    bench.check(true);
    bench.kill().check(true);
}

#[test]
fn usage_says_which_extents_have_data() {
    let mut bench = Bench::ready();
    bench.write(0, 4, false);
    bench.write(300, 2, false);
    bench.write(1, 1, true);
    let expected = vec![(Extent(0), 3 * 4096), (Extent(1), 2 * 4096)];
    for _ in 0..2 {
        let usage = bench.store.usage();
        assert_eq!(usage.disks[0].extents, expected);
        assert_eq!(usage.disks[0].allocated, 5 * 4096);
        bench.store.start_checkpoint();
        bench.tidy();
        bench.write(1, 1, true);
        bench = bench.kill();
    }
}

#[test]
fn a_recovery_costs_what_came_after_the_checkpoint_not_what_the_disk_holds() {
    let options = Options {
        segment_bytes: 1 << 20,
        checkpoint_bytes: 1 << 30,
        ..Options::tiny()
    };
    let mut cost = Vec::new();
    for (disk_blocks, after) in [(256u64, 20u64), (8192, 20), (8192, 400)] {
        let mut bench = Bench::ready_with(options.clone());
        for i in 0..disk_blocks / 8 {
            bench.write(i * 8, 8, false);
        }
        bench.flush();
        bench.store.start_checkpoint();
        bench.tidy();
        for i in 0..after {
            bench.write(i * 8 % 256, 1, false);
        }
        let mut bench = bench.kill();
        println!(
            "{} MiB on the disk, {after} writes since: {} frames, {} KiB read",
            disk_blocks * 4 / 1024,
            bench.recovery.frames,
            bench.recovery.bytes_read / 1024
        );
        cost.push((bench.recovery.frames, bench.recovery.bytes_read));
        bench.check(true);
    }
    // 32 times the data, the same work, but for a frame where a segment begins.
    assert!(cost[1].0 <= cost[0].0 + 2, "{cost:?}");
    assert!(cost[1].1 < cost[0].1 * 3 / 2, "{cost:?}");
    assert!(cost[2].0 > cost[1].0 + 300, "{cost:?}");
}

#[test]
fn extents_without_a_record_have_no_list() {
    let mut bench = Bench::new();
    bench.seal(1);
    bench.join(0..2, 1);
    let list = Request::List {
        asker: bench.asker(),
        extents: Extents::new(Extent(1), Extent(3)),
        above: crate::words::Version::ZERO,
        start: Block(0),
    };
    assert_eq!(bench.ask(list), Reply::Refused(Refusal::NoReplica));
    assert_eq!(bench.store.usage().disks[0].disk, DISK);
}

/// Fills a small store with single blocks all over a large disk, so that far more of the index has
/// changed than the reserve holds.
fn full_of_scattered_blocks() -> (Bench, Vec<u64>) {
    let mut bench = Bench::with(Options {
        capacity_bytes: Some(128 * (64 << 10)),
        checkpoint_bytes: 1 << 30,
        ..Options::tiny()
    });
    bench.seal(1);
    bench.join(0..16384, 1);
    let mut blocks = Vec::new();
    loop {
        let block = blocks.len() as u64 * 3_000_017 % (16384 * 256);
        match bench.write(block, 1, false) {
            Reply::WRITTEN => blocks.push(block),
            Reply::Refused(Refusal::Full { .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    (bench, blocks)
}

#[test]
fn a_full_store_with_much_of_its_index_changed_gets_its_space_back_by_discards() {
    for restart in [false, true] {
        let (mut bench, blocks) = full_of_scattered_blocks();
        if restart {
            bench = bench.kill();
        }
        bench.flush();
        bench.tidy();
        for (i, block) in blocks.iter().enumerate() {
            if bench.write(*block, 1, true) != Reply::WRITTEN {
                bench.tidy();
                assert_eq!(bench.write(*block, 1, true), Reply::WRITTEN, "discard {i}");
            }
            if i % 16 == 0 {
                bench.flush();
                bench.store.housekeep();
            }
        }
        bench.flush();
        bench.tidy();
        let usage = bench.store.usage();
        assert!(usage.used < usage.capacity / 2, "{usage:?}");
        assert_eq!(bench.write(5, 8, false), Reply::WRITTEN);
        bench.check(true);
        let mut bench = bench.kill();
        bench.check(true);
        assert_eq!(bench.write(5, 8, false), Reply::WRITTEN);
    }
}

/// Blocks of which the index has more than the newest version.
fn with_predecessors(bench: &Bench) -> usize {
    let slots = bench.store.holdings.disks[&DISK].chunks.values();
    let chunks = slots.filter_map(|slot| slot.chunk.as_ref());
    chunks.map(|chunk| chunk.with_older().len()).sum()
}

/// Discards all of the disk: 16384 blocks. The most superseded versions that there were at any time.
fn discard_all(bench: &mut Bench) -> usize {
    let mut most = 0;
    for extent in 0..64 {
        assert_eq!(bench.write(256 * extent, 256, true), Reply::WRITTEN);
        most = most.max(bench.store.holdings.superseded.len());
        if bench.store.wants_sync() {
            bench.flush();
        }
    }
    most
}

#[test]
fn what_is_discarded_again_takes_no_memory_while_the_epoch_lasts() {
    let mut bench = Bench::ready();
    for _ in 0..3 {
        assert_eq!(discard_all(&mut bench), 0);
        assert_eq!(with_predecessors(&bench), 0);
    }
    for first in 0..40 {
        bench.write(first * 8, 8, false);
    }
    bench.flush();
    discard_all(&mut bench);
    bench.flush();
    bench.tidy();
    assert!(
        bench.store.usage().used <= 4 * (64 << 10),
        "the data is dead"
    );
    bench.check(true);
    bench.kill().check(true);
}

#[test]
fn discards_in_another_epoch_take_bounded_memory() {
    let mut bench = Bench::ready();
    discard_all(&mut bench);
    for epoch in 2..5 {
        bench.seal(epoch);
        let most = discard_all(&mut bench);
        let bound = bench.options.most_superseded;
        assert!(bound < most && most < bound + bound / 2, "{most}");
        assert!(with_predecessors(&bench) <= most);
    }
    // The writer's word that all members have them comes with later writes.
    for _ in 0..8 {
        bench.write(0, 1, true);
    }
    bench.flush();
    bench.tidy();
    assert!(bench.store.holdings.superseded.capacity() < 4096);
    assert_eq!(with_predecessors(&bench), 0);
    bench.check(true);
    bench.kill().check(true);
}
