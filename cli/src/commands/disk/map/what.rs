//! What a store has of an extent, and of a column of several.

use placement_service::api::{DiskMap, EntryView};
use replicator::words::{Extent, Extents, StoreId};

/// From nothing to what wants attention most: a column shows the last of what is in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Copy {
    None,
    /// In the write set, and it has everything.
    Whole,
    /// No map names it; it is deleted in time.
    Stale,
    /// Not in the write set; older writes are read from it.
    Sealed,
    /// In the write set, and being filled.
    Filling,
}

/// What each store of the map has of each column of `per_column` extents.
pub struct Columns<'a> {
    map: &'a DiskMap,
    pub extents: u32,
    pub per_column: u32,
}

impl<'a> Columns<'a> {
    pub fn new(map: &'a DiskMap, widest: usize) -> Columns<'a> {
        let extents = map.ranges.last().map_or(0, |range| range.extents.end.0);
        let widest = u32::try_from(widest.max(1)).unwrap_or(u32::MAX);
        Columns {
            map,
            extents,
            per_column: extents.div_ceil(widest).max(1),
        }
    }

    pub fn count(&self) -> u32 {
        self.extents.div_ceil(self.per_column)
    }

    /// A row: what `store` has, column by column.
    pub fn row(&self, store: StoreId) -> Vec<Copy> {
        let mut row = vec![Copy::None; self.count() as usize];
        for range in &self.map.ranges {
            let history = &range.history;
            let copy = history
                .iter()
                .filter(|entry| entry.stores.contains(&store))
                .map(of)
                .min_by_key(|copy| *copy == Copy::Sealed);
            if let Some(copy) = copy {
                self.mark(&mut row, range.extents, copy);
            }
        }
        for retired in self.map.retired.iter().filter(|copy| copy.store == store) {
            for extents in &retired.extents {
                self.mark(&mut row, *extents, Copy::Stale);
            }
        }
        row
    }

    fn mark(&self, row: &mut [Copy], extents: Extents, copy: Copy) {
        if extents.count() == 0 {
            return;
        }
        let column = |Extent(extent): Extent| (extent / self.per_column) as usize;
        let last = column(Extent(extents.end.0 - 1)).min(row.len().saturating_sub(1));
        let Some(columns) = row.get_mut(column(extents.first)..=last) else {
            return;
        };
        columns
            .iter_mut()
            .for_each(|there| *there = copy.max(*there));
    }
}

fn of(entry: &EntryView) -> Copy {
    match (entry.until, entry.whole) {
        (Some(_), _) => Copy::Sealed,
        (None, true) => Copy::Whole,
        (None, false) => Copy::Filling,
    }
}
