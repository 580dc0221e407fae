//! A peer that sends garbage, opens streams without end, stalls or takes all connections costs only itself:
//! beside it a well-behaved one goes on.

use super::{Cluster, SOON, heartbeat, https, until};
use placement_service::api;
use placement_service::node_protocol::ALPN;
use replicator::net::identity::{Dial, Expected, Role};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A node and an operator that must not notice.
pub(super) async fn all_goes_on(cluster: &Cluster) {
    cluster
        .node("t1")
        .heartbeat(heartbeat(1, "r1"))
        .await
        .unwrap();
    let status: api::Status = cluster.ask("GET", "/v1/status", "").await;
    assert!(status.hosts_up >= 1);
}

/// A connection to the nodes' port by somebody who does as it likes.
pub(super) async fn raw(cluster: &Cluster, name: &str) -> (quinn::Endpoint, quinn::Connection) {
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(1)));
    let credentials = cluster.credentials(Role::Node, name);
    let dial = Dial::new(&credentials, Expected::role(Role::Placement), &[ALPN])
        .with_transport(transport.into());
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let to = cluster.server.nodes_addr();
    let connection = timeout(SOON, dial.connect(&endpoint, to)).await.unwrap();
    (endpoint, connection.unwrap())
}

fn frame(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_le_bytes(), text].concat()
}

pub(super) async fn greeted(cluster: &Cluster, name: &str) -> (quinn::Endpoint, quinn::Connection) {
    let (endpoint, connection) = raw(cluster, name).await;
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let hello = frame(br#"{"newest":1,"oldest":1,"program":"mallory"}"#);
    send.write_all(&hello).await.unwrap();
    send.finish().unwrap();
    timeout(SOON, receive.read_to_end(1 << 16))
        .await
        .unwrap()
        .unwrap();
    (endpoint, connection)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_misbehaves_costs_only_itself() {
    let cluster = Cluster::start().await;
    all_goes_on(&cluster).await;

    // Garbage instead of a hello, and half of one.
    for said in [&[0xff; 5000][..], &frame(b"{}"), &frame(b"null")[..5]] {
        let (_endpoint, connection) = raw(&cluster, "t8").await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        let _ = send.write_all(said).await;
        all_goes_on(&cluster).await;
        timeout(SOON, connection.closed())
            .await
            .expect("it is ended");
    }

    // Calls that stall or make no sense, on ten thousand streams of one connection.
    let (_endpoint, connection) = greeted(&cluster, "t8").await;
    let mut calls = JoinSet::new();
    for at in 0..10_000usize {
        let connection = connection.clone();
        calls.spawn(async move {
            let (mut send, receive) = connection.open_bi().await.ok()?;
            let said = match at % 4 {
                0 => vec![0],
                1 => (4u32 << 20).to_le_bytes().to_vec(),
                2 => frame(b"{\"heartbeat\":"),
                _ => u32::MAX.to_le_bytes().to_vec(),
            };
            send.write_all(&said).await.ok()?;
            // Kept open: neither more comes nor the end.
            std::future::pending::<()>().await;
            Some(receive)
        });
    }
    for _ in 0..3 {
        all_goes_on(&cluster).await;
    }
    drop(calls);

    // As many connections as there are, and more.
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(raw(&cluster, "t9").await);
    }
    let (_endpoint, one_more) = raw(&cluster, "t9").await;
    let why = timeout(SOON, one_more.closed())
        .await
        .expect("one too many");
    assert!(why.to_string().contains("too many"), "{why}");
    all_goes_on(&cluster).await;
}

/// A TLS connection of an operator, to say to it what one likes.
pub(super) async fn operator(
    cluster: &Cluster,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let credentials = cluster.credentials(Role::Operator, name);
    let dial = Dial::new(&credentials, Expected::role(Role::Placement), &[api::ALPN]);
    let tcp = TcpStream::connect(cluster.server.operators_addr()).await?;
    let name = dial.server_name().try_into().unwrap();
    TlsConnector::from(dial.tls().0).connect(name, tcp).await
}

/// What comes back until the connection ends or nothing more does.
async fn answer(tls: &mut TlsStream<TcpStream>, said: &[u8]) -> String {
    // It may be closed before all is written.
    let _ = tls.write_all(said).await;
    let mut heard = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(Ok(bytes)) = timeout(Duration::from_secs(2), tls.read(&mut chunk)).await {
        if bytes == 0 || heard.len() > 1 << 16 {
            break;
        }
        heard.extend_from_slice(&chunk[..bytes]);
    }
    String::from_utf8_lossy(&heard).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_misbehaves_costs_only_itself() {
    let cluster = Cluster::start().await;
    all_goes_on(&cluster).await;
    let get = b"GET /v1/status HTTP/1.1\r\nhost: x\r\n".to_vec();
    let post = b"POST /v1/disks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n".to_vec();
    let many: Vec<u8> = (0..500)
        .flat_map(|at| format!("x-{at}: y\r\n").into_bytes())
        .collect();
    let long = [b"x: ".to_vec(), vec![b'y'; 2 << 20], b"\r\n".to_vec()].concat();
    let body = [
        b"content-length: 1000000\r\n\r\n".to_vec(),
        vec![b' '; 1_000_000],
    ]
    .concat();
    let deep = "[".repeat(60_000);
    let deep = format!("content-length: {}\r\n\r\n{deep}", deep.len()).into_bytes();
    for (said, status) in [
        (vec![0xff; 9000], "400"),
        ([&get[..], &many, b"\r\n"].concat(), "431"),
        ([&get[..], &long, b"\r\n"].concat(), "431"),
        ([&post[..], &body].concat(), "400"),
        ([&post[..], &deep].concat(), "400"),
    ] {
        let mut tls = operator(&cluster, "mallory").await.unwrap();
        let heard = answer(&mut tls, &said).await;
        let first = heard.lines().next().unwrap_or_default();
        // What is closed before it was read whole may lose its answer; it has cost nobody anything.
        assert!(
            heard.is_empty() || first.contains(status),
            "{status}: {first}"
        );
        all_goes_on(&cluster).await;
    }

    // One who begins requests on all the connections that it gets, and does not end them.
    let mut open = Vec::new();
    for _ in 0..32 {
        let mut tls = operator(&cluster, "mallory").await.unwrap();
        tls.write_all(&get).await.unwrap();
        open.push(tls);
    }
    let mut one_more = operator(&cluster, "mallory").await;
    if let Ok(tls) = &mut one_more {
        let heard = answer(tls, &[&get[..], b"\r\n"].concat()).await;
        assert!(heard.is_empty(), "one too many was answered: {heard}");
    }
    all_goes_on(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_never_shows_a_certificate_leaves_the_others_their_places() {
    let cluster = Cluster::start().await;
    let to = cluster.server.operators_addr();
    let mut silent = Vec::new();
    for at in 0..300u16 {
        let socket = TcpSocket::new_v4().unwrap();
        let from = Ipv4Addr::new(127, 0, 0, 2);
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        // The server may have hung up already.
        if let Ok(Ok(mut stream)) = timeout(SOON, socket.connect(to)).await {
            let _ = stream.write_all(&at.to_le_bytes()).await;
            silent.push(stream);
        }
    }
    all_goes_on(&cluster).await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_would_be_paths_are_no_names() {
    let cluster = Cluster::start().await;
    cluster
        .node("t1")
        .heartbeat(heartbeat(1, "r1"))
        .await
        .unwrap();
    for name in [
        "../x",
        "/etc/x",
        "..",
        ".",
        "a/b",
        "a\\\\b",
        "a b",
        "a\\nb",
        "a\\u0000b",
        "",
    ] {
        let body = format!(r#"{{"name":"{name}","bytes":1073741824,"copies":1}}"#);
        let (status, error) = cluster.ask_in_vain("POST", "/v1/disks", &body).await;
        assert_eq!(status, 400, "{name:?}: {error:?}");
    }
    let alice = cluster.credentials(Role::Operator, "alice");
    for name in ["%2e%2e", "%2e%2e%2fx", "..%2fx", "a%2fb", "a%00b", "a%0ab"] {
        for tail in ["", "/map", "/attach"] {
            let path = format!("/v1/disks/{name}{tail}");
            let method = if tail == "/attach" { "POST" } else { "GET" };
            let body = r#"{"node":"t1"}"#;
            let to = cluster.server.operators_addr();
            let (status, text) = https(&alice, to, method, &path, body).await.unwrap();
            assert!(matches!(status, 400 | 404), "{path}: {status} {text}");
        }
    }
    let disks: Vec<api::Disk> =
        until(async || Some(cluster.ask("GET", "/v1/disks", "").await)).await;
    assert!(disks.is_empty(), "{disks:?}");
}
