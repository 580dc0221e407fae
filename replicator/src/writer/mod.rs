//! The writer of a disk: numbers its writes, sends them to every member of the write set, and says
//! when a guest may hear of them. It attaches, takes over, ejects members and closes.
//!
//! All of it is one state machine without clock, I/O or randomness: [`Writer::handle`] takes an
//! event, [`Writer::poll`] gives the effects that follow from it, [`Writer::next_timeout`] says when
//! to come back. The shell around it is `vhost_backend::disk`, and the simulator.
//!
//! ```text
//!  guest        writer             near store   far store   placement
//!    | write      |                    |            |           |
//!    |----------->| lock the blocks    |            |           |
//!    |            | version (E, seq)   |            |           |
//!    |            |---- Write -------->|            |           |
//!    |            |---- Write ---------|----------->|           |
//!    |            |<--- Written -------|            |           |
//!    |            |<--- Written -------|------------|           |
//!    |<-- done ---| unlock             |            |           |
//!    |            |                    |   crashes: incarnation |
//!    | write      |                    |            |           |
//!    |----------->|---- Write -------->|            |           |
//!    |            |---- Write ---------|----------->|           |
//!    |            |<--- OtherIncarnation -----------|           |
//!    |            |--- Swap(Eject far) -------------|---------->|  W6: before it is acknowledged
//!    |            |<-- epoch E+1 -------------------|-----------|
//!    |            |---- Seal E+1 ----->|            |           |
//!    |            |<--- Sealed --------|            |           |
//!    |            |---- Write (E+1,1) >|            |           |  W7: reissued
//!    |            |<--- Written -------|            |           |
//!    |<-- done ---|                    |            |           |
//! ```

mod api;

pub use api::{
    Aim, CallId, Config, Effect, Event, Failure, GuestOp, NotStarted, Now, RequestId, Stall,
    SwapOutcome, TakeOver,
};

use crate::words::{DiskRecord, Owner};
use std::collections::VecDeque;

/// The writer of one disk in one backend. See the module for what it does.
pub struct Writer {
    config: Config,
    owner: Owner,
    record: DiskRecord,
    effects: VecDeque<Effect>,
}

impl Writer {
    /// A writer that is not started yet. `record` may be old: a start finds out.
    pub fn new(config: Config, owner: Owner, record: DiskRecord) -> Writer {
        Writer {
            config,
            owner,
            record,
            effects: VecDeque::new(),
        }
    }

    /// Takes what happened. Poll the effects afterwards.
    pub fn handle(&mut self, now: Now, event: Event) {
        let _ = (now, event, &self.owner);
    }

    /// The next thing to do, in order.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Event::Timeout`] is wanted, if nothing happens before. Ask after each event.
    pub fn next_timeout(&self) -> Option<Now> {
        None
    }

    /// How many more bytes of writes may be submitted now (back-pressure to the virtqueue).
    pub fn room(&self) -> u64 {
        self.config.max_in_flight_bytes
    }

    /// The disk's record as this writer knows it.
    pub fn record(&self) -> &DiskRecord {
        &self.record
    }
}
