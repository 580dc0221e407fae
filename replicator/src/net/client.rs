//! The connecting side: links to far stores, kept up by tasks on the runtime of the thread that made them.

use super::dialer::{self, Dialer, Resolve};
use super::identity::Credentials;
use super::link::{Events, Link, LinkEvent, Remote};
use super::meter::LinkMeasurement;
use super::transport;
use crate::words::{HostName, StoreId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use tokio::runtime::Handle;

/// Where a store is reached, and whose certificate must be there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub addr: SocketAddr,
    pub host: HostName,
}

/// The links of one thread: one QUIC endpoint, one connection to each far store, shared by all
/// disks of the thread.
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: quinn::Endpoint,
    credentials: Credentials,
    resolve: Resolve,
    remotes: Mutex<HashMap<StoreId, Weak<Remote>>>,
    /// Links that are there to be measured.
    kept: Mutex<HashMap<StoreId, Link>>,
    runtime: Handle,
}

impl Links {
    /// Call it on the runtime that shall do the work: with a current-thread one, sending and
    /// receiving happen on the thread that submits.
    pub fn new(
        credentials: &Credentials,
        resolve: impl Fn(StoreId) -> Option<Place> + Send + Sync + 'static,
    ) -> io::Result<Links> {
        let endpoint = transport::connecting(transport::any_socket()?)?;
        let inner = Inner {
            endpoint,
            credentials: credentials.clone(),
            resolve: Arc::new(resolve),
            remotes: Mutex::default(),
            kept: Mutex::default(),
            runtime: Handle::current(),
        };
        Ok(Links {
            inner: Arc::new(inner),
        })
    }

    /// Keeps a connection to each of these stores, and to no other for this reason, so that there is
    /// something to measure: an idle one costs a packet a second each way.
    pub fn keep_open(&self, stores: impl IntoIterator<Item = StoreId>) {
        let mut kept = self.inner.kept.lock();
        let mut before = std::mem::take(&mut *kept);
        for store in stores {
            let link = before.remove(&store);
            kept.entry(store)
                .or_insert_with(|| link.unwrap_or_else(|| self.link(store, |_| {})));
        }
    }

    /// Every link that stands, as measured since it was looked at last: ask regularly.
    pub fn measurements(&self) -> Vec<LinkMeasurement> {
        let remotes: Vec<Arc<Remote>> = {
            let remotes = self.inner.remotes.lock();
            remotes.values().filter_map(Weak::upgrade).collect()
        };
        let measured = remotes.iter().filter_map(|remote| {
            let (round_trip, bytes_per_second) = remote.measure()?;
            let place = (self.inner.resolve)(remote.store);
            Some(LinkMeasurement {
                store: remote.store,
                host: place.map(|place| place.host),
                round_trip,
                bytes_per_second,
            })
        });
        let mut measured: Vec<LinkMeasurement> = measured.collect();
        measured.sort_by_key(|link| link.store);
        measured
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.inner.runtime
    }

    /// A link to `store`, connected as soon as possible and again whenever it breaks, until dropped.
    ///
    /// `events` hears what happens on it, in order. It is called with a lock held: it hands the
    /// event on and returns, and does not use the link.
    pub fn link(&self, store: StoreId, events: impl Fn(LinkEvent) + Send + Sync + 'static) -> Link {
        let events: Events = Arc::new(events);
        let mut remotes = self.inner.remotes.lock();
        let known = remotes.get(&store).and_then(Weak::upgrade);
        if let Some(link) = known.and_then(|remote| Link::join(&remote, events.clone())) {
            return link;
        }
        let remote = Remote::new(store);
        let link = Link::join(&remote, events).expect("a new one has not ended");
        remotes.retain(|_, remote| remote.strong_count() > 0);
        remotes.insert(store, Arc::downgrade(&remote));
        let dialer = Dialer {
            endpoint: self.inner.endpoint.clone(),
            credentials: self.inner.credentials.clone(),
            resolve: self.inner.resolve.clone(),
        };
        self.inner.runtime.spawn(dialer::keep_up(remote, dialer));
        link
    }
}
