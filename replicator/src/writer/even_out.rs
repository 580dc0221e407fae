//! Making the members of one range even: compare what they hold above the floor, page by page, and
//! rewrite each block that differs or is absent anywhere with the newest that is held of it.
//!
//! Bounded: a page a member, one run of blocks that is being gathered, a few runs under way.

use super::calls::Purpose;
use super::read::Target;
use super::take_over::RangePlan;
use super::write::{Draft, WriteOwner};
use super::{Aim, Phase, Writer};
use crate::message::{ListedBlock, Request};
use crate::plant::{Plant, planted};
use crate::words::{BLOCK_BYTES, Block, Blocks, ExtentSize, StoreId, Version};
use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};

/// Blocks that are rewritten together: a frame that fits into the segments of the tiniest stores.
const RUN_BLOCKS: u32 = 24;
/// Runs that are read or rewritten at once: 3.75 MiB.
const MAX_RUNS: usize = 40;

pub(super) struct Evening {
    cursors: BTreeMap<StoreId, Cursor>,
    /// Neighbours that differ, gathered until there is a gap, or others have the newest.
    gathered: Option<(Blocks, Newest)>,
    runs: BTreeMap<u64, Run>,
    last_run: u64,
    /// Rewrites that are not held by all yet.
    rewriting: usize,
}

/// How far one member's list was read.
struct Cursor {
    page: VecDeque<ListedBlock>,
    /// Where the next page begins; `None` behind the last.
    next: Option<Block>,
    asked: bool,
}

/// Of those whose content may count: who holds the newest of a block.
pub(super) type Newest = SmallVec<[StoreId; 4]>;

/// Blocks on their way from one member to all.
struct Run {
    blocks: Blocks,
    newest: Newest,
    /// Outer `None`: not known yet. Inner: zeroes.
    content: Vec<Option<Option<Bytes>>>,
    reads: usize,
}

impl Evening {
    pub fn new(range: &RangePlan, extent_size: ExtentSize) -> Evening {
        let first = extent_size.blocks_of(range.extents.first).first;
        // Alone, it is even with itself; and where none has joined, nothing was ever written.
        let compared = range.kept.len() > 1;
        let cursor = || Cursor {
            page: VecDeque::new(),
            next: compared.then_some(first),
            asked: false,
        };
        Evening {
            cursors: range.kept.iter().map(|store| (*store, cursor())).collect(),
            gathered: None,
            runs: BTreeMap::new(),
            last_run: 0,
            rewriting: 0,
        }
    }

    /// The next block that any member listed, and where they differ on it, who of `sources` holds the newest.
    /// `None`: a page is missing, or all are at their ends.
    fn next_block(&mut self, sources: &[StoreId]) -> Option<(Block, Option<Newest>)> {
        if self
            .cursors
            .values()
            .any(|c| c.page.is_empty() && c.next.is_some())
        {
            return None;
        }
        let heads = self.cursors.values().filter_map(|c| c.page.front());
        let block = heads.map(|listed| listed.block).min()?;
        let held = self.cursors.iter_mut().map(|(store, cursor)| {
            let head = cursor
                .page
                .front()
                .is_some_and(|listed| listed.block == block);
            let listed = head.then(|| cursor.page.pop_front()).flatten();
            (*store, listed.map(|listed| listed.version))
        });
        let held: SmallVec<[(StoreId, Option<Version>); 4]> = held.collect();
        let is_even = held.iter().all(|(_, version)| *version == held[0].1);
        let counting = || held.iter().filter(|(store, _)| sources.contains(store));
        let best = counting().map(|(_, version)| *version).max().flatten();
        let newest = counting().filter(|(_, version)| *version == best);
        let newest = newest.map(|(store, _)| *store).collect();
        Some((block, (!is_even).then_some(newest)))
    }

    fn is_over(&self) -> bool {
        self.runs.is_empty()
            && self.rewriting == 0
            && self.gathered.is_none()
            && self
                .cursors
                .values()
                .all(|c| c.page.is_empty() && c.next.is_none())
    }
}

impl Writer {
    /// Compares, asks for pages and begins rewrites, as far as the bounds allow.
    pub(super) fn go_on_evening(&mut self) {
        self.ask_for_pages();
        loop {
            let extent_size = self.record.extent_size;
            let Some((at, range, evening)) = self.evening() else {
                return;
            };
            if evening.runs.len() + evening.rewriting >= MAX_RUNS {
                return;
            }
            match evening.next_block(&range.sources) {
                Some((_, None)) => {}
                Some((block, Some(newest))) => match &mut evening.gathered {
                    Some((run, of))
                        if run.end() == block
                            && *of == newest
                            && run.count < RUN_BLOCKS
                            && extent_size.of(run.first) == extent_size.of(block) =>
                    {
                        *run = Blocks::new(run.first, run.count + 1);
                    }
                    gathered => {
                        let full = gathered.replace((Blocks::new(block, 1), newest));
                        self.begin_run(full);
                    }
                },
                None => {
                    let pending = evening
                        .cursors
                        .values()
                        .any(|c| c.page.is_empty() && c.next.is_some());
                    if pending {
                        return self.ask_for_pages();
                    }
                    let last = evening.gathered.take();
                    let was_last = last.is_none();
                    self.begin_run(last);
                    let over = self.evening().is_some_and(|(_, _, e)| e.is_over());
                    if over {
                        return self.even_out_range(at + 1);
                    }
                    if was_last {
                        return;
                    }
                }
            }
        }
    }

    fn ask_for_pages(&mut self) {
        let Some((_, range, evening)) = self.evening() else {
            return;
        };
        let (extents, above) = (range.extents, range.floor);
        let mut wanted = Vec::new();
        for (store, cursor) in &mut evening.cursors {
            if let (true, false, Some(start)) = (cursor.page.is_empty(), cursor.asked, cursor.next)
            {
                cursor.asked = true;
                wanted.push((*store, start));
            }
        }
        for (store, start) in wanted {
            let request = Request::List {
                asker: self.asker(store),
                extents,
                above,
                start,
            };
            self.call(store, request, Aim::Nowhere, Purpose::List);
        }
    }

    pub(super) fn listed(&mut self, store: StoreId, blocks: Vec<ListedBlock>, more: bool) {
        let Some((_, _, evening)) = self.evening() else {
            return;
        };
        let Some(cursor) = evening.cursors.get_mut(&store) else {
            return;
        };
        let behind = blocks.last().map(|last| Block(last.block.0 + 1));
        cursor.asked = false;
        cursor.next = behind.filter(|_| more);
        cursor.page = blocks.into();
        self.go_on_evening();
    }

    fn begin_run(&mut self, gathered: Option<(Blocks, Newest)>) {
        let Some((blocks, newest)) = gathered.filter(|_| !planted(Plant::TailNotRewritten)) else {
            return;
        };
        let Some((_, _, evening)) = self.evening() else {
            return;
        };
        evening.last_run += 1;
        let run = evening.last_run;
        let content = vec![None; blocks.count as usize];
        let reads = 0;
        evening.runs.insert(
            run,
            Run {
                blocks,
                newest,
                content,
                reads,
            },
        );
        self.begin_read(Target::Settle(run), blocks);
    }

    /// Whose content comes first for this run. The others' would be legitimate, too (A3): they serve where it
    /// cannot be read.
    pub(super) fn has_newest(&self, run: u64, store: StoreId) -> bool {
        let Phase::Settling(settling) = &self.phase else {
            return false;
        };
        let run = settling.evened().and_then(|evening| evening.runs.get(&run));
        run.is_some_and(|run| run.newest.contains(&store))
    }

    pub(super) fn run_read_begins(&mut self, run: u64) {
        if let Some((_, _, evening)) = self.evening() {
            evening.runs.get_mut(&run).expect("a run under way").reads += 1;
        }
    }

    pub(super) fn run_filled(&mut self, run: u64, blocks: Blocks, data: Option<Bytes>) {
        let Some((_, _, evening)) = self.evening() else {
            return;
        };
        let run = evening.runs.get_mut(&run).expect("a run under way");
        for block in blocks.iter() {
            let at = (block.0 - run.blocks.first.0) as usize;
            run.content[at] = Some(data.clone());
        }
    }

    /// One of its reads ended; when all have, what they found is written to all.
    pub(super) fn run_read_ended(&mut self, id: u64) {
        let Some((_, _, evening)) = self.evening() else {
            return;
        };
        let run = evening.runs.get_mut(&id).expect("a run under way");
        run.reads -= 1;
        if run.reads > 0 {
            return;
        }
        let run = evening.runs.remove(&id).expect("it was there");
        let content: Vec<Option<Bytes>> = run
            .content
            .into_iter()
            .map(|block| block.expect("A3: every block of a run was found or is zeroes"))
            .collect();
        let mut at = run.blocks.first;
        for part in content.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let blocks = Blocks::new(at, part.len() as u32);
            at = blocks.end();
            let draft = Draft::whole(joined(part));
            if let Some((_, _, evening)) = self.evening() {
                evening.rewriting += 1;
            }
            self.begin_write(WriteOwner::Settling, blocks, draft);
        }
    }

    /// A rewrite is held by all.
    pub(super) fn rewritten(&mut self) {
        if let Some((_, _, evening)) = self.evening() {
            evening.rewriting -= 1;
            self.go_on_evening();
        }
    }
}

/// One piece of memory for blocks of data; nothing for zeroes.
fn joined(blocks: &[Option<Bytes>]) -> Option<Bytes> {
    let mut all = BytesMut::with_capacity(blocks.len() * BLOCK_BYTES as usize);
    for block in blocks {
        all.extend_from_slice(block.as_ref()?);
    }
    Some(all.freeze())
}
