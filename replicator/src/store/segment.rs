//! Segments: the files that the log consists of, and the handles on those that are in use.

use super::frame::ALIGN;
use super::media::{Media, MediaFile};
use super::place::{MAX_UNITS, PAGE};
use super::sums::Sums;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// What is known of one segment of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Size of its file.
    pub bytes: u64,
    /// Where its last frame ends (a block that stands apart is behind that); as long as frames are appended, its size.
    pub end: u64,
}

impl Segment {
    pub fn new(bytes: u64) -> Segment {
        Segment { bytes, end: bytes }
    }
}

pub fn file_name(segment: u32) -> String {
    format!("segment.{segment:08x}")
}

pub fn parse_name(name: &str) -> Option<u32> {
    let id = name.strip_prefix("segment.")?;
    let id = u32::from_str_radix(id, 16).ok()?;
    (file_name(id) == name).then_some(id)
}

/// The checksums of so much of the log are kept: 32 MiB of them.
const MOST_SUMMED: u64 = 32 << 30;

/// Open segments, the least recently used closed when there are too many.
pub struct Files<M: Media> {
    media: M,
    most: usize,
    open: BTreeMap<u32, Open<M>>,
    clock: u64,
    /// For segments that are read for the first time: never knows any.
    no_sums: Arc<Sums>,
}

struct Open<M: Media> {
    file: Arc<M::File>,
    /// Made when somebody asks.
    sums: Option<Arc<Sums>>,
    used: u64,
}

impl<M: Media> Files<M> {
    pub fn new(media: M, most: usize) -> Self {
        Files {
            media,
            most: most.max(1),
            open: BTreeMap::new(),
            clock: 0,
            no_sums: Arc::new(Sums::new(0)),
        }
    }

    pub fn media(&self) -> &M {
        &self.media
    }

    pub fn of(&mut self, segment: u32) -> io::Result<Arc<M::File>> {
        Ok(self.opened(segment)?.file.clone())
    }

    /// The same, with the checksums that are known of the segment's blocks. None are kept of one that had to be opened first:
    /// of a large store, read at random, it would be closed again before they are of use.
    pub fn for_reads(&mut self, segment: u32) -> io::Result<(Arc<M::File>, Arc<Sums>)> {
        match self.open.contains_key(&segment) {
            true => self.with_sums(segment),
            false => Ok((self.of(segment)?, self.no_sums.clone())),
        }
    }

    /// For the log's own segment: those of all that is appended are kept.
    pub fn with_sums(&mut self, segment: u32) -> io::Result<(Arc<M::File>, Arc<Sums>)> {
        let open = self.opened(segment)?;
        let sums = match &open.sums {
            Some(sums) => sums.clone(),
            None => {
                let bytes = open.file.size()?.min(MAX_UNITS * ALIGN);
                let sums = open.sums.insert(Arc::new(Sums::new(bytes))).clone();
                let file = open.file.clone();
                self.forget_sums((MOST_SUMMED / bytes.max(1)).max(1) as usize);
                return Ok((file, sums));
            }
        };
        Ok((open.file.clone(), sums))
    }

    /// Keeps those of so many segments, the ones that were used last.
    fn forget_sums(&mut self, most: usize) {
        let with_sums = || self.open.values().filter(|open| open.sums.is_some());
        if with_sums().count() <= most {
            return;
        }
        let oldest = with_sums().map(|open| open.used).min();
        let mut all = self.open.values_mut();
        if let Some(open) = all.find(|open| open.sums.is_some() && Some(open.used) == oldest) {
            open.sums = None;
        }
    }

    fn opened(&mut self, segment: u32) -> io::Result<&mut Open<M>> {
        self.clock += 1;
        if !self.open.contains_key(&segment) {
            let file = Arc::new(self.media.open(&file_name(segment))?);
            self.insert(segment, file);
        }
        let open = self.open.get_mut(&segment).expect("just opened");
        open.used = self.clock;
        Ok(open)
    }

    pub fn insert(&mut self, segment: u32, file: Arc<M::File>) {
        if self.open.len() >= self.most {
            let oldest = self.open.iter().min_by_key(|(_, open)| open.used);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.open.remove(&oldest);
            }
        }
        let open = Open {
            file,
            sums: None,
            used: self.clock,
        };
        self.open.insert(segment, open);
    }

    pub fn forget(&mut self, segment: u32) {
        self.open.remove(&segment);
    }
}

/// Reads a file through a window, so that walking frames costs few calls and little memory.
pub struct Window<F: MediaFile> {
    file: F,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
    /// All that was ever read.
    pub read: u64,
}

const WINDOW_BYTES: u64 = 256 << 10;

impl<F: MediaFile> Window<F> {
    pub fn new(file: F) -> io::Result<Self> {
        let len = file.size()?;
        Ok(Window {
            file,
            len,
            start: 0,
            bytes: Vec::new(),
            read: 0,
        })
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// See [`MediaFile::next_data`].
    pub fn next_data(&self, offset: u64) -> io::Result<u64> {
        self.file.next_data(offset)
    }

    /// `count` bytes from `offset` on, at most a window; None beyond the file's end.
    pub fn get(&mut self, offset: u64, count: u64) -> io::Result<Option<&[u8]>> {
        self.get_beside(offset, offset, count)
    }

    /// The same; if they have to be read, with what stands between `first` and them.
    pub fn get_beside(&mut self, first: u64, offset: u64, count: u64) -> io::Result<Option<&[u8]>> {
        let start = first / PAGE * PAGE;
        assert!(
            start <= offset && offset + count <= start + WINDOW_BYTES + PAGE,
            "a frame fits into a window"
        );
        let Some(end) = offset.checked_add(count).filter(|end| *end <= self.len) else {
            return Ok(None);
        };
        if offset < self.start || end > self.start + self.bytes.len() as u64 {
            let bytes = WINDOW_BYTES.max(end - start).min(self.len - start);
            self.bytes.resize(bytes as usize, 0);
            self.file.read_at(start, &mut self.bytes)?;
            self.start = start;
            self.read += bytes;
        }
        let from = (offset - self.start) as usize;
        Ok(Some(&self.bytes[from..from + count as usize]))
    }
}
