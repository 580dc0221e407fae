//! The service over real loopback sockets: QUIC with the nodes' client, HTTPS with hand-written requests.

#[path = "network/abuse.rs"]
mod abuse;
#[path = "network/revoked.rs"]
mod revoked;
#[path = "network/stores.rs"]
mod stores;

use placement_service::api::{self, Attached, Created, ErrorBody};
use placement_service::client::{ClientError, PlacementClient};
use placement_service::node_protocol::{
    self, BackendReport, BackendState, Desired, DesiredAttachment, Grant, Heartbeat, Hello, Lists,
    Refusal, StoreReport, Welcome,
};
use placement_service::planner;
use placement_service::server::{CatalogAt, Config, Server};
use replicator::net::identity::{Credentials, Dial, Expected, Identity, Pki, Role};
use replicator::words::{
    BackendId, Change, DatacenterName, DiskId, DiskRecord, Epoch, HostName, Life, Owner, RackName,
    Revision, Seq, StoreId, Version,
};
use replicator::writer::SwapOutcome;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const DAY: Duration = Duration::from_secs(24 * 3600);
const SOON: Duration = Duration::from_secs(20);

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A placement service with certificates for everybody, in a directory of its own.
struct Cluster {
    dir: TempDir,
    pki: Pki,
    server: Server,
}

impl Cluster {
    async fn start() -> Cluster {
        let dir = TempDir::new().unwrap();
        let pki = Pki::init(dir.path()).unwrap();
        pki.issue(Role::Placement, &host("central"), DAY).unwrap();
        let server = serve(dir.path(), loopback(0), loopback(0)).await;
        Cluster { dir, pki, server }
    }

    fn credentials(&self, role: Role, name: &str) -> Credentials {
        let name = host(name);
        if Credentials::load(self.dir.path(), role, &name).is_err() {
            self.pki.issue(role, &name, DAY).unwrap();
        }
        Credentials::load(self.dir.path(), role, &name).unwrap()
    }

    fn node(&self, name: &str) -> PlacementClient {
        let credentials = self.credentials(Role::Node, name);
        PlacementClient::new(&credentials, vec![self.server.nodes_addr()]).unwrap()
    }

    async fn ask<T: DeserializeOwned>(&self, method: &str, path: &str, body: &str) -> T {
        let (status, text) = self.try_ask(method, path, body).await.unwrap();
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn ask_in_vain(&self, method: &str, path: &str, body: &str) -> (u16, ErrorBody) {
        let (status, text) = self.try_ask(method, path, body).await.unwrap();
        (status, serde_json::from_str(&text).expect(&text))
    }

    async fn try_ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, String), String> {
        let alice = self.credentials(Role::Operator, "alice");
        https(&alice, self.server.operators_addr(), method, path, body).await
    }
}

async fn serve(dir: &Path, nodes: SocketAddr, operators: SocketAddr) -> Server {
    let config = Config {
        catalog: CatalogAt::File(dir.join("catalog")),
        etcd_pki: None,
        announce_nodes: None,
        announce_operators: None,
        nodes,
        operators,
        credentials: Credentials::load_only(dir, Role::Placement).unwrap(),
    };
    Server::start(config).await.unwrap()
}

/// One request on a connection of its own: the status and the body.
async fn https(
    credentials: &Credentials,
    to: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> Result<(u16, String), String> {
    let dial = Dial::new(credentials, Expected::role(Role::Placement), &[api::ALPN]);
    let exchange = async {
        let tcp = TcpStream::connect(to).await?;
        let name = dial.server_name().try_into().unwrap();
        let mut tls = TlsConnector::from(dial.tls().0).connect(name, tcp).await?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: placement.ukai\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        tls.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        tls.read_to_string(&mut response).await?;
        std::io::Result::Ok(response)
    };
    let response = timeout(SOON, exchange).await.map_err(|e| e.to_string())?;
    let response = response.map_err(|error| error.to_string())?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or("no answer")?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok((status, body.to_owned()))
}

fn heartbeat(number: u128, rack: &str) -> Heartbeat {
    Heartbeat {
        datacenter: DatacenterName::new("tokyo").unwrap(),
        rack: RackName::new(rack).unwrap(),
        listen: "0.0.0.0:7000".parse().unwrap(),
        stores: vec![StoreReport::of_new(StoreId::from_u128(number), 100 << 30)],
        backends: vec![],
        links: vec![],
        seen: 0,
        lists: Lists::default(),
    }
}

/// A node that does at once what is wanted of it, until it is dropped.
fn obedient_node(client: PlacementClient, number: u128) -> tokio::task::JoinHandle<()> {
    obedient_node_in("tokyo", client, number)
}

fn obedient_node_in(
    datacenter: &'static str,
    client: PlacementClient,
    number: u128,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut desired = Desired::default();
        loop {
            let running = desired.attachments.iter();
            let running = running.filter(|a| a.wanted != api::Wanted::Detached);
            let mut open = BTreeMap::new();
            for attachment in running.clone().filter(|a| a.take_over) {
                let own = host(&format!("t{number}"));
                open.insert(
                    attachment.backend,
                    take_over(&client, own, attachment).await,
                );
            }
            let backends = running.map(|attachment| BackendReport {
                disk: attachment.disk,
                backend: attachment.backend,
                state: BackendState::Ready {
                    status: String::new(),
                    socket: format!("/run/ukai/{}.sock", attachment.name),
                },
                epoch: open.get(&attachment.backend).copied(),
                stall: None,
                hindrance: None,
                verdict: None,
                unreachable: vec![],
                progress: None,
            });
            let mut next = heartbeat(number, &format!("r{number}"));
            next.datacenter = DatacenterName::new(datacenter).unwrap();
            next.backends = backends.collect();
            next.seen = desired.digest;
            for report in &mut next.stores {
                report.dropped.clone_from(&desired.drop);
            }
            match client.heartbeat(next).await {
                Ok(wanted) => desired = wanted,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
}

/// What a backend does that is told to take over: it fences, settles, and is open.
async fn take_over(
    client: &PlacementClient,
    own: HostName,
    attachment: &DesiredAttachment,
) -> Epoch {
    let (disk, backend) = (attachment.disk, attachment.backend);
    let mine = |record: &DiskRecord| record.owner().is_some_and(|owner| owner.backend == backend);
    let record = client.record(disk).await.unwrap().record;
    if mine(&record) {
        return record.epoch;
    }
    let owner = Owner {
        backend,
        life: Life(1),
        host: own,
    };
    let swap = async |record: &DiskRecord, change| {
        let (outcome, grant) = client.swap(disk, backend, record.revision, change).await;
        match outcome {
            SwapOutcome::Done(record) if !grant.is_empty() => record,
            other => panic!("{other:?}"),
        }
    };
    let taken = swap(&record, Change::TakeOver { owner }).await;
    let by = (backend, Life(1));
    let settled = swap(&taken, Change::Settle { by, drop: vec![] }).await;
    settled.epoch
}

async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, found).await.expect("it comes about in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_creates_attaches_detaches_and_deletes_a_disk() {
    let cluster = Cluster::start().await;
    let nodes = [
        obedient_node(cluster.node("t1"), 1),
        obedient_node(cluster.node("t2"), 2),
    ];
    until(async || {
        let status: api::Status = cluster.ask("GET", "/v1/status", "").await;
        (status.stores_up == 2).then_some(())
    })
    .await;
    let created: Created = cluster
        .ask("POST", "/v1/disks", r#"{"name":"web1","bytes":1073741824}"#)
        .await;
    assert_eq!((created.disk.copies, created.notes.len()), (2, 0));
    let attached: Attached = cluster
        .ask("POST", "/v1/disks/web1/attach", r#"{"node":"t1"}"#)
        .await;
    assert_eq!(attached.socket, "/run/ukai/web1.sock");
    let map: api::DiskMap = cluster.ask("GET", "/v1/disks/web1/map", "").await;
    assert_eq!((map.ranges.len(), map.stores.len()), (1, 2));
    let (status, error) = cluster.ask_in_vain("DELETE", "/v1/disks/web1", "").await;
    assert_eq!(status, 409);
    assert!(
        error.try_next.contains("ukai disk detach web1"),
        "{error:?}"
    );

    let detached: api::Detached = cluster.ask("POST", "/v1/disks/web1/detach", "").await;
    assert!(detached.clean);
    let _: api::Deleted = cluster.ask("DELETE", "/v1/disks/web1", "").await;
    until(async || {
        let status: api::Status = cluster.ask("GET", "/v1/status", "").await;
        status.problems.is_empty().then_some(())
    })
    .await;
    for node in nodes {
        node.abort();
    }
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_told_its_orders_and_has_the_disk_once_it_has_opened_it() {
    let cluster = Cluster::start().await;
    let nodes = [
        obedient_node(cluster.node("t1"), 1),
        obedient_node(cluster.node("t2"), 2),
        obedient_node_in("osaka", cluster.node("o1"), 11),
        obedient_node_in("osaka", cluster.node("o2"), 12),
    ];
    until(async || {
        let status: api::Status = cluster.ask("GET", "/v1/status", "").await;
        (status.stores_up == 4).then_some(())
    })
    .await;
    let create = r#"{"name":"web1","bytes":1073741824,"near":"t1"}"#;
    let _: Created = cluster.ask("POST", "/v1/disks", create).await;
    let attach = async |to: &str| -> Attached {
        let body = format!(r#"{{"node":"{to}"}}"#);
        cluster.ask("POST", "/v1/disks/web1/attach", &body).await
    };
    let source = attach("t1").await;
    assert_eq!(source.standby_of, None);
    let (t1, o1) = (cluster.node("t1"), cluster.node("o1"));
    let owner = |attached: &Attached| Owner {
        backend: attached.backend,
        life: Life(1),
        host: attached.node.clone(),
    };
    let open = async |node: &PlacementClient, attached: &Attached, sets| {
        let record = node.record(attached.id).await.unwrap();
        let owner = owner(attached);
        let change = Change::Attach { owner, sets };
        let swapped = node.swap(attached.id, attached.backend, record.revision, change);
        match swapped.await.0 {
            SwapOutcome::Done(record) => record,
            other => panic!("{other:?}"),
        }
    };
    let record = open(&t1, &source, vec![]).await;

    let standby = attach("o1").await;
    assert_eq!(standby.standby_of, Some(host("t1")));
    let orders = until(async || {
        let mut beat = heartbeat(11, "r11");
        beat.datacenter = DatacenterName::new("osaka").unwrap();
        beat.backends = vec![BackendReport {
            disk: standby.id,
            backend: standby.backend,
            state: BackendState::Ready {
                status: String::new(),
                socket: standby.socket.clone(),
            },
            epoch: None,
            stall: None,
            hindrance: None,
            verdict: None,
            unreachable: vec![],
            progress: None,
        }];
        let desired = o1.heartbeat(beat).await.unwrap();
        let mine = desired.attachments.into_iter().next()?;
        assert_eq!(mine.wanted, api::Wanted::Standby);
        mine.orders.filter(|orders| !orders.sets.is_empty())
    })
    .await;
    let near: Vec<u128> = orders.sets[0].stores.iter().map(|s| s.as_u128()).collect();
    assert_eq!(near, [11, 12]);
    assert!(orders.fill.bytes_per_second.is_some());

    let close = Change::Close {
        by: (source.backend, Life(1)),
        last: Version::new(record.epoch, Seq(1)),
        successor: Some(standby.backend),
    };
    let closed = t1.swap(source.id, source.backend, record.revision, close);
    assert!(matches!(closed.await.0, SwapOutcome::Done(_)));
    open(&o1, &standby, orders.sets).await;
    let disk: api::Disk = cluster.ask("GET", "/v1/disks/web1", "").await;
    assert_eq!(disk.attachment.unwrap().backend, standby.backend);
    assert_eq!(disk.home.as_str(), "osaka");
    let moving = until(async || {
        let moves: api::Moves = cluster.ask("GET", "/v1/moves", "").await;
        moves.under_way.into_iter().next()
    })
    .await;
    assert_eq!(moving.disk.as_str(), "web1");
    let moving: api::Move = cluster
        .ask("PATCH", "/v1/disks/web1/move", r#"{"control":"pause"}"#)
        .await;
    assert!(moving.paused);
    let limit = r#"{"control":{"limit":1048576}}"#;
    let moving: api::Move = cluster.ask("PATCH", "/v1/disks/web1/move", limit).await;
    assert_eq!(moving.own_limit, Some(1 << 20));
    let explained: planner::Explanation = cluster.ask("GET", "/v1/disks/web1/explain", "").await;
    assert_eq!(explained.copies.len(), 4);
    let plan: planner::Plan = cluster.ask("GET", "/v1/disks/web1/plan", "").await;
    assert!(!plan.is_empty());
    let policy = r#"{"text":"copies = 1\n","at_once":2}"#;
    let applied: api::PolicyDiff = cluster.ask("PUT", "/v1/policies/tokyo", policy).await;
    assert!(applied.applied);
    let view: api::PolicyView = cluster.ask("GET", "/v1/policies/tokyo", "").await;
    assert_eq!(view.applied_by.as_deref(), Some("alice"));
    assert_eq!(view.at_once, 2);
    let views: Vec<api::PolicyView> = cluster.ask("GET", "/v1/policies", "").await;
    assert_eq!(views.len(), 2);
    let bad = r#"{"text":"copis = 1"}"#;
    let (status, error) = cluster.ask_in_vain("PUT", "/v1/policies/tokyo", bad).await;
    assert_eq!(status, 400);
    assert!(error.why.contains("copies"), "{error:?}");
    let _: Vec<api::Link> = cluster.ask("GET", "/v1/links", "").await;
    let _: Vec<api::Deletion> = cluster.ask("GET", "/v1/disks/web1/deletions", "").await;
    for node in nodes {
        node.abort();
    }
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_hear_what_was_wrong() {
    let cluster = Cluster::start().await;
    for (method, path, body, status, said) in [
        ("GET", "/v1/disks/none", "", 404, "there is no disk none"),
        ("GET", "/v1/disks/..%2Fx", "", 400, "understood"),
        ("GET", "/v2/status", "", 404, "no such call"),
        ("PUT", "/v1/disks", "", 404, "no such call"),
        ("POST", "/v1/disks", "{", 400, "understood"),
        (
            "POST",
            "/v1/disks",
            r#"{"name":"A","bytes":1}"#,
            400,
            "understood",
        ),
        (
            "POST",
            "/v1/disks",
            r#"{"name":"a","bytes":1}"#,
            400,
            "was not created",
        ),
        (
            "POST",
            "/v1/stores/x/host",
            r#"{"host":"a"}"#,
            400,
            "understood",
        ),
    ] {
        let (found, error) = cluster.ask_in_vain(method, path, body).await;
        assert_eq!(found, status, "{method} {path} {body}: {error:?}");
        assert!(error.error.contains(said), "{error:?}");
    }
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(api::MAX_BODY_BYTES));
    let (status, _) = cluster.ask_in_vain("POST", "/v1/disks", &long).await;
    assert_eq!(status, 400);
    // A node that never does its part: the request ends, and says who is waited for.
    cluster
        .node("t1")
        .heartbeat(heartbeat(1, "r1"))
        .await
        .unwrap();
    cluster
        .node("t2")
        .heartbeat(heartbeat(2, "r2"))
        .await
        .unwrap();
    let _: Created = cluster
        .ask("POST", "/v1/disks", r#"{"name":"web1","bytes":4096}"#)
        .await;
    let wait = r#"{"node":"t1","wait_ms":100}"#;
    let (status, error) = cluster
        .ask_in_vain("POST", "/v1/disks/web1/attach", wait)
        .await;
    assert_eq!(status, 504);
    assert!(error.why.contains("node t1"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_operators_reach_the_operators_port_and_only_with_a_certificate() {
    let cluster = Cluster::start().await;
    let to = cluster.server.operators_addr();
    let node = cluster.credentials(Role::Node, "t1");
    let refused = https(&node, to, "GET", "/v1/status", "").await;
    assert!(refused.is_err(), "{refused:?}");

    let other = TempDir::new().unwrap();
    let foreign = Pki::init(other.path()).unwrap();
    foreign.issue(Role::Operator, &host("eve"), DAY).unwrap();
    let eve = Credentials::load(other.path(), Role::Operator, &host("eve")).unwrap();
    assert!(https(&eve, to, "GET", "/v1/status", "").await.is_err());

    // No TLS at all.
    let mut tcp = TcpStream::connect(to).await.unwrap();
    tcp.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = timeout(SOON, tcp.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP"), "no answer in the clear");

    let alice = cluster.credentials(Role::Operator, "alice");
    let answered = https(&alice, to, "GET", "/v1/status", "").await;
    assert_eq!(answered.unwrap().0, 200, "and others are not disturbed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_waits_for_news_and_is_answered_at_once_when_there_is_some() {
    let cluster = Cluster::start().await;
    let t1 = cluster.node("t1");
    cluster
        .node("t2")
        .heartbeat(heartbeat(2, "r2"))
        .await
        .unwrap();
    let first = t1.heartbeat(heartbeat(1, "r1")).await.unwrap();
    let _: Created = cluster
        .ask("POST", "/v1/disks", r#"{"name":"web1","bytes":4096}"#)
        .await;
    let mut next = heartbeat(1, "r1");
    next.seen = first.digest;
    let before = tokio::time::Instant::now();
    let quiet = t1.heartbeat(next.clone()).await.unwrap();
    assert_eq!(quiet.digest, first.digest);
    assert!(before.elapsed() >= node_protocol::HEARTBEAT_WAIT);

    let waiting = tokio::spawn({
        let t1 = t1.clone();
        async move { t1.heartbeat(next).await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let wait = r#"{"node":"t1","wait_ms":0}"#;
    let (status, _) = cluster
        .ask_in_vain("POST", "/v1/disks/web1/attach", wait)
        .await;
    assert_eq!(status, 504);
    let news = timeout(SOON, waiting).await.unwrap().unwrap();
    assert_eq!(news.attachments.len(), 1);
    assert_ne!(news.digest, first.digest);
}

/// A thread that serves disks may be given up, and a connection that it made is everybody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_outlives_the_thread_that_asked_for_it() {
    let cluster = Cluster::start().await;
    let client = cluster.node("t1");
    let asking = client.clone();
    let asked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok::<_, std::io::Error>(runtime.block_on(asking.stores(vec![])))
    });
    let asked = tokio::task::spawn_blocking(move || asked.join()).await;
    assert_eq!(asked.unwrap().unwrap().unwrap().unwrap(), []);
    assert_eq!(client.stores(vec![]).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_attachers_that_race_over_the_network_one_wins() {
    let cluster = Cluster::start().await;
    let t1 = cluster.node("t1");
    t1.heartbeat(heartbeat(1, "r1")).await.unwrap();
    cluster
        .node("t2")
        .heartbeat(heartbeat(2, "r2"))
        .await
        .unwrap();
    let (disk, backend) = attach_without_waiting(&cluster).await;
    let change = |life| Change::Attach {
        owner: Owner {
            backend,
            life: Life(life),
            host: host("t1"),
        },
        sets: vec![],
    };
    let other = cluster.node("t1");
    let (a, b) = tokio::join!(
        t1.swap(disk, backend, Revision(0), change(1)),
        other.swap(disk, backend, Revision(0), change(2)),
    );
    let (a, b) = (a.0, b.0);
    let (won, lost) = match (a, b) {
        (SwapOutcome::Done(won), SwapOutcome::Conflict(lost))
        | (SwapOutcome::Conflict(lost), SwapOutcome::Done(won)) => (won, lost),
        other => panic!("{other:?}"),
    };
    assert_eq!(won, lost, "the loser sees who won");
    let again = t1.record(disk).await.unwrap();
    assert_eq!(again.record, *won);
    // Whoever holds the epoch can prove it, and nobody else.
    let stores = cluster.credentials(Role::Node, "t2");
    let claims = stores
        .granted(&again.grant.0, rustls::pki_types::UnixTime::now())
        .unwrap();
    assert_eq!((claims.disk, claims.epoch), (disk, won.epoch));
    assert_eq!(claims.holder, Identity::new(Role::Node, host("t1")));
    let seen = cluster.node("t2").record(disk).await.unwrap();
    assert_eq!((seen.record, seen.grant), (*won.clone(), Grant::default()));
    let operator = cluster.credentials(Role::Operator, "t1");
    let operator = PlacementClient::new(&operator, vec![cluster.server.nodes_addr()]).unwrap();
    assert!(operator.record(disk).await.unwrap().grant.is_empty());
    let addresses = t1.stores(won.stores()).await.unwrap();
    assert_eq!(addresses.len(), 2);
    assert_eq!(addresses[0].address, loopback(7000));
}

async fn attach_without_waiting(cluster: &Cluster) -> (DiskId, BackendId) {
    let created: Created = cluster
        .ask("POST", "/v1/disks", r#"{"name":"web1","bytes":4096}"#)
        .await;
    let wait = r#"{"node":"t1","wait_ms":0}"#;
    let (status, _) = cluster
        .ask_in_vain("POST", "/v1/disks/web1/attach", wait)
        .await;
    assert_eq!(status, 504);
    let disk: api::Disk = cluster.ask("GET", "/v1/disks/web1", "").await;
    (created.disk.id, disk.attachment.unwrap().backend)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_writer_swaps_with_the_operators_certificate() {
    let cluster = Cluster::start().await;
    cluster
        .node("t1")
        .heartbeat(heartbeat(1, "r1"))
        .await
        .unwrap();
    cluster
        .node("t2")
        .heartbeat(heartbeat(2, "r2"))
        .await
        .unwrap();
    let _: Created = cluster
        .ask("POST", "/v1/disks", r#"{"name":"web1","bytes":4096}"#)
        .await;
    let writer: api::Writer = cluster.ask("POST", "/v1/disks/web1/writer", "").await;
    assert_eq!(writer.node_port, cluster.server.nodes_addr().port());
    assert_eq!(writer.stores.len(), 2);
    let alice = cluster.credentials(Role::Operator, "alice");
    let client = PlacementClient::new(&alice, vec![loopback(writer.node_port)]).unwrap();
    let change = Change::Attach {
        owner: Owner {
            backend: writer.backend,
            life: Life(1),
            host: host("alice"),
        },
        sets: vec![],
    };
    let record = writer.record;
    let outcome = client
        .swap(record.id, writer.backend, record.revision, change)
        .await;
    assert!(matches!(outcome.0, SwapOutcome::Done(_)), "{outcome:?}");
    let refused = client.heartbeat(heartbeat(3, "r3")).await.unwrap_err();
    let allowed = matches!(refused, ClientError::Refused(Refusal::NotAllowed { .. }));
    assert!(allowed, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_loses_nothing_and_nodes_find_it_again() {
    let Cluster { dir, pki, server } = Cluster::start().await;
    let (nodes, operators) = (server.nodes_addr(), server.operators_addr());
    let cluster = Cluster { dir, pki, server };
    let t1 = cluster.node("t1");
    t1.heartbeat(heartbeat(1, "r1")).await.unwrap();
    cluster
        .node("t2")
        .heartbeat(heartbeat(2, "r2"))
        .await
        .unwrap();
    let (disk, backend) = attach_without_waiting(&cluster).await;
    let before = t1.record(disk).await.unwrap();
    let Cluster { dir, pki, server } = cluster;
    server.stop().await;

    // Away: calls end in bounded time, and a swap's outcome is not guessed.
    let change = Change::Attach {
        owner: Owner {
            backend,
            life: Life(1),
            host: host("t1"),
        },
        sets: vec![],
    };
    let outcome = t1
        .swap(disk, backend, before.revision, change.clone())
        .await;
    assert_eq!(outcome.0, SwapOutcome::Unknown);

    let server = serve(dir.path(), nodes, operators).await;
    let cluster = Cluster { dir, pki, server };
    let after = until(async || t1.record(disk).await.ok()).await;
    assert_eq!(before, after);
    let outcome = t1.swap(disk, backend, after.revision, change).await;
    assert!(matches!(outcome.0, SwapOutcome::Done(_)), "{outcome:?}");
    let desired = t1.heartbeat(heartbeat(1, "r1")).await.unwrap();
    assert_eq!(desired.attachments[0].backend, backend);
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_peer_is_told_which_versions_there_are() {
    let cluster = Cluster::start().await;
    let credentials = cluster.credentials(Role::Node, "t1");
    let dial = Dial::new(
        &credentials,
        Expected::role(Role::Placement),
        &[node_protocol::ALPN],
    );
    let endpoint = quinn::Endpoint::client(loopback(0)).unwrap();
    let to = cluster.server.nodes_addr();
    let connection = dial.connect(&endpoint, to).await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let hello = Hello {
        newest: 9,
        oldest: 9,
        program: "9.0".into(),
    };
    let json = serde_json::to_vec(&hello).unwrap();
    send.write_all(&(json.len() as u32).to_le_bytes())
        .await
        .unwrap();
    send.write_all(&json).await.unwrap();
    let answer = timeout(SOON, receive.read_to_end(64 << 10)).await;
    let answer = answer.unwrap().unwrap();
    let answer: Result<Welcome, Refusal> = serde_json::from_slice(&answer[4..]).unwrap();
    let text = answer.unwrap_err().to_string();
    assert!(text.contains("this peer 9 to 9"), "{text}");

    // A frame that claims to be enormous is not waited for.
    let connection = dial.connect(&endpoint, to).await.unwrap();
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    timeout(SOON, connection.closed())
        .await
        .expect("it is shown the door");
}
