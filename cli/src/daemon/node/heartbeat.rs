//! The conversation with the placement service: what this node has, and what is wanted of it.

use super::Config;
use super::backend::Spawn;
use super::supervisor::Supervisor;
use parking_lot::Mutex;
use placement_service::client::PlacementClient;
use placement_service::node_protocol::{DiskUse, Heartbeat, StoreReport};
use replicator::message::Reply;
use replicator::store::SharedStore;
use replicator::words::{DatacenterName, DiskId, RackName};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Between two tries while the placement service is away.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_millis(500);

pub struct Heart {
    datacenter: DatacenterName,
    rack: RackName,
    listen: SocketAddr,
    client: PlacementClient,
    store: Option<SharedStore>,
    seen: u64,
    dropping: Arc<Mutex<Dropping>>,
    away: bool,
}

/// Deleted disks on their way out of the store.
#[derive(Default)]
struct Dropping {
    begun: Vec<DiskId>,
    done: Vec<DiskId>,
}

impl Heart {
    pub fn new(
        config: &Config,
        listen: SocketAddr,
        client: PlacementClient,
        store: Option<SharedStore>,
    ) -> Self {
        Heart {
            datacenter: config.datacenter.clone(),
            rack: config.rack.clone(),
            listen,
            client,
            store,
            seen: 0,
            dropping: Arc::default(),
            away: false,
        }
    }

    /// Beats for ever: tells, hears, follows.
    pub async fn beat<S: Spawn>(&mut self, supervisor: &mut Supervisor<S>) {
        loop {
            let heartbeat = self.report(supervisor);
            let answer = tokio::select! {
                answer = self.client.heartbeat(heartbeat) => answer,
                // Something changed on this node: a second heartbeat overtakes the one that waits.
                () = supervisor.changed() => continue,
            };
            match answer {
                Ok(desired) => {
                    if std::mem::take(&mut self.away) {
                        tracing::info!("the placement service is back");
                    }
                    for refused in &desired.refused {
                        tracing::error!(store = %refused.store, "the store is in no set: {}", refused.why);
                    }
                    supervisor.follow(&desired);
                    self.drop_disks(&desired.drop);
                    self.seen = desired.digest;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.away, true) {
                        tracing::warn!("{error}; disks that are open go on without it");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// One more, so that the operator sees at once what stopped. Not waited for longer than it is worth.
    pub async fn last<S: Spawn>(&mut self, supervisor: &Supervisor<S>) {
        let farewell = self.report(supervisor);
        let _ = tokio::time::timeout(FAREWELL, self.client.heartbeat(farewell)).await;
    }

    fn report<S: Spawn>(&self, supervisor: &Supervisor<S>) -> Heartbeat {
        Heartbeat {
            datacenter: self.datacenter.clone(),
            rack: self.rack.clone(),
            listen: self.listen,
            stores: self
                .store
                .as_ref()
                .map(|store| self.store_report(store))
                .into_iter()
                .collect(),
            backends: supervisor.reports(),
            seen: self.seen,
        }
    }

    fn store_report(&self, store: &SharedStore) -> StoreReport {
        let usage = store.usage();
        StoreReport {
            id: store.id(),
            starts: store.starts(),
            incarnation: store.incarnation(),
            capacity_bytes: usage.capacity,
            used_bytes: usage.used,
            disks: usage
                .disks
                .iter()
                .map(|disk| DiskUse {
                    disk: disk.disk,
                    allocated_bytes: disk.allocated,
                })
                .collect(),
            dropped: self.dropping.lock().done.clone(),
            trouble: store.has_failed().then(|| {
                "a write or a sync failed: it refuses everything until its node is restarted".into()
            }),
        }
    }

    fn drop_disks(&self, disks: &[DiskId]) {
        let Some(store) = &self.store else { return };
        // The store may answer at once: it is asked without the lock.
        let fresh = self.dropping.lock().begin(disks);
        for disk in fresh {
            let dropping = self.dropping.clone();
            store.drop_disk(disk, move |reply| dropping.lock().ended(disk, &reply));
        }
    }
}

impl Dropping {
    /// Those that are still to be begun.
    fn begin(&mut self, disks: &[DiskId]) -> Vec<DiskId> {
        self.begun.retain(|disk| disks.contains(disk));
        self.done.retain(|disk| disks.contains(disk));
        let fresh: Vec<DiskId> = disks
            .iter()
            .copied()
            .filter(|disk| !self.begun.contains(disk))
            .collect();
        self.begun.extend(&fresh);
        fresh
    }

    fn ended(&mut self, disk: DiskId, reply: &Reply) {
        match reply {
            Reply::Refused(refusal) => {
                tracing::warn!(%disk, "a deleted disk could not be dropped yet: {refusal}");
                self.begun.retain(|begun| *begun != disk);
            }
            _ => self.done.push(disk),
        }
    }
}
