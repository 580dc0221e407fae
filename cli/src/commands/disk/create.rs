//! `ukai disk create`.

use crate::operator::Connection;
use crate::output::{Output, human_bytes, parse_bytes};
use placement_service::api::{CreateDisk, Created};
use placement_service::policy::ClassName;
use replicator::words::{DatacenterName, DiskName, ExtentSize, HostName};

/// Create a thin disk: it occupies what is written to it.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ukai disk create web1 --size 20G --copies 2 --near tokyo-1")]
pub struct Args {
    disk: DiskName,

    /// How large the guest sees it: 20G, 512M (powers of 1024).
    #[arg(long, value_parser = parse_bytes)]
    size: u64,

    /// On how many stores each write must stand before the guest hears of it.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    copies: u8,

    /// The unit of placement, a power of two from 1M to 1G [default: 64M].
    #[arg(long, value_parser = parse_extent_size)]
    extent_size: Option<ExtentSize>,

    /// Only on stores of this datacenter.
    #[arg(long)]
    datacenter: Option<DatacenterName>,

    /// The host where the VM will run: a copy there if possible, the others close to it.
    #[arg(long)]
    near: Option<HostName>,

    /// The class that governs it, of those that policy files name [default: their default class].
    #[arg(long)]
    class: Option<ClassName>,
}

fn parse_extent_size(text: &str) -> Result<ExtentSize, String> {
    ExtentSize::new(parse_bytes(text)?)
}

pub fn run(args: Args, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let request = CreateDisk {
        name: args.disk,
        bytes: args.size,
        copies: args.copies,
        extent_size: args.extent_size.unwrap_or_default(),
        datacenter: args.datacenter,
        near: args.near,
        class: args.class,
    };
    let created: Created = connection.service()?.post("/v1/disks", &request)?;
    output.show(&created, |created| {
        let disk = &created.disk;
        let mut lines = vec![format!(
            "created {}: {}, {} copies",
            disk.name,
            human_bytes(disk.bytes),
            disk.copies
        )];
        lines.extend(created.notes.iter().map(|note| format!("note: {note}")));
        lines.join("\n")
    });
    Ok(())
}
