//! The steps from a map to a goal, each tried out on the record before it is promised.
//!
//! ```text
//! follow = switch      Switch (to the goal) -> Fill -> Complete ------------------------> Retire
//! follow = extend      Switch (old and new) -> Fill -> Complete -> Switch (to the goal) -> Retire
//! ```
//!
//! With `switch` guests' writes are near at once, and what was written before stands on the sealed old
//! members until the new ones are whole; with `extend` every write stands on both sides until then.
//! Either way an epoch's writes stand on as many stores as policy asks at each moment.

use super::fleet::{Fleet, Place};
use super::held::{cut, cuts, segments};
use super::plan::{Action, Goal, RetiredCopy};
use super::ranges::{intersection, joined, overlap};
use super::rules::{Rules, Standing};
use super::subject::{Retired, Subject};
use crate::policy::{DropWhen, Follow, UnixSeconds};
use replicator::words::{
    BackendId, Change, DiskRecord, Entry, Extents, History, HostName, Life, MapRange, NewSet,
    Owner, State, StoreId, Version,
};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Tells `tried` each action that leads from the record to `goal`, with the record when it has been
/// done. Returns the extents whose history is too long to change now.
pub(super) fn steps(
    fleet: &Fleet,
    rules: &Rules,
    subject: &Subject,
    goal: &Goal,
    now: UnixSeconds,
    tried: &mut dyn FnMut(Action, &DiskRecord),
) -> Vec<Extents> {
    let mut record = Cow::Borrowed(subject.record);
    let (sets, full) = next_sets(fleet, rules, &record, goal);
    switch(&mut record, sets, tried);
    fill(&mut record, tried);
    // Where both sides were held meanwhile, the old one is left out now.
    let (mut sets, _) = sets_towards(Follow::Switch, &|_| Standing::Fit, &record, goal);
    sets.retain(|set| !full.iter().any(|full| overlap(*full, set.extents)));
    switch(&mut record, sets, tried);
    fill(&mut record, tried);
    let copies = retired(fleet, rules, subject, (&record, goal), now);
    if !copies.is_empty() {
        tried(Action::Retire { copies }, &record);
    }
    full
}

fn switch(
    record: &mut Cow<DiskRecord>,
    sets: Vec<NewSet>,
    tried: &mut dyn FnMut(Action, &DiskRecord),
) {
    if !sets.is_empty() {
        *record = Cow::Owned(switched(record, &sets));
        tried(Action::Switch { sets }, record);
    }
}

fn fill(record: &mut Cow<DiskRecord>, tried: &mut dyn FnMut(Action, &DiskRecord)) {
    let filling = |range: &&MapRange| !range.history.is_whole();
    let extents = joined(record.map.iter().filter(filling).map(|range| range.extents));
    if extents.is_empty() {
        return;
    }
    let fill = Action::Fill {
        extents: extents.clone(),
    };
    tried(fill, record);
    for range in &mut record.to_mut().map {
        complete(&mut range.history);
    }
    tried(Action::Complete { extents }, record);
}

/// The history when all that is being filled is whole: what `Change::Complete` of each live entry
/// leaves of it.
fn complete(history: &mut History) {
    history.0.retain(Entry::is_live);
    history.0.iter_mut().for_each(|entry| entry.whole = true);
}

/// The write sets to open next, and the extents whose history is too long for it.
pub(super) fn next_sets(
    fleet: &Fleet,
    rules: &Rules,
    record: &DiskRecord,
    goal: &Goal,
) -> (Vec<NewSet>, Vec<Extents>) {
    // What was never written need not be held on both sides.
    let follow = match never_opened(record) {
        true => Follow::Switch,
        false => rules.class.follow,
    };
    let standing = |store: StoreId| match fleet.seat(store) {
        Some(seat) if !never_opened(record) => rules.standing(fleet.place(seat)),
        _ => Standing::Fit,
    };
    sets_towards(follow, &standing, record, goal)
}

/// A store that is left although it works goes only when what takes its place is whole, whatever `follow` says;
/// one that is gone holds nothing meanwhile.
fn sets_towards(
    follow: Follow,
    standing: &dyn Fn(StoreId) -> Standing,
    record: &DiskRecord,
    goal: &Goal,
) -> (Vec<NewSet>, Vec<Extents>) {
    let mut sets: Vec<NewSet> = Vec::new();
    let mut full = Vec::new();
    for (extents, history, copies) in side_by_side(record, goal) {
        let members = sorted(history.members().collect());
        let goal: Vec<StoreId> = copies.iter().map(|(store, _)| *store).collect();
        let leaves = members
            .iter()
            .any(|store| standing(*store) == Standing::Leaving && !goal.contains(store));
        let follow = if leaves { Follow::Extend } else { follow };
        let stay = |store: &&StoreId| standing(**store) != Standing::Gone;
        let stores = match follow {
            Follow::Extend if !is_whole_on(history, &goal) => {
                sorted(members.iter().filter(stay).chain(&goal).copied().collect())
            }
            _ => goal,
        };
        if stores == members {
            continue;
        }
        let set = NewSet { extents, stores };
        if !fits(record, history, &set) {
            full.push(extents);
            continue;
        }
        match sets.last_mut() {
            Some(before) if before.stores == set.stores && before.extents.end == extents.first => {
                before.extents.end = extents.end;
            }
            _ => sets.push(set),
        }
    }
    (sets, joined(full.into_iter()))
}

/// The parts of the disk that have one history and one goal.
pub(super) fn side_by_side<'a>(
    record: &'a DiskRecord,
    goal: &'a Goal,
) -> impl Iterator<Item = (Extents, &'a History, &'a [(StoreId, super::Role)])> {
    let mut ranges = record.map.iter().peekable();
    let mut goals = goal.ranges.iter().peekable();
    std::iter::from_fn(move || {
        let (range, goal) = (*ranges.peek()?, *goals.peek()?);
        let first = range.extents.first.max(goal.extents.first);
        let end = range.extents.end.min(goal.extents.end);
        if end == range.extents.end {
            ranges.next();
        }
        if end == goal.extents.end {
            goals.next();
        }
        Some((Extents::new(first, end), &range.history, &goal.copies[..]))
    })
}

/// Whether each of `stores` is a member and has everything.
fn is_whole_on(history: &History, stores: &[StoreId]) -> bool {
    stores
        .iter()
        .all(|store| history.member(*store).is_some_and(|entry| entry.whole))
}

/// Whether the history has room for this switch (rule F3). A switch adds one entry and splits live ones
/// at most, so that most need no trial.
fn fits(record: &DiskRecord, history: &History, set: &NewSet) -> bool {
    if history.0.len() + 1 + history.live().count() <= History::MAX_ENTRIES {
        return true;
    }
    let sets = vec![set.clone()];
    let (by, open) = opened(record);
    open.apply(record.epoch.generation(), &Change::Switch { by, sets })
        .is_ok()
}

/// The record as the writer would have it, and that writer.
fn opened(record: &DiskRecord) -> ((BackendId, Life), DiskRecord) {
    if let Some(owner) = record.owner() {
        return ((owner.backend, owner.life), record.clone());
    }
    let owner = somebody();
    let by = (owner.backend, owner.life);
    let state = State::Open { owner };
    (
        by,
        DiskRecord {
            state,
            ..record.clone()
        },
    )
}

/// Whoever will write a disk that nobody writes yet.
fn somebody() -> Owner {
    Owner {
        backend: BackendId::from_u128(0),
        life: Life(0),
        host: HostName::new("planned").expect("a name"),
    }
}

/// Whether nobody ever wrote it.
pub(super) fn never_opened(record: &DiskRecord) -> bool {
    matches!(&record.state, State::Closed { last, .. } if *last == Version::ZERO)
}

/// The record after a switch, or after the attachment that brings it.
pub(super) fn switched(record: &DiskRecord, sets: &[NewSet]) -> DiskRecord {
    let sets = sets.to_vec();
    let (by, open) = opened(record);
    let (before, change) = if never_opened(record) {
        let owner = somebody();
        (record, Change::Attach { owner, sets })
    } else {
        (&open, Change::Switch { by, sets })
    };
    before
        .apply(record.epoch.generation(), &change)
        .expect("sets of this disk's extents, none empty, whose histories have room")
}

/// What stores have of the disk that `last` does not name any more, and that policy says to drop.
fn retired(
    fleet: &Fleet,
    rules: &Rules,
    subject: &Subject,
    (last, goal): (&DiskRecord, &Goal),
    now: UnixSeconds,
) -> Vec<RetiredCopy> {
    let after = |since: UnixSeconds| match rules.class.drop {
        DropWhen::Complete => Some(None),
        DropWhen::After(time) => Some(Some(since.after(time)).filter(|at| *at > now)),
        DropWhen::Manual => None,
    };
    // Where no block may stand, or an operator wants none, none is kept for a way back.
    let unwanted = |store: StoreId, extents: Extents| {
        let place = fleet.seat(store).map(|seat| fleet.place(seat));
        let barred = |place: &Place| !rules.allows(place.site) || place.evacuating;
        rules.is_off(store, extents, false) || place.is_some_and(barred)
    };
    let mut copies: BTreeMap<(StoreId, Option<UnixSeconds>), Vec<Extents>> = BTreeMap::new();
    let mut add = |store: StoreId, extents: Extents, since: UnixSeconds| {
        let when = if unwanted(store, extents) {
            Some(None)
        } else {
            after(since)
        };
        let Some(not_before) = when else {
            return;
        };
        for part in not_named(last, store, extents) {
            copies.entry((store, not_before)).or_default().push(part);
        }
    };
    for (extents, history) in segments(subject, rules) {
        let stores = history
            .0
            .iter()
            .flat_map(|entry| entry.stores.iter().copied());
        sorted(stores.collect())
            .into_iter()
            .for_each(|store| add(store, extents, now));
    }
    let cuts = cuts(rules);
    // What is waited for is not superfluous.
    let awaited = |retired: &&Retired| goal.awaited.iter().any(|one| one.store == retired.store);
    for retired in subject.retired.iter().filter(|retired| !awaited(retired)) {
        let parts = retired.extents.iter().flat_map(|part| cut(*part, &cuts));
        parts.for_each(|part| add(retired.store, part, retired.since));
    }
    copies
        .into_iter()
        .map(|((store, not_before), mut extents)| {
            extents.sort_unstable_by_key(|extents| extents.first);
            RetiredCopy {
                store,
                extents: joined(extents.into_iter()),
                not_before,
            }
        })
        .collect()
}

/// The parts of `extents` in whose history `store` is not.
fn not_named(record: &DiskRecord, store: StoreId, extents: Extents) -> Vec<Extents> {
    let inside = |range: &&MapRange| overlap(range.extents, extents);
    let free = |range: &&MapRange| !range.history.0.iter().any(|entry| entry.has(store));
    let behind = record
        .map
        .partition_point(|range| range.extents.end <= extents.first);
    let from_there = record.map[behind..].iter().take_while(inside);
    joined(
        from_there
            .filter(free)
            .map(|range| intersection(range.extents, extents)),
    )
}

fn sorted(mut stores: Vec<StoreId>) -> Vec<StoreId> {
    stores.sort_unstable();
    stores.dedup();
    stores
}
