//! Moves: the disk goes elsewhere, comes back, and meets misfortune in between.

use super::Told;
use super::verbs::{HERE, THERE};
use crate::sim::world::{Violation, World};
use replicator::words::{BLOCK_BYTES, Span};
use replicator::writer::{Event, TakeOver};

pub(super) fn there_and_back(w: &mut World, way: u64) -> Told {
    w.attach(0, &HERE)?;
    w.write(0, 0, 12)?;
    w.discard(0, 10, 1)?;
    w.flush(0)?;
    w.close(0)?;
    w.pause_fills(way.is_multiple_of(2));
    w.attach(1, &THERE)?;
    w.write(1, 0, 4)?;
    w.discard(1, 4, 2)?;
    w.read(1, 3, 6)?;
    // A part of a block that is not near yet.
    w.issue_write(1, Span::new(11 * BLOCK_BYTES + 512, 1024), false);
    w.done(1)?;
    w.close(1)?;
    w.attach(0, &HERE)?;
    w.read(0, 0, 12)?;
    w.write(0, 2, 3)?;
    w.discard(0, 0, 1)?;
    if way % 3 == 1 {
        w.close(0)?;
        w.attach(1, &THERE)?;
        w.read(1, 0, 12)?;
        w.write(1, 5, 2)?;
        w.close(1)?;
        w.attach(0, &HERE)?;
    }
    if way % 3 == 2 {
        w.machine_dies(2);
        w.read(0, 0, 12)?;
    }
    w.pause_fills(false);
    w.settled()?;
    w.read(0, 0, 12)?;
    w.close(0)
}

pub(super) fn cancelled(w: &mut World, way: u64) -> Told {
    w.attach(0, &HERE)?;
    w.write(0, 0, 12)?;
    w.flush(0)?;
    w.pause_fills(way.is_multiple_of(2));
    let epoch = w.epoch();
    w.order(&THERE);
    w.switched(0, epoch + 1)?;
    w.write(0, 2, 3)?;
    w.discard(0, 6, 2)?;
    w.read(0, 8, 1)?;
    // Enough for some of it to be filled, or not.
    w.events(way * 30)?;
    let epoch = w.epoch();
    w.order(&HERE);
    w.switched(0, epoch + 1)?;
    w.read(0, 0, 12)?;
    w.discard(0, 3, 1)?;
    w.write(0, 7, 1)?;
    w.flush(0)?;
    if way >= 3 {
        for store in 0..w.stores.len() {
            w.machine_dies(store);
        }
        w.open(0)?;
    }
    w.pause_fills(false);
    w.settled()?;
    w.read(0, 0, 12)?;
    w.close(0)
}

pub(super) fn hand_over_races(w: &mut World, way: u64) -> Told {
    w.attach(0, &HERE)?;
    w.write(0, 0, 6)?;
    // The destination comes before the close, and is refused.
    w.order(&THERE);
    w.boot(1, w.near(1));
    w.start_with_orders(1, TakeOver::Own);
    w.run_until("it is refused", 500_000, |w| !w.hosts[1].starting)?;
    if w.serves(1) {
        return Err(Violation("A1: it serves a disk that is open".into()));
    }
    w.write(0, 1, 2)?;
    // The close is not answered in time; whether it took place nobody knows.
    w.faults.lose_swap = if way < 2 { 0.8 } else { 0.0 };
    w.placement_away_until = w.now + way % 2 * 400_000;
    w.hosts[0].stopping = true;
    let life = w.hosts[0].life;
    w.tell(0, life, Event::Stop { successor: None });
    w.run_until("it stops", 500_000, |w| !w.hosts[0].stopping)?;
    w.faults.lose_swap = 0.0;
    w.placement_away_until = 0;
    // The source resumes, and two destinations come, all at once.
    w.boot(2, None);
    for host in [0, 1, 2] {
        let how = match host {
            2 => TakeOver::Ordered,
            _ => TakeOver::Own,
        };
        w.start_with_orders(host, how);
    }
    w.run_until("all know", 1_000_000, |w| {
        !w.hosts.iter().any(|host| host.starting)
    })?;
    let serving: Vec<usize> = (0..3).filter(|h| w.serves(*h) && w.is_owner(*h)).collect();
    let [one] = serving[..] else {
        return Err(Violation(format!("I3: {serving:?} own the disk")));
    };
    w.read(one, 0, 6)?;
    w.write(one, 0, 2)?;
    w.settled()?;
    w.read(one, 0, 6)?;
    w.close(one)
}

/// The near store is alone, and loses all that it had not synced at every moment of the fill.
pub(super) fn power_loss_around_completion(w: &mut World, way: u64) -> Told {
    w.attach(0, &HERE)?;
    w.write(0, 0, 12)?;
    w.discard(0, 4, 1)?;
    w.flush(0)?;
    w.close(0)?;
    w.attach(1, &[1])?;
    w.write(1, 2, 1)?;
    w.flush(1)?;
    w.events(way * 3)?;
    w.power_lost(1);
    w.open(1)?;
    w.read(1, 0, 12)?;
    w.settled()?;
    w.read(1, 0, 12)?;
    // And once more, right after the end.
    w.power_lost(1);
    w.open(1)?;
    w.read(1, 0, 12)?;
    w.close(1)
}

pub(super) fn deletion_with_a_late_read(w: &mut World, way: u64) -> Told {
    // Whoever is slow here is not out of order.
    w.temper.ejects = false;
    w.attach(0, &HERE)?;
    w.write(0, 0, 12)?;
    w.close(0)?;
    w.attach(1, &[1])?;
    w.faults.slow = 0.5;
    w.faults.fetch_slow = 0.2;
    for block in 0..12 {
        w.issue_read(1, World::span(block, 1));
        w.events(way)?;
    }
    w.settled()?;
    w.run_until("the old replicas are gone", 1_000_000, |w| {
        w.disks[0].drops_pending == 0
    })?;
    w.done(1)?;
    w.faults.slow = 0.0;
    w.faults.fetch_slow = 0.0;
    w.read(1, 0, 12)?;
    w.close(1)
}

/// A write reaches one member only, which then leaves; where its entry is still read, that write is not.
pub(super) fn dead_tail(w: &mut World, way: u64) -> Told {
    let [s0, s1, s2] = [0, 1, 2].map(|store: usize| w.stores[store].id);
    w.attach(0, &HERE)?;
    w.write(0, 0, 4)?;
    w.flush(0)?;
    w.pause_fills(true);
    let epoch = w.epoch();
    w.order(&[0, 1, 2]);
    w.switched(0, epoch + 1)?;
    w.write(0, 2, 1)?;
    w.cut(0, s1);
    w.cut(0, s2);
    w.issue_write(0, World::span(1, 1), false);
    w.events(6 + 2 * way)?;
    w.writer_dies(0);
    // The next writer does not reach that member, and settles without it. Blocks are read where they are.
    w.cut_between(s0, s1);
    w.cut_between(s1, s2);
    w.cut(1, s0);
    w.order(&[1, 2]);
    w.boot(1, w.near(1));
    w.start_with_orders(1, TakeOver::Ordered);
    w.run_until("it takes over", 500_000, |w| w.serves(1))?;
    w.read(1, 1, 1)?;
    // Now only the one that left has what stood there before.
    w.links.entry((1, s0)).or_default().cut = false;
    w.cut(1, s2);
    w.write(1, 3, 1)?;
    w.read(1, 1, 1)?;
    w.cut_stores.clear();
    w.links.values_mut().for_each(|link| link.cut = false);
    w.pause_fills(false);
    w.order(&THERE);
    w.settled()?;
    w.read(1, 0, 4)?;
    w.close(1)
}

pub(super) fn every_order(w: &mut World, way: u64) -> Told {
    let mut left = vec![0, 1, 2, 3];
    let mut order = Vec::new();
    let mut permutation = way % 24;
    for choices in (1..=4).rev() {
        order.push(left.remove((permutation % choices) as usize));
        permutation /= choices;
    }
    let gap = [0, 3, 15, 60][(way / 24) as usize % 4];
    w.attach(0, &HERE)?;
    w.write(0, 0, 3)?;
    w.close(0)?;
    w.pause_fills(true);
    w.attach(1, &[1])?;
    for what in order {
        match what {
            0 => w.pause_fills(false),
            1 => w.issue_write(1, World::span(1, 1), false),
            2 => w.issue_write(1, World::span(1, 1), true),
            _ => w.order(&THERE),
        }
        w.events(gap)?;
    }
    w.done(1)?;
    w.read(1, 0, 3)?;
    w.settled()?;
    w.read(1, 0, 3)?;
    w.close(1)?;
    // And home again, where old blocks stand.
    w.attach(0, &HERE)?;
    w.read(0, 0, 3)?;
    w.settled()?;
    w.read(0, 0, 3)?;
    w.close(0)
}

/// What is merged has to be read from a store that may be gone by then, and written to one that is not.
pub(super) fn partial_writes_amid_an_ejection(w: &mut World, way: u64) -> Told {
    let ids: Vec<_> = w.stores.iter().map(|store| store.id).collect();
    w.attach(0, &HERE)?;
    w.write(0, 0, 4)?;
    w.discard(0, 5, 1)?;
    w.close(0)?;
    w.pause_fills(way.is_multiple_of(2));
    w.attach(1, &THERE)?;
    let partial = |w: &mut World, block: u64, sector: u64| {
        let span = Span::new(block * BLOCK_BYTES + sector * 512, 512);
        w.issue_write(1, span, sector == 3);
    };
    for block in 0..4 {
        partial(w, block, block);
    }
    w.events(way)?;
    // One of the members, or one of those that alone have what was there before.
    let out = if way.is_multiple_of(3) {
        ids[2]
    } else {
        ids[3]
    };
    w.cut(1, out);
    for block in 2..8 {
        partial(w, block, 7);
    }
    w.done(1)?;
    w.read(1, 0, 8)?;
    if way % 4 == 1 {
        w.power_lost(3);
    }
    w.mend(1, out);
    w.pause_fills(false);
    w.order(&THERE);
    w.settled()?;
    w.read(1, 0, 8)?;
    w.close(1)
}
