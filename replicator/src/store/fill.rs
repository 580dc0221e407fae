//! Filling: blocks from another store of an older entry, under the versions that they have there (rule F1).
//!
//! ```text
//!  missing: which blocks are not proven here or damaged, and in which versions they stand here unproven
//!  (the node asks the other store, without holding this one)
//!  fill:    data and zeroes go into the log as frames marked "filled during this membership";
//!           what stands here in the same version is adopted, which takes a few bytes and no data
//! ```
//!
//! A version names one content, so equal versions are equal blocks. What is proven is never replaced, except
//! that a frame that the media spoilt is written anew in the very version that it had (damage.rs). What
//! is not proven gives way to what is filled in even if its version is higher: no entry claims it, it is
//! the tail of a membership that ended before it was acknowledged.

use super::Store;
use super::append::{Purpose, Room};
use super::frame::{AdoptedRun, FLAG_FILLED, Header, Kind};
use super::holdings::entry_of;
use super::index::{Entry, TooManyEras};
use super::media::Media;
use super::replica::Membership;
use crate::message::{Asker, Fetch, MAX_DATA_BLOCKS, Pulled, Refusal};
use crate::plant::{Plant, planted};
use crate::words::{BLOCK_BYTES, Block, Blocks, DiskId, Epoch, Seq, Version};
use bytes::Bytes;
use zerocopy::IntoBytes;

const BLOCK: usize = BLOCK_BYTES as usize;

/// What a store has to ask another one for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Missing {
    /// In order, without overlap. Empty: everything is proven.
    pub blocks: Vec<Blocks>,
    /// For each block the version in which it stands here unproven; [`Version::ZERO`] for none.
    pub known: Vec<Version>,
    /// They are damaged, see [`Store::spoilt`]: nothing is taken but these very versions.
    pub heals: bool,
}

/// What another store gave, its data checked against its checksums.
#[derive(Clone, PartialEq, Debug)]
pub struct Filling {
    /// One for each block that was missing.
    pub found: Vec<Fetch>,
    /// The blocks that are [`Fetch::Data`], one after another.
    pub data: Bytes,
    /// What `data` took on the wire.
    pub wire_bytes: u64,
}

/// A frame to append, and its payload.
type Framed = (Header, Bytes);

impl<M: Media> Store<M> {
    /// Which of `blocks` this replica's newest membership cannot prove, and what stands there instead, looking
    /// below epoch `below`.
    pub fn missing(
        &mut self,
        asker: Asker,
        below: Epoch,
        blocks: Blocks,
    ) -> Result<Missing, Refusal> {
        let (_, proof) = self.membership(&asker, blocks)?;
        self.load(asker.disk, blocks)?;
        let spoilt = self.spoilt_of(asker.disk, blocks);
        let mut missing = Missing::default();
        for block in blocks.iter() {
            let proven = |entry: &Entry| proof.covers(entry) || planted(Plant::UnprovenCounts);
            if self.holdings.entry(asker.disk, block, proven).is_some() {
                continue;
            }
            // What is damaged is of no use, also in the right version.
            let unproven = |entry: &Entry| entry.version.epoch < below && !spoilt.contains(&block);
            let known = self.holdings.entry(asker.disk, block, unproven);
            missing
                .known
                .push(known.map_or(Version::ZERO, |entry| entry.version));
            add(&mut missing.blocks, block);
        }
        Ok(missing)
    }

    /// Of `blocks`, what is known to be damaged: what a heal has to ask another store for.
    pub fn spoilt(&mut self, asker: Asker, blocks: Blocks) -> Result<Missing, Refusal> {
        self.membership(&asker, blocks)?;
        self.load(asker.disk, blocks)?;
        let mut spoilt = Missing {
            heals: true,
            ..Missing::default()
        };
        for block in self.spoilt_of(asker.disk, blocks) {
            spoilt.known.push(Version::ZERO);
            add(&mut spoilt.blocks, block);
        }
        Ok(spoilt)
    }

    /// Puts in what another store gave for what was [`Store::missing`] a while ago. A refusal for want of room
    /// may come when some blocks are in: the rest is still missing then.
    pub fn fill(
        &mut self,
        asker: Asker,
        below: Epoch,
        missing: &Missing,
        filling: &Filling,
    ) -> Result<Pulled, Refusal> {
        let all: Vec<Block> = missing.blocks.iter().flat_map(|part| part.iter()).collect();
        let whole = whole(&missing.blocks, &all)?;
        let (membership, proof) = self.membership(&asker, whole)?;
        self.load(asker.disk, whole)?;
        check(asker, below, missing, filling)?;
        if missing.heals {
            return self.heal(asker.disk, &all, filling);
        }

        let mut pulled = Pulled {
            bytes: filling.wire_bytes,
            ..Pulled::default()
        };
        let mut frames: Vec<Framed> = Vec::new();
        let mut adopted: Vec<(Blocks, Version)> = Vec::new();
        let mut data = filling.data.clone();
        let filled = Header {
            disk: asker.disk,
            flags: FLAG_FILLED,
            join: membership.join,
            watermark: membership.from.as_u64(),
            ..Header::control(Kind::Data)
        };
        let named = |version: Version| match planted(Plant::FillWithNewVersion) {
            true => Version::new(membership.from, version.seq),
            false => version,
        };
        for ((block, known), found) in all.iter().zip(&missing.known).zip(&filling.found) {
            let content = match found {
                Fetch::Data { .. } => data.split_to(BLOCK),
                _ => Bytes::new(),
            };
            // The writer itself, or another pull, may have been faster.
            let proven = |entry: &Entry| proof.covers(entry);
            if self.holdings.entry(asker.disk, *block, proven).is_some() {
                continue;
            }
            match *found {
                Fetch::Absent => add(&mut pulled.absent, *block),
                Fetch::Same => {
                    let same = |entry: &Entry| entry.version == *known;
                    if self.holdings.entry(asker.disk, *block, same).is_none() {
                        return Err(Refusal::Invalid {
                            why: "what stood here in the same version is gone",
                        });
                    }
                    pulled.same += 1;
                    match adopted.last_mut() {
                        Some((run, version)) if run.end() == *block && version == known => {
                            run.count += 1;
                        }
                        _ => adopted.push((Blocks::new(*block, 1), *known)),
                    }
                }
                Fetch::Zeroes(version) => {
                    pulled.zeroes += 1;
                    let header = filled.of(Kind::Zeroes, *block, named(version));
                    match frames.last_mut() {
                        Some((last, _)) if last.carried_on_by(&header) => last.count += 1,
                        _ => frames.push((header, Bytes::new())),
                    }
                }
                Fetch::Data { version, sum } => {
                    pulled.copied += 1;
                    let header = Header {
                        data_sum: sum,
                        ..filled.of(Kind::Data, *block, named(version))
                    };
                    frames.push((header, content));
                }
            }
        }
        self.append_filled(asker.disk, &frames, membership.from)?;
        self.adopt(asker.disk, &adopted, membership)?;
        pulled.reach = self.reach();
        Ok(pulled)
    }

    /// The newest membership of the replica that has `blocks`, and what proves that it has one of them.
    fn membership(
        &self,
        asker: &Asker,
        blocks: Blocks,
    ) -> Result<(Membership, super::replica::Proof), Refusal> {
        self.check(asker)?;
        self.check_blocks(asker.disk, blocks, u32::MAX)?;
        let disk = &self.holdings.disks[&asker.disk];
        let extent = disk.extent_of(blocks.first).expect("just checked");
        let replica = disk.replicas.of(extent).expect("just checked");
        let membership = Membership {
            from: replica.from,
            join: replica.join,
        };
        Ok((membership, replica.proof(replica.from)))
    }

    fn append_filled(
        &mut self,
        disk: DiskId,
        frames: &[Framed],
        from: Epoch,
    ) -> Result<(), Refusal> {
        // In pieces that surely fit into a small segment.
        let fits = |count: &u32| self.log.fits_into_segment(Room::Blocks(*count));
        let most = (1..=FRAMES_AT_ONCE).rev().find(fits).unwrap_or(1);
        for some in frames.chunks(most as usize) {
            let data = some.iter().filter(|(header, _)| header.kind == Kind::Data);
            let blocks = data.count() as u32;
            let purpose = if blocks > 0 {
                Purpose::Data
            } else {
                Purpose::Control
            };
            let room = match some.len() as u32 - blocks {
                0 => Room::Blocks(blocks),
                empty => Room::Mixed { empty, blocks },
            };
            self.make_room(room, purpose)?;
            let framed = some.iter().map(|(header, payload)| (*header, &payload[..]));
            let places = self.append(framed)?;
            for ((header, _), place) in some.iter().zip(places) {
                let entry = entry_of(header, place);
                let filled = self.holdings.fill(disk, header.blocks(), entry, from);
                filled.map_err(too_many_eras)?;
                self.damages.forget(disk, header.blocks(), header.version());
            }
        }
        Ok(())
    }

    fn adopt(
        &mut self,
        disk: DiskId,
        runs: &[(Blocks, Version)],
        membership: Membership,
    ) -> Result<(), Refusal> {
        if runs.is_empty() {
            return Ok(());
        }
        let payload: Vec<u8> = runs
            .iter()
            .flat_map(|(blocks, version)| AdoptedRun::new(*blocks, *version).as_bytes().to_vec())
            .collect();
        let header = Header {
            disk,
            join: membership.join,
            epoch: membership.from.as_u64(),
            ..Header::control(Kind::Adopt)
        }
        .with_payload(&payload);
        self.make_room(Room::Bytes(header.frame_bytes()), Purpose::Control)?;
        self.append([(header, &payload[..])].into_iter())?;
        for (blocks, version) in runs {
            for block in blocks.iter() {
                let known = (membership.from, membership.join);
                let adopted = self.holdings.adopt(disk, block, *version, known);
                adopted.map_err(too_many_eras)?;
            }
        }
        Ok(())
    }
}

/// Frames of a fill in one append.
const FRAMES_AT_ONCE: u32 = 64;

fn too_many_eras(_: TooManyEras) -> Refusal {
    Refusal::Invalid {
        why: "too many epochs in one chunk of the index",
    }
}

/// The blocks from the first missing one to the last.
fn whole(parts: &[Blocks], all: &[Block]) -> Result<Blocks, Refusal> {
    let invalid = Err(Refusal::Invalid {
        why: "nothing is missing, or it is not in order",
    });
    let (Some(first), Some(last)) = (all.first(), all.last()) else {
        return invalid;
    };
    let in_order = parts.windows(2).all(|pair| pair[0].end() <= pair[1].first);
    if !in_order || last.0 - first.0 >= u64::from(MAX_DATA_BLOCKS) {
        return invalid;
    }
    Ok(Blocks::new(*first, (last.0 - first.0) as u32 + 1))
}

/// What comes from another store is believed only as far as it makes sense.
fn check(asker: Asker, below: Epoch, missing: &Missing, filling: &Filling) -> Result<(), Refusal> {
    let wanted: u32 = missing.blocks.iter().map(|part| part.count).sum();
    let with_data = filling
        .found
        .iter()
        .filter(|found| matches!(found, Fetch::Data { .. }));
    let sane = |found: &Fetch| match found {
        Fetch::Absent => true,
        Fetch::Same => true,
        Fetch::Zeroes(version) | Fetch::Data { version, .. } => {
            version.epoch < below
                && version.epoch <= asker.epoch
                && version.epoch > Epoch::ZERO
                && (Seq(1)..=Seq::MAX).contains(&version.seq)
        }
    };
    let fits = filling.found.len() == wanted as usize
        && missing.known.len() == wanted as usize
        && filling.data.len() == with_data.count() * BLOCK;
    if fits && filling.found.iter().all(sane) {
        Ok(())
    } else {
        Err(Refusal::Invalid {
            why: "what another store gave makes no sense",
        })
    }
}

impl Header {
    /// The frame of one block under a version, otherwise like this one.
    fn of(self, kind: Kind, block: Block, version: Version) -> Header {
        Header {
            kind,
            block: block.0,
            count: 1,
            epoch: version.epoch.as_u64(),
            seq: version.seq.0,
            ..self
        }
    }

    /// Whether `next` is zeroes of the same version right behind these.
    fn carried_on_by(&self, next: &Header) -> bool {
        self.kind == Kind::Zeroes
            && next.kind == Kind::Zeroes
            && self.version() == next.version()
            && self.blocks().end().0 == next.block
    }
}

/// Adds a block that lies behind all of `parts` to them.
fn add(parts: &mut Vec<Blocks>, block: Block) {
    match parts.last_mut() {
        Some(last) if last.end() == block => last.count += 1,
        _ => parts.push(Blocks::new(block, 1)),
    }
}
