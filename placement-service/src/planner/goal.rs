//! Where the extents of a disk should stand.
//!
//! What stands where policy wants it stays; only what is missing is placed anew, so that a plan
//! changes as little as possible and a second plan changes nothing:
//!
//! 1. Each range keeps those of its copies that its [`Demand`]s can use: members of the write set
//!    before sealed copies, those before ones that are kept for a way back.
//!    A copy whose store is away is waited for, for as long as policy says.
//! 2. Ranges that miss the same are taken together and [`spread`](super::layout::spread) over the stores of that place.
//! 3. What found no room there stands in elsewhere, as near as possible (durability before locality).
//! 4. What found no room at all is a shortfall; a copy that should go then stays until one is found.

use super::fleet::{Fleet, Seat};
use super::held::{Holder, holders, segments};
use super::layout::Apart;
use super::plan::{Awaited, Goal, GoalRange, Role, Shortfall};
use super::rules::{Demand, Rules, Scope, Standing, Wants};
use super::subject::Subject;
use crate::policy::UnixSeconds;
use replicator::words::{Extents, History, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What was promised to disks since the stores reported, in bytes.
pub(super) type Promised = BTreeMap<Seat, u64>;

/// A goal in the fleet's numbers, with what it takes anew.
pub(super) struct Placed {
    pub goal: Goal,
    /// Bytes that the goal promises on stores that the map does not name.
    pub promised: Promised,
}

pub(super) fn place(
    fleet: &Fleet,
    rules: &Rules,
    subject: &Subject,
    promised: &Promised,
) -> Placed {
    let mut placing = Placing {
        fleet,
        rules,
        subject,
        near_host: subject.host.and_then(|host| fleet.host(host)),
        promised,
        taken: Promised::new(),
        used: BTreeSet::new(),
    };
    let mut ranges: Vec<Range> = segments(subject, rules)
        .map(|(extents, history)| placing.keep(extents, history))
        .collect();
    for range in &ranges {
        placing
            .used
            .extend(range.chosen.iter().map(|(seat, _)| *seat));
    }
    while ranges.iter().any(|range| !range.missing.is_empty()) {
        ranges = placing.place_next(ranges);
    }
    ranges.sort_by_key(|range| range.extents.first);
    Placed {
        goal: placing.finish(ranges),
        promised: placing.taken,
    }
}

/// A range while its copies are being found.
#[derive(Clone)]
pub(super) struct Range<'a> {
    pub extents: Extents,
    history: &'a History,
    pub wants: Rc<Wants>,
    holders: Rc<Vec<Holder>>,
    pub chosen: Vec<(Seat, Role)>,
    /// Demands, as far as they are not served.
    pub missing: Vec<Demand>,
    /// Copies whose stores are away, and are waited for until then.
    pub awaited: Vec<(Seat, UnixSeconds)>,
    /// Copies that can stand nowhere.
    pub short: u8,
}

impl Range<'_> {
    /// Stores that have one of its copies, or had and are waited for.
    pub fn taken(&self) -> impl Iterator<Item = Seat> + '_ {
        let chosen = self.chosen.iter().map(|(seat, _)| *seat);
        chosen.chain(self.awaited.iter().map(|(seat, _)| *seat))
    }
}

pub(super) struct Placing<'a> {
    pub fleet: &'a Fleet,
    pub rules: &'a Rules<'a>,
    pub subject: &'a Subject<'a>,
    pub near_host: Option<u32>,
    pub promised: &'a Promised,
    pub taken: Promised,
    /// Stores that have some of the disk: each more makes the map longer.
    pub used: BTreeSet<Seat>,
}

impl<'a> Placing<'a> {
    /// Step 1: what stays of what is there.
    fn keep(&self, extents: Extents, history: &'a History) -> Range<'a> {
        let wants = self.rules.wants(self.fleet, extents, history);
        let here = (extents, history);
        let empty = |seat| self.unpromised_bytes(seat);
        let holders = holders(self.fleet, self.rules, self.subject, here, &wants, empty);
        let mut range = Range {
            extents,
            history,
            missing: Vec::new(),
            awaited: Vec::new(),
            short: 0,
            chosen: Vec::with_capacity(usize::from(wants.total())),
            holders: holders.into(),
            wants: wants.into(),
        };
        let mut demands = range.wants.demands.clone();
        for seat in range.wants.on.clone() {
            self.take_pinned_on(&mut range, seat, &mut demands);
        }
        for demand in demands {
            self.serve_from_holders(&mut range, demand);
        }
        for seat in range.wants.clone().also.iter() {
            self.take_pinned(&mut range, *seat, Role::Also);
        }
        range
    }

    /// A store that a pin wants serves what is wanted at its place, or else near the VM.
    fn take_pinned_on(&self, range: &mut Range, seat: Seat, demands: &mut [Demand]) {
        let here = Scope::In(self.fleet.place(seat).site);
        let served = demands
            .iter()
            .position(|demand| demand.scope == here && demand.copies > 0)
            .or_else(|| demands.iter().position(|demand| !demand.away));
        let demand = &mut demands[served.expect("near copies are always wanted")];
        if self.take_pinned(range, seat, role(*demand)) {
            demand.copies = demand.copies.saturating_sub(1);
        }
    }

    fn take_pinned(&self, range: &mut Range, seat: Seat, role: Role) -> bool {
        let held = range
            .holders
            .iter()
            .any(|holder| holder.seat == seat && holder.holds.is_live());
        let usable = match self.rules.standing(self.fleet.place(seat)) {
            Standing::Fit => {
                let room = self.room(seat) >= u64::from(range.extents.count());
                held || (room && self.rules.reaches(self.fleet.place(seat).store))
            }
            Standing::Away { .. } => held,
            Standing::Leaving | Standing::Gone => false,
        };
        // A store that is chosen already clashes with itself.
        let taken = usable && !self.clashes(range, seat, Apart::Hosts);
        if taken {
            range.chosen.push((seat, role));
        }
        taken
    }

    /// Takes what is there already; what remains of `demand` is missing.
    pub fn serve_from_holders(&self, range: &mut Range, mut demand: Demand) {
        let passes = self.rules.passes();
        let wants = range.wants.clone();
        // What stands and shares a rack is not moved for a mere preference; what would join anew is
        // chosen better.
        for live in [true, false] {
            for apart in passes {
                let anywhere = live && demand.stays;
                for holder in range.holders.clone().iter() {
                    let seat = holder.seat;
                    if demand.copies > 0
                        && holder.holds.is_live() == live
                        && !wants.also.contains(&seat)
                        && (anywhere || self.inside(demand, seat))
                        && !self.clashes(range, seat, *apart)
                    {
                        match holder.awaited {
                            Some(until) => range.awaited.push((seat, until)),
                            None => range.chosen.push((seat, role(demand))),
                        }
                        demand.copies -= 1;
                    }
                }
            }
        }
        // A copy that was added by hand comes besides those that policy asks for, but before a new one.
        for seat in &wants.also {
            if demand.copies > 0
                && self.inside(demand, *seat)
                && self.take_added(range, *seat, role(demand))
            {
                demand.copies -= 1;
            }
        }
        if demand.copies > 0 {
            range.missing.push(demand);
        }
    }

    fn take_added(&self, range: &mut Range, seat: Seat, role: Role) -> bool {
        let added = (seat, Role::Also);
        match range.chosen.iter_mut().find(|chosen| **chosen == added) {
            Some(chosen) => {
                chosen.1 = role;
                true
            }
            None => self.take_pinned(range, seat, role),
        }
    }

    pub fn inside(&self, demand: Demand, seat: Seat) -> bool {
        match demand.scope {
            Scope::In(site) => self.fleet.place(seat).site == site,
            Scope::Anywhere => true,
        }
    }

    fn clashes(&self, range: &Range, seat: Seat, apart: Apart) -> bool {
        let place = self.fleet.place(seat);
        range.taken().any(|other| {
            let other = self.fleet.place(other);
            other.at.host == place.at.host
                || (apart == Apart::Racks && other.at.rack == place.at.rack)
        })
    }

    /// Step 4, and the goal in names.
    fn finish(&self, ranges: Vec<Range<'a>>) -> Goal {
        let mut goal = Goal {
            ranges: Vec::with_capacity(ranges.len()),
            shortfalls: Vec::new(),
            awaited: Vec::new(),
        };
        for range in ranges {
            let copies = range.chosen.iter();
            let mut copies: Vec<(StoreId, Role)> = copies
                .map(|(seat, role)| (self.fleet.place(*seat).store, *role))
                .collect();
            if range.short > 0 || !range.awaited.is_empty() {
                self.retain(&range, &mut copies);
            }
            if range.short > 0 {
                goal.shortfalls.push(self.shortfall(&range));
            }
            goal.awaited
                .extend(range.awaited.iter().map(|(seat, until)| Awaited {
                    extents: range.extents,
                    store: self.fleet.place(*seat).store,
                    until: *until,
                }));
            copies.sort_unstable();
            let wanted = range.wants.total();
            match goal.ranges.last_mut() {
                Some(before) if before.copies == copies && before.wanted == wanted => {
                    before.extents.end = range.extents.end;
                }
                _ => goal.ranges.push(GoalRange {
                    extents: range.extents,
                    wanted,
                    copies,
                }),
            }
        }
        join_alike(&mut goal.shortfalls);
        join_awaited(&mut goal.awaited);
        goal
    }

    /// A copy is given up only for another one: where some are missing, members that should go stay.
    /// Nothing is put where it must not be; but what is there is not deleted before it is elsewhere.
    fn retain(&self, range: &Range, copies: &mut Vec<(StoreId, Role)>) {
        let mut left = usize::from(range.short) + range.awaited.len();
        let whole_first = [true, false].into_iter().flat_map(|whole| {
            let live = range.history.live();
            live.filter(move |entry| entry.whole == whole)
        });
        let mut members: Vec<StoreId> = whole_first
            .flat_map(|entry| entry.stores.iter().copied())
            .filter(|store| copies.iter().all(|(other, _)| other != store))
            .collect();
        members.sort_by_key(|store| self.rules.is_gone(self.fleet, *store));
        for store in &members {
            if left > 0 && !self.rules.is_off(*store, range.extents, true) {
                copies.push((*store, Role::Retained));
                left -= 1;
            }
        }
        // Whatever was forced, the last one stays.
        if copies.is_empty() {
            copies.extend(members.first().map(|last| (*last, Role::Retained)));
        }
    }

    fn shortfall(&self, range: &Range) -> Shortfall {
        let barred: Vec<&str> = self
            .rules
            .barred
            .keys()
            .map(|site| self.fleet.name(*site).as_str())
            .collect();
        let but = match barred[..] {
            [] => String::new(),
            _ => format!(", and {} is barred", barred.join(", ")),
        };
        Shortfall {
            extents: range.extents,
            missing: range.short,
            why: format!(
                "no other host that is up and has room is left for it{but}: start a node with a store, or make room"
            ),
        }
    }
}

pub(super) fn role(demand: Demand) -> Role {
    match (demand.away, demand.scope) {
        (true, _) => Role::Away,
        (false, Scope::In(_)) => Role::Near,
        (false, Scope::Anywhere) => Role::StandIn,
    }
}

/// In the order of stores, neighbours together.
fn join_awaited(awaited: &mut Vec<Awaited>) {
    awaited.sort_unstable_by_key(|one| (one.store, one.extents.first));
    awaited.dedup_by(|behind, before| {
        let alike = behind.extents.first == before.extents.end
            && (behind.store, behind.until) == (before.store, before.until);
        if alike {
            before.extents.end = behind.extents.end;
        }
        alike
    });
}

fn join_alike(shortfalls: &mut Vec<Shortfall>) {
    shortfalls.dedup_by(|behind, before| {
        let alike = behind.extents.first == before.extents.end
            && (behind.missing, &behind.why) == (before.missing, &before.why);
        if alike {
            before.extents.end = behind.extents.end;
        }
        alike
    });
}
