//! `ukai disk explain`: why each copy is where it is.

use crate::commands::plan::shortfall;
use crate::operator::Connection;
use crate::output::{Output, wrapped};
use crate::places::Places;
use placement_service::planner::{Awaited, CopyState, ExplainedCopy, Explanation, Role};
use replicator::words::{DiskName, Extents};

/// Lines longer than this are hard to read, however wide the terminal.
const WIDEST: usize = 110;

pub fn run(name: &DiskName, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    let explanation: Explanation = service.get(&format!("/v1/disks/{name}/explain"))?;
    let places = Places::of(&service)?;
    let width = output.width().min(WIDEST);
    output.show(&explanation, |told| {
        places.told(&describe(told, &places, width))
    });
    Ok(())
}

fn describe(told: &Explanation, places: &Places, width: usize) -> String {
    let rules = told.governed_by.iter();
    let rules: Vec<String> = rules.map(|rule| wrapped("  ", rule, width)).collect();
    let mut parts = vec![format!("{}\n{}", told.disk, rules.join("\n"))];
    let copies = told.copies.iter();
    parts.extend(copies.map(|one| copy(one, places, width)));
    let missing = told.missing.iter().map(shortfall);
    let missing: Vec<String> = missing.chain(told.awaited.iter().map(awaited)).collect();
    if !missing.is_empty() {
        parts.push(missing.join("\n"));
    }
    parts.join("\n\n")
}

fn awaited(one: &Awaited) -> String {
    format!(
        "! extents {} miss a copy: store {} is away, and is waited for until {}; then another one is made",
        one.extents, one.store, one.until
    )
}

fn copy(copy: &ExplainedCopy, places: &Places, width: usize) -> String {
    let name = places.name(copy.store);
    let datacenter = copy
        .datacenter
        .as_ref()
        .map_or(String::new(), |datacenter| format!(" in {datacenter}"));
    let extents: Vec<String> = copy.extents.iter().map(Extents::to_string).collect();
    let mut lines = vec![format!(
        "{name}{datacenter}: extents {}, {}",
        extents.join(", "),
        state(copy)
    )];
    for (lead, text) in [
        ("  here because    ", &copy.why_here),
        ("  not elsewhere   ", &copy.why_not_elsewhere),
        ("  changed by      ", &copy.what_would_change_it),
    ] {
        if !text.is_empty() {
            lines.push(wrapped(lead, text, width));
        }
    }
    lines.join("\n")
}

fn state(copy: &ExplainedCopy) -> String {
    let state = match copy.state {
        CopyState::Complete => "complete".to_owned(),
        CopyState::Filling => "being filled".into(),
        CopyState::Sealed { until } => format!("sealed at epoch {until}"),
        CopyState::Retired => "not needed any more".into(),
        CopyState::Planned => "wanted, not there yet".into(),
    };
    let role = match copy.role {
        Some(Role::Near) => ", a near copy",
        Some(Role::Away) => ", kept away",
        Some(Role::StandIn) => ", standing in",
        Some(Role::Also) => ", added by hand",
        Some(Role::Retained) => ", until another takes its place",
        None => "",
    };
    state + role
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::tests::{places, store};
    use placement_service::planner::Shortfall;
    use placement_service::policy::UnixSeconds;
    use replicator::words::{DatacenterName, Extent};

    #[test]
    fn each_copy_answers_three_questions() {
        let extents = Extents::new(Extent(0), Extent(32));
        let told = Explanation {
            disk: DiskName::new("web1").unwrap(),
            governed_by: vec!["The policy of tokyo asks for 2 copies where the VM runs.".into()],
            copies: vec![ExplainedCopy {
                store: store(1),
                host: None,
                datacenter: Some(DatacenterName::new("tokyo").unwrap()),
                extents: vec![extents],
                state: CopyState::Complete,
                role: Some(Role::Away),
                why_here: "The policy keeps a copy away in tokyo, whatever happens.".into(),
                why_not_elsewhere: "Durability comes before locality.".into(),
                what_would_change_it: "Changing `away`.".into(),
            }],
            missing: vec![Shortfall {
                extents,
                missing: 1,
                why: "no host is free".into(),
            }],
            awaited: vec![Awaited {
                extents,
                store: store(2),
                until: UnixSeconds(1_795_298_400),
            }],
        };
        let text = describe(&told, &places(), 60);
        let until = UnixSeconds(1_795_298_400);
        assert_eq!(
            places().told(&text),
            format!("web1
  The policy of tokyo asks for 2 copies where the VM runs.

tokyo-1 in tokyo: extents 0..32, complete, kept away
  here because    The policy keeps a copy away in tokyo,
                  whatever happens.
  not elsewhere   Durability comes before locality.
  changed by      Changing `away`.

! extents 0..32 stay short of 1 copy: no host is free
! extents 0..32 miss a copy: tokyo-2 is away, and is waited for until {until}; then another one is made")
        );
    }
}
