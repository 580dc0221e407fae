//! The real `ukai` while its placement service is away: orders wait for it, and say so; what only looks does not.

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
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const DAY: Duration = Duration::from_secs(24 * 3600);
const SOON: Duration = Duration::from_secs(30);
/// Far more than a command takes that does not wait.
const AT_ONCE: Duration = Duration::from_secs(3);

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
        let mut command = Command::new(env!("CARGO_BIN_EXE_ukai"));
        command
            .arg("--service")
            .arg(self.operators.to_string())
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
        let output = self.command(arguments).output();
        timeout(SOON, output).await.expect("it ends").unwrap()
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

/// What is said on the way, until the first end of a line.
async fn first_line(child: &mut Child) -> (String, BufReader<tokio::process::ChildStderr>) {
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    let read = timeout(SOON, stderr.read_line(&mut line)).await;
    read.expect("it says something").unwrap();
    (line, stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_wait_for_the_placement_service_and_are_carried_out_when_it_is_back() {
    let cluster = Cluster::new();
    let nodes = [
        cluster.node("t1", "tokyo", 1),
        cluster.node("t2", "tokyo", 2),
        cluster.node("o1", "osaka", 11),
        cluster.node("o2", "osaka", 12),
    ];
    let server = cluster.serve().await;
    cluster.until_up(4).await;
    let create = ["disk", "create", "web1", "--size", "64M", "--near", "t1"];
    cluster.ask(&create).await;
    server.stop().await;

    let mut attach = cluster.ukai(&["disk", "attach", "web1", "--node", "t1", "--wait", "30"]);
    let (said, mut stderr) = first_line(&mut attach).await;
    let waits = format!(
        "waiting for the placement service at {}: ",
        cluster.operators
    );
    assert!(said.starts_with(&waits), "{said}");
    assert!(said.contains("refused"), "{said}");
    sleep(Duration::from_secs(1)).await;
    assert!(attach.try_wait().unwrap().is_none(), "it waits");
    let server = cluster.serve().await;
    let mut rest = String::new();
    timeout(SOON, stderr.read_to_string(&mut rest))
        .await
        .expect("it ends")
        .unwrap();
    let attached = attach.wait_with_output().await.unwrap();
    assert!(attached.status.success(), "{rest}");
    assert_eq!(rest, "", "it says so once");
    let shown = String::from_utf8(attached.stdout).unwrap();
    assert!(shown.starts_with("web1 is ready on t1"), "{shown}");
    server.stop().await;

    // The same of a move; a program that reads JSON hears of nothing but the result.
    let order = ["--json", "disk", "move", "web1", "--to", "osaka", "--leave"];
    let mut moving = cluster.ukai(&order);
    sleep(Duration::from_secs(1)).await;
    assert!(moving.try_wait().unwrap().is_none(), "it waits");
    let server = cluster.serve().await;
    let moved = timeout(SOON, moving.wait_with_output()).await;
    let moved = moved.expect("it ends").unwrap();
    let said = String::from_utf8(moved.stderr).unwrap();
    assert!(moved.status.success() && said.is_empty(), "{said}");
    let ordered: Value = serde_json::from_slice(&moved.stdout).unwrap();
    assert_eq!(ordered["plan"]["name"], "web1", "{ordered}");
    let found = cluster.ask(&["moves", "web1"]).await;
    assert_eq!(found["number"], ordered["under_way"]["number"], "{found}");
    for node in nodes {
        node.abort();
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_waits_no_longer_than_it_was_told_to_and_what_looks_not_at_all() {
    let cluster = Cluster::new();
    let before = Instant::now();
    let attach = ["disk", "attach", "web1", "--node", "t1", "--wait", "2"];
    let ended = cluster.ended(&attach).await;
    let took = before.elapsed();
    assert_eq!(ended.status.code(), Some(5), "{ended:?}");
    let limit = Duration::from_secs(2);
    assert!((limit..limit + AT_ONCE).contains(&took), "{took:?}");
    let said = String::from_utf8(ended.stderr).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("waiting for the placement"), "{said}");
    let error = format!(
        "error: the placement service at {} does not answer: ",
        cluster.operators
    );
    assert!(lines[1].starts_with(&error), "{said}");
    assert_eq!(lines.len(), 3, "{said}");

    for looks in [
        &["status"][..],
        &["disk", "list"],
        &["moves"],
        &["disk", "move", "web1", "--to", "osaka", "--plan"],
        &["disk", "attach", "web1", "--node", "t1", "--wait", "0"],
    ] {
        let before = Instant::now();
        let ended = cluster.ended(looks).await;
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(5), "{looks:?}: {said}");
        assert!(said.starts_with("error: "), "{looks:?}: {said}");
        assert!(before.elapsed() < AT_ONCE, "{looks:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_for_a_certificate_hears_it_and_does_not_wait() {
    let cluster = Cluster::new();
    let server = cluster.serve().await;
    cluster.ask(&["status"]).await;
    let certificate = cluster.dir.path().join("alice.operator.crt");
    replicator::net::identity::revoke(cluster.dir.path(), &certificate).unwrap();
    // The service looks at the list each second.
    sleep(Duration::from_secs(2)).await;
    let attach = ["disk", "attach", "web1", "--node", "t1"];
    let ended = cluster.ended(&attach).await;
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(3), "{said}");
    assert!(
        said.contains("refused our certificate: CertificateRevoked"),
        "{said}"
    );
    server.stop().await;
}
