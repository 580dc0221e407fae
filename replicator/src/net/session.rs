//! One connection as the store's node sees it: hello, then requests in, answers out.
//!
//! One task does all of it, so that an answer that is there at once goes out without waking another.
//! It stops reading while too much is in the store's hands, or while the peer does not take its
//! answers: QUIC's flow control then stops the peer, and a peer that misbehaves costs only itself.

use super::admission::{Admission, Rules};
use super::identity::Identity;
use super::{Close, Serve, no_common_version, no_such_store};
use crate::message::{Content, Refusal, Reply, Request};
use crate::wire::{Call, Decoder, Hello, Message, VERSIONS, Verdict, WireError, answered};
use crate::words::{BLOCK_BYTES, StoreId};
use bytes::{Bytes, BytesMut};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

/// Requests in the store's hands, by what they and their answers may weigh. Above it no more is read.
const MAX_IN_FLIGHT_BYTES: usize = 16 << 20;
/// What a request weighs beside its data: bounds how many small ones there are.
const REQUEST_BYTES: usize = 1 << 10;
/// A peer says hello within this, finishes a frame that it began, and takes what it asked for.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const STALL_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 30 });
/// Answers that are collected into one write to the peer, and writes into one of the store.
const BATCH_BYTES: usize = 256 << 10;

/// Why a session ended before the peer ended it.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("sent what is not of this protocol: {0}")]
    Malformed(#[from] WireError),
    #[error("{0}")]
    Version(String),
    #[error("{0}")]
    NoSuchStore(String),
    #[error("did not {0} in time")]
    Stalled(&'static str),
    #[error("went away: {0}")]
    Gone(String),
}

/// Serves a peer that was let in until it goes or misbehaves.
pub(super) async fn run<S: Serve>(
    connection: quinn::Connection,
    peer: &Identity,
    find: &(dyn Fn(StoreId) -> Option<S> + Send + Sync),
    rules: Rules,
) {
    let from = connection.remote_address();
    let Err(ended) = serve(&connection, peer, find, rules).await else {
        tracing::debug!(%peer, %from, "left");
        connection.close(Close::Done.code(), b"");
        return;
    };
    let close = match &ended {
        Ended::Gone(_) => {
            tracing::debug!(%peer, %from, "{ended}");
            return;
        }
        Ended::Malformed(_) => Close::Malformed,
        Ended::Version(_) => Close::Version,
        Ended::NoSuchStore(_) => Close::NoSuchStore,
        Ended::Stalled(_) => Close::Stalled,
    };
    tracing::warn!(%peer, %from, "{ended}; its connection is closed");
    connection.close(close.code(), ended.to_string().as_bytes());
}

async fn serve<S: Serve>(
    connection: &quinn::Connection,
    peer: &Identity,
    find: &(dyn Fn(StoreId) -> Option<S> + Send + Sync),
    rules: Rules,
) -> Result<(), Ended> {
    let deadline = Instant::now() + HELLO_TIMEOUT;
    let (mut send, mut recv) = timeout_at(deadline, connection.accept_bi())
        .await
        .map_err(|_| Ended::Stalled("open its stream"))?
        .map_err(gone)?;
    let (hello, rest) = timeout_at(deadline, read_hello(&mut recv))
        .await
        .map_err(|_| Ended::Stalled("say hello"))??;
    let store = find(hello.store);
    let welcome = hello.judge(VERSIONS, store.is_some());
    send.write_chunk(welcome.encode()).await.map_err(gone)?;
    match (welcome.verdict, store) {
        (Verdict::Speak(version), Some(store)) => {
            tracing::info!(%peer, from = %connection.remote_address(), store = %hello.store, version, "connected");
            let admission = Admission::new(rules, peer.clone());
            let mut session = Session::new(store, (version, admission), send, recv);
            session.decoder.push(rest);
            session.run().await
        }
        (verdict, _) => {
            // The peer reads the verdict and leaves; if it does not, the reason is in the close.
            let _ = send.finish();
            let _ = timeout(Duration::from_secs(1), connection.closed()).await;
            Err(match verdict {
                Verdict::NoCommonVersion => {
                    Ended::Version(no_common_version(VERSIONS, hello.versions))
                }
                _ => Ended::NoSuchStore(no_such_store(hello.store)),
            })
        }
    }
}

/// The hello, and what came behind it.
async fn read_hello(recv: &mut quinn::RecvStream) -> Result<(Hello, Bytes), Ended> {
    let mut bytes = BytesMut::new();
    loop {
        if let Some(len) = Hello::expected_len(&bytes)?
            && bytes.len() >= len
        {
            let (hello, len) = Hello::decode(&bytes)?;
            return Ok((hello, bytes.split_off(len).freeze()));
        }
        match recv.read_chunk(2048, true).await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.bytes),
            Ok(None) => return Err(Ended::Gone("without a word".into())),
            Err(error) => return Err(gone(error)),
        }
    }
}

fn gone(error: impl std::fmt::Display) -> Ended {
    Ended::Gone(error.to_string())
}

struct Session<S> {
    store: S,
    /// What is spoken.
    version: u16,
    admission: Admission,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    decoder: Decoder<Request>,
    /// The store's threads put answers here; never more than were let in.
    answered: mpsc::UnboundedSender<Answer>,
    answers: mpsc::UnboundedReceiver<Answer>,
    in_flight: usize,
    /// Writes that came together, for the store to take as one.
    writes: Vec<(Write, Request)>,
    write_bytes: usize,
    out: Vec<Bytes>,
}

/// What its answer needs.
#[derive(Clone, Copy)]
struct Write {
    call: Call,
    weight: usize,
}

struct Answer {
    call: Call,
    reply: Reply,
    weight: usize,
}

impl<S: Serve> Session<S> {
    fn new(
        store: S,
        (version, admission): (u16, Admission),
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> Self {
        let (answered, answers) = mpsc::unbounded_channel();
        Session {
            store,
            version,
            admission,
            send,
            recv,
            decoder: Decoder::new(),
            answered,
            answers,
            in_flight: 0,
            writes: Vec::new(),
            write_bytes: 0,
            out: Vec::new(),
        }
    }

    async fn run(&mut self) -> Result<(), Ended> {
        let mut chunks = [const { Bytes::new() }; 64];
        // When the frame that is half here was begun.
        let mut begun: Option<Instant> = None;
        loop {
            while self.in_flight < MAX_IN_FLIGHT_BYTES
                && let Some((call, request)) = self.decoder.next()?
            {
                begun = None;
                self.submit(call, request);
            }
            self.submit_writes();
            if self.send_ready().await?.is_break() {
                // Some left the store's hands: there is room again for what is held.
                continue;
            }
            let reading = self.in_flight < MAX_IN_FLIGHT_BYTES;
            begun = match self.decoder.held() {
                0 => None,
                _ if !reading => None,
                _ => begun.or_else(|| Some(Instant::now())),
            };
            let deadline = begun.unwrap_or_else(Instant::now) + STALL_TIMEOUT;
            tokio::select! {
                answer = self.answers.recv() => {
                    self.collect(answer.expect("the session holds a sender itself"));
                }
                read = self.recv.read_chunks(&mut chunks), if reading => match read {
                    Ok(Some(count)) => {
                        for chunk in &mut chunks[..count] {
                            self.decoder.push(std::mem::take(chunk));
                        }
                    }
                    Ok(None) => return Ok(()),
                    Err(error) => return Err(gone(error)),
                },
                () = tokio::time::sleep_until(deadline), if begun.is_some() => {
                    return Err(Ended::Stalled("finish a frame"));
                }
            }
        }
    }

    fn submit(&mut self, call: Call, request: Request) {
        tracing::trace!(call = call.0, kind = request.kind(), "request");
        let weight = weight(&request);
        self.in_flight += weight;
        let answered = self.answered.clone();
        let done = move |reply| {
            // A session that has ended needs no answer.
            let _ = answered.send(Answer {
                call,
                reply,
                weight,
            });
        };
        let store = &self.store;
        if let Err(refusal) = self.admission.admit(&request, |disk| store.shown_by(disk)) {
            return done(Reply::Refused(refusal));
        }
        match &request {
            Request::Write {
                content: Content::Data(payload),
                ..
            } if !payload.is_intact() => done(Reply::Refused(Refusal::BadChecksum)),
            Request::Write { content, .. } => {
                self.write_bytes += content.data_bytes();
                self.writes.push((Write { call, weight }, request));
                if self.write_bytes >= BATCH_BYTES {
                    self.submit_writes();
                }
            }
            _ => {
                // It may be about what was written before it.
                self.submit_writes();
                self.store.submit(request, done);
            }
        }
    }

    fn submit_writes(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        self.write_bytes = 0;
        let (whose, writes): (Vec<Write>, Vec<Request>) = self.writes.drain(..).unzip();
        let (whose, answered) = (Arc::<[Write]>::from(whose), self.answered.clone());
        self.store.submit_writes(writes, move |index, reply| {
            let Write { call, weight } = whose[index];
            // A session that has ended needs no answer.
            let _ = answered.send(Answer {
                call,
                reply,
                weight,
            });
        });
    }

    /// Sends what has been answered; `Break` if there was something.
    async fn send_ready(&mut self) -> Result<ControlFlow<()>, Ended> {
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Ok(answer) = self.answers.try_recv()
        {
            bytes += self.collect(answer);
        }
        if self.out.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        timeout(STALL_TIMEOUT, self.send.write_all_chunks(&mut self.out))
            .await
            .map_err(|_| Ended::Stalled("take its answers"))?
            .map_err(gone)?;
        self.out.clear();
        Ok(ControlFlow::Break(()))
    }

    /// Encodes an answer; how many bytes it has.
    fn collect(&mut self, answer: Answer) -> usize {
        if let Reply::Refused(refusal) = &answer.reply {
            tracing::debug!(call = answer.call.0, %refusal, "refused");
        }
        self.in_flight -= answer.weight;
        let frame = answered(answer.reply, self.version).encode(answer.call);
        let len = frame.len();
        self.out.push(frame.head);
        if !frame.data.is_empty() {
            self.out.push(frame.data);
        }
        len
    }
}

/// What a request and its answer may hold in memory.
fn weight(request: &Request) -> usize {
    let data = match request {
        Request::Write {
            content: Content::Data(payload),
            ..
        } => payload.data.len(),
        Request::Read { blocks, .. } => blocks.count as usize * BLOCK_BYTES as usize,
        // Only what waits for its turn, and the answer's table at worst: what a pull brings is bounded where it is
        // carried out (pull.rs). A source may hang, and a guest's writes behind the pulls must not wait for it.
        Request::Pull { .. } | Request::Heal { .. } => 4 << 10,
        Request::Fetch { blocks, .. } => {
            let count: usize = blocks.iter().map(|part| part.count as usize).sum();
            count * BLOCK_BYTES as usize
        }
        // Their tables, at worst.
        Request::List { .. } | Request::Survey { .. } => 128 << 10,
        Request::Seal { grant, record, .. } => (128 << 10) + grant.len() + record.len(),
        Request::Digest { .. } => 32 << 10,
        // A window of the log, not the blocks themselves.
        Request::Verify { .. } => 512 << 10,
        _ => 0,
    };
    REQUEST_BYTES + data
}
