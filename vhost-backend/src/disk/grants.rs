//! The grant of the epoch that the disk is in: taken from the placement service's answers, shown to stores.
//!
//! The writer does not know of it. A store that says that it was shown no grant (it was down, or of an
//! older version, when the epoch was opened) is shown one then: the writer waits and asks again.

use super::inbox::Inbox;
use super::placement::Placement;
use bytes::Bytes;
use parking_lot::Mutex;
use replicator::message::{Known, Refusal, Reply, Request};
use replicator::words::{DiskId, Epoch, StoreId};
use replicator::writer::Event;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// An answer of the placement service that takes longer is a lost one.
const PATIENCE: Duration = Duration::from_secs(5);
/// A store that goes on to refuse is not shown a grant more often than this.
const PAUSE: Duration = Duration::from_secs(1);

/// Clones share everything.
#[derive(Clone, Default)]
pub(super) struct Grants(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    epoch: Epoch,
    grant: Bytes,
    /// For whom the placement service is being asked.
    asking: HashSet<StoreId>,
    /// Who is to be shown the grant that came.
    ready: Vec<StoreId>,
}

impl Grants {
    /// The placement service said that the disk is in `epoch`, with the grant of it if that is ours.
    pub fn learn(&self, epoch: Epoch, grant: Bytes) {
        let mut state = self.0.lock();
        let is_news = epoch > state.epoch || (epoch == state.epoch && !grant.is_empty());
        if is_news {
            state.epoch = epoch;
            state.grant = grant;
        }
    }

    /// A seal as the writer made it, with what proves that it may.
    pub fn with_grant(&self, request: Request) -> Request {
        match request {
            Request::Seal {
                disk,
                epoch,
                grant,
                record,
                known,
            } if grant.is_empty() => Request::Seal {
                disk,
                epoch,
                grant: self.of(epoch),
                record,
                known,
            },
            other => other,
        }
    }

    fn of(&self, epoch: Epoch) -> Bytes {
        let state = self.0.lock();
        match state.epoch == epoch {
            true => state.grant.clone(),
            false => Bytes::new(),
        }
    }

    /// If the store refused for want of a grant: asks for one, and wakes the disk when it is there.
    pub fn heard(
        &self,
        (disk, store): (DiskId, StoreId),
        reply: &Reply,
        placement: &Arc<dyn Placement>,
        inbox: &Inbox,
    ) {
        let Reply::Refused(Refusal::NotGranted { why }) = reply else {
            return;
        };
        if !self.0.lock().asking.insert(store) {
            return;
        }
        tracing::warn!(%disk, %store, "the store wants a grant: {why}");
        let (grants, inbox, asked) = (self.clone(), inbox.clone(), placement.record(disk));
        tokio::spawn(async move {
            if let Ok(Some(answer)) = timeout(PATIENCE, asked).await {
                grants.learn(answer.value.epoch, answer.grant);
                grants.0.lock().ready.push(store);
                inbox.push(Event::Timeout);
            }
            sleep(PAUSE).await;
            grants.0.lock().asking.remove(&store);
        });
    }

    /// What to show to whom now.
    pub fn seals(&self, disk: DiskId) -> Vec<(StoreId, Request)> {
        let mut state = self.0.lock();
        if state.ready.is_empty() {
            return Vec::new();
        }
        let seal = Request::Seal {
            disk,
            epoch: state.epoch,
            grant: state.grant.clone(),
            record: Bytes::new(),
            known: Known::default(),
        };
        let ready = std::mem::take(&mut state.ready).into_iter();
        match state.grant.is_empty() {
            true => Vec::new(),
            false => ready.map(|store| (store, seal.clone())).collect(),
        }
    }
}
