//! What happens to processes, machines, disks and cables.

use super::dice::Dice;
use super::store_node::name;
use super::world::{Healing, What, World};
use replicator::words::StoreId;
use replicator::writer::{Event, TakeOver};

/// How rough the life of one seed is: weights of what may happen at each moment.
pub struct Temper {
    nothing: u64,
    start: u64,
    stop: u64,
    writer_dies: u64,
    node_dies: u64,
    power_loss: u64,
    all_power_lost: u64,
    fail_syncs: u64,
    fill: u64,
    cut: u64,
    /// Between two stores.
    cut_stores: u64,
    placement_away: u64,
    /// Nothing gets through in one direction.
    cut_one_way: u64,
    /// A process stands still, and its clock with it or not.
    pause: u64,
    clock: u64,
    /// A write tears, and its process dies.
    tear: u64,
    /// Bits of what was synced flip.
    rot: u64,
    /// The service wants something else.
    orders: u64,
    /// Of a start of a writer that is not the owner: by order.
    ordered: f64,
    /// Of a start: the disk shall follow its VM.
    pub follow: f64,
    pub ejects: bool,
}

impl Temper {
    pub fn draw(dice: &mut Dice) -> Temper {
        match dice.range(0..10) {
            0 | 1 => return Temper::mover(dice),
            2..6 => return Temper::filler(dice),
            _ => {}
        }
        // Some lives are calm but for one thing, some are rough all over.
        let calm = dice.pick(&[0, 1, 1, 3]);
        let mut rough = |most: u64| dice.pick(&[0, 0, 0, 1, most / 2, most]) >> calm;
        Temper {
            nothing: 60,
            start: 10,
            stop: rough(6),
            writer_dies: rough(6),
            node_dies: rough(6),
            power_loss: rough(8),
            all_power_lost: rough(2),
            fail_syncs: rough(2),
            fill: rough(4),
            cut: rough(6),
            cut_stores: rough(4),
            placement_away: rough(2),
            cut_one_way: rough(5),
            pause: rough(4),
            clock: rough(3),
            tear: rough(3),
            rot: rough(4),
            orders: rough(8),
            ordered: dice.pick(&[0.1, 0.3, 0.8]),
            follow: dice.pick(&[0.0, 0.3, 0.8]),
            ejects: dice.chance(0.85),
        }
    }

    /// A disk that wanders: many short stays with other members, so that histories grow long, and
    /// members that are cut off or die within them.
    fn mover(dice: &mut Dice) -> Temper {
        Temper {
            nothing: 30,
            start: 30,
            stop: 10,
            writer_dies: 4,
            node_dies: dice.pick(&[0, 2]),
            power_loss: dice.pick(&[0, 0, 1]),
            all_power_lost: 0,
            fail_syncs: 0,
            fill: 0,
            cut: 6,
            cut_stores: 0,
            placement_away: 0,
            cut_one_way: dice.pick(&[0, 4]),
            pause: dice.pick(&[0, 2]),
            clock: 0,
            tear: 0,
            rot: 0,
            orders: 5,
            ordered: 0.8,
            follow: 0.9,
            ejects: true,
        }
    }

    /// A disk that stays open while it is moved about, so that fills end, or nearly.
    fn filler(dice: &mut Dice) -> Temper {
        let mut rough = |most: u64| dice.pick(&[0, 0, 1, most]);
        Temper {
            nothing: 80,
            start: 12,
            stop: rough(4),
            writer_dies: rough(2),
            node_dies: rough(3),
            power_loss: rough(4),
            all_power_lost: rough(1),
            fail_syncs: rough(1),
            fill: rough(2),
            cut: rough(2),
            cut_stores: rough(4),
            placement_away: rough(2),
            cut_one_way: rough(3),
            pause: rough(3),
            clock: rough(2),
            tear: rough(2),
            rot: rough(5),
            orders: dice.pick(&[2, 5, 12]),
            ordered: dice.pick(&[0.3, 0.8]),
            follow: dice.pick(&[0.3, 0.9]),
            ejects: true,
        }
    }

    /// Nothing happens of its own accord.
    pub fn calm() -> Temper {
        Temper {
            nothing: 1,
            start: 0,
            stop: 0,
            writer_dies: 0,
            node_dies: 0,
            power_loss: 0,
            all_power_lost: 0,
            fail_syncs: 0,
            fill: 0,
            cut: 0,
            cut_stores: 0,
            placement_away: 0,
            cut_one_way: 0,
            pause: 0,
            clock: 0,
            tear: 0,
            rot: 0,
            orders: 0,
            ordered: 0.0,
            follow: 0.0,
            ejects: true,
        }
    }
}

impl World {
    /// A moment at which something may happen that nobody asked for.
    pub(super) fn fate(&mut self) {
        if self.quiet {
            return;
        }
        let wait = self.dice.wait(600);
        self.after(wait, What::Fate);
        let t = &self.temper;
        let weights = [
            t.nothing,
            t.start,
            t.stop,
            t.writer_dies,
            t.node_dies,
            t.power_loss,
            t.all_power_lost,
            t.fail_syncs,
            t.fill,
            t.cut,
            t.cut_stores,
            t.placement_away,
            t.orders,
            t.cut_one_way,
            t.pause,
            t.clock,
            t.tear,
            t.rot,
        ];
        let mut die = self.dice.range(0..weights.iter().sum());
        let fate = weights.iter().position(|weight| {
            let here = die < *weight;
            die = die.saturating_sub(*weight);
            here
        });
        let host = self.dice.range(0..self.hosts.len() as u64) as usize;
        let store = self.dice.range(0..self.stores.len() as u64) as usize;
        let id = self.stores[store].id;
        match fate {
            Some(1) => self.maybe_start(host),
            Some(2) => self.maybe_stop(host),
            Some(3) => self.writer_dies(host),
            Some(4) => {
                if self.dice.chance(0.5) {
                    self.writers_die_on(store);
                }
                self.store_dies(store, false);
            }
            Some(5) => self.machine_dies(store),
            Some(6) => {
                self.say(format_args!("all power is lost"));
                self.stats.count("power lost everywhere");
                for store in 0..self.stores.len() {
                    self.machine_dies(store);
                }
            }
            // What a failed sync leaves is as good as what power leaves.
            Some(7) if self.stores[store].may_lose_power() => {
                self.say(format_args!("{} will fail its syncs", name(id)));
                self.stores[store].media.fail_syncs(true);
                // A later one may succeed: that must not make the failed one forgotten.
                if self.dice.chance(0.6) {
                    let wait = self.dice.wait(1_000);
                    self.after(wait, What::Heal(Healing::Syncs(id)));
                }
            }
            Some(8) => {
                let filling = self.is_filled(id);
                self.stats
                    .count_if(filling, "disks that were full while they were filled");
                self.say(format_args!("{} is full", name(id)));
                self.stats.count("full disks");
                self.stores[store].media.set_capacity(Some(0));
                let wait = self.dice.wait(20_000);
                self.after(wait, What::Heal(Healing::Full(id)));
            }
            Some(9) => {
                self.say(format_args!("W{host}-{} is cut", name(id)));
                self.stats.count("cut links");
                self.links.entry((host, id)).or_default().cut = true;
                self.breaks(host, id);
                let wait = self.dice.wait(20_000);
                self.after(wait, What::Heal(Healing::Link(host, id)));
            }
            Some(10) => {
                let other = self.dice.range(0..self.stores.len() as u64) as usize;
                let other = self.stores[other].id;
                self.say(format_args!("{}-{} is cut", name(id), name(other)));
                self.stats.count("cut links between stores");
                let wait = self.dice.wait(20_000);
                let both = self.dice.chance(0.6);
                for (one, other) in [(id, other), (other, id)] {
                    if both || one == id {
                        self.cut_stores.insert((one, other));
                        self.after(wait, What::Heal(Healing::Cable(one, other)));
                    }
                }
            }
            Some(11) if self.managed.is_some() => self.trouble_with_placement(),
            Some(11) => {
                self.say(format_args!("the placement service is away"));
                self.stats.count("placement service away");
                self.placement_away_until = self.now + self.dice.wait(20_000);
            }
            Some(12) => {
                let disk = self.dice.range(0..self.disks.len() as u64) as usize;
                match self.managed {
                    Some(_) => self.something_is_ordered(disk),
                    None => self.new_goals(disk),
                }
            }
            Some(13) => self.cut_one_way(host, id),
            Some(14) => self.pause(host, store),
            Some(15) => {
                let ahead = self.dice.pick(&[5_000, 50_000, 5_000_000]);
                self.say(format_args!("the clock of W{host} jumps by {ahead} us"));
                self.stats.count("clocks that jumped");
                self.hosts[host].clock += ahead;
                let life = self.hosts[host].life;
                if self.hosts[host].paused_until <= self.now {
                    self.hosts[host].timeout = None;
                    self.tell(host, life, Event::Timeout);
                }
            }
            Some(16) => {
                let bytes = self.dice.range(0..20_000);
                self.say(format_args!("{} tears a write in {bytes} bytes", name(id)));
                if self.stores[store].core.is_some() {
                    self.stores[store].media.tear_after(bytes);
                    self.stores[store].tears = true;
                }
            }
            Some(17) => {
                self.rot_later += 1;
                self.rot(store);
            }
            _ => {}
        }
    }

    fn cut_one_way(&mut self, host: usize, store: StoreId) {
        let deaf = self.dice.chance(0.5);
        self.say(format_args!("W{host}-{} is cut one way", name(store)));
        self.stats.count(match deaf {
            true => "links cut one way: questions",
            false => "links cut one way: answers",
        });
        let link = self.links.entry((host, store)).or_default();
        (link.deaf, link.mute) = (deaf, !deaf);
        let wait = self.dice.wait(15_000);
        self.after(wait, What::Heal(Healing::Link(host, store)));
    }

    pub(super) fn heal(&mut self, healing: Healing) {
        match healing {
            Healing::Link(host, store) => {
                self.links.entry((host, store)).or_default().heal();
            }
            Healing::Cable(one, other) => {
                self.cut_stores.remove(&(one, other));
            }
            Healing::Full(store) => self.store(store).media.set_capacity(None),
            Healing::Syncs(store) => {
                self.store(store).media.fail_syncs(false);
                if self.store(store).has_failed() {
                    self.stats
                        .count("syncs that would succeed after one failed");
                }
            }
        }
    }

    fn maybe_start(&mut self, host: usize) {
        let state = &self.hosts[host];
        if state.starting || state.stopping || state.guest_on {
            return;
        }
        let disk = state.disk;
        let owner = self.disks[disk].placement.record.owner().cloned();
        let other = owner.is_some_and(|o| o.backend != state.owner().backend);
        // The other VM still runs: only now and then does anybody order this.
        let mut others = self.hosts.iter().filter(|h| h.disk == disk);
        let alive = other && others.any(|h| h.guest_on);
        if alive && !self.dice.chance(0.2) {
            return;
        }
        let ordered = self.dice.chance(self.temper.ordered);
        let take_over = if ordered {
            TakeOver::Ordered
        } else {
            TakeOver::Own
        };
        if alive && ordered {
            self.stats.count("take-overs of the living");
        }
        if self.managed.is_some() {
            return self.vm_is_wanted(host, ordered, alive);
        }
        self.start_writer(host, take_over);
    }

    pub(super) fn start_writer(&mut self, host: usize, take_over: TakeOver) {
        if self.hosts[host].writer.is_none() {
            let near = self.near(host).filter(|_| self.dice.chance(0.8));
            self.boot(host, near);
        }
        self.start_with_orders(host, take_over);
    }

    /// A new process, with a writer that is not started.
    pub(super) fn boot(&mut self, host: usize, near: Option<StoreId>) {
        let record = self.disk_of(host).placement.record.clone();
        let ejects = self.temper.ejects;
        let gone = self.hosts[host].crash();
        self.abandon(host, gone);
        self.hosts[host].boot(record, near, ejects);
    }

    pub(super) fn maybe_stop(&mut self, host: usize) {
        let state = &mut self.hosts[host];
        if (state.guest_on || state.starting) && !state.stopping {
            if self.managed.is_some() {
                return self.vm_is_stopped(host);
            }
            state.stopping = true;
            let life = state.life;
            self.say(format_args!("W{host}.{life} stops"));
            if self.dice.chance(0.3) {
                self.tell(host, life, Event::SyncContinuously(true));
            }
            self.tell(host, life, Event::Stop { successor: None });
        }
    }

    pub(super) fn writer_dies(&mut self, host: usize) {
        let state = &self.hosts[host];
        if state.writer.is_none() {
            return;
        }
        self.stats.count("dead writers");
        self.stats.count_if(
            state.unheard,
            "writers that died between a swap and hearing of it",
        );
        if state.writer.as_ref().is_some_and(|w| !w.is_serving()) {
            self.stats.count(match (state.starting, state.guest_on) {
                (true, _) => "writers that died on the way to serving",
                (false, true) => "writers that died within an ejection",
                (false, false) => "writers that died idle",
            });
        }
        let life = state.life;
        self.say(format_args!("W{host}.{life} dies"));
        self.process_ends(host);
        // Its node starts it anew; its VM may be gone with it.
        self.hosts[host].runs = false;
        self.hosts[host].vm &= self.managed.is_some() && self.dice.chance(0.5);
    }

    /// A writer's process is gone, and with it all its sessions.
    pub(super) fn process_ends(&mut self, host: usize) {
        let gone = self.hosts[host].crash();
        self.abandon(host, gone);
        for store in 0..self.stores.len() {
            let id = self.stores[store].id;
            let link = self.links.entry((host, id)).or_default();
            link.up = false;
        }
    }

    pub(super) fn store_dies(&mut self, store: usize, power: bool) {
        let id = self.stores[store].id;
        let power = power && self.stores[store].may_lose_power();
        self.say(format_args!("{} dies, power lost: {power}", name(id)));
        if power {
            self.stats.count("power losses");
            self.stores[store].power_loss(&mut self.dice);
            self.consider_losses();
        } else {
            self.stats.count("dead store processes");
            self.stores[store].kill();
        }
        let maps = self.disks.iter().flat_map(|d| &d.placement.record.map);
        let histories = maps.map(|range| &range.history);
        let filling = |filled: bool| {
            let mut at = histories.clone().filter(|history| !history.is_whole());
            at.any(|history| match history.member(id) {
                Some(entry) => entry.whole != filled,
                None => !filled && history.0.iter().any(|entry| entry.has(id)),
            })
        };
        let (target, source) = (filling(true), filling(false));
        if target {
            self.stats.count("stores that died while they were filled");
        }
        if source {
            self.stats
                .count("stores that died while others were filled from them");
        }
        self.count_dead_moves();
        let members = |d: &&super::disk::Disk| d.placement.record.members().contains(&id);
        let several = self.disks.iter().filter(members).count() > 1;
        self.stats.count_if(
            power && several,
            "power losses of stores that serve several disks",
        );
        for host in 0..self.hosts.len() {
            self.breaks(host, id);
        }
        let process = self.stores[store].process;
        let wait = match self.dice.range(0..20) {
            // Longer than policy waits before it makes another copy.
            0..3 if self.managed.is_some() => 200_000,
            0..6 => 40_000,
            _ => 2_000,
        };
        let wait = self.dice.wait(wait);
        self.after(wait, What::StartStore(id, process));
    }

    /// Whether it is a member of something that it does not have yet.
    fn is_filled(&self, id: StoreId) -> bool {
        let mut maps = self.disks.iter().flat_map(|d| &d.placement.record.map);
        maps.any(|range| range.history.member(id).is_some_and(|entry| !entry.whole))
    }

    /// Moves none of whose targets, and none of whose sources, is up.
    fn count_dead_moves(&mut self) {
        let down = |id: &StoreId| {
            let node = self.stores.iter().find(|store| store.id == *id);
            node.is_some_and(|node| node.core.is_none())
        };
        let maps = self.disks.iter().flat_map(|d| &d.placement.record.map);
        let dead = maps.filter(|range| {
            let entries = &range.history.0;
            let (targets, sources): (Vec<_>, Vec<_>) = entries
                .iter()
                .partition(|entry| entry.is_live() && !entry.whole);
            let all_down = |side: &[&replicator::words::Entry]| {
                !side.is_empty() && side.iter().all(|entry| entry.stores.iter().all(down))
            };
            all_down(&targets) && all_down(&sources)
        });
        let dead = dead.count() > 0;
        self.stats.count_if(dead, "moves with both ends dead");
    }

    /// All that run beside this store.
    fn writers_die_on(&mut self, machine: usize) {
        for host in 0..self.hosts.len() {
            if self.hosts[host].machine == machine {
                self.writer_dies(host);
            }
        }
    }

    pub(super) fn machine_dies(&mut self, store: usize) {
        self.writers_die_on(store);
        self.store_dies(store, true);
    }

    /// A store's process begins, in place of `process` if that is dead or has failed.
    pub(super) fn start_store(&mut self, id: StoreId, process: u64) {
        let node = self.store(id);
        if node.held || node.process != process || (node.core.is_some() && !node.has_failed()) {
            return;
        }
        if node.core.is_some() {
            node.kill();
            for host in 0..self.hosts.len() {
                self.breaks(host, id);
            }
        }
        let node = self.store(id);
        node.media.fail_syncs(false);
        node.media.set_capacity(None);
        let before = node.losses;
        let result = node.start();
        if node.losses > before {
            self.consider_losses();
        }
        match result {
            Ok(()) => self.say(format_args!("{} is up", name(id))),
            Err(why) => self.violate(why),
        }
    }
}
