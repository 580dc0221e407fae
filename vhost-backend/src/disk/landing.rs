//! Where the bytes of a read land: guest memory, without a copy between, or a buffer of our own.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Memory that a read fills: pieces, one after another.
///
/// The pieces may be guest memory, which the guest can change at any time: nothing here makes a
/// `&[u8]` of them that outlives a call, and nothing that is decided depends on what they hold.
#[derive(Clone)]
pub struct Landing {
    pieces: Arc<[Piece]>,
    len: usize,
    /// Keeps the memory mapped for as long as a read may write there.
    _owner: Arc<dyn Any + Send + Sync>,
}

#[derive(Clone, Copy)]
struct Piece {
    start: *mut u8,
    len: usize,
}

// SAFETY: a piece is an address that stays mapped and writable while `_owner` lives; writes through
// it are plain stores of bytes that nobody else in this process reads or keeps a reference to.
unsafe impl Send for Landing {}
// SAFETY: as above.
unsafe impl Sync for Landing {}

impl Landing {
    /// # Safety
    /// Each (start, len) must stay mapped, writable and unaliased by Rust references while `owner` lives.
    pub unsafe fn new(
        pieces: impl IntoIterator<Item = (*mut u8, usize)>,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Landing {
        let pieces: Arc<[Piece]> = pieces
            .into_iter()
            .map(|(start, len)| Piece { start, len })
            .collect();
        let len = pieces.iter().map(|piece| piece.len).sum();
        Landing {
            pieces,
            len,
            _owner: owner,
        }
    }

    /// Memory of its own, zeroed, for reads that are not a guest's. [`Landing::to_vec`] gives its bytes.
    pub fn owned(len: usize) -> Landing {
        let memory = Arc::new(Owned(Box::into_raw(vec![0u8; len].into_boxed_slice())));
        let piece = (memory.0.cast::<u8>(), len);
        // SAFETY: `memory` keeps the allocation until the last landing is gone, and never refers to it.
        unsafe { Landing::new([piece], memory) }
    }

    /// A copy of what has landed. Meant for [`Landing::owned`] memory, once the read has ended.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::with_capacity(self.len);
        for (start, len) in self.pieces(0, self.len) {
            // SAFETY: the piece is mapped, `bytes` has room for all pieces, and both are apart.
            unsafe {
                let end = bytes.as_mut_ptr().add(bytes.len());
                std::ptr::copy_nonoverlapping(start, end, len);
                bytes.set_len(bytes.len() + len);
            }
        }
        bytes
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces of memory of `len` bytes from `offset` on, in order, for a vectored read.
    ///
    /// Panics beyond the end: the caller has split the request itself.
    pub fn pieces(&self, offset: usize, len: usize) -> impl Iterator<Item = (*mut u8, usize)> + '_ {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "a read stays within its landing"
        );
        let mut skip = offset;
        let mut left = len;
        self.pieces.iter().filter_map(move |piece| {
            let from = skip.min(piece.len);
            skip -= from;
            let take = (piece.len - from).min(left);
            left -= take;
            // SAFETY: `from` is within the piece.
            (take > 0).then(|| (unsafe { piece.start.add(from) }, take))
        })
    }

    pub fn write(&self, offset: usize, mut bytes: &[u8]) {
        for (start, len) in self.pieces(offset, bytes.len()) {
            let (now, rest) = bytes.split_at(len);
            // SAFETY: the piece is mapped and writable (see `new`), and `now` is our own memory.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), start, len) };
            bytes = rest;
        }
    }

    pub fn zero(&self, offset: usize, len: usize) {
        for (start, len) in self.pieces(offset, len) {
            // SAFETY: the piece is mapped and writable (see `new`).
            unsafe { std::ptr::write_bytes(start, 0, len) };
        }
    }
}

/// An allocation reached only through the pointers of landings.
struct Owned(*mut [u8]);

// SAFETY: it is nothing but an allocation to free, whatever thread does it.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: it came from `Box::into_raw`, and the last landing that pointed there is gone.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

impl fmt::Debug for Landing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Landing({} bytes)", self.len)
    }
}
