//! Real files in one directory (ext4, XFS, or anything that keeps fsync's promise).

use super::{Media, MediaFile, Piece, Space};
use rustix::fs::{self, AtFlags, FallocateFlags, FlockOperation, Mode, OFlags};
use smallvec::SmallVec;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// How many pieces one vectored call takes (IOV_MAX of Linux).
const MAX_PIECES: usize = 1024;
/// What a direct read must be aligned to on any disk that we know.
pub(in crate::store) const DIRECT_ALIGN: usize = 4096;
/// On x86-64, aarch64 and all younger architectures (Linux, `asm-generic/unistd.h`); not in libc for them yet.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of Linux.
#[repr(C)]
struct CacheRange {
    offset: u64,
    bytes: u64,
}

/// `struct cachestat` of Linux: numbers of pages.
#[repr(C)]
#[derive(Default)]
struct CachedPages {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// A directory of real files.
#[derive(Clone, Debug)]
pub struct FileMedia {
    dir: Arc<OwnedFd>,
    path: Arc<Path>,
}

impl FileMedia {
    /// The directory must exist.
    pub fn new(path: &Path) -> io::Result<FileMedia> {
        let dir = fs::open(
            path,
            OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(FileMedia {
            dir: Arc::new(dir),
            path: PathBuf::from(path).into(),
        })
    }

    fn open_with(&self, name: &str, flags: OFlags) -> io::Result<OpenFile> {
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
        let fd = fs::openat(&*self.dir, name, flags | OFlags::CLOEXEC, mode)?;
        Ok(OpenFile {
            file: File::from(fd),
            direct: flags.contains(OFlags::DIRECT),
            past_cache: OnceLock::new(),
        })
    }
}

impl Media for FileMedia {
    type File = OpenFile;
    type Lock = OwnedFd;

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn lock(&self) -> io::Result<OwnedFd> {
        let file = self.open_with("lock", OFlags::RDWR | OFlags::CREATE)?;
        fs::flock(&file.file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(file.file.into())
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<OpenFile> {
        let file = self.open_with(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        if bytes > 0
            && let Err(error) = fs::fallocate(&file.file, FallocateFlags::empty(), 0, bytes)
        {
            fs::unlinkat(&*self.dir, name, AtFlags::empty())?;
            return Err(error.into());
        }
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<OpenFile> {
        match self.open_with(name, OFlags::RDWR) {
            // To look at a store one need not be able to write to it.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                self.open_with(name, OFlags::RDONLY)
            }
            other => other,
        }
    }

    fn open_direct(&self, name: &str) -> io::Result<OpenFile> {
        match self.open_with(name, OFlags::RDONLY | OFlags::DIRECT) {
            Ok(file) => Ok(file),
            // A file system without direct I/O (tmpfs of older kernels): drop what is cached instead.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let file = self.open_with(name, OFlags::RDONLY)?;
                fs::fadvise(&file.file, 0, None, fs::Advice::DontNeed)?;
                Ok(file)
            }
            Err(error) => Err(error),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(fs::renameat(&*self.dir, from, &*self.dir, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&*self.dir, name, AtFlags::empty())?)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(fs::fsync(&*self.dir)?)
    }

    fn space(&self) -> io::Result<Space> {
        let stat = fs::fstatvfs(&*self.dir)?;
        Ok(Space {
            capacity: stat.f_blocks * stat.f_frsize,
            free: stat.f_bavail * stat.f_frsize,
        })
    }

    fn overwrites_in_place(&self) -> bool {
        // Others may put each write in a new place.
        is_known(&*self.dir)
    }
}

/// An open file of a [`FileMedia`].
#[derive(Debug)]
pub struct OpenFile {
    file: File,
    direct: bool,
    /// See [`OpenFile::past_cache`].
    past_cache: OnceLock<Option<File>>,
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl MediaFile for OpenFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn write_at(&self, mut offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        for some in pieces.chunks(MAX_PIECES) {
            let total: usize = some.iter().map(|piece| piece.len()).sum();
            let mut done = retry(|| Ok(rustix::io::pwritev(&self.file, some, offset)?))?;
            // A short write of a regular file says that the next byte has a reason to fail: ask for it.
            while done < total {
                let (rest, skip) = behind(some, done);
                let now = offset + done as u64;
                done += retry(|| Ok(rustix::io::pwrite(&self.file, &rest[skip..], now)?))?;
            }
            offset += total as u64;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if self.direct {
            return self.read_direct(offset, into);
        }
        let piece = Piece {
            start: into.as_mut_ptr(),
            len: into.len(),
        };
        // SAFETY: `into` is ours and writable for the whole call.
        unsafe { self.read_pieces(offset, &[piece], false) }
    }

    unsafe fn read_pieces(&self, mut offset: u64, pieces: &[Piece], now: bool) -> io::Result<()> {
        let flags = if now { libc::RWF_NOWAIT } else { 0 };
        for some in pieces.chunks(MAX_PIECES) {
            let mut some: SmallVec<[Piece; 8]> = SmallVec::from_slice(some);
            let mut left = &mut some[..];
            while !left.is_empty() {
                // SAFETY: the caller promises that the pieces are writable.
                let done = unsafe { preadv2(&self.file, left, offset, flags) };
                let done = match done {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    // Some file systems know no such flag: then every read may have to wait.
                    Err(error) if now && error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    other => other?,
                };
                if done == 0 {
                    for piece in left.iter() {
                        // SAFETY: as above.
                        unsafe { std::ptr::write_bytes(piece.start, 0, piece.len) };
                    }
                    break;
                }
                offset += done as u64;
                left = advance(left, done);
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fs::fdatasync(&self.file)?)
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        match fs::seek(&self.file, fs::SeekFrom::Data(offset)) {
            Ok(at) => Ok(at.max(offset)),
            Err(rustix::io::Errno::NXIO) => self.size(),
            // A file system that cannot tell: then everything may be data.
            Err(_) => Ok(offset),
        }
    }
}

impl OpenFile {
    /// The same file for reads past the page cache, also where its name is gone by now; open from the first time on that
    /// this is asked. None where there are no such reads, and where the kernel may not tell what is cached: on overlayfs,
    /// whose cache is that of another file, and on others that are not known.
    pub(in crate::store) fn past_cache(&self) -> Option<BorrowedFd<'_>> {
        let open = || {
            let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
            let known = is_known(&self.file);
            let file = known.then(|| fs::open(path, flags, Mode::empty()).ok())??;
            takes_direct_reads(&file).then_some(file)
        };
        let file = self.past_cache.get_or_init(|| open().map(File::from));
        file.as_ref().map(AsFd::as_fd)
    }

    /// Whether these bytes would have to come from the media: no more than half of them is in the page cache, and nothing
    /// that the media are still to get. No, where the kernel cannot tell (before Linux 6.5).
    pub(in crate::store) fn is_cold(&self, offset: u64, bytes: u64) -> bool {
        let range = CacheRange { offset, bytes };
        let mut pages = CachedPages::default();
        // SAFETY: both structures are laid out as cachestat(2) has them, and outlive the call.
        let result = unsafe {
            libc::syscall(
                SYS_CACHESTAT,
                self.file.as_raw_fd(),
                &raw const range,
                &raw mut pages,
                0,
            )
        };
        let page = rustix::param::page_size() as u64;
        let all = (offset + bytes).div_ceil(page) - offset / page;
        result == 0 && pages.cached * 2 <= all && pages.dirty + pages.writeback == 0
    }

    /// Reads whole aligned stretches into aligned memory and copies out what was asked for.
    fn read_direct(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let align = DIRECT_ALIGN as u64;
        let start = offset / align * align;
        let bytes = ((offset + into.len() as u64).next_multiple_of(align) - start) as usize;
        let mut buffer = vec![0u8; bytes + DIRECT_ALIGN];
        let skew = buffer.as_ptr().align_offset(DIRECT_ALIGN);
        let aligned = &mut buffer[skew..skew + bytes];
        let mut done = 0;
        while done < bytes {
            let at = start + done as u64;
            let count = retry(|| Ok(rustix::io::pread(&self.file, &mut aligned[done..], at)?))?;
            // Beyond the end; or an end that is not aligned, which no later read could be either.
            if count == 0 || count % DIRECT_ALIGN != 0 {
                break;
            }
            done += count;
        }
        let skip = (offset - start) as usize;
        into.copy_from_slice(&aligned[skip..skip + into.len()]);
        Ok(())
    }
}

/// Whether direct reads with our alignment will do, as far as the kernel says (since Linux 6.1): not of a file that is
/// encrypted or journalled, nor on a disk with larger sectors.
fn takes_direct_reads(file: impl AsFd) -> bool {
    let wanted = fs::StatxFlags::DIOALIGN;
    let told = fs::statx(file, "", AtFlags::EMPTY_PATH, wanted).ok();
    told.is_none_or(|told| {
        let (offset, memory) = (told.stx_dio_offset_align, told.stx_dio_mem_align);
        let fits = |align: u32| align > 0 && DIRECT_ALIGN.is_multiple_of(align as usize);
        told.stx_mask & wanted.bits() == 0 || (fits(offset) && fits(memory))
    })
}

/// Whether it is on a file system that we know well.
fn is_known(file: impl AsFd) -> bool {
    let known = [libc::EXT4_SUPER_MAGIC as u64, libc::XFS_SUPER_MAGIC as u64];
    fs::fstatfs(file).is_ok_and(|stat| known.contains(&(stat.f_type as u64)))
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => return result,
        }
    }
}

/// The piece that holds byte `done` of all pieces, and where in it.
fn behind<'a>(pieces: &'a [IoSlice<'_>], mut done: usize) -> (&'a [u8], usize) {
    for piece in pieces {
        if done < piece.len() {
            return (piece, done);
        }
        done -= piece.len();
    }
    (&[], 0)
}

pub(in crate::store) fn iovecs(pieces: &[Piece]) -> Vec<libc::iovec> {
    pieces.iter().copied().map(iovec).collect()
}

fn iovec(piece: Piece) -> libc::iovec {
    libc::iovec {
        iov_base: piece.start.cast(),
        iov_len: piece.len,
    }
}

/// Drops the first `done` bytes of `pieces`.
fn advance(mut pieces: &mut [Piece], mut done: usize) -> &mut [Piece] {
    while let Some(first) = pieces.first_mut() {
        if done < first.len {
            // SAFETY: `done` lies within the piece.
            first.start = unsafe { first.start.add(done) };
            first.len -= done;
            break;
        }
        done -= first.len;
        pieces = &mut pieces[1..];
    }
    pieces
}

/// # Safety
/// The pieces are mapped and writable.
unsafe fn preadv2(
    file: &File,
    pieces: &[Piece],
    offset: u64,
    flags: libc::c_int,
) -> io::Result<usize> {
    let iovecs: SmallVec<[libc::iovec; 8]> = pieces.iter().copied().map(iovec).collect();
    let (fd, count) = (file.as_fd().as_raw_fd(), iovecs.len() as libc::c_int);
    // SAFETY: the descriptor is open, the array has `count` entries, the memory is the caller's promise.
    let done = unsafe { libc::preadv2(fd, iovecs.as_ptr(), count, offset as libc::off_t, flags) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(done as usize)
    }
}
