//! The dirty log of a live migration: one bit a page of guest memory, shared with the front-end.
//!
//! Whoever writes to guest memory marks the page **after** the write: the front-end may take the log
//! and send the page at any moment, and a mark that came first would be taken before there was
//! anything to send. All marks are made on the device's own thread, so that replacing the log
//! (SET_LOG_BASE) needs no more than an assignment there before it is answered.

use super::{Refused, shared};
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use vm_memory::{MmapRegion, VolatileMemory};

/// What one bit stands for (vhost-user.rst, "Migration": always 4 KiB).
const PAGE_BYTES: u64 = 4096;

#[derive(Debug)]
pub struct DirtyLog {
    bits: MmapRegion,
    fell_short: AtomicBool,
}

impl DirtyLog {
    pub fn map(file: File, offset: u64, bytes: u64) -> Result<DirtyLog, Refused> {
        let bits = shared::map("the dirty log", file, offset, bytes)?;
        Ok(DirtyLog {
            bits,
            fell_short: AtomicBool::new(false),
        })
    }

    /// Marks the pages of `len` bytes from guest address `addr` on.
    pub fn mark(&self, addr: u64, len: u64) {
        if len == 0 {
            return;
        }
        let bits = self.bits.as_volatile_slice();
        let last = addr.saturating_add(len - 1) / PAGE_BYTES;
        for page in addr / PAGE_BYTES..=last {
            match bits.get_atomic_ref::<AtomicU8>((page / 8) as usize) {
                Ok(byte) => {
                    byte.fetch_or(1 << (page % 8), Ordering::SeqCst);
                }
                Err(_) => {
                    if !self.fell_short.swap(true, Ordering::Relaxed) {
                        tracing::error!(
                            page,
                            "the dirty log does not reach that far: the migration must not succeed"
                        );
                    }
                    return;
                }
            }
        }
    }
}
