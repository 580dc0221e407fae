//! The first bytes each way: which protocol versions a side speaks, and which store is meant.

use super::{VERSIONS, WireError};
use crate::words::StoreId;
use bytes::Bytes;
use std::fmt;
use zerocopy::byteorder::little_endian::{U16, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"ukairepl";
/// A later version may append fields, up to here; what is not known is skipped.
const MAX_LEN: usize = 1024;

/// The versions that a side speaks, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionRange {
    pub min: u16,
    pub max: u16,
}

impl VersionRange {
    /// The highest version that both speak.
    pub fn common(self, other: VersionRange) -> Option<u16> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

/// The client's first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    pub versions: VersionRange,
    /// The store that it wants to talk to.
    pub store: StoreId,
}

/// The server's answer to a [`Hello`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    pub versions: VersionRange,
    pub store: StoreId,
    pub verdict: Verdict,
}

/// What the server makes of a hello. Everything but `Speak` is followed by the end of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Both speak this version from here on.
    Speak(u16),
    NoCommonVersion,
    NoSuchStore,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct HelloBytes {
    magic: [u8; 8],
    /// Length of the whole hello, this fixed part included.
    len: U16,
    min: U16,
    max: U16,
    /// Of a welcome: 0 speak, 1 no common version, 2 no such store. Of a hello: 0.
    verdict: U16,
    store: U128,
    /// Of a welcome that says speak: the version chosen. Otherwise 0.
    version: U16,
    zero: U16,
    zero_2: [u8; 4],
    /// Bits for what may come to be optional. None is defined; unknown ones are ignored.
    features: U64,
}

const LEN: usize = size_of::<HelloBytes>();
const _: () = assert!(LEN == 48);

impl Hello {
    /// The length of the hello that begins with `start`, once that can be told; at most 1 KiB.
    pub fn expected_len(start: &[u8]) -> Result<Option<usize>, WireError> {
        let known = start.len().min(MAGIC.len());
        if start[..known] != MAGIC[..known] {
            return Err(WireError::NotHello);
        }
        let Some(len) = start.get(8..10) else {
            return Ok(None);
        };
        let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
        if (LEN..=MAX_LEN).contains(&len) {
            Ok(Some(len))
        } else {
            Err(WireError::HelloLength(len))
        }
    }

    pub fn encode(&self) -> Bytes {
        encode(self.versions, self.store, 0, 0)
    }

    /// The hello, and how many bytes it took.
    pub fn decode(bytes: &[u8]) -> Result<(Hello, usize), WireError> {
        let (raw, len) = decode(bytes)?;
        let hello = Hello {
            versions: raw.versions()?,
            store: StoreId::from_u128(raw.store.get()),
        };
        Ok((hello, len))
    }

    /// What a server that has `stores` and speaks `versions` answers.
    pub fn judge(&self, versions: VersionRange, has_store: bool) -> Welcome {
        let verdict = match versions.common(self.versions) {
            None => Verdict::NoCommonVersion,
            Some(_) if !has_store => Verdict::NoSuchStore,
            Some(version) => Verdict::Speak(version),
        };
        Welcome {
            versions,
            store: self.store,
            verdict,
        }
    }

    /// What this build says.
    pub fn to(store: StoreId) -> Hello {
        Hello {
            versions: VERSIONS,
            store,
        }
    }
}

impl Welcome {
    pub fn encode(&self) -> Bytes {
        let (verdict, version) = match self.verdict {
            Verdict::Speak(version) => (0, version),
            Verdict::NoCommonVersion => (1, 0),
            Verdict::NoSuchStore => (2, 0),
        };
        encode(self.versions, self.store, verdict, version)
    }

    pub fn decode(bytes: &[u8]) -> Result<(Welcome, usize), WireError> {
        let (raw, len) = decode(bytes)?;
        let versions = raw.versions()?;
        let verdict = match raw.verdict.get() {
            0 if (versions.min..=versions.max).contains(&raw.version.get()) => {
                Verdict::Speak(raw.version.get())
            }
            0 => return Err(WireError::Field("version")),
            1 => Verdict::NoCommonVersion,
            2 => Verdict::NoSuchStore,
            _ => return Err(WireError::Field("verdict")),
        };
        let welcome = Welcome {
            versions,
            store: StoreId::from_u128(raw.store.get()),
            verdict,
        };
        Ok((welcome, len))
    }
}

fn encode(versions: VersionRange, store: StoreId, verdict: u16, version: u16) -> Bytes {
    let raw = HelloBytes {
        magic: MAGIC,
        len: U16::new(LEN as u16),
        min: U16::new(versions.min),
        max: U16::new(versions.max),
        verdict: U16::new(verdict),
        store: U128::new(store.as_u128()),
        version: U16::new(version),
        zero: U16::ZERO,
        zero_2: [0; 4],
        features: U64::ZERO,
    };
    Bytes::copy_from_slice(raw.as_bytes())
}

fn decode(bytes: &[u8]) -> Result<(HelloBytes, usize), WireError> {
    let len = Hello::expected_len(bytes)?.ok_or(WireError::HelloLength(bytes.len()))?;
    if bytes.len() < len {
        return Err(WireError::HelloLength(bytes.len()));
    }
    let (raw, _) =
        HelloBytes::read_from_prefix(bytes).map_err(|_| WireError::HelloLength(bytes.len()))?;
    Ok((raw, len))
}

impl HelloBytes {
    fn versions(&self) -> Result<VersionRange, WireError> {
        let versions = VersionRange {
            min: self.min.get(),
            max: self.max.get(),
        };
        if versions.min == 0 || versions.min > versions.max {
            return Err(WireError::Field("versions"));
        }
        Ok(versions)
    }
}
