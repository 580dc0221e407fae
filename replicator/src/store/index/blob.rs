//! A chunk as bytes, for a checkpoint to point at.
//!
//! ```text
//! u32 eras, then each: u64 epoch, u16 join, u8 flags (1 zeroes, 2 filled), u8 zero
//! 16 pages, each:      u16 runs, then each run (20 bytes, see run.rs)
//! u32 older, then each: u16 block, u16 join, u8 flags, 3 x u8 zero, u64 epoch, u64 seq, u32 segment, u32 unit
//! ```

use super::chunk::{Chunk, Era, Older, Page};
use super::run::{RUN_BYTES, Run};
use super::{CHUNK_BLOCKS, PAGE_BLOCKS};
use crate::store::place::Place;
use crate::words::{Epoch, Seq, Version};
use zerocopy::{FromBytes, IntoBytes};

const ZEROES: u8 = 1;
const FILLED: u8 = 2;
const ERA_BYTES: usize = 12;
const OLDER_BYTES: usize = 32;

impl Chunk {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_bytes());
        bytes.extend((self.eras.len() as u32).to_le_bytes());
        for era in &self.eras {
            bytes.extend(era.epoch.as_u64().to_le_bytes());
            bytes.extend(era.filled.unwrap_or(0).to_le_bytes());
            bytes.extend([flags(era.zeroes, era.filled), 0]);
        }
        for page in &self.pages {
            bytes.extend((page.runs.len() as u16).to_le_bytes());
            bytes.extend(page.runs.as_bytes());
        }
        bytes.extend((self.older.len() as u32).to_le_bytes());
        for ((block, version), older) in &self.older {
            bytes.extend(block.to_le_bytes());
            bytes.extend(older.filled.unwrap_or(0).to_le_bytes());
            bytes.extend([flags(older.zeroes, older.filled), 0, 0, 0]);
            bytes.extend(version.epoch.as_u64().to_le_bytes());
            bytes.extend(version.seq.0.to_le_bytes());
            bytes.extend(older.place.segment.to_le_bytes());
            bytes.extend(older.place.unit.to_le_bytes());
        }
        bytes
    }

    /// How many bytes [`Chunk::encode`] gives.
    pub fn encoded_bytes(&self) -> usize {
        let runs: usize = self.pages.iter().map(|page| page.runs.len()).sum();
        8 + self.eras.len() * ERA_BYTES
            + self.pages.len() * 2
            + runs * RUN_BYTES
            + self.older.len() * OLDER_BYTES
    }

    /// The chunk that these bytes are; None if they cannot be one.
    pub fn decode(bytes: &[u8]) -> Option<Chunk> {
        let mut from = Reader(bytes);
        let mut chunk = Chunk::default();
        for _ in 0..from.u32()? {
            let epoch = Epoch::from_u64(from.u64()?);
            let join = from.u16()?;
            let (zeroes, filled) = kind(from.u8()?, join)?;
            from.u8()?;
            chunk.eras.push(Era {
                epoch,
                zeroes,
                filled,
            });
        }
        for _ in 0..CHUNK_BLOCKS / PAGE_BLOCKS {
            let count = from.u16()? as usize;
            let raw = from.take(count.checked_mul(RUN_BYTES)?)?;
            let runs: Vec<Run> = raw
                .chunks_exact(RUN_BYTES)
                .map(|run| Run::read_from_bytes(run).expect("the size is right"))
                .collect();
            let in_order = runs.windows(2).all(|pair| pair[0].last < pair[1].first);
            let zeroes = |run: &Run| {
                let era = chunk.eras.get(usize::from(run.era.get()));
                era.map(|era| era.zeroes)
            };
            if !in_order || !runs.iter().all(|run| run.makes_sense(zeroes(run))) {
                return None;
            }
            chunk.pages.push(Page { runs });
        }
        for _ in 0..from.u32()? {
            let block = from.u16()?;
            let join = from.u16()?;
            let (zeroes, filled) = kind(from.u8()?, join)?;
            from.take(3)?;
            let version = Version::new(Epoch::from_u64(from.u64()?), Seq(from.u64()?));
            let place = Place {
                segment: from.u32()?,
                unit: from.u32()?,
            };
            if u32::from(block) >= CHUNK_BLOCKS || !place.has_room_for(u32::from(!zeroes)) {
                return None;
            }
            let older = Older {
                place,
                zeroes,
                filled,
            };
            chunk.older.insert((block, version), older);
        }
        from.0.is_empty().then_some(chunk)
    }
}

fn flags(zeroes: bool, filled: Option<u16>) -> u8 {
    (u8::from(zeroes) * ZEROES) | (u8::from(filled.is_some()) * FILLED)
}

fn kind(flags: u8, join: u16) -> Option<(bool, Option<u16>)> {
    let filled = (flags & FILLED != 0).then_some(join);
    (flags & !(ZEROES | FILLED) == 0).then_some((flags & ZEROES != 0, filled))
}

/// Takes little-endian numbers off the front; None at the end.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (now, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(now)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }
}
