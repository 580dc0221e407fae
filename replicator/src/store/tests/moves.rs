//! A store that leaves and joins again, for ever: dead tails, fills, adoptions, collapses, drops of replicas and of
//! the whole disk, with crashes in between. The oracle is what the other stores have.

use super::bench::{Bench, content};
use super::rng::Rng;
use super::{DISK, bench::options};
use crate::message::{Found, Pulled, Refusal, Reply, Request};
use crate::store::Options;
use crate::store::media::sim::SimMedia;
use crate::words::{Block, Blocks, Epoch, Extent, Extents, Seq, Version};
use std::collections::BTreeMap;

/// Blocks that are written: of three extents, two of which share a chunk of the index.
const BLOCKS: [std::ops::Range<u64>; 3] = [0..24, 250..262, 5000..5012];
const ALL: Extents = Extents::new(Extent(0), Extent(64));

type Versions = BTreeMap<Block, BTreeMap<Version, bool>>;

/// An entry that this store completed: [from, until), and where its next membership began.
#[derive(Clone, Copy)]
struct Past {
    from: u64,
    until: u64,
    next: u64,
}

#[derive(Clone, Default)]
struct Oracle {
    /// What was acknowledged, by whomever.
    truth: Versions,
    /// The epoch at which it joined last.
    from: u64,
    /// What its newest membership can prove, in truth; and what of that a sync covers.
    proven: BTreeMap<Block, Version>,
    synced: BTreeMap<Block, Version>,
    past: Vec<Past>,
}

impl Oracle {
    fn newest_below(&self, block: Block, below: u64) -> Option<(Version, bool)> {
        let bound = Version::new(Epoch::from_u64(below), Seq::ZERO);
        let versions = self.truth.get(&block)?;
        let (version, zero) = versions.range(..bound).next_back()?;
        Some((*version, *zero))
    }

    fn is_complete(&self) -> bool {
        self.truth
            .keys()
            .all(|block| self.proven.contains_key(block))
    }
}

struct Work {
    bench: Bench,
    oracle: Oracle,
    rng: Rng,
}

fn read(bench: &mut Bench, block: Block, from: u64, below: u64) -> Option<(Version, bool)> {
    let read = bench.read_bounded(block.0, 1, from, below).unwrap();
    match read.found[0] {
        Found::Absent => None,
        Found::Zeroes(version) => Some((version, true)),
        Found::Data { version, .. } => {
            assert!(
                read.data[..] == content(DISK, block, version)[..],
                "{block:?} {version}"
            );
            Some((version, false))
        }
    }
}

/// `exact`: nothing was lost since.
fn check(bench: &mut Bench, oracle: &Oracle, exact: bool) {
    for (block, versions) in &oracle.truth {
        let found = read(bench, *block, oracle.from, u64::MAX);
        if let Some((version, zero)) = found {
            assert_eq!(
                versions.get(&version),
                Some(&zero),
                "{block:?}: {version} is nobody's"
            );
        }
        let found = found.map(|(version, _)| version);
        let must = match exact {
            true => oracle.proven.get(block),
            false => oracle.synced.get(block),
        };
        assert!(
            found >= must.copied() && (!exact || found == must.copied()),
            "{block:?}: found {found:?}, must be {must:?}, from {}",
            oracle.from
        );
        for past in &oracle.past {
            let between = oracle.newest_below(*block, past.next);
            // Where the entry behind it has the block, this one is not asked.
            if between.is_some_and(|(version, _)| version.epoch.as_u64() >= past.until) {
                continue;
            }
            let expected = oracle.newest_below(*block, past.until);
            let found = read(bench, *block, past.from, past.until);
            assert_eq!(
                found, expected,
                "{block:?} of the entry {}..{}",
                past.from, past.until
            );
        }
    }
}

impl Work {
    fn new(seed: u64, options: Options) -> Work {
        let oracle = Oracle {
            from: 1,
            ..Oracle::default()
        };
        Work {
            bench: Bench::ready_with(options),
            oracle,
            rng: Rng(seed),
        }
    }

    fn some_blocks(&mut self) -> Blocks {
        let range = &BLOCKS[self.rng.below(3) as usize];
        let first = range.start + self.rng.below(range.end - range.start);
        let count = (1 + self.rng.below(5)).min(range.end - first);
        // All in one extent.
        let count = match first < 256 {
            true => count.min(256 - first),
            false => count,
        };
        Blocks::new(Block(first), count as u32)
    }

    /// A write that all members acknowledge.
    fn write(&mut self) {
        let (blocks, zero) = (self.some_blocks(), self.rng.below(5) == 0);
        let reply = self.bench.write(blocks.first.0, blocks.count, zero);
        if reply != Reply::WRITTEN {
            assert!(matches!(reply, Reply::Refused(Refusal::Full { .. })));
            return self.leave_and_join(0);
        }
        let version = Version::new(self.bench.epoch, Seq(self.bench.seq));
        for block in blocks.iter() {
            self.oracle
                .truth
                .entry(block)
                .or_default()
                .insert(version, zero);
            self.oracle.proven.insert(block, version);
        }
    }

    /// The store is ejected with a tail that nobody else has; others write on; it joins again.
    fn leave_and_join(&mut self, dead: u64) {
        for _ in 0..dead {
            let blocks = self.some_blocks();
            let zero = self.rng.below(3) == 0;
            self.bench.write(blocks.first.0, blocks.count, zero);
        }
        let away = self.bench.epoch.as_u64() + 1;
        self.others_write(away);
        self.oracle.past.clear();
        self.join(away + 1);
    }

    /// The store is complete, and sealed; others write on; it comes back.
    fn move_away_and_back(&mut self) {
        if !self.oracle.is_complete() || self.oracle.past.len() > 4 {
            return;
        }
        self.bench.flush();
        self.oracle.synced = self.oracle.proven.clone();
        let until = self.bench.epoch.as_u64() + 1;
        self.others_write(until);
        let next = until + 1;
        self.oracle.past.push(Past {
            from: self.oracle.from,
            until,
            next,
        });
        self.join(next);
    }

    fn others_write(&mut self, epoch: u64) {
        for seq in 1..=self.rng.below(4) {
            let version = Version::new(Epoch::from_u64(epoch), Seq(seq));
            let zero = self.rng.below(4) == 0;
            for block in self.some_blocks().iter() {
                self.oracle
                    .truth
                    .entry(block)
                    .or_default()
                    .insert(version, zero);
            }
        }
    }

    fn join(&mut self, epoch: u64) {
        self.make_room();
        self.bench.seal(epoch);
        if self.oracle.past.is_empty() && self.rng.below(2) == 0 {
            self.ask_collapse(epoch);
        }
        self.bench.join(0..64, epoch);
        self.oracle.from = epoch;
        self.oracle.proven.clear();
        self.oracle.synced.clear();
    }

    /// Control frames are refused on a full disk as well.
    fn make_room(&mut self) {
        if self.bench.options.capacity_bytes.is_some() {
            self.bench.flush();
            self.bench.tidy();
        }
    }

    fn fill(&mut self) {
        let range = &BLOCKS[self.rng.below(3) as usize];
        let blocks = match self.rng.below(3) {
            0 if range.start != 250 => {
                Blocks::new(Block(range.start), (range.end - range.start) as u32)
            }
            _ => self.some_blocks(),
        };
        let from = self.oracle.from;
        let oracle = &self.oracle;
        let filled = self
            .bench
            .fill(from, blocks, |block| oracle.newest_below(block, from));
        match filled {
            Ok(Pulled { .. }) => {
                for block in blocks.iter() {
                    if let Some((version, _)) = self.oracle.newest_below(block, from) {
                        self.oracle.proven.entry(block).or_insert(version);
                    }
                }
            }
            // A part of it may be in: as good as lost.
            Err(Refusal::Full { .. }) => self.leave_and_join(0),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn collapse(&mut self) {
        if !self.oracle.is_complete() {
            return;
        }
        self.make_room();
        self.ask_collapse(self.oracle.from);
        self.oracle.past.clear();
    }

    fn ask_collapse(&mut self, oldest: u64) {
        let request = Request::Collapse {
            asker: self.bench.asker(),
            extents: ALL,
            oldest: Epoch::from_u64(oldest),
        };
        let reply = self.bench.ask(request);
        assert!(
            matches!(reply, Reply::Collapsed | Reply::Refused(Refusal::NoReplica)),
            "{reply:?}"
        );
    }

    fn drop_replica(&mut self) {
        let first = self.rng.below(3) as u32;
        let extents = Extents::new(Extent(first), Extent(64));
        let below = Epoch::from_u64(self.bench.epoch.as_u64() + 1);
        self.make_room();
        while let Some(promise) = self.bench.store.drop_replica(DISK, extents, below).unwrap() {
            if self.rng.below(2) == 0 {
                self.bench.wait(promise);
            }
        }
        self.oracle.past.clear();
        let next = self.bench.epoch.as_u64() + 1;
        self.join(next);
    }

    /// The disk is deleted, and comes back from another store.
    fn drop_disk(&mut self) {
        self.make_room();
        let promise = self.bench.store.drop_disk(DISK).unwrap();
        if self.rng.below(2) == 0 {
            self.bench.wait(promise);
        }
        self.oracle.past.clear();
        let next = self.bench.epoch.as_u64() + 1;
        self.join(next);
    }

    fn step(&mut self) {
        match self.rng.below(65) {
            0..=19 => self.write(),
            20..=39 => self.fill(),
            40..=45 => {
                if self.bench.flush() {
                    self.oracle.synced = self.oracle.proven.clone();
                }
            }
            46..=49 => drop(self.bench.store.housekeep()),
            50..=51 => self.bench.store.start_checkpoint(),
            52..=53 => self.bench.tidy(),
            54..=57 => {
                let dead = self.rng.below(4);
                self.leave_and_join(dead);
            }
            58..=60 => self.move_away_and_back(),
            61..=62 => self.collapse(),
            63 => self.drop_replica(),
            _ => self.drop_disk(),
        }
    }

    /// Crashes at each sync that a step made, and behind it.
    fn step_with_crashes(&mut self) {
        let before = self.oracle.clone();
        self.bench.media.watch_syncs();
        self.step();
        let moments = self.bench.media.moments();
        if self.oracle.from == before.from && self.oracle.past.len() == before.past.len() {
            // Whatever the step was to make durable, it had not yet.
            let during = Oracle {
                synced: before.synced,
                ..self.oracle.clone()
            };
            for media in moments {
                self.crashed(&media, &during);
            }
        }
        let (media, oracle) = (self.bench.media.clone(), self.oracle.clone());
        self.crashed(&media, &oracle);
    }

    fn crashed(&mut self, media: &SimMedia, oracle: &Oracle) {
        let media = media.fork();
        let density = [0, 2, 8, 14, 16][self.rng.below(5) as usize];
        media.crash(|| self.rng.below(16) < density);
        let options = self.bench.options.clone();
        let mut bench = Bench::open(media, options, self.bench.oracle.clone()).unwrap();
        assert_eq!(bench.recovery.damage, Vec::<String>::new());
        check(&mut bench, oracle, false);
    }

    fn restart(&mut self, kill: bool) {
        let media = self.bench.media.fork();
        match kill {
            true => media.kill(),
            false => media.crash(|| self.rng.below(2) == 0),
        }
        let (options, oracle) = (self.bench.options.clone(), self.bench.oracle.clone());
        let mut bench = Bench::open(media, options, oracle).unwrap();
        check(&mut bench, &self.oracle, kill);
        self.bench = bench;
        if !kill {
            // It has lost its tail: it is ejected, and joins again.
            self.leave_and_join(0);
        }
    }
}

fn run(seed: u64, steps: u32, options: Options) {
    let mut work = Work::new(seed, options);
    for _ in 0..steps {
        match work.rng.below(8) {
            0 => work.step_with_crashes(),
            _ => work.step(),
        }
        match work.rng.below(60) {
            0 => work.restart(false),
            1..=2 => work.restart(true),
            3..=5 => {
                let oracle = work.oracle.clone();
                check(&mut work.bench, &oracle, true);
            }
            _ => {}
        }
    }
    let oracle = work.oracle.clone();
    check(&mut work.bench, &oracle, true);
}

#[test]
fn a_store_that_comes_and_goes_never_says_what_nobody_wrote() {
    let seeds = std::env::var("UKAI_STORE_SEEDS").map_or(40, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let caught = std::panic::catch_unwind(|| run(seed, 300, options()));
        assert!(caught.is_ok(), "seed {seed}");
    }
}

#[test]
fn nor_does_it_on_a_disk_that_fills_up() {
    for seed in 1000..1010 {
        let options = Options {
            capacity_bytes: Some(640 << 10),
            ..options()
        };
        let caught = std::panic::catch_unwind(|| run(seed, 200, options));
        assert!(caught.is_ok(), "seed {seed}");
    }
}
