//! One piece of a read: newest entry first, from the near store where it is a member; blocks that an
//! entry does not have are asked of the next older one, below the newer one's beginning (rules R1, R2).

use super::block_locks::Claim;
use super::calls::Purpose;
use super::{Aim, CallId, Effect, Failure, Phase, PieceId, RequestId, Writer};
use crate::message::{Found, ReadBlocks, Refusal, Request, checksum};
use crate::plant::{Plant, planted};
use crate::words::{BLOCK_BYTES, Block, Blocks, Epoch, History, Span, StoreId};
use bytes::Bytes;
use smallvec::SmallVec;

pub(super) struct ReadPiece {
    target: Target,
    /// Within one extent.
    blocks: Blocks,
    /// Which entries are asked: those that began here, for what was written below `below`.
    from: Epoch,
    below: Epoch,
    /// Members of that entry that do not have these blocks intact.
    useless: SmallVec<[StoreId; 2]>,
    /// A member that was slow, or could not answer now.
    avoid: Option<StoreId>,
    stage: Stage,
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
        let (from, below) = (self.starts_at(blocks), Epoch::MAX);
        let piece = self.add_read(
            target,
            blocks,
            (from, below),
            SmallVec::new(),
            Stage::Behind,
        );
        // A merge holds its block already, and a take-over is alone.
        let free = match target {
            Target::Guest(_) => self.claim(piece, blocks, Claim::Read),
            Target::Merge(_) | Target::Settle(_) => true,
        };
        if free {
            self.route(piece);
        }
    }

    fn add_read(
        &mut self,
        target: Target,
        blocks: Blocks,
        (from, below): (Epoch, Epoch),
        useless: SmallVec<[StoreId; 2]>,
        stage: Stage,
    ) -> PieceId {
        match target {
            Target::Guest(id) => self.piece_begins(id),
            Target::Settle(run) => self.run_read_begins(run),
            Target::Merge(_) => {}
        }
        let piece = self.next_piece();
        let read = ReadPiece {
            target,
            blocks,
            from,
            below,
            useless,
            avoid: None,
            stage,
        };
        self.reads.insert(piece, read);
        piece
    }

    /// Asks the best store that can be asked now, or waits for one.
    pub(super) fn route(&mut self, piece: PieceId) {
        self.seek(piece);
        let read = &self.reads[&piece];
        if !self.may_ask(read.target) {
            return;
        }
        // A change of the members may end an entry in the midst of a read of it: begin at the top.
        let gone = self.history_of(read.blocks).holders(read.from, read.below);
        if gone.count() == 0 {
            let from = self.starts_at(read.blocks);
            let read = self.reads.get_mut(&piece).expect("it was there");
            (read.from, read.below) = (from, Epoch::MAX);
            read.useless.clear();
        }
        let read = &self.reads[&piece];
        let (from, bound) = (read.from, read.below);
        let (blocks, target) = (read.blocks, read.target);
        let newest = bound == Epoch::MAX;
        let stores: SmallVec<[StoreId; 4]> = match target {
            Target::Settle(_) if newest => self.settling_sources(),
            _ => self.history_of(blocks).holders(from, bound).collect(),
        };
        let left: SmallVec<[StoreId; 4]> = stores
            .into_iter()
            .filter(|store| !read.useless.contains(store))
            .collect();
        if left.is_empty() {
            return self.unreadable(piece);
        }
        for store in &left {
            self.connect(*store);
        }
        let turn = self.record.extent_size.of(blocks.first).0 as usize % left.len();
        let avoid = self.reads[&piece].avoid;
        let best = (0..left.len())
            .map(|i| left[(turn + i) % left.len()])
            .filter(|store| {
                let peer = &self.peers[store];
                peer.connected && !(newest && peer.lost)
            })
            .min_by_key(|store| (avoid == Some(*store), self.config.near != Some(*store)));
        let Some(store) = best else {
            return;
        };
        if self.peers[&store].sealed.is_none() {
            // A store of an older entry is shown the epoch when it is first needed (R3).
            return self.seal(store);
        }
        let below = if planted(Plant::OlderReadUnbounded) {
            Epoch::MAX
        } else {
            bound
        };
        let from = if planted(Plant::AnyVersionWins) {
            Epoch::ZERO
        } else {
            from
        };
        let request = Request::Read {
            asker: self.asker(store),
            from,
            below,
            blocks,
        };
        let aim = match target {
            Target::Guest(id) => Aim::Guest {
                id,
                span: self.requests[&id].span,
            },
            Target::Merge(_) | Target::Settle(_) => Aim::Engine,
        };
        self.call(store, request, aim, Purpose::Read { piece });
        self.seeking.remove(&piece);
        self.reads.get_mut(&piece).expect("it was there").stage = Stage::Asked;
    }

    fn may_ask(&self, target: Target) -> bool {
        match (target, &self.phase) {
            (Target::Settle(_), phase) => matches!(phase, Phase::Settling(_)),
            (Target::Guest(_) | Target::Merge(_), _) => self.is_serving(),
        }
    }

    pub(super) fn read_answered(&mut self, piece: PieceId, store: StoreId, answer: ReadBlocks) {
        let read = &self.reads[&piece];
        let (target, blocks) = (read.target, read.blocks);
        let to_engine = !matches!(target, Target::Guest(_));
        if !answer.fits(blocks, to_engine) {
            let why = "the answer does not fit the question";
            return self.read_refused(piece, store, Refusal::Invalid { why });
        }
        let older = self.older_than(piece);
        let mut data = answer.data;
        let mut at = blocks.first;
        for run in answer.found.chunk_by(|a, b| kind(a) == kind(b)) {
            let these = Blocks::new(at, run.len() as u32);
            at = these.end();
            match (run[0], older) {
                (Found::Absent, Some(older)) => {
                    let child =
                        self.add_read(target, these, older, SmallVec::new(), Stage::Seeking);
                    self.route(child);
                }
                (Found::Absent, None) | (Found::Zeroes(_), _) => {
                    self.reads_as_zeroes(target, these)
                }
                (Found::Data { .. }, _) if to_engine => {
                    for (block, found) in these.iter().zip(run) {
                        let bytes = data.split_to(BLOCK_BYTES as usize);
                        self.take_block(piece, store, block, *found, bytes);
                    }
                }
                (Found::Data { .. }, _) => {}
            }
        }
        self.end_read(piece, None);
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
            let entry = (read.from, read.below);
            let child = self.add_read(
                target,
                Blocks::new(block, 1),
                entry,
                useless,
                Stage::Seeking,
            );
            return self.route(child);
        }
        match target {
            Target::Merge(write) => self.merge(write, Some(bytes)),
            Target::Settle(run) => self.run_filled(run, Blocks::new(block, 1), Some(bytes)),
            Target::Guest(_) => unreachable!("a guest's blocks land in the shell"),
        }
    }

    fn reads_as_zeroes(&mut self, target: Target, blocks: Blocks) {
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
        let (target, blocks) = (read.target, read.blocks);
        let entry = (read.from, read.below);
        let newest = read.below == Epoch::MAX;
        match refusal {
            Refusal::Damaged { block } if blocks.contains(block) && blocks.count > 1 => {
                let after = Block(block.0 + 1);
                let parts = [
                    Blocks::new(blocks.first, (block.0 - blocks.first.0) as u32),
                    Blocks::new(block, 1),
                    Blocks::new(after, (blocks.end().0 - after.0) as u32),
                ];
                let useless = read.useless.clone();
                for part in parts.into_iter().filter(|part| !part.is_empty()) {
                    let mut useless = useless.clone();
                    if part.first == block {
                        useless.push(store);
                    }
                    let child = self.add_read(target, part, entry, useless, Stage::Seeking);
                    self.route(child);
                }
                self.end_read(piece, None);
            }
            Refusal::OtherIncarnation { .. } | Refusal::NotShown { .. } if !newest => {
                // What an older entry holds was synced: its store may have crashed since (S4).
                self.seek(piece);
                if !self.is_member(store) {
                    self.peer(store).sealed = None;
                    self.route(piece);
                } else {
                    self.member_failed(store);
                }
            }
            Refusal::OtherIncarnation { .. }
            | Refusal::NotShown { .. }
            | Refusal::NoReplica
            | Refusal::Failed
                if newest =>
            {
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
        match self.reads[&piece].target {
            Target::Guest(_) => {}
            Target::Merge(write) => self.merge_failed(write),
            Target::Settle(_) => return self.restart_settling(),
        }
        self.end_read(piece, Some(Failure::Unreadable));
    }

    fn end_read(&mut self, piece: PieceId, failure: Option<Failure>) {
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
            self.seeking.insert(piece);
        }
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
            matches!(call.purpose, Purpose::Read { .. })
                && call.hold_until.is_none()
                && call.issued + self.config.read_patience <= self.now
        });
        for id in late {
            let call = self.calls.remove(id).expect("an open call");
            let (store, Purpose::Read { piece }) = (call.store, call.purpose) else {
                continue;
            };
            if self.is_withdrawing(piece) || !self.has_another(piece, store) {
                self.calls.put_back(id, call);
                continue;
            }
            self.reads.get_mut(&piece).expect("it was there").avoid = Some(store);
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
        let newest = read.below == Epoch::MAX;
        self.history_of(read.blocks)
            .holders(read.from, read.below)
            .filter(|store| *store != than && !read.useless.contains(store))
            .any(|store| {
                self.peers.get(&store).is_some_and(|peer| {
                    peer.connected && peer.sealed.is_some() && !(newest && peer.lost)
                })
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

    fn history_of(&self, blocks: Blocks) -> &History {
        let range = self.record.range_of(blocks.first).expect("on the disk");
        &range.history
    }

    /// The live entry to ask first: the near store's, else one that is whole, else the oldest.
    fn starts_at(&self, blocks: Blocks) -> Epoch {
        let history = self.history_of(blocks);
        let near = self.config.near.and_then(|near| history.member(near));
        let best = near
            .or_else(|| history.live().find(|entry| entry.whole))
            .or_else(|| history.live().last());
        best.expect("somebody is live").from
    }

    /// Where a block is looked for that the entries asked do not have.
    fn older_than(&self, piece: PieceId) -> Option<(Epoch, Epoch)> {
        let read = &self.reads[&piece];
        let older = self.history_of(read.blocks).older(read.from)?;
        Some((older, read.from))
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

fn kind(found: &Found) -> std::mem::Discriminant<Found> {
    std::mem::discriminant(found)
}
