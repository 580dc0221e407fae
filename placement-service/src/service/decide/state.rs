//! How far a move is, and what it waits for.

use super::{Copier, Deciding, Decision, is_filling};
use crate::api::{MoveState, MoveWhy, Place, Wanted};
use crate::model::{Attachment, MoveRecord, RetiredCopy};
use crate::planner::Action;
use replicator::words::{HostName, State, StoreId};
use std::collections::BTreeSet;

impl Deciding<'_> {
    pub(super) fn state(&self, moving: &MoveRecord, decision: &mut Decision) -> MoveState {
        let switches = self.plan.next_sets().is_some();
        let filling = is_filling(self.record());
        if !switches && !filling {
            return match self.plan.shortfalls.first() {
                // What was only meant to even out the fleet, and cannot any more, is over.
                _ if matches!(moving.why, MoveWhy::Rebalance(_)) => MoveState::Done,
                Some(shortfall) if moving.why != MoveWhy::Policy => MoveState::Stuck {
                    why: shortfall.why.clone(),
                },
                _ if self.is_dropping() => MoveState::Dropping,
                _ => MoveState::Done,
            };
        }
        if moving.paused {
            return MoveState::Paused;
        }
        if let Some(waits_for) = self.waits_for(moving).filter(|_| switches) {
            return MoveState::Planned { waits_for };
        }
        if self.writer().is_none() {
            return self.without_writer(decision);
        }
        if let Some(why) = self.seen.hindrance.clone() {
            return MoveState::Stuck { why };
        }
        if let Some(why) = self.missing_store() {
            return MoveState::Stuck { why };
        }
        if switches {
            return MoveState::Switching;
        }
        let limits = self.planner.limits(&self.disk.subject(), 1);
        if let Some(until) = limits.paused_until {
            let why = format!("policy lets nothing be copied until {until}");
            return MoveState::Stuck { why };
        }
        let progress = &moving.progress;
        let all_done = progress.extents > 0 && progress.extents_done == progress.extents;
        match all_done {
            true => MoveState::Completing,
            false => MoveState::Filling,
        }
    }

    /// Why it does not begin yet.
    fn waits_for(&self, moving: &MoveRecord) -> Option<String> {
        if let Some(until) = self.plan.waits_until {
            return Some(format!("its policy's window, which opens at {until}"));
        }
        let admitted = !moving.why.takes_turns() || self.seen.admitted;
        (!admitted).then(|| "its turn: policy moves a bounded number of disks at a time".into())
    }

    /// Nobody has the disk open: a node there opens it to copy, and lets it go as soon as somebody wants it.
    /// Where a backend stands by, somebody does.
    fn without_writer(&self, decision: &mut Decision) -> MoveState {
        let record = self.record();
        let serves = |a: &&Attachment| matches!(a.wanted, Wanted::Attached | Wanted::Detached);
        if let Some(main) = self.disk.attachments.0.iter().find(serves) {
            let place = match &main.place {
                Place::Node(host) => format!("node {host}"),
                Place::Operator(name) => format!("operator {name}"),
            };
            return MoveState::Planned {
                waits_for: format!("its VM: the disk is attached to {place} and not open"),
            };
        }
        if let State::Open { owner } = &record.state
            && self
                .copier()
                .is_none_or(|copier| copier.backend != owner.backend)
        {
            let why = format!(
                "{} left it open; attaching it settles its copies, then it goes on",
                owner.host
            );
            return MoveState::Stuck { why };
        }
        if let Some(host) = self.standby() {
            return MoveState::Planned {
                waits_for: format!("its VM: node {host} stands by for it"),
            };
        }
        if self.copier().is_some() {
            return MoveState::Switching;
        }
        match self.copying_host() {
            Some(host) => {
                decision.copier = Copier::Start(host);
                MoveState::Switching
            }
            None => MoveState::Stuck {
                why: "no node with one of its new stores is up to copy it; attach it, or start one"
                    .into(),
            },
        }
    }

    /// A host that is up and has a store that is to be filled.
    fn copying_host(&self) -> Option<HostName> {
        let switched = self.plan.next_sets().into_iter().flatten();
        let joining = switched.flat_map(|set| set.stores.iter().copied());
        let live = self
            .record()
            .map
            .iter()
            .flat_map(|range| range.history.live());
        let filling = live.filter(|entry| !entry.whole);
        let filling = filling.flat_map(|entry| entry.stores.iter().copied());
        let members = self.record().members();
        let is_new = |store: &StoreId| !members.contains(store);
        let (new, old): (Vec<StoreId>, Vec<StoreId>) = joining.partition(is_new);
        let mut stores = new.into_iter().chain(filling).chain(old);
        let well = stores.find(|store| self.scene.is_well(*store))?;
        self.scene.places.host(well).cloned()
    }

    /// A store without which the copying cannot go on.
    fn missing_store(&self) -> Option<String> {
        let name = |store: &StoreId| match self.scene.places.host(*store) {
            Some(host) => format!("store {store} on {host}"),
            None => format!("store {store}"),
        };
        for range in &self.record().map {
            let history = &range.history;
            if history.is_whole() {
                continue;
            }
            let whole = history.0.iter().filter(|entry| entry.whole);
            let sources: Vec<StoreId> = whole.flat_map(|e| e.stores.iter().copied()).collect();
            if !sources.iter().any(|store| self.scene.is_well(*store)) {
                let names: Vec<String> = sources.iter().map(name).collect();
                return Some(format!(
                    "{} has what is missing, and is not up",
                    names.join(", ")
                ));
            }
            let mut filling = history.live().filter(|e| !e.whole).flat_map(|e| &e.stores);
            if let Some(store) = filling.find(|store| !self.scene.is_well(**store)) {
                return Some(format!("{} is to be filled, and is not up", name(store)));
            }
        }
        None
    }

    /// Whether a copy is to go now, or is going. Nobody waits for a store that is away.
    fn is_dropping(&self) -> bool {
        let due: BTreeSet<StoreId> = self
            .plan
            .steps
            .iter()
            .filter_map(|step| match &step.action {
                Action::Retire { copies } => Some(copies),
                _ => None,
            })
            .flatten()
            .filter(|copy| copy.not_before.is_none())
            .map(|copy| copy.store)
            .collect();
        let goes = |copy: &&RetiredCopy| {
            copy.ordered.is_some() || copy.unwanted || due.contains(&copy.store)
        };
        let mut going = self.disk.retired().iter().filter(goes);
        going.any(|copy| self.scene.is_well(copy.store))
    }

    pub(super) fn preparing(&self, moving: &MoveRecord) -> MoveState {
        if self.leftover(moving).is_empty() {
            return MoveState::Done;
        }
        // Whoever only copies lets the disk go when its move is done.
        if self.writer().is_none_or(|w| w.wanted == Wanted::Copying) {
            return MoveState::Stuck {
                why: "nobody has the disk open: it is copied ahead while its VM runs".into(),
            };
        }
        if let Some(why) = self.seen.hindrance.clone() {
            return MoveState::Stuck { why };
        }
        let seeds = moving.seeds.iter().flat_map(|set| &set.stores);
        if let Some(store) = { seeds }.find(|store| !self.scene.is_well(**store)) {
            return MoveState::Stuck {
                why: format!("store {store}, which it is copied to, is not up"),
            };
        }
        let progress = &moving.progress;
        match moving.paused {
            true => MoveState::Paused,
            false if progress.extents > 0 && progress.extents == progress.extents_done => {
                let waits_for = "its VM: what it had is copied".into();
                MoveState::Planned { waits_for }
            }
            false => MoveState::Filling,
        }
    }
}
