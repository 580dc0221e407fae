//! `ukai dev`: a whole small cluster in one process, for trying things out.

use crate::commands::node::DEFAULT_EJECT_AFTER;
use crate::daemon::{self, node};
use crate::output::Output;
use crate::signals;
use anyhow::Context;
use placement_service::server;
use replicator::net::identity::{Credentials, DEFAULT_VALIDITY, Pki, Role};
use replicator::words::{DatacenterName, HostName, RackName};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// Host, datacenter, rack.
const NODES: [(&str, &str, &str); 4] = [
    ("tokyo-1", "tokyo", "tokyo-r1"),
    ("tokyo-2", "tokyo", "tokyo-r2"),
    ("osaka-1", "osaka", "osaka-r1"),
    ("osaka-2", "osaka", "osaka-r2"),
];

/// Run a placement service and four nodes in two datacenters, in one process, on loopback.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  ukai dev --dir /tmp/try-ukai\n\nIts data stays in the folder: run it again to go on."
)]
pub struct Args {
    /// Where everything goes.
    #[arg(long, default_value = "ukai-dev", value_name = "DIR")]
    dir: PathBuf,

    /// The first of six ports on 127.0.0.1.
    #[arg(long, default_value_t = 7400, value_parser = clap::value_parser!(u16).range(1024..65530))]
    port: u16,
}

#[derive(Serialize)]
struct Up {
    dir: PathBuf,
    nodes: Vec<&'static str>,
    environment: Vec<(&'static str, String)>,
}

pub fn run(args: Args, output: Output) -> anyhow::Result<()> {
    daemon::end_on_panic();
    std::fs::create_dir_all(&args.dir)
        .with_context(|| format!("cannot make {}", args.dir.display()))?;
    let dir = args.dir.canonicalize()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start")?;
    runtime.block_on(cluster(&dir, args.port, output))
}

async fn cluster(dir: &Path, port: u16, output: Output) -> anyhow::Result<()> {
    let pki = dir.join("pki");
    certificates(&pki)?;
    let at = |offset: u16| SocketAddr::from(([127, 0, 0, 1], port + offset));
    let (stop_nodes, _) = watch::channel(false);
    let (stop_service, _) = watch::channel(false);
    let control = HostName::new("control")?;
    let config = server::Config {
        catalog: server::CatalogAt::File(dir.join("catalog.redb")),
        etcd_pki: None,
        announce_nodes: None,
        announce_operators: None,
        nodes: at(0),
        operators: at(1),
        credentials: Credentials::load(&pki, Role::Placement, &control)?,
    };
    let mut service = tokio::spawn(server::run(config, stopped(&stop_service)));
    let mut nodes = tokio::task::JoinSet::new();
    for (i, (host, datacenter, rack)) in NODES.into_iter().enumerate() {
        let config = node::Config {
            credentials: Credentials::load(&pki, Role::Node, &HostName::new(host)?)?,
            datacenter: DatacenterName::new(datacenter)?,
            rack: RackName::new(rack)?,
            placement: vec![at(0).into()],
            listen: at(2 + i as u16),
            via: Default::default(),
            store: Some(dir.join(host).join("store")),
            capacity_bytes: None,
            scrub: Default::default(),
            sockets: dir.join(host).join("sockets"),
            socket_mode: 0o600,
            threads: 1,
            eject_after: Some(DEFAULT_EJECT_AFTER),
            stall_deadline: None,
            accept_ungranted: false,
        };
        std::fs::create_dir_all(dir.join(host))?;
        nodes.spawn(node::run(config, stopped(&stop_nodes)));
    }
    let up = Up {
        dir: dir.to_path_buf(),
        nodes: NODES.map(|(host, ..)| host).to_vec(),
        environment: vec![
            ("UKAI_PKI", pki.display().to_string()),
            ("UKAI_SERVICE", at(1).to_string()),
        ],
    };
    output.show(&up, describe);
    let early = tokio::select! {
        () = signals::asked_to_stop() => None,
        ended = &mut service => Some(ended?.map_err(anyhow::Error::from)),
        Some(ended) = nodes.join_next() => Some(ended?),
    };
    // Nodes first: they close their epochs at the placement service.
    stop_nodes.send_replace(true);
    let is_service = service.is_finished();
    let mut all = early.unwrap_or(Ok(()));
    while let Some(ended) = nodes.join_next().await {
        all = all.and(ended.unwrap_or_else(|error| Err(error.into())));
    }
    stop_service.send_replace(true);
    if !is_service {
        all = all.and(service.await?.map_err(anyhow::Error::from));
    }
    all
}

async fn wait_for(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn stopped(stop: &watch::Sender<bool>) -> impl Future<Output = ()> + use<> {
    wait_for(stop.subscribe())
}

fn certificates(dir: &Path) -> anyhow::Result<()> {
    let pki = if dir.join("ca.crt").exists() {
        Pki::open(dir)?
    } else {
        Pki::init(dir)?
    };
    let nodes = NODES.map(|(host, ..)| (Role::Node, host));
    for (role, host) in [(Role::Placement, "control"), (Role::Operator, "dev")]
        .into_iter()
        .chain(nodes)
    {
        if !dir.join(format!("{host}.{role}.crt")).exists() {
            pki.issue(role, &HostName::new(host)?, DEFAULT_VALIDITY)?;
        }
    }
    Ok(())
}

fn describe(up: &Up) -> String {
    let variables = up
        .environment
        .iter()
        .map(|(name, value)| format!("  export {name}={value}"));
    format!(
        "a cluster of {} is coming up in {}; in another shell:\n{}\n  ukai disk create web1 --size 2G\n  ukai disk attach web1 --node {}\nctrl-c ends it; its data stays",
        up.nodes.join(", "),
        up.dir.display(),
        variables.collect::<Vec<_>>().join("\n"),
        up.nodes[0]
    )
}
