//! The network: who a peer is, and the thin shells that carry messages to it.

pub mod identity;
