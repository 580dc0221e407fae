//! Whether a copy may be deleted now (I7).

use super::ranges::overlap;
use super::{Planner, Subject};
use crate::policy::Health;
use replicator::words::{Extents, StoreId};

impl Planner<'_> {
    /// The stores that have `extents` instead of `store`, for the record of the deletion: no map names
    /// the copy any more, and those that it names are whole and up. Otherwise why not, in words.
    pub fn may_delete(
        &self,
        subject: &Subject,
        store: StoreId,
        extents: Extents,
    ) -> Result<Vec<StoreId>, String> {
        let mut instead = Vec::new();
        let map = subject.record.map.iter();
        for range in map.filter(|range| overlap(range.extents, extents)) {
            let (part, history) = (range.extents, &range.history);
            if history.0.iter().any(|entry| entry.has(store)) {
                return Err(format!("extents {part} are still on it, as their map says"));
            }
            if !history.is_whole() {
                return Err(format!("the copies of extents {part} are not complete"));
            }
            instead.extend(history.members());
        }
        instead.sort_unstable();
        instead.dedup();
        let up = |store: StoreId| {
            let seat = self.fleet.seat(store);
            seat.is_some_and(|seat| self.fleet.place(seat).health == Health::Up)
        };
        match instead.iter().find(|member| !up(**member)) {
            Some(down) => Err(format!("store {down}, which has them instead, is not up")),
            None => Ok(instead),
        }
    }
}
