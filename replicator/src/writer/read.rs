//! One piece of a read: live entries first, from the near store where it is a member; blocks that an
//! entry does not have are asked of the next older one, below the newer one's beginning (rules R1, R2),
//! by way of the near store where they are to be anyway (read_through.rs, rule F3).

use super::block_locks::Claim;
use super::calls::Purpose;
use super::{Aim, CallId, Effect, Failure, Now, Phase, PieceId, RequestId, Writer};
use crate::message::{Found, ReadBlocks, Refusal, Request, checksum};
use crate::plant::{Plant, planted};
use crate::words::{BLOCK_BYTES, Block, Blocks, Entry, Epoch, History, Revision, Span, StoreId};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::BTreeSet;

pub(super) struct ReadPiece {
    pub(super) target: Target,
    /// Within one extent.
    pub(super) blocks: Blocks,
    /// Which entries are asked: those that hold what was written right below this epoch; the live
    /// ones for [`Epoch::MAX`].
    pub(super) below: Epoch,
    /// Of the record by which that was found.
    revision: Revision,
    /// Whom it asked last.
    pub(super) asked: Option<Holder>,
    /// Stores that do not have these blocks intact.
    useless: SmallVec<[StoreId; 2]>,
    /// A store that was healed for it already.
    healed: Option<StoreId>,
    /// A store that was slow, or could not answer now.
    avoid: Option<StoreId>,
    /// What is missing there is pulled into this store first, and then read there (rule F3).
    pub(super) through: Option<StoreId>,
    stage: Stage,
    /// Since when it waits for a store that it can ask.
    since: Now,
}

/// A store that let a read wait for longer than `read_patience` is asked after the others for so many times that: else
/// each read would begin with the same wait.
const SLOW_FOR: u32 = 10;

pub(super) type Holders = SmallVec<[Holder; 4]>;

/// A store that can say something of some blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Holder {
    pub store: StoreId,
    /// The entry that it is asked for.
    pub from: Epoch,
    pub live: bool,
    /// What it does not have was never written: its entry is whole, or the extent has been filled.
    pub last: bool,
}

impl Holder {
    /// The bound of a question to it (rule R2). A live store holds whatever was acknowledged up to
    /// now, and may have dropped what stood there before: it is asked without a bound. Newer writes
    /// than the reader's are in flight then, and hold up whoever comes after them.
    pub fn bound(&self, below: Epoch) -> Epoch {
        if self.live || planted(Plant::OlderReadUnbounded) {
            Epoch::MAX
        } else {
            below
        }
    }
}

/// Who wants to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Guest(RequestId),
    /// A partial write, of its one block.
    Merge(PieceId),
    /// A take-over, of blocks to rewrite.
    Settle(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Waits for writes before it.
    Behind,
    /// Waits for a store that it can ask.
    Seeking,
    Asked,
    /// Waits until nothing can land any more.
    Withdrawing,
}

impl Writer {
    pub(super) fn begin_read(&mut self, target: Target, blocks: Blocks) {
        let piece = self.add_read(target, blocks, Epoch::MAX, Stage::Behind);
        if matches!(target, Target::Guest(_)) {
            // What the guest reads shall be near, as far as it is to be there at all.
            self.reads.get_mut(&piece).expect("just added").through = self.config.near;
        }
        // A merge holds its block already, and a take-over is alone.
        let free = match target {
            Target::Guest(_) => self.claim(piece, blocks, Claim::Read),
            Target::Merge(_) | Target::Settle(_) => true,
        };
        if free {
            self.route(piece);
        }
    }

    fn add_read(&mut self, target: Target, blocks: Blocks, below: Epoch, stage: Stage) -> PieceId {
        match target {
            Target::Guest(id) => self.piece_begins(id),
            Target::Settle(run) => self.run_read_begins(run),
            Target::Merge(_) => {}
        }
        let piece = self.next_piece();
        let read = ReadPiece {
            target,
            blocks,
            below,
            revision: self.record.revision,
            asked: None,
            useless: SmallVec::new(),
            healed: None,
            avoid: None,
            through: None,
            stage,
            since: self.now,
        };
        self.reads.insert(piece, read);
        piece
    }

    /// Reads a part of what `piece` was to read elsewhere, or once more.
    pub(super) fn read_part(
        &mut self,
        piece: PieceId,
        blocks: Blocks,
        change: impl FnOnce(&mut ReadPiece),
    ) {
        let parent = &self.reads[&piece];
        let (target, below, revision) = (parent.target, parent.below, parent.revision);
        let child = self.add_read(target, blocks, below, Stage::Seeking);
        let read = self.reads.get_mut(&child).expect("just added");
        read.revision = revision;
        change(read);
        self.route(child);
    }

    /// Asks the best store that can be asked now, or waits for one.
    pub(super) fn route(&mut self, piece: PieceId) {
        self.seek(piece);
        let read = &self.reads[&piece];
        let (target, blocks) = (read.target, read.blocks);
        if !self.may_ask(target) {
            return;
        }
        let stale = self.is_stale(read);
        let mut holders = self.sources(target, blocks, read.below);
        if holders.is_empty() || stale {
            // A change of the members has come into the midst of a read: begin at the top.
            holders = self.sources(target, blocks, Epoch::MAX);
            let read = self.reads.get_mut(&piece).expect("it was there");
            read.below = Epoch::MAX;
            read.useless.clear();
        }
        let read = &self.reads[&piece];
        let (below, avoid) = (read.below, read.avoid);
        holders.retain(|holder| !read.useless.contains(&holder.store));
        if holders.is_empty() {
            return self.unreadable(piece);
        }
        for holder in &holders {
            self.connect(holder.store);
        }
        let turn = self.record.extent_size.of(blocks.first).0 as usize % holders.len();
        let best = (0..holders.len())
            .map(|i| holders[(turn + i) % holders.len()])
            .filter(|holder| self.may_answer(holder))
            .min_by_key(|holder| {
                let avoided = avoid == Some(holder.store);
                let slow = self.peers[&holder.store].slow_until > Some(self.now);
                let behind = match target {
                    Target::Settle(run) => !self.has_newest(run, holder.store),
                    Target::Guest(_) | Target::Merge(_) => false,
                };
                (
                    avoided,
                    behind,
                    slow,
                    self.distance(holder.store),
                    !holder.last,
                )
            });
        let Some(holder) = best else {
            return;
        };
        if self.peers[&holder.store].sealed.is_none() {
            // A store of an older entry is shown the epoch when it is first needed (R3).
            return self.seal(holder.store);
        }
        if below < Epoch::MAX && self.may_pull_through(piece, &holder) {
            return self.pull_through(piece, holder);
        }
        let from = if planted(Plant::AnyVersionWins) {
            Epoch::ZERO
        } else {
            holder.from
        };
        let request = Request::Read {
            asker: self.asker(holder.store),
            from,
            below: holder.bound(below),
            blocks,
        };
        let aim = match target {
            Target::Guest(id) => Aim::Guest {
                id,
                span: self.requests[&id].span,
            },
            Target::Merge(_) | Target::Settle(_) => Aim::Engine,
        };
        self.call(holder.store, request, aim, Purpose::Read { piece });
        self.asked(piece, holder);
    }

    pub(super) fn asked(&mut self, piece: PieceId, holder: Holder) {
        self.seeking.remove(&piece);
        let revision = self.record.revision;
        let read = self.reads.get_mut(&piece).expect("it was there");
        read.stage = Stage::Asked;
        read.asked = Some(holder);
        read.revision = revision;
    }

    /// It is on its way down the entries of a map that is another one by now. Others hold other things there: who was
    /// told that all is whole has dropped what stood below, and a member that is none any more was written to since
    /// the entry above it was found to lack the blocks.
    pub(super) fn is_stale(&self, read: &ReadPiece) -> bool {
        read.below < Epoch::MAX && read.revision != self.record.revision
    }

    fn may_ask(&self, target: Target) -> bool {
        match (target, &self.phase) {
            (Target::Settle(_), phase) => matches!(phase, Phase::Settling(_)),
            (Target::Guest(_) | Target::Merge(_), _) => self.is_serving(),
        }
    }

    /// A member that has missed writes is on its way out; what it holds of older entries it will
    /// still be asked for then.
    pub(super) fn may_answer(&self, holder: &Holder) -> bool {
        let peer = &self.peers[&holder.store];
        peer.connected && !(holder.live && peer.lost)
    }

    /// Who can say what was written to `blocks` right below `below` (rule R1).
    pub(super) fn holders(&self, blocks: Blocks, below: Epoch) -> Holders {
        let extent = self.record.extent_size.of(blocks.first);
        let entries = self.history_of(blocks).0.iter().filter(|entry| {
            let newest = below == Epoch::MAX && entry.is_live();
            newest || (entry.from < below && entry.reaches(below))
        });
        let of = |entry: &Entry, store: StoreId| Holder {
            store,
            from: entry.from,
            live: entry.is_live(),
            last: entry.whole || (entry.is_live() && self.fill.is_done(store, entry.from, extent)),
        };
        entries
            .flat_map(|entry| entry.stores.iter().map(move |store| of(entry, *store)))
            .collect()
    }

    fn sources(&self, target: Target, blocks: Blocks, below: Epoch) -> Holders {
        let mut holders = self.holders(blocks, below);
        if matches!(target, Target::Settle(_)) && below == Epoch::MAX {
            let sources = self.settling_sources();
            holders.retain(|holder| sources.contains(&holder.store));
        }
        holders
    }

    pub(super) fn read_answered(&mut self, piece: PieceId, store: StoreId, answer: ReadBlocks) {
        let read = &self.reads[&piece];
        let (target, blocks) = (read.target, read.blocks);
        let holder = read.asked.expect("it was asked");
        if self.is_stale(read) {
            self.seek(piece);
            return self.route(piece);
        }
        let to_engine = !matches!(target, Target::Guest(_));
        if !answer.fits(blocks, to_engine) {
            let why = "the answer does not fit the question";
            return self.read_refused(piece, store, Refusal::Invalid { why });
        }
        let through = (read.below == Epoch::MAX)
            .then_some(holder.store)
            .filter(|store| read.through == Some(*store));
        self.count_read(piece, &answer);
        let mut data = answer.data;
        let mut at = blocks.first;
        for run in answer.found.chunk_by(|a, b| kind(a) == kind(b)) {
            let these = Blocks::new(at, run.len() as u32);
            at = these.end();
            match run[0] {
                Found::Absent if !holder.last => self.read_part(piece, these, |child| {
                    child.below = holder.from;
                    child.through = through;
                }),
                Found::Absent | Found::Zeroes(_) => self.reads_as_zeroes(target, these),
                Found::Data { .. } if to_engine => {
                    for (block, found) in these.iter().zip(run) {
                        let bytes = data.split_to(BLOCK_BYTES as usize);
                        self.take_block(piece, store, block, *found, bytes);
                    }
                }
                Found::Data { .. } => {}
            }
        }
        self.end_read(piece, None);
    }

    /// What a guest's first question was answered with: how much of what it reads is near, and what is
    /// to be brought near first.
    fn count_read(&mut self, piece: PieceId, answer: &ReadBlocks) {
        let read = &self.reads[&piece];
        let holder = read.asked.expect("it was asked");
        let first = read.below == Epoch::MAX && read.through.is_some();
        if !matches!(read.target, Target::Guest(_)) || !first {
            return;
        }
        let blocks = read.blocks;
        let near = if self.config.near != Some(holder.store) {
            0
        } else if holder.last {
            answer.found.len()
        } else {
            let absent = |found: &&Found| matches!(found, Found::Absent);
            answer.found.len() - answer.found.iter().filter(absent).count()
        };
        let far = answer.found.len() - near;
        self.progress.near_blocks += near as u64;
        self.progress.far_blocks += far as u64;
        if far > 0 && !holder.last {
            self.warm(blocks, super::heat::MISSED);
        }
    }

    /// A block for ourselves, checked end to end: we are about to write it under a new checksum.
    fn take_block(
        &mut self,
        piece: PieceId,
        store: StoreId,
        block: Block,
        found: Found,
        bytes: Bytes,
    ) {
        let read = &self.reads[&piece];
        let target = read.target;
        let intact = matches!(found, Found::Data { sum, .. } if sum == checksum(&bytes));
        if !intact {
            let mut useless = read.useless.clone();
            useless.push(store);
            return self.read_part(piece, Blocks::new(block, 1), |child| {
                child.useless = useless
            });
        }
        match target {
            Target::Merge(write) => self.merge(write, Some(bytes)),
            Target::Settle(run) => self.run_filled(run, Blocks::new(block, 1), Some(bytes)),
            Target::Guest(_) => unreachable!("a guest's blocks land in the shell"),
        }
    }

    pub(super) fn reads_as_zeroes(&mut self, target: Target, blocks: Blocks) {
        match target {
            Target::Guest(id) => {
                let span = self.requests[&id].span;
                let offset = span.offset.max(blocks.first.0 * BLOCK_BYTES);
                let end = span.end().min(blocks.end().0 * BLOCK_BYTES);
                let span = Span::new(offset, end - offset);
                self.effects.push_back(Effect::Zero { id, span });
            }
            Target::Merge(write) => self.merge(write, None),
            Target::Settle(run) => self.run_filled(run, blocks, None),
        }
    }

    pub(super) fn read_refused(&mut self, piece: PieceId, store: StoreId, refusal: Refusal) {
        let read = &self.reads[&piece];
        let blocks = read.blocks;
        let live = read.asked.is_some_and(|holder| holder.live);
        if let Refusal::Damaged { block } = refusal
            && blocks.contains(block)
            && read.healed != Some(store)
        {
            let holder = read.asked.expect("it was asked");
            self.heal(store, (holder.from, read.below), block);
        }
        let read = &self.reads[&piece];
        match refusal {
            Refusal::Damaged { block } if blocks.contains(block) && blocks.count > 1 => {
                let after = Block(block.0 + 1);
                let parts = [
                    Blocks::new(blocks.first, (block.0 - blocks.first.0) as u32),
                    Blocks::new(block, 1),
                    Blocks::new(after, (blocks.end().0 - after.0) as u32),
                ];
                let (useless, through) = (read.useless.clone(), read.through);
                for part in parts.into_iter().filter(|part| !part.is_empty()) {
                    let mut useless = useless.clone();
                    if part.first == block {
                        useless.push(store);
                    }
                    self.read_part(piece, part, |child| {
                        child.useless = useless;
                        child.through = through;
                    });
                }
                self.end_read(piece, None);
            }
            Refusal::OtherIncarnation { .. } | Refusal::NotShown { .. }
                if !self.is_member(store) =>
            {
                // What an older entry holds was synced: its store may have crashed since (S4).
                self.peer(store).sealed = None;
                self.route(piece);
            }
            Refusal::OtherIncarnation { .. } | Refusal::NotShown { .. } => {
                self.seek(piece);
                self.member_failed(store);
                self.retry_reads();
            }
            Refusal::NoReplica | Refusal::Failed if live => {
                self.seek(piece);
                self.member_failed(store);
                self.retry_reads();
            }
            Refusal::Failed => {
                self.reads.get_mut(&piece).expect("it was there").avoid = Some(store);
                self.seek(piece);
                if self.has_another(piece, store) {
                    self.route(piece);
                }
            }
            _ => {
                self.reads
                    .get_mut(&piece)
                    .expect("it was there")
                    .useless
                    .push(store);
                self.route(piece);
            }
        }
    }

    /// A member of a newest entry showed, by a read, that it has missed writes.
    fn member_failed(&mut self, store: StoreId) {
        if matches!(self.phase, Phase::Settling(_)) {
            self.restart_settling();
        } else {
            self.member_lost(store);
        }
    }

    /// No member of the entry has the blocks intact.
    fn unreadable(&mut self, piece: PieceId) {
        if self.heals.is_open(self.reads[&piece].blocks) {
            // It goes on when that has ended.
            return;
        }
        match self.reads[&piece].target {
            Target::Guest(_) => {}
            Target::Merge(write) => self.merge_failed(write),
            Target::Settle(_) => return self.restart_settling(),
        }
        self.end_read(piece, Some(Failure::Unreadable));
    }

    pub(super) fn end_read(&mut self, piece: PieceId, failure: Option<Failure>) {
        self.seeking.remove(&piece);
        let Some(read) = self.reads.remove(&piece) else {
            return;
        };
        match read.target {
            Target::Guest(id) => self.piece_ended(id, failure),
            Target::Settle(run) => self.run_read_ended(run),
            Target::Merge(_) => {}
        }
    }

    /// Its question is void: ask anew when possible.
    pub(super) fn seek(&mut self, piece: PieceId) {
        if let Some(read) = self.reads.get_mut(&piece) {
            read.stage = Stage::Seeking;
            if self.seeking.insert(piece) {
                read.since = self.now;
            }
        }
    }

    /// The stores that reads have been waiting for longer than a read should take.
    pub(super) fn unreachable(&self) -> Vec<StoreId> {
        let patience = self.config.read_patience * 2;
        let mut stores: Vec<StoreId> = self
            .seeking
            .iter()
            .map(|piece| &self.reads[piece])
            .filter(|read| self.may_ask(read.target) && read.since + patience <= self.now)
            .flat_map(|read| {
                let mut holders = self.sources(read.target, read.blocks, read.below);
                holders.retain(|holder| !read.useless.contains(&holder.store));
                holders.into_iter().map(|holder| holder.store)
            })
            .collect();
        stores.sort_unstable();
        stores.dedup();
        stores
    }

    pub(super) fn retry_reads(&mut self) {
        for piece in self.seeking.iter().copied().collect::<Vec<_>>() {
            if self.seeking.contains(&piece) {
                self.route(piece);
            }
        }
    }

    /// Asks others where a store takes too long.
    pub(super) fn hurry_reads(&mut self) {
        let late = self.calls.ids(|call| {
            matches!(call.purpose, Purpose::Read { .. } | Purpose::Through { .. })
                && call.hold_until.is_none()
                && call.issued + self.config.read_patience <= self.now
        });
        for id in late {
            let call = self.calls.remove(id).expect("an open call");
            let piece = match call.purpose {
                Purpose::Read { piece } => piece,
                Purpose::Through { piece } => {
                    // A late pull does no harm; the guest waits for it no longer.
                    self.pull_through_failed(piece);
                    continue;
                }
                _ => continue,
            };
            if self.is_withdrawing(piece) || !self.has_another(piece, call.store) {
                self.calls.put_back(id, call);
                continue;
            }
            self.reads.get_mut(&piece).expect("it was there").avoid = Some(call.store);
            self.peer(call.store).slow_until =
                Some(self.now + self.config.read_patience * SLOW_FOR);
            let lands = call.sent && matches!(call.aim, Aim::Guest { .. });
            if lands {
                self.calls.put_back(id, call);
                self.withdraw(piece, id);
            } else {
                self.route(piece);
            }
        }
    }

    fn has_another(&self, piece: PieceId, than: StoreId) -> bool {
        let read = &self.reads[&piece];
        self.sources(read.target, read.blocks, read.below)
            .iter()
            .filter(|holder| holder.store != than && !read.useless.contains(&holder.store))
            .any(|holder| {
                self.peers
                    .get(&holder.store)
                    .is_some_and(|peer| peer.sealed.is_some())
                    && self.may_answer(holder)
            })
    }

    pub(super) fn withdraw(&mut self, piece: PieceId, call: CallId) {
        let read = self.reads.get_mut(&piece).expect("its call is open");
        if read.stage != Stage::Withdrawing {
            read.stage = Stage::Withdrawing;
            self.effects.push_back(Effect::Withdraw { call });
        }
    }

    pub(super) fn withdrawn(&mut self, id: CallId) {
        if let Some(call) = self.calls.take_answered(id)
            && let Purpose::Read { piece } = call.purpose
        {
            self.read_ended(piece);
        }
    }

    /// Nothing of its last call can land any more: ask anew, or be done if the request has failed.
    pub(super) fn read_ended(&mut self, piece: PieceId) {
        let read = &self.reads[&piece];
        if let Target::Guest(id) = read.target
            && self.requests[&id].failure.is_some()
        {
            return self.end_read(piece, None);
        }
        self.route(piece);
    }

    /// Ends the reads of these requests; those that may still land do so when they cannot any more (R5).
    pub(super) fn give_up_reads(&mut self, of: &BTreeSet<RequestId>) {
        let mut given_up = Vec::new();
        for (piece, read) in &self.reads {
            if let Target::Guest(id) = read.target
                && of.contains(&id)
            {
                given_up.push((*piece, id, read.stage));
            }
        }
        for (piece, id, stage) in given_up {
            let request = self.requests.get_mut(&id).expect("its read is under way");
            request.failure = request.failure.or(Some(Failure::TooLate));
            if stage == Stage::Behind {
                self.locks.forget_read(piece);
            }
            let call = self.calls.iter().find_map(|(call, open)| {
                let asks = open.purpose == Purpose::Read { piece }
                    || open.purpose == Purpose::Through { piece };
                asks.then_some((call, open.sent && matches!(open.aim, Aim::Guest { .. })))
            });
            match call {
                _ if stage == Stage::Withdrawing => {}
                Some((call, true)) => self.withdraw(piece, call),
                Some((call, false)) => {
                    self.calls.remove(call);
                    self.end_read(piece, None);
                }
                None => self.end_read(piece, None),
            }
        }
    }

    pub(super) fn is_withdrawing(&self, piece: PieceId) -> bool {
        self.reads
            .get(&piece)
            .is_some_and(|read| read.stage == Stage::Withdrawing)
    }

    /// Drops every read but those that may still land; returns the requests of these.
    pub(super) fn keep_only_landing_reads(&mut self) -> Vec<RequestId> {
        self.seeking.clear();
        self.reads
            .retain(|_, read| read.stage == Stage::Withdrawing);
        self.reads
            .values()
            .filter_map(|read| match read.target {
                Target::Guest(id) => Some(id),
                _ => None,
            })
            .collect()
    }

    pub(super) fn history_of(&self, blocks: Blocks) -> &History {
        let range = self.record.range_of(blocks.first).expect("on the disk");
        &range.history
    }
}

impl ReadBlocks {
    fn fits(&self, blocks: Blocks, with_data: bool) -> bool {
        let found = self
            .found
            .iter()
            .filter(|f| matches!(f, Found::Data { .. }));
        self.found.len() == blocks.count as usize
            && (!with_data || self.data.len() as u64 == found.count() as u64 * BLOCK_BYTES)
    }
}

impl ReadPiece {
    /// A store that had these blocks damaged may be asked once more.
    pub(super) fn ask_again(&mut self, store: StoreId) {
        self.useless.retain(|useless| *useless != store);
    }

    /// The same, for the last time.
    pub(super) fn ask_healed(&mut self, store: StoreId) {
        self.ask_again(store);
        self.healed = Some(store);
    }
}

fn kind(found: &Found) -> std::mem::Discriminant<Found> {
    std::mem::discriminant(found)
}
