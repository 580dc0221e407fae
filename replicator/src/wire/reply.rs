//! Replies as bytes.

use super::header::{
    BLOCKS, DAMAGED, DIGEST, DamagedBytes, DigestBytes, FOUND, FoundBytes, LISTED, ListedBytes,
    PULLED, PulledBytes, REACH, REPLICA, REPLY, ReachBytes, ReplicaBytes, ReplyHeader, SEALED,
    VersionBytes,
};
use super::request::{MAX_BLOCK, blocks, blocks_bytes, seq};
use super::{Call, Frame, MAX_REPLICA_RANGES, Message, WireError};
use crate::message::{
    DamagedBlock, Digest, Digested, Fetch, Fetched, Found, ListedBlock, MAX_DAMAGED,
    MAX_DATA_BLOCKS, MAX_DIGESTS, MAX_LISTED, MAX_SURVEYED, Pulled, Reach, ReadBlocks, Refusal,
    ReplicaState, Reply, Sealed, SourceFault, Verified,
};
use crate::packed::Packed;
use crate::words::{BLOCK_BYTES, Block, Epoch, Extent, Extents, Incarnation, Starts, Version};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use zerocopy::byteorder::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const SEALED_KIND: u8 = 0x81;
const JOINED: u8 = 0x82;
const WRITTEN: u8 = 0x83;
const READ: u8 = 0x84;
const SYNCED: u8 = 0x85;
const LISTED_KIND: u8 = 0x86;
const SETTLED: u8 = 0x87;
const SURVEYED: u8 = 0x88;
const PULLED_KIND: u8 = 0x89;
const FETCHED: u8 = 0x8a;
const COLLAPSED: u8 = 0x8b;
const KEPT: u8 = 0x8c;
const DIGESTED: u8 = 0x8e;
const VERIFIED: u8 = 0x8f;
const REFUSED: u8 = 0xff;

/// Of what a seal was answered with: how far the store is stands behind the watermark.
const REACHES: u8 = 1;
/// Of a list or a survey: there is more behind the last block named.
const MORE: u8 = 1;
/// Of fetched blocks: the data is one zstd frame, smaller than the blocks.
const ZSTD: u8 = 1;

/// The kind of a fetched block that the asker holds in the same version.
const SAME: u8 = 3;

/// Stands for every [`Refusal::Invalid`] of a peer: its reason is in the peer's log.
pub(super) const INVALID_THERE: &str = "the peer's log says why";

impl Message for Reply {
    const HEADER: usize = REPLY;

    fn encode(&self, call: Call) -> Frame {
        let mut header = ReplyHeader {
            call: U64::new(call.0),
            ..ReplyHeader::default()
        };
        let mut tables = BytesMut::with_capacity(REPLY + table_bytes(self));
        tables.put_bytes(0, REPLY);
        let mut data = Bytes::new();
        match self {
            Reply::Sealed(sealed) => {
                header.kind = SEALED_KIND;
                header.first = U64::new(sealed.incarnation.0);
                header.second = U64::new(sealed.starts.0);
                tables.put_slice(version_bytes(sealed.watermark).as_bytes());
                if sealed.reach != Reach::UNKNOWN {
                    header.flags = REACHES;
                    let (run, at) = (U64::new(sealed.reach.run), U64::new(sealed.reach.at));
                    tables.put_slice(ReachBytes { run, at }.as_bytes());
                }
                for replica in &sealed.replicas {
                    tables.put_slice(replica_bytes(replica).as_bytes());
                }
            }
            Reply::Joined(reach) => header.set_reach(JOINED, *reach),
            Reply::Written(reach) => header.set_reach(WRITTEN, *reach),
            Reply::Read(read) => {
                header.kind = READ;
                header.code = U16::new(read.found.len() as u16);
                for found in &read.found {
                    tables.put_slice(found_bytes(found).as_bytes());
                }
                data = read.data.clone();
            }
            Reply::Surveyed { runs, next } => {
                header.kind = SURVEYED;
                header.flags = if next.is_some() { MORE } else { 0 };
                header.first = U64::new(next.map_or(0, |next| next.0));
                for run in runs {
                    tables.put_slice(blocks_bytes(*run).as_bytes());
                }
            }
            Reply::Pulled(pulled) => {
                header.set_reach(PULLED_KIND, pulled.reach);
                tables.put_slice(pulled_bytes(pulled).as_bytes());
                for run in &pulled.absent {
                    tables.put_slice(blocks_bytes(*run).as_bytes());
                }
            }
            Reply::Fetched(fetched) => {
                header.kind = FETCHED;
                header.code = U16::new(fetched.found.len() as u16);
                for found in &fetched.found {
                    tables.put_slice(fetch_bytes(found).as_bytes());
                }
                (header.flags, data) = match &fetched.data {
                    Packed::Plain(bytes) => (0, bytes.clone()),
                    Packed::Zstd(bytes) => (ZSTD, bytes.clone()),
                };
            }
            Reply::Collapsed => header.kind = COLLAPSED,
            Reply::Kept(reach) => header.set_reach(KEPT, *reach),
            Reply::Digested(digested) => {
                header.kind = DIGESTED;
                header.code = U16::new(digested.digests.len() as u16);
                for digest in &digested.digests {
                    let (sum, blocks) = (U128::new(digest.sum), U64::new(digest.blocks));
                    tables.put_slice(DigestBytes { sum, blocks }.as_bytes());
                }
                put_damaged(&mut tables, &digested.damaged);
            }
            Reply::Verified(verified) => {
                header.kind = VERIFIED;
                header.first = U64::new(verified.blocks);
                put_damaged(&mut tables, &verified.damaged);
            }
            Reply::Synced => header.kind = SYNCED,
            Reply::Listed { blocks, more } => {
                header.kind = LISTED_KIND;
                header.flags = if *more { MORE } else { 0 };
                for block in blocks {
                    tables.put_slice(listed_bytes(block).as_bytes());
                }
            }
            Reply::Settled(reach) => header.set_reach(SETTLED, *reach),
            Reply::Refused(refusal) => {
                header.kind = REFUSED;
                let (code, first, second) = refusal_fields(refusal);
                header.code = U16::new(code);
                header.first = U64::new(first);
                header.second = U64::new(second);
            }
        }
        header.payload = U32::new((tables.len() - REPLY + data.len()) as u32);
        tables[..REPLY].copy_from_slice(header.as_bytes());
        Frame {
            head: tables.freeze(),
            data,
        }
    }

    fn payload_len(header: &[u8]) -> Result<usize, WireError> {
        let header = parse(header)?;
        let got = header.payload.get() as usize;
        let (fixed, each, most) = match header.kind {
            SEALED_KIND if header.flags == REACHES => (SEALED + REACH, REPLICA, MAX_REPLICA_RANGES),
            SEALED_KIND => (SEALED, REPLICA, MAX_REPLICA_RANGES),
            READ | FETCHED => {
                let count = usize::from(header.code.get());
                if count > MAX_DATA_BLOCKS as usize {
                    return Err(WireError::Count {
                        got: count as u64,
                        bound: MAX_DATA_BLOCKS.into(),
                    });
                }
                match header.kind {
                    READ => (count * FOUND, BLOCK_BYTES as usize, count),
                    _ => (count * FOUND, 1, count * BLOCK_BYTES as usize),
                }
            }
            SURVEYED => (0, BLOCKS, MAX_SURVEYED),
            DIGESTED => {
                let count = usize::from(header.code.get());
                if count == 0 || count > MAX_DIGESTS {
                    return Err(WireError::Count {
                        got: count as u64,
                        bound: MAX_DIGESTS as u64,
                    });
                }
                (count * DIGEST, DAMAGED, MAX_DAMAGED)
            }
            VERIFIED => (0, DAMAGED, MAX_DAMAGED),
            PULLED_KIND => (PULLED, BLOCKS, MAX_DATA_BLOCKS as usize),
            LISTED_KIND => (0, LISTED, MAX_LISTED),
            JOINED | WRITTEN | SYNCED | SETTLED | COLLAPSED | KEPT | REFUSED => (0, 1, 0),
            kind => return Err(WireError::Kind(kind)),
        };
        let bound = fixed + each * most;
        if got < fixed || got > bound || !(got - fixed).is_multiple_of(each) {
            return Err(WireError::Length {
                kind: header.kind,
                got,
                bound,
            });
        }
        Ok(got)
    }

    fn decode(header: &[u8], mut payload: Bytes) -> Result<(Call, Self), WireError> {
        let header = parse(header)?;
        let (first, second) = (header.first.get(), header.second.get());
        let (uses_first, uses_second, uses_code, flags) = match header.kind {
            SEALED_KIND => (true, true, false, REACHES),
            JOINED | WRITTEN | SETTLED | KEPT | PULLED_KIND => (true, true, false, 0),
            REFUSED => (true, true, true, 0),
            READ => (false, false, true, 0),
            LISTED_KIND => (false, false, false, MORE),
            SURVEYED => (header.flags == MORE, false, false, MORE),
            FETCHED => (false, false, true, ZSTD),
            DIGESTED => (false, false, true, 0),
            VERIFIED => (true, false, false, 0),
            _ => (false, false, false, 0),
        };
        if (!uses_first && first != 0) || (!uses_second && second != 0) {
            return Err(WireError::Field("an unused one"));
        }
        if header.code.get() != 0 && !uses_code {
            return Err(WireError::Field("code"));
        }
        if header.flags & !flags != 0 {
            return Err(WireError::Field("flags"));
        }
        let reach = Reach {
            run: first,
            at: second,
        };
        let reply = match header.kind {
            SEALED_KIND => {
                let watermark = version(&take(&mut payload)?)?;
                let reach = match header.flags {
                    REACHES => reach_of(&take(&mut payload)?)?,
                    _ => Reach::UNKNOWN,
                };
                let replicas = table(&payload, replica)?;
                if !replicas.is_sorted_by(|a, b| a.extents.end <= b.extents.first) {
                    return Err(WireError::Field("order of replicas"));
                }
                Reply::Sealed(Sealed {
                    incarnation: Incarnation(first),
                    starts: Starts(second),
                    watermark,
                    reach,
                    replicas,
                })
            }
            JOINED => Reply::Joined(reach),
            WRITTEN => Reply::Written(reach),
            READ => {
                let found = payload.split_to(usize::from(header.code.get()) * FOUND);
                let found = table(&found, self::found)?;
                let with_data = found
                    .iter()
                    .filter(|found| matches!(found, Found::Data { .. }))
                    .count();
                let bound = with_data * BLOCK_BYTES as usize;
                if payload.len() != bound {
                    return Err(WireError::Length {
                        kind: READ,
                        got: payload.len(),
                        bound,
                    });
                }
                Reply::Read(ReadBlocks {
                    found,
                    data: payload,
                })
            }
            SYNCED => Reply::Synced,
            LISTED_KIND => {
                let blocks = table(&payload, listed)?;
                if !blocks.is_sorted_by(|a, b| a.block < b.block) {
                    return Err(WireError::Field("order of blocks"));
                }
                let more = header.flags == MORE;
                if more && blocks.is_empty() {
                    // Whoever goes on behind the last one would never get further.
                    return Err(WireError::Field("more"));
                }
                Reply::Listed { blocks, more }
            }
            SETTLED => Reply::Settled(reach),
            SURVEYED => {
                let runs = payload
                    .chunks_exact(BLOCKS)
                    .map(|raw| blocks(raw, u32::MAX))
                    .collect::<Result<Vec<_>, _>>()?;
                let next = (header.flags == MORE).then_some(Block(first));
                let last = runs.last().map_or(Block(0), |run| run.end());
                let goes_on = next.is_none_or(|next| next >= last && next.0 <= MAX_BLOCK);
                if !runs.is_sorted_by(|a, b| a.end() <= b.first) || !goes_on {
                    return Err(WireError::Field("order of blocks"));
                }
                Reply::Surveyed { runs, next }
            }
            PULLED_KIND => Reply::Pulled(pulled(payload, reach)?),
            FETCHED => Reply::Fetched(fetched(&header, payload)?),
            COLLAPSED => Reply::Collapsed,
            KEPT => Reply::Kept(reach),
            DIGESTED => {
                let digests = payload.split_to(usize::from(header.code.get()) * DIGEST);
                Reply::Digested(Digested {
                    digests: table(&digests, digest)?,
                    damaged: damaged(&payload)?,
                })
            }
            VERIFIED => Reply::Verified(Verified {
                blocks: first,
                damaged: damaged(&payload)?,
            }),
            REFUSED => Reply::Refused(refusal(header.code.get(), first, second)?),
            kind => return Err(WireError::Kind(kind)),
        };
        Ok((Call(header.call.get()), reply))
    }
}

fn table_bytes(reply: &Reply) -> usize {
    match reply {
        Reply::Sealed(sealed) => SEALED + REACH + sealed.replicas.len() * REPLICA,
        Reply::Read(read) => read.found.len() * FOUND,
        Reply::Listed { blocks, .. } => blocks.len() * LISTED,
        Reply::Surveyed { runs, .. } => runs.len() * BLOCKS,
        Reply::Pulled(pulled) => PULLED + pulled.absent.len() * BLOCKS,
        Reply::Fetched(fetched) => fetched.found.len() * FOUND,
        Reply::Digested(digested) => {
            digested.digests.len() * DIGEST + digested.damaged.len() * DAMAGED
        }
        Reply::Verified(verified) => verified.damaged.len() * DAMAGED,
        _ => 0,
    }
}

fn parse(header: &[u8]) -> Result<ReplyHeader, WireError> {
    ReplyHeader::read_from_bytes(header).map_err(|_| WireError::Field("header"))
}

fn take<T: FromBytes + KnownLayout + Immutable>(payload: &mut Bytes) -> Result<T, WireError> {
    let (value, _) = T::read_from_prefix(payload).map_err(|_| WireError::Field("table"))?;
    payload.advance(size_of::<T>());
    Ok(value)
}

/// A payload that is nothing but entries of one layout.
fn table<T, U>(
    payload: &[u8],
    entry: impl Fn(&T) -> Result<U, WireError>,
) -> Result<Vec<U>, WireError>
where
    T: FromBytes + KnownLayout + Immutable,
{
    payload
        .chunks_exact(size_of::<T>())
        .map(|bytes| entry(&T::read_from_bytes(bytes).map_err(|_| WireError::Field("table"))?))
        .collect()
}

pub(super) fn version_bytes(version: Version) -> VersionBytes {
    VersionBytes {
        epoch: U64::new(version.epoch.as_u64()),
        seq: U64::new(version.seq.0),
    }
}

pub(super) fn version(raw: &VersionBytes) -> Result<Version, WireError> {
    Ok(Version::new(
        Epoch::from_u64(raw.epoch.get()),
        seq(raw.seq.get())?,
    ))
}

fn replica_bytes(replica: &ReplicaState) -> ReplicaBytes {
    ReplicaBytes {
        first: U32::new(replica.extents.first.0),
        end: U32::new(replica.extents.end.0),
        from: U64::new(replica.from.as_u64()),
        lost: replica.lost.into(),
        zero: [0; 7],
    }
}

fn replica(raw: &ReplicaBytes) -> Result<ReplicaState, WireError> {
    let extents = Extents::new(Extent(raw.first.get()), Extent(raw.end.get()));
    if extents.first >= extents.end {
        return Err(WireError::Field("extents"));
    }
    zero(&raw.zero)?;
    Ok(ReplicaState {
        extents,
        from: Epoch::from_u64(raw.from.get()),
        lost: flag(raw.lost)?,
    })
}

fn found_bytes(found: &Found) -> FoundBytes {
    let (kind, version, sum) = match *found {
        Found::Absent => (0, Version::ZERO, 0),
        Found::Zeroes(version) => (1, version, 0),
        Found::Data { version, sum } => (2, version, sum),
    };
    FoundBytes {
        epoch: U64::new(version.epoch.as_u64()),
        seq: U64::new(version.seq.0),
        sum: U32::new(sum),
        kind,
        zero: [0; 3],
    }
}

fn found(raw: &FoundBytes) -> Result<Found, WireError> {
    let version = Version::new(Epoch::from_u64(raw.epoch.get()), seq(raw.seq.get())?);
    let sum = raw.sum.get();
    zero(&raw.zero)?;
    match raw.kind {
        0 if version == Version::ZERO && sum == 0 => Ok(Found::Absent),
        1 if sum == 0 => Ok(Found::Zeroes(version)),
        2 => Ok(Found::Data { version, sum }),
        _ => Err(WireError::Field("found")),
    }
}

fn fetch_bytes(found: &Fetch) -> FoundBytes {
    let plain = match *found {
        Fetch::Absent | Fetch::Same => Found::Absent,
        Fetch::Zeroes(version) => Found::Zeroes(version),
        Fetch::Data { version, sum } => Found::Data { version, sum },
    };
    FoundBytes {
        kind: match found {
            Fetch::Same => SAME,
            _ => found_bytes(&plain).kind,
        },
        ..found_bytes(&plain)
    }
}

fn fetch(raw: &FoundBytes) -> Result<Fetch, WireError> {
    if raw.kind == SAME {
        let absent = FoundBytes { kind: 0, ..*raw };
        return found(&absent).map(|_| Fetch::Same);
    }
    Ok(match found(raw)? {
        Found::Absent => Fetch::Absent,
        Found::Zeroes(version) => Fetch::Zeroes(version),
        Found::Data { version, sum } => Fetch::Data { version, sum },
    })
}

fn fetched(header: &ReplyHeader, mut payload: Bytes) -> Result<Fetched, WireError> {
    let found = payload.split_to(usize::from(header.code.get()) * FOUND);
    let found: Vec<Fetch> = table(&found, fetch)?;
    let with_data = found
        .iter()
        .filter(|found| matches!(found, Fetch::Data { .. }));
    let (got, bound) = (payload.len(), with_data.count() * BLOCK_BYTES as usize);
    let packed = header.flags == ZSTD;
    let fits = match packed {
        true => 0 < got && got < bound,
        false => got == bound,
    };
    if !fits {
        return Err(WireError::Length {
            kind: FETCHED,
            got,
            bound,
        });
    }
    let data = match packed {
        true => Packed::Zstd(payload),
        false => Packed::Plain(payload),
    };
    Ok(Fetched { found, data })
}

fn pulled_bytes(pulled: &Pulled) -> PulledBytes {
    PulledBytes {
        copied: U32::new(pulled.copied),
        zeroes: U32::new(pulled.zeroes),
        same: U32::new(pulled.same),
        zero: U32::ZERO,
        bytes: U64::new(pulled.bytes),
    }
}

fn pulled(mut payload: Bytes, reach: Reach) -> Result<Pulled, WireError> {
    let raw: PulledBytes = take(&mut payload)?;
    zero(raw.zero.as_bytes())?;
    let absent = payload
        .chunks_exact(BLOCKS)
        .map(|raw| blocks(raw, MAX_DATA_BLOCKS))
        .collect::<Result<Vec<_>, _>>()?;
    if !absent.is_sorted_by(|a, b| a.end() <= b.first) {
        return Err(WireError::Field("order of blocks"));
    }
    Ok(Pulled {
        absent,
        copied: raw.copied.get(),
        zeroes: raw.zeroes.get(),
        same: raw.same.get(),
        bytes: raw.bytes.get(),
        reach,
    })
}

impl ReplyHeader {
    fn set_reach(&mut self, kind: u8, reach: Reach) {
        self.kind = kind;
        self.first = U64::new(reach.run);
        self.second = U64::new(reach.at);
    }
}

fn reach_of(raw: &ReachBytes) -> Result<Reach, WireError> {
    let reach = Reach {
        run: raw.run.get(),
        at: raw.at.get(),
    };
    match reach == Reach::UNKNOWN {
        true => Err(WireError::Field("reach")),
        false => Ok(reach),
    }
}

fn digest(raw: &DigestBytes) -> Result<Digest, WireError> {
    Ok(Digest {
        sum: raw.sum.get(),
        blocks: raw.blocks.get(),
    })
}

fn put_damaged(tables: &mut BytesMut, damaged: &[DamagedBlock]) {
    for damaged in damaged {
        let raw = DamagedBytes {
            block: U64::new(damaged.block.0),
            version: version_bytes(damaged.version),
        };
        tables.put_slice(raw.as_bytes());
    }
}

fn damaged(payload: &[u8]) -> Result<Vec<DamagedBlock>, WireError> {
    let damaged = table(payload, |raw: &DamagedBytes| {
        Ok(DamagedBlock {
            block: Block(raw.block.get()),
            version: version(&raw.version)?,
        })
    })?;
    match damaged.is_sorted_by(|a, b| a < b) {
        true => Ok(damaged),
        false => Err(WireError::Field("order of blocks")),
    }
}

fn listed_bytes(block: &ListedBlock) -> ListedBytes {
    ListedBytes {
        block: U64::new(block.block.0),
        version: version_bytes(block.version),
        zeroes: block.zeroes.into(),
        zero: [0; 7],
    }
}

fn listed(raw: &ListedBytes) -> Result<ListedBlock, WireError> {
    zero(&raw.zero)?;
    Ok(ListedBlock {
        block: Block(raw.block.get()),
        version: version(&raw.version)?,
        zeroes: flag(raw.zeroes)?,
    })
}

fn refusal_fields(refusal: &Refusal) -> (u16, u64, u64) {
    match *refusal {
        Refusal::Superseded { shown } => (1, shown.as_u64(), 0),
        Refusal::NotShown { shown } => (2, shown.as_u64(), 0),
        Refusal::OtherIncarnation { now } => (3, now.0, 0),
        Refusal::NoReplica => (4, 0, 0),
        Refusal::Full { free, needed } => (5, free, needed),
        Refusal::Failed => (6, 0, 0),
        Refusal::BadChecksum => (7, 0, 0),
        Refusal::Damaged { block } => (8, block.0, 0),
        Refusal::Invalid { .. } => (9, 0, 0),
        Refusal::Source(fault) => (10, fault as u64, 0),
        Refusal::NotGranted { .. } => (11, 0, 0),
        Refusal::Forgot => (12, 0, 0),
    }
}

fn refusal(code: u16, first: u64, second: u64) -> Result<Refusal, WireError> {
    let refusal = match code {
        1 => Refusal::Superseded {
            shown: Epoch::from_u64(first),
        },
        2 => Refusal::NotShown {
            shown: Epoch::from_u64(first),
        },
        3 => Refusal::OtherIncarnation {
            now: Incarnation(first),
        },
        4 => Refusal::NoReplica,
        5 => Refusal::Full {
            free: first,
            needed: second,
        },
        6 => Refusal::Failed,
        7 => Refusal::BadChecksum,
        8 => Refusal::Damaged {
            block: Block(first),
        },
        9 => Refusal::Invalid { why: INVALID_THERE },
        11 => Refusal::NotGranted { why: INVALID_THERE },
        12 => Refusal::Forgot,
        10 => Refusal::Source(match first {
            0 => SourceFault::Away,
            1 => SourceFault::Unsealed,
            2 => SourceFault::Useless,
            _ => return Err(WireError::Field("refusal")),
        }),
        _ => return Err(WireError::Field("refusal")),
    };
    // What a refusal does not use is zero.
    if refusal_fields(&refusal) == (code, first, second) {
        Ok(refusal)
    } else {
        Err(WireError::Field("an unused one"))
    }
}

fn flag(byte: u8) -> Result<bool, WireError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError::Field("flag")),
    }
}

fn zero(bytes: &[u8]) -> Result<(), WireError> {
    if bytes.iter().all(|byte| *byte == 0) {
        Ok(())
    } else {
        Err(WireError::Field("an unused one"))
    }
}
