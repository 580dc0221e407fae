//! `ukai disk`: one file a verb, or a few that belong together.

mod attach;
mod create;
mod deletions;
mod explain;
mod image;
mod image_file;
mod list;
mod map;
mod order;
mod pin;
mod prepare;
mod verify;

#[cfg(test)]
pub use list::tests;

use crate::operator::{Connection, Service};
use crate::output::{Bytes, Output};
use placement_service::api::{ByteRange, Deleted, Disk};
use replicator::words::DiskName;

/// Create, attach, look at, move, copy and delete disks.
#[derive(clap::Subcommand)]
pub enum Command {
    Create(create::Args),
    /// List the disks.
    #[command(after_help = "Example:\n  ukai disk list")]
    List,
    /// Show one disk.
    #[command(after_help = "Example:\n  ukai disk show web1")]
    Show {
        disk: DiskName,
    },
    Map(map::Args),
    /// Say of each copy why it is where it is, what keeps it from being elsewhere, and what would change that.
    #[command(after_help = "Example:\n  ukai disk explain web1")]
    Explain {
        disk: DiskName,
    },
    Attach(attach::AttachArgs),
    Detach(attach::DetachArgs),
    Move(order::MoveArgs),
    Prepare(prepare::Args),
    AddCopy(order::AddArgs),
    DropCopy(order::DropArgs),
    Pin(pin::PinArgs),
    /// List a disk's pins.
    #[command(after_help = "Example:\n  ukai disk pins web1")]
    Pins {
        disk: DiskName,
    },
    Unpin(pin::UnpinArgs),
    Class(pin::ClassArgs),
    /// List the copies of a disk that were deleted, and what made that safe.
    #[command(after_help = "Example:\n  ukai disk deletions web1")]
    Deletions {
        disk: DiskName,
    },
    Verify(verify::Args),
    Import(image::ImportArgs),
    Export(image::ExportArgs),
    /// Delete a detached disk and all of its data.
    #[command(after_help = "Example:\n  ukai disk delete web1 --yes")]
    Delete {
        disk: DiskName,
        /// Yes, all copies: there is no way back.
        #[arg(long, required = true)]
        yes: bool,
    },
}

pub fn run(command: Command, connection: &Connection, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => create::run(args, connection, output),
        Command::List => list::list(connection, output),
        Command::Show { disk } => list::show(&disk, connection, output),
        Command::Map(args) => map::run(args, connection, output),
        Command::Explain { disk } => explain::run(&disk, connection, output),
        Command::Attach(args) => attach::attach(args, connection, output),
        Command::Detach(args) => attach::detach(args, connection, output),
        Command::Move(args) => order::move_to(args, connection, output),
        Command::Prepare(args) => prepare::run(args, connection, output),
        Command::AddCopy(args) => order::add_copy(args, connection, output),
        Command::DropCopy(args) => order::drop_copy(args, connection, output),
        Command::Pin(args) => pin::pin(args, connection, output),
        Command::Pins { disk } => pin::list(&disk, connection, output),
        Command::Unpin(args) => pin::unpin(args, connection, output),
        Command::Class(args) => pin::class(args, connection, output),
        Command::Deletions { disk } => deletions::run(&disk, connection, output),
        Command::Verify(args) => verify::run(args, connection, output),
        Command::Import(args) => image::import(args, connection, output),
        Command::Export(args) => image::export(args, connection, output),
        Command::Delete { disk, yes: _ } => {
            let deleted: Deleted = connection.service()?.delete(&format!("/v1/disks/{disk}"))?;
            output.show(&deleted, |deleted| match deleted.dropping.len() {
                0 => format!("deleted {}", deleted.name),
                n => format!("deleted {}; {n} stores are dropping its data", deleted.name),
            });
            Ok(())
        }
    }
}

/// The bytes that were named; those to the disk's end are asked for where the end was left out.
fn named_range(
    range: Option<Bytes>,
    disk: &DiskName,
    service: &Service,
) -> anyhow::Result<Option<ByteRange>> {
    let Some(Bytes { first, end }) = range else {
        return Ok(None);
    };
    let end = match end {
        Some(end) => end,
        None => service.get::<Disk>(&format!("/v1/disks/{disk}"))?.bytes,
    };
    Ok(Some(ByteRange { first, end }))
}
