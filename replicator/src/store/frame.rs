//! Frames: what a log consists of. A 64-byte header, then a payload, padded to 64 bytes; the block of a data frame stands
//! apart, on a page of its own, so that reading it costs no page more.
//!
//! ```text
//!  0       4    5     6      8          12       16        32       40      48    56          64
//!  +-------+----+-----+------+----------+--------+---------+--------+-------+-----+-----------+
//!  | sum   |kind|flags| join | data sum | count  | disk    | block  | epoch | seq | watermark |
//!  +-------+----+-----+------+----------+--------+---------+--------+-------+-----+-----------+
//! ```
//!
//! `sum` covers the header and, beforehand, the store's id and the frame's own place: a frame is
//! valid only where it was written, so that neither an old file's bytes nor a guest's data can pass
//! for one. With `data sum` it binds the data to its disk, block and version.

use super::place::{MAX_APART, Place};
use crate::message::{MAX_DATA_BLOCKS, checksum};
use crate::words::{
    BLOCK_BYTES, Block, Blocks, DiskId, Epoch, Extent, ExtentSize, Extents, Incarnation, Seq,
    Starts, StoreId, Version,
};
use zerocopy::byteorder::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Frames begin at multiples of this.
pub const ALIGN: u64 = 64;
pub const HEADER_BYTES: u64 = 64;
/// A data frame: header and one block.
pub const DATA_FRAME_BYTES: u64 = HEADER_BYTES + BLOCK_BYTES;
/// The largest payload of a control frame. Bounds what a reader allocates.
pub const MAX_PAYLOAD: u32 = 64 << 10;
/// The format of everything in a store's directory. 2 knows fills, memberships before the newest, and
/// replicas that were dropped; 3 knows what proved that a disk was shown an epoch, and the disk's record; 4 knows damage
/// that was moved; 5 knows blocks that stand apart from their headers.
pub const FORMAT_VERSION: u32 = 5;

/// What a frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// One block's content under a version.
    Data = 0xD1,
    /// A range of blocks is zeroes under a version.
    Zeroes = 0xD2,
    /// First frame of a segment: where the log before it ended, and how far it was synced.
    Begin = 0xD3,
    /// First frame of a process's first segment: the log before it is accepted up to here.
    Opened = 0xD4,
    /// The log before it ended where it says (padding lies between), and was synced as far as it says.
    Mark = 0xD5,
    /// A disk was shown an epoch.
    Epoch = 0xD6,
    /// A replica of some extents joined.
    Join = 0xD7,
    /// A replica is whole again in this incarnation.
    Settle = 0xD8,
    /// A disk was deleted: everything up to here is void.
    Drop = 0xD9,
    /// A part of the index, for a checkpoint to point at.
    Index = 0xDA,
    /// A clean shutdown: nothing follows, all before it is synced.
    Clean = 0xDB,
    /// Blocks that stood here before a join are proven to be what it is to have, under these versions.
    Adopt = 0xDC,
    /// The replica of some extents is gone: everything of them up to here is void.
    Forget = 0xDD,
    /// Entries of a history that began before an epoch are gone.
    Collapse = 0xDE,
    /// Somebody joined beside this member at an epoch: what stood here before is kept (rule R2).
    Keep = 0xDF,
    /// A disk's record as its writer had it.
    Record = 0xE0,
}

impl Kind {
    fn from_u8(kind: u8) -> Option<Kind> {
        use Kind::*;
        [
            Data, Zeroes, Begin, Opened, Mark, Epoch, Join, Settle, Drop, Index, Clean, Adopt,
            Forget, Collapse, Keep, Record,
        ]
        .into_iter()
        .find(|known| *known as u8 == kind)
    }
}

/// The block was put in by a fill (rule R1); join says during which membership.
pub const FLAG_FILLED: u8 = 1;
/// The cleaner moved this frame here: its version is older than its place suggests.
pub const FLAG_MOVED: u8 = 2;
/// The cleaner found the block damaged when it moved it here: that its content is not what it was says nothing of
/// where the log ends.
pub const FLAG_DAMAGED: u8 = 4;
const FLAGS_KNOWN: u8 = FLAG_FILLED | FLAG_MOVED | FLAG_DAMAGED;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
pub struct RawHeader {
    sum: U32,
    kind: u8,
    flags: u8,
    join: U16,
    data_sum: U32,
    count: U32,
    disk: U128,
    block: U64,
    epoch: U64,
    seq: U64,
    watermark: U64,
}

/// A header as read or to be written, already known to make sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub kind: Kind,
    pub flags: u8,
    pub join: u16,
    /// CRC-32C of the payload.
    pub data_sum: u32,
    /// Blocks of a data or zero frame; bytes of payload of any other.
    pub count: u32,
    pub disk: DiskId,
    pub block: u64,
    pub epoch: u64,
    pub seq: u64,
    pub watermark: u64,
    /// How many pages behind the header's page the block of a data frame stands; 0: the payload follows the header.
    pub apart: u8,
}

impl Header {
    pub fn control(kind: Kind) -> Header {
        Header {
            kind,
            flags: 0,
            join: 0,
            data_sum: 0,
            count: 0,
            disk: DiskId::from_u128(0),
            block: 0,
            epoch: 0,
            seq: 0,
            watermark: 0,
            apart: 0,
        }
    }

    pub fn with_payload(mut self, payload: &[u8]) -> Header {
        assert!(payload.len() <= MAX_PAYLOAD as usize);
        self.count = payload.len() as u32;
        self.data_sum = checksum(payload);
        self
    }

    /// The bytes as they stand at `place` of `store`, which says where the payload is.
    pub fn encode(&self, store: StoreId, place: Place) -> RawHeader {
        let mut raw = RawHeader {
            sum: U32::ZERO,
            kind: self.kind as u8,
            flags: self.flags,
            join: self.join.into(),
            data_sum: self.data_sum.into(),
            count: (self.count | (u32::from(place.apart()) << APART_SHIFT)).into(),
            disk: self.disk.as_u128().into(),
            block: self.block.into(),
            epoch: self.epoch.into(),
            seq: self.seq.into(),
            watermark: self.watermark.into(),
        };
        raw.sum = raw.checksum(store, place).into();
        raw
    }

    pub fn version(&self) -> Version {
        Version::new(Epoch::from_u64(self.epoch), Seq(self.seq))
    }

    /// The blocks of a data or zero frame.
    pub fn blocks(&self) -> Blocks {
        Blocks::new(Block(self.block), self.count)
    }

    pub fn payload_bytes(&self) -> u64 {
        match self.kind {
            Kind::Data => BLOCK_BYTES,
            Kind::Zeroes => 0,
            _ => u64::from(self.count),
        }
    }

    /// How far behind the header the next frame may begin: with the payload, unless that stands apart.
    pub fn frame_bytes(&self) -> u64 {
        match self.apart {
            0 => frame_bytes(self.payload_bytes()),
            _ => HEADER_BYTES,
        }
    }

    /// The frame's place, if its header stands at this point.
    pub fn place_at(&self, point: LogPoint) -> Place {
        Place::of(point.segment, point.offset, self.apart)
    }

    /// The beginning of the membership that this block was filled in for; a moved frame does not say.
    pub fn filled_for(&self) -> Option<Epoch> {
        let filled = self.flags & FLAG_FILLED != 0 && !self.is_moved();
        filled.then(|| Epoch::from_u64(self.watermark))
    }

    pub fn is_moved(&self) -> bool {
        self.flags & FLAG_MOVED != 0
    }

    /// Its block was damaged before it was written.
    pub fn is_damaged(&self) -> bool {
        self.flags & FLAG_DAMAGED != 0
    }

    /// What a first frame or a mark says of the log before it: where it ended, how far it was synced.
    pub fn link(&self) -> Option<Link> {
        let point = |segment: u64, offset: u64| {
            let segment = u32::try_from(segment).ok()?;
            Some(LogPoint { segment, offset })
        };
        matches!(self.kind, Kind::Begin | Kind::Opened | Kind::Mark)
            .then(|| {
                Some(Link {
                    ended: point(self.watermark, self.block)?,
                    synced: point(self.epoch, self.seq)?,
                })
            })
            .flatten()
    }

    pub fn linked(mut self, link: Link) -> Header {
        self.watermark = link.ended.segment.into();
        self.block = link.ended.offset;
        self.epoch = link.synced.segment.into();
        self.seq = link.synced.offset;
        self
    }
}

pub fn frame_bytes(payload: u64) -> u64 {
    HEADER_BYTES + payload.next_multiple_of(ALIGN)
}

/// The high bits of a data frame's count are its `apart`.
const APART_SHIFT: u32 = 24;

/// See [`Header::link`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    pub ended: LogPoint,
    pub synced: LogPoint,
}

/// A point of the log: everything that was appended before it is older.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogPoint {
    pub segment: u32,
    /// Bytes from the segment's start.
    pub offset: u64,
}

impl std::fmt::Debug for LogPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}+{}", self.segment, self.offset)
    }
}

impl std::fmt::Display for LogPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "segment.{:08x} offset {}", self.segment, self.offset)
    }
}

impl RawHeader {
    /// See [`Header::is_damaged`].
    pub fn is_damaged(&self) -> bool {
        self.flags & FLAG_DAMAGED != 0
    }

    fn checksum(&self, store: StoreId, place: Place) -> u32 {
        let mut bytes = [0; 24 + 60];
        bytes[..16].copy_from_slice(&store.as_u128().to_le_bytes());
        bytes[16..20].copy_from_slice(&place.segment.to_le_bytes());
        let unit = (place.offset() / ALIGN) as u32;
        bytes[20..24].copy_from_slice(&unit.to_le_bytes());
        bytes[24..].copy_from_slice(&self.as_bytes()[4..]);
        checksum(&bytes)
    }

    /// The header, if these bytes are a frame that was written at this place of this store; where the place says that the
    /// payload is does not matter.
    pub fn decode(bytes: &[u8], store: StoreId, place: Place) -> Option<Header> {
        let raw = RawHeader::ref_from_bytes(bytes.get(..HEADER_BYTES as usize)?).ok()?;
        let kind = Kind::from_u8(raw.kind)?;
        if raw.checksum(store, place) != raw.sum.get() || raw.flags & !FLAGS_KNOWN != 0 {
            return None;
        }
        let (count, apart) = match kind {
            Kind::Data => {
                let raw = raw.count.get();
                (raw & ((1 << APART_SHIFT) - 1), (raw >> APART_SHIFT) as u8)
            }
            _ => (raw.count.get(), 0),
        };
        let header = Header {
            kind,
            flags: raw.flags,
            join: raw.join.get(),
            data_sum: raw.data_sum.get(),
            count,
            disk: DiskId::from_u128(raw.disk.get()),
            block: raw.block.get(),
            epoch: raw.epoch.get(),
            seq: raw.seq.get(),
            watermark: raw.watermark.get(),
            apart,
        };
        header.makes_sense().then_some(header)
    }
}

impl RawHeader {
    /// For fuzzing: these bytes as a header with the right checksums, if its kind is known.
    pub fn corrected(
        bytes: &[u8],
        store: StoreId,
        place: Place,
        data_sum: impl FnOnce(&Header) -> u32,
    ) -> Option<(Header, [u8; HEADER_BYTES as usize])> {
        let mut raw = RawHeader::read_from_bytes(bytes.get(..HEADER_BYTES as usize)?).ok()?;
        raw.sum = raw.checksum(store, place).into();
        let header = RawHeader::decode(raw.as_bytes(), store, place)?;
        let header = Header {
            data_sum: data_sum(&header),
            ..header
        };
        let raw = header.encode(store, header.place_at(place.point()));
        Some((header, raw.as_bytes().try_into().expect("64 bytes")))
    }
}

impl Header {
    /// A checksum is no proof of sense: the bytes may come from another program, or an attacker.
    fn makes_sense(&self) -> bool {
        let version = self.epoch > 0 && self.seq > 0 && self.seq <= Seq::MAX.0;
        let range = self
            .block
            .checked_add(self.count.into())
            .is_some_and(|end| end <= MAX_BLOCK);
        match self.kind {
            Kind::Data => self.count == 1 && self.apart <= MAX_APART && range && version,
            Kind::Zeroes => self.count > 0 && range && version,
            Kind::Begin | Kind::Opened | Kind::Mark => {
                self.link().is_some() && self.count <= MAX_PAYLOAD
            }
            _ => self.count <= MAX_PAYLOAD,
        }
    }
}

/// Blocks of a disk are below this: 2^32 extents of the smallest size. What comes from media is refused beyond it, so
/// no request may bring anything there (`Store::join`, `Store::check_blocks`).
pub const MAX_BLOCK: u64 = (ExtentSize::MIN_BYTES / BLOCK_BYTES) << 32;

/// Payload of an Opened frame.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
pub struct OpenedPayload {
    pub starts: U64,
    pub incarnation: U64,
    pub boot: U128,
    pub run: U64,
}

impl OpenedPayload {
    pub fn new(starts: Starts, incarnation: Incarnation, boot: u128, run: u64) -> Self {
        OpenedPayload {
            starts: starts.0.into(),
            incarnation: incarnation.0.into(),
            boot: boot.into(),
            run: run.into(),
        }
    }

    /// Before version 3 there were no runs.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut bytes = [0; size_of::<OpenedPayload>()];
        let known = [bytes.len() - size_of::<U64>(), bytes.len()];
        if !known.contains(&payload.len()) {
            return None;
        }
        bytes[..payload.len()].copy_from_slice(payload);
        OpenedPayload::read_from_bytes(&bytes).ok()
    }
}

/// One of the runs that an Adopt frame names: blocks that have one version.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
pub struct AdoptedRun {
    block: U64,
    epoch: U64,
    seq: U64,
    count: U32,
    zero: U32,
}

impl AdoptedRun {
    pub fn new(blocks: Blocks, version: Version) -> AdoptedRun {
        AdoptedRun {
            block: blocks.first.0.into(),
            epoch: version.epoch.as_u64().into(),
            seq: version.seq.0.into(),
            count: blocks.count.into(),
            zero: U32::ZERO,
        }
    }

    /// All runs of a frame; None if they make no sense.
    pub fn decode(payload: &[u8]) -> Option<Vec<(Blocks, Version)>> {
        let runs = <[AdoptedRun]>::ref_from_bytes(payload).ok()?;
        runs.iter()
            .map(|run| {
                let (first, count) = (run.block.get(), run.count.get());
                let sane = (1..=MAX_DATA_BLOCKS).contains(&count)
                    && first <= MAX_BLOCK - u64::from(count)
                    && (1..=Seq::MAX.0).contains(&run.seq.get());
                let version = Version::new(Epoch::from_u64(run.epoch.get()), Seq(run.seq.get()));
                sane.then_some((Blocks::new(Block(first), count), version))
            })
            .collect()
    }
}

/// Payload of a Join, Settle, Forget, Collapse or Keep frame.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
pub struct ReplicaPayload {
    first: U32,
    end: U32,
    extent_bytes: U64,
    from: U64,
    incarnation: U64,
}

/// What a Join, Settle, Forget, Collapse or Keep frame says. `from` is the epoch that the last two are about, and
/// of no meaning to a Forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaChange {
    pub extents: Extents,
    pub extent_size: ExtentSize,
    pub from: Epoch,
    pub incarnation: Incarnation,
}

impl ReplicaChange {
    pub fn encode(&self) -> ReplicaPayload {
        ReplicaPayload {
            first: self.extents.first.0.into(),
            end: self.extents.end.0.into(),
            extent_bytes: self.extent_size.bytes().into(),
            from: self.from.as_u64().into(),
            incarnation: self.incarnation.0.into(),
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<ReplicaChange> {
        let raw = ReplicaPayload::read_from_bytes(bytes).ok()?;
        let extents = Extents::new(Extent(raw.first.get()), Extent(raw.end.get()));
        (extents.count() > 0).then_some(ReplicaChange {
            extents,
            extent_size: ExtentSize::new(raw.extent_bytes.get()).ok()?,
            from: Epoch::from_u64(raw.from.get()),
            incarnation: Incarnation(raw.incarnation.get()),
        })
    }
}
