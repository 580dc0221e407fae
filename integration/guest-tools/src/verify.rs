//! The verifying writer: every block says which write it is, so that a lost, stale, misplaced or torn
//! one shows by itself, while the device is being hurt and after it.
//!
//! Thread `t` owns the blocks whose number is `t` modulo the number of threads. Its write number `k`
//! goes to the block that (seed, t, k) names: a checker that was not there can say which write each
//! block must hold at least. It flushes each so many writes, and prints
//! `flushed thread=T seq=K` only after the flush came back.

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Result;
use crate::device::{Aligned, Device};
use crate::pattern::{hash, mix, stream};
use crate::ticks::{Doing, Ticks};

const BLOCK: usize = 4096;
const MAGIC: u64 = 0x756b_6169_2d76_6572;
/// Progress lines are for the host's eyes and for what it must find again; a serial port is slow.
const REPORT_EVERY: Duration = Duration::from_millis(250);

pub struct Region {
    pub offset: u64,
    pub blocks: u64,
    pub threads: u64,
    pub seed: u64,
}

pub struct Habits {
    pub flush_every: u64,
    /// The port where the host hears of each operation.
    pub ticks: Option<u64>,
}

impl Region {
    /// The block that write `sequence` of `thread` goes to, as a number within the region.
    fn block_of(&self, thread: u64, sequence: u64) -> u64 {
        let own = (self.blocks - thread).div_ceil(self.threads);
        thread + self.threads * (mix(self.seed ^ mix(thread) ^ mix(sequence)) % own)
    }

    fn place(&self, block: u64) -> u64 {
        self.offset + block * BLOCK as u64
    }
}

#[derive(Default, Clone, Copy)]
struct Totals {
    writes: u64,
    flushes: u64,
    reads: u64,
    longest_ms: u128,
}

/// Runs until stdin ends; then flushes, reads every block back and prints the totals.
pub fn write(path: &str, region: &Region, habits: &Habits) -> Result<()> {
    if habits.flush_every == 0 {
        return Err("--flush-every must be at least 1".to_owned());
    }
    let device = Device::open(path)?;
    let stop = AtomicBool::new(false);
    let printing = Mutex::new(());
    println!("started");
    let results: Vec<Result<Totals>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..region.threads)
            .map(|thread| {
                scope.spawn({
                    let (device, stop, printing) = (&device, &stop, &printing);
                    move || {
                        let result = Ticks::open(habits.ticks, thread).and_then(|ticks| {
                            Thread::new(device, region, thread, ticks).run(
                                habits.flush_every,
                                stop,
                                printing,
                            )
                        });
                        if result.is_err() {
                            stop.store(true, Ordering::Relaxed);
                        }
                        result
                    }
                })
            })
            .collect();
        scope.spawn(|| wait_for_end_of_stdin(&stop));
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    let mut totals = Totals::default();
    for result in results {
        let one = result?;
        totals.writes += one.writes;
        totals.flushes += one.flushes;
        totals.reads += one.reads;
        totals.longest_ms = totals.longest_ms.max(one.longest_ms);
    }
    println!(
        "verified writes={} flushes={} reads={} longest_ms={}",
        totals.writes, totals.flushes, totals.reads, totals.longest_ms
    );
    Ok(())
}

/// Polls, so that a thread's error ends the program although nobody closes stdin.
fn wait_for_end_of_stdin(stop: &AtomicBool) {
    let mut poll = libc::pollfd {
        fd: 0,
        events: libc::POLLIN,
        revents: 0,
    };
    while !stop.load(Ordering::Relaxed) {
        // SAFETY: one initialised pollfd, alive during the call.
        let ready = unsafe { libc::poll(&mut poll, 1, 200) };
        if ready > 0 && matches!(std::io::stdin().read(&mut [0; 256]), Ok(0) | Err(_)) {
            stop.store(true, Ordering::Relaxed);
        }
    }
}

struct Thread<'a> {
    device: &'a Device,
    region: &'a Region,
    thread: u64,
    /// The last acknowledged write of each block of the region (0: none; sequences begin at 1).
    newest: Vec<u64>,
    totals: Totals,
    buffer: Aligned,
    ticks: Ticks,
}

impl<'a> Thread<'a> {
    fn new(device: &'a Device, region: &'a Region, thread: u64, ticks: Ticks) -> Thread<'a> {
        Thread {
            device,
            region,
            thread,
            newest: vec![0; region.blocks as usize],
            totals: Totals::default(),
            buffer: Aligned::new(BLOCK),
            ticks,
        }
    }

    fn run(mut self, flush_every: u64, stop: &AtomicBool, printing: &Mutex<()>) -> Result<Totals> {
        let mut reported: Option<Instant> = None;
        let mut sequence = 0;
        while !stop.load(Ordering::Relaxed) {
            sequence += 1;
            self.write_one(sequence)?;
            // Now and then an older block is read again: a replayed request would have put it back.
            if sequence % 4 == 0 {
                let earlier = 1 + mix(sequence) % sequence;
                self.read_one(self.region.block_of(self.thread, earlier))?;
            }
            if sequence % flush_every == 0 {
                self.timed(Doing::Flush, |device, _| device.flush())?;
                self.totals.flushes += 1;
                if reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
                    reported = Some(Instant::now());
                    let _line = printing.lock().expect("no panic while printing");
                    println!("flushed thread={} seq={sequence}", self.thread);
                }
            }
        }
        self.timed(Doing::Flush, |device, _| device.flush())?;
        for block in (self.thread..self.region.blocks).step_by(self.region.threads as usize) {
            if self.newest[block as usize] != 0 {
                self.read_one(block)?;
            }
        }
        Ok(self.totals)
    }

    fn write_one(&mut self, sequence: u64) -> Result<()> {
        let block = self.region.block_of(self.thread, sequence);
        stamp(&mut self.buffer, self.region.seed, block, sequence);
        let place = self.region.place(block);
        self.timed(Doing::Write, |device, buffer| device.write(buffer, place))?;
        self.newest[block as usize] = sequence;
        self.totals.writes += 1;
        Ok(())
    }

    fn read_one(&mut self, block: u64) -> Result<()> {
        let place = self.region.place(block);
        self.timed(Doing::Read, |device, buffer| device.read(buffer, place))?;
        self.totals.reads += 1;
        let expected = self.newest[block as usize];
        match stamped(&self.buffer, self.region.seed, block) {
            Some(found) if found == expected => Ok(()),
            Some(found) => Err(format!("block {block} holds write {found}, not {expected}")),
            None => Err(format!(
                "block {block} is damaged; it must hold write {expected}"
            )),
        }
    }

    fn timed(
        &mut self,
        doing: Doing,
        work: impl FnOnce(&Device, &mut Aligned) -> Result<()>,
    ) -> Result<()> {
        let begun = Instant::now();
        self.ticks.begins(doing);
        let result = work(self.device, &mut self.buffer);
        // What failed was not done: it has no end.
        if result.is_ok() {
            self.ticks.ends(doing);
        }
        self.totals.longest_ms = self.totals.longest_ms.max(begun.elapsed().as_millis());
        result.map_err(|error| format!("{error} (after {} ms)", begun.elapsed().as_millis()))
    }
}

/// After a crash of the guest: each block must hold at least the last write of it that was flushed,
/// and a block that no write was ever meant for must be all zero.
pub fn check(path: &str, region: &Region, flushed: &[u64]) -> Result<()> {
    if flushed.len() as u64 != region.threads {
        return Err("--flushed needs one number for each thread".to_owned());
    }
    let device = Device::open(path)?;
    let mut buffer = Aligned::new(BLOCK);
    let (mut checked, mut newer) = (0, 0);
    for (thread, &flushed) in flushed.iter().enumerate() {
        let thread = thread as u64;
        let mut least = vec![0; region.blocks as usize];
        for sequence in 1..=flushed {
            least[region.block_of(thread, sequence) as usize] = sequence;
        }
        for block in (thread..region.blocks).step_by(region.threads as usize) {
            device.read(&mut buffer, region.place(block))?;
            let least = least[block as usize];
            let found = if buffer.iter().all(|&byte| byte == 0) {
                0
            } else {
                stamped(&buffer, region.seed, block)
                    .ok_or_else(|| format!("block {block} is damaged"))?
            };
            if found < least {
                return Err(format!(
                    "block {block} holds write {found}; {least} was flushed"
                ));
            }
            if found != 0 && region.block_of(thread, found) != block {
                return Err(format!(
                    "block {block} holds write {found} of another block"
                ));
            }
            checked += 1;
            newer += u64::from(found > flushed);
        }
    }
    println!("checked blocks={checked} newer_than_flushed={newer}");
    Ok(())
}

/// `[magic][block][sequence][hash of all else] [stream of (seed, block, sequence)]`
fn stamp(buffer: &mut [u8], seed: u64, block: u64, sequence: u64) {
    stream(mix(seed ^ mix(block)) ^ sequence, &mut buffer[32..]);
    buffer[..8].copy_from_slice(&MAGIC.to_le_bytes());
    buffer[8..16].copy_from_slice(&block.to_le_bytes());
    buffer[16..24].copy_from_slice(&sequence.to_le_bytes());
    buffer[24..32].copy_from_slice(&[0; 8]);
    let sum = hash(buffer);
    buffer[24..32].copy_from_slice(&sum.to_le_bytes());
}

/// The sequence of an intact block that belongs at `block`. The hash covers the data, and the data is
/// made again: a block torn between two writes of ours cannot pass.
fn stamped(buffer: &[u8], seed: u64, block: u64) -> Option<u64> {
    let word = |at: usize| u64::from_le_bytes(buffer[at..at + 8].try_into().expect("8 bytes"));
    let sequence = word(16);
    let mut expected = vec![0; buffer.len()];
    stamp(&mut expected, seed, block, sequence);
    (word(0) == MAGIC && expected == buffer).then_some(sequence)
}
