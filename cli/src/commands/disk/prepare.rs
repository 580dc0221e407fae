//! `ukai disk prepare`: blocks are copied ahead to where the VM is about to run.

use crate::commands::moves;
use crate::operator::{Connection, ORDER_PATIENCE};
use crate::output::Output;
use placement_service::api::{Move, PrepareDisk};
use replicator::words::{DatacenterName, DiskName, HostName};

/// Copy a disk's blocks ahead to where its VM is about to run.
///
/// The copies are in no write set and the disk runs as before; when the VM arrives, only what was written since has
/// still to cross. A repair or any other move of the disk goes first; the preparation goes on afterwards.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ukai disk prepare web1 --to osaka\n  ukai disk prepare web1 --to osaka --node osaka-1 --leave"
)]
pub struct Args {
    disk: DiskName,

    /// Where to.
    #[arg(long, value_name = "DATACENTER")]
    to: DatacenterName,

    /// The host that the VM will run on: its store is chosen if it can be.
    #[arg(long, value_name = "HOST")]
    node: Option<HostName>,

    /// Begin it, and do not stay to show how far it is.
    #[arg(long)]
    leave: bool,
}

pub fn run(args: Args, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let patience = match args.leave {
        true => ORDER_PATIENCE,
        false => moves::PATIENCE,
    };
    let service = connection.service()?.patient(patience, output);
    let order = PrepareDisk {
        to: args.to.clone(),
        node: args.node,
    };
    let one: Move = service.post(&format!("/v1/disks/{}/prepare", args.disk), &order)?;
    if args.leave {
        output.show(&one, |one| {
            format!(
                "{} is being copied ahead to {}; `ukai moves {} --watch` shows how far it is",
                one.disk, args.to, one.disk
            )
        });
        return Ok(());
    }
    let ended = moves::watch(&one.disk, one.number, &service, output)?.or_left()?;
    let cancelled = moves::was_cancelled(&ended);
    if output.is_json() {
        output.show(&ended, |_| String::new());
    }
    match cancelled {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}
