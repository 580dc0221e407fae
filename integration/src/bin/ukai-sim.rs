//! Runs the simulation: many seeds, one seed in detail, or the planted bugs.

use clap::Parser;
use integration::sim::page::{Found, with_table};
use integration::sim::stats::Stats;
use integration::sim::{Outcome, Show, planted, rare, run, scripts};
use replicator::plant::Plant;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Writer, stores and placement map in virtual time, with everything going wrong that may.
///
/// A run of 2000 seeds and more fails, too, if it was never in one of the rare states that it counts.
///
/// Example: ukai-sim --seeds 2000
#[derive(Parser)]
struct Args {
    /// How many seeds to run, from --first on: 1000 unless given. With --planted: the most to try
    /// for each bug that no story finds, 2000 unless given.
    #[arg(long)]
    seeds: Option<u64>,
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// As many seeds as a night takes: 200000.
    #[arg(long, conflicts_with = "seeds")]
    nightly: bool,
    /// Keep in this file how far the run is, and go on from there if it has something.
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Run this seed only, and print all that happens.
    #[arg(long)]
    seed: Option<u64>,
    /// Plant each bug in turn, and find it.
    #[arg(long)]
    planted: bool,
    /// With --planted: put what was found into this page of the documentation.
    #[arg(long, value_name = "FILE", requires = "planted")]
    page: Option<PathBuf>,
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
        plants(args.seeds.unwrap_or(2000), args.page.as_deref())
    } else {
        let seeds = if args.nightly { 200_000 } else { 1000 };
        many(
            args.first,
            args.seeds.unwrap_or(seeds),
            args.resume.as_deref(),
        )
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

/// Runs seeds on all cores, a thousand at a time; after each thousand a run that is to be resumed is kept.
fn many(first: u64, seeds: u64, kept: Option<&Path>) -> bool {
    let begun = Instant::now();
    let mut total = Total {
        next: first,
        ..Total::default()
    };
    if let Some(earlier) = kept.and_then(|path| std::fs::read_to_string(path).ok()) {
        match Total::parse(&earlier) {
            Some(earlier) => total = earlier,
            None => {
                println!("what is in that file is no state of a run");
                return false;
            }
        }
        println!("goes on at seed {}", total.next);
    }
    let end = first + seeds;
    let mut failed = Vec::new();
    while total.next < end && failed.is_empty() {
        let chunk = total.next..end.min(total.next + 1000);
        failed = some(chunk, &mut total);
        println!(
            "{} seeds, {:.0} s",
            total.seeds,
            begun.elapsed().as_secs_f64()
        );
        if let Some(path) = kept.filter(|_| failed.is_empty())
            && let Err(error) = std::fs::write(path, total.text())
        {
            println!("cannot keep the state of the run: {error}");
            return false;
        }
    }
    failed.sort_by_key(|outcome: &Outcome| outcome.seed);
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
    println!("{}", total.stats);
    print!("Rare states:\n{}", rare::table(&total.stats));
    println!(
        "{} seeds, {} violations, traces {:016x}, {:.0} s",
        total.seeds,
        failed.len(),
        total.hash,
        begun.elapsed().as_secs_f64()
    );
    let never = rare::missing(&total.stats);
    let enough = total.seeds >= rare::ENOUGH_SEEDS && failed.is_empty();
    if enough && !never.is_empty() {
        println!("NEVER REACHED: {}", never.join("; "));
    }
    failed.is_empty() && (!enough || never.is_empty())
}

/// Runs these seeds; returns those that failed.
fn some(chunk: std::ops::Range<u64>, total: &mut Total) -> Vec<Outcome> {
    let next = AtomicU64::new(chunk.start);
    let failed: Mutex<Vec<Outcome>> = Mutex::new(Vec::new());
    let counted = Mutex::new(&mut *total);
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= chunk.end || failed.lock().unwrap().len() >= 10 {
                        return;
                    }
                    let outcome = run(seed, None, Show::Nothing);
                    counted.lock().unwrap().add(&outcome);
                    if outcome.violation.is_some() {
                        failed.lock().unwrap().push(outcome);
                    }
                }
            });
        }
    });
    total.next = chunk.end;
    failed.into_inner().unwrap()
}

/// What many seeds came to.
#[derive(Default)]
struct Total {
    next: u64,
    seeds: u64,
    hash: u64,
    stats: Stats,
}

impl Total {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        // In whatever order the threads get there.
        self.hash ^= outcome.hash.rotate_left((outcome.seed % 64) as u32);
        self.stats.add(&outcome.stats);
    }

    /// As it is kept: where to go on, and what the rare states came to.
    fn text(&self) -> String {
        let mut text = format!("{} {} {:016x}\n", self.next, self.seeds, self.hash);
        for state in rare::STATES {
            text += &format!("{} {state}\n", self.stats.of(state));
        }
        text
    }

    fn parse(text: &str) -> Option<Total> {
        let mut lines = text.lines();
        let mut numbers = lines.next()?.split(' ');
        let mut total = Total {
            next: numbers.next()?.parse().ok()?,
            seeds: numbers.next()?.parse().ok()?,
            hash: u64::from_str_radix(numbers.next()?, 16).ok()?,
            stats: Stats::default(),
        };
        for line in lines {
            let (count, state) = line.split_once(' ')?;
            let state = rare::STATES.into_iter().find(|known| *known == state)?;
            total.stats.count_many(state, count.parse().ok()?);
        }
        Some(total)
    }
}

fn plants(seeds: u64, page: Option<&Path>) -> bool {
    let mut all = true;
    let mut table = Vec::new();
    for bug in Plant::ALL {
        let told = planted::find_in_scripts(bug);
        if let Some((story, way, what)) = &told {
            println!("{bug:?}: story {story}, way {way}: {what}");
        }
        // What a story was written for needs no long search.
        let seeds = if told.is_some() {
            seeds.min(200)
        } else {
            seeds
        };
        let found = planted::find(bug, seeds, threads());
        table.push(Found {
            bug,
            story: told.as_ref().map(|(name, way, _)| ((*name).into(), *way)),
            seed: found.as_ref().map(|(seed, _)| *seed),
        });
        match found {
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
    all && page.is_none_or(|page| write_table(page, &table))
}

fn write_table(page: &Path, table: &[Found]) -> bool {
    let written = std::fs::read_to_string(page).and_then(|text| {
        let text = with_table(&text, table).ok_or_else(|| {
            std::io::Error::other("it has no place for the table of planted bugs")
        })?;
        std::fs::write(page, text)
    });
    if let Err(error) = &written {
        println!("{}: {error}", page.display());
    }
    written.is_ok()
}
