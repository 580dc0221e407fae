//! Requests: who may ask, and what each one does, except for writes (write.rs).

use super::append::Purpose;
use super::frame::{Header, Kind, LogPoint, ReplicaChange};
use super::holdings::LoadFault;
use super::index::{Entry, blocks_of, chunk_of};
use super::media::Media;
use super::read::{Planned, ReadPlan};
use super::{Handled, Promise, Store};
use crate::message::{
    Asker, ListedBlock, MAX_DATA_BLOCKS, MAX_LISTED, Refusal, Reply, Request, Sealed,
};
use crate::plant::{Plant, planted};
use crate::words::{Block, Blocks, DiskId, Epoch, ExtentSize, Extents, Incarnation, Version};
use zerocopy::IntoBytes;

impl<M: Media> Store<M> {
    /// Takes a request; never waits for the media (but for a part of the index that was not needed
    /// since the store was opened).
    pub fn handle(&mut self, request: Request) -> Handled<M> {
        let handled = match request {
            Request::Seal { disk, epoch } => self.seal(disk, epoch),
            Request::Join {
                asker,
                extents,
                extent_size,
                from,
            } => self.join(asker, extents, extent_size, from),
            Request::Write {
                asker,
                seq,
                watermark,
                blocks,
                content,
            } => self
                .write(asker, seq, watermark, blocks, content)
                .map(Handled::Now),
            Request::Read {
                asker,
                from,
                below,
                blocks,
            } => self.read(asker, from, below, blocks).map(Handled::Read),
            Request::Sync { asker } => self.sync(asker),
            Request::List {
                asker,
                extents,
                above,
                start,
            } => self.list(asker, extents, above, start).map(Handled::Now),
            Request::Settle { asker, extents } => self.settle(asker, extents),
            Request::Survey { .. } | Request::Pull { .. } | Request::Fetch { .. } => {
                Err(Refusal::Invalid {
                    why: "this store cannot pull yet",
                })
            }
        };
        handled.unwrap_or_else(|refusal| Handled::Now(Reply::Refused(refusal)))
    }

    /// Refuses whoever is not the writer of the epoch that the disk is in (I3), or has not noticed
    /// that this store may have lost unsynced data (rule S1).
    pub(super) fn check(&self, asker: &Asker) -> Result<(), Refusal> {
        if self.has_failed() {
            return Err(Refusal::Failed);
        }
        let disk = self.holdings.disks.get(&asker.disk);
        let shown = disk.map_or(Epoch::ZERO, |disk| disk.shown);
        if asker.epoch < shown {
            return Err(Refusal::Superseded { shown });
        }
        // An epoch is shown when its promise is synced, not before (rule S3).
        let promised = disk.is_some_and(|disk| disk.shown_at < self.synced())
            || planted(Plant::EpochNotSynced);
        if asker.epoch > shown || !promised {
            return Err(Refusal::NotShown { shown });
        }
        if asker.incarnation != self.incarnation {
            return Err(Refusal::OtherIncarnation {
                now: self.incarnation,
            });
        }
        Ok(())
    }

    fn seal(&mut self, disk: DiskId, epoch: Epoch) -> Result<Handled<M>, Refusal> {
        if self.has_failed() {
            return Err(Refusal::Failed);
        }
        if epoch == Epoch::ZERO || epoch == Epoch::MAX {
            return Err(Refusal::Invalid {
                why: "no disk is ever in this epoch",
            });
        }
        let shown = self.shown(disk);
        if epoch < shown {
            return Err(Refusal::Superseded { shown });
        }
        if epoch > shown {
            let header = Header {
                disk,
                epoch: epoch.as_u64(),
                ..Header::control(Kind::Epoch)
            };
            let at = self.append_control(header, &[])?;
            self.holdings.disk(disk).show(epoch, at);
        }
        let state = &self.holdings.disks[&disk];
        let sealed = Sealed {
            incarnation: self.incarnation,
            starts: self.starts,
            watermark: state.watermark,
            replicas: state.replicas.states(self.whole_since()),
        };
        if planted(Plant::EpochNotSynced) {
            return Ok(Handled::Now(Reply::Sealed(sealed)));
        }
        Ok(self.promise(disk, epoch, Reply::Sealed(sealed)))
    }

    /// The incarnation in which a replica must have become whole to be whole now (rule S2).
    fn whole_since(&self) -> Incarnation {
        let wiped = planted(Plant::LostMarkCleared) && !self.lost_tail;
        match wiped {
            true => Incarnation(0),
            false => self.incarnation,
        }
    }

    fn join(
        &mut self,
        asker: Asker,
        extents: Extents,
        extent_size: ExtentSize,
        from: Epoch,
    ) -> Result<Handled<M>, Refusal> {
        self.check(&asker)?;
        let invalid = |why| Refusal::Invalid { why };
        let disk = &self.holdings.disks[&asker.disk];
        if extents.count() == 0 {
            return Err(invalid("a join of no extents"));
        }
        if from > asker.epoch || from <= disk.dropped {
            return Err(invalid("a join at an epoch that is not the disk's"));
        }
        if disk.extent_size.is_some_and(|size| size != extent_size) {
            return Err(invalid("the disk has extents of another size"));
        }
        if disk.replicas.may_join(extents, from).map_err(invalid)? {
            let join = disk.joins.checked_add(1);
            let join = join.ok_or(invalid("the disk has joined here too often"))?;
            let change = ReplicaChange {
                extents,
                extent_size,
                from,
                incarnation: self.incarnation,
            };
            let header = Header {
                disk: asker.disk,
                join,
                ..Header::control(Kind::Join)
            };
            self.append_control(header, change.encode().as_bytes())?;
            self.holdings.disk(asker.disk).join(&change, join);
        }
        Ok(self.promise(asker.disk, asker.epoch, Reply::Joined))
    }

    fn settle(&mut self, asker: Asker, extents: Extents) -> Result<Handled<M>, Refusal> {
        self.check(&asker)?;
        let disk = &self.holdings.disks[&asker.disk];
        if extents.count() == 0 || !disk.replicas.cover(extents) {
            return Err(Refusal::NoReplica);
        }
        let change = ReplicaChange {
            extents,
            extent_size: disk.extent_size.expect("a replica has joined"),
            from: asker.epoch,
            incarnation: self.incarnation,
        };
        let header = Header {
            disk: asker.disk,
            ..Header::control(Kind::Settle)
        };
        self.append_control(header, change.encode().as_bytes())?;
        let disk = self.holdings.disk(asker.disk);
        disk.replicas.settle(extents, change.incarnation);
        Ok(self.promise(asker.disk, asker.epoch, Reply::Settled))
    }

    fn sync(&mut self, asker: Asker) -> Result<Handled<M>, Refusal> {
        self.check(&asker)?;
        Ok(self.promise(asker.disk, asker.epoch, Reply::Synced))
    }

    fn read(
        &mut self,
        asker: Asker,
        from: Epoch,
        below: Epoch,
        blocks: Blocks,
    ) -> Result<ReadPlan<M>, Refusal> {
        self.check(&asker)?;
        self.check_blocks(asker.disk, blocks, MAX_DATA_BLOCKS)?;
        self.load(asker.disk, blocks)?;
        let disk = &self.holdings.disks[&asker.disk];
        let extent = disk.extent_of(blocks.first);
        let join = extent.and_then(|extent| Some(disk.replicas.of(extent)?.join));
        let mut plan = ReadPlan {
            store: self.id,
            disk: asker.disk,
            blocks,
            found: Vec::with_capacity(blocks.count as usize),
            fetches: Default::default(),
        };
        for (index, block) in blocks.iter().enumerate() {
            let chunk = disk
                .chunks
                .get(&chunk_of(block))
                .and_then(|slot| slot.chunk.as_ref());
            let within = (block.0 - blocks_of(chunk_of(block)).first.0) as u16;
            // The newest below the bound (rule R2), and only if this entry has it (rule R1).
            let entry = chunk
                .and_then(|chunk| chunk.versions(within).find(|e| e.version.epoch < below))
                .filter(|entry| has(entry, from, join));
            let planned = match &entry {
                None => Planned::Absent,
                Some(entry) if entry.zeroes && planted(Plant::DiscardDeletes) => Planned::Absent,
                Some(entry) if entry.zeroes => Planned::Zeroes(entry.version),
                Some(entry) => {
                    let files = &mut self.log.files;
                    plan.plan(index as u32, entry, || files.of(entry.place.segment))
                        .map_err(|error| {
                            tracing::error!(%error, place = %entry.place, "cannot open a segment");
                            Refusal::Damaged { block }
                        })?;
                    Planned::Data(entry.version)
                }
            };
            plan.found.push(planned);
        }
        Ok(plan)
    }

    fn list(
        &mut self,
        asker: Asker,
        extents: Extents,
        above: Version,
        start: Block,
    ) -> Result<Reply, Refusal> {
        self.check(&asker)?;
        let disk = &self.holdings.disks[&asker.disk];
        let size = disk.extent_size.ok_or(Refusal::NoReplica)?;
        if extents.count() == 0 || !disk.replicas.cover(extents) {
            return Err(Refusal::NoReplica);
        }
        let candidates: Vec<Blocks> = disk
            .extents
            .range(extents.first..extents.end)
            .filter(|(_, state)| state.highest > above)
            .map(|(extent, _)| size.blocks_of(*extent))
            .filter(|blocks| blocks.end() > start)
            .collect();
        let mut listed = Vec::new();
        for blocks in candidates {
            self.load(asker.disk, blocks)?;
            let disk = &self.holdings.disks[&asker.disk];
            for (number, part) in super::index::chunks_of(blocks) {
                let chunk = disk
                    .chunks
                    .get(&number)
                    .and_then(|slot| slot.chunk.as_ref());
                let Some(chunk) = chunk else { continue };
                let base = blocks_of(number).first.0;
                for (within, entry) in chunk.entries((part.first.0 - base) as u16, part.count) {
                    let block = Block(base + u64::from(within));
                    let deleted = entry.zeroes && planted(Plant::DiscardDeletes);
                    if block < start || entry.version <= above || deleted {
                        continue;
                    }
                    if listed.len() == MAX_LISTED {
                        return Ok(Reply::Listed {
                            blocks: listed,
                            more: true,
                        });
                    }
                    listed.push(ListedBlock {
                        block,
                        version: entry.version,
                        zeroes: entry.zeroes,
                    });
                }
            }
        }
        Ok(Reply::Listed {
            blocks: listed,
            more: false,
        })
    }

    /// The disk was deleted: frees all that it has here and keeps only its epoch. The answer waits for a sync.
    pub fn drop_disk(&mut self, disk: DiskId) -> Result<Promise, Refusal> {
        if self.has_failed() {
            return Err(Refusal::Failed);
        }
        let shown = self.shown(disk);
        if self.holdings.disks.contains_key(&disk) {
            let chunks: Vec<u64> = self.holdings.disks[&disk].chunks.keys().copied().collect();
            for chunk in chunks {
                self.load(disk, blocks_of(chunk))?;
            }
            let header = Header {
                disk,
                epoch: shown.as_u64(),
                ..Header::control(Kind::Drop)
            };
            self.append_control(header, &[])?;
            self.holdings.drop_disk(disk);
        }
        Ok(Promise::new(self.log.end(), disk, shown, Reply::Synced))
    }

    /// The highest epoch shown for a disk; zero if none was.
    pub fn shown(&self, disk: DiskId) -> Epoch {
        let disk = self.holdings.disks.get(&disk);
        disk.map_or(Epoch::ZERO, |disk| disk.shown)
    }

    /// Blocks of a request: some, not too many, in one extent that has a replica here.
    pub(super) fn check_blocks(
        &self,
        disk: DiskId,
        blocks: Blocks,
        most: u32,
    ) -> Result<(), Refusal> {
        let disk = &self.holdings.disks[&disk];
        if blocks.is_empty() || blocks.count > most {
            return Err(Refusal::Invalid {
                why: "no blocks, or too many at once",
            });
        }
        let Some(last) = blocks.first.0.checked_add(u64::from(blocks.count) - 1) else {
            return Err(Refusal::Invalid {
                why: "blocks beyond any disk",
            });
        };
        let extent = disk.extent_of(blocks.first).ok_or(Refusal::NoReplica)?;
        if disk.extent_of(Block(last)) != Some(extent) {
            return Err(Refusal::Invalid {
                why: "blocks of more than one extent",
            });
        }
        match disk.replicas.of(extent) {
            Some(_) => Ok(()),
            None => Err(Refusal::NoReplica),
        }
    }

    /// Brings the index of `blocks` into memory.
    pub(super) fn load(&mut self, disk: DiskId, blocks: Blocks) -> Result<(), Refusal> {
        let loaded = self
            .holdings
            .load(&mut self.log.files, self.id, disk, blocks);
        loaded.map_err(|fault| {
            match fault {
                LoadFault::Damaged { place, blocks } => tracing::error!(
                    %disk, %blocks, %place, "the index of these blocks is damaged"
                ),
                LoadFault::Io(error) => tracing::error!(%disk, %error, "cannot read the index"),
            }
            Refusal::Damaged {
                block: blocks.first,
            }
        })
    }

    /// Appends a control frame with the next number. Returns where it begins.
    fn append_control(&mut self, header: Header, payload: &[u8]) -> Result<LogPoint, Refusal> {
        let header = Header {
            seq: self.holdings.controls + 1,
            ..header
        }
        .with_payload(payload);
        self.make_room(header.frame_bytes(), Purpose::Control)?;
        let place = self.append([(header, payload)].into_iter())?;
        self.holdings.controls += 1;
        Ok(place.point())
    }
}

/// Rule R1: an entry that began at `from` has a block if its version is not older, or if a fill put
/// it in during this very membership.
fn has(entry: &Entry, from: Epoch, join: Option<u16>) -> bool {
    entry.version.epoch >= from || (entry.filled.is_some() && entry.filled == join)
}
