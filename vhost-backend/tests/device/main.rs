//! The whole device over its real socket: a small VMM in front, a disk in memory behind.

mod control;
mod hostile;
mod migration;
mod requests;
mod restart;

use tempfile::TempDir;
use vhost_backend::device::Options;
use vhost_backend::device::testing::Server;
use vhost_backend::disk::MemDisk;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;
pub const DISK_BYTES: u64 = 8 << 20;

/// A served disk.
pub struct Bench {
    pub disk: MemDisk,
    pub server: Server,
    pub options: Options,
    _dir: TempDir,
}

pub fn bench() -> Bench {
    bench_with(|_| {})
}

pub fn bench_with(change: impl FnOnce(&mut Options)) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(dir.path().join("disk.sock"));
    change(&mut options);
    let disk = MemDisk::new("web1", DISK_BYTES);
    Bench {
        server: Server::start(disk.clone(), options.clone()),
        disk,
        options,
        _dir: dir,
    }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed)
        .collect()
}
