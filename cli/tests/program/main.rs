//! The real `ukai`, run as its users run it, with a placement service and nodes that are made up.

mod away;
mod dev;
mod image;
mod names;
mod node;
mod signals;

use placement_service::api::Wanted;
use placement_service::client::PlacementClient;
use placement_service::node_protocol::{
    BackendReport, BackendState, Desired, Heartbeat, Lists, StoreReport,
};
use placement_service::server::{CatalogAt, Config, Server};
use replicator::net::identity::{Credentials, Pki, Role};
use replicator::words::{DatacenterName, HostName, RackName, StoreId};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const DAY: Duration = Duration::from_secs(24 * 3600);
const SOON: Duration = Duration::from_secs(30);

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

/// Certificates for everybody, and where the placement service is to be found when it is there.
struct Cluster {
    dir: TempDir,
    pki: Pki,
    nodes: SocketAddr,
    operators: SocketAddr,
}

impl Cluster {
    fn new() -> Cluster {
        let dir = TempDir::new().unwrap();
        let pki = Pki::init(dir.path()).unwrap();
        pki.issue(Role::Placement, &host("central"), DAY).unwrap();
        pki.issue(Role::Operator, &host("alice"), DAY).unwrap();
        // Free now, and nobody else's business for the time of a test.
        let any = (Ipv4Addr::LOCALHOST, 0);
        let nodes = UdpSocket::bind(any).unwrap().local_addr().unwrap();
        let operators = TcpListener::bind(any).unwrap().local_addr().unwrap();
        Cluster {
            dir,
            pki,
            nodes,
            operators,
        }
    }

    async fn serve(&self) -> Server {
        let config = Config {
            catalog: CatalogAt::File(self.dir.path().join("catalog")),
            etcd_pki: None,
            announce_nodes: None,
            announce_operators: None,
            nodes: self.nodes,
            operators: self.operators,
            credentials: Credentials::load_only(self.dir.path(), Role::Placement).unwrap(),
        };
        Server::start(config).await.unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.command_at(&self.operators.to_string(), arguments)
    }

    /// With another word for where the placement service is.
    fn command_at(&self, service: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ukai"));
        command
            .arg("--service")
            .arg(service)
            .arg("--pki")
            .arg(self.dir.path())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn ukai(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    async fn ended(&self, arguments: &[&str]) -> Output {
        ended(self.command(arguments)).await
    }

    async fn ask(&self, arguments: &[&str]) -> Value {
        let output = self.ended(&[&["--json"], arguments].concat()).await;
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn until_up(&self, stores: u64) {
        let up = async {
            while self.ask(&["status"]).await["stores_up"] != stores {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(SOON, up).await.expect("nodes come");
    }

    /// A node with a store that serves at once what it is told to.
    fn node(&self, name: &str, datacenter: &str, number: u128) -> JoinHandle<()> {
        self.pki.issue(Role::Node, &host(name), DAY).unwrap();
        let credentials = Credentials::load(self.dir.path(), Role::Node, &host(name)).unwrap();
        let client = PlacementClient::new(&credentials, vec![self.nodes]).unwrap();
        let mut heartbeat = Heartbeat {
            datacenter: DatacenterName::new(datacenter).unwrap(),
            rack: RackName::new(name).unwrap(),
            listen: "0.0.0.0:7000".parse().unwrap(),
            stores: vec![StoreReport::of_new(StoreId::from_u128(number), 100 << 30)],
            backends: vec![],
            links: vec![],
            seen: 0,
            lists: Lists::default(),
        };
        tokio::spawn(async move {
            loop {
                match client.heartbeat(heartbeat.clone()).await {
                    Ok(desired) => {
                        heartbeat.backends = serving(&desired);
                        heartbeat.seen = desired.digest;
                    }
                    Err(_) => sleep(Duration::from_millis(50)).await,
                }
            }
        })
    }
}

async fn ended(mut command: Command) -> Output {
    let output = timeout(SOON, command.output()).await;
    output.expect("it ends").unwrap()
}

fn serving(desired: &Desired) -> Vec<BackendReport> {
    let attachments = desired.attachments.iter();
    let wanted = attachments.filter(|attachment| attachment.wanted != Wanted::Detached);
    let report = wanted.map(|attachment| BackendReport {
        disk: attachment.disk,
        backend: attachment.backend,
        state: BackendState::Ready {
            status: String::new(),
            socket: format!("/run/ukai/{}.sock", attachment.name),
        },
        epoch: None,
        stall: None,
        hindrance: None,
        verdict: None,
        unreachable: vec![],
        progress: None,
    });
    report.collect()
}
