//! `cargo xtask bench`: ours and peers by turns, behind the same front-end, in one run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use integration::bench::choice::{Task, choose};
use integration::bench::compare::Compared;
use integration::bench::load::Time;
use integration::bench::machine::Machine;
use integration::bench::needs::Needs;
use integration::bench::side::{Kind, Stage};
use integration::bench::{document, growth, guest, plot, profile, report};
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
    /// With Ceph RBD among the peers: its packages, and half a minute to set it up
    #[arg(long)]
    with_ceph: bool,
    /// Only name the jobs
    #[arg(long)]
    list: bool,
    /// Instead: what a request costs by system calls, wake-ups, allocations and functions (wants perf)
    #[arg(long)]
    profile: bool,
    /// Instead: Bonnie++ and PostMark in real guests, on disks that are served in seven ways, three rounds
    #[arg(long, conflicts_with_all = ["profile", "list"])]
    guest: bool,
    /// Instead: what a store and a planner cost as data and disks grow, ten minutes (with cargo, from the source)
    #[arg(long, conflicts_with_all = ["profile", "list", "guest"])]
    growth: bool,
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
    if arguments.list {
        return list(&arguments.only);
    }
    if arguments.growth {
        return print_growth(arguments);
    }
    let tasks = match arguments.guest || arguments.profile {
        true => Vec::new(),
        false => tasks(arguments)?,
    };
    let temporary = std::env::temp_dir();
    let parent: &Path = arguments.on.as_deref().unwrap_or(&temporary);
    let by_default = |quick, otherwise| if arguments.quick { quick } else { otherwise };
    // Of guests the size is what their programs want, also for a short look.
    let quick_mib = if arguments.guest { 1024 } else { 256 };
    let disk_mib = arguments.disk_mib.unwrap_or(by_default(quick_mib, 1024));
    let mut stage = Stage::new(parent, disk_mib << 20, by_default(10_000, 50_000))?;
    let mut machine = Machine::look(parent, &kit::built("ukai", "UKAI_BIN")?);
    for needs in [Needs::Iscsi, Needs::Ceph] {
        if tasks.iter().any(|task| task.needs() == Some(needs)) {
            machine = machine.with(&needs.server());
        }
    }
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
    let (compared, failed) = all(&mut stage, &tasks, arguments);
    if !failed.is_empty() {
        stage.keep_logs();
    }
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
    ensure!(
        failed.is_empty(),
        "not measured: {}; what went wrong is said above, where it did",
        failed.join(", ")
    );
    Ok(())
}

fn list(only: &[String]) -> Result<()> {
    for task in choose(only, |_| None)?.tasks {
        let wants = match task.needs() {
            Some(Needs::Ceph) => " (with --with-ceph)",
            _ => "",
        };
        println!("{:<22} {}{wants}", task.name(), task.what());
    }
    Ok(())
}

/// What was asked for, less what cannot be done here, which is said.
fn tasks(arguments: &Arguments) -> Result<Vec<Task>> {
    if arguments.with_ceph {
        Needs::Ceph.present()?;
    }
    let lacks = |needs: Needs| match needs {
        Needs::Ceph if arguments.with_ceph => None,
        Needs::Ceph => Some("add --with-ceph, which sets up Ceph".to_owned()),
        Needs::Iscsi => needs.present().err().map(|error| format!("{error:#}")),
    };
    let choice = choose(&arguments.only, lacks)?;
    for (task, why) in choice.left_out {
        eprintln!("--           {} is left out: {why}", task.name());
    }
    Ok(choice.tasks)
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

fn print_growth(arguments: &Arguments) -> Result<()> {
    let growth = growth::measure(match arguments.quick {
        true => growth::Plan::QUICK,
        false => growth::Plan::FULL,
    })?;
    let tables = growth.tables()?;
    if arguments.json {
        for row in &growth.stores {
            println!("{}", serde_json::to_string(row)?);
        }
        for row in &growth.plans {
            println!("{}", serde_json::to_string(row)?);
        }
        for row in &growth.fleets {
            println!("{}", serde_json::to_string(row)?);
        }
    } else {
        println!("{tables}");
    }
    if let Some(directory) = &arguments.pictures {
        growth.draw(directory)?;
    }
    match &arguments.document {
        Some(file) => document::put(file, document::Part::Growth, &tables),
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

/// What was measured, and the names of what could not be: the others are worth having all the same.
fn all(
    stage: &mut Stage,
    tasks: &[Task],
    arguments: &Arguments,
) -> (Vec<Compared>, Vec<&'static str>) {
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
    let (mut compared, mut failed) = (Vec::new(), Vec::new());
    for (index, task) in tasks.iter().enumerate() {
        let begun = Instant::now();
        let these = task.run(stage, pairs, time).unwrap_or_else(|error| {
            eprintln!("FAIL         {}: {error:#}", task.name());
            failed.push(task.name());
            Vec::new()
        });
        let next = tasks.get(index + 1);
        if task.has(Kind::CephRbd) && !next.is_some_and(|next| next.has(Kind::CephRbd)) {
            // Its daemons are never idle.
            stage.stop(Kind::CephRbd);
        }
        for one in these {
            tell(&one, begun.elapsed(), arguments.json);
            compared.push(one);
        }
    }
    (compared, failed)
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
