//! The operator's side of the placement service's HTTPS API: one request, one answer.

use crate::exit::{Code, Failure};
use anyhow::Context;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use placement_service::api::ErrorBody;
use replicator::net::identity::{Credentials, Dial, Expected, Role, Verdict};
use replicator::words::HostName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// Where operators are served unless something else was said.
pub const DEFAULT_PORT: u16 = 7401;
/// Longer than the longest `--wait`.
const PATIENCE: Duration = Duration::from_secs(135);
/// One address is given up for the next after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a command waits until a placement service leads: a lease, an election, and a little.
const ELECTION_PATIENCE: Duration = Duration::from_secs(15);
const ELECTION_PAUSE: Duration = Duration::from_millis(300);
/// How often one that stands by may send us on.
const MAX_HINTS: u32 = 3;
/// Far above any answer; a peer cannot make us allocate more.
const MAX_ANSWER_BYTES: usize = 64 << 20;

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

/// Resolves `HOST[:PORT]`: all addresses that the name has, in the order to try them.
pub fn resolve(text: &str, default_port: u16) -> anyhow::Result<Vec<SocketAddr>> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(vec![addr]);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, default_port)]);
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => {
            let port = port
                .parse()
                .with_context(|| format!("{port:?} in {text} is not a port"))?;
            (host, port)
        }
        None => (text, default_port),
    };
    let found = (host, port)
        .to_socket_addrs()
        .with_context(|| format!("{text} is not an address that can be found"))?;
    let found: Vec<SocketAddr> = found.collect();
    anyhow::ensure!(!found.is_empty(), "{text} has no address");
    Ok(found)
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

    pub fn service_addrs(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let all = self.service.iter();
        let all = all.map(|text| resolve(text, DEFAULT_PORT));
        Ok(all.collect::<anyhow::Result<Vec<_>>>()?.concat())
    }

    pub fn service(&self) -> anyhow::Result<Service> {
        let credentials = self.credentials()?;
        let addrs = self.service_addrs()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Service {
            dial: Dial::new(
                &credentials,
                Expected::role(Role::Placement),
                &[b"http/1.1"],
            ),
            addrs,
            runtime,
        })
    }
}

/// The placement service, for one command.
pub struct Service {
    dial: Dial,
    addrs: Vec<SocketAddr>,
    runtime: tokio::runtime::Runtime,
}

impl Service {
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

    /// [`Service::get`], inside [`Service::run`].
    pub async fn look<A: DeserializeOwned>(&self, path: &str) -> anyhow::Result<A> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<A> {
        self.run(self.ask(method, path, body))
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<A> {
        let leading = self.ask_leading(method, path, body);
        let (status, bytes) = match tokio::time::timeout(PATIENCE, leading).await {
            Ok(answer) => answer?,
            Err(_) => {
                let why = anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs());
                return Err(self.unreachable(why).into());
            }
        };
        if status.is_success() {
            return serde_json::from_slice(&bytes).context(
                "the placement service answered something that this version does not understand",
            );
        }
        Err(refused(status, &bytes).into())
    }

    /// Asks one placement service after the other until one does not stand by. While none leads, waits for
    /// one a while. A request that was sent is not sent to another one, unless the first one said that it
    /// did nothing.
    async fn ask_leading(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let until = Instant::now() + ELECTION_PATIENCE;
        loop {
            let mut to_ask: VecDeque<SocketAddr> = self.addrs.iter().copied().collect();
            let mut hints = 0..MAX_HINTS;
            let mut standing_by = None;
            let mut away = None;
            while let Some(addr) = to_ask.pop_front() {
                let stream = match self.dialled(addr).await {
                    Ok(stream) => stream,
                    Err(failure) => {
                        away = Some(failure);
                        continue;
                    }
                };
                let asked = self.exchange(stream, method.clone(), path, body.clone());
                let (status, bytes) = asked.await?;
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
            match (standing_by, away) {
                (Some(answer), _) if Instant::now() >= until => return Ok(answer),
                (Some(_), _) => tokio::time::sleep(ELECTION_PAUSE).await,
                (None, Some(failure)) => return Err(failure),
                (None, None) => return Err(self.unreachable(anyhow::anyhow!("no address"))),
            }
        }
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
            stream.map_err(|error| self.not_ours(&verdict, &error))
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
            .map_err(|error| self.unreachable(error))?;
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
            .map_err(|error| self.unreachable(error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        driver.abort();
        let bytes = body
            .map_err(|error| self.unreachable(anyhow::Error::from_boxed(error)))?
            .to_bytes();
        Ok((status, bytes))
    }

    fn places(&self) -> String {
        let places: Vec<String> = self.addrs.iter().map(ToString::to_string).collect();
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

    fn not_ours(&self, verdict: &Verdict, error: &std::io::Error) -> Failure {
        Failure::new(
            Code::Refused,
            format!("{} is not a placement service that we trust", self.places()),
        )
        .because(verdict.fault(error))
        .try_next("do both sides have certificates of the same `ukai init`?")
    }
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
