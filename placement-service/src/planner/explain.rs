//! For each copy of a disk: why it is here, what keeps it from being elsewhere, what would change that.

use super::goal::{Promised, place};
use super::plan::{Role, Shortfall};
use super::ranges::{joined, overlap};
use super::rules::{Rules, Scope};
use super::steps::side_by_side;
use super::{Planner, Subject};
use crate::policy::{DropWhen, Follow, Hold, Pin, Rigor, Spread};
use replicator::words::{DatacenterName, DiskName, Epoch, Extents, History, HostName, StoreId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    pub disk: DiskName,
    /// Whose policy governs it, and what that and its pins say, in sentences.
    pub governed_by: Vec<String>,
    pub copies: Vec<ExplainedCopy>,
    pub missing: Vec<Shortfall>,
}

/// What one store has, or is to have, of some extents.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExplainedCopy {
    pub store: StoreId,
    /// None: a store whose place is not known.
    pub host: Option<HostName>,
    pub datacenter: Option<DatacenterName>,
    pub extents: Vec<Extents>,
    pub state: CopyState,
    /// None: it has no part in what policy asks for.
    pub role: Option<Role>,
    pub why_here: String,
    pub why_not_elsewhere: String,
    pub what_would_change_it: String,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyState {
    /// In the write set, and it has everything.
    Complete,
    /// In the write set, and being filled.
    Filling,
    /// Not in the write set; what was written before this epoch is read from it.
    Sealed { until: Epoch },
    /// No map names it; it is not deleted yet.
    Retired,
    /// Policy wants one here, and there is none yet.
    Planned,
}

impl Planner<'_> {
    pub fn explain(&self, subject: &Subject) -> Explanation {
        let rules = self.rules(subject);
        let goal = place(&self.fleet, &rules, subject, &Promised::new()).goal;
        let mut copies: BTreeMap<(StoreId, CopyState, Option<Role>), Vec<Extents>> =
            BTreeMap::new();
        for (extents, history, wanted) in side_by_side(subject.record, &goal) {
            let role_of = |store| {
                wanted
                    .iter()
                    .find(|(other, _)| *other == store)
                    .map(|(_, role)| *role)
            };
            for (store, state) in states(history) {
                copies
                    .entry((store, state, role_of(store)))
                    .or_default()
                    .push(extents);
            }
            for (store, role) in wanted {
                if !history.0.iter().any(|entry| entry.has(*store)) {
                    let key = (*store, CopyState::Planned, Some(*role));
                    copies.entry(key).or_default().push(extents);
                }
            }
        }
        for retired in subject.retired {
            let key = (retired.store, CopyState::Retired, None);
            copies.entry(key).or_default().extend(&retired.extents);
        }
        let telling = Telling {
            planner: self,
            subject,
            rules: &rules,
        };
        let explained = copies
            .into_iter()
            .map(|((store, state, role), mut extents)| {
                extents.sort_unstable_by_key(|part| part.first);
                telling.copy(store, state, role, joined(extents.into_iter()))
            });
        Explanation {
            disk: subject.record.name.clone(),
            copies: explained.collect(),
            governed_by: telling.governed_by(),
            missing: goal.shortfalls,
        }
    }
}

/// What each store is to a range: the best that it is.
fn states(history: &History) -> Vec<(StoreId, CopyState)> {
    let mut states: BTreeMap<StoreId, CopyState> = BTreeMap::new();
    for entry in &history.0 {
        let state = match (entry.until, entry.whole) {
            (None, true) => CopyState::Complete,
            (None, false) => CopyState::Filling,
            (Some(until), _) => CopyState::Sealed { until },
        };
        for store in &entry.stores {
            let known = states.entry(*store).or_insert(state);
            *known = state.min(*known);
        }
    }
    states.into_iter().collect()
}

struct Telling<'a> {
    planner: &'a Planner<'a>,
    subject: &'a Subject<'a>,
    rules: &'a Rules<'a>,
}

impl Telling<'_> {
    fn governed_by(&self) -> Vec<String> {
        let class = self.rules.class;
        let record = self.subject.record;
        let away: Vec<String> = class
            .away
            .iter()
            .map(|(dc, n)| format!("{n} in {dc}"))
            .collect();
        let apart = match (class.spread, class.rigor) {
            (Spread::Host, _) => "on different hosts",
            (Spread::Rack, Rigor::Strict) => "in different racks",
            (Spread::Rack, Rigor::Prefer) => "in different racks where possible",
        };
        let copies = class.copies_for(record.copies);
        let mut sentences = vec![format!(
            "{} asks for {} where the VM runs, {apart}{}{}.",
            self.policy(),
            counted(copies, "copy", "copies"),
            if away.is_empty() {
                ""
            } else {
                ", and keeps besides "
            },
            away.join(", "),
        )];
        for (site, who) in &self.rules.barred {
            let barred = self.planner.fleet.name(*site);
            sentences.push(format!(
                "No block of it may stand in {barred}: the policy of {who} says never."
            ));
        }
        if let Some(until) = self
            .subject
            .home
            .held_until
            .filter(|_| self.subject.home.is_held(self.planner.now))
        {
            sentences.push(format!(
                "Its VM moved twice within the hold-down: it follows after {until}."
            ));
        }
        sentences.extend(self.rules.pins.iter().map(|pin| {
            let part = pin
                .extents
                .map_or("all of it".into(), |part| format!("extents {part}"));
            format!(
                "Pinned {}: {} {} ({:?}).",
                pin.until,
                part,
                self.hold(&pin.hold),
                pin.reason
            )
        }));
        sentences
    }

    fn copy(
        &self,
        store: StoreId,
        state: CopyState,
        role: Option<Role>,
        extents: Vec<Extents>,
    ) -> ExplainedCopy {
        let seat = self.planner.fleet.seat(store);
        let at = seat.map(|seat| self.planner.fleet.place(seat).site);
        let datacenter = at.map(|site| self.planner.fleet.name(site).clone());
        let parts = Parts {
            store,
            extents: &extents,
            datacenter: datacenter.as_ref(),
        };
        let (why_here, why_not_elsewhere, what_would_change_it) = match role {
            Some(role) => self.wanted(role, &parts),
            None => self.unwanted(state, &parts),
        };
        let state_says = match state {
            CopyState::Filling => " It is being filled.",
            CopyState::Planned => " It is not there yet.",
            CopyState::Sealed { .. } if role.is_some() => {
                " It has left the write set and is to join it again."
            }
            _ => "",
        };
        ExplainedCopy {
            store,
            host: seat.map(|seat| self.planner.fleet.host_name(seat).clone()),
            datacenter,
            state,
            role,
            why_here: why_here + state_says,
            why_not_elsewhere,
            what_would_change_it,
            extents,
        }
    }

    fn wanted(&self, role: Role, parts: &Parts) -> (String, String, String) {
        let name = &self.subject.record.name;
        let here = parts.here();
        match role {
            Role::Near => self.near(parts),
            Role::Away => (
                format!("{} keeps a copy away in {here}, whatever happens.", self.policy()),
                "Durability comes before locality: it does not follow the VM.".into(),
                format!("Changing `away` in the policy of {}.", self.home()),
            ),
            Role::StandIn => (
                format!("It stands in for a copy that {} wants and that cannot stand there.", self.wanted_place(parts)),
                self.why_not_there(parts),
                format!("A store with room on another host in {}.", self.wanted_place(parts)),
            ),
            Role::Also => (
                format!("It was added by hand, besides what policy asks for{}.", self.reason(parts, |hold| matches!(hold, Hold::Also(_)))),
                "An added copy stays where it was put.".into(),
                format!("`ukai disk drop-copy {name}` for this store."),
            ),
            Role::Retained => (
                "It should not be here; but no other store can take its place, and a copy is given up only for another one.".into(),
                match self.planner.fleet.site_of(parts.store).and_then(|site| self.rules.barred.get(&site)) {
                    Some(who) => format!("The policy of {who} bars {here}; no store elsewhere that is up has room on a free host."),
                    None => "No store elsewhere that is up has room on a free host.".into(),
                },
                "A store with room on another host: then it goes by itself.".into(),
            ),
        }
    }

    fn near(&self, parts: &Parts) -> (String, String, String) {
        let name = &self.subject.record.name;
        let copies = self.rules.class.copies_for(self.subject.record.copies);
        let of = match copies {
            1 => "the copy".to_owned(),
            _ => format!("one of the {copies} copies"),
        };
        let here = parts.here();
        let on_store =
            |hold: &Hold| matches!(hold, Hold::On(stores) if stores.contains(&parts.store));
        let in_site =
            |hold: &Hold| matches!(hold, Hold::In(site) if Some(site) == parts.datacenter);
        let pinned = |so: &dyn Fn(&Hold) -> bool| self.pin(parts, so).is_some();
        let lift =
            || format!("Lifting the pin, or `ukai disk move {name} --to` another datacenter.");
        if pinned(&on_store) {
            let why = format!(
                "It is {of} that {} asks for, and is pinned to this store{}.",
                self.policy(),
                self.reason(parts, on_store)
            );
            return (why, "A pin comes before where the VM runs.".into(), lift());
        }
        if pinned(&in_site) {
            let why = format!(
                "It is {of} that {} asks for, and is pinned in {here}{}.",
                self.policy(),
                self.reason(parts, in_site)
            );
            return (why, "A pin comes before where the VM runs.".into(), lift());
        }
        if !self.rules.follows && parts.datacenter != Some(&self.subject.home.datacenter) {
            let why = match self.rules.class.follow {
                Follow::Manual => format!("{} says follow = \"manual\": the copies stay where they are.", self.policy()),
                _ => "Its VM has moved again within the hold-down: the copies stay where they are for now.".into(),
            };
            let change = format!("`ukai disk move {name} --to {}`.", self.home());
            return (
                why,
                format!(
                    "Its VM runs in {}, and nothing follows by itself.",
                    self.home()
                ),
                change,
            );
        }
        (
            format!(
                "It is {of} that {} asks for where the VM runs.",
                self.policy()
            ),
            format!(
                "Its VM runs, or ran last, in {here}; and what stands where policy wants it is not moved about."
            ),
            format!(
                "Moving the VM; `ukai disk move {name} --to` another datacenter; or, for another store in {here}, `ukai disk drop-copy` after `add-copy`."
            ),
        )
    }

    fn unwanted(&self, state: CopyState, parts: &Parts) -> (String, String, String) {
        let name = &self.subject.record.name;
        let here = parts.here();
        let drop = match self.rules.class.drop {
            DropWhen::Complete => "then it is dropped".to_owned(),
            DropWhen::After(time) => format!(
                "then it is kept for {} and dropped",
                humantime::format_duration(time)
            ),
            DropWhen::Manual => "then it is kept until somebody drops it".into(),
        };
        match state {
            CopyState::Sealed { until } => (
                format!(
                    "What was written before epoch {until} is read from it, and the new copies are filled from it."
                ),
                format!("It leaves when they are whole; {drop}."),
                format!(
                    "`ukai moves` shows how far they are; moving the VM back to {here} makes it a member again."
                ),
            ),
            CopyState::Retired => (
                "Nobody needs it any more: the copies that took its place are complete.".into(),
                match self.rules.class.drop {
                    DropWhen::Complete => "It is being dropped.".into(),
                    DropWhen::After(time) => format!(
                        "{} keeps it for {} as the base for a way back{}.",
                        self.policy(),
                        humantime::format_duration(time),
                        self.drops_at(parts.store, time),
                    ),
                    DropWhen::Manual => format!("{} says drop = \"manual\".", self.policy()),
                },
                format!("`ukai disk drop-copy {name}` drops it now."),
            ),
            _ => (
                format!(
                    "It is in the write set, and {} does not want it in it any more.",
                    self.policy()
                ),
                "It leaves with the next switch of the write set.".into(),
                format!("`ukai disk add-copy {name}` for this store keeps it."),
            ),
        }
    }

    fn drops_at(&self, store: StoreId, time: std::time::Duration) -> String {
        let retired = self
            .subject
            .retired
            .iter()
            .filter(|retired| retired.store == store);
        let since = retired.map(|retired| retired.since).min();
        since.map_or(String::new(), |since| {
            format!(", until {}", since.after(time))
        })
    }

    /// Where a copy that stands in should be.
    fn wanted_place(&self, parts: &Parts) -> String {
        let history = self
            .subject
            .record
            .map
            .iter()
            .find(|range| overlap(range.extents, parts.extents[0]));
        let wants = history.map(|range| {
            self.rules
                .wants(&self.planner.fleet, parts.extents[0], &range.history)
        });
        let near = wants.and_then(|wants| match wants.demands.first()?.scope {
            Scope::In(site) => Some(self.planner.fleet.name(site).to_string()),
            Scope::Anywhere => None,
        });
        near.unwrap_or_else(|| self.home().to_string())
    }

    fn why_not_there(&self, parts: &Parts) -> String {
        let home = self.planner.fleet.site(self.home());
        match home.and_then(|home| self.rules.barred.get(&home)) {
            Some(who) => format!(
                "The policy of {who} says never {}: residency comes before where the VM runs.",
                self.home()
            ),
            None => format!(
                "No other host in {} has a store that is up with room{}: durability comes before locality.",
                self.wanted_place(parts),
                match self.rules.class.rigor {
                    Rigor::Strict if self.rules.class.spread == Spread::Rack => " in another rack",
                    _ => "",
                }
            ),
        }
    }

    fn pin(&self, parts: &Parts, so: impl Fn(&Hold) -> bool) -> Option<&Pin> {
        let covers =
            |pin: &&&Pin| parts.extents.iter().any(|part| pin.covers(*part)) && so(&pin.hold);
        self.rules.pins.iter().rev().find(covers).copied()
    }

    fn reason(&self, parts: &Parts, so: impl Fn(&Hold) -> bool) -> String {
        let pin = self.pin(parts, so);
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
        }
    }

    fn home(&self) -> &DatacenterName {
        &self.subject.home.datacenter
    }

    fn policy(&self) -> String {
        let home = self.home();
        let policy = self.planner.policies.of(home);
        match (policy, self.subject.class) {
            (None, _) => format!("The default policy ({home} has no file)"),
            (Some(policy), Some(class)) if policy.classes.contains_key(class) => {
                format!("The policy of {home}, class {class},")
            }
            _ => format!("The policy of {home}"),
        }
    }
}

/// Which copy is spoken of.
struct Parts<'a> {
    store: StoreId,
    /// At least one.
    extents: &'a [Extents],
    datacenter: Option<&'a DatacenterName>,
}

impl Parts<'_> {
    fn here(&self) -> String {
        self.datacenter
            .map_or("a place that is not known".into(), ToString::to_string)
    }
}

fn counted(count: u8, one: &str, more: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {more}"),
    }
}
