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

use super::course::Heard;
use super::retire::minus;
use super::scene::{DiskNow, Scene};
use crate::api::{MoveKind, MoveProgress, MoveState, MoveWhy, Place, Wanted};
use crate::model::{Attachment, MoveRecord, RetiredCopy};
use crate::planner::{Action, Plan, Planner, Retired, Subject};
use replicator::words::{
    BackendId, Change, DatacenterName, DiskRecord, Extents, Generation, HostName, Life, NewSet,
    Owner, State, StoreId,
};
use replicator::writer::{FillOrders, Orders};
use std::collections::{BTreeMap, BTreeSet};
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
    /// A move that is over.
    pub ended: Option<MoveRecord>,
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

/// A disk's plan as a new move; the caller says why. None: it changes nothing.
pub(super) fn begin(
    scene: &Scene,
    planner: &Planner,
    disk: &DiskNow,
    subject: &Subject,
    plan: &Plan,
    why: MoveWhy,
) -> Option<MoveRecord> {
    if !has_work(&disk.record.value, plan) {
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
        seeds: Vec::new(),
        home: Some(subject.home.datacenter.clone()),
    })
}

/// Whether anything is to be switched or filled; superfluous copies go without a move.
pub(super) fn has_work(record: &DiskRecord, plan: &Plan) -> bool {
    plan.next_sets().is_some() || is_filling(record)
}

fn is_filling(record: &DiskRecord) -> bool {
    record.map.iter().any(|range| !range.history.is_whole())
}

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

    fn moves(&self, decision: &mut Decision) {
        let home = &self.disk.terms.home.datacenter;
        let mut moving = self.disk.moving().cloned();
        if let Some(old) = moving.take_if(|m| self.is_over(m, home)) {
            let arrived = old.kind == MoveKind::Prepare && old.to.contains(home);
            let state = match arrived {
                true => MoveState::Done,
                false => MoveState::Cancelled,
            };
            decision.leftover = self.leftover(&old);
            decision.ended = Some(self.ended(old, state));
        }
        let moving = moving.or_else(|| self.begin());
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
            decision.leftover = self.leftover(&moving);
            let state = moving.state.clone();
            decision.ended = Some(self.ended(moving, state));
            self.rest(decision);
        } else {
            decision.moving = Some(moving);
        }
    }

    /// Its VM has gone elsewhere since: what it wanted is not wanted any more.
    fn is_over(&self, moving: &MoveRecord, home: &DatacenterName) -> bool {
        moving.home.as_ref().is_some_and(|began| began != home)
    }

    fn ended(&self, moving: MoveRecord, state: MoveState) -> MoveRecord {
        MoveRecord {
            state,
            ended: Some(self.scene.wall),
            ..moving
        }
    }

    fn begin(&self) -> Option<MoveRecord> {
        let home = &self.disk.terms.home;
        let wall = self.scene.wall;
        // What a bounce had held back follows later, and belongs to the arrival all the same.
        let held_back = |until| !home.is_held(wall) && wall.since(until) < FOLLOWS_WITHIN;
        let arrived = is_filling(self.record()) || home.held_until.is_some_and(held_back);
        let why = match self.disk.host.as_ref() {
            _ if self.plan.repair => MoveWhy::Repair,
            Some(host) if arrived => MoveWhy::Arrival(host.clone()),
            _ => MoveWhy::Policy,
        };
        let by_policy = matches!(why, MoveWhy::Policy | MoveWhy::Repair);
        if by_policy && !self.seen.admitted && !is_filling(self.record()) {
            return None;
        }
        let subject = self.disk.subject();
        let begun = begin(
            self.scene,
            self.planner,
            self.disk,
            &subject,
            self.plan,
            why,
        );
        begun.or_else(|| self.begin_to_prepare())
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

    /// Nothing is under way: nobody has to copy.
    fn rest(&self, decision: &mut Decision) {
        if let Some(copier) = self.copier() {
            decision.copier = Copier::End(copier.backend);
        }
    }

    fn state(&self, moving: &MoveRecord, decision: &mut Decision) -> MoveState {
        let switches = self.plan.next_sets().is_some();
        let filling = is_filling(self.record());
        if !switches && !filling {
            return match self.plan.shortfalls.first() {
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
        let admitted = match moving.why {
            MoveWhy::Arrival(_) | MoveWhy::Order(_) => true,
            MoveWhy::Policy | MoveWhy::Repair => self.seen.admitted,
        };
        (!admitted).then(|| "its turn: policy moves a bounded number of disks at a time".into())
    }

    /// Nobody has the disk open: a node there opens it to copy, and lets it go as soon as somebody wants it.
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

    /// Whether a copy is to go now, or is going.
    fn is_dropping(&self) -> bool {
        let due = |step: &crate::planner::Step| match &step.action {
            Action::Retire { copies } => copies.iter().any(|copy| copy.not_before.is_none()),
            _ => false,
        };
        let retired = self.disk.retired();
        let kept = !retired.is_empty() && self.plan.steps.iter().any(due);
        kept || retired.iter().any(|copy| copy.ordered.is_some())
    }

    fn preparing(&self, moving: &MoveRecord) -> MoveState {
        let Some(writer) = self.writer() else {
            return MoveState::Stuck {
                why: "nobody has the disk open: it is copied ahead while its VM runs".into(),
            };
        };
        if writer.wanted == Wanted::Copying {
            return MoveState::Done;
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

    /// What was copied ahead and is a copy of nobody now.
    fn leftover(&self, moving: &MoveRecord) -> Vec<NewSet> {
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

    fn orders(&self, decision: &mut Decision) {
        let moving = decision.moving.as_ref();
        let owner = self.writer().map(|writer| writer.backend);
        for attachment in &self.disk.attachments.0 {
            let orders = match attachment.wanted {
                Wanted::Detached => continue,
                _ if Some(attachment.backend) == owner => self.for_writer(moving),
                Wanted::Copying => self.for_writer(moving),
                Wanted::Attached | Wanted::Standby => self.for_arrival(attachment, moving),
            };
            decision.orders.insert(attachment.backend, orders);
        }
    }

    fn for_writer(&self, moving: Option<&MoveRecord>) -> Orders {
        let goes =
            moving.is_some_and(|m| m.kind == MoveKind::Move && m.state == MoveState::Switching);
        let sets = self.plan.next_sets().filter(|_| goes).unwrap_or_default();
        let seeds = moving.filter(|m| m.kind == MoveKind::Prepare && !m.paused);
        Orders {
            sets: sets.to_vec(),
            seed: seeds.map(|m| m.seeds.clone()).unwrap_or_default(),
            fill: self.fill(sets, moving),
        }
    }

    /// For a backend that may open the disk: it begins with what policy wants where it is.
    fn for_arrival(&self, attachment: &Attachment, moving: Option<&MoveRecord>) -> Orders {
        let Some(at) = self.datacenter_of(attachment) else {
            return Orders::default();
        };
        let with_seeds = self.with_seeds(moving);
        let subject = Subject {
            retired: &with_seeds,
            ..self.disk.subject()
        };
        let arrival = self.planner.arrival(&subject, at, attachment.place.node());
        let fill = self.fill(&arrival.sets, None);
        Orders {
            sets: arrival.sets,
            seed: Vec::new(),
            fill,
        }
    }

    /// Copies that were made ahead are as good a reason to choose a store as ones that were kept.
    fn with_seeds(&self, moving: Option<&MoveRecord>) -> Vec<Retired> {
        let mut retired = self.disk.subject().retired.to_vec();
        for set in moving.into_iter().flat_map(|m| &m.seeds) {
            retired.extend(set.stores.iter().map(|store| Retired {
                store: *store,
                extents: vec![set.extents],
                since: self.scene.wall,
            }));
        }
        retired
    }

    /// The limits that hold once `sets` are the members.
    fn fill(&self, sets: &[NewSet], moving: Option<&MoveRecord>) -> FillOrders {
        let switched = switched(self.record(), sets);
        let record = switched.as_ref().unwrap_or(self.record());
        let subject = Subject {
            record,
            ..self.disk.subject()
        };
        let ahead = moving.filter(|m| m.kind == MoveKind::Prepare);
        let seeds = ahead.map_or(&[][..], |m| &m.seeds);
        let filling = record.map.iter().flat_map(|range| range.history.live());
        let targets = filling
            .filter(|e| !e.whole)
            .flat_map(|e| e.stores.iter().copied())
            .chain(seeds.iter().flat_map(|set| set.stores.iter().copied()));
        let places: BTreeSet<DatacenterName> =
            self.scene.datacenters(targets).into_iter().collect();
        let sharing = places.iter().filter_map(|dc| self.seen.filling.get(dc));
        let sharing = sharing.max().copied().unwrap_or(1);
        let mut limits = self.planner.limits(&subject, sharing);
        let ahead = self.planner.seed_limits(&subject, seeds, sharing);
        let both = limits
            .bytes_per_second
            .into_iter()
            .chain(ahead.bytes_per_second);
        limits.bytes_per_second = both.min();
        let own = moving.and_then(|m| m.own_limit);
        FillOrders {
            paused: moving.is_some_and(|m| m.paused) || limits.paused_until.is_some(),
            bytes_per_second: own.or(limits.bytes_per_second),
        }
    }
}

/// Copying ahead to `to`, where its VM is about to run; none: all stands there already, or nothing may.
pub(super) fn prepare(
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
        seeds,
        home: Some(disk.terms.home.datacenter.clone()),
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

/// The record as a writer would make it of these sets; none: it could not.
fn switched(record: &DiskRecord, sets: &[NewSet]) -> Option<DiskRecord> {
    if sets.is_empty() {
        return None;
    }
    let somebody = Owner {
        backend: BackendId::from_u128(0),
        life: Life(0),
        host: HostName::new("planned").expect("a name"),
    };
    let by = (somebody.backend, somebody.life);
    let open = DiskRecord {
        state: State::Open { owner: somebody },
        ..record.clone()
    };
    let sets = sets.to_vec();
    let generation: Generation = record.epoch.generation();
    open.apply(generation, &Change::Switch { by, sets }).ok()
}

/// How long after a hold-down a move still counts as the VM's.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(3600);
/// Ranges that a kept plan lists at most: it is for people, and a catalog's values are bounded.
const KEPT_RANGES: usize = 500;

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
        unwanted: false,
        ordered: None,
    };
    let sets = leftover.iter();
    sets.flat_map(|set| set.stores.iter().map(|store| each(set, *store)))
        .collect()
}
