//! A disk in memory, for tests of the device and for fuzzing: it can be slow, out of order, full and
//! broken on demand.

use super::{Disk, Failure, Geometry, Op, RequestId};
use replicator::store::visit::Inside;
use replicator::words::{DiskName, Span};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How the disk behaves. The default: at once, in order, without faults.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    pub latency: Duration,
    /// The newest request ends first, as far as its latency lets it.
    pub newest_first: bool,
    /// Nothing ends until this is lifted.
    pub hold: bool,
    /// It is not open yet: nothing begins until this is lifted.
    pub not_open: bool,
    /// Bytes of writes that may be open; 0: any number.
    pub room: u64,
    /// How requests end, and without effect.
    pub fail: Option<Failure>,
}

/// What has happened to the disk, in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    pub starts: u64,
    pub stops: u64,
    pub reads: u64,
    pub writes: u64,
    pub zeroes: u64,
    pub flushes: u64,
    pub syncing_continuously: bool,
    /// The most requests that were open at once.
    pub most_open: usize,
    pub open: usize,
}

struct State {
    bytes: Vec<u8>,
    open: Vec<(RequestId, Op, Instant)>,
    given_back: Vec<RequestId>,
    behaviour: Behaviour,
    tally: Tally,
    started: bool,
    /// The thread that submits next stands still until somebody is heard here.
    hang: Option<Receiver<()>>,
}

/// The disk; clones share it, so that a test can look into it from another thread.
#[derive(Clone)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    geometry: Geometry,
}

impl MemDisk {
    pub fn new(name: &str, bytes: u64) -> MemDisk {
        MemDisk {
            state: Arc::new(Mutex::new(State {
                bytes: vec![0; bytes as usize],
                open: Vec::new(),
                given_back: Vec::new(),
                behaviour: Behaviour::default(),
                tally: Tally::default(),
                started: false,
                hang: None,
            })),
            changed: Arc::new(Notify::new()),
            geometry: Geometry {
                name: DiskName::new(name).expect("a good name"),
                bytes,
            },
        }
    }

    pub fn behave(&self, behaviour: Behaviour) {
        self.state().behaviour = behaviour;
        self.changed.notify_one();
    }

    pub fn tally(&self) -> Tally {
        let state = self.state();
        Tally {
            open: state.open.len(),
            ..state.tally
        }
    }

    pub fn bytes(&self, span: Span) -> Vec<u8> {
        self.state().bytes[span.offset as usize..span.end() as usize].to_vec()
    }

    pub fn fill(&self, offset: u64, bytes: &[u8]) {
        let offset = offset as usize;
        self.state().bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// The next request that is submitted hangs, as one does in a near store: until something comes, or nothing can any more.
    pub fn hang(&self, until: Receiver<()>) {
        self.state().hang = Some(until);
    }

    /// Forgets what is open, as a killed process would. The bytes stay.
    pub fn crash(&self) {
        let mut state = self.state();
        state.open.clear();
        state.started = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Ends one request that may end now, or says until when there is none.
    fn end_one(&mut self) -> Result<(RequestId, Result<(), Failure>), Option<Instant>> {
        if let Some(id) = self.given_back.pop() {
            return Ok((id, Err(Failure::Stopped)));
        }
        if self.behaviour.hold || self.behaviour.not_open || self.open.is_empty() {
            return Err(None);
        }
        let due = |open: &(RequestId, Op, Instant)| open.2;
        let soonest = self.open.iter().map(due).min().expect("not empty");
        // A disk without latency never asks for the time.
        if !self.behaviour.latency.is_zero() && soonest > Instant::now() {
            return Err(Some(soonest));
        }
        let mut ready = (0..self.open.len()).filter(|&index| {
            self.behaviour.latency.is_zero() || self.open[index].2 <= Instant::now()
        });
        let index = if self.behaviour.newest_first {
            ready.next_back()
        } else {
            ready.next()
        };
        let (id, op, _) = self.open.remove(index.unwrap_or(0));
        if let Some(failure) = self.behaviour.fail {
            return Ok((id, Err(failure)));
        }
        match op {
            Op::Read { span, into } => {
                into.write(0, &self.bytes[span.offset as usize..span.end() as usize]);
                self.tally.reads += 1;
            }
            Op::Write { span, data } => {
                self.bytes[span.offset as usize..span.end() as usize].copy_from_slice(&data);
                self.tally.writes += 1;
            }
            Op::Zero { span } => {
                self.bytes[span.offset as usize..span.end() as usize].fill(0);
                self.tally.zeroes += 1;
            }
            Op::Flush => self.tally.flushes += 1,
        }
        Ok((id, Ok(())))
    }
}

impl Disk for MemDisk {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn start(&mut self) {
        let mut state = self.state();
        assert!(!state.started, "a device starts a disk once");
        state.started = true;
        state.tally.starts += 1;
    }

    fn submit(&mut self, id: RequestId, op: Op) {
        let hang = self.state().hang.take();
        if let Some(until) = hang {
            let _inside = Inside::enter();
            let _ = until.recv();
        }
        let mut state = self.state();
        assert!(state.started, "a device submits to a started disk only");
        assert!(
            state.open.iter().all(|(open, ..)| *open != id),
            "ids are unique among those in flight"
        );
        if let Op::Read { span, .. } | Op::Write { span, .. } | Op::Zero { span } = &op {
            assert!(span.end() <= self.geometry.bytes, "a device checks spans");
        }
        let due = Instant::now() + state.behaviour.latency;
        state.open.push((id, op, due));
        state.tally.most_open = state.tally.most_open.max(state.open.len());
    }

    fn room(&self) -> u64 {
        let state = self.state();
        if state.behaviour.room == 0 {
            return u64::MAX;
        }
        let open = state.open.iter().map(|(_, op, _)| match op {
            Op::Write { span, .. } => span.len,
            _ => 0,
        });
        state.behaviour.room.saturating_sub(open.sum())
    }

    fn has_begun(&self) -> bool {
        let state = self.state();
        !state.behaviour.not_open && !state.open.is_empty()
    }

    fn give_back(&mut self) {
        let mut state = self.state();
        if state.behaviour.not_open {
            let waiting = std::mem::take(&mut state.open);
            state
                .given_back
                .extend(waiting.into_iter().map(|(id, ..)| id));
        }
    }

    async fn completed(&mut self) -> (RequestId, Result<(), Failure>) {
        loop {
            let ended = self.state().end_one();
            match ended {
                Ok(ended) => return ended,
                Err(None) => self.changed.notified().await,
                Err(Some(due)) => {
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
            }
        }
    }

    fn sync_continuously(&mut self, on: bool) {
        self.state().tally.syncing_continuously = on;
    }

    async fn stop(&mut self) {
        let mut state = self.state();
        assert!(state.started, "a device stops a disk that it has started");
        assert!(
            state.open.is_empty(),
            "a disk is stopped after its last request"
        );
        state.started = false;
        state.tally.stops += 1;
    }
}
