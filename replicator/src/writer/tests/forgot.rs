//! A store that comes back in another session may have forgotten what it answered in the last one (rule S6).

use super::*;

const INCARNATION: Incarnation = Incarnation(1);

fn at(run: u64, at: u64) -> Reach {
    Reach { run, at }
}

fn sealed(reach: Reach) -> Reply {
    let replicas = vec![ReplicaState {
        extents: Extents::new(Extent(0), Extent(4)),
        from: Epoch::from_u64(1),
        lost: false,
    }];
    Reply::Sealed(Sealed {
        incarnation: INCARNATION,
        starts: Starts(1),
        watermark: Version::ZERO,
        reach,
        replicas,
    })
}

/// A disk on two stores that say how far they are.
fn open() -> Script {
    let mut script = Script::new(disk(&[A, B]));
    script.start(TakeOver::Own);
    script.commit();
    for store in [A, B] {
        script.answer(store, sealed(at(4, 100)));
    }
    assert!(script.writer.is_serving());
    script
}

/// What the store is asked first in its next session: to show that it is what it was.
fn comes_back(script: &mut Script, store: StoreId) -> Known {
    script.event(Event::Disconnected { store });
    script.asked.retain(|(to, ..)| *to != store);
    script.event(Event::Connected { store });
    let asked = script.asked.iter().filter(|(to, ..)| *to == store);
    let asked: Vec<_> = asked.map(|(.., request)| request.clone()).collect();
    match &asked[..] {
        [Request::Seal { known, .. }] => *known,
        other => panic!("only a seal comes before it is known: {other:?}"),
    }
}

#[test]
fn a_store_that_comes_back_is_asked_for_the_furthest_that_it_said_to_be() {
    let mut script = open();
    let id = script.write(0, 8192, 7);
    script.answer(A, Reply::Written(at(4, 140)));
    script.answer(B, Reply::Written(at(4, 130)));
    assert_eq!(script.is_done(id), Some(Ok(())));
    let waits = script.write(0, 4096, 8);
    script.answer(A, Reply::Written(at(4, 150)));
    let known = comes_back(&mut script, B);
    let expected = Known {
        incarnation: INCARNATION,
        reach: at(4, 130),
    };
    assert_eq!(known, expected);
    // It is another run of the same store; now it is sent what it has not answered.
    script.answer(B, sealed(at(5, 170)));
    script.answer(B, Reply::Written(at(5, 180)));
    assert_eq!(script.is_done(waits), Some(Ok(())));
    assert_eq!(comes_back(&mut script, B).reach, at(5, 180));
}

#[test]
fn one_that_has_forgotten_is_ejected_before_anything_counts_on_it() {
    let mut script = open();
    let id = script.write(0, 4096, 7);
    script.answer(A, Reply::Written(at(4, 140)));
    comes_back(&mut script, B);
    script.answer(B, Reply::Refused(Refusal::Forgot));
    let change = script.commit();
    assert!(matches!(change, Change::Eject { stores, .. } if stores == [B]));
    assert_eq!(script.is_done(id), None);
    script.answer(A, sealed(at(4, 150)));
    script.answer(A, Reply::Written(at(4, 160)));
    assert_eq!(script.is_done(id), Some(Ok(())));
    // Nobody expects anything of it any more: it may join like any other.
    assert_eq!(script.writer.peers[&B].known, Known::default());
}

#[test]
fn the_next_epoch_asks_for_it_too() {
    let mut script = open();
    let first = script.write(0, 4096, 7);
    for store in [A, B] {
        script.answer(store, Reply::Written(at(4, 140)));
    }
    assert_eq!(script.is_done(first), Some(Ok(())));
    // An epoch ends while it is away; its seal in the next one says what is known.
    comes_back(&mut script, B);
    script.writer.take_over_from_self();
    script.wait(1);
    script.asked.clear();
    script.commit();
    let (_, request) = script.asked(B);
    let Request::Seal { known, epoch, .. } = request else {
        panic!("a new epoch begins with seals: {request:?}");
    };
    assert_eq!(epoch, script.record.epoch);
    assert_eq!(known.reach, at(4, 140));
}

#[test]
fn a_store_that_says_nothing_is_asked_nothing() {
    let mut script = Script::open(&[A, B]);
    script.write(0, 4096, 7);
    script.event(Event::Disconnected { store: B });
    script.asked.retain(|(to, ..)| *to != B);
    script.event(Event::Connected { store: B });
    assert!(matches!(script.asked(B).1, Request::Write { .. }));
}
