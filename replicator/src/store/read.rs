//! Reading blocks: planned under the store's lock, carried out without it.
//!
//! The frames' headers go into memory of our own and the blocks straight to where they are wanted; then
//! header and checksum say whether the media returned what was written. A guest may scribble in its
//! own buffer meanwhile, so a block that does not match is read once more, into memory of our own,
//! before it counts as damaged.

use super::damage::{Finds, Spoilt};
use super::frame::{HEADER_BYTES, Header, Kind, RawHeader};
use super::index::Entry;
use super::media::{Media, MediaFile, Piece};
use super::place::{MAX_APART, Place};
use super::sums::Sums;
use crate::message::{Found, ReadBlocks, Refusal, checksum};
use crate::plant::{Plant, planted};
use crate::words::{BLOCK_BYTES, Block, Blocks, DiskId, StoreId, Version};
use bytes::{Bytes, BytesMut};
use smallvec::{SmallVec, smallvec};
use std::io;
use std::sync::Arc;

const BLOCK: usize = BLOCK_BYTES as usize;

/// Where the blocks of a read land.
///
/// # Safety
/// Every piece that [`Destination::memory`] names stays mapped and writable for as long as the
/// destination lives, and nobody in this process holds a reference to it.
pub unsafe trait Destination: Send + Sync {
    /// The memory for the `index`th block of the read, 4096 bytes in sum; false if the block does not
    /// land there whole: then it comes by [`Destination::put`].
    fn memory(&self, index: u32, piece: &mut dyn FnMut(*mut u8, usize)) -> bool;
    /// The `index`th block has this content.
    fn put(&self, index: u32, block: &[u8; BLOCK]);
}

/// How to answer one read.
pub struct ReadPlan<M: Media> {
    pub(super) store: StoreId,
    pub(super) disk: DiskId,
    pub(super) blocks: Blocks,
    pub(super) found: Vec<Planned>,
    pub(super) fetches: SmallVec<[Fetch<M>; 1]>,
    pub(super) finds: Finds,
    /// It is to go past the page cache: see [`ReadPlan::looks_cold`].
    pub(super) past_cache: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Planned {
    Absent,
    Zeroes(Version),
    Data(Version),
}

/// Frames of one file, as they stand that were appended together.
pub(super) struct Fetch<M: Media> {
    pub file: Arc<M::File>,
    pub sums: Arc<Sums>,
    pub place: Place,
    /// The first one's place in the request.
    pub index: u32,
    pub count: u32,
}

/// Why a read that must not wait gave no answer.
pub enum NotNow {
    WouldWait,
    Refused(Refusal),
}

impl<M: Media> ReadPlan<M> {
    /// How much data there is to read.
    pub fn data_bytes(&self) -> usize {
        let data = |planned: &&Planned| matches!(planned, Planned::Data(_));
        self.found.iter().filter(data).count() * BLOCK
    }

    /// Reads into `into`; the answer's `data` stays empty. Blocks of zeroes and absent ones are not touched.
    pub fn run_into(&self, into: &dyn Destination) -> Result<ReadBlocks, Refusal> {
        match self.try_run(into, false) {
            Ok(blocks) => Ok(blocks),
            Err(NotNow::Refused(refusal)) => Err(refusal),
            Err(NotNow::WouldWait) => unreachable!("only asked for with `now`"),
        }
    }

    /// Like [`ReadPlan::run_into`], but gives up where it would have to wait for the media.
    pub fn run_now(&self, into: &dyn Destination) -> Result<ReadBlocks, NotNow> {
        self.try_run(into, true)
    }

    /// Reads into memory of its own: `data` holds the blocks that are data, one after another.
    pub fn run(&self) -> Result<ReadBlocks, Refusal> {
        let own = Own::of(self);
        let mut blocks = self.run_into(&own)?;
        blocks.data = own.into_bytes();
        Ok(blocks)
    }

    /// The destination that [`ReadPlan::run`] uses, for callers that try without waiting first.
    pub fn own_memory(&self) -> Own {
        Own::of(self)
    }

    fn try_run(&self, into: &dyn Destination, now: bool) -> Result<ReadBlocks, NotNow> {
        let mut found = self.found_unread();
        for fetch in &self.fetches {
            self.fetch(fetch, into, now, &mut found)?;
        }
        Ok(ReadBlocks {
            found,
            data: Bytes::new(),
        })
    }

    /// The answer, but for the checksums of what is still to be read.
    pub(super) fn found_unread(&self) -> Vec<Found> {
        self.found
            .iter()
            .map(|planned| match planned {
                Planned::Absent => Found::Absent,
                Planned::Zeroes(version) => Found::Zeroes(*version),
                Planned::Data(version) => Found::Data {
                    version: *version,
                    sum: 0,
                },
            })
            .collect()
    }

    fn fetch(
        &self,
        fetch: &Fetch<M>,
        into: &dyn Destination,
        now: bool,
        found: &mut [Found],
    ) -> Result<(), NotNow> {
        let part = Part::of(fetch, into);
        for stretch in &part.stretches {
            // SAFETY: headers and own blocks are the part's, which lives to the end of this function and is not
            // touched until then; the rest is the destination's promise.
            let read = unsafe { fetch.file.read_pieces(stretch.offset, &stretch.pieces, now) };
            match read {
                Err(error) if now && error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(NotNow::WouldWait);
                }
                Err(_) if now => return Err(NotNow::WouldWait),
                Err(error) => {
                    tracing::error!(%error, place = %fetch.place, "the media failed to read");
                    return self.one_by_one(fetch, into, found);
                }
                Ok(()) => {}
            }
        }
        self.check(fetch, part, into, found)
    }

    /// What was read of a fetch is what was written; the checksums go into `found`.
    pub(super) fn check(
        &self,
        fetch: &Fetch<M>,
        part: Part,
        into: &dyn Destination,
        found: &mut [Found],
    ) -> Result<(), NotNow> {
        let Part {
            known,
            headers,
            whole,
            own,
            ..
        } = part;
        let mut own = own.into_iter();
        for i in 0..fetch.count {
            let index = fetch.index + i;
            let place = fetch.place.nth(i);
            let written = match known.get(i as usize) {
                Some(sum) => Some(*sum),
                None => {
                    let header = self.expected(headers.get(i), place, index);
                    header.map(|header| header.data_sum)
                }
            };
            let sum = match written {
                None => None,
                Some(written) if whole[i as usize] => {
                    (checksum_memory(into, index) == written).then_some(written)
                }
                Some(written) => {
                    let block = own.next().expect("one for each that does not land whole");
                    let intact = checksum(&block[..]) == written;
                    intact.then(|| {
                        into.put(index, &block);
                        written
                    })
                }
            };
            if let Some(sum) = sum {
                fetch.sums.note(place, sum);
            }
            let sum = match sum {
                Some(sum) => sum,
                None => self.again(fetch, place, index, into)?,
            };
            if let Found::Data { sum: answer, .. } = &mut found[index as usize] {
                *answer = sum;
            }
        }
        Ok(())
    }

    /// After an error that says nothing of where: each block by itself, so that the right one is named.
    fn one_by_one(
        &self,
        fetch: &Fetch<M>,
        into: &dyn Destination,
        found: &mut [Found],
    ) -> Result<(), NotNow> {
        for i in 0..fetch.count {
            let index = fetch.index + i;
            let read = self.again(fetch, fetch.place.nth(i), index, into)?;
            if let Found::Data { sum, .. } = &mut found[index as usize] {
                *sum = read;
            }
        }
        Ok(())
    }

    /// Reads a block that did not match into memory that nobody else can change.
    fn again(
        &self,
        fetch: &Fetch<M>,
        place: Place,
        index: u32,
        into: &dyn Destination,
    ) -> Result<u32, NotNow> {
        let mut raw = [0; HEADER_BYTES as usize];
        let mut data = Box::new([0; BLOCK]);
        let read = fetch.file.read_at(place.offset(), &mut raw);
        let read = read.and_then(|()| fetch.file.read_at(place.payload(), &mut data[..]));
        let intact = self.expected(&raw, place, index).filter(|header| {
            let matches = checksum(&data[..]) == header.data_sum || planted(Plant::DamageServed);
            read.is_ok() && matches
        });
        match intact {
            Some(header) => {
                into.put(index, &data);
                Ok(header.data_sum)
            }
            None => {
                let block = self.block_of(index);
                tracing::error!(
                    disk = %self.disk, block = block.0, %place,
                    "the media returned something else than was written"
                );
                if let Planned::Data(version) = self.found[index as usize] {
                    let spoilt = Spoilt {
                        disk: self.disk,
                        block,
                        version,
                    };
                    self.finds.add(spoilt, Some(place));
                }
                Err(NotNow::Refused(Refusal::Damaged { block }))
            }
        }
    }

    /// The header, if it is the frame of the block and version that the index says.
    pub(super) fn expected(&self, raw: &[u8], place: Place, index: u32) -> Option<Header> {
        let header = RawHeader::decode(raw, self.store, place)?;
        let matches = header.kind == Kind::Data
            && header.apart == place.apart()
            && header.disk == self.disk
            && header.block == self.block_of(index).0
            && self.found[index as usize] == Planned::Data(header.version());
        matches.then_some(header)
    }

    fn block_of(&self, index: u32) -> Block {
        Block(self.blocks.first.0 + u64::from(index))
    }

    /// Adds a block of data, to an earlier fetch where its frame follows.
    pub(super) fn plan(
        &mut self,
        index: u32,
        entry: &Entry,
        file: impl FnOnce() -> io::Result<(Arc<M::File>, Arc<Sums>)>,
    ) -> io::Result<()> {
        if let Some(last) = self.fetches.last_mut()
            && last.index + last.count == index
            && last.place.nth(last.count) == entry.place
        {
            last.count += 1;
            return Ok(());
        }
        let (file, sums) = file()?;
        self.fetches.push(Fetch {
            file,
            sums,
            place: entry.place,
            index,
            count: 1,
        });
        Ok(())
    }
}

/// The memory that the frames of one fetch are read into.
pub(super) struct Part {
    /// The checksums with which the blocks were written, if that is known of all of them.
    known: SmallVec<[u32; 4]>,
    headers: Headers,
    /// Which blocks land whole.
    whole: SmallVec<[bool; 4]>,
    /// The others.
    own: Vec<Box<[u8; BLOCK]>>,
    /// All that is to be read: the blocks, and the headers where these stand apart and are needed.
    pub stretches: SmallVec<[Stretch; 2]>,
}

/// A part of the file, and where it goes.
pub(super) struct Stretch {
    pub offset: u64,
    pub pieces: SmallVec<[Piece; 4]>,
}

impl Part {
    pub fn of<M: Media>(fetch: &Fetch<M>, into: &dyn Destination) -> Part {
        let sums = (0..fetch.count).map(|i| fetch.sums.get(fetch.place.nth(i)));
        let known: SmallVec<[u32; 4]> = sums.collect::<Option<_>>().unwrap_or_default();
        let mut headers = Headers::of(fetch.place, fetch.count, !known.is_empty());
        let (mut whole, mut own) = (SmallVec::new(), Vec::new());
        let mut pieces = SmallVec::new();
        for i in 0..fetch.count {
            pieces.extend(headers.before_block(i));
            let lands = into.memory(fetch.index + i, &mut |start, len| {
                pieces.push(Piece { start, len });
            });
            whole.push(lands);
            if !lands {
                let mut block: Box<[u8; BLOCK]> = Box::new([0; BLOCK]);
                pieces.push(Piece {
                    start: block.as_mut_ptr(),
                    len: BLOCK,
                });
                own.push(block);
            }
        }
        let mut stretches = SmallVec::new();
        let place = fetch.place;
        if place.apart() == 0 {
            let offset = place.offset();
            stretches.push(Stretch { offset, pieces });
        } else {
            let offset = place.payload();
            stretches.push(Stretch { offset, pieces });
            if known.is_empty() {
                stretches.push(Stretch {
                    offset: place.offset(),
                    pieces: smallvec![headers.of_first_page()],
                });
            }
        }
        Part {
            known,
            headers,
            whole,
            own,
            stretches,
        }
    }
}

/// The headers of one fetch: each by itself, where they stand between the blocks; else those of the first page, and
/// then a page for each that stands between the blocks.
pub(super) struct Headers {
    bytes: Vec<u8>,
    apart: bool,
    /// How many are in the first page.
    first: u32,
    /// Nobody looks at them: none of the first page is read, and all others go to the same memory.
    ignored: bool,
}

const HEADER: usize = HEADER_BYTES as usize;
const A_PAGE: u32 = MAX_APART as u32;

impl Headers {
    pub fn of(place: Place, count: u32, ignored: bool) -> Headers {
        let apart = place.apart() > 0;
        let first = match apart {
            true => count.min(place.left_in_page() + 1),
            false => count,
        };
        let pages = (count - first).div_ceil(A_PAGE) as usize;
        let bytes = match ignored {
            true => pages.min(1) * BLOCK,
            false => first as usize * HEADER + pages * BLOCK,
        };
        Headers {
            bytes: vec![0; bytes],
            apart,
            first,
            ignored,
        }
    }

    /// What of them stands right before the `i`th block.
    fn before_block(&mut self, i: u32) -> Option<Piece> {
        let (from, len) = match (self.apart, i.checked_sub(self.first)) {
            (false, _) => (i as usize * HEADER, HEADER),
            (true, Some(behind)) if behind % A_PAGE == 0 => (self.page_of(behind), BLOCK),
            (true, _) => return None,
        };
        Some(self.piece(from, len))
    }

    fn of_first_page(&mut self) -> Piece {
        let len = self.first as usize * HEADER;
        self.piece(0, len)
    }

    fn piece(&mut self, from: usize, len: usize) -> Piece {
        let start = self.bytes[from..from + len].as_mut_ptr();
        Piece { start, len }
    }

    /// Where the page begins that has the header of the block so many behind those of the first page.
    fn page_of(&self, behind: u32) -> usize {
        match self.ignored {
            true => 0,
            false => self.first as usize * HEADER + (behind / A_PAGE) as usize * BLOCK,
        }
    }

    /// The header of the `i`th block.
    pub fn get(&self, i: u32) -> &[u8] {
        let from = match i.checked_sub(self.first) {
            None => i as usize * HEADER,
            // A mark stands before them.
            Some(behind) => self.page_of(behind) + (behind % A_PAGE + 1) as usize * HEADER,
        };
        &self.bytes[from..from + HEADER]
    }
}

fn checksum_memory(into: &dyn Destination, index: u32) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    into.memory(index, &mut |start, len| {
        // SAFETY: the memory is mapped (the destination's promise) and the slice ends with this
        // call. Where a guest changes it meanwhile the sum comes out wrong, which is what it is for.
        digest.update(unsafe { std::slice::from_raw_parts(start, len) });
    });
    digest.finalize() as u32
}

/// Memory of our own for the data blocks of a plan, one after another.
pub struct Own {
    memory: BytesMut,
    /// Each block's place in it; None: no data.
    offsets: Vec<Option<usize>>,
    start: *mut u8,
}

// SAFETY: `start` points into `memory`, which it owns and nobody else reaches.
unsafe impl Send for Own {}
// SAFETY: as above; its only reader and writer is the one read that it was made for.
unsafe impl Sync for Own {}

impl Own {
    fn of<M: Media>(plan: &ReadPlan<M>) -> Own {
        let mut bytes = 0;
        let offsets = plan
            .found
            .iter()
            .map(|planned| {
                matches!(planned, Planned::Data(_)).then(|| {
                    bytes += BLOCK;
                    bytes - BLOCK
                })
            })
            .collect();
        let mut memory = BytesMut::zeroed(bytes);
        let start = memory.as_mut_ptr();
        Own {
            memory,
            offsets,
            start,
        }
    }

    pub fn into_bytes(self) -> Bytes {
        self.memory.freeze()
    }

    fn at(&self, index: u32) -> *mut u8 {
        let offset = self.offsets[index as usize].expect("only data has memory");
        // SAFETY: the offset is within `memory`.
        unsafe { self.start.add(offset) }
    }
}

// SAFETY: the memory is owned and lives as long as `self`; no reference to it exists before `into_bytes`.
unsafe impl Destination for Own {
    fn memory(&self, index: u32, piece: &mut dyn FnMut(*mut u8, usize)) -> bool {
        piece(self.at(index), BLOCK);
        true
    }

    fn put(&self, index: u32, block: &[u8; BLOCK]) {
        // SAFETY: a whole block of ours, see `at`.
        unsafe { std::ptr::copy_nonoverlapping(block.as_ptr(), self.at(index), BLOCK) };
    }
}
