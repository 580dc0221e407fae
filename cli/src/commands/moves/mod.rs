//! `ukai moves`: what is under way, how far it is, and the operator's hand on it.

mod describe;
mod watch;

pub use describe::brief;
#[cfg(test)]
pub use describe::tests;
pub use watch::{PATIENCE, was_cancelled, watch};

use crate::commands::plan;
use crate::exit::{Code, Failure};
use crate::operator::{Connection, Service};
use crate::output::{Output, parse_rate};
use crate::places::Places;
use placement_service::api::{Control, ControlMove, Move, Moves};
use replicator::words::DiskName;

/// Show moves of disks, watch them, and pause, resume, slow down or cancel them.
///
/// A move is all that a disk does towards where it should stand: because its VM came, because policy or an
/// operator wants it elsewhere, or because copies are missing. A disk has one at most, so a disk's name names
/// it; a number also names one that has ended.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  ukai moves\n  ukai moves web1\n  ukai moves --watch\n  ukai moves pause web1\n  ukai moves throttle web1 20MiB/s"
)]
pub struct Args {
    /// One move, with its plan: a disk, or a move's number.
    #[arg(value_name = "DISK|NUMBER")]
    which: Option<String>,

    /// Stay and show how far it is, until it has ended; ctrl-c leaves, and the move goes on. With --json, a line for
    /// each change.
    #[arg(long)]
    watch: bool,

    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Copy nothing more for now but what the guest reads.
    #[command(after_help = "Example:\n  ukai moves pause web1")]
    Pause {
        /// A disk, or a move's number.
        #[arg(value_name = "DISK|NUMBER")]
        which: String,
    },
    /// Go on with a paused move.
    #[command(after_help = "Example:\n  ukai moves resume web1")]
    Resume {
        /// A disk, or a move's number.
        #[arg(value_name = "DISK|NUMBER")]
        which: String,
    },
    /// Go back to where the disk stood; refused where that would break what policy promises.
    #[command(after_help = "Example:\n  ukai moves cancel web1")]
    Cancel {
        /// A disk, or a move's number.
        #[arg(value_name = "DISK|NUMBER")]
        which: String,
    },
    /// Copy at this rate instead of policy's; without one, at policy's again.
    #[command(
        after_help = "Examples:\n  ukai moves throttle web1 20MiB/s\n  ukai moves throttle web1"
    )]
    Throttle {
        /// A disk, or a move's number.
        #[arg(value_name = "DISK|NUMBER")]
        which: String,

        /// Bytes a second: 20MiB/s, 1G.
        #[arg(value_parser = parse_rate)]
        rate: Option<u64>,
    },
}

pub fn run(args: Args, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    match args.verb {
        None => look(args, &service, output),
        Some(Verb::Pause { which }) => control(&which, Control::Pause, &service, output),
        Some(Verb::Resume { which }) => control(&which, Control::Resume, &service, output),
        Some(Verb::Cancel { which }) => control(&which, Control::Cancel, &service, output),
        Some(Verb::Throttle { which, rate }) => {
            let control_to = rate.map_or(Control::NoLimit, Control::Limit);
            control(&which, control_to, &service, output)
        }
    }
}

fn look(args: Args, service: &Service, output: Output) -> anyhow::Result<()> {
    let one = args.which.map(|which| find(&which, service)).transpose()?;
    match (one, args.watch) {
        (None, false) => {
            let moves: Vec<Moves> = vec![service.get("/v1/moves")?];
            output.show(&moves[0], describe::list);
            Ok(())
        }
        (None, true) => watch::all(service, output),
        (Some(one), false) => show(&one, service, output),
        (Some(one), true) => {
            if one.state.has_ended() {
                return show(&one, service, output);
            }
            watch::follow(&one.disk, one.number, service, output)?.or_left()?;
            Ok(())
        }
    }
}

fn show(one: &Move, service: &Service, output: Output) -> anyhow::Result<()> {
    let places = Places::of(service)?;
    output.show(one, |one| {
        let about = describe::one(one);
        if one.plan.is_empty() {
            return places.told(&about);
        }
        let plan = plan::describe(&one.plan, &places);
        places.told(&format!("{about}\n\nas it was planned:\n{plan}"))
    });
    Ok(())
}

/// The move that `which` means: of this number, or the one of this disk that is under way, or its last one.
fn find(which: &str, service: &Service) -> anyhow::Result<Move> {
    if let Ok(number) = which.parse::<u64>() {
        let moves: Moves = service.get("/v1/moves")?;
        let mut all = moves.under_way.into_iter().chain(moves.ended);
        if let Some(one) = all.find(|one| one.number == number) {
            return Ok(one);
        }
    }
    let disk: DiskName = which.parse().map_err(|_| nothing_called(which))?;
    service.get(&format!("/v1/disks/{disk}/move"))
}

fn nothing_called(which: &str) -> Failure {
    Failure::new(Code::NotFound, format!("there is no move {which}"))
        .because("it is neither the number of a move nor a disk's name")
        .try_next("`ukai moves` shows them")
}

fn control(which: &str, control: Control, service: &Service, output: Output) -> anyhow::Result<()> {
    let one = find(which, service)?;
    if one.state.has_ended() {
        let what = format!("move {} of {} has ended", one.number, one.disk);
        return Err(Failure::new(Code::Refused, what)
            .because("there is nothing left to steer")
            .try_next("`ukai moves` shows what is under way")
            .into());
    }
    let path = format!("/v1/disks/{}/move", one.disk);
    let one: Move = service.patch(&path, &ControlMove { control })?;
    output.show(&one, |one| describe::controlled(one, control));
    Ok(())
}
