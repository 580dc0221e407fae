//! The configuration space: struct virtio_blk_config of virtio 1.2, 5.2.4, up to and without the
//! fields of secure erase and zones.
//!
//! ```text
//!  0 u64 capacity (sectors)   8 u32 size_max (not offered)  12 u32 seg_max   16 geometry (not offered)
//! 20 u32 blk_size            24 u8 physical_block_exp, u8 alignment_offset, u16 min_io, u32 opt_io
//! 32 u8 wce   33 unused      34 u16 num_queues
//! 36 u32 max_discard_sectors      40 u32 max_discard_seg       44 u32 discard_sector_alignment
//! 48 u32 max_write_zeroes_sectors 52 u32 max_write_zeroes_seg  56 u8 write_zeroes_may_unmap, 3 unused
//! ```

use replicator::words::{BLOCK_BYTES, SECTOR_BYTES};

pub const CONFIG_BYTES: usize = 60;
const WCE: usize = 32;

/// Data segments of one request: a ring of 128, the default of both front-ends, less header and
/// status.
pub const SEGMENTS_MAX: u32 = 126;
/// Segments of one discard or write-zeroes request.
pub const ZERO_SEGMENTS_MAX: u32 = 32;
/// Sectors of one such segment: 64 MiB, as much as an extent has by default.
pub const ZERO_SECTORS_MAX: u32 = (64 << 20) / SECTOR_BYTES as u32;

#[derive(Clone, Copy, Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
}

impl ConfigSpace {
    pub fn new(disk_bytes: u64, queues: u16) -> ConfigSpace {
        let mut bytes = [0; CONFIG_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &(disk_bytes / SECTOR_BYTES).to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &(SECTOR_BYTES as u32).to_le_bytes());
        let sectors_a_block = BLOCK_BYTES / SECTOR_BYTES;
        put(24, &[sectors_a_block.ilog2() as u8]);
        put(26, &(sectors_a_block as u16).to_le_bytes());
        put(WCE, &[1]);
        put(34, &queues.to_le_bytes());
        for at in [36, 48] {
            put(at, &ZERO_SECTORS_MAX.to_le_bytes());
            put(at + 4, &ZERO_SEGMENTS_MAX.to_le_bytes());
        }
        put(44, &(sectors_a_block as u32).to_le_bytes());
        put(56, &[1]);
        ConfigSpace { bytes }
    }

    /// Any offset and size; zeroes beyond the end.
    pub fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        (offset as usize..)
            .take(size as usize)
            .map(|at| self.bytes.get(at).copied().unwrap_or(0))
            .collect()
    }

    /// What a guest writes; only `wce` takes it. Answers whether the write cache is now on, where
    /// that was written.
    pub fn write(&mut self, offset: u32, data: &[u8]) -> Option<bool> {
        let value = WCE
            .checked_sub(offset as usize)
            .and_then(|at| data.get(at))
            .map(|&value| value != 0)?;
        self.bytes[WCE] = value.into();
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn served_at_any_offset_and_only_wce_is_writable() {
        let mut config = ConfigSpace::new(1 << 30, 4);
        let whole = config.read(0, 60);
        assert_eq!(whole[0..8], (1u64 << 21).to_le_bytes());
        assert_eq!(whole[34], 4);
        assert_eq!(config.read(32, 4), [1, 0, 4, 0]);
        assert_eq!(config.read(56, 300)[..5], [1, 0, 0, 0, 0]);
        assert_eq!(config.read(u32::MAX, 2), [0, 0]);
        assert_eq!(config.write(0, &[0xff; 32]), None);
        assert_eq!(config.write(33, &[0xff; 32]), None);
        assert_eq!(config.read(0, 60), whole);
        assert_eq!(config.write(30, &[9, 9, 0, 9]), Some(false));
        assert_eq!(config.read(28, 8), [0, 0, 0, 0, 0, 0, 4, 0]);
    }
}
