//! The checkpoint's files: names, and a directory of all that is not in the log itself, as bytes.
//!
//! Written twice, under two names: where the media spoils one, the other serves.

use super::BootId;
use super::disk::{Disk, ExtentState, Slot};
use super::frame::{ALIGN, FORMAT_VERSION, LogPoint};
use super::holdings::Holdings;
use super::identity::write_whole;
use super::index::Reader;
use super::media::{Media, MediaFile};
use super::place::{MAX_UNITS, Place};
use super::replica::{Membership, Replica};
use super::runs::Runs;
use super::segment::Segment;
use crate::message::checksum;
use crate::words::{
    DiskId, Epoch, Extent, ExtentSize, Extents, Incarnation, Seq, Starts, StoreId, Version,
};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::io;

const MAGIC: &[u8; 8] = b"UKAICKPT";
const HEAD_BYTES: usize = 40;

/// The two files of one checkpoint.
pub fn names(number: u32) -> [String; 2] {
    [
        format!("checkpoint.{number:08x}"),
        format!("mirror.{number:08x}"),
    ]
}

pub fn is_temporary(name: &str) -> bool {
    name.ends_with(".tmp")
}

/// The number of a checkpoint's file.
pub fn parse_name(name: &str) -> Option<u32> {
    let number = name
        .strip_prefix("checkpoint.")
        .or_else(|| name.strip_prefix("mirror."))?;
    let number = u32::from_str_radix(number, 16).ok()?;
    names(number).contains(&name.to_string()).then_some(number)
}

/// The checkpoint of a new store: nothing, and the log from its very start.
pub fn write_first<M: Media>(media: &M, store: StoreId) -> io::Result<()> {
    let directory = Directory {
        number: 1,
        replay_from: LogPoint::default(),
        synced: LogPoint::default(),
        starts: Starts(0),
        incarnation: Incarnation(0),
        boot: BootId(0),
        controls: 0,
        runs: Runs::default(),
    };
    let bytes = directory.encode(store, std::iter::empty(), &BTreeMap::new());
    for name in names(1) {
        write_whole(media, &name, &bytes)?;
    }
    media.sync_dir()
}

/// The head of a checkpoint: where the log stood and who wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Directory {
    pub number: u32,
    /// R: replay from here.
    pub replay_from: LogPoint,
    /// Q: all before this is synced, and counted.
    pub synced: LogPoint,
    pub starts: Starts,
    pub incarnation: Incarnation,
    pub boot: BootId,
    pub controls: u64,
    pub runs: Runs,
}

/// A checkpoint as read.
pub struct Loaded {
    pub directory: Directory,
    pub segments: BTreeMap<u32, Segment>,
    pub holdings: Holdings,
}

impl Directory {
    pub fn encode(
        &self,
        store: StoreId,
        segments: impl Iterator<Item = (u32, Segment, u64)>,
        disks: &BTreeMap<DiskId, Disk>,
    ) -> Vec<u8> {
        let mut to = Writer(vec![0; HEAD_BYTES]);
        to.u32(self.number);
        to.point(self.replay_from);
        to.point(self.synced);
        to.u64(self.starts.0);
        to.u64(self.incarnation.0);
        to.0.extend(self.boot.0.to_le_bytes());
        to.u64(self.controls);
        to.list(self.runs.iter(), |to, (run, began)| {
            to.u64(run);
            to.point(began);
        });
        to.list(segments, |to, (id, segment, weight)| {
            to.u32(id);
            to.u64(segment.bytes);
            to.u64(segment.end);
            to.u64(weight);
        });
        to.list(disks.iter(), |to, (id, disk)| {
            to.0.extend(id.as_u128().to_le_bytes());
            to.disk(disk);
        });
        with_head(store, to.0)
    }

    /// None: these bytes are not a whole checkpoint of this store.
    pub fn decode(store: StoreId, bytes: &[u8]) -> Option<Loaded> {
        let mut head = Reader(bytes.get(..HEAD_BYTES)?);
        let magic = head.take(8)?;
        let version = head.u32()?;
        let matches = magic == MAGIC
            && (1..=FORMAT_VERSION).contains(&version)
            && head.u32()? == sum_of(version, &bytes[16..])
            && head.u128()? == store.as_u128()
            && head.u64()? == (bytes.len() - HEAD_BYTES) as u64;
        if !matches {
            return None;
        }
        let mut from = Reader(&bytes[HEAD_BYTES..]);
        let mut directory = Directory {
            number: from.u32()?,
            replay_from: point(&mut from)?,
            synced: point(&mut from)?,
            starts: Starts(from.u64()?),
            incarnation: Incarnation(from.u64()?),
            boot: BootId(from.u128()?),
            controls: from.u64()?,
            runs: Runs::default(),
        };
        if version > 2 {
            for _ in 0..from.u32()? {
                let run = from.u64()?;
                directory.runs.begin(run, point(&mut from)?);
            }
        }
        let mut segments = BTreeMap::new();
        let mut holdings = Holdings {
            controls: directory.controls,
            ..Holdings::default()
        };
        for _ in 0..from.u32()? {
            let id = from.u32()?;
            let (bytes, end) = (from.u64()?, from.u64()?);
            if bytes == 0 || end > bytes || bytes > MAX_UNITS * ALIGN {
                return None;
            }
            segments.insert(id, Segment { bytes, end });
            holdings.live.load(id, from.u64()?);
        }
        for _ in 0..from.u32()? {
            let id = DiskId::from_u128(from.u128()?);
            holdings.disks.insert(id, disk(&mut from, version)?);
        }
        from.0.is_empty().then_some(Loaded {
            directory,
            segments,
            holdings,
        })
    }
}

/// From format 5 on the version is summed, too: a bit that flips in it must not make another one of it.
fn sum_of(version: u32, rest: &[u8]) -> u32 {
    match version {
        0..5 => checksum(rest),
        _ => {
            let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
            digest.update(&version.to_le_bytes());
            digest.update(rest);
            digest.finalize() as u32
        }
    }
}

/// Fills in the head, for which `bytes` begins with room.
fn with_head(store: StoreId, mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(&store.as_u128().to_le_bytes());
    let length = (bytes.len() - HEAD_BYTES) as u64;
    bytes[32..40].copy_from_slice(&length.to_le_bytes());
    let sum = sum_of(FORMAT_VERSION, &bytes[16..]);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    bytes
}

struct Writer(Vec<u8>);

impl Writer {
    fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn point(&mut self, point: LogPoint) {
        self.u32(point.segment);
        self.u64(point.offset);
    }

    fn version(&mut self, version: Version) {
        self.u64(version.epoch.as_u64());
        self.u64(version.seq.0);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.0.extend(bytes);
    }

    /// A count, then each item.
    fn list<T>(&mut self, items: impl Iterator<Item = T>, mut item: impl FnMut(&mut Self, T)) {
        let at = self.0.len();
        self.u32(0);
        let mut count = 0u32;
        for one in items {
            item(self, one);
            count += 1;
        }
        self.0[at..at + 4].copy_from_slice(&count.to_le_bytes());
    }

    fn disk(&mut self, disk: &Disk) {
        self.u64(disk.shown.as_u64());
        self.u64(disk.extent_size.map_or(0, ExtentSize::bytes));
        self.u16(disk.joins);
        self.version(disk.watermark);
        self.u64(disk.dropped.as_u64());
        self.list(disk.replicas.0.iter(), |to, replica| {
            to.u32(replica.extents.first.0);
            to.u32(replica.extents.end.0);
            to.u64(replica.from.as_u64());
            to.u16(replica.join);
            to.u64(replica.incarnation.0);
            to.list(replica.past.iter(), |to, past| {
                to.u64(past.from.as_u64());
                to.u16(past.join);
            });
            to.list(replica.kept.iter(), |to, below| to.u64(below.as_u64()));
        });
        self.list(disk.extents.iter(), |to, (extent, state)| {
            to.u32(extent.0);
            to.version(state.highest);
            to.u32(state.allocated);
        });
        // A chunk that no checkpoint wrote yet comes from the replay.
        let written = disk.chunks.iter().filter(|(_, slot)| !slot.blob.is_empty());
        self.list(written, |to, (number, slot)| {
            to.u64(*number);
            to.list(slot.blob.iter(), |to, part| {
                to.u32(part.segment);
                to.u32(part.unit);
            });
        });
        self.bytes(&disk.grant);
        self.bytes(&disk.record);
    }
}

fn point(from: &mut Reader<'_>) -> Option<LogPoint> {
    let point = LogPoint {
        segment: from.u32()?,
        offset: from.u64()?,
    };
    let stands = point.offset.is_multiple_of(ALIGN) && point.offset <= MAX_UNITS * ALIGN;
    stands.then_some(point)
}

fn version(from: &mut Reader<'_>) -> Option<Version> {
    let epoch = Epoch::from_u64(from.u64()?);
    Some(Version::new(epoch, Seq(from.u64()?)))
}

fn disk(from: &mut Reader<'_>, format: u32) -> Option<Disk> {
    let mut disk = Disk {
        shown: Epoch::from_u64(from.u64()?),
        ..Disk::default()
    };
    disk.extent_size = match from.u64()? {
        0 => None,
        bytes => Some(ExtentSize::new(bytes).ok()?),
    };
    disk.joins = from.u16()?;
    disk.watermark = version(from)?;
    disk.dropped = Epoch::from_u64(from.u64()?);
    for _ in 0..from.u32()? {
        let extents = Extents::new(Extent(from.u32()?), Extent(from.u32()?));
        let mut replica = Replica {
            extents,
            from: Epoch::from_u64(from.u64()?),
            join: from.u16()?,
            incarnation: Incarnation(from.u64()?),
            past: SmallVec::new(),
            kept: SmallVec::new(),
        };
        for _ in 0..from.u32()? {
            let epoch = Epoch::from_u64(from.u64()?);
            // Format 1 knew no fills, and of memberships only where each but the first began.
            let join = if format == 1 { 0 } else { from.u16()? };
            replica.past.push(Membership { from: epoch, join });
        }
        if format == 1 && !replica.past.is_empty() {
            replica.past.pop();
            let first = Membership {
                from: Epoch::ZERO,
                join: 0,
            };
            replica.past.insert(0, first);
        }
        if format > 1 {
            for _ in 0..from.u32()? {
                replica.kept.push(Epoch::from_u64(from.u64()?));
            }
        }
        disk.replicas.0.push(replica);
    }
    for _ in 0..from.u32()? {
        let extent = Extent(from.u32()?);
        let state = ExtentState {
            highest: version(from)?,
            allocated: from.u32()?,
            digest: None,
        };
        disk.extents.insert(extent, state);
    }
    for _ in 0..from.u32()? {
        let number = from.u64()?;
        let mut slot = Slot::default();
        for _ in 0..from.u32()? {
            slot.blob.push(Place {
                segment: from.u32()?,
                unit: from.u32()?,
            });
        }
        if slot.blob.is_empty() || number >= 1 << 32 {
            return None;
        }
        disk.chunks.insert(number, slot);
    }
    if format > 2 {
        let bytes = from.u32()? as usize;
        disk.grant = Bytes::copy_from_slice(from.take(bytes)?);
        let bytes = from.u32()? as usize;
        disk.record = Bytes::copy_from_slice(from.take(bytes)?);
    }
    Some(disk)
}

/// For fuzzing: `body` as a checkpoint of this store, with a head that fits.
pub fn with_sum(store: StoreId, body: &[u8]) -> Vec<u8> {
    with_head(store, [&[0; HEAD_BYTES], body].concat())
}

/// The whole content of a checkpoint's file; None if it is not there or absurdly large.
pub fn read_file<M: Media>(media: &M, name: &str) -> io::Result<Option<Vec<u8>>> {
    let file = match media.open_direct(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let len = file.size()?;
    if len > MAX_FILE_BYTES {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(0, &mut bytes)?;
    Ok(Some(bytes))
}

/// A directory of a petabyte would be smaller.
const MAX_FILE_BYTES: u64 = 1 << 30;
