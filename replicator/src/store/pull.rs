//! A pull, step by step, for whoever has a network: what to ask the other store, and what its answer means.
//!
//! ```text
//!  writer --Pull--> this store's node          the other store
//!                   missing ------Fetch------> reads, compresses
//!                   fill <-----Fetched--------
//!  writer <-Pulled-
//! ```
//!
//! Late and doubled answers do no harm: [`super::Store::fill`] looks at everything again.

use super::fill::{Filling, Missing};
use crate::message::{Asker, Fetch, Refusal, Reply, Request, Source, SourceFault, checksum};
use crate::words::{BLOCK_BYTES, Blocks, Epoch};

const BLOCK: usize = BLOCK_BYTES as usize;

/// What [`Request::Pull`] or [`Request::Heal`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pull {
    pub asker: Asker,
    pub source: Source,
    pub from: Epoch,
    pub below: Epoch,
    pub blocks: Blocks,
    /// Only what is known to be damaged here.
    pub heals: bool,
}

impl Pull {
    /// `None`: the request is another one.
    pub fn of(request: &Request) -> Option<Pull> {
        match *request {
            Request::Pull {
                asker,
                source,
                from,
                below,
                blocks,
            } => Some(Pull {
                asker,
                source,
                from,
                below,
                blocks,
                heals: false,
            }),
            Request::Heal {
                asker,
                source,
                from,
                below,
                blocks,
            } => Some(Pull {
                asker,
                source,
                from,
                below,
                blocks,
                heals: true,
            }),
            _ => None,
        }
    }

    /// What to ask the other store for what is missing here.
    pub fn fetch(&self, missing: &Missing, compress: bool) -> Request {
        Request::Fetch {
            asker: Asker {
                incarnation: self.source.incarnation,
                ..self.asker
            },
            from: self.from,
            below: self.below,
            blocks: missing.blocks.clone(),
            known: missing.known.clone(),
            compress,
            proof: None,
        }
    }

    /// As [`Pull::fetch`], quoting the grant with which the own store was shown the writer's epoch.
    pub fn quoting(&self, fetch: Request, grant: &[u8]) -> Request {
        match fetch {
            Request::Fetch {
                asker,
                from,
                below,
                blocks,
                known,
                compress,
                proof: _,
            } if !grant.is_empty() => Request::Fetch {
                asker,
                from,
                below,
                blocks,
                known,
                compress,
                proof: Some(crate::net::digest(grant)),
            },
            other => other,
        }
    }

    /// What the other store's answer brings: unpacked, and checked end to end.
    pub fn filling(&self, answer: Reply) -> Result<Filling, Refusal> {
        let fetched = match answer {
            Reply::Fetched(fetched) => fetched,
            Reply::Refused(refusal) => return Err(of_source(refusal)),
            _ => return Err(Refusal::Source(SourceFault::Useless)),
        };
        let sums = fetched.found.iter().filter_map(|found| match found {
            Fetch::Data { sum, .. } => Some(*sum),
            _ => None,
        });
        let sums: Vec<u32> = sums.collect();
        let useless = Refusal::Source(SourceFault::Useless);
        let Ok(data) = fetched.data.unpack(sums.len() * BLOCK) else {
            return Err(useless);
        };
        let blocks = data.chunks_exact(BLOCK);
        if !blocks
            .zip(&sums)
            .all(|(block, sum)| checksum(block) == *sum)
        {
            return Err(useless);
        }
        Ok(Filling {
            wire_bytes: fetched.data.len() as u64,
            found: fetched.found,
            data,
        })
    }
}

/// What a refusal of the other store means for the writer, who has asked this one.
fn of_source(refusal: Refusal) -> Refusal {
    match refusal {
        // It is superseded, whoever says so; and who could not be asked has said nothing.
        Refusal::Superseded { .. } | Refusal::Source(_) => refusal,
        Refusal::NotShown { .. }
        | Refusal::OtherIncarnation { .. }
        | Refusal::NotGranted { .. } => Refusal::Source(SourceFault::Unsealed),
        _ => Refusal::Source(SourceFault::Useless),
    }
}
