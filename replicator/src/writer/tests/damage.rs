//! Scripts of damage: a store does not have any more what was written to it.

use super::*;
use crate::message::Pulled;

fn damaged(block: u64) -> Reply {
    Reply::Refused(Refusal::Damaged {
        block: Block(block),
    })
}

fn pulled(copied: u32) -> Reply {
    Reply::Pulled(Pulled {
        copied,
        ..Pulled::default()
    })
}

/// A is live since epoch 2 and not whole; B has what was written before.
fn moved_to_a() -> Script {
    let record = used(&[B]);
    let set = NewSet {
        extents: record.extents(),
        stores: vec![A],
    };
    let attach = Change::Attach {
        owner: owner(2),
        sets: vec![set],
    };
    let close = Change::Close {
        by: (owner(2).backend, owner(2).life),
        last: Version::ZERO,
        successor: None,
    };
    let record = record.apply(G, &attach).unwrap();
    let mut script = Script::new(record.apply(G, &close).unwrap());
    script.pause_filling();
    script.start(TakeOver::Own);
    script.commit();
    script.seal(A, 1, 2, false);
    script
}

#[test]
fn a_damaged_block_is_healed_within_the_read_that_found_it() {
    let mut script = Script::open(&[A, B]);
    let id = script.read(4096, 4096);
    script.answer(A, damaged(1));
    // The guest hears from B, and A is told to get it from there.
    script.answer(B, Reply::Read(found((2, 7), 9)));
    assert_eq!(script.is_done(id), Some(Ok(())));
    let request = script.answer(A, pulled(1));
    match request {
        Request::Heal {
            source,
            from,
            below,
            blocks,
            ..
        } => {
            assert_eq!((source.store, blocks), (B, Blocks::new(Block(1), 1)));
            assert_eq!((from, below), (Epoch::from_u64(1), Epoch::MAX));
        }
        other => panic!("not a heal: {other:?}"),
    }
    assert_eq!(script.writer.progress().healed_blocks, 1);
    assert!(!script.is_asked(A) && !script.is_asked(B));
}

#[test]
fn what_was_filled_in_comes_once_more_from_where_it_came_and_the_read_waits_for_it() {
    let mut script = moved_to_a();
    let id = script.read(0, 4096);
    script.answer(A, damaged(0));
    // B is of an older entry: it cannot say what the block is now, only give A the version that A has.
    script.seal(B, 1, 1, false);
    assert_eq!(script.is_done(id), None);
    let request = script.answer(A, pulled(1));
    let bounds = (Epoch::from_u64(1), Epoch::from_u64(2));
    assert!(matches!(request, Request::Heal { from, below, .. } if (from, below) == bounds));
    assert!(!script.is_asked(B));
    script.answer(A, Reply::Read(found((1, 7), 9)));
    assert_eq!(script.is_done(id), Some(Ok(())));
}

#[test]
fn a_heal_is_tried_once_a_read_and_of_every_store_that_may_help() {
    let mut script = Script::open(&[A, B, C]);
    let id = script.read(0, 4096);
    script.answer(A, damaged(0));
    script.answer(B, damaged(0));
    script.answer(C, damaged(0));
    // A has written since: its version is not what C has.
    for _ in 0..2 {
        assert!(matches!(script.answer(A, pulled(0)), Request::Heal { .. }));
    }
    script.answer(B, pulled(1));
    assert!(matches!(script.answer(B, damaged(0)), Request::Read { .. }));
    assert_eq!(script.is_done(id), None, "C may still be healed");
    script.answer(C, pulled(0));
    script.answer(C, pulled(0));
    assert_eq!(script.is_done(id), Some(Err(Failure::Unreadable)));
}

#[test]
fn a_heal_that_is_cut_off_or_late_ends() {
    let mut script = moved_to_a();
    let id = script.read(0, 4096);
    script.answer(A, damaged(0));
    script.seal(B, 1, 1, false);
    assert!(matches!(script.asked(A).1, Request::Heal { .. }));
    script.wait(10);
    assert_eq!(script.is_done(id), Some(Err(Failure::Unreadable)));
}
