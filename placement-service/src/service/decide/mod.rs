//! What one disk is to do next: a pure function of what is kept about it, what its backends said, and the
//! plan. The pass carries it out ([`super::passes`]).
//!
//! The plan is made anew each time from the disk as it is, so that whatever stopped a move, wherever it
//! was, the rest goes on from there (I8); what is kept of a move is for people, and to steer it.
//!
//! ```text
//!  Planned ──> Switching ──> Filling ──> Completing ──> Dropping ──> Done
//!     ^            ^            ^             (from each of them, and back:)
//!     '────────────┴────────────┴──── Paused, Stuck;    and to the end: Cancelled
//! ```
//!
//! - `begin`: a move as it begins. `state`: how far it is. `orders`: what its backends are told.

mod begin;
mod orders;
mod state;

pub(super) use begin::{begin, prepare};

use super::course::Heard;
use super::retire::minus;
use super::scene::{DiskNow, Scene};
use crate::api::{MoveKind, MoveState, MoveWhy, Wanted};
use crate::model::{Attachment, MoveRecord, RetiredCopy};
use crate::planner::{Plan, Planner};
use replicator::words::{
    BackendId, DatacenterName, DiskRecord, Extents, HostName, NewSet, StoreId,
};
use replicator::writer::Orders;
use std::collections::BTreeMap;
use std::time::Duration;

/// What nodes said of this disk's writer, and what the other disks leave room for.
#[derive(Default)]
pub(super) struct Seen {
    /// Policy may begin to move it.
    pub admitted: bool,
    pub heard: Option<Heard>,
    /// What keeps its writer from carrying out its orders.
    pub hindrance: Option<String>,
    /// Disks that are being filled in each datacenter, this one included.
    pub filling: BTreeMap<DatacenterName, usize>,
}

#[derive(Default)]
pub(super) struct Decision {
    pub orders: BTreeMap<BackendId, Orders>,
    /// Moves that are over.
    pub ended: Vec<MoveRecord>,
    /// The move that is under way; number 0: it begins now.
    pub moving: Option<MoveRecord>,
    /// Who copies for a disk that nobody has attached.
    pub copier: Copier,
    /// Seeds that became nobody's.
    pub leftover: Vec<NewSet>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) enum Copier {
    #[default]
    AsItIs,
    Start(HostName),
    End(BackendId),
}

pub(super) fn decide(
    scene: &Scene,
    planner: &Planner,
    disk: &DiskNow,
    seen: &Seen,
    plan: &Plan,
) -> Decision {
    let deciding = Deciding {
        scene,
        planner,
        disk,
        seen,
        plan,
    };
    let mut decision = Decision::default();
    deciding.moves(&mut decision);
    deciding.orders(&mut decision);
    decision
}

/// Whether anything is to be switched or filled; superfluous copies go without a move.
pub(super) fn has_work(record: &DiskRecord, plan: &Plan) -> bool {
    plan.next_sets().is_some() || is_filling(record)
}

fn is_filling(record: &DiskRecord) -> bool {
    record.map.iter().any(|range| !range.history.is_whole())
}

/// How long after a hold-down a move still counts as the VM's.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(3600);

struct Deciding<'a> {
    scene: &'a Scene,
    planner: &'a Planner<'a>,
    disk: &'a DiskNow,
    seen: &'a Seen,
    plan: &'a Plan,
}

impl Deciding<'_> {
    fn record(&self) -> &DiskRecord {
        &self.disk.record.value
    }

    /// Who has the disk open.
    fn writer(&self) -> Option<&Attachment> {
        let owner = self.record().owner()?;
        self.disk.attachments.backend(owner.backend)
    }

    fn copier(&self) -> Option<&Attachment> {
        let all = self.disk.attachments.0.iter();
        all.clone().find(|a| a.wanted == Wanted::Copying)
    }

    /// Where a VM may start at any moment. A copier would keep the disk from it.
    fn standby(&self) -> Option<&HostName> {
        let mut standbys = self.disk.attachments.standbys();
        standbys.find_map(|standby| standby.place.node())
    }

    fn moves(&self, decision: &mut Decision) {
        let home = &self.disk.terms.home.datacenter;
        let mut moving = self.disk.moving().cloned();
        if let Some(over) = moving.take_if(|m| self.is_over(m, home)) {
            for old in over.each() {
                let arrived = old.kind == MoveKind::Prepare && old.to.contains(home);
                let state = match arrived {
                    true => MoveState::Done,
                    false => MoveState::Cancelled,
                };
                decision.leftover.extend(self.leftover(old));
                decision.ended.push(self.ended(old, state));
            }
        }
        let moving = match moving {
            Some(ahead) if ahead.kind == MoveKind::Prepare => Some(self.first(ahead)),
            Some(moving) => Some(moving),
            None => self.begin().or_else(|| self.begin_to_prepare()),
        };
        let Some(mut moving) = moving else {
            self.rest(decision);
            return;
        };
        if let Some(heard) = &self.seen.heard {
            moving.progress = heard.since(moving.base.as_ref(), moving.kind);
        }
        moving.state = match moving.kind {
            MoveKind::Move => self.state(&moving, decision),
            MoveKind::Prepare => self.preparing(&moving),
        };
        if moving.state.has_ended() {
            decision.leftover.extend(self.leftover(&moving));
            decision.moving = moving.resumed(self.seen.heard.map(|heard| heard.base()));
            let state = moving.state.clone();
            decision.ended.push(self.ended(&moving, state));
            self.rest(decision);
        } else {
            // Also one that is stuck for want of stores: a copier would hold the disk open for nothing.
            let rests = moving.kind == MoveKind::Prepare || moving.state == MoveState::Paused;
            if rests || self.standby().is_some() || !has_work(self.record(), self.plan) {
                self.rest(decision);
            }
            decision.moving = Some(moving);
        }
    }

    /// Its VM has gone elsewhere since: what it wanted is not wanted any more.
    fn is_over(&self, moving: &MoveRecord, home: &DatacenterName) -> bool {
        moving.home.as_ref().is_some_and(|began| began != home)
    }

    fn ended(&self, moving: &MoveRecord, state: MoveState) -> MoveRecord {
        MoveRecord {
            state,
            ended: Some(self.scene.wall),
            afterwards: None,
            ..moving.clone()
        }
    }

    /// What is copied ahead may wait for its VM for weeks, so it gives way to every move that may go on
    /// now, such as a repair, and goes on afterwards.
    fn first(&self, ahead: MoveRecord) -> MoveRecord {
        // What waits for its policy's window leaves it the time until then.
        let begun = match self.plan.waits_until {
            Some(_) => None,
            None => self.begin(),
        };
        let Some(first) = begun else {
            return ahead;
        };
        let waits_for = "another move of its disk, which comes first".into();
        let ahead = MoveRecord {
            state: MoveState::Planned { waits_for },
            ..ahead
        };
        MoveRecord {
            afterwards: Some(Box::new(ahead)),
            ..first
        }
    }

    fn begin(&self) -> Option<MoveRecord> {
        let home = &self.disk.terms.home;
        let wall = self.scene.wall;
        // What a bounce had held back follows later, and belongs to the arrival all the same.
        let held_back = |until| !home.is_held(wall) && wall.since(until) < FOLLOWS_WITHIN;
        let arrived = is_filling(self.record()) || home.held_until.is_some_and(held_back);
        let why = match (self.disk.host.as_ref(), self.leaves()) {
            _ if self.plan.repair => MoveWhy::Repair,
            (Some(host), _) if arrived => MoveWhy::Arrival(host.clone()),
            (_, Some(store)) => MoveWhy::Evacuation(store),
            (_, None) => MoveWhy::Policy,
        };
        let waits = why.takes_turns() && !self.seen.admitted && !is_filling(self.record());
        match waits {
            true => None,
            false => begin(
                self.scene,
                self.planner,
                &self.disk.subject(),
                self.plan,
                why,
            ),
        }
    }

    /// A store that is to be emptied and that its map names.
    fn leaves(&self) -> Option<StoreId> {
        let evacuating = |store: &StoreId| {
            let place = self.scene.topology.stores.get(store);
            place.is_some_and(|place| place.evacuating)
        };
        self.record().stores().into_iter().find(evacuating)
    }

    /// Policy copies ahead as soon as a backend stands by elsewhere.
    fn begin_to_prepare(&self) -> Option<MoveRecord> {
        let subject = self.disk.subject();
        if !self.planner.prepares_by_itself(&subject) {
            return None;
        }
        let elsewhere = |standby: &&Attachment| {
            let to = self.datacenter_of(standby);
            to.is_some_and(|to| *to != self.disk.terms.home.datacenter)
        };
        let standby = self.disk.attachments.standbys().find(elsewhere)?;
        let to = self.datacenter_of(standby)?;
        let moving = prepare(
            self.scene,
            self.planner,
            self.disk,
            to,
            standby.place.node(),
        )?;
        Some(MoveRecord {
            why: MoveWhy::Policy,
            ..moving
        })
    }

    fn datacenter_of(&self, attachment: &Attachment) -> Option<&DatacenterName> {
        self.scene.places.hosts.get(attachment.place.node()?)
    }

    /// There is nothing to copy now: whoever opened the disk for that lets it go.
    fn rest(&self, decision: &mut Decision) {
        if let Some(copier) = self.copier() {
            decision.copier = Copier::End(copier.backend);
        }
    }

    /// What was copied ahead and is a copy of nobody now.
    pub(super) fn leftover(&self, moving: &MoveRecord) -> Vec<NewSet> {
        let named = |store: StoreId| -> Vec<Extents> {
            let map = self.record().map.iter();
            let there = map.filter(|range| range.history.0.iter().any(|entry| entry.has(store)));
            there.map(|range| range.extents).collect()
        };
        let mut left = Vec::new();
        for set in &moving.seeds {
            for store in &set.stores {
                for extents in minus(&[set.extents], &named(*store)) {
                    let stores = vec![*store];
                    left.push(NewSet { extents, stores });
                }
            }
        }
        left
    }
}

/// Seeds that are nobody's are superfluous copies like others.
pub(super) fn retired_seeds(
    record: &DiskRecord,
    leftover: &[NewSet],
    now: crate::policy::UnixSeconds,
) -> Vec<RetiredCopy> {
    let each = |set: &NewSet, store: StoreId| RetiredCopy {
        store,
        extents: vec![set.extents],
        since: now,
        superseded_by: record.members(),
        revision: record.revision,
        joined_below: record.epoch.next(record.epoch.generation()),
        ejected: false,
        unwanted: false,
        ordered: None,
    };
    let sets = leftover.iter();
    sets.flat_map(|set| set.stores.iter().map(|store| each(set, *store)))
        .collect()
}
