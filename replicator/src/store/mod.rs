//! A replica store: a log of versioned blocks in one directory.
//!
//! What it promises:
//! - a write that was answered survives a crash of the process; a sync that was answered makes all
//!   before it survive power loss (I1, I2);
//! - the epoch shown for a disk never goes back, and every lower one is refused (I3, I4);
//! - per block, what it holds has a version; a newer one is never replaced by an older;
//! - what the media returns is checked against what was written, and damage is named, not served (I10).
//!
//! [`Store`] decides and does its I/O through [`media::Media`]; it has no threads, no clock and no
//! randomness. [`SharedStore`] puts it on real files behind a lock, with a thread for syncs and one
//! for housekeeping. Where to read on:
//!
//! - a pull: `pull.rs` and `fill.rs`, from what `survey.rs` and `fetch.rs` say of another store;
//! - what the media spoilt, and how it is healed: `damage.rs`; what looks for it: `scrub.rs`, `verify.rs`, `digest.rs`;
//! - a write: [`Store::handle`] -> `write.rs` -> `append.rs` (the log's end; what is made ahead of it: `append/ahead.rs`) -> `index/`;
//! - a read: `read.rs`, `waiting_read.rs` where it waits for the media, `past_cache.rs` where it is large; a sync: `sync.rs`;
//! - after a crash: `recover.rs` and `walk.rs`; what bounds it: `checkpoint.rs`; what gives space back: `forget.rs`, `gone.rs`, `clean.rs`, and when: `room.rs`, `live.rs`;
//! - the bytes: `frame.rs`, and docs/disk-format.md.

mod append;
pub mod check;
mod checkpoint;
mod clean;
mod damage;
mod digest;
mod directory;
mod disk;
mod error;
mod fetch;
mod fill;
mod forget;
mod frame;
mod fuzz;
mod gone;
mod holdings;
mod identity;
mod index;
mod live;
pub mod media;
mod options;
mod past_cache;
mod place;
mod pull;
mod read;
mod recover;
mod replica;
mod requests;
mod room;
mod runs;
mod scrub;
mod segment;
mod shared;
mod stretch;
mod sums;
mod survey;
mod sync;
#[cfg(test)]
mod tests;
mod usage;
mod verify;
pub mod visit;
mod waiting_read;
mod walk;
mod write;

pub use append::SyncJob;
pub use checkpoint::{Chore, Outcome};
pub use error::StoreError;
pub use fetch::FetchPlan;
pub use fill::{Filling, Missing};
pub use frame::LogPoint;
pub use fuzz::fuzz_recover;
pub use options::Options;
pub use pull::Pull;
pub use read::{Destination, NotNow, Own, ReadPlan};
pub use recover::Recovery;
pub use scrub::{Scrub, ScrubProgress, ScrubRate};
pub use shared::SharedStore;
pub use sync::Promise;
pub use usage::{DiskUsage, LogSpan, Usage};
pub use verify::VerifyPlan;
pub use waiting_read::{WaitingPart, WaitingRead};

use crate::message::{Known, Reach, Reply};
use crate::words::{DiskId, Epoch, Incarnation, Starts, StoreId};
use bytes::Bytes;
use media::Media;

/// Which boot of its host a process runs in: unsynced data survives within one, not beyond.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootId(pub u128);

/// What a store was shown of a disk last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShownDisk {
    pub disk: DiskId,
    pub epoch: Epoch,
    /// As [`crate::words::DiskRecord::to_kept`] made it; it may be of an earlier epoch. Empty: none was told.
    pub record: Bytes,
}

/// What a store was shown of its disks, as far as it is on media.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ShownDisks {
    pub disks: Vec<ShownDisk>,
    /// No: of some disk something newer waits for a sync, and nothing is said of it meanwhile.
    pub complete: bool,
}

/// The store itself. See the module's documentation.
pub struct Store<M: Media> {
    log: append::Log<M>,
    holdings: holdings::Holdings,
    id: StoreId,
    incarnation: Incarnation,
    starts: Starts,
    runs: runs::Runs,
    /// This very open found that unsynced data may be lost.
    lost_tail: bool,
    boot: BootId,
    options: Options,
    checkpoints: checkpoint::Checkpoints,
    cleaning: clean::Cleaning,
    damages: damage::Damages,
    scrubbing: scrub::Scrubbing,
    _lock: M::Lock,
}

/// What became of a request.
pub enum Handled<M: Media> {
    Now(Reply),
    /// To be run without holding the store.
    Read(ReadPlan<M>),
    /// The same.
    Fetch(FetchPlan<M>),
    /// The same.
    Verify(VerifyPlan<M>),
    /// Done, but the answer waits for a sync: [`Store::keep`] gives it when [`Store::synced`] has
    /// reached [`Promise::point`], or when the store has failed.
    AfterSync(Promise),
}

impl<M: Media> Store<M> {
    pub fn id(&self) -> StoreId {
        self.id
    }

    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub fn starts(&self) -> Starts {
        self.starts
    }

    /// How far the log is (rule S6).
    fn reach(&self) -> Reach {
        self.runs.reach(self.options.run, self.log.end())
    }

    /// Whether it has all that it had when it said this.
    pub fn remembers(&self, known: &Known) -> bool {
        known.reach == Reach::UNKNOWN
            || known.incarnation != self.incarnation
            || self.runs.have(known.reach, self.log.end())
    }

    /// The disks that it knows, deleted ones included.
    pub fn disks(&self) -> impl Iterator<Item = DiskId> + '_ {
        self.holdings.disks.keys().copied()
    }

    /// What the log takes.
    pub fn log_bytes(&self) -> u64 {
        self.log.bytes()
    }

    fn media(&self) -> M {
        self.log.media.clone()
    }

    /// How many bytes were appended to the log since it was opened.
    pub fn appended(&self) -> u64 {
        self.log.appended()
    }

    /// A write or a sync failed: everything is refused until the store is opened anew (rule S2).
    pub fn has_failed(&self) -> bool {
        self.log.failed()
    }
}
