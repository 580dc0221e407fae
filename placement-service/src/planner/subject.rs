//! What the planner is told of one disk.

use crate::policy::{ClassName, Home, Pin, UnixSeconds};
use replicator::words::{DiskRecord, Extents, HostName, StoreId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A disk as it is, and whose rules it is under.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub record: &'a DiskRecord,
    /// None: its datacenter's default class.
    pub class: Option<&'a ClassName>,
    pub home: &'a Home,
    /// Where its VM runs, in the home datacenter: a new near copy goes to its store if it can.
    pub host: Option<&'a HostName>,
    /// All that were made for it; those that have ended are passed over.
    pub pins: &'a [Pin],
    /// Bytes that it occupies in each store, as they last said.
    pub allocated: &'a BTreeMap<StoreId, u64>,
    /// Copies that its map names no more.
    pub retired: &'a [Retired],
    /// Stores that its copies are to leave for others, as if they were evacuated for this disk alone.
    pub leaving: &'a [StoreId],
    /// Stores that its writer lately called in vain, whatever else is heard of them.
    pub unreachable: &'a [StoreId],
}

/// A copy that was made superfluous and is not deleted yet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Retired {
    pub store: StoreId,
    pub extents: Vec<Extents>,
    pub since: UnixSeconds,
    /// It was not made superfluous: its store missed a write, and the copy has been missing since.
    pub ejected: bool,
}
