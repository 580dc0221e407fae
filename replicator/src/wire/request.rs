//! Requests as bytes.

use super::header::{REQUEST, RequestHeader, SUM};
use super::{Call, Frame, MAX_ZERO_BLOCKS, Message, WireError};
use crate::message::{Asker, Content, MAX_DATA_BLOCKS, Payload, Request};
use crate::words::{
    BLOCK_BYTES, Block, Blocks, DiskId, Epoch, Extent, ExtentSize, Extents, Incarnation, Seq,
    Version,
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

/// A write without data: its blocks become zeroes.
const ZEROES: u8 = 1;

/// The block behind the last one that a disk can have: 2^64 bytes.
const MAX_BLOCK: u64 = u64::MAX / BLOCK_BYTES;

impl Message for Request {
    const HEADER: usize = REQUEST;

    fn encode(&self, call: Call) -> Frame {
        let header = header(self, call);
        let (sums, data): (&[u32], Bytes) = match payload(self) {
            Some(payload) => (&payload.sums, payload.data.clone()),
            None => (&[], Bytes::new()),
        };
        let mut head = BytesMut::with_capacity(REQUEST + sums.len() * SUM);
        head.put_slice(header.as_bytes());
        for sum in sums {
            head.put_u32_le(*sum);
        }
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
            (SEAL..=SETTLE, 0) => 0,
            (SEAL..=SETTLE, _) => return Err(WireError::Field("flags")),
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
            SEAL => Request::Seal {
                disk: DiskId::from_u128(header.disk.get()),
                epoch: Epoch::from_u64(header.epoch.get()),
            },
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
        Request::Survey { .. } | Request::Pull { .. } | Request::Fetch { .. } => {
            panic!("not on the wire yet")
        }
        Request::Seal { disk, epoch } => {
            header.kind = SEAL;
            header.disk = U128::new(disk.as_u128());
            header.epoch = U64::new(epoch.as_u64());
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
    }
    if let Some(payload) = payload(request) {
        header.payload = U32::new((payload.sums.len() * SUM + payload.data.len()) as u32);
    }
    header
}

fn payload(request: &Request) -> Option<&Payload> {
    match request {
        Request::Write {
            content: Content::Data(payload),
            ..
        } => Some(payload),
        _ => None,
    }
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
        let blocks = Blocks::new(Block(self.block.get()), self.count.get());
        if blocks.count == 0 {
            return Err(WireError::Field("count"));
        }
        if blocks.count > bound {
            return Err(WireError::Count {
                got: blocks.count.into(),
                bound: bound.into(),
            });
        }
        if blocks.first.0 > MAX_BLOCK - u64::from(blocks.count) {
            return Err(WireError::Field("block"));
        }
        Ok(blocks)
    }
}
