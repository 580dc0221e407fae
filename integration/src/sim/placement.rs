//! The placement service of the simulation: one record, changed by compare-and-swap with the real
//! rules; what it wants of the disk's writers; and which replicas nobody names any more.

use replicator::plant::{Plant, planted};
use replicator::words::{
    Change, DiskId, DiskName, DiskRecord, Entry, Epoch, Extent, ExtentSize, Extents, Generation,
    History, MapRange, NewSet, Revision, State, StoreId, Version,
};
use replicator::writer::{FillOrders, Orders, SwapOutcome};
use std::collections::BTreeMap;

pub const GENERATION: Generation = Generation(0);
pub const EXTENT_BYTES: u64 = ExtentSize::MIN_BYTES;

pub struct Placement {
    pub record: DiskRecord,
    pub goals: Goals,
    /// The placement service has not made it yet.
    pub is_new: bool,
}

/// Who shall have each extent.
#[derive(Clone, Default)]
pub struct Goals {
    /// Extents that are not named keep what they have.
    pub members: BTreeMap<Extent, Vec<StoreId>>,
    /// What `members` was before, latest last: a move is cancelled by wanting that again.
    pub before: Vec<BTreeMap<Extent, Vec<StoreId>>>,
    pub seed: Vec<NewSet>,
    pub fill: FillOrders,
}

/// A replica that the record names no more, and that may go unless its store has joined again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retired {
    /// Which disk of the world.
    pub disk: usize,
    pub store: StoreId,
    pub extent: Extent,
    /// Whoever joined at this epoch or later did so after the record had let go of it.
    pub joined_below: Epoch,
}

impl Placement {
    pub fn new(id: DiskId, extents: u32, stores: &[StoreId]) -> Placement {
        let epoch = Epoch::first(GENERATION);
        Placement {
            goals: Goals::default(),
            is_new: true,
            record: DiskRecord {
                id,
                name: DiskName::new(format!("web{}", id.as_u128())).expect("a fine name"),
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

    /// As the placement service does it: the revision first, then the change. In the same
    /// transaction it notes which replicas nobody needs any more.
    pub fn swap(&mut self, expected: Revision, change: &Change) -> (SwapOutcome, Vec<Retired>) {
        if expected != self.record.revision {
            return (
                SwapOutcome::Conflict(Box::new(self.record.clone())),
                Vec::new(),
            );
        }
        match self.record.apply(GENERATION, change) {
            Ok(next) => {
                assert!(next.revision > self.record.revision, "I8");
                let retired = retired(self.number(), &self.record, &next);
                self.record = next;
                (SwapOutcome::Done(Box::new(self.record.clone())), retired)
            }
            Err(why) => (SwapOutcome::Refused(why), Vec::new()),
        }
    }

    fn number(&self) -> usize {
        self.record.id.as_u128() as usize - 1
    }

    /// The history of one extent.
    pub fn history(&self, extent: Extent) -> &History {
        history(&self.record, extent)
    }

    /// What it orders every writer of the disk to do.
    pub fn orders(&self) -> Orders {
        Orders {
            sets: self.sets(),
            seed: self.goals.seed.clone(),
            fill: self.goals.fill,
            ..Orders::default()
        }
    }

    /// The members that it wants; neighbours that want the same in one set.
    pub fn sets(&self) -> Vec<NewSet> {
        let mut sets: Vec<NewSet> = Vec::new();
        for (extent, stores) in &self.goals.members {
            let next = Extent(extent.0 + 1);
            match sets.last_mut() {
                Some(set) if set.extents.end == *extent && set.stores == *stores => {
                    set.extents.end = next;
                }
                _ => sets.push(NewSet {
                    extents: Extents::new(*extent, next),
                    stores: stores.clone(),
                }),
            }
        }
        sets
    }

    /// Every extent has the members that are wanted, and all of them are whole.
    pub fn is_settled(&self) -> bool {
        let wanted = self.goals.members.iter().all(|(extent, stores)| {
            let mut members: Vec<StoreId> = self.history(*extent).members().collect();
            members.sort_unstable();
            members == *stores
        });
        wanted && self.is_whole()
    }

    pub fn is_whole(&self) -> bool {
        self.record.map.iter().all(|range| range.history.is_whole())
    }

    /// Whether the store is to have a copy of it ahead.
    pub fn seeds(&self, store: StoreId, extent: Extent) -> bool {
        let mut sets = self.goals.seed.iter();
        sets.any(|set| set.extents.contains(extent) && set.stores.contains(&store))
    }

    pub fn names(&self, store: StoreId, extent: Extent) -> bool {
        named(self.history(extent), store)
    }
}

fn retired(disk: usize, before: &DiskRecord, after: &DiskRecord) -> Vec<Retired> {
    let mut retired = Vec::new();
    for extent in before.extents().first.0..before.extents().end.0 {
        let extent = Extent(extent);
        let (was, is) = (history(before, extent), history(after, extent));
        for store in before.stores() {
            let stays = match planted(Plant::DeletedBeforeComplete) {
                false => named(is, store),
                true => is.member(store).is_some(),
            };
            if named(was, store) && !stays {
                retired.push(Retired {
                    disk,
                    store,
                    extent,
                    joined_below: after.epoch.next(GENERATION),
                });
            }
        }
    }
    retired
}

fn history(record: &DiskRecord, extent: Extent) -> &History {
    let range = record
        .map
        .iter()
        .find(|range| range.extents.contains(extent));
    &range.expect("an extent of the disk").history
}

fn named(history: &History, store: StoreId) -> bool {
    history.0.iter().any(|entry| entry.has(store))
}
