//! What runs inside a test guest: one small static program, started by `/init`.
//!
//! `agent` takes commands from the host over the second serial port; the other subcommands are the
//! oracles that it runs: they write data which says by itself what it must be, and check it. Each ends
//! with status 0 only if everything was as it must be, and says on its last line what it did.

mod agent;
mod device;
mod fill;
mod options;
mod pattern;
mod sectors;
mod ticks;
mod verify;

use std::process::ExitCode;

use options::Options;

const USAGE: &str = "\
usage: ukai-guest COMMAND
  agent TTY                                    serve the host's commands on TTY
  fill DIR --seed N --files N --bytes N        files with known contents, fsynced, and a manifest
  check DIR                                    compare DIR with its manifest
  sectors DEV --offset N --sectors N --threads N --rounds N
                                               neighbouring 512-byte direct writes, verified
  verify-writer DEV --offset N --blocks N --threads N --seed N --flush-every N [--ticks PORT]
                                               write, flush and re-read until stdin ends; with --ticks
                                               the host hears of each beginning and end
  verify-check DEV --offset N --blocks N --threads N --seed N --flushed A,B,…
                                               what a stopped verify-writer must have left
  discard DEV --offset N --bytes N             give space back (BLKDISCARD)
  zero DEV --offset N --bytes N                write zeroes (BLKZEROOUT)
  flush DEV                                    fsync the device";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("FAILED {message}");
            ExitCode::FAILURE
        }
    }
}

/// An error is a sentence: the only one who reads it is the person whose test failed.
pub type Result<T> = std::result::Result<T, String>;

fn dispatch(arguments: &[String]) -> Result<()> {
    let [command, target, rest @ ..] = arguments else {
        return Err(USAGE.to_owned());
    };
    let options = Options::parse(rest)?;
    match command.as_str() {
        "agent" => agent::serve(target),
        "fill" => fill::fill(
            target,
            options.number("seed")?,
            options.number("files")?,
            options.number("bytes")?,
        ),
        "check" => fill::check(target),
        "sectors" => sectors::run(
            target,
            &sectors::Plan {
                offset: options.number("offset")?,
                sectors: options.number("sectors")?,
                threads: options.number("threads")?,
                rounds: options.number("rounds")?,
            },
        ),
        "verify-writer" => verify::write(
            target,
            &region(&options)?,
            &verify::Habits {
                flush_every: options.number("flush-every")?,
                ticks: options.optional("ticks")?,
            },
        ),
        "verify-check" => verify::check(target, &region(&options)?, &options.numbers("flushed")?),
        "discard" => device::Device::open(target)?
            .discard(options.number("offset")?, options.number("bytes")?),
        "zero" => {
            device::Device::open(target)?.zero(options.number("offset")?, options.number("bytes")?)
        }
        "flush" => device::Device::open(target)?.flush(),
        other => Err(format!("no command {other}\n{USAGE}")),
    }
}

fn region(options: &Options) -> Result<verify::Region> {
    let region = verify::Region {
        offset: options.number("offset")?,
        blocks: options.number("blocks")?,
        threads: options.number("threads")?,
        seed: options.number("seed")?,
    };
    if region.threads == 0 || region.blocks < region.threads {
        return Err("--blocks must be at least --threads, and --threads at least 1".to_owned());
    }
    Ok(region)
}
