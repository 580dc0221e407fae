//! A read that has to wait for the media, for those who can wait for many without a thread each.

use super::media::{FileMedia, iovecs};
use super::read::{NotNow, Own, Part, ReadPlan};
use crate::message::{ReadBlocks, Reply};
use smallvec::SmallVec;
use std::os::fd::{AsFd, BorrowedFd};

/// A read that has to wait for the media, for those who can wait for many without a thread each. It is into
/// memory of its own, so that nobody who gives up waiting for it finds its data landing later. That memory
/// is to stay until every one of its parts has ended.
pub struct WaitingRead {
    plan: ReadPlan<FileMedia>,
    into: Own,
    parts: SmallVec<[Part; 1]>,
    iovecs: SmallVec<[Vec<libc::iovec>; 1]>,
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

impl WaitingRead {
    pub fn new(plan: ReadPlan<FileMedia>) -> WaitingRead {
        let into = plan.own_memory();
        let parts: SmallVec<[Part; 1]> = plan
            .fetches
            .iter()
            .map(|fetch| Part::of(fetch, &into))
            .collect();
        let iovecs = parts.iter().map(|part| iovecs(&part.pieces)).collect();
        WaitingRead {
            plan,
            into,
            parts,
            iovecs,
        }
    }

    /// See [`ReadPlan::data_bytes`].
    pub fn data_bytes(&self) -> usize {
        self.plan.data_bytes()
    }

    pub fn parts(&self) -> impl ExactSizeIterator<Item = WaitingPart<'_>> {
        let parts = self.plan.fetches.iter().zip(&self.iovecs);
        parts.map(|(fetch, iovecs)| WaitingPart {
            file: fetch.file.as_fd(),
            offset: fetch.place.offset(),
            bytes: iovecs.iter().map(|piece| piece.iov_len).sum(),
            iovecs,
        })
    }

    /// All parts were read whole: checks them. A block that is not what was written is read once more, which
    /// may wait.
    pub fn finish(self) -> Reply {
        let (plan, into) = (&self.plan, &self.into);
        let mut found = plan.found_unread();
        for (fetch, part) in plan.fetches.iter().zip(self.parts) {
            match plan.check(fetch, part, into, &mut found) {
                Ok(()) => {}
                Err(NotNow::Refused(refusal)) => return Reply::Refused(refusal),
                Err(NotNow::WouldWait) => unreachable!("it is read already"),
            }
        }
        Reply::Read(ReadBlocks {
            found,
            data: self.into.into_bytes(),
        })
    }

    /// For those who cannot wait so: to be read from the beginning.
    pub fn into_plan(self) -> ReadPlan<FileMedia> {
        self.plan
    }
}
