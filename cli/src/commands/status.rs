//! `ukai status`: safe? local? moving?, in one screen.

use crate::commands::moves;
use crate::operator::Connection;
use crate::output::{Output, aligned, counted, human_bytes, percent};
use placement_service::api::{FarDisk, Status};

/// Of each kind so many disks are named; the others are counted.
const SHOWN: usize = 8;
/// The service lists the widest trouble first: hosts, stores, then disks.
const PROBLEMS_SHOWN: usize = 12;

/// Show in one screen whether everything is safe, near its VM, and moving as it should.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ukai status\n  ukai status --json")]
pub struct Args {}

pub fn run(_: Args, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    let status: Status = service.get("/v1/status")?;
    output.show(&status, describe);
    Ok(())
}

fn describe(status: &Status) -> String {
    let mut lines = vec![format!("safe?    {}", safe(status))];
    lines.push(format!("local?   {}", local(status)));
    lines.extend(far(status));
    lines.push(format!("moving?  {}", moving(status)));
    if !status.moving.is_empty() {
        lines.push(moves_of(status));
    }
    lines.push(format!("fleet    {}", fleet(status)));
    lines.push(format!("room     {}", room(status)));
    let problems = status.problems.iter().take(PROBLEMS_SHOWN);
    lines.extend(problems.map(|problem| format!("! {problem}")));
    if status.problems.len() > PROBLEMS_SHOWN {
        let more = status.problems.len() - PROBLEMS_SHOWN;
        lines.push(format!("! and {more} more: --json lists them all"));
    }
    lines.join("\n")
}

fn safe(status: &Status) -> String {
    match (status.disks, status.disks_short) {
        (0, _) => "there is no disk yet".into(),
        (1, 0) => "yes: the disk has the copies that its policy asks for".into(),
        (disks, 0) => format!("yes: each of {disks} disks has the copies that its policy asks for"),
        (disks, short) => format!(
            "{short} of {} with fewer complete copies than policy asks for",
            counted(disks, "disk")
        ),
    }
}

fn local(status: &Status) -> String {
    match (status.attached, status.disks_far) {
        (0, _) => "no disk is attached".into(),
        (_, 0) => "yes: all blocks of disks in use are near their VMs".into(),
        (attached, far) => format!(
            "{far} of {} with blocks that are not near its VM yet",
            counted(attached, "attached disk")
        ),
    }
}

/// A line a disk, and how many there are besides.
fn far(status: &Status) -> Vec<String> {
    let shown = &status.far[..status.far.len().min(SHOWN)];
    if shown.is_empty() {
        return Vec::new();
    }
    let row = |one: &FarDisk| {
        let near = percent(one.near_extents, one.extents);
        let why = one.why.clone().unwrap_or_default();
        [
            one.disk.to_string(),
            format!("{}, {near} near", one.home),
            why,
        ]
    };
    let mut lines = vec![indented(shown.iter().map(row))];
    let more = status.disks_far - shown.len() as u64;
    if more > 0 {
        lines.push(format!("  and {more} more: `ukai disk list`"));
    }
    lines
}

fn moving(status: &Status) -> String {
    match status.moving.len() as u64 {
        0 => "no".into(),
        moves => {
            let left = status.moving.iter();
            let left: Vec<u64> = left.filter_map(|one| one.progress.left_bytes).collect();
            let disks = counted(moves, "disk");
            match left.is_empty() {
                true => disks,
                false => format!("{disks}, {} left", human_bytes(left.iter().sum())),
            }
        }
    }
}

fn moves_of(status: &Status) -> String {
    let shown = status.moving.iter().take(SHOWN).map(moves::brief);
    let mut lines = vec![indented(shown)];
    if status.moving.len() > SHOWN {
        let more = status.moving.len() - SHOWN;
        lines.push(format!("  and {more} more: `ukai moves`"));
    }
    lines.join("\n")
}

fn indented<const N: usize>(rows: impl Iterator<Item = [String; N]>) -> String {
    let rows = aligned(rows);
    let lines: Vec<String> = rows.lines().map(|row| format!("  {row}")).collect();
    lines.join("\n")
}

fn fleet(status: &Status) -> String {
    format!(
        "{} of {} up, {} of {} up, in {}; {}, {} attached",
        status.hosts_up,
        counted(status.hosts, "host"),
        status.stores_up,
        counted(status.stores, "store"),
        counted(status.datacenters, "datacenter"),
        counted(status.disks, "disk"),
        status.attached,
    )
}

fn room(status: &Status) -> String {
    let mut text = format!(
        "{} used of {}; {} promised to disks, all copies counted",
        human_bytes(status.used_bytes),
        human_bytes(status.capacity_bytes),
        human_bytes(status.provisioned_bytes)
    );
    if status.retired_copies > 0 {
        let copies = counted(status.retired_copies, "copy");
        let bytes = human_bytes(status.retired_bytes);
        text += &format!("; {bytes} in {copies} that nobody needs any more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::moves::tests::under_way;
    use placement_service::api::MoveBrief;
    use replicator::words::{DatacenterName, DiskName, Generation};

    fn quiet() -> Status {
        Status {
            version: "0".into(),
            generation: Generation(1),
            datacenters: 2,
            hosts: 3,
            hosts_up: 3,
            stores: 3,
            stores_up: 3,
            disks: 12,
            attached: 4,
            disks_short: 0,
            disks_far: 0,
            far: Vec::new(),
            moving: Vec::new(),
            retired_copies: 0,
            retired_bytes: 0,
            capacity_bytes: 300 << 30,
            used_bytes: 12 << 30,
            provisioned_bytes: 40 << 30,
            problems: Vec::new(),
        }
    }

    fn far_disk(name: &str, why: Option<&str>) -> FarDisk {
        FarDisk {
            disk: DiskName::new(name).unwrap(),
            home: DatacenterName::new("tokyo").unwrap(),
            extents: 32,
            near_extents: 15,
            why: why.map(str::to_owned),
        }
    }

    #[test]
    fn when_all_is_well_it_is_five_lines() {
        assert_eq!(
            describe(&quiet()),
            "safe?    yes: each of 12 disks has the copies that its policy asks for
local?   yes: all blocks of disks in use are near their VMs
moving?  no
fleet    3 of 3 hosts up, 3 of 3 stores up, in 2 datacenters; 12 disks, 4 attached
room     12 GiB used of 300 GiB; 40 GiB promised to disks, all copies counted"
        );
    }

    #[test]
    fn what_needs_attention_is_named() {
        let one = under_way();
        let status = Status {
            disks_short: 1,
            disks_far: 2,
            far: vec![
                far_disk("web1", None),
                far_disk(
                    "web2",
                    Some("no store in tokyo that is up and may have it has room"),
                ),
            ],
            retired_copies: 2,
            retired_bytes: 6 << 30,
            moving: vec![MoveBrief {
                number: one.number,
                disk: one.disk.clone(),
                kind: one.kind,
                from: one.from.clone(),
                to: one.to.clone(),
                state: one.state.clone(),
                progress: one.progress,
            }],
            problems: vec!["disk db1: 320 extents have fewer than 2 complete copies".into()],
            ..quiet()
        };
        assert_eq!(
            describe(&status),
            "safe?    1 of 12 disks with fewer complete copies than policy asks for
local?   2 of 4 attached disks with blocks that are not near its VM yet
  web1  tokyo, 46% near
  web2  tokyo, 46% near  no store in tokyo that is up and may have it has room
moving?  1 disk, 4 GiB left
  web1  tokyo -> osaka  copying  50%  95 MiB/s  43s
fleet    3 of 3 hosts up, 3 of 3 stores up, in 2 datacenters; 12 disks, 4 attached
room     12 GiB used of 300 GiB; 40 GiB promised to disks, all copies counted; 6 GiB in 2 copies that nobody needs any more
! disk db1: 320 extents have fewer than 2 complete copies"
        );
    }

    #[test]
    fn many_are_counted() {
        let status = Status {
            disks_far: 40,
            far: (0..20)
                .map(|n| far_disk(&format!("web{n}"), None))
                .collect(),
            problems: (0..40).map(|n| format!("problem {n}")).collect(),
            ..quiet()
        };
        let text = describe(&status);
        assert!(
            text.contains("\n  and 32 more: `ukai disk list`\n"),
            "{text}"
        );
        assert!(
            text.ends_with("! problem 11\n! and 28 more: --json lists them all"),
            "{text}"
        );
    }
}
