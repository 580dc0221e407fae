//! Large reads past the page cache.
//!
//! Through it, a read that has to come from the media costs a page of memory and two copies for each 4 KiB: from the
//! cache, and to where it is wanted. For small reads that is well spent, many of them come again. Who reads in large
//! pieces often reads all of something once, or keeps it himself, as a guest's own page cache does. So where no more than half of such a
//! read is cached, the device writes the frames, headers and all, to pages of ours; there they are checked, and moved
//! together to what a reader wants: the blocks alone. What is wanted again soon goes through the page cache, and stays
//! there ([`Seen`]; the idea is that of 2Q: Johnson and Shasha, VLDB 1994).
//!
//! ```text
//!  from the media   |.....hdr|block 0|hdr|block 1|hdr|block 2|...|    whole pages, the frames anywhere in them
//!  checked          |block 0|block 1|block 2|
//! ```

use super::frame::{DATA_FRAME_BYTES, HEADER_BYTES};
use super::media::{DIRECT_ALIGN, FileMedia};
use super::place::Place;
use super::read::{Fetch, ReadPlan, frame_behind};
use super::waiting_read::WaitingPart;
use crate::message::{Found, ReadBlocks, checksum};
use crate::words::{BLOCK_BYTES, StoreId};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// So many frames stand together at least, everywhere in the read: 256 KiB. Smaller reads go through the page cache. It is
/// above what a Linux guest reads ahead (128 KiB): that is asked for one after another, and the host's kernel then reads
/// ahead of the guest.
const LEAST_FRAMES: u32 = 64;
/// Memory that nobody uses is kept for so many of the next reads, which take little more than 1 MiB each.
const MOST_IDLE: usize = 8;
/// Memory comes in multiples of this, for one read's to be of use to the next.
const STEP_PAGES: usize = 16;

const BLOCK: usize = BLOCK_BYTES as usize;
const HEADER: usize = HEADER_BYTES as usize;
const FRAME: usize = DATA_FRAME_BYTES as usize;

/// Of all stores of this process.
static IDLE: Mutex<Vec<Vec<Page>>> = Mutex::new(Vec::new());
static SEEN: Seen = Seen::new();

impl ReadPlan<FileMedia> {
    /// Whether this read is large, half of it or more would have to come from the media, and nobody read the same lately: then
    /// it is not worth trying without waiting, and goes past the page cache.
    pub fn looks_cold(&mut self) -> bool {
        let large = |fetch: &Fetch<FileMedia>| fetch.count >= LEAST_FRAMES;
        self.past_cache = !self.fetches.is_empty()
            && self.fetches.iter().all(large)
            && self.fetches.iter().all(|fetch| {
                let bytes = u64::from(fetch.count) * DATA_FRAME_BYTES;
                fetch.file.is_cold(fetch.place.offset(), bytes) && fetch.file.past_cache().is_some()
            })
            && !SEEN.again(self.store, self.fetches[0].place);
        self.past_cache
    }
}

/// Where the last reads past the page cache began: as many as there are slots, less those that fell into one. So of what is
/// read from end to end again and again, 1 MiB at a time, up to about 8 GiB come to be cached.
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

/// The whole pages of the file that a fetch's frames are in: where they begin, and how many bytes they are.
fn stretch_of(fetch: &Fetch<FileMedia>) -> (u64, u64) {
    let align = DIRECT_ALIGN as u64;
    let place = fetch.place.offset();
    let offset = place / align * align;
    let end = place + u64::from(fetch.count) * DATA_FRAME_BYTES;
    (offset, end.next_multiple_of(align) - offset)
}

/// How much memory such a read takes.
pub(super) fn memory_bytes(plan: &ReadPlan<FileMedia>) -> usize {
    Pages::taken_for(bytes_of(plan)) * DIRECT_ALIGN
}

fn bytes_of(plan: &ReadPlan<FileMedia>) -> usize {
    let bytes = plan.fetches.iter().map(|fetch| stretch_of(fetch).1);
    bytes.sum::<u64>() as usize
}

/// A read past the page cache. Its memory is to stay until all parts have ended.
pub(super) struct PastCache {
    pages: Pages,
    /// Where the kernel finds them, whoever moves the rest.
    stretches: Vec<Stretch>,
}

/// Frames that stand together: what of the file is read, and where that goes.
struct Stretch {
    offset: u64,
    into: [libc::iovec; 1],
    /// Where in all of the memory the first frame begins.
    first: usize,
}

impl PastCache {
    pub fn of(plan: &ReadPlan<FileMedia>) -> PastCache {
        let mut pages = Pages::take(bytes_of(plan));
        let start = pages.0.as_mut_ptr().cast::<u8>();
        let mut at = 0;
        let stretches = plan.fetches.iter().map(|fetch| {
            let (offset, bytes) = stretch_of(fetch);
            let stretch = Stretch {
                offset,
                into: [libc::iovec {
                    iov_base: start.wrapping_add(at).cast(),
                    iov_len: bytes as usize,
                }],
                first: at + (fetch.place.offset() - offset) as usize,
            };
            at += bytes as usize;
            stretch
        });
        let stretches = stretches.collect();
        assert!(at <= pages.0.len() * DIRECT_ALIGN, "there is memory for it");
        PastCache { pages, stretches }
    }

    pub fn parts(&self) -> usize {
        self.stretches.len()
    }

    pub fn part<'a>(&'a self, plan: &'a ReadPlan<FileMedia>, index: usize) -> WaitingPart<'a> {
        let stretch = &self.stretches[index];
        let file = plan.fetches[index].file.past_cache();
        WaitingPart {
            file: file.expect("it was opened when the read was found to be cold"),
            offset: stretch.offset,
            iovecs: &stretch.into,
            bytes: stretch.into[0].iov_len,
        }
    }

    /// All parts were read whole: checks the frames, and leaves their blocks. None: a frame is not what was written.
    pub fn finish(self, plan: &ReadPlan<FileMedia>) -> Option<ReadBlocks> {
        let PastCache {
            mut pages,
            stretches,
        } = self;
        let mut found = plan.found_unread();
        let memory = pages.0.as_mut_slice().as_mut_bytes();
        // Never ahead of the frame that is looked at.
        let mut end = 0;
        for (fetch, stretch) in plan.fetches.iter().zip(&stretches) {
            for i in 0..fetch.count {
                let index = fetch.index + i;
                let from = stretch.first + i as usize * FRAME;
                let (header, block) = memory[from..from + FRAME].split_at(HEADER);
                let header = plan.expected(header, frame_behind(fetch.place, i), index)?;
                if checksum(block) != header.data_sum {
                    return None;
                }
                if let Found::Data { sum, .. } = &mut found[index as usize] {
                    *sum = header.data_sum;
                }
                memory.copy_within(from + HEADER..from + FRAME, end);
                end += BLOCK;
            }
        }
        let data = Bytes::from_owner(Filled { pages, end });
        Some(ReadBlocks { found, data })
    }
}

/// What a device can write to, and whoever reads past the page cache.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; DIRECT_ALIGN]);

/// Pages of memory; what they held before stays in them.
struct Pages(Vec<Page>);

impl Pages {
    /// How many pages are made for so many bytes.
    fn taken_for(bytes: usize) -> usize {
        bytes.div_ceil(DIRECT_ALIGN).next_multiple_of(STEP_PAGES)
    }

    /// As many as hold `bytes`, or more.
    fn take(bytes: usize) -> Pages {
        let wanted = Pages::taken_for(bytes);
        let mut idle = IDLE.lock();
        if let Some(fits) = idle.iter().position(|pages| pages.len() >= wanted) {
            return Pages(idle.swap_remove(fits));
        }
        drop(idle);
        Pages(vec![Page([0; DIRECT_ALIGN]); wanted])
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let mut pages = std::mem::take(&mut self.0);
        let mut idle = IDLE.lock();
        if idle.len() < MOST_IDLE {
            return idle.push(pages);
        }
        // The larger ones are of use to more.
        if let Some(least) = idle.iter_mut().min_by_key(|pages| pages.len())
            && least.len() < pages.len()
        {
            std::mem::swap(least, &mut pages);
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
        let take =
            |bytes| -> Vec<Pages> { (0..2 * MOST_IDLE).map(|_| Pages::take(bytes)).collect() };
        drop(take(300 << 10));
        drop(take(1 << 20));
        let kept: Vec<usize> = IDLE.lock().iter().map(Vec::len).collect();
        assert_eq!(kept, [256; MOST_IDLE], "the large ones");
        let pages = Pages::take((1 << 20) - 5000);
        assert_eq!(pages.0.len(), 256);
        assert_eq!(pages.0.as_ptr() as usize % DIRECT_ALIGN, 0);
        assert_eq!(IDLE.lock().len(), MOST_IDLE - 1);
    }
}
