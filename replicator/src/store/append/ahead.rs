//! What is made before the log comes to it: segments' files with their space, and zeroes in that space.
//!
//! Space that is reserved and was never written costs the first sync there more than a flush: the file system
//! has to note in its journal that it is written now. While syncs come often, what is left of the segment at hand
//! and those made ahead are therefore filled with zeroes ([`Prewrite`]), step by step, before the log comes to it.

use super::{Log, NoRoom, PAGE, RESERVE};
use crate::store::frame::LogPoint;
use crate::store::media::{Media, MediaFile};
use crate::store::segment::file_name;
use std::io::{self, IoSlice};
use std::sync::Arc;

/// So much is made ahead beside the reserve, but at least one segment and at most four.
const AHEAD_BYTES: u64 = 16 << 20;
/// Syncs come often where there is one for no more than so much. Measured on ext4: one that has nothing to note in the
/// journal takes 70 us less of 200, and filling a segment of 64 MiB 45 ms: with this bound that is about a draw, and
/// with one sync for each 4 KiB a gain of a second for each segment.
const OFTEN_BYTES: u64 = 128 << 10;
/// Zeroes are written and synced in steps of so much, or an eighth of a small segment, for the log's own syncs not to wait
/// behind more.
const STEP_BYTES: u64 = 1 << 20;
/// So much at once, for appends not to wait longer: a file has one writer at a time.
static ZEROES: [u8; 128 << 10] = [0; 128 << 10];

/// A segment's file that was made ahead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spare {
    pub id: u32,
    /// Up to where it was written, with zeroes.
    pub written: u64,
}

impl Spare {
    fn new(id: u32) -> Spare {
        Spare { id, written: 0 }
    }
}

/// A segment's file to be made ahead.
pub struct SpareJob<M: Media> {
    media: M,
    id: u32,
    bytes: u64,
}

/// What became of it.
pub struct Made<M: Media> {
    file: io::Result<M::File>,
    synced: io::Result<()>,
}

impl<M: Media> SpareJob<M> {
    /// Makes it, with all its space, and syncs its name, so that no sync of the log has to.
    pub fn run(&self) -> Made<M> {
        let file = self.media.create(&file_name(self.id), self.bytes);
        let synced = file.is_ok().then(|| self.media.sync_dir());
        Made {
            file,
            synced: synced.unwrap_or(Ok(())),
        }
    }
}

/// A part of a segment that is to be filled with zeroes.
pub struct Prewrite<M: Media> {
    media: M,
    from: LogPoint,
    bytes: u64,
}

impl<M: Media> Prewrite<M> {
    /// Writes and syncs all of it. What is cached of it stays so: the log's end seldom falls on a page's, and
    /// would have to read the page otherwise. The file is opened anew: an error is reported once to each that has it open,
    /// and must not be missed by a sync of the log.
    pub fn run(&self) -> io::Result<()> {
        let file = self.media.open(&file_name(self.from.segment))?;
        let mut left = self.bytes;
        while left > 0 {
            let some = left.min(ZEROES.len() as u64);
            let at = self.end() - left;
            file.write_at(at, &[IoSlice::new(&ZEROES[..some as usize])])?;
            left -= some;
        }
        file.sync()
    }

    /// Where it begins.
    pub fn from(&self) -> LogPoint {
        self.from
    }

    fn end(&self) -> u64 {
        self.from.offset + self.bytes
    }
}

impl<M: Media> Log<M> {
    /// Whether segments should be made ahead, off the path of a write.
    pub fn wants_spares(&self) -> bool {
        self.spares.len() < self.wanted_spares()
    }

    fn wanted_spares(&self) -> usize {
        RESERVE + (AHEAD_BYTES / self.segment_bytes).clamp(1, 4) as usize
    }

    pub(super) fn make_spares(&mut self, wanted: usize) -> Result<(), NoRoom> {
        while self.spares.len() < wanted {
            if !self.may_have_more() {
                return Err(self.no_room());
            }
            let id = self.next_id;
            match self.media.create(&file_name(id), self.segment_bytes) {
                Ok(file) => {
                    self.next_id += 1;
                    self.files.insert(id, Arc::new(file));
                    self.spares.push_back(Spare::new(id));
                    self.spares_fail = false;
                    self.dir_changed = true;
                    self.look_at_space();
                }
                Err(error) => {
                    tracing::debug!(%error, "no room for another segment");
                    self.look_at_space();
                    return Err(self.no_room());
                }
            }
        }
        Ok(())
    }

    /// Whether what the operator allows, and the numbers of segments, reach for another one.
    fn may_have_more(&self) -> bool {
        let most = self.capacity.unwrap_or(u64::MAX);
        self.reserved() + self.segment_bytes <= most && self.next_id < u32::MAX
    }

    /// One of those that are wanted, to be made without holding anything up. Every job goes back by
    /// [`Log::finish_spare`], and there is one at a time.
    pub fn begin_spare(&mut self) -> Option<SpareJob<M>> {
        if !self.wants_spares() || self.spares_fail || self.failed || !self.may_have_more() {
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        Some(SpareJob {
            media: self.media.clone(),
            id,
            bytes: self.segment_bytes,
        })
    }

    /// A sync that fails is final, here too.
    pub fn finish_spare(&mut self, job: SpareJob<M>, made: Made<M>) {
        if let Err(error) = made.synced {
            tracing::error!(%error, "a sync of the directory failed");
            self.failed = true;
            return;
        }
        match made.file {
            Ok(file) if job.id > self.next.segment => {
                self.files.insert(job.id, Arc::new(file));
                // The log goes from segment to segment in their order, and another one may have been made meanwhile.
                let behind = self.spares.partition_point(|spare| spare.id < job.id);
                self.spares.insert(behind, Spare::new(job.id));
            }
            // The log has gone past it.
            Ok(_) => drop(self.media.remove(&file_name(job.id))),
            Err(error) => {
                tracing::debug!(%error, "no room for another segment");
                self.spares_fail = true;
            }
        }
        self.look_at_space();
    }

    /// Whether something should be filled ahead, off the path of a write.
    pub fn wants_prewriting(&self) -> bool {
        self.next_to_prewrite().is_some()
    }

    fn next_to_prewrite(&self) -> Option<LogPoint> {
        let often = (self.segment_bytes / OFTEN_BYTES).max(2);
        let worth_it = self.syncs.iter().any(|syncs| *syncs >= often);
        // With fewer, somebody may need this one before it is done.
        let calm = self.spares.len() >= self.wanted_spares();
        let may = self.prewrites && self.prewriting.is_none() && !self.failed;
        if !(worth_it && calm && may) {
            return None;
        }
        let (segment, tail) = (self.next.segment, self.tail());
        let step = self.step_bytes();
        let here = LogPoint {
            segment,
            // Two steps away: the log is not to come to it before it is done.
            offset: self.written.max((tail + 2 * step).next_multiple_of(step)),
        };
        let spares = self.spares.iter().map(|spare| LogPoint {
            segment: spare.id,
            offset: spare.written,
        });
        let mut all = std::iter::once(here).chain(spares);
        all.find(|point| point.offset < self.segment_bytes)
    }

    fn step_bytes(&self) -> u64 {
        let step = (self.segment_bytes / 8).next_multiple_of(PAGE);
        step.clamp(PAGE, STEP_BYTES)
    }

    /// The next part to be filled. Every job goes back by [`Log::finish_prewrite`], and there is one at a time. Only where
    /// there is room: should the log come to the part that is being filled, it leaves the rest of that segment unused.
    pub fn begin_prewrite(&mut self) -> Option<Prewrite<M>> {
        let from = self.next_to_prewrite()?;
        self.prewriting = Some(from);
        let left = self.segment_bytes - from.offset;
        Some(Prewrite {
            media: self.media.clone(),
            from,
            bytes: left.min(self.step_bytes()),
        })
    }

    /// In a segment made ahead nothing was written that anybody relies on: an error fails nobody, only the segment is not
    /// used. In one that the log has come to, what failed may be the log's own: that is as final as a failed sync.
    pub fn finish_prewrite(&mut self, job: Prewrite<M>, result: io::Result<()>) {
        self.prewriting = None;
        let (id, end) = (job.from.segment, job.end());
        let begun = self.segments.contains_key(&id);
        let at = self.spares.iter().position(|spare| spare.id == id);
        if !begun && at.is_none() {
            // It was given back meanwhile.
            return;
        }
        if let Err(error) = &result {
            tracing::warn!(%error, segment = file_name(id), "cannot write to a segment ahead of its use");
            self.prewrites = false;
        }
        if begun && result.is_err() {
            tracing::error!("the log stands in that segment: the store stops");
            self.failed = true;
        }
        if id == self.next.segment {
            self.written = end;
        }
        let Some(at) = at else { return };
        let passed = id < self.next.segment;
        if result.is_ok() && !passed {
            self.spares[at].written = end;
            return;
        }
        self.spares.remove(at);
        self.files.forget(id);
        drop(self.media.remove(&file_name(id)));
        self.look_at_space();
    }

    /// Makes all that are wanted at once.
    pub fn make_all_spares(&mut self) -> Result<(), NoRoom> {
        self.make_spares(self.wanted_spares())
    }

    /// Gives one segment of the reserve back to the file system, for a checkpoint's file to fit. No other is made ahead in its
    /// place before something was removed, or somebody needs it.
    pub fn release_spare(&mut self) -> bool {
        let Some(Spare { id, .. }) = self.spares.pop_back() else {
            return false;
        };
        self.spares_fail = true;
        self.files.forget(id);
        self.dir_changed = true;
        self.media.remove(&file_name(id)).is_ok()
    }
}
