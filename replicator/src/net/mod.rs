//! The network: who a peer is, and the thin shells that carry messages to it.
//!
//! [`identity`] decides whom to talk to, [`crate::wire`] what bytes mean; here are the sockets:
//! [`Server`] answers for the stores of a node, [`Links`] reaches far stores from the thread that
//! needs them, [`Puller`] brings blocks from there into the own store, [`transport`] sets up QUIC for all.

#[cfg(test)]
mod abuse_tests;
mod admission;
mod client;
mod compression;
mod congestion;
mod dialer;
pub mod identity;
mod link;
mod meter;
mod places;
mod pull;
mod server;
mod session;
mod socket;
#[cfg(test)]
mod tests;
pub mod transport;

pub(crate) use admission::digest;
pub use client::{Links, Place};
pub use link::{Link, LinkEvent};
pub use meter::LinkMeasurement;
pub use places::{Places, Taking};
pub use pull::{KeptSource, Puller, PullingStore};
pub use server::{Serve, Server};

use crate::words::StoreId;

/// Why a side ended a connection: the application's error code in QUIC's CONNECTION_CLOSE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Close {
    /// Nothing is wrong; the connection is not needed any more.
    Done = 0,
    /// What was received is not of this protocol.
    Malformed = 1,
    /// The two sides have no protocol version in common.
    Version = 2,
    /// The store that was asked for is not here.
    NoSuchStore = 3,
    /// A frame, or the reading of answers, was left half done for too long.
    Stalled = 4,
    /// The peer has as many connections as it may have.
    TooMany = 5,
}

impl Close {
    pub(crate) fn code(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(self as u32)
    }
}

/// What an operator reads on both sides when versions do not meet.
fn no_common_version(
    server: crate::wire::VersionRange,
    client: crate::wire::VersionRange,
) -> String {
    let older = if server.max < client.max {
        "the store's node"
    } else {
        "the node that asks"
    };
    format!(
        "the store's node speaks replica protocol {server}, the one that asks {client}: upgrade {older}"
    )
}

fn no_such_store(store: StoreId) -> String {
    format!("there is no store {store} on this node")
}
