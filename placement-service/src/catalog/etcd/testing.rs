//! A real etcd of one member, for one test; over TLS, if that is what the test is about.

use super::{Announcement, Campaign, CatalogError, Etcd, EtcdCatalog, Leadership};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const UP_BOUND: Duration = Duration::from_secs(30);

pub struct TestEtcd {
    process: Child,
    client: u16,
    data: TempDir,
}

impl TestEtcd {
    pub fn start() -> TestEtcd {
        let etcd = TestEtcd::launch("http", |_, _| {});
        etcd.wait_up(|| etcd.connect("probe"));
        etcd
    }

    /// It lets in those that have a certificate of its authority: [`TestEtcd::pki`].
    pub fn start_tls() -> TestEtcd {
        let etcd = TestEtcd::launch("https", |dir, command| {
            make_certificates(dir);
            command
                .arg("--cert-file")
                .arg(dir.join("server.crt"))
                .arg("--key-file")
                .arg(dir.join("server.key"))
                .arg("--trusted-ca-file")
                .arg(dir.join("ca.crt"))
                .arg("--client-cert-auth");
        });
        etcd.wait_up(|| etcd.connect_tls("probe", etcd.pki()).unwrap());
        etcd
    }

    fn launch(scheme: &str, more: impl FnOnce(&Path, &mut Command)) -> TestEtcd {
        let data = TempDir::new().unwrap();
        let (client, peer) = (free_port(), free_port());
        let at = |port: u16| format!("http://127.0.0.1:{port}");
        let clients = format!("{scheme}://127.0.0.1:{client}");
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(data.path().join("data"))
            .args(["--name", "one", "--logger", "zap", "--log-level", "error"])
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &at(peer)])
            .args(["--initial-advertise-peer-urls", &at(peer)])
            .args(["--initial-cluster", &format!("one={}", at(peer))])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        more(data.path(), &mut command);
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
        TestEtcd {
            process,
            client,
            data,
        }
    }

    fn wait_up(&self, connect: impl Fn() -> Etcd) {
        let deadline = Instant::now() + UP_BOUND;
        while let Err(error) = connect().campaign(&named("probe")) {
            assert!(Instant::now() < deadline, "etcd does not come up: {error}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A folder as `--etcd-pki` wants it.
    pub fn pki(&self) -> &Path {
        self.data.path()
    }

    pub fn connect_tls(&self, folder: &str, pki: &Path) -> Result<Etcd, CatalogError> {
        let address = format!("etcds://127.0.0.1:{}/{folder}", self.client);
        Etcd::new(address.parse().unwrap(), Some(pki))
    }

    pub fn connect(&self, folder: &str) -> Etcd {
        let address = format!("etcd://127.0.0.1:{}/{folder}", self.client);
        Etcd::new(address.parse().unwrap(), None).unwrap()
    }

    /// The catalog of whoever leads, and goes on leading for as long as the test has it.
    pub fn catalog(&self, folder: &str) -> EtcdCatalog {
        let etcd = Arc::new(self.connect(folder));
        let leadership = Arc::new(won(&etcd, "suite"));
        let alive = (Arc::downgrade(&etcd), Arc::downgrade(&leadership));
        std::thread::spawn(move || {
            while let (Some(etcd), Some(leadership)) = (alive.0.upgrade(), alive.1.upgrade()) {
                // One that fails is made up for by the next.
                let _ = etcd.keep_alive(&leadership);
                drop((etcd, leadership));
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        EtcdCatalog::new(etcd, leadership)
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

/// An authority, a certificate of the member's, and one of its clients.
pub fn make_certificates(dir: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = authority.self_signed(&key).unwrap();
    fs::write(dir.join("ca.crt"), certificate.pem()).unwrap();
    let issuer = Issuer::new(authority, key);
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    // A member's gateway is itself a client of the member.
    let both = vec![ExtendedKeyUsagePurpose::ServerAuth, client.clone()];
    for (name, purposes) in [("server", both), ("client", vec![client])] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes;
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(dir.join(format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn free_port() -> u16 {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    probe.local_addr().unwrap().port()
}
