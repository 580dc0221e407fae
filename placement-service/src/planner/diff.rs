//! What a change of policies would do, and how it is rolled out: a bounded number of disks at a time.

use super::goal::{Promised, place};
use super::plan::{Crossing, Goal, Plan, Shortfall};
use super::{Planner, Subject};
use replicator::words::{DiskId, DiskName, StoreId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What would change if the new policies held.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Diff {
    /// Disks that would come to stand elsewhere than under the old policies.
    pub disks: Vec<DiskDiff>,
    /// How many were looked at.
    pub looked_at: u64,
    /// Bytes that would cross links for them, all in all.
    pub bytes: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskDiff {
    pub disk: DiskId,
    pub name: DiskName,
    /// Stores that it would come to and that it would leave.
    pub joins: Vec<StoreId>,
    pub leaves: Vec<StoreId>,
    pub crossings: Vec<Crossing>,
    pub wanted_copies: u8,
    pub least_copies: u8,
    pub shortfalls: Vec<Shortfall>,
}

/// Compares what `old` and `new` want of the same disks over the same fleet.
pub fn diff<'s>(
    old: &Planner,
    new: &Planner,
    subjects: impl IntoIterator<Item = Subject<'s>>,
) -> Diff {
    let mut diff = Diff::default();
    let (mut promised_old, mut promised_new) = (Promised::new(), Promised::new());
    for subject in subjects {
        diff.looked_at += 1;
        let before = goal(old, &subject, &mut promised_old);
        let after = goal(new, &subject, &mut promised_new);
        if alike(&before, &after) {
            continue;
        }
        let plan = new.plan_to(&new.rules(&subject), &subject, after.clone());
        let (stood, stands) = (stores(&before), stores(&after));
        diff.bytes = diff.bytes.saturating_add(plan.bytes());
        diff.disks.push(DiskDiff {
            disk: plan.disk,
            joins: stands.difference(&stood).copied().collect(),
            leaves: stood.difference(&stands).copied().collect(),
            crossings: plan
                .steps
                .iter()
                .flat_map(|step| step.crossings.iter().cloned())
                .collect(),
            name: plan.name,
            wanted_copies: plan.wanted_copies,
            least_copies: plan.least_copies,
            shortfalls: plan.shortfalls,
        });
    }
    diff
}

/// The disks whose plans may go on now, where at most `at_once` are under way: those that have begun,
/// then those that lack copies, the most endangered first, then those that have least to copy.
pub fn rollout(plans: &[Plan], under_way: &BTreeSet<DiskId>, at_once: usize) -> Vec<DiskId> {
    let mut waiting: Vec<&Plan> = plans.iter().filter(|plan| !plan.is_empty()).collect();
    waiting.sort_by_key(|plan| {
        let begun = under_way.contains(&plan.disk);
        let left = if plan.repair { plan.copies_left } else { 0 };
        (!begun, !plan.repair, left, plan.bytes(), plan.disk)
    });
    let begun = waiting
        .iter()
        .filter(|plan| under_way.contains(&plan.disk))
        .count();
    waiting.truncate(at_once.max(begun));
    waiting.into_iter().map(|plan| plan.disk).collect()
}

fn goal(planner: &Planner, subject: &Subject, promised: &mut Promised) -> Goal {
    let placed = place(&planner.fleet, &planner.rules(subject), subject, promised);
    for (seat, bytes) in placed.promised {
        *promised.entry(seat).or_default() += bytes;
    }
    placed.goal
}

fn alike(a: &Goal, b: &Goal) -> bool {
    let ranges = |goal: &Goal| {
        let ranges = goal.ranges.iter();
        let mut ranges: Vec<_> = ranges
            .map(|range| (range.extents, range.stores()))
            .collect();
        ranges.dedup_by(|behind, before| {
            let alike = behind.1 == before.1;
            if alike {
                before.0.end = behind.0.end;
            }
            alike
        });
        ranges
    };
    ranges(a) == ranges(b) && a.shortfalls == b.shortfalls
}

fn stores(goal: &Goal) -> BTreeSet<StoreId> {
    goal.ranges
        .iter()
        .flat_map(|range| range.stores())
        .collect()
}
