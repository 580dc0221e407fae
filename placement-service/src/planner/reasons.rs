//! The sentences of an explanation: one for each reason that put a copy where it is.

use super::explain::CopyState;
use super::plan::Role;
use super::ranges::overlap;
use super::rules::{Rules, Scope};
use super::{Planner, Subject};
use crate::policy::{DropWhen, Follow, Hold, Pin, Rigor, Spread};
use replicator::words::{DatacenterName, Extents, StoreId};
use std::time::Duration;

/// Why a copy is here, what keeps it from being elsewhere, what would change that.
pub(super) struct Reasons {
    pub why_here: String,
    pub why_not_elsewhere: String,
    pub what_would_change_it: String,
}

impl Reasons {
    fn new(
        why_here: impl Into<String>,
        why_not_elsewhere: impl Into<String>,
        what_would_change_it: impl Into<String>,
    ) -> Reasons {
        Reasons {
            why_here: why_here.into(),
            why_not_elsewhere: why_not_elsewhere.into(),
            what_would_change_it: what_would_change_it.into(),
        }
    }
}

/// The copy that is spoken of.
pub(super) struct Spoken<'a> {
    pub store: StoreId,
    /// At least one.
    pub extents: &'a [Extents],
    pub datacenter: Option<&'a DatacenterName>,
}

impl Spoken<'_> {
    fn here(&self) -> String {
        let unknown = || "a place that is not known".to_owned();
        self.datacenter.map_or_else(unknown, ToString::to_string)
    }
}

/// Who speaks: all that the reasons are taken from.
pub(super) struct Telling<'a> {
    pub planner: &'a Planner<'a>,
    pub subject: &'a Subject<'a>,
    pub rules: &'a Rules<'a>,
}

impl Telling<'_> {
    /// Whose policy governs the disk, and what it says.
    pub fn governed_by(&self) -> Vec<String> {
        let class = self.rules.class;
        let apart = match (class.spread, class.rigor) {
            (Spread::Host, _) => "on different hosts",
            (Spread::Rack, Rigor::Strict) => "in different racks",
            (Spread::Rack, Rigor::Prefer) => "in different racks where possible",
        };
        let mut asks = match self.rules.copies {
            1 => format!("{} asks for 1 copy where the VM runs", self.policy()),
            n => format!(
                "{} asks for {n} copies where the VM runs, {apart}",
                self.policy()
            ),
        };
        let away: Vec<String> = class
            .away
            .iter()
            .map(|(dc, n)| format!("{n} in {dc}"))
            .collect();
        if !away.is_empty() {
            asks += &format!(", and keeps {} besides", away.join(", "));
        }
        let mut sentences = vec![sentence(asks)];
        for (site, who) in &self.rules.barred {
            let barred = self.planner.fleet.name(*site);
            sentences.push(format!(
                "No block of it may stand in {barred}: the policy of {who} says never."
            ));
        }
        if let Some(until) = self.planner.held(self.subject) {
            sentences.push(format!(
                "Its VM moved twice within the hold-down: it follows after {until}."
            ));
        }
        for pin in &self.rules.pins {
            let part = pin
                .extents
                .map_or("It is".into(), |part| format!("Extents {part} are"));
            let (hold, until) = (self.hold(&pin.hold), &pin.until);
            sentences.push(format!("{part} pinned {hold} {until}: {:?}.", pin.reason));
        }
        sentences
    }

    pub fn reasons(&self, role: Option<Role>, state: CopyState, copy: &Spoken) -> Reasons {
        let mut reasons = match role {
            Some(Role::Near) => self.near(copy),
            Some(Role::Away) => Reasons::new(
                format!(
                    "It is kept away in {}, whatever happens: {} says so.",
                    copy.here(),
                    self.policy()
                ),
                "Durability comes before locality: it does not follow the VM.",
                format!("Changing `away` in the policy of {}.", self.home()),
            ),
            Some(Role::StandIn) => self.stand_in(copy),
            Some(Role::Also) => Reasons::new(
                format!(
                    "It was added by hand, besides what policy asks for{}.",
                    self.reason(copy, |hold| matches!(hold, Hold::Also(_)))
                ),
                "An added copy stays where it was put.",
                format!(
                    "`ukai disk drop-copy {}` for this store.",
                    self.subject.record.name
                ),
            ),
            Some(Role::Retained) => self.retained(copy),
            None => self.unwanted(state, copy),
        };
        reasons.why_here += match state {
            CopyState::Filling => " It is being filled.",
            CopyState::Planned => " It is not there yet.",
            CopyState::Sealed { .. } if role.is_some() => {
                " It has left the write set and is to join it again."
            }
            _ => "",
        };
        reasons
    }

    fn near(&self, copy: &Spoken) -> Reasons {
        let name = &self.subject.record.name;
        let one = match self.rules.copies {
            1 => format!("It is the copy that {} asks for", self.policy()),
            n => format!(
                "It is one of the {n} copies that {} asks for",
                self.policy()
            ),
        };
        let here = copy.here();
        let on_store =
            |hold: &Hold| matches!(hold, Hold::On(stores) if stores.contains(&copy.store));
        let in_site = |hold: &Hold| matches!(hold, Hold::In(site) if Some(site) == copy.datacenter);
        let pinned = if self.pin(copy, on_store).is_some() {
            Some(format!(
                "{one}, and is pinned to this store{}.",
                self.reason(copy, on_store)
            ))
        } else if self.pin(copy, in_site).is_some() {
            Some(format!(
                "{one}, and is pinned in {here}{}.",
                self.reason(copy, in_site)
            ))
        } else {
            None
        };
        if let Some(why) = pinned {
            return Reasons::new(
                why,
                "A pin comes before where the VM runs.",
                format!("Lifting the pin, or `ukai disk move {name} --to` another datacenter."),
            );
        }
        if !self.rules.follows && copy.datacenter != Some(self.home()) {
            let why = match self.rules.class.follow {
                Follow::Manual => format!("{one}; follow = \"manual\" leaves it where it is."),
                _ => {
                    format!("{one}; its VM moved again within the hold-down, and it stays for now.")
                }
            };
            return Reasons::new(
                why,
                format!(
                    "Its VM runs in {}, and nothing follows by itself.",
                    self.home()
                ),
                format!("`ukai disk move {name} --to {}`.", self.home()),
            );
        }
        Reasons::new(
            format!("{one} where the VM runs."),
            format!(
                "Its VM runs, or ran last, in {here}; and what stands where policy wants it is not moved about."
            ),
            format!(
                "Moving the VM; `ukai disk move {name} --to` another datacenter; for another store in {here}, `add-copy` there and then `drop-copy` here."
            ),
        )
    }

    fn stand_in(&self, copy: &Spoken) -> Reasons {
        let place = self.wanted_place(copy);
        let home = self.planner.fleet.site(self.home());
        let barred = home.and_then(|home| self.rules.barred.get(&home));
        let why_not = match barred {
            Some(who) => format!(
                "The policy of {who} says never {}: residency comes before where the VM runs.",
                self.home()
            ),
            None => format!(
                "No other host in {place} has a store that is up with room{}: durability comes before locality.",
                match (self.rules.class.spread, self.rules.class.rigor) {
                    (Spread::Rack, Rigor::Strict) => " in another rack",
                    _ => "",
                }
            ),
        };
        Reasons::new(
            format!("It stands in for a copy in {place}, which cannot stand there."),
            why_not,
            match barred {
                Some(who) => format!("Changing `never` in the policy of {who}, or moving the VM."),
                None => format!("A store with room on another host in {place}."),
            },
        )
    }

    fn retained(&self, copy: &Spoken) -> Reasons {
        let site = self.planner.fleet.site_of(copy.store);
        let none = "no store elsewhere that is up has room on a free host";
        Reasons::new(
            "It should not be here; but no other store can take its place, and a copy is given up only for another one.",
            match site.and_then(|site| self.rules.barred.get(&site)) {
                Some(who) => format!("The policy of {who} bars {}, and {none}.", copy.here()),
                None => sentence(none.into()),
            },
            "A store with room on another host: then it goes by itself.",
        )
    }

    /// A copy that policy has no use for.
    fn unwanted(&self, state: CopyState, copy: &Spoken) -> Reasons {
        let name = &self.subject.record.name;
        let here = copy.here();
        let drop = self.rules.class.drop;
        match state {
            CopyState::Sealed { until } => Reasons::new(
                format!(
                    "What was written before epoch {until} is read from it, and the new copies are filled from it."
                ),
                match drop {
                    DropWhen::Complete => "It is dropped when they are whole.".to_owned(),
                    DropWhen::After(time) => format!(
                        "It is dropped {} after they are whole.",
                        humantime::format_duration(time)
                    ),
                    DropWhen::Manual => {
                        "When they are whole it is kept until somebody drops it.".into()
                    }
                },
                format!(
                    "`ukai moves` shows how far they are; moving the VM back to {here} makes it a member again."
                ),
            ),
            CopyState::Retired => Reasons::new(
                "Nobody needs it any more: the copies that took its place are complete.",
                match drop {
                    DropWhen::Complete => "It is being dropped.".to_owned(),
                    DropWhen::After(time) => self.kept_for(copy.store, time),
                    DropWhen::Manual => {
                        sentence(format!("{} says drop = \"manual\"", self.policy()))
                    }
                },
                format!("`ukai disk drop-copy {name}` drops it now."),
            ),
            _ => Reasons::new(
                format!(
                    "It is in the write set, and {} does not want it there any more.",
                    self.policy()
                ),
                "It leaves with the next switch of the write set.",
                format!("`ukai disk add-copy {name}` for this store keeps it."),
            ),
        }
    }

    fn kept_for(&self, store: StoreId, time: Duration) -> String {
        let retired = self
            .subject
            .retired
            .iter()
            .filter(|retired| retired.store == store);
        let until = match retired.map(|retired| retired.since).min() {
            Some(since) => format!("until {}", since.after(time)),
            None => format!("for {}", humantime::format_duration(time)),
        };
        sentence(format!(
            "{} keeps it {until} as the base for a way back",
            self.policy()
        ))
    }

    /// Where a copy that stands in should be.
    fn wanted_place(&self, copy: &Spoken) -> String {
        let part = copy.extents[0];
        let mut map = self.subject.record.map.iter();
        let range = map.find(|range| overlap(range.extents, part));
        let wants = range.map(|range| self.rules.wants(&self.planner.fleet, part, &range.history));
        let near = wants.and_then(|wants| match wants.demands.first()?.scope {
            Scope::In(site) => Some(self.planner.fleet.name(site).to_string()),
            Scope::Anywhere => None,
        });
        near.unwrap_or_else(|| self.home().to_string())
    }

    fn pin(&self, copy: &Spoken, so: impl Fn(&Hold) -> bool) -> Option<&Pin> {
        let covers =
            |pin: &&&Pin| copy.extents.iter().any(|part| pin.covers(*part)) && so(&pin.hold);
        self.rules.pins.iter().rev().find(covers).copied()
    }

    fn reason(&self, copy: &Spoken, so: impl Fn(&Hold) -> bool) -> String {
        let pin = self.pin(copy, so);
        pin.map_or(String::new(), |pin| {
            format!(" ({:?}, {})", pin.reason, pin.until)
        })
    }

    fn hold(&self, hold: &Hold) -> String {
        let hosts = |stores: &[StoreId]| {
            let name = |store: &StoreId| match self.planner.fleet.seat(*store) {
                Some(seat) => self.planner.fleet.host_name(seat).to_string(),
                None => store.to_string(),
            };
            stores.iter().map(name).collect::<Vec<_>>().join(", ")
        };
        match hold {
            Hold::In(datacenter) => format!("in {datacenter}"),
            Hold::On(stores) => format!("to {}", hosts(stores)),
            Hold::Also(stores) => format!("to {} besides", hosts(stores)),
            Hold::Off(stores) => format!("off {}", hosts(stores)),
            Hold::Without(stores) => format!("off {}, with or without another", hosts(stores)),
        }
    }

    fn home(&self) -> &DatacenterName {
        &self.subject.home.datacenter
    }

    fn policy(&self) -> String {
        let home = self.home();
        match (self.planner.policies.of(home), self.subject.class) {
            (None, _) => format!("the default policy ({home} has no file)"),
            (Some(policy), Some(class)) if policy.classes.contains_key(class) => {
                format!("the policy of {home} for {class} disks")
            }
            _ => format!("the policy of {home}"),
        }
    }
}

/// With a capital and a full stop.
fn sentence(text: String) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).chain(['.']).collect(),
        None => text,
    }
}
