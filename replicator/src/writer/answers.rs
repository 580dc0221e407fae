//! Whether an answer can be one to its question. What a store says is believed only as far as it lies within what it
//! was asked for (I9): numbers beyond that would be counted with, and looked for on the disk.
//!
//! What has the wrong kind or length does not come this far: see `wire` and `net::link`.

use super::Writer;
use crate::message::{ListedBlock, Pulled, Refusal, Reply, Request};
use crate::words::{Block, Blocks};

impl Writer {
    /// The reply; or a refusal, if it cannot be the answer to this request.
    pub(super) fn fitting(&self, request: &Request, reply: Reply) -> Reply {
        match self.fits(request, &reply) {
            true => reply,
            false => Reply::Refused(Refusal::Invalid {
                why: "the answer does not fit the question",
            }),
        }
    }

    fn fits(&self, request: &Request, reply: &Reply) -> bool {
        match (request, reply) {
            (Request::List { extents, start, .. }, Reply::Listed { blocks, more }) => {
                let end = self.record.extent_size.blocks_of(extents.end).first;
                is_page(blocks, *start, end) && !(*more && blocks.is_empty())
            }
            (Request::Digest { extents, .. }, Reply::Digested(digested)) => {
                (1..=extents.count() as usize).contains(&digested.digests.len())
            }
            (Request::Verify { blocks, .. }, Reply::Verified(verified)) => {
                let mut damaged = verified.damaged.iter();
                damaged.all(|damaged| blocks.contains(damaged.block))
            }
            (
                Request::Pull { blocks, .. } | Request::Heal { blocks, .. },
                Reply::Pulled(pulled),
            ) => is_of(pulled, *blocks),
            _ => true,
        }
    }
}

/// Whether these are blocks from `start` on, in order: then pages come to an end.
fn is_page(listed: &[ListedBlock], start: Block, end: Block) -> bool {
    let within = |listed: &ListedBlock| start <= listed.block && listed.block < end;
    listed.iter().all(within) && listed.is_sorted_by(|a, b| a.block < b.block)
}

/// Whether no more came of a pull than was asked for. What crosses compressed is smaller.
fn is_of(pulled: &Pulled, blocks: Blocks) -> bool {
    let absent = pulled.absent.iter().map(|part| u64::from(part.count));
    let counts = [pulled.copied, pulled.zeroes, pulled.same].map(u64::from);
    let count: u64 = counts.into_iter().chain(absent).sum();
    are_parts(&pulled.absent, blocks)
        && count <= u64::from(blocks.count)
        && pulled.bytes <= blocks.bytes()
}

/// Whether an answer names parts of `blocks`, in order.
pub(super) fn are_parts(parts: &[Blocks], blocks: Blocks) -> bool {
    let mut next = blocks.first;
    parts.iter().all(|part| {
        let fits = next <= part.first && !part.is_empty() && part.end() <= blocks.end();
        next = part.end();
        fits
    })
}
