//! The conversation with the placement service: what this node has, and what is wanted of it.

use super::Config;
use super::backend::Spawn;
use super::kept::{self, Kept};
use super::runs;
use super::supervisor::Supervisor;
use parking_lot::Mutex;
use placement_service::brief::Brief;
use placement_service::client::PlacementClient;
use placement_service::node_protocol::{
    DiskUse, DropReplica, Heartbeat, LinkReport, Lists, LogPlace, LogReport, MediaReport,
    StoreReport, StoreRun,
};
use replicator::message::Reply;
use replicator::net::{LinkMeasurement, Links};
use replicator::store::{LogPoint, LogSpan, SharedStore, ShownDisks, Usage};
use replicator::words::{DatacenterName, DiskId, RackName};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use uuid::Uuid;

/// Between two tries while the placement service is away.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long a heartbeat waits for what the store says of itself; then it says what it said before.
const LOOK: Duration = Duration::from_millis(200);

pub struct Heart {
    datacenter: DatacenterName,
    rack: RackName,
    listen: SocketAddr,
    client: PlacementClient,
    store: Option<SharedStore>,
    /// The store's, newest first.
    runs: Vec<StoreRun>,
    /// Where to note that the placement service has accepted the newest; none: that was done.
    to_note: Option<PathBuf>,
    looked: Looked,
    seen: u64,
    brief: Brief,
    links: Links,
    dropping: Arc<Mutex<Dropping<DiskId>>>,
    dropping_replicas: Arc<Mutex<Dropping<DropReplica>>>,
    kept: Arc<Mutex<Kept>>,
    /// The placement service is.
    away: Arc<AtomicBool>,
}

/// What the store last said of itself.
#[derive(Default)]
struct Looked {
    seen: Seen,
    under_way: Option<tokio::task::JoinHandle<Seen>>,
}

#[derive(Default)]
struct Seen {
    usage: Usage,
    failed: bool,
    shown: ShownDisks,
}

/// What is on its way out of the store: deleted disks, superfluous copies.
struct Dropping<T> {
    begun: Vec<T>,
    done: Vec<T>,
}

impl<T> Default for Dropping<T> {
    fn default() -> Self {
        Dropping {
            begun: Vec::new(),
            done: Vec::new(),
        }
    }
}

impl Heart {
    pub fn new(
        config: &Config,
        listen: SocketAddr,
        client: PlacementClient,
        (store, runs): (Option<SharedStore>, Vec<StoreRun>),
        links: Links,
    ) -> Self {
        Heart {
            datacenter: config.datacenter.clone(),
            rack: config.rack.clone(),
            listen,
            client,
            store,
            runs,
            to_note: config.store.clone(),
            looked: Looked::default(),
            seen: 0,
            brief: Brief::new(Uuid::new_v4().as_u64_pair().0),
            links,
            dropping: Arc::default(),
            dropping_replicas: Arc::default(),
            kept: Arc::default(),
            away: Arc::default(),
        }
    }

    /// Whether the placement service is away, now and later.
    pub fn away(&self) -> Arc<AtomicBool> {
        self.away.clone()
    }

    /// Beats for ever: tells, hears, follows.
    pub async fn beat<S: Spawn>(&mut self, supervisor: &mut Supervisor<S>) {
        loop {
            self.look_at_store().await;
            if supervisor.part() {
                // Answered at once, with all that is wanted.
                self.seen = 0;
            }
            let heartbeat = self.report(supervisor);
            let answer = tokio::select! {
                answer = self.client.tell(&mut self.brief, heartbeat) => answer,
                // Something changed on this node: a second heartbeat overtakes the one that waits.
                () = supervisor.changed() => continue,
            };
            match answer {
                Ok(desired) => {
                    if self.away.swap(false, Ordering::Relaxed) {
                        tracing::info!("the placement service is back");
                    }
                    for refused in &desired.refused {
                        tracing::error!(store = %refused.store, "the store is in no set: {}", refused.why);
                    }
                    // A backend would read from the store beside it, which is not what it says that it is.
                    if desired.refused.is_empty() {
                        supervisor.follow(&desired);
                        self.note_told();
                    }
                    self.drop_disks(&desired.drop);
                    self.drop_replicas(&desired.drop_replicas);
                    self.links.keep_open(desired.probe.iter().copied());
                    self.tell_records(desired.records);
                    self.seen = desired.digest;
                }
                Err(error) => {
                    if !self.away.swap(true, Ordering::Relaxed) {
                        tracing::warn!("{error}; disks that are open go on without it");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// One more, so that the operator sees at once what stopped. Not waited for longer than it is worth.
    pub async fn last<S: Spawn>(&mut self, supervisor: &Supervisor<S>) {
        let mut farewell = self.report(supervisor);
        // Answered at once, as one who has heard nothing yet is.
        farewell.seen = 0;
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
            links: self.links.measurements().iter().map(link_report).collect(),
            seen: self.seen,
            lists: Lists::default(),
        }
    }

    fn store_report(&self, store: &SharedStore) -> StoreReport {
        let Seen {
            usage,
            failed,
            shown,
        } = &self.looked.seen;
        StoreReport {
            id: store.id(),
            starts: store.starts(),
            runs: self.runs.clone(),
            log: usage.log.map(log_report),
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
            shown: self.kept.lock().shown(&shown.disks),
            all_shown: shown.complete,
            dropped: self.dropping.lock().done.clone(),
            dropped_replicas: self.dropping_replicas.lock().done.clone(),
            trouble: match &self.looked.under_way {
                Some(_) => Some("it does not answer: its media hang, or are very slow".into()),
                None => failed.then(|| {
                    "a write or a sync failed: it refuses everything until its node is restarted"
                        .into()
                }),
            },
            media: MediaReport {
                damaged_blocks: usage.damaged_blocks,
                healed_blocks: usage.healed_blocks,
                scrub_passes: usage.scrub.passes,
                scrub_permille: usage.scrub.permille,
            },
        }
    }

    /// The placement service has accepted this run of the store: noted once, on a thread that may have to wait.
    fn note_told(&mut self) {
        let (Some(dir), Some(run)) = (self.to_note.take(), self.runs.first().copied()) else {
            return;
        };
        tokio::task::spawn_blocking(move || {
            if let Err(error) = runs::note_told(&dir, run) {
                tracing::warn!(
                    "cannot note in {} that the placement service knows of this start: {error}",
                    dir.display()
                );
            }
        });
    }

    /// Asks the store how it is, on a thread that may have to wait: a store whose media hang is no reason to
    /// fall silent.
    async fn look_at_store(&mut self) {
        let Some(store) = &self.store else { return };
        let look = self.looked.under_way.get_or_insert_with(|| {
            let store = store.clone();
            tokio::task::spawn_blocking(move || Seen {
                usage: store.usage(),
                failed: store.has_failed(),
                shown: store.shown_disks(),
            })
        });
        if let Ok(Ok(seen)) = tokio::time::timeout(LOOK, look).await {
            self.looked = Looked {
                seen,
                under_way: None,
            };
        }
    }

    /// Tells once, for each time that the placement service asks, which records the store keeps.
    fn tell_records(&self, round: u64) {
        let Some(store) = &self.store else { return };
        if !self.kept.lock().begins(round) {
            return;
        }
        let (client, store, kept) = (self.client.clone(), store.clone(), self.kept.clone());
        tokio::spawn(async move {
            let why = match kept::tell(&client, &store, round).await {
                Ok(true) => return,
                Ok(false) => "the store waits for a sync".into(),
                Err(error) => error.to_string(),
            };
            tracing::warn!("the disks' records could not be told now: {why}");
            kept.lock().ended_early(round);
        });
    }

    fn drop_disks(&self, disks: &[DiskId]) {
        let Some(store) = &self.store else { return };
        // The store may answer at once: it is asked without the lock.
        let fresh = self.dropping.lock().begin(disks);
        for disk in fresh {
            let (store, dropping) = (store.clone(), self.dropping.clone());
            let done = move |reply: Reply| {
                if let Reply::Refused(refusal) = &reply {
                    tracing::warn!(%disk, "a deleted disk could not be dropped yet: {refusal}");
                }
                dropping
                    .lock()
                    .ended(disk, !matches!(reply, Reply::Refused(_)));
            };
            tokio::task::spawn_blocking(move || store.drop_disk(disk, done));
        }
    }

    fn drop_replicas(&self, replicas: &[DropReplica]) {
        let Some(store) = &self.store else { return };
        let mine = replicas
            .iter()
            .filter(|replica| replica.store == store.id());
        let mine: Vec<DropReplica> = mine.cloned().collect();
        let fresh = self.dropping_replicas.lock().begin(&mine);
        for replica in fresh {
            let (store, dropping) = (store.clone(), self.dropping_replicas.clone());
            // It appends for every part of it, and waits for a sync.
            tokio::spawn(async move {
                let gone = drop_replica(&store, &replica).await;
                dropping.lock().ended(replica, gone);
            });
        }
    }
}

/// Whether the store durably has no more of it.
async fn drop_replica(store: &SharedStore, replica: &DropReplica) -> bool {
    let disk = replica.disk;
    for extents in replica.extents.iter().copied() {
        let (done, dropped) = oneshot::channel();
        let (store, below) = (store.clone(), replica.joined_below);
        let asked = tokio::task::spawn_blocking(move || {
            store.drop_replica(disk, extents, below, move |reply| {
                // Nobody is left to hear it only when the node stops.
                let _ = done.send(reply);
            });
        });
        match (asked.await, dropped.await) {
            (Ok(()), Ok(Reply::Refused(refusal))) => {
                tracing::warn!(%disk, %extents, "a superfluous copy could not be deleted yet: {refusal}");
                return false;
            }
            (Ok(()), Ok(_)) => {}
            _ => return false,
        }
    }
    tracing::info!(%disk, "a superfluous copy is deleted");
    true
}

fn log_report(log: LogSpan) -> LogReport {
    let place = |point: LogPoint| LogPlace(point.segment, point.offset);
    LogReport {
        began: place(log.began),
        synced: place(log.synced),
    }
}

fn link_report(link: &LinkMeasurement) -> LinkReport {
    LinkReport {
        to: link.store,
        round_trip_us: link.round_trip.as_micros().min(u128::from(u64::MAX)) as u64,
        bytes_per_second: Some(link.bytes_per_second).filter(|rate| *rate > 0),
        compression_permille: None,
    }
}

impl<T: Clone + PartialEq> Dropping<T> {
    /// Those that are still to be begun.
    fn begin(&mut self, wanted: &[T]) -> Vec<T> {
        self.begun.retain(|one| wanted.contains(one));
        self.done.retain(|one| wanted.contains(one));
        let fresh: Vec<T> = wanted
            .iter()
            .filter(|one| !self.begun.contains(one))
            .cloned()
            .collect();
        self.begun.extend(fresh.iter().cloned());
        fresh
    }

    /// What is not gone yet is begun again when it is wanted again.
    fn ended(&mut self, one: T, gone: bool) {
        if !gone {
            self.begun.retain(|begun| *begun != one);
        } else if self.begun.contains(&one) {
            self.done.push(one);
        }
    }
}
