//! Healing: a store that has a block damaged gets it back from another one, under the version that it had.
//!
//! ```text
//!  guest      writer             store A                 store B
//!    | read     |                    |                       |
//!    |--------->|---- Read --------->|                       |
//!    |          |<--- Damaged -------|                       |
//!    |          |---- Read ----------|---------------------->|
//!    |          |---- Heal from B -->|---- Fetch ----------->|
//!    |<-- data -|<-------------------|-----------------------|
//!    |          |                    |<--- data, version ----|
//!    |          |<--- Pulled --------|                       |
//! ```
//!
//! The guest waits for a heal only where no other store can answer its read: then what was filled into the
//! damaged store comes once more from the older entry that it came from. A heal takes nothing but the very
//! version that is damaged, so it cannot do harm, whoever it asks and whenever it is done.

use super::calls::Purpose;
use super::read::{Holder, Holders};
use super::{Aim, Now, PieceId, Writer};
use crate::message::{Refusal, Request, SourceFault};
use crate::words::{Block, Blocks, Epoch, StoreId};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Blocks that are healed at once; what is found beyond that is healed when it is found again.
const MAX_HEALS: usize = 64;

#[derive(Default)]
pub(super) struct Heals {
    open: BTreeMap<(StoreId, Block), Heal>,
}

struct Heal {
    /// The entry in which the damaged version was to be found, and below which epoch.
    from: Epoch,
    below: Epoch,
    /// Stores that did not have it.
    tried: SmallVec<[StoreId; 2]>,
    /// Who is asked now, and since when.
    asked: Option<(StoreId, Now)>,
    since: Now,
}

impl Heals {
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub fn have_room(&self) -> bool {
        self.open.len() < MAX_HEALS
    }

    pub fn begin(&mut self, store: StoreId, (from, below): (Epoch, Epoch), block: Block, now: Now) {
        self.open.entry((store, block)).or_insert_with(|| Heal {
            from,
            below,
            tried: SmallVec::new(),
            asked: None,
            since: now,
        });
    }

    /// Whether a heal of one of these blocks is under way.
    pub fn is_open(&self, blocks: Blocks) -> bool {
        self.open.keys().any(|(_, block)| blocks.contains(*block))
    }
}

impl Writer {
    /// `store` says that `block` of its entry, looked for below an epoch, is damaged. Carried out when all that
    /// the guest waits for is under way.
    pub(super) fn heal(&mut self, store: StoreId, (from, below): (Epoch, Epoch), block: Block) {
        if self.heals.have_room() {
            self.heals.begin(store, (from, below), block, self.now);
        }
    }

    /// Asks whoever is next, where nobody is asked.
    pub(super) fn go_on_healing(&mut self) {
        if self.heals.is_empty() {
            return;
        }
        let idle = |heal: &Heal| heal.asked.is_none();
        let open = self.heals.open.iter();
        let keys: Vec<_> = open.filter(|(_, h)| idle(h)).map(|(k, _)| *k).collect();
        for (store, block) in keys {
            self.ask_to_heal(store, block);
        }
    }

    fn ask_to_heal(&mut self, store: StoreId, block: Block) {
        let Some(heal) = self.heals.open.get(&(store, block)) else {
            return;
        };
        let blocks = Blocks::new(block, 1);
        let (below, late) = (heal.below, heal.since + self.config.read_patience * 4);
        let mut sources = self.healers(blocks, heal.from, below);
        let heal = &self.heals.open[&(store, block)];
        sources.retain(|(source, _)| source.store != store && !heal.tried.contains(&source.store));
        if sources.is_empty() || late <= self.now {
            return self.heal_ended(store, block, false);
        }
        for (source, _) in &sources {
            self.connect(source.store);
        }
        let target = &self.peers[&store];
        let ready = target.connected && target.sealed.is_some() && !target.lost;
        let next = sources
            .into_iter()
            .find(|(source, _)| self.may_answer(source));
        let Some((source, bound)) = next.filter(|_| ready) else {
            // Tried again when something has happened, until it is late.
            return;
        };
        if self.peers[&source.store].sealed.is_none() {
            return self.seal(source.store);
        }
        let request = Request::Heal {
            asker: self.asker(store),
            source: self.source(source.store),
            from: source.from,
            below: bound,
            blocks,
        };
        let heal = self.heals.open.get_mut(&(store, block)).expect("just seen");
        heal.asked = Some((source.store, self.now));
        self.call(store, request, Aim::Nowhere, Purpose::Heal { block });
    }

    /// Who may have the version that is damaged, the likeliest first: the other stores of the same entry, then
    /// those of older ones, whose version it is where it was filled in.
    fn healers(&self, blocks: Blocks, from: Epoch, below: Epoch) -> Vec<(Holder, Epoch)> {
        let mut healers: Vec<(Holder, Epoch)> = Vec::new();
        let mut below = below;
        loop {
            let holders: Holders = self.holders(blocks, below);
            let Some(oldest) = holders.iter().map(|holder| holder.from).min() else {
                break;
            };
            let mut level: Vec<(Holder, Epoch)> = holders
                .into_iter()
                .map(|holder| (holder, holder.bound(below)))
                .collect();
            level.sort_by_key(|(holder, _)| {
                (
                    holder.from != from,
                    self.distance(holder.store),
                    !holder.last,
                )
            });
            healers.extend(level);
            below = oldest;
        }
        healers
    }

    pub(super) fn heal_answered(&mut self, store: StoreId, block: Block, copied: u32) {
        if copied > 0 {
            self.progress.healed_blocks += u64::from(copied);
            return self.heal_ended(store, block, true);
        }
        self.try_next_healer(store, block);
    }

    pub(super) fn heal_refused(&mut self, store: StoreId, block: Block, refusal: &Refusal) {
        match refusal {
            Refusal::Source(SourceFault::Unsealed) => {
                let heal = self.heals.open.get(&(store, block));
                if let Some((source, _)) = heal.and_then(|heal| heal.asked)
                    && !self.is_member(source)
                {
                    self.peer(source).sealed = None;
                }
                self.try_next_healer(store, block);
            }
            Refusal::Source(_) => self.try_next_healer(store, block),
            _ => {
                self.heal_ended(store, block, false);
                self.store_refuses(store, refusal);
            }
        }
    }

    pub(super) fn heal_cut_off(&mut self, store: StoreId, block: Block) {
        self.heal_ended(store, block, false);
    }

    fn try_next_healer(&mut self, store: StoreId, block: Block) {
        if let Some(heal) = self.heals.open.get_mut(&(store, block))
            && let Some((source, _)) = heal.asked.take()
        {
            heal.tried.push(source);
            self.ask_to_heal(store, block);
        }
    }

    /// Asks others where a heal takes too long; a late one does no harm.
    pub(super) fn hurry_heals(&mut self) {
        let patience = self.config.read_patience * 2;
        let late = self.calls.ids(|call| {
            matches!(call.purpose, Purpose::Heal { .. }) && call.issued + patience <= self.now
        });
        for id in late {
            let call = self.calls.remove(id).expect("an open call");
            if let Purpose::Heal { block } = call.purpose {
                self.try_next_healer(call.store, block);
            }
        }
        self.go_on_healing();
    }

    /// Reads that have nobody else to ask have waited for it.
    fn heal_ended(&mut self, store: StoreId, block: Block, healed: bool) {
        self.heals.open.remove(&(store, block));
        self.verify_heal_ended(store, block, healed);
        let waits = |piece: &PieceId| self.reads[piece].blocks.contains(block);
        for piece in self
            .seeking
            .iter()
            .copied()
            .filter(waits)
            .collect::<Vec<_>>()
        {
            if let Some(read) = self.reads.get_mut(&piece).filter(|_| healed) {
                read.ask_healed(store);
            }
            if self.seeking.contains(&piece) {
                self.route(piece);
            }
        }
    }

    /// What was asked in the last epoch is void. Who waits for a heal hears of the damage once more.
    pub(super) fn forget_heals(&mut self) {
        for (store, block) in std::mem::take(&mut self.heals.open).into_keys() {
            for read in self.reads.values_mut() {
                if read.blocks.contains(block) {
                    read.ask_again(store);
                }
            }
        }
    }
}
