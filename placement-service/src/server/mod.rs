//! The placement service as a process: QUIC for nodes, HTTPS for operators, one [`Service`] behind
//! both. Shells only: they give the service the time and fresh ids, and carry its answers.

mod moving;
mod nodes;
mod operators;
mod passes;
mod stores;
mod tls;
mod verifying;

use crate::catalog::{Catalog, CatalogError, RedbCatalog};
use crate::policy::UnixSeconds;
use crate::service::{Moment, Service};
use replicator::net::identity::Credentials;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Calls that are under way when the service is told to stop get this long.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Config {
    /// The file of the redb catalog; made if it is not there.
    pub catalog: PathBuf,
    /// UDP address for nodes.
    pub nodes: SocketAddr,
    /// TCP address for operators.
    pub operators: SocketAddr,
    /// Of role placement.
    pub credentials: Credentials,
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("cannot listen on {what} {address}: {source}")]
    Listen {
        what: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    #[error("the certificate is of {found}; the placement service needs one of its own role")]
    Role { found: String },
}

/// A running placement service. Dropping it stops it without waiting; [`Server::stop`] waits.
pub struct Server {
    nodes: SocketAddr,
    operators: SocketAddr,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// Runs until `shutdown` comes.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
    let server = Server::start(config).await?;
    shutdown.await;
    server.stop().await;
    Ok(())
}

impl Server {
    /// Opens the catalog and listens.
    pub async fn start(config: Config) -> Result<Server, ServerError> {
        let path = config.catalog.clone();
        let catalog = blocking(move || RedbCatalog::open(&path)).await?;
        Self::start_with(config, Arc::new(catalog)).await
    }

    /// As [`Server::start`], over any catalog.
    pub async fn start_with(
        config: Config,
        catalog: Arc<dyn Catalog>,
    ) -> Result<Server, ServerError> {
        use replicator::net::identity::Role;
        let identity = config.credentials.identity();
        if identity.role != Role::Placement {
            return Err(ServerError::Role {
                found: identity.to_string(),
            });
        }
        let started = Instant::now();
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let wall = UnixSeconds(wall.unwrap_or_default().as_secs());
        let service = blocking(move || Service::new(catalog, wall)).await?;
        let service = Arc::new(service.granting(config.credentials.clone()));
        let shell = Shell { service, started };
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let nodes = nodes::listen(&config, shell.clone(), stopped.clone(), &mut tasks)?;
        tasks.spawn(passes::run(shell.clone(), stopped.clone()));
        let operators =
            operators::listen(&config, shell, nodes.port(), stopped, &mut tasks).await?;
        tracing::info!(%nodes, %operators, "placement service ready");
        Ok(Server {
            nodes,
            operators,
            stop,
            tasks,
        })
    }

    /// Where nodes connect (UDP).
    pub fn nodes_addr(&self) -> SocketAddr {
        self.nodes
    }

    /// Where operators connect (TCP).
    pub fn operators_addr(&self) -> SocketAddr {
        self.operators
    }

    /// Takes no more calls and lets those under way end, for a bounded time.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
            tracing::warn!("calls were still under way when the placement service stopped");
        }
    }
}

/// What the shells share.
#[derive(Clone)]
struct Shell {
    service: Arc<Service>,
    started: Instant,
}

impl Shell {
    fn now(&self) -> Moment {
        Moment(self.started.elapsed())
    }

    /// Runs one call of the service where blocking is allowed.
    async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Service, Moment) -> T + Send + 'static,
    ) -> T {
        let shell = self.clone();
        blocking(move || call(&shell.service, shell.now())).await
    }
}

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(call).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Waits until the service is told to stop.
async fn told_to_stop(stopped: &mut watch::Receiver<bool>) {
    // A dropped server has stopped, too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
