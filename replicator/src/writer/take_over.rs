//! Taking over an epoch that was not closed (rules A3 to A5): seal its members, choose whose content
//! counts, make the others even, sync, commit, and only then serve.
//!
//! ```text
//!  writer                  members of the newest entries       placement
//!    |--- Swap(TakeOver) ----------------|---------------------->|  epoch T
//!    |--- Seal T ----------------------->|                       |  the writer before completes nothing now (I3)
//!    |<-- Sealed: incarnation, replicas -|                       |
//!    |          whoever does not answer in time, or lost its tail where another did not, is dropped
//!    |--- List above the watermark ----->|                       |
//!    |<-- versions ----------------------|                       |
//!    |          where they differ: read the newest block, write it as (T, n) on all (even_out.rs)
//!    |--- Sync ------------------------->|                       |
//!    |--- Swap(Settle, dropped) ---------|---------------------->|
//!    |--- Settle: clear the marks ------>|                       |  where all had lost their tails (A4)
//!    |    serve                          |                       |
//! ```
//!
//! Whatever goes wrong on the way, it begins again with an epoch of its own: rewrites that are still
//! on their way to a member must not arrive after it was found to be even.

use super::attach::{Replica, replica};
use super::calls::Purpose;
use super::eject::Blocked;
use super::even_out::Evening;
use super::{Aim, Now, Phase, Writer};
use crate::message::{Request, Sealed};
use crate::plant::{Plant, planted};
use crate::words::{Change, DiskRecord, Epoch, Extents, MapRange, Seq, StoreId, Version};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

pub(super) struct Settling {
    stage: Stage,
    /// Until when members that do not answer are waited for.
    patience: Now,
    sealed: BTreeMap<StoreId, Sealed>,
    plan: Plan,
}

impl Settling {
    pub fn evened(&self) -> Option<&Evening> {
        match &self.stage {
            Stage::Evening(_, evening) => Some(evening),
            _ => None,
        }
    }
}

enum Stage {
    /// Who answers, and who is whole?
    Sealing,
    /// Members that have never joined do.
    Joining,
    /// The range of the plan that is being made even, and how far that is.
    Evening(usize, Evening),
    Syncing(BTreeSet<StoreId>),
    Committing,
    /// The record says that the members are even: they hear it too.
    Marking,
}

/// What a take-over is going to do, range by range.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub ranges: Vec<RangePlan>,
    /// Leave the newest entries.
    pub drop: Vec<StoreId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct RangePlan {
    pub extents: Extents,
    /// Who is made even.
    pub kept: Vec<StoreId>,
    /// Whose content may count: each of them alone is a legitimate state of each block.
    pub sources: Vec<StoreId>,
    /// Of those kept: they have never joined their entry, which began then, or have nothing of it any more.
    pub joining: Vec<(StoreId, Epoch)>,
    /// Of those kept: their tails are lost (A4).
    pub lost: Vec<StoreId>,
    /// What is not above this is even already.
    pub floor: Version,
}

impl Writer {
    pub(super) fn begin_settling(&mut self, before: Epoch) {
        self.begin_epoch(before);
        // What was filled may be lost with a tail.
        self.fill.forget();
        self.phase = Phase::Settling(Box::new(Settling {
            stage: Stage::Sealing,
            patience: self.now + self.config.settle_patience,
            sealed: BTreeMap::new(),
            plan: Plan::default(),
        }));
        for store in self.record.members() {
            self.seal(store);
        }
    }

    pub(super) fn settle_sealed(&mut self, store: StoreId, sealed: Sealed) {
        let member = self.is_member(store);
        let settling = self.settling();
        if member && matches!(settling.stage, Stage::Sealing) {
            settling.sealed.insert(store, sealed);
            self.try_plan();
        }
    }

    /// Goes on once everybody answered, or those that did suffice and the others had their time.
    pub(super) fn try_plan(&mut self) {
        let record = self.record.clone();
        let (members, now) = (record.members(), self.now);
        let least = usize::from(self.orders.min_copies);
        let settling = self.settling();
        let out_of_patience = settling.patience <= now;
        let all = members.iter().all(|m| settling.sealed.contains_key(m));
        if !matches!(settling.stage, Stage::Sealing) || !(all || out_of_patience) {
            return;
        }
        match plan(&record, &settling.sealed, least) {
            Err(stores) => {
                self.blocked = Some(Blocked {
                    stores,
                    too_few_copies: None,
                });
            }
            Ok(plan) => {
                settling.plan = plan;
                settling.stage = Stage::Joining;
                self.blocked = None;
                self.join_and_go_on();
            }
        }
    }

    fn join_and_go_on(&mut self) {
        let extent_size = self.record.extent_size;
        for range in self.settling().plan.ranges.clone() {
            for (store, from) in range.joining {
                let request = Request::Join {
                    asker: self.asker(store),
                    extents: range.extents,
                    extent_size,
                    from,
                };
                self.peer(store).preparing += 1;
                self.call(store, request, Aim::Nowhere, Purpose::Prepare);
            }
        }
        // The writer before may have died before it had told them.
        for store in self.kept_by_plan() {
            for request in self.keeps(store) {
                self.peer(store).preparing += 1;
                self.call(store, request, Aim::Nowhere, Purpose::Prepare);
            }
        }
        self.settle_prepared();
    }

    /// Everybody who stays, of whatever range.
    fn kept_by_plan(&mut self) -> BTreeSet<StoreId> {
        let ranges = self.settling().plan.ranges.iter();
        ranges
            .flat_map(|range| range.kept.iter().copied())
            .collect()
    }

    /// A join, or the clearing of a mark, was answered.
    pub(super) fn settle_prepared(&mut self) {
        if self.peers.values().any(|peer| peer.preparing > 0) {
            return;
        }
        match self.settling().stage {
            Stage::Joining => self.even_out_range(0),
            Stage::Marking => self.open(),
            _ => {}
        }
    }

    pub(super) fn even_out_range(&mut self, at: usize) {
        let extent_size = self.record.extent_size;
        let settling = self.settling();
        match settling.plan.ranges.get(at) {
            Some(range) => {
                let evening = Evening::new(range, extent_size);
                settling.stage = Stage::Evening(at, evening);
                self.go_on_evening();
            }
            None => self.sync_settled(),
        }
    }

    fn sync_settled(&mut self) {
        let kept = self.kept_by_plan();
        self.settling().stage = Stage::Syncing(kept.clone());
        if planted(Plant::SettleWithoutSync) {
            return self.commit_settled();
        }
        for store in kept {
            let asker = self.asker(store);
            let purpose = Purpose::Sync { round: 0 };
            self.call(store, Request::Sync { asker }, Aim::Nowhere, purpose);
        }
    }

    pub(super) fn settle_synced(&mut self, store: StoreId) {
        if let Stage::Syncing(missing) = &mut self.settling().stage {
            missing.remove(&store);
            if missing.is_empty() {
                self.commit_settled();
            }
        }
    }

    fn commit_settled(&mut self) {
        let by = (self.owner.backend, self.owner.life);
        let settling = self.settling();
        settling.stage = Stage::Committing;
        let drop = settling.plan.drop.clone();
        self.swap(Change::Settle { by, drop });
    }

    /// The record says that the members are even and synced up to this epoch.
    pub(super) fn settle_committed(&mut self) {
        let settling = self.settling();
        settling.stage = Stage::Marking;
        for range in settling.plan.ranges.clone() {
            for store in range.lost {
                self.fill.forget_done_by(store);
                let request = Request::Settle {
                    asker: self.asker(store),
                    extents: range.extents,
                };
                self.peer(store).preparing += 1;
                self.call(store, request, Aim::Nowhere, Purpose::Prepare);
            }
        }
        self.settle_prepared();
    }

    /// Somebody whom we need does not answer, or changed under us. Done at the end of the event.
    pub(super) fn restart_settling(&mut self) {
        self.restart = true;
    }

    pub(super) fn restart_if_wanted(&mut self) {
        if std::mem::take(&mut self.restart) && matches!(self.phase, Phase::Settling(_)) {
            self.void_calls();
            self.fail_writes();
            self.keep_only_landing_reads();
            self.blocked = None;
            self.take_over_from_self();
        }
    }

    pub(super) fn settle_timeout(&self) -> Option<Now> {
        match &self.phase {
            Phase::Settling(settling) if self.blocked.is_none() => {
                matches!(settling.stage, Stage::Sealing).then_some(settling.patience)
            }
            _ => None,
        }
    }

    pub(super) fn settle_patience_over(&mut self) {
        if self.settle_timeout().is_some_and(|at| at <= self.now) {
            self.try_plan();
        }
    }

    /// The range that is being made even, and how far that is.
    pub(super) fn evening(&mut self) -> Option<(usize, &RangePlan, &mut Evening)> {
        let Phase::Settling(settling) = &mut self.phase else {
            return None;
        };
        match &mut settling.stage {
            Stage::Evening(at, evening) => Some((*at, &settling.plan.ranges[*at], evening)),
            _ => None,
        }
    }

    pub(super) fn settling_members(&mut self) -> SmallVec<[StoreId; 4]> {
        let (_, range, _) = self.evening().expect("rewrites belong to a range");
        SmallVec::from_slice(&range.kept)
    }

    pub(super) fn settling_sources(&self) -> SmallVec<[StoreId; 4]> {
        let Phase::Settling(settling) = &self.phase else {
            return SmallVec::new();
        };
        match settling.stage {
            Stage::Evening(at, _) => SmallVec::from_slice(&settling.plan.ranges[at].sources),
            _ => SmallVec::new(),
        }
    }

    fn settling(&mut self) -> &mut Settling {
        match &mut self.phase {
            Phase::Settling(settling) => settling,
            _ => panic!("only while settling"),
        }
    }
}

/// Decides, from what the members answered, whose content counts and who leaves; or names those
/// without whose answer that cannot be said.
pub(super) fn plan(
    record: &DiskRecord,
    sealed: &BTreeMap<StoreId, Sealed>,
    least: usize,
) -> Result<Plan, Vec<StoreId>> {
    let mut drop: BTreeSet<StoreId> = BTreeSet::new();
    let mut needed: BTreeSet<StoreId> = BTreeSet::new();
    let mut waits_for: BTreeSet<StoreId> = BTreeSet::new();
    let state = |range: &MapRange, store: &StoreId| standing(record, range, *store, sealed);
    let is_healthy = |range: &MapRange, store: &StoreId| {
        matches!(
            state(range, store),
            Some(Replica::Whole | Replica::NotJoined)
        )
    };
    for range in &record.map {
        let stores: Vec<StoreId> = range.history.members().collect();
        let are = |wanted: Option<Replica>| -> Vec<StoreId> {
            let is = |store: &&StoreId| state(range, store) == wanted;
            stores.iter().filter(is).copied().collect()
        };
        let (lost, gone) = (are(Some(Replica::Lost)), are(Some(Replica::Gone)));
        if !gone.is_empty() && !range.history.covers_without(&gone) {
            waits_for.extend(gone);
        } else if stores.iter().any(|store| is_healthy(range, store)) {
            drop.extend(stores.iter().filter(|store| !is_healthy(range, store)));
            if are(Some(Replica::Whole)).is_empty() {
                // Who has nothing is no reason to forget what another one has.
                needed.extend(lost);
            }
        } else {
            // A4: each lost a different tail, but all that was ever synced is on each of them.
            let silent = are(None);
            if planted(Plant::SettlesWithoutWaiting) && silent.len() < stores.len() {
                drop.extend(silent);
            } else {
                waits_for.extend(silent);
                needed.extend(lost);
                drop.extend(gone);
            }
        }
    }
    if !waits_for.is_empty() {
        return Err(waits_for.into_iter().collect());
    }
    // Whoever would be dropped for some extents may be all that others have: it stays, and is made
    // even where its tail is lost.
    for range in &record.map {
        let members = || range.history.members();
        let kept = |store: &StoreId| !drop.contains(store) || needed.contains(store);
        if !members().any(|store| kept(&store) && is_healthy(range, &store)) {
            needed.extend(members().filter(|store| is_healthy(range, store)));
        }
    }
    drop.retain(|store| !needed.contains(store));
    // A live entry that is not whole may need one of them for what is older.
    while !record.may_remove(&drop.iter().copied().collect::<Vec<_>>()) {
        let store = drop.pop_first().expect("nobody has to leave");
        if !sealed.contains_key(&store) {
            return Err(vec![store]);
        }
        needed.insert(store);
    }
    // Nor may it leave fewer complete copies than are ordered: then whoever does not answer is waited
    // for, and a lost tail is made even.
    for range in &record.map {
        let entries = range.history.live().filter(|entry| entry.whole);
        let whole = || {
            entries
                .clone()
                .flat_map(|entry| entry.stores.iter().copied())
        };
        let left = whole().filter(|store| !drop.contains(store)).count();
        if left < least && left < whole().count() {
            waits_for.extend(whole().filter(|store| !sealed.contains_key(store)));
            drop.retain(|store| !whole().any(|w| w == *store));
        }
    }
    if !waits_for.is_empty() {
        return Err(waits_for.into_iter().collect());
    }
    let mut ranges = Vec::new();
    for range in &record.map {
        let kept: Vec<StoreId> = range
            .history
            .members()
            .filter(|store| !drop.contains(store))
            .collect();
        let which = |wanted: Replica| -> Vec<StoreId> {
            let is = |store: &&StoreId| state(range, store) == Some(wanted);
            kept.iter().filter(is).copied().collect()
        };
        let (whole, mut joining, lost, gone) = (
            which(Replica::Whole),
            which(Replica::NotJoined),
            which(Replica::Lost),
            which(Replica::Gone),
        );
        let mut sources: Vec<StoreId> = whole.iter().chain(&joining).copied().collect();
        if whole.is_empty() {
            sources.extend(&lost);
        }
        assert!(
            !sources.is_empty(),
            "A3: every extent keeps a member whose content counts"
        );
        let synced = Version::new(record.even_below, Seq::ZERO);
        let held = whole.iter().map(|store| sealed[store].watermark).max();
        let floor = match held {
            _ if !gone.is_empty() => Version::ZERO,
            Some(held) if lost.is_empty() => held.max(synced),
            _ => synced,
        };
        joining.extend(gone);
        ranges.push(RangePlan {
            extents: range.extents,
            kept,
            sources,
            joining: joining
                .into_iter()
                .filter_map(|store| Some((store, range.history.member(store)?.from)))
                .collect(),
            lost,
            floor,
        });
    }
    let drop = drop.into_iter().collect();
    Ok(Plan { ranges, drop })
}

/// What a member's answer says of its replica of a range; `None` where it has not answered.
fn standing(
    record: &DiskRecord,
    range: &MapRange,
    store: StoreId,
    sealed: &BTreeMap<StoreId, Sealed>,
) -> Option<Replica> {
    let from = range.history.member(store)?.from;
    match replica(sealed.get(&store)?, range.extents, from) {
        Replica::NotJoined if !record.may_be_unjoined(from) => Some(Replica::Gone),
        replica => Some(replica),
    }
}
