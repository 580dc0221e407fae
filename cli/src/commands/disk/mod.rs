//! `ukai disk`: one file a verb.

mod attach;
mod create;
mod image;
mod list;
mod map;

use crate::operator::Connection;
use crate::output::Output;
use placement_service::api::Deleted;
use replicator::words::DiskName;

/// Create, attach, look at, copy and delete disks.
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
    /// Draw which extents stand on which stores, and what they occupy there.
    #[command(after_help = "Example:\n  ukai disk map web1")]
    Map {
        disk: DiskName,
    },
    Attach(attach::AttachArgs),
    Detach(attach::DetachArgs),
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
        Command::Map { disk } => map::run(&disk, connection, output),
        Command::Attach(args) => attach::attach(args, connection, output),
        Command::Detach(args) => attach::detach(args, connection, output),
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
