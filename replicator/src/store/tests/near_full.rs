//! A store near full: overwritten at random it goes on, however small it is.

use super::Bench;
use super::rng::Rng;
use crate::message::Reply;
use crate::store::Options;
use crate::store::room::Pace;
use std::time::{Duration, Instant};

/// 128 segments, of a size that a page of headers and its blocks fill.
const STORE_BYTES: u64 = 32 << 20;

/// A store with a disk that fills so much of it, in percent.
fn filled(percent: u64) -> (Bench, u64) {
    let mut bench = Bench::ready_with(Options {
        segment_bytes: STORE_BYTES / 128,
        checkpoint_bytes: STORE_BYTES / 16,
        capacity_bytes: Some(STORE_BYTES),
        ..Options::tiny()
    });
    let blocks = STORE_BYTES * percent / 100 / 4096 / 8 * 8;
    for first in (0..blocks).step_by(8) {
        let writes: Vec<_> = (first..first + 8).map(|block| (block, 1, false)).collect();
        assert_eq!(bench.write_all(&writes), [Reply::WRITTEN; 8]);
        bench.store.housekeep();
    }
    bench.flush();
    bench.tidy();
    (bench, blocks)
}

/// What a batch of writes takes a guest that never waits, and a step of housekeeping: it moves less in a time.
const BATCH: Duration = Duration::from_micros(25);
const CHORE: Duration = Duration::from_micros(400);

/// Overwrites all of the disk several times, one block here, one there, while housekeeping goes on beside it
/// at its own pace. Returns how long the guest was held back, beside how long it was not.
fn overwrite(bench: &mut Bench, blocks: u64, rng: &mut Rng) -> (Duration, Duration) {
    let (begun, mut pace) = (Instant::now(), Pace::new());
    let (mut held, mut ran, mut time) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for turn in 0..4 * blocks / 2 {
        let before = bench.store.appended();
        let writes: Vec<_> = (0..2).map(|_| (rng.below(blocks), 1, false)).collect();
        for reply in bench.write_all(&writes) {
            let usage = bench.store.usage();
            assert_eq!(reply, Reply::WRITTEN, "turn {turn}: {usage:?}");
        }
        let price = bench.store.price_of(bench.store.appended() - before);
        let pause = pace.wait(price, begun + held + ran);
        (held, ran) = (held + pause, ran + BATCH);
        if bench.store.wants_sync() {
            bench.flush();
        }
        time += pause + BATCH;
        while time > CHORE {
            time -= CHORE;
            if !bench.store.housekeep() {
                time = Duration::ZERO;
            }
        }
    }
    (held, ran)
}

#[test]
fn it_is_never_full_though_nobody_syncs_and_the_guest_is_faster_than_the_cleaner() {
    for percent in [50, 70, 80] {
        let (mut bench, blocks) = filled(percent);
        let (held, ran) = overwrite(&mut bench, blocks, &mut Rng(percent));
        println!("{percent} % live: held back {held:?} beside {ran:?}");
        bench.check(true);
        let mut bench = bench.crash(|| false);
        bench.check(false);
        // Again after a restart, when nothing is known exactly.
        let epoch = bench.epoch.as_u64() + 1;
        bench.seal(epoch);
        bench.believe();
        overwrite(&mut bench, blocks, &mut Rng(percent));
        bench.check(true);
        bench.kill().check(true);
    }
}

#[test]
fn small_stores_have_small_segments() {
    let segment = |mib: u64| {
        let mut options = Options::default();
        options.fit(mib << 20);
        (options.segment_bytes >> 20, options.checkpoint_bytes >> 20)
    };
    assert_eq!(segment(320), (4, 20));
    assert_eq!(segment(1280), (8, 80));
    assert_eq!(segment(5 << 10), (32, 256));
    assert_eq!(segment(8 << 10), (64, 256));
    assert_eq!(segment(1 << 20), (64, 256));
    let mut tiny = Options::tiny();
    tiny.fit(1 << 20);
    assert_eq!(tiny.segment_bytes, Options::tiny().segment_bytes);
}
