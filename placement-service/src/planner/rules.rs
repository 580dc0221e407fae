//! What governs a disk, and what that asks for of each of its extents.
//!
//! This is where the order of precedence is made: datacenters that are barred are passed over by
//! everything else (residency); the number of copies and those kept away never shrink (durability); where the
//! others stand is the VM's place, a pin's, or where they are (locality).

use super::fleet::{Fleet, Place, Seat, Site};
use super::layout::Apart;
use super::subject::Subject;
use crate::policy::{Class, Follow, Health, Hold, Pin, Policies, Rigor, Spread, UnixSeconds};
use replicator::words::{DatacenterName, Extents, History, StoreId};
use std::collections::BTreeMap;

/// A disk's rules, once for all its extents.
pub(super) struct Rules<'a> {
    pub class: &'a Class,
    pub copies: u8,
    pub home: Option<Site>,
    /// Datacenters where no block of it may stand, and whose policy says so.
    pub barred: BTreeMap<Site, &'a DatacenterName>,
    /// Those in force.
    pub pins: Vec<&'a Pin>,
    /// Whether the copies go where the VM is; otherwise they stay where most of them are.
    pub follows: bool,
    leaving: &'a [StoreId],
    unreachable: &'a [StoreId],
    now: UnixSeconds,
}

/// What a disk may ask of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// It keeps what it has, and may get more.
    Fit,
    /// It keeps what it has until that is elsewhere, and gets nothing new.
    Leaving,
    /// It is expected to come back before this, and gets nothing until it has.
    Away {
        until: UnixSeconds,
    },
    Gone,
}

/// What is wanted of one range of extents.
#[derive(Clone, Debug)]
pub(super) struct Wants {
    /// In the order in which they are served.
    pub demands: Vec<Demand>,
    /// Stores that a pin wants among the near copies.
    pub on: Vec<Seat>,
    /// Stores that a pin wants besides, as far as enough others are there.
    pub also: Vec<Seat>,
    /// Stores that a pin wants none on.
    pub off: Vec<Seat>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Demand {
    pub scope: Scope,
    pub copies: u8,
    pub away: bool,
    /// Members of the write set serve it wherever they are; only what is missing goes to `scope`.
    pub stays: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Scope {
    In(Site),
    /// Wherever residency allows, the nearest first.
    Anywhere,
}

impl<'a> Rules<'a> {
    pub fn of(
        subject: &Subject<'a>,
        policies: &'a Policies,
        fleet: &Fleet,
        now: UnixSeconds,
    ) -> Rules<'a> {
        let Subject {
            record,
            class: name,
            home,
            pins,
            ..
        } = *subject;
        let class = policies.class(&home.datacenter, name);
        let mut barred = BTreeMap::new();
        for who in std::iter::once(&home.datacenter).chain(&home.before) {
            for datacenter in &policies.class(who, name).never {
                if let Some(site) = fleet.site(datacenter) {
                    barred.entry(site).or_insert(who);
                }
            }
        }
        let pins = pins
            .iter()
            .filter(|pin| pin.disk == record.id && pin.holds(home, now));
        Rules {
            class,
            copies: class.copies_for(record.copies),
            home: fleet.site(&home.datacenter),
            barred,
            pins: pins.collect(),
            follows: class.follow != Follow::Manual && !home.is_held(now),
            leaving: subject.leaving,
            unreachable: subject.unreachable,
            now,
        }
    }

    pub fn standing(&self, place: &Place) -> Standing {
        match place.health {
            Health::Up if place.evacuating || self.leaving.contains(&place.store) => {
                Standing::Leaving
            }
            Health::Up => Standing::Fit,
            Health::Silent { since } => match self.awaited_until(since) {
                Some(until) => Standing::Away { until },
                None => Standing::Gone,
            },
            Health::Gone => Standing::Gone,
        }
    }

    /// Whether a store has nothing of the disk any more, as far as anybody can tell. One whose place was never
    /// heard of is not.
    pub fn is_gone(&self, fleet: &Fleet, store: StoreId) -> bool {
        let place = fleet.seat(store).map(|seat| fleet.place(seat));
        place.is_some_and(|place| self.standing(place) == Standing::Gone)
    }

    /// Whether a store that may get copies can be reached by whoever would have to reach it.
    pub fn reaches(&self, store: StoreId) -> bool {
        !self.unreachable.contains(&store)
    }

    /// Until when a copy is waited for that has been missing since then; none: not any more.
    pub fn awaited_until(&self, since: UnixSeconds) -> Option<UnixSeconds> {
        let until = since.after(self.class.repair_after);
        Some(until).filter(|until| *until > self.now)
    }

    pub fn allows(&self, site: Site) -> bool {
        !self.barred.contains_key(&site)
    }

    /// How hard copies are kept apart: first as in the first pass, then as in the next.
    pub fn passes(&self) -> &'static [Apart] {
        match (self.class.spread, self.class.rigor) {
            (Spread::Rack, Rigor::Strict) => &[Apart::Racks],
            (Spread::Rack, Rigor::Prefer) => &[Apart::Racks, Apart::Hosts],
            (Spread::Host, _) => &[Apart::Hosts],
        }
    }

    /// Whether the latest pin that speaks of `store` in `extents` wants none there: with `forced`, even
    /// if no other store can have them.
    pub fn is_off(&self, store: StoreId, extents: Extents, forced: bool) -> bool {
        let speaks = self.pins.iter().rev().find_map(|pin| match &pin.hold {
            Hold::In(_) => None,
            Hold::On(stores) | Hold::Also(stores) | Hold::Off(stores) | Hold::Without(stores) => {
                let speaks = stores.contains(&store) && pin.covers(extents);
                speaks.then_some(&pin.hold)
            }
        });
        match speaks {
            Some(Hold::Without(_)) => true,
            Some(Hold::Off(_)) => !forced,
            _ => false,
        }
    }

    /// What is wanted of `extents`, which share a history and all pins.
    pub fn wants(&self, fleet: &Fleet, extents: Extents, history: &History) -> Wants {
        let mut wants = Wants {
            demands: Vec::with_capacity(1 + self.class.away.len()),
            on: Vec::new(),
            also: Vec::new(),
            off: Vec::new(),
        };
        let mut pinned_in = None;
        for pin in self.pins.iter().filter(|pin| pin.covers(extents)) {
            let seats = |stores: &[_]| -> Vec<Seat> {
                let seats = stores.iter().filter_map(|store| fleet.seat(*store));
                seats
                    .filter(|seat| self.allows(fleet.place(*seat).site))
                    .collect()
            };
            match &pin.hold {
                Hold::In(datacenter) => {
                    let site = fleet.site(datacenter).filter(|site| self.allows(*site));
                    pinned_in = site.or(pinned_in);
                }
                // The latest pin counts, where one wants a store and another does not.
                Hold::On(stores) | Hold::Also(stores) => {
                    let seats = seats(stores);
                    for list in [&mut wants.on, &mut wants.also, &mut wants.off] {
                        list.retain(|seat| !seats.contains(seat));
                    }
                    match &pin.hold {
                        Hold::On(_) => wants.on.extend(seats),
                        _ => wants.also.extend(seats),
                    }
                }
                Hold::Off(stores) | Hold::Without(stores) => {
                    let seats = seats(stores);
                    wants.on.retain(|seat| !seats.contains(seat));
                    wants.also.retain(|seat| !seats.contains(seat));
                    wants.off.extend(seats);
                }
            }
        }
        let stays = pinned_in.is_none() && !self.follows;
        let near = match pinned_in {
            Some(site) => Some(site),
            None if stays => self.most_of(fleet, history).or(self.home),
            None => self.home,
        };
        let near = near.filter(|site| self.allows(*site));
        for (datacenter, copies) in &self.class.away {
            let there = fleet.site(datacenter).filter(|site| self.allows(*site));
            // What is kept away from the VM's place is kept away from where a pin put the copies, too:
            // then the VM's place is what is elsewhere.
            let elsewhere = match there {
                Some(site) if Some(site) == near && !stays => {
                    self.home.filter(|h| Some(*h) != near && self.allows(*h))
                }
                there => there,
            };
            wants.demands.push(Demand {
                scope: elsewhere.map_or(Scope::Anywhere, Scope::In),
                copies: *copies,
                away: true,
                stays: false,
            });
        }
        let near = Demand {
            scope: near.map_or(Scope::Anywhere, Scope::In),
            copies: self.copies,
            away: false,
            stays,
        };
        // Copies that stay wherever they are take what those that are kept away leave; otherwise what
        // is near the VM is chosen first.
        let first = if stays { wants.demands.len() } else { 0 };
        wants.demands.insert(first, near);
        wants
    }

    /// The datacenter where most copies of the write set are beyond those that policy keeps away there; home
    /// among equals.
    fn most_of(&self, fleet: &Fleet, history: &History) -> Option<Site> {
        let mut counts: BTreeMap<Site, i32> = BTreeMap::new();
        for site in history.members().filter_map(|store| fleet.site_of(store)) {
            *counts.entry(site).or_default() += 1;
        }
        for (datacenter, copies) in &self.class.away {
            if let Some(count) = fleet
                .site(datacenter)
                .and_then(|site| counts.get_mut(&site))
            {
                *count -= i32::from(*copies);
            }
        }
        let prefer = |site: Site| (Some(site) == self.home, std::cmp::Reverse(site));
        counts
            .into_iter()
            .filter(|(site, count)| *count > 0 && self.allows(*site))
            .max_by_key(|(site, count)| (*count, prefer(*site)))
            .map(|(site, _)| site)
    }
}

impl Wants {
    /// The copies that policy asks for.
    pub fn total(&self) -> u8 {
        self.demands
            .iter()
            .fold(0u8, |sum, demand| sum.saturating_add(demand.copies))
    }
}
