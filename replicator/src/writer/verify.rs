//! Verifying a disk: its whole copies are compared by digests while nobody writes to them, and what is
//! damaged is healed. By order (`ukai disk verify`), and now and then unasked: a store that has found damage
//! in its scrub says so in the answer to a digest, and this is how its writer hears.
//!
//! ```text
//!  writer                          store A              store B
//!    |--- Digest some extents ------->|                    |
//!    |--- Digest some extents --------|------------------->|
//!    |<-- sums, damaged blocks -------|--------------------|     equal, in most cases: done
//!    |--- List one extent ----------->|                    |     where they differ, though nothing was
//!    |--- List one extent ------------|------------------->|     written meanwhile: which blocks?
//!    |<-- blocks and versions --------|--------------------|
//!    |--- Verify blocks ------------->|------------------->|     a deep one: read all of it from the media
//!    |--- Heal from B --------------->|                    |     what is damaged (heal.rs)
//! ```
//!
//! Equal sums prove that copies agree, whatever happens around them. Different ones prove nothing if something
//! was written between the two answers: then the extents are looked at again, in smaller parts.

use super::calls::Purpose;
use super::verdict::{CopyOfBlock, DamagedCopy, Difference, MOST_NAMED, Verdict, VerifyOrder};
use super::{Aim, Effect, Now, Phase, Writer};
use crate::message::{
    DamagedBlock, Digested, ListedBlock, MAX_DATA_BLOCKS, Refusal, Reply, Request, Verified,
};
use crate::words::{Block, Blocks, Epoch, Extent, Extents, StoreId, Version};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Extents of one question. A deep look begins its extents anew when it is disturbed: few at once.
const MOST_EXTENTS: u32 = 256;
const MOST_EXTENTS_DEEP: u32 = 4;
/// One extent that is written to whenever it is looked at is given up after so many looks.
const MOST_TRIES: u32 = 20;
/// Between two looks at what is being written.
const PAUSE: Duration = Duration::from_millis(100);
/// Reads of a deep look under way, of 1 MiB each.
const MOST_READS: usize = 4;
/// A store that does not answer a look within this is left out.
const PATIENCE: Duration = Duration::from_secs(30);
/// The first unasked look comes so long after an open.
const FIRST_AUDIT: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Verifying {
    /// What was ordered last.
    order: Option<VerifyOrder>,
    run: Option<Run>,
    /// Of the last order.
    verdict: Option<Verdict>,
    audit_at: Option<Now>,
    last_look: u64,
}

struct Run {
    /// Nobody ordered it.
    unasked: bool,
    deep: bool,
    todo: VecDeque<Part>,
    look: Option<Look>,
    not_before: Option<Now>,
    /// Damaged blocks, to be healed when there is room for it, and those that are being healed.
    to_heal: VecDeque<(Copy, DamagedBlock)>,
    healing: BTreeMap<(StoreId, Block), (Copy, DamagedBlock)>,
    /// What could not be healed is looked at once more before it is named: it may have been overwritten while
    /// the others were asked, and then nobody has that version any more, nor has it damaged.
    looked_again: BTreeSet<(StoreId, Block)>,
    silent: BTreeSet<StoreId>,
    filling: BTreeSet<StoreId>,
    verdict: Verdict,
}

/// Extents to be looked at.
#[derive(Clone, Copy)]
struct Part {
    extents: Extents,
    tries: u32,
}

/// A store with a whole copy, and the entry that it is of.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Copy {
    store: StoreId,
    from: Epoch,
}

struct Look {
    id: u64,
    part: Part,
    copies: Vec<Copy>,
    /// Something of it was written since it began.
    disturbed: bool,
    stage: Stage,
}

enum Stage {
    Digests(BTreeMap<StoreId, Digested>),
    /// Which blocks of the first of `differ` the copies do not agree about.
    Lists {
        differ: VecDeque<Extent>,
        lists: BTreeMap<StoreId, Listing>,
        read: VecDeque<(StoreId, Blocks)>,
    },
    Reads {
        read: VecDeque<(StoreId, Blocks)>,
        under_way: usize,
    },
}

#[derive(Default)]
struct Listing {
    blocks: Vec<ListedBlock>,
    whole: bool,
}

impl Writer {
    /// What came of the last order to verify, or how far it is.
    pub fn verdict(&self) -> Option<&Verdict> {
        let running = self.verifying.run.as_ref().filter(|run| !run.unasked);
        running
            .map(|run| &run.verdict)
            .or(self.verifying.verdict.as_ref())
    }

    /// The orders have changed.
    pub(super) fn verify_as_ordered(&mut self) {
        let order = self.orders.verify;
        if order == self.verifying.order {
            return;
        }
        self.verifying.order = order;
        self.verifying.run = None;
        self.verifying.verdict = None;
        if let Some(order) = order {
            self.begin_verifying(Some(order));
        }
    }

    fn begin_verifying(&mut self, order: Option<VerifyOrder>) {
        let extents = self.record.extents();
        let deep = order.is_some_and(|order| order.deep);
        self.verifying.run = Some(Run {
            unasked: order.is_none(),
            deep,
            todo: VecDeque::from([Part { extents, tries: 0 }]),
            look: None,
            not_before: None,
            to_heal: VecDeque::new(),
            healing: BTreeMap::new(),
            looked_again: BTreeSet::new(),
            silent: BTreeSet::new(),
            filling: BTreeSet::new(),
            verdict: Verdict {
                order: order.map_or(0, |order| order.id),
                deep,
                extents: u64::from(extents.count()),
                ..Verdict::default()
            },
        });
    }

    pub(super) fn go_on_verifying(&mut self) {
        if !matches!(self.phase, Phase::Open) || self.stopping.is_some() {
            return;
        }
        self.begin_audit();
        let Some(run) = &mut self.verifying.run else {
            return;
        };
        while self.heals.have_room()
            && let Some((copy, damaged)) = run.to_heal.pop_front()
        {
            run.healing
                .insert((copy.store, damaged.block), (copy, damaged));
            self.heals
                .begin(copy.store, (copy.from, Epoch::MAX), damaged.block, self.now);
        }
        if run.look.is_some() || run.not_before.is_some_and(|at| at > self.now) {
            return;
        }
        run.not_before = None;
        match run.todo.pop_front() {
            Some(part) => self.begin_look(part),
            None if run.to_heal.is_empty() && run.healing.is_empty() => self.verified(),
            None => {}
        }
    }

    fn begin_audit(&mut self) {
        let Some(every) = self.config.audit_every else {
            return;
        };
        match self.verifying.audit_at {
            None => self.verifying.audit_at = Some(self.now + FIRST_AUDIT.min(every)),
            Some(at) if at <= self.now && self.verifying.run.is_none() => {
                self.verifying.audit_at = Some(self.now + every);
                self.begin_verifying(None);
            }
            Some(_) => {}
        }
    }

    pub(super) fn verify_timeout(&self) -> Option<Now> {
        if !matches!(self.phase, Phase::Open) || self.stopping.is_some() {
            return None;
        }
        let run = self.verifying.run.as_ref();
        let audit = self.verifying.audit_at.filter(|_| run.is_none());
        let idle = run.filter(|run| run.look.is_none());
        let at = idle.and_then(|run| run.not_before).or(audit);
        at.map(|at| at.max(self.now))
    }

    fn begin_look(&mut self, part: Part) {
        let run = self.verifying.run.as_mut().expect("it is running");
        let size = self.record.extent_size;
        let first = size.blocks_of(part.extents.first).first;
        let range = self.record.range_of(first).expect("on the disk");
        let most = if run.deep {
            MOST_EXTENTS_DEEP
        } else {
            MOST_EXTENTS
        };
        let end = range
            .extents
            .end
            .min(part.extents.end)
            .min(Extent(part.extents.first.0.saturating_add(most)));
        let extents = Extents::new(part.extents.first, end);
        if end < part.extents.end {
            run.todo.push_front(Part {
                extents: Extents::new(end, part.extents.end),
                ..part
            });
        }
        let mut copies = Vec::new();
        for entry in range.history.live() {
            for store in &entry.stores {
                let peer = self.peers.get(store);
                let there = peer.is_some_and(|p| p.connected && p.sealed.is_some() && !p.lost);
                if !entry.whole {
                    run.filling.insert(*store);
                } else if !there {
                    run.silent.insert(*store);
                } else if !run.silent.contains(store) {
                    copies.push(Copy {
                        store: *store,
                        from: entry.from,
                    });
                }
            }
        }
        if copies.is_empty() {
            run.verdict.single += u64::from(extents.count());
            run.verdict.extents_done += u64::from(extents.count());
            run.not_before = Some(self.now);
            return;
        }
        let blocks = |extents: Extents| {
            let (first, end) = (size.blocks_of(extents.first), size.blocks_of(extents.end));
            (first.first, end.first)
        };
        let (first, end) = blocks(extents);
        let disturbed = self
            .writes
            .values()
            .any(|write| write.blocks().first < end && first < write.blocks().end());
        self.verifying.last_look += 1;
        let id = self.verifying.last_look;
        let run = self.verifying.run.as_mut().expect("it is running");
        run.look = Some(Look {
            id,
            part: Part { extents, ..part },
            copies: copies.clone(),
            disturbed,
            stage: Stage::Digests(BTreeMap::new()),
        });
        for Copy { store, from } in copies {
            let request = Request::Digest {
                asker: self.asker(store),
                from,
                extents,
            };
            self.look_at(store, request);
        }
    }

    fn look_at(&mut self, store: StoreId, request: Request) {
        let look = self.verifying.last_look;
        self.call(store, request, Aim::Nowhere, Purpose::Look { look });
    }

    /// Some blocks are being written.
    pub(super) fn disturb_look(&mut self, blocks: Blocks) {
        let run = self.verifying.run.as_mut();
        if let Some(look) = run.and_then(|run| run.look.as_mut()) {
            let extent = self.record.extent_size.of(blocks.first);
            look.disturbed |= look.part.extents.contains(extent);
        }
    }

    /// A store has answered.
    pub(super) fn looked(&mut self, store: StoreId, id: u64, reply: Reply) {
        let run = self.verifying.run.as_mut();
        let Some(look) = run.and_then(|run| run.look.as_mut()).filter(|l| l.id == id) else {
            return;
        };
        match (&mut look.stage, reply) {
            (Stage::Digests(answers), Reply::Digested(digested)) => {
                answers.insert(store, digested);
                if answers.len() == look.copies.len() {
                    self.compare_digests();
                }
            }
            (Stage::Lists { lists, .. }, Reply::Listed { blocks, more }) => {
                let listing = lists.entry(store).or_default();
                listing.blocks.extend(blocks);
                listing.whole = !more;
                self.go_on_listing(store);
            }
            (Stage::Reads { under_way, .. }, Reply::Verified(verified)) => {
                *under_way -= 1;
                self.read_back(store, &verified);
            }
            _ => self.leave_out(store),
        }
    }

    fn compare_digests(&mut self) {
        let size = self.record.extent_size;
        let disk_end = Block(self.record.blocks());
        let run = self.verifying.run.as_mut().expect("it is running");
        let look = run.look.as_mut().expect("it was answered");
        let Stage::Digests(answers) = &mut look.stage else {
            unreachable!("digests were asked for");
        };
        let answers = std::mem::take(answers);
        let told = answers.values().map(|answer| answer.digests.len()).min();
        let told = told.expect("somebody was asked") as u32;
        let extents = look.part.extents;
        let split = Extent(extents.first.0 + told);
        let (copies, disturbed) = (look.copies.clone(), look.disturbed);
        let tries = look.part.tries;
        look.part.extents.end = split;
        if split < extents.end {
            run.todo.push_front(Part {
                extents: Extents::new(split, extents.end),
                tries,
            });
        }
        let mut differ = VecDeque::new();
        let mut again = Vec::new();
        let mut read = VecDeque::new();
        for (i, extent) in look.part.extents.iter().enumerate() {
            let mut digests = copies.iter().map(|copy| answers[&copy.store].digests[i]);
            let first = digests.next();
            let agree = digests.all(|digest| Some(digest) == first);
            if !agree && disturbed {
                again.push(extent);
                continue;
            }
            if !agree {
                differ.push_back(extent);
            }
            if run.deep {
                for copy in &copies {
                    if answers[&copy.store].digests[i].blocks > 0 {
                        let blocks = size.blocks_of(extent);
                        read.extend(pieces(blocks, disk_end).map(|part| (copy.store, part)));
                    }
                }
            }
        }
        let done = u64::from(told) - again.len() as u64;
        run.verdict.extents_done += done;
        run.verdict.single += if copies.len() < 2 { done } else { 0 };
        for extent in again {
            run.put_off(extent, tries, self.now);
        }
        let (first, end) = (size.blocks_of(extents.first), size.blocks_of(split));
        for copy in &copies {
            let within =
                |damaged: &&DamagedBlock| first.first <= damaged.block && damaged.block < end.first;
            let damaged = answers[&copy.store].damaged.iter();
            for damaged in damaged.filter(within) {
                run.note_damaged(*copy, *damaged);
            }
        }
        let look = run.look.as_mut().expect("it was answered");
        look.disturbed = false;
        look.stage = Stage::Lists {
            differ,
            lists: BTreeMap::new(),
            read,
        };
        self.begin_list();
    }

    /// Lists the next extent in which copies differ; then what is to be read.
    fn begin_list(&mut self) {
        let size = self.record.extent_size;
        let run = self.verifying.run.as_mut().expect("it is running");
        let look = run.look.as_mut().expect("it goes on");
        let Stage::Lists {
            differ,
            lists,
            read,
        } = &mut look.stage
        else {
            unreachable!("lists come after digests");
        };
        lists.clear();
        let Some(extent) = differ.front().copied() else {
            let read = std::mem::take(read);
            look.stage = Stage::Reads { read, under_way: 0 };
            return self.read_more();
        };
        look.disturbed = false;
        let stores: Vec<StoreId> = look.copies.iter().map(|copy| copy.store).collect();
        for store in stores {
            self.list_from(store, extent, size.blocks_of(extent).first);
        }
    }

    fn list_from(&mut self, store: StoreId, extent: Extent, start: Block) {
        let request = Request::List {
            asker: self.asker(store),
            extents: Extents::new(extent, Extent(extent.0 + 1)),
            above: Version::ZERO,
            start,
        };
        self.look_at(store, request);
    }

    fn go_on_listing(&mut self, store: StoreId) {
        let run = self.verifying.run.as_mut().expect("it is running");
        let look = run.look.as_mut().expect("it goes on");
        let Stage::Lists { differ, lists, .. } = &mut look.stage else {
            unreachable!("a list was answered");
        };
        let extent = *differ.front().expect("it was listed");
        let listing = &lists[&store];
        if !listing.whole {
            let next = listing.blocks.last().map(|last| Block(last.block.0 + 1));
            return self.list_from(store, extent, next.expect("more follows something"));
        }
        let all = lists.len() == look.copies.len() && lists.values().all(|list| list.whole);
        if !all {
            return;
        }
        differ.pop_front();
        let lists = std::mem::take(lists);
        let (disturbed, tries) = (look.disturbed, look.part.tries);
        let stores: Vec<StoreId> = look.copies.iter().map(|copy| copy.store).collect();
        if disturbed {
            run.verdict.extents_done -= 1;
            run.put_off(extent, tries, self.now);
        } else {
            for difference in differences(&stores, &lists) {
                run.verdict.differing_blocks += 1;
                if run.verdict.differing.len() < MOST_NAMED {
                    run.verdict.differing.push(difference);
                }
            }
        }
        self.begin_list();
    }

    fn read_more(&mut self) {
        loop {
            let run = self.verifying.run.as_mut().expect("it is running");
            let look = run.look.as_mut().expect("it goes on");
            let Stage::Reads { read, under_way } = &mut look.stage else {
                unreachable!("reads come last");
            };
            if read.is_empty() && *under_way == 0 {
                run.look = None;
                // Unless an extent that was written to is to be looked at later.
                run.not_before = run.not_before.max(Some(self.now));
                return;
            }
            let most = if self.requests.is_empty() {
                MOST_READS
            } else {
                1
            };
            if *under_way >= most {
                return;
            }
            let Some((store, blocks)) = read.pop_front() else {
                return;
            };
            *under_way += 1;
            let asker = self.asker(store);
            self.look_at(store, Request::Verify { asker, blocks });
        }
    }

    fn read_back(&mut self, store: StoreId, verified: &Verified) {
        let run = self.verifying.run.as_mut().expect("it is running");
        // Older versions count, too: nothing that was asked bounds it.
        let read = &mut run.verdict.blocks_read;
        *read = read.saturating_add(verified.blocks);
        let look = run.look.as_ref().expect("it goes on");
        let copy = look.copies.iter().find(|copy| copy.store == store);
        if let Some(copy) = copy.copied() {
            for damaged in &verified.damaged {
                run.note_damaged(copy, *damaged);
            }
        }
        self.read_more();
    }

    pub(super) fn look_refused(&mut self, store: StoreId, id: u64, refusal: &Refusal) {
        let run = self.verifying.run.as_mut();
        let open = run.filter(|run| run.look.as_ref().is_some_and(|look| look.id == id));
        if let (Some(run), Refusal::Damaged { block }) = (open, refusal) {
            // A part of its index is damaged: nobody can say which blocks, nor heal them one by one.
            run.verdict.damaged_blocks += 1;
            run.verdict.name_damaged(store, *block, None);
        }
        self.look_failed(store, id);
        self.store_refuses(store, refusal);
    }

    /// It did not answer, or not what was asked: the look begins anew without it.
    pub(super) fn look_failed(&mut self, store: StoreId, id: u64) {
        let run = self.verifying.run.as_ref();
        let look = run.and_then(|run| run.look.as_ref());
        if look.is_some_and(|look| look.id == id) {
            self.leave_out(store);
        }
    }

    fn leave_out(&mut self, store: StoreId) {
        if let Some(run) = &mut self.verifying.run {
            run.silent.insert(store);
            run.begin_look_again(self.now);
        }
    }

    pub(super) fn hurry_looks(&mut self) {
        let late = self.calls.ids(|call| {
            matches!(call.purpose, Purpose::Look { .. }) && call.issued + PATIENCE <= self.now
        });
        for id in late {
            let call = self.calls.remove(id).expect("an open call");
            if let Purpose::Look { look } = call.purpose {
                self.look_failed(call.store, look);
            }
        }
    }

    /// What was asked in the last epoch is void.
    pub(super) fn void_look(&mut self) {
        if let Some(run) = &mut self.verifying.run {
            run.begin_look_again(self.now);
            let healing = std::mem::take(&mut run.healing);
            run.to_heal.extend(healing.into_values());
        }
    }

    pub(super) fn verify_heal_ended(&mut self, store: StoreId, block: Block, healed: bool) {
        let Some(run) = &mut self.verifying.run else {
            return;
        };
        if let Some((copy, damaged)) = run.healing.remove(&(store, block)) {
            match healed {
                true => run.verdict.healed_blocks += 1,
                false if run.looked_again.insert((store, block)) => {
                    let extent = self.record.extent_size.of(block);
                    run.look_again(extent);
                }
                false => {
                    run.verdict
                        .name_damaged(copy.store, block, Some(damaged.version));
                }
            }
        }
    }

    fn verified(&mut self) {
        let mut run = self.verifying.run.take().expect("it is running");
        run.verdict.finished = true;
        run.verdict.extents_done = run.verdict.extents;
        run.verdict.silent = run.silent.into_iter().collect();
        run.verdict.filling = run.filling.into_iter().collect();
        if !run.unasked || !run.verdict.has_no_faults() || run.verdict.healed_blocks > 0 {
            let verdict = Box::new(run.verdict.clone());
            self.effects.push_back(Effect::Verified(verdict));
        }
        if !run.unasked {
            self.verifying.verdict = Some(run.verdict);
        }
    }
}

impl Run {
    /// An extent was written to while it was looked at.
    fn put_off(&mut self, extent: Extent, tries: u32, now: Now) {
        if tries + 1 >= MOST_TRIES {
            self.verdict.busy += 1;
            self.verdict.extents_done += 1;
            return;
        }
        self.not_before = Some(now + PAUSE);
        self.todo.push_back(Part {
            extents: Extents::new(extent, Extent(extent.0 + 1)),
            tries: tries + 1,
        });
    }

    fn note_damaged(&mut self, copy: Copy, damaged: DamagedBlock) {
        let known = |(other, one): &(Copy, DamagedBlock)| {
            (other.store, one.block) == (copy.store, damaged.block)
        };
        let under_way = self.healing.contains_key(&(copy.store, damaged.block));
        if under_way
            || self.to_heal.iter().any(known)
            || self.verdict.names(copy.store, damaged.block)
        {
            return;
        }
        self.verdict.damaged_blocks += 1;
        self.to_heal.push_back((copy, damaged));
    }

    /// At an extent with a block that was counted as damaged.
    fn look_again(&mut self, extent: Extent) {
        self.verdict.damaged_blocks -= 1;
        self.verdict.extents_done = self.verdict.extents_done.saturating_sub(1);
        self.todo.push_back(Part {
            extents: Extents::new(extent, Extent(extent.0 + 1)),
            tries: 0,
        });
    }

    fn begin_look_again(&mut self, now: Now) {
        if let Some(look) = self.look.take() {
            if !matches!(look.stage, Stage::Digests(_)) {
                // They were counted when their digests had come.
                let count = u64::from(look.part.extents.count());
                self.verdict.extents_done = self.verdict.extents_done.saturating_sub(count);
                if look.copies.len() < 2 {
                    self.verdict.single = self.verdict.single.saturating_sub(count);
                }
            }
            self.todo.push_front(look.part);
            self.not_before = Some(now + PAUSE);
        }
    }
}

impl Verdict {
    fn names(&self, store: StoreId, block: Block) -> bool {
        let mut damaged = self.damaged.iter();
        damaged.any(|damaged| (damaged.store, damaged.block) == (store, block))
    }

    fn name_damaged(&mut self, store: StoreId, block: Block, version: Option<Version>) {
        if self.damaged.len() < MOST_NAMED {
            self.damaged.push(DamagedCopy {
                store,
                block,
                version,
            });
        }
    }
}

/// Where the lists of some stores do not say the same.
fn differences(stores: &[StoreId], lists: &BTreeMap<StoreId, Listing>) -> Vec<Difference> {
    let mut blocks: BTreeMap<Block, Vec<CopyOfBlock>> = BTreeMap::new();
    for store in stores {
        for listed in &lists[store].blocks {
            blocks.entry(listed.block).or_default().push(CopyOfBlock {
                store: *store,
                version: Some(listed.version),
                zeroes: listed.zeroes,
            });
        }
    }
    let differs = |copies: &Vec<CopyOfBlock>| {
        let first = (copies[0].version, copies[0].zeroes);
        copies.len() < stores.len()
            || copies
                .iter()
                .any(|copy| (copy.version, copy.zeroes) != first)
    };
    blocks.retain(|_, copies| differs(copies));
    let missing = |copies: &[CopyOfBlock]| -> Vec<CopyOfBlock> {
        let lacks = |store: &&StoreId| copies.iter().all(|copy| copy.store != **store);
        let lacking = stores.iter().filter(lacks);
        lacking
            .map(|store| CopyOfBlock {
                store: *store,
                version: None,
                zeroes: false,
            })
            .collect()
    };
    blocks
        .into_iter()
        .map(|(block, mut copies)| {
            copies.extend(missing(&copies));
            Difference { block, copies }
        })
        .collect()
}

/// What of some blocks is on the disk, in questions.
fn pieces(blocks: Blocks, disk_end: Block) -> impl Iterator<Item = Blocks> {
    let end = blocks.end().min(disk_end);
    let mut next = blocks.first;
    std::iter::from_fn(move || {
        let count = end.0.saturating_sub(next.0).min(u64::from(MAX_DATA_BLOCKS));
        let piece = Blocks::new(next, count as u32);
        next = piece.end();
        (!piece.is_empty()).then_some(piece)
    })
}
