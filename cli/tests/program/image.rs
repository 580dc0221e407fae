//! Images that are no files, and disks that cannot be had.

use crate::Cluster;
use rustix::fs::{CWD, FileType, Mode, mknodat};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_is_refused_before_anybody_is_asked_for_the_disk() {
    let cluster = Cluster::new();
    let pipe = cluster.dir.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let ended = cluster
        .ended(&["disk", "import", "web1", pipe.to_str().unwrap()])
        .await;
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("it is a pipe"), "{said}");
    assert!(said.contains("try: write the image to a file"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_cannot_have_the_disk_leaves_no_file_behind() {
    let cluster = Cluster::new();
    let node = cluster.node("t1", "tokyo", 1);
    let server = cluster.serve().await;
    cluster.until_up(1).await;
    let create = ["disk", "create", "web1", "--size", "64M", "--copies", "1"];
    cluster.ask(&create).await;
    cluster
        .ask(&["disk", "attach", "web1", "--node", "t1"])
        .await;
    let image = cluster.dir.path().join("web1.raw");
    let export = ["disk", "export", "web1", image.to_str().unwrap()];
    for _ in 0..2 {
        let ended = cluster.ended(&export).await;
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(3), "{said}");
        assert!(!image.exists(), "{said}");
    }
    node.abort();
    server.stop().await;
}
