//! The connecting side: reaches whom it means to reach, or nobody.

use super::verify::{NO_APPLICATION_PROTOCOL, Verifier};
use super::{Credentials, Expected, Fault, Identity, Verdict, provider};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::sign::SingleCertAndKey;
use std::net::SocketAddr;
use std::sync::Arc;

/// Whom to connect to, as whom, and with which protocol. Cheap to clone.
#[derive(Clone)]
pub struct Dial {
    credentials: Credentials,
    expected: Expected,
    alpn: Vec<Vec<u8>>,
    transport: Arc<quinn::TransportConfig>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    /// Not who was meant. It has been logged.
    #[error("{to} is not {expected}: {fault}")]
    WrongPeer {
        to: SocketAddr,
        expected: Expected,
        fault: Fault,
    },
    /// The peer did not like us. Its log says why.
    #[error("{to} refused this process, {us}: {why}; the log there says more")]
    RefusedByPeer {
        to: SocketAddr,
        us: Identity,
        why: String,
    },
    #[error("{to} cannot be reached: {why}")]
    Unreachable { to: SocketAddr, why: String },
}

impl Dial {
    pub fn new(credentials: &Credentials, expected: Expected, alpn: &[&[u8]]) -> Dial {
        Dial {
            credentials: credentials.clone(),
            expected,
            alpn: alpn.iter().map(|name| name.to_vec()).collect(),
            transport: Arc::default(),
        }
    }

    pub fn with_transport(self, transport: Arc<quinn::TransportConfig>) -> Dial {
        Dial { transport, ..self }
    }

    /// TLS for one connection over TCP, and where its verdict will stand.
    pub fn tls(&self) -> (Arc<rustls::ClientConfig>, Verdict) {
        let verdict = Verdict::default();
        let verifier = Verifier::<WebPkiServerVerifier>::new(
            &self.credentials,
            self.expected.clone(),
            verdict.clone(),
        );
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(
                self.credentials.certified(),
            )));
        config.alpn_protocols.clone_from(&self.alpn);
        config.resumption = rustls::client::Resumption::disabled();
        (Arc::new(config), verdict)
    }

    /// The name that TLS over TCP wants for the peer.
    pub fn server_name(&self) -> String {
        self.expected.server_name()
    }

    /// Connects over QUIC and checks who answered. Bounded by the endpoint's idle timeout; callers
    /// that want less put their own around it.
    pub async fn connect(
        &self,
        endpoint: &quinn::Endpoint,
        to: SocketAddr,
    ) -> Result<quinn::Connection, DialError> {
        let (tls, verdict) = self.tls();
        let quic = QuicClientConfig::try_from(tls).expect("the provider has AES-128-GCM");
        let mut config = quinn::ClientConfig::new(Arc::new(quic));
        config.transport_config(self.transport.clone());
        let connecting = endpoint
            .connect_with(config, to, &self.server_name())
            .map_err(|error| DialError::Unreachable {
                to,
                why: error.to_string(),
            })?;
        connecting
            .await
            .map_err(|error| self.explain(to, &verdict, &error))
    }

    /// What the end of a connection to `to` means: being refused for one's certificate shows only
    /// after the handshake, when the first stream fails.
    pub fn ended(&self, to: SocketAddr, error: &quinn::ConnectionError) -> DialError {
        self.explain(to, &Verdict::default(), error)
    }

    fn explain(
        &self,
        to: SocketAddr,
        verdict: &Verdict,
        error: &quinn::ConnectionError,
    ) -> DialError {
        use quinn::ConnectionError::{ConnectionClosed, TransportError};
        let is_alert = |code: u64| (0x100..0x200).contains(&code);
        match error {
            ConnectionClosed(close) if u64::from(close.error_code) == NO_APPLICATION_PROTOCOL => {
                self.wrong_peer(to, Fault::OtherProtocol)
            }
            ConnectionClosed(close) if is_alert(close.error_code.into()) => {
                DialError::RefusedByPeer {
                    to,
                    us: self.credentials.identity().clone(),
                    why: String::from_utf8_lossy(&close.reason).into_owned(),
                }
            }
            TransportError(_) => self.wrong_peer(to, verdict.quic_fault(error)),
            _ => DialError::Unreachable {
                to,
                why: error.to_string(),
            },
        }
    }

    fn wrong_peer(&self, to: SocketAddr, fault: Fault) -> DialError {
        let error = DialError::WrongPeer {
            to,
            expected: self.expected.clone(),
            fault,
        };
        tracing::warn!("{error}");
        error
    }
}
