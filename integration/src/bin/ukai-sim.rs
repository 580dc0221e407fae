//! Runs the simulation: many seeds, one seed in detail, or the planted bugs.

use clap::Parser;
use integration::sim::stats::Stats;
use integration::sim::{Outcome, Show, planted, run, scripts};
use replicator::plant::Plant;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Writer, stores and placement map in virtual time, with everything going wrong that may.
///
/// Example: ukai-sim --seeds 1000
#[derive(Parser)]
struct Args {
    /// How many seeds to run, from --first on: 1000 unless given. With --planted: the most to try
    /// for each bug, 10000 unless given.
    #[arg(long)]
    seeds: Option<u64>,
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run this seed only, and print all that happens.
    #[arg(long)]
    seed: Option<u64>,
    /// Plant each bug in turn, and find it.
    #[arg(long)]
    planted: bool,
    /// Tell the scripted stories, each in all its ways.
    #[arg(long)]
    scripts: bool,
    /// With --scripts: this way of this story only, and print all that happens.
    #[arg(long, num_args = 2, value_names = ["STORY", "WAY"], requires = "scripts")]
    tell: Option<Vec<String>>,
    /// With --seed or --tell: plant this bug (as --planted names it).
    #[arg(long)]
    plant: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Failed assertions are caught and reported with their seed.
    std::panic::set_hook(Box::new(|_| {}));
    let bug = args.plant.as_deref().and_then(named);
    let ok = if let Some([story, way]) = args.tell.as_deref() {
        tell(story, way.parse().unwrap_or(0), bug)
    } else if args.scripts {
        stories()
    } else if let Some(seed) = args.seed {
        one(run(seed, bug, Show::All))
    } else if args.planted {
        plants(args.seeds.unwrap_or(10_000))
    } else {
        many(args.first, args.seeds.unwrap_or(1000))
    };
    if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn named(name: &str) -> Option<Plant> {
    Plant::ALL.into_iter().find(|p| format!("{p:?}") == name)
}

/// A story by the beginning of its name.
fn tell(story: &str, way: u64, bug: Option<Plant>) -> bool {
    match scripts::ALL.iter().find(|s| s.name.starts_with(story)) {
        Some(script) => one(script.run(way, bug, Show::All)),
        None => {
            println!("no such story: {story}");
            false
        }
    }
}

fn stories() -> bool {
    let mut all = true;
    for script in &scripts::ALL {
        let bad = (0..script.ways).find_map(|way| {
            let (what, _) = script.run(way, None, Show::Nothing).violation?;
            Some((way, what))
        });
        match &bad {
            None => println!("{}: {} ways, well", script.name, script.ways),
            Some((way, what)) => println!("{}: way {way}: VIOLATION {what}", script.name),
        }
        all &= bad.is_none();
    }
    all
}

fn one(outcome: Outcome) -> bool {
    println!(
        "seed {}, trace {:016x}: {}",
        outcome.seed, outcome.hash, outcome.stats
    );
    match outcome.violation {
        None => true,
        Some((what, _)) => {
            println!("VIOLATION {what}");
            false
        }
    }
}

fn many(first: u64, seeds: u64) -> bool {
    let begun = Instant::now();
    let next = AtomicU64::new(first);
    let failed: Mutex<Vec<Outcome>> = Mutex::new(Vec::new());
    let total: Mutex<(u64, u64, Stats)> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds || failed.lock().unwrap().len() >= 10 {
                        return;
                    }
                    let outcome = run(seed, None, Show::Nothing);
                    let mut total = total.lock().unwrap();
                    total.0 += 1;
                    total.1 ^= outcome.hash.rotate_left((seed % 64) as u32);
                    total.2.add(&outcome.stats);
                    if outcome.violation.is_some() {
                        failed.lock().unwrap().push(outcome);
                    }
                    if total.0.is_multiple_of(100) {
                        println!("{} seeds, {:.0} s", total.0, begun.elapsed().as_secs_f64());
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap();
    let (run_seeds, hash, stats) = total.into_inner().unwrap();
    failed.sort_by_key(|outcome| outcome.seed);
    if let Some(first) = failed.first() {
        let again = run(first.seed, None, Show::Last);
        if let Some((what, lines)) = again.violation {
            println!("seed {}:", first.seed);
            lines.iter().for_each(|line| println!("  {line}"));
            println!("VIOLATION {what}");
        }
        for outcome in &failed {
            let what = outcome.violation.as_ref().map_or("", |(what, _)| what);
            println!("replay: cargo xtask sim --seed {}  # {what}", outcome.seed);
        }
    }
    println!(
        "{run_seeds} seeds, {} violations, traces {hash:016x}, {:.0} s; {stats}",
        failed.len(),
        begun.elapsed().as_secs_f64()
    );
    failed.is_empty()
}

fn plants(seeds: u64) -> bool {
    let mut all = true;
    for bug in Plant::ALL {
        let told = planted::find_in_scripts(bug);
        if let Some((story, way, what)) = &told {
            println!("{bug:?}: story {story}, way {way}: {what}");
        }
        // What a story was written for needs no long search.
        let seeds = if told.is_some() {
            seeds.min(2000)
        } else {
            seeds
        };
        match planted::find(bug, seeds, threads()) {
            Some((seed, what)) => println!("{bug:?}: seed {seed}: {what}"),
            None if told.is_some() => {
                println!("{bug:?}: by that story only, not within {seeds} seeds")
            }
            None => {
                println!("{bug:?}: NOT FOUND within {seeds} seeds");
                all = false;
            }
        }
    }
    all
}
