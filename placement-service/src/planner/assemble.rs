//! A plan from a goal: its steps, each with what it leaves and what it costs.

use super::plan::{Action, Goal, Plan, Step};
use super::rules::Rules;
use super::{Planner, Subject, copies_of, estimate, steps};
use replicator::words::{DiskRecord, MapRange};

impl Planner<'_> {
    pub(super) fn plan_to(&self, rules: &Rules, subject: &Subject, goal: Goal) -> Plan {
        let record = subject.record;
        let copies_now = least_copies(record);
        let mut steps: Vec<Step> = Vec::new();
        let mut tried = |action: Action, after: &DiskRecord| {
            let crossings = match action {
                Action::Fill { .. } => estimate::crossings(&self.fleet, rules, subject, after),
                _ => Vec::new(),
            };
            steps.push(Step {
                action,
                copies_before: steps.last().map_or(copies_now, |step| step.copies_after),
                copies_after: least_copies(after),
                time: estimate::time(&self.fleet, rules, &crossings),
                crossings,
                write_round_trip: estimate::write_round_trip(&self.fleet, rules, after),
            });
        };
        let full = steps::steps(&self.fleet, rules, subject, &goal, self.now, &mut tried);
        let repair = self.needs_repair(rules, subject);
        let opens = rules.class.copy.opens(self.now);
        let copies_something = steps
            .iter()
            .any(|step| matches!(step.action, Action::Fill { .. }));
        Plan {
            disk: record.id,
            name: record.name.clone(),
            wanted_copies: goal
                .ranges
                .iter()
                .map(|range| range.wanted)
                .min()
                .unwrap_or(0),
            copies_now,
            least_copies: steps
                .iter()
                .map(|step| step.copies_after)
                .chain([copies_now])
                .min()
                .unwrap_or(0),
            repair,
            waits_until: Some(opens)
                .filter(|opens| *opens > self.now && copies_something && !repair),
            notes: self.notes(rules, subject, &goal, &full),
            copies_left: self.copies_left(rules, subject).min(usize::from(u8::MAX)) as u8,
            awaited: goal.awaited,
            shortfalls: goal.shortfalls,
            steps,
        }
    }
}

/// Complete copies of the worst placed extent.
fn least_copies(record: &DiskRecord) -> u8 {
    let copies = |range: &MapRange| copies_of(&range.history).min(usize::from(u8::MAX)) as u8;
    record.map.iter().map(copies).min().unwrap_or(0)
}
