//! The fleet as plain data: what policies are checked against and plans are made over.
//!
//! The service fills it in from its catalog, the nodes' reports and the measured links.

use super::units::UnixSeconds;
use replicator::words::{DatacenterName, HostName, RackName, StoreId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Topology {
    pub datacenters: BTreeSet<DatacenterName>,
    pub hosts: BTreeMap<HostName, HostPlace>,
    pub stores: BTreeMap<StoreId, StorePlace>,
    /// What was measured between two datacenters, or inside one.
    pub links: BTreeMap<(DatacenterName, DatacenterName), Link>,
}

/// Where a host stands. A label that is missing is an error to say, never a place of its own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostPlace {
    pub datacenter: Option<DatacenterName>,
    pub rack: Option<RackName>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StorePlace {
    pub host: HostName,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// What the disks with replicas there promise, and have not written yet.
    pub unwritten_bytes: u64,
    pub health: Health,
    /// It is to be emptied: it serves what it has, gets nothing new, and its copies go elsewhere.
    pub evacuating: bool,
}

/// What may be asked of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    Up,
    /// Not heard of, or in trouble, since then: it keeps what it has and gets nothing new. When that has
    /// lasted for the `repair-after` of a disk's policy, its copies of that disk are made anew elsewhere.
    Silent {
        since: UnixSeconds,
    },
    /// Refused, or declared lost: its copies are made anew elsewhere at once.
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Link {
    pub round_trip: Duration,
    /// As last seen under load; none: never loaded yet.
    pub bytes_per_second: Option<u64>,
}

impl Topology {
    pub fn place_of(&self, store: StoreId) -> Option<(&StorePlace, &HostPlace)> {
        let store = self.stores.get(&store)?;
        Some((store, self.hosts.get(&store.host)?))
    }

    pub fn datacenter_of(&self, store: StoreId) -> Option<&DatacenterName> {
        self.place_of(store)?.1.datacenter.as_ref()
    }

    /// Measured in either direction.
    pub fn link(&self, from: &DatacenterName, to: &DatacenterName) -> Option<Link> {
        self.links
            .get(&(from.clone(), to.clone()))
            .or_else(|| self.links.get(&(to.clone(), from.clone())))
            .copied()
    }

    /// Hosts and stores whose place is not known, in words.
    pub fn unlabelled(&self) -> Vec<String> {
        let host = |name: &HostName, place: &HostPlace| {
            let missing = match (&place.datacenter, &place.rack) {
                (Some(_), Some(_)) => return None,
                (None, Some(_)) => "datacenter",
                (Some(_), None) => "rack",
                (None, None) => "datacenter and no rack",
            };
            Some(format!("host {name} has no {missing}"))
        };
        let hosts = self.hosts.iter();
        let stores = self.stores.iter();
        hosts
            .filter_map(|(name, place)| host(name, place))
            .chain(stores.filter_map(|(id, store)| {
                let known = self.hosts.contains_key(&store.host);
                (!known)
                    .then(|| format!("store {id} is on host {}, which nobody placed", store.host))
            }))
            .collect()
    }
}
