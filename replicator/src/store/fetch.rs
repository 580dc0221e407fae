//! Fetches: what a pulling store reads. Like a read, but of several ranges, and without what the other has.

use super::Store;
use super::media::Media;
use super::read::ReadPlan;
use crate::message::{Asker, Fetch, Fetched, Found, MAX_DATA_BLOCKS, ReadBlocks, Refusal};
use crate::packed::Packed;
use crate::words::{Blocks, Epoch, Version};
use bytes::BytesMut;

/// How to answer one fetch.
pub struct FetchPlan<M: Media> {
    plans: Vec<ReadPlan<M>>,
    /// For each block: the asker holds this version.
    same: Vec<bool>,
    compress: bool,
}

impl<M: Media> FetchPlan<M> {
    /// Reads, and compresses if that is wanted: call it where both may take their time.
    pub fn run(&self) -> Result<Fetched, Refusal> {
        let mut found = Vec::with_capacity(self.same.len());
        let mut data = BytesMut::new();
        for plan in &self.plans {
            let ReadBlocks {
                found: some,
                data: more,
            } = plan.run()?;
            found.extend(some);
            match self.plans.len() {
                1 => data = more.into(),
                _ => data.extend_from_slice(&more),
            }
        }
        let found = found
            .iter()
            .zip(&self.same)
            .map(|(found, same)| match found {
                _ if *same => Fetch::Same,
                Found::Absent => Fetch::Absent,
                Found::Zeroes(version) => Fetch::Zeroes(*version),
                Found::Data { version, sum } => Fetch::Data {
                    version: *version,
                    sum: *sum,
                },
            });
        let data = data.freeze();
        Ok(Fetched {
            found: found.collect(),
            data: match self.compress {
                true => Packed::smaller(data),
                false => Packed::Plain(data),
            },
        })
    }
}

impl<M: Media> Store<M> {
    pub(super) fn fetch(
        &mut self,
        asker: Asker,
        (from, below): (Epoch, Epoch),
        blocks: Vec<Blocks>,
        known: Vec<Version>,
        compress: bool,
    ) -> Result<FetchPlan<M>, Refusal> {
        let invalid = |why| Err(Refusal::Invalid { why });
        if blocks.iter().any(|part| part.count > MAX_DATA_BLOCKS) {
            return invalid("too many blocks at once");
        }
        let count: u64 = blocks.iter().map(|part| u64::from(part.count)).sum();
        if count == 0 || count > u64::from(MAX_DATA_BLOCKS) {
            return invalid("no blocks, or too many at once");
        }
        if blocks.windows(2).any(|pair| pair[0].end() > pair[1].first) {
            return invalid("blocks out of order");
        }
        if !known.is_empty() && known.len() as u64 != count {
            return invalid("not one version for each block");
        }
        let mut versions = known.into_iter();
        let mut plan = FetchPlan {
            plans: Vec::with_capacity(blocks.len()),
            same: Vec::with_capacity(count as usize),
            compress,
        };
        for part in blocks {
            let known = versions
                .by_ref()
                .take(part.count as usize)
                .collect::<Vec<_>>();
            let (read, same) = self.plan_read(asker, (from, below), part, &known)?;
            plan.plans.push(read);
            plan.same.extend(same);
        }
        Ok(plan)
    }
}
