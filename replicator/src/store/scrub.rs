//! The scrub: reads the log from end to end, slowly and past the cache, to find out what the media spoilt while
//! another copy is still whole.
//!
//! ```text
//!  segments in order, a stretch at a time:
//!    next_scrub    where it stands, as far as the log is synced
//!    (read, without the store; then a pause that keeps the rate)
//!    finish_scrub  frames that do not match: what of them does the index need?
//!                    a block:             noted as damaged (damage.rs); its writer has it healed
//!                    a part of the index: written anew from memory, by a checkpoint
//!                    anything else:       a checkpoint makes it needless
//!    search_spoilt what stood where not even the headers can be read: the index is looked through for it, a little
//!                  at a time
//! ```
//!
//! Where it stands, and what is damaged, goes into the file `scrub`: a restart goes on there. Losing that file
//! costs a pass, nothing else.

use super::Store;
use super::damage::Spoilt;
use super::directory::{self, names, read_file};
use super::frame::{ALIGN, Header, Kind, LogPoint};
use super::holdings::{count_dirty, read_blob};
use super::identity::write_whole;
use super::index::{Chunk, Reader, blocks_of, chunk_of};
use super::media::{Media, MediaFile};
use super::place::{PAGE, Place};
use super::segment::file_name;
use super::stretch::{LEAST_BYTES, Spot, Stands, Stretch, is_intact};
use crate::message::checksum;
use crate::words::{Block, Blocks, DiskId, Epoch, Seq, StoreId, Version};
use std::io;
use std::ops::Range;
use std::time::Duration;

/// How fast a store is scrubbed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ScrubRate {
    Off,
    /// All of it in about a month.
    #[default]
    Monthly,
    BytesPerSecond(u64),
}

/// How far the scrub is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubProgress {
    /// How often all was read.
    pub passes: u64,
    /// Of the pass under way.
    pub permille: u16,
}

/// What is read at once: four pages of headers with their blocks, and what says that there the log goes on.
pub const STRETCH_BYTES: u64 = (1 << 20) + PAGE;
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
/// The monthly rate of small stores and of very large ones.
const SLOWEST: u64 = 64 << 10;
const FASTEST: u64 = 10 << 20;
/// The media are busy with it for no more than one part in so many, however slow they are.
const SHARE: u32 = 10;
/// Between two passes, and between two looks at a store that has nothing to scrub.
pub const REST: Duration = Duration::from_secs(600);

impl ScrubRate {
    /// How long to pause after `bytes` were read, which took `took`; `None`: for ever.
    pub fn pause(self, bytes: u64, took: Duration, used: u64) -> Option<Duration> {
        let rate = match self {
            ScrubRate::Off => return None,
            ScrubRate::Monthly => (used / MONTH.as_secs()).clamp(SLOWEST, FASTEST),
            ScrubRate::BytesPerSecond(rate) => rate.max(1),
        };
        let due = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        Some(due.saturating_sub(took).max(took * (SHARE - 1)))
    }
}

/// Where the scrub stands.
#[derive(Default, Debug)]
pub struct Scrubbing {
    next: LogPoint,
    /// See [`Spot`]. Always 0 at a segment's start.
    blocks: u8,
    search: Option<Search>,
    passes: u64,
    /// What the file says.
    saved: Option<(LogPoint, u64, usize)>,
}

impl Scrubbing {
    fn go_on(&mut self, segment: u32, Spot { offset, blocks }: Spot) {
        self.next = LogPoint { segment, offset };
        self.blocks = blocks;
    }
}

/// Looking through the index for what refers to places where nobody can tell what stood there.
#[derive(Debug)]
struct Search {
    regions: Vec<Region>,
    /// The chunk to go on with.
    next: (DiskId, u64),
}

impl Search {
    const BEGIN: (DiskId, u64) = (DiskId::from_u128(0), 0);
}

/// From here to there nothing makes sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Region {
    first: Place,
    end: u64,
}

impl Region {
    fn contains(&self, place: Place) -> bool {
        place.segment == self.first.segment && self.bytes().contains(&place.offset())
    }

    fn bytes(&self) -> Range<u64> {
        self.first.offset()..self.end
    }
}

/// Chunks of the index that are looked through at once; one that is not in memory counts for as many.
const SEARCHED_AT_ONCE: usize = 64;

/// A stretch of a segment to be read.
pub struct Scrub<M: Media> {
    media: M,
    segment: u32,
    /// The frame to begin with.
    from: Spot,
    /// What is read begins here.
    start: u64,
    bytes: u64,
    /// There is more behind that.
    more: bool,
    /// Where the segment's frames end.
    end: u64,
}

impl<M: Media> Scrub<M> {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the media have; zeroes where they do not give anything.
    pub fn run(&self) -> io::Result<Vec<u8>> {
        const PIECE: usize = 4096;
        let file = self.media.open_direct(&file_name(self.segment))?;
        let mut bytes = vec![0; self.bytes as usize];
        if file.read_at(self.start, &mut bytes).is_err() {
            for (i, piece) in bytes.chunks_mut(PIECE).enumerate() {
                let at = self.start + (i * PIECE) as u64;
                if let Err(error) = file.read_at(at, piece) {
                    tracing::error!(%error, segment = self.segment, offset = at, "the media failed to read");
                    piece.fill(0);
                }
            }
        }
        Ok(bytes)
    }
}

/// What does not match in a stretch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bad {
    /// The payload of this frame.
    Payload(Header, Place),
    Region(Region),
}

impl<M: Media> Store<M> {
    /// What to read next; `None`: all was read, or there is nothing.
    pub fn next_scrub(&mut self) -> Option<Scrub<M>> {
        if self.has_failed() {
            return None;
        }
        let synced = self.synced();
        if self.scrubbing.next.segment > synced.segment {
            // The file may be newer than the log, where a directory was put back.
            self.scrubbing.go_on(0, Spot::default());
        }
        let next = self.scrubbing.next;
        let mut segments = self.log.segments.range(next.segment..=synced.segment);
        let found = segments.find_map(|(id, segment)| {
            let end = match *id == synced.segment {
                true => synced.offset,
                false => segment.end,
            };
            let from = match *id == next.segment {
                true => Spot {
                    offset: next.offset,
                    blocks: self.scrubbing.blocks,
                },
                false => Spot::default(),
            };
            (from.offset < end).then_some((*id, from, end, segment.bytes))
        });
        let Some((segment, from, end, all)) = found else {
            self.scrubbing.go_on(0, Spot::default());
            self.scrubbing.passes += u64::from(next != LogPoint::default());
            self.scrub_checkpoint();
            return None;
        };
        let start = Stretch::start_for(from.offset);
        // No more than its last frame needs: others are being appended behind it.
        let last = Stretch::start_for(end) + LEAST_BYTES;
        let left = last.min(all).saturating_sub(start);
        Some(Scrub {
            media: self.log.media.clone(),
            segment,
            from,
            start,
            bytes: STRETCH_BYTES.min(left),
            more: STRETCH_BYTES < left,
            end,
        })
    }

    /// Takes in what was read.
    pub fn finish_scrub(&mut self, scrub: Scrub<M>, read: io::Result<Vec<u8>>) {
        let segment = scrub.segment;
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(store = %self.id, %error, segment, "a segment cannot be scrubbed");
                }
                // Most likely it was let go of meanwhile.
                self.scrubbing.go_on(segment + 1, Spot::default());
                return;
            }
        };
        let stretch = Stretch {
            store: self.id,
            segment,
            start: scrub.start,
            bytes: &bytes,
            more: scrub.more,
            end: scrub.end,
        };
        let (bad, next) = look(&stretch, scrub.from);
        let mut checkpoint = false;
        for bad in bad {
            match bad {
                Bad::Payload(header, place) if header.kind == Kind::Data => {
                    self.find_spoilt(header.disk, header.blocks(), |at| at == place);
                }
                Bad::Payload(header, place) => {
                    if header.kind == Kind::Index {
                        let chunk = chunk_of(Block(header.block));
                        self.find_spoilt_index(header.disk, chunk, |at| at == place);
                    }
                    tracing::warn!(store = %self.id, kind = ?header.kind, %place, "a frame is damaged");
                    checkpoint = true;
                }
                Bad::Region(region) => {
                    tracing::warn!(store = %self.id, from = %region.first, to = region.end, "frames are damaged");
                    if !self.holdings.live.is_dead(segment) {
                        let search = self.scrubbing.search.get_or_insert(Search {
                            regions: Vec::new(),
                            next: Search::BEGIN,
                        });
                        search.regions.push(region);
                        search.next = Search::BEGIN;
                    }
                    checkpoint = true;
                }
            }
        }
        // After a search there is more to be written anew.
        if checkpoint && self.scrubbing.search.is_none() {
            self.start_checkpoint();
        }
        self.scrubbing.go_on(segment, next);
        self.note_finds();
    }

    pub fn scrub_progress(&self) -> ScrubProgress {
        let synced = self.synced();
        let part = |point: LogPoint| -> u64 {
            let segments = self.log.segments.range(..=point.segment);
            let bytes = segments.map(|(id, segment)| match *id == point.segment {
                true => point.offset,
                false => segment.end,
            });
            bytes.sum()
        };
        let (done, all) = (part(self.scrubbing.next.min(synced)), part(synced).max(1));
        ScrubProgress {
            passes: self.scrubbing.passes,
            permille: (done * 1000 / all) as u16,
        }
    }

    /// Notes the blocks whose frames stand at such places.
    fn find_spoilt(&mut self, disk: DiskId, blocks: Blocks, at: impl Fn(Place) -> bool) {
        if self.load(disk, blocks).is_err() {
            return;
        }
        for block in blocks.iter() {
            let here = |entry: &super::index::Entry| !entry.zeroes && at(entry.place);
            if let Some(entry) = self.holdings.entry(disk, block, here) {
                let spoilt = Spoilt {
                    disk,
                    block,
                    version: entry.version,
                };
                self.damages.finds.add(spoilt, Some(entry.place));
            }
        }
    }

    /// Looks through some of the index for what stood where nobody can tell. False: there is nothing to look for
    /// any more.
    pub fn search_spoilt(&mut self) -> bool {
        let Some(mut search) = self.scrubbing.search.take() else {
            return false;
        };
        let (disk, chunk) = search.next;
        let disks = self.holdings.disks.range(disk..);
        let chunks = disks.flat_map(|(id, state)| {
            let from = if *id == disk { chunk } else { 0 };
            state.chunks.range(from..).map(|(chunk, _)| (*id, *chunk))
        });
        let some: Vec<(DiskId, u64)> = chunks.take(SEARCHED_AT_ONCE).collect();
        if some.is_empty() {
            self.start_checkpoint();
            return false;
        }
        for (disk, chunk) in some {
            search.next = (disk, chunk + 1);
            if self.search_chunk(disk, chunk, &search.regions) {
                break;
            }
        }
        self.note_finds();
        self.scrubbing.search = Some(search);
        true
    }

    /// True: it had to be read. It is not kept in memory for this, unless it refers to something.
    fn search_chunk(&mut self, disk: DiskId, chunk: u64, regions: &[Region]) -> bool {
        let within = |place: Place| regions.iter().any(|region| region.contains(place));
        self.find_spoilt_index(disk, chunk, within);
        let state = self.holdings.disks.get(&disk);
        let Some(slot) = state.and_then(|state| state.chunks.get(&chunk)) else {
            return false;
        };
        let refers = |content: &Chunk| {
            let mut regions = regions.iter();
            regions.any(|region| content.may_refer_to(region.first.segment, &region.bytes()))
        };
        let (found, read) = match &slot.chunk {
            Some(content) => (refers(content), false),
            None => {
                let files = &mut self.log.files;
                let content = read_blob(files, self.id, disk, chunk, &slot.blob);
                (content.is_ok_and(|(content, _)| refers(&content)), true)
            }
        };
        if found {
            self.find_spoilt(disk, blocks_of(chunk), within);
        }
        read
    }

    /// A part of the index that is in memory is written anew by the next checkpoint. One that is not is lost.
    fn find_spoilt_index(&mut self, disk: DiskId, chunk: u64, at: impl Fn(Place) -> bool) {
        let state = self.holdings.disks.get_mut(&disk);
        let Some(slot) = state.and_then(|state| state.chunks.get_mut(&chunk)) else {
            return;
        };
        if !slot.blob.iter().any(|place| at(*place)) {
            return;
        }
        if slot.chunk.is_some() {
            slot.dirty = true;
            count_dirty(&mut self.holdings.dirty_bytes, slot);
        } else {
            tracing::error!(
                store = %self.id, %disk, blocks = %blocks_of(chunk),
                "the index of these blocks is damaged: this store cannot read them any more"
            );
        }
    }

    /// Both copies of the checkpoint; where one is damaged, a new one is made while the other serves.
    fn scrub_checkpoint(&mut self) {
        let whole = |name: &String| {
            let bytes = read_file(&self.log.media, name);
            let bytes = bytes.ok().flatten();
            bytes.is_some_and(|bytes| directory::Directory::decode(self.id, &bytes).is_some())
        };
        if !names(self.checkpoint_number()).iter().all(whole) {
            tracing::warn!(store = %self.id, "a copy of the checkpoint is damaged: another one is made");
            self.start_checkpoint();
        }
    }

    /// What to put into the file `scrub` by [`save`], if that says something else.
    pub fn scrub_to_save(&mut self) -> Option<Vec<u8>> {
        let mut next = self.scrubbing.next;
        // What is not looked for to the end is found once more.
        if let Some(search) = &self.scrubbing.search {
            next = next.min(search.regions[0].first.point());
        }
        let LogPoint { segment, .. } = next;
        let at = LogPoint { segment, offset: 0 };
        let now = (at, self.scrubbing.passes, self.damages.len());
        if self.scrubbing.saved == Some(now) {
            return None;
        }
        self.scrubbing.saved = Some(now);
        Some(encode(
            self.id,
            at,
            self.scrubbing.passes,
            self.damages.all(),
        ))
    }

    /// For a store that ends.
    pub(super) fn save_scrub(&mut self) {
        self.note_finds();
        if self.scrubbing.saved.is_none() && self.damages.len() == 0 {
            return;
        }
        if let Some(bytes) = self.scrub_to_save()
            && let Err(error) = save(&self.log.media, &bytes)
        {
            tracing::warn!(store = %self.id, %error, "cannot note how far the scrub is");
        }
    }

    /// Goes on where an earlier process was.
    pub(super) fn load_scrub(&mut self) {
        let bytes = read_file(&self.log.media, FILE).ok().flatten();
        let Some((next, passes, spoilt)) = bytes.and_then(|bytes| decode(self.id, &bytes)) else {
            return;
        };
        self.scrubbing.go_on(next.segment, Spot::default());
        self.scrubbing.passes = passes;
        for spoilt in spoilt {
            self.damages.finds.add(spoilt, None);
        }
    }
}

/// Frames of a stretch from `at` on that do not match, and the frame to go on with in the next one.
fn look(stretch: &Stretch<'_>, mut at: Spot) -> (Vec<Bad>, Spot) {
    let from = at;
    let mut bad = Vec::new();
    let mut region: Option<Place> = None;
    let close = |region: &mut Option<Place>, bad: &mut Vec<Bad>, end: u64| {
        if let Some(first) = region.take() {
            bad.push(Bad::Region(Region { first, end }));
        }
    };
    loop {
        match stretch.at(at) {
            Stands::Frame {
                header,
                place,
                payload,
                next,
            } => {
                close(&mut region, &mut bad, at.offset);
                if !is_intact(&header, payload) {
                    bad.push(Bad::Payload(header, place));
                }
                at = next;
            }
            Stands::Gap { next, .. } if region.is_none() => at = next,
            Stands::End => break,
            // Where it was read as far as any frame could reach, nothing here makes sense.
            Stands::Unknown if at != from && stretch.more => break,
            Stands::Gap { .. } | Stands::Unknown | Stands::Nothing => {
                region.get_or_insert(Place::new(stretch.segment, at.offset));
                at = at.skip();
            }
        }
    }
    close(&mut region, &mut bad, at.offset);
    (bad, at)
}

const FILE: &str = "scrub";
const MAGIC: &[u8; 8] = b"UKAISCRB";

/// Puts what [`Store::scrub_to_save`] gave into the file.
pub fn save<M: Media>(media: &M, bytes: &[u8]) -> io::Result<()> {
    write_whole(media, FILE, bytes)
}

fn encode<'a>(
    store: StoreId,
    next: LogPoint,
    passes: u64,
    spoilt: impl Iterator<Item = &'a Spoilt>,
) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(store.as_u128().to_le_bytes());
    body.extend(next.segment.to_le_bytes());
    body.extend(next.offset.to_le_bytes());
    body.extend(passes.to_le_bytes());
    for spoilt in spoilt {
        body.extend(spoilt.disk.as_u128().to_le_bytes());
        body.extend(spoilt.block.0.to_le_bytes());
        body.extend(spoilt.version.epoch.as_u64().to_le_bytes());
        body.extend(spoilt.version.seq.0.to_le_bytes());
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend(checksum(&body).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn decode(store: StoreId, bytes: &[u8]) -> Option<(LogPoint, u64, Vec<Spoilt>)> {
    let mut head = Reader(bytes.get(..12)?);
    if head.take(8)? != MAGIC || head.u32()? != checksum(&bytes[12..]) {
        return None;
    }
    let mut from = Reader(&bytes[12..]);
    if from.u128()? != store.as_u128() {
        return None;
    }
    let (segment, offset) = (from.u32()?, from.u64()?);
    let passes = from.u64()?;
    let mut spoilt = Vec::new();
    while !from.0.is_empty() {
        spoilt.push(Spoilt {
            disk: DiskId::from_u128(from.u128()?),
            block: Block(from.u64()?),
            version: Version::new(Epoch::from_u64(from.u64()?), Seq(from.u64()?)),
        });
    }
    offset
        .is_multiple_of(ALIGN)
        .then_some((LogPoint { segment, offset }, passes, spoilt))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_rate_is_kept_and_slow_media_are_left_alone() {
        let second = Duration::from_secs(1);
        let quick = Duration::from_millis(1);
        let rate = ScrubRate::BytesPerSecond(10 * MIB);
        assert_eq!(rate.pause(MIB, quick, 0), Some(second / 10 - quick));
        assert_eq!(rate.pause(MIB, second, 0), Some(second * 9));
        assert_eq!(ScrubRate::Off.pause(MIB, quick, 0), None);
    }

    #[test]
    fn a_month_is_enough_for_most_stores_and_no_store_is_read_faster_than_is_gentle() {
        let pause = |used| ScrubRate::Monthly.pause(MIB, Duration::ZERO, used).unwrap();
        assert_eq!(pause(0), Duration::from_secs(16));
        let ten_tib = 10 << 40;
        let stretches = ten_tib / MIB;
        let pass = pause(ten_tib) * u32::try_from(stretches).unwrap();
        assert!(
            pass < MONTH + MONTH / 10 && pass > MONTH * 9 / 10,
            "{pass:?}"
        );
        assert_eq!(pause(1 << 60), Duration::from_millis(100));
    }

    #[test]
    fn what_was_saved_is_read_again_and_nothing_else_is() {
        let store = StoreId::from_u128(7);
        let next = LogPoint {
            segment: 3,
            offset: 640,
        };
        let spoilt = Spoilt {
            disk: DiskId::from_u128(9),
            block: Block(11),
            version: Version::new(Epoch::from_u64(2), Seq(5)),
        };
        let bytes = encode(store, next, 4, [spoilt].iter());
        assert_eq!(decode(store, &bytes), Some((next, 4, vec![spoilt])));
        assert_eq!(decode(StoreId::from_u128(8), &bytes), None);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 4;
            assert_eq!(decode(store, &changed), None);
            assert_eq!(decode(store, &bytes[..at]), None);
        }
    }
}
