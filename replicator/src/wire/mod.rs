//! The messages as bytes: what crosses one QUIC stream between a writer and a far store.
//!
//! A connection carries one bidirectional stream. Each side first says [`Hello`] (protocol versions,
//! which store), then requests go one way and replies the other, in any order, matched by [`Call`].
//! `docs/wire-protocol.md` gives every byte.
//!
//! Promises: nothing received is believed before it is checked, no length is allocated before it is
//! bounded, and decoding never panics (I9). Block data is not copied where it need not be: a frame
//! is encoded as its header and a reference to the data, and decoded as a slice of what arrived.

mod decoder;
mod header;
mod hello;
mod reply;
mod request;
#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Message};
pub use hello::{Hello, Verdict, VersionRange, Welcome};

use crate::message::{
    MAX_DATA_BLOCKS, MAX_GRANT_BYTES, MAX_LISTED, MAX_RECORD_BYTES, Pulled, Reach, Refusal, Reply,
    Request, Sealed,
};
use crate::words::{BLOCK_BYTES, ExtentSize};
use bytes::Bytes;
use std::borrow::Cow;

/// The application protocol that both sides name in the TLS handshake.
pub const ALPN: &[u8] = b"ukai-replica/1";
/// The versions of the protocol that this build speaks.
pub const VERSIONS: VersionRange = VersionRange { min: 2, max: 3 };
/// From this version on a seal carries a grant, a record and what is known of the store, a fetch the proof of a
/// grant, and stores say how far they are.
pub const SEALS_CARRY: u16 = 3;

/// The most blocks that one write of zeroes may name: the largest extent.
pub const MAX_ZERO_BLOCKS: u32 = (ExtentSize::MAX_BYTES / BLOCK_BYTES) as u32;
/// The most replica ranges in one answer to a seal.
pub const MAX_REPLICA_RANGES: usize = 65_536;
/// No frame is longer than this behind its header: a read of 1 MiB with its descriptors, or the
/// largest answer to a seal.
pub const MAX_PAYLOAD: usize = {
    let read = MAX_DATA_BLOCKS as usize * (BLOCK_BYTES as usize + header::FOUND);
    let sealed = header::SEALED + header::REACH + MAX_REPLICA_RANGES * header::REPLICA;
    let listed = MAX_LISTED * header::LISTED;
    assert!(MAX_GRANT_BYTES + MAX_RECORD_BYTES < read);
    let larger = if read > sealed { read } else { sealed };
    if larger > listed { larger } else { listed }
};

/// Matches a reply to its request within one connection. A new connection knows none of the old one's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Call(pub u64);

/// A frame ready to send: its header and tables, then the data that goes behind them, if any.
#[derive(Clone, Debug)]
pub struct Frame {
    pub head: Bytes,
    pub data: Bytes,
}

impl Frame {
    pub fn len(&self) -> usize {
        self.head.len() + self.data.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The version of the protocol that brought this request.
pub fn since(request: &Request) -> u16 {
    match request {
        Request::Heal { .. } | Request::Digest { .. } | Request::Verify { .. } => 3,
        _ => 2,
    }
}

/// Why bytes from a peer are no message. The connection that they came on is closed, no other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    #[error("not a hello of this protocol")]
    NotHello,
    #[error("a hello of {0} bytes")]
    HelloLength(usize),
    #[error("kind {0:#04x} is not a message of this direction")]
    Kind(u8),
    #[error("a payload of {got} bytes where kind {kind:#04x} has {bound}")]
    Length { kind: u8, got: usize, bound: usize },
    #[error("field {0} has a value that it cannot have")]
    Field(&'static str),
    #[error("a count of {got} where at most {bound} are allowed")]
    Count { got: u64, bound: u64 },
}

/// The request as a peer that speaks `version` understands it: what came later is left out.
pub(crate) fn spoken(request: &Request, version: u16) -> Cow<'_, Request> {
    match request {
        Request::Seal { disk, epoch, .. } if version < SEALS_CARRY => {
            Cow::Owned(Request::seal(*disk, *epoch))
        }
        Request::Fetch { proof: Some(_), .. } if version < SEALS_CARRY => {
            let mut old = request.clone();
            if let Request::Fetch { proof, .. } = &mut old {
                *proof = None;
            }
            Cow::Owned(old)
        }
        _ => Cow::Borrowed(request),
    }
}

/// As [`spoken`], of a reply.
pub(crate) fn answered(reply: Reply, version: u16) -> Reply {
    let unknown = Reach::UNKNOWN;
    match reply {
        _ if version >= SEALS_CARRY => reply,
        Reply::Sealed(sealed) => Reply::Sealed(Sealed {
            reach: unknown,
            ..sealed
        }),
        Reply::Pulled(pulled) => Reply::Pulled(Pulled {
            reach: unknown,
            ..pulled
        }),
        Reply::Joined(_) => Reply::Joined(unknown),
        Reply::Written(_) => Reply::Written(unknown),
        Reply::Settled(_) => Reply::Settled(unknown),
        Reply::Kept(_) => Reply::Kept(unknown),
        Reply::Refused(Refusal::NotGranted { why }) => Reply::Refused(Refusal::Invalid { why }),
        other => other,
    }
}

/// Anything at all, into every decoder: for fuzzing. What decodes must encode to the same bytes.
pub fn fuzz_decode(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok((hello, _)) = Hello::decode(&bytes) {
        assert_eq!(Hello::decode(&hello.encode()).map(|(h, _)| h), Ok(hello));
    }
    if let Ok((welcome, _)) = Welcome::decode(&bytes) {
        assert_eq!(
            Welcome::decode(&welcome.encode()).map(|(w, _)| w),
            Ok(welcome)
        );
    }
    round_trip::<Request>(&bytes);
    round_trip::<Reply>(&bytes);
}

fn round_trip<M: Message>(bytes: &Bytes) {
    let mut whole = Decoder::<M>::new();
    let mut split = Decoder::<M>::new();
    whole.push(bytes.clone());
    let mut at = 0;
    let mut fed = 0;
    while let Ok(Some((call, message))) = whole.next() {
        let frame = message.encode(call);
        assert!(bytes[at..].starts_with(&frame.head), "encode undoes decode");
        assert!(bytes[at + frame.head.len()..].starts_with(&frame.data));
        at += frame.len();
        // The same again in small pieces, as a network may deliver it.
        while fed < at {
            let end = (fed + 1 + fed % 1500).min(bytes.len());
            split.push(bytes.slice(fed..end));
            fed = end;
        }
        assert_eq!(split.next(), Ok(Some((call, message))));
    }
}
