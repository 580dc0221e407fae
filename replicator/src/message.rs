//! What a writer asks of a store, and what the store answers: plain data, no bytes on a wire yet.
//!
//! The near store gets these as function calls, a far one through [`crate::wire`]; the simulator
//! passes them through its own network. The answers in any order, one for each request.

use crate::packed::Packed;
use crate::words::{
    BLOCK_BYTES, Block, Blocks, DiskId, Epoch, ExtentSize, Extents, Incarnation, Seq, Starts,
    StoreId, Version,
};
use bytes::Bytes;
use smallvec::SmallVec;

/// The largest range of blocks in one write or read with data: 1 MiB.
pub const MAX_DATA_BLOCKS: u32 = 256;
/// The most blocks that one [`Reply::Listed`] names.
pub const MAX_LISTED: usize = 4096;
/// The most runs that one [`Reply::Surveyed`] names.
pub const MAX_SURVEYED: usize = 4096;
/// The most extents that one [`Reply::Digested`] covers.
pub const MAX_DIGESTS: usize = 1024;
/// The most damaged blocks that one answer names.
pub const MAX_DAMAGED: usize = 256;

/// The longest grant that goes with a [`Request::Seal`]: a certificate and a signature fit well.
pub const MAX_GRANT_BYTES: usize = 4 << 10;
/// The longest record that goes with a [`Request::Seal`]: what a store keeps as one frame of its log. A
/// disk of thousands of ranges fits (`words::kept`).
pub const MAX_RECORD_BYTES: usize = 60 << 10;

/// The SHA-256 of a grant: whoever has it was shown the grant.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GrantDigest(pub [u8; 32]);

impl std::fmt::Debug for GrantDigest {
    /// It opens a door: not for logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrantDigest(…)")
    }
}

/// Who asks, and what the asker believes. A store checks all three before anything else (I3, rule S1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    pub disk: DiskId,
    pub epoch: Epoch,
    /// The store's incarnation when the asker sealed it.
    pub incarnation: Incarnation,
}

/// How far a store's log had come when it answered, and in which of the store's runs. A store that was put back
/// to an older copy of itself is not where it was, or was never there (rule S6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reach {
    /// Drawn at each start of the store; zero: it does not say.
    pub run: u64,
    /// Rises with each frame of the log, from run to run.
    pub at: u64,
}

impl Reach {
    pub const UNKNOWN: Reach = Reach { run: 0, at: 0 };
}

/// The furthest that a store has said to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// The incarnation that it was when it said so: another one may have lost what it had not synced.
    pub incarnation: Incarnation,
    pub reach: Reach,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Request {
    /// Show an epoch: the store promises durably to refuse every lower one (rule S3), and says what it has.
    Seal {
        disk: DiskId,
        epoch: Epoch,
        /// What proves that the asker was given this epoch, as the placement service made it; at most
        /// [`MAX_GRANT_BYTES`]. Empty: nothing.
        grant: Bytes,
        /// The disk's record as the asker has it, for a catalog that was lost; at most
        /// [`MAX_RECORD_BYTES`]. Empty: nothing.
        record: Bytes,
        /// What the asker was told by this store: a store that is not beyond that has forgotten (rule S6).
        known: Known,
    },
    /// Become a member for `extents` from epoch `from` on. Durable before it is answered; what the
    /// store held before is unproven from then on (rule R1). Asking again for the same `from` changes nothing.
    Join {
        asker: Asker,
        extents: Extents,
        extent_size: ExtentSize,
        from: Epoch,
    },
    /// Hold these blocks under version (asker's epoch, `seq`). The blocks lie in one extent.
    Write {
        asker: Asker,
        seq: Seq,
        /// All writes of this epoch up to here are held by all members (rule W4); zero: nothing known.
        watermark: Seq,
        blocks: Blocks,
        content: Content,
    },
    /// Read what the entry that began at `from` says of `blocks`, looking below epoch `below` only (rules R1, R2).
    Read {
        asker: Asker,
        from: Epoch,
        below: Epoch,
        blocks: Blocks,
    },
    /// Name, in order from block `start` on, the blocks that the entry that began at `from` has of
    /// `extents`, looking below epoch `below` only: what a backfill has to copy.
    Survey {
        asker: Asker,
        from: Epoch,
        below: Epoch,
        extents: Extents,
        start: Block,
    },
    /// Get from another store whatever this replica cannot prove of these blocks of one extent (rule
    /// F1): what the entry that began there at `from` has of them below epoch `below`.
    Pull {
        asker: Asker,
        source: Source,
        from: Epoch,
        below: Epoch,
        blocks: Blocks,
    },
    /// Of these blocks of one extent, get from another store those that are known to be damaged here, each
    /// in the very version that is damaged (rule F1): what the entry that began there at `from` has of
    /// them below epoch `below`. Answered like a pull.
    Heal {
        asker: Asker,
        source: Source,
        from: Epoch,
        below: Epoch,
        blocks: Blocks,
    },
    /// A pulling store reads, like [`Request::Read`], but what it holds in the same version already
    /// is not sent to it.
    Fetch {
        asker: Asker,
        from: Epoch,
        below: Epoch,
        /// In order, without overlap, of one extent.
        blocks: Vec<Blocks>,
        /// For each block what the asker holds, [`Version::ZERO`] for nothing. Empty: nothing at all.
        known: Vec<Version>,
        /// Send the data compressed where that makes it smaller.
        compress: bool,
        /// What the asker was shown of the epoch's grant: that its writer wants this.
        proof: Option<GrantDigest>,
    },
    /// Sync to media everything held for the disk (in truth: everything).
    Sync { asker: Asker },
    /// Name the blocks of `extents` whose version is above `above`, in order, from block `start` on.
    List {
        asker: Asker,
        extents: Extents,
        above: Version,
        start: Block,
    },
    /// The replica of `extents` was evened out and synced: it is whole again in this incarnation (rule S2, A4).
    Settle { asker: Asker, extents: Extents },
    /// Somebody joins beside this member at epoch `below`, and will be filled: keep of each block the newest
    /// version below that, though it is written over. This member may be the only one that has it, and
    /// an entry that it is in is read below that epoch, also when it is a member no more (rule R2). Durable
    /// before it is answered; ends with a Collapse, or with the next Keep where the record that was told names no entry
    /// any more that began then.
    Keep {
        asker: Asker,
        extents: Extents,
        below: Epoch,
    },
    /// The histories of `extents` begin with epoch `oldest` by now: what only reads of older entries
    /// need may go. Losing this costs space, nothing else.
    Collapse {
        asker: Asker,
        extents: Extents,
        oldest: Epoch,
    },
    /// Sum up what the entry that began at `from` has of each of `extents`, so that two stores can tell
    /// that they hold the same without showing it; and name what is known to be damaged of them.
    Digest {
        asker: Asker,
        from: Epoch,
        extents: Extents,
    },
    /// Read everything that is held of these blocks of one extent from the media, and say what does not
    /// match its checksum.
    Verify { asker: Asker, blocks: Blocks },
}

impl Request {
    /// A seal that proves and tells nothing.
    pub fn seal(disk: DiskId, epoch: Epoch) -> Request {
        Request::Seal {
            disk,
            epoch,
            grant: Bytes::new(),
            record: Bytes::new(),
            known: Known::default(),
        }
    }

    /// One word for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Request::Seal { .. } => "seal",
            Request::Join { .. } => "join",
            Request::Write { .. } => "write",
            Request::Read { .. } => "read",
            Request::Survey { .. } => "survey",
            Request::Pull { .. } => "pull",
            Request::Fetch { .. } => "fetch",
            Request::Sync { .. } => "sync",
            Request::List { .. } => "list",
            Request::Settle { .. } => "settle",
            Request::Keep { .. } => "keep",
            Request::Collapse { .. } => "collapse",
            Request::Heal { .. } => "heal",
            Request::Digest { .. } => "digest",
            Request::Verify { .. } => "verify",
        }
    }
}

/// Where a store pulls from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    pub store: StoreId,
    /// Its incarnation when the writer sealed it: a pull is fenced there as the writer itself is.
    pub incarnation: Incarnation,
}

/// What a write puts there. A discard is a write of zeroes: versioned, and never "absent" (rule W5).
#[derive(Clone, PartialEq, Debug)]
pub enum Content {
    Data(Payload),
    Zeroes,
}

impl Content {
    /// How many bytes of data it carries.
    pub fn data_bytes(&self) -> usize {
        match self {
            Content::Data(payload) => payload.data.len(),
            Content::Zeroes => 0,
        }
    }
}

/// Whole blocks with their checksums, copied once from the guest and never again (rule W1).
#[derive(Clone, PartialEq, Debug)]
pub struct Payload {
    /// A multiple of 4096 bytes.
    pub data: Bytes,
    /// CRC-32C of each block.
    pub sums: SmallVec<[u32; 2]>,
}

impl Payload {
    /// Checksums `data`, whose length must be a multiple of the block.
    pub fn new(data: Bytes) -> Self {
        assert!(
            data.len().is_multiple_of(BLOCK_BYTES as usize),
            "a payload is whole blocks"
        );
        let sums = data
            .chunks_exact(BLOCK_BYTES as usize)
            .map(checksum)
            .collect();
        Payload { data, sums }
    }

    pub fn blocks(&self) -> u32 {
        self.sums.len() as u32
    }

    /// Whether every block still has the checksum that the writer gave it.
    pub fn is_intact(&self) -> bool {
        self.data.len() == self.sums.len() * BLOCK_BYTES as usize
            && self
                .data
                .chunks_exact(BLOCK_BYTES as usize)
                .zip(&self.sums)
                .all(|(block, sum)| checksum(block) == *sum)
    }
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), of block data and of everything else that we check.
pub fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    Sealed(Sealed),
    Joined(Reach),
    Written(Reach),
    Read(ReadBlocks),
    Surveyed {
        /// Blocks that the entry has, in order, neighbours in one run.
        runs: Vec<Blocks>,
        /// Where to go on; None: that was all.
        next: Option<Block>,
    },
    Pulled(Pulled),
    Fetched(Fetched),
    Synced,
    Listed {
        blocks: Vec<ListedBlock>,
        more: bool,
    },
    Settled(Reach),
    Kept(Reach),
    Collapsed,
    Digested(Digested),
    Verified(Verified),
    Refused(Refusal),
}

#[cfg(test)]
impl Reply {
    /// As stores answer that do not say how far they are.
    pub const JOINED: Reply = Reply::Joined(Reach::UNKNOWN);
    pub const WRITTEN: Reply = Reply::Written(Reach::UNKNOWN);
    pub const SETTLED: Reply = Reply::Settled(Reach::UNKNOWN);
    pub const KEPT: Reply = Reply::Kept(Reach::UNKNOWN);
}

/// The answer to [`Request::Digest`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Digested {
    /// Of the first extents that were asked for: at least one, and as many as could be told at once.
    pub digests: Vec<Digest>,
    /// Blocks of these extents that are known to be damaged, in order; not more than fit.
    pub damaged: Vec<DamagedBlock>,
}

/// The answer to [`Request::Verify`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// Blocks of data that were read, older versions included.
    pub blocks: u64,
    /// Those that do not match, in order.
    pub damaged: Vec<DamagedBlock>,
}

/// A block that is not what it was when it was written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DamagedBlock {
    pub block: Block,
    pub version: Version,
}

/// A sum over blocks that does not depend on their order: of each, its number, its version and whether it
/// is zeroes. A version names one content, so equal digests mean equal copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Digest {
    /// Wrapping.
    pub sum: u128,
    /// Also of zeroes.
    pub blocks: u64,
}

impl Digest {
    pub fn add(&mut self, block: Block, version: Version, zeroes: bool) {
        self.sum = self.sum.wrapping_add(mix(block, version, zeroes));
        self.blocks += 1;
    }

    /// This one with `after` in the place of `before`, which is a part of it.
    pub fn replaced(self, before: Digest, after: Digest) -> Digest {
        Digest {
            sum: self.sum.wrapping_sub(before.sum).wrapping_add(after.sum),
            blocks: self.blocks - before.blocks + after.blocks,
        }
    }
}

/// 128 bits in which each bit of the input counts: multiplications by odd numbers (from the digits of pi and
/// e), with the high bits folded down in between. It guards against accidents, not against malice.
fn mix(block: Block, version: Version, zeroes: bool) -> u128 {
    const PI: u128 = 0x243f_6a88_85a3_08d3_1319_8a2e_0370_7345;
    const E: u128 = 0xb7e1_5162_8aed_2a6a_bf71_5880_9cf4_f3c7;
    let place = u128::from(block.0) << 64 | u128::from(version.epoch.as_u64());
    let rest = u128::from(version.seq.0) << 1 | u128::from(zeroes);
    let mut mixed = place.wrapping_mul(PI);
    mixed = (mixed ^ (mixed >> 67)).wrapping_add(rest).wrapping_mul(E);
    mixed = (mixed ^ (mixed >> 61)).wrapping_mul(PI);
    mixed ^ (mixed >> 64)
}

/// A store's state for one disk, as of the seal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed {
    pub incarnation: Incarnation,
    pub starts: Starts,
    /// The highest version that some writer said all members hold.
    pub watermark: Version,
    pub reach: Reach,
    /// In order of extents, without overlap; gaps are "no replica".
    pub replicas: Vec<ReplicaState>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaState {
    pub extents: Extents,
    /// The epoch that it last joined at.
    pub from: Epoch,
    /// Unsynced writes may be missing (rule S2).
    pub lost: bool,
}

/// One answer for each block asked for, and the data of those that have some.
#[derive(Clone, PartialEq, Debug)]
pub struct ReadBlocks {
    pub found: Vec<Found>,
    /// The blocks that are [`Found::Data`], one after another. Empty where the shell has put them
    /// into their landing already.
    pub data: Bytes,
}

/// What a pull came to. Every block asked for is proven at the puller now, except `absent`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pulled {
    /// The source does not have them: ask the next older entry.
    pub absent: Vec<Blocks>,
    /// Blocks that came over: data, and zeroes.
    pub copied: u32,
    pub zeroes: u32,
    /// Blocks that were here already in the same version, unproven until now.
    pub same: u32,
    /// Bytes of data that crossed, compressed where they were.
    pub bytes: u64,
    pub reach: Reach,
}

/// The answer to [`Request::Fetch`], block by block; `data` holds those that are data, one after
/// another.
#[derive(Clone, PartialEq, Debug)]
pub struct Fetched {
    pub found: Vec<Fetch>,
    pub data: Packed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetch {
    Absent,
    /// The version that the asker said it holds.
    Same,
    Zeroes(Version),
    Data {
        version: Version,
        sum: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// This entry does not have the block: ask the next older one.
    Absent,
    Zeroes(Version),
    Data {
        version: Version,
        sum: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedBlock {
    pub block: Block,
    pub version: Version,
    pub zeroes: bool,
}

/// Why nothing could be pulled from another store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SourceFault {
    #[error("the other store does not answer")]
    Away,
    #[error("the other store was started anew, or was not shown the epoch: seal it again")]
    Unsealed,
    #[error("the other store cannot give these blocks")]
    Useless,
}

/// Why a store did not do what it was asked. Nothing has changed in the store then.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the disk is in epoch {shown} by now")]
    Superseded { shown: Epoch },
    #[error("the store has only been shown epoch {shown}: seal it first")]
    NotShown { shown: Epoch },
    #[error(
        "the store is not what it was when it last answered: its directory is an older copy of itself"
    )]
    Forgot,
    #[error("the store may have lost unsynced data: it is incarnation {} now", now.0)]
    OtherIncarnation { now: Incarnation },
    #[error("the store has no replica of these blocks")]
    NoReplica,
    #[error("the store is full: {free} bytes free, {needed} needed")]
    Full { free: u64, needed: u64 },
    #[error("the store stopped: a write to its media or a sync failed, and it must recover first")]
    Failed,
    #[error("what arrived does not have the checksum that it was sent with")]
    BadChecksum,
    #[error("the media returned something else than was written for block {}", block.0)]
    Damaged { block: Block },
    #[error("nothing could be pulled: {0}")]
    Source(SourceFault),
    #[error("the epoch was not granted to the peer: {why}")]
    NotGranted { why: &'static str },
    #[error("the request makes no sense: {why}")]
    Invalid { why: &'static str },
}
