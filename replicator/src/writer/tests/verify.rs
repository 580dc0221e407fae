//! Scripts of verifying: copies are compared while nobody writes to them, differences are named, damage is
//! healed.

use super::*;
use crate::message::{DamagedBlock, Digest, Digested, Pulled, Verified};
use crate::writer::{DamagedCopy, Verdict, VerifyOrder};

fn v(epoch: u64, seq: u64) -> Version {
    Version::new(Epoch::from_u64(epoch), Seq(seq))
}

/// Each extent holds one block, written by that sequence number.
fn digested(seqs: &[u64]) -> Reply {
    let digest = |seq: &u64| {
        let mut digest = Digest::default();
        digest.add(Block(0), v(2, *seq), false);
        digest
    };
    Reply::Digested(Digested {
        digests: seqs.iter().map(digest).collect(),
        damaged: vec![],
    })
}

fn listed(blocks: &[(u64, u64)]) -> Reply {
    let blocks = blocks.iter().map(|(block, seq)| ListedBlock {
        block: Block(*block),
        version: v(2, *seq),
        zeroes: false,
    });
    Reply::Listed {
        blocks: blocks.collect(),
        more: false,
    }
}

fn with_damage(reply: Reply, block: u64) -> Reply {
    let Reply::Digested(mut digested) = reply else {
        panic!("not a digest");
    };
    digested.damaged.push(DamagedBlock {
        block: Block(block),
        version: v(2, 1),
    });
    Reply::Digested(digested)
}

fn healed() -> Reply {
    Reply::Pulled(Pulled {
        copied: 1,
        ..Pulled::default()
    })
}

impl Script {
    fn verify(&mut self, deep: bool) {
        let verify = Some(VerifyOrder { id: 7, deep });
        let orders = Orders {
            verify,
            ..Orders::default()
        };
        self.event(Event::Orders(orders));
    }

    fn extents_asked(&mut self, store: StoreId, reply: Reply) -> std::ops::Range<u32> {
        match self.answer(store, reply) {
            Request::Digest { extents, from, .. } => {
                assert_eq!(from, Epoch::from_u64(1));
                extents.first.0..extents.end.0
            }
            other => panic!("not asked for a digest: {other:?}"),
        }
    }

    /// B asks the others for block 5, and none has what it has damaged.
    fn has_no_healer(&mut self) {
        let nothing = Reply::Pulled(Pulled::default());
        let asked = self.answer(B, nothing);
        assert!(matches!(asked, Request::Heal { blocks, .. } if blocks.first == Block(5)));
        self.wait(0);
    }

    fn verdict(&mut self) -> Verdict {
        self.wait(1);
        self.writer.verdict().expect("it was ordered").clone()
    }
}

#[test]
fn copies_that_agree_are_good() {
    let mut script = Script::open(&[A, B]);
    script.verify(false);
    assert_eq!(script.extents_asked(A, digested(&[1, 2, 3, 4])), 0..4);
    assert!(!script.writer.verdict().unwrap().finished);
    assert_eq!(script.extents_asked(B, digested(&[1, 2, 3, 4])), 0..4);
    let verdict = script.verdict();
    assert!(verdict.is_good(), "{verdict:?}");
    assert_eq!(
        (verdict.order, verdict.extents, verdict.extents_done),
        (7, 4, 4)
    );
    assert!(matches!(script.other.last(), Some(Effect::Verified(_))));
}

#[test]
fn a_store_that_cannot_tell_all_at_once_is_asked_for_the_rest() {
    let mut script = Script::open(&[A, B]);
    script.verify(false);
    script.extents_asked(A, digested(&[1]));
    script.extents_asked(B, digested(&[1, 2, 3]));
    script.wait(1);
    assert_eq!(script.extents_asked(A, digested(&[2, 3, 4])), 1..4);
    assert_eq!(script.extents_asked(B, digested(&[2, 3, 4])), 1..4);
    assert!(script.verdict().is_good());
}

#[test]
fn a_difference_names_the_blocks_and_both_versions() {
    let mut script = Script::open(&[A, B]);
    script.verify(false);
    script.extents_asked(A, digested(&[1, 2, 3, 4]));
    script.extents_asked(B, digested(&[1, 2, 9, 4]));
    let request = script.answer(A, listed(&[(512, 3), (513, 4), (515, 5)]));
    let third = Extents::new(Extent(2), Extent(3));
    assert!(matches!(request, Request::List { extents, .. } if extents == third));
    script.answer(B, listed(&[(512, 3), (513, 9), (514, 5), (515, 5)]));
    let verdict = script.verdict();
    assert!(verdict.finished && !verdict.has_no_faults());
    assert_eq!(verdict.differing_blocks, 2);
    let said: Vec<_> = verdict
        .differing
        .iter()
        .map(|one| {
            let of = |store| {
                one.copies
                    .iter()
                    .find(|copy| copy.store == store)
                    .unwrap()
                    .version
            };
            (one.block.0, of(A), of(B))
        })
        .collect();
    let expected = [
        (513, Some(v(2, 4)), Some(v(2, 9))),
        (514, None, Some(v(2, 5))),
    ];
    assert_eq!(said, expected);
}

#[test]
fn what_is_written_meanwhile_is_no_difference_and_is_looked_at_again() {
    let mut script = Script::open(&[A, B]);
    script.verify(false);
    script.extents_asked(A, digested(&[1, 2, 3, 4]));
    let id = script.write(EXTENT, 4096, 1);
    script.extents_asked(B, digested(&[1, 5, 3, 4]));
    script.answer(A, Reply::WRITTEN);
    script.answer(B, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));
    script.wait(1);
    assert_eq!(script.extents_asked(A, digested(&[5])), 1..2);
    assert_eq!(script.extents_asked(B, digested(&[5])), 1..2);
    assert!(script.verdict().is_good());
}

#[test]
fn an_extent_that_is_always_written_is_given_up_and_said() {
    let mut script = Script::open(&[A, B]);
    script.verify(false);
    script.write(0, 4096, 1);
    for round in 0..20 {
        let from = script
            .asked
            .iter()
            .position(|(.., r)| matches!(r, Request::Digest { .. }));
        assert!(from.is_some(), "round {round}");
        for (store, seq) in [(A, 1), (B, 2)] {
            let at = script.asked.iter().position(|(to, _, request)| {
                *to == store && matches!(request, Request::Digest { .. })
            });
            let (_, call, request) = script.asked.remove(at.unwrap()).unwrap();
            let Request::Digest { extents, .. } = request else {
                unreachable!("just looked for");
            };
            let seqs: Vec<u64> = extents
                .iter()
                .map(|e| if e.0 == 0 { seq } else { 3 })
                .collect();
            let reply = digested(&seqs);
            script.event(Event::Reply { call, reply });
        }
        let at = script.now + Duration::from_millis(150);
        script.now = at;
        script.event(Event::Timeout);
    }
    let verdict = script.writer.verdict().unwrap();
    assert!(verdict.finished && verdict.has_no_faults());
    assert_eq!(verdict.busy, 1);
}

#[test]
fn damage_that_a_store_knows_of_is_healed_and_what_cannot_be_is_named() {
    let mut script = Script::open(&[A, B]);
    script.verify(false);
    script.extents_asked(A, with_damage(digested(&[1, 2, 3, 4]), 300));
    script.extents_asked(B, with_damage(digested(&[1, 2, 3, 4]), 5));
    script.wait(0);
    assert!(
        matches!(script.answer(A, healed()), Request::Heal { blocks, .. } if blocks.first == Block(300))
    );
    script.has_no_healer();
    // Still damaged when it is looked at once more.
    assert_eq!(script.extents_asked(A, digested(&[1])), 0..1);
    script.extents_asked(B, with_damage(digested(&[1]), 5));
    script.has_no_healer();
    let verdict = script.verdict();
    assert_eq!((verdict.damaged_blocks, verdict.healed_blocks), (2, 1));
    let left = DamagedCopy {
        store: B,
        block: Block(5),
        version: Some(v(2, 1)),
    };
    assert_eq!(verdict.damaged, [left]);
    assert!(verdict.finished && !verdict.has_no_faults());
}

#[test]
fn what_is_overwritten_while_others_are_asked_for_it_is_not_damaged_any_more() {
    let mut script = Script::open(&[A, B]);
    script.verify(false);
    script.extents_asked(A, digested(&[1, 2, 3, 4]));
    script.extents_asked(B, with_damage(digested(&[1, 2, 3, 4]), 5));
    script.wait(0);
    script.has_no_healer();
    assert_eq!(script.extents_asked(A, digested(&[9])), 0..1);
    script.extents_asked(B, digested(&[9]));
    let verdict = script.verdict();
    assert!(verdict.is_good(), "{verdict:?}");
    assert_eq!((verdict.damaged_blocks, verdict.extents_done), (0, 4));
}

#[test]
fn a_deep_one_reads_all_that_is_there_and_heals_what_it_finds() {
    let mut script = Script::open(&[A, B]);
    script.verify(true);
    for store in [A, B] {
        let Reply::Digested(mut all) = digested(&[1, 2, 3, 4]) else {
            unreachable!("digests");
        };
        // The last two extents were never written.
        all.digests[2..].fill(Digest::default());
        script.extents_asked(store, Reply::Digested(all));
    }
    for (store, block) in [(A, 0), (B, 0), (A, 256), (B, 256)] {
        let damaged = (store, block) == (B, 256);
        let reply = Reply::Verified(Verified {
            blocks: 1,
            damaged: Vec::from_iter(damaged.then_some(DamagedBlock {
                block: Block(300),
                version: v(2, 1),
            })),
        });
        let request = script.answer(store, reply);
        let asked = Blocks::new(Block(block), 256);
        assert!(
            matches!(request, Request::Verify { blocks, .. } if blocks == asked),
            "{request:?}"
        );
    }
    assert!(matches!(script.answer(B, healed()), Request::Heal { .. }));
    let verdict = script.verdict();
    assert!(verdict.is_good(), "{verdict:?}");
    assert_eq!((verdict.blocks_read, verdict.healed_blocks), (4, 1));
}

#[test]
fn a_store_that_does_not_answer_is_left_out_and_said() {
    let mut script = Script::open(&[A, B, C]);
    script.verify(false);
    script.extents_asked(A, digested(&[1, 2, 3, 4]));
    script.extents_asked(B, digested(&[1, 2, 3, 4]));
    script.event(Event::Disconnected { store: C });
    script.wait(1);
    script.extents_asked(A, digested(&[1, 2, 3, 4]));
    script.extents_asked(B, digested(&[1, 2, 3, 4]));
    let verdict = script.verdict();
    assert!(verdict.has_no_faults() && !verdict.is_good());
    assert_eq!(verdict.silent, [C]);
}

#[test]
fn an_order_that_is_taken_back_stops_and_nobody_minds_late_answers() {
    let mut script = Script::open(&[A, B]);
    script.verify(true);
    script.event(Event::Orders(Orders::default()));
    script.extents_asked(A, digested(&[1, 2, 3, 4]));
    script.extents_asked(B, digested(&[1, 2, 3, 5]));
    script.wait(5);
    assert!(script.writer.verdict().is_none() && script.asked.is_empty());
}

#[test]
fn an_ejection_in_between_begins_the_look_anew_without_the_one_that_is_out() {
    let mut script = Script::open(&[A, B, C]);
    script.verify(false);
    script.extents_asked(A, digested(&[1, 2, 3, 4]));
    let id = script.write(0, 4096, 1);
    script.answer(A, Reply::WRITTEN);
    // Its digest, that is.
    script.answer(B, Reply::Refused(Refusal::Failed));
    script.asked.clear();
    script.commit();
    for store in [A, C] {
        script.seal(store, 1, 1, false);
    }
    for store in [A, C] {
        let request = script.answer(store, Reply::WRITTEN);
        assert!(matches!(request, Request::Write { .. }));
    }
    assert_eq!(script.is_done(id), Some(Ok(())));
    script.wait(1);
    script.extents_asked(A, digested(&[5, 2, 3, 4]));
    script.extents_asked(C, digested(&[5, 2, 3, 4]));
    assert!(script.verdict().has_no_faults());
}

#[test]
fn unasked_it_looks_now_and_then_and_says_only_what_is_wrong() {
    let mut script = Script::new(disk(&[A, B]));
    let config = Config {
        near: Some(A),
        audit_every: Some(Duration::from_secs(600)),
        ..Config::default()
    };
    script.writer = Writer::new(config, owner(1), script.record.clone());
    script.start(TakeOver::Own);
    script.commit();
    for store in [A, B] {
        script.seal(store, 1, 1, false);
    }
    script.wait(6);
    let others = script.other.len();
    for store in [A, B] {
        script.extents_asked(store, digested(&[1, 2, 3, 4]));
    }
    script.wait(590);
    assert_eq!(script.other.len(), others);
    script.wait(10);
    script.extents_asked(A, with_damage(digested(&[1, 2, 3, 4]), 3));
    script.extents_asked(B, digested(&[1, 2, 3, 4]));
    script.wait(0);
    assert!(matches!(script.answer(A, healed()), Request::Heal { .. }));
    script.wait(1);
    assert!(
        matches!(script.other.last(), Some(Effect::Verified(verdict)) if verdict.healed_blocks == 1)
    );
    assert!(script.writer.verdict().is_none(), "nobody had ordered it");
}

/// As of [`listed`], and more is to follow.
fn page(blocks: &[(u64, u64)]) -> Reply {
    match listed(blocks) {
        Reply::Listed { blocks, .. } => Reply::Listed { blocks, more: true },
        other => other,
    }
}

#[test]
fn a_list_that_leaves_what_was_asked_or_does_not_go_on_ends_with_the_store_left_out() {
    // The third extent is asked for: blocks 512 to 768.
    let nonsense: [&[Reply]; 5] = [
        &[page(&[(u64::MAX, 3)])],
        &[page(&[(768, 3)])],
        &[page(&[(511, 3)])],
        &[page(&[(513, 3)]), page(&[(513, 3)])],
        &[page(&[])],
    ];
    for pages in nonsense {
        let mut script = Script::open(&[A, B]);
        script.verify(false);
        script.extents_asked(A, digested(&[1, 2, 3, 4]));
        script.extents_asked(B, digested(&[1, 2, 9, 4]));
        for page in pages {
            let request = script.answer(B, page.clone());
            assert!(matches!(request, Request::List { .. }), "{request:?}");
        }
        script.asked.clear();
        script.wait(1);
        script.extents_asked(A, digested(&[1, 2, 3, 4]));
        assert!(!script.is_asked(B), "{pages:?}");
        let verdict = script.verdict();
        assert_eq!((verdict.finished, verdict.silent), (true, vec![B]));
    }
}

#[test]
fn damage_beyond_what_was_read_back_is_no_answer() {
    // Only the first extent was ever written.
    let Reply::Digested(mut first) = digested(&[1, 2, 3, 4]) else {
        unreachable!("digests");
    };
    first.digests[1..].fill(Digest::default());
    for block in [256, 1 << 40, u64::MAX] {
        let mut script = Script::open(&[A, B]);
        script.verify(true);
        for store in [A, B] {
            script.extents_asked(store, Reply::Digested(first.clone()));
        }
        let verified = |blocks, damaged| Reply::Verified(Verified { blocks, damaged });
        script.answer(A, verified(u64::MAX, vec![]));
        let damaged = DamagedBlock {
            block: Block(block),
            version: v(2, 1),
        };
        script.answer(B, verified(u64::MAX, vec![damaged]));
        script.wait(1);
        script.extents_asked(A, Reply::Digested(first.clone()));
        assert!(!script.is_asked(B));
        script.answer(A, verified(u64::MAX, vec![]));
        let verdict = script.verdict();
        assert_eq!((verdict.damaged_blocks, verdict.blocks_read), (0, u64::MAX));
        assert_eq!(verdict.silent, [B]);
    }
}
