//! What somebody should know who reads a plan: what is held back, and which promise does not hold.

use super::plan::{Goal, GoalRange, Role};
use super::rules::Rules;
use super::{Planner, Subject, too_long};
use crate::policy::{Hold, Pin};
use replicator::words::{Extents, StoreId};

impl Planner<'_> {
    pub(super) fn notes(
        &self,
        rules: &Rules,
        subject: &Subject,
        goal: &Goal,
        full: &[Extents],
    ) -> Vec<String> {
        let mut notes: Vec<String> = full.iter().map(too_long).collect();
        let home = subject.home;
        if let Some(until) = self.held(subject) {
            notes.push(format!(
                "its VM moved twice within the hold-down: it follows after {until}"
            ));
        }
        let pins = rules.pins.iter();
        notes.extend(pins.filter_map(|pin| self.unkept(pin, goal)));
        if let Some(class) = subject.class
            && self
                .policies
                .of(&home.datacenter)
                .is_none_or(|policy| !policy.classes.contains_key(class))
        {
            let datacenter = &home.datacenter;
            notes.push(format!(
                "the policy of {datacenter} has no class {class}: the default one governs"
            ));
        }
        let roles = goal.ranges.iter().flat_map(|range| &range.copies);
        if roles.clone().any(|(_, role)| *role == Role::StandIn) {
            notes.push("some copies stand in elsewhere, because there is no room for them where they should be".into());
        }
        let mut sites: Vec<_> = roles
            .filter_map(|(store, _)| self.fleet.site_of(*store))
            .collect();
        sites.sort_unstable();
        sites.dedup();
        if let [only] = sites[..]
            && self.fleet.sites().count() > 1
        {
            let only = self.fleet.name(only);
            notes.push(format!("all copies stand in {only}: its loss loses the disk; `away` would keep one elsewhere"));
        }
        if rules.class.away.is_empty() && sites.len() > 1 {
            notes.push(
                "each write waits for a copy in another datacenter, though `away` asks for none"
                    .into(),
            );
        }
        notes
    }

    /// What a pin asks for and does not get.
    fn unkept(&self, pin: &Pin, goal: &Goal) -> Option<String> {
        let mut covered = goal.ranges.iter().filter(|range| pin.covers(range.extents));
        let reason = &pin.reason;
        match &pin.hold {
            Hold::On(stores) | Hold::Also(stores) => {
                let lacks = |range: &GoalRange| {
                    let has = range.stores();
                    stores.iter().copied().find(|store| !has.contains(store))
                };
                let store: StoreId = covered.find_map(lacks)?;
                Some(format!(
                    "the pin to store {store} ({reason:?}) is not kept: it is down, full or being emptied, shares a host with another copy, or residency bars it"
                ))
            }
            Hold::In(datacenter) => {
                let site = self.fleet.site(datacenter);
                let elsewhere = |(store, role): &(StoreId, Role)| match role {
                    Role::Near => self.fleet.site_of(*store) != site,
                    Role::StandIn | Role::Retained => true,
                    Role::Away | Role::Also => false,
                };
                covered.any(|range| range.copies.iter().any(elsewhere)).then(|| {
                    format!(
                        "the pin in {datacenter} ({reason:?}) is not kept everywhere: another pin, room or residency stands against it"
                    )
                })
            }
            Hold::Off(_) | Hold::Without(_) => None,
        }
    }
}
