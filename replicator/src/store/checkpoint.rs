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
//! Where there is no room for step 2, R stays where the last checkpoint had it: the directory alone lets
//! go of segments that are dead before that. Data is refused before it comes so far, unless the room
//! goes to somebody else; discards and the cleaner may still bring it about.
//!
//! A state of the index between R and Q is brought to Q by replaying: every frame is idempotent.

use super::append::{Purpose, SyncJob};
use super::clean::Scan;
use super::directory::{Directory, names};
use super::disk::Slot;
use super::frame::{Header, Kind, LogPoint, MAX_PAYLOAD, frame_bytes};
use super::holdings::{BLOB_WEIGHT, Holdings};
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
    },
    Scan(Scan<M>),
}

pub struct WriteJob<M: Media> {
    media: M,
    number: u32,
    bytes: Vec<u8>,
}

/// What a chore brought.
pub enum Outcome {
    Done(io::Result<()>),
    Read(io::Result<Vec<u8>>),
}

impl<M: Media> Chore<M> {
    pub fn run(&self) -> Outcome {
        match self {
            Chore::Stepped => Outcome::Done(Ok(())),
            Chore::Sync(job) => Outcome::Done(job.run()),
            Chore::Write(job) => Outcome::Done(job.run()),
            Chore::Remove { media, segments } => Outcome::Done(remove(media, segments)),
            Chore::Scan(scan) => Outcome::Read(scan.run()),
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
        if self.holdings.prunable(self.log.synced()) {
            self.holdings.prune(self.log.synced());
            return Some(Chore::Stepped);
        }
        if self.log.wants_spares() && self.log.refill().is_ok() {
            return Some(Chore::Stepped);
        }
        if let Some(chore) = self.checkpoint_chore() {
            return Some(chore);
        }
        if self.checkpoint_waits_for_sync() {
            return None;
        }
        self.cleaning_chore()
    }

    /// Takes back a chore that was run. False: it failed; try again later.
    pub fn finish_chore(&mut self, chore: Chore<M>, outcome: Outcome) -> bool {
        match (chore, outcome) {
            (Chore::Stepped | Chore::Remove { .. }, Outcome::Done(result)) => result.is_ok(),
            (Chore::Sync(job), Outcome::Done(result)) => {
                let fine = result.is_ok();
                self.finish_sync(job, result);
                fine
            }
            (Chore::Write(job), Outcome::Done(result)) => self.finish_checkpoint(job, result),
            (Chore::Scan(scan), Outcome::Read(result)) => self.finish_scan(scan, result),
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
        if !matches!(self.checkpoints.phase, Phase::Idle) {
            return;
        }
        self.checkpoints.phase = match self.index_fits() {
            true => Phase::Chunks {
                replay_from: self.log.end(),
                left: self.dirty_chunks(),
            },
            false => self.take_directory(self.checkpoints.replay_from),
        };
    }

    /// Whether a checkpoint is under way.
    pub fn is_checkpointing(&self) -> bool {
        !matches!(self.checkpoints.phase, Phase::Idle)
    }

    /// Step 3.
    fn take_directory(&self, replay_from: LogPoint) -> Phase {
        let dead = self.dead_segments(replay_from.segment);
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
                if !self.checkpoint_due() {
                    return None;
                }
                self.start_checkpoint();
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
        self.checkpoints.number = job.number;
        self.checkpoints.replay_from = replay_from;
        self.checkpoints.written_at = self.log.appended();
        self.checkpoints.look_at = self.log.appended() + self.options.checkpoint_bytes;
        for segment in &dead {
            self.log.forget(*segment);
            self.holdings.live.remove(segment);
        }
        // An unlinked file whose name survives a power loss is removed by the next open.
        if let Err(error) = remove(&self.log.media, &dead) {
            tracing::warn!(store = %self.id, %error, "cannot remove segments");
        }
        true
    }

    fn checkpoint_due(&mut self) -> bool {
        let appended = self.log.appended();
        if appended == self.checkpoints.written_at {
            return false;
        }
        let segments = self.log.segments.len();
        let dead = self.dead_segments(self.next_replay_segment()).len();
        if !self.index_fits() {
            return dead > 0;
        }
        // Data is refused soon for want of room for the index: it is time to write that.
        let quarter = self.options.segment_bytes / 4;
        if self.holdings.dirty_bytes > quarter && !self.keeps_room_for_index(quarter) {
            return true;
        }
        if dead > segments / 32
            && dead > 0
            && (dead > 1 || self.log.is_short() || dead * 4 > segments)
        {
            return true;
        }
        if appended < self.checkpoints.look_at {
            return false;
        }
        // Writing the index must not cost more than the writes did: where they hit it all over, wait.
        let dirty: usize = self
            .holdings
            .disks
            .values()
            .flat_map(|disk| disk.chunks.values())
            .filter(|slot| slot.dirty)
            .filter_map(|slot| slot.chunk.as_ref())
            .map(|chunk| chunk.encoded_bytes())
            .sum();
        let due_at = self.checkpoints.written_at + 2 * dirty as u64;
        self.checkpoints.look_at = due_at;
        appended >= due_at
    }

    fn dirty_chunks(&self) -> Vec<(DiskId, u64)> {
        let mut dirty = Vec::new();
        for (id, disk) in &self.holdings.disks {
            let chunks = disk.chunks.iter().filter(|(_, slot)| slot.dirty);
            dirty.extend(chunks.map(|(number, _)| (*id, *number)));
        }
        dirty
    }

    /// Segments before `before` that nothing refers to, for certain.
    fn dead_segments(&self, before: u32) -> Vec<u32> {
        let segments = self.log.segments.range(..before).map(|(id, _)| *id);
        let is_dead = |id: &u32| match self.holdings.live.get(id) {
            None => true,
            Some(live) => live.exact && live.weight == 0,
        };
        segments.filter(is_dead).collect()
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
        let most = u64::from(MAX_PAYLOAD).min(self.log.largest() / 4);
        let mut parts: SmallVec<[Place; 1]> = SmallVec::new();
        for (i, part) in bytes.chunks(most as usize).enumerate() {
            let header = Header {
                disk,
                block: blocks_of(chunk).first.0,
                epoch: i as u64,
                ..Header::control(Kind::Index)
            }
            .with_payload(part);
            let room = frame_bytes(part.len() as u64);
            self.make_room(room, Purpose::Cleaning)?;
            parts.push(self.append([(header, part)].into_iter())?);
        }
        let slot = slot_of(&mut self.holdings, disk, chunk).expect("just seen");
        slot.dirty = false;
        let counted = std::mem::take(&mut slot.counted);
        let before = std::mem::replace(&mut slot.blob, parts.clone());
        self.holdings.dirty_bytes -= counted;
        for part in parts {
            self.holdings.add_live(part.segment, BLOB_WEIGHT);
        }
        for part in before {
            self.holdings.sub_live(part.segment, BLOB_WEIGHT);
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
            let live = self.holdings.live.get(id);
            (*id, *segment, live.map_or(0, |live| live.weight))
        });
        directory.encode(self.id, segments, &self.holdings.disks)
    }
}

/// Chunks written in one step of housekeeping: a guest's write waits for a step at most.
const CHUNKS_A_STEP: usize = 2;

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
        }
    }
}
