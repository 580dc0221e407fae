//! Digests: whoever holds the same says the same, whatever way it came there.

use super::rng::Rng;
use super::{Bench, DISK};
use crate::message::{Digest, Reply, Request};
use crate::words::{Block, Blocks, Epoch, Extent, Extents, Seq, Version};

fn v(epoch: u64, seq: u64) -> Version {
    Version::new(Epoch::from_u64(epoch), Seq(seq))
}

fn digests(bench: &mut Bench, from: u64, extents: std::ops::Range<u32>) -> Vec<Digest> {
    let mut all = Vec::new();
    while (all.len() as u32) < extents.end - extents.start {
        let next = extents.start + all.len() as u32;
        let request = Request::Digest {
            asker: bench.asker(),
            from: Epoch::from_u64(from),
            extents: Extents::new(Extent(next), Extent(extents.end)),
        };
        match bench.ask(request) {
            Reply::Digested(digested) => {
                assert!(!digested.digests.is_empty());
                all.extend(digested.digests);
            }
            other => panic!("{other:?}"),
        }
    }
    all
}

#[test]
fn a_digest_kept_up_to_date_is_the_one_worked_out_anew() {
    for seed in 0..40 {
        let mut rng = Rng(seed);
        let mut bench = Bench::ready();
        let mut epoch = 1;
        for _ in 0..60 {
            let (first, count) = (rng.below(600), 1 + rng.below(9) as u32);
            match rng.below(12) {
                0 => {
                    epoch += 1;
                    bench.seal(epoch);
                    bench.join(0..64, epoch);
                }
                1..=3 => {
                    let source = |block: Block| match block.0 % 3 {
                        0 => Some((v(1, 1 + block.0 % 2), block.0.is_multiple_of(2))),
                        _ => None,
                    };
                    if epoch > 1 && first / 256 == (first + u64::from(count)) / 256 {
                        bench
                            .fill(epoch, Blocks::new(Block(first), count), source)
                            .unwrap();
                    }
                }
                4 => {
                    bench.flush();
                }
                5 => {
                    bench.store.start_checkpoint();
                    bench.tidy();
                }
                kind if first / 256 == (first + u64::from(count)) / 256 => {
                    bench.write(first, count, kind % 2 == 0);
                }
                _ => {}
            }
            digests(&mut bench, epoch, 0..64);
        }
        let kept = digests(&mut bench, epoch, 0..64);
        bench.flush();
        let mut bench = bench.kill();
        assert_eq!(digests(&mut bench, epoch, 0..64), kept, "seed {seed}");
    }
}

#[test]
fn a_digest_tells_versions_zeroes_blocks_and_proof() {
    let mut bench = Bench::ready();
    let empty = digests(&mut bench, 1, 0..1);
    assert_eq!(empty, [Digest::default()]);
    let mut seen = vec![empty];
    for (first, zero) in [(0, false), (1, false), (0, false), (0, true), (2, true)] {
        bench.write(first, 1, zero);
        let now = digests(&mut bench, 1, 0..1);
        assert!(!seen.contains(&now));
        seen.push(now);
    }
    assert_eq!(
        digests(&mut bench, 1, 1..2),
        [Digest::default()],
        "the extent beside it"
    );
    // After another join nothing is proven, until it is filled in.
    bench.seal(4);
    bench.join(0..64, 4);
    assert_eq!(digests(&mut bench, 4, 0..1), [Digest::default()]);
    assert_eq!(
        digests(&mut bench, 1, 0..1),
        seen[5],
        "the older entry has what it had"
    );
    let newest = bench.newest();
    let source = |block: Block| newest.get(&block).map(|version| (*version, block.0 != 1));
    bench.fill(4, Blocks::new(Block(0), 3), source).unwrap();
    assert_eq!(digests(&mut bench, 4, 0..1), seen[5]);
    let promise = bench.store.drop_disk(DISK).unwrap();
    bench.wait(promise);
}
