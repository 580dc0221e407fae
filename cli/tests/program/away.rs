//! While the placement service is away orders wait for it, and say so; what only looks does not.

use crate::{Cluster, SOON};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr};
use tokio::time::{sleep, timeout};

/// Far more than a command takes that does not wait.
const AT_ONCE: Duration = Duration::from_secs(3);

/// What is said on the way, until the first end of a line.
async fn first_line(child: &mut Child) -> (String, BufReader<ChildStderr>) {
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
