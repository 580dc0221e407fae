//! The task behind the links to one far store: finds it, connects, says hello, carries frames, and
//! begins again when the connection breaks.

use super::client::Place;
use super::identity::{Credentials, Dial, DialError, Expected, Role};
use super::link::{Nonsense, Remote};
use super::{Close, no_common_version, no_such_store, transport};
use crate::message::Reply;
use crate::wire::{ALPN, Decoder, Hello, Verdict, Welcome, WireError};
use crate::words::StoreId;
use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// From the first packet to the welcome.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// After an interruption, attempts are short at first, because most are a restart: packets to a process
/// that is not there yet are repeated later and later. But never shorter than some round trips.
const RECONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const RECONNECT_ROUND_TRIPS: u32 = 8;
/// So many of them: as long as a restart may take without an ejection.
const SHORT_ATTEMPTS: u32 = 5;
/// Between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Gives a store's place as it is known now; it is asked again before each attempt to connect.
pub(super) type Resolve = Arc<dyn Fn(StoreId) -> Option<Place> + Send + Sync>;

/// What it takes to reach a store.
pub(super) struct Dialer {
    pub endpoint: quinn::Endpoint,
    pub credentials: Credentials,
    pub resolve: Resolve,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum NoSession {
    #[error("nobody has said where it is")]
    Unknown,
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("it does not answer")]
    Timeout,
    #[error("{0}")]
    Version(String),
    #[error("{0}")]
    NoSuchStore(String),
    #[error("it sent what is not of this protocol: {0}")]
    Malformed(#[from] WireError),
    #[error("it sent what makes no sense: {0}")]
    Nonsense(#[from] Nonsense),
    #[error("it does not take what is sent to it")]
    TooSlow,
    #[error("the connection ended: {0}")]
    Gone(String),
}

impl NoSession {
    fn close(&self) -> Close {
        match self {
            NoSession::Malformed(_) | NoSession::Nonsense(_) => Close::Malformed,
            NoSession::Version(_) => Close::Version,
            NoSession::NoSuchStore(_) => Close::NoSuchStore,
            NoSession::TooSlow => Close::Stalled,
            _ => Close::Done,
        }
    }
}

/// Keeps a session with `remote` for as long as any link wants one.
pub(super) async fn keep_up(remote: Arc<Remote>, dialer: Dialer) {
    let mut pause = FIRST_PAUSE;
    let mut said = String::new();
    // How long an attempt may take, and for how many more; after that the usual time.
    let mut short = (CONNECT_TIMEOUT, 0u32);
    while remote.is_wanted() {
        let patience = match short {
            (patience, 1..) => patience,
            _ => CONNECT_TIMEOUT,
        };
        short.1 = short.1.saturating_sub(1);
        let why = match timeout(patience, dialer.connect(remote.store)).await {
            Ok(Ok(session)) => {
                let round_trips = session.connection.rtt() * RECONNECT_ROUND_TRIPS;
                let patience = RECONNECT_TIMEOUT.max(round_trips).min(CONNECT_TIMEOUT);
                short = (patience, SHORT_ATTEMPTS);
                tracing::info!(store = %remote.store, at = %session.connection.remote_address(), "connected");
                pause = FIRST_PAUSE;
                said.clear();
                match session.run(&remote).await {
                    Ok(()) => return,
                    Err(why) => why,
                }
            }
            Ok(Err(why)) => why,
            Err(_) => NoSession::Timeout,
        };
        let text = why.to_string();
        // Once is enough for what stays the same for hours.
        if text != said {
            tracing::warn!(store = %remote.store, "not connected: {text}");
            said = text;
        }
        // It costs nobody anything to look again whether its address has come.
        if matches!(why, NoSession::Unknown) {
            pause = FIRST_PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

struct Session {
    connection: quinn::Connection,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    version: u16,
    /// What came behind the welcome.
    rest: Bytes,
}

impl Dialer {
    async fn connect(&self, store: StoreId) -> Result<Session, NoSession> {
        let Place { addr, host } = (self.resolve)(store).ok_or(NoSession::Unknown)?;
        let dial = Dial::new(&self.credentials, Expected::host(Role::Node, host), &[ALPN])
            .with_transport(transport::config(0));
        let connection = dial.connect(&self.endpoint, addr).await?;
        let greeted = greet(&connection, store).await;
        match greeted {
            Ok((send, recv, version, rest)) => Ok(Session {
                connection,
                send,
                recv,
                version,
                rest,
            }),
            // A refused certificate shows only now.
            Err(NoSession::Gone(why)) => Err(match connection.close_reason() {
                Some(error) => dial.ended(addr, &error).into(),
                None => NoSession::Gone(why),
            }),
            Err(why) => {
                connection.close(why.close().code(), why.to_string().as_bytes());
                Err(why)
            }
        }
    }
}

/// Says hello and hears the verdict.
async fn greet(
    connection: &quinn::Connection,
    store: StoreId,
) -> Result<(quinn::SendStream, quinn::RecvStream, u16, Bytes), NoSession> {
    let hello = Hello::to(store);
    let (mut send, mut recv) = connection.open_bi().await.map_err(gone)?;
    send.write_chunk(hello.encode()).await.map_err(gone)?;
    let mut bytes = BytesMut::new();
    let welcome = loop {
        if let Some(len) = Hello::expected_len(&bytes)?
            && bytes.len() >= len
        {
            let (welcome, len) = Welcome::decode(&bytes)?;
            let _ = bytes.split_to(len);
            break welcome;
        }
        match recv.read_chunk(2048, true).await.map_err(gone)? {
            Some(chunk) => bytes.extend_from_slice(&chunk.bytes),
            None => return Err(NoSession::Gone("it hung up without a word".into())),
        }
    };
    match welcome.verdict {
        Verdict::Speak(version) if hello.versions.common(welcome.versions) == Some(version) => {
            Ok((send, recv, version, bytes.freeze()))
        }
        Verdict::Speak(_) => Err(WireError::Field("version").into()),
        Verdict::NoCommonVersion => Err(NoSession::Version(no_common_version(
            welcome.versions,
            hello.versions,
        ))),
        Verdict::NoSuchStore => Err(NoSession::NoSuchStore(no_such_store(store))),
    }
}

impl Session {
    /// Carries frames both ways until the connection breaks, or (`Ok`) no link is left.
    async fn run(mut self, remote: &Remote) -> Result<(), NoSession> {
        remote.connected(&self.connection, self.version);
        let ended = self.carry(remote).await;
        remote.disconnected();
        let close = ended.as_ref().err().map_or(Close::Done, NoSession::close);
        let reason = ended
            .as_ref()
            .err()
            .map_or(String::new(), |why| why.to_string());
        self.connection.close(close.code(), reason.as_bytes());
        ended
    }

    async fn carry(&mut self, remote: &Remote) -> Result<(), NoSession> {
        let mut decoder = Decoder::<Reply>::new();
        decoder.push(std::mem::take(&mut self.rest));
        let mut chunks = [const { Bytes::new() }; 64];
        let mut out: Vec<Bytes> = Vec::new();
        let mut sent = 0;
        loop {
            if sent == out.len() {
                out.clear();
                sent = 0;
                remote.take_queue(&mut out).ok_or(NoSession::TooSlow)?;
            }
            tokio::select! {
                // Writing waits where the peer's window is full; reading goes on meanwhile, or two
                // peers could wait for each other.
                written = self.send.write_chunks(&mut out[sent..]), if sent < out.len() => {
                    sent += written.map_err(gone)?.chunks;
                }
                read = self.recv.read_chunks(&mut chunks) => {
                    let count = read.map_err(gone)?;
                    let count = count.ok_or_else(|| NoSession::Gone("it hung up".into()))?;
                    for chunk in &mut chunks[..count] {
                        decoder.push(std::mem::take(chunk));
                    }
                    while let Some((call, reply)) = decoder.next()? {
                        remote.answered(call, reply)?;
                    }
                }
                () = remote.wake.notified(), if sent == out.len() => {
                    if !remote.is_wanted() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn gone(error: impl std::fmt::Display) -> NoSession {
    NoSession::Gone(error.to_string())
}
