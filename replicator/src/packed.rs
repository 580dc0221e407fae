//! Blocks on their way from store to store, compressed where that makes them smaller.
//!
//! The store that is asked compresses (fast: level 1), the one that pulls decompresses and then
//! checks each block's own checksum. Whether to ask for it is decided by the one that pulls.

use crate::compression::{compress, decompress};
use bytes::Bytes;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Packed {
    Plain(Bytes),
    /// One zstd frame.
    Zstd(Bytes),
}

/// What arrived does not decompress to as many bytes as it must.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("compressed data that does not decompress to what it should be")]
pub struct Unpackable;

impl Packed {
    /// `data` compressed, if that is smaller.
    pub fn smaller(data: Bytes) -> Packed {
        match compress(&data) {
            Ok(packed) if packed.len() < data.len() => Packed::Zstd(packed.into()),
            _ => Packed::Plain(data),
        }
    }

    /// How many bytes it takes on the wire.
    pub fn len(&self) -> usize {
        match self {
            Packed::Plain(bytes) | Packed::Zstd(bytes) => bytes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The data, which must have exactly this length: nothing larger is ever allocated.
    pub fn unpack(&self, len: usize) -> Result<Bytes, Unpackable> {
        let data = match self {
            Packed::Plain(bytes) => bytes.clone(),
            Packed::Zstd(bytes) => decompress(bytes, len).map_err(|_| Unpackable)?.into(),
        };
        if data.len() == len {
            Ok(data)
        } else {
            Err(Unpackable)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_get_smaller_stays_as_it_is() {
        let text = Bytes::from(b"the same again; ".repeat(256));
        let packed = Packed::smaller(text.clone());
        assert!(matches!(packed, Packed::Zstd(_)) && packed.len() < 200);
        assert_eq!(packed.unpack(text.len()), Ok(text));
        let mut state = 1u64;
        let noise: Bytes = (0..4096)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        assert_eq!(Packed::smaller(noise.clone()), Packed::Plain(noise));
    }

    #[test]
    fn a_frame_that_would_become_larger_than_announced_is_refused() {
        let bomb = compress(&vec![0; 64 << 20]).unwrap();
        assert!(bomb.len() < 64 << 10);
        assert_eq!(Packed::Zstd(bomb.into()).unpack(1 << 20), Err(Unpackable));
        assert_eq!(
            Packed::Zstd(Bytes::from_static(b"nonsense")).unpack(9),
            Err(Unpackable)
        );
        assert_eq!(
            Packed::Plain(Bytes::from_static(b"12345")).unpack(4),
            Err(Unpackable)
        );
    }
}
