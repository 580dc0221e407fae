//! One backend from its order to its end: fetch the disk's record, serve its socket, let it go. And one
//! without a socket, that only copies for a disk which nobody has attached.

use super::Config;
use super::reactor::{Reactors, Seat};
use crate::addresses::Addresses;
use placement_service::api::Wanted;
use placement_service::client::PlacementClient;
use placement_service::node_protocol::{BackendReport, BackendState, DesiredAttachment};
use replicator::net::identity::Credentials;
use replicator::net::{Link, Links, Puller};
use replicator::store::visit::Visitor;
use replicator::words::{BackendId, DiskId, DiskRecord, HostName, Life, Owner};
use replicator::writer::{self, Hindrance, TakeOver};
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use uuid::Uuid;
use vhost_backend::device::{Backend, Lifeline, Options};
use vhost_backend::disk::{
    Disk, DiskStatus, NearStore, Orders, OrdersHandle, Phase, ReplicatedDisk, StatusHandle,
    Surroundings,
};

/// A backend whose disk another one has opened waits so long for its VM's process to leave: that one has
/// migrated, and sees no error in its last moments.
const FAREWELL: Duration = Duration::from_secs(30);
/// Between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(100);
/// Between two looks at whether a disk that is being taken over is open.
const SOON: Duration = Duration::from_millis(10);
/// Between two tries to fetch a disk's record, or to listen on its socket.
const PAUSE: Duration = Duration::from_millis(500);
/// How often an open disk's writer looks whether its stores have found damage, and whether they agree.
const AUDIT_EVERY: Duration = Duration::from_secs(10 * 60);
/// How long connections to a disk's members are kept for a VM that has not come yet.
const CONNECTED_AHEAD: Duration = Duration::from_secs(60);
/// A century will do.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Starts backends; the supervisor's tests have one of their own.
pub trait Spawn {
    fn spawn(&mut self, attachment: &DesiredAttachment) -> Running;
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    Runs(BackendState),
    Gone,
}

/// Whether a backend is to end. It only goes from one to the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stop {
    No,
    /// When the VM's process has left, or has not in time; at once if the disk is open here.
    Soon,
    Now,
}

/// The supervisor's handle of a backend.
pub struct Running {
    pub disk: DiskId,
    pub backend: BackendId,
    pub take_over: bool,
    state: watch::Receiver<State>,
    stop: watch::Sender<Stop>,
    handles: Arc<OnceLock<Handles>>,
    /// The thread that serves it.
    reactor: Visitor,
}

/// What is known of a disk, and may be told to it, while its device has it.
struct Handles {
    status: StatusHandle,
    orders: OrdersHandle,
    /// Of one with a socket.
    lifeline: Option<Lifeline>,
}

/// The backend's own end of it.
pub struct Serving {
    state: watch::Sender<State>,
    stop: watch::Receiver<Stop>,
    handles: Arc<OnceLock<Handles>>,
    changed: Arc<Notify>,
}

impl Running {
    pub fn new(attachment: &DesiredAttachment, changed: Arc<Notify>) -> (Running, Serving) {
        let (state, state_seen) = watch::channel(State::Runs(BackendState::Starting));
        let (stop, stop_seen) = watch::channel(Stop::No);
        let handles = Arc::new(OnceLock::new());
        let running = Running {
            disk: attachment.disk,
            backend: attachment.backend,
            take_over: attachment.take_over,
            state: state_seen,
            stop,
            handles: handles.clone(),
            reactor: Visitor::new(),
        };
        (
            running,
            Serving {
                state,
                stop: stop_seen,
                handles,
                changed,
            },
        )
    }

    pub fn sync_ahead(&self) {
        if let Some(handles) = self.handles.get() {
            handles.orders.sync_continuously();
        }
    }

    pub fn stop(&self) {
        self.stop.send_replace(Stop::Now);
    }

    /// Its disk is somebody else's now.
    pub fn leave(&self) {
        self.stop.send_if_modified(|stop| {
            let changes = *stop == Stop::No;
            *stop = Stop::Soon.max(*stop);
            changes
        });
    }

    #[cfg(test)]
    pub fn is_told_to_stop(&self) -> bool {
        *self.stop.borrow() != Stop::No
    }

    /// Its thread stands still, and was given up.
    pub fn is_given_up(&self) -> bool {
        self.reactor.is_given_up()
    }

    /// After that: its socket is free for the next backend of the disk.
    pub fn cut(&self) {
        let handles = self.handles.get();
        if let Some(lifeline) = handles.and_then(|handles| handles.lifeline.as_ref()) {
            lifeline.cut();
        }
    }

    pub fn is_gone(&self) -> bool {
        *self.state.borrow() == State::Gone || self.state.has_changed().is_err()
    }

    /// Waits until it has let the disk go, or never will.
    pub async fn gone(mut self) {
        while !self.is_given_up() {
            let gone = self.state.wait_for(|state| *state == State::Gone);
            // An error means that the backend's end was dropped: gone as well.
            if tokio::time::timeout(LOOK, gone).await.is_ok() {
                return;
            }
        }
        self.cut();
    }

    /// Passes on what is wanted of it while it runs.
    pub fn instruct(&mut self, attachment: &DesiredAttachment) {
        self.take_over = attachment.take_over;
        if let Some(handles) = self.handles.get() {
            handles.orders.change(|orders| give(orders, attachment));
        }
    }

    /// No VM uses its disk: another writer took it, or it waits for one. Only a new start fences whoever has it.
    pub fn is_without_vm(&self) -> bool {
        let phase = self.handles.get().map(|handles| handles.status.now().phase);
        matches!(phase, Some(Phase::Superseded | Phase::Closed))
    }

    pub fn report(&self) -> Option<BackendReport> {
        let State::Runs(mut state) = self.state.borrow().clone() else {
            return None;
        };
        let status = self.handles.get().map(|handles| handles.status.now());
        if let (BackendState::Ready { status: words, .. }, Some(status)) = (&mut state, &status) {
            *words = describe(status);
        }
        let stall = status.as_ref().and_then(|status| status.stall.as_ref());
        let hindrance = status.as_ref().and_then(|s| s.hindrance.as_ref());
        Some(BackendReport {
            disk: self.disk,
            backend: self.backend,
            state,
            epoch: status
                .as_ref()
                .filter(|status| status.phase == Phase::Open)
                .map(|status| status.epoch),
            stall: stall.map(ToString::to_string),
            hindrance: hindrance.map(ToString::to_string),
            progress: status.as_ref().map(|status| status.progress),
            verdict: status.as_ref().and_then(|status| status.verdict.clone()),
            unreachable: match hindrance {
                Some(Hindrance::NoAnswer(stores)) => stores.clone(),
                _ => Vec::new(),
            },
        })
    }
}

fn give(orders: &mut Orders, attachment: &DesiredAttachment) {
    orders.take_over = take_over(attachment.take_over);
    orders.successor = attachment.successor;
    if let Some(given) = &attachment.orders {
        orders.placement.clone_from(given);
    }
}

fn take_over(ordered: bool) -> TakeOver {
    if ordered {
        TakeOver::Ordered
    } else {
        TakeOver::Own
    }
}

/// Whether somebody else has the disk open.
fn is_anothers(record: &DiskRecord, backend: BackendId) -> bool {
    record.owner().is_some_and(|owner| owner.backend != backend)
}

/// A disk's status in words, for people.
fn describe(status: &DiskStatus) -> String {
    let epoch = status.epoch;
    let mut text = match &status.phase {
        Phase::Closed => "ready for its VM".into(),
        Phase::LeftOpen => "stopped, but the placement service could not be told".into(),
        Phase::Starting => "opening".into(),
        Phase::NotStarted(why) => format!("not open: {why}"),
        Phase::Open => format!("open in epoch {epoch}"),
        Phase::Stopping => "closing".into(),
        Phase::Superseded => "another writer has taken the disk over".into(),
    };
    if let Some(stall) = &status.stall {
        text += &format!("; waiting: {stall}");
    }
    text
}

impl Serving {
    fn is(&self, state: State) {
        self.state.send_replace(state);
        self.changed.notify_one();
    }

    async fn stopped(&mut self) {
        // An error means that nobody is left who could want it to go on.
        let _ = self.stop.wait_for(|stop| *stop != Stop::No).await;
    }

    /// Of a disk that was started without a VM: whoever ordered the take-over waits to hear that it is open.
    async fn tell_when_open(&mut self) {
        let starts = |handles: &Handles| handles.status.now().phase == Phase::Starting;
        while self.handles.get().is_some_and(starts) {
            let stopped = self.stop.wait_for(|stop| *stop != Stop::No);
            if tokio::time::timeout(SOON, stopped).await.is_ok() {
                return;
            }
        }
        self.changed.notify_one();
    }

    /// After [`Serving::stopped`]: gives the VM's process time to leave, where that is still possible.
    async fn farewell(&mut self, backend: &Backend<ReplicatedDisk>) {
        let is_idle = |handles: &Handles| {
            let phase = handles.status.now().phase;
            matches!(phase, Phase::Closed | Phase::LeftOpen | Phase::Superseded)
        };
        let until = tokio::time::Instant::now() + FAREWELL;
        while *self.stop.borrow() == Stop::Soon
            && backend.status().connected
            && self.handles.get().is_some_and(is_idle)
            && tokio::time::Instant::now() < until
        {
            // However the wait ends, the next look decides.
            let _ = tokio::time::timeout(LOOK, self.stop.wait_for(|stop| *stop == Stop::Now)).await;
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.is(State::Gone);
    }
}

/// Starts backends on the node's reactors.
pub struct Backends {
    site: Arc<Site>,
    reactors: Reactors,
    changed: Arc<Notify>,
}

/// What all backends of the node share.
struct Site {
    host: HostName,
    credentials: Credentials,
    client: PlacementClient,
    addresses: Addresses,
    store: Option<NearStore>,
    puller: Puller,
    sockets: PathBuf,
    socket_mode: u32,
    eject_after: Option<Duration>,
    stall_deadline: Option<Duration>,
}

impl Backends {
    pub fn new(
        config: &Config,
        client: PlacementClient,
        addresses: Addresses,
        (store, puller): (Option<NearStore>, Puller),
        reactors: Reactors,
        changed: Arc<Notify>,
    ) -> Self {
        let site = Site {
            host: config.credentials.identity().host.clone(),
            credentials: config.credentials.clone(),
            client,
            addresses,
            store,
            puller,
            sockets: config.sockets.clone(),
            socket_mode: config.socket_mode,
            eject_after: config.eject_after,
            stall_deadline: config.stall_deadline,
        };
        Backends {
            site: Arc::new(site),
            reactors,
            changed,
        }
    }
}

impl Spawn for Backends {
    fn spawn(&mut self, attachment: &DesiredAttachment) -> Running {
        let (mut running, serving) = Running::new(attachment, self.changed.clone());
        let (site, attachment) = (self.site.clone(), attachment.clone());
        running.reactor = self.reactors.run(move |seat| async move {
            match attachment.wanted {
                Wanted::Copying => copy(site, attachment, serving, seat).await,
                _ => serve(site, attachment, serving, seat).await,
            }
        });
        running
    }
}

async fn serve(site: Arc<Site>, attachment: DesiredAttachment, mut serving: Serving, _seat: Seat) {
    let began = Instant::now();
    let record = tokio::select! {
        record = site.record(attachment.disk) => record,
        () = serving.stopped() => return,
    };
    site.connect_ahead(&record);
    let socket = site.sockets.join(format!("{}.sock", attachment.name));
    let backend = loop {
        match site.start(&record, &attachment, &serving, &socket) {
            Ok(backend) => break backend,
            Err(error) => {
                let why = format!("{}: {error}", socket.display());
                tracing::error!(disk = %attachment.name, "cannot serve {why}; trying again");
                serving.is(State::Runs(BackendState::Failed { why }));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = serving.stopped() => return,
        }
    };
    tracing::info!(disk = %attachment.name, socket = %socket.display(), took_ms = began.elapsed().as_millis() as u64, "ready for a VM");
    serving.is(State::Runs(BackendState::Ready {
        socket: socket.display().to_string(),
        status: String::new(),
    }));
    serving.tell_when_open().await;
    serving.stopped().await;
    serving.farewell(&backend).await;
    serving.is(State::Runs(BackendState::Stopping));
    let began = Instant::now();
    if backend.shutdown().await.is_none() {
        tracing::warn!(disk = %attachment.name, "requests did not end in time: the epoch stays open, the next start settles it");
    }
    tracing::info!(disk = %attachment.name, took_ms = began.elapsed().as_millis() as u64, "let go");
}

/// Opens the disk without a device, so that its orders are carried out, until it is to let go.
async fn copy(site: Arc<Site>, attachment: DesiredAttachment, mut serving: Serving, _seat: Seat) {
    let record = tokio::select! {
        record = site.record(attachment.disk) => record,
        () = serving.stopped() => return,
    };
    let mut disk = match site.disk(record, &attachment) {
        Ok(disk) => disk,
        Err(error) => {
            let why = error.to_string();
            tracing::error!(disk = %attachment.name, "cannot copy: {why}");
            serving.is(State::Runs(BackendState::Failed { why }));
            return serving.stopped().await;
        }
    };
    let _ = serving.handles.set(Handles {
        status: disk.status(),
        orders: disk.orders(),
        lifeline: None,
    });
    tracing::info!(disk = %attachment.name, "opening it to copy");
    serving.is(State::Runs(BackendState::Ready {
        socket: String::new(),
        status: String::new(),
    }));
    disk.start();
    tokio::select! {
        // Nobody asks it for anything: this only lets it work.
        _ = disk.completed() => {}
        () = serving.stopped() => {}
    }
    serving.is(State::Runs(BackendState::Stopping));
    disk.stop().await;
    tracing::info!(disk = %attachment.name, "let go");
}

impl Site {
    async fn record(&self, disk: DiskId) -> DiskRecord {
        loop {
            match self.client.record(disk).await {
                Ok(granted) => return granted.record,
                Err(error) => tracing::warn!(%disk, "waiting for the disk's record: {error}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn start(
        &self,
        record: &DiskRecord,
        attachment: &DesiredAttachment,
        serving: &Serving,
        socket: &Path,
    ) -> std::io::Result<Backend<ReplicatedDisk>> {
        let mut disk = self.disk(record.clone(), attachment)?;
        let (status, orders) = (disk.status(), disk.orders());
        let mode = self.socket_mode;
        let options = Options {
            mode,
            // Whoever has it is to be fenced now, not when a VM has booted so far.
            disk_started: attachment.take_over && is_anothers(record, attachment.backend),
            ..Options::new(socket)
        };
        if options.disk_started {
            disk.start();
        }
        let backend = Backend::spawn(disk, options)?;
        let _ = serving.handles.set(Handles {
            status,
            orders,
            lifeline: Some(backend.lifeline()),
        });
        Ok(backend)
    }

    /// The disk, on the reactor that this runs on.
    fn disk(
        &self,
        record: DiskRecord,
        attachment: &DesiredAttachment,
    ) -> std::io::Result<ReplicatedDisk> {
        let life = Life(Uuid::new_v4().as_u64_pair().0);
        let owner = Owner {
            backend: attachment.backend,
            life,
            host: self.host.clone(),
        };
        let usual = writer::Config::default();
        let config = writer::Config {
            eject_after: self.eject_after,
            audit_every: Some(AUDIT_EVERY),
            stall_deadline: self.stall_deadline,
            // A member that is left out of a take-over is out as one that was ejected is.
            settle_patience: self.eject_after.unwrap_or(FOR_EVER),
            ..usual
        };
        let around = Surroundings {
            near: self.store.clone(),
            links: self.links()?,
            placement: Arc::new(self.client.clone()),
        };
        let disk =
            ReplicatedDisk::new(record, owner, config, around).pulling_with(self.puller.clone());
        disk.orders().change(|orders| give(orders, attachment));
        Ok(disk)
    }

    /// Connects to the far members before the VM is there: then nobody waits for that.
    fn connect_ahead(&self, record: &DiskRecord) {
        let Ok(links) = self.links() else {
            // Said where they are needed.
            return;
        };
        let near = self.store.as_ref().map(NearStore::id);
        let far = record.members().into_iter().filter(|id| Some(*id) != near);
        let ahead: Vec<Link> = far.map(|store| links.link(store, |_| {})).collect();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(CONNECTED_AHEAD).await;
            drop(ahead);
        });
    }

    /// This thread's links: one connection to each far store, whatever number of disks uses it.
    fn links(&self) -> std::io::Result<Links> {
        thread_local! {
            static LINKS: OnceCell<Links> = const { OnceCell::new() };
        }
        LINKS.with(|links| {
            if let Some(links) = links.get() {
                return Ok(links.clone());
            }
            let addresses = self.addresses.clone();
            let made = Links::new(&self.credentials, move |store| addresses.place(store))?;
            Ok(links.get_or_init(|| made).clone())
        })
    }
}
