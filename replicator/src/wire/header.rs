//! The fixed layouts, little-endian, without padding that the compiler chose.

use zerocopy::byteorder::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What every request begins with. Which fields a kind uses stands in `request.rs`; the others are zero.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct RequestHeader {
    /// Bytes that follow this header.
    pub payload: U32,
    pub kind: u8,
    pub flags: u8,
    pub zero: U16,
    pub call: U64,
    pub disk: U128,
    pub epoch: U64,
    pub incarnation: U64,
    /// Seal: run of the store, as the asker knows it.
    pub block: U64,
    pub count: U32,
    pub zero_2: U32,
    /// Write: seq. Read, Survey, Pull, Heal, Fetch, Join, Digest: from. List: the epoch of `above`. Collapse: oldest.
    pub first: U64,
    /// Write: watermark. Read, Survey, Pull, Heal, Fetch, Keep: below. Join: bytes of an extent. List: the seq of `above`. Seal: how far the
    /// store was in its run, as the asker knows it.
    pub second: U64,
    pub extents_first: U32,
    pub extents_end: U32,
}

/// What every reply begins with.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct ReplyHeader {
    pub payload: U32,
    pub kind: u8,
    pub flags: u8,
    /// Refused: which refusal. Read, fetched, digested: how many descriptors.
    pub code: U16,
    pub call: U64,
    /// Joined, written, settled, kept, pulled: run. Sealed: incarnation. Surveyed: where to go on. Verified: blocks. Refused: see `reply.rs`.
    pub first: U64,
    /// Joined, written, settled, kept, pulled: how far the log is in that run. Sealed: starts. Refused: see `reply.rs`.
    pub second: U64,
}

/// A range of blocks in a payload.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct BlocksBytes {
    pub first: U64,
    pub count: U32,
    pub zero: U32,
}

/// Where a pull is to pull from.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct SourceBytes {
    pub store: U128,
    pub incarnation: U64,
}

/// What a pull came to; ranges of absent blocks follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct PulledBytes {
    pub copied: U32,
    pub zeroes: U32,
    pub same: U32,
    pub zero: U32,
    pub bytes: U64,
}

/// How far a store's log is.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct ReachBytes {
    pub run: U64,
    pub at: U64,
}

/// What one extent comes to.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct DigestBytes {
    pub sum: U128,
    pub blocks: U64,
}

/// A damaged block.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct DamagedBytes {
    pub block: U64,
    pub version: VersionBytes,
}

/// One block of the answer to a read or a fetch.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct FoundBytes {
    pub epoch: U64,
    pub seq: U64,
    pub sum: U32,
    /// 0 absent, 1 zeroes, 2 data, 3 (fetched) the same.
    pub kind: u8,
    pub zero: [u8; 3],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct VersionBytes {
    pub epoch: U64,
    pub seq: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct ReplicaBytes {
    pub first: U32,
    pub end: U32,
    pub from: U64,
    /// 1: may have lost unsynced writes.
    pub lost: u8,
    pub zero: [u8; 7],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct ListedBytes {
    pub block: U64,
    pub version: VersionBytes,
    /// 1: zeroes.
    pub zeroes: u8,
    pub zero: [u8; 7],
}

pub(super) const REQUEST: usize = size_of::<RequestHeader>();
pub(super) const REPLY: usize = size_of::<ReplyHeader>();
pub(super) const FOUND: usize = size_of::<FoundBytes>();
pub(super) const SEALED: usize = size_of::<VersionBytes>();
pub(super) const REACH: usize = size_of::<ReachBytes>();
pub(super) const REPLICA: usize = size_of::<ReplicaBytes>();
pub(super) const LISTED: usize = size_of::<ListedBytes>();
pub(super) const BLOCKS: usize = size_of::<BlocksBytes>();
pub(super) const SOURCE: usize = size_of::<SourceBytes>();
pub(super) const PULLED: usize = size_of::<PulledBytes>();
pub(super) const DIGEST: usize = size_of::<DigestBytes>();
pub(super) const DAMAGED: usize = size_of::<DamagedBytes>();
pub(super) const VERSION: usize = size_of::<VersionBytes>();
/// The CRC-32C of one block.
pub(super) const SUM: usize = 4;

// The document and peers of other builds count on these.
const _: () = assert!(DIGEST == 24 && DAMAGED == 24);
const _: () = assert!(BLOCKS == 16 && SOURCE == 24 && PULLED == 24 && VERSION == 16);
const _: () = assert!(REQUEST == 88 && REPLY == 32 && FOUND == 24 && REPLICA == 24 && LISTED == 32);
