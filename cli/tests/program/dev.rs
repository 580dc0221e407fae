//! `ukai dev`: a whole cluster in one process.

use super::ended;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Output, Stdio};
use tempfile::TempDir;
use tokio::process::Command;

/// Six ports from there on are nobody's, as far as one can tell.
fn port() -> u16 {
    let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    any.local_addr().unwrap().port().min(65_529)
}

async fn dev(dir: &TempDir) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ukai"));
    let port = port().to_string();
    command
        .args(["dev", "--port", &port, "--dir"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    ended(command).await
}

/// Before the placement service is up, as a rule: that ends, too, in order.
#[tokio::test]
async fn stores_that_are_refused_end_it_with_the_reason() {
    let dir = TempDir::new().unwrap();
    for host in ["tokyo-1", "osaka-2"] {
        let store = dir.path().join(host).join("store");
        std::fs::create_dir_all(&store).unwrap();
        std::fs::write(store.join("UKAI-STORE"), "what somebody else wrote").unwrap();
    }
    let (output, said) = loop {
        let output = dev(&dir).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !said.contains("in use") {
            break (output, said);
        }
    };
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("error: ") && last.contains("UKAI-STORE"),
        "{said}"
    );
}
