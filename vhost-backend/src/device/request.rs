//! From the pieces of a chain to what the guest asks for, or why it cannot have it.
//!
//! The header and the segments of a discard are copied out first and judged on the copy. What
//! comes out names spans that lie on the disk, in whole sectors.

use super::chain::Chain;
use super::config_space::{ZERO_SECTORS_MAX, ZERO_SEGMENTS_MAX};
use super::memory::{Memory, Piece};
use replicator::words::{SECTOR_BYTES, Span};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

pub const HEADER_BYTES: usize = 16;
pub const SERIAL_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;
const SEGMENT_BYTES: usize = 16;

/// The data of one request at most: 50 times what a Linux guest sends unless told otherwise. It
/// bounds what a guest can make us copy at once.
pub const REQUEST_BYTES_MAX: u64 = 64 << 20;

/// The last byte of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    pub fn byte(self) -> u8 {
        match self {
            Status::Ok => VIRTIO_BLK_S_OK as u8,
            Status::IoError => VIRTIO_BLK_S_IOERR as u8,
            Status::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
        }
    }
}

/// What the guest asks for.
#[derive(PartialEq, Eq, Debug)]
pub enum Ask {
    Read(Span),
    Write(Span),
    Zero(Vec<Span>),
    Flush,
    Serial,
    /// It has its answer already.
    Done(Status),
}

/// What a request is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub disk_bytes: u64,
    pub read_only: bool,
}

/// A request, with the places of what the guest gets back taken out of the chain.
#[derive(PartialEq, Eq, Debug)]
pub struct Request {
    pub ask: Ask,
    /// Where the status byte goes: the last writable byte. Where there is none, a guest cannot be
    /// told anything.
    pub status: Option<u64>,
    /// How many bytes may be written before it.
    pub data_in: u64,
}

/// Judges `chain`. Its writable pieces are cut down to the data part.
pub fn parse(chain: &mut Chain, memory: &Memory, limits: &Limits) -> Request {
    let status = cut_status(&mut chain.writable);
    let data_in = total(&chain.writable);
    let ask = match status {
        None => Ask::Done(Status::IoError),
        Some(_) if chain.misordered => Ask::Done(Status::IoError),
        Some(_) => ask(chain, memory, limits, data_in).unwrap_or_else(Ask::Done),
    };
    Request {
        ask,
        status,
        data_in,
    }
}

fn ask(chain: &Chain, memory: &Memory, limits: &Limits, data_in: u64) -> Result<Ask, Status> {
    let mut header = [0; HEADER_BYTES];
    memory
        .read(&chain.readable, 0, &mut header)
        .map_err(|_| Status::IoError)?;
    let kind = u32::from_le_bytes(header[0..4].try_into().expect("four bytes"));
    let sector = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
    let data_out = total(&chain.readable) - HEADER_BYTES as u64;

    match kind {
        VIRTIO_BLK_T_IN => {
            let span = span(sector, data_in, limits)?;
            Ok(if span.len == 0 {
                Ask::Done(Status::Ok)
            } else {
                Ask::Read(span)
            })
        }
        VIRTIO_BLK_T_OUT => {
            let span = span(sector, data_out, limits)?;
            writable(limits)?;
            Ok(if span.len == 0 {
                Ask::Done(Status::Ok)
            } else {
                Ask::Write(span)
            })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Ask::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Ask::Serial),
        VIRTIO_BLK_T_DISCARD => zero(chain, memory, limits, data_out, 0),
        VIRTIO_BLK_T_WRITE_ZEROES => zero(
            chain,
            memory,
            limits,
            data_out,
            VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
        ),
        _ => Err(Status::Unsupported),
    }
}

fn zero(
    chain: &Chain,
    memory: &Memory,
    limits: &Limits,
    data_out: u64,
    flags_allowed: u32,
) -> Result<Ask, Status> {
    writable(limits)?;
    let segments = data_out / SEGMENT_BYTES as u64;
    if !data_out.is_multiple_of(SEGMENT_BYTES as u64)
        || !(1..=u64::from(ZERO_SEGMENTS_MAX)).contains(&segments)
    {
        return Err(Status::IoError);
    }
    let mut bytes = vec![0; data_out as usize];
    memory
        .read(&chain.readable, HEADER_BYTES, &mut bytes)
        .map_err(|_| Status::IoError)?;
    let mut spans = Vec::with_capacity(segments as usize);
    for segment in bytes.chunks_exact(SEGMENT_BYTES) {
        let sector = u64::from_le_bytes(segment[0..8].try_into().expect("eight bytes"));
        let sectors = u32::from_le_bytes(segment[8..12].try_into().expect("four bytes"));
        let flags = u32::from_le_bytes(segment[12..16].try_into().expect("four bytes"));
        if flags & !flags_allowed != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > ZERO_SECTORS_MAX {
            return Err(Status::IoError);
        }
        let span = on_disk(sector, u64::from(sectors) * SECTOR_BYTES, limits)?;
        if span.len > 0 {
            spans.push(span);
        }
    }
    Ok(if spans.is_empty() {
        Ask::Done(Status::Ok)
    } else {
        Ask::Zero(spans)
    })
}

fn span(sector: u64, len: u64, limits: &Limits) -> Result<Span, Status> {
    if !len.is_multiple_of(SECTOR_BYTES) || len > REQUEST_BYTES_MAX {
        return Err(Status::IoError);
    }
    on_disk(sector, len, limits)
}

fn on_disk(sector: u64, len: u64, limits: &Limits) -> Result<Span, Status> {
    let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
    let end = offset.checked_add(len).ok_or(Status::IoError)?;
    if end > limits.disk_bytes {
        return Err(Status::IoError);
    }
    Ok(Span::new(offset, len))
}

fn writable(limits: &Limits) -> Result<(), Status> {
    if limits.read_only {
        Err(Status::IoError)
    } else {
        Ok(())
    }
}

/// Takes the last byte off: layouts of buffers mean nothing (virtio 1.2, 2.7.4), it may share its
/// descriptor with data.
fn cut_status(pieces: &mut Vec<Piece>) -> Option<u64> {
    let last = pieces.last_mut()?;
    last.len -= 1;
    let addr = last.addr.checked_add(u64::from(last.len));
    if last.len == 0 {
        pieces.pop();
    }
    addr
}

fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}
