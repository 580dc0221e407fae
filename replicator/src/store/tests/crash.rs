//! Crashes: at any moment, with any subset of what was not synced, in recovery too. Whatever was
//! flushed is there afterwards, whatever is there was written, and nothing is torn.

use super::Bench;
use super::bench::Oracle;
use super::rng::Rng;
use crate::message::{Refusal, Reply};
use crate::store::identity::write_whole;
use crate::store::media::Media;
use crate::store::media::sim::SimMedia;
use crate::store::{BootId, Options, Store, StoreError};
use std::collections::BTreeSet;

/// Opens what a crash with these survivors leaves, and checks it.
fn after_crash(
    media: &SimMedia,
    options: &Options,
    oracle: &Oracle,
    survives: impl FnMut() -> bool,
) -> Bench {
    let media = media.fork();
    media.crash(survives);
    let mut bench = Bench::open(media, options.clone(), oracle.clone())
        .unwrap_or_else(|error| panic!("a crash is no damage: {error}"));
    assert!(bench.recovery.lost_tail || bench.recovery.clean || bench.store.starts().0 == 1);
    assert_eq!(bench.recovery.damage, Vec::<String>::new());
    bench.check(false);
    bench
}

/// Every subset of what is not synced, where there are few enough; else some of each density.
/// Returns how many were tried.
fn every_crash(
    media: &SimMedia,
    options: &Options,
    oracle: &Oracle,
    rng: &mut Rng,
    (exhaustive_bits, samples): (u32, u32),
) -> u64 {
    let unsynced = media.unsynced().len() as u32;
    if unsynced <= exhaustive_bits {
        for subset in 0..1u64 << unsynced {
            let mut bits = subset;
            after_crash(media, options, oracle, || {
                let survives = bits & 1 == 1;
                bits >>= 1;
                survives
            });
        }
        return 1 << unsynced;
    }
    for sample in 0..samples {
        let density = [0, 1, 8, 15, 16][sample as usize % 5];
        after_crash(media, options, oracle, || rng.below(16) < density);
    }
    u64::from(samples)
}

/// Does something, and then crashes in every way before each sync that it made, and behind it all.
fn with_crashes(
    bench: &mut Bench,
    rng: &mut Rng,
    effort: (u32, u32),
    act: impl FnOnce(&mut Bench),
) -> u64 {
    let before = bench.oracle.clone();
    bench.media.watch_syncs();
    act(bench);
    let moments = bench.media.moments();
    // What was promised only afterwards cannot be asked for in the middle.
    let during = Oracle {
        flushed: before.flushed,
        sealed: before.sealed,
        ..bench.oracle.clone()
    };
    let mut tried = 0;
    for media in moments {
        tried += every_crash(&media, &bench.options, &during, rng, effort);
    }
    tried + every_crash(&bench.media, &bench.options, &bench.oracle, rng, effort)
}

#[test]
fn every_subset_of_the_unsynced_sectors_of_a_small_log() {
    let mut rng = Rng(1);
    let mut tried = 0;
    let scripts: [fn(&mut Bench); 9] = [
        |bench| drop(bench.write(0, 1, false)),
        |bench| drop(bench.write_all(&[(0, 1, true), (5, 1, false), (0, 1, true)])),
        |bench| {
            bench.write(5, 1, false);
            bench.write(4, 3, true);
        },
        |bench| {
            bench.write(0, 8, true);
            bench.write(1, 1, false);
        },
        // Writes go on while a sync runs, and are not covered by it.
        |bench| {
            bench.write(3, 1, true);
            let job = bench.store.begin_sync().unwrap();
            bench.write(3, 1, false);
            bench.write(4, 1, true);
            job.run().unwrap();
        },
        |bench| {
            bench.write(7, 1, true);
            bench.seal(9);
            bench.write(7, 1, false);
        },
        |bench| {
            bench.seal(2);
            bench.join(0..64, 2);
            bench.write(0, 1, true);
        },
        // A checkpoint, step by step.
        |bench| {
            bench.write(3, 1, false);
            bench.store.start_checkpoint();
            bench.tidy();
            bench.write(3, 1, true);
        },
        // A clean end and a new start.
        |bench| {
            bench.write(2, 1, false);
            let old = std::mem::replace(bench, Bench::new());
            let (media, oracle, options) = old.close();
            *bench = Bench::open(media, options, oracle).unwrap();
        },
    ];
    for script in scripts {
        let mut bench = Bench::ready();
        bench.write(0, 4, false);
        bench.write(4, 2, false);
        assert!(bench.flush());
        tried += with_crashes(&mut bench, &mut rng, (12, 400), script);
    }
    println!("{tried} crashes");
    assert!(
        tried > 3_000,
        "{tried}: the scripts are about small subsets"
    );
}

#[test]
fn a_store_that_is_being_made_is_one_or_none() {
    let media = SimMedia::new();
    media.watch_syncs();
    let options = Options::tiny();
    Store::format(&media, super::STORE, &options).unwrap();
    let mut rng = Rng(3);
    for moment in media.moments() {
        for _ in 0..50 {
            let media = moment.fork();
            media.crash(|| rng.below(2) == 0);
            match Store::open(media.clone(), options.clone(), BootId(1)) {
                Ok(_) => {}
                Err(StoreError::NotAStore { .. }) => {
                    Store::format(&media, super::STORE, &options).unwrap();
                    Store::open(media, options.clone(), BootId(1)).unwrap();
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

/// A workload that never ends in the same way twice.
struct Work {
    bench: Bench,
    rng: Rng,
    joins: u64,
}

impl Work {
    fn new(seed: u64, options: Options) -> Work {
        Work {
            bench: Bench::ready_with(options),
            rng: Rng(seed),
            joins: 1,
        }
    }

    fn write(&mut self) {
        let together = [1, 1, 1, 3, 8][self.rng.below(5) as usize];
        let writes: Vec<_> = (0..together).map(|_| self.draw_write()).collect();
        for reply in self.bench.write_all(&writes) {
            assert!(
                matches!(reply, Reply::WRITTEN | Reply::Refused(Refusal::Full { .. })),
                "{reply:?}"
            );
        }
    }

    fn draw_write(&mut self) -> (u64, u32, bool) {
        let count = 1 + self.rng.below(6) as u32;
        let hot = self.rng.below(3) > 0;
        let first = self.rng.below(if hot { 24 } else { 240 });
        let zero = self.rng.below(6) == 0;
        // Often on behind the last one, as files are written.
        (first, count, zero)
    }

    fn step_with_crashes(&mut self, rng: &mut Rng) {
        let before = self.bench.oracle.clone();
        self.bench.media.watch_syncs();
        self.step();
        let moments = self.bench.media.moments();
        let during = Oracle {
            flushed: before.flushed,
            sealed: before.sealed,
            ..self.bench.oracle.clone()
        };
        // A few of them are enough: there are many steps.
        for media in &moments {
            if rng.below(3) == 0 {
                every_crash(media, &self.bench.options, &during, rng, (3, 2));
            }
        }
        let bench = &self.bench;
        every_crash(&bench.media, &bench.options, &bench.oracle, rng, (3, 3));
    }

    fn step(&mut self) {
        match self.rng.below(40) {
            0..=24 => self.write(),
            25..=29 => drop(self.bench.flush()),
            30 => self.overlapped_sync(),
            31..=33 => drop(self.bench.store.housekeep()),
            34 => self.overlapped_chore(),
            35 => self.bench.store.start_checkpoint(),
            36 => self.bench.tidy(),
            37 if self.joins < 8 => {
                let epoch = self.next_epoch();
                self.bench.join(0..64, epoch);
                self.joins += 1;
            }
            _ => drop(self.next_epoch()),
        }
    }

    /// Seals the next epoch; on a full disk after the cleaner has been there.
    fn next_epoch(&mut self) -> u64 {
        if self.bench.options.capacity_bytes.is_some() {
            self.bench.flush();
            self.bench.tidy();
        }
        let epoch = self.bench.epoch.as_u64() + 1;
        self.bench.seal(epoch);
        epoch
    }

    /// Writes go on while a sync runs; it covers only what came before.
    fn overlapped_sync(&mut self) {
        let Some(job) = self.bench.store.begin_sync() else {
            return;
        };
        let covered = self.bench.newest();
        for _ in 0..self.rng.below(4) {
            self.write();
        }
        let result = job.run();
        for _ in 0..self.rng.below(3) {
            self.write();
        }
        self.bench.store.finish_sync(job, result);
        self.bench.oracle.flushed = covered;
    }

    /// And while housekeeping waits for the media.
    fn overlapped_chore(&mut self) {
        let Some(chore) = self.bench.store.next_chore() else {
            return;
        };
        // A sync among the chores covers what came before it was begun.
        let before = self.bench.newest();
        let synced = self.bench.store.synced();
        for _ in 0..self.rng.below(4) {
            self.write();
        }
        let outcome = chore.run();
        for _ in 0..self.rng.below(3) {
            self.write();
        }
        self.bench.store.finish_chore(chore, outcome);
        if self.bench.store.synced() > synced {
            self.bench.oracle.flushed = before;
        }
    }

    fn crash(&mut self, kill: bool) {
        let density = [0, 4, 8, 12, 16][self.rng.below(5) as usize];
        let media = self.bench.media.fork();
        if !kill {
            media.crash(|| self.rng.below(16) < density);
        }
        let (options, oracle) = (self.bench.options.clone(), self.bench.oracle.clone());
        if self.rng.below(2) == 0 {
            self.crash_in_recovery(&media, &options, kill);
        }
        let mut bench = Bench::open(media, options, oracle).unwrap();
        bench.check(kill);
        bench.believe();
        bench.check_bounded();
        self.bench = bench;
        self.next_epoch();
    }

    /// The recovery is cut short, somewhere; what it did not sync may be lost or not.
    fn crash_in_recovery(&mut self, media: &SimMedia, options: &Options, kill: bool) {
        media.tear_after(self.rng.below(200));
        if self.rng.below(3) == 0 {
            media.fail_syncs(!kill);
        }
        let opened = Store::open(media.clone(), options.clone(), BootId(media.boot()));
        drop(opened);
        match kill {
            true => media.kill(),
            false => media.crash(|| self.rng.below(2) == 0),
        }
    }
}

fn run(seed: u64, steps: u32, options: Options) {
    let mut work = Work::new(seed, options);
    for _ in 0..steps {
        if work.rng.below(4) == 0 {
            let mut rng = Rng(work.rng.next());
            work.step_with_crashes(&mut rng);
        } else {
            work.step();
        }
        match work.rng.below(60) {
            0 => work.crash(false),
            1 => work.crash(true),
            2 => {
                work.bench.check(true);
                work.bench.check_bounded();
            }
            _ => {}
        }
    }
    work.bench.check(true);
    work.bench.check_bounded();
}

#[test]
fn random_workloads_with_crashes_everywhere() {
    let seeds = std::env::var("UKAI_STORE_SEEDS").map_or(30, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let caught = std::panic::catch_unwind(|| run(seed, 220, Options::tiny()));
        assert!(caught.is_ok(), "seed {seed}");
    }
}

#[test]
fn random_workloads_on_a_small_disk_that_fills_up() {
    for seed in 1000..1015 {
        let options = Options {
            capacity_bytes: Some(640 << 10),
            ..Options::tiny()
        };
        let caught = std::panic::catch_unwind(|| run(seed, 200, options));
        assert!(caught.is_ok(), "seed {seed}");
    }
}

/// Found by a seed of the simulation: a disk that was full twice while a checkpoint was written.
#[test]
fn a_file_that_is_written_whole_is_never_one_that_was_begun_before() {
    let media = SimMedia::new();
    let write = |content: &[u8]| write_whole(&media, "file", content);
    write(b"old").unwrap();
    media.sync_dir().unwrap();
    for _ in 0..2 {
        media.tear_after(1);
        assert!(write(b"begun").is_err());
        media.kill();
    }
    write(b"new").unwrap();
    let unsynced = media.unsynced().len();
    let mut seen = BTreeSet::new();
    for subset in 0..1_u64 << unsynced {
        let (media, mut bits) = (media.fork(), subset);
        media.crash(|| {
            let survives = bits & 1 == 1;
            bits >>= 1;
            survives
        });
        seen.insert(media.content("file"));
    }
    assert_eq!(seen, [b"old".to_vec(), b"new".to_vec()].into());
}
