//! Spreads copies of a line of extents over stores, none of which need hold all of it.
//!
//! Each store is given a share of extents, at most one disk's worth a host, and a rack where racks
//! are kept apart. The shares are laid end to end and the line is cut into as many equal rows as
//! copies are wanted:
//!
//! ```text
//!  extents      0         1         2         3        (4 extents, 2 copies: a line of 8)
//!  row 1    | A (3) .. ......... ......... | B (3) ..
//!  row 2    | ........ ......... | C (2) .. ........
//! ```
//!
//! A column is one extent's copies. No share is longer than a row, so no store, and no rack or host
//! that was bounded so, comes twice in a column (McNaughton's wrap-around rule, 1959); and where a
//! placement exists at all, this finds one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What the copies of one extent never share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Apart {
    Racks,
    Hosts,
}

/// Where a store stands, in numbers that are unique in the fleet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Spot {
    pub rack: u32,
    pub host: u32,
}

/// A store with room for so many extents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer<Store> {
    pub store: Store,
    pub at: Spot,
    pub room: u64,
}

/// For each part of `0..row` the stores that its `copies` copies stand on; none: there is no such
/// placement. `offers` come in order of preference; `taken` are where all these extents have copies
/// already: those hosts, and as far as racks are kept apart those racks, are not used again. Racks
/// are kept apart as far as they can be in each of `passes` before the next one.
pub(crate) fn spread<Store: Copy + Ord>(
    offers: &[Offer<Store>],
    taken: &[Spot],
    row: u64,
    copies: u8,
    passes: &[Apart],
) -> Option<Vec<(Range<u64>, Vec<Store>)>> {
    let shares = share_out(offers, taken, row, copies, passes)?;
    Some(lay_out(shares, row))
}

/// Gives stores their shares in order of preference. Whatever the order, the sum is the largest
/// possible: the bounds (store in host in rack) nest.
fn share_out<Store: Copy>(
    offers: &[Offer<Store>],
    taken: &[Spot],
    row: u64,
    copies: u8,
    passes: &[Apart],
) -> Option<Vec<Offer<Store>>> {
    let mut missing = row * u64::from(copies);
    let mut by_host: BTreeMap<u32, u64> = BTreeMap::new();
    let mut by_rack: BTreeMap<u32, u64> = BTreeMap::new();
    for spot in taken {
        by_host.insert(spot.host, row);
        by_rack.insert(spot.rack, row);
    }
    // A share is what an offer's room shrinks to.
    let mut shares: Vec<Offer<Store>> = offers
        .iter()
        .map(|offer| Offer { room: 0, ..*offer })
        .collect();
    for pass in passes {
        for (share, offer) in shares.iter_mut().zip(offers) {
            let host = by_host.entry(share.at.host).or_default();
            let rack = by_rack.entry(share.at.rack).or_default();
            let bound = match pass {
                Apart::Racks => row.saturating_sub(*rack).min(row - *host),
                Apart::Hosts => row - *host,
            };
            let more = bound.min(offer.room - share.room).min(missing);
            share.room += more;
            *host += more;
            *rack += more;
            missing -= more;
        }
    }
    shares.retain(|share| share.room > 0);
    (missing == 0).then_some(shares)
}

/// Cuts the line of shares into rows, and reads the columns.
fn lay_out<Store: Copy + Ord>(
    mut shares: Vec<Offer<Store>>,
    row: u64,
) -> Vec<(Range<u64>, Vec<Store>)> {
    // Racks, and hosts within them, in one piece each: what is next to itself on the line meets
    // itself in a column only if it is longer than a row.
    shares.sort_by_key(|share| (share.at, share.store));
    let mut spans = Vec::new();
    let mut cuts = BTreeSet::from([0, row]);
    let mut begin = 0;
    for share in &shares {
        assert!(share.room <= row, "no share is longer than a row");
        let end = begin + share.room;
        spans.push((begin..end, share.store));
        cuts.insert(begin % row);
        begin = end;
    }
    assert!(begin % row == 0, "the shares fill whole rows");
    let cuts: Vec<u64> = cuts.into_iter().collect();
    let column = |at: u64| {
        let places = (0..begin / row).map(|r| r * row + at);
        let mut stores: Vec<Store> = places
            .map(|place| {
                let span = spans.iter().find(|(span, _)| span.contains(&place));
                span.expect("the line has no gaps").1
            })
            .collect();
        stores.sort_unstable();
        stores
    };
    cuts.windows(2)
        .map(|pair| (pair[0]..pair[1], column(pair[0])))
        .collect()
}
