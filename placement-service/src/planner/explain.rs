//! For each copy of a disk: why it is here, what keeps it from being elsewhere, what would change that.

use super::goal::{Promised, place};
use super::plan::{Awaited, Role, Shortfall};
use super::ranges::joined;
use super::reasons::{Spoken, Telling};
use super::rules::Standing;
use super::steps::side_by_side;
use super::{Planner, Subject};
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
    /// Copies that are missing, and waited for.
    #[serde(default)]
    pub awaited: Vec<Awaited>,
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
                let extents = joined(extents.into_iter());
                self.explained(&telling, store, state, role, extents)
            });
        Explanation {
            disk: subject.record.name.clone(),
            copies: explained.collect(),
            governed_by: telling.governed_by(),
            missing: goal.shortfalls,
            awaited: goal.awaited,
        }
    }

    fn explained(
        &self,
        telling: &Telling,
        store: StoreId,
        state: CopyState,
        role: Option<Role>,
        extents: Vec<Extents>,
    ) -> ExplainedCopy {
        let seat = self.fleet.seat(store);
        let site = seat.map(|seat| self.fleet.place(seat).site);
        let datacenter = site.map(|site| self.fleet.name(site));
        let copy = Spoken {
            store,
            extents: &extents,
            datacenter,
        };
        let mut reasons = telling.reasons(role, state, &copy);
        let standing = seat.map(|seat| telling.rules.standing(self.fleet.place(seat)));
        if let Some(standing) = standing.filter(|_| state < CopyState::Retired) {
            reasons.why_here += &of_store(standing);
        }
        ExplainedCopy {
            store,
            host: seat.map(|seat| self.fleet.host_name(seat).clone()),
            datacenter: datacenter.cloned(),
            extents,
            state,
            role,
            why_here: reasons.why_here,
            why_not_elsewhere: reasons.why_not_elsewhere,
            what_would_change_it: reasons.what_would_change_it,
        }
    }
}

/// What its store's state means for a copy that the map names.
fn of_store(standing: Standing) -> String {
    match standing {
        Standing::Fit => String::new(),
        Standing::Leaving => {
            " Its store is being emptied: it goes when another one is complete.".into()
        }
        Standing::Away { until } => {
            format!(" Its store is away: unless that is back by {until}, another one is made.")
        }
        Standing::Gone => " Its store is lost, or away for too long: another one is made.".into(),
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
