//! A store on real files, shared by all threads of a process.
//!
//! Writes are appended on the caller's thread, reads served there from the page cache, and who has time for it syncs there
//! ([`SharedStore::sync_here`]). Whatever else must wait for the media runs on the store's own threads: one for syncs (one sync
//! serves all who wait: group commit), one for housekeeping, one for the scrub, a few for reads. All of them sleep while nothing happens.
//! None has a lower priority than the others: whoever has the store's lock and no processor holds up every guest.

use super::error::Doing;
use super::identity;
use super::media::FileMedia;
use super::read::{Destination, NotNow, ReadPlan};
use super::room::Pace;
use super::scrub::{self, REST, STRETCH_BYTES, ScrubRate};
use super::visit::Inside;
use super::{
    BootId, FetchPlan, Filling, Handled, Missing, Options, Promise, Pull, Recovery, ShownDisks,
    Store, StoreError, SyncJob, Usage, VerifyPlan,
};
use crate::message::{Asker, Pulled, Refusal, Reply, Request};
use crate::words::{DiskId, Epoch, Extents, Incarnation, Starts, StoreId};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use smallvec::SmallVec;
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Done = Box<dyn FnOnce(Reply) + Send>;

/// Threads for reads that must wait for the media.
pub(super) const READERS: usize = 2;
/// Reads that wait for them. Where media hang, whoever asks gives up and asks again: that must not pile up.
pub(super) const MOST_READS: usize = 1 << 16;
/// A piece of housekeeping that failed (a full disk, mostly) is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// While somebody syncs again and again, housekeeping appends no more than this for each sync: that has to wait for all
/// that was appended before it, whoever did that.
const KEPT_A_SYNC: u64 = 256 << 10;
/// Somebody syncs again and again who has done so within this.
const SYNCS_AGAIN: Duration = Duration::from_millis(10);
/// A sync that takes longer counts for no more, in nanoseconds: syncs that are quick again are soon known to be.
const LONG_SYNC: u64 = 5_000_000;
/// What nobody syncs is synced after this, so that space and memory that wait for it come free.
const SYNC_AFTER: Duration = Duration::from_secs(5);

/// A handle on an open store; clones share it. The last one to go closes it cleanly.
#[derive(Clone)]
pub struct SharedStore {
    threads: Arc<Threads>,
}

struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    identity: (StoreId, Incarnation, Starts),
}

struct Shared {
    core: Mutex<Core>,
    sync_wanted: Condvar,
    housekeeping_wanted: Condvar,
    /// The pace of the scrub has changed, or the store closes.
    scrub_wanted: Condvar,
    all_idle: Condvar,
    reads: Mutex<Reads>,
    read_wanted: Condvar,
    opened: Instant,
    /// When the sync under way began, in milliseconds after `opened` and one; 0: there is none.
    sync_since: AtomicU64,
    /// How long one takes, in nanoseconds: a moving average.
    usual_sync: AtomicU64,
}

struct Core {
    /// None: closed.
    store: Option<Store<FileMedia>>,
    waiting: Vec<(Promise, Done)>,
    sync_now: bool,
    /// A thread, of ours or not, is in [`Shared::run_sync`].
    syncing: bool,
    housekeep_now: bool,
    scrub: ScrubRate,
    closing: bool,
    /// Jobs that run without the lock: syncs, housekeeping. The directory is theirs until they end.
    running: u32,
    /// Something was appended since the last look, or synced without a note; see [`SYNC_AFTER`].
    sync_later: bool,
    /// How much had been appended when housekeeping was last woken for it.
    looked_at: u64,
    /// How much housekeeping has appended since the last sync began.
    kept: u64,
    /// So much that it waits for the next one to end.
    kept_enough: bool,
    /// When the last sync began that somebody waited for.
    waited_at: Option<Instant>,
}

#[derive(Default)]
struct Reads {
    queue: VecDeque<(Wanted, Done)>,
    /// Fetches of other stores, and verifying: after everything that somebody waits for.
    fetches: VecDeque<(Wanted, Done)>,
    closing: bool,
}

impl Reads {
    fn next(&mut self) -> Option<(Wanted, Done)> {
        self.queue.pop_front().or_else(|| self.fetches.pop_front())
    }
}

/// What has to wait for the media.
enum Wanted {
    Read(Box<ReadPlan<FileMedia>>),
    Fetch(FetchPlan<FileMedia>),
    Verify(VerifyPlan<FileMedia>),
}

impl Wanted {
    fn run(&self) -> Reply {
        let read = match self {
            Wanted::Read(plan) => plan.run(),
            Wanted::Fetch(plan) => {
                return plan.run().map_or_else(Reply::Refused, Reply::Fetched);
            }
            Wanted::Verify(plan) => return Reply::Verified(plan.run()),
        };
        read.map_or_else(Reply::Refused, Reply::Read)
    }
}

/// Within the store, alone. The lock goes before the visit ends.
struct Entered<'a> {
    core: MutexGuard<'a, Core>,
    _inside: Inside,
}

impl Deref for Entered<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl DerefMut for Entered<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.core
    }
}

impl BootId {
    /// The boot that this host is in.
    pub fn of_this_host() -> io::Result<BootId> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let id: DiskId = text.trim().parse().map_err(io::Error::other)?;
        Ok(BootId(id.as_u128()))
    }
}

impl SharedStore {
    /// Makes a new store in `dir`, which must be empty or not exist yet.
    pub fn format(dir: &Path, id: StoreId, options: &Options) -> Result<(), StoreError> {
        let name = dir.display().to_string();
        std::fs::create_dir_all(dir).doing(&name, "making the directory")?;
        Store::format(&media(dir)?, id, options)
    }

    /// Fails where another process has the store in `dir` open, as [`SharedStore::open`] does: for who wants to know that
    /// before anything else.
    pub fn check_unused(dir: &Path) -> Result<(), StoreError> {
        match dir.join("lock").exists() {
            true => identity::lock(&media(dir)?).map(drop),
            false => Ok(()),
        }
    }

    pub fn open(dir: &Path, options: Options) -> Result<(SharedStore, Recovery), StoreError> {
        let name = dir.display().to_string();
        let boot = BootId::of_this_host().doing(&name, "asking the kernel which boot this is")?;
        let scrub = options.scrub;
        let options = Options {
            run: uuid::Uuid::new_v4().as_u64_pair().0 | 1,
            ..options
        };
        let (store, recovery) = Store::open(media(dir)?, options, boot)?;
        let identity = (store.id(), store.incarnation(), store.starts());
        let shared = Arc::new(Shared {
            core: Mutex::new(Core {
                store: Some(store),
                waiting: Vec::new(),
                sync_now: false,
                syncing: false,
                housekeep_now: true,
                scrub,
                closing: false,
                running: 0,
                sync_later: false,
                looked_at: 0,
                kept: 0,
                kept_enough: false,
                waited_at: None,
            }),
            sync_wanted: Condvar::new(),
            housekeeping_wanted: Condvar::new(),
            scrub_wanted: Condvar::new(),
            all_idle: Condvar::new(),
            reads: Mutex::default(),
            read_wanted: Condvar::new(),
            opened: Instant::now(),
            sync_since: AtomicU64::new(0),
            usual_sync: AtomicU64::new(u64::MAX),
        });
        let mut handles = Vec::new();
        let mut start = |name: &str, run: fn(&Shared)| {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(name.into());
            handles.push(thread.spawn(move || shared.run_until_closed(run))?);
            Ok(())
        };
        start("store-sync", Shared::sync_loop)
            .and_then(|()| start("store-keeping", Shared::housekeeping_loop))
            .and_then(|()| start("store-scrub", Shared::scrub_loop))
            .and_then(|()| (0..READERS).try_for_each(|_| start("store-read", Shared::read_loop)))
            .doing(&name, "starting threads")?;
        let threads = Threads {
            shared,
            handles,
            identity,
        };
        let threads = Arc::new(threads);
        Ok((SharedStore { threads }, recovery))
    }

    pub fn id(&self) -> StoreId {
        self.threads.identity.0
    }

    pub fn incarnation(&self) -> Incarnation {
        self.threads.identity.1
    }

    pub fn starts(&self) -> Starts {
        self.threads.identity.2
    }

    /// Waits for its turn. Whoever watches over the caller sees that it is inside: see [`super::visit`].
    fn enter(&self) -> Entered<'_> {
        let inside = Inside::enter();
        Entered {
            core: self.threads.shared.core.lock(),
            _inside: inside,
        }
    }

    /// Takes a request. `done` is called exactly once: before this returns where nothing has to wait
    /// for the media (writes, lists, refusals, reads from the page cache), else on a thread of the
    /// store, or of somebody in [`SharedStore::sync_here`]; it must not block, nor call the store.
    pub fn submit(&self, request: Request, done: impl FnOnce(Reply) + Send + 'static) {
        let shared = &self.threads.shared;
        let mut core = self.enter();
        let Some(store) = &mut core.store else {
            drop(core);
            return done(Reply::Refused(Refusal::Failed));
        };
        let handled = store.handle(request);
        shared.wake_for_appended(&mut core);
        match handled {
            Handled::Now(reply) => {
                if matches!(reply, Reply::Refused(Refusal::Full { .. })) {
                    shared.want_housekeeping(&mut core);
                }
                drop(core);
                done(reply);
            }
            Handled::AfterSync(promise) => {
                core.waiting.push((promise, Box::new(done)));
                shared.want_sync(&mut core);
            }
            Handled::Read(plan) => {
                drop(core);
                shared.read(plan, done);
            }
            Handled::Fetch(plan) => {
                drop(core);
                // It compresses, perhaps: nothing for the caller's thread.
                shared.read_later(Wanted::Fetch(plan), Box::new(done));
            }
            Handled::Verify(plan) => {
                drop(core);
                shared.read_later(Wanted::Verify(plan), Box::new(done));
            }
        }
    }

    /// Takes syncs, and does here and now what they want: whoever else waits for it is answered as well. False: another
    /// thread is at it, or the store closes, and they wait for the next; or there was nothing to do.
    pub fn sync_here<D: FnOnce(Reply) + Send + 'static>(
        &self,
        syncs: impl IntoIterator<Item = (Request, D)>,
    ) -> bool {
        let shared = &self.threads.shared;
        let mut core = self.enter();
        let mut answers: SmallVec<[(Reply, Done); 1]> = SmallVec::new();
        let mut wanted = false;
        for (sync, done) in syncs {
            let handled = core.store.as_mut().map(|store| store.handle(sync));
            match handled.unwrap_or(Handled::Now(Reply::Refused(Refusal::Failed))) {
                Handled::Now(reply) => answers.push((reply, Box::new(done))),
                Handled::AfterSync(promise) => {
                    core.waiting.push((promise, Box::new(done)));
                    wanted = true;
                }
                _ => panic!("a sync is asked for"),
            }
        }
        let here = wanted && !core.syncing && !core.closing;
        if wanted && !here {
            shared.want_sync(&mut core);
        } else if here
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| shared.sync(&mut core.core)))
        {
            // Before this thread leaves: it may have been given up.
            let Entered { core, _inside } = core;
            drop(core);
            shared.fail();
            resume_unwind(panic);
        }
        drop(core);
        answer(answers);
        here
    }

    /// How a read is to be answered; or the answer, where nothing has to be read.
    pub fn plan_read(&self, read: Request) -> Result<ReadPlan<FileMedia>, Reply> {
        let mut core = self.enter();
        let Some(store) = &mut core.store else {
            return Err(Reply::Refused(Refusal::Failed));
        };
        match store.handle(read) {
            Handled::Read(plan) => Ok(plan),
            Handled::Now(reply) => Err(reply),
            _ => panic!("a read is asked for"),
        }
    }

    /// Takes a read. The answer, if it is there without waiting for the media, its data in `into`; else how
    /// it is to be answered, and nothing lands there any more.
    pub fn try_read(
        &self,
        read: Request,
        into: &dyn Destination,
    ) -> Result<Reply, Box<ReadPlan<FileMedia>>> {
        let mut plan = match self.plan_read(read) {
            Ok(plan) => plan,
            Err(reply) => return Ok(reply),
        };
        if plan.looks_cold() {
            return Err(Box::new(plan));
        }
        match plan.run_now(into) {
            Ok(blocks) => Ok(Reply::Read(blocks)),
            Err(NotNow::Refused(refusal)) => Ok(Reply::Refused(refusal)),
            Err(NotNow::WouldWait) => Err(Box::new(plan)),
        }
    }

    /// Has a thread of the store wait for the media, and calls `done` there with all data.
    pub fn wait_on_thread(
        &self,
        plan: Box<ReadPlan<FileMedia>>,
        done: impl FnOnce(Reply) + Send + 'static,
    ) {
        let wanted = Wanted::Read(plan);
        self.threads.shared.read_later(wanted, Box::new(done));
    }

    /// Takes several writes as one: see [`Store::handle_writes`]. They never wait for the media; near full the
    /// caller is held back for a moment (room.rs).
    pub fn submit_writes(&self, writes: impl IntoIterator<Item = Request>) -> SmallVec<[Reply; 1]> {
        let shared = &self.threads.shared;
        let mut core = self.enter();
        let Some(store) = &mut core.store else {
            let refused = |_| Reply::Refused(Refusal::Failed);
            return writes.into_iter().map(refused).collect();
        };
        let (before, superseded) = (store.appended(), store.superseded());
        let replies = store.handle_writes(writes);
        let added = store.superseded().saturating_sub(superseded);
        let price = store.price_of(store.appended() - before);
        let price = price.max(store.price_of_superseded(added));
        shared.wake_for_appended(&mut core);
        let full = |reply: &Reply| matches!(reply, Reply::Refused(Refusal::Full { .. }));
        if !price.is_zero() || replies.iter().any(full) {
            shared.want_housekeeping(&mut core);
        }
        drop(core);
        wait_for_room(price);
        replies
    }

    /// See [`Store::missing`], or [`Store::spoilt`] for a heal.
    pub fn missing(&self, pull: &Pull) -> Result<Missing, Refusal> {
        let mut core = self.enter();
        let store = core.store.as_mut().ok_or(Refusal::Failed)?;
        match pull.heals {
            true => store.spoilt(pull.asker, pull.blocks),
            false => store.missing(pull.asker, pull.below, pull.blocks),
        }
    }

    /// See [`Store::fill`].
    pub fn fill(
        &self,
        asker: Asker,
        below: Epoch,
        missing: &Missing,
        filling: &Filling,
    ) -> Result<Pulled, Refusal> {
        let shared = &self.threads.shared;
        let mut core = self.enter();
        let store = core.store.as_mut().ok_or(Refusal::Failed)?;
        let filled = store.fill(asker, below, missing, filling);
        shared.wake_for_appended(&mut core);
        if matches!(filled, Err(Refusal::Full { .. })) {
            shared.want_housekeeping(&mut core);
        }
        filled
    }

    /// Deletes what the store has of `extents` of a disk, as far as it joined below an epoch; `done` is
    /// called when that is durable.
    pub fn drop_replica(
        &self,
        disk: DiskId,
        extents: Extents,
        joined_below: Epoch,
        done: impl FnOnce(Reply) + Send + 'static,
    ) {
        let shared = &self.threads.shared;
        let mut last = None;
        loop {
            // The lock goes with each step: others need the store meanwhile.
            let mut core = self.enter();
            let dropped = match &mut core.store {
                Some(store) => store.drop_replica(disk, extents, joined_below),
                None => Err(Refusal::Failed),
            };
            match (dropped, last.take()) {
                (Ok(Some(promise)), _) => last = Some(promise),
                (Ok(None), Some(promise)) => {
                    core.waiting.push((promise, Box::new(done)));
                    shared.want_housekeeping(&mut core);
                    return shared.want_sync(&mut core);
                }
                (Ok(None), None) => {
                    drop(core);
                    return done(Reply::Synced);
                }
                (Err(refusal), _) => {
                    drop(core);
                    return done(Reply::Refused(refusal));
                }
            }
        }
    }

    /// The disk was deleted: all that it has here is void; `done` is called when that is durable.
    pub fn drop_disk(&self, disk: DiskId, done: impl FnOnce(Reply) + Send + 'static) {
        let shared = &self.threads.shared;
        let mut core = self.enter();
        let dropped = match &mut core.store {
            Some(store) => store.drop_disk(disk),
            None => Err(Refusal::Failed),
        };
        match dropped {
            Ok(promise) => {
                core.waiting.push((promise, Box::new(done)));
                shared.want_housekeeping(&mut core);
                shared.want_sync(&mut core);
            }
            Err(refusal) => {
                drop(core);
                done(Reply::Refused(refusal));
            }
        }
    }

    /// See [`Store::shown_by`].
    pub fn shown_by(&self, disk: DiskId) -> (Epoch, Bytes) {
        let core = self.enter();
        let store = core.store.as_ref();
        store.map_or((Epoch::ZERO, Bytes::new()), |store| store.shown_by(disk))
    }

    /// See [`Store::shown_disks`].
    pub fn shown_disks(&self) -> ShownDisks {
        let core = self.enter();
        let store = core.store.as_ref();
        store.map_or_else(ShownDisks::default, Store::shown_disks)
    }

    pub fn usage(&self) -> Usage {
        let core = self.enter();
        core.store.as_ref().map(Store::usage).unwrap_or_default()
    }

    /// From now on it is scrubbed at this rate.
    pub fn scrub_at(&self, rate: ScrubRate) {
        self.enter().scrub = rate;
        self.threads.shared.scrub_wanted.notify_all();
    }

    /// A write or a sync failed: everything is refused until the store is opened anew.
    pub fn has_failed(&self) -> bool {
        let core = self.enter();
        core.store.as_ref().is_none_or(Store::has_failed)
    }

    /// How long the media have been busy with the sync that is under way; asking never waits. Where they
    /// hang this is the first to show it, and whoever writes waits next.
    pub fn syncing_for(&self) -> Duration {
        let shared = &self.threads.shared;
        match shared.sync_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => (shared.opened.elapsed() + Duration::from_millis(1))
                .saturating_sub(Duration::from_millis(since)),
        }
    }

    /// How long the media usually take for a sync.
    pub fn usual_sync(&self) -> Duration {
        Duration::from_nanos(self.threads.shared.usual_sync.load(Ordering::Relaxed))
    }

    /// Writes a checkpoint, which syncs everything, so that the next open has little to read. It serves
    /// meanwhile, and is waited for for so long at most.
    pub fn checkpoint(&self, patience: Duration) {
        const LOOK: Duration = Duration::from_millis(5);
        let shared = &self.threads.shared;
        let began = Instant::now();
        let mut wanted = true;
        while began.elapsed() < patience {
            let mut core = self.enter();
            let Some(store) = core.store.as_mut().filter(|store| !store.has_failed()) else {
                return;
            };
            if !store.is_checkpointing() {
                if !std::mem::take(&mut wanted) {
                    return;
                }
                store.start_checkpoint();
                shared.want_housekeeping(&mut core);
            }
            drop(core);
            std::thread::sleep(LOOK);
        }
    }

    /// Syncs and closes, so that the next open has nothing to recover from and nothing is lost even
    /// if the host goes down now. Later requests are refused.
    pub fn close(&self) -> io::Result<()> {
        self.threads.shared.close()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Err(error) = self.shared.close() {
            tracing::error!(store = %self.identity.0, %error, "the store was not closed cleanly");
        }
        let me = std::thread::current().id();
        for handle in self.handles.drain(..) {
            // A thread of the store may be the one that drops the last handle, in some `done`.
            if handle.thread().id() != me && handle.join().is_err() {
                tracing::error!(store = %self.identity.0, "a thread of the store had panicked");
            }
        }
    }
}

impl Shared {
    fn close(&self) -> io::Result<()> {
        self.reads.lock().closing = true;
        self.read_wanted.notify_all();
        let mut core = self.core.lock();
        core.closing = true;
        // A job under way writes to the directory: nobody else may open it before that ends.
        while core.running > 0 {
            self.all_idle.wait(&mut core);
        }
        let store = core.store.take();
        let waiting = std::mem::take(&mut core.waiting);
        self.sync_wanted.notify_all();
        self.housekeeping_wanted.notify_all();
        self.scrub_wanted.notify_all();
        drop(core);
        let closed = store.map_or(Ok(()), Store::close);
        for (_, done) in waiting {
            done(Reply::Refused(Refusal::Failed));
        }
        closed
    }

    /// A thread of the store. One that panics takes the store with it: nobody waits for ever for a
    /// thread that is not there any more.
    fn run_until_closed(&self, run: fn(&Shared)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(self))) {
            self.fail();
            resume_unwind(panic);
        }
    }

    /// Whatever waits is refused, and so is all that comes.
    fn fail(&self) {
        let mut reads = self.reads.lock();
        reads.closing = true;
        let mut queue = std::mem::take(&mut reads.queue);
        queue.append(&mut reads.fetches);
        drop(reads);
        let mut core = self.core.lock();
        if let Some(store) = &mut core.store {
            store.fail();
        }
        let waiting = std::mem::take(&mut core.waiting);
        drop(core);
        self.read_wanted.notify_all();
        let waiting = waiting.into_iter().map(|(_, done)| done);
        let all = waiting.chain(queue.into_iter().map(|(_, done)| done));
        answer(all.map(|done| (Reply::Refused(Refusal::Failed), done)));
    }

    /// Runs a job without the lock; whoever waits for it has it before it comes back.
    fn unlocked<T>(&self, core: &mut MutexGuard<'_, Core>, job: impl FnOnce() -> T) -> T {
        core.running += 1;
        let result = MutexGuard::unlocked_fair(core, || catch_unwind(AssertUnwindSafe(job)));
        core.running -= 1;
        if core.running == 0 && core.closing {
            self.all_idle.notify_all();
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn want_sync(&self, core: &mut Core) {
        core.sync_now = true;
        self.sync_wanted.notify_one();
    }

    fn want_housekeeping(&self, core: &mut Core) {
        core.housekeep_now = true;
        self.housekeeping_wanted.notify_one();
    }

    fn wake_for_appended(&self, core: &mut Core) {
        let Some(store) = &core.store else { return };
        let (appended, look_bytes) = (store.appended(), store.look_bytes());
        let wants_sync = store.wants_sync();
        if wants_sync && !core.sync_now {
            self.want_sync(core);
        }
        if appended - core.looked_at >= look_bytes {
            core.looked_at = appended;
            self.want_housekeeping(core);
        } else if appended != core.looked_at && !core.sync_later {
            core.sync_later = true;
            self.housekeeping_wanted.notify_one();
        }
    }

    fn read(&self, plan: ReadPlan<FileMedia>, done: impl FnOnce(Reply) + Send + 'static) {
        let own = plan.own_memory();
        match plan.run_now(&own) {
            Ok(mut blocks) => {
                blocks.data = own.into_bytes();
                done(Reply::Read(blocks));
            }
            Err(NotNow::Refused(refusal)) => done(Reply::Refused(refusal)),
            Err(NotNow::WouldWait) => self.read_later(Wanted::Read(Box::new(plan)), Box::new(done)),
        }
    }

    fn read_later(&self, wanted: Wanted, done: Done) {
        let mut reads = self.reads.lock();
        if reads.closing || reads.queue.len() >= MOST_READS {
            drop(reads);
            return done(Reply::Refused(Refusal::Failed));
        }
        match wanted {
            Wanted::Read(..) => reads.queue.push_back((wanted, done)),
            Wanted::Fetch(_) | Wanted::Verify(_) => reads.fetches.push_back((wanted, done)),
        }
        drop(reads);
        self.read_wanted.notify_one();
    }

    fn read_loop(&self) {
        let mut reads = self.reads.lock();
        loop {
            if let Some((wanted, done)) = reads.next() {
                MutexGuard::unlocked(&mut reads, || done(wanted.run()));
            } else if reads.closing {
                return;
            } else {
                self.read_wanted.wait(&mut reads);
            }
        }
    }

    fn sync_loop(&self) {
        let mut core = self.core.lock();
        while !core.closing {
            if core.syncing || !core.sync_now {
                self.sync_wanted.wait(&mut core);
            } else {
                self.sync(&mut core);
            }
        }
    }

    /// Syncs what has been appended, if anything has, and answers whoever waits for it. One at a time.
    fn sync(&self, core: &mut MutexGuard<'_, Core>) {
        core.sync_now = false;
        let job = core.store.as_mut().and_then(Store::begin_sync);
        if let Some(job) = job {
            core.kept = 0;
            if !core.waiting.is_empty() {
                core.waited_at = Some(Instant::now());
            }
            let result = self.run_sync(core, &job);
            let store = core.store.as_mut().expect("closing waits for what runs");
            store.finish_sync(job, result);
            let notes_later = store.wants_note() && !core.sync_later;
            core.sync_later |= notes_later;
            let store = core.store.as_mut().expect("it was there");
            if store.wants_housekeeping() || core.kept_enough {
                self.want_housekeeping(core);
            } else if notes_later {
                self.housekeeping_wanted.notify_one();
            }
        } else {
            // Nobody has written lately: time for what is left to do.
            self.want_housekeeping(core);
        }
        self.keep_promises(core);
        if core.sync_now {
            self.sync_wanted.notify_one();
        }
    }

    /// Waits for the media, without the lock, and learns how long that takes.
    fn run_sync(
        &self,
        core: &mut MutexGuard<'_, Core>,
        job: &SyncJob<FileMedia>,
    ) -> io::Result<()> {
        let began = Instant::now();
        let since = (began - self.opened).as_millis() as u64 + 1;
        self.sync_since.store(since, Ordering::Relaxed);
        core.syncing = true;
        let result = self.unlocked(core, || job.run());
        core.syncing = false;
        self.sync_since.store(0, Ordering::Relaxed);
        let took = began.elapsed().as_nanos() as u64;
        let usual = self.usual_sync.load(Ordering::Relaxed).min(LONG_SYNC);
        let usual = (usual * 7 + took.min(LONG_SYNC)) / 8;
        self.usual_sync.store(usual, Ordering::Relaxed);
        result
    }

    /// Answers those whose sync is done, or will never be.
    fn keep_promises(&self, core: &mut MutexGuard<'_, Core>) {
        let Core { store, waiting, .. } = &mut **core;
        let Some(store) = store else { return };
        let (synced, failed) = (store.synced(), store.has_failed());
        let mut answers = Vec::new();
        let mut still = Vec::new();
        for (promise, done) in waiting.drain(..) {
            if failed || promise.point() <= synced {
                answers.push((store.keep(promise), done));
            } else {
                still.push((promise, done));
            }
        }
        *waiting = still;
        core.sync_now |= !core.waiting.is_empty();
        MutexGuard::unlocked(core, || answer(answers));
    }

    /// Reads a stretch of the log, checks it, pauses.
    fn scrub_loop(&self) {
        let mut core = self.core.lock();
        let (mut bytes, mut took) = (STRETCH_BYTES, Duration::ZERO);
        while !core.closing {
            let used = core.store.as_ref().map_or(0, Store::log_bytes);
            let rate = core.scrub;
            let pause = match bytes {
                0 => Some(REST).filter(|_| rate != ScrubRate::Off),
                bytes => rate.pause(bytes, took, used),
            };
            let over = match pause {
                Some(pause) => self.scrub_wanted.wait_for(&mut core, pause).timed_out(),
                None => {
                    self.scrub_wanted.wait(&mut core);
                    false
                }
            };
            if core.closing || !over {
                continue;
            }
            let Some(store) = &mut core.store else { return };
            bytes = 0;
            if let Some(scrub) = store.next_scrub() {
                bytes = scrub.bytes();
                let began = Instant::now();
                let read = self.unlocked(&mut core, || scrub.run());
                took = began.elapsed();
                let store = core.store.as_mut().expect("closing waits for what runs");
                store.finish_scrub(scrub, read);
                self.search_spoilt(&mut core);
            }
            self.save_scrub(&mut core);
        }
    }

    /// Looks through the index for what the media spoilt. The lock goes with each step: others need the store meanwhile.
    fn search_spoilt(&self, core: &mut MutexGuard<'_, Core>) {
        while !core.closing && core.store.as_mut().is_some_and(Store::search_spoilt) {
            self.unlocked(core, std::thread::yield_now);
        }
    }

    fn save_scrub(&self, core: &mut MutexGuard<'_, Core>) {
        let Some(store) = &mut core.store else { return };
        let (media, saved) = (store.media(), store.scrub_to_save());
        if let Some(bytes) = saved
            && let Err(error) = self.unlocked(core, || scrub::save(&media, &bytes))
        {
            tracing::warn!(%error, "cannot note how far the scrub is");
        }
        // It may want a checkpoint.
        self.want_housekeeping(core);
    }

    fn housekeeping_loop(&self) {
        let mut core = self.core.lock();
        while !core.closing {
            if !std::mem::take(&mut core.housekeep_now) {
                self.rest(&mut core);
                continue;
            }
            while !core.closing {
                self.give_way(&mut core);
                let Some(store) = &mut core.store else { return };
                if store.checkpoint_waits_for_sync() {
                    // The thread for syncs wakes this one again.
                    self.want_sync(&mut core);
                    break;
                }
                let before = store.appended();
                let chore = store.next_chore();
                let kept = store.appended() - before;
                core.kept += kept;
                let Some(chore) = chore else { break };
                let outcome = self.unlocked(&mut core, || {
                    let outcome = chore.run();
                    // Who waits for the lock or for this processor goes first. Left alone, this thread has both back
                    // before anybody else, for as long as a tick of the scheduler.
                    std::thread::yield_now();
                    outcome
                });
                let store = core.store.as_mut().expect("closing waits for what runs");
                let before = store.appended();
                let fine = store.finish_chore(chore, outcome);
                let kept = store.appended() - before;
                core.kept += kept;
                if !fine {
                    self.housekeeping_wanted.wait_for(&mut core, RETRY);
                    core.housekeep_now = true;
                    break;
                }
            }
        }
    }
}

impl Shared {
    /// Lets a sync go first that somebody will soon ask for, as it seems.
    fn give_way(&self, core: &mut MutexGuard<'_, Core>) {
        let again = |at: Instant| at.elapsed() < SYNCS_AGAIN;
        if core.kept >= KEPT_A_SYNC && core.waited_at.is_some_and(again) && !core.closing {
            core.kept_enough = true;
            self.housekeeping_wanted.wait_for(core, SYNCS_AGAIN);
            core.kept_enough = false;
        }
    }

    /// Sleeps until housekeeping is wanted; with something unsynced not for ever.
    fn rest(&self, core: &mut MutexGuard<'_, Core>) {
        if !core.sync_later {
            self.housekeeping_wanted.wait(core);
        } else if self
            .housekeeping_wanted
            .wait_for(core, SYNC_AFTER)
            .timed_out()
        {
            core.sync_later = false;
            if let Some(store) = &mut core.store {
                store.state_synced();
            }
            self.want_sync(core);
        }
    }
}

/// Holds this thread back if it writes faster than there is room: see room.rs.
fn wait_for_room(price: Duration) {
    thread_local! {
        static PACE: Cell<Pace> = const { Cell::new(Pace::new()) };
    }
    let mut pace = PACE.get();
    let wait = match price.is_zero() && pace.is_new() {
        true => return,
        false => pace.wait(price, Instant::now()),
    };
    PACE.set(pace);
    if !wait.is_zero() {
        std::thread::sleep(wait);
    }
}

/// Everybody is answered, even if one of them panics.
fn answer(answers: impl IntoIterator<Item = (Reply, Done)>) {
    let mut panicked = None;
    for (reply, done) in answers {
        panicked = catch_unwind(AssertUnwindSafe(|| done(reply)))
            .err()
            .or(panicked);
    }
    if let Some(panic) = panicked {
        resume_unwind(panic);
    }
}

fn media(dir: &Path) -> Result<FileMedia, StoreError> {
    FileMedia::new(dir).doing(&dir.display().to_string(), "opening the directory")
}
