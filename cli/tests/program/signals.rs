//! What signals do to the program.

use crate::node::{node, texts};
use crate::{Cluster, DAY, SOON, host};
use replicator::net::identity::Role;
use rustix::process::{Pid, Signal, kill_process};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

fn send(to: &Child, signal: Signal) {
    let pid = to.id().expect("it runs");
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_a_node_takes_notice_of_a_wish_for_an_upgrade() {
    let cluster = Cluster::new();
    let mut waits = cluster.ukai(&["disk", "attach", "web1", "--node", "t1"]);
    sleep(Duration::from_secs(1)).await;
    send(&waits, Signal::USR2);
    sleep(Duration::from_millis(500)).await;
    assert!(waits.try_wait().unwrap().is_none(), "it waits on");
    waits.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_asked_for_upgrades_all_the_time_lives_and_stops_when_it_is_asked_to() {
    let cluster = Cluster::new();
    cluster.pki.issue(Role::Node, &host("t1"), DAY).unwrap();
    let server = cluster.serve().await;
    let placement = cluster.nodes.to_string();
    let arguments = node(cluster.dir.path(), "127.0.0.1:0", &placement);
    let mut command = cluster.command(&texts(&arguments));
    let mut upgraded = command.stderr(Stdio::null()).spawn().unwrap();
    cluster.until_up(1).await;
    // From before its store is open until after it is closed again.
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        send(&upgraded, Signal::USR2);
        sleep(Duration::from_millis(2)).await;
        let ended = upgraded.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}");
    }
    // While it makes room, or after that.
    send(&upgraded, Signal::TERM);
    let ended = timeout(SOON, upgraded.wait()).await;
    ended.expect("it stops").unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_is_ended_gives_the_disk_back() {
    let cluster = Cluster::new();
    // It says that it has a store, and nobody answers there: the disk opens never.
    let node = cluster.node("t1", "tokyo", 1);
    let server = cluster.serve().await;
    cluster.until_up(1).await;
    let create = ["disk", "create", "web1", "--size", "64M", "--copies", "1"];
    cluster.ask(&create).await;
    let image = cluster.dir.path().join("web1.raw");
    std::fs::write(&image, [7; 512]).unwrap();
    let import = [
        "disk",
        "import",
        "web1",
        "--overwrite",
        image.to_str().unwrap(),
    ];
    for signal in [Signal::TERM, Signal::HUP] {
        let import = cluster.ukai(&import);
        let is_ours = async {
            while cluster.ask(&["disk", "show", "web1"]).await["attachment"].is_null() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(SOON, is_ours).await.expect("it takes the disk");
        send(&import, signal);
        let ended = timeout(SOON, import.wait_with_output()).await;
        let ended = ended.expect("it ends").unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        let shown = cluster.ask(&["disk", "show", "web1"]).await;
        assert!(shown["attachment"].is_null(), "{shown}");
    }
    node.abort();
    server.stop().await;
}
