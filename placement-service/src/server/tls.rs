//! A listener for axum that has finished the TLS handshake, and checked the certificate, before a
//! connection counts as accepted. Handshakes run side by side: a slow peer holds up nobody.

use crate::api::MAX_WAIT_MS;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use replicator::net::identity::{Fault, Gate, Identity};
use replicator::net::{Places, Taking};
use rustls::pki_types::CertificateDer;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, Sleep, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Operators are few; each has a tool or two.
const MAX_CONNECTIONS: usize = 256;
const MAX_FROM_ONE_PEER: usize = 32;
/// Peers that have not shown their certificate yet; a host that says nothing leaves the others half.
const MAX_HANDSHAKES: usize = 64;
/// A connection from which nothing comes for so long is ended: longer than the longest request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(MAX_WAIT_MS / 1000 + 30);
/// How often a connection on which nothing happens is looked at: its certificate may have been revoked.
const RECHECK: Duration = Duration::from_secs(2);

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub address: SocketAddr,
    pub identity: Identity,
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Peer {
        stream.remote_addr().clone()
    }
}

pub(super) struct TlsListener {
    accepted: mpsc::Receiver<(Counted, Peer)>,
    accepting: JoinHandle<()>,
    local: Peer,
}

impl TlsListener {
    pub fn new(tcp: TcpListener, gate: Gate, local: Peer) -> TlsListener {
        let (send, accepted) = mpsc::channel(16);
        TlsListener {
            accepted,
            accepting: tokio::spawn(accept(tcp, gate, send)),
            local,
        }
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Listener for TlsListener {
    type Io = Counted;
    type Addr = Peer;

    async fn accept(&mut self) -> (Counted, Peer) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            // The accepting task ends only with this listener.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(self.local.clone())
    }
}

async fn accept(tcp: TcpListener, gate: Gate, accepted: mpsc::Sender<(Counted, Peer)>) {
    let handshakes = Places::new(MAX_HANDSHAKES, MAX_HANDSHAKES / 2);
    let peers = Places::new(MAX_CONNECTIONS, MAX_FROM_ONE_PEER);
    loop {
        let (stream, from) = match tcp.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, say: others have to end first.
                tracing::warn!("accepting a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(shaking) = handshakes.take(from.ip()) else {
            tracing::debug!(%from, "too many connections that have not shown a certificate; refused another");
            continue;
        };
        let (gate, accepted, peers) = (gate.clone(), accepted.clone(), peers.clone());
        tokio::spawn(async move {
            let shaken = handshake(stream, from, &gate).await;
            drop(shaking);
            match shaken {
                Ok((stream, certificate, identity)) => {
                    let Some(place) = peers.take(identity.clone()) else {
                        tracing::warn!(peer = %identity, %from, "it has {MAX_FROM_ONE_PEER} connections already, or all have {MAX_CONNECTIONS}; refused another");
                        return;
                    };
                    let peer = Peer {
                        address: from,
                        identity,
                    };
                    let counted = Counted {
                        stream,
                        gate,
                        certificate,
                        peer: peer.clone(),
                        recheck: interval(RECHECK),
                        idle: Box::pin(sleep(IDLE_TIMEOUT)),
                        _place: place,
                    };
                    // Not taken any more: the server stops.
                    let _ = accepted.send((counted, peer)).await;
                }
                Err(fault) => {
                    gate.refuse(from, fault);
                }
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    from: SocketAddr,
    gate: &Gate,
) -> Result<(TlsStream<TcpStream>, CertificateDer<'static>, Identity), Fault> {
    let (config, verdict) = gate.tls();
    // Small answers go out at once. If the option cannot be set they only go a little later.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%from, "no TCP_NODELAY: {error}");
    }
    let accepting = TlsAcceptor::from(config).accept(stream);
    let stream = match timeout(HANDSHAKE_TIMEOUT, accepting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(verdict.fault(&error)),
        Err(_) => {
            return Err(Fault::Handshake {
                why: "it took too long".into(),
            });
        }
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = certificates.and_then(|certificates| certificates.first());
    let certificate = certificate
        .ok_or(Fault::NoCertificate)?
        .clone()
        .into_owned();
    let identity = Identity::named_by(&certificate)?;
    Ok((stream, certificate, identity))
}

/// A connection that holds one of the places until it ends.
pub(super) struct Counted {
    stream: TlsStream<TcpStream>,
    gate: Gate,
    certificate: CertificateDer<'static>,
    peer: Peer,
    recheck: Interval,
    /// Until when something has to come.
    idle: Pin<Box<Sleep>>,
    _place: Taking<Identity>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The server reads also while a request is carried out: so it is woken, and here again, in time.
        while self.recheck.poll_tick(cx).is_ready() {}
        if self.gate.has_revoked(&self.certificate) {
            let why = "the peer's certificate was revoked";
            let Peer { address, identity } = &self.peer;
            tracing::warn!(peer = %identity, from = %address, "its certificate was revoked; its connection is closed");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::PermissionDenied, why)));
        }
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Pending => self.idle.as_mut().poll(cx).map(|()| {
                let why = "nothing came for too long";
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }),
            ready => {
                self.idle.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
                ready
            }
        }
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
