//! What a node tells a disk about its starts and stops.

use parking_lot::Mutex;
use replicator::words::{BackendId, NewSet};
use replicator::writer::TakeOver;
use std::sync::Arc;

/// How the next start and the next stop go about it.
#[derive(Clone, Debug)]
pub struct Orders {
    /// Whether an epoch that was not closed may be ended.
    pub take_over: TakeOver,
    /// Write sets to switch to at a clean attach.
    pub sets: Vec<NewSet>,
    /// Whom a stop expects to come next.
    pub successor: Option<BackendId>,
    /// Whether a start that found the disk open elsewhere is tried again until it is stopped.
    pub persist: bool,
}

impl Default for Orders {
    fn default() -> Self {
        Orders {
            take_over: TakeOver::Own,
            sets: Vec::new(),
            successor: None,
            persist: true,
        }
    }
}

/// Changes the orders from any thread. A start that is being tried again takes the new ones.
#[derive(Clone, Default, Debug)]
pub struct OrdersHandle {
    orders: Arc<Mutex<Orders>>,
}

impl OrdersHandle {
    pub fn now(&self) -> Orders {
        self.orders.lock().clone()
    }

    pub fn change(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock());
    }
}
