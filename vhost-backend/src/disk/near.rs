//! The near store as the disks of a node see it: a function call, as long as its media keep up.
//!
//! A write is appended on the thread that submits it. Where media hang, that thread would hang with them,
//! and with it all disks that it serves, those too that do not use the store. So once a sync takes
//! long, or somebody has been inside the store for long, requests go [`Aside`]: to a thread of their own, in
//! order, until all is quick again. What remains are the threads that are inside when the media begin to hang, or go in before
//! that is noticed: one that syncs by itself ([`super::syncing`]), seldom one that writes, since that goes to the page cache. A
//! thread that is inside for too long is given up, and its disks are served anew by another one: [`replicator::store::visit`].

use parking_lot::{Condvar, Mutex};
use replicator::message::{Refusal, Reply, Request};
use replicator::store::media::FileMedia;
use replicator::store::{Destination, ReadPlan, SharedStore, visit};
use replicator::words::StoreId;
use replicator::writer::CallId;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Media that take longer are slow. Far above any append and most syncs, far below what ejects a store.
const SLOW: Duration = Duration::from_millis(200);
/// Requests that wait aside. Disks bound what they have in flight; one that was ejected leaves some behind.
const MOST: usize = 1 << 16;

/// Clones share it.
#[derive(Clone)]
pub struct NearStore {
    store: SharedStore,
    aside: Arc<Aside>,
}

impl NearStore {
    pub fn new(store: SharedStore) -> io::Result<NearStore> {
        Ok(NearStore {
            store,
            aside: Arc::new(Aside::spawn()?),
        })
    }

    pub fn id(&self) -> StoreId {
        self.store.id()
    }

    /// The store itself, for what has threads of its own.
    pub fn store(&self) -> &SharedStore {
        &self.store
    }

    /// It is no place to go into now: what can be done on another thread is to be done there.
    pub fn is_slow(&self) -> bool {
        self.aside.is_wanted(self.store.syncing_for())
    }

    /// See [`SharedStore::submit`].
    pub fn submit(&self, request: Request, done: impl FnOnce(Reply) + Send + 'static) {
        if !self.is_slow() {
            return self.aside.inside(|| self.store.submit(request, done));
        }
        self.submit_aside(request, done);
    }

    /// Takes syncs; with `here` this thread does what they want, if it can. Whether it did: then they have been answered.
    pub fn sync<D: FnOnce(Reply) + Send + 'static>(
        &self,
        syncs: impl IntoIterator<Item = (Request, D)>,
        here: bool,
    ) -> bool {
        if here && !self.is_slow() {
            return self.aside.inside(|| self.store.sync_here(syncs));
        }
        for (sync, done) in syncs {
            self.submit(sync, done);
        }
        false
    }

    /// Takes a read. The answer, if it is there at once, its data in `into`; else how the media are to be waited for;
    /// or neither: then `done` is called with the answer and all data. Nothing lands in `into` once this returns.
    pub fn try_read(
        &self,
        read: Request,
        into: &dyn Destination,
        done: impl FnOnce(Reply) + Send + 'static,
    ) -> Option<Result<Reply, Box<ReadPlan<FileMedia>>>> {
        if self.is_slow() {
            self.submit_aside(read, done);
            return None;
        }
        Some(self.aside.inside(|| self.store.try_read(read, into)))
    }

    /// Takes several writes as one append; `done` is called for each, with its call. See [`SharedStore::submit_writes`].
    pub fn submit_writes(
        &self,
        writes: &mut Vec<(CallId, Request)>,
        done: impl Fn(CallId, Reply) + Clone + Send + 'static,
    ) {
        if self.is_slow() {
            for (call, write) in writes.drain(..) {
                let done = done.clone();
                self.submit_aside(write, move |reply| done(call, reply));
            }
            return;
        }
        let calls: Vec<CallId> = writes.iter().map(|(call, _)| *call).collect();
        let writes = writes.drain(..).map(|(_, write)| write);
        let replies = self.aside.inside(|| self.store.submit_writes(writes));
        for (call, reply) in calls.into_iter().zip(replies) {
            done(call, reply);
        }
    }

    fn submit_aside(&self, request: Request, done: impl FnOnce(Reply) + Send + 'static) {
        let store = self.store.clone();
        self.aside.run_later(Box::new(move |turn| match turn {
            Turn::Now => store.submit(request, done),
            Turn::Never => done(Reply::Refused(Refusal::Failed)),
        }));
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    Now,
    /// There is no room, or the node ends.
    Never,
}

type Job = Box<dyn FnOnce(Turn) + Send>;

/// A thread for what may have to wait long.
struct Aside {
    shared: Arc<Shared>,
}

struct Shared {
    began: Instant,
    /// When somebody went in who is still there, in milliseconds and one; 0: nobody, as far as noted.
    inside_since: AtomicU64,
    /// Jobs that have not ended.
    jobs: AtomicUsize,
    queue: Mutex<Queue>,
    wanted: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    over: bool,
}

impl Aside {
    fn spawn() -> io::Result<Aside> {
        let shared = Arc::new(Shared {
            began: Instant::now(),
            inside_since: AtomicU64::new(0),
            jobs: AtomicUsize::new(0),
            queue: Mutex::default(),
            wanted: Condvar::new(),
        });
        let mine = shared.clone();
        std::thread::Builder::new()
            .name("store-aside".into())
            .spawn(move || mine.work())?;
        Ok(Aside { shared })
    }

    /// Whether the store is no place to go into now.
    fn is_wanted(&self, syncing_for: Duration) -> bool {
        let shared = &self.shared;
        let since = shared.inside_since.load(Ordering::Relaxed);
        // Who comes after others that wait, waits behind them.
        shared.jobs.load(Ordering::Acquire) > 0
            || syncing_for > SLOW
            || visit::somebody_is_stuck()
            || (since > 0 && shared.millis().saturating_sub(since) > SLOW.as_millis() as u64)
    }

    /// Does it here, and lets others see since when.
    fn inside<T>(&self, job: impl FnOnce() -> T) -> T {
        let shared = &self.shared;
        let now = shared.millis();
        // One of those inside is noted; whoever is inside longest is likely to be the one.
        let noted = shared
            .inside_since
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok();
        // However it leaves: who was given up meanwhile unwinds.
        let _noted = noted.then(|| Noted(&shared.inside_since));
        job()
    }

    fn run_later(&self, job: Job) {
        let mut queue = self.shared.queue.lock();
        if queue.jobs.len() >= MOST || queue.over {
            drop(queue);
            return job(Turn::Never);
        }
        self.shared.jobs.fetch_add(1, Ordering::Release);
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.wanted.notify_one();
    }
}

/// One of those inside, while it is.
struct Noted<'a>(&'a AtomicU64);

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Not waited for: it may be inside, where media hang.
        self.shared.queue.lock().over = true;
        self.shared.wanted.notify_one();
    }
}

impl Shared {
    fn millis(&self) -> u64 {
        self.began.elapsed().as_millis() as u64 + 1
    }

    fn work(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                let turn = match queue.over {
                    true => Turn::Never,
                    false => Turn::Now,
                };
                parking_lot::MutexGuard::unlocked(&mut queue, || job(turn));
                self.jobs.fetch_sub(1, Ordering::Release);
            } else if queue.over {
                return;
            } else {
                self.wanted.wait(&mut queue);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    const PATIENCE: Duration = Duration::from_secs(30);

    fn later(aside: &Aside, name: u32, said: &std::sync::mpsc::Sender<(u32, Turn)>) {
        let said = said.clone();
        aside.run_later(Box::new(move |turn| {
            let _ = said.send((name, turn));
        }));
    }

    fn next(heard: &Receiver<(u32, Turn)>) -> (u32, Turn) {
        heard.recv_timeout(PATIENCE).unwrap()
    }

    #[test]
    fn who_hangs_inside_is_seen_by_others_and_they_wait_their_turn_aside() {
        let aside = Arc::new(Aside::spawn().unwrap());
        assert!(!aside.is_wanted(Duration::ZERO));
        assert!(aside.is_wanted(SLOW * 2), "a sync takes long");
        let (let_go, held) = channel::<()>();
        let hanging = aside.clone();
        let thread = std::thread::spawn(move || hanging.inside(|| held.recv().unwrap()));
        while !aside.is_wanted(Duration::ZERO) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let_go.send(()).unwrap();
        thread.join().unwrap();
        assert!(!aside.is_wanted(Duration::ZERO), "it is out again");
    }

    #[test]
    fn jobs_run_in_order_and_later_ones_queue_behind_them() {
        let aside = Aside::spawn().unwrap();
        let (let_go, held) = channel::<()>();
        aside.run_later(Box::new(move |_| held.recv().unwrap()));
        assert!(aside.is_wanted(Duration::ZERO), "something waits there");
        let (said, heard) = channel();
        for name in 0..3 {
            later(&aside, name, &said);
        }
        let_go.send(()).unwrap();
        for name in 0..3 {
            assert_eq!(next(&heard), (name, Turn::Now));
        }
        while aside.is_wanted(Duration::ZERO) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_waits_is_bounded_and_answered_at_the_end() {
        let aside = Aside::spawn().unwrap();
        let (let_go, held) = channel::<()>();
        let (began, is_held) = channel();
        aside.run_later(Box::new(move |_| {
            began.send(()).unwrap();
            held.recv().unwrap();
        }));
        is_held.recv_timeout(PATIENCE).unwrap();
        for _ in 0..MOST {
            aside.run_later(Box::new(|_| {}));
        }
        let (said, heard) = channel();
        later(&aside, 1, &said);
        assert_eq!(next(&heard), (1, Turn::Never), "at once");
        let aside_shared = aside.shared.clone();
        drop(aside);
        let_go.send(()).unwrap();
        while aside_shared.jobs.load(Ordering::Acquire) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
