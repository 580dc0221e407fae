//! `ukai store`: the replica stores, what is said of them, and the offline check of one.

mod evacuate;
mod lost;

use crate::exit::{Code, Failure};
use crate::operator::Connection;
use crate::output::{Output, counted, human_bytes, table};
use placement_service::api::{Liveness, MoveStore, Store, StoreOrder, StoreOrderKind, StoreTask};
use replicator::words::{HostName, StoreId};
use serde::Serialize;
use std::path::PathBuf;

/// List stores, empty one, say that one is lost or was carried to another host, check a stopped one for damage.
#[derive(clap::Subcommand)]
pub enum Command {
    /// List the stores.
    #[command(after_help = "Example:\n  ukai store list")]
    List,
    /// Read a stopped store's directory and report damage. Changes nothing.
    #[command(after_help = "Example:\n  ukai store check /var/lib/ukai/store")]
    Check {
        dir: PathBuf,
    },
    /// Say that a store's directory was carried to another host on purpose.
    #[command(after_help = "Example:\n  ukai store moved 0c3e… --host tokyo-2")]
    Moved {
        id: StoreId,
        #[arg(long)]
        host: HostName,
    },
    Lost(lost::LostArgs),
    Found(lost::FoundArgs),
    Evacuate(evacuate::Args),
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
        Command::Lost(args) => lost::lost(args, connection, output)?,
        Command::Found(args) => lost::found(args, connection, output)?,
        Command::Evacuate(args) => evacuate::run(args, connection, output)?,
        Command::Check { dir } => check(dir, output)?,
    }
    Ok(())
}

fn list(stores: &[Store]) -> String {
    let rows = stores.iter().map(|store| {
        [
            store.id.to_string(),
            store.host.to_string(),
            store.rack.to_string(),
            store.datacenter.to_string(),
            store.used_bytes.map_or("?".into(), human_bytes),
            store.capacity_bytes.map_or("?".into(), human_bytes),
            human_bytes(store.provisioned_bytes),
            state(store),
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

/// The worst that there is to say of it.
fn state(store: &Store) -> String {
    let well = || match &store.order {
        Some(order) => ordered(store, order),
        None => liveness(store.liveness),
    };
    let state = store
        .refused
        .clone()
        .or(store.trouble.clone())
        .unwrap_or_else(well);
    match store.media.map_or(0, |media| media.damaged_blocks) {
        0 => state,
        damaged => format!("{state}, {} damaged", counted(damaged, "block")),
    }
}

fn ordered(store: &Store, order: &StoreOrder) -> String {
    let StoreTask {
        disks_left,
        bytes_left,
    } = store.task;
    let left = format!(
        "{}, {}",
        counted(disks_left, "disk"),
        human_bytes(bytes_left)
    );
    let up = match store.liveness {
        Liveness::Up => String::new(),
        other => format!(", {}", liveness(other)),
    };
    let what = match (order.kind, disks_left) {
        (StoreOrderKind::Evacuate, 0) => "empty, and gets nothing new".to_owned(),
        (StoreOrderKind::Evacuate, _) => format!("being emptied: {left} left"),
        (StoreOrderKind::Lost, 0) => "declared lost, and replaced".into(),
        (StoreOrderKind::Lost, _) => format!("declared lost: {left} left to replace"),
    };
    match order.reason.is_empty() {
        true => format!("{what}{up}"),
        false => format!("{what}{up} ({:?}, {})", order.reason, order.by),
    }
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

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::places::tests::store as id;
    use placement_service::policy::UnixSeconds;
    use replicator::words::{DatacenterName, RackName};

    /// A store that is well, on its host in tokyo.
    pub fn store(n: u8) -> Store {
        Store {
            id: id(n.into()),
            host: HostName::new(format!("tokyo-{n}")).unwrap(),
            datacenter: DatacenterName::new("tokyo").unwrap(),
            rack: RackName::new("r1").unwrap(),
            address: None,
            liveness: Liveness::Up,
            starts: 1,
            capacity_bytes: Some(100 << 30),
            used_bytes: Some(12 << 30),
            provisioned_bytes: 40 << 30,
            refused: None,
            media: None,
            trouble: None,
            away_since: None,
            order: None,
            task: StoreTask::default(),
        }
    }

    #[test]
    fn what_was_said_of_a_store_and_what_it_still_has_is_shown() {
        let mut one = store(1);
        assert_eq!(state(&one), "up");
        one.order = Some(StoreOrder {
            kind: StoreOrderKind::Evacuate,
            reason: "new disks".into(),
            by: "alice".into(),
            at: UnixSeconds(0),
        });
        one.task.disks_left = 3;
        one.task.bytes_left = 12 << 30;
        assert_eq!(
            state(&one),
            "being emptied: 3 disks, 12 GiB left (\"new disks\", alice)"
        );
        one.task = StoreTask::default();
        assert!(state(&one).starts_with("empty, and gets nothing new ("));
        one.order.as_mut().unwrap().kind = StoreOrderKind::Lost;
        one.order.as_mut().unwrap().reason.clear();
        one.liveness = Liveness::Silent { for_ms: 9000 };
        assert_eq!(state(&one), "declared lost, and replaced, silent for 9 s");
        one.trouble = Some("a sync failed".into());
        assert_eq!(state(&one), "a sync failed");
    }
}
