//! What is under way: parcels in order, each with the moment when it arrives.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::{POLL, Shared, locked};

/// More than any rate and delay of a test keep under way; memory is what it protects.
const MAX_BYTES: usize = 64 << 20;
/// Whoever sleeps until something is due sleeps so much longer, and takes more with it: a wake-up for each
/// datagram would take the time of those who are measured.
const TICK: Duration = Duration::from_micros(500);

pub struct Lane<P> {
    queue: Mutex<Queue<P>>,
    changed: Condvar,
}

struct Queue<P> {
    parcels: VecDeque<(Instant, usize, P)>,
    bytes: usize,
}

impl<P> Default for Lane<P> {
    fn default() -> Lane<P> {
        let queue = Queue {
            parcels: VecDeque::new(),
            bytes: 0,
        };
        Lane {
            queue: Mutex::new(queue),
            changed: Condvar::new(),
        }
    }
}

impl<P> Lane<P> {
    /// False: the lane is full, and the parcel is gone.
    pub fn offer(&self, due: Instant, bytes: usize, parcel: P) -> bool {
        let mut queue = locked(&self.queue);
        if queue.bytes + bytes > MAX_BYTES {
            return false;
        }
        queue.bytes += bytes;
        queue.parcels.push_back((due, bytes, parcel));
        // The taker sleeps until the first parcel's time: it need not hear of the others.
        if queue.parcels.len() == 1 {
            self.changed.notify_all();
        }
        true
    }

    /// Waits while the lane is full; false: the link is no more.
    pub fn put(&self, link: &Shared, due: Instant, bytes: usize, parcel: P) -> bool {
        let mut queue = locked(&self.queue);
        while queue.bytes + bytes > MAX_BYTES {
            if link.ended() {
                return false;
            }
            let waited = self.changed.wait_timeout(queue, POLL);
            queue = waited.expect("no panic while held").0;
        }
        drop(queue);
        self.offer(due, bytes, parcel)
    }

    /// The next parcel, when its time has come; `None`: the link is no more.
    pub fn take(&self, link: &Shared) -> Option<(usize, P)> {
        let mut queue = locked(&self.queue);
        loop {
            if link.ended() {
                return None;
            }
            let now = Instant::now();
            let wait = match queue.parcels.front() {
                Some((due, ..)) if *due <= now => Duration::ZERO,
                Some((due, ..)) => *due - now + TICK,
                None => POLL,
            };
            if wait.is_zero() {
                let (_, bytes, parcel) = queue.parcels.pop_front().expect("seen just now");
                let was_full = queue.bytes > MAX_BYTES / 2;
                queue.bytes -= bytes;
                if was_full {
                    self.changed.notify_all();
                }
                return Some((bytes, parcel));
            }
            let waited = self.changed.wait_timeout(queue, wait.min(POLL));
            queue = waited.expect("no panic while held").0;
        }
    }

    /// Waits out a cut, for what may not be lost; false: the link is no more.
    pub fn wait_healed(link: &Shared) -> bool {
        while link.is_cut() {
            if link.ended() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}
