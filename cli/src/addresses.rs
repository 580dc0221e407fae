//! Where stores are reached, remembered from the placement service, so that links come up again
//! while it is away.

use parking_lot::Mutex;
use placement_service::client::PlacementClient;
use replicator::net::Place;
use replicator::words::{HostName, StoreId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How often known addresses are asked for again: hosts move rarely.
const REFRESH: Duration = Duration::from_secs(5);
/// Between two questions at the least, whoever asks for how many stores.
const PAUSE: Duration = Duration::from_millis(200);

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Addresses {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    places: Mutex<BTreeMap<StoreId, Option<Place>>>,
    /// Hosts that are reached elsewhere from here than where they say themselves.
    via: BTreeMap<HostName, SocketAddr>,
    wanted: Notify,
}

impl Addresses {
    /// With hosts that are reached through a gateway: it stands in for the host's own address.
    pub fn via(via: BTreeMap<HostName, SocketAddr>) -> Self {
        Addresses {
            shared: Arc::new(Shared {
                via,
                ..Shared::default()
            }),
        }
    }

    /// Takes what somebody has said of a store.
    pub fn learn(&self, store: StoreId, place: Place) {
        self.shared.places.lock().insert(store, Some(place));
    }

    /// Where `store` was last said to be; unknown ones are asked for meanwhile.
    pub fn place(&self, store: StoreId) -> Option<Place> {
        let mut places = self.shared.places.lock();
        let place = places.entry(store).or_default().clone();
        if place.is_none() {
            self.shared.wanted.notify_one();
        }
        place
    }

    /// Keeps the addresses of all stores that were asked for, until dropped.
    pub async fn keep(self, client: PlacementClient) {
        loop {
            let _ = tokio::time::timeout(REFRESH, self.shared.wanted.notified()).await;
            let stores: Vec<StoreId> = self.shared.places.lock().keys().copied().collect();
            if stores.is_empty() {
                continue;
            }
            match client.stores(stores).await {
                Ok(found) => {
                    let mut places = self.shared.places.lock();
                    for store in found {
                        let gateway = self.shared.via.get(&store.host);
                        let place = Place {
                            addr: gateway.copied().unwrap_or(store.address),
                            host: store.host,
                        };
                        places.insert(store.store, Some(place));
                    }
                }
                // The heartbeat says that the service is away; here the old addresses serve on.
                Err(error) => tracing::debug!("addresses of stores: {error}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
