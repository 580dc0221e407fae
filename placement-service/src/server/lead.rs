//! Whether this placement service leads. Over a file it always does; over etcd it stands by until the
//! leader's key is its own, and stands by again when it no longer is.
//!
//! A service that begins to lead begins afresh: what nodes had told another one, they tell it again
//! within a second. What it decides is safe by the guard on every transaction of its catalog, not by
//! what is believed here.

use super::{Config, blocking, told_to_stop};
use crate::catalog::{
    Announcement, CachedCatalog, Campaign, Catalog, CatalogError, Etcd, EtcdCatalog, LEASE,
    Leadership,
};
use crate::node_protocol::{Leader, Refusal};
use crate::policy::UnixSeconds;
use crate::service::{Kind, Moment, Service, ServiceError};
use replicator::net::identity::Credentials;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio::time::timeout;

/// Between two looks at who leads.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Between two signs of life to etcd.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// What the shells share: the service, while it leads.
#[derive(Clone)]
pub(super) struct Shell {
    stage: watch::Receiver<Stage>,
}

#[derive(Clone)]
pub(super) enum Stage {
    Leading(Leading),
    StandingBy(StandingBy),
}

#[derive(Clone)]
pub(super) struct Leading {
    pub service: Arc<Service>,
    started: Instant,
}

/// Nothing was done: somebody else has to be asked.
#[derive(Clone, Debug, Default)]
pub(super) struct StandingBy {
    pub leader: Option<Announcement>,
}

impl Leading {
    /// Reads the whole catalog, which nobody else may change from here on, and grants epochs as `credentials` says.
    pub fn begin(
        catalog: Arc<dyn Catalog>,
        credentials: Credentials,
    ) -> Result<Self, CatalogError> {
        let started = Instant::now();
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let wall = UnixSeconds(wall.unwrap_or_default().as_secs());
        let catalog = Arc::new(CachedCatalog::new(catalog)?);
        let service = Service::new(catalog, wall)?.granting(credentials);
        Ok(Leading {
            service: Arc::new(service),
            started,
        })
    }

    fn now(&self) -> Moment {
        Moment(self.started.elapsed())
    }

    /// Runs one call of the service where blocking is allowed.
    pub async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Service, Moment) -> T + Send + 'static,
    ) -> T {
        let leading = self.clone();
        blocking(move || call(&leading.service, leading.now())).await
    }
}

impl Shell {
    pub fn new(stage: watch::Receiver<Stage>) -> Self {
        Shell { stage }
    }

    /// The service, or who to ask instead.
    pub fn leading(&self) -> Result<Leading, StandingBy> {
        match &*self.stage.borrow() {
            Stage::Leading(leading) => Ok(leading.clone()),
            Stage::StandingBy(standing_by) => Err(standing_by.clone()),
        }
    }

    /// Waits until that may be another one.
    pub async fn changed(&mut self) {
        // The sender lives as long as the server.
        let _ = self.stage.changed().await;
    }
}

impl From<StandingBy> for Refusal {
    fn from(standing_by: StandingBy) -> Self {
        Refusal::NotLeader {
            leader: standing_by.leader.map(|leader| Leader {
                name: leader.name,
                at: leader.nodes,
            }),
        }
    }
}

impl From<StandingBy> for ServiceError {
    fn from(standing_by: StandingBy) -> Self {
        let why = match &standing_by.leader {
            Some(leader) => format!("{} leads", leader.name),
            None => "none leads at the moment; one will in a few seconds".into(),
        };
        let at = standing_by.leader.and_then(|leader| leader.operators);
        let try_next = match at {
            Some(at) => format!("ask it: --service {at}"),
            None => "ask the others: --service takes several, separated by commas".to_owned(),
        };
        let mut error = ServiceError::new(
            Kind::Elsewhere,
            "this placement service only stands by",
            why,
            try_next,
        );
        error.body.leader = at;
        error
    }
}

/// Stands for election until told to stop, and leads when elected.
pub(super) async fn run(
    etcd: Etcd,
    me: Announcement,
    credentials: Credentials,
    stage: watch::Sender<Stage>,
    mut stopped: watch::Receiver<bool>,
) {
    let etcd = Arc::new(etcd);
    let mut silent = false;
    loop {
        let (asked, announcement) = (etcd.clone(), me.clone());
        let campaign = blocking(move || asked.campaign(&announcement)).await;
        let standing_by = match campaign {
            Ok(Campaign::Won(leadership)) => {
                silent = false;
                lead(&etcd, leadership, &credentials, &stage, &mut stopped).await;
                StandingBy::default()
            }
            Ok(Campaign::Lost(leader)) => {
                silent = false;
                StandingBy { leader }
            }
            Err(error) => {
                if !std::mem::replace(&mut silent, true) {
                    tracing::warn!(etcd = %etcd.address(), "cannot stand for election: {error}");
                }
                StandingBy::default()
            }
        };
        stage.send_replace(Stage::StandingBy(standing_by));
        tokio::select! {
            () = told_to_stop(&mut stopped) => return,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Leads for as long as etcd hears of it.
async fn lead(
    etcd: &Arc<Etcd>,
    leadership: Leadership,
    credentials: &Credentials,
    stage: &watch::Sender<Stage>,
    stopped: &mut watch::Receiver<bool>,
) {
    let leadership = Arc::new(leadership);
    let catalog = EtcdCatalog::new(etcd.clone(), leadership.clone());
    let credentials = credentials.clone();
    let begun = blocking(move || Leading::begin(Arc::new(catalog), credentials));
    // Reading a large catalog may take longer than the lease lasts.
    let mut kept = pin!(keep(etcd, &leadership, stopped));
    let begun = tokio::select! {
        begun = begun => Ok(begun),
        why = &mut kept => Err(why),
    };
    match begun {
        Ok(Ok(leading)) => {
            tracing::info!("leading");
            stage.send_replace(Stage::Leading(leading));
            let why = kept.await;
            tracing::warn!("leading no more: {why}");
        }
        Ok(Err(error)) => tracing::error!("elected, and cannot lead: {error}"),
        Err(why) => tracing::warn!("elected, and leads no more before it began: {why}"),
    }
    stage.send_replace(Stage::StandingBy(StandingBy::default()));
    let (etcd, leadership) = (etcd.clone(), leadership.clone());
    blocking(move || etcd.resign(&leadership)).await;
}

/// Why it ended.
async fn keep(
    etcd: &Arc<Etcd>,
    leadership: &Arc<Leadership>,
    stopped: &mut watch::Receiver<bool>,
) -> &'static str {
    let mut heard = Instant::now();
    loop {
        if timeout(KEEP_ALIVE, told_to_stop(stopped)).await.is_ok() {
            return "told to stop";
        }
        let asked = Instant::now();
        let (etcd, leadership) = (etcd.clone(), leadership.clone());
        match blocking(move || etcd.keep_alive(&leadership)).await {
            Ok(true) => heard = asked,
            Ok(false) => return "its lease has ended",
            Err(error) => {
                tracing::warn!("etcd was not told that we are alive: {error}");
                if heard.elapsed() > LEASE {
                    return "etcd cannot be reached";
                }
            }
        }
    }
}

/// What this service says of itself when it leads. An address that it listens on without naming it helps
/// nobody.
pub(super) fn announcement(
    config: &Config,
    nodes: SocketAddr,
    operators: SocketAddr,
) -> Announcement {
    let named = |said: Option<SocketAddr>, at: SocketAddr| {
        said.or(Some(at).filter(|at| !at.ip().is_unspecified()))
    };
    Announcement {
        name: config.credentials.identity().host.to_string(),
        nodes: named(config.announce_nodes, nodes),
        operators: named(config.announce_operators, operators),
    }
}
