//! `ukai placement`: the placement service, and what is done with its catalog.

mod catalog;

use crate::daemon;
use crate::operator::{Connection, pki_dir};
use crate::output::Output;
use crate::{settings, signals};
use anyhow::Context;
use placement_service::server;
use replicator::net::identity::{Credentials, Role};
use replicator::words::HostName;
use std::net::SocketAddr;
use std::path::PathBuf;

const DEFAULT_CATALOG: &str = "catalog.redb";

/// Run the placement service; copy its catalog, put a copy back, or rebuild it from the stores.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  ukai placement --host control-1 --pki pki --catalog /var/lib/ukai/catalog.redb\n  \
        ukai placement --host control-1 --pki pki --catalog etcd://10.0.0.1,10.0.0.2,10.0.0.3"
)]
pub struct Args {
    /// A TOML file with any of the settings below, named as the flags are.
    #[arg(long, value_name = "FILE", env = "UKAI_PLACEMENT_CONFIG")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: PlacementSettings,

    #[command(subcommand)]
    command: Option<catalog::Command>,
}

crate::settings! {
    PlacementSettings {
        /// In a file only: what `--pki` says otherwise.
        #[arg(skip)]
        pki: PathBuf,

        /// The name in this process's certificate; needed only when the folder has several.
        #[arg(long, value_name = "HOST", env = "UKAI_PLACEMENT_HOST")]
        host: HostName,

        /// Where the catalog is kept: a file, for one placement service, or etcd://HOST[:PORT],… for several,
        /// of which one leads; etcds:// is over TLS [default: catalog.redb].
        #[arg(long, value_name = "FILE|ETCD", env = "UKAI_PLACEMENT_CATALOG")]
        catalog: String,

        /// For etcds://: a folder with ca.crt, which signed etcd's certificates, and client.crt and
        /// client.key, if etcd asks for them.
        #[arg(long, value_name = "DIR", env = "UKAI_PLACEMENT_ETCD_PKI")]
        etcd_pki: PathBuf,

        /// Where nodes connect, QUIC [default: 0.0.0.0:7400].
        #[arg(long, value_name = "ADDR:PORT", env = "UKAI_PLACEMENT_NODES")]
        nodes: SocketAddr,

        /// Where operators connect, HTTPS [default: 0.0.0.0:7401].
        #[arg(long, value_name = "ADDR:PORT", env = "UKAI_PLACEMENT_OPERATORS")]
        operators: SocketAddr,

        /// Where those that stand by send nodes to while this one leads [default: what --nodes says, unless
        /// that is 0.0.0.0].
        #[arg(long, value_name = "ADDR:PORT", env = "UKAI_PLACEMENT_ANNOUNCE_NODES")]
        announce_nodes: SocketAddr,

        /// The same for operators.
        #[arg(long, value_name = "ADDR:PORT", env = "UKAI_PLACEMENT_ANNOUNCE_OPERATORS")]
        announce_operators: SocketAddr,
    }
}

pub fn run(args: Args, connection: &Connection, output: Output) -> anyhow::Result<()> {
    match args.command {
        Some(command) => catalog::run(command, connection, output),
        None => serve(args, connection.pki()),
    }
}

impl Args {
    /// Not one of the commands about the catalog.
    pub fn serves(&self) -> bool {
        self.command.is_none()
    }
}

fn serve(args: Args, pki: Option<PathBuf>) -> anyhow::Result<()> {
    daemon::end_on_panic();
    let file = args
        .config
        .as_deref()
        .map(settings::read)
        .transpose()?
        .unwrap_or_default();
    let settings = args.settings.or(file);
    let pki = pki_dir(pki.or(settings.pki).as_deref());
    let credentials = match &settings.host {
        Some(host) => Credentials::load(&pki, Role::Placement, host),
        None => Credentials::load_only(&pki, Role::Placement),
    }?;
    let config = server::Config {
        catalog: settings
            .catalog
            .as_deref()
            .unwrap_or(DEFAULT_CATALOG)
            .parse()?,
        etcd_pki: settings.etcd_pki,
        announce_nodes: settings.announce_nodes,
        announce_operators: settings.announce_operators,
        nodes: settings
            .nodes
            .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 7400))),
        operators: settings
            .operators
            .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 7401))),
        credentials,
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start")?;
    Ok(runtime.block_on(server::run(config, signals::asked_to_stop()))?)
}
