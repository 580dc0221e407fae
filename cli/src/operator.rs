//! The operator's side of the placement service's HTTPS API: one request, one answer. A command that only looks
//! hears at once that nobody is there; an order waits a while, and says so.

use crate::exit::{Code, Failure};
use crate::output::Output;
use anyhow::Context;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use placement_service::api::ErrorBody;
use placement_service::service_name::ServiceName;
use replicator::net::identity::{Credentials, Dial, Expected, Role, Verdict};
use replicator::words::HostName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::Cell;
use std::collections::VecDeque;
use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// Where operators are served unless something else was said.
pub const DEFAULT_PORT: u16 = 7401;
/// How long an order that does not stay to see it done waits for a placement service that is away.
pub const ORDER_PATIENCE: Duration = Duration::from_secs(15);
/// For an answer: longer than the longest `--wait`.
const ANSWER_PATIENCE: Duration = Duration::from_secs(135);
/// One address is given up for the next after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a command waits until a placement service leads: a lease, an election, and a little.
const ELECTION_PATIENCE: Duration = Duration::from_secs(15);
/// Between two rounds of asking, while nobody leads or nobody is there.
const PAUSE: Duration = Duration::from_millis(300);
/// How often one that stands by may send us on.
const MAX_HINTS: u32 = 3;
/// A peer cannot make us allocate more than this: several times a list of 100,000 disks, at some 600 bytes each.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// The same of the whole catalog, at some 2 KiB a disk: half a million disks.
const MAX_BACKUP_BYTES: usize = 1 << 30;
/// Where the whole catalog is asked for.
pub const BACKUP: &str = "/v1/backup";

/// How to reach the placement service.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "With every command")]
pub struct Connection {
    /// The placement service, as operators reach it: HOST[:PORT]; several, separated by commas, are
    /// asked in turn until the one that leads is found.
    #[arg(
        long = "service",
        global = true,
        env = "UKAI_SERVICE",
        default_value = "127.0.0.1",
        value_name = "HOST[:PORT]",
        value_delimiter = ','
    )]
    service: Vec<String>,

    /// The folder with ca.crt and your certificate and key [default: pki here if there is one, or /etc/ukai/pki].
    #[arg(long, global = true, env = "UKAI_PKI", value_name = "DIR")]
    pki: Option<PathBuf>,

    /// Your name in your certificate; needed only when the folder has several.
    #[arg(long = "as", global = true, env = "UKAI_AS", value_name = "NAME")]
    operator_name: Option<HostName>,
}

/// The folder with certificates: what was said, or the usual places.
pub fn pki_dir(said: Option<&Path>) -> PathBuf {
    let here = Path::new("pki");
    match said {
        Some(dir) => dir.to_path_buf(),
        None if here.is_dir() => here.to_path_buf(),
        None => PathBuf::from("/etc/ukai/pki"),
    }
}

impl Connection {
    /// The folder with certificates, where one was named.
    pub fn pki(&self) -> Option<PathBuf> {
        self.pki.clone()
    }

    pub fn credentials(&self) -> anyhow::Result<Credentials> {
        let dir = pki_dir(self.pki.as_deref());
        Ok(match &self.operator_name {
            Some(name) => Credentials::load(&dir, Role::Operator, name)?,
            None => Credentials::load_only(&dir, Role::Operator)?,
        })
    }

    pub fn service_names(&self) -> anyhow::Result<Vec<ServiceName>> {
        let all = self.service.iter();
        let all = all.map(|text| ServiceName::parse(text, DEFAULT_PORT));
        Ok(all.collect::<Result<_, _>>()?)
    }

    pub fn service(&self) -> anyhow::Result<Service> {
        let credentials = self.credentials()?;
        let names = self.service_names()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Service {
            dial: Dial::new(
                &credentials,
                Expected::role(Role::Placement),
                &[b"http/1.1"],
            ),
            names,
            said_missing: Cell::new(false),
            runtime,
            patience: None,
        })
    }
}

/// The placement service, for one command.
pub struct Service {
    dial: Dial,
    names: Vec<ServiceName>,
    /// That some of them cannot be found.
    said_missing: Cell<bool>,
    runtime: tokio::runtime::Runtime,
    patience: Option<Patience>,
}

/// How long an order waits for a placement service that is away: in all, however often it asks.
struct Patience {
    until: Instant,
    /// It is said once what is waited for.
    said: Cell<bool>,
    output: Output,
}

impl Patience {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    fn say(&self, what: impl std::fmt::Display) {
        if !self.said.replace(true) {
            self.output.say(what);
        }
    }
}

impl Service {
    /// From now on, and for `limit`, a placement service that is away is waited for. Nothing was sent to it then.
    pub fn patient(self, limit: Duration, output: Output) -> Service {
        let patience = Patience {
            until: Instant::now() + limit,
            said: Cell::new(false),
            output,
        };
        Service {
            patience: Some(patience),
            ..self
        }
    }

    pub fn get<A: DeserializeOwned>(&self, path: &str) -> anyhow::Result<A> {
        self.call(Method::GET, path, Bytes::new())
    }

    pub fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> anyhow::Result<A> {
        self.call(Method::POST, path, Bytes::from(serde_json::to_vec(body)?))
    }

    /// [`Service::post`] of what the placement service waits with, too: `body` is told what is left of our
    /// patience when it goes out.
    pub fn post_within<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: impl Fn(Duration) -> Q,
    ) -> anyhow::Result<A> {
        let body = || {
            let left = self.patience.as_ref().map(Patience::left);
            let text = serde_json::to_vec(&body(left.unwrap_or_default()));
            Bytes::from(text.expect("our own types become JSON"))
        };
        self.run(self.ask(Method::POST, path, body, self.patience.as_ref()))
    }

    pub fn put<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> anyhow::Result<A> {
        self.call(Method::PUT, path, Bytes::from(serde_json::to_vec(body)?))
    }

    pub fn patch<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> anyhow::Result<A> {
        self.call(Method::PATCH, path, Bytes::from(serde_json::to_vec(body)?))
    }

    pub fn delete<A: DeserializeOwned>(&self, path: &str) -> anyhow::Result<A> {
        self.call(Method::DELETE, path, Bytes::new())
    }

    /// Deletes what `body` names of what is at `path`.
    pub fn delete_of<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> anyhow::Result<A> {
        self.call(Method::DELETE, path, Bytes::from(serde_json::to_vec(body)?))
    }

    /// Lets `work` go on until it ends: for commands that ask more than once and listen for ctrl-c meanwhile.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// [`Service::get`], inside [`Service::run`]; without patience: whoever looks again and again has their own.
    pub async fn look<A: DeserializeOwned>(&self, path: &str) -> anyhow::Result<A> {
        self.ask(Method::GET, path, Bytes::new, None).await
    }

    fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<A> {
        let patience = self.patience.as_ref();
        self.run(self.ask(method, path, || body.clone(), patience))
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: impl Fn() -> Bytes,
        patience: Option<&Patience>,
    ) -> anyhow::Result<A> {
        let asked = self.ask_leading(method, path, body, patience);
        let (status, bytes) = asked.await?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).context(
                "the placement service answered something that this version does not understand",
            );
        }
        Err(refused(status, &bytes).into())
    }

    /// Asks one placement service after the other until one does not stand by. While none leads, waits for
    /// one a while; while none is there, for as long as we have patience. A request that was sent is not sent to
    /// another one, unless the first one said that it did nothing.
    async fn ask_leading(
        &self,
        method: Method,
        path: &str,
        body: impl Fn() -> Bytes,
        patience: Option<&Patience>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let left = || patience.map_or(Duration::ZERO, Patience::left);
        let until = Instant::now() + ELECTION_PATIENCE.max(left());
        loop {
            let mut away = None;
            let mut to_ask = match self.found().await {
                Ok(found) => found,
                Err(failure) => {
                    away = Some(failure);
                    VecDeque::new()
                }
            };
            let mut hints = 0..MAX_HINTS;
            let mut standing_by = None;
            while let Some(addr) = to_ask.pop_front() {
                let stream = match self.dialled(addr).await {
                    Ok(stream) => stream,
                    Err(failure) => {
                        away = Some(failure);
                        continue;
                    }
                };
                let asked = self.exchange(stream, method.clone(), path, body());
                let asked = tokio::time::timeout(ANSWER_PATIENCE, asked).await;
                let (status, bytes) = asked.map_err(|_| {
                    let why = format!("no answer within {} s", ANSWER_PATIENCE.as_secs());
                    self.unreachable(anyhow::anyhow!(why))
                })??;
                if status != StatusCode::MISDIRECTED_REQUEST {
                    return Ok((status, bytes));
                }
                let said: Option<ErrorBody> = serde_json::from_slice(&bytes).ok();
                let hint = said.and_then(|said| said.leader);
                if let Some(hint) = hint.filter(|hint| *hint != addr && hints.next().is_some()) {
                    to_ask.push_front(hint);
                }
                standing_by = Some((status, bytes));
            }
            let why = match (standing_by, away) {
                (Some(answer), _) if Instant::now() >= until => return Ok(answer),
                (Some(_), _) => "none leads".into(),
                // Only what may pass by itself is waited for.
                (None, Some(failure)) if failure.code != Code::Unreachable || left().is_zero() => {
                    return Err(failure);
                }
                (None, Some(failure)) => failure.why.unwrap_or(failure.what),
                (None, None) => return Err(self.unreachable(anyhow::anyhow!("no address"))),
            };
            if let Some(patience) = patience {
                patience.say(format_args!(
                    "waiting for the placement service at {}: {why}",
                    self.places()
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Where the names lead now. Those that lead nowhere are left out, unless none is left then.
    async fn found(&self) -> Result<VecDeque<SocketAddr>, Failure> {
        let mut found = VecDeque::new();
        let mut missing = Vec::new();
        for name in &self.names {
            match name.find().await {
                Ok(addrs) => found.extend(addrs),
                Err(error) => missing.push(format!("{name} cannot be found: {error}")),
            }
        }
        let missing = missing.join("; ");
        if found.is_empty() {
            return Err(self.unreachable(anyhow::anyhow!(missing)));
        }
        if !missing.is_empty() && !self.said_missing.replace(true) {
            tracing::warn!("{missing}; the others are asked");
        }
        Ok(found)
    }

    /// A connection on which nothing was said yet.
    async fn dialled(&self, addr: SocketAddr) -> Result<TlsStream<TcpStream>, Failure> {
        let (tls, verdict) = self.dial.tls();
        let name = self
            .dial
            .server_name()
            .try_into()
            .expect("names of peers are DNS names");
        let dialling = async {
            let tcp = TcpStream::connect(addr)
                .await
                .map_err(|error| self.unreachable(error))?;
            let connector = tokio_rustls::TlsConnector::from(tls);
            let stream = connector.connect(name, tcp).await;
            stream.map_err(|error| match of_tls(&error) {
                Some(_) => self.not_ours(&verdict, &error),
                // It went in the middle of it.
                None => self.unreachable(error),
            })
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, dialling).await {
            Ok(dialled) => dialled,
            Err(_) => Err(self.unreachable(anyhow::anyhow!("{addr}: no answer in time"))),
        }
    }

    async fn exchange(
        &self,
        stream: TlsStream<TcpStream>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.dial.server_name())
            .header("content-type", "application/json")
            .body(Full::new(body))
            .expect("our own paths are well formed");
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(error))?;
        let status = response.status();
        let most = match path {
            BACKUP => MAX_BACKUP_BYTES,
            _ => MAX_ANSWER_BYTES,
        };
        let bytes = whole(response.into_body(), most).await;
        driver.abort();
        let bytes = bytes.map_err(|error| match error {
            Cut::TooLong { most } => Failure::new(
                Code::Failed,
                format!(
                    "the placement service's answer is larger than {} MiB",
                    most >> 20
                ),
            )
            .because(format!("{path} has more to say than this command takes")),
            Cut::Ended(error) => self.unreachable(error),
        })?;
        Ok((status, bytes))
    }

    fn places(&self) -> String {
        let places: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        places.join(" or ")
    }

    fn unreachable(&self, why: impl Into<anyhow::Error>) -> Failure {
        Failure::new(
            Code::Unreachable,
            format!("the placement service at {} does not answer", self.places()),
        )
        .because(format!("{:#}", why.into()))
        .try_next("is `ukai placement` running there? --service and UKAI_SERVICE say where to look")
    }

    /// A connection that stood has ended. Being refused for one's certificate shows only when it is used.
    fn broken(&self, error: hyper::Error) -> Failure {
        match of_tls(&error) {
            Some(rustls::Error::AlertReceived(alert)) => Failure::new(
                Code::Refused,
                format!(
                    "the placement service at {} refused our certificate",
                    self.places()
                ),
            )
            .because(format!("{alert:?}"))
            .try_next("its log says more; `ukai init` issues a new one"),
            _ => self.unreachable(error),
        }
    }

    fn not_ours(&self, verdict: &Verdict, error: &std::io::Error) -> Failure {
        Failure::new(
            Code::Refused,
            format!("{} is not a placement service that we trust", self.places()),
        )
        .because(verdict.fault(error))
        .try_next("do both sides have certificates of the same `ukai init`?")
    }
}

/// Why there is no whole answer.
enum Cut {
    TooLong { most: usize },
    Ended(anyhow::Error),
}

async fn whole<B>(body: B, most: usize) -> Result<Bytes, Cut>
where
    B: hyper::body::Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    match Limited::new(body, most).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Cut::TooLong { most }),
        Err(error) => Err(Cut::Ended(anyhow::Error::from_boxed(error))),
    }
}

/// The fault of TLS that is behind an error, if one is.
fn of_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        let within = error.downcast_ref::<std::io::Error>();
        let within = within.and_then(|error| error.get_ref());
        let tls = within.and_then(|inner| inner.downcast_ref());
        if let Some(tls) = tls.or_else(|| error.downcast_ref()) {
            return Some(tls);
        }
        next = error.source();
    }
    None
}

/// What the service said when it did not do it.
fn refused(status: StatusCode, bytes: &[u8]) -> Failure {
    let code = match status {
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT
        | StatusCode::MISDIRECTED_REQUEST => Code::Unreachable,
        status if status.is_client_error() => Code::Refused,
        _ => Code::Failed,
    };
    let said: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let text = |key: &str| {
        said.get(key)
            .and_then(|value| value.as_str())
            .filter(|text| !text.is_empty())
            .map(str::to_string)
    };
    let mut failure = Failure::new(
        code,
        text("error").unwrap_or_else(|| format!("the placement service answered {status}")),
    );
    failure.why = text("why");
    failure.next = text("try");
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_is_too_long_is_told_from_one_that_never_came() {
        let body = || Full::new(Bytes::from_static(b"1234"));
        assert!(matches!(whole(body(), 4).await, Ok(bytes) if bytes == "1234"));
        let cut = whole(body(), 3).await;
        assert!(matches!(cut, Err(Cut::TooLong { most: 3 })));
    }
}
