//! `ukai datacenter`: the sites of the cluster.

use crate::operator::Connection;
use crate::output::{Output, human_bytes, table};
use placement_service::api::{CreateDatacenter, Datacenter};
use replicator::words::DatacenterName;

/// List datacenters, or add one before its first node announces itself.
#[derive(clap::Subcommand)]
pub enum Command {
    /// List the datacenters with what they have.
    #[command(after_help = "Example:\n  ukai datacenter list")]
    List,
    /// Add a datacenter. Nodes add theirs by themselves; this is for naming one beforehand.
    #[command(after_help = "Example:\n  ukai datacenter add osaka")]
    Add { name: DatacenterName },
}

pub fn run(command: Command, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    match command {
        Command::List => {
            let datacenters: Vec<Datacenter> = service.get("/v1/datacenters")?;
            output.show(&datacenters, |datacenters| {
                let rows = datacenters.iter().map(|datacenter| {
                    [
                        datacenter.name.to_string(),
                        datacenter.racks.to_string(),
                        format!("{} of {} up", datacenter.hosts_up, datacenter.hosts),
                        datacenter.stores.to_string(),
                        human_bytes(datacenter.used_bytes),
                        human_bytes(datacenter.capacity_bytes),
                    ]
                });
                table(
                    ["DATACENTER", "RACKS", "HOSTS", "STORES", "USED", "CAPACITY"],
                    rows,
                )
            });
        }
        Command::Add { name } => {
            let added: Datacenter = service.post("/v1/datacenters", &CreateDatacenter { name })?;
            output.show(&added, |added| format!("added datacenter {}", added.name));
        }
    }
    Ok(())
}
