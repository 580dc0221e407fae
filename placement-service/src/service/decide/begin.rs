//! A move as it begins: where it comes from, where it goes, and the plan as of then.

use super::super::scene::{DiskNow, Scene};
use super::has_work;
use crate::api::{MoveKind, MoveProgress, MoveState, MoveWhy};
use crate::model::MoveRecord;
use crate::planner::{Action, Plan, Planner, Subject};
use replicator::words::{DatacenterName, HostName, StoreId};
use std::collections::BTreeSet;

/// Ranges that a kept plan lists at most: it is for people, and a catalog's values are bounded.
const KEPT_RANGES: usize = 500;

/// A disk's plan as a new move; the caller says why. None: it changes nothing.
pub(in crate::service) fn begin(
    scene: &Scene,
    planner: &Planner,
    subject: &Subject,
    plan: &Plan,
    why: MoveWhy,
) -> Option<MoveRecord> {
    if !has_work(subject.record, plan) {
        return None;
    }
    let (from, to) = ends(scene, planner, subject);
    Some(MoveRecord {
        number: 0,
        disk: plan.disk,
        name: plan.name.clone(),
        kind: MoveKind::Move,
        from,
        to,
        why,
        state: MoveState::Planned {
            waits_for: "its turn".into(),
        },
        paused: false,
        own_limit: None,
        began: scene.wall,
        ended: None,
        progress: MoveProgress::default(),
        base: None,
        plan: bounded(plan),
        pins_before: None,
        drops: None,
        seeds: Vec::new(),
        leaves: Vec::new(),
        home: Some(subject.home.datacenter.clone()),
        afterwards: None,
    })
}

/// Copying ahead to `to`, where its VM is about to run; none: all stands there already, or nothing may.
pub(in crate::service) fn prepare(
    scene: &Scene,
    planner: &Planner,
    disk: &DiskNow,
    to: &DatacenterName,
    host: Option<&HostName>,
) -> Option<MoveRecord> {
    let subject = disk.subject();
    let seeds = planner.seeds(&subject, to, host);
    if seeds.is_empty() {
        return None;
    }
    let plan = Plan {
        steps: Vec::new(),
        ..planner.plan(&subject)
    };
    Some(MoveRecord {
        number: 0,
        disk: plan.disk,
        name: plan.name.clone(),
        kind: MoveKind::Prepare,
        from: vec![disk.terms.home.datacenter.clone()],
        to: vec![to.clone()],
        why: MoveWhy::Policy,
        state: MoveState::Filling,
        paused: false,
        own_limit: None,
        began: scene.wall,
        ended: None,
        progress: MoveProgress::default(),
        base: None,
        plan,
        pins_before: None,
        drops: None,
        seeds,
        leaves: Vec::new(),
        home: Some(disk.terms.home.datacenter.clone()),
        afterwards: None,
    })
}

/// Where the copies are that go, and where those that come will be.
fn ends(
    scene: &Scene,
    planner: &Planner,
    subject: &Subject,
) -> (Vec<DatacenterName>, Vec<DatacenterName>) {
    let goal = planner.goal(subject);
    let goals: BTreeSet<StoreId> = goal
        .ranges
        .iter()
        .flat_map(|range| range.stores())
        .collect();
    let mut whole = BTreeSet::new();
    let mut named = BTreeSet::new();
    for entry in subject.record.map.iter().flat_map(|range| &range.history.0) {
        named.extend(&entry.stores);
        if entry.is_live() && entry.whole {
            whole.extend(&entry.stores);
        }
    }
    let joins = scene.datacenters(goals.difference(&whole).copied());
    let leaves = scene.datacenters(named.difference(&goals).copied());
    let from = match leaves.is_empty() {
        true => scene.datacenters(whole.iter().copied()),
        false => leaves,
    };
    (from, joins)
}

fn bounded(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    let mut cut = false;
    let mut bound = |len: usize| {
        cut |= len > KEPT_RANGES;
        KEPT_RANGES
    };
    for step in &mut plan.steps {
        match &mut step.action {
            Action::Switch { sets } => sets.truncate(bound(sets.len())),
            Action::Fill { extents } | Action::Complete { extents } => {
                extents.truncate(bound(extents.len()));
            }
            Action::Retire { copies } => {
                copies.truncate(bound(copies.len()));
                for copy in copies {
                    copy.extents.truncate(bound(copy.extents.len()));
                }
            }
        }
    }
    plan.shortfalls.truncate(KEPT_RANGES);
    if cut {
        plan.notes.push(format!(
            "of more than {KEPT_RANGES} ranges only so many are listed"
        ));
    }
    plan
}
