//! One load on one side, for a time: what it reached and what it cost.
//!
//! ```text
//!  driving threads, one a queue:   warm up ────────── measured ──────────── stop
//!  the caller's thread:                    cost(side)              cost(side)
//! ```

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::cost;
use super::front_end::{FrontEnd, Queue, Request, Watchdog};
use super::load::{BLOCK, Data, Doing, Load, Order, Places, Time};
use super::statistics::Sample;

/// A request that takes longer than this never ends.
const STUCK: Duration = Duration::from_secs(60);

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// What is loaded: disks by their sockets, the part of each that is used, and who serves them.
pub struct Target<'a> {
    pub sockets: &'a [PathBuf],
    pub bytes: u64,
    pub pids: &'a [u32],
}

/// Runs the load; what was written is flushed afterwards, which is not measured.
pub fn measure(target: &Target, load: &Load, time: Time, seed: u64) -> Result<Sample> {
    let connect = |socket: &PathBuf| {
        let queues = usize::from(load.queues);
        FrontEnd::connect(socket, queues, load.depth, load.bytes as usize)
    };
    let front_ends = target.sockets.iter().map(connect);
    let mut front_ends = front_ends.collect::<Result<Vec<_>>>()?;
    let watchdogs: Vec<_> = front_ends.iter().map(FrontEnd::watchdog).collect();
    let bytes = target.bytes.min(front_ends[0].bytes()?);
    let phase = AtomicU8::new(match time.warm_up.is_zero() {
        true => MEASURING,
        false => WARMING,
    });
    let drivers = front_ends.len() * usize::from(load.queues);
    let clock = Clock::new(load, drivers);
    std::thread::scope(|scope| {
        let (ended, endings) = mpsc::channel();
        let queues = front_ends.iter_mut().flat_map(|front_end| {
            let queues = front_end.queues().iter_mut();
            queues.enumerate()
        });
        for (driver, (index, queue)) in queues.enumerate() {
            let (ended, phase, pace) = (ended.clone(), &phase, clock.pace(driver));
            scope.spawn(move || {
                let places = Places::new(load, bytes, index as u16, seed + driver as u64);
                let driven = drive(queue, load, places, phase, pace);
                // The caller may have given up.
                let _ = ended.send(driven);
            });
        }
        drop(ended);
        let result = watch(target, load, time, &phase, &endings, drivers);
        phase.store(OVER, Ordering::Release);
        if result.is_err() {
            watchdogs.iter().for_each(Watchdog::abandon);
        }
        result
    })
}

/// When operations are due, of all that drive.
struct Clock {
    begun: Instant,
    between: Option<Duration>,
    drivers: u32,
}

impl Clock {
    fn new(load: &Load, drivers: usize) -> Clock {
        Clock {
            begun: Instant::now(),
            between: load.rate.map(|rate| Duration::from_secs(1) / rate),
            drivers: drivers as u32,
        }
    }

    /// Of one of them: by turns with the others.
    fn pace(&self, driver: usize) -> Option<Pace> {
        self.between.map(|between| Pace {
            due: self.begun + between * driver as u32,
            between: between * self.drivers,
        })
    }
}

struct Pace {
    due: Instant,
    between: Duration,
}

fn watch(
    target: &Target,
    load: &Load,
    time: Time,
    phase: &AtomicU8,
    endings: &mpsc::Receiver<Result<Driven>>,
    drivers: usize,
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
    until(time.warm_up, 1)?;
    let before = Cost::of(target)?;
    phase.store(MEASURING, Ordering::Release);
    // A disk is full when all of it is; other loads are over when they are not whole any more.
    let whole = match load.order {
        Order::Through => drivers,
        _ => 1,
    };
    until(time.measured, whole)?;
    let after = Cost::of(target)?;
    phase.store(OVER, Ordering::Release);
    if !until(STUCK, drivers)? {
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
    mut pace: Option<Pace>,
) -> Result<Driven> {
    let mut driven = Driven {
        latencies_ns: Vec::with_capacity(1 << 20),
    };
    fill(queue, load);
    if pace.is_some() {
        // SAFETY: a plain system call about the calling thread: it wakes up when it said, not 50 us later.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    }
    let mut stamp = 0_u64;
    let mut operations = vec![
        Operation {
            began: Instant::now(),
            flush_follows: false,
        };
        usize::from(load.depth)
    ];
    let mut free: Vec<u16> = (0..load.depth).rev().collect();
    let (mut done, mut busy, mut over) = (Vec::new(), 0, false);
    loop {
        over |= phase.load(Ordering::Acquire) == OVER;
        while !over
            && is_due(&pace)
            && let Some(slot) = free.pop()
        {
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
                began: match &mut pace {
                    None => Instant::now(),
                    Some(pace) => {
                        pace.due += pace.between;
                        pace.due - pace.between
                    }
                },
                flush_follows: load.doing == Doing::WriteAndFlush,
            };
            queue.submit(slot, request)?;
            busy += 1;
        }
        if busy == 0 && over {
            break;
        }
        queue.announce()?;
        let next = pace.as_ref().filter(|_| !over && !free.is_empty());
        queue.wait_until(&mut done, next.map(|pace| pace.due))?;
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

fn is_due(pace: &Option<Pace>) -> bool {
    pace.as_ref().is_none_or(|pace| Instant::now() >= pace.due)
}

fn fill(queue: &mut Queue, load: &Load) {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for slot in 0..load.depth {
        for block in queue.buffer(slot).chunks_mut(BLOCK as usize) {
            let incompressible = match load.data {
                Data::Random => block.len(),
                Data::Half => block.len() / 2,
            };
            random.fill_bytes(&mut block[..incompressible]);
        }
    }
}
