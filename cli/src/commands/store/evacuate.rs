//! `ukai store evacuate`: empties a store that works.

use crate::exit::{Code, Failure};
use crate::operator::{Connection, ORDER_PATIENCE};
use crate::output::{Output, counted, human_bytes, table};
use crate::places::{Places, SaidStore};
use placement_service::api::{Evacuate, Evacuation, Store};
use std::time::Duration;

/// Empty a store that works, before it is taken away.
///
/// Each copy goes when another one is complete elsewhere, so that no disk has a copy less meanwhile; a bounded number of
/// disks at a time, within the copy limits. The store gets nothing new until this is cancelled.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ukai store evacuate tokyo-2 --plan\n  ukai store evacuate tokyo-2 --reason \"new disks\"\n  ukai store list                # how much is left\n  ukai store evacuate tokyo-2 --cancel"
)]
pub struct Args {
    /// Its host, its id, or how that begins.
    store: SaidStore,

    /// Only show what would be done.
    #[arg(long)]
    plan: bool,

    /// Leave what is still there where it is.
    #[arg(long, conflicts_with = "plan")]
    cancel: bool,

    /// Why, for whoever looks later.
    #[arg(long, default_value = "", conflicts_with = "cancel")]
    reason: String,
}

pub fn run(args: Args, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let patience = match args.plan {
        true => Duration::ZERO,
        false => ORDER_PATIENCE,
    };
    let service = connection.service()?.patient(patience, output);
    let places = Places::of(&service)?;
    let id = places.find(&args.store)?;
    let path = format!("/v1/stores/{id}/evacuate");
    if args.cancel {
        let store: Store = service
            .delete(&path)
            .map_err(|error| places.explained(error))?;
        output.show(&store, |store| {
            format!(
                "{} is emptied no more: what is still there stays",
                places.name(store.id)
            )
        });
        return Ok(());
    }
    let request = Evacuate {
        reason: args.reason,
        plan_only: args.plan,
    };
    let evacuation: Evacuation = service
        .post(&path, &request)
        .map_err(|error| places.explained(error))?;
    output.show(&evacuation, |evacuation| {
        places.told(&describe(evacuation, &places, args.plan))
    });
    if args.plan && !evacuation.stuck.is_empty() {
        let name = places.name(id);
        return Err(
            Failure::new(Code::Refused, format!("{name} cannot be emptied now"))
                .because("nothing else can take what the plan names")
                .try_next("start a node with a store where they may stand, or make room")
                .into(),
        );
    }
    Ok(())
}

fn describe(evacuation: &Evacuation, places: &Places, plan: bool) -> String {
    let name = places.name(evacuation.store.id);
    if evacuation.disks.is_empty() {
        return match plan {
            true => format!("nothing stands on {name}"),
            false => format!("{name} is empty, and gets nothing new"),
        };
    }
    let disks = counted(evacuation.disks.len() as u64, "disk");
    let bytes = human_bytes(evacuation.bytes);
    let mut parts = vec![match plan {
        true => format!("{disks} would leave {name}, {bytes} to copy:"),
        false if evacuation.disks.len() == 1 => format!("{disks} leaves {name}, {bytes} to copy:"),
        false => format!("{disks} leave {name}, {bytes} to copy:"),
    }];
    let rows = evacuation.disks.iter().map(|disk| {
        let to = match disk.to.is_empty() {
            true => "-".into(),
            false => places.names(&disk.to),
        };
        [disk.disk.to_string(), to, human_bytes(disk.bytes)]
    });
    parts.push(table(["DISK", "TO", "BYTES"], rows));
    parts.extend(evacuation.stuck.iter().map(|why| format!("! {why}")));
    if !plan {
        parts.push(format!(
            "`ukai moves --watch` shows how far they are; `ukai store evacuate {name} --cancel` leaves the rest"
        ));
    }
    parts.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::store::tests::store;
    use crate::places::tests::{places, store as id};
    use placement_service::api::EvacuatedDisk;
    use replicator::words::DiskName;

    #[test]
    fn each_disk_says_where_it_goes_and_what_keeps_it() {
        let mut evacuation = Evacuation {
            store: store(1),
            disks: vec![EvacuatedDisk {
                disk: DiskName::new("web1").unwrap(),
                to: vec![id(2)],
                bytes: 3 << 30,
            }],
            bytes: 3 << 30,
            stuck: Vec::new(),
        };
        let text = describe(&evacuation, &places(), false);
        assert!(
            text.starts_with("1 disk leaves tokyo-1, 3 GiB to copy:\nDISK"),
            "{text}"
        );
        assert!(text.ends_with("`ukai store evacuate tokyo-1 --cancel` leaves the rest"));
        evacuation
            .stuck
            .push("disk web1, extents 0..9: no room".into());
        let text = describe(&evacuation, &places(), true);
        assert!(text.starts_with("1 disk would leave"), "{text}");
        assert!(
            text.ends_with("! disk web1, extents 0..9: no room"),
            "{text}"
        );
        evacuation.disks.clear();
        assert_eq!(
            describe(&evacuation, &places(), true),
            "nothing stands on tokyo-1"
        );
    }
}
