//! Segments that are written with zeroes ahead of their use, while syncs come often.

use super::Bench;
use crate::store::frame::LogPoint;
use crate::store::media::{Media, MediaFile};
use crate::store::segment::{file_name, parse_name};
use crate::store::sync::NO_SYNC_FAILED;
use crate::store::{Chore, Options, Outcome};
use std::io;

/// Whether all of a segment's file was written.
fn is_filled(bench: &Bench, name: &str) -> bool {
    let file = bench.media.open(name).unwrap();
    let size = file.size().unwrap();
    let mut at = (0..size).step_by(4096);
    at.all(|at| file.next_data(at).unwrap() == at)
}

/// Segments' files, those that the log has come to and those made ahead: whether each of these was written.
fn segments(bench: &Bench) -> (Vec<u32>, Vec<(u32, bool)>) {
    let current = bench.store.log.end().segment;
    let names = bench.media.list().unwrap();
    let ids = names
        .iter()
        .filter_map(|name| parse_name(name).map(|id| (id, name)));
    let (mut used, mut ahead) = (Vec::new(), Vec::new());
    for (id, name) in ids {
        match id <= current {
            true => used.push(id),
            false => ahead.push((id, is_filled(bench, name))),
        }
    }
    (used, ahead)
}

/// Writes and syncs until the log comes to another segment.
fn fill_segment(bench: &mut Bench, writes_a_sync: u64, mut between: impl FnMut(&mut Bench)) {
    let before = bench.store.log.end().segment;
    for i in 0.. {
        bench.write(i * 5 % 250, 1, false);
        if i % writes_a_sync == 0 {
            bench.flush();
            between(bench);
        }
        if bench.store.log.end().segment > before {
            return;
        }
    }
}

fn housekeep(bench: &mut Bench) {
    while bench.store.housekeep() {}
}

/// All of it, and none of that fills a segment.
fn housekeep_but_fill_nothing(bench: &mut Bench) {
    while let Some(chore) = bench.store.next_chore() {
        assert!(!matches!(chore, Chore::Prewrite(_)));
        let outcome = chore.run();
        bench.store.finish_chore(chore, outcome);
    }
}

type SimChore = Chore<crate::store::media::sim::SimMedia>;

/// The next step of filling a segment made ahead, or with `here` the one at hand; all other housekeeping is done.
fn begin(bench: &mut Bench, here: bool) -> (LogPoint, SimChore) {
    loop {
        bench.write(0, 1, false);
        bench.flush();
        let Some(chore) = bench.store.next_chore() else {
            continue;
        };
        if let Chore::Prewrite(job) = &chore
            && (job.from().segment == bench.store.log.end().segment) == here
        {
            return (job.from(), chore);
        }
        let outcome = chore.run();
        bench.store.finish_chore(chore, outcome);
    }
}

#[test]
fn while_syncs_come_often_the_log_only_comes_to_segments_that_were_written() {
    let mut bench = Bench::ready();
    fill_segment(&mut bench, 1, housekeep);
    for _ in 0..5 {
        let (_, ahead) = segments(&bench);
        assert!(
            ahead.len() > 1 && ahead.iter().all(|(_, written)| *written),
            "{ahead:?}"
        );
        fill_segment(&mut bench, 1, housekeep);
        housekeep(&mut bench);
    }
    bench.check(true);
    // Where nothing but zeroes follows, a recovery finds the log's end, and what was made ahead goes.
    let mut bench = bench.crash(|| true);
    bench.check(true);
}

#[test]
fn where_syncs_are_few_nothing_is_written_twice() {
    let options = Options {
        segment_bytes: 1 << 20,
        ..Options::tiny()
    };
    let mut bench = Bench::ready_with(options);
    for _ in 0..5 {
        fill_segment(&mut bench, 100, |_| {});
        housekeep_but_fill_nothing(&mut bench);
    }
    let (_, ahead) = segments(&bench);
    assert!(ahead.iter().all(|(_, written)| !written), "{ahead:?}");
}

#[test]
fn a_segment_that_is_being_written_is_passed_by_and_then_removed() {
    let mut bench = Bench::ready();
    let (step, chore) = begin(&mut bench, false);
    let passed = step.segment;
    fill_segment(&mut bench, 1, |_| {});
    assert!(bench.store.log.end().segment > passed);
    let outcome = chore.run();
    assert!(bench.store.finish_chore(chore, outcome));
    let (used, ahead) = segments(&bench);
    assert!(!used.contains(&passed), "{used:?}");
    assert!(ahead.iter().all(|(id, _)| *id != passed), "{ahead:?}");
    // Whenever power is lost: also before its name is gone for good.
    for survives in [true, false] {
        let fork = Bench::open(
            bench.media.fork(),
            bench.options.clone(),
            bench.oracle.clone(),
        );
        let mut after = fork.unwrap().crash(|| survives);
        after.check(true);
    }
    bench.check(true);
}

#[test]
fn a_segment_that_cannot_be_written_is_not_used_and_the_store_goes_on() {
    let mut bench = Bench::ready();
    let (step, chore) = begin(&mut bench, false);
    let failed = step.segment;
    let outcome = Outcome::Done(Err(io::Error::other("worn out")));
    assert!(bench.store.finish_chore(chore, outcome));
    for _ in 0..4 {
        fill_segment(&mut bench, 1, housekeep_but_fill_nothing);
    }
    let (used, _) = segments(&bench);
    assert!(!used.contains(&failed), "{used:?}");
    bench.check(true);
    bench.crash(|| false).check(true);
}

#[test]
fn the_segment_at_hand_is_written_ahead_of_the_log_which_leaves_it_where_it_comes_too_soon() {
    let mut bench = Bench::ready();
    fill_segment(&mut bench, 1, |_| {});
    let here = bench.store.log.end().segment;
    housekeep(&mut bench);
    assert!(bench.store.log.end().segment == here);
    let name = file_name(here);
    let file = bench.media.open(&name).unwrap();
    assert_eq!(
        file.next_data(file.size().unwrap() - 1).unwrap(),
        file.size().unwrap() - 1
    );

    let mut bench = Bench::ready();
    let (step, chore) = begin(&mut bench, true);
    assert!(step > bench.store.log.end());
    while bench.store.log.end().segment == step.segment {
        let end = bench.store.log.end();
        assert!(end <= step, "{end} is within what is being written");
        bench.write(1, 1, false);
    }
    let outcome = chore.run();
    assert!(bench.store.finish_chore(chore, outcome));
    bench.check(true);
    bench.crash(|| true).check(true);
}

#[test]
fn where_the_segment_at_hand_cannot_be_written_ahead_the_store_stops() {
    let mut bench = Bench::ready();
    let (_, chore) = begin(&mut bench, true);
    bench.write(7, 1, false);
    // It may be the one report that what was just written is lost.
    let outcome = Outcome::Done(Err(io::Error::other("worn out")));
    assert!(!bench.store.finish_chore(chore, outcome));
    assert!(bench.store.has_failed());
    let noted = bench.media.list().unwrap();
    assert!(
        !noted.iter().any(|name| name == NO_SYNC_FAILED),
        "{noted:?}"
    );
}
