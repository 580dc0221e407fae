//! A real etcd of one member, for one test.

use super::{Announcement, Campaign, Etcd, EtcdCatalog, Leadership};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const UP_BOUND: Duration = Duration::from_secs(30);

pub struct TestEtcd {
    process: Child,
    client: u16,
    _data: TempDir,
}

impl TestEtcd {
    pub fn start() -> TestEtcd {
        let data = TempDir::new().unwrap();
        let (client, peer) = (free_port(), free_port());
        let at = |port: u16| format!("http://127.0.0.1:{port}");
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(data.path())
            .args(["--name", "one", "--logger", "zap", "--log-level", "error"])
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .args(["--listen-client-urls", &at(client)])
            .args(["--advertise-client-urls", &at(client)])
            .args(["--listen-peer-urls", &at(peer)])
            .args(["--initial-advertise-peer-urls", &at(peer)])
            .args(["--initial-cluster", &format!("one={}", at(peer))])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: prctl is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        let process = command
            .spawn()
            .expect("an etcd program, as `cargo xtask setup` installs it");
        let etcd = TestEtcd {
            process,
            client,
            _data: data,
        };
        let deadline = Instant::now() + UP_BOUND;
        while etcd.connect("probe").campaign(&named("probe")).is_err() {
            assert!(Instant::now() < deadline, "etcd does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        etcd
    }

    pub fn connect(&self, folder: &str) -> Etcd {
        let address = format!("etcd://127.0.0.1:{}/{folder}", self.client);
        Etcd::new(address.parse().unwrap(), None).unwrap()
    }

    /// The catalog of whoever leads.
    pub fn catalog(&self) -> EtcdCatalog {
        let etcd = Arc::new(self.connect("suite"));
        let leadership = won(&etcd, "suite");
        EtcdCatalog::new(etcd, Arc::new(leadership))
    }
}

impl Drop for TestEtcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn named(name: &str) -> Announcement {
    Announcement {
        name: name.into(),
        nodes: None,
        operators: None,
    }
}

pub fn won(etcd: &Etcd, name: &str) -> Leadership {
    match etcd.campaign(&named(name)).unwrap() {
        Campaign::Won(leadership) => leadership,
        Campaign::Lost(leader) => panic!("{leader:?} leads"),
    }
}

fn free_port() -> u16 {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    probe.local_addr().unwrap().port()
}
