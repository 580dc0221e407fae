//! Where a disk's extents should stand, and the steps from where they are: pure functions of the
//! fleet, the policies, the map and the place of the VM.
//!
//! Promised, and tested over random fleets: a plan leads to its goal; no state that it passes through
//! has fewer complete copies than policy asks for, or than there were; nothing is put where `never`
//! forbids it; what may stay stays; and when it is done, the next plan is empty.
//!
//! - [`subject`]: what the planner is told of one disk. [`plan`]: what it answers.
//! - `rules`: what governs the disk, and in which order. `fleet`: the topology in numbers.
//! - `goal`: where its extents should stand: `held`, what is there and may stay; `anew`, what is missing;
//!   `layout`, how that is spread over stores.
//! - `steps`: the way there; `estimate`, what it costs; `assemble` and `notes`, the plan that says so.
//! - `order`, `drop`, `pins`: an operator's own placement. `deletion`: whether a copy may go.
//! - `rebalance`: which copy should leave a full store for an emptier one.
//! - `explain` and `reasons`: why each copy is where it is. `diff`: what a change of policies would do.

mod afar;
mod anew;
mod assemble;
mod deletion;
mod diff;
mod drop;
mod estimate;
mod explain;
mod fleet;
mod goal;
mod held;
pub(crate) mod layout;
mod notes;
mod order;
mod pins;
mod plan;
mod ranges;
mod reasons;
mod rebalance;
mod rules;
mod steps;
mod subject;

pub use diff::{Diff, DiskDiff, diff, rollout};
pub use explain::{CopyState, ExplainedCopy, Explanation};
pub use order::{Order, Proposal, Refused, Target};
pub use plan::{
    Action, Arrival, Awaited, Crossing, Goal, GoalRange, Plan, RetiredCopy, Role, Shortfall, Step,
};
pub use rebalance::Shift;
pub use subject::{Retired, Subject};

use crate::policy::{Follow, Health, Home, Policies, Prepare, Topology, UnixSeconds};
use fleet::Fleet;
use goal::{Promised, place};
use replicator::words::{DatacenterName, Extents, History, HostName, NewSet, StoreId};
use rules::Rules;
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Plans over one state of the fleet and its policies, at one time. The same questions have the same
/// answers.
pub struct Planner<'a> {
    fleet: Fleet,
    policies: &'a Policies,
    now: UnixSeconds,
}

/// How fast a disk may be copied now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Nothing is copied ahead of guests before this time.
    pub paused_until: Option<UnixSeconds>,
    /// None: as fast as it goes.
    pub bytes_per_second: Option<u64>,
}

impl<'a> Planner<'a> {
    pub fn new(topology: &Topology, policies: &'a Policies, now: UnixSeconds) -> Planner<'a> {
        Planner {
            fleet: Fleet::new(topology),
            policies,
            now,
        }
    }

    /// Where the extents should stand.
    pub fn goal(&self, subject: &Subject) -> Goal {
        let rules = self.rules(subject);
        place(&self.fleet, &rules, subject, &Promised::new()).goal
    }

    /// The steps to [`Planner::goal`]; none when the disk is there.
    pub fn plan(&self, subject: &Subject) -> Plan {
        self.plan_beside(subject, &mut Promised::new())
    }

    /// Plans for many disks, each beside what those before it were promised.
    pub fn plan_all<'s>(&self, subjects: impl IntoIterator<Item = Subject<'s>>) -> Vec<Plan> {
        let mut promised = Promised::new();
        let subjects = subjects.into_iter();
        subjects
            .map(|subject| self.plan_beside(&subject, &mut promised))
            .collect()
    }

    /// What an attachment at `at` begins with: for the attachment itself, and for a backend that
    /// stands by there. `subject.home` is as it is before.
    pub fn arrival(
        &self,
        subject: &Subject,
        at: &DatacenterName,
        host: Option<&HostName>,
    ) -> Arrival {
        let hold_down = self.policies.class(at, subject.class).hold_down;
        // Where nothing was ever written nothing was promised, and no VM has moved.
        let home = match steps::never_opened(subject.record) {
            true => Home::new(at.clone()),
            false => subject.home.moved_to(at, self.now, hold_down),
        };
        let there = Subject {
            home: &home,
            host,
            ..*subject
        };
        let rules = self.rules(&there);
        if rules.class.follow == Follow::Manual {
            let held = vec![format!("the policy of {at} says follow = \"manual\"")];
            return Arrival {
                home,
                sets: Vec::new(),
                held,
            };
        }
        if let Some(until) = home.held_until.filter(|_| home.is_held(self.now)) {
            let held = vec![format!(
                "its VM moved less than the hold-down ago; it follows after {until}"
            )];
            return Arrival {
                home,
                sets: Vec::new(),
                held,
            };
        }
        let goal = place(&self.fleet, &rules, &there, &Promised::new()).goal;
        let (sets, full) = steps::next_sets(&self.fleet, &rules, subject.record, &goal);
        let held = full.iter().map(too_long).collect();
        Arrival { home, sets, held }
    }

    /// What to copy ahead to `at`, where the VM is about to run: stores that are no members yet. What
    /// the policies of both places bar is not copied.
    pub fn seeds(
        &self,
        subject: &Subject,
        at: &DatacenterName,
        host: Option<&HostName>,
    ) -> Vec<NewSet> {
        let home = subject.home.moved_to(at, self.now, Default::default());
        let there = Subject {
            home: &home,
            host,
            ..*subject
        };
        let rules = self.rules(&there);
        let goal = place(&self.fleet, &rules, &there, &Promised::new()).goal;
        let ahead =
            steps::side_by_side(subject.record, &goal).filter_map(|(extents, history, copies)| {
                let stores = copies.iter().map(|(store, _)| *store);
                let stores: Vec<StoreId> = stores
                    .filter(|store| history.member(*store).is_none())
                    .collect();
                (!stores.is_empty()).then_some(NewSet { extents, stores })
            });
        ahead.collect()
    }

    /// The fewest complete copies that its guest may go on with. A store that nobody expects back is not waited for,
    /// since nothing could end that: the disk goes on with what is left, and is repaired. The others are waited for.
    pub fn min_copies(&self, subject: &Subject) -> u8 {
        let given_up = |store: StoreId| {
            let place = self.fleet.seat(store).map(|seat| self.fleet.place(seat));
            place.is_some_and(|place| place.health == Health::Gone)
        };
        let class = self.rules(subject).class;
        let wanted = class.min_copies_for(subject.record.copies);
        // As the writer counts them; what no store that is given up has lowers nothing.
        let left = |history: &History| {
            let whole = history.live().filter(|entry| entry.whole);
            let (gone, left): (Vec<StoreId>, Vec<StoreId>) = whole
                .flat_map(|entry| entry.stores.iter().copied())
                .partition(|store| given_up(*store));
            (!gone.is_empty()).then_some(left.len())
        };
        let map = subject.record.map.iter();
        let left = map.filter_map(|range| left(&range.history)).min();
        let left = left.unwrap_or(usize::from(wanted));
        usize::from(wanted).min(left).max(1) as u8
    }

    /// Whether policy copies ahead as soon as a backend stands by.
    pub fn prepares_by_itself(&self, subject: &Subject) -> bool {
        self.rules(subject).class.prepare == Prepare::Standby
    }

    /// How fast the disk may be filled now, where `sharing` disks are being copied to the same place.
    pub fn limits(&self, subject: &Subject, sharing: usize) -> Limits {
        let live = subject
            .record
            .map
            .iter()
            .flat_map(|range| range.history.live());
        let filling = live.filter(|entry| !entry.whole);
        let targets = filling.flat_map(|entry| entry.stores.iter().copied());
        self.limits_into(targets, subject, sharing)
    }

    /// The same for copying ahead into `seeds`.
    pub fn seed_limits(&self, subject: &Subject, seeds: &[NewSet], sharing: usize) -> Limits {
        let targets = seeds.iter().flat_map(|set| set.stores.iter().copied());
        self.limits_into(targets, subject, sharing)
    }

    fn limits_into(
        &self,
        targets: impl Iterator<Item = StoreId>,
        subject: &Subject,
        sharing: usize,
    ) -> Limits {
        let rules = self.rules(subject);
        let repair = self.needs_repair(&rules, subject);
        let opens = rules.class.copy.opens(self.now);
        let limit = targets
            .filter_map(|store| self.fleet.site_of(store))
            .filter_map(|site| rules.class.copy.limit_to(self.fleet.name(site)))
            .min();
        Limits {
            paused_until: Some(opens).filter(|opens| *opens > self.now && !repair),
            bytes_per_second: limit.map(|limit| (limit / sharing.max(1) as u64).max(1)),
        }
    }

    fn rules<'s>(&'s self, subject: &Subject<'s>) -> Rules<'s> {
        Rules::of(subject, self.policies, &self.fleet, self.now)
    }

    fn plan_beside(&self, subject: &Subject, promised: &mut Promised) -> Plan {
        let rules = self.rules(subject);
        let placed = place(&self.fleet, &rules, subject, promised);
        for (seat, bytes) in placed.promised {
            *promised.entry(seat).or_default() += bytes;
        }
        self.plan_to(&rules, subject, placed.goal)
    }

    /// Until when the disk stays where it is, wherever its VM runs.
    fn held(&self, subject: &Subject) -> Option<UnixSeconds> {
        let held = subject.home.is_held(self.now);
        subject.home.held_until.filter(|_| held)
    }

    /// Whether some extent has fewer complete copies than policy asks for.
    fn needs_repair(&self, rules: &Rules, subject: &Subject) -> bool {
        let wanted = usize::from(rules.class.total(subject.record.copies));
        self.copies_left(rules, subject) < wanted
    }

    /// Complete copies of the worst placed extent on stores that are not gone.
    fn copies_left(&self, rules: &Rules, subject: &Subject) -> usize {
        let is_gone = |store: StoreId| rules.is_gone(&self.fleet, store);
        let map = subject.record.map.iter();
        map.map(|range| copies_without(&range.history, &is_gone))
            .min()
            .unwrap_or(0)
    }
}

/// [`History::copies`] that do not stand on stores that are gone.
pub(crate) fn copies_without(history: &History, is_gone: &dyn Fn(StoreId) -> bool) -> usize {
    let mut named = history.0.iter().flat_map(|entry| &entry.stores);
    if !named.any(|store| is_gone(*store)) {
        return copies_of(history);
    }
    let mut left = history.clone();
    for entry in &mut left.0 {
        entry.stores.retain(|store| !is_gone(*store));
    }
    left.0.retain(|entry| !entry.stores.is_empty());
    match left.covers() {
        true => left.copies(),
        false => 0,
    }
}

/// Complete copies of a range: [`History::copies`], of most histories, which have one entry, without
/// looking further.
fn copies_of(history: &History) -> usize {
    match &history.0[..] {
        [only] => only.stores.len(),
        _ => history.copies(),
    }
}

fn too_long(extents: &Extents) -> String {
    format!(
        "extents {extents} stay as they are for now: their history is full, and shortens as moves complete"
    )
}
