//! The replicator: what a disk's blocks are, how a store keeps them and how a writer replicates them.
//!
//! Read it in the order in which a write travels:
//!
//! 1. [`words`]: ids, epochs, versions, blocks, and the disk record with its history.
//! 2. [`message`]: what a writer asks of a store, and what a store answers.
//! 3. [`writer`]: the engine that numbers writes, sends them and decides when one may be acknowledged.
//! 4. [`store`]: the log that keeps blocks: append, index, checkpoint, recovery, cleaner.
//! 5. [`wire`]: the messages as bytes.
//! 6. [`net`]: QUIC and TLS, the thin shells that carry those bytes.
//!
//! Decisions (1 to 3, and all of the store but its files) have no clock, no I/O and no randomness of
//! their own; the simulator in `integration` runs exactly this code.

mod compression;
pub mod message;
pub mod net;
pub mod packed;
pub mod plant;
pub mod store;
pub mod wire;
pub mod words;
pub mod writer;
