//! `cargo xtask compare-migration`: the same guest moved with Ukai and with QEMU's blockdev-mirror, over
//! the same link, side by side.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use integration::migration::figures::{Comparison, Figures};
use integration::migration::{Course, Workload, mirror, ours, plot, timeline};
use integration::processes::Scratch;
use integration::relay::{Conditions, Link};

/// Move a guest with Ukai and with blockdev-mirror, and compare.
#[derive(Parser)]
struct Arguments {
    /// Figures as JSON instead of tables
    #[arg(long)]
    json: bool,
    /// So many runs of each, by turns
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// The disk, full of data, in MiB
    #[arg(long, default_value_t = 1024)]
    disk_mib: u64,
    /// What the link between the datacenters carries, in MiB/s
    #[arg(long, default_value_t = 100)]
    link_mib: u64,
    /// What the link delays, each way, in milliseconds
    #[arg(long, default_value_t = 10)]
    delay_ms: u64,
    /// Only one of the two, to look at it
    #[arg(long)]
    only: Option<Way>,
    /// Draw the last run of each into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Write the figures into this Markdown file
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    Ukai,
    Mirror,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut scratch = match Scratch::new("compare") {
        Ok(scratch) => scratch,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match compare(&scratch, &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            scratch.keep_logs();
            ExitCode::FAILURE
        }
    }
}

fn compare(scratch: &Scratch, arguments: &Arguments) -> Result<()> {
    let workload = Workload::full(arguments.disk_mib << 20);
    let image = scratch.path("image.raw");
    workload.image(&image)?;
    let mut pairs = Vec::new();
    let mut last = Vec::new();
    for _ in 0..arguments.pairs {
        last.clear();
        for way in [Way::Ukai, Way::Mirror] {
            if arguments.only.is_none_or(|only| only == way) {
                last.push(run(scratch, arguments, &workload, &image, way)?);
            }
        }
        if let [ours, mirror] = &last[..] {
            pairs.push([Figures::of(ours), Figures::of(mirror)]);
        }
    }
    if let Some(file) = &arguments.plot {
        plot::draw(&last.iter().collect::<Vec<_>>(), file)?;
    }
    if pairs.is_empty() {
        return Ok(());
    }
    let comparison = Comparison::of(pairs);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&comparison)?);
    } else {
        println!("{}", comparison.tables());
    }
    if let Some(file) = &arguments.document {
        let text = document(arguments, &comparison);
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn run(
    scratch: &Scratch,
    arguments: &Arguments,
    workload: &Workload,
    image: &Path,
    way: Way,
) -> Result<Course> {
    let begun = Instant::now();
    let delay = Duration::from_millis(arguments.delay_ms);
    let link = Link::new(Conditions::fixed(delay).limited(arguments.link_mib << 20));
    let course = match way {
        // A cluster of its own for each run: what one leaves behind is not the next one's.
        Way::Ukai => ours::run(&Scratch::new("compare-ours")?, workload, image, link),
        Way::Mirror => mirror::run(scratch, workload, image, &link),
    }?;
    // Machines read the standard output.
    eprintln!(
        "ok   {:>6.1}s {}: {}",
        begun.elapsed().as_secs_f64(),
        course.name,
        course.verified
    );
    if !arguments.json {
        println!("\n{}", timeline::table(&course));
        if arguments.only.is_some() {
            println!("{:#?}", Figures::of(&course));
        }
    }
    Ok(course)
}

fn document(arguments: &Arguments, comparison: &Comparison) -> String {
    format!(
        "# A move, in figures\n\n\
         Written by `cargo xtask compare-migration`, which ran both ways by turns on one machine without KVM, {} times\n\
         each. The guest's disk of {} MiB is full of data that cannot be compressed; the datacenters are joined by a\n\
         relay of {} MiB/s that delays {} ms each way. In the guest two threads write 4 KiB each, read one block again for\n\
         every four written, verify it, and flush every 16 writes. The host timed each of its operations. The figures\n\
         compare within this page only: the guest is slow without KVM, and everything shares two cores.\n\n\
         Ukai keeps two synchronous copies in each datacenter; mirror has one file. The relay joins two TCP connections,\n\
         so that mirror's NBD knows no slow start and loses nothing.\n\n\
         ![Write latency and bytes on the link, Ukai and mirror](images/migration.svg)\n\n{}",
        arguments.pairs,
        arguments.disk_mib,
        arguments.link_mib,
        arguments.delay_ms,
        comparison.tables()
    )
}
