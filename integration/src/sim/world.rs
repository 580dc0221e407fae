//! The world of one seed: virtual time, a network that loses, delays, doubles and reorders, and what
//! happens next.
//!
//! The network's model: messages of one session may overtake one another; a lost one ends its
//! session some time later, as a transport would notice. Questions that were sent in a session that
//! is over may still arrive; answers do not (the shell drops them). Swaps and their answers are lost
//! or late; the shell then says "unknown".

use super::dice::Dice;
use super::host::{self, Asked, Host, Kind};
use super::oracle::Oracle;
use super::placement::{EXTENT_BYTES, Placement};
use super::stats::Stats;
use super::store_node::{Answer, Return, StoreNode, name};
use super::trace::Trace;
use replicator::message::{Reply, Request};
use replicator::store::ReadPlan;
use replicator::store::media::sim::SimMedia;
use replicator::words::{Blocks, Change, Epoch, Revision, SECTOR_BYTES, StoreId};
use replicator::writer::{
    Aim, CallId, Effect, Event, GuestOp, NotStarted, Now, RequestId, SwapOutcome,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

/// A rule was broken, or the engine panicked over it.
#[derive(Debug)]
pub struct Violation(pub String);

pub struct World {
    pub dice: Dice,
    /// Microseconds.
    pub now: u64,
    pub stores: Vec<StoreNode>,
    pub hosts: Vec<Host>,
    pub placement: Placement,
    pub oracle: Oracle,
    pub stats: Stats,
    pub trace: Trace,
    /// How often each thing goes wrong; zero for all heals everything.
    pub faults: Faults,
    pub(super) links: BTreeMap<(usize, StoreId), Link>,
    /// Losses of each store when it was last known to be whole: when an epoch was opened with it.
    pub(super) whole_at: BTreeMap<StoreId, u64>,
    pub(super) temper: super::life::Temper,
    /// Nothing goes wrong any more, and no guest begins anything.
    pub(super) quiet: bool,
    queue: BinaryHeap<Reverse<Scheduled>>,
    last_scheduled: u64,
    pub broken: Option<Violation>,
}

/// Probabilities, of a message or of a moment.
#[derive(Clone, Copy, Default, Debug)]
pub struct Faults {
    pub drop: f64,
    pub double: f64,
    pub slow: f64,
    pub lose_swap: f64,
}

#[derive(Default)]
pub(super) struct Link {
    pub session: u64,
    pub up: bool,
    /// Cut by a fault: no session comes about.
    pub cut: bool,
}

struct Scheduled {
    at: u64,
    number: u64,
    what: What,
}

pub(super) enum What {
    ToStore(StoreId, Return, Request),
    Answer(StoreId, Return, Reply),
    /// Read what was planned, unless the process died meanwhile.
    RunRead(StoreId, u64, Return, ReadPlan<SimMedia>),
    SyncBegins(StoreId, u64),
    SyncEnds(StoreId, u64),
    Housekeep(StoreId),
    Connect(usize, u64, StoreId),
    Break(usize, StoreId, u64),
    StartStore(StoreId, u64),
    Swap(usize, u64, CallId, Revision, Change, bool),
    Swapped(usize, u64, CallId, SwapOutcome),
    Inspect(usize, u64, CallId),
    Inspected(
        usize,
        u64,
        CallId,
        Option<Box<replicator::words::DiskRecord>>,
    ),
    Withdrawn(usize, u64, CallId),
    Timeout(usize, u64, Now),
    Guest(usize, u64),
    /// Whatever else may happen: see life.rs.
    Fate,
    Heal(Healing),
}

#[derive(Clone, Copy)]
pub(super) enum Healing {
    Link(usize, StoreId),
    Full(StoreId),
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl World {
    pub fn new(seed: u64, trace: Trace) -> World {
        let mut dice = Dice::new(seed);
        let stores: Vec<StoreNode> = (0..dice.range(3..5) as usize).map(StoreNode::new).collect();
        let copies = dice.range(1..4).min(2) as usize;
        let members: Vec<StoreId> = stores.iter().take(copies).map(|s| s.id).collect();
        let placement = Placement::new(dice.range(2..4) as u32, &members);
        let hosts = (0..dice.range(2..4) as usize).map(Host::new).collect();
        let often = dice.pick(&[0.0, 0.5, 1.0, 3.0]);
        let faults = Faults {
            drop: 0.004 * often,
            double: 0.02 * often,
            slow: 0.01 * often,
            lose_swap: dice.pick(&[0.0, 0.1, 0.3]),
        };
        let temper = super::life::Temper::draw(&mut dice);
        let mut world = World {
            temper,
            quiet: false,
            dice,
            now: 0,
            stores,
            hosts,
            placement,
            oracle: Oracle::default(),
            stats: Stats::default(),
            trace,
            faults,
            links: BTreeMap::new(),
            whole_at: BTreeMap::new(),
            queue: BinaryHeap::new(),
            last_scheduled: 0,
            broken: None,
        };
        for i in 0..world.stores.len() {
            let id = world.stores[i].id;
            world.after(1000, What::Housekeep(id));
        }
        world.after(1, What::Fate);
        world
    }

    /// Takes the next event. `false`: nothing will ever happen again.
    pub fn step(&mut self) -> Result<bool, Violation> {
        let Some(Reverse(next)) = self.queue.pop() else {
            return Ok(false);
        };
        self.now = self.now.max(next.at);
        self.trace.mix(next.at);
        self.happen(next.what);
        match self.broken.take() {
            Some(violation) => Err(violation),
            None => Ok(true),
        }
    }

    pub(super) fn after(&mut self, wait: u64, what: What) {
        self.last_scheduled += 1;
        self.queue.push(Reverse(Scheduled {
            at: self.now + wait,
            number: self.last_scheduled,
            what,
        }));
    }

    pub fn violate(&mut self, what: String) {
        self.say(format_args!("VIOLATION {what}"));
        self.broken.get_or_insert(Violation(what));
    }

    pub fn say(&mut self, line: std::fmt::Arguments<'_>) {
        self.trace.line(self.now, line);
    }

    pub(super) fn store(&mut self, id: StoreId) -> &mut StoreNode {
        let found = self.stores.iter_mut().find(|store| store.id == id);
        found.expect("a store of this world")
    }

    fn happen(&mut self, what: What) {
        match what {
            What::ToStore(store, to, request) => self.to_store(store, to, request),
            What::Answer(store, to, reply) => self.answer(store, to, reply),
            What::RunRead(store, process, to, plan) => {
                if self.store(store).process == process {
                    let reply = plan.run().map_or_else(Reply::Refused, Reply::Read);
                    self.reply(store, to, reply);
                }
            }
            What::SyncBegins(store, process) => self.sync_begins(store, process),
            What::SyncEnds(store, process) => self.sync_ends(store, process),
            What::Housekeep(store) => {
                let at = self.stores.iter().position(|s| s.id == store);
                let node = &mut self.stores[at.expect("a store")];
                node.housekeep(&mut self.stats);
                let wait = self.dice.wait(1500);
                self.after(wait, What::Housekeep(store));
            }
            What::Connect(host, life, store) => self.connects(host, life, store),
            What::Break(host, store, session) => {
                if self
                    .links
                    .get(&(host, store))
                    .is_some_and(|l| l.session == session)
                {
                    self.breaks(host, store);
                }
            }
            What::StartStore(store, process) => self.start_store(store, process),
            What::Swap(host, life, call, expected, change, heard) => {
                self.swap(host, life, call, expected, change, heard);
            }
            What::Swapped(host, life, call, outcome) => {
                self.tell(host, life, Event::Swapped { call, outcome });
            }
            What::Inspect(host, life, call) => {
                let record = Some(Box::new(self.placement.record.clone()));
                let wait = self.dice.wait(300);
                self.after(wait, What::Inspected(host, life, call, record));
            }
            What::Inspected(host, life, call, record) => {
                self.tell(host, life, Event::Inspected { call, record });
            }
            What::Withdrawn(host, life, call) => {
                if self.hosts[host].life == life {
                    self.hosts[host].reads.remove(&call);
                    self.tell(host, life, Event::Withdrawn { call });
                }
            }
            What::Timeout(host, life, at) => {
                if self.hosts[host].life == life && self.hosts[host].timeout == Some(at) {
                    self.hosts[host].timeout = None;
                    self.tell(host, life, Event::Timeout);
                }
            }
            What::Guest(host, life) => {
                if self.hosts[host].life == life {
                    self.guest(host);
                }
            }
            What::Fate => self.fate(),
            What::Heal(healing) => self.heal(healing),
        }
    }

    // ---- the network

    fn to_store(&mut self, store: StoreId, to: Return, request: Request) {
        let session = self.links.get(&(to.host, store)).map(|link| link.session);
        if session != Some(to.session) {
            self.stats.count("questions of a session that was over");
        }
        self.say(format_args!(
            "  {} <- W{}.{} {}",
            name(store),
            to.host,
            to.life,
            brief(&request)
        ));
        let node = self.store(store);
        let process = node.process;
        match node.handle(request, to) {
            None => {}
            Some(Answer::Now(reply)) => self.reply(store, to, reply),
            Some(Answer::Read(plan)) => {
                let wait = self.dice.wait(30);
                self.after(wait, What::RunRead(store, process, to, plan));
            }
            Some(Answer::AfterSync) => {
                let wait = self.dice.wait(20);
                self.after(wait, What::SyncBegins(store, process));
            }
        }
        if self.store(store).has_failed() {
            self.stats.count("failed stores");
            let wait = self.dice.wait(10_000);
            self.after(wait, What::StartStore(store, process));
        }
    }

    fn sync_begins(&mut self, store: StoreId, process: u64) {
        let node = self.store(store);
        if node.process != process {
            return;
        }
        if node.sync_begins() {
            let wait = self.dice.wait(200);
            self.after(wait, What::SyncEnds(store, process));
        }
        self.keep_promises(store);
    }

    fn sync_ends(&mut self, store: StoreId, process: u64) {
        let node = self.store(store);
        if node.process != process {
            return;
        }
        node.sync_ends();
        if node.has_failed() {
            self.stats.count("failed syncs");
            self.say(format_args!("{} fails a sync", name(store)));
            let wait = self.dice.wait(10_000);
            self.after(wait, What::StartStore(store, process));
        }
        if self.keep_promises(store) {
            self.after(1, What::SyncBegins(store, process));
        }
    }

    /// Gives the answers whose sync has come; says whether more wait.
    fn keep_promises(&mut self, store: StoreId) -> bool {
        let (answers, more) = self.store(store).kept_promises();
        for (reply, to) in answers {
            self.reply(store, to, reply);
        }
        more
    }

    /// The store's answer sets out.
    fn reply(&mut self, store: StoreId, to: Return, reply: Reply) {
        if let Reply::Sealed(_) = reply {
            self.store(store).was_sealed();
        }
        self.say(format_args!(
            "  {} -> W{}.{} #{} {}",
            name(store),
            to.host,
            to.life,
            to.call.0,
            brief_reply(&reply)
        ));
        if self.dice.chance(self.faults.drop) {
            return self.lost(to.host, store, to.session);
        }
        let wait = self.travel(to.host, store);
        self.after(wait, What::Answer(store, to, reply));
    }

    fn answer(&mut self, store: StoreId, to: Return, mut reply: Reply) {
        let link = self.links.entry((to.host, store)).or_default();
        if !link.up || link.session != to.session || self.hosts[to.host].life != to.life {
            return;
        }
        let host = &mut self.hosts[to.host];
        if let Reply::Read(answer) = &mut reply {
            let withdrawn = host.withdrawn.contains(&to.call);
            if let Some((_, Aim::Guest { .. }, _)) = host.reads.get(&to.call) {
                if withdrawn {
                    return;
                }
                if let Err(why) = host.land(to.call, answer) {
                    return self.violate(why);
                }
                answer.data = Default::default();
            }
        }
        let host = &mut self.hosts[to.host];
        host.reads.remove(&to.call);
        let event = Event::Reply {
            call: to.call,
            reply,
        };
        self.tell(to.host, to.life, event);
    }

    fn send(&mut self, host: usize, store: StoreId, call: CallId, request: Request, aim: Aim) {
        let life = self.hosts[host].life;
        let link = self.links.entry((host, store)).or_default();
        let session = link.session;
        if !link.up {
            return self.violate(format!(
                "W{host} sends to {} without a session",
                name(store)
            ));
        }
        if let Request::Read { blocks, .. } = &request {
            self.hosts[host].reads.insert(call, (store, aim, *blocks));
        }
        let to = Return {
            host,
            life,
            session,
            call,
        };
        if self.dice.chance(self.faults.drop) {
            return self.lost(host, store, session);
        }
        if self.dice.chance(self.faults.double) {
            self.stats.count("doubled questions");
            let wait = self.dice.wait(2000);
            self.after(wait, What::ToStore(store, to, request.clone()));
        }
        let wait = self.travel(host, store);
        self.after(wait, What::ToStore(store, to, request));
    }

    /// A message was lost: its session is found broken some time later.
    fn lost(&mut self, host: usize, store: StoreId, session: u64) {
        self.stats.count("lost messages");
        let wait = self.dice.wait(3000);
        self.after(wait, What::Break(host, store, session));
    }

    fn travel(&mut self, host: usize, store: StoreId) -> u64 {
        if self.near(host) == Some(store) {
            return self.dice.range(1..10);
        }
        if self.dice.chance(self.faults.slow) {
            return self.dice.range(1_000..40_000);
        }
        self.dice.wait(100)
    }

    /// The store on the same machine.
    pub(super) fn near(&self, host: usize) -> Option<StoreId> {
        self.stores.get(host).map(|store| store.id)
    }

    pub(super) fn connects(&mut self, host: usize, life: u64, store: StoreId) {
        if self.hosts[host].life != life || !self.hosts[host].wanted.contains(&store) {
            return;
        }
        let up = self.store(store).core.is_some();
        let link = self.links.entry((host, store)).or_default();
        if link.up {
            return;
        }
        if link.cut || !up {
            let wait = self.dice.wait(1000);
            return self.after(wait, What::Connect(host, life, store));
        }
        link.up = true;
        link.session += 1;
        self.tell(host, life, Event::Connected { store });
    }

    pub(super) fn breaks(&mut self, host: usize, store: StoreId) {
        let link = self.links.entry((host, store)).or_default();
        if !link.up {
            return;
        }
        link.up = false;
        let life = self.hosts[host].life;
        self.stats.count("broken sessions");
        self.say(format_args!("session W{host}-{} breaks", name(store)));
        self.hosts[host].reads.retain(|_, (to, ..)| *to != store);
        self.tell(host, life, Event::Disconnected { store });
        let wait = self.dice.wait(500);
        self.after(wait, What::Connect(host, life, store));
    }

    // ---- the placement service

    fn ask_swap(&mut self, host: usize, call: CallId, expected: Revision, change: Change) {
        let life = self.hosts[host].life;
        let wait = self.dice.wait(300);
        let arrives = !self.dice.chance(self.faults.lose_swap);
        let heard = !self.dice.chance(self.faults.lose_swap);
        if !arrives || !heard {
            let patience = self.dice.wait(3000);
            let outcome = SwapOutcome::Unknown;
            self.after(patience, What::Swapped(host, life, call, outcome));
        }
        if arrives {
            // It may arrive long after its asker stopped waiting, or died.
            let late = if heard { 0 } else { self.dice.range(0..6000) };
            self.after(
                wait + late,
                What::Swap(host, life, call, expected, change, heard),
            );
        }
    }

    fn swap(
        &mut self,
        host: usize,
        life: u64,
        call: CallId,
        expected: Revision,
        change: Change,
        heard: bool,
    ) {
        let before = self.placement.record.owner().cloned();
        let outcome = self.placement.swap(expected, &change);
        let how = match &outcome {
            SwapOutcome::Done(_) => "done",
            SwapOutcome::Conflict(_) => "conflict",
            SwapOutcome::Refused(_) => "refused",
            SwapOutcome::Unknown => "unknown",
        };
        self.say(format_args!(
            "W{host}.{life} swaps {}: {how}",
            brief_change(&change)
        ));
        if let SwapOutcome::Done(record) = &outcome {
            self.trace.mix(record.revision.0);
            let map = record.map.clone();
            let epoch = record.epoch;
            self.say(format_args!("record: epoch {epoch}, {}", brief_map(&map)));
            self.stats.count(match change {
                Change::Attach { .. } => "attaches",
                Change::TakeOver { .. } => "take-overs",
                Change::Settle { .. } => "settles",
                Change::Eject { .. } => "ejections",
                Change::Close { .. } => "closes",
            });
            if matches!(change, Change::TakeOver { .. }) {
                self.check_order(host, life, &before);
            }
            if !heard {
                self.stats.count("swaps done and not heard of");
            }
            if matches!(change, Change::Eject { .. }) && self.hosts[host].life != life {
                self.stats.count("ejections by the dead");
            }
            self.consider_losses();
        }
        if matches!(
            (&outcome, &change),
            (SwapOutcome::Conflict(_), Change::Close { .. })
        ) {
            self.stats.count("closes raced");
        }
        if heard {
            let wait = self.dice.wait(300);
            self.after(wait, What::Swapped(host, life, call, outcome));
        }
    }

    /// A1, A3: nobody takes another backend's epoch over without an order.
    fn check_order(&mut self, host: usize, life: u64, before: &Option<replicator::words::Owner>) {
        let asker = &self.hosts[host];
        let others = before
            .as_ref()
            .is_some_and(|owner| owner.backend != asker.owner().backend);
        if others && asker.life == life && !asker.ordered {
            self.violate(format!("A1: W{host} takes over without an order"));
        }
    }

    /// Extents all of whose members lost what was not synced since they were whole: nobody can
    /// have it any more.
    pub(super) fn consider_losses(&mut self) {
        for range in &self.placement.record.map {
            let lost = range.history.newest().stores.iter().all(|id| {
                let node = self.stores.iter().find(|s| s.id == *id).expect("a store");
                node.losses > self.whole_at.get(id).copied().unwrap_or(0)
            });
            if lost {
                self.stats.count("extents whose members were all lost");
                let per_extent = EXTENT_BYTES / SECTOR_BYTES;
                let first = u64::from(range.extents.first.0) * per_extent;
                let end = u64::from(range.extents.end.0) * per_extent;
                self.oracle.lost_unsynced(first..end);
            }
        }
    }

    // ---- the writers' shells

    /// An event for a writer, if it still lives, and all that follows from it.
    pub(super) fn tell(&mut self, host: usize, life: u64, event: Event) {
        if self.hosts[host].life != life {
            return;
        }
        let now = Now(Duration::from_micros(self.now));
        let Some(writer) = &mut self.hosts[host].writer else {
            return;
        };
        writer.handle(now, event);
        while let Some(effect) = self.hosts[host].writer.as_mut().and_then(|w| w.poll()) {
            self.act(host, effect);
        }
        let Some(writer) = &self.hosts[host].writer else {
            return;
        };
        let next = writer.next_timeout();
        if next != self.hosts[host].timeout {
            self.hosts[host].timeout = next;
            if let Some(at) = next {
                let wait = (at.0.as_micros() as u64).saturating_sub(self.now);
                self.after(wait, What::Timeout(host, life, at));
            }
        }
    }

    fn act(&mut self, host: usize, effect: Effect) {
        let life = self.hosts[host].life;
        match effect {
            Effect::Connect { store } => {
                self.hosts[host].wanted.insert(store);
                let wait = self.dice.range(1..200);
                self.after(wait, What::Connect(host, life, store));
            }
            Effect::Send {
                store,
                call,
                request,
                aim,
            } => self.send(host, store, call, request, aim),
            Effect::Withdraw { call } => {
                self.stats.count("withdrawn reads");
                self.hosts[host].withdrawn.insert(call);
                let wait = self.dice.range(1..100);
                self.after(wait, What::Withdrawn(host, life, call));
            }
            Effect::Swap {
                call,
                expected,
                change,
            } => self.ask_swap(host, call, expected, change),
            Effect::Inspect { call } => {
                let wait = self.dice.wait(300);
                let what = if self.dice.chance(self.faults.lose_swap) {
                    What::Inspected(host, life, call, None)
                } else {
                    What::Inspect(host, life, call)
                };
                self.after(wait, what);
            }
            Effect::Zero { id, span } => {
                let Some(asked) = self.hosts[host].requests.get_mut(&id) else {
                    return self.violate(format!("request {} is zeroed after its end", id.0));
                };
                let from = (span.offset - asked.span.offset) as usize;
                asked.landing[from..from + span.len as usize].fill(0);
            }
            Effect::Complete { id, result } => self.completed(host, id, result.is_ok()),
            Effect::Opened { epoch } => self.opens(host, epoch),
            Effect::NotStarted { why } => {
                self.hosts[host].starting = false;
                self.say(format_args!("W{host}.{life} not started: {why}"));
                if matches!(why, NotStarted::AlreadyOpen { .. }) {
                    self.stats.count("starts refused");
                }
            }
            Effect::Stopped { clean } => {
                self.hosts[host].stopping = false;
                self.hosts[host].starting = false;
                self.hosts[host].guest_on = false;
                self.say(format_args!("W{host}.{life} stopped, clean: {clean}"));
                self.stats.count(if clean {
                    "clean stops"
                } else {
                    "unclean stops"
                });
                if clean && self.placement.record.owner().is_none() {
                    self.oracle.all_synced();
                }
            }
            Effect::Superseded { shown } => {
                self.hosts[host].guest_on = false;
                self.hosts[host].starting = false;
                self.say(format_args!("W{host}.{life} superseded by epoch {shown}"));
                self.stats.count("superseded writers");
            }
            Effect::Stalled(stall) => {
                self.say(format_args!("W{host}.{life} stalls: {stall}"));
                self.stats.count("stalls");
            }
            Effect::Resumed => {}
        }
    }

    fn opens(&mut self, host: usize, epoch: Epoch) {
        let life = self.hosts[host].life;
        self.say(format_args!("W{host}.{life} opens epoch {epoch}"));
        self.trace.mix(epoch.as_u64());
        let first = self.hosts[host].starting;
        if self.is_owner(host) {
            if first {
                // What an attach or a take-over opens is synced and whole on every member.
                let members = self.placement.record.members();
                for id in members {
                    let losses = self.store(id).losses;
                    self.whole_at.insert(id, losses);
                }
                self.oracle.all_synced();
                for other in self.hosts.iter().filter(|other| other.number != host) {
                    for asked in other.requests.values() {
                        if let Kind::Write(number) = asked.kind {
                            self.oracle.overtaken(number);
                        }
                    }
                }
            } else {
                self.stats.count("epochs opened by ejection");
                if !self.hosts[host].requests.is_empty() {
                    self.stats.count("ejections with requests in flight");
                }
            }
        }
        self.hosts[host].starting = false;
        if first && !self.hosts[host].stopping && !self.quiet {
            self.hosts[host].guest_on = true;
            self.hosts[host].depth = self.dice.range(1..5) as usize;
            self.after(1, What::Guest(host, life));
        }
    }

    /// Whether the record says that this host's writer owns the disk.
    pub(super) fn is_owner(&self, host: usize) -> bool {
        let owner = self.hosts[host].owner();
        let recorded = self.placement.record.owner();
        recorded.is_some_and(|o| (o.backend, o.life) == (owner.backend, owner.life))
    }

    // ---- the guests

    fn guest(&mut self, host: usize) {
        let life = self.hosts[host].life;
        if !self.hosts[host].guest_on || self.hosts[host].stopping || self.quiet {
            return;
        }
        while self.hosts[host].requests.len() < self.hosts[host].depth {
            self.issue(host);
            if self.dice.chance(0.5) {
                break;
            }
        }
        let wait = self.dice.wait(150);
        self.after(wait, What::Guest(host, life));
    }

    fn issue(&mut self, host: usize) {
        let bytes = self.placement.record.bytes;
        let span = host::draw_span(&mut self.dice, EXTENT_BYTES, bytes);
        let die = self.dice.range(0..100);
        match die {
            0..45 => self.issue_write(host, span, false),
            45..55 => self.issue_write(host, span, true),
            55..90 => self.issue_read(host, span),
            _ => self.issue_flush(host),
        }
    }

    fn issue_write(&mut self, host: usize, span: replicator::words::Span, zeroes: bool) {
        let number = self.oracle.write(host::sectors(span), zeroes);
        let op = if zeroes {
            GuestOp::Zero { span }
        } else {
            let data = host::data(number, span);
            GuestOp::Write { span, data }
        };
        self.submit(host, span, Kind::Write(number), op);
    }

    pub(super) fn issue_read(&mut self, host: usize, span: replicator::words::Span) {
        let ticket = self.oracle.read(host::sectors(span));
        self.submit(host, span, Kind::Read(ticket), GuestOp::Read { span });
    }

    fn issue_flush(&mut self, host: usize) {
        let ticket = self.oracle.flush();
        let span = replicator::words::Span::new(0, 0);
        self.submit(host, span, Kind::Flush(ticket), GuestOp::Flush);
    }

    fn submit(&mut self, host: usize, span: replicator::words::Span, kind: Kind, op: GuestOp) {
        let life = self.hosts[host].life;
        let id = self.hosts[host].next_request();
        self.say(format_args!(
            "G{host}.{life} r{} {} {kind:?}",
            id.0,
            host::describe(&op)
        ));
        // What is not filled must not pass for anything.
        let landing = match kind {
            Kind::Read(_) => vec![0xee; span.len as usize],
            _ => Vec::new(),
        };
        let asked = Asked {
            span,
            kind,
            landing,
        };
        self.hosts[host].requests.insert(id, asked);
        self.tell(host, life, Event::Guest { id, op });
    }

    fn completed(&mut self, host: usize, id: RequestId, ok: bool) {
        let life = self.hosts[host].life;
        self.trace.mix(id.0 << 1 | u64::from(ok));
        let Some(asked) = self.hosts[host].requests.remove(&id) else {
            return self.violate(format!("request {} completes twice", id.0));
        };
        self.say(format_args!("G{host}.{life} r{} ends, ok: {ok}", id.0));
        match asked.kind {
            Kind::Write(number) if ok => {
                self.stats.count("writes");
                if !self.is_owner(host) {
                    self.stats
                        .count("writes that a superseded writer completes");
                }
                if let Err(sector) = self.oracle.acknowledged(number) {
                    self.violate(format!(
                        "I3: W{host} completes write {number}, which the writer after it does not see in sector {sector}"
                    ));
                }
            }
            Kind::Write(number) => {
                self.stats.count("writes of unknown outcome");
                self.oracle.abandoned(number);
            }
            Kind::Flush(ticket) if ok => {
                self.stats.count("flushes");
                self.oracle.flushed(ticket);
            }
            Kind::Flush(ticket) => self.oracle.flush_failed(ticket),
            // R3: a writer that was superseded and is cut off from all who know may read old blocks.
            Kind::Read(ticket) if ok && !self.is_owner(host) => self.oracle.read_failed(ticket),
            Kind::Read(ticket) if ok => {
                self.stats.count("reads");
                let read = self
                    .oracle
                    .read_done(ticket, true, |sector| asked.content(sector));
                if let Err(wrong) = read {
                    self.violate(format!(
                        "I1/I5: W{host} reads {:?} in sector {} where one of {:?} must be",
                        wrong.got, wrong.sector, wrong.may
                    ));
                }
            }
            Kind::Read(ticket) => {
                self.stats.count("reads that failed");
                self.oracle.read_failed(ticket);
            }
        }
    }

    /// The requests of a writer that is gone.
    pub(super) fn abandon(&mut self, kinds: Vec<Kind>) {
        for kind in kinds {
            match kind {
                Kind::Write(number) => self.oracle.abandoned(number),
                Kind::Read(ticket) => self.oracle.read_failed(ticket),
                Kind::Flush(ticket) => self.oracle.flush_failed(ticket),
            }
        }
    }
}

pub(super) fn brief(request: &Request) -> String {
    let at = |epoch: Epoch, blocks: &Blocks| format!("{epoch} {blocks}");
    match request {
        Request::Seal { epoch, .. } => format!("Seal {epoch}"),
        Request::Join {
            asker,
            from,
            extents,
            ..
        } => format!("Join {} {extents} from {from}", asker.epoch),
        Request::Write {
            asker,
            seq,
            watermark,
            blocks,
            content,
        } => {
            let zeroes = matches!(content, replicator::message::Content::Zeroes);
            let what = if zeroes { "Zero" } else { "Write" };
            format!(
                "{what} {}:{} wm {} {blocks} inc {}",
                asker.epoch, seq.0, watermark.0, asker.incarnation.0
            )
        }
        Request::Read {
            asker,
            from,
            below,
            blocks,
        } => {
            format!("Read {} from {from} below {below}", at(asker.epoch, blocks))
        }
        Request::Sync { asker } => format!("Sync {} inc {}", asker.epoch, asker.incarnation.0),
        Request::List {
            asker,
            extents,
            above,
            start,
        } => {
            format!(
                "List {} {extents} above {above} at {}",
                asker.epoch, start.0
            )
        }
        Request::Settle { asker, extents } => format!("Settle {} {extents}", asker.epoch),
    }
}

fn brief_reply(reply: &Reply) -> String {
    match reply {
        Reply::Sealed(sealed) => format!(
            "Sealed inc {} wm {} {:?}",
            sealed.incarnation.0, sealed.watermark, sealed.replicas
        ),
        Reply::Read(read) => format!("Read {:?}", read.found),
        Reply::Listed { blocks, more } => {
            let blocks: Vec<_> = blocks.iter().map(|b| (b.block.0, b.version)).collect();
            format!("Listed {blocks:?} more {more}")
        }
        other => format!("{other:?}"),
    }
}

fn brief_change(change: &Change) -> String {
    let names = |stores: &Vec<StoreId>| {
        stores
            .iter()
            .map(|s| name(*s))
            .collect::<Vec<_>>()
            .join(" ")
    };
    match change {
        Change::Attach { sets, .. } => format!("Attach with {} new sets", sets.len()),
        Change::TakeOver { .. } => "TakeOver".into(),
        Change::Settle { drop, .. } => format!("Settle, drops [{}]", names(drop)),
        Change::Eject { stores, .. } => format!("Eject [{}]", names(stores)),
        Change::Close { last, .. } => format!("Close after {last}"),
    }
}

fn brief_map(map: &[replicator::words::MapRange]) -> String {
    let mut text = String::new();
    for range in map {
        text += &format!(" {}:", range.extents);
        for entry in &range.history.0 {
            let names: Vec<String> = entry.stores.iter().map(|s| name(*s)).collect();
            text += &format!(" ({} {})", entry.from, names.join(" "));
        }
    }
    text
}
