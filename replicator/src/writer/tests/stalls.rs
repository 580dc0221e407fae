//! What the guest waits for, until when, and how it goes on.

use super::*;

fn unknown(script: &mut Script) {
    let (call, ..) = script.swaps.pop_front().expect("a swap is asked for");
    let outcome = SwapOutcome::Unknown;
    script.event(Event::Swapped { call, outcome });
}

fn with(stores: &[StoreId], change: impl FnOnce(&mut Config)) -> Script {
    let mut script = Script::new(disk(stores));
    let mut config = Config {
        near: Some(A),
        ..Config::default()
    };
    change(&mut config);
    script.writer = Writer::new(config, owner(1), script.record.clone());
    script.start(TakeOver::Own);
    script.commit();
    for store in stores {
        script.seal(*store, 1, 1, false);
    }
    assert!(script.writer.is_serving());
    script
}

fn min_copies(script: &mut Script, min_copies: u8) {
    script.event(Event::Orders(Orders {
        min_copies,
        ..Orders::default()
    }));
}

#[test]
fn a_silent_member_is_ejected_two_seconds_after_the_others_answered() {
    let mut script = Script::open(&[A, B]);
    let id = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    script.wait(1);
    assert!(script.swaps.is_empty());
    script.wait(2);
    let change = script.commit();
    assert!(matches!(change, Change::Eject { stores, .. } if stores == [B]));
    script.seal(A, 1, 1, false);
    script.asked.retain(|(to, ..)| *to == A);
    script.answer(A, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));
    let ends = script.completed.iter().filter(|(done, _)| *done == id);
    assert_eq!(ends.count(), 1, "what was in flight completes once");
}

#[test]
fn members_that_sync_equally_slowly_eject_nobody() {
    let mut script = Script::open(&[A, B, C]);
    let flush = script.guest(GuestOp::Flush);
    script.wait(20);
    assert!(matches!(script.writer.stall(), Some(Stall::LastMembers(_))));
    script.answer(A, Reply::Synced);
    script.wait(1);
    script.answer(B, Reply::Synced);
    script.answer(C, Reply::Synced);
    assert_eq!(script.is_done(flush), Some(Ok(())));
    assert!(script.swaps.is_empty(), "nobody was ejected");
    assert_eq!(script.writer.stall(), None);
}

#[test]
fn without_the_placement_service_the_guest_goes_on_when_the_store_comes_back() {
    let mut script = Script::open(&[A, B]);
    let first = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    script.wait(3);
    unknown(&mut script);
    assert_eq!(script.writer.stall(), Some(&Stall::PlacementAway));
    let second = script.write(8192, 4096, 8);
    assert!(!script.is_asked(A), "new writes wait for the next epoch");
    script.answer(B, Reply::WRITTEN);
    assert_eq!(script.is_done(first), Some(Ok(())));
    assert_eq!(script.writer.stall(), None);
    let flush = script.guest(GuestOp::Flush);
    for store in [A, B] {
        script.answer(store, Reply::WRITTEN);
        script.answer(store, Reply::Synced);
    }
    assert_eq!(script.is_done(second), Some(Ok(())));
    assert_eq!(script.is_done(flush), Some(Ok(())));
    // The swap may have happened: it is asked again until that is known.
    let third = script.write(0, 4096, 9);
    script.answer(A, Reply::WRITTEN);
    script.wait(1);
    script.commit();
    script.seal(A, 1, 1, false);
    script.asked.retain(|(to, ..)| *to == A);
    let request = script.answer(A, Reply::WRITTEN);
    assert_eq!(Script::version(&request), (3, 1), "W7");
    assert_eq!(script.is_done(third), Some(Ok(())));
}

#[test]
fn without_the_placement_service_the_guest_goes_on_when_the_service_comes_back() {
    let mut script = Script::open(&[A, B]);
    let id = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    script.wait(3);
    for _ in 0..50 {
        unknown(&mut script);
        script.wait(1);
    }
    assert_eq!(script.writer.stall(), Some(&Stall::PlacementAway));
    assert_eq!(script.is_done(id), None);
    script.commit();
    script.seal(A, 1, 1, false);
    script.asked.retain(|(to, ..)| *to == A);
    script.answer(A, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));
    assert_eq!(script.writer.stall(), None);
}

#[test]
fn a_take_over_that_waits_for_copies_goes_on_when_fewer_are_asked_for() {
    let mut script = Script::new(left_open(&[A, B]));
    min_copies(&mut script, 2);
    script.take_over();
    script.seal(A, 1, 1, false);
    script.wait(60);
    assert_eq!(script.writer.stall(), Some(&Stall::SettleWaits(vec![B])));
    min_copies(&mut script, 1);
    script.answer(A, Reply::Synced);
    let change = script.commit();
    assert!(matches!(change, Change::Settle { drop, .. } if drop == [B]));
    assert!(script.writer.is_serving());
    assert_eq!(script.writer.stall(), None);
}

#[test]
fn an_ejection_that_leaves_too_few_copies_is_not_made() {
    let mut script = Script::open(&[A, B]);
    min_copies(&mut script, 2);
    let id = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    script.wait(60);
    assert!(script.swaps.is_empty());
    let stores = vec![B];
    let stall = Stall::TooFewCopies { stores, least: 2 };
    assert_eq!(script.writer.stall(), Some(&stall));
    assert_eq!(script.is_done(id), None);
    // The operator asks for less.
    min_copies(&mut script, 1);
    script.commit();
    script.seal(A, 1, 1, false);
    script.asked.retain(|(to, ..)| *to == A);
    script.answer(A, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));

    let mut script = Script::open(&[A, B, C]);
    min_copies(&mut script, 2);
    let id = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    script.answer(B, Reply::WRITTEN);
    script.wait(3);
    assert!(matches!(script.commit(), Change::Eject { stores, .. } if stores == [C]));
    for store in [A, B] {
        script.seal(store, 1, 1, false);
    }
    script.asked.retain(|(to, ..)| *to != C);
    script.answer(A, Reply::WRITTEN);
    script.wait(60);
    assert!(script.swaps.is_empty(), "the next one stays");
    script.answer(B, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));
    assert_eq!(script.writer.stall(), None);
}

#[test]
fn a_take_over_waits_where_too_few_copies_would_be_left() {
    let start = |least| {
        let mut script = Script::new(left_open(&[A, B]));
        min_copies(&mut script, least);
        script.start(TakeOver::Ordered);
        let (call, record) = (script.inspections.remove(0), script.record.clone());
        let record = Some(Box::new(record));
        script.event(Event::Inspected { call, record });
        script.commit();
        script.seal(A, 1, 1, false);
        script.wait(6);
        script
    };
    let mut one = start(1);
    one.answer(A, Reply::Synced);
    assert!(matches!(one.commit(), Change::Settle { drop, .. } if drop == [B]));

    let mut two = start(2);
    assert_eq!(two.writer.stall(), Some(&Stall::SettleWaits(vec![B])));
    // It is back, without its tail: it is made even rather than left out.
    two.seal(B, 1, 1, true);
    for store in [A, B] {
        let (blocks, more) = (vec![], false);
        two.answer(store, Reply::Listed { blocks, more });
    }
    for store in [A, B] {
        two.answer(store, Reply::Synced);
    }
    assert!(matches!(two.commit(), Change::Settle { drop, .. } if drop.is_empty()));
}

fn five_seconds(config: &mut Config) {
    config.stall_deadline = Some(Duration::from_secs(5));
    config.eject_after = None;
}

/// The store does all that it was asked; what the writes brought.
fn answer_all(script: &mut Script, store: StoreId) -> Vec<u8> {
    let mut seen = Vec::new();
    while let Some(at) = script.asked.iter().position(|(to, ..)| *to == store) {
        let (_, call, request) = script.asked.remove(at).unwrap();
        let reply = match request {
            Request::Write { content, .. } => {
                if let Content::Data(payload) = content {
                    seen.push(payload.data[0]);
                }
                Reply::WRITTEN
            }
            Request::Sync { .. } => Reply::Synced,
            other => panic!("{other:?}"),
        };
        script.event(Event::Reply { call, reply });
    }
    seen
}

#[test]
fn a_stall_becomes_an_error_only_if_asked() {
    let mut script = with(&[A, B], |config| config.eject_after = None);
    let id = script.write(0, 4096, 7);
    script.wait(3600);
    assert_eq!(script.is_done(id), None);
}

#[test]
fn what_waits_too_long_fails_and_keeps_its_place() {
    let mut script = with(&[A, B], five_seconds);
    let late = script.write(0, 4096, 7);
    let flush = script.guest(GuestOp::Flush);
    script.answer(A, Reply::WRITTEN);
    script.wait(4);
    let behind = script.write(0, 4096, 8);
    let read = script.read(0, 4096);
    script.wait(2);
    assert_eq!(script.is_done(late), Some(Err(Failure::TooLate)));
    assert_eq!(script.is_done(flush), Some(Err(Failure::TooLate)));
    assert_eq!((script.is_done(behind), script.is_done(read)), (None, None));
    script.wait(5);
    assert_eq!(script.is_done(behind), Some(Err(Failure::TooLate)));
    assert_eq!(script.is_done(read), Some(Err(Failure::TooLate)));
    // A third one to the same block, and the store is back.
    let after = script.write(0, 4096, 9);
    let mut seen = Vec::new();
    while script.is_asked(B) || script.is_asked(A) {
        answer_all(&mut script, A);
        seen.extend(answer_all(&mut script, B));
    }
    assert_eq!(seen, [7, 8, 9], "in the order in which they came");
    assert_eq!(script.is_done(after), Some(Ok(())));
    let ends = script.completed.iter().filter(|(done, _)| *done == late);
    assert_eq!(ends.count(), 1, "it is never acknowledged");
    assert_eq!(script.writer.room(), Config::default().max_in_flight_bytes);
}

#[test]
fn a_request_that_never_began_fails_too_and_leaves_nothing_behind() {
    let config = Config {
        stall_deadline: Some(Duration::from_secs(5)),
        ..Config::default()
    };
    let mut script = Script::new(disk(&[A]));
    script.writer = Writer::new(config, owner(1), script.record.clone());
    script.start(TakeOver::Own);
    let id = script.write(0, 4096, 7);
    script.wait(6);
    assert_eq!(script.is_done(id), Some(Err(Failure::TooLate)));
    script.commit();
    script.seal(A, 1, 1, false);
    assert!(script.writer.is_serving() && !script.is_asked(A));
}

#[test]
fn writes_that_failed_are_bounded_in_memory() {
    let mut script = with(&[A, B], |config| {
        five_seconds(config);
        config.max_in_flight_bytes = 16384;
    });
    let late: Vec<RequestId> = (0..4).map(|i| script.write(i * 4096, 4096, 1)).collect();
    assert_eq!(script.writer.room(), 0);
    script.wait(6);
    assert!(
        late.iter()
            .all(|id| script.is_done(*id) == Some(Err(Failure::TooLate)))
    );
    assert_eq!(
        script.writer.room(),
        16384,
        "the guest may fail further writes"
    );
    let refused = script.write(0, 4096, 2);
    assert_eq!(
        script.is_done(refused),
        Some(Err(Failure::TooLate)),
        "at once"
    );
    for _ in 0..4 {
        script.answer(A, Reply::WRITTEN);
        script.answer(B, Reply::WRITTEN);
    }
    let id = script.write(0, 4096, 2);
    script.answer(A, Reply::WRITTEN);
    script.answer(B, Reply::WRITTEN);
    assert_eq!(script.is_done(id), Some(Ok(())));
}

#[test]
fn a_late_read_that_may_still_land_is_withdrawn_first() {
    let mut script = with(&[A, B], five_seconds);
    let read = script.read(0, 4096);
    let (call, _) = script.asked(A);
    script.wait(1);
    // It is asked of the other one meanwhile; that does not answer either.
    if script.other.contains(&Effect::Withdraw { call }) {
        script.event(Event::Withdrawn { call });
    }
    let (call, _) = script.asked(B);
    script.wait(6);
    assert!(script.other.contains(&Effect::Withdraw { call }));
    assert_eq!(script.is_done(read), None, "R5");
    script.event(Event::Withdrawn { call });
    assert_eq!(script.is_done(read), Some(Err(Failure::TooLate)));
}

#[test]
fn a_store_that_let_a_read_wait_is_not_the_first_to_be_asked_for_a_while() {
    let mut script = Script::open(&[A, B]);
    script.read(0, 4096);
    let (call, _) = script.asked(A);
    script.wait(2);
    script.event(Event::Withdrawn { call });
    script.asked(B);
    script.read(8192, 4096);
    script.asked(B);
    script.wait(20);
    script.read(16384, 4096);
    script.asked(A);
}

/// Another writer takes the disk over, without a store that it cannot reach.
fn taken_over(script: &mut Script) {
    let (other, by) = (owner(2), (owner(2).backend, owner(2).life));
    for change in [
        Change::TakeOver { owner: other },
        Change::Settle { by, drop: vec![A] },
    ] {
        script.record = script.record.apply(G, &change).unwrap();
    }
}

#[test]
fn who_was_cut_off_acknowledges_nothing_and_its_guest_gets_errors() {
    let mut script = Script::open(&[A, B]);
    taken_over(&mut script);
    // Its own store was never shown the new epoch, and takes all that it is sent.
    let write = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    let flush = script.guest(GuestOp::Flush);
    script.answer(A, Reply::Synced);
    // Cut off from the placement service too, it waits.
    script.wait(30);
    unknown(&mut script);
    assert_eq!(script.writer.stall(), Some(&Stall::PlacementAway));
    assert_eq!((script.is_done(write), script.is_done(flush)), (None, None));
    script.wait(1);
    let change = script.commit();
    assert!(matches!(change, Change::Eject { .. }), "{change:?}");
    for id in [write, flush] {
        assert_eq!(script.is_done(id), Some(Err(Failure::Superseded)));
    }
    let later = script.write(4096, 4096, 8);
    assert_eq!(script.is_done(later), Some(Err(Failure::Superseded)));
    let (call, _) = script.asked(B);
    script.event(Event::Reply {
        call,
        reply: Reply::WRITTEN,
    });
    assert!(script.completed.iter().all(|(_, result)| result.is_err()));
    assert!(!script.writer.is_serving());
}

#[test]
fn a_member_that_gets_every_write_damaged_is_ejected_and_one_that_got_it_once_is_not() {
    let mut script = Script::open(&[A, B]);
    let id = script.write(0, 4096, 7);
    script.answer(A, Reply::WRITTEN);
    script.answer(B, Reply::Refused(Refusal::BadChecksum));
    assert!(script.swaps.is_empty() && !script.is_asked(B));
    script.wait(1);
    script.answer(B, Reply::Refused(Refusal::BadChecksum));
    assert!(script.swaps.is_empty(), "it is sent once more");
    script.wait(2);
    script.answer(B, Reply::Refused(Refusal::BadChecksum));
    let change = script.commit();
    assert!(matches!(change, Change::Eject { stores, .. } if stores == [B]));
    assert_eq!(script.is_done(id), None, "the new epoch is opened first");
}

#[test]
fn a_grant_that_is_refused_for_long_is_a_stall_until_it_is_taken() {
    let mut script = Script::open(&[A]);
    let id = script.write(0, 4096, 7);
    let refused = || Reply::Refused(Refusal::NotGranted { why: "too old" });
    script.answer(A, refused());
    assert_eq!(script.writer.stall(), None);
    script.wait(3);
    script.answer(A, refused());
    assert_eq!(script.writer.stall(), Some(&Stall::NotGranted(A)));
    script.wait(1);
    script.answer(A, Reply::WRITTEN);
    assert_eq!(script.writer.stall(), None);
    assert_eq!(script.is_done(id), Some(Ok(())));
}
