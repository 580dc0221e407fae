//! A disk's record as stores keep it, beside the epoch that they were shown: if the catalog is lost, the
//! disks are known from their stores (`ukai placement rebuild`).
//!
//! Bytes: 1, then the record as JSON, compressed with zstd. Stores read in them which of two is the older one, and with
//! which epochs entries begin.

use super::{DiskRecord, RecordFault};
use crate::compression::{compress, decompress};
use crate::message::MAX_RECORD_BYTES;
use bytes::Bytes;

const FORMAT: u8 = 1;
/// What a record may grow to when it is read: the catalog takes no longer value.
const MAX_JSON_BYTES: usize = 512 << 10;

/// Why kept bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    #[error("a record of a format that this program does not know")]
    Format,
    #[error("no record: {0}")]
    Malformed(String),
    #[error("a record that cannot be true: {0}")]
    Fault(#[from] RecordFault),
}

impl DiskRecord {
    /// For stores to keep; nothing if it would be more than they keep.
    pub fn to_kept(&self) -> Bytes {
        let json = serde_json::to_vec(self).expect("a record is plain data");
        let mut kept = vec![FORMAT];
        let packed = compress(&json).expect("compressing into memory");
        kept.extend(packed);
        match kept.len() <= MAX_RECORD_BYTES && json.len() <= MAX_JSON_BYTES {
            true => kept.into(),
            false => Bytes::new(),
        }
    }

    /// Checks it: it comes from a disk or a peer.
    pub fn from_kept(kept: &[u8]) -> Result<DiskRecord, NotKept> {
        let Some((&FORMAT, packed)) = kept.split_first() else {
            return Err(NotKept::Format);
        };
        let malformed = |error: &dyn std::error::Error| NotKept::Malformed(error.to_string());
        let json = decompress(packed, MAX_JSON_BYTES).map_err(|e| malformed(&e))?;
        let record: DiskRecord = serde_json::from_slice(&json).map_err(|e| malformed(&e))?;
        record.check()?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;

    fn record(ranges: u32) -> DiskRecord {
        let extent_size = ExtentSize::new(1 << 20).unwrap();
        let epoch = Epoch::first(Generation(3));
        let range = |i: u32| MapRange {
            extents: Extents::new(Extent(i), Extent(i + 1)),
            history: History(vec![Entry::whole(
                epoch,
                [
                    StoreId::from_u128(u128::from(i % 7)),
                    StoreId::from_u128(99),
                ],
            )]),
        };
        DiskRecord {
            id: DiskId::from_u128(5),
            name: DiskName::new("web1").unwrap(),
            bytes: u64::from(ranges) << 20,
            extent_size,
            copies: 2,
            revision: Revision(4),
            epoch,
            even_below: epoch,
            state: State::Closed {
                last: Version::ZERO,
                successor: None,
            },
            map: (0..ranges).map(range).collect(),
        }
    }

    #[test]
    fn what_is_kept_is_read() {
        for ranges in [1, 100, 2000] {
            let record = record(ranges);
            let kept = record.to_kept();
            assert!(!kept.is_empty() && kept.len() <= MAX_RECORD_BYTES);
            assert_eq!(DiskRecord::from_kept(&kept).unwrap(), record);
        }
    }

    #[test]
    fn what_is_too_long_is_not_kept() {
        assert!(record(20_000).to_kept().is_empty());
    }

    #[test]
    fn bytes_that_are_no_record_are_an_error() {
        let kept = record(3).to_kept();
        for cut in 0..kept.len() {
            assert!(DiskRecord::from_kept(&kept[..cut]).is_err());
        }
        let mut untrue = record(3);
        untrue.map.pop();
        let json = serde_json::to_vec(&untrue).unwrap();
        let mut bytes = vec![FORMAT];
        bytes.extend(compress(&json).unwrap());
        assert!(matches!(
            DiskRecord::from_kept(&bytes),
            Err(NotKept::Fault(_))
        ));
        bytes[0] = 2;
        assert_eq!(DiskRecord::from_kept(&bytes), Err(NotKept::Format));
        let bomb = compress(&vec![b' '; 16 << 20]).unwrap();
        let bomb = [vec![FORMAT], bomb].concat();
        assert!(DiskRecord::from_kept(&bomb).is_err());
    }
}
