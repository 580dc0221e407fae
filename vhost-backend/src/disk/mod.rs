//! What a device needs of a disk: submit requests, hear of their ends, start and stop being the writer.

use bytes::Bytes;
use replicator::words::{DiskName, Span};
use std::future::Future;

mod grants;
pub mod image;
mod inbox;
mod io;
mod landed;
mod landing;
#[cfg(any(test, feature = "testing"))]
mod memory;
mod near;
mod orders;
mod placement;
mod replicated;
mod status;
mod syncing;
mod waiting;

pub use io::{DiskIo, IoError};
pub use landing::Landing;
#[cfg(any(test, feature = "testing"))]
pub use memory::{Behaviour, MemDisk, Tally};
pub use near::NearStore;
pub use orders::{Orders, OrdersHandle};
pub use placement::{Answer, Placement, WithGrant};
pub use replicated::{ReplicatedDisk, Surroundings};
/// The writer's own: one word, one type from the virtqueue to the engine.
pub use replicator::writer::{Failure, RequestId};
pub use status::{DiskStatus, Phase, StatusHandle};

/// What a guest asks for. Spans are whole sectors and lie on the disk: the device has checked it.
#[derive(Debug)]
pub enum Op {
    /// Fill `into` with the bytes of `span`.
    Read {
        span: Span,
        into: Landing,
    },
    /// `data` is the one copy of the guest's buffer (rule W1), exactly `span.len` bytes.
    Write {
        span: Span,
        data: Bytes,
    },
    /// Discard or write-zeroes: the span reads as zeroes afterwards.
    Zero {
        span: Span,
    },
    Flush,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Geometry {
    pub name: DiskName,
    pub bytes: u64,
}

/// A disk as a device sees it. All calls come from the thread of the device's own event loop.
///
/// Two implementations: the replicated disk, and one in memory for the device's own tests and fuzzing.
pub trait Disk {
    fn geometry(&self) -> Geometry;

    /// Become the writer (attach, or take over where that is allowed). Returns at once; requests may
    /// be submitted and wait until it has come about.
    fn start(&mut self);

    /// Takes a request; never blocks. Its end comes out of [`Disk::completed`].
    fn submit(&mut self, id: RequestId, op: Op);

    /// How many more bytes of writes may be submitted now: what the device leaves in the virtqueue
    /// is the guest's to hold (back-pressure).
    fn room(&self) -> u64;

    /// Whether any of the requests in flight was begun: none while the disk is on its way to its first epoch.
    fn has_begun(&self) -> bool;

    /// Ends those that were not begun, as failed: who asked for them has gone, and they must not be done for whoever
    /// has the disk when it opens.
    fn give_back(&mut self);

    /// Waits for the next request to end; drives the network and the engine meanwhile. Cancel-safe.
    fn completed(&mut self) -> impl Future<Output = (RequestId, Result<(), Failure>)>;

    /// With `true`, sync all the time from now on, so that the sync at a hand-over is short (rule S4).
    fn sync_continuously(&mut self, on: bool);

    /// After the last request has completed: sync and close the epoch, so that another may attach
    /// (rule A1). Bounded in time: where the placement service cannot be reached it gives up and the
    /// epoch stays open (rule A2). [`Disk::start`] may follow.
    fn stop(&mut self) -> impl Future<Output = ()>;
}
