//! `ukai disk map`: a disk's extents and the stores that have them, drawn in the terminal.

mod draw;
mod ranges;
mod what;

use crate::operator::Connection;
use crate::output::Output;
use placement_service::api::DiskMap;
use replicator::words::DiskName;

/// Without --ranges so many are listed below the drawing.
const RANGES_SHOWN: usize = 6;

/// Draw which extents stand on which stores: whole, being filled, sealed, or not needed any more.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ukai disk map web1\n  ukai disk map web1 --ranges")]
pub struct Args {
    disk: DiskName,

    /// List all ranges with their histories, however many there are.
    #[arg(long)]
    ranges: bool,
}

pub fn run(args: Args, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let path = format!("/v1/disks/{}/map", args.disk);
    let map: DiskMap = connection.service()?.get(&path)?;
    let pen = draw::Pen::for_output(output);
    let shown = if args.ranges {
        usize::MAX
    } else {
        RANGES_SHOWN
    };
    output.show(&map, |map| {
        format!("{}\n\n{}", draw::draw(map, &pen), ranges::list(map, shown))
    });
    Ok(())
}
