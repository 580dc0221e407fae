//! Raw images in and out of a disk. What is zero takes no space on either side.

use super::{DiskIo, IoError, Landing, RequestId};
use bytes::Bytes;
use replicator::words::{BLOCK_BYTES, SECTOR_BYTES};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// One request.
const PIECE: u64 = 1 << 20;
/// Requests under way at once: enough to cover a far store's round trip.
const AHEAD: usize = 8;

/// How far an import or export has come, in bytes of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
    /// Of those done, what was not zero and so had to be copied.
    pub copied: u64,
}

/// What the disk holds before an import.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// Nothing was ever written: zeroes of the image need no write.
    Empty,
    /// Anything: zeroes of the image are written as such, and so is the rest behind its end.
    Anything,
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("the image has {image} bytes, more than the disk's {disk}; make a larger disk")]
    TooLarge { image: u64, disk: u64 },
    #[error("the image file: {0}")]
    File(#[from] io::Error),
    #[error("the disk: {0}")]
    Disk(#[from] IoError),
}

/// Writes the raw image `from`, a regular file or a block device, to the disk and flushes it.
pub async fn import(
    io: &mut DiskIo,
    mut from: &File,
    before: Before,
    mut show: impl FnMut(Progress),
) -> Result<Progress, ImageError> {
    // Of a block device the metadata say nothing.
    let image = from.seek(SeekFrom::End(0))?;
    let total = io.len();
    if image > total {
        return Err(ImageError::TooLarge { image, disk: total });
    }
    let mut progress = Progress {
        done: 0,
        total,
        copied: 0,
    };
    let mut under_way = VecDeque::new();
    let mut zeroes = Zeroes::default();
    while progress.done < total {
        let at = progress.done;
        let (len, data) = next_piece(from, at, image, total)?;
        match data {
            Some(data) => {
                for (offset, run) in runs(&data) {
                    match run {
                        Run::Data(part) => {
                            progress.copied += part.len() as u64;
                            let id = io.begin_write(at + offset, part).await?;
                            under_way.push_back(id);
                        }
                        Run::Zeroes(len) => zeroes.add(at + offset, len),
                    }
                }
            }
            None => zeroes.add(at, len),
        }
        if before == Before::Anything {
            let ready = zeroes.take(progress.done + len == total);
            for (offset, len) in ready {
                under_way.push_back(io.begin_zero(offset, len)?);
            }
        }
        end_some(io, &mut under_way, AHEAD).await?;
        progress.done += len;
        show(progress);
    }
    end_some(io, &mut under_way, 0).await?;
    io.flush().await?;
    Ok(progress)
}

/// Writes the disk to the regular file `to` as a raw image, with holes where it is zero. What `to` held is lost.
pub async fn export(
    io: &mut DiskIo,
    to: &File,
    mut show: impl FnMut(Progress),
) -> Result<Progress, ImageError> {
    let total = io.len();
    to.set_len(0)?;
    to.set_len(total)?;
    let mut progress = Progress {
        done: 0,
        total,
        copied: 0,
    };
    let mut under_way: VecDeque<(RequestId, Landing)> = VecDeque::new();
    let mut asked = 0;
    while progress.done < total {
        while asked < total && under_way.len() < AHEAD {
            let len = PIECE.min(total - asked);
            under_way.push_back(io.begin_read(asked, len)?);
            asked += len;
        }
        let (id, landing) = under_way.pop_front().expect("not at the end yet");
        io.end(id).await?;
        let data = Bytes::from(landing.to_vec());
        for (offset, run) in runs(&data) {
            if let Run::Data(part) = run {
                to.write_all_at(&part, progress.done + offset)?;
                progress.copied += part.len() as u64;
            }
        }
        progress.done += data.len() as u64;
        show(progress);
    }
    to.sync_all()?;
    Ok(progress)
}

async fn end_some(
    io: &mut DiskIo,
    under_way: &mut VecDeque<RequestId>,
    leave: usize,
) -> Result<(), IoError> {
    while under_way.len() > leave {
        let id = under_way.pop_front().expect("more than `leave`");
        io.end(id).await?;
    }
    Ok(())
}

/// The next piece at `at`: its length, and its bytes unless it is a hole or behind the image's end.
fn next_piece(
    from: &File,
    at: u64,
    image: u64,
    total: u64,
) -> Result<(u64, Option<Bytes>), io::Error> {
    let data = if at < image {
        next_data(from, at)?
    } else {
        None
    };
    // A hole ends where data begins, in whole blocks.
    let hole_end = match data {
        Some(data) => data / BLOCK_BYTES * BLOCK_BYTES,
        None => total,
    };
    if hole_end > at {
        return Ok((hole_end - at, None));
    }
    let len = PIECE.min(total - at);
    let mut bytes = vec![0; len as usize];
    let within = len.min(image - at) as usize;
    from.read_exact_at(&mut bytes[..within], at)?;
    Ok((len, Some(bytes.into())))
}

/// Where the next data at or behind `at` is; `None`: nothing but a hole is left.
fn next_data(from: &File, at: u64) -> io::Result<Option<u64>> {
    // SAFETY: a plain system call on a descriptor that `from` keeps open.
    let found = unsafe { libc::lseek(from.as_raw_fd(), at as libc::off_t, libc::SEEK_DATA) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        // A file system that knows no holes, or a block device.
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(Some(at)),
        error => Err(error),
    }
}

enum Run {
    Data(Bytes),
    Zeroes(u64),
}

/// Neighbouring blocks that are zero, or are not, taken together.
fn runs(data: &Bytes) -> impl Iterator<Item = (u64, Run)> {
    let block = BLOCK_BYTES as usize;
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = data.get(at..(at + block).min(data.len()))?;
        if first.is_empty() {
            return None;
        }
        let zero = is_zero(first);
        let like_it = data[at..]
            .chunks(block)
            .take_while(|chunk| is_zero(chunk) == zero);
        let len: usize = like_it.map(<[u8]>::len).sum();
        let begin = at;
        at += len;
        let run = match zero {
            true => Run::Zeroes(len as u64),
            false => Run::Data(data.slice(begin..at)),
        };
        Some((begin as u64, run))
    })
}

/// Ranges of zeroes that touch become one request.
#[derive(Default)]
struct Zeroes {
    ready: Vec<(u64, u64)>,
    open: Option<(u64, u64)>,
}

impl Zeroes {
    /// As much as one request zeroes: what a guest may ask for at once.
    const MOST: u64 = 64 << 20;

    fn add(&mut self, mut offset: u64, mut len: u64) {
        debug_assert!(offset.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES));
        if let Some((begin, before)) = self.open.take() {
            if begin + before == offset {
                (offset, len) = (begin, before + len);
            } else {
                self.ready.push((begin, before));
            }
        }
        while len > Self::MOST {
            self.ready.push((offset, Self::MOST));
            offset += Self::MOST;
            len -= Self::MOST;
        }
        self.open = Some((offset, len));
    }

    /// What nothing can be added to any more; all of it at the end.
    fn take(&mut self, all: bool) -> Vec<(u64, u64)> {
        if all {
            self.ready.extend(self.open.take());
        }
        std::mem::take(&mut self.ready)
    }
}
