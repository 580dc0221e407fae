//! `ukai`: the daemons of a cluster and the operator's commands, in one binary.
//!
//! `commands` holds one file a command; `daemon` what `ukai node`, `ukai placement` and `ukai dev` run;
//! [`output`] decides how results look, [`exit`] how a command ends.

mod addresses;
mod commands;
mod daemon;
mod exit;
mod log;
mod operator;
mod output;
mod places;
mod settings;
mod signals;

pub use settings::fuzz_settings;

use clap::{Parser, Subcommand};
use commands::{
    datacenter, dev, disk, init, links, moves, node, placement, policy, revoke, status, store,
};
use operator::Connection;
use output::Output;
use std::process::ExitCode;

/// Virtual disks that follow their virtual machines.
#[derive(Parser)]
#[command(name = "ukai", version, after_help = exit::CODES, propagate_version = true)]
struct Ukai {
    /// Print JSON instead of tables.
    #[arg(long, global = true, help_heading = "With every command")]
    json: bool,

    #[command(flatten)]
    connection: Connection,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Args),
    Revoke(revoke::Args),
    Placement(placement::Args),
    Node(node::Args),
    Dev(dev::Args),
    #[command(subcommand)]
    Datacenter(datacenter::Command),
    #[command(subcommand)]
    Store(store::Command),
    #[command(subcommand)]
    Disk(disk::Command),
    #[command(subcommand)]
    Policy(policy::Command),
    Moves(moves::Args),
    Links(links::Args),
    Status(status::Args),
}

impl Command {
    /// Daemons tell what they do; commands answer, and speak up only when something is wrong.
    fn usual_log(&self) -> &'static str {
        match self {
            Command::Placement(args) if !args.serves() => "warn",
            Command::Placement(_) | Command::Node(_) | Command::Dev(_) => "info",
            _ => "warn",
        }
    }
}

/// The whole program: reads its arguments, and does what they say.
pub fn main() -> ExitCode {
    signals::ignore_upgrades();
    let ukai = Ukai::parse();
    let output = Output::new(ukai.json);
    log::start(ukai.command.usual_log());
    match run(ukai, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = exit::explain(error);
            output.fail(&failure);
            failure.exit_code()
        }
    }
}

fn run(ukai: Ukai, output: Output) -> anyhow::Result<()> {
    let connection = &ukai.connection;
    match ukai.command {
        Command::Init(args) => init::run(args, output),
        Command::Revoke(args) => revoke::run(args, connection.pki(), output),
        Command::Placement(args) => placement::run(args, connection, output),
        Command::Node(args) => node::run(args, connection.pki()),
        Command::Dev(args) => dev::run(args, output),
        Command::Datacenter(command) => datacenter::run(command, connection, output),
        Command::Store(command) => store::run(command, connection, output),
        Command::Disk(command) => disk::run(command, connection, output),
        Command::Policy(command) => policy::run(command, connection, output),
        Command::Moves(args) => moves::run(args, connection, output),
        Command::Links(args) => links::run(args, connection, output),
        Command::Status(args) => status::run(args, connection, output),
    }
}
