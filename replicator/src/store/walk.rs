//! Walking along the log: from a checkpoint's replay point to where it ends, and judging that end.
//!
//! Where no valid frame follows, the log goes on behind padding (a mark says so), in another segment
//! (its first frame says so), or it ends. An end is either the place where a crash cut it, or damage;
//! the two are told apart by what stands behind it: frames there that say "synced up to here" prove
//! that there was more (rule S5). Nothing of what is found is trusted before its checksum.

use super::directory::{self, Directory, Loaded, names, parse_name, read_file};
use super::error::{Doing, StoreError};
use super::frame::{
    ALIGN, HEADER_BYTES, Header, Kind, LogPoint, MAX_PAYLOAD, OpenedPayload, RawHeader,
};
use super::holdings::{Holdings, LoadFault};
use super::media::{Media, MediaFile};
use super::place::{MAX_APART, MAX_UNITS, PAGE, Place};
use super::runs::Runs;
use super::segment::{self, Files, Segment, Window, file_name};
use super::stretch::{Spot, Stretch, blocks_of, is_intact, is_mark_behind};
use super::{BootId, Options};
use crate::words::{Incarnation, Starts, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// What the log says about the processes that wrote it.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    pub starts: Starts,
    pub incarnation: Incarnation,
    pub boot: BootId,
}

/// A walk along the log.
pub struct Walk<M: Media> {
    media: M,
    dir: String,
    store: StoreId,
    pub files: Files<M>,
    /// The checkpoint's number.
    pub number: u32,
    directory: Directory,
    pub holdings: Holdings,
    /// The log's segments so far.
    pub segments: BTreeMap<u32, Segment>,
    /// Every segment's file that exists.
    pub existing: BTreeSet<u32>,
    /// Which segment says that the log before it ended at a point.
    links: BTreeMap<LogPoint, u32>,
    window: Option<(u32, Window<M::File>)>,
    /// Where the log is accepted up to so far.
    pub end: LogPoint,
    /// So many blocks stand behind the page of the frame that ends there.
    blocks: u8,
    /// What is known to have been synced, from what was accepted.
    synced: LogPoint,
    /// The same, from anything valid anywhere behind: computed when first needed.
    proof: Option<Proof>,
    pub past: Past,
    /// The boot that goes on, where no sync has failed: what a process of this one wrote is in the kernel's cache.
    pub boot: Option<BootId>,
    pub runs: Runs,
    pub clean: bool,
    /// Frames stand behind the log's end.
    pub lost: bool,
    pub frames: u64,
    pub bytes_read: u64,
    pub damage: Vec<String>,
}

/// What stands behind a bad frame.
#[derive(Clone, Copy, Debug)]
struct Proof {
    /// Something there says that all before this point was synced.
    synced: LogPoint,
    /// The last place with a valid frame.
    last: LogPoint,
}

/// What stands at a point of the log.
enum At {
    Frame(Header, Vec<u8>, bool),
    /// Bytes that are no frame.
    Nothing,
}

impl<M: Media> Walk<M> {
    /// Starts at the newest checkpoint that is whole.
    pub fn from_checkpoint(
        media: &M,
        store: StoreId,
        options: &Options,
        found: &[String],
    ) -> Result<Walk<M>, StoreError> {
        let dir = media.name();
        let mut numbers: Vec<u32> = found.iter().filter_map(|name| parse_name(name)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut damage = Vec::new();
        let mut bytes_read = 0;
        let mut loaded: Option<Loaded> = None;
        for name in numbers.iter().rev().flat_map(|number| names(*number)) {
            if !found.contains(&name) {
                continue;
            }
            if let Some(loaded) = &loaded
                && parse_name(&name) != Some(loaded.directory.number)
            {
                break;
            }
            let bytes = read_file(media, &name).doing(&dir, "reading a checkpoint")?;
            bytes_read += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
            let read = bytes.and_then(|bytes| Directory::decode(store, &bytes));
            match read.filter(|read| Some(read.directory.number) == parse_name(&name)) {
                Some(read) => loaded = loaded.or(Some(read)),
                None => damage.push(format!("{name}: the checkpoint is damaged")),
            }
        }
        let Some(loaded) = loaded else {
            return Err(StoreError::Damaged {
                dir,
                what: "no checkpoint is left that can be read".into(),
                place: damage.first().cloned().unwrap_or("no file".into()),
            });
        };
        let Loaded {
            directory,
            segments,
            holdings,
        } = loaded;
        let mut walk = Walk {
            media: media.clone(),
            dir,
            store,
            files: Files::new(media.clone(), options.open_files),
            number: directory.number,
            directory,
            holdings,
            segments,
            existing: BTreeSet::new(),
            links: BTreeMap::new(),
            window: None,
            end: directory.replay_from,
            blocks: 0,
            synced: directory.synced,
            proof: None,
            past: Past {
                starts: directory.starts,
                incarnation: directory.incarnation,
                boot: directory.boot,
            },
            boot: None,
            runs: directory.runs,
            clean: false,
            lost: false,
            frames: 0,
            bytes_read,
            damage,
        };
        walk.look_around(found)?;
        walk.count_blocks()?;
        Ok(walk)
    }

    /// Where the checkpoint says to begin.
    pub fn replay_from(&self) -> LogPoint {
        self.directory.replay_from
    }

    /// Sees that the checkpoint's segments are there, and which others may carry the log on.
    fn look_around(&mut self, found: &[String]) -> Result<(), StoreError> {
        self.existing = found
            .iter()
            .filter_map(|name| segment::parse_name(name))
            .collect();
        let missing = |id: &&u32| !self.existing.contains(id);
        if let Some(missing) = self.segments.keys().find(missing) {
            let name = file_name(*missing);
            return Err(self.damaged("a segment that the checkpoint needs is missing", name));
        }
        for id in self.existing.clone() {
            // Older segments are not part of the walk.
            if id > self.directory.replay_from.segment
                && let Some(ended) = self.first_link(id)?
            {
                self.links.insert(ended, id);
            }
        }
        Ok(())
    }

    /// The log may go on within a page of headers that has blocks behind it.
    fn count_blocks(&mut self) -> Result<(), StoreError> {
        let LogPoint { segment, offset } = self.end;
        let page = LogPoint {
            segment,
            offset: Stretch::start_for(offset),
        };
        if self.existing.contains(&segment)
            && let Some(headers) = self.bytes(page, offset - page.offset)?
        {
            self.blocks = blocks_of(&headers, self.store, segment, page.offset);
        }
        Ok(())
    }

    fn spot(&self) -> Spot {
        Spot {
            offset: self.end.offset,
            blocks: self.blocks,
        }
    }

    /// Where the log before a segment ended, if its first frame is whole.
    fn first_link(&mut self, segment: u32) -> Result<Option<LogPoint>, StoreError> {
        let start = LogPoint { segment, offset: 0 };
        Ok(match self.at(start)? {
            At::Frame(header, _, true) if matches!(header.kind, Kind::Begin | Kind::Opened) => {
                let ended = header.link().map(|link| link.ended);
                // The log never goes back.
                ended.filter(|ended| ended.segment < segment)
            }
            _ => None,
        })
    }

    /// Goes along the log to its end.
    pub fn run(&mut self) -> Result<(), StoreError> {
        loop {
            self.holdings.counting = self.end >= self.directory.synced;
            if let Some(next) = self.links.get(&self.end).copied() {
                self.note_end();
                self.follow(next, self.end)?;
                continue;
            }
            let stands = match self.spot().is_among_blocks() {
                true => At::Nothing,
                false => self.at(self.end)?,
            };
            match stands {
                At::Frame(header, payload, intact) if self.fits_here(&header, self.end) => {
                    if !intact {
                        let was_whole = header.is_damaged()
                            || self.damage_is_behind_sync(self.end)?
                            || self.is_rot();
                        if !was_whole {
                            return Ok(());
                        }
                        if header.kind != Kind::Data {
                            return Err(self.bad_frame(self.end));
                        }
                        self.damage.push(format!(
                            "{}: the content of disk {} block {} version {} is damaged",
                            self.end,
                            header.disk,
                            header.block,
                            header.version()
                        ));
                    }
                    self.accept(&header, &payload)?;
                }
                _ => match self.mark_behind_padding()? {
                    Some(mark) => (self.end, self.blocks) = (mark, 0),
                    None if self.damage_is_behind_sync(self.end)? => {
                        return Err(self.bad_frame(self.end));
                    }
                    None => return Ok(()),
                },
            }
        }
    }

    /// The log goes on in segment `next`.
    fn follow(&mut self, next: u32, before: LogPoint) -> Result<(), StoreError> {
        let start = LogPoint {
            segment: next,
            offset: 0,
        };
        let bytes = self.window(next)?.len();
        self.segments.insert(next, Segment::new(bytes));
        (self.end, self.blocks) = (start, 0);
        match self.at(start)? {
            At::Frame(header, payload, true) => {
                assert_eq!(header.link().map(|link| link.ended), Some(before));
                self.accept(&header, &payload)
            }
            _ => Err(self.bad_frame(start)),
        }
    }

    /// Takes the frame at the end of what was accepted.
    fn accept(&mut self, header: &Header, payload: &[u8]) -> Result<(), StoreError> {
        let place = header.place_at(self.end);
        for blocks in self.holdings.needed_by(header, payload) {
            let loaded = self
                .holdings
                .load(&mut self.files, self.store, header.disk, blocks);
            loaded.map_err(|fault| match fault {
                LoadFault::Damaged { place, blocks } => self.damaged(
                    &format!(
                        "the index of disk {} blocks {blocks} is damaged",
                        header.disk
                    ),
                    place.to_string(),
                ),
                LoadFault::Io(error) => self.io(error, "reading the index"),
            })?;
        }
        if !self.holdings.replay(header, payload, place) {
            return Err(self.damaged("a frame contradicts those before it", place.to_string()));
        }
        if let Some(link) = header.link() {
            self.synced = self.synced.max(link.synced);
        }
        if header.kind == Kind::Opened {
            let opened = OpenedPayload::decode(payload)
                .ok_or_else(|| self.damaged("a start's frame makes no sense", place.to_string()))?;
            if let Some(link) = header.link() {
                self.runs.begin(opened.run.get(), link.ended);
            }
            self.past = Past {
                starts: Starts(opened.starts.get()),
                incarnation: Incarnation(opened.incarnation.get()),
                boot: BootId(opened.boot.get()),
            };
        }
        self.clean = header.kind == Kind::Clean;
        let Spot { offset, blocks } = self.spot().after(header);
        (self.end.offset, self.blocks) = (offset, blocks);
        self.frames += 1;
        Ok(())
    }

    /// A frame that names the end of the log before it stands there, or nowhere.
    fn fits_here(&self, header: &Header, at: LogPoint) -> bool {
        match header.link() {
            Some(link) => header.kind == Kind::Mark && link.ended == at,
            None => true,
        }
    }

    fn mark_behind_padding(&mut self) -> Result<Option<LogPoint>, StoreError> {
        // How many blocks there are before the point where the walk began is seen from headers that it did not walk along,
        // and which may be damaged.
        let all = match self.end == self.directory.replay_from {
            true => 0..=MAX_APART,
            false => self.blocks..=self.blocks,
        };
        let ended = self.end;
        for blocks in std::iter::once(self.blocks).chain(all) {
            let spot = Spot {
                offset: ended.offset,
                blocks,
            };
            // No block ends where the segment begins.
            if blocks > 0 && ended.offset == 0 {
                continue;
            }
            let next = LogPoint {
                offset: spot.behind(),
                ..ended
            };
            if next == ended {
                continue;
            }
            if let At::Frame(header, _, true) = self.at(next)?
                && is_mark_behind(&header, ended)
            {
                self.synced = self.synced.max(header.link().expect("a mark links").synced);
                self.frames += 1;
                let offset = next.offset + header.frame_bytes();
                self.clean = false;
                return Ok(Some(LogPoint { offset, ..next }));
            }
        }
        Ok(None)
    }

    /// There is no intact frame at `at`. Whether there was one, of which a sync was answered.
    fn damage_is_behind_sync(&mut self, at: LogPoint) -> Result<bool, StoreError> {
        if self.synced > at {
            return Ok(true);
        }
        let proof = match self.proof {
            Some(proof) => proof,
            None => {
                let proof = self.look_behind(at)?;
                self.proof = Some(proof);
                proof
            }
        };
        // Within one boot nothing is lost but the end of one last write: frames behind a bad one
        // mean that something acknowledged is gone.
        self.lost = proof.last > at;
        Ok(proof.synced > at)
    }

    /// Whether what stood at the place that was looked at last was whole once: processes of this boot wrote on
    /// behind it.
    fn is_rot(&self) -> bool {
        self.lost && self.boot == Some(self.past.boot)
    }

    /// Searches everything behind `at` for valid frames.
    fn look_behind(&mut self, at: LogPoint) -> Result<Proof, StoreError> {
        let mut proof = Proof {
            synced: self.synced,
            last: LogPoint::default(),
        };
        let behind: Vec<u32> = self.existing.range(at.segment..).copied().collect();
        for segment in behind {
            let len = self.window(segment)?.len().min(MAX_UNITS * ALIGN);
            let mut spot = match segment == at.segment {
                true => self.spot().skip(),
                false => Spot::default(),
            };
            loop {
                let (mut offset, mut until) = (spot.offset, len);
                if spot.blocks > 0 {
                    // Not among the blocks that were accepted.
                    until = offset.next_multiple_of(PAGE).min(len);
                } else {
                    let next = self.window(segment)?.next_data(offset);
                    let next = next.doing(&self.dir, "looking for data in a segment")?;
                    offset = offset.max(next / ALIGN * ALIGN);
                }
                if offset + HEADER_BYTES > until {
                    break;
                }
                let stretch = STRETCH_BYTES.min(until - offset) / ALIGN * ALIGN;
                let point = LogPoint { segment, offset };
                let Some(bytes) = self.bytes(point, stretch)? else {
                    break;
                };
                for (i, raw) in bytes.chunks_exact(ALIGN as usize).enumerate() {
                    let place = Place::new(segment, offset + i as u64 * ALIGN);
                    if let Some(header) = RawHeader::decode(raw, self.store, place)
                        && self.has_its_block(&header, place.point())?
                    {
                        proof.last = place.point();
                        if let Some(link) = header.link() {
                            proof.synced = proof.synced.max(link.synced);
                        }
                    }
                }
                offset += stretch;
                spot.offset = offset;
                if spot.is_among_blocks() {
                    spot = spot.skip();
                }
            }
        }
        Ok(proof)
    }

    /// A process that dies within one write may leave headers without their blocks (`append/placed.rs`), which say nothing of what
    /// stands before them.
    fn has_its_block(&mut self, header: &Header, point: LogPoint) -> Result<bool, StoreError> {
        if header.apart == 0 {
            return Ok(true);
        }
        let block = self.payload(header, point)?;
        Ok(block.is_some_and(|block| header.is_damaged() || is_intact(header, &block)))
    }

    /// The frame at a point, and whether its payload has the right checksum.
    fn at(&mut self, point: LogPoint) -> Result<At, StoreError> {
        let stands = point.offset.is_multiple_of(ALIGN) && point.offset / ALIGN < MAX_UNITS;
        if !stands || !self.existing.contains(&point.segment) {
            return Ok(At::Nothing);
        }
        let place = Place::new(point.segment, point.offset);
        let store = self.store;
        let Some(header) = self
            .bytes(point, HEADER_BYTES)?
            .and_then(|bytes| RawHeader::decode(&bytes, store, place))
        else {
            return Ok(At::Nothing);
        };
        if header.payload_bytes() > u64::from(MAX_PAYLOAD) {
            return Ok(At::Nothing);
        }
        let Some(payload) = self.payload(&header, point)? else {
            return Ok(At::Nothing);
        };
        let intact = is_intact(&header, &payload);
        Ok(At::Frame(header, payload, intact))
    }

    /// The payload of a frame whose header stands at `point`.
    fn payload(&mut self, header: &Header, point: LogPoint) -> Result<Option<Vec<u8>>, StoreError> {
        let at = header.place_at(point).payload();
        self.bytes_beside(point, at, header.payload_bytes())
    }

    fn bytes(&mut self, at: LogPoint, count: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.bytes_beside(at, at.offset, count)
    }

    /// See [`Window::get_beside`].
    fn bytes_beside(
        &mut self,
        at: LogPoint,
        offset: u64,
        count: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let before = self.window(at.segment)?.read;
        let window = &mut self.window.as_mut().expect("just opened").1;
        let bytes = window
            .get_beside(at.offset, offset, count)
            .map(|bytes| bytes.map(<[u8]>::to_vec))
            .doing(&self.dir, "reading a segment")?;
        self.bytes_read += window.read - before;
        Ok(bytes)
    }

    fn window(&mut self, segment: u32) -> Result<&mut Window<M::File>, StoreError> {
        if self.window.as_ref().is_none_or(|(id, _)| *id != segment) {
            let window = self
                .media
                .open_direct(&file_name(segment))
                .and_then(Window::new)
                .doing(&self.dir, "opening a segment")?;
            self.window = Some((segment, window));
        }
        Ok(&mut self.window.as_mut().expect("just opened").1)
    }

    /// What was accepted may still be in the cache of the kernel only. The first frame of this start
    /// says that it is accepted, so it has to be on media before that frame.
    pub fn sync_accepted(&mut self) -> Result<(), StoreError> {
        let from = self.directory.synced.segment;
        for (segment, _) in self.segments.range(from..) {
            self.files
                .of(*segment)
                .and_then(|file| file.sync())
                .doing(&self.dir, "syncing what was recovered")?;
        }
        self.media
            .sync_dir()
            .doing(&self.dir, "syncing the directory")?;
        self.note_end();
        Ok(())
    }

    /// The last frame so far is the last one of its segment.
    fn note_end(&mut self) {
        if let Some(last) = self.segments.get_mut(&self.end.segment) {
            last.end = self.end.offset;
        }
    }

    /// The segment that is not part of the log any more and shows that something of it was lost.
    pub fn evidence(&self) -> Option<u32> {
        let proof = self.proof.filter(|_| self.lost)?;
        let segment = proof.last.segment;
        (!self.segments.contains_key(&segment)).then_some(segment)
    }

    /// Removes what a crash left over: segments that nothing refers to, made ahead, or cut off.
    /// All but one, if somebody still wants that.
    pub fn remove_leftovers(
        &mut self,
        found: &[String],
        wanted: Option<u32>,
    ) -> Result<(), StoreError> {
        for segment in &self.existing {
            if !self.segments.contains_key(segment) && Some(*segment) != wanted {
                self.media
                    .remove(&file_name(*segment))
                    .doing(&self.dir, "removing a leftover segment")?;
            }
        }
        let number = self.number;
        let old = |name: &&String| {
            parse_name(name).is_some_and(|n| n != number) || directory::is_temporary(name)
        };
        for name in found.iter().filter(old) {
            self.media
                .remove(name)
                .doing(&self.dir, "removing a leftover file")?;
        }
        Ok(())
    }

    fn bad_frame(&self, at: LogPoint) -> StoreError {
        self.damaged("a frame that was synced is not intact", at.to_string())
    }

    /// It counts its starts, or its segments, to a number that no store lives to reach.
    pub fn ran_out(&self) -> StoreError {
        let place = self.end.to_string();
        self.damaged("it counts more starts or segments than there are", place)
    }

    fn damaged(&self, what: &str, place: String) -> StoreError {
        StoreError::Damaged {
            dir: self.dir.clone(),
            what: what.into(),
            place,
        }
    }

    fn io(&self, error: io::Error, doing: &'static str) -> StoreError {
        StoreError::Io {
            dir: self.dir.clone(),
            doing,
            error,
        }
    }
}

/// How much is searched at once.
const STRETCH_BYTES: u64 = 64 << 10;
