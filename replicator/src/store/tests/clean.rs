//! The cleaner, hindered: it lets go of nothing that it could not move.

use super::Bench;
use crate::message::Reply;
use crate::store::Chore;
use crate::store::media::sim::SimMedia;

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
    loop {
        let chore = bench.store.next_chore().expect("there is much to clean");
        if matches!(chore, Chore::Scan(_)) {
            return chore;
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
