//! The topology with names replaced by numbers, a [`Seat`] for a store and a [`Site`] for a datacenter:
//! planning ten thousand disks compares no text.

use super::layout::Spot;
use crate::choose::{free_bytes, unpromised_bytes};
use crate::policy::{Health, Link, Topology};
use replicator::words::{DatacenterName, HostName, RackName, StoreId};
use std::collections::BTreeMap;
use std::time::Duration;

/// A datacenter of the fleet, by its place in the order of names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Site(pub u16);

/// A store of the fleet, by its place in the order of ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Seat(pub u32);

/// Where a store stands.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub store: StoreId,
    pub site: Site,
    pub at: Spot,
    pub health: Health,
    pub evacuating: bool,
    capacity_bytes: u64,
    used_bytes: u64,
    unwritten_bytes: u64,
}

pub(super) struct Fleet {
    places: Vec<Place>,
    sites: Vec<DatacenterName>,
    hosts: Vec<HostName>,
    /// Row by row, from each site to each.
    links: Vec<Option<Link>>,
}

impl Place {
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }
}

impl Fleet {
    /// Stores whose place is not known are left out: nothing is planned onto them.
    pub fn new(topology: &Topology) -> Fleet {
        // A host may name a datacenter that nobody made yet; that it is there is enough.
        let labels = topology.hosts.values().filter_map(|h| h.datacenter.clone());
        let mut sites: Vec<DatacenterName> =
            topology.datacenters.iter().cloned().chain(labels).collect();
        sites.sort_unstable();
        sites.dedup();
        let hosts: Vec<HostName> = topology.hosts.keys().cloned().collect();
        let mut racks: BTreeMap<(Site, &RackName), u32> = BTreeMap::new();
        let mut places = Vec::with_capacity(topology.stores.len());
        for (id, store) in &topology.stores {
            let Some((host, place)) = topology.hosts.get_key_value(&store.host) else {
                continue;
            };
            let (Some(datacenter), Some(rack)) = (&place.datacenter, &place.rack) else {
                continue;
            };
            let site = sites
                .binary_search(datacenter)
                .expect("every label is a site");
            let site = Site(site as u16);
            let next = racks.len() as u32;
            places.push(Place {
                store: *id,
                site,
                at: Spot {
                    rack: *racks.entry((site, rack)).or_insert(next),
                    host: hosts.binary_search(host).expect("every host has a number") as u32,
                },
                health: store.health,
                evacuating: store.evacuating,
                capacity_bytes: store.capacity_bytes,
                used_bytes: store.used_bytes,
                unwritten_bytes: store.unwritten_bytes,
            });
        }
        let pairs = sites
            .iter()
            .flat_map(|from| sites.iter().map(move |to| (from, to)));
        let links = pairs.map(|(from, to)| topology.link(from, to)).collect();
        Fleet {
            places,
            sites,
            hosts,
            links,
        }
    }

    pub fn seat(&self, store: StoreId) -> Option<Seat> {
        let found = self
            .places
            .binary_search_by_key(&store, |place| place.store);
        found.ok().map(|i| Seat(i as u32))
    }

    pub fn seats(&self) -> impl Iterator<Item = Seat> + use<> {
        (0..self.places.len() as u32).map(Seat)
    }

    pub fn place(&self, seat: Seat) -> &Place {
        &self.places[seat.0 as usize]
    }

    pub fn site(&self, name: &DatacenterName) -> Option<Site> {
        let found = self.sites.binary_search(name);
        found.ok().map(|i| Site(i as u16))
    }

    pub fn sites(&self) -> impl Iterator<Item = Site> + use<> {
        (0..self.sites.len() as u16).map(Site)
    }

    pub fn name(&self, site: Site) -> &DatacenterName {
        &self.sites[usize::from(site.0)]
    }

    pub fn site_of(&self, store: StoreId) -> Option<Site> {
        self.seat(store).map(|seat| self.place(seat).site)
    }

    pub fn host(&self, name: &HostName) -> Option<u32> {
        self.hosts.binary_search(name).ok().map(|i| i as u32)
    }

    pub fn host_name(&self, seat: Seat) -> &HostName {
        &self.hosts[self.place(seat).at.host as usize]
    }

    pub fn link(&self, from: Site, to: Site) -> Option<Link> {
        self.links[usize::from(from.0) * self.sites.len() + usize::from(to.0)]
    }

    /// For choosing what is near: unmeasured is farther than anything measured, here is nearest.
    pub fn distance(&self, from: Site, to: Site) -> Duration {
        if from == to {
            return Duration::ZERO;
        }
        self.link(from, to)
            .map_or(Duration::MAX, |link| link.round_trip)
    }

    /// How many more bytes of disks may be promised on a store that was promised so much since it reported.
    pub fn free_bytes(&self, seat: Seat, promised: u64) -> u64 {
        let Place {
            capacity_bytes,
            used_bytes,
            unwritten_bytes,
            ..
        } = self.place(seat);
        free_bytes(
            *capacity_bytes,
            *used_bytes,
            unwritten_bytes.saturating_add(promised),
        )
    }

    /// The same, for choosing the emptier one: every promise makes it less.
    pub fn unpromised_bytes(&self, seat: Seat, promised: u64) -> u64 {
        let Place {
            capacity_bytes,
            used_bytes,
            unwritten_bytes,
            ..
        } = self.place(seat);
        unpromised_bytes(
            *capacity_bytes,
            *used_bytes,
            unwritten_bytes.saturating_add(promised),
        )
    }
}
