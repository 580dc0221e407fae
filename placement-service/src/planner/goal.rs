//! Where the extents of a disk should stand.
//!
//! What stands where policy wants it stays; only what is missing is placed anew, so that a plan
//! changes as little as possible and a second plan changes nothing:
//!
//! 1. Each range keeps those of its copies that its [`Demand`]s can use: members of the write set
//!    before sealed copies, those before ones that are kept for a way back.
//! 2. Ranges that miss the same are taken together and [`spread`] over the stores of that place.
//! 3. What found no room there stands in elsewhere, as near as possible (durability before locality).
//! 4. What found no room at all is a shortfall; a copy that should go then stays until one is found.

use super::fleet::{Fleet, Seat};
use super::layout::{Apart, Offer, spread};
use super::plan::{Goal, GoalRange, Role, Shortfall};
use super::rules::{Demand, Rules, Scope, Wants};
use super::subject::Subject;
use crate::policy::Health;
use replicator::words::{Extent, Extents, History, StoreId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

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
struct Range<'a> {
    extents: Extents,
    history: &'a History,
    wants: std::rc::Rc<Wants>,
    holders: std::rc::Rc<Vec<Holder>>,
    chosen: Vec<(Seat, Role)>,
    /// Demands, as far as they are not served.
    missing: Vec<Demand>,
    /// Copies that can stand nowhere.
    short: u8,
}

/// A store that has some of a range already.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Holder {
    holds: Holds,
    elsewhere_than_vm: bool,
    less_room: Reverse<u64>,
    seat: Seat,
}

/// What a store has of a range, most useful first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    LiveWhole,
    LiveFilling,
    Sealed,
    Retired,
}

impl Holds {
    fn is_live(self) -> bool {
        self <= Holds::LiveFilling
    }
}

struct Placing<'a> {
    fleet: &'a Fleet,
    rules: &'a Rules<'a>,
    subject: &'a Subject<'a>,
    near_host: Option<u32>,
    promised: &'a Promised,
    taken: Promised,
    /// Stores that have some of the disk: each more makes the map longer.
    used: BTreeSet<Seat>,
}

/// The ranges of the map, cut where pins begin and end.
pub(super) fn segments<'a>(
    subject: &Subject<'a>,
    rules: &Rules,
) -> impl Iterator<Item = (Extents, &'a History)> + use<'a> {
    let mut cuts: Vec<Extent> = Vec::new();
    for extents in rules.pins.iter().filter_map(|pin| pin.extents) {
        cuts.extend([extents.first, extents.end]);
    }
    cuts.sort_unstable();
    cuts.dedup();
    subject.record.map.iter().flat_map(move |range| {
        let inside = cuts
            .iter()
            .copied()
            .filter(|cut| range.extents.first < *cut && range.extents.contains(*cut));
        let mut edges = vec![range.extents.first];
        edges.extend(inside);
        edges.push(range.extents.end);
        let pieces: Vec<Extents> = edges
            .windows(2)
            .map(|pair| Extents::new(pair[0], pair[1]))
            .collect();
        pieces.into_iter().map(|extents| (extents, &range.history))
    })
}

impl<'a> Placing<'a> {
    /// Step 1: what stays of what is there.
    fn keep(&self, extents: Extents, history: &'a History) -> Range<'a> {
        let wants = self.rules.wants(self.fleet, extents, history);
        let holders = self.holders(extents, history, &wants);
        let mut range = Range {
            extents,
            history,
            missing: Vec::new(),
            short: 0,
            chosen: Vec::with_capacity(usize::from(wants.total())),
            holders: holders.into(),
            wants: wants.into(),
        };
        let mut near_pinned = 0;
        for seat in range.wants.on.clone() {
            near_pinned += u8::from(self.take_pinned(&mut range, seat, Role::Near));
        }
        for seat in range.wants.also.clone() {
            self.take_pinned(&mut range, seat, Role::Also);
        }
        for demand in range.wants.demands.clone() {
            let pinned = if demand.away { 0 } else { near_pinned };
            let left = Demand {
                copies: demand.copies.saturating_sub(pinned),
                ..demand
            };
            self.serve_from_holders(&mut range, left);
        }
        range
    }

    fn holders(&self, extents: Extents, history: &History, wants: &Wants) -> Vec<Holder> {
        let mut holders: Vec<Holder> = Vec::with_capacity(4);
        let mut add = |store: &StoreId, holds: Holds| {
            let Some(seat) = self.fleet.seat(*store) else {
                return;
            };
            let place = self.fleet.place(seat);
            let usable = match place.health {
                Health::Up => true,
                Health::Silent => holds.is_live(),
                Health::Gone => false,
            };
            let known = holders.iter().any(|holder| holder.seat == seat);
            if usable && !known && self.rules.allows(place.site) && !wants.off.contains(&seat) {
                holders.push(Holder {
                    holds,
                    elsewhere_than_vm: Some(place.host) != self.near_host,
                    less_room: Reverse(self.unpromised_bytes(seat)),
                    seat,
                });
            }
        };
        for entry in history.live() {
            let holds = if entry.whole {
                Holds::LiveWhole
            } else {
                Holds::LiveFilling
            };
            entry.stores.iter().for_each(|store| add(store, holds));
        }
        for entry in history.0.iter().filter(|entry| !entry.is_live()) {
            entry
                .stores
                .iter()
                .for_each(|store| add(store, Holds::Sealed));
        }
        for retired in self.subject.retired {
            let has = |part: &Extents| part.first <= extents.first && extents.end <= part.end;
            if retired.extents.iter().any(has) {
                add(&retired.store, Holds::Retired);
            }
        }
        holders.sort_unstable();
        holders
    }

    fn take_pinned(&self, range: &mut Range, seat: Seat, role: Role) -> bool {
        let held = range
            .holders
            .iter()
            .any(|holder| holder.seat == seat && holder.holds.is_live());
        let usable = held
            || (self.fleet.place(seat).health == Health::Up
                && self.room(seat) >= u64::from(range.extents.count()));
        let taken = usable && !self.clashes(&range.chosen, seat, Apart::Hosts);
        if taken {
            range.chosen.push((seat, role));
        }
        taken
    }

    /// Takes what is there already; what remains of `demand` is missing.
    fn serve_from_holders(&self, range: &mut Range, demand: Demand) {
        let mut left = demand.copies;
        let passes = self.rules.passes();
        // What stands and shares a rack is not moved for a mere preference; what would join anew is
        // chosen better.
        for live in [true, false] {
            for apart in passes {
                for holder in range
                    .holders
                    .iter()
                    .filter(|holder| holder.holds.is_live() == live)
                {
                    let seat = holder.seat;
                    let chosen = range.chosen.iter().any(|(other, _)| *other == seat);
                    if left > 0
                        && !chosen
                        && self.inside(demand, seat)
                        && !self.clashes(&range.chosen, seat, *apart)
                    {
                        range.chosen.push((seat, role(demand)));
                        left -= 1;
                    }
                }
            }
        }
        if left > 0 {
            range.missing.push(Demand {
                copies: left,
                ..demand
            });
        }
    }

    fn inside(&self, demand: Demand, seat: Seat) -> bool {
        match demand.scope {
            Scope::In(site) => self.fleet.place(seat).site == site,
            Scope::Anywhere => true,
        }
    }

    fn clashes(&self, chosen: &[(Seat, Role)], seat: Seat, apart: Apart) -> bool {
        let place = self.fleet.place(seat);
        chosen.iter().any(|(other, _)| {
            let other = self.fleet.place(*other);
            other.host == place.host || (apart == Apart::Racks && other.rack == place.rack)
        })
    }

    /// Steps 2 and 3, for the first thing that each range misses.
    fn place_next(&mut self, ranges: Vec<Range<'a>>) -> Vec<Range<'a>> {
        let mut done = Vec::with_capacity(ranges.len());
        let mut groups: BTreeMap<(Vec<Seat>, Vec<Seat>, Demand), Vec<Range>> = BTreeMap::new();
        for mut range in ranges {
            if range.missing.is_empty() {
                done.push(range);
                continue;
            }
            let demand = range.missing.remove(0);
            let mut taken: Vec<Seat> = range.chosen.iter().map(|(seat, _)| *seat).collect();
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
        let found = (1..=demand.copies).rev().find_map(|copies| {
            let columns = spread(self.fleet, &offers, taken, row, copies, self.rules.passes())?;
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
    fn offers(&self, demand: Demand, taken: &[Seat], off: &[Seat]) -> Vec<Offer> {
        let mut offers: Vec<Offer> = self
            .fleet
            .seats()
            .filter(|seat| {
                let place = self.fleet.place(*seat);
                place.health == Health::Up
                    && self.inside(demand, *seat)
                    && self.rules.allows(place.site)
                    && !taken.contains(seat)
                    && !off.contains(seat)
            })
            .map(|seat| Offer {
                seat,
                room: self.room(seat),
            })
            .filter(|offer| offer.room > 0)
            .collect();
        offers.sort_by_cached_key(|offer| {
            let place = self.fleet.place(offer.seat);
            let distance = self
                .rules
                .home
                .map(|home| self.fleet.distance(home, place.site));
            (
                distance,
                Some(place.host) != self.near_host,
                !self.used.contains(&offer.seat),
                Reverse(self.unpromised_bytes(offer.seat)),
                offer.seat,
            )
        });
        offers
    }

    fn extent_bytes(&self) -> u64 {
        self.subject.record.extent_size.bytes()
    }

    /// To prefer the emptier one.
    fn unpromised_bytes(&self, seat: Seat) -> u64 {
        let promised = self.promised.get(&seat).copied().unwrap_or(0);
        let taken = self.taken.get(&seat).copied().unwrap_or(0);
        self.fleet
            .unpromised_bytes(seat, promised.saturating_add(taken))
    }

    /// In extents of this disk.
    fn room(&self, seat: Seat) -> u64 {
        let taken = self.taken.get(&seat).copied().unwrap_or(0);
        let promised = self.promised.get(&seat).copied().unwrap_or(0);
        // What this disk takes counts whole: it must fit when all of it is written.
        (self.fleet.free_bytes(seat, promised).saturating_sub(taken)) / self.extent_bytes()
    }

    /// Step 4, and the goal in names.
    fn finish(&self, ranges: Vec<Range<'a>>) -> Goal {
        let mut goal = Goal {
            ranges: Vec::with_capacity(ranges.len()),
            shortfalls: Vec::new(),
        };
        for range in ranges {
            let copies = range.chosen.iter();
            let mut copies: Vec<(StoreId, Role)> = copies
                .map(|(seat, role)| (self.fleet.place(*seat).store, *role))
                .collect();
            if range.short > 0 {
                retain(&range, &mut copies);
                goal.shortfalls.push(self.shortfall(&range));
            }
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
        goal
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

/// A copy is given up only for another one: where some are missing, members that should go stay.
/// Nothing is put where it must not be; but what is there is not deleted before it is elsewhere.
fn retain(range: &Range, copies: &mut Vec<(StoreId, Role)>) {
    let mut left = range.short;
    let whole_first = [true, false];
    let members = whole_first.iter().flat_map(|whole| {
        let entries = range
            .history
            .live()
            .filter(move |entry| entry.whole == *whole);
        entries.flat_map(|entry| &entry.stores)
    });
    for store in members {
        if left > 0 && copies.iter().all(|(other, _)| other != store) {
            copies.push((*store, Role::Retained));
            left -= 1;
        }
    }
}

fn role(demand: Demand) -> Role {
    match (demand.away, demand.scope) {
        (true, _) => Role::Away,
        (false, Scope::In(_)) => Role::Near,
        (false, Scope::Anywhere) => Role::StandIn,
    }
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
