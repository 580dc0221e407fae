//! Nodes, and those that cannot start.

use crate::{Cluster, DAY, host};
use replicator::net::identity::Role;
use std::path::Path;

/// The arguments of a node with a store: `ukai node`.
pub fn node(dir: &Path, listen: &str, placement: &str) -> Vec<String> {
    let folder = |name: &str| dir.join(name).display().to_string();
    let (store, sockets) = (folder("store"), folder("sockets"));
    let settings = [
        ("host", "t1"),
        ("datacenter", "tokyo"),
        ("rack", "r1"),
        ("listen", listen),
        ("placement", placement),
        ("store", &store),
        ("capacity", "1G"),
        ("sockets", &sockets),
        ("threads", "1"),
    ];
    let settings = settings.map(|(name, value)| format!("--{name}={value}"));
    ["node".to_string()].into_iter().chain(settings).collect()
}

pub fn texts(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_start_on_its_host_does_not_touch_its_store() {
    let cluster = Cluster::new();
    cluster.pki.issue(Role::Node, &host("t1"), DAY).unwrap();
    let dir = cluster.dir.path();
    // An address for documentation: no host has it.
    let arguments = node(dir, "192.0.2.1:7410", "127.0.0.1");
    let ended = cluster.ended(&texts(&arguments)).await;
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(!ended.status.success(), "{said}");
    assert!(said.contains("cannot listen on 192.0.2.1:7410"), "{said}");
    assert!(!dir.join("store").exists(), "{said}");

    std::fs::remove_dir(dir.join("sockets")).unwrap();
    std::fs::write(dir.join("sockets"), "in the way").unwrap();
    let arguments = node(dir, "127.0.0.1:0", "127.0.0.1");
    let ended = cluster.ended(&texts(&arguments)).await;
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(
        said.contains("cannot make the folder for sockets"),
        "{said}"
    );
    assert!(!dir.join("store").exists(), "{said}");
}
