//! The log's end: where frames are appended, which segment comes next, and what a sync has to cover.
//!
//! A segment's space is reserved when its file is made, a few segments ahead, so that a full file
//! system shows before anything is torn. Data leaves the last of these to what frees space: zeroes,
//! control frames, the cleaner.

mod ahead;
mod placed;

pub use ahead::{Made, Prewrite, SpareJob};

use super::frame::{HEADER_BYTES, Header, Kind, Link, LogPoint};
use super::media::{Media, MediaFile};
use super::options::Options;
use super::place::{MAX_APART, PAGE, Place};
use super::segment::{Files, Segment, file_name};
use super::stretch::Spot;
use super::sums::Sums;
use crate::words::StoreId;
use ahead::Spare;
use bytes::Bytes;
use placed::Placed;
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

/// Segments that are kept for what frees space.
pub const RESERVE: usize = 2;

/// Of frames that were appended together.
pub type Places = SmallVec<[Place; 4]>;

/// What room is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// Frames of so many bytes, whatever has to come before them.
    Bytes(u64),
    /// So many blocks, one behind another.
    Blocks(u32),
    /// So many frames without payload, and so many blocks, in any order.
    Mixed { empty: u32, blocks: u32 },
}

impl Room {
    /// The most that it can be, wherever the log's end is: each page of headers begins with a mark, and it may begin anew.
    pub fn most(self) -> u64 {
        let pages = |frames: u32, blocks: u32| {
            u64::from(blocks) + u64::from(frames.div_ceil(MAX_APART.into())) + 1
        };
        match self {
            Room::Bytes(bytes) => bytes + HEADER_BYTES,
            Room::Blocks(blocks) => pages(blocks, blocks) * PAGE,
            Room::Mixed { empty, blocks } => pages(empty + blocks, blocks) * PAGE,
        }
    }
}

/// Who wants room: decides how much of the reserve may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Leaves the reserve alone.
    Data,
    /// Zeroes and control frames leave one segment.
    Control,
    /// The cleaner and checkpoints may take the last one: they give it back.
    Cleaning,
}

/// How a process begins its part of the log.
pub struct Start<'a> {
    /// A new segment's number.
    pub segment: u32,
    /// Where the log before it ends.
    pub accepted: LogPoint,
    /// The first frame and its payload.
    pub first: (Header, &'a [u8]),
}

/// There is no room: the media is full, or (rarely) refuses to make a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom {
    pub free: u64,
    pub needed: u64,
}

pub struct Log<M: Media> {
    pub media: M,
    pub store: StoreId,
    pub files: Files<M>,
    /// Every segment of the log, the current one last. Those made ahead are not part of it yet.
    pub segments: BTreeMap<u32, Segment>,
    segment_bytes: u64,
    capacity: Option<u64>,
    /// What all of `segments` take, and files that are about to be removed.
    bytes: u64,
    /// What the media had free at the last look.
    media_free: u64,
    /// Segments before this one were told to be closed.
    closed: u32,
    /// In the order of their numbers.
    spares: VecDeque<Spare>,
    /// Up to where the current segment was written ahead. The log may be further.
    written: u64,
    /// The step of filling a segment that is under way: the log must not come to it.
    prewriting: Option<LogPoint>,
    /// Whether filling segments is of use here; not after it has failed.
    prewrites: bool,
    /// Syncs since the current segment began, and in the one before it.
    syncs: [u64; 2],
    /// There was no room for one, or for something else; nothing was removed since.
    spares_fail: bool,
    next_id: u32,
    file: Arc<M::File>,
    /// Of the current segment.
    sums: Arc<Sums>,
    /// The end of the last frame.
    ended: LogPoint,
    /// Where the next frame's header goes: `ended`, or behind blocks or padding.
    next: LogPoint,
    /// So many blocks stand behind the page of the last header.
    blocks: u8,
    /// What the next frame must be preceded by.
    due: Option<Kind>,
    /// Frames that have their places, one behind another up to `ended`, and are not written yet.
    held: Placed<Bytes>,
    /// Why some that were held could not be written.
    unwritten: Option<io::Error>,
    began: LogPoint,
    synced: LogPoint,
    /// Up to where a frame says that all was synced; the same of frames that are synced themselves.
    stated: LogPoint,
    proven: LogPoint,
    /// The end of the last frame that says anything else.
    said: LogPoint,
    syncing: Option<LogPoint>,
    /// Files with bytes that no sync covers.
    unsynced: Vec<(u32, Arc<M::File>)>,
    dir_changed: bool,
    failed: bool,
    appended: u64,
    /// How much had been appended when the last sync began.
    appended_at_sync: u64,
}

/// One sync of the log, to be run without holding anything else up.
pub struct SyncJob<M: Media> {
    point: LogPoint,
    states: LogPoint,
    files: Vec<(u32, Arc<M::File>)>,
    dir: Option<M>,
}

impl<M: Media> SyncJob<M> {
    /// Everything appended before this point will be on media.
    pub fn point(&self) -> LogPoint {
        self.point
    }

    /// Waits for the media.
    pub fn run(&self) -> io::Result<()> {
        for (_, file) in &self.files {
            file.sync()?;
        }
        match &self.dir {
            Some(media) => media.sync_dir(),
            None => Ok(()),
        }
    }
}

impl<M: Media> Log<M> {
    /// Begins a new segment behind what was accepted of the log so far. The caller must sync before
    /// anybody hears of it.
    pub fn begin(
        mut files: Files<M>,
        store: StoreId,
        options: &Options,
        segments: BTreeMap<u32, Segment>,
        start: Start<'_>,
    ) -> io::Result<Log<M>> {
        let (media, id, accepted) = (files.media().clone(), start.segment, start.accepted);
        let prewrites = media.overwrites_in_place();
        let file = Arc::new(media.create(&file_name(id), options.segment_bytes)?);
        files.insert(id, file.clone());
        let (_, sums) = files.with_sums(id)?;
        let bytes: u64 = segments.values().map(|segment| segment.bytes).sum();
        let at = LogPoint {
            segment: id,
            offset: 0,
        };
        let mut log = Log {
            media,
            store,
            files,
            segments,
            segment_bytes: options.segment_bytes,
            capacity: options.capacity_bytes,
            bytes: bytes + options.segment_bytes,
            media_free: 0,
            closed: 0,
            spares: VecDeque::new(),
            written: 0,
            prewriting: None,
            prewrites,
            syncs: [0; 2],
            spares_fail: false,
            next_id: id + 1,
            file,
            sums,
            ended: at,
            next: at,
            blocks: 0,
            due: None,
            held: Placed::default(),
            unwritten: None,
            began: accepted,
            synced: accepted,
            stated: accepted,
            proven: accepted,
            said: at,
            syncing: None,
            unsynced: Vec::new(),
            dir_changed: true,
            failed: false,
            appended: 0,
            appended_at_sync: 0,
        };
        log.segments.insert(id, Segment::new(options.segment_bytes));
        let link = Link {
            ended: accepted,
            synced: accepted,
        };
        let (header, payload) = start.first;
        log.append([(header.linked(link), payload)].into_iter())?;
        log.look_at_space();
        Ok(log)
    }

    pub fn synced(&self) -> LogPoint {
        self.synced
    }

    /// Where this process found the log to end. Never before what an earlier one had synced.
    pub fn began(&self) -> LogPoint {
        self.began
    }

    /// The end of everything appended so far.
    pub fn end(&self) -> LogPoint {
        self.ended
    }

    /// How many bytes were appended since the log was opened.
    pub fn appended(&self) -> u64 {
        self.appended
    }

    /// How many of these no sync covers, not even one under way.
    pub fn unsynced(&self) -> u64 {
        self.appended - self.appended_at_sync
    }

    pub fn failed(&self) -> bool {
        self.failed
    }

    pub fn fail(&mut self) {
        self.failed = true;
    }

    pub fn current(&self) -> u32 {
        self.next.segment
    }

    /// Whether an append fits into a segment, if nothing else does.
    pub fn fits_into_segment(&self, room: Room) -> bool {
        room.most() <= self.segment_bytes
    }

    /// Makes sure that the next append fits, or changes nothing.
    pub fn make_room(&mut self, room: Room, purpose: Purpose) -> Result<(), NoRoom> {
        assert!(
            room.most() <= self.segment_bytes,
            "checked where requests come in"
        );
        if purpose == Purpose::Data && self.spares.len() < RESERVE {
            self.make_spares(RESERVE)?;
        }
        if self.tail_behind(room) <= self.limit() {
            return Ok(());
        }
        let leave = match purpose {
            Purpose::Data => RESERVE,
            Purpose::Control => 1,
            Purpose::Cleaning => 0,
        };
        if self.spares.len() <= leave
            && let Err(full) = self.make_spares(RESERVE + 1)
            && self.spares.len() <= leave
        {
            return Err(full);
        }
        self.roll()
    }

    /// Up to where the current segment may be written now.
    fn limit(&self) -> u64 {
        match self.prewriting {
            Some(step) if step.segment == self.next.segment => step.offset,
            _ => self.segments[&self.next.segment].bytes,
        }
    }

    /// Bytes that segments take, those made ahead included.
    pub fn reserved(&self) -> u64 {
        self.bytes + self.spares.len() as u64 * self.segment_bytes
    }

    /// Bytes of segments with content.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Asks the media how much is free: others may use them, too.
    pub fn look_at_space(&mut self) {
        self.media_free = self.media.space().map_or(0, |space| space.free);
    }

    /// How many segments may still begin, those made ahead included. As of the last look.
    pub fn free_segments(&self) -> u64 {
        let within = match self.capacity {
            Some(most) => most.saturating_sub(self.reserved()),
            None => u64::MAX,
        };
        self.spares.len() as u64 + within.min(self.media_free) / self.segment_bytes
    }

    /// How many segments there may be in all.
    pub fn all_segments(&self) -> u64 {
        self.bytes / self.segment_bytes + self.free_segments()
    }

    /// Bytes that segments may take in all, and how many of these are free.
    pub fn space(&self) -> (u64, u64) {
        let media = self.media.space().unwrap_or(super::media::Space {
            capacity: 0,
            free: 0,
        });
        let spares = self.spares.len() as u64 * self.segment_bytes;
        let used = self.bytes;
        let capacity = (used + spares + media.free).min(self.capacity.unwrap_or(u64::MAX));
        (capacity, capacity.saturating_sub(used))
    }

    /// What may still be appended in all, the reserve included. As of the last look.
    pub fn room(&self) -> u64 {
        self.limit().saturating_sub(self.tail()) + self.free_segments() * self.segment_bytes
    }

    /// Whether there is certainly more room than for `bytes` besides the reserve: a quick look.
    pub fn has_spares_for(&self, bytes: u64) -> bool {
        let spare = self.spares.len().saturating_sub(RESERVE) as u64;
        bytes <= spare * self.segment_bytes / 2
    }

    pub fn no_room(&self) -> NoRoom {
        NoRoom {
            free: self.space().1,
            needed: self.segment_bytes * (RESERVE as u64 + 1),
        }
    }

    fn roll(&mut self) -> Result<(), NoRoom> {
        // They belong to the segment that ends. An error is told where the others are written out.
        self.unwritten = self.write_out().err();
        let taken = self.prewriting.map(|step| step.segment);
        let is_free = |spare: &Spare| Some(spare.id) != taken;
        let at = self.spares.iter().position(is_free);
        let next = at.and_then(|at| self.spares.remove(at));
        let Spare { id, written } = next.ok_or_else(|| self.no_room())?;
        let opened = self.files.with_sums(id);
        (self.file, self.sums) = opened.map_err(|_| self.no_room())?;
        self.syncs = [0, self.syncs[0]];
        self.written = written;
        if let Some(last) = self.segments.get_mut(&self.ended.segment) {
            last.end = self.ended.offset;
        }
        self.segments.insert(id, Segment::new(self.segment_bytes));
        self.bytes += self.segment_bytes;
        self.next = LogPoint {
            segment: id,
            offset: 0,
        };
        self.blocks = 0;
        self.due = Some(Kind::Begin);
        Ok(())
    }

    /// Appends frames; [`Log::make_room`] has found them room. Returns their places. An error may leave a torn frame at the
    /// end: the log has failed then.
    pub fn append<'a>(
        &mut self,
        frames: impl Iterator<Item = (Header, &'a [u8])>,
    ) -> io::Result<Places> {
        assert!(
            self.held.is_empty(),
            "frames are written in their order, one behind another"
        );
        let mut placed = Placed::default();
        let places = self.place_all(frames, &mut placed);
        let written = placed.write_to(&*self.file);
        self.failed |= written.is_err();
        written.map(|()| places)
    }

    /// Gives frames their places, as [`Log::append`] does, and keeps them until [`Log::write_out`] writes all
    /// that are kept together. Nobody may hear of them, read or sync before that.
    pub fn hold(&mut self, frames: impl Iterator<Item = (Header, Bytes)>) -> Places {
        let mut held = std::mem::take(&mut self.held);
        let places = self.place_all(frames, &mut held);
        self.held = held;
        places
    }

    /// Writes what is held. An error is as final as one of [`Log::append`].
    pub fn write_out(&mut self) -> io::Result<()> {
        if let Some(error) = self.unwritten.take() {
            self.held.clear();
            return Err(error);
        }
        if self.held.is_empty() {
            return Ok(());
        }
        let written = self.held.write_to(&*self.file);
        self.failed |= written.is_err();
        self.held.clear();
        written
    }

    fn place_all<P: Default>(
        &mut self,
        frames: impl Iterator<Item = (Header, P)>,
        placed: &mut Placed<P>,
    ) -> Places {
        assert!(!self.failed, "a failed log takes nothing");
        let (segment, before) = (self.next.segment, self.tail());
        let places: Places = frames
            .map(|(header, payload)| self.place(header, payload, placed))
            .collect();
        match places.is_empty() {
            // Only what has to be said.
            true => self.place_due(placed),
            false => self.said = self.ended,
        }
        assert!(self.tail() <= self.limit(), "room was made before");
        if self.unsynced.last().is_none_or(|(id, _)| *id != segment) {
            self.unsynced.push((segment, self.file.clone()));
        }
        self.appended += self.tail() - before;
        places
    }

    /// Moves the log's end behind a frame, and behind what has to come before it.
    fn place<P: Default>(&mut self, header: Header, payload: P, placed: &mut Placed<P>) -> Place {
        let is_block = header.kind == Kind::Data;
        let bytes = match is_block {
            true => HEADER_BYTES,
            false => header.frame_bytes(),
        };
        let due = self.due.map_or(0, |_| HEADER_BYTES);
        let full = is_block && self.blocks == MAX_APART;
        if full || !self.fits(due + bytes) {
            self.go_on_behind_blocks();
        }
        self.place_due(placed);
        self.blocks += u8::from(is_block);
        let apart = if is_block { self.blocks } else { 0 };
        let place = Place::of(self.next.segment, self.next.offset, apart);
        self.sums.note(place, header.data_sum);
        placed.push(header.encode(self.store, place), place, payload);
        self.next.offset += bytes;
        self.ended = self.next;
        place
    }

    /// The frame that has to come before any other now.
    fn place_due<P: Default>(&mut self, placed: &mut Placed<P>) {
        let Some(kind) = self.due.take() else { return };
        let link = Link {
            ended: self.ended,
            synced: self.synced,
        };
        let header = Header::control(kind).linked(link);
        let place = Place::new(self.next.segment, self.next.offset);
        placed.push(header.encode(self.store, place), place, P::default());
        self.stated = link.synced;
        self.next.offset += HEADER_BYTES;
        self.ended = self.next;
    }

    /// Whether the next so many bytes of frames are free: blocks stand behind the page that the log's end is in.
    fn fits(&self, bytes: u64) -> bool {
        let within = self.next.offset % PAGE;
        self.blocks == 0 || (within > 0 && within + bytes <= PAGE)
    }

    fn go_on_behind_blocks(&mut self) {
        self.next.offset = self.spot().behind();
        self.blocks = 0;
        self.due.get_or_insert(Kind::Mark);
    }

    /// Where that would be behind an append: exactly for blocks, otherwise there at most.
    fn tail_behind(&self, room: Room) -> u64 {
        let Room::Blocks(mut left) = room else {
            return self.tail() + room.most();
        };
        let mut spot = self.spot();
        let mut due = u64::from(self.due.is_some());
        loop {
            let slots = match spot.is_among_blocks() {
                true => 0,
                false => (PAGE - spot.offset % PAGE) / HEADER_BYTES,
            };
            let more = slots.saturating_sub(due).min(left.into());
            let more = more.min(u64::from(MAX_APART - spot.blocks));
            if more > 0 {
                spot.offset += (due + more) * HEADER_BYTES;
                spot.blocks += more as u8;
                left -= more as u32;
            }
            if left == 0 {
                return spot.behind();
            }
            spot = Spot {
                offset: spot.behind(),
                blocks: 0,
            };
            due = 1;
        }
    }

    fn spot(&self) -> Spot {
        Spot {
            offset: self.next.offset,
            blocks: self.blocks,
        }
    }

    /// Up to where the current segment is in use.
    fn tail(&self) -> u64 {
        match self.blocks {
            0 => self.next.offset,
            _ => self.spot().behind(),
        }
    }

    /// What a sync has to do now; None if all is synced, another sync is under way, or the log has failed.
    pub fn begin_sync(&mut self) -> Option<SyncJob<M>> {
        assert!(self.held.is_empty(), "a sync covers what is written");
        if self.failed || self.syncing.is_some() || self.ended <= self.synced {
            return None;
        }
        let job = SyncJob {
            point: self.ended,
            states: self.stated,
            files: std::mem::take(&mut self.unsynced),
            dir: std::mem::take(&mut self.dir_changed).then(|| self.media.clone()),
        };
        self.go_on_behind_blocks();
        self.syncs[0] += 1;
        self.syncing = Some(job.point);
        self.appended_at_sync = self.appended;
        Some(job)
    }

    /// True: what was appended before the job began is on media.
    pub fn finish_sync(&mut self, job: SyncJob<M>, result: io::Result<()>) -> bool {
        assert_eq!(self.syncing.take(), Some(job.point), "one sync at a time");
        if result.is_err() {
            self.failed = true;
            return false;
        }
        self.synced = job.point;
        self.proven = job.states;
        self.due.get_or_insert(Kind::Mark);
        true
    }

    /// All is synced, and nothing on media says so: if a block rots now and then power is lost, what stands behind
    /// it passes for a torn tail.
    pub fn wants_note(&self) -> bool {
        let idle = self.held.is_empty() && self.syncing.is_none() && self.ended == self.synced;
        idle && !self.failed && self.proven < self.said
    }

    /// Says up to where all is synced; that is to be synced, too. [`Log::make_room`] has found it room.
    pub fn note(&mut self) -> io::Result<()> {
        self.append(std::iter::empty()).map(drop)
    }

    /// Frames that are on media say that what stands before this was synced.
    pub fn proven(&self) -> LogPoint {
        self.proven
    }

    /// Segments that ended since the last time that this was asked, and what they take.
    pub fn just_closed(&mut self) -> SmallVec<[(u32, u64); 4]> {
        let from = std::mem::replace(&mut self.closed, self.next.segment);
        let closed = self.segments.range(from..self.next.segment);
        closed.map(|(id, segment)| (*id, segment.bytes)).collect()
    }

    /// Forgets a segment that nothing refers to any more; the caller removes its file, and then calls
    /// [`Log::removed`].
    pub fn forget(&mut self, segment: u32) -> u64 {
        assert!(segment != self.next.segment);
        self.files.forget(segment);
        let gone = self.segments.remove(&segment);
        gone.map_or(0, |segment| segment.bytes)
    }

    /// Files of so many bytes are gone.
    pub fn removed(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.spares_fail = false;
        self.look_at_space();
    }
}
