//! Evening out the stores of a datacenter: which copy should leave a full store for an emptier one, if any.
//!
//! A store counts as full as its copies make it, not as its media are: what is being deleted or cleaned up is
//! nobody's copy any more. A shift is only proposed where the two differ by more than the disk's policy allows,
//! and where the fuller one stays the fuller one: so each makes the fleet more even, and they end.

use super::goal::{Promised, place};
use super::rules::{Rules, Standing};
use super::{Planner, Subject};
use crate::choose::weight_bytes;
use replicator::words::{DiskId, StoreId};
use std::collections::{BTreeMap, BTreeSet};

/// So many disks of a store are tried out before another store is looked at.
const TRIED: usize = 32;

/// A copy that should stand elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shift {
    pub disk: DiskId,
    pub from: StoreId,
    pub to: StoreId,
}

impl Planner<'_> {
    /// The copy to shift next, between stores that are not `busy` with another one. `subjects` are all disks.
    pub fn shift(&self, subjects: &[Subject], busy: &BTreeSet<StoreId>) -> Option<Shift> {
        let load = Load::of(subjects);
        let mut fit: Vec<StoreId> = Vec::new();
        for seat in self.fleet.seats() {
            let place = self.fleet.place(seat);
            let up = place.health == crate::policy::Health::Up && !place.evacuating;
            if up && !busy.contains(&place.store) && place.capacity_bytes() > 0 {
                fit.push(place.store);
            }
        }
        // The fullest first.
        fit.sort_by_key(|store| (std::cmp::Reverse(self.permille(&load, *store, 0)), *store));
        fit.iter()
            .find_map(|from| self.shift_from(*from, subjects, &load, &fit))
    }

    fn shift_from(
        &self,
        from: StoreId,
        subjects: &[Subject],
        load: &Load,
        fit: &[StoreId],
    ) -> Option<Shift> {
        let site = self.fleet.site_of(from);
        let here = fit
            .iter()
            .filter(|store| self.fleet.site_of(**store) == site);
        let emptiest = here.map(|store| self.permille(load, *store, 0)).min()?;
        let apart = self.permille(load, from, 0) - emptiest;
        let mut disks: Vec<(u64, &Subject)> = subjects
            .iter()
            .filter(|subject| self.may_shift(subject, from, apart))
            .map(|subject| (weight(subject, from), subject))
            .collect();
        // The largest that fits: the fewest disks are moved about.
        disks.sort_by_key(|(weight, subject)| (std::cmp::Reverse(*weight), subject.record.id));
        disks
            .into_iter()
            .filter(|(weight, _)| *weight > 0)
            .take(TRIED)
            .find_map(|(weight, subject)| {
                let to = self.place_instead(subject, from)?;
                let difference = self.permille(load, from, 0) - self.permille(load, to, 0);
                let weight = weight as i64;
                let evens = self.permille(load, from, -weight) >= self.permille(load, to, weight);
                let shift = Shift {
                    disk: subject.record.id,
                    from,
                    to,
                };
                let differs = self
                    .threshold(subject)
                    .is_some_and(|most| difference > most);
                (fit.contains(&to) && differs && evens).then_some(shift)
            })
    }

    /// A disk at rest, whose policy lets it be moved for so much, and whose copy there nobody wants just there.
    fn may_shift(&self, subject: &Subject, from: StoreId, apart: i64) -> bool {
        let seat = self.fleet.seat(from);
        let own_host = subject.host.is_some_and(|host| {
            let there = seat.map(|seat| self.fleet.host_name(seat));
            there == Some(host)
        });
        let at_rest = || {
            let map = subject.record.map.iter();
            map.clone()
                .all(|range| range.history.0.len() == 1 && range.history.is_whole())
                && map
                    .clone()
                    .any(|range| range.history.member(from).is_some())
        };
        !own_host
            && subject.leaving.is_empty()
            && self.threshold(subject).is_some_and(|most| apart > most)
            && at_rest()
            && !self
                .rules(subject)
                .pins
                .iter()
                .any(|pin| pin.hold.names(from))
    }

    /// The one store that would have the disk's copies instead; none: several, none, or one in another place.
    fn place_instead(&self, subject: &Subject, from: StoreId) -> Option<StoreId> {
        let settled = self.plan(subject);
        if settled.next_sets().is_some() || settled.repair || !settled.shortfalls.is_empty() {
            return None;
        }
        let leaving = [from];
        let without = Subject {
            leaving: &leaving,
            ..*subject
        };
        let rules: Rules = self.rules(&without);
        let goal = place(&self.fleet, &rules, &without, &Promised::new()).goal;
        if !goal.shortfalls.is_empty() || !goal.awaited.is_empty() {
            return None;
        }
        let members = subject.record.members();
        let stores = goal.ranges.iter().flat_map(|range| range.stores());
        let new: BTreeSet<StoreId> = stores.filter(|store| !members.contains(store)).collect();
        let mut new = new.into_iter();
        let (only, None) = (new.next()?, new.next()) else {
            return None;
        };
        let seat = self.fleet.seat(only)?;
        let fit = rules.standing(self.fleet.place(seat)) == Standing::Fit;
        (fit && self.fleet.site_of(only) == self.fleet.site_of(from)).then_some(only)
    }

    /// How far two stores may differ before the disk is moved for it, in permille of their capacity.
    fn threshold(&self, subject: &Subject) -> Option<i64> {
        let percent = self.rules(subject).class.rebalance?;
        Some(i64::from(percent) * 10)
    }

    /// How full a store is, with so much more on it.
    fn permille(&self, load: &Load, store: StoreId, more: i64) -> i64 {
        let seat = self
            .fleet
            .seat(store)
            .expect("only stores of the fleet are asked for");
        let capacity = i128::from(self.fleet.place(seat).capacity_bytes().max(1));
        let bytes = i128::from(load.0.get(&store).copied().unwrap_or(0)) + i128::from(more);
        // Stores of any size: a permille of a full one is a thousandth whatever its bytes.
        (bytes * 1000 / capacity).clamp(0, i128::from(i64::MAX)) as i64
    }
}

/// What copies weigh on each store.
struct Load(BTreeMap<StoreId, u64>);

impl Load {
    fn of(subjects: &[Subject]) -> Load {
        let mut load: BTreeMap<StoreId, u64> = BTreeMap::new();
        for subject in subjects {
            for store in subject.record.members() {
                let sum = load.entry(store).or_default();
                *sum = sum.saturating_add(weight(subject, store));
            }
        }
        Load(load)
    }
}

/// What a disk's copies weigh on a store: what is written, and of what is promised besides as much as counts for room.
fn weight(subject: &Subject, store: StoreId) -> u64 {
    let map = subject.record.map.iter();
    let there = map.filter(|range| range.history.member(store).is_some());
    let extents: u64 = there.map(|range| u64::from(range.extents.count())).sum();
    let promised = extents.saturating_mul(subject.record.extent_size.bytes());
    let written = subject.allocated.get(&store).copied().unwrap_or(0);
    weight_bytes(written.min(promised), promised.saturating_sub(written))
}
