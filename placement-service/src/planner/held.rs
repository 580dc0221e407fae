//! What of a disk is where: the ranges to place, and the stores that have some of them already.

use super::fleet::{Fleet, Seat};
use super::ranges::inside;
use super::rules::{Rules, Standing, Wants};
use super::subject::Subject;
use crate::policy::UnixSeconds;
use replicator::words::{Extent, Extents, History, StoreId};
use std::cmp::Reverse;

/// The ranges of the map, cut where pins begin and end.
pub(super) fn segments<'a>(
    subject: &Subject<'a>,
    rules: &Rules,
) -> impl Iterator<Item = (Extents, &'a History)> + use<'a> {
    let cuts = cuts(rules);
    subject.record.map.iter().flat_map(move |range| {
        let parts = cut(range.extents, &cuts).into_iter();
        parts.map(|extents| (extents, &range.history))
    })
}

/// Where pins begin and end.
pub(super) fn cuts(rules: &Rules) -> Vec<Extent> {
    let mut cuts: Vec<Extent> = Vec::new();
    for extents in rules.pins.iter().filter_map(|pin| pin.extents) {
        cuts.extend([extents.first, extents.end]);
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

pub(super) fn cut(extents: Extents, cuts: &[Extent]) -> Vec<Extents> {
    let inside = |cut: &Extent| extents.first < *cut && extents.contains(*cut);
    let mut edges = vec![extents.first];
    edges.extend(cuts.iter().copied().filter(inside));
    edges.push(extents.end);
    let part = |pair: &[Extent]| Extents::new(pair[0], pair[1]);
    edges.windows(2).map(part).collect()
}

/// A store that has some of a range already, and when it may be used if not now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Holder {
    pub holds: Holds,
    /// Its store is away, and is expected to be back before this.
    pub awaited: Option<UnixSeconds>,
    elsewhere_than_vm: bool,
    less_room: Reverse<u64>,
    pub seat: Seat,
}

/// What a store has of a range, most useful first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holds {
    LiveWhole,
    LiveFilling,
    Sealed,
    /// It missed a write while it was being filled: what it had stands sealed below those that stayed.
    LeftEarly,
    /// It missed a write, then.
    Ejected {
        since: UnixSeconds,
    },
    Retired,
}

impl Holds {
    pub fn is_live(self) -> bool {
        self <= Holds::LiveFilling
    }
}

/// The stores that have some of `extents` and may keep it, most useful first. `unpromised_bytes` says
/// how empty a store is.
pub(super) fn holders(
    fleet: &Fleet,
    rules: &Rules,
    subject: &Subject,
    (extents, history): (Extents, &History),
    wants: &Wants,
    unpromised_bytes: impl Fn(Seat) -> u64,
) -> Vec<Holder> {
    let near_host = subject.host.and_then(|host| fleet.host(host));
    let mut holders: Vec<Holder> = Vec::with_capacity(4);
    let mut add = |store: &StoreId, holds: Holds| {
        let Some(seat) = fleet.seat(*store) else {
            return;
        };
        let place = fleet.place(seat);
        let awaited = match (rules.standing(place), holds) {
            (Standing::Fit, Holds::Ejected { since }) if !rules.reaches(*store) => {
                // Whoever calls it in vain goes on calling for as long as it would be waited for.
                match rules.awaited_until(since) {
                    Some(_) => None,
                    None => return,
                }
            }
            (Standing::Fit, _) => None,
            (Standing::Away { .. }, _) if holds.is_live() => None,
            // What is missing of a disk is so since it was ejected, however often its store came and went.
            (Standing::Away { .. }, Holds::Ejected { since }) => match rules.awaited_until(since) {
                Some(until) => Some(until),
                None => return,
            },
            (Standing::Away { until }, Holds::LeftEarly) => Some(until),
            (Standing::Away { .. } | Standing::Leaving | Standing::Gone, _) => return,
        };
        let known = holders.iter().any(|holder| holder.seat == seat);
        if !known && rules.allows(place.site) && !wants.off.contains(&seat) {
            holders.push(Holder {
                holds,
                awaited,
                elsewhere_than_vm: Some(place.at.host) != near_host,
                less_room: Reverse(unpromised_bytes(seat)),
                seat,
            });
        }
    };
    for entry in history.live() {
        let holds = if entry.whole {
            Holds::LiveWhole
        } else {
            Holds::LiveFilling
        };
        entry.stores.iter().for_each(|store| add(store, holds));
    }
    for entry in history.0.iter().filter(|entry| !entry.is_live()) {
        let stayed = history.live().any(|live| live.from == entry.from);
        let holds = if stayed {
            Holds::LeftEarly
        } else {
            Holds::Sealed
        };
        entry.stores.iter().for_each(|store| add(store, holds));
    }
    for retired in subject.retired {
        if retired.extents.iter().any(|part| inside(extents, *part)) {
            let since = retired.since;
            add(
                &retired.store,
                match retired.ejected {
                    true => Holds::Ejected { since },
                    false => Holds::Retired,
                },
            );
        }
    }
    holders.sort_unstable();
    holders
}
