//! Reactors: the threads that serve disks. Everything of one disk happens on one of them, so that
//! the thread which takes a guest's kick also sends and completes, without a hop.
//!
//! One that stands still in the store, because its media hang, is given up: another one takes its place, and its
//! disks are served anew there, as after a crash of the node.

use parking_lot::Mutex;
use replicator::store::visit::{Visit, Visitor, unless_given_up};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

/// Between two looks at whether all of them move.
pub const LOOK: Duration = Duration::from_millis(250);
/// Who has been inside the store for so long is given up: a little longer than what ejects a store that does not answer.
const STANDS_STILL: Duration = Duration::from_secs(3);
/// And has been seen there so often: if the whole process stood still, that says nothing.
const SEEN: u32 = 8;

type Job = Box<dyn FnOnce() + Send>;

/// The reactors of a node. Clones share them.
#[derive(Clone)]
pub struct Reactors {
    all: Arc<Mutex<Vec<Watched>>>,
}

struct Watched {
    reactor: Reactor,
    /// It has been seen inside the store, in one and the same visit: since when, and how often.
    stands: Option<(Visit, Instant, u32)>,
}

/// One serving thread. It ends when the last clone is dropped.
struct Reactor {
    jobs: mpsc::UnboundedSender<Job>,
    disks: Arc<AtomicUsize>,
    visitor: Visitor,
}

/// Counts a disk on its reactor while it lives.
pub struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Reactors {
    pub fn spawn(threads: usize) -> io::Result<Reactors> {
        let all = (0..threads).map(|number| {
            Ok(Watched {
                reactor: Reactor::spawn(number)?,
                stands: None,
            })
        });
        Ok(Reactors {
            all: Arc::new(Mutex::new(all.collect::<io::Result<_>>()?)),
        })
    }

    /// Runs what `task` makes on the reactor with the fewest disks, until the reactor is given up: then it is dropped
    /// whenever that is possible, and not polled again. Returns how to see that.
    pub fn run<T: Future<Output = ()> + 'static>(
        &self,
        task: impl FnOnce(Seat) -> T + Send + 'static,
    ) -> Visitor {
        let all = self.all.lock();
        let reactors = all.iter().map(|watched| &watched.reactor);
        let reactor = reactors
            .min_by_key(|reactor| {
                let given_up = reactor.visitor.is_given_up();
                (given_up, reactor.disks.load(Ordering::Relaxed))
            })
            .expect("a node has at least one reactor");
        let seat = reactor.seat();
        let job = move || drop(tokio::task::spawn_local(unless_given_up(task(seat))));
        // Where the thread is gone, so is the task with all that it holds.
        let _ = reactor.jobs.send(Box::new(job));
        reactor.visitor.clone()
    }

    /// To be called every [`LOOK`]. Whether one was given up.
    pub fn look(&self) -> bool {
        let mut any = false;
        for (number, watched) in self.all.lock().iter_mut().enumerate() {
            any |= watched.stands_still();
            if watched.reactor.visitor.is_given_up() {
                match Reactor::spawn(number) {
                    Ok(reactor) => watched.reactor = reactor,
                    Err(error) => tracing::error!(%error, "cannot start a thread; trying again"),
                }
            }
        }
        any
    }
}

impl Watched {
    /// Whether it is given up, here and now.
    fn stands_still(&mut self) -> bool {
        let visitor = &self.reactor.visitor;
        let Some(visit) = visitor.inside() else {
            self.stands = None;
            return false;
        };
        let (_, since, seen) = match self.stands.take_if(|(stay, ..)| *stay == visit) {
            Some((stay, since, seen)) => (stay, since, seen + 1),
            None => (visit, Instant::now(), 1),
        };
        if seen >= SEEN && since.elapsed() >= STANDS_STILL && visitor.give_up(visit) {
            tracing::error!(
                disks = self.reactor.disks.load(Ordering::Relaxed),
                "a thread stands still in the store, whose media hang: its disks are served anew by another one"
            );
            return true;
        }
        self.stands = Some((visit, since, seen));
        false
    }
}

impl Reactor {
    fn spawn(number: usize) -> io::Result<Reactor> {
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let visitor = Visitor::new();
        let me = visitor.clone();
        std::thread::Builder::new()
            .name(format!("reactor-{number}"))
            .spawn(move || {
                me.sign_in();
                let local = LocalSet::new();
                local.block_on(&runtime, async move {
                    while let Some(job) = queue.recv().await {
                        job();
                    }
                });
            })?;
        Ok(Reactor {
            jobs,
            disks: Arc::default(),
            visitor,
        })
    }

    fn seat(&self) -> Seat {
        self.disks.fetch_add(1, Ordering::Relaxed);
        Seat(self.disks.clone())
    }
}
