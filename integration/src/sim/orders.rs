//! What the placement service wants: moves, copies more and copies less, second thoughts, copies
//! ahead, and limits. Drawn at random, with no regard to what is going on.

use super::store_node::name;
use super::world::{What, World};
use replicator::words::{Extent, Extents, NewSet, StoreId};
use replicator::writer::{Event, FillOrders, TakeOver};

impl World {
    /// It wants something else than before.
    pub(super) fn new_goals(&mut self, disk: usize) {
        let die = self.dice.range(0..100);
        match die {
            0..30 => self.want_move(disk),
            30..40 => self.want_more(disk),
            40..50 => self.want_fewer(disk),
            50..65 => self.cancel(disk),
            65..75 => self.want_seeds(disk),
            75..92 => self.want_fill(disk),
            _ => {
                self.remember_goals(disk);
                self.disks[disk].placement.goals.members.clear();
                self.stats.count("orders taken back");
            }
        }
        self.give_orders(disk);
    }

    /// The extents of an order: all of them, or some.
    fn draw_extents(&mut self, disk: usize) -> Extents {
        let all = self.disks[disk].placement.record.extents();
        if self.dice.chance(0.6) {
            return all;
        }
        let end = u64::from(all.end.0);
        let first = self.dice.range(0..end);
        let last = self.dice.range(first + 1..end + 1);
        Extents::new(Extent(first as u32), Extent(last as u32))
    }

    /// One or two stores, mostly of one site.
    fn draw_stores(&mut self, site: Option<usize>, most: usize) -> Vec<StoreId> {
        let site = site.filter(|_| self.dice.chance(0.9));
        let here = |store: &&super::store_node::StoreNode| {
            !store.refused && site.is_none_or(|s| s == store.site)
        };
        let mut stores: Vec<StoreId> = self.stores.iter().filter(here).map(|s| s.id).collect();
        while stores.len() > most {
            let out = self.dice.range(0..stores.len() as u64) as usize;
            stores.remove(out);
        }
        stores
    }

    fn remember_goals(&mut self, disk: usize) {
        let goals = &mut self.disks[disk].placement.goals;
        goals.before.push(goals.members.clone());
        if goals.before.len() > 4 {
            goals.before.remove(0);
        }
    }

    /// Another set of stores for some extents.
    pub(super) fn want(&mut self, disk: usize, extents: Extents, stores: &[StoreId]) {
        let mut stores = stores.to_vec();
        stores.sort_unstable();
        stores.dedup();
        let names: Vec<String> = stores.iter().map(|s| name(*s)).collect();
        self.say(format_args!("wanted: {extents} on {names:?}"));
        for extent in extents.first.0..extents.end.0 {
            let members = &mut self.disks[disk].placement.goals.members;
            members.insert(Extent(extent), stores.clone());
        }
    }

    fn want_move(&mut self, disk: usize) {
        self.remember_goals(disk);
        let site = self.dice.range(0..self.stores.len() as u64) as usize;
        let (site, count) = (self.stores[site].site, self.dice.pick(&[1, 2, 2]));
        let extents = self.draw_extents(disk);
        let stores = self.draw_stores(Some(site), count);
        self.stats.count("moves ordered");
        self.want(disk, extents, &stores);
    }

    /// The VM comes to live at this host, and its disk shall follow.
    pub(super) fn want_near(&mut self, host: usize) {
        let disk = self.hosts[host].disk;
        self.remember_goals(disk);
        let site = self.near(host).map(|near| self.store(near).site);
        let count = self.dice.pick(&[1, 2, 2]);
        let all = self.disks[disk].placement.record.extents();
        let mut stores = self.draw_stores(site, count);
        if let Some(near) = self.near(host).filter(|near| !stores.contains(near))
            && !self.store(near).refused
            && self.dice.chance(0.7)
        {
            stores[0] = near;
        }
        self.stats.count("disks that follow their VM");
        self.want(disk, all, &stores);
    }

    fn want_more(&mut self, disk: usize) {
        self.remember_goals(disk);
        let extents = self.draw_extents(disk);
        let added = self.dice.range(0..self.stores.len() as u64) as usize;
        let added = self.stores[added].id;
        self.stats.count("copies to add");
        for extent in extents.first.0..extents.end.0 {
            let history = self.disks[disk].placement.history(Extent(extent));
            let mut stores: Vec<StoreId> = history.members().collect();
            if stores.len() < 4 {
                stores.push(added);
            }
            self.want(
                disk,
                Extents::new(Extent(extent), Extent(extent + 1)),
                &stores,
            );
        }
    }

    fn want_fewer(&mut self, disk: usize) {
        self.remember_goals(disk);
        let extents = self.draw_extents(disk);
        self.stats.count("copies to drop");
        for extent in extents.first.0..extents.end.0 {
            let history = self.disks[disk].placement.history(Extent(extent));
            let mut stores: Vec<StoreId> = history.members().collect();
            if stores.len() > 1 {
                let out = self.dice.range(0..stores.len() as u64) as usize;
                stores.remove(out);
            }
            self.want(
                disk,
                Extents::new(Extent(extent), Extent(extent + 1)),
                &stores,
            );
        }
    }

    fn cancel(&mut self, disk: usize) {
        if let Some(before) = self.disks[disk].placement.goals.before.pop() {
            self.say(format_args!("the last order is cancelled"));
            self.stats.count("moves cancelled");
            if !self.disks[disk].placement.is_whole() {
                self.stats.count("moves cancelled before all was filled");
            }
            self.disks[disk].placement.goals.members = before;
        }
    }

    fn want_seeds(&mut self, disk: usize) {
        let stores = self.draw_stores(None, 1);
        let extents = self.draw_extents(disk);
        let on = self.dice.chance(0.8);
        let names: Vec<String> = stores.iter().map(|s| name(*s)).collect();
        self.say(format_args!("seeds: {extents} on {names:?}, {on}"));
        self.stats.count("seeds ordered");
        self.disks[disk].placement.goals.seed = match on {
            true => vec![NewSet { extents, stores }],
            false => Vec::new(),
        };
    }

    fn want_fill(&mut self, disk: usize) {
        let rates = [None, None, Some(64 << 10), Some(1 << 20), Some(16 << 20)];
        self.disks[disk].placement.goals.fill = FillOrders {
            paused: self.dice.chance(0.2),
            bytes_per_second: self.dice.pick(&rates),
            yields: self.dice.chance(0.5),
        };
        let fill = self.disks[disk].placement.goals.fill;
        self.say(format_args!("filling: {fill:?}"));
        self.stats.count("limits ordered");
    }

    /// Sends the orders to every host, each when it gets there.
    pub(super) fn give_orders(&mut self, disk: usize) {
        for host in 0..self.hosts.len() {
            if self.hosts[host].disk != disk {
                continue;
            }
            let wait = self.dice.wait(500);
            let life = self.hosts[host].life;
            self.after(wait, What::Orders(host, life));
        }
    }

    pub(super) fn orders_arrive(&mut self, host: usize, life: u64) {
        let disk = self.hosts[host].disk;
        let orders = self.disks[disk].placement.orders();
        self.tell(host, life, Event::Orders(orders));
    }

    /// A writer starts with what the service wants, or with the wish that its disk follows.
    pub(super) fn start_with_orders(&mut self, host: usize, take_over: TakeOver) {
        let disk = self.hosts[host].disk;
        if !self.quiet && self.dice.chance(self.temper.follow) {
            self.want_near(host);
            self.give_orders(disk);
        }
        let life = self.hosts[host].life;
        self.say(format_args!("W{host}.{life} starts, {take_over:?}"));
        self.hosts[host].starting = true;
        self.hosts[host].ordered = take_over == TakeOver::Ordered;
        if self.dice.chance(0.1) && !self.quiet {
            self.stats.count("orders that come after the start");
            self.give_orders(disk);
        } else {
            let orders = self.disks[disk].placement.orders();
            self.tell(host, life, Event::Orders(orders));
        }
        self.tell(host, life, Event::Start { take_over });
    }
}
