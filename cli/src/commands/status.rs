//! `ukai status`: is it safe?, in one screen.

use crate::operator::Connection;
use crate::output::{Output, human_bytes};
use placement_service::api::Status;

/// Show whether everything is well, and what is not.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ukai status --json")]
pub struct Args {}

pub fn run(_: Args, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let status: Status = connection.service()?.get("/v1/status")?;
    output.show(&status, describe);
    Ok(())
}

fn describe(status: &Status) -> String {
    let mut lines = vec![
        format!(
            "{} disks, {} attached; {} of {} hosts up, {} of {} stores up, in {} datacenters",
            status.disks,
            status.attached,
            status.hosts_up,
            status.hosts,
            status.stores_up,
            status.stores,
            status.datacenters
        ),
        format!(
            "{} used of {}; {} promised to disks, all copies counted",
            human_bytes(status.used_bytes),
            human_bytes(status.capacity_bytes),
            human_bytes(status.provisioned_bytes)
        ),
    ];
    if status.problems.is_empty() {
        lines.push("nothing needs attention".into());
    }
    lines.extend(status.problems.iter().map(|problem| format!("! {problem}")));
    lines.join("\n")
}
