//! Placement services by name, of which one cannot be found.

use crate::node::{node, texts};
use crate::{Cluster, DAY, ended, host};
use replicator::net::identity::Role;
use std::process::Stdio;

/// A name that nobody ever has.
const NOWHERE: &str = "nowhere.invalid";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_found_is_passed_over_and_nobody_at_all_is_waited_for() {
    let cluster = Cluster::new();
    cluster.pki.issue(Role::Node, &host("t1"), DAY).unwrap();
    let server = cluster.serve().await;
    let named = |addr| format!("{NOWHERE},{addr}");
    let arguments = node(cluster.dir.path(), "127.0.0.1:0", &named(cluster.nodes));
    let mut command = cluster.command(&texts(&arguments));
    let mut up = command.stderr(Stdio::null()).spawn().unwrap();
    cluster.until_up(1).await;
    up.kill().await.unwrap();

    let found = ended(cluster.command_at(&named(cluster.operators), &["status"])).await;
    let said = String::from_utf8(found.stderr).unwrap();
    assert!(found.status.success(), "{said}");
    assert!(
        said.contains("nowhere.invalid:7401 cannot be found"),
        "{said}"
    );

    let nobody = ended(cluster.command_at(NOWHERE, &["status"])).await;
    let said = String::from_utf8(nobody.stderr).unwrap();
    assert_eq!(nobody.status.code(), Some(5), "{said}");
    let attach = ["disk", "attach", "web1", "--node", "t1", "--wait", "1"];
    let waited = ended(cluster.command_at(NOWHERE, &attach)).await;
    let said = String::from_utf8(waited.stderr).unwrap();
    assert_eq!(waited.status.code(), Some(5), "{said}");
    let waits = "waiting for the placement service at nowhere.invalid:7401: ";
    assert!(said.starts_with(waits), "{said}");
    server.stop().await;
}
