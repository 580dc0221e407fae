//! One load on one side, for a time: what it reached and what it cost.
//!
//! ```text
//!  driving threads, one a queue:   warm up ────────── measured ──────────── stop
//!  the caller's thread:                    cost(side)              cost(side)
//! ```

use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::cost;
use super::front_end::{FrontEnd, Queue, Request};
use super::load::{Doing, Load, Places, Time};
use super::statistics::Sample;

/// A request that takes longer than this never ends.
const STUCK: Duration = Duration::from_secs(60);

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// What is loaded: a disk's socket, the part of it that is used, and who serves it.
pub struct Target<'a> {
    pub socket: &'a Path,
    pub bytes: u64,
    pub pids: &'a [u32],
}

/// Runs the load; what was written is flushed afterwards, which is not measured.
pub fn measure(target: &Target, load: &Load, time: Time, seed: u64) -> Result<Sample> {
    let slot_bytes = load.bytes as usize;
    let queues = usize::from(load.queues);
    let mut front_end = FrontEnd::connect(target.socket, queues, load.depth, slot_bytes)?;
    let disk = front_end.bytes()?.min(target.bytes);
    let watchdog = front_end.watchdog();
    let phase = AtomicU8::new(if time.warm_up.is_zero() {
        MEASURING
    } else {
        WARMING
    });
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let (ended, endings) = mpsc::channel();
        for (index, queue) in front_end.queues().iter_mut().enumerate() {
            let (ended, phase) = (ended.clone(), &phase);
            scope.spawn(move || {
                let places = Places::new(load, disk, index as u16, seed);
                let driven = drive(queue, load, places, phase, begun);
                // The caller may have given up.
                let _ = ended.send(driven);
            });
        }
        drop(ended);
        let result = watch(target, load, time, &phase, &endings);
        phase.store(OVER, Ordering::Release);
        if result.is_err() {
            watchdog.abandon();
        }
        result
    })
}

fn watch(
    target: &Target,
    load: &Load,
    time: Time,
    phase: &AtomicU8,
    endings: &mpsc::Receiver<Result<Driven>>,
) -> Result<Sample> {
    let mut driven = Vec::new();
    // Threads end early if they fail, or if they have been everywhere.
    let mut until = |bound: Duration, wanted: usize| -> Result<bool> {
        let deadline = Instant::now() + bound;
        while driven.len() < wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            match endings.recv_timeout(left) {
                Ok(one) => driven.push(one?),
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(false),
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("a driving thread panicked"),
            }
        }
        Ok(true)
    };
    let queues = usize::from(load.queues);
    until(time.warm_up, 1)?;
    let before = Cost::of(target)?;
    phase.store(MEASURING, Ordering::Release);
    // With several queues the load is over when the first is.
    until(time.measured, 1)?;
    let after = Cost::of(target)?;
    phase.store(OVER, Ordering::Release);
    if !until(STUCK, queues)? {
        return Err(anyhow!(
            "requests are not answered for {} s",
            STUCK.as_secs()
        ));
    }
    let mut sample = Sample {
        operations: 0,
        seconds: (after.at - before.at).as_secs_f64(),
        bytes: 0,
        latencies_ns: Vec::new(),
        servers_cpu_ns: after.servers_ns - before.servers_ns,
        front_end_cpu_ns: after.own_ns - before.own_ns,
        server_sleeps: after.sleeps.saturating_sub(before.sleeps),
    };
    for one in driven {
        sample.operations += one.latencies_ns.len() as u64;
        sample.latencies_ns.extend(one.latencies_ns);
    }
    sample.bytes = sample.operations * u64::from(load.bytes);
    Ok(sample)
}

struct Cost {
    at: Instant,
    servers_ns: u64,
    own_ns: u64,
    sleeps: u64,
}

impl Cost {
    fn of(target: &Target) -> Result<Cost> {
        let sleeps = cost::sleeps(target.pids);
        Ok(Cost {
            servers_ns: cost::cpu_ns(target.pids)?,
            own_ns: cost::own_cpu_ns()?,
            sleeps,
            at: Instant::now(),
        })
    }
}

#[derive(Default)]
struct Driven {
    /// Of what ended while it was measured.
    latencies_ns: Vec<u32>,
}

/// An operation under way in a slot.
#[derive(Clone, Copy)]
struct Operation {
    began: Instant,
    flush_follows: bool,
}

fn drive(
    queue: &mut Queue,
    load: &Load,
    mut places: Places,
    phase: &AtomicU8,
    begun: Instant,
) -> Result<Driven> {
    let mut driven = Driven {
        latencies_ns: Vec::with_capacity(1 << 20),
    };
    fill(queue, load.depth);
    let mut stamp = 0_u64;
    let mut operations = vec![
        Operation {
            began: begun,
            flush_follows: false,
        };
        usize::from(load.depth)
    ];
    let mut free: Vec<u16> = (0..load.depth).rev().collect();
    let (mut done, mut busy, mut over) = (Vec::new(), 0, false);
    loop {
        over |= phase.load(Ordering::Acquire) == OVER;
        while !over && let Some(slot) = free.pop() {
            let Some(request) = places.request(load.doing) else {
                over = true;
                break;
            };
            if matches!(request, Request::Write { .. }) {
                // No two writes are alike.
                stamp += 1;
                queue.buffer(slot)[..8].copy_from_slice(&stamp.to_ne_bytes());
            }
            operations[usize::from(slot)] = Operation {
                began: Instant::now(),
                flush_follows: load.doing == Doing::WriteAndFlush,
            };
            queue.submit(slot, request)?;
            busy += 1;
        }
        if busy == 0 {
            break;
        }
        queue.announce()?;
        queue.wait(&mut done)?;
        let now = Instant::now();
        let measuring = phase.load(Ordering::Acquire) == MEASURING;
        for slot in done.drain(..) {
            let operation = &mut operations[usize::from(slot)];
            if std::mem::take(&mut operation.flush_follows) {
                queue.submit(slot, Request::Flush)?;
                continue;
            }
            if measuring {
                let took = now.duration_since(operation.began).as_nanos();
                driven
                    .latencies_ns
                    .push(u32::try_from(took).unwrap_or(u32::MAX));
            }
            busy -= 1;
            free.push(slot);
        }
    }
    if load.writes() {
        // The next run shall not pay for what this one left in caches.
        queue.submit(0, Request::Flush)?;
        queue.announce()?;
        queue.wait(&mut done)?;
    }
    Ok(driven)
}

/// Data that nobody can compress.
fn fill(queue: &mut Queue, slots: u16) {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for slot in 0..slots {
        random.fill_bytes(queue.buffer(slot));
    }
}
