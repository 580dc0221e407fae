//! Large reads past the page cache.
//!
//! Through it, a read that has to come from the media costs a page of memory and two copies for each 4 KiB: from the
//! cache, and to where it is wanted. For small reads that is well spent, many of them come again. Who reads in large
//! pieces often reads all of something once, or keeps it himself, as a guest's own page cache does. So where little of such a
//! read is cached, the device writes the frames, headers and all, to pages of ours; there they are checked, and moved
//! together to what a reader wants: the blocks alone. What is wanted again soon goes through the page cache, and stays
//! there ([`Seen`]; the idea is that of 2Q: Johnson and Shasha, VLDB 1994).
//!
//! ```text
//!  from the media   |.....hdr|block 0|hdr|block 1|hdr|block 2|...|    whole pages, the frames anywhere in them
//!  checked          |block 0|block 1|block 2|
//! ```

use super::frame::{DATA_FRAME_BYTES, HEADER_BYTES};
use super::media::{DIRECT_ALIGN, FileMedia, OpenFile};
use super::place::Place;
use super::read::{Fetch, ReadPlan, frame_behind};
use super::waiting_read::WaitingPart;
use crate::message::{Found, MAX_DATA_BLOCKS, ReadBlocks, Refusal, checksum};
use crate::words::{BLOCK_BYTES, StoreId};
use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Smaller reads go through the page cache. Above what a Linux guest reads ahead (128 KiB): that is asked for one after
/// another, and the host's kernel then reads ahead of the guest.
const LARGE_BYTES: usize = 256 << 10;
/// So many frames stand together at least, everywhere in the read: each place of its own costs up to two pages more.
const LEAST_FRAMES: u32 = 16;
/// What any such read needs.
pub(super) const MEMORY_BYTES: usize = {
    let places = MAX_DATA_BLOCKS.div_ceil(LEAST_FRAMES) as usize;
    let frames = MAX_DATA_BLOCKS as usize * FRAME;
    frames.next_multiple_of(DIRECT_ALIGN) + 2 * places * DIRECT_ALIGN
};
/// Memory that nobody uses is kept for so many of the next ones.
const MOST_IDLE: usize = 8;

const BLOCK: usize = BLOCK_BYTES as usize;
const HEADER: usize = HEADER_BYTES as usize;
const FRAME: usize = DATA_FRAME_BYTES as usize;

/// Of all stores of this process.
static IDLE: Mutex<Vec<Vec<Page>>> = Mutex::new(Vec::new());
static SEEN: Seen = Seen::new();

impl ReadPlan<FileMedia> {
    /// Whether this read is large, most of it would have to come from the media, and nobody read the same lately: then
    /// it is not worth trying without waiting, and goes past the page cache.
    pub fn looks_cold(&mut self) -> bool {
        self.past_cache = self.data_bytes() >= LARGE_BYTES
            && self.fetches.iter().all(|fetch| {
                let place = fetch.place.offset();
                fetch.count >= LEAST_FRAMES && fetch.file.is_cold(place, bytes_of(fetch))
            })
            && !SEEN.again(self.store, self.fetches[0].place);
        self.past_cache
    }
}

/// Where the last reads past the page cache began: as many as there are slots, less those that fell into one.
struct Seen {
    slots: [AtomicU64; 8192],
}

impl Seen {
    const fn new() -> Seen {
        Seen {
            slots: [const { AtomicU64::new(0) }; 8192],
        }
    }

    /// Whether one began here lately. If so it is forgotten: should what is cached now be gone by the next time, there is not
    /// memory enough for it.
    fn again(&self, store: StoreId, place: Place) -> bool {
        let here = (u64::from(place.segment) << 32) | u64::from(place.unit);
        let here = (here ^ store.as_u128() as u64).wrapping_mul(SPREAD);
        let slot = &self.slots[(here >> 32) as usize % self.slots.len()];
        let again = slot.load(Ordering::Relaxed) == here;
        slot.store(if again { 0 } else { here }, Ordering::Relaxed);
        again
    }
}

/// 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming, 6.4): near places fall far apart.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

fn bytes_of(fetch: &Fetch<FileMedia>) -> u64 {
    u64::from(fetch.count) * DATA_FRAME_BYTES
}

/// A read past the page cache. Its memory is to stay until all parts have ended.
pub(super) struct PastCache {
    pages: Pages,
    stretches: SmallVec<[Stretch; 1]>,
}

/// Frames that stand together: what of the file is read, and where that goes.
struct Stretch {
    file: OpenFile,
    offset: u64,
    into: [libc::iovec; 1],
    /// Where in all of the memory the first frame begins.
    first: usize,
}

impl PastCache {
    /// None where the file system has no such reads.
    pub fn of(plan: &ReadPlan<FileMedia>) -> Option<PastCache> {
        let mut pages = Pages::take();
        let start = pages.0.as_mut_ptr().cast::<u8>();
        let mut stretches = SmallVec::new();
        let mut at = 0;
        for fetch in &plan.fetches {
            let align = DIRECT_ALIGN as u64;
            let place = fetch.place.offset();
            let offset = place / align * align;
            let bytes = (place + bytes_of(fetch)).next_multiple_of(align) - offset;
            assert!(at + bytes as usize <= MEMORY_BYTES, "the largest read fits");
            stretches.push(Stretch {
                file: fetch.file.open_past_cache().ok()?,
                offset,
                into: [libc::iovec {
                    iov_base: start.wrapping_add(at).cast(),
                    iov_len: bytes as usize,
                }],
                first: at + (place - offset) as usize,
            });
            at += bytes as usize;
        }
        Some(PastCache { pages, stretches })
    }

    pub fn parts(&self) -> usize {
        self.stretches.len()
    }

    pub fn part(&self, index: usize) -> WaitingPart<'_> {
        let stretch = &self.stretches[index];
        WaitingPart {
            file: stretch.file.as_fd(),
            offset: stretch.offset,
            iovecs: &stretch.into,
            bytes: stretch.into[0].iov_len,
        }
    }

    /// All parts were read whole: checks the frames, and leaves their blocks.
    pub fn finish(self, plan: &ReadPlan<FileMedia>) -> Result<ReadBlocks, Refusal> {
        let PastCache {
            mut pages,
            stretches,
        } = self;
        let mut found = plan.found_unread();
        let memory = pages.as_mut_bytes();
        // Never ahead of the frame that is looked at.
        let mut end = 0;
        for (fetch, stretch) in plan.fetches.iter().zip(&stretches) {
            for i in 0..fetch.count {
                let index = fetch.index + i;
                let place = frame_behind(fetch.place, i);
                let from = stretch.first + i as usize * FRAME;
                let (header, block) = memory[from..from + FRAME].split_at(HEADER);
                let header = plan.expected(header, place, index);
                let intact = header.filter(|header| header.data_sum == checksum(block));
                let read = match intact {
                    Some(header) => {
                        memory.copy_within(from + HEADER..from + FRAME, end);
                        header.data_sum
                    }
                    None => {
                        let (sum, block) = plan.read_again(fetch, place, index)?;
                        memory[end..end + BLOCK].copy_from_slice(&block[..]);
                        sum
                    }
                };
                if let Found::Data { sum, .. } = &mut found[index as usize] {
                    *sum = read;
                }
                end += BLOCK;
            }
        }
        let data = Bytes::from_owner(Filled { pages, end });
        Ok(ReadBlocks { found, data })
    }
}

/// What a device can write to, and whoever reads past the page cache.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; DIRECT_ALIGN]);

/// [`MEMORY_BYTES`]; what they held before stays in them.
struct Pages(Vec<Page>);

impl Pages {
    fn take() -> Pages {
        let idle = IDLE.lock().pop();
        let all = MEMORY_BYTES / DIRECT_ALIGN;
        Pages(idle.unwrap_or_else(|| vec![Page([0; DIRECT_ALIGN]); all]))
    }

    fn as_mut_bytes(&mut self) -> &mut [u8] {
        self.0.as_mut_slice().as_mut_bytes()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let mut idle = IDLE.lock();
        if idle.len() < MOST_IDLE {
            idle.push(std::mem::take(&mut self.0));
        }
    }
}

/// Pages that blocks were moved together in, up to `end`.
struct Filled {
    pages: Pages,
    end: usize,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.pages.0.as_slice().as_bytes()[..self.end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: StoreId = StoreId::from_u128(7);

    #[test]
    fn a_read_is_known_when_it_comes_again_and_only_then() {
        let seen = Box::new(Seen::new());
        let places = |segment: u32| (0..60).map(move |mib| Place::new(segment, (mib << 20) + 64));
        for segment in 1..8 {
            let again = places(segment).filter(|place| seen.again(STORE, *place));
            assert_eq!(
                again.count(),
                0,
                "nothing of segment {segment} was read before"
            );
        }
        let known = (1..8)
            .flat_map(places)
            .filter(|place| seen.again(STORE, *place));
        let known = known.count();
        assert!(known > 7 * 60 * 9 / 10, "{known} of {}", 7 * 60);
        let third = (1..8)
            .flat_map(places)
            .filter(|place| seen.again(STORE, *place));
        assert!(third.count() < 7 * 60 / 10, "it was cached then");
        let place = Place::new(1, 64);
        assert!(!seen.again(StoreId::from_u128(8), place), "another store's");
    }

    #[test]
    fn memory_that_was_used_is_used_again_and_little_of_it_is_kept() {
        let many: Vec<Pages> = (0..3 * MOST_IDLE).map(|_| Pages::take()).collect();
        drop(many);
        assert!(IDLE.lock().len() <= MOST_IDLE);
        let pages = Pages::take();
        assert_eq!(pages.0.len() * DIRECT_ALIGN, MEMORY_BYTES);
        assert_eq!(pages.0.as_ptr() as usize % DIRECT_ALIGN, 0);
    }
}
