//! What a writer asks of the placement service, each bounded in time.

use super::grants::Grants;
use super::inbox::Inbox;
use bytes::Bytes;
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
    fn record(&self, disk: DiskId) -> Answer<Option<WithGrant<DiskRecord>>>;

    /// One compare-and-swap. Without an answer the outcome is unknown, never a guess.
    fn swap(
        &self,
        disk: DiskId,
        backend: BackendId,
        expected: Revision,
        change: Change,
    ) -> Answer<WithGrant<SwapOutcome>>;
}

/// An answer, and what proves to stores that the disk's epoch is ours, if it is.
pub struct WithGrant<T> {
    pub value: T,
    /// Empty: nothing does.
    pub grant: Bytes,
}

impl<T> From<T> for WithGrant<T> {
    fn from(value: T) -> WithGrant<T> {
        WithGrant {
            value,
            grant: Bytes::new(),
        }
    }
}

impl Placement for PlacementClient {
    fn record(&self, disk: DiskId) -> Answer<Option<WithGrant<DiskRecord>>> {
        let client = self.clone();
        Box::pin(async move {
            let granted = PlacementClient::record(&client, disk)
                .await
                .inspect_err(|error| tracing::warn!(%disk, "the disk's record: {error}"))
                .ok()?;
            Some(WithGrant {
                value: granted.record,
                grant: granted.grant.0.into(),
            })
        })
    }

    fn swap(
        &self,
        disk: DiskId,
        backend: BackendId,
        expected: Revision,
        change: Change,
    ) -> Answer<WithGrant<SwapOutcome>> {
        let client = self.clone();
        Box::pin(async move {
            let answer = PlacementClient::swap(&client, disk, backend, expected, change);
            let (value, grant) = answer.await;
            WithGrant {
                value,
                grant: grant.0.into(),
            }
        })
    }
}

/// One disk's way to the placement service; answers come through its inbox.
pub(super) struct Asking {
    pub placement: Arc<dyn Placement>,
    pub disk: DiskId,
    pub backend: BackendId,
    pub inbox: Inbox,
    pub grants: Grants,
}

impl Asking {
    pub fn swap(&self, call: CallId, expected: Revision, change: Change) {
        tracing::debug!(disk = %self.disk, ?change, revision = expected.0, "swap");
        let asked = self
            .placement
            .swap(self.disk, self.backend, expected, change);
        let (inbox, grants) = (self.inbox.clone(), self.grants.clone());
        tokio::spawn(async move {
            let answer = timeout(PATIENCE, asked).await;
            let answer = answer.unwrap_or_else(|_| SwapOutcome::Unknown.into());
            let outcome = answer.value;
            if let SwapOutcome::Done(record) | SwapOutcome::Conflict(record) = &outcome {
                grants.learn(record.epoch, answer.grant);
            }
            inbox.push(Event::Swapped { call, outcome });
        });
    }

    pub fn inspect(&self, call: CallId) {
        let asked = self.placement.record(self.disk);
        let (inbox, grants) = (self.inbox.clone(), self.grants.clone());
        tokio::spawn(async move {
            let record = timeout(PATIENCE, asked).await.ok().flatten();
            let record = record.map(|answer| {
                grants.learn(answer.value.epoch, answer.grant);
                Box::new(answer.value)
            });
            inbox.push(Event::Inspected { call, record });
        });
    }
}
