//! The writer of a disk: numbers its writes, sends them to every member of the write set, and says
//! when a guest may hear of them. It attaches, takes over, ejects members and closes.
//!
//! All of it is one state machine without clock, I/O or randomness: [`Writer::handle`] takes an
//! event, [`Writer::poll`] gives the effects that follow from it, [`Writer::next_timeout`] says when
//! to come back. The shell around it is `vhost_backend::disk`, and the simulator.
//!
//! ```text
//!  guest        writer             near store   far store   placement
//!    | write      |                    |            |           |
//!    |----------->| lock the blocks    |            |           |
//!    |            | version (E, seq)   |            |           |
//!    |            |---- Write -------->|            |           |
//!    |            |---- Write ---------|----------->|           |
//!    |            |<--- Written -------|            |           |
//!    |            |<--- Written -------|------------|           |
//!    |<-- done ---| unlock             |            |           |
//!    |            |                    |   crashes: incarnation |
//!    | write      |                    |            |           |
//!    |----------->|---- Write -------->|            |           |
//!    |            |---- Write ---------|----------->|           |
//!    |            |<--- OtherIncarnation -----------|           |
//!    |            |--- Swap(Eject far) -------------|---------->|  W6: before it is acknowledged
//!    |            |<-- epoch E+1 -------------------|-----------|
//!    |            |---- Seal E+1 ----->|            |           |
//!    |            |<--- Sealed --------|            |           |
//!    |            |---- Write (E+1,1) >|            |           |  W7: reissued
//!    |            |<--- Written -------|            |           |
//!    |<-- done ---|                    |            |           |
//! ```

//! Follow a write in requests.rs (pieces), block_locks.rs, sequencer.rs, write.rs and flush.rs; a read
//! in read.rs, read_through.rs and, where it meets damage, heal.rs; what looks for damage in verify.rs; the life of an epoch in attach.rs, switch.rs, eject.rs, take_over.rs with
//! even_out.rs, and close.rs; a move in switch.rs, fill.rs (what there is to do), heat.rs and backfill.rs.
//! The rules (W1, S3...) and invariants (I1...) that comments cite stand in docs/protocol.md.

mod answers;
mod api;
mod attach;
mod backfill;
mod block_locks;
mod calls;
mod close;
mod deadline;
mod eject;
mod errand;
mod even_out;
mod fill;
mod flush;
mod heal;
mod heat;
mod peers;
mod read;
mod read_through;
mod requests;
mod sequencer;
mod switch;
mod take_over;
#[cfg(test)]
mod tests;
mod verdict;
mod verify;
mod write;

pub use verdict::{CopyOfBlock, DamagedCopy, Difference, Verdict, VerifyOrder};

pub use api::{
    Aim, CallId, Config, Effect, Event, Failure, FillOrders, GuestOp, Hindrance, NotStarted, Now,
    Orders, Progress, RequestId, Stall, SwapOutcome, TakeOver,
};

use crate::words::{DiskRecord, Epoch, Owner, Revision, StoreId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// The writer of one disk in one backend. See the module for what it does.
pub struct Writer {
    config: Config,
    owner: Owner,
    record: DiskRecord,
    /// The placement service may have a later record.
    stale: bool,
    /// The record of that revision as stores keep it.
    kept_record: Option<(Revision, Bytes)>,
    phase: Phase,
    now: Now,
    peers: BTreeMap<StoreId, peers::Peer>,
    calls: calls::Calls,
    errand: Option<errand::Errand>,

    /// Requests that came while the disk was not open. Bounded by the device's queues.
    waiting: VecDeque<requests::Waiting>,
    requests: BTreeMap<RequestId, requests::Guest>,
    in_flight_bytes: u64,
    /// Of writes whose guest was told that they failed, and that are still to be done.
    orphan_bytes: u64,
    last_piece: u64,
    locks: block_locks::BlockLocks,
    writes: BTreeMap<PieceId, write::WritePiece>,
    /// Writes that have their blocks, and wait for the epoch to be open.
    ready: VecDeque<PieceId>,
    sequencer: sequencer::Sequencer,
    reads: BTreeMap<PieceId, read::ReadPiece>,
    /// Reads without a store to ask.
    seeking: BTreeSet<PieceId>,
    flushes: flush::Flushes,

    orders: Orders,
    /// They, or the record, have changed since they were last compared.
    orders_are_new: bool,
    orders_hindrance: Option<Hindrance>,
    switching: Option<switch::Switching>,
    fill: fill::Fill,
    heals: heal::Heals,
    verifying: verify::Verifying,
    progress: Progress,
    /// When the guest last asked for something.
    guest_seen: Option<Now>,
    /// When the current epoch began to be served.
    opened: Now,
    hindrance: Option<Hindrance>,
    /// Round trips to stores, where they are known.
    distances: BTreeMap<StoreId, Duration>,
    sync_continuously: bool,
    stopping: Option<close::Stopping>,
    start_after_stop: Option<TakeOver>,
    /// A take-over has to begin again.
    restart: bool,
    blocked: Option<eject::Blocked>,
    full: Option<StoreId>,
    /// A store that has not taken our grant for long.
    ungranted: Option<StoreId>,
    /// Stores that reads have been waiting for.
    unreachable: Vec<StoreId>,
    stall: Option<Stall>,
    patrol_at: Option<Now>,
    effects: VecDeque<Effect>,
}

/// A piece of a request; one question, or one a member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct PieceId(u64);

enum Phase {
    /// Not started, or stopped.
    Idle,
    /// A record is fetched, or an attach or take-over is asked for.
    Starting(attach::Starting),
    Opening(attach::Opening),
    Open,
    /// An ejection is asked for. `serving`: what is in flight goes on as before; either way the
    /// members are a part of those of now.
    Ejecting {
        fresh: Option<Epoch>,
        serving: bool,
    },
    /// A change of members is asked for. Nothing is in flight, new writes are held, reads go on.
    Switching,
    Settling(Box<take_over::Settling>),
    Closing,
    Superseded,
}

impl Writer {
    /// A writer that is not started yet. `record` may be old: a start finds out.
    pub fn new(config: Config, owner: Owner, record: DiskRecord) -> Writer {
        Writer {
            config,
            owner,
            record,
            stale: false,
            kept_record: None,
            phase: Phase::Idle,
            now: Now::default(),
            peers: BTreeMap::new(),
            calls: Default::default(),
            errand: None,
            waiting: VecDeque::new(),
            requests: BTreeMap::new(),
            in_flight_bytes: 0,
            orphan_bytes: 0,
            last_piece: 0,
            locks: Default::default(),
            writes: BTreeMap::new(),
            ready: VecDeque::new(),
            sequencer: Default::default(),
            reads: BTreeMap::new(),
            seeking: BTreeSet::new(),
            flushes: Default::default(),
            orders: Orders::default(),
            orders_are_new: false,
            orders_hindrance: None,
            switching: None,
            fill: Default::default(),
            heals: Default::default(),
            verifying: Default::default(),
            progress: Progress::default(),
            guest_seen: None,
            opened: Now::default(),
            hindrance: None,
            distances: BTreeMap::new(),
            sync_continuously: false,
            stopping: None,
            start_after_stop: None,
            restart: false,
            blocked: None,
            full: None,
            ungranted: None,
            unreachable: Vec::new(),
            stall: None,
            patrol_at: None,
            effects: VecDeque::new(),
        }
    }

    /// Takes what happened. Poll the effects afterwards.
    pub fn handle(&mut self, now: Now, event: Event) {
        self.now = self.now.max(now);
        match event {
            Event::Start { take_over } => self.start(take_over),
            Event::Orders(orders) => self.ordered(orders),
            Event::Distances(distances) => self.distances = distances.into_iter().collect(),
            Event::Guest { id, op } => self.guest(id, op),
            Event::Reply { call, reply } => self.reply(call, reply),
            Event::Withdrawn { call } => self.withdrawn(call),
            Event::Connected { store } => self.connected(store),
            Event::Disconnected { store } => self.disconnected(store),
            Event::Swapped { call, outcome } => self.swapped(call, outcome),
            Event::Inspected { call, record } => self.inspected(call, record),
            Event::Stop { successor } => self.stop(successor),
            Event::GiveBack => self.give_back(),
            Event::SyncContinuously(on) => self.sync_continuously = on,
            Event::Timeout => self.timeout(),
        }
        self.restart_if_wanted();
        self.go_on_starting();
        self.go_on_stopping();
        self.go_on_switching();
        self.go_on_filling();
        self.send_ready_while_ejecting();
        self.go_on_verifying();
        self.go_on_healing();
        self.start_syncs();
        self.arm_patrol();
        self.report_stall();
        self.report_hindrance();
    }

    /// The next thing to do, in order.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Event::Timeout`] is wanted, if nothing happens before. Ask after each event.
    pub fn next_timeout(&self) -> Option<Now> {
        [
            self.patrol_at,
            self.errand_timeout(),
            self.settle_timeout(),
            self.stop_timeout(),
            self.start_timeout(),
            self.fill_timeout(),
            self.verify_timeout(),
            self.switch_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// How many more bytes of writes may be submitted now (back-pressure to the virtqueue).
    pub fn room(&self) -> u64 {
        self.config
            .max_in_flight_bytes
            .saturating_sub(self.in_flight_bytes)
    }

    /// The disk's record as this writer knows it.
    pub fn record(&self) -> &DiskRecord {
        &self.record
    }

    /// Whether requests are served now: an epoch of ours is open.
    pub fn is_serving(&self) -> bool {
        matches!(
            self.phase,
            Phase::Open | Phase::Switching | Phase::Ejecting { serving: true, .. }
        )
    }

    /// What keeps the orders from being carried out, if anything.
    pub fn hindrance(&self) -> Option<&Hindrance> {
        self.hindrance.as_ref()
    }

    /// What the guest waits for, if for anything unusual.
    pub fn stall(&self) -> Option<&Stall> {
        self.stall.as_ref()
    }

    fn timeout(&mut self) {
        self.go_on_errand();
        self.settle_patience_over();
        if self.patrol_at.is_some_and(|at| at <= self.now) {
            self.patrol_at = None;
            self.send_held();
            self.find_overdue();
            self.give_up_late();
            self.hurry_reads();
            self.retry_reads();
            self.hurry_surveys();
            self.hurry_heals();
            self.hurry_looks();
            self.unreachable = self.unreachable();
        }
        self.give_up_stopping();
    }

    /// As long as anything is asked, look now and then for answers that are late.
    fn arm_patrol(&mut self) {
        let asks = !self.calls.is_empty() || !self.seeking.is_empty() || !self.heals.is_empty();
        if !asks && !self.watches_deadline() {
            self.patrol_at = None;
        } else if self.patrol_at.is_none() {
            self.patrol_at = Some(self.now + self.patrol_interval());
        }
    }

    fn patrol_interval(&self) -> Duration {
        let config = &self.config;
        let shortest = config
            .eject_after
            .unwrap_or(config.read_patience)
            .min(config.read_patience)
            .min(config.settle_patience)
            .min(config.stall_deadline.unwrap_or(config.read_patience))
            .min(config.pause * 4);
        (shortest / 4).max(Duration::from_millis(1))
    }

    fn superseded(&mut self, shown: Epoch) {
        self.phase = Phase::Superseded;
        self.stale = true;
        self.errand = None;
        self.blocked = None;
        self.full = None;
        self.ungranted = None;
        self.fail_all(Failure::Superseded, usize::MAX);
        self.effects.push_back(Effect::Superseded { shown });
        if self.stopping.is_some() {
            self.stopped(false);
        }
    }

    fn ordered(&mut self, orders: Orders) {
        let again = self.orders.sets != orders.sets;
        let copies = self.orders.min_copies != orders.min_copies;
        self.orders = orders;
        self.orders_are_new = true;
        if again && !matches!(self.phase, Phase::Switching) {
            self.let_go_of_switch();
        }
        if copies && self.blocked.is_some() {
            match self.phase {
                Phase::Settling(_) => self.try_plan(),
                _ => self.consider_ejection(),
            }
        }
        self.find_jobs();
        self.verify_as_ordered();
        if matches!(self.phase, Phase::Idle) {
            self.stand_by();
        }
    }

    /// How far a store is, as far as anybody knows; near ones first.
    fn distance(&self, store: StoreId) -> u64 {
        if self.config.near == Some(store) {
            return 0;
        }
        // Whole milliseconds: those that are about equally far share the reads.
        let known = self.distances.get(&store);
        known.map_or(u64::from(u32::MAX), |rtt| 1 + rtt.as_millis() as u64)
    }

    fn report_hindrance(&mut self) {
        let hindrance = self
            .orders_hindrance
            .as_ref()
            .or(self.fill.hindrance.as_ref());
        if hindrance != self.hindrance.as_ref() {
            let hindrance = hindrance.cloned();
            self.effects.push_back(match &hindrance {
                Some(hindrance) => Effect::Hindered(hindrance.clone()),
                None => Effect::Unhindered,
            });
            self.hindrance = hindrance;
        }
    }

    fn report_stall(&mut self) {
        if self.seeking.is_empty() {
            self.unreachable.clear();
        }
        let waits = || match self.phase {
            // The guest does not wait for an entry to be called whole, unless somebody has to go.
            Phase::Open | Phase::Ejecting { serving: true, .. } => !self.nobody_is_missing(),
            _ => true,
        };
        let stall = if self.errand.as_ref().is_some_and(|e| e.unanswered) && waits() {
            Some(Stall::PlacementAway)
        } else if let Some(blocked) = &self.blocked {
            let stores = blocked.stores.clone();
            Some(match (&self.phase, blocked.too_few_copies) {
                (Phase::Settling(_), _) => Stall::SettleWaits(stores),
                (_, Some(least)) => Stall::TooFewCopies { stores, least },
                (_, None) => Stall::LastMembers(stores),
            })
        } else {
            let away = Some(&self.unreachable).filter(|stores| !stores.is_empty());
            let full = self.full.map(Stall::Full);
            let refused = full.or(self.ungranted.map(Stall::NotGranted));
            refused.or_else(|| away.map(|stores| Stall::Unreachable(stores.clone())))
        };
        if stall != self.stall {
            self.effects.push_back(match &stall {
                Some(stall) => Effect::Stalled(stall.clone()),
                None => Effect::Resumed,
            });
            self.stall = stall;
        }
    }
}
