//! A node's side of the node protocol: one connection, made again when it breaks, and calls that
//! all end in bounded time.
//!
//! Nothing in the data path waits for it while the write sets are healthy; and where an answer is
//! lost, the outcome is [`SwapOutcome::Unknown`], never a guess.

use crate::api::StoreAddress;
use crate::brief::Brief;
use crate::frame::{self, FrameError};
use crate::node_protocol::{
    ALPN, CALL_TIMEOUT, Desired, Grant, Granted, HEARTBEAT_WAIT, Heartbeat, Hello, Leader,
    OLDEST_VERSION, Records, Refusal, Request, Response, VERSION, Welcome,
};
use crate::service_name::ServiceName;
use replicator::net::identity::{Credentials, Dial, DialError, Expected, Role};
use replicator::net::transport as quic;
use replicator::words::{BackendId, Change, ChangeRefused, DiskId, Revision, StoreId};
use replicator::writer::SwapOutcome;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// One address of the placement service is given up for the next after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection is dead when nothing was heard for this long, although it was asked every second.
const IDLE_TIMEOUT: Duration = Duration::from_secs(6);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A call follows the lead this often; more changes of it in a moment are no lead.
const MAX_LEADERS: u32 = 3;

/// Cheap to clone; all clones share one connection.
#[derive(Clone)]
pub struct PlacementClient {
    shared: Arc<Shared>,
}

struct Shared {
    /// Whose connection it is, whichever thread asks: that one may end before the connection does.
    runtime: Handle,
    dial: Dial,
    v4: quinn::Endpoint,
    v6: Option<quinn::Endpoint>,
    search: Mutex<Search>,
}

/// The connection, or where to look for the service that leads.
struct Search {
    live: Option<Live>,
    named: Vec<Named>,
    /// Of all addresses that are known: the one that was connected to last.
    last: usize,
    /// Where one that stands by says that the leader is.
    hint: Option<SocketAddr>,
}

/// A placement service as it was named to us, and where it was when it was looked up last.
struct Named {
    name: ServiceName,
    addrs: Vec<SocketAddr>,
    /// That has been said.
    cannot_be_found: bool,
}

#[derive(Clone)]
struct Live {
    connection: quinn::Connection,
    to: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no address of a placement service is known")]
    NoServers,
    #[error("placement service: {0}")]
    Dial(Box<DialError>),
    #[error("placement service: {0}")]
    Frame(#[from] FrameError),
    #[error("the placement service at {to} did not answer in {} s", .after.as_secs())]
    Timeout { to: SocketAddr, after: Duration },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("this process ends")]
    Ending,
    #[error("the placement service answered with something else than was asked for: {0}")]
    Nonsense(String),
}

impl ClientError {
    /// Where the service that leads is, if that is what the error says.
    fn leader(&self) -> Option<SocketAddr> {
        match self {
            ClientError::Refused(Refusal::NotLeader { leader }) => leader.as_ref()?.at,
            _ => None,
        }
    }
}

impl From<DialError> for ClientError {
    fn from(error: DialError) -> Self {
        ClientError::Dial(Box::new(error))
    }
}

impl PlacementClient {
    /// Connects on first use, to whichever of `servers` leads. Names among them are looked up then, and again when none of
    /// the addresses that are known leads to it. Has to be called inside a tokio runtime, which carries the connection.
    pub fn new(
        credentials: &Credentials,
        servers: Vec<impl Into<ServiceName>>,
    ) -> io::Result<Self> {
        let any = |ip: IpAddr| quic::connecting(UdpSocket::bind(SocketAddr::new(ip, 0))?);
        let named: Vec<Named> = servers
            .into_iter()
            .map(|server| Named::new(server.into()))
            .collect();
        let may_need_v6 = named.iter().any(|named| named.name.may_be_ipv6());
        let dial = Dial::new(credentials, Expected::role(Role::Placement), &[ALPN])
            .with_transport(Arc::new(transport()));
        Ok(PlacementClient {
            shared: Arc::new(Shared {
                runtime: Handle::current(),
                dial,
                v4: any(Ipv4Addr::UNSPECIFIED.into())?,
                // A host without IPv6 finds nobody there.
                v6: may_need_v6
                    .then(|| any(Ipv6Addr::UNSPECIFIED.into()).ok())
                    .flatten(),
                search: Mutex::new(Search {
                    live: None,
                    named,
                    last: 0,
                    hint: None,
                }),
            }),
        })
    }

    /// Tells what this node has, and hears what is wanted of it. Answered at once when that differs
    /// from [`Heartbeat::seen`], after [`HEARTBEAT_WAIT`] otherwise; call it again right away. When
    /// something changes on the node, a second heartbeat may overtake one that waits.
    pub async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<Desired, ClientError> {
        let request = Request::Heartbeat(heartbeat);
        match self.call(request, CALL_TIMEOUT + HEARTBEAT_WAIT).await? {
            Response::Desired(desired) => Ok(desired),
            other => Err(nonsense(other)),
        }
    }

    /// The same, without what was told before.
    pub async fn tell(
        &self,
        brief: &mut Brief,
        heartbeat: Heartbeat,
    ) -> Result<Desired, ClientError> {
        for _ in 0..2 {
            let request = brief.shorten(heartbeat.clone());
            let answer = self.call(request, CALL_TIMEOUT + HEARTBEAT_WAIT).await;
            let answer = answer.inspect_err(|_| brief.forget())?;
            if let Some(desired) = brief.hear(answer).map_err(|answer| nonsense(*answer))? {
                return Ok(desired);
            }
        }
        Err(nonsense(Response::TellAll))
    }

    /// A disk's record, checked; with the grant of its epoch if this process holds it.
    pub async fn record(&self, disk: DiskId) -> Result<Granted, ClientError> {
        match self.call(Request::Record { disk }, CALL_TIMEOUT).await? {
            Response::Record(record) => checked(disk, record).map(|record| *record),
            other => Err(nonsense(other)),
        }
    }

    /// One compare-and-swap of a disk's record. `Unknown` when it may or may not have happened, and
    /// also when the service could not be asked at all. With the grant of the epoch that this process
    /// has now, if it has one.
    pub async fn swap(
        &self,
        disk: DiskId,
        backend: BackendId,
        expected: Revision,
        change: Change,
    ) -> (SwapOutcome, Grant) {
        let request = Request::Swap {
            disk,
            backend,
            expected,
            change,
        };
        let answer = self.call(request, CALL_TIMEOUT).await;
        let outcome = answer.and_then(|response| match response {
            Response::Swapped(granted) => checked(disk, granted).map(|granted| {
                let Granted { record, grant } = *granted;
                (SwapOutcome::Done(Box::new(record)), grant)
            }),
            Response::Conflict(granted) => checked(disk, granted).map(|granted| {
                let Granted { record, grant } = *granted;
                (SwapOutcome::Conflict(Box::new(record)), grant)
            }),
            Response::ChangeRefused(why) => Ok(without(SwapOutcome::Refused(why))),
            other => Err(nonsense(other)),
        });
        outcome.unwrap_or_else(|error| match error {
            // Whoever may not ask, or asks for a disk that was deleted, does not own it.
            ClientError::Refused(Refusal::NotAllowed { .. } | Refusal::NoSuchDisk { .. }) => {
                tracing::warn!(%disk, "swap refused: {error}");
                without(SwapOutcome::Refused(ChangeRefused::NotOwner))
            }
            _ => {
                tracing::warn!(%disk, "the outcome of a swap is unknown: {error}");
                without(SwapOutcome::Unknown)
            }
        })
    }

    /// Where stores are reached; those that are unknown or refused are left out.
    pub async fn stores(&self, stores: Vec<StoreId>) -> Result<Vec<StoreAddress>, ClientError> {
        match self.call(Request::Stores { stores }, CALL_TIMEOUT).await? {
            Response::Stores(addresses) => Ok(addresses),
            other => Err(nonsense(other)),
        }
    }

    /// Tells what a store of this node keeps of disks' records.
    pub async fn tell_records(&self, records: Records) -> Result<(), ClientError> {
        match self.call(Request::Records(records), CALL_TIMEOUT).await? {
            Response::Noted => Ok(()),
            other => Err(nonsense(other)),
        }
    }

    /// Carried out on the runtime of the connection. If nobody waits for the answer any more, neither does the call.
    async fn call(&self, request: Request, within: Duration) -> Result<Response, ClientError> {
        let shared = self.shared.clone();
        let call = async move { shared.call(&request, within).await };
        let mut call = Call(self.shared.runtime.spawn(call));
        match (&mut call.0).await {
            Ok(answer) => answer,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(_) => Err(ClientError::Ending),
        }
    }
}

struct Call(JoinHandle<Result<Response, ClientError>>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    /// A service that only stands by has done nothing: then the one that leads is asked.
    async fn call(&self, request: &Request, within: Duration) -> Result<Response, ClientError> {
        let mut tries = 0..MAX_LEADERS;
        loop {
            let live = self.connected().await?;
            let answer = match timeout(within, exchange(&live.connection, request)).await {
                Ok(answer) => answer.map_err(ClientError::from),
                Err(_) => Err(ClientError::Timeout {
                    to: live.to,
                    after: within,
                }),
            };
            let answer = answer.map_err(|error| match live.connection.close_reason() {
                Some(reason) => self.dial.ended(live.to, &reason).into(),
                None => error,
            });
            match answer {
                Ok(Response::Refused(Refusal::NotLeader { leader })) => {
                    self.leave(&live, &leader).await;
                    if tries.next().is_none() {
                        return Err(Refusal::NotLeader { leader }.into());
                    }
                }
                Ok(Response::Refused(refusal)) => return Err(refusal.into()),
                answer => return answer,
            }
        }
    }

    /// The connection to the service that leads: where it was last, where it is said to be, or wherever it
    /// is found.
    async fn connected(&self) -> Result<Live, ClientError> {
        let mut search = self.search.lock().await;
        if let Some(live) = &search.live
            && live.connection.close_reason().is_none()
        {
            return Ok(live.clone());
        }
        let lost = search.live.take().is_some();
        let found = self.find(&mut search, lost).await;
        if found.is_err() && search.look_up().await {
            return self.find(&mut search, false).await;
        }
        found
    }

    /// Asks at each address that is known.
    async fn find(&self, search: &mut Search, lost: bool) -> Result<Live, ClientError> {
        let servers = search.addrs();
        let mut last = ClientError::NoServers;
        let count = servers.len();
        // The one that was just lost comes last.
        let first = search.last + usize::from(lost);
        let mut hints = 0..MAX_LEADERS;
        for step in 0..count {
            let index = (first + step) % count;
            let mut to = Some(servers[index]);
            while let Some(at) = search.hint.take().or(to.take()) {
                match timeout(CONNECT_TIMEOUT, self.connect(at)).await {
                    Ok(Ok(live)) => {
                        let known = servers.iter().position(|server| *server == at);
                        search.last = known.unwrap_or(index);
                        search.live = Some(live.clone());
                        return Ok(live);
                    }
                    Ok(Err(error)) => {
                        let hint = error.leader().filter(|hint| *hint != at);
                        // Two that name each other would do so for ever.
                        search.hint = hint.filter(|_| hints.next().is_some());
                        last = error;
                    }
                    Err(_) => {
                        last = ClientError::Timeout {
                            to: at,
                            after: CONNECT_TIMEOUT,
                        }
                    }
                }
            }
        }
        Err(last)
    }

    /// `live` does not lead any more.
    async fn leave(&self, live: &Live, leader: &Option<Leader>) {
        let mut search = self.search.lock().await;
        let current = search.live.as_ref();
        // Another call may have been here already.
        if current.is_some_and(|c| c.connection.stable_id() == live.connection.stable_id()) {
            search.live = None;
            search.last = (search.last + 1) % search.addrs().len().max(1);
            search.hint = leader.as_ref().and_then(|leader| leader.at);
        }
        live.connection.close(0u32.into(), b"another one leads");
    }

    async fn connect(&self, to: SocketAddr) -> Result<Live, ClientError> {
        let endpoint = match (&self.v6, to) {
            (Some(v6), SocketAddr::V6(_)) => v6,
            _ => &self.v4,
        };
        let connection = self.dial.connect(endpoint, to).await?;
        let welcome =
            self.hello(&connection)
                .await
                .map_err(|error| match connection.close_reason() {
                    Some(reason) => self.dial.ended(to, &reason).into(),
                    None => error,
                })?;
        tracing::info!(%to, version = welcome.version, program = welcome.program, "connected to the placement service");
        Ok(Live { connection, to })
    }

    async fn hello(&self, connection: &quinn::Connection) -> Result<Welcome, ClientError> {
        let hello = Hello {
            newest: VERSION,
            oldest: OLDEST_VERSION,
            program: env!("CARGO_PKG_VERSION").into(),
        };
        let answer: Result<Welcome, Refusal> = exchange(connection, &hello).await?;
        let welcome = answer?;
        if !(OLDEST_VERSION..=VERSION).contains(&welcome.version) {
            return Err(ClientError::Nonsense(format!(
                "it wants to speak version {} of the node protocol",
                welcome.version
            )));
        }
        Ok(welcome)
    }
}

impl Search {
    fn addrs(&self) -> Vec<SocketAddr> {
        let all = self.named.iter().flat_map(|named| &named.addrs);
        all.copied().collect()
    }

    /// Looks all names up. Whether another address is known now.
    async fn look_up(&mut self) -> bool {
        let before = self.addrs();
        for named in &mut self.named {
            named.look_up().await;
        }
        self.addrs().iter().any(|addr| !before.contains(addr))
    }
}

impl Named {
    fn new(name: ServiceName) -> Named {
        Named {
            addrs: match &name {
                ServiceName::At(addr) => vec![*addr],
                ServiceName::Named { .. } => Vec::new(),
            },
            name,
            cannot_be_found: false,
        }
    }

    /// While its name cannot be found it is looked for where it was.
    async fn look_up(&mut self) {
        match self.name.find().await {
            Ok(addrs) => {
                self.addrs = addrs;
                self.cannot_be_found = false;
            }
            Err(error) if !self.cannot_be_found => {
                tracing::warn!(
                    "the placement service {} cannot be found: {error}",
                    self.name
                );
                self.cannot_be_found = true;
            }
            Err(_) => {}
        }
    }
}

async fn exchange<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
    connection: &quinn::Connection,
    request: &Q,
) -> Result<A, FrameError> {
    let (mut send, mut receive) = connection
        .open_bi()
        .await
        .map_err(|error| FrameError::Ended(error.to_string()))?;
    frame::write(&mut send, request).await?;
    // A peer that stops reading early answers all the same.
    let _ = send.finish();
    frame::read(&mut receive).await
}

fn without(outcome: SwapOutcome) -> (SwapOutcome, Grant) {
    (outcome, Grant::default())
}

fn checked(disk: DiskId, record: Box<Granted>) -> Result<Box<Granted>, ClientError> {
    if record.id != disk {
        return Err(ClientError::Nonsense(format!("a record of {}", record.id)));
    }
    match record.check() {
        Ok(()) => Ok(record),
        Err(fault) => Err(ClientError::Nonsense(format!(
            "a record that cannot be true: {fault}"
        ))),
    }
}

fn nonsense(response: Response) -> ClientError {
    let text = format!("{response:?}");
    ClientError::Nonsense(text.chars().take(120).collect())
}

fn transport() -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(
            IDLE_TIMEOUT
                .try_into()
                .expect("a few seconds fit in a varint"),
        ));
    quic::few_packets(&mut transport);
    transport
}
