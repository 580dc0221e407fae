//! Scripts: one behaviour each.

use super::{Bench, DISK};
use crate::message::{Found, Refusal, Reply, Request};
use crate::store::Handled;
use crate::store::frame::{MAX_BLOCK, ReplicaChange};
use crate::words::{
    Block, Blocks, DiskName, DiskRecord, Entry, Epoch, Extent, ExtentSize, Extents, History,
    MapRange, Revision, Seq, State, StoreId, Version,
};
use bytes::Bytes;

fn v(epoch: u64, seq: u64) -> Version {
    Version::new(Epoch::from_u64(epoch), Seq(seq))
}

#[test]
fn what_is_written_is_read_back_with_its_version() {
    let mut bench = Bench::ready();
    assert_eq!(bench.write(0, 1, false), Reply::WRITTEN);
    assert_eq!(bench.write(2, 8, false), Reply::WRITTEN);
    assert_eq!(bench.write(4, 2, true), Reply::WRITTEN);
    bench.check(true);
    let read = bench.read(0, 6).unwrap();
    assert!(matches!(read.found[0], Found::Data { version, .. } if version == v(1, 1)));
    assert_eq!(read.found[1], Found::Absent);
    assert_eq!(read.found[4], Found::Zeroes(v(1, 3)));
    assert_eq!(read.data.len(), 3 * 4096);
}

#[test]
fn a_killed_process_loses_nothing() {
    let mut bench = Bench::ready();
    for i in 0..40 {
        bench.write(i % 17 * 3, 3, i % 5 == 0);
    }
    let incarnation = bench.store.incarnation();
    let mut bench = bench.kill();
    assert_eq!(
        bench.store.incarnation(),
        incarnation,
        "same boot, nothing lost"
    );
    assert_eq!(bench.store.starts().0, 2);
    bench.check(true);
    assert_eq!(bench.write(0, 4, false), Reply::WRITTEN);
    bench.kill().check(true);
}

#[test]
fn writes_that_come_together_are_one_write_to_the_media_across_the_end_of_a_segment_too() {
    let mut bench = Bench::ready();
    bench.write(0, 1, false);
    bench.flush();
    // Blocks go before headers where the page of headers has blocks already, or not only blocks follow.
    for (writes, zero) in [(1, false), (2, false), (2, true)] {
        let before = bench.media.work().writes;
        let replies = bench.write_all(&[(1, 2, false), (2, 1, zero), (9, 1, false), (1, 1, false)]);
        assert_eq!(replies, vec![Reply::WRITTEN; 4]);
        assert_eq!(bench.media.work().writes - before, writes);
    }
    let segment = bench.options.segment_bytes / 4096;
    let many: Vec<_> = (0..2 * segment).map(|i| (i % 40, 1, false)).collect();
    let replies = bench.write_all(&many);
    assert!(replies.iter().all(|reply| *reply == Reply::WRITTEN));
    bench.check(true);
    bench.kill().check(true);
}

#[test]
fn where_the_media_fail_nobody_of_those_that_came_together_is_told_that_it_was_written() {
    let mut bench = Bench::ready();
    assert_eq!(bench.write(0, 1, false), Reply::WRITTEN);
    bench.media.tear_after(5_000);
    let replies = bench.write_all(&[(1, 1, false), (2, 1, false), (3, 1, false)]);
    assert_eq!(replies, vec![Reply::Refused(Refusal::Failed); 3]);
    assert!(bench.store.has_failed());
    let mut bench = bench.kill();
    bench.check(false);
    assert!(bench.read(0, 1).is_ok());
}

#[test]
fn a_host_crash_changes_the_incarnation_and_a_second_restart_does_not_hide_it() {
    let mut bench = Bench::ready();
    bench.write(0, 4, false);
    assert!(bench.flush());
    bench.write(8, 4, false);
    let before = bench.asker();
    let mut bench = bench.crash(|| false);
    assert!(bench.recovery.lost_tail);
    bench.check(false);
    let stale = Request::Sync { asker: before };
    let now = bench.store.incarnation();
    let refused = Reply::Refused(Refusal::OtherIncarnation { now });
    assert_eq!(bench.ask(stale), refused);
    let mut bench = bench.kill();
    assert!(!bench.recovery.lost_tail);
    assert!(
        bench.seal(2).replicas[0].lost,
        "still lost after another restart"
    );
    let request = Request::Settle {
        asker: bench.asker(),
        extents: Extents::new(Extent(0), Extent(64)),
    };
    assert_eq!(bench.ask(request), Reply::SETTLED);
    assert!(!bench.seal(3).replicas[0].lost);
    assert!(!bench.kill().seal(4).replicas[0].lost);
}

#[test]
fn a_sync_that_fails_on_a_full_disk_is_another_incarnation() {
    let mut bench = Bench::ready();
    assert_eq!(bench.write(0, 1, false), Reply::WRITTEN);
    let before = bench.store.incarnation();
    bench.media.set_capacity(Some(0));
    bench.media.fail_syncs(true);
    assert!(!bench.flush());
    assert!(bench.store.has_failed());
    bench.media.set_capacity(None);
    bench.media.fail_syncs(false);
    let bench = bench.kill();
    assert!(bench.store.incarnation() > before, "rule S2");
    let again = bench.store.incarnation();
    assert_eq!(bench.kill().store.incarnation(), again, "once is enough");
}

#[test]
fn a_clean_shutdown_is_no_loss_even_across_a_reboot() {
    let mut bench = Bench::ready();
    bench.write(0, 4, false);
    let incarnation = bench.store.incarnation();
    let (media, oracle, options) = bench.close();
    media.crash(|| false);
    let mut bench = Bench::open(media, options, oracle).unwrap();
    assert!(bench.recovery.clean && !bench.recovery.lost_tail);
    assert_eq!(bench.store.incarnation(), incarnation);
    bench.check(true);
}

#[test]
fn lower_epochs_are_refused_on_every_path() {
    let mut bench = Bench::ready();
    bench.write(0, 1, false);
    let old = bench.asker();
    let extents = Extents::new(Extent(0), Extent(1));
    bench.seal(5);
    let blocks = Blocks::new(Block(0), 1);
    let (epoch, zero) = (Epoch::from_u64(3), Epoch::ZERO);
    let refused = Reply::Refused(Refusal::Superseded {
        shown: Epoch::from_u64(5),
    });
    let mut requests = vec![
        Request::seal(DISK, epoch),
        Request::Sync { asker: old },
        Request::Settle {
            asker: old,
            extents,
        },
        Request::Read {
            asker: old,
            from: zero,
            below: Epoch::MAX,
            blocks,
        },
        Request::List {
            asker: old,
            extents,
            above: Version::ZERO,
            start: Block(0),
        },
    ];
    bench.epoch = Epoch::from_u64(1);
    requests.push(bench.write_request(9, blocks, false));
    for request in requests.clone() {
        assert_eq!(bench.ask(request), refused);
    }
    let mut bench = bench.crash(|| false);
    for request in requests {
        assert_eq!(bench.ask(request), refused, "after a crash, too (I4)");
    }
}

#[test]
fn nothing_is_answered_in_an_epoch_before_its_promise_is_synced() {
    let mut bench = Bench::ready();
    let epoch = Epoch::from_u64(2);
    let sealing = bench.store.handle(Request::seal(DISK, epoch));
    let crate::store::Handled::AfterSync(promise) = sealing else {
        panic!("a seal waits for its sync");
    };
    bench.epoch = epoch;
    let early = bench.write_request(1, Blocks::new(Block(0), 1), false);
    let reply = bench.ask(early.clone());
    assert_eq!(reply, Reply::Refused(Refusal::NotShown { shown: epoch }));
    assert!(matches!(bench.wait(promise), Reply::Sealed(_)));
    assert_eq!(bench.ask(early), Reply::WRITTEN);
}

#[test]
fn a_resend_changes_nothing_and_an_older_version_never_wins() {
    let mut bench = Bench::ready();
    bench.write(0, 4, false);
    bench.write(2, 1, false);
    let before = bench.store.appended();
    let again = bench.write_request(1, Blocks::new(Block(0), 4), false);
    assert_eq!(bench.ask(again), Reply::WRITTEN);
    assert_eq!(bench.store.appended(), before, "nothing was appended");
    bench.check(true);
    // A part of it was never here: only that is taken.
    let wider = bench.write_request(1, Blocks::new(Block(2), 4), true);
    assert_eq!(bench.ask(wider), Reply::WRITTEN);
    assert_eq!(bench.version(Block(2)).unwrap(), Some(v(1, 2)));
    let read = bench.read(4, 2).unwrap();
    assert_eq!(read.found, [Found::Zeroes(v(1, 1)); 2]);
}

#[test]
fn without_a_record_the_answer_is_no_replica() {
    let mut bench = Bench::new();
    bench.seal(1);
    assert_eq!(bench.write(0, 1, false), Reply::Refused(Refusal::NoReplica));
    assert_eq!(bench.read(0, 1), Err(Refusal::NoReplica));
    bench.join(0..1, 1);
    assert_eq!(bench.write(0, 1, false), Reply::WRITTEN);
    assert_eq!(
        bench.write(256, 1, false),
        Reply::Refused(Refusal::NoReplica)
    );
}

#[test]
fn what_was_held_before_a_join_is_unproven_and_older_entries_stay_bounded() {
    let mut bench = Bench::ready();
    bench.write(0, 2, false);
    bench.seal(5);
    bench.join(0..64, 5);
    // Rule R1: the new entry does not have what was written before it.
    let newest = bench.read_bounded(0, 1, 5, u64::MAX).unwrap();
    assert_eq!(newest.found, [Found::Absent]);
    let older = bench.read_bounded(0, 1, 1, 5).unwrap();
    assert!(matches!(older.found[0], Found::Data { version, .. } if version == v(1, 1)));
    // Rule R2: overwritten in the new entry, the older entry still says what it said, for ever.
    bench.write(0, 1, false);
    for _ in 0..10 {
        bench.write(1, 1, false);
        bench.flush();
    }
    bench.store.start_checkpoint();
    bench.tidy();
    for round in 0..2 {
        let newest = bench.read_bounded(0, 1, 5, u64::MAX).unwrap();
        assert!(matches!(newest.found[0], Found::Data { version, .. } if version == v(5, 1)));
        let older = bench.read_bounded(0, 1, 1, 5).unwrap();
        assert!(
            matches!(older.found[0], Found::Data { version, .. } if version == v(1, 1)),
            "{round}"
        );
        bench = bench.kill();
    }
}

#[test]
fn a_deleted_disk_frees_everything_but_its_epoch() {
    let mut bench = Bench::ready();
    for i in 0..30 {
        bench.write(i * 8, 8, false);
    }
    assert!(bench.store.usage().disks[0].allocated > 0);
    let promise = bench.store.drop_disk(DISK).unwrap();
    assert_eq!(bench.wait(promise), Reply::Synced);
    assert_eq!(bench.store.usage().disks[0].allocated, 0);
    assert_eq!(bench.read(0, 1), Err(Refusal::NoReplica));
    bench.tidy();
    assert!(bench.store.usage().used <= 3 * bench.options.segment_bytes);
    bench.oracle.written.clear();
    bench.oracle.flushed.clear();
    let mut bench = bench.crash(|| false);
    assert_eq!(bench.read(0, 1), Err(Refusal::NoReplica));
    let first = Epoch::ZERO.next(crate::words::Generation(0));
    let reply = bench.ask(Request::seal(DISK, first));
    assert!(
        matches!(reply, Reply::Sealed(_)),
        "the same epoch, not a lower one"
    );
}

#[test]
fn lists_name_what_is_above_a_version_in_order_and_in_parts() {
    let mut bench = Bench::ready();
    bench.write(0, 2, false);
    bench.write(512, 1, true);
    bench.write(1, 1, false);
    let list = |bench: &mut Bench, above, start| {
        let request = Request::List {
            asker: bench.asker(),
            extents: Extents::new(Extent(0), Extent(64)),
            above,
            start: Block(start),
        };
        match bench.ask(request) {
            Reply::Listed { blocks, more } => {
                assert!(!more);
                blocks
                    .iter()
                    .map(|listed| (listed.block.0, listed.version, listed.zeroes))
                    .collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    let all = vec![
        (0, v(1, 1), false),
        (1, v(1, 3), false),
        (512, v(1, 2), true),
    ];
    assert_eq!(list(&mut bench, Version::ZERO, 0), all);
    assert_eq!(list(&mut bench, v(1, 1), 0), all[1..]);
    assert_eq!(list(&mut bench, Version::ZERO, 2), all[2..]);
    assert_eq!(list(&mut bench, v(1, 3), 0), []);
}

#[test]
fn a_list_of_much_comes_in_parts_and_each_goes_on_behind_the_last() {
    const CHUNKS: u64 = 200;
    let mut bench = Bench::new();
    bench.seal(1);
    let extents = 0..16 * CHUNKS as u32;
    bench.join(extents.clone(), 1);
    for chunk in 0..CHUNKS {
        bench.write(4096 * chunk, 1, true);
    }
    let mut listed = Vec::new();
    loop {
        let request = Request::List {
            asker: bench.asker(),
            extents: Extents::new(Extent(extents.start), Extent(extents.end)),
            above: Version::ZERO,
            start: Block(listed.last().map_or(0, |last: &u64| last + 1)),
        };
        let Reply::Listed { blocks, more } = bench.ask(request) else {
            panic!("a list is answered with one");
        };
        assert!(blocks.len() <= 64, "no more chunks are looked at at once");
        listed.extend(blocks.iter().map(|listed| listed.block.0));
        if !more {
            break;
        }
    }
    let all: Vec<u64> = (0..CHUNKS).map(|chunk| 4096 * chunk).collect();
    assert_eq!(listed, all);
}

#[test]
fn a_write_that_fails_is_another_incarnation() {
    let mut bench = Bench::ready();
    let before = bench.store.incarnation();
    bench.media.tear_after(100);
    assert_eq!(bench.write(0, 1, false), Reply::Refused(Refusal::Failed));
    let bench = bench.kill();
    assert!(bench.store.incarnation() > before, "rule S2");
}

#[test]
fn an_open_that_fails_to_read_or_sync_is_followed_by_another_incarnation() {
    for reads in [true, false] {
        let mut bench = Bench::ready();
        assert_eq!(bench.write(0, 1, false), Reply::WRITTEN);
        let before = bench.store.incarnation();
        let Bench {
            media,
            store,
            oracle,
            options,
            ..
        } = bench;
        media.kill();
        drop(store);
        let boot = crate::store::BootId(media.boot());
        let open = || crate::store::Store::open(media.clone(), options.clone(), boot);
        // The directory's identity is read before; a sync comes last.
        match reads {
            true => media.fail_direct_reads(true),
            false => media.fail_syncs(true),
        }
        assert!(open().is_err());
        media.fail_direct_reads(false);
        media.fail_syncs(false);
        drop(oracle);
        assert!(open().unwrap().0.incarnation() > before, "rule S2");
    }
}

/// The record of a disk in epoch 1, at a revision.
fn told(revision: u64) -> Bytes {
    let epoch = Epoch::from_u64(1);
    let record = DiskRecord {
        id: DISK,
        name: DiskName::new("web1").unwrap(),
        bytes: 1 << 20,
        extent_size: ExtentSize::new(1 << 20).unwrap(),
        copies: 1,
        revision: Revision(revision),
        epoch,
        even_below: epoch,
        state: State::Closed {
            last: Version::ZERO,
            successor: None,
        },
        map: vec![MapRange {
            extents: Extents::new(Extent(0), Extent(1)),
            history: History(vec![Entry::whole(epoch, [StoreId::from_u128(1)])]),
        }],
    };
    record.to_kept()
}

#[test]
fn a_record_that_comes_after_a_later_one_is_not_kept() {
    let mut bench = Bench::ready();
    let seal = |bench: &mut Bench, revision| {
        let request = Request::Seal {
            disk: DISK,
            epoch: Epoch::from_u64(1),
            grant: Bytes::new(),
            record: told(revision),
            known: Default::default(),
        };
        assert!(matches!(bench.ask(request), Reply::Sealed(_)));
    };
    seal(&mut bench, 7);
    seal(&mut bench, 6);
    let mut bench = bench.kill();
    assert_eq!(bench.store.shown_disks().disks[0].record, told(7));
    seal(&mut bench, 8);
    assert_eq!(bench.store.shown_disks().disks[0].record, told(8));
}

#[test]
fn what_a_store_was_shown_is_told_once_it_is_on_media() {
    let mut bench = Bench::ready();
    let seal = |epoch, record| Request::Seal {
        disk: DISK,
        epoch: Epoch::from_u64(epoch),
        grant: Bytes::new(),
        record,
        known: Default::default(),
    };
    let epochs = |bench: &Bench| {
        let shown = bench.store.shown_disks();
        let epochs: Vec<u64> = shown.disks.iter().map(|disk| disk.epoch.as_u64()).collect();
        (epochs, shown.complete)
    };
    assert_eq!(epochs(&bench), (vec![1], true));
    // A later epoch, then a record in it.
    for record in [Bytes::new(), told(8)] {
        let Handled::AfterSync(_) = bench.store.handle(seal(2, record)) else {
            panic!("it is on media already");
        };
        assert_eq!(epochs(&bench), (vec![], false), "rule S7");
        assert!(bench.flush());
        assert_eq!(epochs(&bench), (vec![2], true));
    }
}

/// A disk with extents of 64 MiB, for which the store is about to be asked for what lies at the end of all blocks.
fn far_join(bench: &Bench, first: u32) -> (Request, ReplicaChange) {
    let change = ReplicaChange {
        extents: Extents::new(Extent(first), Extent(first + 1)),
        extent_size: ExtentSize::DEFAULT,
        from: bench.epoch,
        incarnation: bench.store.incarnation(),
    };
    let join = Request::Join {
        asker: bench.asker(),
        extents: change.extents,
        extent_size: change.extent_size,
        from: change.from,
    };
    (join, change)
}

#[test]
fn blocks_that_a_recovery_would_not_take_for_any_are_refused_so_that_the_store_can_be_opened_again()
{
    let behind_last = (MAX_BLOCK / u64::from(ExtentSize::DEFAULT.blocks())) as u32;
    let mut bench = Bench::new();
    bench.seal(1);
    let refused = |reply: &Reply| matches!(reply, Reply::Refused(Refusal::Invalid { .. }));
    let (join, _) = far_join(&bench, behind_last - 1);
    assert_eq!(bench.ask(join), Reply::JOINED);
    let (beyond, _) = far_join(&bench, behind_last);
    assert!(refused(&bench.ask(beyond)));
    for (zero, first) in [(false, MAX_BLOCK - 4), (true, MAX_BLOCK - 2)] {
        assert_eq!(bench.write(first, 2, zero), Reply::WRITTEN);
    }
    let mut bench = bench.kill();
    bench.check(true);
    let (media, oracle, options) = bench.close();
    Bench::open(media, options, oracle).unwrap().check(true);
}

#[test]
fn where_a_replica_reaches_too_far_already_nothing_is_written_there() {
    let behind_last = (MAX_BLOCK / u64::from(ExtentSize::DEFAULT.blocks())) as u32;
    let mut bench = Bench::new();
    bench.seal(1);
    // As a program let it in that did not look.
    let (_, change) = far_join(&bench, behind_last);
    bench.store.holdings.disk(DISK).join(&change, 1);
    for zero in [false, true] {
        let write = bench.write_request(1, Blocks::new(Block(MAX_BLOCK), 1), zero);
        let reply = bench.ask(write);
        assert!(matches!(reply, Reply::Refused(Refusal::Invalid { .. })));
    }
    let (media, oracle, options) = bench.close();
    assert!(Bench::open(media, options, oracle).is_ok());
}
