//! Dropping one copy by hand: what policy promises is not broken, or, forced, what is lost is named.

use super::held::segments;
use super::order::{Proposal, Refused, Wanted, refused};
use super::pins::without;
use super::ranges::{inside, intersection, joined, overlap};
use super::steps::side_by_side;
use super::{Action, Goal, GoalRange, Plan, RetiredCopy, Role, Step, Subject};
use crate::policy::{Hold, Pin, Until};
use replicator::words::{Extents, History, StoreId};

impl Wanted<'_> {
    pub(super) fn dropped(mut self, store: StoreId, force: bool) -> Result<Proposal, Refused> {
        let name = self.subject.record.name.clone();
        let error = format!("the copy of disk {name} on store {store} is not dropped");
        let named: Vec<Extents> =
            self.parts(|history| history.0.iter().any(|entry| entry.has(store)));
        let member: Vec<Extents> = self.parts(|history| history.member(store).is_some());
        let retired = self
            .subject
            .retired
            .iter()
            .any(|retired| retired.store == store);
        if named.is_empty() && !retired {
            return Err(refused(
                error,
                format!("it has none of extents {}", self.part),
                "see `ukai disk map` for the copies that there are",
            ));
        }
        if member.is_empty() && !named.is_empty() {
            return Err(refused(
                error,
                "new copies are still filled from it".into(),
                "it goes by itself when they are whole: see `ukai moves`",
            ));
        }
        self.pins = without(
            &self.pins,
            store,
            self.part,
            self.subject.record.extents(),
            |hold| !matches!(hold, Hold::Off(_)),
        );
        let goal = self.goal();
        let needed: Vec<&GoalRange> = goal
            .ranges
            .iter()
            .filter(|range| overlap(range.extents, self.part) && range.stores().contains(&store))
            .collect();
        if needed.is_empty() {
            let mut proposal = self.proposal(goal, Vec::new());
            self.drop_at_once(&mut proposal.plan, store);
            return Ok(proposal);
        }
        if !force {
            let why = self.why_needed(&needed, store);
            return Err(refused(
                error,
                why,
                "add a copy elsewhere first and pin the disk off this store, or force it and go without",
            ));
        }
        let reduced = self.reduced(store);
        if let Some(range) = reduced.ranges.iter().find(|range| range.copies.is_empty()) {
            return Err(refused(
                error,
                format!(
                    "it is the only member of extents {}: all that is in them would be lost",
                    range.extents
                ),
                "add a copy elsewhere first, wait until it is complete, then drop this one",
            ));
        }
        let losses = self.losses(&reduced, store);
        self.pins
            .push(self.pin(Hold::Off(vec![store]), Until::Lifted));
        let mut proposal = self.proposal(reduced, losses);
        self.drop_at_once(&mut proposal.plan, store);
        Ok(proposal)
    }

    /// The ranges of the part whose history is so.
    fn parts(&self, so: impl Fn(&History) -> bool) -> Vec<Extents> {
        let map = self.subject.record.map.iter();
        let there = map.filter(|range| overlap(range.extents, self.part) && so(&range.history));
        joined(there.map(|range| intersection(range.extents, self.part)))
    }

    /// The members as they are, but for `store` in the part.
    fn reduced(&self, store: StoreId) -> Goal {
        let rules = self.planner.rules(self.subject);
        let cut = Pin {
            hold: Hold::Off(vec![store]),
            ..self.pin(Hold::Off(Vec::new()), Until::Lifted)
        };
        let pins = [cut];
        let subject = Subject {
            pins: &pins,
            ..*self.subject
        };
        let cut_rules = self.planner.rules(&subject);
        let total = rules.class.total(subject.record.copies);
        let ranges = segments(&subject, &cut_rules).map(|(extents, history)| {
            let gone = inside(extents, self.part);
            let members = history.members().filter(|member| !gone || *member != store);
            let mut copies: Vec<(StoreId, Role)> =
                members.map(|member| (member, Role::Near)).collect();
            copies.sort_unstable();
            GoalRange {
                extents,
                wanted: total,
                copies,
            }
        });
        Goal {
            ranges: ranges.collect(),
            shortfalls: Vec::new(),
        }
    }

    fn losses(&self, reduced: &Goal, store: StoreId) -> Vec<String> {
        let rules = self.planner.rules(self.subject);
        let total = rules.class.total(self.subject.record.copies);
        let mut losses: Vec<(usize, Vec<Extents>)> = Vec::new();
        for (extents, history, copies) in side_by_side(self.subject.record, reduced) {
            if history.member(store).is_none() || !inside(extents, self.part) {
                continue;
            }
            let left = copies
                .iter()
                .filter(|(member, _)| history.member(*member).is_some_and(|entry| entry.whole));
            let left = left.count();
            match losses.iter_mut().find(|(count, _)| *count == left) {
                Some((_, parts)) => parts.push(extents),
                None => losses.push((left, vec![extents])),
            }
        }
        let sentence = |(left, parts): (usize, Vec<Extents>)| {
            let parts: Vec<String> = joined(parts.into_iter())
                .iter()
                .map(Extents::to_string)
                .collect();
            let copies = match left {
                0 => "no complete copy but this one until their new copies are whole".to_owned(),
                1 => "1 complete copy: the loss of its store loses them".to_owned(),
                _ => format!("{left} complete copies"),
            };
            format!(
                "extents {} are left with {copies}; policy asks for {total}",
                parts.join(", ")
            )
        };
        losses.into_iter().map(sentence).collect()
    }

    fn why_needed(&self, needed: &[&GoalRange], store: StoreId) -> String {
        let parts = joined(
            needed
                .iter()
                .map(|range| intersection(range.extents, self.part)),
        );
        let parts: Vec<String> = parts.iter().map(Extents::to_string).collect();
        let datacenter = &self.subject.home.datacenter;
        let wanted = needed.iter().map(|range| range.wanted).max().unwrap_or(0);
        let roles = needed.iter().flat_map(|range| &range.copies);
        let away = roles
            .filter(|(other, _)| *other == store)
            .any(|(_, role)| *role == Role::Away);
        let keeps = match (away, self.planner.fleet.site_of(store)) {
            (true, Some(site)) => {
                format!(" and keeps this one in {}", self.planner.fleet.name(site))
            }
            _ => String::new(),
        };
        format!(
            "the policy of {datacenter} asks for {wanted} copies of extents {}{keeps}, and there are no more than that",
            parts.join(", ")
        )
    }

    /// What an operator drops goes now, whatever `drop` says of copies that moves leave behind.
    fn drop_at_once(&self, plan: &mut Plan, store: StoreId) {
        let mut extents = self.parts(|history| history.0.iter().any(|entry| entry.has(store)));
        let retired = self
            .subject
            .retired
            .iter()
            .filter(|retired| retired.store == store);
        let retired = retired.flat_map(|retired| &retired.extents);
        extents.extend(
            retired
                .filter(|part| overlap(**part, self.part))
                .map(|part| intersection(*part, self.part)),
        );
        extents.sort_unstable_by_key(|part| part.first);
        let copy = RetiredCopy {
            store,
            extents: joined(extents.into_iter()),
            not_before: None,
        };
        let retire = plan
            .steps
            .iter_mut()
            .find_map(|step| match &mut step.action {
                Action::Retire { copies } => Some(copies),
                _ => None,
            });
        match retire {
            Some(copies) => {
                copies.retain(|other| other.store != store);
                copies.push(copy);
            }
            None => {
                let copies_left = plan
                    .steps
                    .last()
                    .map_or(plan.copies_now, |step| step.copies_after);
                let write_round_trip = plan.steps.last().and_then(|step| step.write_round_trip);
                plan.steps.push(Step {
                    action: Action::Retire { copies: vec![copy] },
                    copies_before: copies_left,
                    copies_after: copies_left,
                    crossings: Vec::new(),
                    time: None,
                    write_round_trip,
                });
            }
        }
    }
}
