//! Reactors: the threads that serve disks. Everything of one disk happens on one of them, so that
//! the thread which takes a guest's kick also sends and completes, without a hop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

type Job = Box<dyn FnOnce() + Send>;

/// One serving thread. It ends when the last clone is dropped.
#[derive(Clone)]
pub struct Reactor {
    jobs: mpsc::UnboundedSender<Job>,
    disks: Arc<AtomicUsize>,
}

/// Counts a disk on its reactor while it lives.
pub struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Reactor {
    pub fn spawn(number: usize) -> std::io::Result<Reactor> {
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name(format!("reactor-{number}"))
            .spawn(move || {
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
        })
    }

    /// Runs `job` on the reactor's thread, within its `LocalSet`. False: the thread is gone.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> bool {
        self.jobs.send(Box::new(job)).is_ok()
    }

    pub fn seat(&self) -> Seat {
        self.disks.fetch_add(1, Ordering::Relaxed);
        Seat(self.disks.clone())
    }

    /// The one with the fewest disks.
    pub fn least_loaded(reactors: &[Reactor]) -> &Reactor {
        reactors
            .iter()
            .min_by_key(|reactor| reactor.disks.load(Ordering::Relaxed))
            .expect("a node has at least one reactor")
    }
}
