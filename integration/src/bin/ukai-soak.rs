//! `cargo xtask soak`: a guest that is moved back and forth, again and again, while it writes, flushes
//! and verifies, over a link whose delay changes all the time.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use integration::migration::soak::{Soak, Told};
use integration::processes::Scratch;

/// Live migrations in a row under a verifying writer.
#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 50)]
    migrations: usize,
    /// The link delays at most this long each way, in milliseconds
    #[arg(long, default_value_t = 15)]
    delay_ms: u64,
    /// Of the delays and pauses; printed when it is drawn
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut scratch = match Scratch::new("soak") {
        Ok(scratch) => scratch,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match soak(&scratch, &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            scratch.keep_logs();
            ExitCode::FAILURE
        }
    }
}

fn soak(scratch: &Scratch, arguments: &Arguments) -> Result<()> {
    let begun = Instant::now();
    let seed = arguments.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let soak = Soak {
        migrations: arguments.migrations,
        most_delay: Duration::from_millis(arguments.delay_ms),
        seed,
    };
    let told = soak.run(scratch, |line| println!("{line}"));
    let Told {
        verified,
        longest_gap,
        ..
    } = told.with_context(|| format!("seed {seed}"))?;
    println!(
        "ok   {:>6.1}s {} migrations, no wrong block, no error; longest silence {} ms; {verified}",
        begun.elapsed().as_secs_f64(),
        arguments.migrations,
        longest_gap.as_millis(),
    );
    Ok(())
}
