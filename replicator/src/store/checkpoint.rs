//! Checkpoints: what bounds the work of a recovery.
//!
//! The changed parts of the index go into the log as frames; the checkpoint's file is only a
//! directory: where those frames are, and what there is beside the index. Steps:
//!
//! 1. note the log's end R: recovery will replay from there;
//! 2. append the changed chunks of the index, a few at a time, while writes go on;
//! 3. take the directory as of now (point Q of the log), and which segments nothing refers to;
//! 4. wait until the log is synced up to Q: what superseded those segments is then durable (rule S5);
//! 5. write the directory twice (`checkpoint.N`, `mirror.N`), remove the one before, then those segments.
//!
//! A checkpoint of the directory *alone* leaves out step 2: R stays where the last one had it, and what is dead
//! before that can go. That is cheap, and how segments come free while the store is nearly full; and it works
//! where there is no room for step 2. Data is refused before it comes so far, unless the room goes to somebody
//! else; discards and the cleaner may still bring it about.
//!
//! A state of the index between R and Q is brought to Q by replaying: every frame is idempotent.

use super::append::{Made, Prewrite, Purpose, RESERVE, Room, SpareJob, SyncJob};
use super::clean::{Read, Scan};
use super::directory::{Directory, names};
use super::disk::Slot;
use super::frame::{Header, Kind, LogPoint, MAX_PAYLOAD};
use super::holdings::{Holdings, PRUNED_AT_ONCE, blob_weight};
use super::identity::write_whole;
use super::index::blocks_of;
use super::media::{Media, is_full};
use super::place::Place;
use super::segment::file_name;
use super::{Options, Store};
use crate::message::Refusal;
use crate::words::DiskId;
use smallvec::SmallVec;
use std::io;

/// Where checkpointing stands.
#[derive(Debug)]
pub struct Checkpoints {
    /// The last one written.
    number: u32,
    /// Where a recovery from that replays from.
    replay_from: LogPoint,
    /// How much had been appended then.
    written_at: u64,
    /// Do not ask whether one is due before so much was appended.
    look_at: u64,
    phase: Phase,
    /// Segments that the last one has let go of, and what they take: their files are to be removed.
    gone: (Vec<u32>, u64),
}

/// What a checkpoint has to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    Whole,
    /// The directory alone.
    Directory,
}

#[derive(Debug)]
enum Phase {
    Idle,
    /// Step 2.
    Chunks {
        replay_from: LogPoint,
        left: Vec<(DiskId, u64)>,
    },
    /// Steps 4 and 5.
    Directory {
        bytes: Vec<u8>,
        replay_from: LogPoint,
        point: LogPoint,
        dead: Vec<u32>,
    },
    /// A chore has the directory.
    Writing {
        replay_from: LogPoint,
        point: LogPoint,
        dead: Vec<u32>,
    },
}

/// A piece of housekeeping that waits for the media, to be run without holding the store.
pub enum Chore<M: Media> {
    /// A step was made already; there is nothing to run.
    Stepped,
    Sync(SyncJob<M>),
    Write(WriteJob<M>),
    Remove {
        media: M,
        segments: Vec<u32>,
        bytes: u64,
    },
    Scan(Scan<M>),
    Spare(SpareJob<M>),
    Prewrite(Prewrite<M>),
}

pub struct WriteJob<M: Media> {
    media: M,
    number: u32,
    bytes: Vec<u8>,
}

/// What a chore brought.
pub enum Outcome<M: Media> {
    Done(io::Result<()>),
    Read(io::Result<Read>),
    Made(Made<M>),
}

impl<M: Media> Chore<M> {
    pub fn run(&self) -> Outcome<M> {
        match self {
            Chore::Stepped => Outcome::Done(Ok(())),
            Chore::Sync(job) => Outcome::Done(job.run()),
            Chore::Write(job) => Outcome::Done(job.run()),
            Chore::Remove {
                media, segments, ..
            } => Outcome::Done(remove(media, segments)),
            Chore::Scan(scan) => Outcome::Read(scan.run()),
            Chore::Spare(job) => Outcome::Made(job.run()),
            Chore::Prewrite(job) => Outcome::Done(job.run()),
        }
    }
}

impl<M: Media> WriteJob<M> {
    fn run(&self) -> io::Result<()> {
        for name in names(self.number) {
            write_whole(&self.media, &name, &self.bytes)?;
        }
        self.media.sync_dir()?;
        // A power loss must not take a segment's name and leave that of a checkpoint that needs it.
        for name in names(self.number - 1) {
            match self.media.remove(&name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.media.sync_dir()
    }
}

fn remove<M: Media>(media: &M, segments: &[u32]) -> io::Result<()> {
    for segment in segments {
        match media.remove(&file_name(*segment)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

impl<M: Media> Store<M> {
    /// One bounded step of checkpointing or cleaning. False: there is nothing to do now, or it
    /// cannot be done now (no space, a sync under way) and may be tried later.
    pub fn housekeep(&mut self) -> bool {
        match self.next_chore() {
            None => false,
            Some(chore) => {
                let outcome = chore.run();
                self.finish_chore(chore, outcome)
            }
        }
    }

    /// What to do next; goes back by [`Store::finish_chore`]. One at a time.
    pub fn next_chore(&mut self) -> Option<Chore<M>> {
        if self.has_failed() {
            return None;
        }
        for (segment, bytes) in self.log.just_closed() {
            self.holdings.live.close(segment, bytes);
        }
        let (segments, bytes) = std::mem::take(&mut self.checkpoints.gone);
        if !segments.is_empty() {
            let media = self.log.media.clone();
            return Some(Chore::Remove {
                media,
                segments,
                bytes,
            });
        }
        if self.holdings.prunable(self.log.synced()) {
            self.holdings.prune(self.log.synced(), PRUNED_AT_ONCE);
            return Some(Chore::Stepped);
        }
        if let Some(job) = self.log.begin_spare() {
            return Some(Chore::Spare(job));
        }
        // Before a checkpoint notes the counts, and the cleaner goes by them.
        if self.uncount_gone() {
            return Some(Chore::Stepped);
        }
        if let Some(chore) = self.checkpoint_chore() {
            return Some(chore);
        }
        if self.has_room_to_prewrite()
            && let Some(job) = self.log.begin_prewrite()
        {
            return Some(Chore::Prewrite(job));
        }
        if self.checkpoint_waits_for_sync() {
            return None;
        }
        if let Some(chore) = self.cleaning_chore() {
            return Some(chore);
        }
        // Nothing more to be had by cleaning: few that are dead are better than none.
        let replay_from = self.checkpoints.replay_from.segment;
        if self.is_low() && self.holdings.live.dead(replay_from).next().is_some() {
            self.begin_checkpoint(Scope::Directory);
            return Some(Chore::Stepped);
        }
        None
    }

    /// Takes back a chore that was run. False: it failed; try again later.
    pub fn finish_chore(&mut self, chore: Chore<M>, outcome: Outcome<M>) -> bool {
        match (chore, outcome) {
            (Chore::Stepped, Outcome::Done(_)) => true,
            (Chore::Remove { bytes, .. }, Outcome::Done(result)) => {
                // An unlinked file whose name survives a power loss is removed by the next open.
                if let Err(error) = result {
                    tracing::warn!(store = %self.id, %error, "cannot remove segments");
                }
                self.log.removed(bytes);
                true
            }
            (Chore::Sync(job), Outcome::Done(result)) => {
                let fine = result.is_ok();
                self.finish_sync(job, result);
                fine
            }
            (Chore::Write(job), Outcome::Done(result)) => self.finish_checkpoint(job, result),
            (Chore::Scan(_), Outcome::Read(result)) => self.finish_scan(result),
            (Chore::Spare(job), Outcome::Made(made)) => {
                self.log.finish_spare(job, made);
                if self.has_failed() {
                    self.note_failed_sync();
                }
                !self.has_failed()
            }
            (Chore::Prewrite(job), Outcome::Done(result)) => {
                self.log.finish_prewrite(job, result);
                if self.has_failed() {
                    self.note_failed_sync();
                }
                !self.has_failed()
            }
            _ => unreachable!("a chore's own outcome comes back with it"),
        }
    }

    /// The last one written.
    pub(super) fn checkpoint_number(&self) -> u32 {
        self.checkpoints.number
    }

    /// Whether the checkpoint under way waits for somebody to sync.
    pub fn checkpoint_waits_for_sync(&self) -> bool {
        match &self.checkpoints.phase {
            Phase::Directory { point, .. } => self.synced() < *point,
            _ => false,
        }
    }

    /// Begins a checkpoint now, due or not: what a clean shutdown wants.
    pub fn start_checkpoint(&mut self) {
        if matches!(self.checkpoints.phase, Phase::Idle) {
            self.begin_checkpoint(match self.index_fits() {
                true => Scope::Whole,
                false => Scope::Directory,
            });
        }
    }

    fn begin_checkpoint(&mut self, scope: Scope) {
        self.checkpoints.phase = match scope {
            Scope::Whole => Phase::Chunks {
                replay_from: self.log.end(),
                left: self.dirty_chunks(),
            },
            Scope::Directory => Phase::Chunks {
                replay_from: self.checkpoints.replay_from,
                left: Vec::new(),
            },
        };
    }

    /// Whether a checkpoint is under way.
    pub fn is_checkpointing(&self) -> bool {
        !matches!(self.checkpoints.phase, Phase::Idle)
    }

    /// Step 3.
    fn take_directory(&self, replay_from: LogPoint) -> Phase {
        assert!(self.holdings.gone.is_empty(), "all that counts is needed");
        let dead: Vec<u32> = self.holdings.live.dead(replay_from.segment).collect();
        Phase::Directory {
            bytes: self.encode_directory(replay_from, &dead),
            replay_from,
            point: self.log.end(),
            dead,
        }
    }

    /// Whether there is room for step 2.
    fn index_fits(&self) -> bool {
        let bytes = self.holdings.dirty_bytes;
        let spare = self.options.segment_bytes / 8;
        self.log.has_spares_for(bytes) || bytes + spare <= self.log.room()
    }

    /// Whether, with `bytes` of data more, the next checkpoint can surely write the changed parts of the
    /// index, and discards and the cleaner still have room.
    pub(super) fn keeps_room_for_index(&self, bytes: u64) -> bool {
        let dirty = self.holdings.dirty_bytes;
        self.log.has_spares_for(dirty)
            || dirty + bytes + self.options.segment_bytes * 3 / 2 <= self.log.room()
    }

    /// Whether a segment more or less does not matter: see [`super::append::Log::begin_prewrite`].
    pub(super) fn has_room_to_prewrite(&self) -> bool {
        !self.is_low() && self.keeps_room_for_index(self.options.segment_bytes)
    }

    /// Where the next checkpoint's replay would begin: what is dead before that may go.
    pub(super) fn next_replay_segment(&self) -> u32 {
        match self.index_fits() {
            true => self.log.current(),
            false => self.checkpoints.replay_from.segment,
        }
    }

    fn checkpoint_chore(&mut self) -> Option<Chore<M>> {
        match std::mem::replace(&mut self.checkpoints.phase, Phase::Idle) {
            Phase::Idle => {
                let scope = self.checkpoint_due()?;
                self.begin_checkpoint(scope);
                Some(Chore::Stepped)
            }
            Phase::Chunks {
                replay_from,
                mut left,
            } => {
                for _ in 0..CHUNKS_A_STEP {
                    let Some((disk, chunk)) = left.pop() else {
                        break;
                    };
                    if let Err(refusal) = self.append_chunk(disk, chunk) {
                        tracing::warn!(store = %self.id, %refusal, "a checkpoint has to wait");
                        return None;
                    }
                }
                self.checkpoints.phase = match left.is_empty() {
                    false => Phase::Chunks { replay_from, left },
                    true => self.take_directory(replay_from),
                };
                Some(Chore::Stepped)
            }
            Phase::Directory {
                bytes,
                replay_from,
                point,
                dead,
            } if self.synced() >= point => {
                self.checkpoints.phase = Phase::Writing {
                    replay_from,
                    point,
                    dead,
                };
                Some(Chore::Write(WriteJob {
                    media: self.log.media.clone(),
                    number: self.checkpoints.number + 1,
                    bytes,
                }))
            }
            waiting @ Phase::Directory { .. } => {
                self.checkpoints.phase = waiting;
                self.begin_sync().map(Chore::Sync)
            }
            writing @ Phase::Writing { .. } => {
                self.checkpoints.phase = writing;
                None
            }
        }
    }

    fn finish_checkpoint(&mut self, job: WriteJob<M>, result: io::Result<()>) -> bool {
        let phase = std::mem::replace(&mut self.checkpoints.phase, Phase::Idle);
        let Phase::Writing {
            replay_from,
            point,
            dead,
        } = phase
        else {
            unreachable!("one chore at a time");
        };
        if let Err(error) = result {
            tracing::warn!(store = %self.id, %error, "writing a checkpoint failed");
            // The reserve is there to get out of a full disk.
            if is_full(&error) && self.log.release_spare() {
                self.checkpoints.phase = Phase::Directory {
                    bytes: job.bytes,
                    replay_from,
                    point,
                    dead,
                };
                return true;
            }
            return false;
        }
        let whole = replay_from > self.checkpoints.replay_from;
        self.checkpoints.number = job.number;
        self.checkpoints.replay_from = replay_from;
        if whole {
            self.checkpoints.written_at = self.log.appended();
            self.checkpoints.look_at = self.log.appended() + self.options.checkpoint_bytes;
        }
        for segment in &dead {
            self.checkpoints.gone.1 += self.log.forget(*segment);
            self.holdings.live.forget(*segment);
        }
        self.checkpoints.gone.0.extend(dead);
        true
    }

    fn checkpoint_due(&mut self) -> Option<Scope> {
        let index_fits = self.index_fits();
        let dead = |before: u32| self.holdings.live.dead(before).count() as u64;
        let at_once = dead(self.checkpoints.replay_from.segment);
        if !index_fits {
            return (at_once > 0).then_some(Scope::Directory);
        }
        let appended = self.log.appended();
        let since = appended - self.checkpoints.written_at;
        // Writing the index must not cost more than the writes did: where they hit it all over, wait.
        let pays = since >= 2 * self.holdings.dirty_bytes * 2 / 3;
        let all = self.log.segments.len() as u64;
        let enough = |dead: u64| match self.is_low() {
            true => dead > all / 64 || (dead > 0 && self.log.free_segments() < RESERVE as u64),
            false => dead > all / 32 && (dead > 1 || dead * 4 > all),
        };
        if enough(at_once) && !(pays && since >= self.options.checkpoint_bytes) {
            return Some(Scope::Directory);
        }
        if since > 0 && enough(dead(self.log.current())) {
            return Some(Scope::Whole);
        }
        // Data is refused soon for want of room for the index: it is time to write that. A little of it has
        // room in the reserve.
        let segment = self.options.segment_bytes;
        if since > 0
            && self.holdings.dirty_bytes > segment
            && !self.keeps_room_for_index(segment / 4)
        {
            return Some(Scope::Whole);
        }
        if appended < self.checkpoints.look_at {
            return None;
        }
        (since > 0 && pays).then_some(Scope::Whole)
    }

    fn dirty_chunks(&self) -> Vec<(DiskId, u64)> {
        let mut dirty = Vec::new();
        for (id, disk) in &self.holdings.disks {
            let chunks = disk.chunks.iter().filter(|(_, slot)| slot.dirty);
            dirty.extend(chunks.map(|(number, _)| (*id, *number)));
        }
        dirty
    }

    /// Step 2 for one chunk. A chunk larger than a frame's payload becomes several frames.
    pub(super) fn append_chunk(&mut self, disk: DiskId, chunk: u64) -> Result<(), Refusal> {
        let Some(slot) = slot_of(&mut self.holdings, disk, chunk) else {
            return Ok(());
        };
        let Some(content) = slot.chunk.as_ref().filter(|_| slot.dirty) else {
            return Ok(());
        };
        let bytes = content.encode();
        let most = u64::from(MAX_PAYLOAD).min(self.options.segment_bytes / 4);
        let mut parts: SmallVec<[Place; 1]> = SmallVec::new();
        for (i, part) in bytes.chunks(most as usize).enumerate() {
            let header = Header {
                disk,
                block: blocks_of(chunk).first.0,
                epoch: i as u64,
                ..Header::control(Kind::Index)
            }
            .with_payload(part);
            let room = Room::Bytes(header.frame_bytes());
            self.make_room(room, Purpose::Cleaning)?;
            let before = self.log.appended();
            parts.extend(self.append([(header, part)].into_iter())?);
            self.cleaning.own(self.log.appended() - before);
        }
        let slot = slot_of(&mut self.holdings, disk, chunk).expect("just seen");
        slot.dirty = false;
        let counted = std::mem::take(&mut slot.counted);
        let weight = blob_weight(bytes.len(), parts.len());
        let before = std::mem::replace(&mut slot.blob, parts.clone());
        let weight_before = std::mem::replace(&mut slot.blob_weight, weight);
        self.holdings.dirty_bytes -= counted;
        for part in parts {
            self.holdings.live.add(part.segment, weight);
        }
        for part in before {
            self.holdings.live.sub(part.segment, weight_before);
        }
        Ok(())
    }

    fn encode_directory(&self, replay_from: LogPoint, dead: &[u32]) -> Vec<u8> {
        let directory = Directory {
            number: self.checkpoints.number + 1,
            replay_from,
            synced: self.log.end(),
            starts: self.starts,
            incarnation: self.incarnation,
            boot: self.boot,
            controls: self.holdings.controls,
            runs: self.runs,
        };
        let segments = self
            .log
            .segments
            .iter()
            .filter(|(id, _)| !dead.contains(id));
        let segments = segments.map(|(id, segment)| {
            let live = self.holdings.live.of(*id);
            (*id, *segment, live)
        });
        directory.encode(self.id, segments, &self.holdings.disks)
    }
}

/// Chunks written in one step of housekeeping: a guest's write waits for a step at most.
const CHUNKS_A_STEP: usize = 1;

fn slot_of(holdings: &mut Holdings, disk: DiskId, chunk: u64) -> Option<&mut Slot> {
    holdings.disks.get_mut(&disk)?.chunks.get_mut(&chunk)
}

impl Checkpoints {
    pub fn after(number: u32, replay_from: LogPoint, options: &Options) -> Checkpoints {
        Checkpoints {
            number,
            replay_from,
            written_at: 0,
            look_at: options.checkpoint_bytes,
            phase: Phase::Idle,
            gone: Default::default(),
        }
    }
}
