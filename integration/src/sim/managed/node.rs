//! Nodes: what they tell the placement service, and how they do what they are told. A node is up while its
//! store is; writers beside it may outlive it for a while.

use super::{FROM, Placing, node_name, site_name};
use crate::sim::store_node::name;
use crate::sim::world::{What, World};
use placement_service::api::Wanted;
use placement_service::brief::Brief;
use placement_service::node_protocol::{
    BackendReport, BackendState, Desired, DesiredAttachment, DiskShown, DiskUse, DropReplica,
    Heartbeat, KeptDisk, Lists, MAX_RECORDS, Records, Request, StoreReport,
};
use replicator::store::{LogPoint, ShownDisk, ShownDisks};
use replicator::words::{DiskRecord, RackName, Revision};
use replicator::writer::{Event, Hindrance, TakeOver};

pub(super) struct Node {
    /// Which of the two services it takes for the leader.
    pub asks: usize,
    seen: u64,
    brief: Brief,
    /// Which of its store's processes it is.
    process: u64,
    /// The last time that somebody asked for its store's records.
    round: u64,
    dropping: Vec<DropReplica>,
    dropped: Vec<DropReplica>,
}

pub(in crate::sim) type Told = Desired;

impl Node {
    pub fn new(_machine: usize) -> Node {
        Node {
            asks: 0,
            seen: 0,
            brief: Brief::new(0),
            process: 0,
            round: 0,
            dropping: Vec::new(),
            dropped: Vec::new(),
        }
    }
}

impl World {
    /// A node says what it has, and hears what is wanted of it some time later.
    pub(super) fn beat(&mut self, machine: usize) {
        let store = &self.stores[machine];
        let process = store.process;
        if store.core.is_none() {
            return;
        }
        let node = &mut self.managed().nodes[machine];
        if node.process != process {
            // What an earlier process had begun is begun anew.
            *node = Node {
                asks: node.asks,
                process,
                brief: Brief::new(process << 32),
                ..Node::new(machine)
            };
        }
        if self.now < self.placement_away_until || self.dice.chance(self.faults.lose_swap * 0.3) {
            return;
        }
        let heartbeat = self.heartbeat(machine);
        if let Some(desired) = self.says(machine, heartbeat)
            && !self.dice.chance(self.faults.lose_swap * 0.3)
        {
            let wait = self.dice.wait(300);
            let told = Placing::Told(machine, process, Box::new(desired));
            self.after(wait, What::Placing(told));
        }
    }

    /// All of it, where the service does not remember it.
    fn says(&mut self, machine: usize, heartbeat: Heartbeat) -> Option<Desired> {
        for _ in 0..2 {
            let brief = &mut self.managed().nodes[machine].brief;
            let request = brief.shorten(heartbeat.clone());
            let answer = self.ask_as_node(machine, &request)?;
            let brief = &mut self.managed().nodes[machine].brief;
            if let Some(desired) = brief.hear(answer).ok()? {
                return Some(desired);
            }
            self.stats.count("service: a node tells all again");
        }
        None
    }

    fn heartbeat(&mut self, machine: usize) -> Heartbeat {
        let store = &self.stores[machine];
        let core = store.core.as_ref().expect("it is up");
        let ShownDisks {
            disks: shown,
            complete,
        } = core.shown_disks();
        let node = &self.managed.as_ref().expect("a seed with a service").nodes[machine];
        let report = StoreReport {
            id: store.id,
            starts: core.starts(),
            runs: Vec::new(),
            incarnation: core.incarnation(),
            capacity_bytes: 1 << 40,
            used_bytes: 1 << 30,
            disks: shown
                .iter()
                .map(|shown| DiskUse {
                    disk: shown.disk,
                    allocated_bytes: 1 << 16,
                })
                .collect(),
            shown: shown
                .iter()
                .map(|shown| DiskShown {
                    disk: shown.disk,
                    epoch: shown.epoch,
                    revision: revision(shown),
                })
                .collect(),
            all_shown: complete,
            dropped: Vec::new(),
            dropped_replicas: node.dropped.clone(),
            trouble: core.has_failed().then(|| "it has failed".into()),
            media: Default::default(),
            log: Default::default(),
        };
        let here = self.hosts.iter();
        let here = here.filter(|host| host.machine == machine && host.runs);
        let backends = here.map(|host| {
            let writer = host.writer.as_ref();
            let hindrance = writer.and_then(|writer| writer.hindrance());
            BackendReport {
                disk: self.disks[host.disk].id,
                backend: host.backend,
                state: match host.stopping {
                    true => BackendState::Stopping,
                    false => BackendState::Ready {
                        socket: "disk.sock".into(),
                        status: String::new(),
                    },
                },
                epoch: writer
                    .filter(|writer| writer.is_serving())
                    .map(|writer| writer.record().epoch),
                stall: writer.and_then(|w| w.stall()).map(ToString::to_string),
                hindrance: hindrance.map(ToString::to_string),
                unreachable: match hindrance {
                    Some(Hindrance::NoAnswer(stores)) => stores.clone(),
                    _ => Vec::new(),
                },
                progress: writer.map(|writer| writer.progress()),
                verdict: None,
            }
        });
        Heartbeat {
            datacenter: site_name(store.site),
            rack: RackName::new(format!("r{}", machine / 2)).expect("a fine name"),
            listen: std::net::SocketAddr::new(FROM, 7000 + machine as u16),
            stores: vec![report],
            backends: backends.collect(),
            links: Vec::new(),
            seen: node.seen,
            lists: Lists::default(),
        }
    }

    /// The node makes what runs on it the same as what is wanted.
    pub(super) fn told(&mut self, machine: usize, process: u64, desired: Desired) {
        let node = &mut self.managed().nodes[machine];
        if node.process != process || self.stores[machine].process != process {
            return;
        }
        let node = &mut self.managed().nodes[machine];
        node.seen = desired.digest;
        let asked = desired.records != 0 && desired.records != node.round;
        node.round = desired.records;
        if asked {
            let wait = self.dice.wait(300);
            let records = Placing::Records(machine, process, desired.records);
            self.after(wait, What::Placing(records));
        }
        self.begin_drops(machine, process, &desired.drop_replicas);
        let here: Vec<usize> = (0..self.hosts.len())
            .filter(|host| self.hosts[*host].machine == machine)
            .collect();
        for host in &here {
            if self.hosts[*host].runs {
                self.follow(*host, &desired);
            }
        }
        for host in here {
            let disk = self.disks[self.hosts[host].disk].id;
            let mut wanted = desired.attachments.iter();
            let wanted = wanted.find(|a| a.disk == disk && a.wanted != Wanted::Detached);
            match wanted {
                Some(wanted) if !self.hosts[host].runs => self.launch(host, wanted),
                _ => {}
            }
            self.vm_tries_again(host);
        }
    }

    fn follow(&mut self, host: usize, desired: &Desired) {
        let disk = self.disks[self.hosts[host].disk].id;
        let backend = self.hosts[host].backend;
        let mut of_disk = desired.attachments.iter().filter(|a| a.disk == disk);
        let wanted = of_disk.find(|a| a.backend == backend);
        let ordered_since = |a: &DesiredAttachment| a.take_over && !self.hosts[host].may_take_over;
        match wanted {
            Some(a)
                if a.wanted != Wanted::Detached && (self.is_busy(host) || !ordered_since(a)) =>
            {
                self.hosts[host].may_take_over = a.take_over;
                if let Some(orders) = &a.orders
                    && self.hosts[host].told != *orders
                {
                    self.hosts[host].told = orders.clone();
                    let (life, orders) = (self.hosts[host].life, orders.clone());
                    self.tell(host, life, Event::Orders(orders));
                }
            }
            _ => self.let_go(host),
        }
    }

    /// It is open, or about to be, or closing.
    fn is_busy(&self, host: usize) -> bool {
        let host = &self.hosts[host];
        host.engaged || host.stopping
    }

    /// A backend is to end: it closes what it has open first.
    pub(super) fn let_go(&mut self, host: usize) {
        self.hosts[host].leaves = true;
        if self.hosts[host].stopping {
            return;
        }
        if self.is_busy(host) {
            self.stop_writer(host);
        } else {
            self.gone(host);
        }
    }

    /// The backend's process has ended.
    pub(super) fn gone(&mut self, host: usize) {
        self.process_ends(host);
        self.hosts[host].runs = false;
    }

    pub(super) fn stop_writer(&mut self, host: usize) {
        self.hosts[host].stopping = true;
        let life = self.hosts[host].life;
        self.say(format_args!("W{host}.{life} stops"));
        self.tell(host, life, Event::Stop { successor: None });
    }

    /// A writer has stopped: what was waited for goes on.
    pub(in crate::sim) fn stopped_by_service(&mut self, host: usize) {
        if std::mem::take(&mut self.hosts[host].leaves) {
            self.gone(host);
        }
        if let Some(to) = self.hosts[host].moves_to.take() {
            self.stats.count("service: VMs that moved");
            self.hosts[host].vm = self.dice.chance(0.15);
            self.hosts[to].vm = true;
            self.vm_starts(to);
        }
    }

    /// A backend's process begins.
    fn launch(&mut self, host: usize, wanted: &DesiredAttachment) {
        let Some(record) = self.record_by_service(host) else {
            return;
        };
        self.process_ends(host);
        let near = self.near(host).filter(|_| self.dice.chance(0.8));
        let ejects = self.temper.ejects;
        let others = record.owner().is_some_and(|o| o.backend != wanted.backend);
        let state = &mut self.hosts[host];
        state.backend = wanted.backend;
        state.boot(*record, near, ejects);
        state.runs = true;
        state.copies = wanted.wanted == Wanted::Copying;
        state.may_take_over = wanted.take_over;
        state.told = wanted.orders.clone().unwrap_or_default();
        let at_once = state.copies || wanted.take_over && others;
        self.stats
            .count_if(wanted.wanted == Wanted::Copying, "service: copiers");
        self.say(format_args!("W{host} runs as {:?}", wanted.wanted));
        if at_once {
            self.start_told(host);
        } else {
            self.vm_starts(host);
        }
    }

    /// A VM that is here uses its disk, if it can.
    pub(super) fn vm_starts(&mut self, host: usize) {
        let state = &self.hosts[host];
        if state.vm && state.runs && !state.copies && !state.leaves && !self.is_busy(host) {
            self.start_told(host);
        }
    }

    fn vm_tries_again(&mut self, host: usize) {
        if self.quiet || self.dice.chance(0.3) {
            self.vm_starts(host);
        }
    }

    fn start_told(&mut self, host: usize) {
        let take_over = match self.hosts[host].may_take_over {
            true => TakeOver::Ordered,
            false => TakeOver::Own,
        };
        let (life, orders) = (self.hosts[host].life, self.hosts[host].told.clone());
        self.say(format_args!("W{host}.{life} starts, {take_over:?}"));
        self.hosts[host].starting = true;
        self.hosts[host].engaged = true;
        self.hosts[host].ordered = take_over == TakeOver::Ordered;
        self.tell(host, life, Event::Orders(orders));
        self.tell(host, life, Event::Start { take_over });
    }

    pub(super) fn tell_records(&mut self, machine: usize, process: u64, round: u64) {
        let store = &self.stores[machine];
        let Some(core) = store.core.as_ref().filter(|_| store.process == process) else {
            return;
        };
        let (id, shown) = (store.id, core.shown_disks());
        if !shown.complete {
            self.managed().nodes[machine].round = 0;
            return;
        }
        let mut parts = shown.disks.chunks(MAX_RECORDS).peekable();
        loop {
            let part = parts.next().unwrap_or_default();
            let last = parts.peek().is_none();
            let disks = part.iter().map(|shown| KeptDisk {
                disk: shown.disk,
                epoch: shown.epoch,
                record: record(shown).map(Box::new),
            });
            let records = Request::Records(Records {
                round,
                store: id,
                last,
                disks: disks.collect(),
            });
            let lost = self.now < self.placement_away_until;
            let answer = match lost || self.dice.chance(self.faults.lose_swap * 0.3) {
                true => None,
                false => self.ask_as_node(machine, &records),
            };
            if answer.is_none() {
                // It tells all of it again.
                self.managed().nodes[machine].round = 0;
                return;
            }
            if last {
                return;
            }
        }
    }

    fn begin_drops(&mut self, machine: usize, process: u64, wanted: &[DropReplica]) {
        let id = self.stores[machine].id;
        let node = &mut self.managed().nodes[machine];
        node.dropping.retain(|one| wanted.contains(one));
        node.dropped.retain(|one| wanted.contains(one));
        let fresh = wanted.iter().filter(|one| one.store == id);
        let fresh: Vec<DropReplica> = fresh
            .filter(|one| !node.dropping.contains(one))
            .cloned()
            .collect();
        node.dropping.extend(fresh.iter().cloned());
        for drop in fresh {
            self.stats.count("service: deletions ordered");
            let typical = self.dice.pick(&[100, 100, 20_000]);
            let wait = self.dice.wait(typical);
            self.after(wait, What::Placing(Placing::Drop(machine, process, drop)));
        }
    }

    pub(super) fn drop_told(&mut self, machine: usize, process: u64, drop: DropReplica) {
        let store = &mut self.stores[machine];
        let Some(core) = store.core.as_mut().filter(|_| store.process == process) else {
            return;
        };
        let mut point = core.synced();
        let mut refused = false;
        for extents in &drop.extents {
            loop {
                match core.drop_replica(drop.disk, *extents, drop.joined_below) {
                    Ok(Some(promise)) => point = promise.point(),
                    Ok(None) => break,
                    Err(_) => {
                        refused = true;
                        break;
                    }
                }
            }
        }
        let id = store.id;
        self.say(format_args!(
            "{} drops {:?} if joined below {}, refused: {refused}",
            name(id),
            drop.extents,
            drop.joined_below
        ));
        if refused {
            let node = &mut self.managed().nodes[machine];
            return node.dropping.retain(|one| *one != drop);
        }
        self.after(1, What::SyncBegins(id, process));
        let durable = Placing::Dropped(machine, process, drop, point);
        self.after(500, What::Placing(durable));
    }

    pub(super) fn drop_durable(
        &mut self,
        machine: usize,
        process: u64,
        drop: DropReplica,
        point: LogPoint,
    ) {
        let store = &self.stores[machine];
        let Some(core) = store.core.as_ref().filter(|_| store.process == process) else {
            return;
        };
        let (id, synced, failed) = (store.id, core.synced() >= point, core.has_failed());
        if synced && !failed {
            self.stats.count("service: copies deleted");
            let node = &mut self.managed().nodes[machine];
            if node.dropping.contains(&drop) {
                node.dropped.push(drop);
            }
        } else if !failed {
            self.after(1, What::SyncBegins(id, process));
            let durable = Placing::Dropped(machine, process, drop, point);
            self.after(500, What::Placing(durable));
        }
    }

    /// Whether `machine`'s node would be told of by that name.
    pub(super) fn node_of(&self, host: usize) -> replicator::words::HostName {
        node_name(self.hosts[host].machine)
    }
}

fn revision(shown: &ShownDisk) -> Option<Revision> {
    let record = record(shown)?;
    (record.epoch == shown.epoch).then_some(record.revision)
}

fn record(shown: &ShownDisk) -> Option<DiskRecord> {
    if shown.record.is_empty() {
        return None;
    }
    let record = DiskRecord::from_kept(&shown.record).expect("a store keeps what it was told");
    Some(record).filter(|record| record.id == shown.disk)
}
