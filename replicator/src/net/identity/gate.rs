//! The accepting side: lets in the roles that it was told to, and nobody else.

use super::name::certificate_of;
use super::revoked::RECHECK;
use super::verify::Verifier;
use super::{Credentials, Expected, Fault, Identity, Role, Verdict, provider};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::SingleCertAndKey;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A peer has this long for its handshake; then its place is given to another.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Says in CONNECTION_CLOSE what a TLS alert would have said (RFC 9001, 4.8; RFC 8446, 6.2).
const REVOKED: quinn::VarInt = quinn::VarInt::from_u32(0x100 + 44);

/// Who may connect to a listening address, and with which protocol. Cheap to clone.
#[derive(Clone)]
pub struct Gate {
    credentials: Credentials,
    chain: Arc<dyn ClientCertVerifier>,
    allowed: Vec<Role>,
    alpn: Vec<Vec<u8>>,
    transport: Arc<quinn::TransportConfig>,
}

/// A peer that was let in.
#[derive(Debug)]
pub struct Admitted {
    pub connection: quinn::Connection,
    pub identity: Identity,
    /// To be kept for as long as the connection is used.
    pub watch: Watch,
}

/// A peer that was not. It has been logged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("refused a connection from {from}: {fault}")]
pub struct Refused {
    pub from: SocketAddr,
    pub fault: Fault,
}

impl Gate {
    pub fn new(credentials: &Credentials, allowed: &[Role], alpn: &[&[u8]]) -> Gate {
        Gate {
            chain: Verifier::chain(credentials),
            credentials: credentials.clone(),
            allowed: allowed.to_vec(),
            alpn: alpn.iter().map(|name| name.to_vec()).collect(),
            transport: Arc::default(),
        }
    }

    pub fn with_transport(self, transport: Arc<quinn::TransportConfig>) -> Gate {
        Gate { transport, ..self }
    }

    /// TLS for one connection over TCP, and where its verdict will stand.
    pub fn tls(&self) -> (Arc<rustls::ServerConfig>, Verdict) {
        let verdict = Verdict::default();
        let expected = Expected::Roles(self.allowed.clone());
        let verifier = Verifier::<dyn ClientCertVerifier>::new(
            self.chain.clone(),
            &self.credentials,
            expected,
            verdict.clone(),
        );
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(
                self.credentials.certified(),
            )));
        config.alpn_protocols.clone_from(&self.alpn);
        // No resumption: each connection is checked, today, in full.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        (Arc::new(config), verdict)
    }

    /// The configuration to open a QUIC endpoint with. Accept its connections with [`Gate::admit`].
    pub fn quic(&self) -> quinn::ServerConfig {
        self.quic_once().0
    }

    /// Finishes the handshake of a connection, checks the peer and logs a refusal.
    pub async fn admit(&self, incoming: quinn::Incoming) -> Result<Admitted, Refused> {
        let from = incoming.remote_address();
        let (config, verdict) = self.quic_once();
        let handshake = async {
            let connection = incoming.accept_with(Arc::new(config))?.await?;
            Ok::<_, quinn::ConnectionError>(connection)
        };
        let fault = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(connection)) => match Identity::of(&connection) {
                Ok(identity) => {
                    return Ok(Admitted {
                        watch: watch(&self.credentials, &connection, &identity),
                        connection,
                        identity,
                    });
                }
                Err(fault) => fault,
            },
            Ok(Err(error)) => verdict.quic_fault(&error),
            Err(_) => Fault::Handshake {
                why: "it took too long".into(),
            },
        };
        Err(self.refuse(from, fault))
    }

    /// Whether a certificate that was let in has been revoked since.
    pub fn has_revoked(&self, certificate: &CertificateDer<'_>) -> bool {
        self.credentials.revoked().has(certificate)
    }

    /// Logs that `from` was refused.
    pub fn refuse(&self, from: SocketAddr, fault: Fault) -> Refused {
        let refused = Refused { from, fault };
        tracing::warn!("{refused}");
        refused
    }

    fn quic_once(&self) -> (quinn::ServerConfig, Verdict) {
        let (tls, verdict) = self.tls();
        let quic = QuicServerConfig::try_from(tls).expect("the provider has AES-128-GCM");
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(quic));
        config.transport_config(self.transport.clone());
        (config, verdict)
    }
}

/// Ends a connection soon after the certificate of its peer was revoked, while it is held.
#[derive(Debug)]
pub struct Watch(tokio::task::JoinHandle<()>);

impl Drop for Watch {
    /// The task has a handle on the connection, which would otherwise outlive its user.
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn watch(credentials: &Credentials, connection: &quinn::Connection, peer: &Identity) -> Watch {
    let certificate = certificate_of(connection);
    let (revoked, connection, peer) = (credentials.revoked(), connection.clone(), peer.clone());
    Watch(tokio::spawn(async move {
        let Some(certificate) = certificate else {
            return;
        };
        while tokio::time::timeout(RECHECK, connection.closed())
            .await
            .is_err()
        {
            if revoked.has(&certificate) {
                tracing::warn!(%peer, from = %connection.remote_address(), "its certificate was revoked; its connection is closed");
                connection.close(REVOKED, b"the certificate was revoked");
                return;
            }
        }
    }))
}
