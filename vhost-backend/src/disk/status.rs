//! What a disk tells about itself while it runs, for heartbeats, `ukai status` and tests.

use parking_lot::Mutex;
use replicator::words::{Epoch, StoreId};
use replicator::writer::{Hindrance, NotStarted, Progress, Stall, Verdict};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A disk's state as of the last change.
#[derive(Clone, Debug)]
pub struct DiskStatus {
    pub phase: Phase,
    /// The epoch that was last opened here; zero before the first.
    pub epoch: Epoch,
    /// The stores of the live entries, and whether there is a session with them.
    pub members: Vec<(StoreId, bool)>,
    /// What the guest waits for, if for anything unusual.
    pub stall: Option<Stall>,
    /// What keeps the placement service's orders from being carried out.
    pub hindrance: Option<Hindrance>,
    /// How far the filling is and who answers reads, a quarter of a second old at most.
    pub progress: Progress,
    /// What came of the last order to verify it, or how far that is; as old at most.
    pub verdict: Option<Verdict>,
    pub requests_in_flight: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Not started, or cleanly stopped.
    Closed,
    /// It was stopped, but the epoch could not be closed: the next start is a take-over (rule A2).
    LeftOpen,
    Starting,
    /// It cannot start; it tries again by itself where that can help.
    NotStarted(NotStarted),
    Open,
    Stopping,
    /// Another writer has the disk. It stays so until it is started again.
    Superseded,
}

/// Reads the status from any thread.
#[derive(Clone, Debug)]
pub struct StatusHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    status: Mutex<DiskStatus>,
    in_flight: AtomicU64,
}

impl StatusHandle {
    pub(super) fn new() -> StatusHandle {
        let status = DiskStatus {
            phase: Phase::Closed,
            epoch: Epoch::ZERO,
            members: Vec::new(),
            stall: None,
            hindrance: None,
            progress: Progress::default(),
            verdict: None,
            requests_in_flight: 0,
        };
        StatusHandle {
            shared: Arc::new(Shared {
                status: Mutex::new(status),
                in_flight: AtomicU64::new(0),
            }),
        }
    }

    pub fn now(&self) -> DiskStatus {
        let mut status = self.shared.status.lock().clone();
        status.requests_in_flight = self.shared.in_flight.load(Ordering::Relaxed);
        status
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut DiskStatus)) {
        change(&mut self.shared.status.lock());
    }

    pub(super) fn phase(&self) -> Phase {
        self.shared.status.lock().phase.clone()
    }

    /// The hot path's part: no lock.
    pub(super) fn in_flight(&self, requests: usize) {
        self.shared
            .in_flight
            .store(requests as u64, Ordering::Relaxed);
    }
}
