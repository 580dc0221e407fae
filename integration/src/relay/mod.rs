//! A distance between two datacenters that both stand on this machine: what crosses it arrives later,
//! no faster than the link carries, and not at all while the link is cut. All of it is counted.
//!
//! ```text
//!  a node of tokyo ──> 127.0.0.1:A ─┐                        ┌─> a node of osaka
//!  QEMU of tokyo   ──> 127.0.0.1:B ─┤  Link: there ────────> ├─> QEMU of osaka
//!                                   │        back <──────────┘
//!  a node of osaka ──> 127.0.0.1:C ─┘ (its "there" is the link's back)
//! ```
//! Each [`Link::udp`] and [`Link::tcp`] gives an address that stands for one on the far side. All of
//! them share the link's rate, delay and cuts, as programs share a leased line.
//!
//! - Order is kept: a random delay changes a few times in a second, and nothing overtakes.
//! - A datagram that finds the queue full, or the link cut, is lost. A TCP stream waits instead, as it
//!   would after its retransmissions; and because this is two connections with a relay between them, it
//!   knows no slow start. Comparisons that use it flatter TCP a little.

mod lane;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::Rng;

/// A random delay holds for this long before the next one is drawn.
const DELAY_HOLDS: Duration = Duration::from_millis(20);
/// How far ahead of the link's rate it takes anything in: a router's buffer, about one round trip. What
/// comes later waits if it is a stream's, and is dropped if it is a datagram.
const QUEUE: Duration = Duration::from_millis(20);
/// On a slow link at least this much: a few bursts of a sender that has a whole window to send.
const QUEUE_BYTES: u64 = 512 << 10;
/// How often threads look whether the link still exists.
const POLL: Duration = Duration::from_millis(100);

/// What a link does to what crosses it, in each direction alike.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// One way.
    pub delay: RangeInclusive<Duration>,
    pub bytes_per_second: Option<u64>,
}

impl Conditions {
    pub fn fixed(delay: Duration) -> Conditions {
        Conditions {
            delay: delay..=delay,
            bytes_per_second: None,
        }
    }

    pub fn limited(self, bytes_per_second: u64) -> Conditions {
        Conditions {
            bytes_per_second: Some(bytes_per_second),
            ..self
        }
    }
}

/// Which way the dialer's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    There = 0,
    Back = 1,
}

impl Way {
    fn reverse(self) -> Way {
        match self {
            Way::There => Way::Back,
            Way::Back => Way::There,
        }
    }
}

/// Payload bytes that were delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    pub there: u64,
    pub back: u64,
}

impl Carried {
    pub fn since(self, earlier: Carried) -> Carried {
        Carried {
            there: self.there - earlier.there,
            back: self.back - earlier.back,
        }
    }

    pub fn both(self) -> u64 {
        self.there + self.back
    }
}

/// The relays of a link end with it.
pub struct Link {
    shared: Arc<Shared>,
}

/// An address on loopback that stands for one on the far side.
pub struct Passage {
    pub address: SocketAddr,
    meter: Meter,
}

/// Counts what a link or one passage of it has carried.
#[derive(Clone, Default)]
pub struct Meter {
    counters: Arc<[AtomicU64; 2]>,
}

struct Shared {
    conditions: Mutex<Conditions>,
    /// Of the way there and the way back.
    timing: [Mutex<Timing>; 2],
    datagrams: Meter,
    streams: Meter,
    cut: AtomicBool,
    ended: AtomicBool,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Timing {
    /// When the last byte that was let in has left the sender's end.
    free: Option<Instant>,
    /// When the last byte that was let in arrives.
    arrival: Option<Instant>,
    delay: Duration,
    delay_until: Option<Instant>,
}

impl Link {
    pub fn new(conditions: Conditions) -> Link {
        let shared = Shared {
            conditions: Mutex::new(conditions),
            timing: Default::default(),
            datagrams: Meter::default(),
            streams: Meter::default(),
            cut: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        };
        Link {
            shared: Arc::new(shared),
        }
    }

    /// From now on; what is under way arrives as it was to.
    pub fn set(&self, conditions: Conditions) {
        *locked(&self.shared.conditions) = conditions;
    }

    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::Relaxed);
    }

    pub fn heal(&self) {
        self.shared.cut.store(false, Ordering::Relaxed);
    }

    pub fn carried(&self) -> Carried {
        let (datagrams, streams) = (self.datagrams().carried(), self.shared.streams.carried());
        Carried {
            there: datagrams.there + streams.there,
            back: datagrams.back + streams.back,
        }
    }

    /// Counts what goes through all its passages for datagrams: with Ukai's nodes, what is not QEMU's.
    pub fn datagrams(&self) -> Meter {
        self.shared.datagrams.clone()
    }

    /// Datagrams that were lost to a full queue or a cut.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Datagrams to the passage reach `to` over this link, and the answers come back.
    pub fn udp(&self, way: Way, to: SocketAddr) -> Result<Passage> {
        let meter = Meter::default();
        let traffic = self.traffic(way, [&meter, &self.shared.datagrams]);
        let address = udp::relay(traffic, to)?;
        Ok(Passage { address, meter })
    }

    /// Connections to the passage reach `to` over this link.
    pub fn tcp(&self, way: Way, to: SocketAddr) -> Result<Passage> {
        let meter = Meter::default();
        let traffic = self.traffic(way, [&meter, &self.shared.streams]);
        let address = tcp::relay(traffic, to)?;
        Ok(Passage { address, meter })
    }

    fn traffic(&self, way: Way, meters: [&Meter; 2]) -> Traffic {
        Traffic {
            link: self.shared.clone(),
            meters: meters.map(Meter::clone),
            way,
        }
    }
}

impl Passage {
    /// In the link's ways, not the dialer's.
    pub fn carried(&self) -> Carried {
        self.meter.carried()
    }

    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }
}

impl Meter {
    pub fn carried(&self) -> Carried {
        let [there, back] =
            [Way::There, Way::Back].map(|way| self.counters[way as usize].load(Ordering::Relaxed));
        Carried { there, back }
    }

    fn add(&self, way: Way, bytes: usize) {
        self.counters[way as usize].fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// What goes one way through one passage.
#[derive(Clone)]
struct Traffic {
    link: Arc<Shared>,
    /// The passage's own, and that of all of its kind.
    meters: [Meter; 2],
    way: Way,
}

impl Traffic {
    fn reverse(&self) -> Traffic {
        Traffic {
            way: self.way.reverse(),
            ..self.clone()
        }
    }

    fn arrived(&self, bytes: usize) {
        for meter in &self.meters {
            meter.add(self.way, bytes);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// When a datagram arrives that is sent now; `None`: never.
    fn admit_datagram(&self, way: Way, bytes: usize) -> Option<Instant> {
        let admitted = if self.is_cut() {
            None
        } else {
            self.admit(way, bytes).ok()
        };
        if admitted.is_none() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// The same for a piece of a stream, waiting for its turn; `None`: the link is no more.
    fn admit_stream(&self, way: Way, bytes: usize) -> Option<Instant> {
        loop {
            if self.ended() {
                return None;
            }
            if self.is_cut() {
                std::thread::sleep(POLL / 10);
                continue;
            }
            match self.admit(way, bytes) {
                Ok(due) => return Some(due),
                Err(too_early) => std::thread::sleep(too_early),
            }
        }
    }

    /// The moment of arrival; or the queue is full for so long.
    fn admit(&self, way: Way, bytes: usize) -> Result<Instant, Duration> {
        let conditions = locked(&self.conditions).clone();
        let now = Instant::now();
        let mut timing = locked(&self.timing[way as usize]);
        let free = timing.free.map_or(now, |free| free.max(now));
        let behind = free - now;
        let free = match conditions.bytes_per_second {
            Some(rate) => {
                let takes = |bytes: u64| Duration::from_secs_f64(bytes as f64 / rate as f64);
                let queue = QUEUE.max(takes(QUEUE_BYTES));
                if behind > queue {
                    return Err(behind - queue);
                }
                free + takes(bytes as u64)
            }
            None => now,
        };
        if timing.delay_until.is_none_or(|until| now >= until) {
            timing.delay = rand::rng().random_range(conditions.delay.clone());
            timing.delay_until = Some(now + DELAY_HOLDS);
        }
        let arrival = free + timing.delay;
        let arrival = timing.arrival.map_or(arrival, |last| last.max(arrival));
        timing.free = Some(free);
        timing.arrival = Some(arrival);
        Ok(arrival)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while held")
}
