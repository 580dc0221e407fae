//! The stores as the writer sees them: sessions, seals, and what a refusal means.
//!
//! A session that breaks may have broken because the store's process ended, and what answers in the next one may
//! be an older copy of its directory. So the store is sealed in the same epoch once more, first of all, and has to be
//! beyond all that it has answered (rule S6):
//!
//! ```text
//!   writer                                   store
//!     |--- Write (E, 7) ----------------------->|
//!     |<-- Written: run 4, at 900 --------------|
//!     |                                         X   put back to where run 4 was at 600
//!     |--- Seal E, known: run 4, at 900 ------->|   run 5 began at 600
//!     |<-- Refused: Forgot ---------------------|
//!     |--- Swap(Eject) --> placement                it missed writes like any other (W6)
//! ```

use super::attach::Opening;
use super::calls::{Call, Purpose};
use super::{Aim, CallId, Effect, Now, Phase, Writer};
use crate::message::{Asker, Known, Reach, Refusal, Reply, Request, Sealed};
use crate::plant::{Plant, planted};
use crate::words::{Epoch, Incarnation, StoreId};
use bytes::Bytes;

#[derive(Default)]
pub(super) struct Peer {
    /// There is a session.
    pub session: bool,
    /// And nothing is known against asking it.
    pub connected: bool,
    /// The furthest that it has said to be, as long as anything is expected of it.
    pub known: Known,
    /// Its incarnation when it was sealed in the current epoch; nothing else is asked before.
    pub sealed: Option<Incarnation>,
    pub sealing: bool,
    /// Its incarnation since the disk was opened: a member that shows another has missed writes (rule S1).
    pub since_open: Option<Incarnation>,
    /// Joins and marks that it has not answered yet, while opening.
    pub preparing: usize,
    pub prepared: bool,
    /// It has missed writes, or cannot take any.
    pub lost: bool,
    /// It leaves something unanswered for too long.
    pub overdue: bool,
    /// It has let a read wait for too long: others are asked until then, where they can be.
    pub slow_until: Option<Now>,
    /// It was ejected: not before then is it made a member again.
    pub rejoins_at: Option<Now>,
}

impl Writer {
    pub(super) fn connect(&mut self, store: StoreId) {
        self.peers.entry(store).or_insert_with(|| {
            self.effects.push_back(Effect::Connect { store });
            Peer::default()
        });
    }

    pub(super) fn peer(&mut self, store: StoreId) -> &mut Peer {
        self.connect(store);
        self.peers.get_mut(&store).expect("connected above")
    }

    pub(super) fn connected(&mut self, store: StoreId) {
        self.peer(store).session = true;
        match self.has_to_prove(store) {
            true => {
                let request = self.seal_request(store);
                self.call(store, request, Aim::Nowhere, Purpose::Prove);
            }
            false => self.may_be_asked(store),
        }
    }

    /// Whether the store has answered anything in this epoch that it may have forgotten since (rule S6).
    fn has_to_prove(&self, store: StoreId) -> bool {
        let asks = !matches!(
            self.phase,
            Phase::Idle | Phase::Starting(_) | Phase::Superseded
        );
        let peer = &self.peers[&store];
        asks && peer.sealed.is_some()
            && peer.known.reach != Reach::UNKNOWN
            && !peer.sealing
            && !forgetting_is_unseen()
    }

    fn may_be_asked(&mut self, store: StoreId) {
        self.peer(store).connected = true;
        self.fill.look_again();
        for id in self
            .calls
            .ids(|call| call.store == store && !call.sent && call.hold_until.is_none())
        {
            self.send(id);
        }
        self.retry_reads();
    }

    pub(super) fn disconnected(&mut self, store: StoreId) {
        let peer = self.peer(store);
        (peer.session, peer.connected) = (false, false);
        for id in self.calls.ids(|call| call.store == store) {
            let mut call = self.calls.remove(id).expect("an open call");
            match call.purpose {
                Purpose::Read { piece } => self.read_ended(piece),
                Purpose::Through { piece } => self.pull_through_failed(piece),
                Purpose::Survey { .. } | Purpose::Pull { .. } | Purpose::Seed { .. } => {
                    self.fill_cut_off(store, call.purpose);
                }
                Purpose::Heal { block } => self.heal_cut_off(store, block),
                Purpose::Look { look } => self.look_failed(store, look),
                Purpose::Prove => {}
                _ => {
                    call.sent = false;
                    self.calls.put_back(id, call);
                }
            }
        }
        self.retry_reads();
    }

    /// Shows the current epoch to `store`, once.
    pub(super) fn seal(&mut self, store: StoreId) {
        let peer = self.peer(store);
        if peer.sealed.is_none() && !peer.sealing {
            peer.sealing = true;
            let request = self.seal_request(store);
            self.call(store, request, Aim::Nowhere, Purpose::Seal);
        }
    }

    /// Tells the stores how the record has become within the epoch, for a catalog that is lost later. If
    /// they do not hear of it, it is rebuilt as it was when they last did.
    pub(super) fn tell_record(&mut self) {
        self.forget_strangers();
        for store in self.record.stores() {
            self.show_again(store);
        }
    }

    /// Shows the epoch once more to a store that was sealed in it, with the record and the grant of now. The grant is
    /// made anew for each answer of the placement service, and a store that pulls has to quote the very one that
    /// its source has kept.
    pub(super) fn show_again(&mut self, store: StoreId) {
        let sealed = |peer: &Peer| peer.connected && peer.sealed.is_some();
        if self.peers.get(&store).is_some_and(sealed) {
            let request = self.seal_request(store);
            self.call(store, request, Aim::Nowhere, Purpose::Collapse);
        }
    }

    /// With the record, so that it stands wherever the epoch does. The shell adds the grant.
    fn seal_request(&mut self, store: StoreId) -> Request {
        let revision = self.record.revision;
        let kept = self.kept_record.take();
        let kept = kept.filter(|(of, _)| *of == revision);
        let record = kept.map_or_else(|| self.record.to_kept(), |(_, record)| record);
        self.kept_record = Some((revision, record.clone()));
        Request::Seal {
            disk: self.record.id,
            epoch: self.record.epoch,
            grant: Bytes::new(),
            record,
            known: match forgetting_is_unseen() {
                true => Known::default(),
                false => self.peer(store).known,
            },
        }
    }

    /// A store that no entry names may have forgotten what it likes: it joins as one that has nothing (F4).
    fn forget_strangers(&mut self) {
        let stores = self.record.stores();
        for (store, peer) in &mut self.peers {
            if !stores.contains(store) {
                peer.known = Known::default();
            }
        }
    }

    /// A new start: others may have had the disk meanwhile, and dealt with what stores forgot.
    pub(super) fn forget_known(&mut self) {
        for peer in self.peers.values_mut() {
            peer.known = Known::default();
        }
    }

    /// The store has answered for something, and said how far it is with it.
    fn reached(&mut self, store: StoreId, reach: Reach) {
        let known = &mut self.peer(store).known;
        if reach != Reach::UNKNOWN && (known.reach.run != reach.run || known.reach.at < reach.at) {
            known.reach = reach;
        }
    }

    /// Who asks, as every request but a seal has to say.
    pub(super) fn asker(&self, store: StoreId) -> Asker {
        Asker {
            disk: self.record.id,
            epoch: self.record.epoch,
            incarnation: self.peers[&store]
                .sealed
                .expect("S3: a store is asked only after it was sealed in this epoch"),
        }
    }

    pub(super) fn reply(&mut self, id: CallId, reply: Reply) {
        let Some(call) = self.calls.take_answered(id) else {
            return;
        };
        let store = call.store;
        let reply = self.fitting(&call.request, reply);
        self.peer(store).overdue = false;
        for refuses in [&mut self.full, &mut self.ungranted] {
            refuses.take_if(|refuses| *refuses == store);
        }
        match &reply {
            Reply::Written(reach)
            | Reply::Joined(reach)
            | Reply::Settled(reach)
            | Reply::Kept(reach) => self.reached(store, *reach),
            Reply::Pulled(pulled) => self.reached(store, pulled.reach),
            _ => {}
        }
        match (call.purpose, reply) {
            (Purpose::Read { piece }, _) if self.is_withdrawing(piece) => self.read_ended(piece),
            (_, Reply::Refused(refusal)) => self.refused(id, call, refusal),
            (Purpose::Seal, Reply::Sealed(sealed)) => self.sealed(store, sealed),
            (Purpose::Prove, Reply::Sealed(sealed)) => {
                self.knows(store, &sealed);
                self.may_be_asked(store);
            }
            (Purpose::Prepare, Reply::Joined(_) | Reply::Settled(_) | Reply::Kept(_)) => {
                self.prepared(store)
            }
            (Purpose::Collapse, _) => {}
            (Purpose::Write { piece }, Reply::Written(_)) => self.written(piece, store),
            (Purpose::Read { piece }, Reply::Read(blocks)) => {
                self.read_answered(piece, store, blocks)
            }
            (Purpose::Sync { round }, Reply::Synced) => self.synced(round, store),
            (Purpose::List, Reply::Listed { blocks, more }) => self.listed(store, blocks, more),
            (Purpose::Through { piece }, Reply::Pulled(pulled)) => {
                self.pulled_through(piece, pulled);
            }
            (Purpose::Survey { work }, Reply::Surveyed { runs, next }) => {
                self.surveyed(work, &runs, next);
            }
            (Purpose::Pull { work, wanted, .. }, Reply::Pulled(pulled)) => {
                self.pulled(work, wanted, &pulled);
            }
            (Purpose::Heal { block }, Reply::Pulled(pulled)) => {
                self.heal_answered(store, block, pulled.copied);
            }
            (Purpose::Look { look }, reply) => self.looked(store, look, reply),
            (Purpose::Seed { extents }, Reply::Joined(_)) => self.seed_joined(store, extents),
            _ => {
                let why = "the answer does not belong to the question";
                self.refused(id, call, Refusal::Invalid { why });
            }
        }
        if self.blocked.is_some() {
            self.find_overdue();
        }
        if self.blocked.is_some() {
            self.consider_ejection();
        }
    }

    fn sealed(&mut self, store: StoreId, sealed: Sealed) {
        let member = self.is_member(store);
        self.knows(store, &sealed);
        let peer = self.peer(store);
        peer.sealing = false;
        peer.sealed = Some(sealed.incarnation);
        match &self.phase {
            Phase::Settling(_) => self.settle_sealed(store, sealed),
            Phase::Opening(Opening { fresh }) if member => {
                let fresh = *fresh;
                self.prepare(store, &sealed, fresh);
            }
            _ => {}
        }
        self.retry_reads();
    }

    fn knows(&mut self, store: StoreId, sealed: &Sealed) {
        self.peer(store).known = Known {
            incarnation: sealed.incarnation,
            reach: sealed.reach,
        };
    }

    /// A store did not do what it was asked. What follows depends on why, on whether it is a
    /// member, and on how far we are.
    fn refused(&mut self, id: CallId, mut call: Call, refusal: Refusal) {
        let store = call.store;
        match refusal {
            // Only the placement service issues epochs, and each of ours we know before a store
            // does: a later one is another writer's.
            Refusal::Superseded { shown } if shown > self.record.epoch => {
                return self.superseded(shown);
            }
            _ if call.purpose == Purpose::Collapse => return,
            // Filling waits for nobody, and nobody waits for it.
            _ if matches!(
                call.purpose,
                Purpose::Survey { .. } | Purpose::Pull { .. } | Purpose::Seed { .. }
            ) =>
            {
                return self.fill_refused(store, call.purpose, &refusal);
            }
            _ if let Purpose::Look { look } = call.purpose => {
                return self.look_refused(store, look, &refusal);
            }
            _ if let Purpose::Heal { block } = call.purpose => {
                return self.heal_refused(store, block, &refusal);
            }
            _ if let Purpose::Through { piece } = call.purpose => {
                return self.pull_through_refused(piece, &refusal);
            }
            Refusal::Invalid { .. } if let Request::Keep { extents, below, .. } = call.request => {
                return self.keep_refused(id, call, extents, below);
            }
            Refusal::Full { .. } => {
                self.full = Some(store);
                call.full = true;
                return self.hold(id, call);
            }
            // What was damaged on the way is sent once more; where it is damaged each time, the store is of no use.
            Refusal::BadChecksum if !self.was_begun_long_ago(&call) => return self.hold(id, call),
            // No fault of the store's: the shell gets a grant and shows it, and meanwhile we wait.
            Refusal::NotGranted { .. } => {
                if self.was_begun_long_ago(&call) {
                    self.ungranted = Some(store);
                }
                return self.hold(id, call);
            }
            _ => {}
        }
        if let Purpose::Read { piece } = call.purpose {
            return self.read_refused(piece, store, refusal);
        }
        match &self.phase {
            Phase::Settling(_) if call.purpose == Purpose::Seal => {
                // As good as no answer; it may recover in time.
                call.issued = self.now;
                self.hold(id, call);
            }
            Phase::Settling(_) => self.restart_settling(),
            _ if !self.is_member(store) => self.hold(id, call),
            Phase::Opening(Opening { fresh: Some(_) })
                if matches!(refusal, Refusal::OtherIncarnation { .. }) =>
            {
                self.prepare_again(store);
            }
            _ if call.flush_may_ignore(&refusal) => {
                let Purpose::Sync { round } = call.purpose else {
                    return;
                };
                self.synced(round, store);
            }
            _ => self.member_lost(store),
        }
    }

    /// Longer ago than a store may take for an answer.
    fn was_begun_long_ago(&self, call: &Call) -> bool {
        let patience = self.config.eject_after;
        patience.is_some_and(|patience| call.begun + patience <= self.now)
    }

    /// Whether any newest entry names `store`.
    pub(super) fn is_member(&self, store: StoreId) -> bool {
        self.record
            .map
            .iter()
            .any(|range| range.history.member(store).is_some())
    }

    /// A new epoch: no store was shown it yet, and what was asked in the last one is void.
    pub(super) fn begin_epoch(&mut self, before: Epoch) {
        assert!(
            self.record.epoch > before,
            "I4: a writer's epochs only go forward"
        );
        self.void_calls();
        self.forget_strangers();
        for peer in self.peers.values_mut() {
            // The seal of this epoch is proof enough.
            peer.connected = peer.session;
            peer.sealed = None;
            peer.sealing = false;
            peer.preparing = 0;
            peer.prepared = false;
            peer.lost = false;
            peer.overdue = false;
        }
        self.blocked = None;
        self.full = None;
        self.ungranted = None;
        self.switching = None;
        self.orders_are_new = true;
        self.take_back_writes();
        self.take_back_syncs();
        self.stop_begins_again();
    }
}

impl Call {
    fn flush_may_ignore(&self, refusal: &Refusal) -> bool {
        planted(Plant::FlushIgnoresIncarnation)
            && matches!(self.purpose, Purpose::Sync { .. })
            && matches!(refusal, Refusal::OtherIncarnation { .. })
    }
}

/// For planted bugs only. Who lets a store in that was rolled back is caught by S6, so that goes with it.
fn forgetting_is_unseen() -> bool {
    planted(Plant::ForgotUnseen) || planted(Plant::RolledBackLetIn)
}
