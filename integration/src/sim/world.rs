//! The world of one seed: virtual time, a network that loses, delays, doubles and reorders, and what
//! happens next.
//!
//! The network's model: messages of one session may overtake one another; a lost one ends its
//! session some time later, as a transport would notice. Questions that were sent in a session that
//! is over may still arrive; answers do not (the shell drops them). Swaps and their answers are lost
//! or late; the shell then says "unknown".

use super::dice::Dice;
use super::disk::Disk;
use super::host::Host;
use super::load::Load;
use super::managed::{Managed, Placing};
use super::pause::Process;
use super::placement::Retired;
use super::pulls::{Fetching, PullId};
use super::rot::Rotten;
use super::stats::Stats;
use super::store_node::{Return, StoreNode};
use super::trace::Trace;
use replicator::message::{Reply, Request};
use replicator::store::media::sim::SimMedia;
use replicator::store::{FetchPlan, ReadPlan};
use replicator::words::{Change, DiskRecord, Revision, StoreId};
use replicator::writer::{CallId, Event, Now, SwapOutcome};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// Of the seeds: those whose orders are the placement service's own.
const MANAGED: f64 = 0.25;

/// A rule was broken, or the engine panicked over it.
#[derive(Debug)]
pub struct Violation(pub String);

pub struct World {
    pub dice: Dice,
    /// Microseconds.
    pub now: u64,
    pub stores: Vec<StoreNode>,
    pub hosts: Vec<Host>,
    pub disks: Vec<Disk>,
    pub stats: Stats,
    pub trace: Trace,
    /// How often each thing goes wrong; zero for all heals everything.
    pub faults: Faults,
    pub(super) links: BTreeMap<(usize, StoreId), Link>,
    /// From which store to which nothing gets through.
    pub(super) cut_stores: BTreeSet<(StoreId, StoreId)>,
    /// Pulls that wait for what was fetched from another store.
    pub(super) pulls: BTreeMap<PullId, Fetching>,
    pub(super) last_pull: u64,
    pub(super) temper: super::life::Temper,
    /// Nothing goes wrong any more, and no guest begins anything.
    pub(super) quiet: bool,
    /// A message between sites takes about this long, in microseconds.
    pub(super) far: u64,
    /// What the placement service does not answer before this moment.
    pub(super) placement_away_until: u64,
    /// What came for processes that stand still: it comes all at once when they go on.
    pub(super) backlog: BTreeMap<Process, Vec<What>>,
    pub(super) rotten: Vec<Rotten>,
    /// How often bits flip when all copies are whole again.
    pub(super) rot_later: u64,
    pub(super) load: Load,
    /// Where orders come from the placement service itself.
    pub(super) managed: Option<Box<Managed>>,
    /// How many events the rough part has.
    pub(super) events: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    last_scheduled: u64,
    pub broken: Option<Violation>,
}

/// How large a world is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub stores: usize,
    pub disks: usize,
    /// Machines on which each disk's guest may run.
    pub hosts: usize,
    /// Stores and hosts take turns in standing in one of so many sites.
    pub sites: usize,
    /// The first so many stores are the disk's first members.
    pub copies: usize,
    pub extents: u32,
}

/// Probabilities, of a message or of a moment.
#[derive(Clone, Copy, Default, Debug)]
pub struct Faults {
    pub drop: f64,
    pub double: f64,
    pub slow: f64,
    pub lose_swap: f64,
    /// Of messages between two stores.
    pub fetch_drop: f64,
    pub fetch_double: f64,
    pub fetch_slow: f64,
}

#[derive(Default)]
pub(super) struct Link {
    pub session: u64,
    pub up: bool,
    /// Cut by a fault: no session comes about.
    pub cut: bool,
    /// Questions, or answers, are lost; nobody is told. No new session comes about.
    pub deaf: bool,
    pub mute: bool,
}

impl Link {
    pub fn heal(&mut self) {
        (self.cut, self.deaf, self.mute) = (false, false, false);
    }

    pub fn is_sound(&self) -> bool {
        !self.cut && !self.deaf && !self.mute
    }
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
    /// A fetch reaches the store that is pulled from.
    Fetch(PullId, StoreId, Request),
    /// Read what it asks for, unless the process died meanwhile.
    RunFetch(PullId, StoreId, u64, FetchPlan<SimMedia>),
    /// The answer to a fetch is back.
    Fetched(PullId, Reply),
    /// The pulling store waits no longer.
    PullOver(PullId),
    /// The service's orders reach a host.
    Orders(usize, u64),
    /// The service looks whether a replica that nobody names can go.
    ConsiderDrop(Retired),
    /// Its order to let a replica go reaches the store.
    Drop(Retired),
    SyncBegins(StoreId, u64),
    /// All was synced a while ago.
    Note(StoreId, u64),
    SyncEnds(StoreId, u64),
    Housekeep(StoreId),
    Connect(usize, u64, StoreId),
    Break(usize, StoreId, u64),
    StartStore(StoreId, u64),
    Swap(usize, u64, CallId, Revision, Change, bool),
    Swapped(usize, u64, CallId, SwapOutcome),
    Inspect(usize, u64, CallId),
    Inspected(usize, u64, CallId, Option<Box<DiskRecord>>),
    Withdrawn(usize, u64, CallId),
    Timeout(usize, u64, Now),
    Guest(usize, u64),
    /// A process that stood still goes on.
    Resume(Process),
    /// Whatever else may happen: see life.rs.
    Fate,
    Heal(Healing),
    /// The placement service and its nodes.
    Placing(Placing),
}

#[derive(Clone, Copy)]
pub(super) enum Healing {
    Link(usize, StoreId),
    /// From one store to another.
    Cable(StoreId, StoreId),
    Full(StoreId),
    Syncs(StoreId),
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
        let managed = dice.chance(MANAGED);
        let shape = Shape {
            stores: dice.range(3..7) as usize,
            disks: dice.pick(&[1, 1, 1, 2, 3]),
            hosts: dice.range(2..4) as usize,
            sites: dice.pick(&[1, 2, 2, 2]),
            copies: dice.range(1..4).min(2) as usize,
            extents: dice.range(2..4) as u32,
        };
        let shape = Shape {
            // A service may want a writer on any node.
            hosts: if managed { shape.stores } else { shape.hosts },
            ..shape
        };
        let mut world = World::of(shape, dice, trace);
        if managed {
            world.manage(shape);
        }
        let dice = &mut world.dice;
        world.far = dice.pick(&[200, 500, 1500]);
        let often = dice.pick(&[0.0, 0.5, 1.0, 3.0]);
        let fetches = dice.pick(&[0.0, 1.0, 4.0]);
        world.faults = Faults {
            drop: 0.004 * often,
            double: 0.02 * often,
            slow: 0.01 * often,
            lose_swap: dice.pick(&[0.0, 0.1, 0.3]),
            fetch_drop: 0.02 * fetches,
            fetch_double: 0.05 * fetches,
            fetch_slow: 0.03 * fetches,
        };
        world.temper = super::life::Temper::draw(dice);
        world.load = Load::draw(dice);
        world.events = dice.pick(&[3_000, 5_000, 5_000, 10_000]);
        world.after(1, What::Fate);
        world
    }

    /// A world in which nothing ever goes wrong of its own accord.
    pub fn of(shape: Shape, dice: Dice, trace: Trace) -> World {
        let stores: Vec<StoreNode> = (0..shape.stores)
            .map(|number| StoreNode::new(number, number % shape.sites))
            .collect();
        let members: Vec<StoreId> = stores.iter().take(shape.copies).map(|s| s.id).collect();
        let disks = (0..shape.disks)
            .map(|number| Disk::new(number, shape.extents, &members))
            .collect();
        let mut world = World {
            dice,
            now: 0,
            stores,
            hosts: (0..shape.hosts * shape.disks)
                .map(|i| Host::new(i, i / shape.hosts, i % shape.hosts))
                .collect(),
            disks,
            stats: Stats::default(),
            trace,
            faults: Faults::default(),
            links: BTreeMap::new(),
            cut_stores: BTreeSet::new(),
            pulls: BTreeMap::new(),
            last_pull: 0,
            temper: super::life::Temper::calm(),
            quiet: false,
            far: 500,
            placement_away_until: 0,
            backlog: BTreeMap::new(),
            rotten: Vec::new(),
            rot_later: 0,
            load: Load::common(),
            managed: None,
            events: 0,
            queue: BinaryHeap::new(),
            last_scheduled: 0,
            broken: None,
        };
        for i in 0..world.stores.len() {
            let id = world.stores[i].id;
            world.after(1000, What::Housekeep(id));
        }
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

    /// The disk of a host's guest.
    pub(super) fn disk_of(&mut self, host: usize) -> &mut Disk {
        &mut self.disks[self.hosts[host].disk]
    }

    fn happen(&mut self, what: What) {
        if let Some(who) = self.process_of(&what)
            && self.is_paused(who)
        {
            self.backlog.entry(who).or_default().push(what);
            return;
        }
        match what {
            What::ToStore(store, to, request) => self.arrives(store, to, request),
            What::Answer(store, to, reply) => self.answer(store, to, reply),
            What::RunRead(store, process, to, plan) => {
                if self.store(store).process == process {
                    let reply = plan.run().map_or_else(Reply::Refused, Reply::Read);
                    self.reply(store, to, reply);
                }
            }
            What::Fetch(pull, source, request) => self.fetch_arrives(pull, source, request),
            What::RunFetch(pull, source, process, plan) => {
                if self.store(source).process == process {
                    let reply = plan.run().map_or_else(Reply::Refused, Reply::Fetched);
                    self.fetch_answered(pull, source, reply);
                }
            }
            What::Fetched(pull, reply) => self.fetched(pull, reply),
            What::PullOver(pull) => self.pull_over(pull),
            What::Orders(host, life) => self.orders_arrive(host, life),
            What::ConsiderDrop(retired) => self.consider_drop(retired),
            What::Drop(retired) => self.drop_arrives(retired),
            What::Note(store, process) => self.note(store, process),
            What::SyncBegins(store, process) => self.sync_begins(store, process),
            What::SyncEnds(store, process) => self.sync_ends(store, process),
            What::Housekeep(store) => {
                let at = self.stores.iter().position(|s| s.id == store);
                let node = &mut self.stores[at.expect("a store")];
                node.housekeep(&mut self.stats);
                self.died_writing(store);
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
                if self.hosts[host].life == life && !matches!(outcome, SwapOutcome::Unknown) {
                    self.hosts[host].unheard = false;
                }
                self.tell(host, life, Event::Swapped { call, outcome });
            }
            What::Inspect(host, life, call) => {
                let record = match self.managed {
                    Some(_) => self.record_by_service(host),
                    None => Some(Box::new(self.disk_of(host).placement.record.clone())),
                };
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
            What::Resume(who) => {
                if !self.is_paused(who) {
                    self.resume(who);
                }
            }
            What::Fate => self.fate(),
            What::Heal(healing) => self.heal(healing),
            What::Placing(placing) => self.placing(placing),
        }
    }
}
