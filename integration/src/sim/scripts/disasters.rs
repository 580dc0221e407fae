//! Disasters that other systems are known for, each as it would have to happen here.

use super::Told;
use super::verbs::{HERE, THERE};
use crate::sim::world::World;
use replicator::words::StoreId;
use replicator::writer::TakeOver;

fn id(w: &World, store: usize) -> StoreId {
    w.stores[store].id
}

/// Three copies and a writer that has none. One after another is cut off from it; the first ones return,
/// each as it was when it last heard, while the one that went on is away.
pub(super) fn believes_itself_current(w: &mut World, way: u64) -> Told {
    let [first, second, last] = match way % 3 {
        0 => [0, 1, 2],
        1 => [2, 0, 1],
        _ => [1, 2, 0],
    };
    w.order(&[0, 1, 2]);
    w.boot(1, None);
    w.start_with_orders(1, TakeOver::Own);
    w.serving(1)?;
    w.write(1, 0, 4)?;
    w.flush(1)?;
    w.cut(1, id(w, first));
    w.write(1, 1, 1)?;
    w.cut_between(id(w, first), id(w, last));
    w.cut(1, id(w, second));
    w.write(1, 2, 1)?;
    w.discard(1, 0, 1)?;
    if way.is_multiple_of(2) {
        w.flush(1)?;
    }
    // The one that has it all goes, and those that missed something are back.
    match way / 3 {
        0 => w.process_down(last),
        1 => w.power_off(last, 1.0),
        2 => w.power_off(last, 0.0),
        _ => w.cut(2, id(w, last)),
    }
    w.writer_dies(1);
    w.links.values_mut().for_each(|link| link.cut = false);
    if way / 3 == 3 {
        w.cut(2, id(w, last));
    }
    w.takes_over(2, false);
    w.must_wait(2, 100, "those that it reaches have missed writes")?;
    w.mend(2, id(w, last));
    w.up(last);
    w.serving(2)?;
    w.cut_stores.clear();
    w.read(2, 0, 4)?;
    w.settled()?;
    w.read(2, 0, 4)?;
    w.close(2)
}

/// Copies at the far site lag: they were out for a while, or were made ahead. Then the near site burns.
pub(super) fn taken_for_complete(w: &mut World, way: u64) -> Told {
    w.attach(0, &HERE)?;
    w.write(0, 0, 8)?;
    w.flush(0)?;
    let ahead = way >= 4;
    if ahead {
        let (extents, stores) = (w.disks[0].placement.record.extents(), w.ids(&THERE));
        w.disks[0].placement.goals.seed = vec![replicator::words::NewSet { extents, stores }];
        w.give_orders(0);
        let end = w.now + 200_000;
        w.run_until("it is copied ahead", 400_000, |w| w.now >= end)?;
    } else {
        w.order(&[0, 1, 2, 3]);
        w.settled()?;
    }
    for store in THERE {
        w.cut(0, id(w, store));
    }
    w.pause_fills(true);
    w.write(0, 1, 3)?;
    w.discard(0, 5, 1)?;
    w.flush(0)?;
    for store in THERE {
        w.mend(0, id(w, store));
    }
    let epoch = w.epoch();
    if way.is_multiple_of(2) {
        // They are members again, and lack what they missed.
        w.order(&[0, 1, 2, 3]);
        w.switched(0, epoch + 1)?;
        w.write(0, 6, 1)?;
    }
    if way % 4 < 2 {
        w.process_down(0);
        w.process_down(2);
    } else {
        w.power_off(0, 1.0);
        w.power_off(2, 1.0);
    }
    w.writer_dies(0);
    w.takes_over(1, true);
    if way.is_multiple_of(2) {
        // What they have they serve; what they lack must wait, not be zeroes or of yesterday.
        let end = w.now + 100_000;
        w.run_until("it has tried", 200_000, |w| w.now >= end)?;
        if w.serves(1) {
            w.issue_read(1, World::span(0, 8));
            let end = w.now + 100_000;
            w.run_until("it waits", 200_000, |w| w.now >= end)?;
        }
    } else {
        w.must_wait(1, 100, "all that it reaches have missed writes")?;
    }
    w.up(0);
    w.up(2);
    w.open(1)?;
    w.done(1)?;
    w.read(1, 0, 8)?;
    w.pause_fills(false);
    w.order(&THERE);
    w.settled()?;
    w.read(1, 0, 8)?;
    w.close(1)
}

/// The one that left holds more, and was started later and more often, than the one that went on.
pub(super) fn larger_and_later(w: &mut World, way: u64) -> Told {
    let s2 = id(w, 2);
    w.attach(0, &[0])?;
    w.write(0, 0, 4)?;
    w.flush(0)?;
    w.order(&HERE);
    w.settled()?;
    for _ in 0..6 {
        w.write(0, 4, 12)?;
    }
    w.cut(0, s2);
    w.write(0, 1, 1)?;
    w.discard(0, 4, 12)?;
    if way.is_multiple_of(2) {
        w.flush(0)?;
    }
    for store in 0..4 {
        match way % 4 {
            0 | 1 => w.process_down(store),
            2 => w.power_off(store, 1.0),
            _ => w.power_off(store, 0.0),
        }
    }
    w.writer_dies(0);
    w.mend(0, s2);
    for _ in 0..3 {
        w.up(2);
        w.process_down(2);
    }
    w.up(2);
    w.takes_over(1, way >= 4);
    w.must_wait(1, 100, "the larger and later copy has missed writes")?;
    w.up(1);
    w.up(3);
    w.must_wait(1, 50, "the larger and later copy has missed writes")?;
    w.up(0);
    w.serving(1)?;
    w.read(1, 0, 16)?;
    w.settled()?;
    w.read(1, 0, 16)?;
    w.close(1)
}

/// Guests write what is being copied at that moment, while answers of the copying are late and doubled.
pub(super) fn rebuilt_while_written(w: &mut World, way: u64) -> Told {
    w.attach(0, &HERE)?;
    w.write(0, 0, 12)?;
    w.flush(0)?;
    w.faults.fetch_slow = 0.4;
    w.faults.fetch_double = 0.5;
    let epoch = w.epoch();
    w.order(&[0, 1, 2]);
    w.switched(0, epoch + 1)?;
    for block in 0..10 {
        w.issue_write(0, World::span((block * 5 + way) % 11, 2), block % 4 == 3);
        w.events(way % 9)?;
        if block == 5 && way.is_multiple_of(3) {
            // And the one that is copied from goes.
            w.power_lost(2);
        }
        if block == 7 && way % 5 == 1 {
            w.crash_unseen(1);
        }
    }
    w.done(0)?;
    w.order(&[0, 1, 2]);
    w.settled()?;
    w.faults.fetch_slow = 0.0;
    w.faults.fetch_double = 0.0;
    w.order(&[1]);
    w.settled()?;
    w.read(0, 0, 13)?;
    w.close(0)
}

/// The store that fenced the old writer loses power right after it did; the old writer repeats itself.
pub(super) fn replay_after_forgetting(w: &mut World, way: u64) -> Told {
    let s2 = id(w, 2);
    w.temper.ejects = false;
    w.attach(0, &[2])?;
    w.write(0, 0, 4)?;
    w.flush(0)?;
    // It goes on trying, and is not heard.
    w.cut(0, s2);
    w.issue_write(0, World::span(1, 1), false);
    w.issue_write(0, World::span(2, 1), true);
    w.takes_over(1, false);
    w.serving(1)?;
    let answered = w.now;
    w.events(way % 6)?;
    assert!(w.now >= answered);
    if way.is_multiple_of(2) {
        w.crash_unseen(2);
    } else {
        w.stores[2].survive = Some(0.0);
        w.store_dies(2, true);
        w.up(2);
    }
    w.mend(0, s2);
    w.events(way)?;
    w.done(0)?;
    // The only member has lost its tail: nobody but a take-over may go on with what is left.
    w.writer_dies(1);
    w.open(1)?;
    w.read(1, 0, 4)?;
    w.write(1, 3, 1)?;
    w.close(1)
}

/// What the source had acknowledged is on media before the destination opens, whatever burns then.
pub(super) fn hand_over_unsynced(w: &mut World, way: u64) -> Told {
    w.attach(0, &HERE)?;
    w.write(0, 0, 8)?;
    w.discard(0, 3, 1)?;
    if way.is_multiple_of(2) {
        w.order(&THERE);
    }
    w.issue_write(0, World::span(5, 2), false);
    w.stops(0);
    w.run_until("it closes", 500_000, |w| !w.hosts[0].stopping)?;
    let at_attach = way % 3;
    if at_attach == 0 {
        (0..4).for_each(|store| w.power_lost(store));
    }
    w.boot(1, w.near(1));
    w.start_with_orders(1, TakeOver::Own);
    if at_attach == 1 {
        w.events(way)?;
        (0..4).for_each(|store| w.power_lost(store));
    } else {
        w.serving(1)?;
        w.events(way)?;
        (0..4).for_each(|store| w.power_lost(store));
    }
    w.open(1)?;
    w.read(1, 0, 8)?;
    w.settled()?;
    w.read(1, 0, 8)?;
    w.close(1)
}

/// The old place is given up while the new one is not whole, or is whole and gone, or while the disk is on its
/// way back to the old one.
pub(super) fn only_good_copy_dropped(w: &mut World, way: u64) -> Told {
    w.attach(0, &[0])?;
    w.write(0, 0, 10)?;
    w.close(0)?;
    w.pause_fills(way.is_multiple_of(2));
    w.attach(1, &[1])?;
    w.write(1, 3, 2)?;
    w.flush(1)?;
    w.events(way * 6)?;
    // Long enough for whoever deletes too early.
    let end = w.now + 60_000;
    w.run_until("time passes", 200_000, |w| w.now >= end)?;
    if way.is_multiple_of(3) {
        w.power_lost(1);
        w.open(1)?;
    }
    w.read(1, 0, 10)?;
    w.pause_fills(false);
    // There, back and there again, faster than the deletions.
    for stores in [[1], [0], [1], [0]] {
        w.order(&stores);
        w.settled()?;
        w.events(way)?;
    }
    w.read(1, 0, 10)?;
    w.run_until("the old replicas are gone", 2_000_000, |w| {
        w.disks[0].drops_pending == 0
    })?;
    w.writer_dies(1);
    w.power_lost(0);
    w.open(1)?;
    w.read(1, 0, 10)?;
    w.close(1)
}

/// A member leaves while others are filled beside it, and what it had before comes to be needed.
pub(super) fn needed_after_ejection(w: &mut World, way: u64) -> Told {
    let (s0, s1, s2) = (id(w, 0), id(w, 1), id(w, 2));
    w.attach(0, &HERE)?;
    w.write(0, 0, 8)?;
    w.flush(0)?;
    w.pause_fills(true);
    let epoch = w.epoch();
    w.order(&[0, 1, 2]);
    w.switched(0, epoch + 1)?;
    w.write(0, 1, 3)?;
    w.discard(0, 6, 1)?;
    w.flush(0)?;
    w.writer_dies(0);
    // One writer after another reaches fewer of those that were there first.
    w.cut(1, if way.is_multiple_of(2) { s0 } else { s2 });
    w.takes_over(1, true);
    w.serving(1)?;
    w.write(1, 2, 1)?;
    w.read(1, 0, 8)?;
    w.writer_dies(1);
    w.cut(2, if way.is_multiple_of(2) { s2 } else { s0 });
    w.cut_between(s1, s2);
    w.takes_over(2, false);
    let end = w.now + 100_000;
    w.run_until("it has tried", 200_000, |w| w.now >= end || w.serves(2))?;
    if w.serves(2) {
        w.write(2, 3, 1)?;
        w.issue_read(2, World::span(0, 8));
        w.events(way * 10)?;
    }
    w.links.values_mut().for_each(|link| link.cut = false);
    w.cut_stores.clear();
    w.open(2)?;
    w.done(2)?;
    w.pause_fills(false);
    w.order(&THERE);
    w.settled()?;
    w.read(2, 0, 8)?;
    w.close(2)
}
