//! `ukai store`: the replica stores, and the offline check of one.

use crate::exit::{Code, Failure};
use crate::operator::Connection;
use crate::output::{Output, human_bytes, table};
use placement_service::api::{Liveness, MoveStore, Store};
use replicator::words::{HostName, StoreId};
use serde::Serialize;
use std::path::PathBuf;

/// List stores, check a stopped one for damage, or say that one was carried to another host.
#[derive(clap::Subcommand)]
pub enum Command {
    /// List the stores.
    #[command(after_help = "Example:\n  ukai store list")]
    List,
    /// Read a stopped store's directory and report damage. Changes nothing.
    #[command(after_help = "Example:\n  ukai store check /var/lib/ukai/store")]
    Check { dir: PathBuf },
    /// Say that a store's directory was carried to another host on purpose.
    #[command(after_help = "Example:\n  ukai store moved 0c3e… --host tokyo-2")]
    Moved {
        id: StoreId,
        #[arg(long)]
        host: HostName,
    },
}

pub fn run(command: Command, connection: &Connection, output: Output) -> anyhow::Result<()> {
    match command {
        Command::List => {
            let stores: Vec<Store> = connection.service()?.get("/v1/stores")?;
            output.show(&stores, |stores| list(stores));
        }
        Command::Moved { id, host } => {
            let store: Store = connection
                .service()?
                .post(&format!("/v1/stores/{id}/host"), &MoveStore { host })?;
            output.show(&store, |store| {
                format!("store {} is on {} from now on", store.id, store.host)
            });
        }
        Command::Check { dir } => check(dir, output)?,
    }
    Ok(())
}

fn list(stores: &[Store]) -> String {
    let rows = stores.iter().map(|store| {
        let state = store
            .refused
            .clone()
            .or(store.trouble.clone())
            .unwrap_or_else(|| liveness(store.liveness));
        [
            store.id.to_string(),
            store.host.to_string(),
            store.rack.to_string(),
            store.datacenter.to_string(),
            store.used_bytes.map_or("?".into(), human_bytes),
            store.capacity_bytes.map_or("?".into(), human_bytes),
            human_bytes(store.provisioned_bytes),
            state,
        ]
    });
    table(
        [
            "STORE",
            "HOST",
            "RACK",
            "DATACENTER",
            "USED",
            "CAPACITY",
            "PROMISED",
            "STATE",
        ],
        rows,
    )
}

pub fn liveness(liveness: Liveness) -> String {
    match liveness {
        Liveness::Up => "up".into(),
        Liveness::Silent { for_ms } => format!("silent for {} s", for_ms / 1000),
        Liveness::Unheard => "not heard of yet".into(),
    }
}

#[derive(Serialize)]
struct Checked {
    dir: PathBuf,
    segments: u64,
    frames: u64,
    bytes: u64,
    damage: Vec<String>,
}

fn check(dir: PathBuf, output: Output) -> anyhow::Result<()> {
    let report = replicator::store::check::check(&dir)?;
    let damage = report.damage.iter().map(ToString::to_string).collect();
    let checked = Checked {
        dir,
        segments: report.segments,
        frames: report.frames,
        bytes: report.bytes,
        damage,
    };
    output.show(&checked, |checked| {
        let size = human_bytes(checked.bytes);
        let mut lines = vec![format!(
            "checked {} frames, {size}, in {} segments",
            checked.frames, checked.segments
        )];
        lines.extend(
            checked
                .damage
                .iter()
                .map(|damage| format!("damage: {damage}")),
        );
        if checked.damage.is_empty() {
            lines.push("no damage".into());
        }
        lines.join("\n")
    });
    if checked.damage.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Code::Failed,
        format!("the store in {} is damaged", checked.dir.display()),
    )
    .because("the report above says what and where")
    .try_next(
        "keep the directory; its disks' other copies are whole unless their stores are damaged too",
    )
    .into())
}
