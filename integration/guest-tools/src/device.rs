//! A block device opened for direct I/O, and the memory that direct I/O wants.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::Result;

/// `_IO(0x12, 119)` and `_IO(0x12, 127)` of linux/fs.h.
const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKZEROOUT: libc::c_ulong = 0x127f;

pub struct Device {
    path: String,
    file: File,
}

impl Device {
    pub fn open(path: &str) -> Result<Device> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .map_err(|error| format!("open {path}: {error}"))?;
        Ok(Device {
            path: path.to_owned(),
            file,
        })
    }

    pub fn write(&self, bytes: &Aligned, offset: u64) -> Result<()> {
        self.explain("write", offset, self.file.write_all_at(bytes, offset))
    }

    pub fn read(&self, into: &mut Aligned, offset: u64) -> Result<()> {
        let result = self.file.read_exact_at(into, offset);
        self.explain("read", offset, result)
    }

    pub fn flush(&self) -> Result<()> {
        self.explain("flush", 0, self.file.sync_data())
    }

    pub fn discard(&self, offset: u64, bytes: u64) -> Result<()> {
        self.range_ioctl("discard", BLKDISCARD, offset, bytes)
    }

    pub fn zero(&self, offset: u64, bytes: u64) -> Result<()> {
        self.range_ioctl("zero", BLKZEROOUT, offset, bytes)
    }

    fn range_ioctl(
        &self,
        what: &str,
        request: libc::c_ulong,
        offset: u64,
        bytes: u64,
    ) -> Result<()> {
        let range = [offset, bytes];
        // SAFETY: both requests read two u64 from the pointer, which outlives the call.
        let status = unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, range.as_ptr()) };
        let result = if status == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        };
        self.explain(what, offset, result)
    }

    fn explain(&self, what: &str, offset: u64, result: io::Result<()>) -> Result<()> {
        result.map_err(|error| format!("{what} of {} at {offset}: {error}", self.path))
    }
}

/// Memory aligned to a page, as direct I/O asks.
pub struct Aligned {
    pointer: *mut u8,
    layout: Layout,
}

impl Aligned {
    pub fn new(bytes: usize) -> Aligned {
        assert!(bytes > 0);
        let layout = Layout::from_size_align(bytes, 4096).expect("a small multiple of 512");
        // SAFETY: the layout's size is not zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        if pointer.is_null() {
            handle_alloc_error(layout);
        }
        Aligned { pointer, layout }
    }
}

impl Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: allocated and zeroed in `new` with this size, freed only in `drop`.
        unsafe { std::slice::from_raw_parts(self.pointer, self.layout.size()) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.layout.size()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.pointer, self.layout) }
    }
}
