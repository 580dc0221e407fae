//! Placing what a disk's ranges miss: together where they miss the same, elsewhere where there is no
//! room, nowhere if it must be.

use super::fleet::Seat;
use super::goal::{Placing, Range, role};
use super::layout::{Offer, Spot, spread};
use super::rules::{Demand, Scope, Standing};
use replicator::words::{Extent, Extents};
use std::cmp::Reverse;
use std::collections::BTreeMap;

impl<'a> Placing<'a> {
    /// Steps 2 and 3, for the first thing that each range misses.
    pub fn place_next(&mut self, ranges: Vec<Range<'a>>) -> Vec<Range<'a>> {
        let mut done = Vec::with_capacity(ranges.len());
        let mut groups: BTreeMap<(Vec<Seat>, Vec<Seat>, Demand), Vec<Range>> = BTreeMap::new();
        for mut range in ranges {
            if range.missing.is_empty() {
                done.push(range);
                continue;
            }
            let demand = range.missing.remove(0);
            let mut taken: Vec<Seat> = range.taken().collect();
            taken.sort_unstable();
            let key = (taken, range.wants.off.clone(), demand);
            groups.entry(key).or_default().push(range);
        }
        for ((taken, off, demand), group) in groups {
            self.place_group(&taken, &off, demand, group, &mut done);
        }
        done
    }

    /// Places one demand of ranges that have the same stores so far; they may come out cut.
    fn place_group(
        &mut self,
        taken: &[Seat],
        off: &[Seat],
        demand: Demand,
        group: Vec<Range<'a>>,
        done: &mut Vec<Range<'a>>,
    ) {
        let row: u64 = group
            .iter()
            .map(|range| u64::from(range.extents.count()))
            .sum();
        let offers = self.offers(demand, taken, off);
        let spots: Vec<Spot> = taken
            .iter()
            .map(|seat| self.fleet.place(*seat).at)
            .collect();
        let found = (1..=demand.copies).rev().find_map(|copies| {
            let columns = spread(&offers, &spots, row, copies, self.rules.passes())?;
            Some((copies, columns))
        });
        let (placed, columns) = found.unwrap_or((0, vec![(0..row, Vec::new())]));
        let rest = Demand {
            copies: demand.copies - placed,
            scope: Scope::Anywhere,
            ..demand
        };
        // Both the group's ranges and the columns cut the line 0..row; walk them side by side.
        let mut columns = columns.into_iter().peekable();
        let mut at = 0u64;
        for range in group {
            let mut first = range.extents.first;
            while first < range.extents.end {
                let (span, seats) = columns.peek().expect("the columns cover the group");
                let count = (span.end - at).min(u64::from(range.extents.end.0 - first.0)) as u32;
                let mut part = range.clone();
                part.extents = Extents::new(first, Extent(first.0 + count));
                for seat in seats {
                    part.chosen.push((*seat, role(demand)));
                    let bytes = u64::from(count) * self.extent_bytes();
                    *self.taken.entry(*seat).or_default() += bytes;
                    self.used.insert(*seat);
                }
                if rest.copies > 0 && demand.scope == Scope::Anywhere {
                    part.short += rest.copies;
                } else if rest.copies > 0 {
                    self.serve_from_holders(&mut part, rest);
                }
                done.push(part);
                first.0 += count;
                at += u64::from(count);
                if at == span.end {
                    columns.next();
                }
            }
        }
    }

    /// Stores that may get copies, best first: the VM's own, then those that keep the map short, then
    /// those with most room; ties by id.
    fn offers(&self, demand: Demand, taken: &[Seat], off: &[Seat]) -> Vec<Offer<Seat>> {
        let mut offers: Vec<Offer<Seat>> = self
            .fleet
            .seats()
            .filter(|seat| {
                let place = self.fleet.place(*seat);
                self.rules.standing(place) == Standing::Fit
                    && self.rules.reaches(place.store)
                    && self.inside(demand, *seat)
                    && self.rules.allows(place.site)
                    && !taken.contains(seat)
                    && !off.contains(seat)
            })
            .map(|seat| Offer {
                store: seat,
                at: self.fleet.place(seat).at,
                room: self.room(seat),
            })
            .filter(|offer| offer.room > 0)
            .collect();
        offers.sort_by_cached_key(|offer| {
            let place = self.fleet.place(offer.store);
            let distance = self
                .rules
                .home
                .map(|home| self.fleet.distance(home, place.site));
            (
                distance,
                Some(place.at.host) != self.near_host,
                !self.used.contains(&offer.store),
                Reverse(self.unpromised_bytes(offer.store)),
                offer.store,
            )
        });
        offers
    }

    fn extent_bytes(&self) -> u64 {
        self.subject.record.extent_size.bytes()
    }

    /// To prefer the emptier one.
    pub fn unpromised_bytes(&self, seat: Seat) -> u64 {
        let promised = self.promised.get(&seat).copied().unwrap_or(0);
        let taken = self.taken.get(&seat).copied().unwrap_or(0);
        self.fleet
            .unpromised_bytes(seat, promised.saturating_add(taken))
    }

    /// In extents of this disk.
    pub fn room(&self, seat: Seat) -> u64 {
        let taken = self.taken.get(&seat).copied().unwrap_or(0);
        let promised = self.promised.get(&seat).copied().unwrap_or(0);
        // What this disk takes counts whole: it must fit when all of it is written.
        (self.fleet.free_bytes(seat, promised).saturating_sub(taken)) / self.extent_bytes()
    }
}
