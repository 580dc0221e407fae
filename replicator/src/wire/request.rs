//! Requests as bytes.

use super::header::{
    BLOCKS, BlocksBytes, REQUEST, RequestHeader, SOURCE, SUM, SourceBytes, VERSION, VersionBytes,
};
use super::reply::{version, version_bytes};
use super::{Call, Frame, MAX_ZERO_BLOCKS, Message, WireError};
use crate::message::{
    Asker, Content, GrantDigest, Known, MAX_DATA_BLOCKS, MAX_GRANT_BYTES, MAX_RECORD_BYTES,
    Payload, Reach, Request, Source,
};
use crate::words::{
    BLOCK_BYTES, Block, Blocks, DiskId, Epoch, Extent, ExtentSize, Extents, Incarnation, Seq,
    StoreId, Version,
};
use bytes::{BufMut, Bytes, BytesMut};
use zerocopy::byteorder::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, IntoBytes};

const SEAL: u8 = 1;
const JOIN: u8 = 2;
const WRITE: u8 = 3;
const READ: u8 = 4;
const SYNC: u8 = 5;
const LIST: u8 = 6;
const SETTLE: u8 = 7;
const SURVEY: u8 = 8;
const PULL: u8 = 9;
const FETCH: u8 = 10;
const COLLAPSE: u8 = 11;
const KEEP: u8 = 12;
const HEAL: u8 = 13;
const DIGEST_KIND: u8 = 14;
const VERIFY: u8 = 15;

/// A write without data: its blocks become zeroes.
const ZEROES: u8 = 1;
/// Of a fetch: its data may come compressed.
const COMPRESS: u8 = 1;
/// Of a fetch: the digest of a grant follows.
const PROOF: u8 = 2;

/// Bytes of a grant's digest.
const DIGEST: usize = 32;

/// The block behind the last one that a disk can have: 2^64 bytes.
pub(super) const MAX_BLOCK: u64 = u64::MAX / BLOCK_BYTES;

impl Message for Request {
    const HEADER: usize = REQUEST;

    fn encode(&self, call: Call) -> Frame {
        let header = header(self, call);
        let (sums, data): (&[u32], Bytes) = match self {
            Request::Write {
                content: Content::Data(payload),
                ..
            } => (&payload.sums, payload.data.clone()),
            Request::Seal { record, .. } => (&[], record.clone()),
            _ => (&[], Bytes::new()),
        };
        let mut head = BytesMut::with_capacity(REQUEST + sums.len() * SUM);
        head.put_slice(header.as_bytes());
        for sum in sums {
            head.put_u32_le(*sum);
        }
        put_tables(&mut head, self);
        Frame {
            head: head.freeze(),
            data,
        }
    }

    fn payload_len(header: &[u8]) -> Result<usize, WireError> {
        let header = parse(header)?;
        let bound = match (header.kind, header.flags) {
            (WRITE, 0) => header.data_blocks()? * (SUM + BLOCK_BYTES as usize),
            (WRITE, ZEROES) => 0,
            (PULL | HEAL, 0) => SOURCE,
            (FETCH, 0..=3) => return fetch_len(&header),
            (SEAL, 0) => return seal_len(&header),
            (SEAL..=VERIFY, 0) => 0,
            (SEAL..=VERIFY, _) => return Err(WireError::Field("flags")),
            (kind, _) => return Err(WireError::Kind(kind)),
        };
        let got = header.payload.get() as usize;
        if got == bound {
            Ok(got)
        } else {
            Err(WireError::Length {
                kind: header.kind,
                got,
                bound,
            })
        }
    }

    fn decode(header: &[u8], payload: Bytes) -> Result<(Call, Self), WireError> {
        let header = parse(header)?;
        let request = match header.kind {
            SEAL => {
                let mut grant = payload;
                let record = grant.split_off(header.first.get() as usize);
                Request::Seal {
                    disk: DiskId::from_u128(header.disk.get()),
                    epoch: Epoch::from_u64(header.epoch.get()),
                    grant,
                    record,
                    known: Known {
                        incarnation: Incarnation(header.incarnation.get()),
                        reach: Reach {
                            run: header.block.get(),
                            at: header.second.get(),
                        },
                    },
                }
            }
            JOIN => Request::Join {
                asker: header.asker(),
                extents: header.extents()?,
                extent_size: ExtentSize::new(header.second.get())
                    .map_err(|_| WireError::Field("extent size"))?,
                from: Epoch::from_u64(header.first.get()),
            },
            WRITE => Request::Write {
                asker: header.asker(),
                seq: seq(header.first.get())?,
                watermark: seq(header.second.get())?,
                blocks: header.blocks(if header.flags == ZEROES {
                    MAX_ZERO_BLOCKS
                } else {
                    MAX_DATA_BLOCKS
                })?,
                content: if header.flags == ZEROES {
                    Content::Zeroes
                } else {
                    Content::Data(data(payload))
                },
            },
            READ => Request::Read {
                asker: header.asker(),
                from: Epoch::from_u64(header.first.get()),
                below: Epoch::from_u64(header.second.get()),
                blocks: header.blocks(MAX_DATA_BLOCKS)?,
            },
            SYNC => Request::Sync {
                asker: header.asker(),
            },
            LIST => Request::List {
                asker: header.asker(),
                extents: header.extents()?,
                above: Version::new(
                    Epoch::from_u64(header.first.get()),
                    seq(header.second.get())?,
                ),
                start: header.start()?,
            },
            SETTLE => Request::Settle {
                asker: header.asker(),
                extents: header.extents()?,
            },
            SURVEY => Request::Survey {
                asker: header.asker(),
                from: Epoch::from_u64(header.first.get()),
                below: Epoch::from_u64(header.second.get()),
                extents: header.extents()?,
                start: header.start()?,
            },
            PULL => Request::Pull {
                asker: header.asker(),
                source: source(&payload)?,
                from: Epoch::from_u64(header.first.get()),
                below: Epoch::from_u64(header.second.get()),
                blocks: header.blocks(MAX_DATA_BLOCKS)?,
            },
            HEAL => Request::Heal {
                asker: header.asker(),
                source: source(&payload)?,
                from: Epoch::from_u64(header.first.get()),
                below: Epoch::from_u64(header.second.get()),
                blocks: header.blocks(MAX_DATA_BLOCKS)?,
            },
            DIGEST_KIND => Request::Digest {
                asker: header.asker(),
                from: Epoch::from_u64(header.first.get()),
                extents: header.extents()?,
            },
            VERIFY => Request::Verify {
                asker: header.asker(),
                blocks: header.blocks(MAX_DATA_BLOCKS)?,
            },
            FETCH => fetch(&header, payload)?,
            KEEP => Request::Keep {
                asker: header.asker(),
                extents: header.extents()?,
                below: Epoch::from_u64(header.second.get()),
            },
            COLLAPSE => Request::Collapse {
                asker: header.asker(),
                extents: header.extents()?,
                oldest: Epoch::from_u64(header.first.get()),
            },
            kind => return Err(WireError::Kind(kind)),
        };
        let call = Call(header.call.get());
        // Fields that a kind does not use are zero: they are then free for a later version to use.
        if self::header(&request, call).as_bytes() == header.as_bytes() {
            Ok((call, request))
        } else {
            Err(WireError::Field("an unused one"))
        }
    }
}

fn header(request: &Request, call: Call) -> RequestHeader {
    let mut header = RequestHeader {
        call: U64::new(call.0),
        ..RequestHeader::default()
    };
    match request {
        Request::Seal {
            disk,
            epoch,
            grant,
            record,
            known,
        } => {
            header.kind = SEAL;
            header.incarnation = U64::new(known.incarnation.0);
            header.block = U64::new(known.reach.run);
            header.second = U64::new(known.reach.at);
            header.disk = U128::new(disk.as_u128());
            header.epoch = U64::new(epoch.as_u64());
            header.first = U64::new(grant.len() as u64);
            header.payload = U32::new((grant.len() + record.len()) as u32);
        }
        Request::Join {
            asker,
            extents,
            extent_size,
            from,
        } => {
            header.kind = JOIN;
            header.set_asker(asker);
            header.set_extents(*extents);
            header.first = U64::new(from.as_u64());
            header.second = U64::new(extent_size.bytes());
        }
        Request::Write {
            asker,
            seq,
            watermark,
            blocks,
            content,
        } => {
            header.kind = WRITE;
            header.set_asker(asker);
            header.set_blocks(*blocks);
            header.first = U64::new(seq.0);
            header.second = U64::new(watermark.0);
            header.flags = match content {
                Content::Zeroes => ZEROES,
                Content::Data(_) => 0,
            };
        }
        Request::Read {
            asker,
            from,
            below,
            blocks,
        } => {
            header.kind = READ;
            header.set_asker(asker);
            header.set_blocks(*blocks);
            header.first = U64::new(from.as_u64());
            header.second = U64::new(below.as_u64());
        }
        Request::Sync { asker } => {
            header.kind = SYNC;
            header.set_asker(asker);
        }
        Request::List {
            asker,
            extents,
            above,
            start,
        } => {
            header.kind = LIST;
            header.set_asker(asker);
            header.set_extents(*extents);
            header.block = U64::new(start.0);
            header.first = U64::new(above.epoch.as_u64());
            header.second = U64::new(above.seq.0);
        }
        Request::Settle { asker, extents } => {
            header.kind = SETTLE;
            header.set_asker(asker);
            header.set_extents(*extents);
        }
        Request::Survey {
            asker,
            from,
            below,
            extents,
            start,
        } => {
            header.kind = SURVEY;
            header.set_asker(asker);
            header.set_extents(*extents);
            header.block = U64::new(start.0);
            header.set_entry(*from, *below);
        }
        Request::Pull {
            asker,
            source: _,
            from,
            below,
            blocks,
        } => {
            header.kind = PULL;
            header.set_asker(asker);
            header.set_blocks(*blocks);
            header.set_entry(*from, *below);
            header.payload = U32::new(SOURCE as u32);
        }
        Request::Heal {
            asker,
            source: _,
            from,
            below,
            blocks,
        } => {
            header.kind = HEAL;
            header.set_asker(asker);
            header.set_blocks(*blocks);
            header.set_entry(*from, *below);
            header.payload = U32::new(SOURCE as u32);
        }
        Request::Digest {
            asker,
            from,
            extents,
        } => {
            header.kind = DIGEST_KIND;
            header.set_asker(asker);
            header.set_extents(*extents);
            header.first = U64::new(from.as_u64());
        }
        Request::Verify { asker, blocks } => {
            header.kind = VERIFY;
            header.set_asker(asker);
            header.set_blocks(*blocks);
        }
        Request::Fetch {
            asker,
            from,
            below,
            blocks,
            known,
            compress,
            proof,
        } => {
            header.kind = FETCH;
            header.flags = if *compress { COMPRESS } else { 0 };
            header.flags |= if proof.is_some() { PROOF } else { 0 };
            header.set_asker(asker);
            header.count = U32::new(blocks.len() as u32);
            header.set_entry(*from, *below);
            let proof = proof.map_or(0, |proof| proof.0.len());
            let bytes = blocks.len() * BLOCKS + known.len() * VERSION + proof;
            header.payload = U32::new(bytes as u32);
        }
        Request::Keep {
            asker,
            extents,
            below,
        } => {
            header.kind = KEEP;
            header.set_asker(asker);
            header.set_extents(*extents);
            header.second = U64::new(below.as_u64());
        }
        Request::Collapse {
            asker,
            extents,
            oldest,
        } => {
            header.kind = COLLAPSE;
            header.set_asker(asker);
            header.set_extents(*extents);
            header.first = U64::new(oldest.as_u64());
        }
    }
    if let Request::Write {
        content: Content::Data(payload),
        ..
    } = request
    {
        header.payload = U32::new((payload.sums.len() * SUM + payload.data.len()) as u32);
    }
    header
}

/// What stands behind the header, of requests without data.
fn put_tables(head: &mut BytesMut, request: &Request) {
    match request {
        Request::Seal { grant, .. } => head.put_slice(grant),
        Request::Pull { source, .. } | Request::Heal { source, .. } => {
            let raw = SourceBytes {
                store: U128::new(source.store.as_u128()),
                incarnation: U64::new(source.incarnation.0),
            };
            head.put_slice(raw.as_bytes());
        }
        Request::Fetch {
            blocks,
            known,
            proof,
            ..
        } => {
            for part in blocks {
                head.put_slice(blocks_bytes(*part).as_bytes());
            }
            for known in known {
                head.put_slice(version_bytes(*known).as_bytes());
            }
            if let Some(proof) = proof {
                head.put_slice(&proof.0);
            }
        }
        _ => {}
    }
}

fn source(payload: &[u8]) -> Result<Source, WireError> {
    let raw = SourceBytes::read_from_bytes(payload).map_err(|_| WireError::Field("source"))?;
    Ok(Source {
        store: StoreId::from_u128(raw.store.get()),
        incarnation: Incarnation(raw.incarnation.get()),
    })
}

/// How long a seal's payload is, if it may be: a grant as long as the header says, then a record.
fn seal_len(header: &RequestHeader) -> Result<usize, WireError> {
    let within = |got: u64, bound: usize| match got <= bound as u64 {
        true => Ok(got as usize),
        false => Err(WireError::Count {
            got,
            bound: bound as u64,
        }),
    };
    let payload = header.payload.get() as usize;
    let grant = within(header.first.get(), MAX_GRANT_BYTES)?;
    let record = payload.checked_sub(grant).ok_or(WireError::Length {
        kind: SEAL,
        got: payload,
        bound: grant,
    })?;
    within(record as u64, MAX_RECORD_BYTES)?;
    Ok(payload)
}

/// How long a fetch's payload is, if it may be: as many ranges as the header says, then versions.
fn fetch_len(header: &RequestHeader) -> Result<usize, WireError> {
    let (ranges, most) = (header.count.get(), MAX_DATA_BLOCKS);
    if ranges == 0 || ranges > most {
        return Err(WireError::Count {
            got: ranges.into(),
            bound: most.into(),
        });
    }
    let got = header.payload.get() as usize;
    let proof = if header.flags & PROOF != 0 { DIGEST } else { 0 };
    let fixed = ranges as usize * BLOCKS + proof;
    let bound = fixed + most as usize * VERSION;
    if (fixed..=bound).contains(&got) && got.is_multiple_of(VERSION) {
        Ok(got)
    } else {
        Err(WireError::Length {
            kind: FETCH,
            got,
            bound,
        })
    }
}

fn fetch(header: &RequestHeader, mut payload: Bytes) -> Result<Request, WireError> {
    let proof = match header.flags & PROOF != 0 {
        true => {
            let digest = payload.split_off(payload.len() - DIGEST);
            let digest = digest[..]
                .try_into()
                .map_err(|_| WireError::Field("proof"))?;
            Some(GrantDigest(digest))
        }
        false => None,
    };
    let ranges = payload.split_to(header.count.get() as usize * BLOCKS);
    let blocks = ranges
        .chunks_exact(BLOCKS)
        .map(|raw| blocks(raw, MAX_DATA_BLOCKS))
        .collect::<Result<Vec<_>, _>>()?;
    if !blocks.is_sorted_by(|a, b| a.end() <= b.first) {
        return Err(WireError::Field("order of blocks"));
    }
    let count: u64 = blocks.iter().map(|part| u64::from(part.count)).sum();
    let known = payload
        .chunks_exact(VERSION)
        .map(|raw| {
            let raw = VersionBytes::read_from_bytes(raw).map_err(|_| WireError::Field("table"))?;
            version(&raw)
        })
        .collect::<Result<Vec<_>, _>>()?;
    if count > MAX_DATA_BLOCKS.into() || !(known.is_empty() || known.len() as u64 == count) {
        return Err(WireError::Count {
            got: count,
            bound: MAX_DATA_BLOCKS.into(),
        });
    }
    Ok(Request::Fetch {
        asker: header.asker(),
        from: Epoch::from_u64(header.first.get()),
        below: Epoch::from_u64(header.second.get()),
        blocks,
        known,
        compress: header.flags & COMPRESS != 0,
        proof,
    })
}

pub(super) fn blocks_bytes(blocks: Blocks) -> BlocksBytes {
    BlocksBytes {
        first: U64::new(blocks.first.0),
        count: U32::new(blocks.count),
        zero: U32::ZERO,
    }
}

/// One to `bound` blocks, all of which a disk can have.
pub(super) fn blocks(raw: &[u8], bound: u32) -> Result<Blocks, WireError> {
    let raw = BlocksBytes::read_from_bytes(raw).map_err(|_| WireError::Field("table"))?;
    if raw.zero.get() != 0 {
        return Err(WireError::Field("an unused one"));
    }
    checked(raw.first.get(), raw.count.get(), bound)
}

fn checked(first: u64, count: u32, bound: u32) -> Result<Blocks, WireError> {
    if count == 0 {
        return Err(WireError::Field("count"));
    }
    if count > bound {
        return Err(WireError::Count {
            got: count.into(),
            bound: bound.into(),
        });
    }
    if first > MAX_BLOCK - u64::from(count) {
        return Err(WireError::Field("block"));
    }
    Ok(Blocks::new(Block(first), count))
}

fn data(mut payload: Bytes) -> Payload {
    let blocks = payload.len() / (SUM + BLOCK_BYTES as usize);
    let table = payload.split_to(blocks * SUM);
    let sums = table
        .chunks_exact(SUM)
        .map(|sum| u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]))
        .collect();
    Payload {
        data: payload,
        sums,
    }
}

fn parse(header: &[u8]) -> Result<RequestHeader, WireError> {
    RequestHeader::read_from_bytes(header).map_err(|_| WireError::Field("header"))
}

pub(super) fn seq(bits: u64) -> Result<Seq, WireError> {
    if bits <= Seq::MAX.0 {
        Ok(Seq(bits))
    } else {
        Err(WireError::Field("seq"))
    }
}

impl RequestHeader {
    fn set_asker(&mut self, asker: &Asker) {
        self.disk = U128::new(asker.disk.as_u128());
        self.epoch = U64::new(asker.epoch.as_u64());
        self.incarnation = U64::new(asker.incarnation.0);
    }

    fn set_extents(&mut self, extents: Extents) {
        self.extents_first = U32::new(extents.first.0);
        self.extents_end = U32::new(extents.end.0);
    }

    /// Which entry of the history is asked, and how far up.
    fn set_entry(&mut self, from: Epoch, below: Epoch) {
        self.first = U64::new(from.as_u64());
        self.second = U64::new(below.as_u64());
    }

    fn set_blocks(&mut self, blocks: Blocks) {
        self.block = U64::new(blocks.first.0);
        self.count = U32::new(blocks.count);
    }

    fn asker(&self) -> Asker {
        Asker {
            disk: DiskId::from_u128(self.disk.get()),
            epoch: Epoch::from_u64(self.epoch.get()),
            incarnation: Incarnation(self.incarnation.get()),
        }
    }

    fn extents(&self) -> Result<Extents, WireError> {
        let extents = Extents::new(
            Extent(self.extents_first.get()),
            Extent(self.extents_end.get()),
        );
        if extents.first <= extents.end {
            Ok(extents)
        } else {
            Err(WireError::Field("extents"))
        }
    }

    fn start(&self) -> Result<Block, WireError> {
        let start = self.block.get();
        if start <= MAX_BLOCK {
            Ok(Block(start))
        } else {
            Err(WireError::Field("block"))
        }
    }

    fn data_blocks(&self) -> Result<usize, WireError> {
        Ok(self.blocks(MAX_DATA_BLOCKS)?.count as usize)
    }

    /// One to `bound` blocks, all of which a disk can have.
    fn blocks(&self, bound: u32) -> Result<Blocks, WireError> {
        checked(self.block.get(), self.count.get(), bound)
    }
}
