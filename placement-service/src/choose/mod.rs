//! Where a new disk's copies go: a pure function of what the stores have and what is wished for.
//!
//! Copies never share a host. They share a rack only as far as nothing else is possible, and the
//! choice then says so. Within that, stores near the VM come first, then those with most room; and
//! a disk is cut into ranges only when no set of stores can hold it whole.

use crate::planner::layout::{Apart, Offer, Spot, spread};
use replicator::words::{DatacenterName, Extent, ExtentSize, Extents, HostName, RackName, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

#[cfg(test)]
mod tests;

/// More copies than this help nobody.
pub const MAX_COPIES: u8 = 8;
/// A store is not planned beyond this part of its capacity: the log needs room to be cleaned.
const USABLE_PERCENT: u64 = 90;
/// Disks are thin. What a disk was promised but has not written yet counts a quarter: several disks
/// may promise more than there is, as long as a quarter of it would fit.
const UNWRITTEN_WEIGHT: u64 = 4;

/// A store that may be chosen: it is up, and not refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub store: StoreId,
    pub host: HostName,
    pub rack: RackName,
    pub datacenter: DatacenterName,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// What the disks with replicas there promise, and have not written yet.
    pub unwritten_bytes: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    pub bytes: u64,
    pub extent_size: ExtentSize,
    pub copies: u8,
    /// Only stores of this datacenter.
    pub datacenter: Option<DatacenterName>,
    /// A copy on this host if possible, the others in its datacenter if possible.
    pub near: Option<HostName>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// All extents, in order, each with `copies` stores.
    pub ranges: Vec<(Extents, Vec<StoreId>)>,
    pub notes: Vec<Note>,
}

/// What the disk's owner should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    SharedRack {
        racks: Vec<String>,
        extents: u32,
        of: u32,
    },
    AcrossDatacenters {
        datacenters: Vec<DatacenterName>,
    },
    Split {
        ranges: usize,
    },
    NotNear {
        host: HostName,
    },
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Impossible {
    #[error("a disk has 1 to {MAX_COPIES} copies, not {copies}")]
    Copies { copies: u8 },
    #[error("{copies} copies need {copies} hosts with stores that are up, and there are {hosts}")]
    TooFewHosts { copies: u8, hosts: u64 },
    #[error(
        "the stores that are up have no room for {copies} copies of {bytes} bytes; the largest disk that fits now has {largest_bytes} bytes"
    )]
    TooLarge {
        copies: u8,
        bytes: u64,
        largest_bytes: u64,
    },
}

pub fn choose(candidates: &[Candidate], wish: &Wish) -> Result<Choice, Impossible> {
    if wish.copies == 0 || wish.copies > MAX_COPIES {
        return Err(Impossible::Copies {
            copies: wish.copies,
        });
    }
    let mut allowed: Vec<&Candidate> = candidates
        .iter()
        .filter(|c| {
            wish.datacenter
                .as_ref()
                .is_none_or(|dc| *dc == c.datacenter)
        })
        .collect();
    prefer(&mut allowed, wish);
    let racks_then_hosts: [&[Apart]; 2] = [&[Apart::Racks], &[Apart::Racks, Apart::Hosts]];
    let ranges = racks_then_hosts
        .into_iter()
        .find_map(|passes| place(&allowed, wish, passes))
        .ok_or_else(|| why_not(&allowed, wish))?;
    let notes = notes(&ranges, candidates, wish);
    Ok(Choice { ranges, notes })
}

/// Near first, then the near host's datacenter, then most room; ties by id, so that the same
/// question always has the same answer.
fn prefer(candidates: &mut [&Candidate], wish: &Wish) {
    let near_datacenter = candidates
        .iter()
        .find(|c| Some(&c.host) == wish.near.as_ref())
        .map(|c| c.datacenter.clone());
    candidates.sort_by_key(|c| {
        (
            Some(&c.host) != wish.near.as_ref(),
            Some(&c.datacenter) != near_datacenter.as_ref(),
            std::cmp::Reverse(room(c, wish.extent_size)),
            c.store,
        )
    });
}

/// All extents: in one datacenter if one can hold them, the preferred one first, because a write waits
/// for the farthest copy.
fn place(
    allowed: &[&Candidate],
    wish: &Wish,
    passes: &[Apart],
) -> Option<Vec<(Extents, Vec<StoreId>)>> {
    let offers = offers(allowed, wish.extent_size);
    let mut datacenters: Vec<&DatacenterName> = Vec::new();
    for candidate in allowed {
        if !datacenters.contains(&&candidate.datacenter) {
            datacenters.push(&candidate.datacenter);
        }
    }
    let inside = |dc: &DatacenterName| -> Vec<Offer<StoreId>> {
        let there = allowed
            .iter()
            .zip(&offers)
            .filter(|(c, _)| c.datacenter == *dc);
        there.map(|(_, offer)| *offer).collect()
    };
    let row = u64::from(extents_of(wish));
    let columns = datacenters
        .into_iter()
        .map(inside)
        .chain([offers.clone()])
        .find_map(|offers| spread(&offers, &[], row, wish.copies, passes))?;
    let mut ranges: Vec<(Extents, Vec<StoreId>)> = Vec::new();
    for (span, stores) in columns {
        let extents = Extents::new(Extent(span.start as u32), Extent(span.end as u32));
        match ranges.last_mut() {
            Some((before, same)) if *same == stores => before.end = extents.end,
            _ => ranges.push((extents, stores)),
        }
    }
    Some(ranges)
}

fn offers(allowed: &[&Candidate], extent_size: ExtentSize) -> Vec<Offer<StoreId>> {
    let mut racks: BTreeMap<(&DatacenterName, &RackName), u32> = BTreeMap::new();
    let mut hosts: BTreeMap<&HostName, u32> = BTreeMap::new();
    let mut offers = Vec::with_capacity(allowed.len());
    for candidate in allowed {
        let (rack, host) = (racks.len() as u32, hosts.len() as u32);
        let at = Spot {
            rack: *racks
                .entry((&candidate.datacenter, &candidate.rack))
                .or_insert(rack),
            host: *hosts.entry(&candidate.host).or_insert(host),
        };
        offers.push(Offer {
            store: candidate.store,
            at,
            room: room(candidate, extent_size),
        });
    }
    offers
}

/// How many extents of one new disk a store may be given.
fn room(candidate: &Candidate, extent_size: ExtentSize) -> u64 {
    let Candidate {
        capacity_bytes,
        used_bytes,
        unwritten_bytes,
        ..
    } = candidate;
    free_bytes(*capacity_bytes, *used_bytes, *unwritten_bytes) / extent_size.bytes()
}

/// How many bytes of disks may still be promised on a store of this capacity, of which so much is
/// used and so much promised.
pub(crate) fn free_bytes(capacity_bytes: u64, used_bytes: u64, unwritten_bytes: u64) -> u64 {
    let unpromised = unpromised_bytes(capacity_bytes, used_bytes, unwritten_bytes);
    // The disk alone must fit when all of it is written, and with what the others promise a part of it.
    let free = unpromised_bytes(capacity_bytes, used_bytes, 0);
    free.min(unpromised.saturating_mul(UNWRITTEN_WEIGHT))
}

/// What a copy weighs of which so much is written and so much is only promised.
pub(crate) fn weight_bytes(written_bytes: u64, unwritten_bytes: u64) -> u64 {
    written_bytes.saturating_add(unwritten_bytes / UNWRITTEN_WEIGHT)
}

/// What is left of a store when its promises are counted for what they weigh.
pub(crate) fn unpromised_bytes(capacity_bytes: u64, used_bytes: u64, unwritten_bytes: u64) -> u64 {
    let usable = capacity_bytes / 100 * USABLE_PERCENT;
    let free = usable.saturating_sub(used_bytes);
    free.saturating_sub(unwritten_bytes / UNWRITTEN_WEIGHT)
}

fn extents_of(wish: &Wish) -> u32 {
    wish.extent_size.count(wish.bytes)
}

fn why_not(allowed: &[&Candidate], wish: &Wish) -> Impossible {
    let mut by_host: BTreeMap<&HostName, u64> = BTreeMap::new();
    for candidate in allowed {
        *by_host.entry(&candidate.host).or_default() += room(candidate, wish.extent_size);
    }
    if by_host.len() < usize::from(wish.copies) {
        return Impossible::TooFewHosts {
            copies: wish.copies,
            hosts: by_host.len() as u64,
        };
    }
    // A disk of n extents fits if the hosts, n extents each at most, hold `copies` times n. What
    // fits stays possible with fewer extents, so the largest is found by halving.
    let fits = |n: u64| {
        let held: u64 = by_host.values().map(|room| (*room).min(n)).sum();
        held >= n * u64::from(wish.copies)
    };
    let (mut fits_at, mut too_many) = (0, u64::from(extents_of(wish)));
    while too_many - fits_at > 1 {
        let middle = fits_at + (too_many - fits_at) / 2;
        if fits(middle) {
            fits_at = middle;
        } else {
            too_many = middle;
        }
    }
    Impossible::TooLarge {
        copies: wish.copies,
        bytes: wish.bytes,
        largest_bytes: fits_at * wish.extent_size.bytes(),
    }
}

fn notes(ranges: &[(Extents, Vec<StoreId>)], candidates: &[Candidate], wish: &Wish) -> Vec<Note> {
    let by_id: BTreeMap<StoreId, &Candidate> = candidates.iter().map(|c| (c.store, c)).collect();
    let mut shared = BTreeSet::new();
    let mut shared_extents = 0;
    let mut datacenters = BTreeSet::new();
    let mut near_everywhere = true;
    for (extents, stores) in ranges {
        let mut racks = BTreeSet::new();
        let mut shares_rack = false;
        for candidate in stores.iter().map(|store| by_id[store]) {
            datacenters.insert(candidate.datacenter.clone());
            if !racks.insert((&candidate.datacenter, &candidate.rack)) {
                shared.insert(format!("{}/{}", candidate.datacenter, candidate.rack));
                shares_rack = true;
            }
        }
        shared_extents += if shares_rack { extents.count() } else { 0 };
        near_everywhere &= stores
            .iter()
            .any(|store| Some(&by_id[store].host) == wish.near.as_ref());
    }
    let mut notes = Vec::new();
    if !shared.is_empty() {
        notes.push(Note::SharedRack {
            racks: shared.into_iter().collect(),
            extents: shared_extents,
            of: extents_of(wish),
        });
    }
    if datacenters.len() > 1 {
        notes.push(Note::AcrossDatacenters {
            datacenters: datacenters.into_iter().collect(),
        });
    }
    if ranges.len() > 1 {
        notes.push(Note::Split {
            ranges: ranges.len(),
        });
    }
    if let Some(host) = wish.near.clone().filter(|_| !near_everywhere) {
        notes.push(Note::NotNear { host });
    }
    notes
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::SharedRack { racks, extents, of } => write!(
                f,
                "copies of {extents} of {of} extents share a rack ({}), because no other stores have room: the loss of that rack loses them",
                racks.join(", ")
            ),
            Note::AcrossDatacenters { datacenters } => {
                let names: Vec<_> = datacenters.iter().map(|dc| dc.as_str()).collect();
                write!(
                    f,
                    "the copies stand in several datacenters ({}): each write waits for the way between them",
                    names.join(", ")
                )
            }
            Note::Split { ranges } => write!(
                f,
                "no set of stores could hold the whole disk: it is split into {ranges} ranges"
            ),
            Note::NotNear { host } => write!(
                f,
                "{host} has no store with room for all of it: some reads will cross the network"
            ),
        }
    }
}
