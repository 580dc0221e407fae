//! `ukai node`: the daemon of a host.

use crate::daemon::upgrade::Successor;
use crate::daemon::{self, node};
use crate::operator::pki_dir;
use crate::settings::{self, Gateway, Patience, Scrub, Size};
use crate::signals::{self, Stop, Upgrades};
use anyhow::Context;
use placement_service::service_name::ServiceName;
use replicator::net::identity::{Credentials, Role};
use replicator::words::{DatacenterName, HostName, RackName};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A member that is silent for longer is ejected, unless the operator says otherwise: well under the 30 s
/// after which guests give a request up, and longer than a node takes to be started anew.
pub const DEFAULT_EJECT_AFTER: Duration = Duration::from_secs(2);
/// Where the placement service listens for nodes unless something else was said.
const PLACEMENT_PORT: u16 = 7400;

/// Run a host's node: its replica store, the backends of the VMs on it, or both.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ukai node --config /etc/ukai/node.toml\n  \
    pkill -USR2 -f '^[^ ]*ukai node'   # after the program was replaced: upgrade it under running guests\n\n\
    /etc/ukai/node.toml:\n  host = \"tokyo-1\"\n  datacenter = \"tokyo\"\n  rack = \"r1\"\n  placement = [\"control-1:7400\"]\n  \
    listen = \"10.0.0.11:7410\"\n  store = \"/var/lib/ukai/store\"")]
pub struct Args {
    /// A TOML file with any of the settings below, named as the flags are.
    #[arg(long, value_name = "FILE", env = "UKAI_NODE_CONFIG")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: NodeSettings,
}

crate::settings! {
    NodeSettings {
        /// In a file only: what `--pki` says otherwise.
        #[arg(skip)]
        pki: PathBuf,

        /// This host, as its certificate names it; needed only when the folder has several.
        #[arg(long, value_name = "HOST", env = "UKAI_NODE_HOST")]
        host: HostName,

        /// The datacenter that it stands in.
        #[arg(long, value_name = "NAME", env = "UKAI_NODE_DATACENTER")]
        datacenter: DatacenterName,

        /// Its rack: hosts that fail together.
        #[arg(long, value_name = "NAME", env = "UKAI_NODE_RACK")]
        rack: RackName,

        /// The placement service: HOST[:PORT]; several, separated by commas, are tried in turn [default: 127.0.0.1:7400].
        #[arg(long, value_name = "HOST[:PORT]", env = "UKAI_NODE_PLACEMENT", value_delimiter = ',')]
        placement: Vec<String>,

        /// Where other nodes reach this one, QUIC [default: 0.0.0.0:7410].
        #[arg(long, value_name = "ADDR:PORT", env = "UKAI_NODE_LISTEN")]
        listen: SocketAddr,

        /// Hosts that this one reaches through a gateway, each with the gateway's address, HOST=ADDR:PORT;
        /// several, separated by commas. All others are reached where they listen.
        #[arg(long, value_name = "HOST=ADDR:PORT", env = "UKAI_NODE_VIA", value_delimiter = ',')]
        via: Vec<Gateway>,

        /// The directory of its store; made if it is not there. Left out: a node without a store.
        #[arg(long, value_name = "DIR", env = "UKAI_NODE_STORE")]
        store: PathBuf,

        /// How much the store may occupy: 500G [default: what the file system has].
        #[arg(long, value_name = "SIZE", env = "UKAI_NODE_CAPACITY")]
        capacity: Size,

        /// How fast the store is read and checked for what the media spoilt: 10MiB/s, monthly (all of it in
        /// about a month, and never faster than 10MiB/s), off [default: monthly].
        #[arg(long, value_name = "RATE", env = "UKAI_NODE_SCRUB")]
        scrub: Scrub,

        /// Where the sockets for QEMU appear [default: /run/ukai].
        #[arg(long, value_name = "DIR", env = "UKAI_NODE_SOCKETS")]
        sockets: PathBuf,

        /// Let the sockets' group connect too, for VMs that run as another user of it.
        #[arg(long, value_name = "BOOL", env = "UKAI_NODE_GROUP_SOCKETS", num_args = 0..=1, default_missing_value = "true")]
        group_sockets: bool,

        /// Threads that serve disks [default: as many as there are processors, at most 4].
        #[arg(long, value_name = "N", env = "UKAI_NODE_THREADS")]
        threads: usize,

        /// A member that leaves a write unanswered for this long is ejected: 500ms, 10s, never [default: 2s].
        #[arg(long, value_name = "TIME", env = "UKAI_NODE_EJECT_AFTER")]
        eject_after: Patience,

        /// Fail what a guest has waited for longer than this, instead of letting it wait: 20s, never [default: never].
        #[arg(long, value_name = "TIME", env = "UKAI_NODE_STALL_DEADLINE")]
        stall_deadline: Patience,

        /// Let nodes of an older version, which have no grants to show, use this one's store: for the time of
        /// an upgrade only.
        #[arg(long, value_name = "BOOL", env = "UKAI_NODE_ACCEPT_UNGRANTED", num_args = 0..=1, default_missing_value = "true")]
        accept_ungranted: bool,
    }
}

pub fn run(args: Args, pki: Option<PathBuf>) -> anyhow::Result<()> {
    daemon::end_on_panic();
    let file = args
        .config
        .as_deref()
        .map(settings::read)
        .transpose()?
        .unwrap_or_default();
    let config = config(args.settings.or(file), pki)?;
    // One thread for all that is said to the placement service: nothing on it waits for media, and a beat
    // wakes nobody else. Disks and other nodes' writers have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let ended = runtime.block_on(serve(config));
    // Its threads end with the program; nothing of theirs may be waited for now.
    runtime.shutdown_background();
    match ended? {
        Some(successor) => Err(successor.take_over()),
        None => Ok(()),
    }
}

/// Runs the node until somebody asks for its end. Returns whom it makes room for, if for anybody.
async fn serve(config: node::Config) -> anyhow::Result<Option<Successor>> {
    // From now on, while the store is opened: nobody dies of it, and nobody's wish is lost. Being asked to stop ends
    // the process until it serves.
    let mut upgrades = Upgrades::listen();
    let mut stop = None;
    let mut successor = None;
    node::run(config, async {
        let stop = stop.insert(Stop::of_daemon());
        successor = asked_to_end(&mut upgrades, stop).await;
    })
    .await?;
    if let (Some(_), Some(stop)) = (&successor, &mut stop) {
        signals::hand_over();
        // Asked to stop while it made room: then nobody comes after it.
        if stop.was_asked().await {
            return Ok(None);
        }
    }
    Ok(successor)
}

/// Whom the node makes room for, if for anybody. A successor that does not run is none.
async fn asked_to_end(upgrades: &mut Upgrades, stop: &mut Stop) -> Option<Successor> {
    loop {
        tokio::select! {
            () = stop.asked() => return None,
            () = upgrades.asked() => {}
        }
        match tokio::task::spawn_blocking(Successor::find).await {
            Ok(Ok(successor)) => return Some(successor),
            Ok(Err(error)) => tracing::error!("no upgrade, going on as before: {error:#}"),
            Err(error) => tracing::error!("no upgrade, going on as before: {error}"),
        }
    }
}

fn config(settings: NodeSettings, pki: Option<PathBuf>) -> anyhow::Result<node::Config> {
    let pki = pki_dir(pki.or(settings.pki).as_deref());
    let credentials = match &settings.host {
        Some(host) => Credentials::load(&pki, Role::Node, host),
        None => Credentials::load_only(&pki, Role::Node),
    }?;
    let placement = settings
        .placement
        .unwrap_or_else(|| vec!["127.0.0.1".into()]);
    let placement = placement
        .iter()
        .map(|text| ServiceName::parse(text, PLACEMENT_PORT))
        .collect::<Result<_, _>>()?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(node::Config {
        credentials,
        datacenter: settings
            .datacenter
            .context("which datacenter is this host in? say --datacenter")?,
        rack: settings
            .rack
            .context("which rack is this host in? say --rack: hosts of one rack fail together")?,
        placement,
        listen: settings
            .listen
            .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 7410))),
        via: settings
            .via
            .unwrap_or_default()
            .into_iter()
            .map(|gateway| (gateway.host, gateway.address))
            .collect(),
        store: settings.store,
        capacity_bytes: settings.capacity.map(|size| size.0),
        scrub: settings.scrub.map_or(Default::default(), |scrub| scrub.0),
        sockets: settings.sockets.unwrap_or_else(|| "/run/ukai".into()),
        socket_mode: if settings.group_sockets.unwrap_or(false) {
            0o660
        } else {
            0o600
        },
        threads: settings.threads.unwrap_or(processors.min(4)).clamp(1, 64),
        eject_after: settings
            .eject_after
            .map_or(Some(DEFAULT_EJECT_AFTER), |patience| patience.0),
        stall_deadline: settings.stall_deadline.and_then(|patience| patience.0),
        accept_ungranted: settings.accept_ungranted.unwrap_or(false),
    })
}
