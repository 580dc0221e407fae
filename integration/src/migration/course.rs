//! What was recorded of one move, and what can be said about it. All times are the host's.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;

use crate::guest::ticks::{Doing, Operation, Stamp};
use crate::relay::Meter;

const SAMPLE_EVERY: Duration = Duration::from_millis(100);

pub struct Course {
    pub name: &'static str,
    pub operations: Vec<Operation>,
    pub marks: Marks,
    /// Bytes of the disk that crossed the link so far, in both directions.
    pub crossed: Vec<(Stamp, u64)>,
    /// Of the guest's reads since the sample before, the share that was served near.
    pub near_reads: Vec<(Stamp, f64)>,
    /// Bytes that were not zero on the disk when the move began.
    pub allocated_bytes: u64,
    /// Bytes that the guest read from afar.
    pub read_far_bytes: u64,
    /// The verifying writer's last line.
    pub verified: String,
}

#[derive(Clone, Copy)]
pub struct Marks {
    /// The guest has been watched undisturbed since.
    pub begin: Stamp,
    /// Somebody wants the VM in osaka.
    pub go: Stamp,
    /// The VM's own migration can begin, and begins.
    pub may_move: Stamp,
    /// The guest runs in osaka.
    pub arrived: Stamp,
    /// Every block is near.
    pub settled: Stamp,
    /// What is far is deleted; nothing crosses the link any more for this disk.
    pub dropped: Stamp,
    /// The guest was watched until here.
    pub end: Stamp,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    pub operations: usize,
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub longest_ms: f64,
}

impl Course {
    /// Of the operations of that kind that ended in the window; `None`: there were none.
    pub fn latency(&self, doing: Doing, window: Range<Stamp>) -> Option<Latency> {
        let mut took: Vec<Duration> = self
            .within(window.clone())
            .filter(|operation| operation.doing == doing)
            .map(Operation::took)
            .collect();
        took.sort_unstable();
        let longest = *took.last()?;
        let at = |share: f64| took[((took.len() - 1) as f64 * share).round() as usize];
        Some(Latency {
            operations: took.len(),
            per_second: took.len() as f64 / window.end.since(window.start).as_secs_f64(),
            p50_ms: millis(at(0.50)),
            p99_ms: millis(at(0.99)),
            longest_ms: millis(longest),
        })
    }

    /// The longest single operation that touches the window.
    pub fn longest_stall(&self, window: Range<Stamp>) -> Duration {
        self.operations
            .iter()
            .filter(|operation| operation.ended >= window.start && operation.begun < window.end)
            .map(Operation::took)
            .max()
            .unwrap_or_default()
    }

    /// The longest time around the switch-over in which the guest completed nothing: from the last
    /// answer of the source to the first one of the destination.
    pub fn downtime(&self) -> Duration {
        let (last, first) = self.gap();
        first.since(last)
    }

    /// When the destination gave its first answer.
    pub fn resumed(&self) -> Stamp {
        self.gap().1
    }

    fn gap(&self) -> (Stamp, Stamp) {
        let Marks {
            may_move, arrived, ..
        } = self.marks;
        let until = arrived.plus(Duration::from_secs(1));
        let ends: Vec<Stamp> = self
            .within(may_move..until)
            .map(|operation| operation.ended)
            .collect();
        let gaps = ends.windows(2).map(|pair| (pair[0], pair[1]));
        gaps.max_by_key(|(last, first)| first.since(*last))
            .unwrap_or((arrived, arrived))
    }

    pub fn until_may_move(&self) -> Duration {
        self.marks.may_move.since(self.marks.go)
    }

    pub fn whole(&self) -> Duration {
        self.marks.settled.since(self.marks.go)
    }

    /// What the move put on the link for the disk.
    pub fn crossed_bytes(&self) -> u64 {
        self.crossed_at(self.marks.dropped) - self.crossed_at(self.marks.go)
    }

    /// Bytes that had crossed the link at that moment.
    pub fn crossed_at(&self, moment: Stamp) -> u64 {
        let before = self.crossed.partition_point(|(at, _)| *at <= moment);
        before
            .checked_sub(1)
            .map_or(0, |index| self.crossed[index].1)
    }

    pub fn near_share(&self, window: Range<Stamp>) -> Option<f64> {
        let found: Vec<f64> = self
            .near_reads
            .iter()
            .filter(|(at, _)| window.contains(at))
            .map(|(_, share)| *share)
            .collect();
        (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
    }

    /// Writes a second in the window, against those of the undisturbed time before the move.
    pub fn throughput(&self, window: Range<Stamp>) -> f64 {
        let rate = |window: Range<Stamp>| {
            self.latency(Doing::Write, window)
                .map_or(0.0, |latency| latency.per_second)
        };
        rate(window) / rate(self.marks.begin..self.marks.go)
    }

    fn within(&self, window: Range<Stamp>) -> impl Iterator<Item = &Operation> {
        let from = self
            .operations
            .partition_point(|operation| operation.ended < window.start);
        self.operations[from..]
            .iter()
            .take_while(move |operation| operation.ended < window.end)
    }
}

pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Reads a meter ten times a second.
pub struct Gauge {
    samples: Arc<Mutex<Vec<(Stamp, u64)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Gauge {
    pub fn start(meter: Meter) -> Gauge {
        let samples: Arc<Mutex<Vec<(Stamp, u64)>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (to, ending) = (samples.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !ending.load(Ordering::Relaxed) {
                let sample = (Stamp::now(), meter.carried().both());
                to.lock().expect("no panic while held").push(sample);
                thread::sleep(SAMPLE_EVERY);
            }
        });
        Gauge {
            samples,
            stop,
            thread: Some(thread),
        }
    }

    pub fn samples(&self) -> Vec<(Stamp, u64)> {
        self.samples.lock().expect("no panic while held").clone()
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
