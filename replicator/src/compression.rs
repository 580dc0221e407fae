//! zstd (RFC 8878) with contexts that each thread keeps: making one takes longer than packing a few blocks.

use std::cell::RefCell;
use std::io;
use zstd::bulk::{Compressor, Decompressor};

/// zstd's fastest regular level: links that are worth it are slower than this.
const LEVEL: i32 = 1;

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// # Errors
///
/// If there is no memory for it.
pub fn compress(data: &[u8]) -> io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => compressor,
            None => kept.insert(Compressor::new(LEVEL)?),
        };
        compressor.compress(data)
    })
}

/// What was compressed, which takes at most so many bytes; no more is allocated.
///
/// # Errors
///
/// If it is no zstd frame, or of more bytes.
pub fn decompress(packed: &[u8], most: usize) -> io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(Decompressor::new()?),
        };
        decompressor.decompress(packed, most)
    })
}
