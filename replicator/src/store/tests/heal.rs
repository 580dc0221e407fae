//! Healing: a damaged block comes back in the very version that it had, and in no other.

use super::bench::content;
use super::{Bench, DISK};
use crate::message::{DamagedBlock, Found, Refusal, Reply, Request};
use crate::store::Handled;
use crate::store::check::check_media;
use crate::words::{Block, Blocks, Epoch, Extent, Extents, Seq, Version};

fn v(epoch: u64, seq: u64) -> Version {
    Version::new(Epoch::from_u64(epoch), Seq(seq))
}

/// Flips a bit of the content of a block, wherever it stands.
fn spoil(bench: &Bench, block: u64, version: Version) {
    let wanted = content(DISK, Block(block), version);
    for name in crate::store::media::Media::list(&bench.media).unwrap() {
        let bytes = bench.media.content(&name);
        let found = bytes.windows(64).position(|some| some == &wanted[..64]);
        if let Some(at) = found {
            bench.media.flip(&name, at as u64 + 700, 2);
            return;
        }
    }
    panic!("block {block} is not on the media");
}

fn damaged(bench: &mut Bench, extents: std::ops::Range<u32>) -> Vec<DamagedBlock> {
    let request = Request::Digest {
        asker: bench.asker(),
        from: bench.epoch,
        extents: Extents::new(Extent(extents.start), Extent(extents.end)),
    };
    match bench.ask(request) {
        Reply::Digested(digested) => digested.damaged,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_damaged_block_is_given_back_and_stays_healed() {
    let mut bench = Bench::ready();
    bench.write(10, 3, false);
    bench.flush();
    spoil(&bench, 11, v(1, 1));
    let blocks = Blocks::new(Block(8), 8);
    assert_eq!(
        bench.heal(9, blocks, v(1, 1)).unwrap().copied,
        0,
        "nobody knows of it yet"
    );
    let refused = Err(Refusal::Damaged { block: Block(11) });
    assert_eq!(bench.read(10, 3), refused);
    assert_eq!(
        bench.store.usage().damaged_blocks,
        0,
        "it is taken in with the next question"
    );
    let block = DamagedBlock {
        block: Block(11),
        version: v(1, 1),
    };
    assert_eq!(damaged(&mut bench, 0..1), [block]);
    assert_eq!(bench.store.usage().damaged_blocks, 1);
    // Another version is no help.
    assert_eq!(bench.heal(9, blocks, v(1, 2)).unwrap().copied, 0);
    assert_eq!(bench.read(10, 3), refused);
    assert_eq!(bench.heal(9, blocks, v(1, 1)).unwrap().copied, 1);
    let usage = bench.store.usage();
    assert_eq!((usage.damaged_blocks, usage.healed_blocks), (0, 1));
    bench.flush();
    for _ in 0..2 {
        bench.check(true);
        bench.store.start_checkpoint();
        bench.tidy();
        assert_eq!(damaged(&mut bench, 0..1), []);
        bench = bench.kill();
    }
    bench.check(true);
}

/// Two find the same, and the store hears of the second when it is healed.
#[test]
fn what_was_found_where_nothing_stands_any_more_is_no_damage() {
    let mut bench = Bench::ready();
    bench.write(11, 1, false);
    bench.flush();
    spoil(&bench, 11, v(1, 1));
    let read = Request::Read {
        asker: bench.asker(),
        from: bench.epoch,
        below: Epoch::MAX,
        blocks: Blocks::new(Block(11), 1),
    };
    let Handled::Read(late) = bench.store.handle(read) else {
        panic!("it is read from the media");
    };
    assert!(bench.read(11, 1).is_err());
    assert_eq!(damaged(&mut bench, 0..1).len(), 1);
    let healed = bench.heal(9, Blocks::new(Block(11), 1), v(1, 1));
    assert_eq!(healed.unwrap().copied, 1);
    assert!(late.run().is_err(), "it reads where the block stood");
    assert_eq!(damaged(&mut bench, 0..1), []);
    bench.read(11, 1).unwrap();
}

#[test]
fn a_heal_that_was_not_synced_is_damage_again_after_a_crash() {
    let mut bench = Bench::ready();
    bench.write(0, 1, false);
    bench.flush();
    // A mark says that it was synced: what does not match there is damage, and no torn end.
    bench.write(1, 1, false);
    bench.flush();
    spoil(&bench, 0, v(1, 1));
    assert!(bench.read(0, 1).is_err());
    bench.heal(9, Blocks::new(Block(0), 1), v(1, 1)).unwrap();
    bench.read(0, 1).unwrap();
    let mut bench = bench.crash(|| false);
    assert_eq!(bench.read(0, 1), Err(Refusal::Damaged { block: Block(0) }));
    bench.heal(9, Blocks::new(Block(0), 1), v(1, 1)).unwrap();
    bench.flush();
    let mut bench = bench.crash(|| false);
    bench.read(0, 1).unwrap();
}

#[test]
fn what_is_damaged_is_not_adopted_and_a_heal_proves_nothing() {
    let mut bench = Bench::ready();
    bench.write(0, 2, false);
    bench.flush();
    spoil(&bench, 0, v(1, 1));
    bench.seal(5);
    bench.join(0..64, 5);
    assert!(bench.read_bounded(0, 1, 1, 5).is_err());
    let blocks = Blocks::new(Block(0), 2);
    // Healed for the entry that had it, it is still no proof for the one that joined since.
    assert_eq!(bench.heal(5, blocks, v(1, 1)).unwrap().copied, 1);
    assert!(bench.read_bounded(0, 1, 1, 5).is_ok());
    let newest = bench.read_bounded(0, 1, 5, u64::MAX).unwrap();
    assert_eq!(newest.found, [Found::Absent]);
    // Damaged again, it has to come over as data, though the version is known.
    bench.flush();
    spoil(&bench, 1, v(1, 1));
    assert!(bench.read_bounded(1, 1, 1, 5).is_err());
    let pulled = bench.fill(5, blocks, |_| Some((v(1, 1), false))).unwrap();
    assert_eq!((pulled.same, pulled.copied), (1, 1));
    assert_eq!(damaged(&mut bench, 0..1), []);
    bench.read_bounded(0, 2, 5, u64::MAX).unwrap();
}

#[test]
fn what_is_written_over_is_no_damage_any_more() {
    let mut bench = Bench::ready();
    bench.write(0, 1, false);
    bench.flush();
    spoil(&bench, 0, v(1, 1));
    assert!(bench.read(0, 1).is_err());
    assert_eq!(damaged(&mut bench, 0..1).len(), 1);
    for _ in 0..8 {
        bench.write(0, 1, false);
        bench.flush();
    }
    assert_eq!(damaged(&mut bench, 0..1), []);
}

/// Reads everything of the first blocks back: how many frames, and what is damaged.
fn verify(bench: &mut Bench) -> (u64, Vec<u64>) {
    let request = Request::Verify {
        asker: bench.asker(),
        blocks: Blocks::new(Block(0), 200),
    };
    match bench.ask(request) {
        Reply::Verified(verified) => {
            let damaged = verified.damaged.iter().map(|damaged| damaged.block.0);
            (verified.blocks, damaged.collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn verifying_reads_what_the_media_have() {
    let mut bench = Bench::ready();
    bench.write(0, 4, false);
    bench.write(6, 2, true);
    bench.flush();
    assert_eq!(verify(&mut bench), (4, vec![]));
    spoil(&bench, 1, v(1, 1));
    spoil(&bench, 3, v(1, 1));
    assert_eq!(verify(&mut bench), (4, vec![1, 3]));
    bench.heal(9, Blocks::new(Block(0), 4), v(1, 1)).unwrap();
    assert_eq!(verify(&mut bench), (4, vec![]));
    let (media, ..) = bench.close();
    let report = check_media(&media).unwrap();
    // Each is found in its segment and by the walk, though nobody needs it any more.
    assert_eq!(report.damage.len(), 4, "{:?}", report.damage);
}

#[test]
fn a_predecessor_that_was_let_go_of_is_no_damage_after_a_restart() {
    let mut bench = Bench::ready();
    let write_all = |bench: &mut Bench| {
        for first in 0..16 {
            assert_eq!(bench.write(first * 8, 8, false), Reply::WRITTEN);
        }
    };
    write_all(&mut bench);
    bench.flush();
    bench.seal(2);
    write_all(&mut bench);
    // This writes the index while the predecessors may be needed.
    bench.store.start_checkpoint();
    while bench.store.is_checkpointing() {
        assert!(bench.store.housekeep());
    }
    let segments = |bench: &Bench| bench.store.log.segments.len();
    let before = segments(&bench);
    // This lets go of where they stood, and writes no index.
    for _ in 0..8 {
        bench.write(5000, 1, false);
    }
    bench.flush();
    bench.tidy();
    assert!(segments(&bench) + 4 < before);
    let mut bench = bench.kill();
    assert_eq!(verify(&mut bench).1, Vec::<u64>::new());
    bench.check(true);
}
