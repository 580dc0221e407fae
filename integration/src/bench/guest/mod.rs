//! A real guest on a disk of each kind, and what its programs get of it: `cargo xtask bench --guest`.
//!
//! ```text
//!  guest: Bonnie++, PostMark ── ext4 ── virtio-blk ──┬─ QEMU ── file                       the local one
//!                                                    ├─ vhost-user ── ukai node (── QUIC ── ukai node)
//!                                                    └─ QEMU ── NBD, iSCSI, NFS ── server ── file
//! ```
//! - [`ways`]: who serves the disk; [`nfs`]: one of them, and what it wants of its surroundings.
//! - [`programs`]: what is run in the guest, and what it says.
//! - [`table`]: the figures for people and machines.
//!
//! Rounds: in each one every way has a freshly booted guest and a new file system, one way after the other.
//! A way that cannot be had on this machine is left out, and the others go on.

pub mod nfs;
pub mod programs;
pub mod table;
pub mod ways;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::cost;
use super::side::Stage;
use crate::guest::kit::Kit;
use crate::guest::{Guest, GuestConfig};
use programs::{Bonnie, PostMark, Sequential, SmallFiles};
use ways::{Served, Way, Ways};

/// Small, so that files twice as large do not live in its cache; Linux and the programs' files take 50 of it.
const MEMORY_MIB: u32 = 128;
const DIRECTORY: &str = "/mnt";
/// Bonnie++ looks its user up. Neither discards nor work that ext4 leaves for later: everybody writes over what is
/// there, and nothing goes on behind the programs.
const MAKE_FILE_SYSTEM: &str = "echo root:x:0:0::/:/bin/sh > /etc/passwd && echo root:x:0: > /etc/group && \
     mkfs.ext4 -q -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/vda && \
     mount /dev/vda /mnt && sync";
/// As it is on the disk, not as the guest remembers it.
const CHECK_FILE_SYSTEM: &str =
    "umount /mnt && echo 3 > /proc/sys/vm/drop_caches && e2fsck -f -n /dev/vda";
/// Each of the guest's steps, on a slow way of a busy machine.
const BOUND: Duration = Duration::from_secs(300);

pub struct Plan {
    pub rounds: usize,
    /// Bonnie++'s file.
    pub file_mib: u32,
    /// PostMark's.
    pub transactions: u32,
}

impl Plan {
    pub const FULL: Plan = Plan {
        rounds: 3,
        file_mib: 512,
        transactions: 10_000,
    };
    pub const QUICK: Plan = Plan {
        rounds: 1,
        file_mib: 256,
        transactions: 2000,
    };

    /// How it was, for whoever reads the figures.
    pub fn words(&self) -> String {
        format!(
            "Guests of {MEMORY_MIB} MiB under TCG; Bonnie++ with a file of {} MiB, PostMark with {} transactions; \
             medians of {} rounds.",
            self.file_mib, self.transactions, self.rounds
        )
    }
}

/// One guest's figures.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub sequential: Sequential,
    pub small_files: SmallFiles,
    /// Of all that serves the disk: its servers, and QEMU but for the thread that runs the guest.
    pub cpu_s: f64,
}

/// A way's figures, round by round; or why there are none.
pub struct Measured {
    pub way: Way,
    pub rounds: std::result::Result<Vec<Figures>, String>,
}

/// `only`: these ways, by their short names, and the local disk, with which they are compared; empty: all.
pub fn measure(stage: &mut Stage, plan: &Plan, only: &[String]) -> Result<Vec<Measured>> {
    Kit::with_benchmarks()?;
    let wanted = ways::wanted(only)?.into_iter();
    let mut all: Vec<Measured> = wanted.map(Measured::nothing_yet).collect();
    let mut ways = Ways::new(stage);
    for round in 1..=plan.rounds {
        for measured in &mut all {
            let Ok(figures) = &mut measured.rounds else {
                continue;
            };
            let way = measured.way;
            let what = format!("round {round} of {}, {}", plan.rounds, way.name());
            match one(&mut ways, way, plan, &what) {
                Ok(found) => figures.push(found),
                Err(why) if way.may_be_missing() => {
                    let why = format!("{why:#}");
                    eprintln!("--           {}: not here: {why}", way.name());
                    measured.rounds = Err(why);
                }
                Err(error) => return Err(error).context(what),
            }
        }
    }
    Ok(all)
}

fn one(ways: &mut Ways, way: Way, plan: &Plan, what: &str) -> Result<Figures> {
    ways.start(way)?;
    eprintln!("..           {what}");
    let begun = Instant::now();
    let found = in_guest(ways, way, plan)?;
    eprintln!(
        "ok   {:>6.1}s {what}: {}",
        begun.elapsed().as_secs_f64(),
        table::line(&found)
    );
    Ok(found)
}

/// Boots a guest, makes a file system, runs both programs, and looks whether the file system is whole.
fn in_guest(ways: &Ways, way: Way, plan: &Plan) -> Result<Figures> {
    let served = ways.served(way)?;
    let config = GuestConfig {
        memory_mib: MEMORY_MIB,
        benchmarks: true,
        network: served.network.clone(),
        ..GuestConfig::on(served.disk.clone())
    };
    let scratch = ways.scratch();
    let log = scratch.log(&format!("guest-{}", way.short()));
    let mut guest = Guest::boot("guest", &config, scratch.data(), &log)?;
    guest.must(MAKE_FILE_SYSTEM, BOUND)?;
    let before = serving_cpu_s(&mut guest, served)?;
    let (sequential, small_files) = run_programs(&mut guest, plan)?;
    let cpu_s = serving_cpu_s(&mut guest, served)? - before;
    guest
        .must(CHECK_FILE_SYSTEM, BOUND)
        .with_context(|| format!("{} has damaged the file system", way.name()))?;
    guest.shutdown()?;
    Ok(Figures {
        sequential,
        small_files,
        cpu_s,
    })
}

/// One after the other, with nothing of the first left in the guest's memory.
fn run_programs(guest: &mut Guest, plan: &Plan) -> Result<(Sequential, SmallFiles)> {
    let bonnie = Bonnie {
        memory_mib: MEMORY_MIB,
        file_mib: plan.file_mib,
    };
    let postmark = PostMark {
        transactions: plan.transactions,
    };
    let said = guest.must(&bonnie.command(DIRECTORY), BOUND)?;
    let sequential = programs::read_bonnie(&said)?;
    guest.must("sync; echo 3 > /proc/sys/vm/drop_caches", BOUND)?;
    let said = guest.must(&postmark.command(DIRECTORY), BOUND)?;
    let small_files = postmark.read(&said)?;
    guest.must("sync", BOUND)?;
    Ok((sequential, small_files))
}

/// CPU time of the way's servers and of QEMU, without the threads that are the guest's processors.
fn serving_cpu_s(guest: &mut Guest, served: &Served) -> Result<f64> {
    let processors = guest.qmp("query-cpus-fast", json!({}))?;
    let processors = processors.as_array().context("a list of processors")?;
    let qemu = guest.pid();
    let mut guests_own = 0.0;
    for processor in processors {
        let thread = processor["thread-id"].as_u64().context("its thread")?;
        guests_own += cost::thread_cpu_s(qemu, thread as u32)?;
    }
    ensure!(!processors.is_empty(), "a guest without processors");
    let servers = cost::cpu_ns(&served.pids)?;
    let all = (servers + cost::cpu_ns(&[qemu])?) as f64 / 1e9;
    Ok(all - guests_own)
}

impl Measured {
    fn nothing_yet(way: Way) -> Measured {
        Measured {
            way,
            rounds: Ok(Vec::new()),
        }
    }
}

/// The same for who cannot go on without it.
pub fn local(all: &[Measured]) -> Result<&[Figures]> {
    match all.iter().find(|measured| measured.way == Way::Local) {
        Some(Measured {
            rounds: Ok(rounds), ..
        }) if !rounds.is_empty() => Ok(rounds),
        _ => bail!("nothing was measured of the local disk"),
    }
}
