//! Cuts the line of shares into rows, and reads the columns.

use super::Share;
use replicator::words::{Extent, Extents, StoreId};
use std::collections::BTreeSet;

/// `shares` add up to a multiple of `row`, and none is longer than `row`.
pub(super) fn lay_out(mut shares: Vec<Share<'_>>, row: u32) -> Vec<(Extents, Vec<StoreId>)> {
    // Racks, and hosts within them, in one piece each: what is next to itself on the line meets
    // itself in a column only if it is longer than a row.
    shares.sort_by(|a, b| position(a).cmp(&position(b)));
    let row = u64::from(row);
    let mut spans = Vec::new();
    let mut cuts = BTreeSet::from([0, row]);
    let mut begin = 0;
    for share in &shares {
        assert!(share.extents <= row, "no share is longer than a row");
        let end = begin + share.extents;
        spans.push((begin..end, share.of.store));
        cuts.insert(begin % row);
        begin = end;
    }
    assert!(begin % row == 0, "the shares fill whole rows");
    let cuts: Vec<u64> = cuts.into_iter().collect();
    let mut ranges: Vec<(Extents, Vec<StoreId>)> = Vec::new();
    for pair in cuts.windows(2) {
        let column = (0..begin / row).map(|r| r * row + pair[0]);
        let mut stores: Vec<StoreId> = column
            .map(|place| {
                let span = spans.iter().find(|(span, _)| span.contains(&place));
                span.expect("the line has no gaps").1
            })
            .collect();
        stores.sort_unstable();
        let extents = Extents::new(Extent(pair[0] as u32), Extent(pair[1] as u32));
        match ranges.last_mut() {
            Some((before, same)) if *same == stores => before.end = extents.end,
            _ => ranges.push((extents, stores)),
        }
    }
    ranges
}

fn position<'a>(share: &Share<'a>) -> impl Ord + use<'a> {
    let of = share.of;
    (&of.datacenter, &of.rack, &of.host, of.store)
}
