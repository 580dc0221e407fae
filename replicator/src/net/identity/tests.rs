//! Each refusal, over real loopback QUIC, and the files that the authority writes.

use super::*;
use crate::words::HostName;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const ALPN: &[u8] = b"ukai-test/1";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

struct Cluster {
    dir: TempDir,
    pki: Pki,
}

impl Cluster {
    fn new() -> Cluster {
        let dir = TempDir::new().unwrap();
        let pki = Pki::init(dir.path()).unwrap();
        Cluster { dir, pki }
    }

    fn issue(&self, role: Role, name: &str) -> Credentials {
        self.pki.issue(role, &host(name), DAY).unwrap();
        Credentials::load(self.dir.path(), role, &host(name)).unwrap()
    }

    fn issue_between(&self, name: &str, from: SystemTime, until: SystemTime) -> Credentials {
        self.pki
            .issue_between(Role::Node, &host(name), from, until)
            .unwrap();
        Credentials::load(self.dir.path(), Role::Node, &host(name)).unwrap()
    }
}

/// One connection attempt: how it ended at the gate, and at the dialling end.
async fn meet(
    gate: Gate,
    client: quinn::ClientConfig,
) -> (Result<Identity, Fault>, Result<(), quinn::ConnectionError>) {
    let listening = quinn::Endpoint::server(gate.quic(), loopback()).unwrap();
    let to = listening.local_addr().unwrap();
    let admit = async {
        let incoming = listening.accept().await.unwrap();
        match gate.admit(incoming).await {
            Ok(admitted) => {
                admitted.connection.closed().await;
                Ok(admitted.identity)
            }
            Err(refused) => {
                assert_eq!(refused.from.ip(), Ipv4Addr::LOCALHOST);
                Err(refused.fault)
            }
        }
    };
    let dialling = quinn::Endpoint::client(loopback()).unwrap();
    let dial = async {
        let connection = dialling.connect_with(client, to, "x.ukai").unwrap().await?;
        // Not being let in shows a moment after the handshake.
        let ended = tokio::time::timeout(Duration::from_millis(300), connection.closed()).await;
        connection.close(0u32.into(), b"");
        ended.map_or(Ok(()), Err)
    };
    let both = async { tokio::join!(admit, dial) };
    tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .expect("a handshake ends")
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn client(credentials: &Credentials, expected: Expected) -> (quinn::ClientConfig, Verdict) {
    let (tls, verdict) = Dial::new(credentials, expected, &[ALPN]).tls();
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    (quinn::ClientConfig::new(Arc::new(quic)), verdict)
}

/// What a gate for nodes says to a client that trusts it.
async fn at_the_gate(cluster: &Cluster, credentials: &Credentials) -> Result<Identity, Fault> {
    let server = cluster.issue(Role::Placement, "service");
    let gate = Gate::new(&server, &[Role::Node], &[ALPN]);
    // The client believes the gate's authority, whatever its own certificate is.
    let (tls, _) = Dial::new(&server, Expected::role(Role::Placement), &[ALPN]).tls();
    let mut tls = (*tls).clone();
    tls.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(
        credentials.certified(),
    ));
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    meet(gate, quinn::ClientConfig::new(Arc::new(quic))).await.0
}

#[tokio::test]
async fn a_node_of_the_cluster_is_let_in_by_its_name() {
    let cluster = Cluster::new();
    let node = cluster.issue(Role::Node, "tokyo-1");
    assert_eq!(
        at_the_gate(&cluster, &node).await,
        Ok(Identity::new(Role::Node, host("tokyo-1")))
    );
}

#[tokio::test]
async fn no_certificate_is_refused() {
    let cluster = Cluster::new();
    let server = cluster.issue(Role::Placement, "service");
    let (tls, _) = Dial::new(&server, Expected::role(Role::Placement), &[ALPN]).tls();
    let mut tls = (*tls).clone();
    tls.client_auth_cert_resolver = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(server.authority())
        .with_no_client_auth()
        .client_auth_cert_resolver;
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let gate = Gate::new(&server, &[Role::Node], &[ALPN]);
    let (gate, dial) = meet(gate, quinn::ClientConfig::new(Arc::new(quic))).await;
    assert_eq!(gate, Err(Fault::NoCertificate));
    assert!(dial.is_err());
}

#[tokio::test]
async fn a_foreign_authority_is_refused() {
    let cluster = Cluster::new();
    let stranger = Cluster::new().issue(Role::Node, "tokyo-1");
    let fault = at_the_gate(&cluster, &stranger).await.unwrap_err();
    assert!(matches!(fault, Fault::ForeignAuthority { .. }), "{fault}");
    assert!(fault.to_string().contains("node tokyo-1"), "{fault}");
}

#[tokio::test]
async fn expired_and_early_certificates_are_refused() {
    let cluster = Cluster::new();
    let now = SystemTime::now();
    let old = cluster.issue_between("old", now - 2 * DAY, now - DAY);
    let fault = at_the_gate(&cluster, &old).await.unwrap_err();
    assert!(matches!(fault, Fault::Expired { .. }), "{fault}");

    let cluster = Cluster::new();
    let early = cluster.issue_between("early", now + DAY, now + 2 * DAY);
    let fault = at_the_gate(&cluster, &early).await.unwrap_err();
    assert!(matches!(fault, Fault::NotYetValid { .. }), "{fault}");
}

#[tokio::test]
async fn a_wrong_role_is_refused() {
    let cluster = Cluster::new();
    let operator = cluster.issue(Role::Operator, "alice");
    let fault = at_the_gate(&cluster, &operator).await.unwrap_err();
    assert_eq!(
        fault.to_string(),
        "its certificate is of operator alice, but a certificate of role node is expected here"
    );
}

#[tokio::test]
async fn a_client_checks_the_servers_role_and_host() {
    for (expected, good) in [
        (Expected::role(Role::Node), true),
        (Expected::host(Role::Node, host("tokyo-1")), true),
        (Expected::host(Role::Node, host("tokyo-2")), false),
        (Expected::role(Role::Placement), false),
    ] {
        let cluster = Cluster::new();
        let server = cluster.issue(Role::Node, "tokyo-1");
        let me = cluster.issue(Role::Node, "osaka-1");
        let gate = Gate::new(&server, &[Role::Node], &[ALPN]);
        let (config, verdict) = client(&me, expected);
        let (_, dial) = meet(gate, config).await;
        assert_eq!(dial.is_ok(), good);
        let refused = matches!(verdict.found(), Some(Fault::WrongRole { .. }));
        assert_eq!(refused, !good);
    }
}

#[tokio::test]
async fn an_operators_certificate_serves_nobody_and_a_foreign_server_is_not_believed() {
    let cluster = Cluster::new();
    let me = cluster.issue(Role::Node, "osaka-1");
    let alice = cluster.issue(Role::Operator, "alice");
    let (config, verdict) = client(&me, Expected::role(Role::Node));
    meet(Gate::new(&alice, &[Role::Node], &[ALPN]), config)
        .await
        .1
        .unwrap_err();
    assert!(matches!(verdict.found(), Some(Fault::WrongRole { .. })));

    let foreign = Cluster::new().issue(Role::Node, "tokyo-1");
    let (config, verdict) = client(&me, Expected::role(Role::Node));
    meet(Gate::new(&foreign, &[Role::Node], &[ALPN]), config)
        .await
        .1
        .unwrap_err();
    let found = verdict.found();
    assert!(matches!(found, Some(Fault::ForeignAuthority { .. })));
}

#[tokio::test]
async fn dialling_says_who_refused_whom() {
    let cluster = Cluster::new();
    let server = cluster.issue(Role::Node, "tokyo-1");
    let alice = cluster.issue(Role::Operator, "alice");
    let gate = Gate::new(&server, &[Role::Node], &[ALPN]);
    let listening = quinn::Endpoint::server(gate.quic(), loopback()).unwrap();
    let to = listening.local_addr().unwrap();
    let endpoint = quinn::Endpoint::client(loopback()).unwrap();
    let dial = Dial::new(&alice, Expected::role(Role::Node), &[ALPN]);
    let (_, error) = tokio::join!(
        async { gate.admit(listening.accept().await.unwrap()).await },
        async {
            let connection = dial.connect(&endpoint, to).await.unwrap();
            dial.ended(to, &connection.closed().await)
        }
    );
    let DialError::RefusedByPeer { us, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(us, alice.identity());

    let other = Dial::new(&alice, Expected::role(Role::Node), &[b"else/1"]);
    let (_, error) = tokio::join!(
        async { gate.admit(listening.accept().await.unwrap()).await },
        other.connect(&endpoint, to),
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("another protocol"), "{error}");
}

#[test]
fn keys_are_their_owners_alone_and_nothing_is_overwritten() {
    let cluster = Cluster::new();
    cluster.issue(Role::Node, "tokyo-1");
    let mode = |file: &str| {
        let path = cluster.dir.path().join(file);
        path.metadata().unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode("ca.key"), 0o600);
    assert_eq!(mode("tokyo-1.node.key"), 0o600);
    assert_eq!(mode("ca.crt"), 0o644);

    let again = Pki::init(cluster.dir.path()).err().unwrap();
    assert!(matches!(again, PkiError::Exists { .. }), "{again}");
    let again = cluster.pki.issue(Role::Node, &host("tokyo-1"), DAY);
    assert!(matches!(again, Err(PkiError::Exists { .. })));
}

#[test]
fn errors_say_which_file_and_what_to_do() {
    let cluster = Cluster::new();
    let dir = cluster.dir.path();
    let missing = Credentials::load(dir, Role::Node, &host("tokyo-1")).unwrap_err();
    let text = missing.to_string();
    assert!(
        text.contains("tokyo-1.node.crt") && text.contains("ukai init"),
        "{text}"
    );
    let text = Pki::open(Path::new("/nonexistent"))
        .err()
        .unwrap()
        .to_string();
    assert!(
        text.contains("/nonexistent/ca.key") && text.contains("ukai init"),
        "{text}"
    );

    cluster.issue(Role::Node, "a");
    cluster.issue(Role::Node, "b");
    let several = Credentials::load_only(dir, Role::Node).unwrap_err();
    assert!(several.to_string().contains("(a, b)"), "{several}");
    let none = Credentials::load_only(dir, Role::Operator).unwrap_err();
    assert!(matches!(none, CredentialsError::NoneOf { .. }));
    let mixed = Credentials::from_files(
        &dir.join("ca.crt"),
        &dir.join("a.node.crt"),
        &dir.join("b.node.key"),
    )
    .unwrap_err();
    assert!(matches!(mixed, CredentialsError::Mismatch { .. }));
    std::fs::write(dir.join("a.node.key"), b"-----BEGIN nonsense").unwrap();
    let broken = Credentials::load(dir, Role::Node, &host("a")).unwrap_err();
    assert!(broken.to_string().contains("a.node.key"), "{broken}");
    let unnamed = cluster.pki.issue(Role::Node, &host("a..b"), DAY);
    assert!(matches!(unnamed, Err(PkiError::Name { .. })));
}

#[test]
fn names_in_certificates_are_read_as_they_are_written() {
    for (role, name) in [
        (Role::Node, "tokyo-1"),
        (Role::Operator, "alice.smith"),
        (Role::Placement, "x.node"),
    ] {
        let identity = Identity::new(role, host(name));
        assert_eq!(
            Identity::from_dns_name(&identity.dns_name()),
            Some(identity)
        );
    }
    for bad in [
        "node.ukai",
        "ukai",
        "",
        "a.king.ukai",
        "a.node.com",
        ".node.ukai",
        "a.node.ukai.",
    ] {
        assert_eq!(Identity::from_dns_name(bad), None, "{bad}");
    }
}
