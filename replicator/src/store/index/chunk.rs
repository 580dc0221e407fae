//! A chunk of the index: 4096 blocks, their newest entries, and the older ones still needed.

use super::run::Run;
use super::{CHUNK_BLOCKS, PAGE_BLOCKS};
use crate::store::place::Place;
use crate::words::{Epoch, Seq, Version};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::ops::Range;

/// What the index knows of one version of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub version: Version,
    pub place: Place,
    pub zeroes: bool,
    /// Put in by a fill during this membership (rule R1); None: written by the writer itself.
    pub filled: Option<u16>,
}

/// What runs share: the high part of their versions, and what kind of frame they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Era {
    pub epoch: Epoch,
    pub zeroes: bool,
    pub filled: Option<u16>,
}

#[derive(Default, Debug, Clone, PartialEq)]
pub struct Chunk {
    pub(super) pages: Vec<Page>,
    pub(super) eras: Vec<Era>,
    /// Predecessors that some reader or crash may still need, by block and version.
    pub(super) older: BTreeMap<(u16, Version), Older>,
}

/// Sorted runs that do not overlap.
#[derive(Default, Debug, Clone, PartialEq)]
pub(super) struct Page {
    pub runs: Vec<Run>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Older {
    pub place: Place,
    pub zeroes: bool,
    pub filled: Option<u16>,
}

/// What a put did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Put {
    /// Blocks whose newest entry held data before.
    pub was_data: u32,
    /// Blocks whose newest entry is this one now and was not before.
    pub newest: u32,
}

/// An index that names more distinct eras in 16 MiB than this has been attached anew for every
/// other block: no real disk does that.
const MAX_ERAS: usize = 1 << 16;

impl Chunk {
    pub fn new() -> Chunk {
        Chunk {
            pages: vec![Page::default(); (CHUNK_BLOCKS / PAGE_BLOCKS) as usize],
            eras: Vec::new(),
            older: BTreeMap::new(),
        }
    }

    /// The newest entry of a block.
    pub fn newest(&self, block: u16) -> Option<Entry> {
        let (page, block) = split(block);
        let run = self.pages[page].run_of(block)?;
        Some(self.entry(run, block))
    }

    /// Every entry of a block, newest first.
    pub fn versions(&self, block: u16) -> impl Iterator<Item = Entry> + '_ {
        let older = self
            .older
            .range((block, Version::ZERO)..=(block, MAX_VERSION));
        let older = older
            .rev()
            .map(|((_, version), older)| older.entry(*version));
        self.newest(block).into_iter().chain(older)
    }

    /// Whether every one of these blocks is absent or older than `version`.
    pub fn all_below(&self, first: u16, count: u32, version: Version) -> bool {
        self.pages_of(first, count).all(|(page, first, last)| {
            self.pages[page]
                .overlapping(first, last)
                .iter()
                .all(|run| self.last_version(run) < version)
        })
    }

    /// Blocks with an entry in `first..first + count`: (block, newest entry), in order.
    pub fn entries(&self, first: u16, count: u32) -> impl Iterator<Item = (u16, Entry)> + '_ {
        self.pages_of(first, count)
            .flat_map(move |(page, first, last)| {
                self.pages[page]
                    .overlapping(first, last)
                    .iter()
                    .flat_map(move |run| {
                        (run.first.max(first)..=run.last.min(last))
                            .map(move |block| (unsplit(page, block), self.entry(run, block)))
                    })
            })
    }

    /// Makes `entry` the newest of `count` blocks from `first` on; data frames stand as those do that were
    /// appended together, from `entry.place` on. Where the block already has
    /// - an older entry: that is told to `displaced` with its block, and becomes a predecessor, or is told to `freed`
    ///   where [`Entry::hides`] says that nobody will ask for it;
    /// - the same version: its place changes, and the place before is told to `freed`;
    /// - a newer entry: only a predecessor of this very version changes its place.
    ///
    /// Returns what became of them; an error says that the chunk has no room for another era.
    pub fn put(
        &mut self,
        first: u16,
        count: u32,
        entry: Entry,
        mut displaced: impl FnMut(u16, Entry),
        mut freed: impl FnMut(Entry),
    ) -> Result<Put, TooManyEras> {
        let era = self.era_of(&entry)?;
        let mut put = Put::default();
        for (page, from, to) in self.pages_of(first, count) {
            let all_older = self.pages[page]
                .overlapping(from, to)
                .iter()
                .all(|run| self.last_version(run) < entry.version);
            if all_older {
                let offset = u32::from(unsplit(page, from)) - u32::from(first);
                let place = entry.nth(offset).place;
                let run = Run::new(from, to, era, entry.version.seq, place);
                for old in self.replace(page, run) {
                    for block in old.first..=old.last {
                        let before = self.entry(&old, block);
                        put.was_data += u32::from(!before.zeroes);
                        let block = unsplit(page, block);
                        displaced(block, before);
                        if entry.hides(&before) {
                            freed(before);
                        } else {
                            self.older.insert((block, before.version), before.into());
                        }
                    }
                }
                put.newest += u32::from(to - from) + 1;
                continue;
            }
            for block in from..=to {
                let absolute = unsplit(page, block);
                let one = entry.nth(u32::from(absolute) - u32::from(first));
                match self.newest(absolute) {
                    Some(before) if before.version > one.version => {
                        if let Some(known) = self.older.get_mut(&(absolute, one.version)) {
                            freed(known.entry(one.version));
                            *known = one.into();
                        } else {
                            // Not needed any more: what stands there is free.
                            freed(one);
                        }
                    }
                    before => {
                        let run = Run::new(block, block, era, one.version.seq, one.place);
                        self.replace(page, run);
                        match before {
                            Some(before) if before.version == one.version => {
                                freed(before);
                            }
                            Some(before) => {
                                put.was_data += u32::from(!before.zeroes);
                                put.newest += 1;
                                displaced(absolute, before);
                                if one.hides(&before) {
                                    freed(before);
                                } else {
                                    let key = (absolute, before.version);
                                    self.older.insert(key, before.into());
                                }
                            }
                            None => put.newest += 1,
                        }
                    }
                }
            }
        }
        Ok(put)
    }

    /// Takes versions of `block` above `version` away where `dead` says that nobody claims them; the newest
    /// that is left takes the place of the newest.
    pub fn supersede(
        &mut self,
        block: u16,
        version: Version,
        dead: impl Fn(&Entry) -> bool,
        mut freed: impl FnMut(Entry),
    ) {
        let newer = |entry: &Entry| entry.version > version;
        let gone: Vec<Entry> = self
            .versions(block)
            .take_while(newer)
            .filter(|entry| dead(entry))
            .collect();
        let newest = self.newest(block);
        for entry in gone {
            if Some(entry) == newest {
                let (page, within) = split(block);
                self.cut(page, within, within);
            } else {
                self.older.remove(&(block, entry.version));
            }
            freed(entry);
        }
        if newest.is_some() && self.newest(block).is_none() {
            self.promote(block);
        }
    }

    /// The newest predecessor of a block that has lost its newest entry takes that one's place.
    fn promote(&mut self, block: u16) {
        let Some(entry) = self.versions(block).next() else {
            return;
        };
        // Where there is no room for its era it stays a predecessor, which is found as well.
        if let Ok(era) = self.era_of(&entry) {
            self.older.remove(&(block, entry.version));
            let (page, within) = split(block);
            let run = Run::new(within, within, era, entry.version.seq, entry.place);
            self.replace(page, run);
        }
    }

    /// Takes everything of `count` blocks from `first` on away.
    pub fn forget(&mut self, first: u16, count: u32, mut freed: impl FnMut(Entry)) {
        for (page, from, to) in self.pages_of(first, count) {
            for run in self.cut(page, from, to) {
                (run.first..=run.last).for_each(|block| freed(self.entry(&run, block)));
            }
        }
        let last = (u32::from(first) + count - 1) as u16;
        self.older.retain(|(block, version), older| {
            let goes = (first..=last).contains(block);
            if goes {
                freed(older.entry(*version));
            }
            !goes
        });
    }

    fn cut(&mut self, page: usize, first: u8, last: u8) -> Vec<Run> {
        let eras = &self.eras;
        let zeroes = |run: &Run| eras[usize::from(run.era.get())].zeroes;
        self.pages[page].cut(first, last, zeroes)
    }

    /// Drops the predecessors of `block` that `needed(predecessor, successor)` does not want.
    /// Returns how many are left.
    pub fn prune(
        &mut self,
        block: u16,
        needed: impl Fn(&Entry, &Entry) -> bool,
        mut freed: impl FnMut(Entry),
    ) -> usize {
        let versions: SmallVec<[Entry; 4]> = self.versions(block).collect();
        let mut kept = 0;
        for pair in versions.windows(2) {
            if needed(&pair[1], &pair[0]) {
                kept += 1;
            } else {
                self.older.remove(&(block, pair[1].version));
                freed(pair[1]);
            }
        }
        kept
    }

    /// Whether the header of a frame that this chunk refers to may stand among these bytes of a segment.
    pub fn may_refer_to(&self, segment: u32, bytes: &Range<u64>) -> bool {
        let mut runs = self.pages.iter().flat_map(|page| &page.runs);
        let mut older = self.older.values().map(|older| older.place);
        let zeroes = |run: &Run| self.eras[usize::from(run.era.get())].zeroes;
        runs.any(|run| run.may_stand_in(segment, bytes, zeroes(run)))
            || older.any(|place| place.segment == segment && bytes.contains(&place.offset()))
    }

    /// Everything that this chunk refers to, block by block.
    pub fn each_reference(&self, mut each: impl FnMut(Entry)) {
        self.entries(0, CHUNK_BLOCKS)
            .for_each(|(_, entry)| each(entry));
        for ((_, version), older) in &self.older {
            each(older.entry(*version));
        }
    }

    /// Blocks that have predecessors.
    pub fn with_older(&self) -> Vec<u16> {
        let mut blocks: Vec<u16> = self.older.keys().map(|(block, _)| *block).collect();
        blocks.dedup();
        blocks
    }

    /// What this costs in memory, with what the allocator rounds up.
    pub fn memory_bytes(&self) -> usize {
        let pages: usize = self
            .pages
            .iter()
            .map(|page| allocated(page.runs.capacity() * size_of::<Run>()))
            .sum();
        let older = self.older.len() * (size_of::<(u16, Version)>() + size_of::<Older>()) * 3 / 2;
        pages
            + allocated(self.pages.capacity() * size_of::<Page>())
            + allocated(self.eras.capacity() * size_of::<Era>())
            + allocated(size_of::<Chunk>())
            + older
    }

    fn pages_of(&self, first: u16, count: u32) -> impl Iterator<Item = (usize, u8, u8)> + use<> {
        let end = u32::from(first) + count;
        assert!(count > 0 && end <= CHUNK_BLOCKS, "a put stays in its chunk");
        let first = u32::from(first);
        (first / PAGE_BLOCKS..=(end - 1) / PAGE_BLOCKS).map(move |page| {
            let start = page * PAGE_BLOCKS;
            let from = first.max(start) - start;
            let to = end.min(start + PAGE_BLOCKS) - 1 - start;
            (page as usize, from as u8, to as u8)
        })
    }

    fn entry(&self, run: &Run, block: u8) -> Entry {
        let era = &self.eras[usize::from(run.era.get())];
        Entry {
            version: Version::new(era.epoch, run.seq_of(block)),
            place: run.place_of(block, era.zeroes),
            zeroes: era.zeroes,
            filled: era.filled,
        }
    }

    fn last_version(&self, run: &Run) -> Version {
        Version::new(self.eras[usize::from(run.era.get())].epoch, run.last_seq())
    }

    fn era_of(&mut self, entry: &Entry) -> Result<u16, TooManyEras> {
        let era = Era {
            epoch: entry.version.epoch,
            zeroes: entry.zeroes,
            filled: entry.filled,
        };
        if let Some(known) = self.eras.iter().rposition(|known| *known == era) {
            return Ok(known as u16);
        }
        if self.eras.len() >= 64 && self.eras.len().is_power_of_two() {
            self.forget_unused_eras();
        }
        if self.eras.len() == MAX_ERAS {
            return Err(TooManyEras);
        }
        self.eras
            .reserve_exact(usize::from(self.eras.len() == self.eras.capacity()));
        self.eras.push(era);
        Ok((self.eras.len() - 1) as u16)
    }

    fn forget_unused_eras(&mut self) {
        let mut moved: Vec<Option<u16>> = vec![None; self.eras.len()];
        let mut eras = Vec::new();
        for run in self.pages.iter_mut().flat_map(|page| &mut page.runs) {
            let old = usize::from(run.era.get());
            let new = *moved[old].get_or_insert_with(|| {
                eras.push(self.eras[old]);
                (eras.len() - 1) as u16
            });
            run.era = new.into();
        }
        self.eras = eras;
    }

    /// Puts `run` into a page, joined with its neighbour where it carries that on. Returns what it displaced.
    fn replace(&mut self, page: usize, run: Run) -> Displaced {
        let eras = &self.eras;
        let zeroes = |run: &Run| eras[usize::from(run.era.get())].zeroes;
        self.pages[page].replace(run, zeroes)
    }
}

/// Runs, or parts of them, that others took the place of: one, where a block is overwritten.
type Displaced = SmallVec<[Run; 2]>;

/// See [`MAX_ERAS`].
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyEras;

const MAX_VERSION: Version = Version::new(Epoch::MAX, Seq(u64::MAX));

impl Page {
    fn overlapping(&self, first: u8, last: u8) -> &[Run] {
        let from = self.runs.partition_point(|run| run.last < first);
        let to = from + self.runs[from..].partition_point(|run| run.first <= last);
        &self.runs[from..to]
    }

    fn run_of(&self, block: u8) -> Option<&Run> {
        self.overlapping(block, block).first()
    }

    fn replace(&mut self, new: Run, zeroes: impl Fn(&Run) -> bool) -> Displaced {
        let from = self.runs.partition_point(|run| run.last < new.first);
        let to = from + self.runs[from..].partition_point(|run| run.first <= new.last);
        // The common case, twice: on behind a run, or into a gap.
        let before = from.checked_sub(1).map(|i| self.runs[i]);
        if from == to {
            match before.and_then(|before| before.joined(&new, zeroes(&new))) {
                Some(joined) => self.runs[from - 1] = joined,
                None => {
                    self.reserve(1);
                    self.runs.insert(from, new);
                }
            }
            return Displaced::new();
        }
        let mut displaced = Displaced::with_capacity(to - from);
        let mut now: SmallVec<[Run; 3]> = SmallVec::new();
        for run in &self.runs[from..to] {
            let zeroes = zeroes(run);
            if run.first < new.first {
                now.push(run.part(run.first, new.first - 1, zeroes));
            }
            displaced.push(run.part(run.first.max(new.first), run.last.min(new.last), zeroes));
        }
        match now.last().copied().or(before.filter(|_| now.is_empty())) {
            Some(left) if left.joined(&new, zeroes(&new)).is_some() => {
                let joined = left.joined(&new, zeroes(&new)).expect("just seen");
                match now.last_mut() {
                    Some(last) => *last = joined,
                    None => self.runs[from - 1] = joined,
                }
            }
            _ => now.push(new),
        }
        let last = self.runs[to - 1];
        if last.last > new.last {
            now.push(last.part(new.last + 1, last.last, zeroes(&last)));
        }
        self.reserve(now.len().saturating_sub(to - from));
        self.runs.splice(from..to, now);
        displaced
    }

    /// Takes `first..=last` out of the runs, and returns what stood there.
    fn cut(&mut self, first: u8, last: u8, zeroes: impl Fn(&Run) -> bool) -> Vec<Run> {
        let from = self.runs.partition_point(|run| run.last < first);
        let to = from + self.runs[from..].partition_point(|run| run.first <= last);
        let mut gone = Vec::with_capacity(to - from);
        let mut left: SmallVec<[Run; 2]> = SmallVec::new();
        for run in &self.runs[from..to] {
            let zeroes = zeroes(run);
            if run.first < first {
                left.push(run.part(run.first, first - 1, zeroes));
            }
            gone.push(run.part(run.first.max(first), run.last.min(last), zeroes));
            if run.last > last {
                left.push(run.part(last + 1, run.last, zeroes));
            }
        }
        self.reserve(left.len().saturating_sub(to - from));
        self.runs.splice(from..to, left);
        gone
    }

    /// Room for `more` runs, in steps with little slack: 1, 2, 4, 8, 16, 24...
    fn reserve(&mut self, more: usize) {
        let needed = self.runs.len() + more;
        if needed > self.runs.capacity() {
            let capacity = match needed {
                0..=8 => needed.next_power_of_two(),
                _ => needed.next_multiple_of(8),
            };
            self.runs.reserve_exact(capacity - self.runs.len());
        }
    }
}

impl Entry {
    /// The entry of the `i`th block of a write whose first block has this one.
    pub fn nth(self, i: u32) -> Entry {
        let place = match self.zeroes {
            true => self.place,
            false => self.place.nth(i),
        };
        Entry { place, ..self }
    }

    /// Whether nobody will ask for the older entry `before` of a block that has this one. Reads of older entries of a
    /// history are bounded by epochs (rule R2), and what proves the one proves the other (rule R1), so that they find
    /// this one. True of any two such versions; said of zeroes alone, because discards come by the million blocks.
    pub fn hides(&self, before: &Entry) -> bool {
        self.zeroes && self.version.epoch == before.version.epoch && self.filled == before.filled
    }

    /// What an entry counts for in its segment: zero only if nothing refers to the segment. Blocks
    /// of zeroes share a frame that nobody counts, so each weighs a little.
    pub fn weight(&self) -> u64 {
        match self.zeroes {
            true => 1,
            false => super::super::frame::DATA_FRAME_BYTES,
        }
    }
}

impl From<Entry> for Older {
    fn from(entry: Entry) -> Older {
        Older {
            place: entry.place,
            zeroes: entry.zeroes,
            filled: entry.filled,
        }
    }
}

impl Older {
    fn entry(&self, version: Version) -> Entry {
        Entry {
            version,
            place: self.place,
            zeroes: self.zeroes,
            filled: self.filled,
        }
    }
}

/// What malloc takes for so many bytes: a word more, in steps of 16, at least 32.
fn allocated(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        bytes => (bytes + 8).next_multiple_of(16).max(32),
    }
}

fn split(block: u16) -> (usize, u8) {
    (
        usize::from(block) / PAGE_BLOCKS as usize,
        (u32::from(block) % PAGE_BLOCKS) as u8,
    )
}

fn unsplit(page: usize, block: u8) -> u16 {
    (page * PAGE_BLOCKS as usize) as u16 + u16::from(block)
}
