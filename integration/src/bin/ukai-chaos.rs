//! `cargo xtask chaos`: real processes and a real guest, while everything that can fail does.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use integration::chaos::{Catalog, Chaos, Fault, Plot, Report, document};
use integration::processes::Scratch;

/// Hurt a cluster of real processes under a guest that verifies all it reads.
#[derive(Parser)]
#[command(after_help = "Examples:\n  cargo xtask chaos --minutes 10\n  \
    cargo xtask chaos --only store-hangs\n  cargo xtask chaos --each --document docs/failures.md")]
struct Arguments {
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Of the story; printed when it is drawn
    #[arg(long)]
    seed: Option<u64>,
    /// Only this failure, once; given several times: these, one after the other
    #[arg(long, value_name = "NAME")]
    only: Vec<Fault>,
    /// Every failure once, by itself
    #[arg(long, conflicts_with = "only")]
    each: bool,
    /// Where the placement services keep what they know; failures of etcd are left out with a file
    #[arg(long, value_enum, default_value = "etcd")]
    catalog: Catalog,
    /// The report as JSON instead of lines
    #[arg(long)]
    json: bool,
    /// Write what was measured into this Markdown file
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut scratch = match Scratch::new("chaos") {
        Ok(scratch) => scratch,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let code = match chaos(&scratch, &arguments) {
        Ok(report) if report.wrong().is_empty() => return ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    };
    scratch.keep_logs();
    code
}

fn chaos(scratch: &Scratch, arguments: &Arguments) -> Result<Report> {
    let begun = Instant::now();
    // Machines read the standard output.
    let say = |line: &str| match arguments.json {
        true => eprintln!("{line}"),
        false => println!("{line}"),
    };
    let plot = match (&arguments.only[..], arguments.each) {
        ([], false) => {
            let time = Duration::from_secs_f64(arguments.minutes * 60.0);
            Plot::For(time, Fault::all().to_vec())
        }
        ([], true) => Plot::Each(Fault::all().to_vec()),
        (only, _) => Plot::Each(only.to_vec()),
    };
    let seed = arguments.seed.unwrap_or_else(rand::random);
    say(&format!("seed {seed}"));
    let chaos = Chaos {
        plot,
        catalog: arguments.catalog,
        seed,
    };
    let report = chaos.run(scratch, say);
    let report = report.with_context(|| format!("seed {seed}"))?;
    let mark = if report.wrong().is_empty() {
        "ok  "
    } else {
        "FAIL"
    };
    let took = begun.elapsed().as_secs_f64();
    say(&format!(
        "{mark} {took:>6.1}s seed {seed}: {}",
        report.line()
    ));
    if let Some(error) = &report.at_the_end {
        say(&format!("     {error}"));
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    if let Some(file) = &arguments.document {
        std::fs::write(file, document::page(&report))
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(report)
}
