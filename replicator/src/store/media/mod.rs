//! What a store stands on: a flat directory of files. Two kinds: real files, and simulated ones
//! that can crash as badly as a disk may.
//!
//! The contract that the log is built on, no more: bytes that a file was [`MediaFile::sync`]ed with
//! survive a power loss; bytes written since may survive or not, sector by sector, in any
//! combination; a name that was created, renamed or removed is durable after [`Media::sync_dir`].

mod files;
pub mod sim;

pub(super) use files::{DIRECT_ALIGN, iovecs};
pub use files::{FileMedia, OpenFile};

use std::io::{self, IoSlice};

/// Sectors are what a disk writes whole.
pub const SECTOR: usize = 512;

/// A directory.
pub trait Media: Clone + Send + Sync + 'static {
    type File: MediaFile;
    /// Holds the directory against a second process until dropped.
    type Lock: Send + Sync + 'static;

    /// What people call this place: a path.
    fn name(&self) -> String;
    /// Takes the lock without waiting; an error of kind `WouldBlock` says that another has it.
    fn lock(&self) -> io::Result<Self::Lock>;
    /// Makes a new file with `bytes` of space reserved, so that writing there cannot run out of
    /// space later. Leaves nothing behind when it fails.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Self::File>;
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Opens for reading what is on the media, past any cache (a failed sync can leave a cache that
    /// claims what the media never got).
    fn open_direct(&self, name: &str) -> io::Result<Self::File>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    fn list(&self) -> io::Result<Vec<String>>;
    fn sync_dir(&self) -> io::Result<()>;
    fn space(&self) -> io::Result<Space>;
    /// Whether what was written once can be written anew with no note in a journal of the file system.
    fn overwrites_in_place(&self) -> bool;
}

/// What the file system has, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    pub capacity: u64,
    pub free: u64,
}

/// A piece of memory that a read fills.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub start: *mut u8,
    pub len: usize,
}

pub trait MediaFile: Send + Sync + 'static {
    fn size(&self) -> io::Result<u64>;
    /// Writes all pieces, one after another from `offset` on.
    fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()>;
    /// Fills all of `into` from `offset` on; bytes beyond the file's end read as zeroes.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Fills all pieces from `offset` on, like [`MediaFile::read_at`]. With `now`, an error of kind
    /// `WouldBlock` says that it would have had to wait for the media.
    ///
    /// # Safety
    /// Every piece is mapped and writable, and nobody holds a Rust reference to it.
    unsafe fn read_pieces(&self, offset: u64, pieces: &[Piece], now: bool) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
    /// Where, from `offset` on, there may be something else than zeroes; the file's end if nowhere.
    /// Reserved space that nobody wrote to costs nothing to skip.
    fn next_data(&self, offset: u64) -> io::Result<u64>;
}

/// Whether an error says that there is no space left, which waiting or deleting may mend.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
