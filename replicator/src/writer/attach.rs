//! Becoming the writer of a disk: which swap to ask for, and, after a clean attach or an ejection,
//! sealing every member before anything is asked of it (rules A1, A3, S3).
//!
//! ```text
//!   record closed ---- Swap(Attach) ----> Opening: Seal each member, Join the new ones ---> Open
//!   record open, and we may ---- Swap(TakeOver) ----> Settling (take_over.rs) ------------> Open
//!   Open, a member missed a write ---- Swap(Eject) ----> Opening: Seal each member -------> Open
//! ```

use super::calls::{Call, Purpose};
use super::switch::{differing, joiners};
use super::{Aim, CallId, Effect, Hindrance, NotStarted, Now, Phase, TakeOver, Writer};
use crate::message::{ReplicaState, Request, Sealed};
use crate::plant::{Plant, planted};
use crate::words::{
    Change, ChangeRefused, DiskRecord, Epoch, Extents, NewSet, Owner, State, StoreId,
};

/// On the way to an epoch.
pub(super) struct Starting {
    take_over: TakeOver,
    /// The members to change at an attach.
    sets: Vec<NewSet>,
    /// Until when stores that are to join are waited for, once the record is known.
    gathers_until: Option<Now>,
    /// Whose epoch we set out to end. Nobody else's will do (rule A1).
    from: Option<Owner>,
}

/// The members are being sealed.
pub(super) struct Opening {
    /// Nothing was written since the clean attach. The disk was closed, so each member was synced
    /// whole: a tail lost since then cannot have been this disk's, and a member without a replica
    /// joins what it was to join from that epoch on. Later than that, both mean that it has missed writes.
    pub fresh: Option<Epoch>,
}

/// What a seal's answer says of a member's replica of some extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Replica {
    /// It has held everything since the entry began.
    Whole,
    /// Its unsynced tail may be missing (rule S2).
    Lost,
    /// It has never joined this entry, so nothing was ever acknowledged in it.
    NotJoined,
    /// It has joined, and has nothing any more: it was told to drop it by a catalog that was lost since, say.
    Gone,
}

impl Writer {
    pub(super) fn start(&mut self, take_over: TakeOver) {
        if self.stopping.is_some() {
            self.start_after_stop = Some(take_over);
            return;
        }
        match self.phase {
            Phase::Idle | Phase::Superseded => {}
            Phase::Open => {
                let epoch = self.record.epoch;
                return self.effects.push_back(Effect::Opened { epoch });
            }
            _ => return,
        }
        self.forget_known();
        self.phase = Phase::Starting(Starting {
            take_over,
            sets: Vec::new(),
            gathers_until: None,
            from: None,
        });
        self.fill.forget();
        if self.stale || self.record.owner().is_some() {
            self.inspect();
        } else {
            self.begin_with_record();
        }
    }

    /// The record is as fresh as it gets: attach, take over, or leave it.
    pub(super) fn begin_with_record(&mut self) {
        let Phase::Starting(starting) = &mut self.phase else {
            panic!("a record is inspected at a start only");
        };
        let owner = self.owner.clone();
        match &self.record.state {
            State::Closed { .. } => {
                starting.sets = differing(&self.record, &self.orders.sets);
                starting.gathers_until = Some(self.now + self.config.read_patience);
                for store in joiners(&self.record, &starting.sets.clone()) {
                    self.connect(store);
                }
                self.go_on_starting();
            }
            State::Open { owner: other } => {
                let own = other.backend == owner.backend;
                if own || starting.take_over == TakeOver::Ordered {
                    starting.from = Some(other.clone());
                    self.swap(Change::TakeOver { owner });
                } else {
                    let host = other.host.clone();
                    self.not_started(NotStarted::AlreadyOpen { host });
                }
            }
        }
    }

    /// Before a start: connects those who will be asked first, so that the first writes and reads of a VM
    /// that arrives wait for no connection (rule A6).
    pub(super) fn stand_by(&mut self) {
        let joiners = joiners(&self.record, &self.orders.sets);
        if joiners.is_empty() {
            return;
        }
        let fills_near = self.config.near.is_some_and(|near| joiners.contains(&near));
        let members = self.record.members();
        for store in joiners.iter().chain(&members) {
            self.connect(*store);
        }
        if fills_near {
            let sources = members.into_iter().filter(|store| !joiners.contains(store));
            let effects = sources.map(|store| Effect::PrepareToPull { store });
            self.effects.extend(effects);
        }
    }

    /// Attaches once the stores that are to join are there. Where they are not, the disk is opened with
    /// the members that it has: they have all of it, and the switch can come later (rule A6).
    pub(super) fn go_on_starting(&mut self) {
        let Phase::Starting(starting) = &self.phase else {
            return;
        };
        let Some(until) = starting.gathers_until else {
            return;
        };
        let mut sets = starting.sets.clone();
        let joiners = joiners(&self.record, &sets);
        let there = joiners.iter().all(|store| self.peers[store].connected);
        if !there && until > self.now {
            return;
        }
        if !there {
            sets.clear();
        }
        if let Phase::Starting(starting) = &mut self.phase {
            starting.gathers_until = None;
        }
        let owner = self.owner.clone();
        self.swap(Change::Attach { owner, sets });
    }

    pub(super) fn start_timeout(&self) -> Option<Now> {
        match &self.phase {
            Phase::Starting(starting) => starting.gathers_until,
            _ => None,
        }
    }

    /// The new members are refused: open the disk with those that it has.
    pub(super) fn attach_as_it_is(&mut self, why: ChangeRefused) {
        self.orders_hindrance = Some(Hindrance::Refused(why));
        let (owner, sets) = (self.owner.clone(), Vec::new());
        self.swap(Change::Attach { owner, sets });
    }

    /// Somebody changed the record before us.
    pub(super) fn start_conflict(&mut self, record: DiskRecord) {
        self.record = record;
        let Phase::Starting(starting) = &mut self.phase else {
            panic!("only a start's swap conflicts here");
        };
        let owner = self.owner.clone();
        match &self.record.state {
            State::Closed { .. } => self.begin_with_record(),
            State::Open { owner: other } => {
                // The one whom we were to end is still there: it only changed its members.
                let same = starting
                    .from
                    .as_ref()
                    .is_some_and(|from| from.backend == other.backend && from.life == other.life);
                if same || planted(Plant::LostSwapTakesOver) {
                    self.swap(Change::TakeOver { owner });
                } else {
                    // A1: who lost the race never takes over of its own accord.
                    let host = other.host.clone();
                    self.not_started(NotStarted::AlreadyOpen { host });
                }
            }
        }
    }

    pub(super) fn not_started(&mut self, why: NotStarted) {
        self.phase = Phase::Idle;
        self.stale = true;
        self.effects.push_back(Effect::NotStarted { why });
        if self.stopping.is_some() {
            self.stopped(false);
        }
    }

    /// Takes an epoch over from ourselves, so that nothing of what we sent in this one counts.
    pub(super) fn take_over_from_self(&mut self) {
        self.phase = Phase::Starting(Starting {
            take_over: TakeOver::Own,
            sets: Vec::new(),
            gathers_until: None,
            from: Some(self.owner.clone()),
        });
        let owner = self.owner.clone();
        self.swap_later(Change::TakeOver { owner });
    }

    /// The epoch is ours by a swap from `before`; now every member must be shown it.
    pub(super) fn begin_opening(&mut self, before: Epoch, fresh: Option<Epoch>) {
        self.begin_epoch(before);
        self.phase = Phase::Opening(Opening { fresh });
        for store in self.record.members() {
            self.seal(store);
        }
        // Nobody waits for those; but whoever is read from first was shown the epoch by then.
        for store in self.record.stores() {
            self.seal(store);
        }
    }

    /// A member was sealed: see whether it is whole, and make it a member where it is not one yet.
    pub(super) fn prepare(&mut self, store: StoreId, sealed: &Sealed, fresh: Option<Epoch>) {
        let expected = self.peers[&store].since_open;
        if fresh.is_none() && expected != Some(sealed.incarnation) {
            return self.member_lost(store);
        }
        let asker = self.asker(store);
        let extent_size = self.record.extent_size;
        let entries = self
            .record
            .map
            .iter()
            .filter_map(|range| Some((range.extents, range.history.member(store)?)));
        let requests: Vec<Request> = entries
            .filter_map(
                |(extents, entry)| match replica(sealed, extents, entry.from) {
                    Replica::Whole => None,
                    Replica::Lost => Some(Request::Settle { asker, extents }),
                    Replica::NotJoined | Replica::Gone => Some(Request::Join {
                        asker,
                        extents,
                        extent_size,
                        from: entry.from,
                    }),
                },
            )
            .collect();
        // Who has no replica of an entry that is older than what we open has lost it: a directory that is an
        // older copy of itself, say.
        let is_older = |request: &Request| matches!(request, Request::Join { from, .. } if Some(*from) < fresh);
        let lost_replica = requests.iter().any(is_older);
        if lost_replica || (fresh.is_none() && !requests.is_empty()) {
            return self.member_lost(store);
        }
        // A tail that was lost since the last sync was not this disk's; but fills may have come after that.
        let lost = |request: &Request| matches!(request, Request::Settle { .. });
        if requests.iter().any(lost) {
            self.fill.forget_done_by(store);
        }
        let keeps = match fresh {
            Some(_) => self.keeps(store),
            None => Vec::new(),
        };
        let peer = self.peer(store);
        peer.preparing = requests.len() + keeps.len();
        peer.prepared = peer.preparing == 0;
        for request in &requests {
            if let Request::Join { extents, .. } = request
                && sealed.replicas.iter().any(|r| r.extents.overlaps(*extents))
            {
                self.collapse(store, *extents);
            }
        }
        for request in requests.into_iter().chain(keeps) {
            self.call(store, request, Aim::Nowhere, Purpose::Prepare);
        }
        self.open_if_prepared();
    }

    /// What a member has to keep because others have joined beside it: it may come to be the only one that
    /// has what stood there before them, and goes on being written over (rule R2).
    pub(super) fn keeps(&self, store: StoreId) -> Vec<Request> {
        let asker = self.asker(store);
        let mut keeps = Vec::new();
        for range in &self.record.map {
            let Some(own) = range.history.member(store) else {
                continue;
            };
            let younger = range.history.live().filter(|entry| !entry.whole);
            keeps.extend(younger.filter(|entry| entry.from > own.from).map(|entry| {
                Request::Keep {
                    asker,
                    extents: range.extents,
                    below: entry.from,
                }
            }));
        }
        keeps
    }

    /// A member cannot keep what those need who joined beside it. It has missed nothing: they leave, where it can be
    /// done without them, and may join again when it was told what nobody needs any more.
    pub(super) fn keep_refused(&mut self, id: CallId, call: Call, extents: Extents, below: Epoch) {
        let ranges = self.record.map.iter();
        let live = ranges
            .filter(|range| range.extents.overlaps(extents))
            .flat_map(|range| range.history.live());
        let joined: Vec<StoreId> = live
            .filter(|entry| entry.from == below && !entry.whole)
            .flat_map(|entry| entry.stores.iter().copied())
            .collect();
        let opening = matches!(self.phase, Phase::Opening(_));
        if !opening || !self.leaves_members(&joined) || !self.leaves_copies(&joined) {
            return self.hold(id, call);
        }
        for store in joined {
            self.peer(store).lost = true;
        }
        self.consider_ejection();
    }

    /// Tells a store which of its older memberships no history names any more. What it no longer needs
    /// may go; if it does not hear of it, that costs space.
    pub(super) fn collapse(&mut self, store: StoreId, extents: Extents) {
        let asker = self.asker(store);
        let mut requests = Vec::new();
        for range in &self.record.map {
            let Some(extents) = range.extents.intersect(extents) else {
                continue;
            };
            let entries = range.history.0.iter().filter(|entry| entry.has(store));
            let oldest = match range.history.is_whole() {
                true => asker.epoch,
                false => entries.map(|entry| entry.from).min().unwrap_or(asker.epoch),
            };
            requests.push(Request::Collapse {
                asker,
                extents,
                oldest,
            });
        }
        for request in requests {
            self.call(store, request, Aim::Nowhere, Purpose::Collapse);
        }
    }

    pub(super) fn prepared(&mut self, store: StoreId) {
        let peer = self.peer(store);
        peer.preparing -= 1;
        peer.prepared = peer.preparing == 0;
        match self.phase {
            Phase::Settling(_) => self.settle_prepared(),
            _ => self.open_if_prepared(),
        }
    }

    /// It is another incarnation since we sealed it, and nothing was written yet: seal it anew.
    pub(super) fn prepare_again(&mut self, store: StoreId) {
        for id in self.calls.ids(|call| call.store == store) {
            self.calls.remove(id);
        }
        let peer = self.peer(store);
        peer.connected = peer.session;
        peer.sealed = None;
        peer.sealing = false;
        peer.preparing = 0;
        peer.prepared = false;
        self.seal(store);
    }

    fn open_if_prepared(&mut self) {
        let opening = matches!(self.phase, Phase::Opening(_));
        let members = self.record.members();
        if opening && members.iter().all(|store| self.peers[store].prepared) {
            self.open();
        }
    }

    /// Every member is sealed in this epoch and whole: serve.
    pub(super) fn open(&mut self) {
        assert!(self.owns(&self.record), "I3: we serve our own epoch only");
        for store in self.record.members() {
            let peer = self.peer(store);
            assert!(
                peer.sealed.is_some(),
                "S3: every member was shown the epoch before it is served"
            );
            peer.since_open = peer.sealed;
        }
        self.phase = Phase::Open;
        self.opened = self.now;
        let epoch = self.record.epoch;
        self.effects.push_back(Effect::Opened { epoch });
        self.collapse_whole();
        self.send_ready();
        self.retry_reads();
        self.admit_waiting();
    }
}

/// What `sealed` says of the replica of `extents` in the entry that began at `from`.
pub(super) fn replica(sealed: &Sealed, extents: Extents, from: Epoch) -> Replica {
    let mut next = extents.first;
    let mut lost = false;
    for state in &sealed.replicas {
        let ReplicaState { extents: of, .. } = state;
        if of.end <= next || of.first >= extents.end {
            continue;
        }
        if of.first > next || state.from != from {
            return Replica::NotJoined;
        }
        lost |= state.lost;
        next = of.end;
    }
    match (next >= extents.end, lost) {
        (false, _) => Replica::NotJoined,
        (true, true) => Replica::Lost,
        (true, false) => Replica::Whole,
    }
}
