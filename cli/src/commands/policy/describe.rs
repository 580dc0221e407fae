//! Policies in words: what is wrong in a file, what it would change, what holds.

use crate::commands::plan::{crosses, shortfall};
use crate::output::{counted, human_bytes, table};
use crate::places::Places;
use placement_service::api::{PolicyCheck, PolicyDiff, PolicyView};
use placement_service::planner::{Diff, DiskDiff};
use replicator::words::DatacenterName;

/// More disks than this are counted, not listed.
const DISKS_SHOWN: usize = 20;

/// Whether `file` may be applied, and why not.
pub fn check(file: &str, datacenter: &DatacenterName, check: &PolicyCheck) -> String {
    let verdict = match check.may_be_applied() {
        true => "can be kept",
        false => "cannot be applied",
    };
    let mut lines = vec![format!(
        "{file}: as the policy of {datacenter} it {verdict}"
    )];
    lines.extend(check.faults.iter().map(|fault| format!("  ! {fault}")));
    let refused = check.checked.refused.iter();
    lines.extend(refused.map(|one| format!("  ! {one}")));
    let notes = check.checked.notes.iter();
    lines.extend(notes.map(|note| format!("  note: {note}")));
    lines.join("\n")
}

/// What it changes, disk by disk, and what crosses links for it.
pub fn diff(file: &str, datacenter: &DatacenterName, diff: &PolicyDiff, places: &Places) -> String {
    let mut text = match diff.applied {
        false => check(file, datacenter, &diff.check),
        true => {
            let notes = diff.check.checked.notes.iter();
            let notes: String = notes.map(|note| format!("\n  note: {note}")).collect();
            format!("{file}: the policy of {datacenter} from now on{notes}")
        }
    };
    if let Some(changes) = &diff.diff {
        text += "\n";
        text += &changed(changes, diff.applied, places);
    }
    text
}

fn changed(diff: &Diff, applied: bool, places: &Places) -> String {
    let looked_at = counted(diff.looked_at, "disk");
    if diff.disks.is_empty() {
        return format!("no disk comes to stand elsewhere, of {looked_at}");
    }
    let verb = if applied { "comes" } else { "would come" };
    let rows = diff.disks.iter().take(DISKS_SHOWN);
    let rows = rows.map(|disk| {
        [
            disk.name.to_string(),
            format!("{} of {}", disk.least_copies, disk.wanted_copies),
            some(places.names(&disk.joins)),
            some(places.names(&disk.leaves)),
            crosses(&disk.crossings),
        ]
    });
    let mut lines = vec![
        format!(
            "{} of {looked_at} {verb} to stand elsewhere; {} to copy",
            diff.disks.len(),
            human_bytes(diff.bytes)
        ),
        table(
            ["DISK", "COPIES AT LEAST", "JOINS", "LEAVES", "CROSSES"],
            rows,
        ),
    ];
    if diff.disks.len() > DISKS_SHOWN {
        let more = diff.disks.len() - DISKS_SHOWN;
        lines.push(format!("and {more} more: --json lists them all"));
    }
    let short = |disk: &DiskDiff| {
        let name = disk.name.clone();
        let short = disk.shortfalls.iter().map(shortfall);
        short
            .map(move |short| format!("{name}: {short}"))
            .collect::<Vec<_>>()
    };
    lines.extend(diff.disks.iter().take(DISKS_SHOWN).flat_map(short));
    if applied {
        lines.push("`ukai moves --watch` shows them move".into());
    }
    lines.join("\n")
}

fn some(text: String) -> String {
    match text.is_empty() {
        true => "-".into(),
        false => text,
    }
}

/// One policy: every key with what holds, and the file as it was applied.
pub fn view(view: &PolicyView) -> String {
    let mut lines = vec![match (&view.applied, &view.applied_by) {
        (Some(at), Some(by)) => format!("# {}, as {by} applied it at {at}", view.datacenter),
        (Some(at), None) => format!("# {}, as it was applied at {at}", view.datacenter),
        (None, _) => format!("# {} has no file: the defaults hold", view.datacenter),
    }];
    lines.push(format!(
        "# governs {}; at most {} under way at a time because of policy",
        counted(view.disks, "disk"),
        counted(view.at_once.into(), "disk")
    ));
    lines.push(view.default.trim_end().to_owned());
    for (class, text) in &view.classes {
        lines.push(format!("\n[class.{class}]\n{}", text.trim_end()));
    }
    lines.join("\n")
}

pub fn views(views: &[PolicyView]) -> String {
    if views.is_empty() {
        return "there is no datacenter yet".into();
    }
    let rows = views.iter().map(|view| {
        let classes: Vec<String> = view
            .classes
            .iter()
            .map(|(name, _)| name.to_string())
            .collect();
        [
            view.datacenter.to_string(),
            view.applied
                .map_or("the defaults".into(), |at| format!("applied {at}")),
            some(view.applied_by.clone().unwrap_or_default()),
            some(classes.join(", ")),
            view.disks.to_string(),
            view.at_once.to_string(),
        ]
    });
    table(
        [
            "DATACENTER",
            "POLICY",
            "BY",
            "CLASSES",
            "DISKS",
            "AT A TIME",
        ],
        rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::tests::{places, store};
    use placement_service::planner::Crossing;
    use placement_service::policy::{Checked, Infeasible, UnixSeconds};
    use replicator::words::{DiskId, DiskName};

    fn dc(name: &str) -> DatacenterName {
        DatacenterName::new(name).unwrap()
    }

    fn fine() -> PolicyCheck {
        PolicyCheck {
            faults: Vec::new(),
            checked: Checked {
                refused: Vec::new(),
                notes: vec!["nothing is kept away".into()],
            },
        }
    }

    #[test]
    fn a_check_names_line_reason_and_the_nearest() {
        let mut wrong = fine();
        wrong.faults = vec!["line 2: copeis: unknown key; did you mean `copies`?".into()];
        wrong.checked.refused = vec![Infeasible {
            class: None,
            key: "copies = 3".into(),
            why: "tokyo has stores on 2 hosts".into(),
            nearest: "the nearest that can be kept is copies = 2".into(),
        }];
        assert_eq!(
            check("tokyo.toml", &dc("tokyo"), &wrong),
            "tokyo.toml: as the policy of tokyo it cannot be applied
  ! line 2: copeis: unknown key; did you mean `copies`?
  ! copies = 3: tokyo has stores on 2 hosts; the nearest that can be kept is copies = 2
  note: nothing is kept away"
        );
    }

    #[test]
    fn a_diff_says_what_moves_and_how_much() {
        let changes = Diff {
            disks: vec![DiskDiff {
                disk: DiskId::from_u128(1),
                name: DiskName::new("web1").unwrap(),
                joins: vec![store(3)],
                leaves: Vec::new(),
                crossings: vec![Crossing {
                    from: dc("tokyo"),
                    to: dc("osaka"),
                    bytes: 3 << 30,
                    at_most: false,
                }],
                wanted_copies: 3,
                least_copies: 2,
                shortfalls: Vec::new(),
            }],
            looked_at: 12,
            bytes: 3 << 30,
        };
        let mut found = PolicyDiff {
            check: fine(),
            diff: Some(changes),
            applied: false,
        };
        let say = |found: &PolicyDiff| diff("tokyo.toml", &dc("tokyo"), found, &places());
        assert_eq!(
            say(&found),
            "tokyo.toml: as the policy of tokyo it can be kept
  note: nothing is kept away
1 of 12 disks would come to stand elsewhere; 3 GiB to copy
DISK  COPIES AT LEAST  JOINS             LEAVES  CROSSES
web1  2 of 3           osaka-1/00000003  -       3 GiB tokyo -> osaka"
        );
        found.applied = true;
        assert!(say(&found).contains("`ukai moves --watch`"));
        found.diff = Some(Diff {
            looked_at: 12,
            ..Diff::default()
        });
        assert!(say(&found).ends_with("no disk comes to stand elsewhere, of 12 disks"));
    }

    #[test]
    fn a_policy_is_shown_as_a_file_would_say_it() {
        let shown = PolicyView {
            datacenter: dc("tokyo"),
            text: None,
            applied: Some(UnixSeconds(1_795_298_400)),
            applied_by: Some("alice".into()),
            default: "copies = 2\n".into(),
            classes: vec![("db".parse().unwrap(), "copies = 3\n".into())],
            at_once: 4,
            disks: 1,
        };
        assert_eq!(
            view(&shown),
            "# tokyo, as alice applied it at 2026-11-21 22:00 UTC
# governs 1 disk; at most 4 disks under way at a time because of policy
copies = 2

[class.db]
copies = 3"
        );
        assert!(views(&[shown]).contains("alice"));
    }
}
