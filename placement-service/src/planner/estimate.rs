//! What a plan costs: bytes over which link, how long, and what a write waits for meanwhile.
//!
//! The map does not say how full an extent is; the stores say what a disk occupies in each. A range is
//! taken to be as full as the store's other extents of the disk.

use super::fleet::{Fleet, Place, Site};
use super::plan::Crossing;
use super::rules::Rules;
use super::subject::Subject;
use replicator::words::{DiskRecord, Extents, History, MapRange, StoreId};
use std::collections::BTreeMap;
use std::time::Duration;

/// What filling `record` takes: what its ranges' live entries lack, copied once from the nearest
/// complete store, and from the first of the new ones to the others.
pub(super) fn crossings(
    fleet: &Fleet,
    rules: &Rules,
    subject: &Subject,
    record: &DiskRecord,
) -> Vec<Crossing> {
    let density = Density::of(subject);
    let near_host = subject.host.and_then(|host| fleet.host(host));
    let mut bytes: BTreeMap<(Site, Site), (u64, bool)> = BTreeMap::new();
    for range in &record.map {
        for (from, to, at_most) in hops(fleet, rules, subject, near_host, range) {
            let (amount, known) = density.bytes(&range.history, range.extents);
            let sum = bytes.entry((from, to)).or_default();
            sum.0 = sum.0.saturating_add(amount);
            sum.1 |= at_most || !known;
        }
    }
    let crossing = |((from, to), (bytes, at_most)): ((Site, Site), (u64, bool))| Crossing {
        from: fleet.name(from).clone(),
        to: fleet.name(to).clone(),
        bytes,
        at_most,
    };
    bytes.into_iter().map(crossing).collect()
}

/// From which site to which the blocks of a range go, and whether some are there already.
fn hops(
    fleet: &Fleet,
    rules: &Rules,
    subject: &Subject,
    near_host: Option<u32>,
    range: &MapRange,
) -> Vec<(Site, Site, bool)> {
    let filling = range.history.live().filter(|entry| !entry.whole);
    let filling = filling.flat_map(|entry| entry.stores.iter().copied());
    let mut targets: Vec<(&Place, bool)> = filling
        .filter_map(|store| Some((fleet.place(fleet.seat(store)?), has_some(subject, store))))
        .collect();
    let from_home = |place: &Place| rules.home.map(|home| fleet.distance(home, place.site));
    targets.sort_by_key(|(place, _)| {
        (
            Some(place.at.host) != near_host,
            from_home(place),
            place.store,
        )
    });
    let Some((first, _)) = targets.first().copied() else {
        return Vec::new();
    };
    let whole = range.history.0.iter().filter(|entry| entry.whole);
    let whole = whole.flat_map(|entry| entry.stores.iter().copied());
    let sources = whole.filter_map(|store| fleet.site_of(store));
    let Some(source) = sources.min_by_key(|site| (fleet.distance(first.site, *site), *site)) else {
        return Vec::new();
    };
    let hop = |(i, (place, has_some)): (usize, &(&Place, bool))| {
        let from = if i == 0 { source } else { first.site };
        (from, place.site, *has_some)
    };
    targets.iter().enumerate().map(hop).collect()
}

fn has_some(subject: &Subject, store: StoreId) -> bool {
    subject
        .allocated
        .get(&store)
        .is_some_and(|bytes| *bytes > 0)
}

/// How full the disk's extents are in each store.
struct Density {
    extent_bytes: u64,
    by_store: BTreeMap<StoreId, Fullness>,
}

struct Fullness {
    bytes: u64,
    extents: u64,
}

impl Density {
    fn of(subject: &Subject) -> Density {
        let mut by_store: BTreeMap<StoreId, Fullness> = BTreeMap::new();
        for range in &subject.record.map {
            let mut seen: Vec<StoreId> = Vec::with_capacity(4);
            for store in range.history.0.iter().flat_map(|entry| &entry.stores) {
                let Some(bytes) = subject.allocated.get(store) else {
                    continue;
                };
                if !seen.contains(store) {
                    seen.push(*store);
                    let new = Fullness {
                        bytes: *bytes,
                        extents: 0,
                    };
                    by_store.entry(*store).or_insert(new).extents +=
                        u64::from(range.extents.count());
                }
            }
        }
        Density {
            extent_bytes: subject.record.extent_size.bytes(),
            by_store,
        }
    }

    /// What the fullest of the complete stores has of `extents`, and whether any of them said.
    fn bytes(&self, history: &History, extents: Extents) -> (u64, bool) {
        let count = u64::from(extents.count());
        let all = count * self.extent_bytes;
        let whole = history.0.iter().filter(|entry| entry.whole);
        let known = whole
            .flat_map(|entry| &entry.stores)
            .filter_map(|store| self.by_store.get(store));
        let part = |full: &Fullness| {
            let bytes = u128::from(full.bytes) * u128::from(count) / u128::from(full.extents);
            bytes.min(u128::from(all)) as u64
        };
        match known.map(part).max() {
            Some(bytes) => (bytes, true),
            None => (all, false),
        }
    }
}

/// How long copying takes: each link at its measured rate or the policy's limit, whichever is less,
/// all links at the same time. None: nothing is known to bound it.
pub(super) fn time(fleet: &Fleet, rules: &Rules, crossings: &[Crossing]) -> Option<Duration> {
    let one = |crossing: &Crossing| {
        let (from, to) = (fleet.site(&crossing.from)?, fleet.site(&crossing.to)?);
        let measured = fleet.link(from, to).and_then(|link| link.bytes_per_second);
        // The limit is on what comes in from elsewhere; passing it on inside is part of that.
        let limit = rules.class.copy.limit_to(&crossing.to);
        let rate = measured.into_iter().chain(limit).min()?.max(1);
        Some(Duration::from_secs_f64(crossing.bytes as f64 / rate as f64))
    };
    crossings.iter().filter_map(one).max()
}

/// What a write waits for: the round trip from where the VM runs to the farthest member.
pub(super) fn write_round_trip(
    fleet: &Fleet,
    rules: &Rules,
    record: &DiskRecord,
) -> Option<Duration> {
    let home = rules.home?;
    let mut sites: Vec<Site> = Vec::new();
    for store in record.map.iter().flat_map(|range| range.history.members()) {
        let site = fleet.site_of(store)?;
        if !sites.contains(&site) {
            sites.push(site);
        }
    }
    let mut longest = None;
    for site in sites {
        let measured = fleet.link(home, site).map(|link| link.round_trip);
        // Inside the VM's own datacenter it is short; across it has to be known.
        if measured.is_none() && site != home {
            return None;
        }
        longest = longest.max(measured);
    }
    longest
}
