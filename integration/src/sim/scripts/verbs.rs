//! What scripts are made of: one thing that somebody does, or that happens, with no chance in it.

use super::Told;
use crate::sim::world::{Violation, World};
use replicator::words::{BLOCK_BYTES, Span, StoreId};
use replicator::writer::{Event, TakeOver};

/// Stores of the two sites: even ones here, odd ones there.
pub(super) const HERE: [usize; 2] = [0, 2];
pub(super) const THERE: [usize; 2] = [1, 3];

impl World {
    pub(super) fn ids(&self, stores: &[usize]) -> Vec<StoreId> {
        stores.iter().map(|store| self.stores[*store].id).collect()
    }

    /// The service wants all of the disk on these, and says so.
    pub(super) fn order(&mut self, stores: &[usize]) {
        let (all, ids) = (self.disks[0].placement.record.extents(), self.ids(stores));
        self.want(0, all, &ids);
        self.give_orders(0);
    }

    pub(super) fn pause_fills(&mut self, paused: bool) {
        self.disks[0].placement.goals.fill.paused = paused;
        self.give_orders(0);
    }

    /// The host attaches, with these as the first write set.
    pub(super) fn attach(&mut self, host: usize, stores: &[usize]) -> Told {
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

    pub(super) fn span(block: u64, count: u64) -> Span {
        Span::new(block * BLOCK_BYTES, count * BLOCK_BYTES)
    }

    pub(super) fn done(&mut self, host: usize) -> Told {
        self.run_until("requests end", 500_000, |w| {
            w.hosts[host].requests.is_empty()
        })
    }

    pub(super) fn write(&mut self, host: usize, block: u64, count: u64) -> Told {
        self.issue_write(host, Self::span(block, count), false);
        self.done(host)
    }

    pub(super) fn discard(&mut self, host: usize, block: u64, count: u64) -> Told {
        self.issue_write(host, Self::span(block, count), true);
        self.done(host)
    }

    pub(super) fn read(&mut self, host: usize, block: u64, count: u64) -> Told {
        self.issue_read(host, Self::span(block, count));
        self.done(host)
    }

    pub(super) fn flush(&mut self, host: usize) -> Told {
        self.issue_flush(host);
        self.done(host)
    }

    /// Lets so many things happen.
    pub(super) fn events(&mut self, count: u64) -> Told {
        for _ in 0..count {
            self.step()?;
        }
        Ok(())
    }

    pub(super) fn settled(&mut self) -> Told {
        self.run_until("the wanted members are whole", 2_000_000, |w| {
            w.disks[0].placement.is_settled()
        })
    }

    pub(super) fn switched(&mut self, host: usize, epochs: u64) -> Told {
        self.run_until("the members are switched", 500_000, |w| {
            w.disks[0].placement.record.epoch.as_u64() >= epochs && w.serves(host)
        })
    }

    /// The machine of a store, and with it all that was not synced.
    pub(super) fn power_lost(&mut self, store: usize) {
        self.stores[store].survive = Some(0.0);
        self.machine_dies(store);
    }

    pub(super) fn cut(&mut self, host: usize, store: StoreId) {
        self.links.entry((host, store)).or_default().cut = true;
        self.breaks(host, store);
    }

    pub(super) fn cut_between(&mut self, one: StoreId, other: StoreId) {
        self.cut_stores.extend([(one, other), (other, one)]);
    }

    pub(super) fn mend(&mut self, host: usize, store: StoreId) {
        self.links.entry((host, store)).or_default().cut = false;
    }

    /// The machine of a store goes dark and stays so; of what was not synced so much survives.
    pub(super) fn power_off(&mut self, store: usize, survive: f64) {
        self.stores[store].held = true;
        self.stores[store].survive = Some(survive);
        self.machine_dies(store);
    }

    /// The process of a store ends and does not come back by itself.
    pub(super) fn process_down(&mut self, store: usize) {
        self.stores[store].held = true;
        self.store_dies(store, false);
    }

    /// A store that was down comes up.
    pub(super) fn up(&mut self, store: usize) {
        let (id, process) = (self.stores[store].id, self.stores[store].process);
        self.stores[store].held = false;
        self.start_store(id, process);
    }

    /// The host of a store crashes and is back, and no session with it was found broken.
    pub(super) fn crash_unseen(&mut self, store: usize) {
        self.stores[store].survive = Some(0.0);
        self.stores[store].power_loss(&mut self.dice);
        self.consider_losses();
        self.up(store);
    }

    /// A writer without a store of its own, or with the one beside it, is to have the disk, by order.
    pub(super) fn takes_over(&mut self, host: usize, near: bool) {
        let near = self.near(host).filter(|_| near);
        self.boot(host, near);
        self.start_with_orders(host, TakeOver::Ordered);
    }

    pub(super) fn stops(&mut self, host: usize) {
        self.hosts[host].stopping = true;
        let life = self.hosts[host].life;
        self.tell(host, life, Event::Stop { successor: None });
    }

    /// For so many milliseconds this host must not serve: it cannot know what is true.
    pub(super) fn must_wait(&mut self, host: usize, ms: u64, why: &str) -> Told {
        let end = self.now + ms * 1000;
        while self.now < end {
            if !self.step()? {
                break;
            }
            if self.serves(host) {
                return Err(Violation(format!("W{host} serves, though {why}")));
            }
        }
        Ok(())
    }

    pub(super) fn serving(&mut self, host: usize) -> Told {
        self.run_until("it serves", 1_000_000, |w| w.serves(host))
    }

    pub(super) fn epoch(&self) -> u64 {
        self.disks[0].placement.record.epoch.as_u64()
    }
}
