//! Syncs: group commit, and what a failed one means.

use super::append::{Purpose, Room};
use super::frame::{ALIGN, LogPoint, RawHeader};
use super::holdings::PRUNED_AT_ONCE;
use super::media::{Media, MediaFile};
use super::place::{MAX_APART, PAGE, Place};
use super::{Handled, Store, SyncJob, segment};
use crate::message::{Refusal, Reply};
use crate::plant::{Plant, planted};
use crate::words::{DiskId, Epoch};
use std::io;

/// The file that says that no sync failed since the store was opened. Without it the next open is
/// another incarnation (rule S2). A file that goes, and not one that comes, because a sync that fails
/// for want of space must be noted without any.
pub(super) const NO_SYNC_FAILED: &str = "no-sync-failed";

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
        let result = match planted(Plant::FailedSyncForgiven) {
            true => Ok(()),
            false => result,
        };
        if self.log.finish_sync(job, result) {
            self.holdings.prune(self.log.synced(), PRUNED_AT_ONCE);
        } else {
            self.note_failed_sync();
        }
    }

    /// Stops the store: somebody found that it cannot go on.
    pub(super) fn fail(&mut self) {
        tracing::error!(store = %self.id, "the store stops");
        self.log.fail();
    }

    /// Whether [`Store::state_synced`] has something to say.
    pub fn wants_note(&self) -> bool {
        self.log.wants_note()
    }

    /// Says up to where all is synced, where the next frame would and does not come (rule S5). To be synced like
    /// anything else. Where there is no room nothing is said.
    pub fn state_synced(&mut self) {
        let room = Room::Bytes(0);
        if !self.log.wants_note() || self.log.make_room(room, Purpose::Cleaning).is_err() {
            return;
        }
        if let Err(error) = self.log.note() {
            tracing::error!(store = %self.id, %error, "cannot write to the log: the store stops");
            self.note_failed_sync();
        }
    }

    /// Whether frames on media say that what stands there was synced: for simulations, which spoil it.
    pub fn is_proven(&self, segment: &str, offset: u64) -> bool {
        let at = segment::parse_name(segment).map(|segment| LogPoint {
            segment,
            offset: self.header_of(segment, offset).unwrap_or(offset),
        });
        at.is_some_and(|at| at < self.log.proven())
    }

    /// Where the header is of the block that stands on this page.
    fn header_of(&self, segment: u32, offset: u64) -> Option<u64> {
        let file = self.log.media.open(&segment::file_name(segment)).ok()?;
        let block = offset / PAGE * PAGE;
        let mut pages =
            (1..=u64::from(MAX_APART)).map_while(|apart| block.checked_sub(apart * PAGE));
        pages.find_map(|page| {
            let mut headers = vec![0; PAGE as usize];
            file.read_at(page, &mut headers).ok()?;
            headers
                .chunks_exact(ALIGN as usize)
                .enumerate()
                .find_map(|(i, raw)| {
                    let place = Place::new(segment, page + i as u64 * ALIGN);
                    let header = RawHeader::decode(raw, self.id, place)?;
                    let place = header.place_at(place.point());
                    (place.apart() > 0 && place.payload() == block).then(|| place.offset())
                })
        })
    }

    /// Whether so much was appended since the last sync that one should run though nobody asked.
    pub fn wants_sync(&self) -> bool {
        self.checkpoint_waits_for_sync()
            || self.holdings.superseded.len() > self.options.most_superseded
            || self.needs_sync_for_room()
    }

    /// Overwritten versions that may still be asked for.
    pub(super) fn superseded(&self) -> usize {
        self.holdings.superseded.len()
    }

    /// Writes have superseded so many versions. Where there are too many already, whoever adds to them looks through twice
    /// as many here and now: a discard of a whole disk comes faster than housekeeping looks.
    pub(super) fn keep_superseded_few(&mut self, added: usize) {
        if self.holdings.superseded.len() > self.options.most_superseded {
            let most = 2 * added + PRUNED_AT_ONCE;
            self.holdings.prune(self.log.synced(), most);
        }
    }

    /// Whether a sync has left so much to do that housekeeping should look now, and not only when it does anyway.
    pub fn wants_housekeeping(&self) -> bool {
        self.has_failed()
            || self.is_checkpointing()
            || self.log.wants_spares()
            || (self.log.wants_prewriting() && self.has_room_to_prewrite())
            || self.is_low()
            || self.holdings.superseded.len() > MANY_SUPERSEDED
            || !self.holdings.gone.is_empty()
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

    /// Without a sync of the directory: a process that is restarted sees it, and a machine that is
    /// restarted counts its tail as lost anyway.
    pub(super) fn note_failed_sync(&self) {
        note_failure(&self.log.media);
    }
}

/// What was not synced may be lost: the next open is another incarnation (rule S2).
pub(super) fn note_failure<M: Media>(media: &M) {
    match media.remove(NO_SYNC_FAILED) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(dir = media.name(), %error, "cannot note that a sync failed");
        }
        _ => {}
    }
}

/// Overwritten versions that are worth looking through after a sync. Fewer wait until somebody looks anyway.
const MANY_SUPERSEDED: usize = 1 << 10;
