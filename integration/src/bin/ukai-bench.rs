//! `cargo xtask bench`: ours and peers by turns, behind the same front-end, in one run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use integration::bench::compare::{Compared, compare};
use integration::bench::job::{JOBS, Job, SPECIALS, Special};
use integration::bench::load::Time;
use integration::bench::machine::Machine;
use integration::bench::side::Stage;
use integration::bench::{document, guest, plot, profile, report};
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
    /// Only this job, or all jobs whose names begin so; of guests this way (one, two, far, nbd, iscsi, nfs); may be
    /// repeated
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
    /// Instead: what a request costs by system calls, wake-ups, allocations and functions (wants perf)
    #[arg(long)]
    profile: bool,
    /// Instead: Bonnie++ and PostMark in real guests, on disks that are served in seven ways, three rounds
    #[arg(long, conflicts_with_all = ["profile", "list"])]
    guest: bool,
    /// On whose file system stores and files stand
    #[arg(long, value_name = "DIR")]
    on: Option<PathBuf>,
    /// The size of each disk
    #[arg(long)]
    disk_mib: Option<u64>,
    /// Write the figures into this Markdown file, between its marks
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// Draw the figures into this directory
    #[arg(long, value_name = "DIR")]
    pictures: Option<PathBuf>,
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
    let tasks = tasks(&arguments.only);
    let jobs = !arguments.guest;
    ensure!(
        !jobs || !tasks.is_empty(),
        "no job has such a name; see --list"
    );
    if arguments.list {
        for task in tasks {
            println!("{:<22} {}", task.name(), task.what());
        }
        return Ok(());
    }
    let temporary = std::env::temp_dir();
    let parent: &Path = arguments.on.as_deref().unwrap_or(&temporary);
    let by_default = |quick, otherwise| if arguments.quick { quick } else { otherwise };
    // Of guests the size is what their programs want, also for a short look.
    let quick_mib = if arguments.guest { 1024 } else { 256 };
    let disk_mib = arguments.disk_mib.unwrap_or(by_default(quick_mib, 1024));
    let mut stage = Stage::new(parent, disk_mib << 20, by_default(10_000, 50_000))?;
    let machine = Machine::look(parent, &kit::built("ukai", "UKAI_BIN")?);
    if arguments.json {
        println!("{}", serde_json::to_string(&machine)?);
    } else {
        println!("{}\n", machine.text());
    }
    if arguments.profile {
        return print_profile(&mut stage, arguments);
    }
    if arguments.guest {
        let measured = print_guests(&mut stage, &machine, arguments);
        if measured.is_err() {
            stage.keep_logs();
        }
        return measured;
    }
    let compared = all(&mut stage, &tasks, arguments);
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
    if let Some(file) = &arguments.document {
        document::write(file, &machine, &compared)?;
    }
    if let Some(directory) = &arguments.pictures {
        plot::draw(directory, &compared)?;
    }
    Ok(())
}

fn print_profile(stage: &mut Stage, arguments: &Arguments) -> Result<()> {
    profile::possible()?;
    let text = profile::profile(stage)?;
    println!("{text}");
    match &arguments.document {
        Some(file) => document::put(file, document::Part::Profile, &text),
        None => Ok(()),
    }
}

fn print_guests(stage: &mut Stage, machine: &Machine, arguments: &Arguments) -> Result<()> {
    let plan = match arguments.quick {
        true => guest::Plan::QUICK,
        false => guest::Plan::FULL,
    };
    let plan = guest::Plan {
        rounds: arguments.pairs.unwrap_or(plan.rounds),
        ..plan
    };
    let measured = guest::measure(stage, &plan, &arguments.only)?;
    let table = guest::table::table(&measured)?;
    if arguments.json {
        for line in guest::table::json(&measured)? {
            println!("{line}");
        }
    } else {
        println!("\n{table}");
    }
    match &arguments.document {
        Some(file) => {
            let text = format!("{}.\n\n{}\n\n{table}", machine.text(), plan.words());
            document::put(file, document::Part::Guests, &text)
        }
        None => Ok(()),
    }
}

/// One that can be asked for by its name.
enum Task {
    Job(&'static Job),
    Special(&'static Special),
}

impl Task {
    fn name(&self) -> &'static str {
        match self {
            Task::Job(job) => job.name,
            Task::Special(special) => special.name,
        }
    }

    fn what(&self) -> String {
        match self {
            Task::Job(job) => format!("{}; {}, {}", job.what, job.ours.name(), job.peer.name()),
            Task::Special(special) => special.what.to_owned(),
        }
    }

    fn run(&self, stage: &mut Stage, pairs: usize, time: Time) -> Result<Vec<Compared>> {
        match self {
            Task::Job(job) => Ok(vec![compare(stage, job, pairs, time)?]),
            Task::Special(special) => (special.run)(stage, pairs, time),
        }
    }
}

/// Those with goals first. `only`: by its name, or, where none has this name, all whose names begin so.
fn tasks(only: &[String]) -> Vec<Task> {
    let without = JOBS.partition_point(|job| !job.goals.is_empty());
    let (with, without) = JOBS.split_at(without);
    let all = with.iter().map(Task::Job);
    let all = all.chain(SPECIALS.iter().map(Task::Special));
    let all: Vec<Task> = all.chain(without.iter().map(Task::Job)).collect();
    let wanted = |task: &Task| {
        let name = task.name();
        only.iter()
            .any(|only| match all.iter().any(|task| task.name() == only) {
                true => name == only,
                false => name.starts_with(only.as_str()),
            })
    };
    let keep: Vec<bool> = all
        .iter()
        .map(|task| only.is_empty() || wanted(task))
        .collect();
    let kept = all.into_iter().zip(keep).filter(|(_, keep)| *keep);
    kept.map(|(task, _)| task).collect()
}

fn all(stage: &mut Stage, tasks: &[Task], arguments: &Arguments) -> Result<Vec<Compared>> {
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
    let mut compared = Vec::new();
    for task in tasks {
        let begun = Instant::now();
        let these = task.run(stage, pairs, time).with_context(|| task.name())?;
        for one in these {
            tell(&one, begun.elapsed(), arguments.json);
            compared.push(one);
        }
    }
    Ok(compared)
}

fn tell(one: &Compared, took: Duration, json: bool) {
    for (row, line) in one.rows.iter().zip(one.json()) {
        if json {
            println!("{line}");
            continue;
        }
        println!(
            "{:>6.1}s {:<20} {:<18} {:>9} {:>9}  {:>6.2} ({:.2} to {:.2}) {:<14} {}",
            took.as_secs_f64(),
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
}
