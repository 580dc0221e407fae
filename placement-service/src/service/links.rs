//! The links between datacenters, from what nodes measured to single stores.

use super::terms::Places;
use super::{Service, ServiceError};
use crate::api;
use crate::catalog::CatalogError;
use crate::node_protocol::LinkReport;
use crate::policy::Link;
use replicator::words::{DatacenterName, HostName, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Of each datacenter one store that is there.
pub(super) type Probed = BTreeMap<DatacenterName, StoreId>;

type Pair = (DatacenterName, DatacenterName);

impl Service {
    /// What is measured between each two datacenters, and inside them.
    pub fn links(&self) -> Result<Vec<api::Link>, ServiceError> {
        let places = self.places()?;
        let views = self.by_pair(&places).into_iter().map(|((from, to), seen)| {
            let nodes: BTreeSet<&HostName> = seen.iter().map(|(host, _)| host).collect();
            api::Link {
                from,
                to,
                round_trip_us: median(seen.iter().map(|(_, link)| link.round_trip_us)),
                bytes_per_second: seen.iter().filter_map(|(_, l)| l.bytes_per_second).max(),
                compression: compression(&seen),
                nodes: nodes.len() as u64,
            }
        });
        Ok(views.collect())
    }

    pub(super) fn measured_links(&self, places: &Places) -> BTreeMap<Pair, Link> {
        let links = self.by_pair(places).into_iter().map(|(pair, seen)| {
            let round_trip = median(seen.iter().map(|(_, link)| link.round_trip_us));
            let link = Link {
                round_trip: Duration::from_micros(round_trip),
                bytes_per_second: seen.iter().filter_map(|(_, l)| l.bytes_per_second).max(),
            };
            (pair, link)
        });
        links.collect()
    }

    fn by_pair(&self, places: &Places) -> BTreeMap<Pair, Vec<(HostName, LinkReport)>> {
        let mut pairs: BTreeMap<Pair, Vec<(HostName, LinkReport)>> = BTreeMap::new();
        for (host, link) in self.pulses.links() {
            let ends = (places.hosts.get(&host), places.datacenter(link.to));
            if let (Some(from), Some(to)) = ends {
                let pair = (from.clone(), to.clone());
                pairs.entry(pair).or_default().push((host, link));
            }
        }
        pairs
    }

    /// The stores that a node measures its links to: one in each other datacenter.
    pub(super) fn probes(&self, host: &HostName) -> Result<Vec<StoreId>, CatalogError> {
        let known = self.course().probed();
        let places = self.places()?;
        let Some(home) = places.hosts.get(host) else {
            return Ok(Vec::new());
        };
        let probed = self.probed(known, &places);
        let elsewhere = probed.iter().filter(|(datacenter, _)| *datacenter != home);
        Ok(elsewhere.map(|(_, store)| *store).collect())
    }

    /// The store of each datacenter that others measure their links to. Looked for again only when a store has come or
    /// gone: every heartbeat asks.
    fn probed(&self, (known, as_of): (Option<Arc<Probed>>, u64), places: &Places) -> Arc<Probed> {
        if let Some(known) = known {
            return known;
        }
        let mut probed = Probed::new();
        for (store, (at, datacenter)) in &places.stores {
            if !probed.contains_key(datacenter) && self.pulses.store(at, *store).is_some() {
                probed.insert(datacenter.clone(), *store);
            }
        }
        let probed = Arc::new(probed);
        self.course().set_probed(probed.clone(), as_of);
        probed
    }
}

/// Neither the one node that is busy nor the one that is lucky.
fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn compression(seen: &[(HostName, LinkReport)]) -> Option<f64> {
    let ratios: Vec<u32> = seen
        .iter()
        .filter_map(|(_, link)| link.compression_permille)
        .collect();
    let sum: f64 = ratios.iter().map(|ratio| f64::from(*ratio)).sum();
    (!ratios.is_empty()).then(|| sum / ratios.len() as f64 / 1000.0)
}
