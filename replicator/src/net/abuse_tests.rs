//! A peer that sends garbage, opens streams without end, stalls or takes all connections costs only itself:
//! beside it, a well-behaved one goes on, and in the end there is room again.

use super::identity::{Fingerprint, Role};
use super::tests::{Cluster, Heard, STORE, asker, close_code, credentials, link, pattern, write};
use super::*;
use crate::message::{Reply, Request};
use crate::wire::{Call, Hello, Message};
use crate::writer::CallId;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::UdpSocket;
use std::time::Duration;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// The client that must not notice.
struct Good {
    link: Link,
    heard: Heard,
    calls: u64,
}

impl Good {
    async fn start(cluster: &Cluster) -> Good {
        let (link, mut heard) = link(&cluster.links, STORE);
        assert_eq!(heard.next().await, LinkEvent::Connected);
        Good {
            link,
            heard,
            calls: 0,
        }
    }

    /// Its session stands, and everything is answered in it.
    async fn goes_on(&mut self) {
        self.calls += 1;
        let call = CallId(self.calls);
        self.link
            .send(call, &write(self.calls, pattern(256, self.calls)));
        assert_eq!(self.heard.reply().await, (call, Reply::WRITTEN));
    }
}

#[tokio::test]
async fn ten_thousand_streams_are_one() {
    let cluster = Cluster::start().await;
    let mut good = Good::start(&cluster).await;
    let (_endpoint, connection) = cluster.raw().await;
    let _first = connection.open_bi().await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let connection = connection.clone();
        waiting.spawn(async move { connection.open_bi().await.is_ok() });
    }
    good.goes_on().await;
    let more = timeout(Duration::from_millis(300), waiting.join_next()).await;
    assert!(more.is_err(), "a second stream was opened: {more:?}");
    let uni = timeout(Duration::from_millis(100), connection.open_uni()).await;
    assert!(uni.is_err(), "a one-way stream was opened");
    good.goes_on().await;
}

#[tokio::test]
async fn who_stalls_at_whatever_point_is_ended_and_nobody_waits_for_it() {
    let cluster = Cluster::start().await;
    let mut good = Good::start(&cluster).await;
    let hello = Hello::to(STORE).encode();
    let request = write(1, pattern(4, 1)).encode(Call(1));
    let whole = [&request.head[..], &request.data[..]].concat();
    let said: [Vec<u8>; 5] = [
        // A byte, since a stream of which nothing is sent is not there for the other side.
        hello[..1].to_vec(),
        hello[..47].to_vec(),
        [&hello[..], &whole[..1]].concat(),
        [&hello[..], &whole[..88]].concat(),
        [&hello[..], &whole[..whole.len() - 1]].concat(),
    ];
    let mut stalled = Vec::new();
    for bytes in &said {
        let (endpoint, connection) = cluster.raw().await;
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        stalled.push((endpoint, connection, send, recv));
        good.goes_on().await;
    }
    for (_, connection, ..) in &stalled {
        let (code, reason) = timeout(PATIENCE, close_code(connection)).await.unwrap();
        assert_eq!(code, Close::Stalled as u64, "{reason}");
    }
    good.goes_on().await;
}

#[tokio::test]
async fn garbage_of_every_kind_ends_its_own_connection() {
    let cluster = Cluster::start().await;
    let mut good = Good::start(&cluster).await;
    let hello = Hello::to(STORE).encode();
    let mut huge = Request::Sync { asker: asker() }
        .encode(Call(1))
        .head
        .to_vec();
    huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let said: [Vec<u8>; 4] = [
        vec![0xff; 4096],
        [&hello[..], &[0xff; 4096]].concat(),
        [&hello[..], &huge].concat(),
        [&hello[..], &hello[..], &[0; 88]].concat(),
    ];
    for bytes in &said {
        let (_endpoint, connection) = cluster.raw().await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        // It may be closed before all is written.
        let _ = send.write_all(bytes).await;
        let (code, reason) = close_code(&connection).await;
        assert_eq!(code, Close::Malformed as u64, "{reason}");
        good.goes_on().await;
    }
    // What is no QUIC at all.
    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    for len in 0..1200usize {
        let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
        let _ = noise.send_to(&bytes, cluster.addr());
    }
    good.goes_on().await;
}

#[tokio::test]
async fn one_peer_gets_so_many_connections_and_others_theirs() {
    let cluster = Cluster::start().await;
    let mut good = Good::start(&cluster).await;
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(cluster.raw().await);
    }
    let (_endpoint, one_more) = cluster.raw().await;
    let (code, _) = close_code(&one_more).await;
    assert_eq!(code, Close::TooMany as u64);
    good.goes_on().await;
    // Somebody who comes only now gets in.
    let late = credentials(cluster.dir.path(), Role::Node, "tokyo-9");
    let links = super::tests::links(&late, cluster.addr());
    let (_link, mut heard) = link(&links, STORE);
    assert_eq!(heard.next().await, LinkEvent::Connected);
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_its_connections_end() {
    let cluster = Cluster::start().await;
    let mut good = Good::start(&cluster).await;
    let (_endpoint, connection) = cluster.raw().await;
    let certificate = cluster.dir.path().join("mallory.operator.crt");
    let certificate = CertificateDer::from_pem_file(certificate).unwrap();
    let revoked = Fingerprint::of(&certificate);
    let list = format!("# left the team\n{revoked} # mallory\n");
    std::fs::write(cluster.dir.path().join("revoked"), list).unwrap();
    let (_, reason) = match timeout(PATIENCE, connection.closed()).await.unwrap() {
        quinn::ConnectionError::ApplicationClosed(close) => (
            close.error_code,
            String::from_utf8_lossy(&close.reason).into_owned(),
        ),
        other => panic!("{other}"),
    };
    assert!(reason.contains("revoked"), "{reason}");
    let (_endpoint, again) = cluster.try_raw().await;
    // A refused certificate shows when the connection is used.
    if let Ok(again) = again {
        let error = timeout(PATIENCE, again.closed()).await.unwrap();
        let quinn::ConnectionError::ConnectionClosed(close) = &error else {
            panic!("{error}");
        };
        // TLS's alert certificate_revoked, as QUIC counts it.
        assert_eq!(u64::from(close.error_code), 0x100 + 44, "{error}");
    }
    good.goes_on().await;
}
