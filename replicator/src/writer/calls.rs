//! The questions that stores have not answered yet: what to send again when a session comes back,
//! and who is late.

use super::{Aim, CallId, Effect, Now, PieceId, Writer};
use crate::message::Request;
use crate::words::{Block, Blocks, Extents, StoreId};
use std::collections::BTreeMap;

pub(super) struct Call {
    pub store: StoreId,
    pub request: Request,
    pub aim: Aim,
    pub purpose: Purpose,
    /// When it was asked for the first time.
    pub begun: Now,
    /// Since when the store owes an answer, connected or not.
    pub issued: Now,
    /// Whether it was sent in the session that stands.
    pub sent: bool,
    /// Not before then: the store was full, or could not take it.
    pub hold_until: Option<Now>,
    /// The store had no room for it.
    pub full: bool,
}

/// What to do with the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Seal,
    /// A seal once more in a new session: what it has answered in the last one it has to have still.
    Prove,
    /// A join, or the clearing of a lost-tail mark, on the way to serving.
    Prepare,
    Write {
        piece: PieceId,
    },
    Read {
        piece: PieceId,
    },
    /// A pull into the near store that a guest's read waits for.
    Through {
        piece: PieceId,
    },
    Survey {
        work: u64,
    },
    Pull {
        work: u64,
        blocks: Blocks,
        /// How many of them the source is known to have.
        wanted: u32,
    },
    /// A join of a store that is no member, to hold a copy ahead.
    Seed {
        extents: Extents,
    },
    Sync {
        round: u64,
    },
    List,
    /// What is damaged there comes from another store.
    Heal {
        block: Block,
    },
    /// A part of the verifying.
    Look {
        look: u64,
    },
    /// What becomes of it matters to nobody.
    Collapse,
}

#[derive(Default)]
pub(super) struct Calls {
    last: u64,
    open: BTreeMap<CallId, Call>,
}

impl Calls {
    pub fn next_id(&mut self) -> CallId {
        self.last += 1;
        CallId(self.last)
    }

    /// Takes the call that an answer belongs to; an answer to a call that was not sent in this
    /// session, or was answered already, belongs to nothing.
    pub fn take_answered(&mut self, id: CallId) -> Option<Call> {
        self.open
            .get(&id)
            .is_some_and(|call| call.sent)
            .then(|| self.open.remove(&id))
            .flatten()
    }

    pub fn remove(&mut self, id: CallId) -> Option<Call> {
        self.open.remove(&id)
    }

    pub fn put_back(&mut self, id: CallId, call: Call) {
        self.open.insert(id, call);
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (CallId, &Call)> {
        self.open.iter().map(|(id, call)| (*id, call))
    }

    pub fn ids(&self, which: impl Fn(&Call) -> bool) -> Vec<CallId> {
        self.iter()
            .filter(|(_, call)| which(call))
            .map(|(id, _)| id)
            .collect()
    }
}

impl Writer {
    /// Asks `store`: now if there is a session, else as soon as there is one.
    pub(super) fn call(
        &mut self,
        store: StoreId,
        request: Request,
        aim: Aim,
        purpose: Purpose,
    ) -> CallId {
        assert_eq!(
            epoch_of(&request),
            self.record.epoch,
            "I3: nothing is asked in an epoch that is not ours"
        );
        let id = self.calls.next_id();
        let call = Call {
            store,
            request,
            aim,
            purpose,
            begun: self.now,
            issued: self.now,
            sent: false,
            hold_until: None,
            full: false,
        };
        self.calls.put_back(id, call);
        self.connect(store);
        if self.may_send(store, purpose) {
            self.send(id);
        }
        id
    }

    pub(super) fn send(&mut self, id: CallId) {
        let call = self.calls.open.get_mut(&id).expect("an open call");
        call.sent = true;
        call.hold_until = None;
        self.effects.push_back(Effect::Send {
            store: call.store,
            call: id,
            request: call.request.clone(),
            aim: call.aim,
        });
    }

    /// Asks again after a pause, because the store could not do it now but may soon.
    pub(super) fn hold(&mut self, id: CallId, mut call: Call) {
        call.sent = false;
        call.issued = self.now;
        call.hold_until = Some(self.now + self.config.pause);
        self.calls.put_back(id, call);
    }

    pub(super) fn send_held(&mut self) {
        for id in self
            .calls
            .ids(|call| call.hold_until.is_some_and(|until| until <= self.now))
        {
            let call = self.calls.open.get_mut(&id).expect("an open call");
            call.hold_until = None;
            let (store, purpose) = (call.store, call.purpose);
            if self.may_send(store, purpose) {
                self.send(id);
            }
        }
    }

    fn may_send(&self, store: StoreId, purpose: Purpose) -> bool {
        let peer = &self.peers[&store];
        peer.connected || (purpose == Purpose::Prove && peer.session)
    }

    /// Forgets every question of an epoch that is over: the answers no longer count (rule W7).
    /// Reads that may still land in a guest's memory are withdrawn, and stay until they are.
    pub(super) fn void_calls(&mut self) {
        self.fill.begin_epoch();
        self.void_look();
        self.forget_heals();
        for id in self.calls.ids(|_| true) {
            let call = &self.calls.open[&id];
            let lands = call.sent && matches!(call.aim, Aim::Guest { .. });
            match call.purpose {
                Purpose::Read { piece } if lands => self.withdraw(piece, id),
                Purpose::Read { piece } | Purpose::Through { piece } => {
                    self.calls.remove(id);
                    self.seek(piece);
                }
                _ => {
                    self.calls.remove(id);
                }
            }
        }
    }
}

fn epoch_of(request: &Request) -> crate::words::Epoch {
    match request {
        Request::Seal { epoch, .. } => *epoch,
        Request::Join { asker, .. }
        | Request::Write { asker, .. }
        | Request::Read { asker, .. }
        | Request::Sync { asker }
        | Request::Survey { asker, .. }
        | Request::Pull { asker, .. }
        | Request::Heal { asker, .. }
        | Request::Digest { asker, .. }
        | Request::Verify { asker, .. }
        | Request::Fetch { asker, .. }
        | Request::List { asker, .. }
        | Request::Settle { asker, .. }
        | Request::Keep { asker, .. }
        | Request::Collapse { asker, .. } => asker.epoch,
    }
}
