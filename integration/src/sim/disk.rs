//! One disk of the simulation: its record at the placement service, and what its guests were told.

use super::oracle::Oracle;
use super::placement::Placement;
use replicator::words::{DiskId, StoreId};
use std::collections::BTreeMap;

pub struct Disk {
    pub id: DiskId,
    pub placement: Placement,
    pub oracle: Oracle,
    /// Replicas that wait for being dropped.
    pub drops_pending: u64,
    /// It was taken over, and not settled yet.
    pub settling: bool,
    /// Losses of each store when it was last known to be whole: when an epoch was opened with it.
    pub whole_at: BTreeMap<StoreId, u64>,
}

impl Disk {
    pub fn new(number: usize, extents: u32, members: &[StoreId]) -> Disk {
        let id = DiskId::from_u128(1 + number as u128);
        Disk {
            id,
            placement: Placement::new(id, extents, members),
            // No two disks have a write of the same number: what stands on the wrong one is noticed.
            oracle: Oracle::after((number as u64) << 40),
            drops_pending: 0,
            settling: false,
            whole_at: BTreeMap::new(),
        }
    }
}
