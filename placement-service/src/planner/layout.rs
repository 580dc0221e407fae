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

use super::fleet::{Fleet, Seat};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What the copies of one extent never share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Apart {
    Racks,
    Hosts,
}

/// A store with room for so many extents.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub seat: Seat,
    pub room: u64,
}

#[derive(Clone, Copy, Debug)]
struct Share {
    seat: Seat,
    extents: u64,
}

/// For each part of `0..row` the stores that its `copies` copies stand on; none: there is no such
/// placement. `offers` come in order of preference; `taken` are stores that all these extents have
/// already: their hosts, and as far as racks are kept apart their racks, are not used again.
pub(super) fn spread(
    fleet: &Fleet,
    offers: &[Offer],
    taken: &[Seat],
    row: u64,
    copies: u8,
    passes: &[Apart],
) -> Option<Vec<(Range<u64>, Vec<Seat>)>> {
    let shares = share_out(fleet, offers, taken, row, copies, passes)?;
    Some(lay_out(fleet, shares, row))
}

/// Gives stores their shares in order of preference. Whatever the order, the sum is the largest
/// possible: the bounds (store in host in rack) nest.
fn share_out(
    fleet: &Fleet,
    offers: &[Offer],
    taken: &[Seat],
    row: u64,
    copies: u8,
    passes: &[Apart],
) -> Option<Vec<Share>> {
    let mut missing = row * u64::from(copies);
    let mut by_host: BTreeMap<u32, u64> = BTreeMap::new();
    let mut by_rack: BTreeMap<u32, u64> = BTreeMap::new();
    for place in taken.iter().map(|seat| fleet.place(*seat)) {
        by_host.insert(place.host, row);
        by_rack.insert(place.rack, row);
    }
    let mut shares: Vec<Share> = offers
        .iter()
        .map(|offer| Share {
            seat: offer.seat,
            extents: 0,
        })
        .collect();
    // Racks are kept apart as far as they can be before hosts of one rack are put together.
    for pass in passes {
        for (share, offer) in shares.iter_mut().zip(offers) {
            let place = fleet.place(share.seat);
            let host = by_host.entry(place.host).or_default();
            let rack = by_rack.entry(place.rack).or_default();
            let bound = match pass {
                Apart::Racks => row.saturating_sub(*rack).min(row - *host),
                Apart::Hosts => row - *host,
            };
            let more = bound
                .min(offer.room.saturating_sub(share.extents))
                .min(missing);
            share.extents += more;
            *host += more;
            *rack += more;
            missing -= more;
        }
    }
    shares.retain(|share| share.extents > 0);
    (missing == 0).then_some(shares)
}

/// Cuts the line of shares into rows, and reads the columns.
fn lay_out(fleet: &Fleet, mut shares: Vec<Share>, row: u64) -> Vec<(Range<u64>, Vec<Seat>)> {
    // Racks, and hosts within them, in one piece each: what is next to itself on the line meets
    // itself in a column only if it is longer than a row.
    shares.sort_by_key(|share| {
        let place = fleet.place(share.seat);
        (place.rack, place.host, share.seat)
    });
    let mut spans = Vec::new();
    let mut cuts = BTreeSet::from([0, row]);
    let mut begin = 0;
    for share in &shares {
        assert!(share.extents <= row, "no share is longer than a row");
        let end = begin + share.extents;
        spans.push((begin..end, share.seat));
        cuts.insert(begin % row);
        begin = end;
    }
    assert!(begin % row == 0, "the shares fill whole rows");
    let cuts: Vec<u64> = cuts.into_iter().collect();
    let column = |at: u64| {
        let places = (0..begin / row).map(|r| r * row + at);
        let mut seats: Vec<Seat> = places
            .map(|place| {
                let span = spans.iter().find(|(span, _)| span.contains(&place));
                span.expect("the line has no gaps").1
            })
            .collect();
        seats.sort_unstable();
        seats
    };
    cuts.windows(2)
        .map(|pair| (pair[0]..pair[1], column(pair[0])))
        .collect()
}
