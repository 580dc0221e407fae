//! The stories of the protocol's review, each as a script: who does what, in which order. Only the
//! network's waits are drawn. Whatever the order, all must read back as guests may read it, and the
//! members must be the same in the end.

use super::dice::Dice;
use super::trace::Trace;
use super::world::{Shape, Violation, World};
use super::{Outcome, Show};
use replicator::plant::{Plant, plant};
use replicator::words::{BLOCK_BYTES, Span, StoreId};
use replicator::writer::{Event, TakeOver};
use std::panic::AssertUnwindSafe;

type Told = Result<(), Violation>;

/// A story, and how many ways it can go.
pub struct Script {
    pub name: &'static str,
    pub ways: u64,
    tell: fn(&mut World, u64) -> Told,
}

/// By the numbers of the review's scenarios.
pub const ALL: [Script; 7] = [
    Script {
        name: "1: there and back before the fill ends, overwriting in each place",
        ways: 6,
        tell: there_and_back,
    },
    Script {
        name: "2: a move is cancelled after writes and discards that only its target has",
        ways: 6,
        tell: cancelled,
    },
    Script {
        name: "7: destination before close, late close, source resumes, two destinations",
        ways: 4,
        tell: hand_over_races,
    },
    Script {
        name: "8: the target loses power around its completion",
        ways: 80,
        tell: power_loss_around_completion,
    },
    Script {
        name: "8: the source's replica goes while a read of it is on its way",
        ways: 10,
        tell: deletion_with_a_late_read,
    },
    Script {
        name: "9: what only a member that was ejected has is never read",
        ways: 4,
        tell: dead_tail,
    },
    Script {
        name: "10: fill, write, discard and a next epoch in every order",
        ways: 24 * 4,
        tell: every_order,
    },
];

impl Script {
    /// Tells it one way.
    pub fn run(&self, way: u64, bug: Option<Plant>, show: Show) -> Outcome {
        let keep = if show == Show::Nothing { 0 } else { 80 };
        let shape = Shape {
            stores: 4,
            hosts: 3,
            sites: 2,
            copies: 1,
            extents: 2,
        };
        let trace = Trace::new(keep, show == Show::All);
        let mut world = World::of(shape, Dice::new(way), trace);
        world.quiet = true;
        plant(bug);
        let told = std::panic::catch_unwind(AssertUnwindSafe(|| {
            (self.tell)(&mut world, way)?;
            world.finish()
        }));
        plant(None);
        super::outcome(way, &world, told)
    }
}

/// Stores of the two sites: even ones here, odd ones there.
const HERE: [usize; 2] = [0, 2];
const THERE: [usize; 2] = [1, 3];

impl World {
    fn ids(&self, stores: &[usize]) -> Vec<StoreId> {
        stores.iter().map(|store| self.stores[*store].id).collect()
    }

    /// The service wants all of the disk on these, and says so.
    fn order(&mut self, stores: &[usize]) {
        let (all, ids) = (self.placement.record.extents(), self.ids(stores));
        self.want(all, &ids);
        self.give_orders();
    }

    fn pause_fills(&mut self, paused: bool) {
        self.placement.goals.fill.paused = paused;
        self.give_orders();
    }

    /// The host attaches, with these as the first write set.
    fn attach(&mut self, host: usize, stores: &[usize]) -> Told {
        self.order(stores);
        if self.hosts[host].writer.is_none() {
            self.boot(host, self.near(host));
        }
        self.start_with_orders(host, TakeOver::Own);
        self.run_until("it attaches", 500_000, |w| !w.hosts[host].starting)?;
        match self.serves(host) {
            true => Ok(()),
            false => Err(Violation(format!("W{host} could not attach"))),
        }
    }

    fn span(block: u64, count: u64) -> Span {
        Span::new(block * BLOCK_BYTES, count * BLOCK_BYTES)
    }

    fn done(&mut self, host: usize) -> Told {
        self.run_until("requests end", 500_000, |w| {
            w.hosts[host].requests.is_empty()
        })
    }

    fn write(&mut self, host: usize, block: u64, count: u64) -> Told {
        self.issue_write(host, Self::span(block, count), false);
        self.done(host)
    }

    fn discard(&mut self, host: usize, block: u64, count: u64) -> Told {
        self.issue_write(host, Self::span(block, count), true);
        self.done(host)
    }

    fn read(&mut self, host: usize, block: u64, count: u64) -> Told {
        self.issue_read(host, Self::span(block, count));
        self.done(host)
    }

    fn flush(&mut self, host: usize) -> Told {
        self.issue_flush(host);
        self.done(host)
    }

    /// Lets so many things happen.
    fn events(&mut self, count: u64) -> Told {
        for _ in 0..count {
            self.step()?;
        }
        Ok(())
    }

    fn settled(&mut self) -> Told {
        self.run_until("the wanted members are whole", 2_000_000, |w| {
            w.placement.is_settled()
        })
    }

    fn switched(&mut self, host: usize, epochs: u64) -> Told {
        self.run_until("the members are switched", 500_000, |w| {
            w.placement.record.epoch.as_u64() >= epochs && w.serves(host)
        })
    }

    /// The machine of a store, and with it all that was not synced.
    fn power_lost(&mut self, store: usize) {
        self.writer_dies(store);
        self.stores[store].survive = Some(0.0);
        self.machine_dies(store);
    }

    fn cut(&mut self, host: usize, store: StoreId) {
        self.links.entry((host, store)).or_default().cut = true;
        self.breaks(host, store);
    }

    fn epoch(&self) -> u64 {
        self.placement.record.epoch.as_u64()
    }
}

fn there_and_back(w: &mut World, way: u64) -> Told {
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

fn cancelled(w: &mut World, way: u64) -> Told {
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

fn hand_over_races(w: &mut World, way: u64) -> Told {
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
fn power_loss_around_completion(w: &mut World, way: u64) -> Told {
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

fn deletion_with_a_late_read(w: &mut World, way: u64) -> Told {
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
        w.drops_pending == 0
    })?;
    w.done(1)?;
    w.faults.slow = 0.0;
    w.faults.fetch_slow = 0.0;
    w.read(1, 0, 12)?;
    w.close(1)
}

/// A write reaches one member only, which then leaves; where its entry is still read, that write is not.
fn dead_tail(w: &mut World, way: u64) -> Told {
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
    w.cut_stores.extend([(s0, s1), (s1, s2)]);
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

fn every_order(w: &mut World, way: u64) -> Told {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_story_ends_well() {
        for script in &ALL {
            for way in 0..script.ways {
                let outcome = script.run(way, None, Show::Last);
                if let Some((what, lines)) = outcome.violation {
                    let lines = lines.join("\n");
                    panic!("{lines}\n{}, way {way}: {what}", script.name);
                }
            }
        }
    }
}
