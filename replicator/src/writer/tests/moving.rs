//! Scripts of moves: members are switched, filled, called whole, and let go.

use super::*;
use crate::message::{Pulled, SourceFault};

fn two() -> Epoch {
    Epoch::from_u64(2)
}

fn three() -> Epoch {
    Epoch::from_u64(3)
}

fn all() -> Extents {
    Extents::new(Extent(0), Extent(4))
}

fn surveyed(runs: &[(u64, u32)]) -> Reply {
    let runs = runs
        .iter()
        .map(|(first, count)| Blocks::new(Block(*first), *count))
        .collect();
    Reply::Surveyed { runs, next: None }
}

fn copied(blocks: u32) -> Reply {
    Reply::Pulled(Pulled {
        copied: blocks,
        bytes: u64::from(blocks) * 4096,
        ..Pulled::default()
    })
}

/// Open on `before` in epoch 2, then ordered to `after`, whose new stores answer. In epoch 3.
fn switched(before: &[StoreId], after: &[StoreId], fill: FillOrders) -> Script {
    let mut script = Script::open(before);
    script.orders(&[(0, 4, after)], fill);
    let joining: Vec<StoreId> = after
        .iter()
        .copied()
        .filter(|store| !before.contains(store))
        .collect();
    for store in &joining {
        script.seal(*store, 1, 0, false);
    }
    for store in before {
        assert!(matches!(
            script.answer(*store, Reply::Synced),
            Request::Sync { .. }
        ));
    }
    assert!(matches!(script.commit(), Change::Switch { .. }));
    for store in after {
        let from = if joining.contains(store) { 0 } else { 1 };
        script.seal(*store, 1, from, false);
    }
    for store in after {
        let request = if joining.contains(store) {
            script.answer(*store, Reply::JOINED)
        } else {
            // It may come to be the only one that has what stood there before.
            script.answer(*store, Reply::KEPT)
        };
        match request {
            Request::Join { from, .. } => assert_eq!(from, three()),
            Request::Keep { below, .. } => assert_eq!(below, three()),
            other => panic!("neither a join nor a keep: {other:?}"),
        }
    }
    assert!(script.writer.is_serving());
    script
}

fn paused() -> FillOrders {
    FillOrders {
        paused: true,
        ..FillOrders::default()
    }
}

#[test]
fn members_are_switched_between_two_writes() {
    let mut script = Script::open(&[A]);
    let before = script.write(0, 4096, 1);
    script.orders(&[(0, 4, &[A, B])], paused());
    // The guest does not wait for a store that is to join and has not answered.
    let (in_flight, _) = script.asked(A);
    let reply = Reply::WRITTEN;
    script.event(Event::Reply {
        call: in_flight,
        reply,
    });
    assert_eq!(script.is_done(before), Some(Ok(())));
    let last = script.write(4096, 4096, 1);
    script.seal(B, 1, 0, false);
    let held = script.write(8192, 4096, 1);
    let (in_flight, request) = script.asked(A);
    assert_eq!(Script::version(&request), (2, 2));
    assert!(
        !script.is_asked(A),
        "W8: the sync waits for what is in flight"
    );
    let reply = Reply::WRITTEN;
    script.event(Event::Reply {
        call: in_flight,
        reply,
    });
    assert_eq!(script.is_done(last), Some(Ok(())));
    assert!(script.swaps.is_empty(), "S4: synced first");
    script.answer(A, Reply::Synced);
    assert!(matches!(script.commit(), Change::Switch { .. }));
    script.seal(A, 1, 1, false);
    script.seal(B, 1, 0, false);
    script.answer(A, Reply::KEPT);
    script.answer(B, Reply::JOINED);
    for store in [A, B] {
        let request = script.answer(store, Reply::WRITTEN);
        assert_eq!(Script::version(&request), (3, 1));
    }
    assert_eq!(script.is_done(held), Some(Ok(())));
    assert_eq!(script.record.even_below, three());
}

#[test]
fn a_store_that_does_not_answer_keeps_nobody_waiting() {
    let mut script = Script::open(&[A]);
    script.orders(&[(0, 4, &[A, B])], paused());
    script.wait(60);
    assert_eq!(
        script.writer.hindrance(),
        Some(&Hindrance::NoAnswer(vec![B]))
    );
    let id = script.write(0, 4096, 1);
    script.answer(A, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));
    script.orders(&[], paused());
    assert_eq!(script.writer.hindrance(), None);
    assert!(script.swaps.is_empty());
}

const FULL: Reply = Reply::Refused(Refusal::Full { free: 0, needed: 1 });

/// A write is held by A, and B has no room for it.
fn held_up(script: &mut Script) -> RequestId {
    let id = script.write(0, 4096, 1);
    script.answer(A, Reply::WRITTEN);
    script.answer(B, FULL);
    id
}

/// B is asked for the write again and again.
fn still_full(script: &mut Script, seconds: u64) {
    for _ in 0..seconds * 4 {
        script.wait_ms(250);
        while script.is_asked(B) {
            script.answer(B, FULL);
        }
    }
}

#[test]
fn no_write_waits_for_a_switch_that_waits_for_a_full_store() {
    let mut script = Script::open(&[A, B]);
    let stuck = held_up(&mut script);
    script.orders(&[(0, 4, &[A, B, C])], paused());
    script.seal(C, 1, 0, false);
    still_full(&mut script, 10);
    assert_eq!(script.writer.hindrance(), Some(&Hindrance::InFlight));
    assert_eq!(script.writer.stall(), Some(&Stall::Full(B)));
    // It has room for another one, but not for that.
    let other = script.write(EXTENT, 4096, 2);
    script.answer(A, Reply::WRITTEN);
    let (call, _) = script.asked(B);
    let reply = Reply::WRITTEN;
    script.event(Event::Reply { call, reply });
    assert_eq!(script.is_done(other), Some(Ok(())));
    assert!(script.swaps.is_empty(), "B is to stay");
    // And now it has.
    script.wait(1);
    script.answer(B, Reply::WRITTEN);
    assert_eq!(script.is_done(stuck), Some(Ok(())));
    for store in [A, B] {
        script.answer(store, Reply::Synced);
    }
    assert!(matches!(script.commit(), Change::Switch { .. }));
    assert_eq!(script.writer.hindrance(), None);
}

#[test]
fn a_switch_that_does_not_drain_lets_writes_go_on_and_is_tried_again() {
    let mut script = Script::open(&[A, B]);
    script.write(0, 4096, 1);
    script.orders(&[(0, 4, &[A, B, C])], paused());
    script.seal(C, 1, 0, false);
    let held = script.write(EXTENT, 4096, 2);
    script.answer(A, Reply::WRITTEN);
    assert!(!script.is_asked(A), "W8");
    script.answer(B, FULL);
    for store in [A, B] {
        script.answer(store, Reply::WRITTEN);
    }
    assert_eq!(script.is_done(held), Some(Ok(())));
    script.wait(1);
    script.answer(B, Reply::WRITTEN);
    assert!(script.asked.is_empty(), "not at once");
    script.wait(10);
    for store in [A, B] {
        script.answer(store, Reply::Synced);
    }
    assert!(matches!(script.commit(), Change::Switch { .. }));
}

#[test]
fn other_orders_end_a_switch_that_drains() {
    let mut script = Script::open(&[A, B]);
    script.write(0, 4096, 1);
    script.orders(&[(0, 4, &[A, B, C])], paused());
    script.seal(C, 1, 0, false);
    let held = script.write(EXTENT, 4096, 2);
    script.orders(&[], paused());
    for store in [A, B, A, B] {
        script.answer(store, Reply::WRITTEN);
    }
    assert_eq!(script.is_done(held), Some(Ok(())));
    // And one that syncs.
    script.orders(&[(0, 4, &[A, B, C])], paused());
    script.answer(A, Reply::Synced);
    let held = script.write(EXTENT, 4096, 2);
    script.orders(&[], paused());
    script.answer(A, Reply::WRITTEN);
    script.answer(B, Reply::Synced);
    script.answer(B, Reply::WRITTEN);
    assert_eq!(script.is_done(held), Some(Ok(())));
    script.wait(60);
    assert!(script.swaps.is_empty() && script.asked.is_empty());
}

#[test]
fn a_full_store_that_is_to_go_leaves_if_the_others_suffice() {
    let orders = |min_copies| Orders {
        sets: vec![NewSet {
            extents: all(),
            stores: vec![A, C],
        }],
        fill: paused(),
        min_copies,
        ..Orders::default()
    };
    let mut script = Script::open(&[A, B]);
    let stuck = held_up(&mut script);
    script.event(Event::Orders(orders(2)));
    script.seal(C, 1, 0, false);
    still_full(&mut script, 60);
    assert!(script.swaps.is_empty());
    assert_eq!(script.writer.stall(), Some(&Stall::Full(B)));
    script.event(Event::Orders(orders(1)));
    let change = script.commit();
    assert!(matches!(change, Change::Eject { stores, .. } if stores == [B]));
    script.seal(A, 1, 1, false);
    script.answer(A, Reply::WRITTEN);
    assert_eq!(script.is_done(stuck), Some(Ok(())));
    script.seal(C, 1, 0, false);
    script.answer(A, Reply::Synced);
    assert!(matches!(script.commit(), Change::Switch { .. }));
    assert_eq!(script.record.members(), [A, C]);
}

#[test]
fn orders_that_are_met_change_nothing() {
    let mut script = Script::open(&[A, B]);
    script.orders(&[(0, 4, &[B, A])], FillOrders::default());
    script.wait(60);
    assert!(script.swaps.is_empty() && script.asked.is_empty());
}

#[test]
fn a_full_history_is_said_once_and_the_guest_goes_on() {
    let mut script = Script::open(&[A]);
    let stores: Vec<StoreId> = (0x10..0x20).map(StoreId::from_u128).collect();
    let entries = (0..History::MAX_ENTRIES as u64).map(|n| {
        let store = [stores[n as usize]];
        match n {
            0 => Entry::whole(Epoch::from_u64(1), store).sealed(Epoch::from_u64(2)),
            _ => Entry::new(Epoch::from_u64(n + 1), store).sealed(Epoch::from_u64(n + 2)),
        }
    });
    let mut entries: Vec<Entry> = entries.collect();
    entries.last_mut().unwrap().until = None;
    entries.last_mut().unwrap().stores = vec![A];
    entries.reverse();
    script.record.epoch = Epoch::from_u64(20);
    script.record.even_below = Epoch::from_u64(20);
    script.record.map[0].history = History(entries);
    script.record.check().unwrap();
    script.writer.record = script.record.clone();
    script.orders(&[(0, 4, &[B])], paused());
    let refused = Hindrance::Refused(ChangeRefused::HistoryFull { extents: all() });
    assert_eq!(script.writer.hindrance(), Some(&refused));
    assert!(script.swaps.is_empty());
    assert!(script.writer.is_serving());
}

#[test]
fn what_the_older_entry_has_is_pulled_synced_and_called_whole() {
    let mut script = switched(&[B], &[A], FillOrders::default());
    assert_eq!(script.record.map[0].history.0.len(), 2);
    script.seal(B, 1, 1, false);
    let request = script.answer(B, surveyed(&[(0, 2), (5, 1), (600, 300)]));
    assert!(
        matches!(request, Request::Survey { from, below, extents, .. }
            if (from, below) == (Epoch::from_u64(1), three()) && extents == all())
    );
    // A hole in between costs less than a question; a hole of a whole extent crosses nothing.
    let mut pulled = Vec::new();
    for blocks in [3, 168, 132] {
        let Request::Pull {
            source,
            from,
            below,
            blocks,
            ..
        } = script.answer(A, copied(blocks))
        else {
            panic!("a pull");
        };
        assert_eq!(
            (source.store, from, below),
            (B, Epoch::from_u64(1), three())
        );
        pulled.push(blocks);
    }
    let at = |first, count| Blocks::new(Block(first), count);
    assert_eq!(pulled, [at(0, 6), at(600, 168), at(768, 132)]);
    let progress = script.writer.progress();
    assert_eq!((progress.extents, progress.extents_done), (4, 4));
    assert_eq!(progress.copied_bytes, 303 * 4096);
    assert!(script.swaps.is_empty(), "F2: synced first");
    script.answer(A, Reply::Synced);
    let change = script.commit();
    assert!(
        matches!(change, Change::Complete { extents, from, .. } if (extents, from) == (all(), three()))
    );
    assert_eq!(
        script.record.map[0].history,
        History(vec![Entry::whole(three(), [A])])
    );
    assert!(matches!(
        script.answer(A, Reply::Collapsed),
        Request::Collapse { .. }
    ));
    script.wait(60);
    assert!(script.asked.is_empty() && script.swaps.is_empty());
    assert_eq!(script.writer.progress().extents, 0);
}

#[test]
fn the_second_store_is_filled_from_the_first() {
    let mut script = switched(&[B], &[A, C], FillOrders::default());
    script.seal(B, 1, 1, false);
    script.answer(B, surveyed(&[(0, 1)]));
    script.answer(A, copied(1));
    let request = script.answer(A, surveyed(&[(0, 1)]));
    assert!(matches!(request, Request::Survey { from, below, .. }
        if (from, below) == (three(), Epoch::MAX)));
    let request = script.answer(C, copied(1));
    assert!(matches!(request, Request::Pull { source, .. } if source.store == A));
    script.answer(A, Reply::Synced);
    assert!(script.swaps.is_empty());
    script.answer(C, Reply::Synced);
    assert!(matches!(script.commit(), Change::Complete { .. }));
}

#[test]
fn what_a_pull_cannot_have_brought_is_not_counted_and_is_asked_for_again() {
    let pulled = |copied, bytes, absent| {
        Reply::Pulled(Pulled {
            absent,
            copied,
            bytes,
            ..Pulled::default()
        })
    };
    let mut script = switched(&[B], &[A], FillOrders::default());
    script.seal(B, 1, 1, false);
    script.answer(B, surveyed(&[(0, 2)]));
    let beyond = vec![Blocks::new(Block(2), 1)];
    for nonsense in [
        pulled(2, u64::MAX, vec![]),
        pulled(u32::MAX, 0, vec![]),
        pulled(0, 0, beyond),
    ] {
        let request = script.answer(A, nonsense);
        assert!(matches!(request, Request::Pull { .. }), "{request:?}");
        script.wait(1);
        script.answer(B, surveyed(&[(0, 2)]));
    }
    assert_eq!(script.writer.progress().link_bytes, 0);
    script.answer(A, copied(2));
    assert_eq!(script.writer.progress().link_bytes, 2 * 4096);
}

#[test]
fn an_ejection_before_the_swap_voids_a_completion() {
    let mut script = switched(&[B], &[A, C], FillOrders::default());
    script.seal(B, 1, 1, false);
    script.answer(B, surveyed(&[]));
    script.answer(A, surveyed(&[]));
    script.answer(A, Reply::Synced);
    let now = Incarnation(2);
    script.answer(C, Reply::Refused(Refusal::OtherIncarnation { now }));
    assert!(matches!(script.commit(), Change::Eject { .. }));
    script.seal(A, 1, 3, false);
    // What A has it still has; its sync counts anew.
    script.answer(A, Reply::Synced);
    assert!(matches!(script.commit(), Change::Complete { from, .. } if from == three()));
    assert_eq!(
        script.record.map[0].history,
        History(vec![Entry::whole(three(), [A])])
    );
}

#[test]
fn a_read_of_what_is_not_near_brings_it_near() {
    let mut script = switched(&[B], &[A], paused());
    let id = script.read(0, 3 * 4096);
    let none = ReadBlocks {
        found: vec![Found::Absent; 3],
        data: Bytes::new(),
    };
    script.answer(A, Reply::Read(none));
    script.seal(B, 1, 1, false);
    let absent = vec![Blocks::new(Block(1), 1)];
    let request = script.answer(
        A,
        Reply::Pulled(Pulled {
            absent,
            copied: 2,
            bytes: 8192,
            ..Pulled::default()
        }),
    );
    assert!(matches!(request, Request::Pull { blocks, .. } if blocks.count == 3));
    for block in [0, 2] {
        let version = Version::new(Epoch::from_u64(1), Seq(9));
        let data = Found::Data { version, sum: 0 };
        let request = script.answer(
            A,
            Reply::Read(ReadBlocks {
                found: vec![data],
                data: Bytes::new(),
            }),
        );
        assert!(
            matches!(request, Request::Read { blocks, .. } if blocks == Blocks::new(Block(block), 1))
        );
    }
    assert_eq!(script.is_done(id), Some(Ok(())));
    assert!(!script.is_asked(B), "it was never read from afar");
    let progress = script.writer.progress();
    assert_eq!((progress.near_blocks, progress.far_blocks), (0, 3));
    assert_eq!(progress.read_through_bytes, 8192);
}

#[test]
fn a_pull_that_takes_too_long_is_read_from_afar() {
    let mut script = switched(&[B], &[A], paused());
    let id = script.read(0, 4096);
    script.answer(A, absent());
    script.seal(B, 1, 1, false);
    let (late, _) = script.asked(A);
    script.wait(3);
    let request = script.answer(B, absent());
    assert!(matches!(request, Request::Read { below, .. } if below == three()));
    assert_eq!(script.is_done(id), Some(Ok(())));
    script.event(Event::Reply {
        call: late,
        reply: copied(1),
    });
}

#[test]
fn a_hole_of_an_extent_that_was_filled_is_known_near() {
    let mut script = switched(&[B], &[A], FillOrders::default());
    script.seal(B, 1, 1, false);
    script.answer(B, surveyed(&[]));
    let (_, request) = script.asked(A);
    assert!(matches!(request, Request::Sync { .. }), "{request:?}");
    let id = script.read(0, 4096);
    script.answer(A, absent());
    assert_eq!(script.is_done(id), Some(Ok(())));
    assert_eq!(script.writer.progress().near_blocks, 1);
}

#[test]
fn a_move_is_cancelled_by_switching_back() {
    let mut script = switched(&[B], &[A], paused());
    script.orders(&[(0, 4, &[B])], paused());
    script.seal(B, 1, 1, false);
    script.answer(A, Reply::Synced);
    assert!(matches!(script.commit(), Change::Switch { .. }));
    // B joins again, above what it holds; A is asked for what was written meanwhile.
    let from = [4, 3, 1].map(Epoch::from_u64);
    let history = &script.record.map[0].history;
    let entries: Vec<Epoch> = history.0.iter().map(|entry| entry.from).collect();
    assert_eq!(entries, from);
    assert_eq!(history.older(from[0]), Some(from[1]));
}

#[test]
fn a_member_that_others_are_filled_from_may_be_ejected_and_is_still_asked() {
    let mut script = switched(&[B], &[B, A], paused());
    let id = script.write(0, 4096, 1);
    script.answer(A, Reply::WRITTEN);
    let now = Incarnation(2);
    script.answer(B, Reply::Refused(Refusal::OtherIncarnation { now }));
    assert!(matches!(script.commit(), Change::Eject { stores, .. } if stores == [B]));
    script.seal(A, 1, 3, false);
    script.answer(A, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));
    let history = &script.record.map[0].history;
    assert_eq!(
        history.0[1],
        Entry::whole(Epoch::from_u64(1), [B]).sealed(three())
    );
    script.read(4096, 4096);
    script.answer(A, absent());
    script.seal(B, 2, 1, true);
    let (_, request) = script.asked(A);
    assert!(matches!(request, Request::Pull { below, .. } if below == three()));
}

#[test]
fn who_leaves_before_it_is_whole_leaves_nothing_to_be_kept_for_it() {
    let mut script = switched(&[A], &[A, B], paused());
    script.write(0, 4096, 1);
    script.answer(A, Reply::WRITTEN);
    let now = Incarnation(2);
    script.answer(B, Reply::Refused(Refusal::OtherIncarnation { now }));
    assert!(matches!(script.commit(), Change::Eject { stores, .. } if stores == [B]));
    script.seal(A, 1, 1, false);
    let request = script.answer(A, Reply::Collapsed);
    assert!(
        matches!(request, Request::Collapse { extents, oldest, .. }
            if (extents, oldest) == (all(), script.record.epoch)),
        "{request:?}"
    );
}

#[test]
fn who_takes_over_lets_go_of_what_was_kept_for_one_that_is_gone() {
    let record = switched(&[A], &[A, B], paused()).record;
    let mut script = Script::taking_over(record);
    script.seal(A, 1, 1, false);
    script.wait(6);
    assert!(matches!(
        script.answer(A, Reply::KEPT),
        Request::Keep { .. }
    ));
    script.answer(A, Reply::Synced);
    let change = script.commit();
    assert!(matches!(change, Change::Settle { drop, .. } if drop == [B]));
    assert!(script.writer.is_serving());
    let request = script.answer(A, Reply::Collapsed);
    assert!(matches!(request, Request::Collapse { oldest, .. } if oldest == script.record.epoch));
}

#[test]
fn a_member_that_cannot_keep_what_a_new_one_needs_stays_and_the_new_one_leaves() {
    let mut script = Script::open(&[A, B]);
    script.orders(&[(0, 4, &[A, B, C])], paused());
    script.seal(C, 1, 0, false);
    for store in [A, B] {
        script.answer(store, Reply::Synced);
    }
    assert!(matches!(script.commit(), Change::Switch { .. }));
    for store in [A, B] {
        script.seal(store, 1, 1, false);
    }
    let why = "it keeps too much already";
    let request = script.answer(A, Reply::Refused(Refusal::Invalid { why }));
    assert!(matches!(request, Request::Keep { .. }), "{request:?}");
    assert!(matches!(script.commit(), Change::Eject { stores, .. } if stores == [C]));
    script.asked.clear();
    for store in [A, B] {
        script.event(Event::Disconnected { store });
        script.event(Event::Connected { store });
        script.seal(store, 1, 1, false);
    }
    assert!(script.writer.is_serving());
    for store in [A, B] {
        let request = script.answer(store, Reply::Collapsed);
        assert!(matches!(request, Request::Collapse { .. }), "{request:?}");
    }
}

#[test]
fn a_live_store_is_asked_without_a_bound() {
    // It may have let go of what stood there before, and holds whatever came since.
    let mut script = switched(&[B], &[B, A], paused());
    script.read(0, 4096);
    script.answer(A, absent());
    let (_, request) = script.asked(A);
    assert!(matches!(request, Request::Pull { from, below, .. }
        if (from, below) == (Epoch::from_u64(1), Epoch::MAX)));
}

#[test]
fn the_limit_is_kept_and_a_full_store_is_said_and_tried_again() {
    let fill = FillOrders {
        bytes_per_second: Some(1 << 20),
        ..FillOrders::default()
    };
    let mut script = switched(&[B], &[A], fill);
    script.wait(1);
    script.seal(B, 1, 1, false);
    script.answer(B, surveyed(&[(0, 1024)]));
    let (free, needed) = (0, 1);
    script.answer(A, Reply::Refused(Refusal::Full { free, needed }));
    assert_eq!(script.writer.hindrance(), Some(&Hindrance::Full(A)));
    assert_eq!(script.writer.stall(), None);
    let mut pulls = 0;
    let began = script.now;
    while pulls < 4 {
        script.wait(1);
        while script.is_asked(B) {
            script.answer(B, surveyed(&[(0, 1024)]));
        }
        while script.is_asked(A) {
            script.answer(A, copied(256));
            pulls += 1;
        }
        assert!(script.now < began + Duration::from_secs(30), "{pulls}");
    }
    assert!(script.now >= began + Duration::from_secs(3));
    assert_eq!(script.writer.hindrance(), None);
}

/// What A is asked to pull now.
fn pulls(script: &Script) -> usize {
    let asked = script.asked.iter();
    asked
        .filter(|(to, _, request)| *to == A && matches!(request, Request::Pull { .. }))
        .count()
}

#[test]
fn what_is_paused_begins_no_pull_and_goes_on_when_it_is_resumed() {
    let order = |script: &mut Script, fill| script.orders(&[(0, 4, &[A])], fill);
    let mut script = switched(&[B], &[A], FillOrders::default());
    script.seal(B, 1, 1, false);
    order(&mut script, paused());
    // Each too far from the next to be pulled with it.
    let runs: Vec<(u64, u32)> = (0..20).map(|i| (i * 20, 1)).collect();
    script.answer(B, surveyed(&runs));
    script.wait(60);
    assert_eq!(pulls(&script), 0);
    order(&mut script, FillOrders::default());
    assert_eq!(pulls(&script), 8);
    script.answer(A, copied(1));
    assert_eq!(pulls(&script), 8);
    order(&mut script, paused());
    for left in (0..8).rev() {
        script.answer(A, copied(1));
        assert_eq!(pulls(&script), left, "no other one begins");
    }
    script.wait(60);
    assert!(script.asked.is_empty());
    order(&mut script, FillOrders::default());
    for _ in 9..20 {
        script.answer(A, copied(1));
    }
    script.answer(A, Reply::Synced);
    assert!(matches!(script.commit(), Change::Complete { .. }));
}

#[test]
fn who_stops_begins_no_pull() {
    let mut script = switched(&[B], &[A], FillOrders::default());
    script.seal(B, 1, 1, false);
    let runs: Vec<(u64, u32)> = (0..20).map(|i| (i * 20, 1)).collect();
    script.answer(B, surveyed(&runs));
    script.event(Event::Stop { successor: None });
    for left in (0..8).rev() {
        script.answer(A, copied(1));
        assert_eq!(pulls(&script), left);
    }
    script.answer(A, Reply::Synced);
    assert!(matches!(script.commit(), Change::Close { .. }));
}

/// How long the disk's 4 MiB take at 1 MiB/s, beside a guest that writes all the time or not at all.
fn time_to_fill(yields: bool, guest_writes: bool) -> Duration {
    let fill = FillOrders {
        bytes_per_second: Some(1 << 20),
        yields,
        ..FillOrders::default()
    };
    let mut script = switched(&[B], &[A], fill);
    script.seal(B, 1, 1, false);
    let (began, mut pulls) = (script.now, 0);
    while pulls < 4 {
        if guest_writes {
            script.write(0, 4096, 1);
        }
        while script.is_asked(B) {
            script.answer(B, surveyed(&[(0, 1024)]));
        }
        while script.is_asked(A) {
            let (call, request) = script.asked(A);
            let reply = match request {
                Request::Pull { blocks, .. } => {
                    pulls += 1;
                    copied(blocks.count)
                }
                _ => Reply::WRITTEN,
            };
            script.event(Event::Reply { call, reply });
        }
        script.now = script.now + Duration::from_millis(50);
        script.event(Event::Timeout);
        assert!(script.now < began + Duration::from_secs(60), "{pulls}");
    }
    script.now.0 - began.0
}

#[test]
fn filling_takes_half_of_its_limit_beside_a_busy_guest() {
    let alone = time_to_fill(true, false);
    assert!(alone >= Duration::from_millis(1900), "{alone:?}");
    let beside = time_to_fill(true, true);
    assert!(beside >= alone * 17 / 10, "{beside:?} {alone:?}");
    assert_eq!(time_to_fill(false, true), alone, "an operator's own limit");
}

#[test]
fn who_stands_by_connects_to_all_that_will_be_asked_first() {
    let mut script = Script::new(used(&[B, C]));
    let mut connected = Vec::new();
    let stores = vec![A, D];
    let sets = vec![NewSet {
        extents: all(),
        stores,
    }];
    let orders = Orders {
        sets,
        ..Orders::default()
    };
    script.writer.handle(script.now, Event::Orders(orders));
    let mut sources = Vec::new();
    while let Some(effect) = script.writer.poll() {
        match effect {
            Effect::Connect { store } => connected.push(store),
            Effect::PrepareToPull { store } => sources.push(store),
            other => panic!("it only stands by: {other:?}"),
        }
    }
    connected.sort_unstable();
    assert_eq!(connected, [A, B, C, D]);
    assert_eq!(sources, [B, C]);
}

#[test]
fn another_source_is_asked_where_one_is_away() {
    let mut script = switched(&[B, C], &[A], FillOrders::default());
    let from = if script.is_asked(B) { B } else { C };
    let other = if from == B { C } else { B };
    script.seal(from, 1, 1, false);
    script.answer(from, surveyed(&[(0, 1)]));
    script.answer(A, Reply::Refused(Refusal::Source(SourceFault::Away)));
    script.wait(1);
    script.seal(other, 1, 1, false);
    script.answer(other, surveyed(&[(0, 1)]));
    let request = script.answer(A, copied(1));
    assert!(matches!(request, Request::Pull { source, .. } if source.store == other));
    script.answer(A, Reply::Synced);
    assert!(matches!(script.commit(), Change::Complete { .. }));
}

/// Each of two copies is damaged in another block: no pull of both blocks can come from one of them.
#[test]
fn what_is_damaged_at_one_source_comes_from_the_other_and_all_else_from_the_first() {
    let mut script = switched(&[B, C], &[A], FillOrders::default());
    let from = if script.is_asked(B) { B } else { C };
    let other = if from == B { C } else { B };
    let useless = || Reply::Refused(Refusal::Source(SourceFault::Useless));
    let pulled = |request: Request| match request {
        Request::Pull { source, blocks, .. } => (source.store, blocks.first.0, blocks.count),
        other => panic!("{other:?}"),
    };
    script.seal(from, 1, 1, false);
    script.answer(from, surveyed(&[(0, 3)]));
    assert_eq!(pulled(script.answer(A, useless())), (from, 0, 3));
    // The first half and the second, of which the last block is the damaged one.
    assert_eq!(pulled(script.answer(A, copied(1))), (from, 0, 1));
    assert_eq!(pulled(script.answer(A, useless())), (from, 1, 2));
    assert_eq!(pulled(script.answer(A, copied(1))), (from, 1, 1));
    assert_eq!(pulled(script.answer(A, useless())), (from, 2, 1));
    script.seal(other, 1, 1, false);
    script.answer(other, surveyed(&[(0, 3)]));
    // What is there already is not fetched again, so that it does not matter what is damaged over there.
    assert_eq!(pulled(script.answer(A, copied(1))), (other, 0, 3));
    script.answer(A, Reply::Synced);
    assert!(matches!(script.commit(), Change::Complete { .. }));
}

#[test]
fn a_source_that_never_gives_what_it_has_is_said() {
    let mut script = switched(&[B], &[A], FillOrders::default());
    script.seal(B, 1, 1, false);
    let patience = Config::default().settle_patience;
    let began = script.now;
    while script.writer.hindrance().is_none() {
        while script.is_asked(B) {
            script.answer(B, surveyed(&[(0, 1)]));
        }
        while script.is_asked(A) {
            script.answer(A, Reply::Refused(Refusal::Source(SourceFault::Useless)));
        }
        script.wait(1);
        assert!(script.now <= began + patience * 3, "it tries for ever");
    }
    let hindrance = script.writer.hindrance();
    assert_eq!(hindrance, Some(&Hindrance::NoSource(vec![B])));
}

/// In epoch 2 A is to have all; each extent has one source, of which B and D are away.
fn sources_away() -> Script {
    let mut record = used(&[C]);
    record.bytes = 5 * EXTENT;
    (record.epoch, record.even_below, record.revision) = (two(), two(), Revision(7));
    let range = |(i, store): (usize, &StoreId)| MapRange {
        extents: Extents::new(Extent(i as u32), Extent(i as u32 + 1)),
        history: History(vec![
            Entry::new(two(), [A]),
            Entry::whole(Epoch::from_u64(1), [*store]).sealed(two()),
        ]),
    };
    record.map = [B, D, B, D, C].iter().enumerate().map(range).collect();
    record.check().unwrap();
    let mut script = Script::new(record);
    script.start(TakeOver::Own);
    script.commit();
    for store in [B, D] {
        script.event(Event::Disconnected { store });
        script.asked.retain(|(to, ..)| *to != store);
    }
    script.seal(A, 1, 2, false);
    script
}

#[test]
fn what_nobody_gives_now_keeps_nothing_else_from_being_filled() {
    let mut script = sources_away();
    script.seal(C, 1, 1, false);
    let request = script.answer(C, surveyed(&[(1024, 1)]));
    assert!(matches!(request, Request::Survey { .. }), "{request:?}");
    script.answer(A, copied(1));
    assert_eq!(script.writer.progress().extents_done, 1);
    script.wait(10);
    let missing = script.writer.hindrance();
    assert!(matches!(missing, Some(Hindrance::NoSource(_))));
    // As soon as one is back it is asked.
    script.event(Event::Connected { store: B });
    script.seal(B, 1, 1, false);
    for _ in 0..2 {
        script.answer(B, surveyed(&[]));
    }
    assert_eq!(script.writer.progress().extents_done, 3);
}

#[test]
fn a_copy_ahead_that_was_deleted_begins_anew_and_its_store_is_not_lost() {
    let mut script = Script::open(&[A]);
    let seed = vec![NewSet {
        extents: all(),
        stores: vec![C],
    }];
    script.event(Event::Orders(Orders {
        seed,
        ..Orders::default()
    }));
    script.seal(C, 1, 0, false);
    script.answer(C, Reply::Refused(Refusal::NoReplica));
    script.answer(C, Reply::JOINED);
    script.answer(A, surveyed(&[(0, 1)]));
    let request = script.answer(C, Reply::Refused(Refusal::NoReplica));
    assert!(matches!(request, Request::Pull { .. }), "{request:?}");
    script.wait(1);
    // Asked in the same session: it was not taken for another incarnation.
    script.answer(C, Reply::Refused(Refusal::NoReplica));
    let request = script.answer(C, Reply::JOINED);
    assert!(matches!(request, Request::Join { .. }), "{request:?}");
    script.answer(A, surveyed(&[(0, 1)]));
    let request = script.answer(C, copied(1));
    assert!(matches!(request, Request::Pull { .. }), "{request:?}");
    assert!(script.writer.is_serving() && script.swaps.is_empty());
}

/// Each was shown another grant of the epoch, say.
#[test]
fn where_a_source_does_not_take_what_is_quoted_both_stores_are_shown_the_epoch_once_more() {
    let mut script = Script::open(&[A]);
    let seed = vec![NewSet {
        extents: all(),
        stores: vec![C],
    }];
    script.event(Event::Orders(Orders {
        seed,
        ..Orders::default()
    }));
    script.seal(C, 1, 0, false);
    script.answer(C, Reply::Refused(Refusal::NoReplica));
    script.answer(C, Reply::JOINED);
    script.answer(A, surveyed(&[(0, 1)]));
    let unsealed = Reply::Refused(Refusal::Source(SourceFault::Unsealed));
    let request = script.answer(C, unsealed);
    assert!(matches!(request, Request::Pull { .. }), "{request:?}");
    for store in [C, A] {
        script.seal(store, 1, 1, false);
    }
    script.wait(1);
    script.answer(A, surveyed(&[(0, 1)]));
    let request = script.answer(C, copied(1));
    assert!(matches!(request, Request::Pull { .. }), "{request:?}");
    assert!(script.writer.is_serving() && script.swaps.is_empty());
}

#[test]
fn a_copy_ahead_joins_nothing_and_is_pulled_like_any_other() {
    let mut script = Script::open(&[A]);
    let seed = vec![NewSet {
        extents: all(),
        stores: vec![C],
    }];
    script.event(Event::Orders(Orders {
        seed,
        ..Orders::default()
    }));
    script.seal(C, 1, 0, false);
    script.answer(C, Reply::Refused(Refusal::NoReplica));
    let request = script.answer(C, Reply::JOINED);
    assert!(matches!(request, Request::Join { from, .. } if from == two()));
    script.answer(A, surveyed(&[(0, 2)]));
    let request = script.answer(C, copied(2));
    assert!(matches!(request, Request::Pull { source, .. } if source.store == A));
    let progress = script.writer.progress();
    assert_eq!((progress.seed_extents, progress.seed_extents_done), (4, 4));
    script.wait(60);
    assert!(script.swaps.is_empty() && script.asked.is_empty());
    assert_eq!(script.record.members(), [A]);
}

#[test]
fn an_attach_takes_the_ordered_members_if_they_are_there() {
    let mut script = Script::new(used(&[B]));
    script.orders(&[(0, 4, &[A])], paused());
    script.start(TakeOver::Own);
    assert!(matches!(script.commit(), Change::Attach { sets, .. } if sets.len() == 1));
    script.seal(A, 1, 0, false);
    script.answer(A, Reply::JOINED);
    assert!(script.writer.is_serving());
    assert_eq!(script.record.members(), [A]);
}
