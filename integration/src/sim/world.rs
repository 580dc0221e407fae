//! The world of one seed: virtual time, a network that loses, delays, doubles and reorders, and what
//! happens next.
//!
//! The network's model: messages of one session may overtake one another; a lost one ends its
//! session some time later, as a transport would notice. Questions that were sent in a session that
//! is over may still arrive; answers do not (the shell drops them). Swaps and their answers are lost
//! or late; the shell then says "unknown".

use super::dice::Dice;
use super::host::Host;
use super::oracle::Oracle;
use super::placement::Placement;
use super::stats::Stats;
use super::store_node::{Return, StoreNode};
use super::trace::Trace;
use replicator::message::{Reply, Request};
use replicator::store::ReadPlan;
use replicator::store::media::sim::SimMedia;
use replicator::words::{Change, DiskRecord, Revision, StoreId};
use replicator::writer::{CallId, Event, Now, SwapOutcome};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

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
    Inspected(usize, u64, CallId, Option<Box<DiskRecord>>),
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
            What::ToStore(store, to, request) => self.arrives(store, to, request),
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
}
