//! Syncs: group commit, and what a failed one means.

use super::frame::LogPoint;
use super::media::Media;
use super::{Handled, Store, SyncJob};
use crate::message::{Refusal, Reply};
use crate::words::{DiskId, Epoch};
use std::io;

/// The file that says that a sync failed: what follows is another incarnation (rule S2).
pub(super) const FAILED_SYNC: &str = "failed-sync";

/// An answer that waits for a sync.
#[derive(Debug)]
pub struct Promise {
    point: LogPoint,
    disk: DiskId,
    epoch: Epoch,
    reply: Reply,
}

impl Promise {
    pub(super) fn new(point: LogPoint, disk: DiskId, epoch: Epoch, reply: Reply) -> Promise {
        Promise {
            point,
            disk,
            epoch,
            reply,
        }
    }

    /// What must be synced before the answer may be given.
    pub fn point(&self) -> LogPoint {
        self.point
    }
}

impl<M: Media> Store<M> {
    /// Everything appended before this point is on media.
    pub fn synced(&self) -> LogPoint {
        self.log.synced()
    }

    /// The sync to run now; None if all is synced, one is under way, or the store has failed. Every
    /// job goes back by [`Store::finish_sync`].
    pub fn begin_sync(&mut self) -> Option<SyncJob<M>> {
        self.log.begin_sync()
    }

    /// After a failed sync the store answers nothing any more: what it had not synced may be lost
    /// although the cache still shows it. The next open is another incarnation (rule S2).
    pub fn finish_sync(&mut self, job: SyncJob<M>, result: io::Result<()>) {
        if let Err(error) = &result {
            tracing::error!(store = %self.id, %error, "a sync failed: the store stops");
        }
        if self.log.finish_sync(job, result) {
            self.holdings.prune(self.log.synced());
        } else {
            self.note_failed_sync();
        }
    }

    /// Whether so much was appended since the last sync that one should run though nobody asked.
    pub fn wants_sync(&self) -> bool {
        self.checkpoint_waits_for_sync() || self.holdings.superseded.len() > MOST_SUPERSEDED
    }

    /// The answer that was promised; the store is synced up to it, or has failed. The epoch is
    /// checked again: a writer that was superseded meanwhile must hear so (I3).
    pub fn keep(&self, promise: Promise) -> Reply {
        if self.has_failed() {
            return Reply::Refused(Refusal::Failed);
        }
        assert!(
            promise.point <= self.synced(),
            "rule S3, I2: nothing is answered before its sync"
        );
        let shown = self.shown(promise.disk);
        if shown > promise.epoch {
            return Reply::Refused(Refusal::Superseded { shown });
        }
        promise.reply
    }

    /// Answers after everything appended so far is synced: at once if it is.
    pub(super) fn promise(&mut self, disk: DiskId, epoch: Epoch, reply: Reply) -> Handled<M> {
        let promise = Promise::new(self.log.end(), disk, epoch, reply);
        if promise.point <= self.synced() {
            Handled::Now(self.keep(promise))
        } else {
            Handled::AfterSync(promise)
        }
    }

    /// Best effort: where even this fails, the file system is in no state to be opened again soon.
    fn note_failed_sync(&self) {
        let media = &self.log.media;
        let noted = media.create(FAILED_SYNC, 0).and_then(|_| media.sync_dir());
        if let Err(error) = noted {
            tracing::error!(store = %self.id, %error, "cannot note that a sync failed");
        }
    }
}

/// Bounds the memory that overwritten versions take while nobody syncs: some 100 MB.
const MOST_SUPERSEDED: usize = 1 << 20;
