//! Which store is meant, and what people call it: stores have ids, people know hosts.

use crate::exit::{Code, Failure};
use crate::operator::Service;
use placement_service::api::Store;
use replicator::words::{DatacenterName, HostName, StoreId};
use std::collections::BTreeMap;
use std::str::FromStr;

/// The stores of the cluster, by id.
#[derive(Debug, Default)]
pub struct Places {
    stores: BTreeMap<StoreId, (HostName, DatacenterName)>,
}

impl Places {
    pub fn of(service: &Service) -> anyhow::Result<Places> {
        let stores: Vec<Store> = service.get("/v1/stores")?;
        let stores = stores.into_iter();
        Ok(stores
            .map(|store| (store.id, store.host, store.datacenter))
            .collect())
    }

    /// Its host; with the start of its id where a host has several; its id where nobody knows its host.
    pub fn name(&self, id: StoreId) -> String {
        match self.stores.get(&id) {
            None => id.to_string(),
            Some((host, _)) if self.on(host).nth(1).is_none() => host.to_string(),
            Some((host, _)) => format!("{host}/{}", &id.to_string()[..8]),
        }
    }

    pub fn names(&self, ids: &[StoreId]) -> String {
        let names: Vec<String> = ids.iter().map(|id| self.name(*id)).collect();
        names.join(", ")
    }

    /// `text` with stores called as people call them: who writes it knows ids only.
    pub fn told(&self, text: &str) -> String {
        self.stores.keys().fold(text.to_owned(), |text, id| {
            let (id, name) = (id.to_string(), self.name(*id));
            text.replace(&format!("store {id}"), &name)
                .replace(&id, &name)
        })
    }

    /// An error in the same words.
    pub fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast::<Failure>() {
            Ok(failure) => Failure {
                what: self.told(&failure.what),
                why: failure.why.map(|why| self.told(&why)),
                ..failure
            }
            .into(),
            Err(other) => other,
        }
    }

    fn on(&self, host: &HostName) -> impl Iterator<Item = StoreId> {
        let there = self.stores.iter().filter(move |(_, at)| at.0 == *host);
        there.map(|(id, _)| *id)
    }

    /// The store that `said` means.
    pub fn find(&self, said: &SaidStore) -> Result<StoreId, Failure> {
        let SaidStore(said) = said;
        if let Ok(id) = said.parse::<StoreId>() {
            return Ok(id);
        }
        let (host, start) = said.split_once('/').unwrap_or((said, ""));
        let means = |id: &StoreId, at: &HostName| {
            let of_host = at.as_str() == host && id.to_string().starts_with(start);
            of_host || (said.len() >= 4 && id.to_string().starts_with(said))
        };
        let stores = self.stores.iter();
        let found: Vec<StoreId> = stores
            .filter(|(id, (at, _))| means(id, at))
            .map(|(id, _)| *id)
            .collect();
        match found[..] {
            [only] => Ok(only),
            [] => Err(
                Failure::new(Code::NotFound, format!("there is no store {said}"))
                    .because("no host with a store is called so, and no store's id begins so")
                    .try_next("`ukai store list` shows them"),
            ),
            _ => Err(
                Failure::new(Code::Refused, format!("{said} may be several stores"))
                    .because(self.names(&found))
                    .try_next("name one by its id, or by enough of it"),
            ),
        }
    }
}

impl FromIterator<(StoreId, HostName, DatacenterName)> for Places {
    fn from_iter<I: IntoIterator<Item = (StoreId, HostName, DatacenterName)>>(stores: I) -> Self {
        let stores = stores.into_iter();
        Places {
            stores: stores.map(|(id, host, dc)| (id, (host, dc))).collect(),
        }
    }
}

/// A store as an operator names it: its host, its id, or how that begins.
#[derive(Clone, Debug)]
pub struct SaidStore(String);

impl FromStr for SaidStore {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.is_empty() {
            true => Err("a store has a host, or an id".into()),
            false => Ok(SaidStore(text.into())),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn store(n: u128) -> StoreId {
        StoreId::from_u128(n << 96)
    }

    /// tokyo-1 (1) and tokyo-2 (2) in tokyo; osaka-1 has two: 3 and 4.
    pub fn places() -> Places {
        let at = |n, host: &str, dc: &str| {
            let (host, dc) = (HostName::new(host), DatacenterName::new(dc));
            (store(n), host.unwrap(), dc.unwrap())
        };
        [
            at(1, "tokyo-1", "tokyo"),
            at(2, "tokyo-2", "tokyo"),
            at(3, "osaka-1", "osaka"),
            at(4, "osaka-1", "osaka"),
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn a_store_is_called_by_its_host_unless_that_has_several() {
        assert_eq!(places().name(store(1)), "tokyo-1");
        assert_eq!(places().name(store(3)), "osaka-1/00000003");
        assert_eq!(places().name(store(9)), store(9).to_string());
    }

    #[test]
    fn ids_become_names() {
        let text = format!("the copy on store {} is not dropped", store(1));
        assert_eq!(places().told(&text), "the copy on tokyo-1 is not dropped");
        let error = Failure::new(Code::Refused, text).because(store(3));
        let error = places().explained(error.into());
        let said = error.to_string();
        assert_eq!(said, "the copy on tokyo-1 is not dropped: osaka-1/00000003");
    }

    #[test]
    fn a_store_is_found_by_what_it_is_called() {
        let find = |said: &str| places().find(&said.parse().unwrap());
        for n in 1..=4 {
            assert_eq!(find(&places().name(store(n))).unwrap(), store(n));
            assert_eq!(find(&store(n).to_string()).unwrap(), store(n));
        }
        assert_eq!(find("00000002").unwrap(), store(2));
        assert_eq!(find("nagoya-1").unwrap_err().code, Code::NotFound);
        assert_eq!(find("osaka-1").unwrap_err().code, Code::Refused);
    }
}
