//! Dropping one copy by hand: what policy promises is not broken, or, forced, what is lost is named.
//!
//! A dropped copy is a pin off its store until the VM runs elsewhere: so that policy does not bring it
//! back, and so that what is left of it is deleted at once.

use super::order::{Proposal, Refused, Wanted, refused};
use super::ranges::{intersection, joined, overlap};
use super::steps::side_by_side;
use super::{Goal, GoalRange, Role, Shortfall};
use crate::policy::{Hold, Until};
use replicator::words::{Extents, History, StoreId};

impl Wanted<'_> {
    pub(super) fn dropped(mut self, store: StoreId, force: bool) -> Result<Proposal, Refused> {
        let name = &self.subject.record.name;
        let error = format!("the copy of disk {name} on store {store} is not dropped");
        self.there_is_one(store, &error)?;
        let until = Until::VmLeaves(self.subject.home.datacenter.clone());
        self.pins = self.pins_without(store);
        let needed = self.goal();
        let needed = needed.ranges.iter().filter(|range| self.touches(range));
        let needed: Vec<Extents> = needed
            .filter(|range| range.stores().contains(&store))
            .map(|range| intersection(range.extents, self.part))
            .collect();
        self.pins
            .push(self.pin(Hold::Off(vec![store]), until.clone()));
        let goal = self.goal();
        if needed.is_empty() || self.is_made_up_for(&goal) {
            return Ok(self.proposal(goal, Vec::new()));
        }
        if !force {
            return Err(refused(
                error,
                self.why_needed(&needed, &goal, store),
                "add a copy on another store there and wait until it is complete, or force it",
            ));
        }
        self.pins.pop();
        self.pins.push(self.pin(Hold::Without(vec![store]), until));
        let goal = self.goal();
        let stays = |range: &&GoalRange| self.touches(range) && range.stores().contains(&store);
        if let Some(range) = goal.ranges.iter().find(stays) {
            return Err(refused(
                error,
                format!(
                    "no other store has extents {}, or can have them now: all that is in them would be lost",
                    intersection(range.extents, self.part)
                ),
                "make room for another copy first, wait until it is complete, then drop this one",
            ));
        }
        let losses = self.losses(&goal);
        Ok(self.proposal(goal, losses))
    }

    /// Refuses what is no copy, or one that is only there to fill others from.
    fn there_is_one(&self, store: StoreId, error: &str) -> Result<(), Refused> {
        let map = self.subject.record.map.iter();
        let in_part = |so: &dyn Fn(&History) -> bool| {
            map.clone()
                .any(|range| overlap(range.extents, self.part) && so(&range.history))
        };
        let named = in_part(&|history| history.0.iter().any(|entry| entry.has(store)));
        let member = in_part(&|history| history.member(store).is_some());
        let retired = self
            .subject
            .retired
            .iter()
            .any(|retired| retired.store == store);
        match (named, member) {
            (true, false) => Err(refused(
                error.into(),
                "new copies are still filled from it".into(),
                "it goes by itself when they are whole: see `ukai moves`",
            )),
            (false, _) if !retired => Err(refused(
                error.into(),
                format!("it has none of extents {}", self.part),
                "see `ukai disk map` for the copies that there are",
            )),
            _ => Ok(()),
        }
    }

    fn touches(&self, range: &GoalRange) -> bool {
        overlap(range.extents, self.part)
    }

    /// Whether all that policy asks for without the store is there and whole, where it should be: a copy
    /// that was added by hand takes the place of this one.
    fn is_made_up_for(&self, goal: &Goal) -> bool {
        let there = |history: &History, (store, role): &(StoreId, Role)| {
            let whole = history.member(*store).is_some_and(|entry| entry.whole);
            whole && !matches!(role, Role::StandIn | Role::Retained)
        };
        let all_there = side_by_side(self.subject.record, goal)
            .filter(|(extents, _, _)| overlap(*extents, self.part))
            .all(|(_, history, copies)| copies.iter().all(|copy| there(history, copy)));
        let short = |shortfall: &Shortfall| overlap(shortfall.extents, self.part);
        all_there && !goal.shortfalls.iter().any(short)
    }

    /// What a forced order leaves short.
    fn losses(&self, goal: &Goal) -> Vec<String> {
        let short = goal.ranges.iter().filter(|range| self.touches(range));
        let short = short.filter(|range| range.copies.len() < usize::from(range.wanted));
        short
            .map(|range| {
                let part = intersection(range.extents, self.part);
                let copies = match range.copies.len() {
                    1 => "1 copy: the loss of its store loses them".to_owned(),
                    n => format!("{n} copies"),
                };
                format!(
                    "extents {part} are left with {copies}; policy asks for {}, and there is no room for another",
                    range.wanted
                )
            })
            .collect()
    }

    fn why_needed(&self, needed: &[Extents], without: &Goal, store: StoreId) -> String {
        let parts: Vec<String> = joined(needed.iter().copied())
            .iter()
            .map(Extents::to_string)
            .collect();
        let datacenter = &self.subject.home.datacenter;
        let touched = || without.ranges.iter().filter(|range| self.touches(range));
        let wanted = touched().map(|range| range.wanted).max().unwrap_or(0);
        let rules = self.planner.rules(self.subject);
        let site = self.planner.fleet.site_of(store);
        let away = rules
            .class
            .away
            .keys()
            .any(|dc| self.planner.fleet.site(dc) == site);
        let keeps = match site.filter(|_| away) {
            Some(site) => format!(", one of them in {}", self.planner.fleet.name(site)),
            None => String::new(),
        };
        format!(
            "the policy of {datacenter} asks for {wanted} copies of extents {}{keeps}, and without this one there are not so many that are complete and where they should be",
            parts.join(", ")
        )
    }
}
