//! Filling members that are not whole while the guest runs: ask an older entry what it has, let the
//! store that lacks it pull it, store to store, and say so in the record once all is there and synced
//! (rules F1, F2).
//!
//! ```text
//!  writer                       store that is filled        older store         placement
//!    |--- Survey some extents -------------|------------------->|                   |
//!    |<-- runs of blocks that it has ------|--------------------|                   |
//!    |--- Pull a run, a few at once ------>|--- Fetch --------->|                   |
//!    |                                     |<-- what is new ----|                   |
//!    |<-- Pulled --------------------------|                    |                   |
//!    |        what was absent there: the same with the next older entry             |
//!    |        all extents of the entry are done, at each of its stores              |
//!    |--- Sync all members --------------->|                    |                   |
//!    |--- Swap(Complete) -----------------------------------------------------------|
//! ```
//!
//! Guest writes go on throughout: a fill never replaces what a store can prove, and a write goes to every
//! live store anyway. What nobody gives now is put off, and others are filled meanwhile. A crash of anybody
//! begins the survey anew; what is there is not copied again.
//! The first store of an entry pulls from afar; the others pull from it.

use super::answers::are_parts;
use super::calls::Purpose;
use super::fill::Span;
use super::read::{Holder, Holders};
use super::{Aim, FillOrders, Hindrance, Phase, Writer};
use crate::message::{MAX_DATA_BLOCKS, Pulled, Refusal, Request, SourceFault};
use crate::plant::{Plant, planted};
use crate::words::{
    BLOCK_BYTES, Block, Blocks, Change, Epoch, ExtentSize, Extents, MapRange, StoreId,
};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::time::Duration;

/// Spans that are worked on at once.
const MAX_WORKS: usize = 4;
/// Pulls under way: 8 MiB, enough to keep a link of 20 ms and 3 Gbit/s busy.
const MAX_PULLS: usize = 8;
/// The same while the guest has requests of its own in flight, which come first.
const MAX_PULLS_BESIDE_GUEST: usize = 4;
/// A guest is busy for so long after its last request.
const BUSY_FOR: Duration = Duration::from_millis(100);
/// Beside a busy guest filling begins slowly, and is as fast as it may be after so long: a VM that has just
/// arrived has waited already, and its first reads have to come from afar.
const GENTLE_FOR: Duration = Duration::from_secs(3);
/// Blocks that may be absent between two runs that are pulled together.
const MAX_GAP: u64 = 16;
/// A survey that finds more than this in a span cuts the span: 128 MiB.
const MAX_SPAN_BLOCKS: u64 = 32 << 10;

/// One span that is being filled.
pub(super) struct Work {
    pub span: Span,
    /// What is not known to be there yet: blocks of the span, as far as no entry that was asked has
    /// them. Looked for in the entries that hold what was written right below `below`.
    below: Epoch,
    todo: Vec<Blocks>,
    /// Whom the current question is about.
    source: Option<Holder>,
    /// Stores that could not give some of it.
    useless: SmallVec<[StoreId; 2]>,
    stage: Stage,
    /// What the source has of `todo`, not pulled yet.
    queue: VecDeque<Blocks>,
    /// Halves of what it could not give as a whole: what is damaged there is found by halving, and all else comes.
    halves: Vec<Blocks>,
    /// All that it said it has.
    found: Vec<Blocks>,
    /// It had said so, and has it no longer.
    absent: Vec<Blocks>,
    /// Blocks that one had said it has, and had not, where nobody older could be asked. Such a thing should not
    /// be; that they were never written is not to be concluded from it.
    vanished: Vec<Blocks>,
    pulls: usize,
    /// A block is damaged at the source: ask another for it, when all else was pulled.
    spoilt: bool,
    /// A source failed: ask another from the beginning of this level, when the pulls have ended.
    again: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Choosing,
    Surveying,
    Pulling,
}

/// Some extents have been filled, and are to be whole.
pub(super) struct Completing {
    extents: Extents,
    from: Epoch,
    round: u64,
}

impl Work {
    pub fn missing_blocks(&self) -> u64 {
        count(self.queue.iter().chain(&self.halves))
    }

    fn is_all_asked(&self) -> bool {
        self.queue.is_empty() && self.halves.is_empty()
    }

    pub fn pulls(&self) -> usize {
        self.pulls
    }

    fn begin_level(&mut self) {
        self.source = None;
        self.stage = Stage::Choosing;
        self.queue.clear();
        self.halves.clear();
        self.spoilt = false;
        self.found.clear();
        self.absent.clear();
        self.again = false;
    }
}

impl Writer {
    /// Does whatever can be done now. Called after every event, so it has to be quick when there is nothing.
    pub(super) fn go_on_filling(&mut self) {
        if self.fill.jobs.is_empty() || !self.may_fill() {
            return;
        }
        self.complete_if_whole();
        if !self.may_begin_pulls() || self.fill.not_before.is_some_and(|at| at > self.now) {
            return;
        }
        self.fill.not_before = None;
        self.fill.bucket.is_open(self.fill_rate(), self.now);
        self.fill.take_up(self.now);
        loop {
            self.begin_works();
            for id in self.fill.works.keys().copied().collect::<Vec<_>>() {
                self.go_on_work(id);
            }
            // Where some were put off at once, others begin.
            if self.fill.exhausted || self.fill.works.len() >= MAX_WORKS {
                break;
            }
        }
    }

    fn begin_works(&mut self) {
        while self.fill.works.len() < MAX_WORKS && !self.fill.exhausted {
            let usable = |store: StoreId| {
                let peer = self.peers.get(&store);
                peer.is_some_and(|peer| peer.connected && !peer.lost)
            };
            match self.fill.next_span(self.now, usable) {
                Some(span) => self.begin_work(span),
                None => self.fill.exhausted = true,
            }
        }
    }

    fn may_fill(&self) -> bool {
        matches!(self.phase, Phase::Open) && self.stopping.is_none()
    }

    /// Pulls under way end also where none may begin.
    fn may_begin_pulls(&self) -> bool {
        self.may_fill() && !self.orders.fill.paused
    }

    pub(super) fn fill_timeout(&self) -> Option<super::Now> {
        if !self.may_begin_pulls() || self.fill.jobs.is_empty() {
            return None;
        }
        // Where something else than the limit is waited for, an event says when that is there.
        let throttled = self.orders.fill.bytes_per_second.filter(|_| {
            let wants = |work: &Work| !work.is_all_asked();
            self.fill.bucket.is_empty() && self.fill.works.values().any(wants)
        });
        let opens = throttled.and(self.fill_rate());
        // The rate grows when the guest comes to rest, which is no event.
        let look = self.now + BUSY_FOR;
        let opens = opens.map(|rate| self.fill.bucket.opens_at(rate).min(look));
        let next = opens.into_iter().chain(self.fill.put_off_until()).min();
        self.fill.not_before.or(next).map(|at| at.max(self.now))
    }

    /// Bytes a second that may be copied now.
    fn fill_rate(&self) -> Option<u64> {
        let FillOrders {
            bytes_per_second,
            yields,
            ..
        } = self.orders.fill;
        let busy = self.guest_seen.is_some_and(|at| at + BUSY_FOR > self.now);
        if !(yields && busy) {
            return bytes_per_second;
        }
        let open_for = self.now.0.saturating_sub(self.opened.0);
        let share = open_for.as_secs_f64() / GENTLE_FOR.as_secs_f64();
        bytes_per_second.map(|rate| (rate as f64 / 2.0 * share.clamp(0.1, 1.0)).max(1.0) as u64)
    }

    fn begin_work(&mut self, span: Span) {
        let whole = span_blocks(self.record.extent_size, span.extents, self.record.blocks());
        self.fill.last_work += 1;
        let work = Work {
            span,
            below: if span.seed { Epoch::MAX } else { span.from },
            todo: whole,
            source: None,
            useless: SmallVec::new(),
            stage: Stage::Choosing,
            queue: VecDeque::new(),
            halves: Vec::new(),
            spoilt: false,
            found: Vec::new(),
            absent: Vec::new(),
            vanished: Vec::new(),
            pulls: 0,
            again: false,
        };
        self.fill.works.insert(self.fill.last_work, work);
    }

    fn go_on_work(&mut self, id: u64) {
        let Some(work) = self.fill.works.get_mut(&id) else {
            return;
        };
        if work.again && work.pulls == 0 && work.stage == Stage::Pulling {
            work.begin_level();
        }
        let (stage, target) = (work.stage, work.span.target);
        let ready = stage == Stage::Surveying || self.target_is_ready(id, target);
        if !ready {
            return;
        }
        match stage {
            Stage::Choosing if self.may_begin_pulls() => self.choose_source(id),
            Stage::Choosing | Stage::Surveying => {}
            Stage::Pulling => self.pull_more(id),
        }
    }

    /// Whether the store that is filled can be asked. One that is no member has to join first: what it
    /// gets is no claim of anybody, and a real join finds it there.
    fn target_is_ready(&mut self, id: u64, target: StoreId) -> bool {
        self.connect(target);
        let peer = &self.peers[&target];
        if !peer.connected || peer.lost {
            return false;
        }
        if peer.sealed.is_none() {
            self.seal(target);
            return false;
        }
        let span = self.fill.works[&id].span;
        let key = (target, span.of.first);
        if !span.seed || self.fill.joined.contains(&key) {
            return true;
        }
        if self.fill.joining.insert(key) {
            self.collapse(target, span.of);
            let request = Request::Join {
                asker: self.asker(target),
                extents: span.of,
                extent_size: self.record.extent_size,
                from: span.from,
            };
            let extents = span.of;
            self.call(target, request, Aim::Nowhere, Purpose::Seed { extents });
        }
        false
    }

    pub(super) fn seed_joined(&mut self, store: StoreId, extents: Extents) {
        self.fill.joined.insert((store, extents.first));
    }

    fn choose_source(&mut self, id: u64) {
        let work = &self.fill.works[&id];
        let (target, useless) = (work.span.target, work.useless.clone());
        let all = self.fill_sources(work);
        for holder in &all {
            self.connect(holder.store);
        }
        let best = all
            .iter()
            .filter(|holder| !useless.contains(&holder.store) && self.may_answer(holder))
            .min_by_key(|holder| {
                let here = holder.store == target;
                (!here, self.distance(holder.store), !holder.last)
            })
            .copied();
        let Some(holder) = best else {
            let stores = all.iter().map(|holder| holder.store).collect();
            let since = *self.fill.sourceless_since.get_or_insert(self.now);
            if since + self.config.settle_patience <= self.now {
                self.fill.hindrance = Some(Hindrance::NoSource(stores));
            }
            return self.put_off(id);
        };
        if self.peers[&holder.store].sealed.is_none() {
            return self.seal(holder.store);
        }
        let work = self.fill.works.get_mut(&id).expect("it was there");
        work.source = Some(holder);
        work.stage = Stage::Surveying;
        let start = work.todo.first().expect("else it is done").first;
        self.survey(id, start);
    }

    /// Nobody gives what it lacks now: others have its place meanwhile.
    fn put_off(&mut self, id: u64) {
        let work = self.fill.works.get_mut(&id).expect("it was there");
        if !work.vanished.is_empty() {
            // What is known of these blocks is not to be forgotten.
            work.useless.clear();
            return self.pause_filling();
        }
        let span = work.span;
        // Where nobody answers, nobody does for any extent of the job; what some have spoilt is a matter of each.
        let extents = match work.useless.is_empty() && work.below >= span.from {
            true => span.of,
            false => span.extents,
        };
        self.fill.works.remove(&id);
        self.fill
            .put_off(span.target, extents, self.now, self.config.pause);
    }

    /// Who can say what the target lacks: the entries of this level, and live stores that have all.
    fn fill_sources(&self, work: &Work) -> Holders {
        let size = self.record.extent_size;
        let first = size.blocks_of(work.span.extents.first);
        let has_all = |store: StoreId, from: Epoch| {
            let mut extents = work.span.extents.iter();
            extents.all(|extent| self.fill.is_done(store, from, extent))
        };
        let history = self.history_of(first);
        let mut sources = self.holders(first, work.below);
        for holder in &mut sources {
            let whole = history
                .0
                .iter()
                .any(|entry| entry.from == holder.from && entry.whole);
            holder.last = whole || (holder.live && has_all(holder.store, holder.from));
        }
        for entry in history.live() {
            for store in &entry.stores {
                let known = sources.iter().any(|s| s.live && s.store == *store);
                if !known && (entry.whole || has_all(*store, entry.from)) {
                    sources.push(Holder {
                        store: *store,
                        from: entry.from,
                        live: true,
                        last: true,
                    });
                }
            }
        }
        // From itself it can only take what it holds for another entry.
        sources.retain(|s| s.store != work.span.target || (!s.live && !work.span.seed));
        sources
    }

    fn survey(&mut self, id: u64, start: Block) {
        let work = &self.fill.works[&id];
        let holder = work.source.expect("it was chosen");
        let request = Request::Survey {
            asker: self.asker(holder.store),
            from: holder.from,
            below: holder.bound(work.below),
            extents: work.span.extents,
            start,
        };
        let purpose = Purpose::Survey { work: id };
        self.call(holder.store, request, Aim::Nowhere, purpose);
    }

    pub(super) fn surveyed(&mut self, id: u64, runs: &[Blocks], next: Option<Block>) {
        let size = self.record.extent_size;
        let Some(work) = self.fill.works.get_mut(&id) else {
            return;
        };
        let first = size.blocks_of(work.span.extents.first).first;
        let end = size.blocks_of(work.span.extents.end).first;
        let from = work.found.last().map_or(first, |run| run.end());
        let all = Blocks::new(from, (end.0 - from.0) as u32);
        let goes_on = next.is_none_or(|next| from <= next && next < end);
        if !are_parts(runs, all) || !goes_on {
            let source = work.source.expect("it was asked");
            work.useless.push(source.store);
            return work.begin_level();
        }
        work.found.extend(runs);
        let much = count(&work.found) > MAX_SPAN_BLOCKS;
        match next {
            Some(next) if much && size.of(next) > work.span.extents.first => {
                // Enough for now: the extents behind are another span.
                work.span.extents.end = size.of(next);
                let end = size.blocks_of(size.of(next)).first;
                work.todo = below_block(&work.todo, end);
                work.found = below_block(&work.found, end);
                self.fill.exhausted = false;
            }
            Some(next) => return self.survey(id, next),
            None => {}
        }
        let work = self.fill.works.get_mut(&id).expect("it was there");
        work.queue = common(&work.found, &work.todo).into();
        work.stage = Stage::Pulling;
        self.go_on_work(id);
    }

    /// Begins pulls as far as the limits allow; when all have ended, goes on with the next older entry.
    fn pull_more(&mut self, id: u64) {
        loop {
            let limit = if self.requests.is_empty() {
                MAX_PULLS
            } else {
                MAX_PULLS_BESIDE_GUEST
            };
            let rate = self.fill_rate();
            let size = self.record.extent_size;
            let open = self.fill.pulls() < limit && self.fill.bucket.is_open(rate, self.now);
            let work = &self.fill.works[&id];
            let holder = work.source.expect("it was chosen");
            if work.again || work.is_all_asked() {
                break;
            }
            if !open || !self.may_begin_pulls() {
                return;
            }
            if self.peers[&holder.store].sealed.is_none() {
                self.seal(holder.store);
                return;
            }
            let work = self.fill.works.get_mut(&id).expect("it was there");
            let (blocks, wanted) = match work.halves.pop() {
                Some(half) => (half, half.count),
                None => next_pull(&mut work.queue, size),
            };
            work.pulls += 1;
            let (target, below) = (work.span.target, work.below);
            self.fill.spend(u64::from(wanted) * BLOCK_BYTES);
            let request = Request::Pull {
                asker: self.asker(target),
                source: self.source(holder.store),
                from: holder.from,
                below: holder.bound(below),
                blocks,
            };
            let purpose = Purpose::Pull {
                work: id,
                blocks,
                wanted,
            };
            self.call(target, request, Aim::Nowhere, purpose);
        }
        let work = &self.fill.works[&id];
        let early = planted(Plant::CompleteBeforePulled) && work.is_all_asked();
        if work.pulls == 0 || early {
            self.level_done(id);
        }
    }

    pub(super) fn pulled(&mut self, id: u64, wanted: u32, pulled: &Pulled) {
        self.count_pulled(pulled);
        let estimated = u64::from(wanted) * BLOCK_BYTES;
        self.fill.bucket.give_back(estimated, pulled.bytes);
        self.fill.hindrance = None;
        self.fill.sourceless_since = None;
        let Some(work) = self.fill.works.get_mut(&id) else {
            return;
        };
        work.pulls -= 1;
        work.absent.extend(&pulled.absent);
        self.go_on_work(id);
    }

    /// All that this source has was pulled.
    fn level_done(&mut self, id: u64) {
        let work = self.fill.works.get_mut(&id).expect("it was there");
        let holder = work.source.expect("it was chosen");
        if work.spoilt && !work.useless.contains(&holder.store) {
            work.useless.push(holder.store);
        }
        if work.again || work.spoilt {
            return work.begin_level();
        }
        // Pulls end in any order. Gaps were pulled along with their neighbours; that they are absent was known.
        work.absent.sort_unstable_by_key(|blocks| blocks.first);
        let gone = common(&work.absent, &work.found);
        let mut left = without(&work.todo, &work.found);
        left.extend(gone);
        left.sort_unstable_by_key(|blocks| blocks.first);
        if holder.last {
            // W5, R2: what an entry has it keeps. If not, the older entries still have it, and must stay.
            work.vanished.extend(common(&work.absent, &work.found));
            work.vanished.sort_unstable_by_key(|blocks| blocks.first);
            work.vanished = common(&left, &work.vanished);
            if !work.vanished.is_empty() {
                work.useless.push(holder.store);
                work.begin_level();
                return self.hinder_fill(Hindrance::NoSource(vec![holder.store]));
            }
        }
        if holder.last || left.is_empty() {
            let span = work.span;
            self.fill.works.remove(&id);
            self.fill.sourceless_since = None;
            self.fill.finish(&span);
            return self.complete_if_whole();
        }
        work.todo = left;
        work.below = holder.from;
        work.useless.clear();
        work.begin_level();
        self.go_on_work(id);
    }

    /// A survey, a pull or a join for a copy ahead was refused.
    pub(super) fn fill_refused(&mut self, store: StoreId, purpose: Purpose, refusal: &Refusal) {
        let (id, pulled) = match purpose {
            Purpose::Survey { work } => (work, None),
            Purpose::Pull {
                work,
                blocks,
                wanted,
            } => {
                let estimated = u64::from(wanted) * BLOCK_BYTES;
                self.fill.bucket.give_back(estimated, 0);
                (work, Some(blocks))
            }
            Purpose::Seed { extents } => {
                self.fill.joining.remove(&(store, extents.first));
                self.store_refuses(store, refusal);
                return self.hinder_fill(Hindrance::Refuses(store));
            }
            _ => return,
        };
        // A sealed copy may have been let go of since: that says nothing of what else its store holds.
        let mut of_sealed = pulled.is_none();
        if let Some(work) = self.fill.works.get_mut(&id) {
            let source = work.source.expect("it was asked");
            of_sealed &= !source.live;
            let source = source.store;
            let damaged = matches!(
                refusal,
                Refusal::Source(SourceFault::Useless) | Refusal::Damaged { .. }
            );
            if let (Some(blocks), true) = (pulled, damaged) {
                work.pulls -= 1;
                match blocks.count {
                    1 => work.spoilt = true,
                    _ => work.halves.extend(halves(blocks)),
                }
                return self.go_on_work(id);
            }
            work.again = true;
            match pulled {
                None => work.begin_level(),
                Some(_) => work.pulls -= 1,
            }
            if pulled.is_some() && work.span.seed && *refusal == Refusal::NoReplica {
                // The copy ahead was deleted meanwhile. Whatever else the store holds is as it was.
                let key = (store, work.span.of.first);
                self.fill.joined.remove(&key);
                self.fill.joining.remove(&key);
                return self.pause_filling();
            }
            let useless = match refusal {
                Refusal::Source(SourceFault::Away | SourceFault::Useless) => true,
                Refusal::Source(SourceFault::Unsealed) => false,
                Refusal::Damaged { .. } => true,
                _ => pulled.is_none(),
            };
            if useless && !work.useless.contains(&source) {
                work.useless.push(source);
            }
            if *refusal == Refusal::Source(SourceFault::Unsealed) {
                // Or both were shown other grants of the epoch.
                self.show_again(store);
                match self.is_member(source) {
                    true => self.show_again(source),
                    false => self.peer(source).sealed = None,
                }
            }
        }
        match refusal {
            Refusal::NoReplica if of_sealed && self.is_member(store) => self.pause_filling(),
            Refusal::Source(_) | Refusal::Damaged { .. } => self.pause_filling(),
            Refusal::Full { .. } => self.hinder_fill(Hindrance::Full(store)),
            _ => {
                self.store_refuses(store, refusal);
                self.pause_filling();
            }
        }
    }

    /// The session in which it was asked is gone.
    pub(super) fn fill_cut_off(&mut self, store: StoreId, purpose: Purpose) {
        match purpose {
            Purpose::Survey { work } => self.survey_failed(work),
            Purpose::Pull { work, wanted, .. } => {
                // What it has pulled meanwhile is found there when the span is begun anew.
                self.fill.works.remove(&work);
                self.fill.exhausted = false;
                let estimated = u64::from(wanted) * BLOCK_BYTES;
                self.fill.bucket.give_back(estimated, 0);
            }
            Purpose::Seed { extents } => {
                self.fill.joining.remove(&(store, extents.first));
            }
            _ => {}
        }
    }

    /// Asks others where a survey takes too long.
    pub(super) fn hurry_surveys(&mut self) {
        let late = self.calls.ids(|call| {
            matches!(call.purpose, Purpose::Survey { .. })
                && call.issued + self.config.read_patience * 5 <= self.now
        });
        for id in late {
            let call = self.calls.remove(id).expect("an open call");
            if let Purpose::Survey { work } = call.purpose {
                self.survey_failed(work);
            }
        }
    }

    fn survey_failed(&mut self, id: u64) {
        if let Some(work) = self.fill.works.get_mut(&id) {
            let source = work.source.expect("it was asked").store;
            work.useless.push(source);
            work.begin_level();
        }
    }

    /// It is not what it was when it was sealed.
    pub(super) fn store_refuses(&mut self, store: StoreId, refusal: &Refusal) {
        let changed = matches!(
            refusal,
            Refusal::OtherIncarnation { .. }
                | Refusal::NotShown { .. }
                | Refusal::NoReplica
                | Refusal::Failed
        );
        if !changed {
            return;
        }
        if self.is_member(store) {
            return self.member_lost(store);
        }
        self.peer(store).sealed = None;
        self.fill.joined.retain(|(joined, _)| *joined != store);
        self.fill.joining.retain(|(joining, _)| *joining != store);
    }

    fn pause_filling(&mut self) {
        self.fill.not_before = Some(self.now + self.config.pause);
    }

    fn hinder_fill(&mut self, hindrance: Hindrance) {
        self.fill.hindrance = Some(hindrance);
        self.fill.not_before = Some(self.now + self.config.pause * 5);
    }

    pub(super) fn count_pulled(&mut self, pulled: &Pulled) {
        self.progress.copied_bytes += u64::from(pulled.copied) * BLOCK_BYTES;
        self.progress.same_bytes += u64::from(pulled.same) * BLOCK_BYTES;
        self.progress.link_bytes += pulled.bytes;
    }

    /// Every extent of an entry is done: sync it, and say so (rule F2).
    fn complete_if_whole(&mut self) {
        let busy = self.fill.completing.is_some() || self.errand.is_some();
        if busy || self.holds_writes() || !self.may_fill() || !self.fill.look_for_whole {
            return;
        }
        let Some((extents, from)) = self.fill.whole() else {
            self.fill.look_for_whole = false;
            return;
        };
        let round = self.start_round();
        self.fill.completing = Some(Completing {
            extents,
            from,
            round,
        });
        if planted(Plant::CompleteWithoutSync) {
            self.fill_synced(round);
        }
    }

    /// Every member synced what it holds, in the incarnation and the epoch in which it was filled.
    pub(super) fn fill_synced(&mut self, round: u64) {
        let Some(completing) = &self.fill.completing else {
            return;
        };
        if completing.round != round {
            return;
        }
        let (extents, from) = (completing.extents, completing.from);
        self.fill.completing = None;
        if !self.may_fill() || self.errand.is_some() || self.holds_writes() {
            self.fill.look_for_whole = true;
            return;
        }
        for extent in extents.iter() {
            let of = self.record.extent_size.blocks_of(extent);
            let mut live = self
                .history_of(of)
                .live()
                .filter(|entry| entry.from == from);
            let entry = live.next().expect("F2: what is completed is live");
            let all = |store: &StoreId| self.fill.is_done(*store, from, extent);
            assert!(
                entry.stores.iter().all(all),
                "F2: every store of a whole entry was filled"
            );
        }
        let by = (self.owner.backend, self.owner.life);
        self.swap(Change::Complete { by, extents, from });
    }

    /// The map is about to change: what is not whole may be so then.
    pub(super) fn note_unfinished(&mut self) {
        let ranges = self.record.map.iter();
        let unfinished = ranges.filter(|range| !range.history.is_whole());
        let noted = &mut self.fill.unfinished;
        noted.extend(unfinished.map(|range| range.extents));
        noted.sort_unstable_by_key(|extents| (extents.first, extents.end));
        noted.dedup();
    }

    /// Some entries are whole now, or those who were not have left: where all that are live are whole, nobody needs
    /// what older ones had.
    pub(super) fn collapse_whole(&mut self) {
        let unfinished = std::mem::take(&mut self.fill.unfinished);
        let was = |range: &MapRange| unfinished.iter().any(|of| of.overlaps(range.extents));
        let of = |range: &&MapRange| range.history.is_whole() && was(range);
        let ranges: Vec<MapRange> = self.record.map.iter().filter(of).cloned().collect();
        for range in ranges {
            for store in range.history.members() {
                if self.peers[&store].sealed.is_some() {
                    self.collapse(store, range.extents);
                }
            }
        }
    }
}

/// The blocks of some extents that are on the disk, in ranges whose length fits.
fn span_blocks(size: ExtentSize, extents: Extents, disk_blocks: u64) -> Vec<Blocks> {
    extents
        .iter()
        .map(|extent| size.blocks_of(extent))
        .map(|blocks| {
            let end = blocks.end().0.min(disk_blocks);
            Blocks::new(blocks.first, (end - blocks.first.0) as u32)
        })
        .collect()
}

fn count<'a>(runs: impl IntoIterator<Item = &'a Blocks>) -> u64 {
    runs.into_iter().map(|run| u64::from(run.count)).sum()
}

fn halves(blocks: Blocks) -> [Blocks; 2] {
    let half = blocks.count / 2;
    let middle = Block(blocks.first.0 + u64::from(half));
    [
        Blocks::new(middle, blocks.count - half),
        Blocks::new(blocks.first, half),
    ]
}

/// Takes what one pull may ask for off the queue: within one extent, with small gaps. Also says how
/// many blocks of it are wanted.
fn next_pull(queue: &mut VecDeque<Blocks>, size: ExtentSize) -> (Blocks, u32) {
    let first = queue.front().expect("there is something to pull").first;
    let extent_end = size.blocks_of(size.of(first)).end();
    let most = (first.0 + u64::from(MAX_DATA_BLOCKS)).min(extent_end.0);
    let mut end = first.0;
    let mut wanted = 0;
    while let Some(run) = queue.front().copied() {
        if run.first.0 > end + MAX_GAP || run.first.0 >= most {
            break;
        }
        queue.pop_front();
        let taken = run.end().0.min(most);
        wanted += (taken - run.first.0) as u32;
        end = taken;
        if taken < run.end().0 {
            queue.push_front(Blocks::new(Block(taken), (run.end().0 - taken) as u32));
            break;
        }
    }
    (Blocks::new(first, (end - first.0) as u32), wanted)
}

/// What both lists hold. Both are in order.
fn common(a: &[Blocks], b: &[Blocks]) -> Vec<Blocks> {
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        out.extend(a[i].intersect(b[j]));
        if a[i].end() <= b[j].end() {
            i += 1;
        } else {
            j += 1;
        }
    }
    out
}

/// What `a` holds and `b` does not. Both are in order.
fn without(a: &[Blocks], b: &[Blocks]) -> Vec<Blocks> {
    let mut out = Vec::new();
    let mut j = 0;
    for run in a {
        let mut next = run.first;
        while j < b.len() && b[j].end() <= next {
            j += 1;
        }
        let mut k = j;
        while k < b.len() && b[k].first < run.end() {
            if b[k].first > next {
                out.push(Blocks::new(next, (b[k].first.0 - next.0) as u32));
            }
            next = next.max(b[k].end());
            k += 1;
        }
        if next < run.end() {
            out.push(Blocks::new(next, (run.end().0 - next.0) as u32));
        }
    }
    out
}

fn below_block(runs: &[Blocks], end: Block) -> Vec<Blocks> {
    runs.iter()
        .filter(|run| run.first < end)
        .map(|run| Blocks::new(run.first, (run.end().min(end).0 - run.first.0) as u32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(of: &[(u64, u64)]) -> Vec<Blocks> {
        of.iter()
            .map(|(first, end)| Blocks::new(Block(*first), (end - first) as u32))
            .collect()
    }

    #[test]
    fn runs_are_intersected_and_taken_away() {
        let (a, b) = (
            runs(&[(0, 10), (20, 30)]),
            runs(&[(2, 4), (8, 22), (29, 40)]),
        );
        assert_eq!(common(&a, &b), runs(&[(2, 4), (8, 10), (20, 22), (29, 30)]));
        assert_eq!(without(&a, &b), runs(&[(0, 2), (4, 8), (22, 29)]));
        assert_eq!(without(&a, &[]), a);
        assert_eq!(common(&a, &[]), []);
    }

    #[test]
    fn a_pull_takes_neighbours_with_small_gaps_and_stays_in_one_extent() {
        let size = ExtentSize::new(1 << 20).unwrap();
        let mut queue: VecDeque<Blocks> = runs(&[(0, 2), (10, 20), (100, 600)]).into();
        assert_eq!(next_pull(&mut queue, size), (runs(&[(0, 20)])[0], 12));
        assert_eq!(next_pull(&mut queue, size), (runs(&[(100, 256)])[0], 156));
        assert_eq!(next_pull(&mut queue, size), (runs(&[(256, 512)])[0], 256));
        assert_eq!(next_pull(&mut queue, size), (runs(&[(512, 600)])[0], 88));
        assert!(queue.is_empty());
    }
}
