//! An operator's own placement: move, add a copy, drop one; of a disk or of some of its extents.
//!
//! An order becomes pins, which the service keeps, and the plan that follows from them: nothing undoes
//! it later, and lifting the pins does. What policy promises is refused to be broken unless forced, and
//! forced it says what is lost.

use super::goal::{Promised, place};
use super::pins::without;
use super::ranges::{inside, overlap};
use super::rules::Standing;
use super::{Goal, Plan, Planner, Role, Subject};
use crate::policy::{Health, Hold, Pin, Until, nearest};
use replicator::words::{DatacenterName, Extents, StoreId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What an operator wants done; of all extents where none are named.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The copies that follow the VM stand in this datacenter instead, until the VM goes elsewhere.
    Move {
        to: DatacenterName,
        #[serde(default)]
        extents: Option<Extents>,
    },
    AddCopy {
        to: Target,
        #[serde(default)]
        extents: Option<Extents>,
    },
    DropCopy {
        store: StoreId,
        #[serde(default)]
        extents: Option<Extents>,
        #[serde(default)]
        force: bool,
    },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    Store(StoreId),
    /// The best store there.
    Datacenter(DatacenterName),
}

/// What an order comes to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// All pins of the disk from then on; those that have ended are left out.
    pub pins: Vec<Pin>,
    pub plan: Plan,
    /// What is lost by it, in words; only a forced order loses something.
    pub losses: Vec<String>,
}

/// Why an order is not carried out: what, why, and what to try instead.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{error}: {why}; {try_next}")]
pub struct Refused {
    pub error: String,
    pub why: String,
    pub try_next: String,
}

impl Planner<'_> {
    /// What `order` comes to. `reason` is kept with it.
    pub fn propose(
        &self,
        subject: &Subject,
        order: &Order,
        reason: &str,
    ) -> Result<Proposal, Refused> {
        let name = &subject.record.name;
        let all = subject.record.extents();
        let extents = match order {
            Order::Move { extents, .. }
            | Order::AddCopy { extents, .. }
            | Order::DropCopy { extents, .. } => *extents,
        };
        let part = extents.unwrap_or(all);
        if part.count() == 0 || part.end > all.end {
            return Err(refused(
                format!("disk {name} was not changed"),
                format!("it has the extents {all}, and {part} are not in it"),
                "name a range that lies on the disk",
            ));
        }
        let what = Wanted {
            planner: self,
            subject,
            part,
            whole: part == all,
            reason,
            pins: self.in_force(subject),
        };
        match order {
            Order::Move { to, .. } => what.moved(to),
            Order::AddCopy { to, .. } => what.added(to),
            Order::DropCopy { store, force, .. } => what.dropped(*store, *force),
        }
    }

    fn in_force(&self, subject: &Subject) -> Vec<Pin> {
        let own = subject
            .pins
            .iter()
            .filter(|pin| pin.disk == subject.record.id);
        own.filter(|pin| pin.holds(subject.home, self.now))
            .cloned()
            .collect()
    }
}

/// An order whose range is known to exist.
pub(super) struct Wanted<'a> {
    pub planner: &'a Planner<'a>,
    pub subject: &'a Subject<'a>,
    pub part: Extents,
    pub whole: bool,
    pub reason: &'a str,
    pub pins: Vec<Pin>,
}

impl Wanted<'_> {
    fn moved(mut self, to: &DatacenterName) -> Result<Proposal, Refused> {
        let error = format!("disk {} is not moved to {to}", self.subject.record.name);
        self.datacenter_is_allowed(to, &error)?;
        // The latest order counts where several would put the same extents.
        let covered = |pin: &Pin| {
            let places = matches!(pin.hold, Hold::In(_) | Hold::On(_));
            places && (self.whole || pin.extents.is_some_and(|own| inside(own, self.part)))
        };
        let pins = self.pins.iter().filter(|pin| !covered(pin)).cloned();
        self.pins = pins.collect();
        let until = Until::VmLeaves(self.subject.home.datacenter.clone());
        self.pins.push(self.pin(Hold::In(to.clone()), until));
        let goal = self.goal();
        let misplaced = goal.ranges.iter().find(|range| {
            let near_elsewhere = |(store, role): &(StoreId, Role)| match role {
                Role::StandIn | Role::Retained => true,
                Role::Near => self.planner.fleet.site_of(*store) != self.planner.fleet.site(to),
                Role::Away | Role::Also => false,
            };
            overlap(range.extents, self.part) && range.copies.iter().any(near_elsewhere)
        });
        if let Some(range) = misplaced {
            return Err(refused(
                error,
                format!(
                    "{to} has no room for all copies of extents {} on stores that are up and apart",
                    range.extents
                ),
                "start a node with a store there, make room, or move a part of the disk",
            ));
        }
        Ok(self.proposal(goal, Vec::new()))
    }

    fn added(mut self, to: &Target) -> Result<Proposal, Refused> {
        let name = &self.subject.record.name;
        let error = match to {
            Target::Store(store) => format!("disk {name} gets no copy on store {store}"),
            Target::Datacenter(datacenter) => format!("disk {name} gets no copy in {datacenter}"),
        };
        let store = match to {
            Target::Store(store) => *store,
            Target::Datacenter(datacenter) => {
                self.datacenter_is_allowed(datacenter, &error)?;
                self.best_store(datacenter, &error)?
            }
        };
        self.store_is_fit(store, &error)?;
        // One that a pin kept off gets it all the same: the latest order counts.
        self.pins = self.pins_without(store);
        self.pins
            .push(self.pin(Hold::Also(vec![store]), Until::Lifted));
        let goal = self.goal();
        Ok(self.proposal(goal, Vec::new()))
    }

    fn datacenter_is_allowed(
        &self,
        datacenter: &DatacenterName,
        error: &str,
    ) -> Result<(), Refused> {
        let fleet = &self.planner.fleet;
        let Some(site) = fleet.site(datacenter) else {
            let known: Vec<&str> = fleet
                .sites()
                .map(|site| fleet.name(site).as_str())
                .collect();
            let meant = match nearest(datacenter.as_str(), known.iter().copied()) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("there are {}", known.join(", ")),
            };
            return Err(refused(
                error.into(),
                format!("there is no datacenter {datacenter}"),
                meant,
            ));
        };
        let rules = self.planner.rules(self.subject);
        match rules.barred.get(&site) {
            Some(who) => Err(refused(
                error.into(),
                format!("the policy of {who} says that no block of it ever stands in {datacenter}"),
                "residency comes before everything else: only that policy can change it",
            )),
            None => Ok(()),
        }
    }

    fn store_is_fit(&self, store: StoreId, error: &str) -> Result<(), Refused> {
        let fleet = &self.planner.fleet;
        let see = "see `ukai status` for the stores that there are";
        let Some(seat) = fleet.seat(store) else {
            return Err(refused(
                error.into(),
                format!("there is no store {store} whose place is known"),
                see,
            ));
        };
        let place = fleet.place(seat);
        self.datacenter_is_allowed(fleet.name(place.site), error)?;
        let room = fleet.free_bytes(seat, 0) / self.subject.record.extent_size.bytes();
        let rules = self.planner.rules(self.subject);
        let why = if place.health != Health::Up {
            "it is not up".to_owned()
        } else if rules.standing(place) != Standing::Fit {
            "it is being emptied".to_owned()
        } else if room < u64::from(self.part.count()) {
            format!(
                "it has room for {room} more extents, and this takes {}",
                self.part.count()
            )
        } else if let Some(other) = self.members_on(place.at.host).first() {
            match *other == store {
                true => "it is a member already".into(),
                false => {
                    format!("store {other} on the same host has one, and copies never share a host")
                }
            }
        } else {
            return Ok(());
        };
        Err(refused(error.into(), why, "choose another store"))
    }

    fn members_on(&self, host: u32) -> Vec<StoreId> {
        let fleet = &self.planner.fleet;
        let map = self.subject.record.map.iter();
        let members = map
            .filter(|range| overlap(range.extents, self.part))
            .flat_map(|range| range.history.members());
        let on_host = |store: &StoreId| {
            fleet
                .seat(*store)
                .is_some_and(|seat| fleet.place(seat).at.host == host)
        };
        members.filter(on_host).collect()
    }

    fn best_store(&self, datacenter: &DatacenterName, error: &str) -> Result<StoreId, Refused> {
        let fleet = &self.planner.fleet;
        let site = fleet.site(datacenter);
        let fit = fleet.seats().filter(|seat| {
            let place = fleet.place(*seat);
            Some(place.site) == site && self.store_is_fit(place.store, error).is_ok()
        });
        let best =
            fit.max_by_key(|seat| (fleet.unpromised_bytes(*seat, 0), std::cmp::Reverse(*seat)));
        best.map(|seat| fleet.place(seat).store).ok_or_else(|| {
            refused(
                error.into(),
                "no store there is up, has room, and stands on a host without a copy".into(),
                "start a node with a store there, or make room",
            )
        })
    }

    /// The pins, none of which speaks of `store` in the part.
    pub(super) fn pins_without(&self, store: StoreId) -> Vec<Pin> {
        without(&self.pins, store, self.part, self.subject.record.extents())
    }

    pub(super) fn pin(&self, hold: Hold, until: Until) -> Pin {
        Pin {
            disk: self.subject.record.id,
            extents: Some(self.part).filter(|_| !self.whole),
            hold,
            reason: self.reason.to_owned(),
            until,
        }
    }

    pub(super) fn goal(&self) -> Goal {
        let subject = Subject {
            pins: &self.pins,
            ..*self.subject
        };
        let rules = self.planner.rules(&subject);
        place(&self.planner.fleet, &rules, &subject, &Promised::new()).goal
    }

    pub(super) fn proposal(&self, goal: Goal, losses: Vec<String>) -> Proposal {
        let subject = Subject {
            pins: &self.pins,
            ..*self.subject
        };
        let rules = self.planner.rules(&subject);
        Proposal {
            plan: self.planner.plan_to(&rules, &subject, goal),
            pins: self.pins.clone(),
            losses,
        }
    }
}

pub(super) fn refused(error: String, why: String, try_next: impl Into<String>) -> Refused {
    Refused {
        error,
        why,
        try_next: try_next.into(),
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Order::Move { to, .. } => write!(f, "move to {to}"),
            Order::AddCopy {
                to: Target::Store(store),
                ..
            } => write!(f, "add a copy on store {store}"),
            Order::AddCopy {
                to: Target::Datacenter(to),
                ..
            } => write!(f, "add a copy in {to}"),
            Order::DropCopy { store, .. } => write!(f, "drop the copy on store {store}"),
        }
    }
}
