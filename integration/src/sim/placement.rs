//! The placement map of the simulation: one record, changed by compare-and-swap with the real rules.

use replicator::words::{
    Change, DiskName, DiskRecord, Entry, Epoch, Extent, ExtentSize, Extents, Generation, History,
    MapRange, Revision, State, StoreId, Version,
};
use replicator::writer::SwapOutcome;

pub const GENERATION: Generation = Generation(0);
pub const EXTENT_BYTES: u64 = ExtentSize::MIN_BYTES;

pub struct Placement {
    pub record: DiskRecord,
}

impl Placement {
    pub fn new(extents: u32, stores: &[StoreId]) -> Placement {
        let epoch = Epoch::first(GENERATION);
        Placement {
            record: DiskRecord {
                id: super::store_node::DISK,
                name: DiskName::new("web1").expect("a fine name"),
                bytes: u64::from(extents) * EXTENT_BYTES,
                extent_size: ExtentSize::new(EXTENT_BYTES).expect("a legal size"),
                copies: 2,
                revision: Revision(0),
                epoch,
                even_below: epoch,
                state: State::Closed {
                    last: Version::ZERO,
                    successor: None,
                },
                map: vec![MapRange {
                    extents: Extents::new(Extent(0), Extent(extents)),
                    history: History(vec![Entry::whole(epoch, stores.iter().copied())]),
                }],
            },
        }
    }

    /// As the placement service does it: the revision first, then the change.
    pub fn swap(&mut self, expected: Revision, change: &Change) -> SwapOutcome {
        if expected != self.record.revision {
            return SwapOutcome::Conflict(Box::new(self.record.clone()));
        }
        match self.record.apply(GENERATION, change) {
            Ok(next) => {
                assert!(next.revision > self.record.revision, "I8");
                self.record = next;
                SwapOutcome::Done(Box::new(self.record.clone()))
            }
            Err(why) => SwapOutcome::Refused(why),
        }
    }
}
