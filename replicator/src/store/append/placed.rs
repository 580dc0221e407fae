//! Frames that have their places, and how they are written.
//!
//! Headers stand in pages, each page's blocks behind it. Blocks are written first and their headers then: a process that dies in
//! between leaves no header without its block. Only where a page has no blocks yet, both go out as one write, if a header that
//! is left without its block by such a death is known by that: see [`Placed::tells_torn`] and rule S5 in `walk.rs`.
//!
//! ```text
//!  +---------------------------+---------+---------+-----+---------+-----------------------+---------+---
//!  | Mark | h 1 | h 2 | .. | h 63 | block 1 | block 2 | ... | block 63| Mark | h 1 | Zeroes | h 2 | block 1 | ...
//!  +---------------------------+---------+---------+-----+---------+-----------------------+---------+---
//!  a page                      a page each
//! ```

use crate::store::frame::{ALIGN, HEADER_BYTES, RawHeader};
use crate::store::media::MediaFile;
use crate::store::place::{PAGE, Place};
use smallvec::SmallVec;
use std::io::{self, IoSlice};
use zerocopy::IntoBytes;

/// In the order of their places. `P`: payloads.
pub struct Placed<P> {
    headers: Vec<RawHeader>,
    frames: Vec<(Place, P)>,
}

impl<P> Default for Placed<P> {
    fn default() -> Self {
        Placed {
            headers: Vec::new(),
            frames: Vec::new(),
        }
    }
}

impl<P> Placed<P> {
    pub fn push(&mut self, header: RawHeader, place: Place, payload: P) {
        self.headers.push(header);
        self.frames.push((place, payload));
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn clear(&mut self) {
        self.headers.clear();
        self.frames.clear();
    }
}

impl<P: AsRef<[u8]>> Placed<P> {
    /// Writes all of them to the file of their segment.
    pub fn write_to(&self, file: &impl MediaFile) -> io::Result<()> {
        let mut writes = Writes::new(file);
        let page = |at: usize| self.frames[at].0.offset() / PAGE;
        let mut from = 0;
        while from < self.frames.len() {
            let behind = (from..self.frames.len()).find(|at| page(*at) > page(from));
            let to = behind.unwrap_or(self.frames.len());
            self.write_page(from, to, &mut writes)?;
            from = to;
        }
        writes.flush()
    }

    /// Those whose headers stand in one page.
    fn write_page<'a, F: MediaFile>(
        &'a self,
        from: usize,
        to: usize,
        writes: &mut Writes<'a, F>,
    ) -> io::Result<()> {
        let blocks = || {
            let frames = self.frames[from..to].iter();
            frames.filter(|(place, _)| place.apart() > 0)
        };
        match blocks().next().map(|(place, _)| place.apart()) {
            None => {
                self.write_headers(from, to, writes)?;
            }
            Some(1) if self.tells_torn(from, to) => {
                let end = self.write_headers(from, to, writes)?;
                let rest = end.next_multiple_of(PAGE) - end;
                writes.add(end, &ZEROES[..rest as usize])?;
                for (place, block) in blocks() {
                    writes.add(place.payload(), block.as_ref())?;
                }
            }
            Some(_) => {
                for (place, block) in blocks() {
                    writes.add(place.payload(), block.as_ref())?;
                }
                self.write_headers(from, to, writes)?;
            }
        }
        Ok(())
    }

    /// Whether each of these from the first block on is a block that does not match its checksum where only the header was
    /// written and zeroes are in its place: not a frame without a block, nor a block of zeroes, nor one that was damaged before.
    fn tells_torn(&self, from: usize, to: usize) -> bool {
        let frames = self.headers[from..to].iter().zip(&self.frames[from..to]);
        let mut frames = frames.skip_while(|(_, (place, _))| place.apart() == 0);
        frames.all(|(header, (place, block))| {
            let whole = place.apart() > 0 && !header.is_damaged();
            whole && block.as_ref().iter().any(|byte| *byte != 0)
        })
    }

    /// With the payloads that do not stand apart. Returns where they end.
    fn write_headers<'a, F: MediaFile>(
        &'a self,
        mut from: usize,
        to: usize,
        writes: &mut Writes<'a, F>,
    ) -> io::Result<u64> {
        let mut end = 0;
        let has_payload =
            |(place, payload): &(Place, P)| place.apart() == 0 && !payload.as_ref().is_empty();
        while from < to {
            // As many headers as follow one another.
            let first = self.frames[from..to].iter().position(has_payload);
            let behind = first.map_or(to, |first| from + first + 1);
            let place = self.frames[from].0;
            let headers = self.headers[from..behind].as_bytes();
            writes.add(place.offset(), headers)?;
            end = place.offset() + headers.len() as u64;
            if first.is_some() {
                let payload = self.frames[behind - 1].1.as_ref();
                writes.add(end, payload)?;
                end += payload.len() as u64;
                let padded = end.next_multiple_of(ALIGN);
                writes.add(end, &ZEROES[..(padded - end) as usize])?;
                end = padded;
            }
            from = behind;
        }
        Ok(end)
    }
}

static ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];
const _: () = assert!(size_of::<RawHeader>() as u64 == HEADER_BYTES);

/// Pieces that follow one another in the file become one write.
struct Writes<'a, F: MediaFile> {
    file: &'a F,
    from: u64,
    end: u64,
    pieces: SmallVec<[IoSlice<'a>; 8]>,
}

impl<'a, F: MediaFile> Writes<'a, F> {
    fn new(file: &'a F) -> Self {
        Writes {
            file,
            from: 0,
            end: 0,
            pieces: SmallVec::new(),
        }
    }

    fn add(&mut self, at: u64, piece: &'a [u8]) -> io::Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        if at != self.end {
            self.flush()?;
            (self.from, self.end) = (at, at);
        }
        self.pieces.push(IoSlice::new(piece));
        self.end += piece.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let written = self.file.write_at(self.from, &self.pieces);
        self.pieces.clear();
        written
    }
}
