//! How much the cleaner moves while space is free, and while it is not.

use super::Bench;
use super::rng::Rng;
use crate::store::Options;

const SEGMENT: u64 = 64 << 10;

/// Overwrites 512 blocks at random. Bytes that were moved for each that was written, and what the store takes
/// in the end, as a multiple of what is live.
fn overwrite(capacity: Option<u64>) -> (f64, f64) {
    let options = Options {
        capacity_bytes: capacity,
        roomy_garbage_percent: Options::default().roomy_garbage_percent,
        ..Options::tiny()
    };
    let mut bench = Bench::ready_with(options);
    let mut rng = Rng(7);
    let mut written = 0;
    let before = bench.store.appended();
    for i in 0..20_000u64 {
        let block = if i < 512 { i } else { rng.below(512) };
        bench.write(block, 1, false);
        written += 4096 + 64;
        if i % 16 == 0 {
            bench.flush();
            while bench.store.housekeep() {}
        }
    }
    let moved = bench.store.appended() - before - written;
    let usage = bench.store.usage();
    bench.check(true);
    (
        moved as f64 / written as f64,
        usage.used as f64 / usage.live as f64,
    )
}

#[test]
fn where_space_is_free_less_is_moved_and_no_more_than_half_is_garbage() {
    let (moved_eagerly, takes_little) = overwrite(Some(70 * SEGMENT));
    let (moved_lazily, takes_more) = overwrite(None);
    println!(
        "moved {moved_eagerly:.2} and {moved_lazily:.2}, takes {takes_little:.2} and {takes_more:.2}"
    );
    assert!(moved_lazily < moved_eagerly / 2.0);
    // The segments made ahead, the current one, and those that wait for a checkpoint come on top.
    assert!(takes_more < 2.6);
}
