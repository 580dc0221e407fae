//! QUIC for nodes: a task a connection, a task a call, all of them bounded in number, size and time.

use super::lead::Leading;
use super::{Config, ServerError, Shell, told_to_stop};
use crate::frame::{self, FrameError};
use crate::node_protocol::{
    ALPN, CALL_TIMEOUT, Desired, HEARTBEAT_WAIT, Hello, MAX_FRAME_BYTES, OLDEST_VERSION, Refusal,
    Request, Response, VERSION, Welcome,
};
use replicator::net::Places;
use replicator::net::identity::{Admitted, Gate, Identity, Role};
use replicator::net::transport as quic;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// A node calls a few times at once: heartbeats, and a call a backend.
const MAX_CALLS: u32 = 64;
/// More connections than any cluster this service is meant for has nodes; the rest is turned away.
const MAX_CONNECTIONS: usize = 4096;
/// A node has one, and one more while it connects anew; an operator has one a copy that is made.
const MAX_FROM_ONE_PEER: usize = 16;
/// Peers that have not shown their certificate yet; from a quarter on they must show that their address is
/// theirs, and one address gets half.
const MAX_HANDSHAKES: usize = 256;
/// What the calls of a connection that are still arriving may announce together.
const MAX_ARRIVING_BYTES: usize = 2 * MAX_FRAME_BYTES;
const IDLE_TIMEOUT: Duration = Duration::from_secs(6);

/// The application's error code of a connection that is one too many.
const TOO_MANY: u32 = 5;

pub(super) fn listen(
    config: &Config,
    shell: Shell,
    stopped: watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> Result<SocketAddr, ServerError> {
    let failed = |source| ServerError::Listen {
        what: "UDP",
        address: config.nodes,
        source,
    };
    let gate = Gate::new(&config.credentials, &[Role::Node, Role::Operator], &[ALPN])
        .with_transport(Arc::new(transport()));
    let socket = UdpSocket::bind(config.nodes).map_err(failed)?;
    let endpoint = quic::answering(gate.quic(), socket).map_err(failed)?;
    let address = endpoint.local_addr().map_err(failed)?;
    tasks.spawn(accept(endpoint, gate, shell, stopped));
    Ok(address)
}

async fn accept(
    endpoint: quinn::Endpoint,
    gate: Gate,
    shell: Shell,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let handshakes = Places::new(MAX_HANDSHAKES, MAX_HANDSHAKES / 2);
    let peers = Places::<Identity>::new(MAX_CONNECTIONS, MAX_FROM_ONE_PEER);
    loop {
        let incoming = tokio::select! {
            () = told_to_stop(&mut stopped) => break,
            Some(incoming) = endpoint.accept() => incoming,
            Some(_) = connections.join_next() => continue,
            else => break,
        };
        let crowded = handshakes.taken() >= MAX_HANDSHAKES / 4;
        if crowded && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        let shaking = handshakes.take(incoming.remote_address().ip());
        let Some(shaking) = shaking.filter(|_| !peers.is_full()) else {
            incoming.refuse();
            continue;
        };
        let (gate, shell, stopped) = (gate.clone(), shell.clone(), stopped.clone());
        let peers = peers.clone();
        connections.spawn(async move {
            let admitted = gate.admit(incoming).await;
            drop(shaking);
            let Ok(admitted) = admitted else {
                return;
            };
            match peers.take(admitted.identity.clone()) {
                Some(_place) => serve(admitted, shell, stopped).await,
                None => {
                    tracing::warn!(peer = %admitted.identity, "it has {MAX_FROM_ONE_PEER} connections already, or all have {MAX_CONNECTIONS}; refused another");
                    let why = b"too many connections from one peer";
                    admitted.connection.close(TOO_MANY.into(), why);
                }
            }
        });
    }
    while connections.join_next().await.is_some() {}
    endpoint.close(0u32.into(), b"the placement service stops");
    endpoint.wait_idle().await;
}

async fn serve(admitted: Admitted, shell: Shell, mut stopped: watch::Receiver<bool>) {
    let Admitted {
        connection,
        identity,
        watch: _watch,
    } = admitted;
    let from = connection.remote_address();
    match timeout(CALL_TIMEOUT, hello(&connection, &shell)).await {
        Ok(Ok(program)) => tracing::info!(%from, peer = %identity, program, "connected"),
        Ok(Err(error)) => {
            // Whoever looks for the leader comes by here again and again.
            match shell.leading() {
                Ok(_) => tracing::warn!(%from, peer = %identity, "refused: {error}"),
                Err(_) => tracing::debug!(%from, peer = %identity, "refused: {error}"),
            }
            return;
        }
        Err(_) => {
            tracing::warn!(%from, peer = %identity, "refused: it did not say which version it speaks");
            return;
        }
    }
    let mut calls = JoinSet::new();
    let room = Arc::new(Semaphore::new(MAX_ARRIVING_BYTES));
    let ended = loop {
        tokio::select! {
            () = told_to_stop(&mut stopped) => break None,
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => {
                    let caller = Caller {
                        identity: identity.clone(),
                        from: from.ip(),
                        shell: shell.clone(),
                        stopped: stopped.clone(),
                        room: room.clone(),
                    };
                    calls.spawn(caller.answer(send, receive));
                }
                Err(error) => break Some(error),
            },
            Some(_) = calls.join_next() => {}
        }
    };
    match ended {
        Some(error) => tracing::info!(%from, peer = %identity, "disconnected: {error}"),
        // Those under way have their answers before the connection goes.
        None => while calls.join_next().await.is_some() {},
    }
}

/// Settles on a version; a peer that speaks none of ours is told which those are, and while another
/// service leads, which one.
async fn hello(connection: &quinn::Connection, shell: &Shell) -> Result<String, String> {
    let text = |error: FrameError| error.to_string();
    let (mut send, mut receive) = connection
        .accept_bi()
        .await
        .map_err(|error| error.to_string())?;
    let hello: Hello = frame::read(&mut receive).await.map_err(text)?;
    let version = hello.newest.min(VERSION);
    let answer = if let Err(standing_by) = shell.leading() {
        Err(standing_by.into())
    } else if version >= hello.oldest.max(OLDEST_VERSION) {
        Ok(Welcome {
            version,
            program: env!("CARGO_PKG_VERSION").into(),
        })
    } else {
        Err(Refusal::Version {
            newest: VERSION,
            oldest: OLDEST_VERSION,
            program: env!("CARGO_PKG_VERSION").into(),
            peer_newest: hello.newest,
            peer_oldest: hello.oldest,
        })
    };
    frame::write(&mut send, &answer).await.map_err(text)?;
    let _ = send.finish();
    match answer {
        Ok(_) => Ok(hello.program),
        Err(refusal) => {
            // Until it has arrived, or the peer has gone without reading it.
            let _ = send.stopped().await;
            Err(refusal.to_string())
        }
    }
}

/// One call: who makes it, and what answers it.
struct Caller {
    identity: Identity,
    from: IpAddr,
    shell: Shell,
    stopped: watch::Receiver<bool>,
    /// Bytes that calls may still announce.
    room: Arc<Semaphore>,
}

impl Caller {
    async fn answer(mut self, mut send: quinn::SendStream, mut receive: quinn::RecvStream) {
        let response =
            match timeout(CALL_TIMEOUT, frame::read_within(&mut receive, &self.room)).await {
                Ok(Ok(request)) => self.respond(request).await,
                Ok(Err(FrameError::Ended(_))) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::warn!(peer = %self.identity, "a call that makes no sense: {error}");
                    Response::Refused(Refusal::Malformed {
                        why: error.to_string(),
                    })
                }
            };
        let written = async {
            frame::write(&mut send, &response).await?;
            let _ = send.finish();
            let _ = send.stopped().await;
            Ok::<_, FrameError>(())
        };
        // A peer that does not take its answer has lost it; it will ask again.
        let _ = timeout(CALL_TIMEOUT, written).await;
    }

    async fn respond(&mut self, request: Request) -> Response {
        let leading = match self.shell.leading() {
            Ok(leading) => leading,
            Err(standing_by) => return Response::Refused(standing_by.into()),
        };
        let changes = leading.service.changes();
        let heard = leading.service.news_for(&self.identity.host);
        let seen = match &request {
            Request::Heartbeat(heartbeat) | Request::Brief(heartbeat) => Some(heartbeat.seen),
            _ => None,
        };
        let (who, from) = (self.identity.clone(), self.from);
        let ask = leading.ask(move |service, now| service.handle(&who, from, request, now));
        match (ask.await, seen) {
            (Response::Desired(desired), Some(seen)) if desired.digest == seen => {
                self.wait_for_news(&leading, changes, desired, heard).await
            }
            (response, _) => response,
        }
    }

    /// Answers a heartbeat whose sender has `seen` everything: when there is news, or after a while. `heard` is of
    /// before it was looked at.
    async fn wait_for_news(
        &mut self,
        leading: &Leading,
        mut changes: watch::Receiver<u64>,
        seen: Desired,
        mut heard: u64,
    ) -> Response {
        let until = Instant::now() + HEARTBEAT_WAIT;
        loop {
            let changed = tokio::select! {
                changed = timeout_at(until, changes.changed()) => matches!(changed, Ok(Ok(()))),
                () = told_to_stop(&mut self.stopped) => false,
            };
            if !changed {
                // Should it have missed anything, the next heartbeat is answered at once.
                return match seen.remembered {
                    Some(_) => Response::Same,
                    None => Response::Desired(seen),
                };
            }
            let host = self.identity.host.clone();
            let before = std::mem::replace(&mut heard, leading.service.news_for(&host));
            if heard == before {
                continue;
            }
            match leading.ask(move |service, _| service.desired(&host)).await {
                Ok(desired) if desired.digest == seen.digest => {}
                Ok(desired) => {
                    return Response::Desired(Desired {
                        remembered: seen.remembered,
                        ..desired
                    });
                }
                Err(error) => return Response::Refused(error.into()),
            }
        }
    }
}

fn transport() -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(MAX_CALLS.into())
        .max_concurrent_uni_streams(0u32.into())
        // What a connection may make us hold: one frame of the largest, and a little.
        .receive_window((MAX_FRAME_BYTES as u32 * 2).into())
        .stream_receive_window((MAX_FRAME_BYTES as u32).into())
        .max_idle_timeout(Some(
            IDLE_TIMEOUT
                .try_into()
                .expect("a few seconds fit in a varint"),
        ));
    quic::few_packets(&mut transport);
    transport
}
