//! The cleaner, hindered: it lets go of nothing that it could not move.

use super::{Bench, DISK};
use crate::message::Reply;
use crate::store::Chore;
use crate::store::media::sim::SimMedia;
use crate::store::segment::file_name;
use crate::words::{Block, Seq, Version};

/// Mostly dead segments, a checkpoint, and a restart: nothing of the index is in memory.
fn with_garbage() -> Bench {
    let mut bench = Bench::ready();
    for i in 0..400u64 {
        bench.write(i * 7 % 250, 3, false);
        if i % 10 == 0 {
            bench.flush();
        }
    }
    bench.flush();
    bench.store.start_checkpoint();
    while !step(&mut bench, |chore| matches!(chore, Chore::Write(_))) {}
    bench.kill()
}

/// One chore. Whether it was such a one.
fn step(bench: &mut Bench, such: fn(&Chore<SimMedia>) -> bool) -> bool {
    let chore = bench.store.next_chore().expect("there is something to do");
    let found = such(&chore);
    let outcome = chore.run();
    bench.store.finish_chore(chore, outcome);
    found
}

fn until_scan(bench: &mut Bench) -> Chore<SimMedia> {
    next_scan(bench).expect("there is much to clean")
}

fn next_scan(bench: &mut Bench) -> Option<Chore<SimMedia>> {
    loop {
        let chore = bench.store.next_chore()?;
        if matches!(chore, Chore::Scan(_)) {
            return Some(chore);
        }
        let outcome = chore.run();
        bench.store.finish_chore(chore, outcome);
    }
}

#[test]
fn a_segment_stays_while_the_index_of_its_blocks_cannot_be_read() {
    let mut bench = with_garbage();
    for _ in 0..20 {
        let chore = until_scan(&mut bench);
        let outcome = chore.run();
        bench.media.fail_reads(true);
        let done = bench.store.finish_chore(chore, outcome);
        bench.media.fail_reads(false);
        if !done {
            break;
        }
    }
    bench.flush();
    bench.tidy();
    bench.check(true);
    bench.kill().check(true);
}

#[test]
fn a_cleaner_without_room_waits_and_loses_nothing() {
    let mut bench = with_garbage();
    bench.media.set_capacity(Some(0));
    while bench.store.log.release_spare() {}
    while bench.write(600, 1, true) == Reply::WRITTEN {}
    for _ in 0..300 {
        bench.store.housekeep();
    }
    assert!(!bench.store.has_failed());
    bench.media.set_capacity(None);
    bench.flush();
    bench.tidy();
    bench.check(true);
    bench.kill().check(true);
}

#[test]
fn what_is_deleted_while_a_stretch_is_read_is_not_taken_for_moved() {
    for scans in 0.. {
        let mut bench = with_garbage();
        for _ in 0..scans {
            let chore = until_scan(&mut bench);
            let outcome = chore.run();
            assert!(bench.store.finish_chore(chore, outcome));
        }
        let Some(chore) = next_scan(&mut bench) else {
            assert!(scans > 3, "{scans}: more than one segment is cleaned");
            return;
        };
        let outcome = chore.run();
        let promise = bench.store.drop_disk(DISK).unwrap();
        assert!(bench.store.finish_chore(chore, outcome));
        assert_eq!(bench.wait(promise), Reply::Synced);
        bench.tidy();
        assert!(bench.store.usage().used <= 6 * bench.options.segment_bytes);
    }
}

/// Rule S5: a frame that does not match, and that nothing behind it proves to have been synced, passes for a torn tail. What the
/// cleaner moves although it is damaged must not.
#[test]
fn damage_that_was_moved_is_not_taken_for_the_end_of_the_log() {
    let mut bench = with_garbage();
    for block in 0..250 {
        let place = bench.place_of(block);
        bench
            .media
            .flip(&file_name(place.segment), place.payload() + 100, 3);
    }
    bench.flush();
    // Nothing is synced between what is moved and what is written behind it, or after that.
    let before = bench.store.appended();
    while bench.store.appended() == before {
        let chore = until_scan(&mut bench);
        let outcome = chore.run();
        assert!(bench.store.finish_chore(chore, outcome));
    }
    bench.write(700, 1, false);
    let written = Version::new(bench.epoch, Seq(bench.seq));
    assert!(bench.flush());
    let mut bench = bench.crash(|| false);
    assert_eq!(bench.version(Block(700)), Ok(Some(written)));
}
