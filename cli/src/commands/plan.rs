//! A plan, for people: what each step does, what crosses which link, how long that takes, and how
//! safe and how far the disk is meanwhile.

use crate::output::{counted, human_bytes, human_time, table};
use crate::places::Places;
use placement_service::planner::{Action, Crossing, Plan, RetiredCopy, Shortfall, Step};
use replicator::words::{Extents, NewSet, StoreId};
use std::time::Duration;

/// More parts of one step than this are counted, not listed.
const PARTS_SHOWN: usize = 4;

/// The plan as lines: a headline, a table of the steps, what it comes to, and what to know.
pub fn describe(plan: &Plan, places: &Places) -> String {
    let mut lines = vec![headline(plan)];
    if !plan.is_empty() {
        lines.push(steps(plan, places));
        lines.push(total(plan));
    }
    if let Some(until) = plan.waits_until {
        lines.push(format!("copying begins at {until}, when its window opens"));
    }
    lines.extend(plan.shortfalls.iter().map(shortfall));
    lines.extend(plan.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}

fn headline(plan: &Plan) -> String {
    let name = &plan.name;
    let (now, wanted) = (plan.copies_now, plan.wanted_copies);
    if plan.is_empty() {
        return format!("{name} stands where it should: nothing to do");
    }
    let copies = counted(now.into(), "complete copy");
    let steps = counted(plan.steps.len() as u64, "step");
    let why = if plan.repair { ", a repair" } else { "" };
    format!(
        "{name}: {steps}{why}; it has {copies} now, at no moment fewer than {}; policy asks for {wanted}",
        plan.least_copies
    )
}

fn steps(plan: &Plan, places: &Places) -> String {
    let rows = plan.steps.iter().enumerate().map(|(i, step)| {
        [
            (i + 1).to_string(),
            does(&step.action, places),
            format!("{} -> {}", step.copies_before, step.copies_after),
            crosses(&step.crossings),
            step.time.map_or_else(|| no_time(step), human_time),
            step.write_round_trip.map_or("-".into(), human_time),
        ]
    });
    table(
        [
            "STEP",
            "WHAT IT DOES",
            "COPIES",
            "CROSSES",
            "TAKES",
            "A WRITE WAITS",
        ],
        rows,
    )
}

fn no_time(step: &Step) -> String {
    match step.bytes() {
        0 => "-".into(),
        _ => "not known".into(),
    }
}

fn does(action: &Action, places: &Places) -> String {
    match action {
        Action::Switch { sets } => {
            let set = |set: &NewSet| format!("{} to {}", set.extents, places.names(&set.stores));
            format!("switch the writes of extents {}", listed(sets, set))
        }
        Action::Fill { extents } => format!("copy extents {}", listed(extents, Extents::to_string)),
        Action::Complete { extents } => {
            format!(
                "record extents {} as whole",
                listed(extents, Extents::to_string)
            )
        }
        Action::Retire { copies } => {
            format!(
                "delete extents {}",
                listed(&alike(copies, places), String::clone)
            )
        }
    }
}

/// What is deleted, stores together that lose the same at the same time.
fn alike(copies: &[RetiredCopy], places: &Places) -> Vec<String> {
    let mut groups: Vec<(&RetiredCopy, Vec<StoreId>)> = Vec::new();
    for copy in copies {
        let same = |(other, _): &&mut (&RetiredCopy, Vec<StoreId>)| {
            other.extents == copy.extents && other.not_before == copy.not_before
        };
        match groups.iter_mut().find(same) {
            Some((_, stores)) => stores.push(copy.store),
            None => groups.push((copy, vec![copy.store])),
        }
    }
    let group = |(copy, stores): (&RetiredCopy, Vec<StoreId>)| {
        let extents = listed(&copy.extents, Extents::to_string);
        let when = copy
            .not_before
            .map_or(String::new(), |at| format!(" (not before {at})"));
        format!("{extents} from {}{when}", places.names(&stores))
    };
    groups.into_iter().map(group).collect()
}

/// The first few, and how many more there are.
fn listed<T>(parts: &[T], say: impl Fn(&T) -> String) -> String {
    let shown = parts.iter().take(PARTS_SHOWN).map(say);
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if parts.len() > PARTS_SHOWN {
        text += &format!(" and {} more", parts.len() - PARTS_SHOWN);
    }
    text
}

pub fn crosses(crossings: &[Crossing]) -> String {
    if crossings.is_empty() {
        return "-".into();
    }
    listed(crossings, |crossing| {
        let Crossing {
            from,
            to,
            bytes,
            at_most,
        } = crossing;
        let bytes = human_bytes(*bytes);
        let bytes = if *at_most {
            format!("at most {bytes}")
        } else {
            bytes
        };
        match from == to {
            true => format!("{bytes} in {to}"),
            false => format!("{bytes} {from} -> {to}"),
        }
    })
}

fn total(plan: &Plan) -> String {
    let bytes = human_bytes(plan.bytes());
    let times: Vec<Duration> = plan.steps.iter().filter_map(|step| step.time).collect();
    let known = plan
        .steps
        .iter()
        .all(|step| step.time.is_some() || step.bytes() == 0);
    match (plan.bytes(), known) {
        (0, _) => "nothing is to be copied".into(),
        (_, true) => {
            let time = human_time(times.iter().sum());
            format!("{bytes} to copy in all, in about {time}")
        }
        (_, false) => format!("{bytes} to copy in all"),
    }
}

pub fn shortfall(short: &Shortfall) -> String {
    let missing = counted(short.missing.into(), "copy");
    format!(
        "! extents {} stay short of {missing}: {}",
        short.extents, short.why
    )
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::places::tests::{places, store};
    use placement_service::policy::UnixSeconds;
    use replicator::words::{DatacenterName, DiskId, DiskName, Extent};

    fn extents(first: u32, end: u32) -> Extents {
        Extents::new(Extent(first), Extent(end))
    }

    pub fn plan() -> Plan {
        let step = |action, time_s: u64, wait_us| Step {
            action,
            copies_before: 2,
            copies_after: 2,
            crossings: Vec::new(),
            time: (time_s > 0).then(|| Duration::from_secs(time_s)),
            write_round_trip: Some(Duration::from_micros(wait_us)),
        };
        let crossing = Crossing {
            from: DatacenterName::new("tokyo").unwrap(),
            to: DatacenterName::new("osaka").unwrap(),
            bytes: 11 << 30,
            at_most: true,
        };
        let sets = vec![NewSet {
            extents: extents(0, 32),
            stores: vec![store(3), store(4)],
        }];
        let all = vec![extents(0, 32)];
        let copies = [1, 2].map(|n| RetiredCopy {
            store: store(n),
            extents: all.clone(),
            not_before: (n == 2).then_some(UnixSeconds(1_795_298_400)),
        });
        Plan {
            disk: DiskId::from_u128(1),
            name: DiskName::new("web1").unwrap(),
            steps: vec![
                step(Action::Switch { sets }, 0, 210),
                Step {
                    crossings: vec![crossing],
                    ..step(
                        Action::Fill {
                            extents: all.clone(),
                        },
                        113,
                        210,
                    )
                },
                step(Action::Complete { extents: all }, 0, 210),
                step(
                    Action::Retire {
                        copies: copies.to_vec(),
                    },
                    0,
                    210,
                ),
            ],
            wanted_copies: 2,
            copies_now: 2,
            least_copies: 2,
            repair: false,
            waits_until: None,
            shortfalls: Vec::new(),
            awaited: Vec::new(),
            copies_left: 2,
            notes: vec!["all copies stand in osaka".into()],
        }
    }

    #[test]
    fn each_step_tells_what_it_costs_and_how_safe_the_disk_is() {
        let expected = "\
web1: 4 steps; it has 2 complete copies now, at no moment fewer than 2; policy asks for 2
STEP  WHAT IT DOES                                                             COPIES  CROSSES                        TAKES   A WRITE WAITS
1     switch the writes of extents 0..32 to osaka-1/00000003, osaka-1/00000004         2 -> 2  -                              -       210 us
2     copy extents 0..32                                                               2 -> 2  at most 11 GiB tokyo -> osaka  1m 53s  210 us
3     record extents 0..32 as whole                                                    2 -> 2  -                              -       210 us
4     delete extents 0..32 from tokyo-1, 0..32 from tokyo-2 (not before 2026-11-21 22:00 UTC)  2 -> 2  -                      -       210 us
11 GiB to copy in all, in about 1m 53s
note: all copies stand in osaka";
        let squeezed = |text: &str| {
            let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            text.lines().map(line).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(squeezed(&describe(&plan(), &places())), squeezed(expected));
    }

    #[test]
    fn what_is_not_known_is_not_made_up() {
        let mut plan = plan();
        plan.steps[1].time = None;
        plan.steps[0].write_round_trip = None;
        let text = describe(&plan, &places());
        assert!(text.contains("not known"), "{text}");
        assert!(text.contains("\n11 GiB to copy in all\n"), "{text}");
    }

    #[test]
    fn nothing_to_do_is_said_so() {
        let plan = Plan {
            steps: Vec::new(),
            notes: Vec::new(),
            ..plan()
        };
        assert_eq!(
            describe(&plan, &places()),
            "web1 stands where it should: nothing to do"
        );
    }

    #[test]
    fn stores_that_lose_the_same_are_named_together() {
        let copy = |n| RetiredCopy {
            store: store(n),
            extents: vec![extents(0, 32)],
            not_before: None,
        };
        let action = Action::Retire {
            copies: vec![copy(1), copy(2)],
        };
        assert_eq!(
            does(&action, &places()),
            "delete extents 0..32 from tokyo-1, tokyo-2"
        );
    }

    #[test]
    fn long_lists_are_cut() {
        let parts: Vec<Extents> = (0..9).map(|n| extents(2 * n, 2 * n + 1)).collect();
        let action = Action::Fill { extents: parts };
        assert_eq!(
            does(&action, &places()),
            "copy extents 0..1, 2..3, 4..5, 6..7 and 5 more"
        );
    }
}
