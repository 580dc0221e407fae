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

/// Takes chunks as they arrive and gives messages.
///
/// It holds at most what was pushed: nothing is allocated because a header announced it.
pub struct Decoder<M> {
    chunks: VecDeque<Bytes>,
    held: usize,
    message: PhantomData<M>,
}

impl<M: Message> Decoder<M> {
    pub fn new() -> Self {
        Decoder {
            chunks: VecDeque::new(),
            held: 0,
            message: PhantomData,
        }
    }

    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.held += chunk.len();
            self.chunks.push_back(chunk);
        }
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
        for chunk in &self.chunks {
            let now = chunk.len().min(into.len() - done);
            into[done..done + now].copy_from_slice(&chunk[..now]);
            done += now;
            if done == into.len() {
                break;
            }
        }
        true
    }

    fn skip(&mut self, mut bytes: usize) {
        self.held -= bytes;
        while bytes > 0 {
            let first = self.chunks.front_mut().expect("as many bytes are held");
            let now = first.len().min(bytes);
            first.advance(now);
            bytes -= now;
            if first.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    /// The next `bytes`, as a slice of the chunk where they came in one, otherwise copied together.
    fn take(&mut self, bytes: usize) -> Bytes {
        if bytes == 0 {
            return Bytes::new();
        }
        let first = self.chunks.front_mut().expect("as many bytes are held");
        if first.len() >= bytes {
            let taken = first.split_to(bytes);
            if first.is_empty() {
                self.chunks.pop_front();
            }
            self.held -= bytes;
            return taken;
        }
        let mut joined = BytesMut::with_capacity(bytes);
        for chunk in &self.chunks {
            let now = chunk.len().min(bytes - joined.len());
            joined.extend_from_slice(&chunk[..now]);
            if joined.len() == bytes {
                break;
            }
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
