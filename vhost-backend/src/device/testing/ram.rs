//! Guest memory: a memfd, mapped here as the VMM has it, and known page by page as a migration needs.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

pub const PAGE: u64 = 4096;

pub struct GuestRam {
    pub file: File,
    pub base: u64,
    mapping: MmapRegion,
    /// Pages that the guest itself has written: what KVM would tell a migration.
    written: Mutex<BTreeSet<u64>>,
}

impl GuestRam {
    /// Memory of `bytes` from guest address `base` on.
    pub fn new(base: u64, bytes: usize) -> GuestRam {
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        let file = File::from(fd);
        file.set_len(bytes as u64).expect("memory for a guest");
        let twin = file.try_clone().expect("a descriptor");
        let mapping = MmapRegion::from_file(FileOffset::new(twin, 0), bytes).expect("mapped");
        GuestRam {
            file,
            base,
            mapping,
            written: Mutex::default(),
        }
    }

    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.base,
            memory_size: self.mapping.size() as u64,
            userspace_addr: self.user_addr(self.base),
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub fn bytes(&self) -> usize {
        self.mapping.size()
    }

    pub fn user_addr(&self, addr: u64) -> u64 {
        self.mapping.as_ptr() as u64 + (addr - self.base)
    }

    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.mapping
            .as_volatile_slice()
            .write_slice(bytes, (addr - self.base) as usize)
            .expect("within memory");
        self.touch(addr, bytes.len() as u64);
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mapping
            .as_volatile_slice()
            .read_slice(&mut bytes, (addr - self.base) as usize)
            .expect("within memory");
        bytes
    }

    pub fn load(&self, addr: u64) -> u16 {
        self.atomic(addr).load(Ordering::SeqCst)
    }

    pub fn store(&self, addr: u64, value: u16) {
        self.atomic(addr).store(value, Ordering::SeqCst);
        self.touch(addr, 2);
    }

    /// The pages written since the last call, counted from guest address 0.
    pub fn take_written(&self) -> BTreeSet<u64> {
        std::mem::take(&mut self.written.lock().expect("not poisoned"))
    }

    fn atomic(&self, addr: u64) -> &AtomicU16 {
        self.mapping
            .get_atomic_ref((addr - self.base) as usize)
            .expect("within memory, aligned")
    }

    fn touch(&self, addr: u64, len: u64) {
        if len > 0 {
            let pages = addr / PAGE..=(addr + len - 1) / PAGE;
            self.written.lock().expect("not poisoned").extend(pages);
        }
    }
}
