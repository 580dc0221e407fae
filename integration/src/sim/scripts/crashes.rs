//! Crashes of stores, writers and the placement service at the worst moments.

use super::Told;
use super::verbs::HERE;
use crate::sim::world::{Violation, World};
use replicator::words::{BLOCK_BYTES, Span, StoreId};
use replicator::writer::TakeOver;

fn id(w: &World, store: usize) -> StoreId {
    w.stores[store].id
}

/// The flush may count only who still is what it was when it took the write (S1).
pub(super) fn flush_after_an_unseen_crash(w: &mut World, way: u64) -> Told {
    // The one that forgot may be the one whose content would count.
    let (writer, other) = if way < 6 { (0, 2) } else { (2, 0) };
    w.attach(writer, &HERE)?;
    w.write(writer, 0, 4)?;
    w.discard(writer, 1, 1)?;
    w.events(way)?;
    w.crash_unseen(other);
    if way.is_multiple_of(2) {
        w.issue_flush(writer);
        w.events(way / 2)?;
    }
    w.flush(writer)?;
    w.power_lost(writer);
    w.open(1)?;
    w.read(1, 0, 4)?;
    w.settled()?;
    w.read(1, 0, 4)?;
    w.close(1)
}

/// Each may hold what the other lost: nobody serves before both were heard (A4, S2).
pub(super) fn one_returns_late(w: &mut World, way: u64) -> Told {
    w.attach(0, &HERE)?;
    w.write(0, 0, 6)?;
    if way.is_multiple_of(2) {
        w.flush(0)?;
    }
    w.write(0, 2, 3)?;
    w.discard(0, 5, 2)?;
    w.issue_write(0, World::span(1, 4), false);
    w.events(way)?;
    w.power_off(0, 0.0);
    // The late one lost its power, too, or only its process: then it alone has all.
    match way % 3 {
        0 => w.process_down(2),
        1 => w.power_off(2, 0.4),
        _ => w.power_off(2, 0.0),
    }
    w.up(0);
    w.takes_over(1, true);
    w.must_wait(
        1,
        60,
        "what it reached lost its tail, and another one is missing",
    )?;
    w.process_down(0);
    w.events(3)?;
    w.up(0);
    w.must_wait(1, 60, "a restart has not brought the tail back")?;
    if way >= 6 {
        // Nor does it help to begin anew.
        w.writer_dies(1);
        w.takes_over(1, false);
        w.must_wait(1, 60, "another take-over knows no more")?;
    }
    w.up(2);
    w.serving(1)?;
    w.read(1, 0, 8)?;
    w.settled()?;
    w.close(1)
}

pub(super) fn dies_between_swap_and_reissue(w: &mut World, way: u64) -> Told {
    let (adds, moment) = (way.is_multiple_of(2), way / 2);
    w.attach(0, &HERE)?;
    w.write(0, 0, 8)?;
    w.flush(0)?;
    let epoch = w.epoch();
    if adds {
        w.order(&[0, 1, 2]);
    } else {
        w.cut(0, id(w, 2));
    }
    for block in 0..6 {
        w.issue_write(0, World::span(block, 2), block == 3);
        w.events(2)?;
    }
    w.run_until("the record has changed", 500_000, |w| w.epoch() > epoch)?;
    w.events(moment)?;
    w.writer_dies(0);
    w.mend(0, id(w, 2));
    w.takes_over(1, true);
    w.serving(1)?;
    w.read(1, 0, 8)?;
    w.write(1, 2, 1)?;
    w.settled()?;
    w.read(1, 0, 8)?;
    w.close(1)
}

/// Who began later has the later epoch; what the first one rewrites must count nowhere.
pub(super) fn two_settlers(w: &mut World, way: u64) -> Told {
    w.attach(0, &[0, 1, 2])?;
    w.write(0, 0, 6)?;
    for block in 0..5 {
        w.issue_write(0, World::span(block, 2), block == 2);
    }
    // What is in flight reaches some.
    w.events(4 + way % 7)?;
    w.cut(0, id(w, (way % 3) as usize));
    w.events(way % 5)?;
    w.writer_dies(0);
    w.takes_over(1, way.is_multiple_of(2));
    w.events(way)?;
    let (authority, power) = (
        if way.is_multiple_of(2) { 1 } else { 0 },
        way.is_multiple_of(3),
    );
    w.stores[authority].held = true;
    w.stores[authority].survive = Some(0.0);
    w.store_dies(authority, power);
    if way % 4 >= 2 {
        w.up(authority);
    }
    w.events(way % 11)?;
    w.takes_over(2, false);
    w.run_until("one of them serves", 1_000_000, |w| {
        (1..3).any(|host| w.serves(host) && w.is_owner(host))
    })?;
    let one = (1..3).find(|host| w.serves(*host) && w.is_owner(*host));
    let one = one.expect("it was waited for");
    w.read(one, 0, 6)?;
    w.write(one, 1, 2)?;
    // The other's swaps may still be on their way.
    w.writer_dies(3 - one);
    w.up(authority);
    let end = w.now + 50_000;
    w.run_until("they arrive", 100_000, |w| w.now >= end)?;
    if !w.is_owner(one) {
        w.writer_dies(one);
    }
    w.open(one)?;
    w.order(&[0, 1, 2]);
    w.settled()?;
    w.settled()?;
    w.read(one, 0, 6)?;
    w.close(one)
}

/// It comes back with what nobody acknowledged; meanwhile its blocks were discarded elsewhere, and the
/// discards' own records cleaned away.
pub(super) fn rejoin_after_cleaning(w: &mut World, way: u64) -> Told {
    let (s1, s2) = (id(w, 1), id(w, 2));
    w.attach(0, &[1, 2])?;
    w.write(0, 0, 8)?;
    w.flush(0)?;
    // What is in flight reaches one only, which is then lost sight of.
    w.cut(0, s1);
    w.issue_write(0, World::span(1, 3), false);
    w.run_until("it arrived", 100_000, |w| {
        let core = w.stores[2].core.as_ref();
        core.is_some_and(|core| core.appended() > 0)
    })?;
    w.events(8)?;
    w.writer_dies(0);
    w.cut(1, s2);
    match way % 3 {
        0 => w.process_down(2),
        1 => w.power_off(2, 1.0),
        _ => {}
    }
    w.mend(0, s1);
    w.takes_over(1, true);
    w.serving(1)?;
    w.order(&[1]);
    w.discard(1, 0, 8)?;
    // Enough to fill some segments over and over.
    for round in 0..16 {
        w.write(1, 8 + round % 4, 12)?;
        if round % 4 == 0 {
            w.flush(1)?;
        }
    }
    if way >= 3 {
        w.settled()?;
    }
    let end = w.now + 100_000;
    w.run_until("time passes", 200_000, |w| w.now >= end)?;
    w.up(2);
    w.mend(1, s2);
    w.order(&[1, 2]);
    w.settled()?;
    w.read(1, 0, 20)?;
    // Now it alone.
    w.order(&[2]);
    w.settled()?;
    w.read(1, 0, 20)?;
    w.close(1)
}

/// Every kind of swap, whose asker often does not hear what came of it, or hears it late.
pub(super) fn unknown_outcomes(w: &mut World, way: u64) -> Told {
    let doubt = |w: &mut World| w.faults.lose_swap = 0.5;
    let (s1, s2) = (id(w, 1), id(w, 2));
    w.order(&HERE);
    w.boot(0, w.near(0));
    doubt(w);
    w.start_with_orders(0, TakeOver::Own);
    w.serving(0)?;
    w.write(0, 0, 4)?;
    // An ejection, with writes in flight.
    w.issue_write(0, World::span(1, 2), false);
    w.cut(0, s2);
    w.done(0)?;
    w.mend(0, s2);
    // A switch, and a completion.
    let epoch = w.epoch();
    w.order(&[0, 1]);
    w.switched(0, epoch + 1)?;
    w.write(0, 3, 2)?;
    w.settled()?;
    // A close; or a death, and a take-over with its settling.
    if way.is_multiple_of(2) {
        w.stops(0);
        w.run_until("it stops", 1_000_000, |w| !w.hosts[0].stopping)?;
    } else {
        w.issue_write(0, World::span(0, 2), false);
        w.events(way)?;
        w.writer_dies(0);
    }
    w.takes_over(1, true);
    w.run_until("it serves, or was refused", 2_000_000, |w| {
        !w.hosts[1].starting
    })?;
    w.open(1)?;
    w.faults.lose_swap = 0.0;
    w.read(1, 0, 6)?;
    if way.is_multiple_of(3) {
        w.cut(1, s1);
        w.write(1, 2, 1)?;
        w.mend(1, s1);
    }
    w.settled()?;
    w.read(1, 0, 6)?;
    w.close(1)
}

/// Its directory was put back: it shows fewer starts than were seen of it, and counts nowhere.
pub(super) fn store_rolled_back(w: &mut World, way: u64) -> Told {
    w.attach(0, &HERE)?;
    w.write(0, 0, 6)?;
    w.flush(0)?;
    let older = w.stores[2].media.fork();
    for _ in 0..2 {
        w.process_down(2);
        w.up(2);
    }
    w.write(0, 2, 3)?;
    w.issue_write(0, Span::new(5 * BLOCK_BYTES + 512, 512), false);
    w.done(0)?;
    w.flush(0)?;
    if way.is_multiple_of(2) {
        w.close(0)?;
    }
    w.process_down(2);
    w.stores[2].media = older;
    w.up(2);
    if !w.stores[2].refused {
        return Err(Violation("a store that was rolled back is let in".into()));
    }
    if way >= 2 {
        // The other one must not be missed for it.
        w.process_down(0);
        w.up(0);
    }
    w.takes_over(1, true);
    w.serving(1)?;
    w.read(1, 0, 6)?;
    w.order(&[0, 1]);
    w.settled()?;
    w.read(1, 0, 6)?;
    w.close(1)
}

/// A member's sync fails under a flush; the media would take the next one, but what the first was to write is
/// gone. The flush ends when that member is out, or has it after all, and then it holds whoever loses power (S2).
pub(super) fn failed_sync_is_final(w: &mut World, way: u64) -> Told {
    let failing = HERE[(way & 1) as usize];
    w.attach(0, &HERE)?;
    w.write(0, 0, 4)?;
    if way & 2 != 0 {
        w.flush(0)?;
    }
    w.write(0, 1, 4)?;
    w.stores[failing].media.fail_syncs(true);
    w.issue_flush(0);
    if way & 4 != 0 {
        w.issue_write(0, World::span(2, 1), false);
    }
    w.run_until("a sync fails", 500_000, |w| {
        w.stores[failing].has_failed() || w.stores[failing].losses > 0
    })?;
    w.stores[failing].media.fail_syncs(false);
    w.done(0)?;
    for store in HERE {
        w.power_lost(store);
    }
    w.takes_over(1, true);
    w.serving(1)?;
    w.read(1, 0, 6)?;
    w.settled()?;
    w.read(1, 0, 6)?;
    w.close(1)
}

/// Its directory was put back while its process was down, to what it was since the epoch began: incarnation, epoch
/// and number of starts are as they should be, and what was acknowledged in between is gone (S6).
pub(super) fn put_back_within_the_epoch(w: &mut World, way: u64) -> Told {
    w.attach(0, &HERE)?;
    w.write(0, 0, 6)?;
    w.flush(0)?;
    let older = w.stores[2].media.fork();
    if way & 1 != 0 {
        // The copy does not know of the last start.
        w.process_down(2);
        w.up(2);
    }
    w.write(0, 2, 3)?;
    if way & 2 != 0 {
        w.flush(0)?;
    }
    if way & 4 != 0 {
        w.issue_write(0, World::span(1, 2), false);
    }
    w.process_down(2);
    w.stores[2].media = older;
    w.up(2);
    w.done(0)?;
    w.write(0, 5, 1)?;
    // Whoever has only the other one must not hear what that says.
    w.process_down(0);
    w.issue_read(0, World::span(0, 6));
    let end = w.now + 30_000;
    w.run_until("time passes", 100_000, |w| w.now >= end)?;
    w.up(0);
    w.done(0)?;
    // It joins again, and takes what it lacks.
    w.settled()?;
    w.process_down(0);
    w.read(0, 0, 6)?;
    w.up(0);
    w.close(0)
}

/// A member is gone, and the service too. Before the ejection is made the writer and the member that it has
/// left die: what nobody but they have must not have been acknowledged (W6).
pub(super) fn ejection_not_made(w: &mut World, way: u64) -> Told {
    w.attach(0, &HERE)?;
    w.write(0, 0, 4)?;
    w.cut(0, id(w, 2));
    w.placement_away_until = w.now + 80_000;
    w.issue_write(0, World::span(1, 2), false);
    w.issue_write(0, World::span(3, 1), true);
    let end = w.now + 10_000 * (1 + way);
    w.run_until("time passes", 100_000, |w| w.now >= end)?;
    if way.is_multiple_of(2) {
        w.power_off(0, 1.0);
    } else {
        w.writer_dies(0);
        w.process_down(0);
    }
    w.placement_away_until = 0;
    w.takes_over(1, true);
    w.serving(1)?;
    w.read(1, 0, 4)?;
    w.write(1, 0, 1)?;
    w.up(0);
    w.settled()?;
    w.read(1, 0, 4)?;
    w.close(1)
}

/// After an ejection one of those that stay is the only one that took a write before it; then that one dies (W7).
pub(super) fn held_by_one_before_an_ejection(w: &mut World, way: u64) -> Told {
    let (s1, s2) = (id(w, 1), id(w, 2));
    w.attach(0, &[0, 1, 2])?;
    w.write(0, 0, 4)?;
    w.cut(0, s2);
    w.cut(0, s1);
    w.issue_write(0, World::span(1, 2), false);
    w.issue_write(0, World::span(3, 1), true);
    // The one is back in time, the other is not.
    let end = w.now + 12_000 + way * 1_000;
    w.run_until("time passes", 100_000, |w| w.now >= end)?;
    w.mend(0, s1);
    w.done(0)?;
    w.writer_dies(0);
    w.process_down(0);
    w.takes_over(1, true);
    let end = w.now + 60_000;
    w.run_until("it has tried", 200_000, |w| w.serves(1) || w.now >= end)?;
    if w.serves(1) {
        w.read(1, 0, 4)?;
    }
    w.up(0);
    w.open(1)?;
    w.read(1, 0, 4)?;
    w.settled()?;
    w.close(1)
}

/// All lose power right after a take-over that has evened them out: what it found is what there is (S4).
pub(super) fn power_lost_after_settling(w: &mut World, way: u64) -> Told {
    w.attach(0, &HERE)?;
    w.write(0, 0, 4)?;
    w.flush(0)?;
    w.write(0, 1, 2)?;
    w.discard(0, 3, 1)?;
    // One of them takes a last write, which the settling finds and the other one gets.
    let s2 = id(w, 2);
    w.cut(0, s2);
    w.issue_write(0, World::span(0, 2), false);
    w.events(1 + way % 6)?;
    w.writer_dies(0);
    w.mend(0, s2);
    // A guest sees it at once, and then all is dark: before anything that follows could have synced it.
    w.takes_over(0, true);
    w.serving(0)?;
    w.read(0, 0, 4)?;
    for store in [0, 2] {
        w.power_off(store, 0.0);
    }
    // The other one's word counts now.
    w.up(0);
    w.up(2);
    w.takes_over(2, way >= 6);
    w.serving(2)?;
    w.read(2, 0, 4)?;
    w.settled()?;
    w.close(2)
}

/// A block is written over after another store joined. The one that was there before is ejected, and the other one
/// loses what was not synced: then what stood there before is the truth, and only the one that left has it (R2).
pub(super) fn kept_for_those_who_joined(w: &mut World, way: u64) -> Told {
    let (s0, s1) = (id(w, 0), id(w, 1));
    w.attach(2, &[0])?;
    w.write(2, 0, 6)?;
    w.flush(2)?;
    w.pause_fills(true);
    let epoch = w.epoch();
    w.order(&[0, 1]);
    w.switched(2, epoch + 1)?;
    w.write(2, 1, 2)?;
    w.discard(2, 4, 1)?;
    // The watermark reaches those writes, and the first one syncs for reasons of its own.
    w.write(2, 8, 1)?;
    w.write(2, 9, 1)?;
    let process = w.stores[0].process;
    w.sync_begins(s0, process);
    w.events(20 + way * 15)?;
    let epoch = w.epoch();
    w.cut(2, s0);
    w.issue_write(2, World::span(5, 1), way.is_multiple_of(2));
    // The seal of the next epoch would sync what the other one holds.
    w.run_until("it is ejected", 500_000, |w| w.epoch() > epoch)?;
    w.power_off(1, 0.0);
    w.writer_dies(2);
    w.up(1);
    w.mend(2, s0);
    w.takes_over(0, true);
    w.serving(0)?;
    w.read(0, 0, 10)?;
    w.mend(0, s1);
    w.pause_fills(false);
    w.order(&[0, 1]);
    w.settled()?;
    w.read(0, 0, 10)?;
    w.close(0)
}
