//! A store on simulated media, with an oracle that knows all that was ever written.

use crate::message::{
    Asker, Content, Fetch, Found, Known, Payload, Pulled, ReadBlocks, Refusal, Reply, Request,
    Sealed, checksum,
};
use crate::store::media::sim::SimMedia;
use crate::store::place::Place;
use crate::store::{BootId, Filling, Handled, Options, Promise, Recovery, Store, StoreError};
use crate::words::{
    BLOCK_BYTES, Block, Blocks, DiskId, Epoch, Extent, ExtentSize, Extents, Seq, StoreId, Version,
};
use bytes::Bytes;
use std::collections::BTreeMap;

pub const STORE: StoreId = StoreId::from_u128(0x5704E);
pub const DISK: DiskId = DiskId::from_u128(0xD15C);

pub fn options() -> Options {
    Options::tiny()
}

/// What a write of this version puts into this block: found nowhere else.
pub fn content(disk: DiskId, block: Block, version: Version) -> Vec<u8> {
    let words = [
        disk.as_u128() as u64,
        block.0,
        version.epoch.as_u64(),
        version.seq.0,
    ];
    let mut bytes = Vec::with_capacity(BLOCK_BYTES as usize);
    let mut state = 0x9E37u64;
    while bytes.len() < BLOCK_BYTES as usize {
        for word in words {
            state = (state ^ word)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .rotate_left(23);
            bytes.extend(state.to_le_bytes());
        }
    }
    bytes
}

/// What may and must be found after a crash.
#[derive(Clone, Default)]
pub struct Oracle {
    /// Every version ever written, by block: whether it is zeroes.
    pub written: BTreeMap<Block, BTreeMap<Version, bool>>,
    /// What a completed sync covers.
    pub flushed: BTreeMap<Block, Version>,
    /// The epochs at which the replica joined again: reads of older entries are bounded by them.
    pub bounds: Vec<u64>,
    /// The highest epoch whose seal was answered, and the highest that was asked for.
    pub sealed: Epoch,
    pub asked: Epoch,
}

pub struct Bench {
    pub media: SimMedia,
    pub store: Store<SimMedia>,
    pub recovery: Recovery,
    pub oracle: Oracle,
    pub epoch: Epoch,
    pub seq: u64,
    pub options: Options,
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with(options())
    }

    pub fn with(options: Options) -> Bench {
        let media = SimMedia::new();
        Store::format(&media, STORE, &options).unwrap();
        Bench::open(media, options, Oracle::default()).unwrap()
    }

    pub fn open(media: SimMedia, options: Options, oracle: Oracle) -> Result<Bench, StoreError> {
        let boot = BootId(media.boot());
        let (store, recovery) = Store::open(media.clone(), options.clone(), boot)?;
        let epoch = store.shown(DISK);
        let seq = oracle
            .written
            .values()
            .flat_map(|versions| versions.keys())
            .filter(|version| version.epoch == epoch)
            .map(|version| version.seq.0)
            .max();
        Ok(Bench {
            media,
            store,
            recovery,
            oracle,
            epoch,
            seq: seq.unwrap_or(0),
            options,
        })
    }

    /// Sealed at epoch 1 and joined for all extents.
    pub fn ready() -> Bench {
        Bench::ready_with(options())
    }

    pub fn ready_with(options: Options) -> Bench {
        let mut bench = Bench::with(options);
        bench.seal(1);
        bench.join(0..64, 1);
        bench
    }

    pub fn asker(&self) -> Asker {
        Asker {
            disk: DISK,
            epoch: self.epoch,
            incarnation: self.store.incarnation(),
        }
    }

    /// The answer, after whatever sync it takes.
    pub fn ask(&mut self, request: Request) -> Reply {
        match self.store.handle(request) {
            Handled::Now(reply) => reply,
            Handled::Read(plan) => plan.run().map_or_else(Reply::Refused, Reply::Read),
            Handled::Fetch(plan) => plan.run().map_or_else(Reply::Refused, Reply::Fetched),
            Handled::Verify(plan) => Reply::Verified(plan.run()),
            Handled::AfterSync(promise) => self.wait(promise),
        }
    }

    pub fn wait(&mut self, promise: Promise) -> Reply {
        while self.store.synced() < promise.point() && !self.store.has_failed() {
            self.flush();
        }
        self.store.keep(promise)
    }

    /// One sync, noted by the oracle.
    pub fn flush(&mut self) -> bool {
        let Some(job) = self.store.begin_sync() else {
            return false;
        };
        let covered = self.newest();
        let result = job.run();
        let fine = result.is_ok();
        self.store.finish_sync(job, result);
        if fine {
            self.oracle.flushed = covered;
        }
        fine
    }

    pub fn newest(&self) -> BTreeMap<Block, Version> {
        let newest = |versions: &BTreeMap<Version, bool>| *versions.last_key_value().unwrap().0;
        let written = self.oracle.written.iter();
        written
            .map(|(block, versions)| (*block, newest(versions)))
            .collect()
    }

    /// Where the newest frame of a block stands.
    pub fn place_of(&mut self, block: u64) -> Place {
        let blocks = Blocks::new(Block(block), 1);
        let index = self.store.load(DISK, blocks);
        index.expect("the index is whole");
        let entry = self.store.holdings.entry(DISK, Block(block), |_| true);
        entry.expect("it was written").place
    }

    pub fn seal(&mut self, epoch: u64) -> Sealed {
        self.seal_with(epoch, Bytes::new())
    }

    /// The same, by a writer that tells the disk's record.
    pub fn seal_with(&mut self, epoch: u64, record: Bytes) -> Sealed {
        let epoch = Epoch::from_u64(epoch);
        self.oracle.asked = self.oracle.asked.max(epoch);
        let request = Request::Seal {
            disk: DISK,
            epoch,
            grant: Bytes::new(),
            record,
            known: Known::default(),
        };
        match self.ask(request) {
            Reply::Sealed(sealed) => {
                self.oracle.sealed = self.oracle.sealed.max(epoch);
                if epoch > self.epoch {
                    (self.epoch, self.seq) = (epoch, 0);
                }
                sealed
            }
            other => panic!("not sealed: {other:?}"),
        }
    }

    pub fn join(&mut self, extents: std::ops::Range<u32>, from: u64) {
        let request = Request::Join {
            asker: self.asker(),
            extents: Extents::new(Extent(extents.start), Extent(extents.end)),
            extent_size: ExtentSize::new(1 << 20).unwrap(),
            from: Epoch::from_u64(from),
        };
        assert_eq!(self.ask(request), Reply::JOINED);
        self.oracle.bounds.push(from);
    }

    /// Writes the next version; `zero`: zeroes. The oracle learns of it whatever the answer.
    pub fn write(&mut self, first: u64, count: u32, zero: bool) -> Reply {
        let mut replies = self.write_all(&[(first, count, zero)]);
        replies.pop().unwrap()
    }

    /// Several at once, as the store gets them from one kick.
    pub fn write_all(&mut self, writes: &[(u64, u32, bool)]) -> Vec<Reply> {
        let mut requests = Vec::new();
        let mut versions = Vec::new();
        for &(first, count, zero) in writes {
            self.seq += 1;
            let blocks = Blocks::new(Block(first), count);
            requests.push(self.write_request(self.seq, blocks, zero));
            let version = Version::new(self.epoch, Seq(self.seq));
            for block in blocks.iter() {
                let known = self.oracle.written.entry(block).or_default();
                known.insert(version, zero);
            }
            versions.push((blocks, version));
        }
        let replies = self.store.handle_writes(requests);
        for ((blocks, version), reply) in versions.into_iter().zip(&replies) {
            if matches!(reply, Reply::Refused(Refusal::Full { .. })) {
                self.never_written(blocks, version);
            }
            let invalid = matches!(reply, Reply::Refused(Refusal::Invalid { .. }));
            assert!(!invalid, "a test's own mistake: {reply:?}");
        }
        replies.into_vec()
    }

    fn never_written(&mut self, blocks: Blocks, version: Version) {
        for block in blocks.iter() {
            let versions = self.oracle.written.get_mut(&block).unwrap();
            versions.remove(&version);
            if versions.is_empty() {
                self.oracle.written.remove(&block);
            }
        }
    }

    pub fn write_request(&self, seq: u64, blocks: Blocks, zero: bool) -> Request {
        let version = Version::new(self.epoch, Seq(seq));
        let content = match zero {
            true => Content::Zeroes,
            false => {
                let data: Vec<u8> = blocks
                    .iter()
                    .flat_map(|block| content(DISK, block, version))
                    .collect();
                Content::Data(Payload::new(Bytes::from(data)))
            }
        };
        Request::Write {
            asker: self.asker(),
            seq: Seq(seq),
            watermark: Seq(seq.saturating_sub(4)),
            blocks,
            content,
        }
    }

    /// Fills blocks in as a pull would, with what `source` says of each one that is missing, looking below
    /// `below`. A version whose content is known to be the same is adopted.
    pub fn fill(
        &mut self,
        below: u64,
        blocks: Blocks,
        source: impl Fn(Block) -> Option<(Version, bool)>,
    ) -> Result<Pulled, Refusal> {
        let below = Epoch::from_u64(below);
        let missing = self.store.missing(self.asker(), below, blocks)?;
        if missing.blocks.is_empty() {
            return Ok(Pulled::default());
        }
        let mut data = Vec::new();
        let all = missing.blocks.iter().flat_map(|part| part.iter());
        let found = all
            .zip(&missing.known)
            .map(|(block, known)| match source(block) {
                None => Fetch::Absent,
                Some((version, _)) if version == *known => Fetch::Same,
                Some((version, true)) => Fetch::Zeroes(version),
                Some((version, false)) => {
                    let content = content(DISK, block, version);
                    data.extend_from_slice(&content);
                    let sum = checksum(&content);
                    Fetch::Data { version, sum }
                }
            });
        let filling = Filling {
            found: found.collect(),
            data: Bytes::from(data),
            wire_bytes: 0,
        };
        self.store.fill(self.asker(), below, &missing, &filling)
    }

    /// Heals what is known to be damaged of some blocks with what another store has, looking below `below`.
    pub fn heal(
        &mut self,
        below: u64,
        blocks: Blocks,
        version: Version,
    ) -> Result<Pulled, Refusal> {
        let spoilt = self.store.spoilt(self.asker(), blocks)?;
        let all = spoilt.blocks.iter().flat_map(|part| part.iter());
        let mut data = Vec::new();
        let found = all.map(|block| {
            let content = content(DISK, block, version);
            data.extend_from_slice(&content);
            let sum = checksum(&content);
            Fetch::Data { version, sum }
        });
        let filling = Filling {
            found: found.collect(),
            data: Bytes::from(data),
            wire_bytes: 0,
        };
        if spoilt.blocks.is_empty() {
            return Ok(Pulled::default());
        }
        let below = Epoch::from_u64(below);
        self.store.fill(self.asker(), below, &spoilt, &filling)
    }

    pub fn read(&mut self, first: u64, count: u32) -> Result<ReadBlocks, Refusal> {
        self.read_bounded(first, count, 0, u64::MAX)
    }

    pub fn read_bounded(
        &mut self,
        first: u64,
        count: u32,
        from: u64,
        below: u64,
    ) -> Result<ReadBlocks, Refusal> {
        let request = Request::Read {
            asker: self.asker(),
            from: Epoch::from_u64(from),
            below: Epoch::from_u64(below),
            blocks: Blocks::new(Block(first), count),
        };
        match self.ask(request) {
            Reply::Read(blocks) => Ok(blocks),
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("not an answer to a read: {other:?}"),
        }
    }

    /// The version of one block, its content checked.
    pub fn version(&mut self, block: Block) -> Result<Option<Version>, Refusal> {
        let read = self.read(block.0, 1)?;
        Ok(match read.found[0] {
            Found::Absent => None,
            Found::Zeroes(version) => {
                assert!(
                    self.oracle.written[&block][&version],
                    "zeroes that were data"
                );
                Some(version)
            }
            Found::Data { version, .. } => {
                assert!(
                    read.data[..] == content(DISK, block, version)[..],
                    "block {block:?} {version}: torn, or never written so"
                );
                assert_eq!(self.oracle.written[&block].get(&version), Some(&false));
                Some(version)
            }
        })
    }

    /// Checks every block against the oracle: `exact` where nothing may be missing.
    pub fn check(&mut self, exact: bool) {
        let shown = self.store.shown(DISK);
        assert!(
            self.oracle.sealed <= shown && shown <= self.oracle.asked,
            "I4: sealed {:?}, shown {shown:?}, asked {:?}",
            self.oracle.sealed,
            self.oracle.asked
        );
        if shown == Epoch::ZERO {
            assert!(self.oracle.flushed.is_empty());
            return;
        }
        self.epoch = shown;
        let newest = self.newest();
        for (block, last) in newest {
            let must = match exact {
                true => Some(last),
                false => self.oracle.flushed.get(&block).copied(),
            };
            match self.version(block) {
                Ok(found) => assert!(
                    found >= must && (!exact || found == must),
                    "block {block:?}: found {found:?}, must be {must:?}"
                ),
                // A join that was not flushed may be gone, and all that came after it.
                Err(Refusal::NoReplica) => assert_eq!(must, None, "block {block:?}"),
                Err(refusal) => panic!("block {block:?}: {refusal:?}"),
            }
        }
    }

    /// Rule R2: what an older entry says does not change.
    pub fn check_bounded(&mut self) {
        if self.store.shown(DISK) == Epoch::ZERO {
            return;
        }
        for bound in self.oracle.bounds.clone() {
            if bound > self.epoch.as_u64() {
                continue;
            }
            let below = Version::new(Epoch::from_u64(bound), Seq::ZERO);
            for (block, versions) in self.oracle.written.clone() {
                let last = versions.range(..below).next_back();
                let expected = last.map(|(version, zero)| (*version, *zero));
                let read = self.read_bounded(block.0, 1, 0, bound).unwrap();
                let found = match read.found[0] {
                    Found::Absent => None,
                    Found::Zeroes(version) => Some((version, true)),
                    Found::Data { version, .. } => Some((version, false)),
                };
                assert_eq!(found, expected, "block {block:?} below {bound}");
            }
        }
    }

    /// After a recovery: what was found is all there is, and it is synced.
    pub fn believe(&mut self) {
        for block in self.oracle.written.keys().copied().collect::<Vec<_>>() {
            let found = match self.version(block) {
                Ok(found) => found,
                Err(Refusal::NoReplica | Refusal::NotShown { .. }) => None,
                Err(refusal) => panic!("{refusal:?}"),
            };
            let versions = self.oracle.written.get_mut(&block).unwrap();
            versions.retain(|version, _| Some(*version) <= found);
            if versions.is_empty() {
                self.oracle.written.remove(&block);
            }
        }
        self.oracle.flushed = self.newest();
        self.oracle.sealed = self.store.shown(DISK);
        self.oracle.asked = self.oracle.sealed;
    }

    /// Housekeeping until there is nothing to do.
    pub fn tidy(&mut self) {
        let mut steps = 0;
        while self.store.housekeep() {
            steps += 1;
            assert!(steps < 100_000, "housekeeping comes to an end");
        }
    }

    /// What of the unsynced is lost is decided by `survives`; then opened again.
    pub fn crash(self, survives: impl FnMut() -> bool) -> Bench {
        let Bench {
            media,
            store,
            oracle,
            options,
            ..
        } = self;
        media.crash(survives);
        drop(store);
        Bench::open(media, options, oracle).unwrap()
    }

    /// The process dies; nothing is lost.
    pub fn kill(self) -> Bench {
        let Bench {
            media,
            store,
            oracle,
            options,
            ..
        } = self;
        media.kill();
        drop(store);
        Bench::open(media, options, oracle).unwrap()
    }

    pub fn close(self) -> (SimMedia, Oracle, Options) {
        self.store.close().unwrap();
        (self.media, self.oracle, self.options)
    }
}
