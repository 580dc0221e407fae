//! What a node tells a disk about its starts and stops, and about who shall hold it.

use super::inbox::Inbox;
use parking_lot::Mutex;
use replicator::words::BackendId;
use replicator::writer::{self, Event, TakeOver};
use std::sync::Arc;

/// How the next start and the next stop go about it, and what the placement service wants meanwhile.
#[derive(Clone, Debug)]
pub struct Orders {
    /// Whether an epoch that was not closed may be ended.
    pub take_over: TakeOver,
    /// Members, filling and copies ahead: used at an attach, and carried out while the disk is open.
    pub placement: writer::Orders,
    /// Whom a stop expects to come next.
    pub successor: Option<BackendId>,
    /// Whether a start that found the disk open elsewhere is tried again until it is stopped.
    pub persist: bool,
}

impl Default for Orders {
    fn default() -> Self {
        Orders {
            take_over: TakeOver::Own,
            placement: writer::Orders::default(),
            successor: None,
            persist: true,
        }
    }
}

/// Changes the orders from any thread. A start that is being tried again takes the new ones; a disk
/// that is open hears of what the placement service wants at once.
#[derive(Clone)]
pub struct OrdersHandle {
    orders: Arc<Mutex<Orders>>,
    inbox: Inbox,
}

impl OrdersHandle {
    pub(super) fn new(inbox: Inbox) -> OrdersHandle {
        OrdersHandle {
            orders: Arc::default(),
            inbox,
        }
    }

    pub fn now(&self) -> Orders {
        self.orders.lock().clone()
    }

    /// Sync all the time from now on: the disk is to stop soon (rule S4).
    pub fn sync_continuously(&self) {
        self.inbox.push(Event::SyncContinuously(true));
    }

    pub fn change(&self, change: impl FnOnce(&mut Orders)) {
        // Under the lock, so that the last change is the last to arrive.
        let mut orders = self.orders.lock();
        let before = orders.placement.clone();
        change(&mut orders);
        if orders.placement != before {
            self.inbox.push(Event::Orders(orders.placement.clone()));
        }
    }
}

impl std::fmt::Debug for OrdersHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.now().fmt(f)
    }
}
