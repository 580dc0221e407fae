//! The listening side: lets nodes and operators in, a bounded number of them, and gives each
//! connection to a [`super::session`].

use super::admission::Rules;
use super::identity::{Admitted, Credentials, Gate, Identity, Role};
use super::{Close, Places, session, transport};
use crate::message::{Reply, Request};
use crate::store::SharedStore;
use crate::wire::ALPN;
use crate::words::{DiskId, Epoch, StoreId};
use bytes::Bytes;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What answers requests: a store, behind whatever threads it needs.
pub trait Serve: Send + Sync + 'static {
    /// Calls `done` exactly once, on any thread, perhaps before this returns.
    fn submit(&self, request: Request, done: impl FnOnce(Reply) + Send + 'static);

    /// The same for several writes, which may be taken as one; `done` is called for each, with its index.
    fn submit_writes(
        &self,
        writes: Vec<Request>,
        done: impl Fn(usize, Reply) + Clone + Send + 'static,
    ) {
        for (index, write) in writes.into_iter().enumerate() {
            let done = done.clone();
            self.submit(write, move |reply| done(index, reply));
        }
    }

    /// The highest epoch that the disk was shown, and the grant that it was shown with; empty: without.
    fn shown_by(&self, disk: DiskId) -> (Epoch, Bytes);
}

impl Serve for SharedStore {
    fn submit(&self, request: Request, done: impl FnOnce(Reply) + Send + 'static) {
        SharedStore::submit(self, request, done);
    }

    fn submit_writes(
        &self,
        writes: Vec<Request>,
        done: impl Fn(usize, Reply) + Clone + Send + 'static,
    ) {
        let replies = SharedStore::submit_writes(self, writes);
        for (index, reply) in replies.into_iter().enumerate() {
            done(index, reply);
        }
    }

    fn shown_by(&self, disk: DiskId) -> (Epoch, Bytes) {
        SharedStore::shown_by(self, disk)
    }
}

/// Connections at once, from whomever. Each may hold some 24 MiB at worst (`session`, `transport`).
const MAX_CONNECTIONS: usize = 512;
/// Of those, from one peer: a few stores times a few reactor threads.
const MAX_FROM_ONE_PEER: usize = 64;
/// Peers that have not shown their certificate yet. From a quarter of it on they must show that their
/// address is theirs, and one address gets half.
const MAX_HANDSHAKES: usize = 64;

type Find<S> = Arc<dyn Fn(StoreId) -> Option<S> + Send + Sync>;

/// Listens for those who want something of this node's stores.
pub struct Server<S> {
    endpoint: quinn::Endpoint,
    gate: Gate,
    find: Find<S>,
    rules: Rules,
    handshakes: Places<IpAddr>,
    peers: Places<Identity>,
}

impl<S: Serve> Server<S> {
    /// Binds `listen`; call it on the runtime that shall do the work. `find` gives the stores.
    pub fn bind(
        listen: SocketAddr,
        credentials: &Credentials,
        find: impl Fn(StoreId) -> Option<S> + Send + Sync + 'static,
    ) -> io::Result<Server<S>> {
        let gate = Gate::new(credentials, &[Role::Node, Role::Operator], &[ALPN])
            .with_transport(transport::config(1));
        let rules = Rules {
            credentials: credentials.clone(),
            accept_ungranted: false,
        };
        Ok(Server {
            endpoint: listening(listen, &gate, &rules)?,
            gate,
            find: Arc::new(find),
            rules,
            handshakes: Places::new(MAX_HANDSHAKES, MAX_HANDSHAKES / 2),
            peers: Places::new(MAX_CONNECTIONS, MAX_FROM_ONE_PEER),
        })
    }

    /// Lets peers in that show no grant for the epoch that they use, because they know none: for the time
    /// of an upgrade.
    pub fn accept_ungranted(mut self, accept: bool) -> Server<S> {
        self.rules.accept_ungranted = accept;
        self
    }

    /// Another one on the same address, for another thread: the kernel gives each connection to one of them, and
    /// all of it is then done there. Call it on the runtime of that thread. Together they let in as many as one.
    pub fn another(&self) -> io::Result<Server<S>> {
        Ok(Server {
            endpoint: listening(self.local_addr()?, &self.gate, &self.rules)?,
            gate: self.gate.clone(),
            find: self.find.clone(),
            rules: self.rules.clone(),
            handshakes: self.handshakes.clone(),
            peers: self.peers.clone(),
        })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// To end it from elsewhere: `close(…)` makes [`Server::run`] return.
    pub fn endpoint(&self) -> quinn::Endpoint {
        self.endpoint.clone()
    }

    /// Accepts until the endpoint is closed. Each connection is a task of its own.
    pub async fn run(self) {
        while let Some(incoming) = self.endpoint.accept().await {
            // Before a place is taken in somebody else's name.
            let crowded = self.handshakes.taken() >= MAX_HANDSHAKES / 4;
            if crowded && incoming.may_retry() {
                let _ = incoming.retry();
                continue;
            }
            let handshake = self.handshakes.take(incoming.remote_address().ip());
            let Some(handshake) = handshake.filter(|_| !self.peers.is_full()) else {
                tracing::debug!(from = %incoming.remote_address(), "too many connections; refused");
                incoming.refuse();
                continue;
            };
            let (gate, find, peers) = (self.gate.clone(), self.find.clone(), self.peers.clone());
            let rules = self.rules.clone();
            tokio::spawn(async move {
                // A refusal has been logged, with its reason.
                if let Ok(admitted) = gate.admit(incoming).await {
                    drop(handshake);
                    serve(admitted, find, rules, peers).await;
                }
            });
        }
    }
}

fn listening(at: SocketAddr, gate: &Gate, rules: &Rules) -> io::Result<quinn::Endpoint> {
    let mut config = gate.quic();
    config.max_incoming(MAX_HANDSHAKES);
    let socket = transport::shared_socket(at)?;
    transport::listening(config, socket, rules.credentials.reset_seed())
}

impl<S> Drop for Server<S> {
    fn drop(&mut self) {
        self.endpoint
            .close(Close::Done.code(), b"the node is stopping");
    }
}

async fn serve<S: Serve>(admitted: Admitted, find: Find<S>, rules: Rules, peers: Places<Identity>) {
    let peer = admitted.identity;
    let Some(_place) = peers.take(peer.clone()) else {
        tracing::warn!(%peer, "it has {MAX_FROM_ONE_PEER} connections already, or all have {MAX_CONNECTIONS}; refused another");
        admitted
            .connection
            .close(Close::TooMany.code(), b"too many connections from one peer");
        return;
    };
    session::run(admitted.connection, &peer, &*find, rules).await;
}
