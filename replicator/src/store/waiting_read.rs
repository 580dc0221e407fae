//! A read that has to wait for the media, for those who can wait for many without a thread each.

use super::media::{FileMedia, iovecs};
use super::past_cache::{self, PastCache};
use super::read::{NotNow, Own, Part, ReadPlan};
use crate::message::{ReadBlocks, Refusal, Reply};
use smallvec::SmallVec;
use std::os::fd::{AsFd, BorrowedFd};

/// It is into memory of its own, so that nobody who gives up waiting for it finds its data landing later. That memory
/// is to stay until every one of its parts has ended.
pub struct WaitingRead {
    plan: Box<ReadPlan<FileMedia>>,
    way: Way,
}

#[expect(
    clippy::large_enum_variant,
    reason = "the large one is that of small reads, where one allocation less counts"
)]
enum Way {
    /// Through the page cache.
    Cached {
        into: Own,
        parts: SmallVec<[Part; 1]>,
        stretches: SmallVec<[Stretch; 2]>,
    },
    /// Past it.
    Past(PastCache),
}

/// What is read of the file of one fetch.
struct Stretch {
    fetch: usize,
    offset: u64,
    into: Vec<libc::iovec>,
}

// SAFETY: its pointers are to memory that it owns, whichever thread has it.
unsafe impl Send for WaitingRead {}

/// One vectored read of a file.
pub struct WaitingPart<'a> {
    pub file: BorrowedFd<'a>,
    pub offset: u64,
    pub iovecs: &'a [libc::iovec],
    /// How much there is to read.
    pub bytes: usize,
}

impl ReadPlan<FileMedia> {
    /// How much memory it takes while it waits.
    pub fn memory_bytes(&self) -> usize {
        match self.past_cache {
            true => past_cache::memory_bytes(self),
            false => self.data_bytes(),
        }
    }
}

impl WaitingRead {
    pub fn new(plan: Box<ReadPlan<FileMedia>>) -> WaitingRead {
        let way = match plan.past_cache {
            true => Way::Past(PastCache::of(&plan)),
            false => Way::cached(&plan),
        };
        WaitingRead { plan, way }
    }

    /// See [`ReadPlan::memory_bytes`].
    pub fn memory_bytes(&self) -> usize {
        self.plan.memory_bytes()
    }

    /// How many parts it has.
    pub fn parts(&self) -> usize {
        match &self.way {
            Way::Cached { stretches, .. } => stretches.len(),
            Way::Past(past) => past.parts(),
        }
    }

    pub fn part(&self, index: usize) -> WaitingPart<'_> {
        match &self.way {
            Way::Past(past) => past.part(&self.plan, index),
            Way::Cached { stretches, .. } => {
                let stretch = &stretches[index];
                WaitingPart {
                    file: self.plan.fetches[stretch.fetch].file.as_fd(),
                    offset: stretch.offset,
                    bytes: stretch.into.iter().map(|piece| piece.iov_len).sum(),
                    iovecs: &stretch.into,
                }
            }
        }
    }

    /// All parts were read whole: checks them. What came through the page cache and is not what was written is read once
    /// more, there; else the plan comes back, for somebody to read it who can wait.
    pub fn finish(self) -> Result<Reply, Box<ReadPlan<FileMedia>>> {
        let read = match self.way {
            Way::Cached { into, parts, .. } => check_all(&self.plan, into, parts),
            Way::Past(past) => match past.finish(&self.plan) {
                Some(read) => Ok(read),
                None => return Err(self.plan),
            },
        };
        Ok(read.map_or_else(Reply::Refused, Reply::Read))
    }

    /// For those who cannot wait so: to be read from the beginning.
    pub fn into_plan(self) -> Box<ReadPlan<FileMedia>> {
        self.plan
    }
}

impl Way {
    fn cached(plan: &ReadPlan<FileMedia>) -> Way {
        let into = plan.own_memory();
        let parts = plan.fetches.iter().map(|fetch| Part::of(fetch, &into));
        let parts: SmallVec<[Part; 1]> = parts.collect();
        let stretches = parts.iter().enumerate().flat_map(|(fetch, part)| {
            part.stretches.iter().map(move |stretch| Stretch {
                fetch,
                offset: stretch.offset,
                into: iovecs(&stretch.pieces),
            })
        });
        let stretches = stretches.collect();
        Way::Cached {
            into,
            parts,
            stretches,
        }
    }
}

fn check_all(
    plan: &ReadPlan<FileMedia>,
    into: Own,
    parts: SmallVec<[Part; 1]>,
) -> Result<ReadBlocks, Refusal> {
    let mut found = plan.found_unread();
    for (fetch, part) in plan.fetches.iter().zip(parts) {
        match plan.check(fetch, part, &into, &mut found) {
            Ok(()) => {}
            Err(NotNow::Refused(refusal)) => return Err(refusal),
            Err(NotNow::WouldWait) => unreachable!("it is read already"),
        }
    }
    Ok(ReadBlocks {
        found,
        data: into.into_bytes(),
    })
}
