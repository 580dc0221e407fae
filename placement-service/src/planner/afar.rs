//! Why blocks of a disk are not near its VM, where nothing is to be done about that: in a few words.

use super::goal::{Promised, place};
use super::plan::Role;
use super::{Planner, Subject};
use crate::policy::{Follow, Hold};

impl Planner<'_> {
    /// A clause. The reasons that come first bind the others: see `rules.rs`.
    pub fn why_far(&self, subject: &Subject) -> String {
        let rules = self.rules(subject);
        let (name, home) = (&subject.record.name, &subject.home.datacenter);
        if let Some(who) = rules.home.and_then(|home| rules.barred.get(&home)) {
            return format!("the policy of {who} says never {home}");
        }
        let elsewhere = |hold: &Hold| matches!(hold, Hold::In(_) | Hold::On(_));
        if let Some(pin) = rules.pins.iter().find(|pin| elsewhere(&pin.hold)) {
            return format!("it is pinned elsewhere: {:?}", pin.reason);
        }
        if rules.class.follow == Follow::Manual {
            return format!(
                "the policy of {home} says follow = \"manual\": `ukai disk move {name} --to {home}`"
            );
        }
        if let Some(until) = self.held(subject) {
            return format!("its VM moved again within the hold-down; it follows after {until}");
        }
        let goal = place(&self.fleet, &rules, subject, &Promised::new()).goal;
        let mut copies = goal.ranges.iter().flat_map(|range| &range.copies);
        if copies.any(|(_, role)| *role == Role::StandIn) {
            return format!("no store in {home} that is up and may have it has room");
        }
        format!("`ukai disk explain {name}` says why each copy is where it is")
    }
}
