//! Large reads past the page cache.
//!
//! Through it, a read that has to come from the media costs a page of memory and two copies for each 4 KiB: from the
//! cache, and to where it is wanted. For small reads that is well spent, many of them come again. Who reads in large
//! pieces often reads all of something once, or keeps it himself, as a guest's own page cache does. So where no more than half of such a
//! read is cached, the device writes the blocks to pages of ours, one behind another as a reader wants them, and the pages of
//! their headers to others, to check them by. What is wanted again soon goes through the page cache, and stays
//! there ([`Seen`]; the idea is that of 2Q: Johnson and Shasha, VLDB 1994). Blocks that stand behind their headers (format 4 and
//! before) are in no page of their own, and are read through the page cache.
//!
//! ```text
//!  on the media   | headers | block 0 | ... | block 62 | headers | block 63 | block 64 | ...
//!  in memory      | block 0 | ... | block 62 | block 63 | block 64 | ...         | headers | headers |
//! ```

use super::media::{DIRECT_ALIGN, FileMedia};
use super::place::{PAGE, Place};
use super::read::{Fetch, ReadPlan};
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
/// A page of memory holds a block, or a page of headers.
const _: () = assert!(DIRECT_ALIGN == BLOCK && PAGE == BLOCK_BYTES);

/// Of all stores of this process.
static IDLE: Mutex<Vec<Vec<Page>>> = Mutex::new(Vec::new());
static SEEN: Seen = Seen::new();

impl ReadPlan<FileMedia> {
    /// Whether this read is large, half of it or more would have to come from the media, and nobody read the same lately: then
    /// it is not worth trying without waiting, and goes past the page cache.
    pub fn looks_cold(&mut self) -> bool {
        let large =
            |fetch: &Fetch<FileMedia>| fetch.count >= LEAST_FRAMES && fetch.place.apart() > 0;
        self.past_cache = !self.fetches.is_empty()
            && self.fetches.iter().all(large)
            && self.fetches.iter().all(|fetch| {
                let first = fetch.place.payload();
                let bytes = fetch.place.nth(fetch.count - 1).payload() + PAGE - first;
                fetch.file.is_cold(first, bytes) && fetch.file.past_cache().is_some()
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

/// How much memory such a read takes.
pub(super) fn memory_bytes(plan: &ReadPlan<FileMedia>) -> usize {
    Pages::taken_for(pages_of(plan).0) * DIRECT_ALIGN
}

/// How many pages it takes, and how many of them are blocks.
fn pages_of(plan: &ReadPlan<FileMedia>) -> (usize, usize) {
    let blocks = plan.fetches.iter().map(|fetch| fetch.count as usize);
    let blocks: usize = blocks.sum();
    let headers = plan.fetches.iter().map(header_pages);
    (blocks + headers.sum::<usize>(), blocks)
}

/// How many pages have a fetch's headers.
fn header_pages(fetch: &Fetch<FileMedia>) -> usize {
    let mut next = 0;
    let mut pages = 0;
    while next < fetch.count {
        next += fetch.place.nth(next).left_in_page() + 1;
        pages += 1;
    }
    pages
}

/// A read past the page cache. Its memory is to stay until all parts have ended.
pub(super) struct PastCache {
    pages: Pages,
    /// How many of them are blocks. Those with headers follow.
    blocks: usize,
    /// Where the kernel finds them, whoever moves the rest.
    stretches: Vec<Stretch>,
}

/// A part of the file, and where it goes.
struct Stretch {
    fetch: usize,
    offset: u64,
    into: Vec<libc::iovec>,
}

impl PastCache {
    pub fn of(plan: &ReadPlan<FileMedia>) -> PastCache {
        let (count, blocks) = pages_of(plan);
        let mut pages = Pages::take(count);
        let start = pages.0.as_mut_ptr().cast::<u8>();
        let memory = |page: usize, count: u32| libc::iovec {
            iov_base: start.wrapping_add(page * BLOCK).cast(),
            iov_len: count as usize * BLOCK,
        };
        let mut stretches: Vec<Stretch> = Vec::with_capacity(2 * plan.fetches.len());
        let (mut block, mut headers) = (0, blocks);
        for (number, fetch) in plan.fetches.iter().enumerate() {
            let mut end = None;
            let mut next = 0;
            while next < fetch.count {
                let place = fetch.place.nth(next);
                let count = (place.left_in_page() + 1).min(fetch.count - next);
                let parts = [
                    (place.offset() / PAGE * PAGE, memory(headers, 1)),
                    (place.payload(), memory(block, count)),
                ];
                for (offset, into) in parts {
                    match stretches.last_mut().filter(|_| end == Some(offset)) {
                        Some(stretch) => stretch.into.push(into),
                        None => stretches.push(Stretch {
                            fetch: number,
                            offset,
                            into: vec![into],
                        }),
                    }
                    end = Some(offset + into.iov_len as u64);
                }
                next += count;
                block += count as usize;
                headers += 1;
            }
        }
        assert!(
            block == blocks && headers == count,
            "there is memory for it"
        );
        PastCache {
            pages,
            blocks,
            stretches,
        }
    }

    pub fn parts(&self) -> usize {
        self.stretches.len()
    }

    pub fn part<'a>(&'a self, plan: &'a ReadPlan<FileMedia>, index: usize) -> WaitingPart<'a> {
        let stretch = &self.stretches[index];
        let file = plan.fetches[stretch.fetch].file.past_cache();
        WaitingPart {
            file: file.expect("it was opened when the read was found to be cold"),
            offset: stretch.offset,
            bytes: stretch.into.iter().map(|piece| piece.iov_len).sum(),
            iovecs: &stretch.into,
        }
    }

    /// All parts were read whole: checks the blocks. None: one is not what was written.
    pub fn finish(self, plan: &ReadPlan<FileMedia>) -> Option<ReadBlocks> {
        let PastCache { pages, blocks, .. } = self;
        let mut found = plan.found_unread();
        let memory = pages.0.as_slice().as_bytes();
        let mut content = memory[..blocks * BLOCK].chunks_exact(BLOCK);
        let mut headers = memory[blocks * BLOCK..].chunks_exact(BLOCK);
        for fetch in &plan.fetches {
            let mut page: &[u8] = &[];
            for i in 0..fetch.count {
                let (index, place) = (fetch.index + i, fetch.place.nth(i));
                if i == 0 || fetch.place.nth(i - 1).left_in_page() == 0 {
                    page = headers.next().expect("one for each page of the fetch");
                }
                let header = &page[(place.offset() % PAGE) as usize..];
                let header = plan.expected(header, place, index)?;
                let block = content.next().expect("one for each block of the fetches");
                if checksum(block) != header.data_sum {
                    return None;
                }
                fetch.sums.note(place, header.data_sum);
                if let Found::Data { sum, .. } = &mut found[index as usize] {
                    *sum = header.data_sum;
                }
            }
        }
        let data = Bytes::from_owner(Filled {
            pages,
            end: blocks * BLOCK,
        });
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
    /// How many are made where so many are wanted.
    fn taken_for(pages: usize) -> usize {
        pages.next_multiple_of(STEP_PAGES)
    }

    /// As many, or more.
    fn take(pages: usize) -> Pages {
        let wanted = Pages::taken_for(pages);
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

/// Pages that hold blocks, up to `end`.
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
            |pages| -> Vec<Pages> { (0..2 * MOST_IDLE).map(|_| Pages::take(pages)).collect() };
        drop(take(75));
        drop(take(256));
        let kept: Vec<usize> = IDLE.lock().iter().map(Vec::len).collect();
        assert_eq!(kept, [256; MOST_IDLE], "the large ones");
        let pages = Pages::take(254);
        assert_eq!(pages.0.len(), 256);
        assert_eq!(pages.0.as_ptr() as usize % DIRECT_ALIGN, 0);
        assert_eq!(IDLE.lock().len(), MOST_IDLE - 1);
    }
}
