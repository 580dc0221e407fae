//! Requests: who may ask, and what each one does, except for writes (write.rs).

use super::append::{Purpose, Room};
use super::frame::{Header, Kind, LogPoint, MAX_BLOCK, ReplicaChange};
use super::holdings::{LoadFault, block_range};
use super::index::Entry;
use super::media::Media;
use super::read::{Planned, ReadPlan};
use super::{Handled, ShownDisk, ShownDisks, Store};
use crate::message::{
    Asker, MAX_DATA_BLOCKS, MAX_GRANT_BYTES, MAX_RECORD_BYTES, Refusal, Reply, Request, Sealed,
};
use crate::plant::{Plant, planted};
use crate::words::{
    Block, Blocks, DiskId, DiskRecord, Epoch, ExtentSize, Extents, Incarnation, Version,
};
use bytes::Bytes;
use smallvec::SmallVec;
use zerocopy::IntoBytes;

impl<M: Media> Store<M> {
    /// Takes a request; never waits for the media (but for a part of the index that was not needed
    /// since the store was opened).
    pub fn handle(&mut self, request: Request) -> Handled<M> {
        if let Request::Write { .. } = request {
            let mut replies = self.handle_writes([request]);
            return Handled::Now(replies.pop().expect("one for each"));
        }
        let handled = match request {
            Request::Seal {
                disk,
                epoch,
                grant,
                record,
                known,
            } => match self.remembers(&known) {
                true => self.seal(disk, epoch, grant, record),
                false => self.forgot(disk, epoch),
            },
            Request::Join {
                asker,
                extents,
                extent_size,
                from,
            } => self.join(asker, extents, extent_size, from),
            Request::Write { .. } => unreachable!("taken above"),
            Request::Read {
                asker,
                from,
                below,
                blocks,
            } => self
                .plan_read(asker, (from, below), blocks, &[])
                .map(|(plan, _)| Handled::Read(plan)),
            Request::Sync { asker } => self.sync(asker),
            Request::List {
                asker,
                extents,
                above,
                start,
            } => self.list(asker, extents, above, start).map(Handled::Now),
            Request::Settle { asker, extents } => self.settle(asker, extents),
            Request::Survey {
                asker,
                from,
                below,
                extents,
                start,
            } => self
                .survey(asker, (from, below), extents, start)
                .map(Handled::Now),
            Request::Fetch {
                asker,
                from,
                below,
                blocks,
                known,
                compress,
                proof: _,
            } => self
                .fetch(asker, (from, below), blocks, known, compress)
                .map(Handled::Fetch),
            // It takes a network: see [`Store::missing`] and [`Store::fill`].
            Request::Pull { .. } | Request::Heal { .. } => Err(Refusal::Invalid {
                why: "a pull is carried out by the store's node",
            }),
            Request::Digest {
                asker,
                from,
                extents,
            } => self.digest(asker, from, extents).map(Handled::Now),
            Request::Verify { asker, blocks } => {
                self.plan_verify(asker, blocks).map(Handled::Verify)
            }
            Request::Keep {
                asker,
                extents,
                below,
            } => self.keep_below(asker, extents, below),
            Request::Collapse {
                asker,
                extents,
                oldest,
            } => self.collapse(asker, extents, oldest).map(Handled::Now),
        };
        handled.unwrap_or_else(|refusal| Handled::Now(Reply::Refused(refusal)))
    }

    /// Takes writes, of any disks, and appends what all of them bring as one write to the media. A reply for
    /// each, in order; anything else than a write is a mistake of the caller.
    pub fn handle_writes(
        &mut self,
        writes: impl IntoIterator<Item = Request>,
    ) -> SmallVec<[Reply; 1]> {
        let superseded = self.superseded();
        let took = writes.into_iter().map(|write| match write {
            Request::Write {
                asker,
                seq,
                watermark,
                blocks,
                content,
            } => self
                .write(asker, seq, watermark, blocks, content)
                .unwrap_or_else(Reply::Refused),
            other => panic!("a {} among writes", other.kind()),
        });
        let mut replies: SmallVec<[Reply; 1]> = took.collect();
        self.write_out();
        self.keep_superseded_few(self.superseded().saturating_sub(superseded));
        if self.has_failed() {
            // Nobody knows what of it reached the media.
            let held = replies
                .iter_mut()
                .filter(|reply| matches!(reply, Reply::Written(_)));
            held.for_each(|reply| *reply = Reply::Refused(Refusal::Failed));
        }
        replies
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
            match planted(Plant::RefusesNoOlderEpoch) {
                true => return Ok(()),
                false => return Err(Refusal::Superseded { shown }),
            }
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

    /// Somebody was told more by this store than it knows (rule S6): to that asker it is of no use.
    fn forgot(&self, disk: DiskId, epoch: Epoch) -> Result<Handled<M>, Refusal> {
        let shown = self.shown(disk);
        if epoch < shown {
            return Err(Refusal::Superseded { shown });
        }
        tracing::error!(
            store = %self.id, %disk,
            "the store has answered what it does not know any more: its directory is an older copy of itself"
        );
        Err(Refusal::Forgot)
    }

    /// `grant` proves who was given the epoch. Whoever let the request in has checked it; here it is
    /// kept, as long and as well as the epoch itself. So is `record`, the disk's own as the asker has it.
    fn seal(
        &mut self,
        disk: DiskId,
        epoch: Epoch,
        grant: Bytes,
        record: Bytes,
    ) -> Result<Handled<M>, Refusal> {
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
        if grant.len() > MAX_GRANT_BYTES {
            return Err(Refusal::Invalid {
                why: "a grant that is too long",
            });
        }
        if record.len() > MAX_RECORD_BYTES {
            return Err(Refusal::Invalid {
                why: "a record that is too long",
            });
        }
        // A grant that was made anew for the same epoch takes the place of the one before.
        let is_news = !grant.is_empty() && grant != self.shown_by(disk).1;
        if epoch > shown || is_news {
            let header = Header {
                disk,
                epoch: epoch.as_u64(),
                ..Header::control(Kind::Epoch)
            };
            let at = self.append_control(header, &grant)?;
            let disk = self.holdings.disk(disk);
            disk.show(epoch, at);
            disk.grant = grant;
        }
        // One that was sent before what is kept may still come after it.
        let kept = &self.holdings.disks[&disk].record;
        let is_late = epoch == shown && is_older(&record, kept);
        if !record.is_empty() && record != *kept && !is_late {
            let header = Header {
                disk,
                epoch: epoch.as_u64(),
                ..Header::control(Kind::Record)
            };
            let at = self.append_control(header, &record)?;
            self.holdings.disk(disk).keep_record(record, at);
        }
        let state = &self.holdings.disks[&disk];
        let sealed = Sealed {
            incarnation: self.incarnation,
            starts: self.starts,
            watermark: state.watermark,
            reach: self.reach(),
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
        if block_range(extents, extent_size).1.0 > MAX_BLOCK {
            return Err(invalid("extents beyond any disk"));
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
        Ok(self.promise(asker.disk, asker.epoch, Reply::Joined(self.reach())))
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
        Ok(self.promise(asker.disk, asker.epoch, Reply::Settled(self.reach())))
    }

    fn sync(&mut self, asker: Asker) -> Result<Handled<M>, Refusal> {
        self.check(&asker)?;
        Ok(self.promise(asker.disk, asker.epoch, Reply::Synced))
    }

    /// Plans a read; says of which blocks the asker holds the very version (`known`, empty for none),
    /// which are not read then.
    pub(super) fn plan_read(
        &mut self,
        asker: Asker,
        (from, below): (Epoch, Epoch),
        blocks: Blocks,
        known: &[Version],
    ) -> Result<(ReadPlan<M>, SmallVec<[bool; 8]>), Refusal> {
        self.check(&asker)?;
        self.check_blocks(asker.disk, blocks, MAX_DATA_BLOCKS)?;
        self.load(asker.disk, blocks)?;
        let disk = &self.holdings.disks[&asker.disk];
        let extent = disk.extent_of(blocks.first).expect("just checked");
        let replica = disk.replicas.of(extent).expect("just checked");
        let proof = replica.proof(from);
        let mut same = SmallVec::new();
        let mut plan = ReadPlan {
            store: self.id,
            disk: asker.disk,
            blocks,
            found: Vec::with_capacity(blocks.count as usize),
            finds: self.damages.finds.clone(),
            fetches: Default::default(),
            past_cache: false,
        };
        for (index, block) in blocks.iter().enumerate() {
            // The newest below the bound (rule R2) of those that this entry has (rule R1).
            let has = |entry: &Entry| entry.version.epoch < below && proof.covers(entry);
            let entry = self.holdings.entry(asker.disk, block, has);
            let is_known = entry.is_some_and(|entry| known.get(index) == Some(&entry.version));
            same.push(is_known);
            let planned = match &entry {
                None => Planned::Absent,
                Some(_) if is_known => Planned::Absent,
                Some(entry) if entry.zeroes && planted(Plant::DiscardDeletes) => Planned::Absent,
                Some(entry) if entry.zeroes => Planned::Zeroes(entry.version),
                Some(entry) => {
                    let files = &mut self.log.files;
                    plan.plan(index as u32, entry, || files.for_reads(entry.place.segment))
                        .map_err(|error| {
                            tracing::error!(%error, place = %entry.place, "cannot open a segment");
                            Refusal::Damaged { block }
                        })?;
                    Planned::Data(entry.version)
                }
            };
            plan.found.push(planned);
        }
        Ok((plan, same))
    }

    /// The highest epoch shown for a disk; zero if none was.
    pub fn shown(&self, disk: DiskId) -> Epoch {
        let disk = self.holdings.disks.get(&disk);
        disk.map_or(Epoch::ZERO, |disk| disk.shown)
    }

    /// The highest epoch that the disk was shown, and what proved it; empty: nothing did.
    pub fn shown_by(&self, disk: DiskId) -> (Epoch, Bytes) {
        let disk = self.holdings.disks.get(&disk);
        disk.map_or((Epoch::ZERO, Bytes::new()), |disk| {
            (disk.shown, disk.grant.clone())
        })
    }

    /// Of every disk that was shown an epoch: that epoch, and its record as its writers told it. Only what is on
    /// media: what a store has said of itself must stay true when its power is lost (rule S7).
    pub fn shown_disks(&self) -> ShownDisks {
        let synced = self.synced();
        let mut all = ShownDisks {
            disks: Vec::new(),
            complete: true,
        };
        for (&disk, state) in &self.holdings.disks {
            if state.shown == Epoch::ZERO {
                continue;
            }
            if state.shown_at.max(state.record_at) >= synced {
                all.complete = false;
                continue;
            }
            all.disks.push(ShownDisk {
                disk,
                epoch: state.shown,
                record: state.record.clone(),
            });
        }
        all
    }

    /// Blocks of a request: some, not too many, in one extent that has a replica here, and none that a recovery
    /// would not take for one (a replica that reaches further was let in by a program that did not look).
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
        let end = blocks.first.0.checked_add(u64::from(blocks.count));
        let Some(end) = end.filter(|end| *end <= MAX_BLOCK) else {
            return Err(Refusal::Invalid {
                why: "blocks beyond any disk",
            });
        };
        let extent = disk.extent_of(blocks.first).ok_or(Refusal::NoReplica)?;
        if disk.extent_of(Block(end - 1)) != Some(extent) {
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
    pub(super) fn append_control(
        &mut self,
        header: Header,
        payload: &[u8],
    ) -> Result<LogPoint, Refusal> {
        let header = Header {
            seq: self.holdings.controls + 1,
            ..header
        }
        .with_payload(payload);
        self.make_room(Room::Bytes(header.frame_bytes()), Purpose::Control)?;
        let places = self.append([(header, payload)].into_iter())?;
        self.holdings.controls += 1;
        Ok(places[0].point())
    }
}

/// Whether `told` is an older record than the one that is `kept`. What cannot be read is no older than anything.
fn is_older(told: &[u8], kept: &[u8]) -> bool {
    if told == kept {
        return false;
    }
    match (DiskRecord::from_kept(told), DiskRecord::from_kept(kept)) {
        (Ok(told), Ok(kept)) => (told.epoch, told.revision) < (kept.epoch, kept.revision),
        _ => false,
    }
}
