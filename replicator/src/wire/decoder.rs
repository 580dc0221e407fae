//! Frames out of a stream of chunks, whatever the boundaries of the chunks.

use super::{Call, Frame, WireError};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::marker::PhantomData;

/// One direction's messages: [`crate::message::Request`] or [`crate::message::Reply`].
pub trait Message: Sized + Debug + PartialEq + Clone {
    /// Bytes of the fixed header that each frame begins with.
    const HEADER: usize;

    fn encode(&self, call: Call) -> Frame;

    /// How many bytes follow `header`; an error if that cannot be true of any message.
    fn payload_len(header: &[u8]) -> Result<usize, WireError>;

    /// `header` and `payload` have the lengths that the two above say.
    fn decode(header: &[u8], payload: Bytes) -> Result<(Call, Self), WireError>;
}

/// A chunk keeps the memory of the datagram that brought it, and of others that were received with that, up to 64 KiB.
/// One that is shorter than this is copied, so that a peer that sends a byte a datagram does not make us keep a
/// datagram a byte; a copy of so little costs no more than keeping it would.
const COPIED_BELOW: usize = 1 << 10;

/// Takes chunks as they arrive and gives messages.
///
/// It holds what was pushed: nothing is allocated because a header announced it.
pub struct Decoder<M> {
    chunks: VecDeque<Bytes>,
    /// What came behind the chunks in short ones.
    tail: BytesMut,
    held: usize,
    message: PhantomData<M>,
}

impl<M: Message> Decoder<M> {
    pub fn new() -> Self {
        Decoder {
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            held: 0,
            message: PhantomData,
        }
    }

    pub fn push(&mut self, chunk: Bytes) {
        self.held += chunk.len();
        if chunk.len() < COPIED_BELOW {
            return self.tail.extend_from_slice(&chunk);
        }
        if !self.tail.is_empty() {
            self.chunks.push_back(Bytes::copy_from_slice(&self.tail));
            self.tail.clear();
        }
        self.chunks.push_back(chunk);
    }

    /// Bytes that arrived and were not given out: part of a frame, once [`Decoder::next`] gave `None`.
    pub fn held(&self) -> usize {
        self.held
    }

    /// The next message, or `None` until more has arrived. After an error the stream means nothing.
    #[allow(clippy::should_implement_trait)] // It can go on after `None`, and it can fail.
    pub fn next(&mut self) -> Result<Option<(Call, M)>, WireError> {
        // Large enough for either header; which of them it is, is known at compile time.
        let mut header = [0; 96];
        let header = &mut header[..M::HEADER];
        if !self.peek(header) {
            return Ok(None);
        }
        let payload = M::payload_len(header)?;
        if self.held < M::HEADER + payload {
            return Ok(None);
        }
        self.skip(M::HEADER);
        let payload = self.take(payload);
        M::decode(header, payload).map(Some)
    }

    /// Copies the first bytes without taking them; false if there are too few.
    fn peek(&self, into: &mut [u8]) -> bool {
        if self.held < into.len() {
            return false;
        }
        let mut done = 0;
        for piece in self.pieces(into.len()) {
            into[done..done + piece.len()].copy_from_slice(piece);
            done += piece.len();
        }
        true
    }

    /// The first bytes, of which there are as many, in the pieces in which they are held.
    fn pieces(&self, bytes: usize) -> impl Iterator<Item = &[u8]> {
        let chunks = self.chunks.iter().map(|chunk| &chunk[..]);
        let mut left = bytes;
        chunks.chain([&self.tail[..]]).map_while(move |piece| {
            let piece = &piece[..piece.len().min(left)];
            left -= piece.len();
            (!piece.is_empty()).then_some(piece)
        })
    }

    fn skip(&mut self, mut bytes: usize) {
        self.held -= bytes;
        while let Some(first) = self.chunks.front_mut()
            && bytes > 0
        {
            let now = first.len().min(bytes);
            first.advance(now);
            bytes -= now;
            if first.is_empty() {
                self.chunks.pop_front();
            }
        }
        self.tail.advance(bytes);
    }

    /// The next `bytes`, as a slice of the chunk where they came in one, otherwise copied together.
    fn take(&mut self, bytes: usize) -> Bytes {
        if bytes == 0 {
            return Bytes::new();
        }
        if let Some(first) = self.chunks.front_mut()
            && first.len() >= bytes
        {
            let taken = first.split_to(bytes);
            if first.is_empty() {
                self.chunks.pop_front();
            }
            self.held -= bytes;
            return taken;
        }
        let mut joined = BytesMut::with_capacity(bytes);
        for piece in self.pieces(bytes) {
            joined.extend_from_slice(piece);
        }
        self.skip(bytes);
        joined.freeze()
    }
}

impl<M: Message> Default for Decoder<M> {
    fn default() -> Self {
        Self::new()
    }
}
