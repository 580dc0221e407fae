//! The placement service as a process: QUIC for nodes, HTTPS for operators, one [`Service`] behind
//! both. Shells only: they give the service the time and fresh ids, and carry its answers.

mod lead;
mod moving;
mod nodes;
mod operators;
mod passes;
mod stores;
mod tls;
mod verifying;

use crate::catalog::{BadEtcdAddress, Catalog, CatalogError, Etcd, EtcdAddress, RedbCatalog};
use lead::{Leading, Shell, Stage, StandingBy};
use replicator::net::identity::Credentials;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Calls that are under way when the service is told to stop get this long.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Config {
    pub catalog: CatalogAt,
    /// For `etcds://`, a folder with `ca.crt`, which signed etcd's certificates, and `client.crt` with `client.key`,
    /// which it is shown; without these two it is shown nothing.
    pub etcd_pki: Option<PathBuf>,
    /// UDP address for nodes.
    pub nodes: SocketAddr,
    /// TCP address for operators.
    pub operators: SocketAddr,
    /// Where a service that stands by sends nodes and operators when this one leads, if that is not
    /// where it listens.
    pub announce_nodes: Option<SocketAddr>,
    pub announce_operators: Option<SocketAddr>,
    /// Of role placement.
    pub credentials: Credentials,
}

/// Where the catalog is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CatalogAt {
    /// A redb file, made if it is not there: for one placement service.
    File(PathBuf),
    /// For several, of which one leads.
    Etcd(EtcdAddress),
}

impl FromStr for CatalogAt {
    type Err = BadEtcdAddress;

    fn from_str(text: &str) -> Result<Self, BadEtcdAddress> {
        Ok(match EtcdAddress::is_meant(text) {
            true => CatalogAt::Etcd(text.parse()?),
            false => CatalogAt::File(text.into()),
        })
    }
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
    /// Opens the catalog and listens. Over etcd it listens at once, and leads when it is elected.
    pub async fn start(config: Config) -> Result<Server, ServerError> {
        match config.catalog.clone() {
            CatalogAt::File(path) => {
                let catalog = blocking(move || RedbCatalog::open(&path)).await?;
                Self::start_with(config, Arc::new(catalog)).await
            }
            CatalogAt::Etcd(address) => Self::start_over(config, address).await,
        }
    }

    /// As [`Server::start`], over any catalog that is this service's alone.
    pub async fn start_with(
        config: Config,
        catalog: Arc<dyn Catalog>,
    ) -> Result<Server, ServerError> {
        let credentials = config.credentials.clone();
        let leading = blocking(move || Leading::begin(catalog, credentials)).await?;
        let (stage, shared) = watch::channel(Stage::Leading(leading));
        let mut server = Self::listen(&config, Shell::new(shared)).await?;
        let mut stopped = server.stop.subscribe();
        server.tasks.spawn(async move {
            told_to_stop(&mut stopped).await;
            drop(stage);
        });
        Ok(server)
    }

    async fn start_over(config: Config, address: EtcdAddress) -> Result<Server, ServerError> {
        let etcd = Etcd::new(address, config.etcd_pki.as_deref())?;
        let (stage, shared) = watch::channel(Stage::StandingBy(StandingBy::default()));
        let mut server = Self::listen(&config, Shell::new(shared)).await?;
        let me = lead::announcement(&config, server.nodes, server.operators);
        let stopped = server.stop.subscribe();
        let credentials = config.credentials.clone();
        server
            .tasks
            .spawn(lead::run(etcd, me, credentials, stage, stopped));
        Ok(server)
    }

    async fn listen(config: &Config, shell: Shell) -> Result<Server, ServerError> {
        use replicator::net::identity::Role;
        let identity = config.credentials.identity();
        if identity.role != Role::Placement {
            return Err(ServerError::Role {
                found: identity.to_string(),
            });
        }
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let nodes = nodes::listen(config, shell.clone(), stopped.clone(), &mut tasks)?;
        tasks.spawn(passes::run(shell.clone(), stopped.clone()));
        let operators = operators::listen(config, shell, nodes.port(), stopped, &mut tasks).await?;
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

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(call).await {
        Ok(value) => value,
        Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
        // It never began: the runtime goes away, and whoever waits here with it.
        Err(_) => std::future::pending().await,
    }
}

/// Waits until the service is told to stop.
async fn told_to_stop(stopped: &mut watch::Receiver<bool>) {
    // A dropped server has stopped, too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
