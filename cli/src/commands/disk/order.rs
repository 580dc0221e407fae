//! `ukai disk move`, `add-copy`, `drop-copy`: an operator's own placement. Each can be planned first, and
//! then does that plan.

use super::named_range;
use crate::commands::{moves, plan};
use crate::operator::{Connection, ORDER_PATIENCE, Service};
use crate::output::{Bytes, Output};
use crate::places::{Places, SaidStore};
use placement_service::api::{AddCopy, DropCopy, MoveDisk, Ordered};
use placement_service::planner::Target;
use replicator::words::{DatacenterName, DiskName};
use std::time::Duration;

/// Have a disk's copies stand in another datacenter, until its VM runs elsewhere.
///
/// A disk follows its VM by itself; this is for moving it ahead of the VM, or without it.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ukai disk move web1 --to osaka --plan\n  ukai disk move web1 --to osaka --range 0..10G --reason 'the database goes first'"
)]
pub struct MoveArgs {
    disk: DiskName,

    /// Where to.
    #[arg(long, value_name = "DATACENTER")]
    to: DatacenterName,

    /// Only these bytes; whole extents are moved.
    #[arg(long, value_name = "FIRST..END")]
    range: Option<Bytes>,

    #[command(flatten)]
    how: How,
}

/// Give a disk one copy more, besides those that policy asks for.
///
/// It stays until `drop-copy` takes it away.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ukai disk add-copy web1 --to osaka\n  ukai disk add-copy web1 --store tokyo-3 --range 0..10G"
)]
pub struct AddArgs {
    disk: DiskName,

    #[command(flatten)]
    at: At,

    /// Only these bytes; whole extents are copied.
    #[arg(long, value_name = "FIRST..END")]
    range: Option<Bytes>,

    #[command(flatten)]
    how: How,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct At {
    /// On this store: its host, or its id.
    #[arg(long)]
    store: Option<SaidStore>,

    /// On the best store of this datacenter.
    #[arg(long, value_name = "DATACENTER")]
    to: Option<DatacenterName>,
}

/// Take a copy away, when policy can do without it.
///
/// Refused, with the reason, when it would break what policy promises. With --force it is done all the
/// same, and what is lost by it is named; policy then makes another one on another store. A copy that is the only one
/// is dropped by no force.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ukai disk drop-copy web1 --store osaka-1 --plan\n  ukai disk drop-copy web1 --store 0c3e5a1f --force --reason 'its media fail'"
)]
pub struct DropArgs {
    disk: DiskName,

    /// The store: its host, or its id.
    #[arg(long)]
    store: SaidStore,

    /// Only these bytes; whole extents are dropped.
    #[arg(long, value_name = "FIRST..END")]
    range: Option<Bytes>,

    /// Although policy asks for it.
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    how: How,
}

#[derive(clap::Args)]
struct How {
    /// Only show what would be done.
    #[arg(long)]
    plan: bool,

    /// Begin it, and do not stay to show how far it is.
    #[arg(long, conflicts_with = "plan")]
    leave: bool,

    /// Why, for those who come later: `ukai disk explain` shows it.
    #[arg(long, default_value = "")]
    reason: String,
}

impl How {
    /// How long a placement service that is away is waited for: a plan is only looked at, and who stays with a
    /// move waits at its beginning as long as later.
    fn patience(&self) -> Duration {
        match (self.plan, self.leave) {
            (true, _) => Duration::ZERO,
            (false, true) => ORDER_PATIENCE,
            (false, false) => moves::PATIENCE,
        }
    }
}

pub fn move_to(args: MoveArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?.patient(args.how.patience(), output);
    let order = MoveDisk {
        to: args.to,
        range: named_range(args.range, &args.disk, &service)?,
        reason: args.how.reason.clone(),
        plan_only: args.how.plan,
    };
    let places = Places::of(&service)?;
    let ordered = service.post(&format!("/v1/disks/{}/move", args.disk), &order)?;
    carry_out(ordered, &args.how, &places, &service, output)
}

pub fn add_copy(args: AddArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?.patient(args.how.patience(), output);
    let places = Places::of(&service)?;
    let to = match (args.at.store, args.at.to) {
        (Some(store), _) => Target::Store(places.find(&store)?),
        (None, Some(datacenter)) => Target::Datacenter(datacenter),
        (None, None) => unreachable!("clap requires one of them"),
    };
    let order = AddCopy {
        to,
        range: named_range(args.range, &args.disk, &service)?,
        reason: args.how.reason.clone(),
        plan_only: args.how.plan,
    };
    let ordered = service.post(&format!("/v1/disks/{}/copies", args.disk), &order);
    let ordered = ordered.map_err(|error| places.explained(error))?;
    carry_out(ordered, &args.how, &places, &service, output)
}

pub fn drop_copy(args: DropArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?.patient(args.how.patience(), output);
    let places = Places::of(&service)?;
    let order = DropCopy {
        store: places.find(&args.store)?,
        range: named_range(args.range, &args.disk, &service)?,
        force: args.force,
        reason: args.how.reason.clone(),
        plan_only: args.how.plan,
    };
    let ordered = service.delete_of(&format!("/v1/disks/{}/copies", args.disk), &order);
    let ordered = ordered.map_err(|error| places.explained(error))?;
    carry_out(ordered, &args.how, &places, &service, output)
}

/// Shows what an order comes to, and stays with it until it is done.
fn carry_out(
    mut ordered: Ordered,
    how: &How,
    places: &Places,
    service: &Service,
    output: Output,
) -> anyhow::Result<()> {
    let stays = !how.plan && !how.leave;
    let Some(one) = ordered.under_way.take_if(|_| stays) else {
        output.show(&ordered, |ordered| describe(ordered, how, places));
        return Ok(());
    };
    output.say(describe(&ordered, how, places));
    let ended = moves::watch(&one.disk, one.number, service, output)?.or_left()?;
    let cancelled = moves::was_cancelled(&ended);
    ordered.under_way = Some(ended);
    if output.is_json() {
        output.show(&ordered, |_| String::new());
    }
    match cancelled {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}

fn describe(ordered: &Ordered, how: &How, places: &Places) -> String {
    let mut lines = vec![plan::describe(&ordered.plan, places)];
    let lost = ordered.losses.iter();
    lines.extend(lost.map(|loss| format!("! this is lost: {loss}")));
    let name = &ordered.plan.name;
    match &ordered.under_way {
        Some(_) if how.leave => lines.push(format!(
            "it has begun; `ukai moves {name} --watch` shows how far it is"
        )),
        None if how.plan && !ordered.plan.is_empty() => {
            lines.push("nothing was done; without --plan this is what is done".into());
        }
        _ => {}
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::plan::tests::plan as example;
    use crate::places::tests::places;

    fn how(plan: bool, leave: bool) -> How {
        How {
            plan,
            leave,
            reason: String::new(),
        }
    }

    #[test]
    fn a_plan_says_that_nothing_was_done_and_force_names_what_is_lost() {
        let mut ordered = Ordered {
            plan: example(),
            losses: vec!["extents 0..32 are left with 1 complete copy".into()],
            under_way: None,
        };
        let text = describe(&ordered, &how(true, false), &places());
        assert!(text.contains("! this is lost: extents 0..32"), "{text}");
        assert!(text.ends_with("nothing was done; without --plan this is what is done"));
        ordered.plan.steps.clear();
        let text = describe(&ordered, &how(true, false), &places());
        assert!(!text.contains("nothing was done"), "{text}");
    }
}
