//! The stores as the writer sees them: sessions, seals, and what a refusal means.

use super::attach::Opening;
use super::calls::{Call, Purpose};
use super::{Aim, CallId, Effect, Now, Phase, Writer};
use crate::message::{Asker, Refusal, Reply, Request, Sealed};
use crate::words::{Epoch, Incarnation, StoreId};
use bytes::Bytes;

#[derive(Default)]
pub(super) struct Peer {
    pub connected: bool,
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
        self.peer(store).connected = true;
        self.fill.exhausted = false;
        for id in self
            .calls
            .ids(|call| call.store == store && !call.sent && call.hold_until.is_none())
        {
            self.send(id);
        }
        self.retry_reads();
    }

    pub(super) fn disconnected(&mut self, store: StoreId) {
        self.peer(store).connected = false;
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
            let request = self.seal_request();
            self.call(store, request, Aim::Nowhere, Purpose::Seal);
        }
    }

    /// Tells the stores how the record has become within the epoch, for a catalog that is lost later. If
    /// they do not hear of it, it is rebuilt as it was when they last did.
    pub(super) fn tell_record(&mut self) {
        for store in self.record.stores() {
            let sealed = |peer: &Peer| peer.connected && peer.sealed.is_some();
            if self.peers.get(&store).is_some_and(sealed) {
                let request = self.seal_request();
                self.call(store, request, Aim::Nowhere, Purpose::Collapse);
            }
        }
    }

    /// With the record, so that it stands wherever the epoch does. The shell adds the grant.
    fn seal_request(&mut self) -> Request {
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
        self.peer(store).overdue = false;
        if self.full == Some(store) {
            self.full = None;
        }
        match (call.purpose, reply) {
            (Purpose::Read { piece }, _) if self.is_withdrawing(piece) => self.read_ended(piece),
            (_, Reply::Refused(refusal)) => self.refused(id, call, refusal),
            (Purpose::Seal, Reply::Sealed(sealed)) => self.sealed(store, sealed),
            (Purpose::Prepare, Reply::Joined | Reply::Settled | Reply::Kept) => {
                self.prepared(store)
            }
            (Purpose::Collapse, _) => {}
            (Purpose::Write { piece }, Reply::Written) => self.written(piece, store),
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
            (
                Purpose::Pull {
                    work,
                    blocks,
                    wanted,
                },
                Reply::Pulled(pulled),
            ) => self.pulled(work, blocks, wanted, &pulled),
            (Purpose::Heal { block }, Reply::Pulled(pulled)) => {
                self.heal_answered(store, block, pulled.copied);
            }
            (Purpose::Look { look }, reply) => self.looked(store, look, reply),
            (Purpose::Seed { extents }, Reply::Joined) => self.seed_joined(store, extents),
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
            Refusal::Full { .. } => {
                self.full = Some(store);
                return self.hold(id, call);
            }
            Refusal::BadChecksum => return self.hold(id, call),
            // No fault of the store's: the shell gets a grant and shows it, and meanwhile we wait.
            Refusal::NotGranted { .. } => {
                call.issued = self.now;
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
            Phase::Opening(Opening { fresh: true })
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
        for peer in self.peers.values_mut() {
            peer.sealed = None;
            peer.sealing = false;
            peer.preparing = 0;
            peer.prepared = false;
            peer.lost = false;
            peer.overdue = false;
        }
        self.blocked = None;
        self.full = None;
        self.switching = None;
        self.orders_are_new = true;
        self.take_back_writes();
        self.take_back_syncs();
        self.stop_begins_again();
    }
}

impl Call {
    fn flush_may_ignore(&self, refusal: &Refusal) -> bool {
        use crate::plant::{Plant, planted};
        planted(Plant::FlushIgnoresIncarnation)
            && matches!(self.purpose, Purpose::Sync { .. })
            && matches!(refusal, Refusal::OtherIncarnation { .. })
    }
}
