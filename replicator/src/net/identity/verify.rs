//! The check of a peer's certificate, the same on both sides: signed by our authority, good today,
//! and of the role (and host) that is meant. What was wrong is left in a [`Verdict`], because an
//! alert on the wire cannot say it.

use super::revoked::Revoked;
use super::{Credentials, Identity, Role, provider};
use crate::words::HostName;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Why a peer was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    #[error("it showed no certificate")]
    NoCertificate,
    #[error("its certificate ({who}) is of a foreign authority, not of this cluster's")]
    ForeignAuthority { who: Claimed },
    #[error("its certificate ({who}) has expired; issue a new one with `ukai init`")]
    Expired { who: Claimed },
    #[error("its certificate ({who}) was revoked; issue a new one with `ukai init`")]
    Revoked { who: Claimed },
    #[error("its certificate ({who}) is not good yet; do the clocks of both hosts agree?")]
    NotYetValid { who: Claimed },
    #[error("its certificate is of {who}, but {expected} is expected here")]
    WrongRole { who: Identity, expected: Expected },
    #[error("its certificate names no role and host of a cluster")]
    Nameless,
    #[error("its certificate cannot be read: {why}")]
    Malformed { why: String },
    #[error("it speaks another protocol; is the address that of the right service?")]
    OtherProtocol,
    #[error("the handshake failed: {why}")]
    Handshake { why: String },
}

/// Whom a certificate that was not accepted claims to be of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claimed(pub Option<Identity>);

impl fmt::Display for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(identity) => write!(f, "it says {identity}"),
            None => f.write_str("it names nobody"),
        }
    }
}

/// Who may be at the other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expected {
    /// Any process of one of these roles.
    Roles(Vec<Role>),
    /// One process and no other.
    Exactly(Identity),
}

impl Expected {
    pub fn role(role: Role) -> Self {
        Expected::Roles(vec![role])
    }

    pub fn host(role: Role, host: HostName) -> Self {
        Expected::Exactly(Identity::new(role, host))
    }

    fn admits(&self, identity: &Identity) -> bool {
        match self {
            Expected::Roles(roles) => roles.contains(&identity.role),
            Expected::Exactly(one) => one == identity,
        }
    }

    /// The name to open a connection with. It only has to be a name: [`Verifier`] decides.
    pub(super) fn server_name(&self) -> String {
        match self {
            Expected::Roles(roles) => roles.first().map_or("ukai".into(), |role| role.dns_name()),
            Expected::Exactly(identity) => identity.dns_name(),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Roles(roles) => {
                let names: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
                write!(f, "a certificate of role {}", names.join(" or "))
            }
            Expected::Exactly(identity) => write!(f, "{identity}"),
        }
    }
}

/// What the check of one connection's peer found; empty while it found nothing wrong.
#[derive(Clone, Default, Debug)]
pub struct Verdict(Arc<OnceLock<Fault>>);

impl Verdict {
    /// What was wrong with the peer of a handshake over TCP that failed with `error`.
    pub fn fault(&self, error: &std::io::Error) -> Fault {
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Error>());
        self.found().unwrap_or_else(|| match tls {
            Some(Error::NoCertificatesPresented) => Fault::NoCertificate,
            Some(Error::NoApplicationProtocol) => Fault::OtherProtocol,
            _ => Fault::Handshake {
                why: error.to_string(),
            },
        })
    }

    /// What was wrong with the peer of a QUIC connection that ended with `error`.
    pub fn quic_fault(&self, error: &quinn::ConnectionError) -> Fault {
        let alert = match error {
            quinn::ConnectionError::TransportError(fault) => Some(u64::from(fault.code)),
            _ => None,
        };
        self.found().unwrap_or_else(|| match alert {
            Some(CERTIFICATE_REQUIRED) => Fault::NoCertificate,
            Some(NO_APPLICATION_PROTOCOL) => Fault::OtherProtocol,
            _ => Fault::Handshake {
                why: error.to_string(),
            },
        })
    }

    pub(super) fn found(&self) -> Option<Fault> {
        self.0.get().cloned()
    }

    /// Keeps the fault for the log, and names it to the peer as far as an alert can.
    fn refuse(&self, fault: Fault) -> Error {
        let alert = match &fault {
            Fault::ForeignAuthority { .. } => CertificateError::UnknownIssuer,
            Fault::Expired { .. } => CertificateError::Expired,
            Fault::Revoked { .. } => CertificateError::Revoked,
            Fault::NotYetValid { .. } => CertificateError::NotValidYet,
            Fault::WrongRole { .. } => CertificateError::ApplicationVerificationFailure,
            _ => CertificateError::BadEncoding,
        };
        self.0.get_or_init(|| fault);
        Error::InvalidCertificate(alert)
    }
}

/// QUIC reports a TLS alert as 0x100 + its number (RFC 9001, 4.8).
const CERTIFICATE_REQUIRED: u64 = 0x100 + 116;
pub(super) const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// A certificate that was found to be signed, unless it was revoked.
pub(super) fn revoked_or(
    credentials: &Credentials,
    certificate: &CertificateDer<'_>,
    who: &Identity,
) -> Result<(), Fault> {
    match credentials.revoked().has(certificate) {
        true => Err(Fault::Revoked {
            who: Claimed(Some(who.clone())),
        }),
        false => Ok(()),
    }
}

/// Checks the peer of one connection. The chain is left to webpki, the name is ours.
#[derive(Debug)]
pub(super) struct Verifier<V: ?Sized> {
    chain: Arc<V>,
    expected: Expected,
    verdict: Verdict,
    revoked: Arc<Revoked>,
}

impl Verifier<dyn ClientCertVerifier> {
    pub fn chain(credentials: &Credentials) -> Arc<dyn ClientCertVerifier> {
        WebPkiClientVerifier::builder_with_provider(credentials.authority(), provider())
            .build()
            .expect("an authority was loaded")
    }

    pub fn new(
        chain: Arc<dyn ClientCertVerifier>,
        credentials: &Credentials,
        expected: Expected,
        verdict: Verdict,
    ) -> Self {
        Verifier {
            chain,
            expected,
            verdict,
            revoked: credentials.revoked(),
        }
    }
}

impl Verifier<WebPkiServerVerifier> {
    pub fn new(credentials: &Credentials, expected: Expected, verdict: Verdict) -> Self {
        let chain =
            WebPkiServerVerifier::builder_with_provider(credentials.authority(), provider())
                .build()
                .expect("an authority was loaded");
        Verifier {
            chain,
            expected,
            verdict,
            revoked: credentials.revoked(),
        }
    }
}

impl<V: ?Sized> Verifier<V> {
    /// `signed` is what the check of the chain said of the certificate that names `named`.
    fn judge<T>(
        &self,
        certificate: &CertificateDer<'_>,
        named: Result<Identity, Fault>,
        signed: Result<T, Error>,
    ) -> Result<T, Error> {
        let fault = match (signed, named) {
            (Ok(_), named) if self.revoked.has(certificate) => Fault::Revoked {
                who: Claimed(named.ok()),
            },
            (Ok(signed), Ok(who)) if self.expected.admits(&who) => return Ok(signed),
            (Ok(_), Ok(who)) => self.unexpected(who),
            (Ok(_), Err(fault)) => fault,
            (Err(Error::InvalidCertificate(error)), named) => self.unsigned(error, named),
            (Err(error), _) => Fault::Malformed {
                why: error.to_string(),
            },
        };
        Err(self.verdict.refuse(fault))
    }

    fn unsigned(&self, error: CertificateError, named: Result<Identity, Fault>) -> Fault {
        let who = Claimed(named.clone().ok());
        match (error, named) {
            // An operator's certificate is not made for serving.
            (
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
                Ok(who),
            ) => self.unexpected(who),
            (CertificateError::Expired | CertificateError::ExpiredContext { .. }, _) => {
                Fault::Expired { who }
            }
            (CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }, _) => {
                Fault::NotYetValid { who }
            }
            (CertificateError::UnknownIssuer | CertificateError::BadSignature, _) => {
                Fault::ForeignAuthority { who }
            }
            (error, _) => Fault::Malformed {
                why: error.to_string(),
            },
        }
    }

    fn unexpected(&self, who: Identity) -> Fault {
        Fault::WrongRole {
            who,
            expected: self.expected.clone(),
        }
    }
}

impl ClientCertVerifier for Verifier<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let signed = self
            .chain
            .verify_client_cert(end_entity, intermediates, now);
        self.judge(end_entity, Identity::named_by(end_entity), signed)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Verifier<WebPkiServerVerifier> {
    /// `_dialled` is not looked at: addresses are found at run time, roles and hosts are what counts.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let named = Identity::named_by(end_entity);
        let name = match &named {
            Ok(identity) => identity.dns_name(),
            Err(fault) => return Err(self.verdict.refuse(fault.clone())),
        };
        let name = ServerName::try_from(name).expect("it came out of a certificate as a DNS name");
        let signed = self
            .chain
            .verify_server_cert(end_entity, intermediates, &name, ocsp, now);
        self.judge(end_entity, named, signed)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
