//! Certificates that are taken back while the service runs: who shows one is refused, and what it opened ends.

use super::abuse::{all_goes_on, greeted, operator, raw};
use super::{Cluster, SOON, heartbeat, host, https, until};
use placement_service::api::{self, Created};
use placement_service::client::{ClientError, PlacementClient};
use replicator::net::identity::{self, DialError, Role};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// Longer than any of these tests: nothing but its connection's end ends a request that waits so long.
const LONG_MS: u64 = 100_000;

fn revoke(cluster: &Cluster, role: Role, name: &str) {
    let certificate = cluster.dir.path().join(format!("{name}.{role}.crt"));
    let revoked = identity::revoke(cluster.dir.path(), &certificate).unwrap();
    assert!(!revoked.already);
}

/// What was still said on a connection until it ended, in whichever way.
async fn rest(tls: &mut TlsStream<TcpStream>) -> (String, Option<io::Error>) {
    let mut heard = Vec::new();
    let ended = timeout(SOON, tls.read_to_end(&mut heard)).await;
    let ended = ended.expect("it is ended");
    (String::from_utf8_lossy(&heard).into_owned(), ended.err())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_operator_is_refused_and_its_connections_end() {
    let cluster = Cluster::start().await;
    all_goes_on(&cluster).await;
    let t2 = cluster.node("t2");
    t2.heartbeat(heartbeat(2, "r2")).await.unwrap();
    let _: Created = cluster
        .ask("POST", "/v1/disks", r#"{"name":"web1","bytes":4096}"#)
        .await;

    // One that was answered and stays, and one that waits for its answer.
    let mut idle = operator(&cluster, "mallory").await.unwrap();
    idle.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 4096];
    let bytes = timeout(SOON, idle.read(&mut answer)).await.unwrap();
    assert!(answer[..bytes.unwrap()].starts_with(b"HTTP/1.1 200"));
    let mut waiting = operator(&cluster, "mallory").await.unwrap();
    let body = format!(r#"{{"node":"t1","wait_ms":{LONG_MS}}}"#);
    let length = body.len();
    let attach = format!(
        "POST /v1/disks/web1/attach HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    waiting.write_all(attach.as_bytes()).await.unwrap();
    until(async || {
        let disk: api::Disk = cluster.ask("GET", "/v1/disks/web1", "").await;
        disk.attachment
    })
    .await;

    revoke(&cluster, Role::Operator, "mallory");
    rest(&mut idle).await;
    let (heard, _) = rest(&mut waiting).await;
    assert!(heard.is_empty(), "a revoked operator is answered: {heard}");

    // A new one is told why, as TLS tells it.
    let mut again = operator(&cluster, "mallory").await.unwrap();
    let (heard, error) = rest(&mut again).await;
    let error = error.expect("it is refused").to_string();
    assert!(
        heard.is_empty() && error.contains("CertificateRevoked"),
        "{error}"
    );
    let mallory = cluster.credentials(Role::Operator, "mallory");
    let to = cluster.server.operators_addr();
    let asked = https(&mallory, to, "GET", "/v1/status", "").await;
    assert!(asked.is_err(), "{asked:?}");
    all_goes_on(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_is_refused_and_its_connections_end() {
    let cluster = Cluster::start().await;
    all_goes_on(&cluster).await;
    let t8 = cluster.node("t8");
    t8.heartbeat(heartbeat(8, "r8")).await.unwrap();
    let (_endpoint, standing) = greeted(&cluster, "t8").await;

    revoke(&cluster, Role::Node, "t8");
    let ended = timeout(SOON, standing.closed()).await.expect("it is ended");
    let ended = ended.to_string();
    assert!(ended.contains("the certificate was revoked"), "{ended}");
    let (_endpoint, again) = raw(&cluster, "t8").await;
    let refused = timeout(SOON, again.closed()).await.expect("it is refused");
    let refused = refused.to_string();
    assert!(refused.contains("Revoked"), "{refused}");

    // What the node itself makes of it: with the connection that it had, and with a new one.
    let lost = until(async || t8.heartbeat(heartbeat(8, "r8")).await.err()).await;
    assert!(
        lost.to_string().to_lowercase().contains("revoked"),
        "{lost}"
    );
    let credentials = cluster.credentials(Role::Node, "t8");
    let anew = PlacementClient::new(&credentials, vec![cluster.server.nodes_addr()]).unwrap();
    let refused = anew.heartbeat(heartbeat(8, "r8")).await.unwrap_err();
    let ClientError::Dial(refused) = refused else {
        panic!("{refused}");
    };
    let DialError::RefusedByPeer { us, why, .. } = &*refused else {
        panic!("{refused}");
    };
    assert_eq!((us.role, &us.host), (Role::Node, &host("t8")));
    assert!(why.contains("Revoked"), "{why}");
    all_goes_on(&cluster).await;
}
