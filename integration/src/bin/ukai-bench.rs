//! `cargo xtask bench`: ours and peers by turns, behind the same front-end, in one run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use integration::bench::compare::{Compared, compare};
use integration::bench::job::{JOBS, Job};
use integration::bench::load::Time;
use integration::bench::machine::Machine;
use integration::bench::report;
use integration::bench::side::{Kind, Stage};
use integration::guest::kit;

/// Compare Ukai's speed and cost with its peers', in one run.
#[derive(Parser)]
#[command(after_help = "Examples:\n  \
    cargo xtask bench --list\n  \
    cargo xtask bench --quick --only cached-read-1\n  \
    cargo xtask bench --only two-write --json")]
struct Arguments {
    /// Three pairs of short runs on small disks, instead of five
    #[arg(long)]
    quick: bool,
    /// Only this job, or all jobs whose names begin so; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// A line of JSON for each row, instead of tables
    #[arg(long)]
    json: bool,
    /// So many runs of each, by turns
    #[arg(long)]
    pairs: Option<usize>,
    /// Only name the jobs
    #[arg(long)]
    list: bool,
    /// On whose file system stores and files stand
    #[arg(long, value_name = "DIR")]
    on: Option<PathBuf>,
    /// The size of each disk
    #[arg(long)]
    disk_mib: Option<u64>,
    /// The time of each run
    #[arg(long, value_name = "MILLISECONDS")]
    run_ms: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let wanted = |job: &&Job| {
        let mut only = arguments.only.iter();
        arguments.only.is_empty() || only.any(|name| named(job.name, name))
    };
    let jobs: Vec<&Job> = JOBS.iter().filter(wanted).collect();
    ensure!(!jobs.is_empty(), "no job has such a name; see --list");
    if arguments.list {
        for job in jobs {
            println!(
                "{:<22} {}; {}, {}",
                job.name,
                job.what,
                job.ours.name(),
                job.peer.name()
            );
        }
        return Ok(());
    }
    let temporary = std::env::temp_dir();
    let parent: &Path = arguments.on.as_deref().unwrap_or(&temporary);
    let disk_mib = arguments
        .disk_mib
        .unwrap_or(if arguments.quick { 256 } else { 1024 });
    let mut stage = Stage::new(parent, disk_mib << 20)?;
    let machine = Machine::look(parent, &kit::built("ukai", "UKAI_BIN")?);
    if arguments.json {
        println!("{}", serde_json::to_string(&machine)?);
    } else {
        println!("{}\n", machine.text());
    }
    let compared = all(&mut stage, &jobs, arguments);
    if compared.is_err() {
        stage.keep_logs();
    }
    let compared = compared?;
    if !arguments.json {
        println!(
            "\n{}\n{}",
            report::goals(&compared),
            report::figures(&compared)
        );
    }
    Ok(())
}

/// By its name, or, where no job has this name, by how its name begins.
fn named(job: &str, name: &str) -> bool {
    match JOBS.iter().any(|job| job.name == name) {
        true => job == name,
        false => job.starts_with(name),
    }
}

fn all(stage: &mut Stage, jobs: &[&Job], arguments: &Arguments) -> Result<Vec<Compared>> {
    let run_ms = arguments
        .run_ms
        .unwrap_or(if arguments.quick { 500 } else { 2000 });
    let time = Time {
        warm_up: Duration::from_millis(run_ms / 5),
        measured: Duration::from_millis(run_ms),
    };
    let pairs = arguments
        .pairs
        .unwrap_or(if arguments.quick { 3 } else { 5 });
    let mut kinds: Vec<Kind> = jobs.iter().flat_map(|job| [job.ours, job.peer]).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        let begun = Instant::now();
        let verified = stage.verify(kind, if arguments.quick { 10_000 } else { 50_000 })?;
        eprintln!(
            "ok   {:>6.1}s {}: {} writes and {} reads verified",
            begun.elapsed().as_secs_f64(),
            kind.name(),
            verified.writes,
            verified.reads
        );
    }
    let mut compared = Vec::new();
    for job in jobs {
        let begun = Instant::now();
        let one = compare(stage, job, pairs, time)?;
        for (row, line) in one.rows.iter().zip(one.json()) {
            if arguments.json {
                println!("{line}");
                continue;
            }
            println!(
                "{:>6.1}s {:<22} {:<18} {:>9} {:>9}  {:>6.2} ({:.2} to {:.2}) {:<14} {}",
                begun.elapsed().as_secs_f64(),
                one.name,
                row.metric.name(),
                report::number(row.ours),
                report::number(row.peer),
                row.ratio.median,
                row.ratio.least,
                row.ratio.most,
                row.goal.map(|goal| goal.words()).unwrap_or_default(),
                match row.met {
                    Some(true) => "met",
                    Some(false) => "NOT MET",
                    None => "",
                }
            );
        }
        compared.push(one);
    }
    Ok(compared)
}
