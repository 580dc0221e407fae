//! Opening a store: what the media has, up to where it can be believed, and what that means.
//!
//! [`Walk`] goes along the log from the last checkpoint to where it ends. What was accepted is synced,
//! then a new segment begins whose first frame says where the log before it ended: later recoveries
//! need not judge that end again.

use super::append::{Log, Purpose, Room, Start};
use super::checkpoint::Checkpoints;
use super::error::{Doing, StoreError};
use super::frame::{Header, Kind, OpenedPayload};
use super::media::{Media, is_full};
use super::segment::file_name;
use super::sync::{NO_SYNC_FAILED, note_failure};
use super::walk::Walk;
use super::{BootId, Options, Store, identity};
use crate::words::{Incarnation, Starts};
use std::io;
use zerocopy::IntoBytes;

/// What an open found, for logs and tests.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovery {
    /// Frames replayed behind the checkpoint.
    pub frames: u64,
    /// Bytes of log and checkpoint read for it.
    pub bytes_read: u64,
    /// The store was shut down cleanly before.
    pub clean: bool,
    /// Unsynced data may be missing: the incarnation changed, every replica counts as "lost" until it
    /// joins anew or is settled.
    pub lost_tail: bool,
    /// Damage that did not keep the store from opening: what, and where.
    pub damage: Vec<String>,
}

/// Far beyond what a store writes in its life, at any size of segments: a log that says so is damaged.
const LAST_SEGMENT: u32 = u32::MAX - (1 << 24);

impl<M: Media> Store<M> {
    /// Takes the directory's lock, recovers, and begins to take requests. `boot` says in which boot of
    /// the host this runs: unsynced data is still there within one, and may be lost beyond.
    pub fn open(
        media: M,
        mut options: Options,
        boot: BootId,
    ) -> Result<(Store<M>, Recovery), StoreError> {
        options.check()?;
        let dir = media.name();
        // First who it is: a directory that is no store does not even get a lock file.
        identity::read(&media)?;
        let lock = identity::lock(&media)?;
        let id = identity::read(&media)?;
        let names = media.list().doing(&dir, "listing the directory")?;
        let space = media.space().doing(&dir, "asking for the space")?;
        let capacity = options.capacity_bytes.unwrap_or(u64::MAX);
        options.fit(capacity.min(space.capacity));
        let noted = names.iter().any(|name| name == NO_SYNC_FAILED);
        let walked = Walk::from_checkpoint(&media, id, &options, &names);
        let walked = walked.and_then(|mut walk| {
            walk.boot = noted.then_some(boot);
            walk.run()?;
            walk.sync_accepted()?;
            Ok(walk)
        });
        // Media that fail now may have failed to write what the cache still has: the next open must
        // not take that for synced.
        let mut walk = walked.inspect_err(|error| {
            if matches!(error, StoreError::Io { .. }) {
                note_failure(&media);
            }
        })?;

        let replay_from = walk.replay_from();
        let first = walk.past.starts == Starts(0);
        let failed_sync = !noted && !first;
        let rebooted = walk.past.boot != boot && !walk.clean && !first;
        let lost_tail = failed_sync || rebooted || walk.lost;
        let bump = u64::from(lost_tail || first);
        let last_id = walk.existing.last().copied().unwrap_or(0);
        let last_id = last_id.max(walk.end.segment);
        let (Some(starts), Some(incarnation), Some(next_id)) = (
            walk.past.starts.0.checked_add(1).map(Starts),
            walk.past.incarnation.0.checked_add(bump).map(Incarnation),
            last_id.checked_add(1).filter(|next| *next < LAST_SEGMENT),
        ) else {
            return Err(walk.ran_out());
        };
        // What shows that something was lost stays until the log says so itself.
        let evidence = walk.evidence();
        walk.remove_leftovers(&names, evidence)?;

        identity::upgrade(&media, id)?;
        let mut runs = walk.runs;
        runs.begin(options.run, walk.end);
        let payload = OpenedPayload::new(starts, incarnation, boot.0, options.run);
        let header = Header::control(Kind::Opened).with_payload(payload.as_bytes());
        let start = Start {
            segment: next_id,
            accepted: walk.end,
            first: (header, payload.as_bytes()),
        };
        let begun = Log::begin(walk.files, id, &options, walk.segments, start);
        let log = begun.map_err(|error| open_failed(&media, &options, error))?;
        let mut holdings = walk.holdings;
        holdings.counting = true;
        holdings.live.doubt_all();
        let mut store = Store {
            log,
            holdings,
            id,
            incarnation,
            starts,
            runs,
            lost_tail,
            boot,
            checkpoints: Checkpoints::after(walk.number, replay_from, &options),
            cleaning: Default::default(),
            damages: Default::default(),
            scrubbing: Default::default(),
            options,
            _lock: lock,
        };
        let job = store.begin_sync().expect("the first frame is new");
        let synced = job.run();
        let result = match &synced {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        store.finish_sync(job, synced);
        result.doing(&dir, "syncing the first frame of this start")?;
        if let Some(evidence) = evidence
            && let Err(error) = media.remove(&file_name(evidence))
        {
            // The next open tries again.
            tracing::warn!(store = %id, %error, "cannot remove a leftover segment");
        }
        if !noted
            && let Err(error) = media
                .create(NO_SYNC_FAILED, 0)
                .and_then(|_| media.sync_dir())
        {
            // Without it the next open counts the tail as lost, which is safe.
            tracing::warn!(store = %id, %error, "cannot note that no sync failed");
        }
        store.load_scrub();
        // Not having them is no reason not to open: reads and discards need none.
        let _ = store.log.make_all_spares();

        let recovery = Recovery {
            frames: walk.frames,
            bytes_read: walk.bytes_read,
            clean: walk.clean,
            lost_tail,
            damage: walk.damage,
        };
        if lost_tail {
            tracing::warn!(
                store = %id, incarnation = incarnation.0,
                "unsynced data may be lost: all replicas count as lost until they join anew or are settled"
            );
        }
        Ok((store, recovery))
    }

    /// Ends cleanly: syncs everything and says in the log that nothing is missing. A failed store
    /// just ends.
    pub fn close(mut self) -> io::Result<()> {
        let header = Header::control(Kind::Clean);
        if self.has_failed() {
            return Err(io::Error::other("the store had failed"));
        }
        self.save_scrub();
        if self
            .make_room(Room::Bytes(header.frame_bytes()), Purpose::Cleaning)
            .is_ok()
        {
            self.append([(header, &[][..])].into_iter())
                .map_err(|_| io::Error::other("the last frame could not be written"))?;
        }
        while let Some(job) = self.begin_sync() {
            let result = job.run();
            let failed = result.is_err();
            self.finish_sync(job, result);
            if failed {
                return Err(io::Error::other("the last sync failed"));
            }
        }
        Ok(())
    }
}

fn open_failed<M: Media>(media: &M, options: &Options, error: io::Error) -> StoreError {
    let dir = media.name();
    match is_full(&error) {
        true => StoreError::Full {
            dir,
            free: media.space().map_or(0, |space| space.free),
            needed: options.segment_bytes,
        },
        false => StoreError::Io {
            dir,
            doing: "beginning a new segment",
            error,
        },
    }
}
