//! Direct 512-byte writes next to each other, from several threads at once.
//!
//! Neighbouring sectors belong to different threads, so every 4 KiB block is being written by all of
//! them at the same time: a backend that merges partial writes carelessly loses one of them.

use std::sync::Barrier;

use crate::Result;
use crate::device::{Aligned, Device};
use crate::pattern::stream;

const SECTOR: u64 = 512;

pub struct Plan {
    pub offset: u64,
    pub sectors: u64,
    pub threads: u64,
    pub rounds: u64,
}

pub fn run(path: &str, plan: &Plan) -> Result<()> {
    if plan.threads == 0 || plan.threads > 64 {
        return Err("--threads must be 1 to 64".to_owned());
    }
    let device = Device::open(path)?;
    let barrier = Barrier::new(plan.threads as usize);
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.threads)
            .map(|thread| {
                scope.spawn({
                    let (device, barrier) = (&device, &barrier);
                    move || one_thread(device, plan, thread, barrier)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    results.into_iter().collect::<Result<Vec<()>>>()?;
    let writes = plan.sectors * plan.rounds;
    println!(
        "sectors writes={writes} verified={writes} threads={}",
        plan.threads
    );
    Ok(())
}

/// Everybody reaches every barrier, also after an error: the others would wait for ever.
fn one_thread(device: &Device, plan: &Plan, thread: u64, barrier: &Barrier) -> Result<()> {
    let mut outcome = Ok(());
    for round in 0..plan.rounds {
        if outcome.is_ok() {
            outcome = write_own(device, plan, thread, round);
        }
        barrier.wait();
        if outcome.is_ok() {
            outcome = verify_share(device, plan, thread, round);
        }
        barrier.wait();
    }
    outcome
}

fn write_own(device: &Device, plan: &Plan, thread: u64, round: u64) -> Result<()> {
    let mut sector = Aligned::new(SECTOR as usize);
    for index in (thread..plan.sectors).step_by(plan.threads as usize) {
        stream(stamp(round, index), &mut sector);
        device.write(&sector, plan.offset + index * SECTOR)?;
    }
    Ok(())
}

/// Reads a contiguous share, so that most of what a thread verifies was written by others.
fn verify_share(device: &Device, plan: &Plan, thread: u64, round: u64) -> Result<()> {
    let (mut found, mut expected) = (Aligned::new(SECTOR as usize), vec![0; SECTOR as usize]);
    let share = plan.sectors.div_ceil(plan.threads);
    for index in thread * share..((thread + 1) * share).min(plan.sectors) {
        device.read(&mut found, plan.offset + index * SECTOR)?;
        stream(stamp(round, index), &mut expected);
        if found[..] != expected[..] {
            return Err(format!(
                "sector {index} in round {round} does not hold what was written"
            ));
        }
    }
    Ok(())
}

fn stamp(round: u64, index: u64) -> u64 {
    (round << 40) | index
}
