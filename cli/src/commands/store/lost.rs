//! `ukai store lost` and `ukai store found`: whether anything is expected of a store.

use crate::operator::Connection;
use crate::output::{Output, counted};
use crate::places::{Places, SaidStore};
use placement_service::api::{Bereaved, DeclareLost, Store};

/// Say that a store will not come back: its copies are made anew elsewhere at once.
///
/// Without this a store that is away is waited for, as long as `repair-after` says, since copying is dearer than waiting.
/// Nothing is deleted by it, and nothing is at risk if the store does come back: `ukai store found` takes it back.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ukai store lost tokyo-2 --reason \"its disk burnt\"\n  ukai store found tokyo-2"
)]
pub struct LostArgs {
    /// Its host, its id, or how that begins.
    store: SaidStore,

    /// Why, for whoever looks later.
    #[arg(long, default_value = "")]
    reason: String,
}

/// Take back that a store is lost: what it still has is used again, and it takes the difference.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ukai store found tokyo-2")]
pub struct FoundArgs {
    /// Its host, its id, or how that begins.
    store: SaidStore,
}

pub fn lost(args: LostArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    let places = Places::of(&service)?;
    let id = places.find(&args.store)?;
    let request = DeclareLost {
        reason: args.reason,
    };
    let bereaved: Bereaved = service.post(&format!("/v1/stores/{id}/lost"), &request)?;
    output.show(&bereaved, |bereaved| mourn(bereaved, &places));
    Ok(())
}

pub fn found(args: FoundArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    let places = Places::of(&service)?;
    let id = places.find(&args.store)?;
    let store: Store = service
        .delete(&format!("/v1/stores/{id}/lost"))
        .map_err(|error| places.explained(error))?;
    output.show(&store, |store| {
        let name = places.name(store.id);
        match store.away_since {
            None => format!("{name} counts again, and gets what it lacks"),
            Some(since) => {
                format!("{name} counts again, and is waited for: it has been away since {since}")
            }
        }
    });
    Ok(())
}

fn mourn(bereaved: &Bereaved, places: &Places) -> String {
    let name = places.name(bereaved.store.id);
    let mut lines = vec![match bereaved.disks.len() as u64 {
        0 => format!("{name} is declared lost; no disk had a copy there"),
        disks => format!(
            "{name} is declared lost; copies of {} are made anew elsewhere: `ukai moves`",
            counted(disks, "disk")
        ),
    }];
    for disk in &bereaved.last_copies {
        lines.push(format!(
            "! {disk} has no other complete copy: only {name} itself can bring it back; keep what is left of it"
        ));
    }
    if bereaved.store.away_since.is_none() {
        lines.push(format!(
            "! {name} is up: its copies leave it one after another; was another one meant? `ukai store found` takes it back"
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::store::tests::store;
    use crate::places::tests::places;
    use placement_service::policy::UnixSeconds;
    use replicator::words::DiskName;

    #[test]
    fn what_only_the_lost_store_has_is_named() {
        let disk = |name: &str| DiskName::new(name).unwrap();
        let mut bereaved = Bereaved {
            store: store(1),
            disks: vec![disk("web1"), disk("web2")],
            last_copies: vec![disk("web2")],
        };
        bereaved.store.away_since = Some(UnixSeconds(0));
        assert_eq!(
            mourn(&bereaved, &places()),
            "tokyo-1 is declared lost; copies of 2 disks are made anew elsewhere: `ukai moves`
! web2 has no other complete copy: only tokyo-1 itself can bring it back; keep what is left of it"
        );
        bereaved.store.away_since = None;
        assert!(mourn(&bereaved, &places()).ends_with("`ukai store found` takes it back"));
    }
}
