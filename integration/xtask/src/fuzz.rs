//! libFuzzer over the decoders of foreign bytes, with the stable compiler and no tool to install.
//!
//! `integration/fuzz` is built with the same LLVM pass that cargo-fuzz asks for. Naming the target
//! triple keeps build scripts and procedural macros out of it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::run::{self, Program};
use crate::setup;
use crate::workspace::Workspace;

struct Target {
    name: &'static str,
    /// Long enough to reach everything: a guest's available ring stands at 4 KiB of its memory.
    input_bytes_max: u32,
}

const TARGETS: [Target; 8] = [
    Target {
        name: "wire",
        input_bytes_max: 16 << 10,
    },
    Target {
        name: "descriptors",
        input_bytes_max: (64 << 10) + 1,
    },
    Target {
        name: "recovery",
        input_bytes_max: 64 << 10,
    },
    Target {
        name: "grants",
        input_bytes_max: 8 << 10,
    },
    Target {
        name: "policy",
        input_bytes_max: 16 << 10,
    },
    Target {
        name: "api",
        input_bytes_max: 8 << 10,
    },
    Target {
        name: "node_protocol",
        input_bytes_max: 16 << 10,
    },
    Target {
        name: "settings",
        input_bytes_max: 4 << 10,
    },
];
/// The last round may come to a little more than is left.
const SHORTEST_ROUND: u64 = 10;
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const INSTRUMENTED: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing";
/// However busy the machine is with other things.
const ROUNDS: u32 = 100;
/// A single input must not take longer than this: an endless loop is a finding.
const INPUT_SECONDS: u64 = 10;
const MEMORY_MIB: u64 = 1024;

pub fn run(
    workspace: &Workspace,
    seconds: u64,
    target: Option<&str>,
    minimise: bool,
) -> Result<()> {
    let targets: Vec<&Target> = TARGETS
        .iter()
        .filter(|known| target.is_none_or(|name| name == known.name))
        .collect();
    if targets.is_empty() {
        bail!(
            "no such fuzz target; there are {}",
            TARGETS.map(|known| known.name).join(", ")
        );
    }
    setup::cxx()?;
    let home = workspace.root.join("integration/fuzz");
    let build_dir = workspace.target.join("fuzz");
    let build = workspace
        .cargo("build")
        .args(["--release", "--target", TRIPLE])
        .directory(&home)
        .env("CARGO_TARGET_DIR", &build_dir)
        .env("RUSTFLAGS", INSTRUMENTED);
    run::inherit(build, Duration::from_secs(1800))?;
    for &Target {
        name: target,
        input_bytes_max,
    } in targets
    {
        let fuzzer = build_dir.join(TRIPLE).join("release").join(target);
        let kept = home.join("corpus").join(target);
        let grown = workspace.cache.join("fuzz").join(target);
        let findings = workspace
            .cache
            .join("fuzz")
            .join(format!("{target}-findings"));
        for directory in [&kept, &grown, &findings] {
            fs::create_dir_all(directory)?;
        }
        println!(
            "..           {target}: {seconds} s of processor time, findings go to {}",
            findings.display()
        );
        let mut worked = Duration::ZERO;
        let mut rounds = 0;
        // What a busy machine does not give it in one round it gets in the next.
        while worked.as_secs() < seconds && rounds < ROUNDS {
            let left = (seconds - worked.as_secs()).max(SHORTEST_ROUND);
            let before = processor_time_of_children()?;
            let fuzz = fuzzing(&fuzzer, left, input_bytes_max)
                .arg(format!("-artifact_prefix={}/", findings.display()))
                // New inputs go to the first directory; the kept ones are only read.
                .arg(&grown)
                .arg(&kept);
            run::inherit(fuzz, Duration::from_secs(left + 120))
                .with_context(|| format!("{target}: a finding is in {}", findings.display()))?;
            worked += processor_time_of_children()? - before;
            rounds += 1;
        }
        if minimise {
            keep_smallest(&fuzzer, &kept, &grown)?;
        }
        println!(
            "ok           {target}: {} s of processor time",
            worked.as_secs()
        );
    }
    Ok(())
}

fn fuzzing(fuzzer: &Path, seconds: u64, input_bytes_max: u32) -> Program {
    Program::new(fuzzer)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={input_bytes_max}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .args(["-print_final_stats=1", "-use_value_profile=1"])
}

/// Of all that have ended.
fn processor_time_of_children() -> Result<Duration> {
    // SAFETY: an all-zero rusage is valid, and getrusage writes only to it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        usage
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}

/// The fewest inputs that reach what all of them reach, however often they pass by.
fn keep_smallest(fuzzer: &Path, kept: &Path, grown: &Path) -> Result<()> {
    let smallest = kept.with_extension("new");
    let _ = fs::remove_dir_all(&smallest);
    fs::create_dir_all(&smallest)?;
    let merge = Program::new(fuzzer)
        .args(["-set_cover_merge=1", "-use_counters=0"])
        .args([&smallest, &kept.to_owned(), &grown.to_owned()]);
    run::inherit(merge, Duration::from_secs(600))?;
    fs::remove_dir_all(kept)?;
    fs::rename(&smallest, kept).context("keep the smallest corpus")
}
