//! `cargo xtask …`: everything that a person or a CI machine does with this repository.
//!
//! It stands alone and builds in seconds: what needs the product's crates is a program of the
//! `integration` crate, which this one builds and runs with a bound on its time.

mod bench;
mod chaos;
mod demo;
mod fuzz;
#[cfg(test)]
mod licences;
mod migration;
mod run;
mod setup;
mod steps;
mod test;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Build, show and test Ukai.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what guests need: QEMU, a kernel, busybox, file system tools
    Setup {
        /// Also what `bench --guest` compares, and measures with
        #[arg(long)]
        bench: bool,
    },
    /// A real guest on a replicated disk: made, filled, killed, checked, and moved to the other datacenter
    Demo {
        /// Leave the cluster running and print how to go on
        #[arg(long)]
        keep: bool,
        /// Draw the move into this SVG file
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
    },
    /// The same guest moved by Ukai and by QEMU's blockdev-mirror, side by side; writes docs/migration-figures.md
    CompareMigration {
        /// Arguments of the program: --json, --pairs N, --disk-mib N, --link-mib N, --delay-ms N, --only WAY
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Speed and cost beside qemu-storage-daemon and others, in one run; writes docs/performance.md
    Bench {
        /// Arguments of the program: --quick, --only NAME, --json, --list, --pairs N, --with-ceph, --guest, --growth (all: --help after --)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Live migrations in a row under a verifying writer; arguments are passed on (--migrations N, --seed N)
    Soak {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Real processes and a guest, while everything that can fail does; --each writes docs/failures.md
    Chaos {
        /// Arguments of the program: --minutes N, --seed N, --json, --only NAME, --each
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Everything that must hold, in order, with a line and a time for each step
    Test {
        /// Leave out clippy and the demo, and simulate fewer seeds
        #[arg(long)]
        quick: bool,
    },
    /// The simulator, built for release; arguments are passed on (--seeds N, --seed N, --planted)
    Sim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Fuzz the decoders of foreign bytes with libFuzzer
    Fuzz {
        /// Processor time that each target gets, in seconds
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Only this target
        #[arg(long)]
        target: Option<String>,
        /// Afterwards replace the kept corpus by the smallest one that covers as much
        #[arg(long)]
        minimise: bool,
    },
}

fn main() -> ExitCode {
    let task = Arguments::parse().task;
    run::catch_signals();
    match perform(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup { bench } => match bench {
            true => bench::set_up_guests(&workspace),
            false => setup::run(&workspace),
        },
        Task::Demo { keep, plot } => demo::run(&workspace, keep, plot.as_deref()),
        Task::CompareMigration { arguments } => migration::compare(&workspace, &arguments),
        Task::Bench { arguments } => bench::run(&workspace, &arguments),
        Task::Soak { arguments } => migration::soak(&workspace, &arguments),
        Task::Chaos { arguments } => chaos::run(&workspace, &arguments),
        Task::Test { quick } => test::run(&workspace, quick),
        Task::Sim { arguments } => {
            let simulate = workspace
                .cargo("run")
                .args([
                    "--release",
                    "--package",
                    "integration",
                    "--bin",
                    "ukai-sim",
                    "--",
                ])
                .args(arguments);
            // A person chose the number of seeds: the bound is only there to end what hangs.
            run::inherit(simulate, Duration::from_secs(12 * 3600))
        }
        Task::Fuzz {
            seconds,
            target,
            minimise,
        } => fuzz::run(&workspace, seconds, target.as_deref(), minimise),
    }
}
