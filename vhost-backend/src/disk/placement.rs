//! What a writer asks of the placement service, each bounded in time.

use super::inbox::Inbox;
use placement_service::client::PlacementClient;
use replicator::words::{BackendId, Change, DiskId, DiskRecord, Revision};
use replicator::writer::{CallId, Event, SwapOutcome};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// An answer that takes longer is a lost one. The writer asks again by itself.
const PATIENCE: Duration = Duration::from_secs(5);

pub type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The placement service as a disk sees it: the real one, or one in memory.
pub trait Placement: Send + Sync + 'static {
    /// The disk's record; `None` where there is no answer.
    fn record(&self, disk: DiskId) -> Answer<Option<DiskRecord>>;

    /// One compare-and-swap. Without an answer the outcome is unknown, never a guess.
    fn swap(
        &self,
        disk: DiskId,
        backend: BackendId,
        expected: Revision,
        change: Change,
    ) -> Answer<SwapOutcome>;
}

impl Placement for PlacementClient {
    fn record(&self, disk: DiskId) -> Answer<Option<DiskRecord>> {
        let client = self.clone();
        Box::pin(async move {
            PlacementClient::record(&client, disk)
                .await
                .inspect_err(|error| tracing::warn!(%disk, "the disk's record: {error}"))
                .ok()
        })
    }

    fn swap(
        &self,
        disk: DiskId,
        backend: BackendId,
        expected: Revision,
        change: Change,
    ) -> Answer<SwapOutcome> {
        let client = self.clone();
        Box::pin(
            async move { PlacementClient::swap(&client, disk, backend, expected, change).await },
        )
    }
}

/// One disk's way to the placement service; answers come through its inbox.
pub(super) struct Asking {
    pub placement: Arc<dyn Placement>,
    pub disk: DiskId,
    pub backend: BackendId,
    pub inbox: Inbox,
}

impl Asking {
    pub fn swap(&self, call: CallId, expected: Revision, change: Change) {
        tracing::debug!(disk = %self.disk, ?change, revision = expected.0, "swap");
        let asked = self
            .placement
            .swap(self.disk, self.backend, expected, change);
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            let outcome = timeout(PATIENCE, asked)
                .await
                .unwrap_or(SwapOutcome::Unknown);
            inbox.push(Event::Swapped { call, outcome });
        });
    }

    pub fn inspect(&self, call: CallId) {
        let asked = self.placement.record(self.disk);
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            let record = timeout(PATIENCE, asked).await.ok().flatten().map(Box::new);
            inbox.push(Event::Inspected { call, record });
        });
    }
}
