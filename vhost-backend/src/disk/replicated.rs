//! The replicated disk: a thin shell around the writer engine, all of it on the device's own thread.
//!
//! ```text
//!  device --submit--> [writer] --effects--> near store: a function call
//!    ^                   ^                  far stores: a link each, same thread
//!    |                   |                  placement:  a task for each question
//!    +---completed--- inbox <--events-------+
//! ```
//!
//! Nothing is decided here. [`ReplicatedDisk::submit`] runs the engine at once and so has sent a
//! write to all members when it returns; whatever answers comes through the inbox, which
//! [`ReplicatedDisk::completed`] empties.

use super::grants::Grants;
use super::inbox::Inbox;
use super::landed::Aimed;
use super::near::NearStore;
use super::orders::{Orders, OrdersHandle};
use super::placement::{Asking, Placement};
use super::status::{DiskStatus, Phase, StatusHandle};
use super::syncing::{Gathers, Syncing};
use super::waiting::{Waited, WaitingReads};
use super::{Disk, Failure, Geometry, Landing, Op, RequestId};
use replicator::message::{ReadBlocks, Reply, Request};
use replicator::net::{KeptSource, Link, LinkEvent, Links, Puller};
use replicator::store::Pull;
use replicator::words::{DiskRecord, Owner, Span, StoreId};
use replicator::writer::{
    Aim, CallId, Config, Effect, Event, GuestOp, NotStarted, Now, Verdict, VerifyOrder, Writer,
};
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Between two tries to start where another backend has the disk: it may close it any time.
const START_AGAIN: Duration = Duration::from_secs(1);
/// Beyond the writer's own patience with a close: after that, something is wrong with us.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// How old the progress that the status shows may be.
const SHOW_PROGRESS: Duration = Duration::from_millis(250);

/// What a disk needs of its node.
pub struct Surroundings {
    pub near: Option<NearStore>,
    /// Those of the thread that the disk will live on.
    pub links: Links,
    pub placement: Arc<dyn Placement>,
}

/// Writes that the near store gets at once at most: more would hold up others that use it.
const NEAR_BATCH_BYTES: usize = 256 << 10;

/// A call that the writer has not made and will not miss.
const NOBODYS: CallId = CallId(u64::MAX);

/// See the module's documentation.
pub struct ReplicatedDisk {
    writer: Writer,
    geometry: Geometry,
    began: Instant,
    inbox: Inbox,
    near: Option<NearStore>,
    links: Links,
    /// Brings blocks of far stores into the near one.
    puller: Puller,
    /// Does so where the guest waits: over connections on which nothing large is before it.
    urgent: Puller,
    far: HashMap<StoreId, Link>,
    /// Whom the near store will be told to pull from, until it is.
    sources: HashMap<StoreId, KeptSource>,
    connected: Vec<StoreId>,
    asking: Asking,
    /// Writes that the near store is to get with the next append, and how large they are.
    near_writes: Vec<(CallId, Request)>,
    near_write_bytes: usize,
    /// The guest's flushes that go to the writer as one, and those that went with another one.
    flushes: Vec<RequestId>,
    flushed_with: HashMap<RequestId, Vec<RequestId>>,
    /// What the near store is to sync for them, while they begin.
    near_syncs: Option<Vec<(CallId, Request)>>,
    syncing: Syncing,
    /// The near store is the one member.
    near_alone: bool,
    /// Far stores were sent writes meanwhile; and the network had its turn.
    far_first: bool,
    gave_way: bool,
    /// Reads whose answer has the data, which is to go to a guest's memory: of far stores, and of the near one where
    /// its media have to be waited for.
    aimed: HashMap<CallId, Aimed>,
    /// The latter.
    waiting_reads: WaitingReads,
    /// The guest's reads in flight.
    landings: HashMap<RequestId, (Span, Landing)>,
    done: VecDeque<(RequestId, Result<(), Failure>)>,
    orders: OrdersHandle,
    start_again: Option<Now>,
    /// When the status is to show the progress, if anything has happened since.
    show_progress_at: Option<Now>,
    /// The writer has said that it has stopped, since it was last told to.
    stopped: bool,
    alarm: Pin<Box<Sleep>>,
    status: StatusHandle,
    close_patience: Duration,
}

impl ReplicatedDisk {
    /// A disk that is not started. `record` may be old. `config.near` is set from `around`.
    pub fn new(
        record: DiskRecord,
        owner: Owner,
        mut config: Config,
        around: Surroundings,
    ) -> ReplicatedDisk {
        config.near = around.near.as_ref().map(|store| store.id());
        let close_patience = config.close_patience;
        let geometry = Geometry {
            name: record.name.clone(),
            bytes: record.bytes,
        };
        let inbox = Inbox::default();
        let asking = Asking {
            placement: around.placement,
            disk: record.id,
            backend: owner.backend,
            inbox: inbox.clone(),
            grants: Grants::default(),
        };
        let orders = OrdersHandle::new(inbox.clone());
        ReplicatedDisk {
            writer: Writer::new(config, owner, record),
            geometry,
            began: Instant::now(),
            inbox,
            near: around.near,
            puller: Puller::new(around.links.clone()),
            urgent: Puller::new(around.links.clone()),
            links: around.links,
            far: HashMap::new(),
            sources: HashMap::new(),
            connected: Vec::new(),
            asking,
            near_writes: Vec::new(),
            near_write_bytes: 0,
            flushes: Vec::new(),
            flushed_with: HashMap::new(),
            near_syncs: None,
            syncing: Syncing::default(),
            near_alone: false,
            far_first: false,
            gave_way: false,
            aimed: HashMap::new(),
            waiting_reads: WaitingReads::new(),
            landings: HashMap::new(),
            done: VecDeque::new(),
            orders,
            start_again: None,
            show_progress_at: None,
            stopped: true,
            alarm: Box::pin(tokio::time::sleep(Duration::ZERO)),
            status: StatusHandle::new(),
            close_patience,
        }
    }

    /// Lets another puller do the work of pulling into the near store: one with a thread of its own.
    pub fn pulling_with(mut self, puller: Puller) -> Self {
        self.puller = puller;
        self
    }

    /// How starts and stops go about it. The handle works from any thread, also while a device has the disk.
    pub fn orders(&self) -> OrdersHandle {
        self.orders.clone()
    }

    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// The disk's record as the writer knows it.
    pub fn record(&self) -> &DiskRecord {
        self.writer.record()
    }

    /// Drives a start to its end: open, or why not.
    pub async fn started(&mut self) -> Result<(), NotStarted> {
        let over = |disk: &mut Self| match disk.status.phase() {
            Phase::Open => Some(Ok(())),
            Phase::NotStarted(why) => Some(Err(why)),
            _ => None,
        };
        poll_fn(|context| self.poll_work(context, over)).await
    }

    /// Lets the writer verify the disk, which is open, and drives it until that is done. `seen` hears how far
    /// it is now and then.
    pub async fn verify(
        &mut self,
        order: VerifyOrder,
        seen: impl Fn(&Verdict),
    ) -> Result<Verdict, Failure> {
        self.orders
            .change(|orders| orders.placement.verify = Some(order));
        let over = |disk: &mut Self| {
            if disk.status.phase() == Phase::Superseded {
                return Some(Err(Failure::Superseded));
            }
            let verdict = disk.writer.verdict().filter(|v| v.order == order.id)?;
            seen(verdict);
            verdict.finished.then(|| Ok(verdict.clone()))
        };
        poll_fn(|context| self.poll_work(context, over)).await
    }

    fn now(&self) -> Now {
        Now(self.began.elapsed())
    }

    /// One event into the engine, and all that follows of it.
    fn handle(&mut self, event: Event) {
        let now = self.now();
        self.show_progress_at.get_or_insert(now + SHOW_PROGRESS);
        self.writer.handle(now, event);
        while let Some(effect) = self.writer.poll() {
            self.carry_out(effect);
        }
    }

    /// Works until `over` gives something. Pending: all that can be done now is done, and the task
    /// is woken when there is more.
    fn poll_work<T>(
        &mut self,
        context: &mut Context<'_>,
        mut over: impl FnMut(&mut Self) -> Option<T>,
    ) -> Poll<T> {
        loop {
            while let Some(event) = self.inbox.pop() {
                let event = self.arrived(event);
                self.handle(event);
            }
            if !self.near_writes.is_empty() {
                if std::mem::take(&mut self.far_first) && !self.gave_way {
                    // What goes over the network travels while the near store writes: its tasks run first.
                    self.gave_way = true;
                    let _ = pin!(tokio::task::yield_now()).poll(context);
                    return Poll::Pending;
                }
                self.write_near();
                continue;
            }
            self.waiting_reads.submit();
            if let Poll::Ready(waited) = self.waiting_reads.poll_ended(context) {
                self.waited(waited);
                continue;
            }
            let next = self.next_alarm();
            if next.is_some_and(|at| at <= self.now()) {
                self.alarm_rang();
                continue;
            }
            let gathers = self.gathers();
            if gathers == Some(Gathers::TooLong) {
                self.flush();
                continue;
            }
            if let Some(value) = over(self) {
                return Poll::Ready(value);
            }
            if self.inbox.poll_filled(context).is_ready() {
                continue;
            }
            match gathers {
                None | Some(Gathers::TooLong) => {}
                Some(Gathers::More) => {
                    let _ = pin!(tokio::task::yield_now()).poll(context);
                    return Poll::Pending;
                }
                Some(Gathers::All) => {
                    self.flush();
                    continue;
                }
            }
            let Some(Now(at)) = next else {
                return Poll::Pending;
            };
            if self.alarm.deadline() != self.began + at {
                self.alarm.as_mut().reset(self.began + at);
            }
            if self.alarm.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn next_alarm(&self) -> Option<Now> {
        let wanted = [
            self.writer.next_timeout(),
            self.start_again,
            self.show_progress_at,
        ];
        wanted.into_iter().flatten().min()
    }

    /// Lets the writer know how far its stores are; that alone is no reason to show progress again.
    fn tell_distances(&mut self) {
        let distances = self
            .far
            .iter()
            .filter_map(|(store, link)| Some((*store, link.round_trip()?)))
            .collect();
        let now = self.now();
        self.writer.handle(now, Event::Distances(distances));
        while let Some(effect) = self.writer.poll() {
            self.carry_out(effect);
        }
    }

    fn alarm_rang(&mut self) {
        let now = self.now();
        if self.show_progress_at.take_if(|at| *at <= now).is_some() {
            let progress = self.writer.progress();
            let verdict = self.writer.verdict().cloned();
            self.status.change(|status| {
                status.progress = progress;
                status.verdict = verdict;
            });
            self.tell_distances();
        }
        if self.start_again.take_if(|at| *at <= now).is_some() {
            self.begin();
        }
        if self.writer.next_timeout().is_some_and(|at| at <= now) {
            self.handle(Event::Timeout);
        }
    }

    /// What the shell itself has to do with an event before the engine hears of it.
    fn arrived(&mut self, event: Event) -> Event {
        match event {
            Event::Reply {
                call,
                reply: Reply::Read(read),
            } => Event::Reply {
                call,
                reply: Reply::Read(self.land(call, read)),
            },
            Event::Reply { call, reply } => {
                self.aimed.remove(&call);
                Event::Reply { call, reply }
            }
            // The disk's own alarm comes another way: this says that a grant is there.
            Event::Timeout => {
                self.show_grants();
                Event::Timeout
            }
            Event::Connected { store } => {
                if !self.connected.contains(&store) {
                    self.connected.push(store);
                }
                self.show_members();
                Event::Connected { store }
            }
            Event::Disconnected { store } => {
                self.connected.retain(|other| *other != store);
                // Nothing of that session lands any more; a landing would keep guest memory mapped.
                self.aimed.retain(|_, aimed| aimed.store != store);
                self.show_members();
                Event::Disconnected { store }
            }
            other => other,
        }
    }

    /// The data of an answer goes to the guest, if it was meant for it and still is.
    fn land(&mut self, call: CallId, read: ReadBlocks) -> ReadBlocks {
        let Some(aimed) = self.aimed.remove(&call) else {
            return read;
        };
        aimed.copy(&read);
        ReadBlocks {
            found: read.found,
            data: Default::default(),
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Connect { store } => self.connect(store),
            Effect::PrepareToPull { store } => {
                let keep = || self.puller.keep(store);
                self.sources.entry(store).or_insert_with(keep);
            }
            Effect::Send {
                store,
                call,
                request,
                aim,
            } => self.send(store, call, request, aim),
            Effect::Withdraw { call } => {
                self.aimed.remove(&call);
                self.waiting_reads.forget(call);
                self.inbox.push(Event::Withdrawn { call });
            }
            Effect::Swap {
                call,
                expected,
                change,
            } => self.asking.swap(call, expected, change),
            Effect::Inspect { call } => self.asking.inspect(call),
            Effect::Zero { id, span } => {
                let (whole, landing) = self.landings.get(&id).expect("a read in flight");
                landing.zero((span.offset - whole.offset) as usize, span.len as usize);
            }
            Effect::Complete { id, result } => {
                self.landings.remove(&id);
                for id in self
                    .flushed_with
                    .remove(&id)
                    .into_iter()
                    .flatten()
                    .chain([id])
                {
                    self.syncing.ended(id);
                    self.done.push_back((id, result));
                }
                self.status.in_flight(self.syncing.in_flight());
            }
            other => self.announce(other),
        }
    }

    /// What the log and the status hear of.
    fn announce(&mut self, effect: Effect) {
        let disk = &self.geometry.name;
        match effect {
            Effect::Opened { epoch } => {
                tracing::info!(%disk, %epoch, "open");
                self.sources.clear();
                self.status.change(|status| {
                    status.epoch = epoch;
                    if status.phase != Phase::Stopping {
                        status.phase = Phase::Open;
                    }
                });
                self.show_members();
            }
            Effect::NotStarted { why } => {
                let again = self.orders.now().persist && why.may_pass();
                if again {
                    self.start_again = Some(self.now() + START_AGAIN);
                }
                let phase = Phase::NotStarted(why.clone());
                if self.status.phase() != phase {
                    tracing::warn!(%disk, again, "not started: {why}");
                }
                self.status.change(|status| status.phase = phase);
            }
            Effect::Stopped { clean } => {
                self.stopped = true;
                let phase = match self.status.phase() {
                    Phase::Superseded => Phase::Superseded,
                    _ if clean => Phase::Closed,
                    _ => Phase::LeftOpen,
                };
                tracing::info!(%disk, clean, "stopped");
                self.status.change(|status| {
                    status.phase = phase;
                    status.stall = None;
                });
            }
            Effect::Superseded { shown } => {
                tracing::warn!(%disk, epoch = %shown, "another writer has taken the disk over");
                self.status
                    .change(|status| status.phase = Phase::Superseded);
            }
            Effect::Stalled(stall) => {
                tracing::warn!(%disk, "the guest waits: {stall}");
                self.status.change(|status| status.stall = Some(stall));
            }
            Effect::Resumed => {
                tracing::info!(%disk, "the guest goes on");
                self.status.change(|status| status.stall = None);
            }
            Effect::Hindered(hindrance) => {
                tracing::warn!(%disk, "the members cannot be changed or filled now: {hindrance}");
                self.status
                    .change(|status| status.hindrance = Some(hindrance));
            }
            Effect::Unhindered => {
                self.status.change(|status| status.hindrance = None);
            }
            Effect::Verified(verdict) => {
                let (healed, differ) = (verdict.healed_blocks, verdict.differing_blocks);
                let damaged = verdict.damaged_blocks - healed.min(verdict.damaged_blocks);
                if verdict.has_no_faults() {
                    tracing::info!(%disk, healed, "verified: no fault is left");
                } else {
                    tracing::error!(
                        %disk, healed, damaged, differ, first_damaged = ?verdict.damaged.first(),
                        first_difference = ?verdict.differing.first(),
                        "verified: the copies are not good; `ukai disk verify` says more"
                    );
                }
            }
            _ => unreachable!("carried out, not announced"),
        }
    }

    fn connect(&mut self, store: StoreId) {
        if self.near.as_ref().is_some_and(|near| near.id() == store) {
            self.inbox.push(Event::Connected { store });
            return;
        }
        if self.far.contains_key(&store) {
            return;
        }
        let inbox = self.inbox.clone();
        let (grants, placement) = (self.asking.grants.clone(), self.asking.placement.clone());
        let disk = self.asking.disk;
        let link = self.links.link(store, move |event| {
            if let LinkEvent::Reply { reply, .. } = &event {
                grants.heard((disk, store), reply, &placement, &inbox);
            }
            inbox.push(match event {
                LinkEvent::Connected => Event::Connected { store },
                LinkEvent::Disconnected => Event::Disconnected { store },
                LinkEvent::Reply { call, reply } => Event::Reply { call, reply },
            });
        });
        self.far.insert(store, link);
    }

    /// Stores that have refused for want of a grant are shown it. The answer is to nobody.
    fn show_grants(&mut self) {
        for (store, seal) in self.asking.grants.seals(self.asking.disk) {
            if let Some(link) = self.far.get(&store) {
                link.send(NOBODYS, &seal);
            }
        }
    }

    fn send(&mut self, store: StoreId, call: CallId, request: Request, aim: Aim) {
        let request = self.asking.grants.with_grant(request);
        let aimed = self.aimed(store, &request, aim);
        if let Some(link) = self.far.get(&store) {
            if let Some(aimed) = aimed {
                self.aimed.insert(call, aimed);
            }
            self.far_first |= matches!(request, Request::Write { .. });
            link.send(call, &request);
            return;
        }
        let near = self.near.as_ref().filter(|near| near.id() == store);
        let near = near
            .expect("the writer asks stores that it was told are connected")
            .clone();
        tracing::trace!(%store, call = call.0, kind = request.kind(), "near");
        if let Request::Write { content, .. } = &request {
            self.near_write_bytes += content.data_bytes();
            self.near_writes.push((call, request));
            if self.near_write_bytes >= NEAR_BATCH_BYTES {
                self.write_near();
            }
            return;
        }
        // It may be about what was written before it.
        self.write_near();
        let inbox = self.inbox.clone();
        if let Some(pull) = Pull::of(&request) {
            let puller = match aim {
                Aim::Near if !near.is_slow() => &self.urgent,
                _ => &self.puller,
            };
            return puller.pull(near.store().clone(), pull, move |reply| {
                inbox.push(Event::Reply { call, reply });
            });
        }
        if let Some(aimed) = aimed {
            return self.read_near(&near, call, request, aimed);
        }
        if let (Request::Sync { .. }, Some(syncs)) = (&request, &mut self.near_syncs) {
            return syncs.push((call, request));
        }
        near.submit(request, move |reply| {
            inbox.push(Event::Reply { call, reply });
        });
    }

    fn read_near(&mut self, near: &NearStore, call: CallId, request: Request, aimed: Aimed) {
        let inbox = self.inbox.clone();
        let answer = move |reply| inbox.push(Event::Reply { call, reply });
        match near.try_read(request, &aimed, answer.clone()) {
            Some(Ok(reply)) => return answer(reply),
            None => {}
            Some(Err(plan)) => {
                if let Err(plan) = self.waiting_reads.add(call, plan) {
                    near.store().wait_on_thread(plan, answer);
                }
            }
        }
        self.aimed.insert(call, aimed);
    }

    /// A read that waited for the media of the near store has ended.
    fn waited(&mut self, waited: Waited) {
        match waited {
            Waited::Answered(call, reply) => {
                let event = self.arrived(Event::Reply { call, reply });
                self.handle(event);
            }
            Waited::NotSo(call, plan) => {
                let inbox = self.inbox.clone();
                let near = self.near.as_ref().expect("it has answered before");
                near.store().wait_on_thread(plan, move |reply| {
                    inbox.push(Event::Reply { call, reply });
                });
            }
        }
    }

    /// Appends the writes that have come together: one call of the store, one of the kernel. Those of one
    /// kick are together when the device asks what has completed.
    fn write_near(&mut self) {
        if self.near_writes.is_empty() {
            return;
        }
        self.near_write_bytes = 0;
        self.gave_way = false;
        let near = self.near.as_ref().expect("there are writes for it");
        let inbox = self.inbox.clone();
        near.submit_writes(&mut self.near_writes, move |call, reply| {
            inbox.push(Event::Reply { call, reply });
        });
    }

    /// Whether the guest's flushes wait for others; none if there are none.
    fn gathers(&mut self) -> Option<Gathers> {
        if self.flushes.is_empty() {
            return None;
        }
        let usual = self.near.as_ref().map(|near| near.store().usual_sync());
        let usual = usual.unwrap_or_default();
        Some(self.syncing.gathers(usual, std::time::Instant::now()))
    }

    /// Gives the writer one flush for all that the guest has asked for: each covers what was acknowledged before it. The near
    /// store syncs on this thread if nobody misses it meanwhile. Where others have copies the thread is to be there for them,
    /// should the near media hang.
    fn flush(&mut self) {
        let mut all = std::mem::take(&mut self.flushes);
        self.syncing.flushes(all.len());
        let id = all.pop().expect("there is one");
        if !all.is_empty() {
            self.flushed_with.insert(id, all);
        }
        self.near_syncs = Some(Vec::new());
        let op = GuestOp::Flush;
        self.handle(Event::Guest { id, op });
        let syncs = self.near_syncs.take().unwrap_or_default();
        let Some(near) = self.near.as_ref().filter(|_| !syncs.is_empty()) else {
            return;
        };
        let here = self.near_alone && self.syncing.is_for_us(near.store().usual_sync());
        self.inbox.stay_awake();
        let syncs = syncs.into_iter().map(|(call, sync)| {
            let inbox = self.inbox.clone();
            (sync, move |reply| inbox.push(Event::Reply { call, reply }))
        });
        if near.sync(syncs, here) {
            self.syncing.synced(std::time::Instant::now());
        }
    }

    fn aimed(&self, store: StoreId, request: &Request, aim: Aim) -> Option<Aimed> {
        let (Request::Read { blocks, .. }, Aim::Guest { id, span }) = (request, aim) else {
            return None;
        };
        let (whole, landing) = self.landings.get(&id).expect("a read in flight");
        assert_eq!(*whole, span, "the writer knows what the guest asked for");
        Some(Aimed {
            store,
            landing: landing.clone(),
            span,
            blocks: *blocks,
        })
    }

    fn show_members(&mut self) {
        let members = self.writer.record().members();
        let near = self.near.as_ref().map(|near| near.id());
        self.near_alone = members.iter().all(|member| Some(*member) == near);
        let connected = &self.connected;
        self.status.change(|status: &mut DiskStatus| {
            status.members = members
                .into_iter()
                .map(|store| (store, connected.contains(&store)))
                .collect();
        });
    }

    fn begin(&mut self) {
        let Orders {
            take_over,
            placement,
            ..
        } = self.orders.now();
        self.handle(Event::Orders(placement));
        self.handle(Event::Start { take_over });
    }
}

impl Disk for ReplicatedDisk {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn start(&mut self) {
        self.start_again = None;
        self.status.change(|status| status.phase = Phase::Starting);
        self.begin();
    }

    fn submit(&mut self, id: RequestId, op: Op) {
        self.inbox.stay_awake();
        let op = match op {
            Op::Read { span, into } => {
                assert_eq!(
                    into.len() as u64,
                    span.len,
                    "a landing as large as the read"
                );
                self.landings.insert(id, (span, into));
                GuestOp::Read { span }
            }
            Op::Write { span, data } => GuestOp::Write { span, data },
            Op::Zero { span } => GuestOp::Zero { span },
            Op::Flush => GuestOp::Flush,
        };
        let is_flush = matches!(op, GuestOp::Flush);
        self.syncing.given(id, is_flush, std::time::Instant::now);
        self.status.in_flight(self.syncing.in_flight());
        match is_flush {
            true => self.flushes.push(id),
            false => self.handle(Event::Guest { id, op }),
        }
    }

    fn room(&self) -> u64 {
        self.writer.room()
    }

    fn has_begun(&self) -> bool {
        self.writer.has_begun()
    }

    fn give_back(&mut self) {
        self.inbox.stay_awake();
        if !self.flushes.is_empty() {
            self.flush();
        }
        self.handle(Event::GiveBack);
    }

    async fn completed(&mut self) -> (RequestId, Result<(), Failure>) {
        if let Some(done) = self.done.pop_front() {
            return done;
        }
        poll_fn(|context| self.poll_work(context, |disk| disk.done.pop_front())).await
    }

    fn sync_continuously(&mut self, on: bool) {
        self.handle(Event::SyncContinuously(on));
    }

    async fn stop(&mut self) {
        self.start_again = None;
        let superseded = self.status.phase() == Phase::Superseded;
        if !superseded {
            self.status.change(|status| status.phase = Phase::Stopping);
        }
        self.stopped = false;
        let successor = self.orders.now().successor;
        self.handle(Event::Stop { successor });
        let bound = self.close_patience + STOP_GRACE;
        // What completes meanwhile is kept for `completed`.
        let stopped = poll_fn(|context| self.poll_work(context, |disk| disk.stopped.then_some(())));
        if tokio::time::timeout(bound, stopped).await.is_err() {
            tracing::error!(disk = %self.geometry.name, "the writer did not stop in time");
            self.status.change(|status| status.phase = Phase::LeftOpen);
        }
    }
}
