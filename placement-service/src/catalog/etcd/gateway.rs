//! One question to etcd: JSON over HTTP, by way of the gateway that every etcd member has (`/v3/…`).
//!
//! Members are asked in turn: one that cannot be reached costs a moment, not the question. What may have
//! been done already is not asked again: that outcome is unknown, and said to be ([`Fault::Unknown`]).

use super::EtcdAddress;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout, timeout_at};

/// One member is given up for the next after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// One member's answer is waited for this long: a member that is cut off from the others does not say so.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// All of it, below the time after which nodes give up a call.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(4);
/// Idle connections that are kept.
const MAX_IDLE: usize = 16;
/// A page of the largest values, in base64.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Whether a question may be asked twice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It changes nothing, or nothing more the second time.
    Harmless,
    Never,
}

#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Nothing was changed.
    #[error("no member of etcd can be reached: {0}")]
    Unreachable(String),
    /// Nothing was changed.
    #[error("etcd refuses: {0}")]
    Refused(String),
    /// Whether it was done is not known.
    #[error("etcd did not say how it ended: {0}")]
    Unknown(String),
}

/// Blocks: to be used outside of asynchronous code, or with `spawn_blocking`.
pub struct Gateway {
    members: Vec<String>,
    tls: Option<Arc<ClientConfig>>,
    /// The member that answered last.
    current: AtomicUsize,
    idle: Mutex<Vec<Line>>,
    /// Carries the connections; taken when dropped.
    runtime: Option<Runtime>,
}

/// A connection to a member.
struct Line {
    member: usize,
    sender: SendRequest<Full<Bytes>>,
}

/// What etcd's gateway says of an error.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Complaint {
    error: String,
    message: String,
    code: u32,
}

/// gRPC's codes for what was certainly not done.
const INVALID_ARGUMENT: u32 = 3;
const PERMISSION_DENIED: u32 = 7;
const RESOURCE_EXHAUSTED: u32 = 8;
const UNAUTHENTICATED: u32 = 16;

impl Gateway {
    pub fn new(address: &EtcdAddress, tls: Option<Arc<ClientConfig>>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("etcd")
            .enable_all()
            .build()?;
        Ok(Gateway {
            members: address.members.clone(),
            tls,
            current: AtomicUsize::new(0),
            idle: Mutex::default(),
            runtime: Some(runtime),
        })
    }

    pub fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &'static str,
        question: &Q,
        repeat: Repeat,
    ) -> Result<A, Fault> {
        let body = serde_json::to_vec(question).expect("our own questions are plain data");
        let runtime = self.runtime.as_ref().expect("taken only when dropped");
        let answer = runtime.block_on(self.exchange(path, body.into(), repeat))?;
        serde_json::from_slice(&answer).map_err(|error| {
            Fault::Unknown(format!("its answer to {path} makes no sense: {error}"))
        })
    }

    async fn exchange(
        &self,
        path: &'static str,
        body: Bytes,
        repeat: Repeat,
    ) -> Result<Bytes, Fault> {
        let until = Instant::now() + QUESTION_TIMEOUT;
        let mut last = Fault::Unreachable("there was no time to ask".into());
        // Twice round: an idle connection may turn out to be dead without its member being so.
        for _ in 0..self.members.len() * 2 {
            if Instant::now() >= until {
                break;
            }
            let mut line = match self.line(until).await {
                Ok(line) => line,
                Err(fault) => {
                    last = fault;
                    continue;
                }
            };
            let member = line.member;
            let request = Request::post(path)
                .header("host", &self.members[member])
                .header("content-type", "application/json")
                .body(Full::new(body.clone()))
                .expect("our own paths are well formed");
            let within = until.min(Instant::now() + ANSWER_TIMEOUT);
            let fault = match timeout_at(within, line.ask(request)).await {
                Ok(Ok((StatusCode::OK, answer))) => {
                    self.keep(line);
                    return Ok(answer);
                }
                Ok(Ok((status, answer))) => {
                    self.keep(line);
                    complaint(status, &answer)
                }
                Ok(Err(Broken::Unsent)) => continue,
                Ok(Err(Broken::Lost(why))) => Fault::Unknown(self.named(member, &why)),
                Err(_) => Fault::Unknown(self.named(member, "no answer in time")),
            };
            match fault {
                Fault::Refused(_) => return Err(fault),
                _ => self.leave(member),
            }
            if repeat == Repeat::Never {
                return Err(fault);
            }
            last = fault;
        }
        Err(last)
    }

    /// A connection to the current member; where it cannot be had, another member is the current one.
    async fn line(&self, until: Instant) -> Result<Line, Fault> {
        let member = self.current.load(Ordering::Relaxed) % self.members.len();
        loop {
            let kept = self.idle().pop();
            match kept {
                Some(mut line) if line.member == member => {
                    if line.sender.ready().await.is_ok() {
                        return Ok(line);
                    }
                }
                // Of a member that was left.
                Some(_) => {}
                None => break,
            }
        }
        let within = until.min(Instant::now() + CONNECT_TIMEOUT);
        let why = match timeout_at(within, self.connect(member)).await {
            Ok(Ok(sender)) => return Ok(Line { member, sender }),
            Ok(Err(why)) => why,
            Err(_) => "no answer in time".into(),
        };
        self.leave(member);
        Err(Fault::Unreachable(self.named(member, &why)))
    }

    async fn connect(&self, member: usize) -> Result<SendRequest<Full<Bytes>>, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let at = &self.members[member];
        let tcp = TcpStream::connect(at).await.map_err(|e| text(&e))?;
        let _ = tcp.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return handshake(tcp).await;
        };
        let host = at.rsplit_once(':').map_or(at.as_str(), |(host, _)| host);
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = host.try_into().map_err(|_| "no name for TLS".to_owned())?;
        let connector = tokio_rustls::TlsConnector::from(tls.clone());
        let stream = connector.connect(name, tcp).await.map_err(|e| text(&e))?;
        handshake(stream).await
    }

    /// The next question goes to another member, unless it does already.
    fn leave(&self, member: usize) {
        let next = (member + 1) % self.members.len();
        let _ = self
            .current
            .compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn keep(&self, line: Line) {
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(line);
        }
    }

    fn named(&self, member: usize, why: &str) -> String {
        format!("{}: {why}", self.members[member])
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Line>> {
        // Pushed to and popped from, nothing more.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for it is not allowed where we may be dropped, and nothing in it is worth it.
            runtime.shutdown_background();
        }
    }
}

enum Broken {
    /// The question never left.
    Unsent,
    Lost(String),
}

impl Line {
    async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), Broken> {
        let response = match self.sender.try_send_request(request).await {
            Ok(response) => response,
            Err(mut error) => {
                return Err(match error.take_message() {
                    Some(_) => Broken::Unsent,
                    None => Broken::Lost(error.error().to_string()),
                });
            }
        };
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| Broken::Lost(error.to_string()))?;
        Ok((status, body.to_bytes()))
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let greeted = timeout(CONNECT_TIMEOUT, http1::handshake(TokioIo::new(stream))).await;
    let (sender, connection) = match greeted {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("no answer in time".into()),
    };
    tokio::spawn(async move {
        // Whoever waits for an answer hears of the error there.
        let _ = connection.await;
    });
    Ok(sender)
}

fn complaint(status: StatusCode, answer: &[u8]) -> Fault {
    let said: Complaint = serde_json::from_slice(answer).unwrap_or_default();
    let text = match (said.error.is_empty(), said.message.is_empty()) {
        (false, _) => said.error,
        (true, false) => said.message,
        (true, true) => format!("HTTP status {status}"),
    };
    match said.code {
        INVALID_ARGUMENT | PERMISSION_DENIED | RESOURCE_EXHAUSTED | UNAUTHENTICATED => {
            Fault::Refused(text)
        }
        // A leader that steps down has perhaps passed it on.
        _ => Fault::Unknown(text),
    }
}
