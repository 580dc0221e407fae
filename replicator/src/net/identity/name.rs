//! The name in a certificate: `<host>.<role>.ukai`.

use super::Fault;
use crate::words::HostName;
use rustls::pki_types::{CertificateDer, DnsName};
use serde::{Deserialize, Serialize};
use std::fmt;

const DOMAIN: &str = "ukai";

/// What a process may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The placement service: issues epochs.
    Placement,
    /// A host's daemon: stores, backends, or both.
    Node,
    /// A person or a VM manager with the command line tool.
    Operator,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Placement, Role::Node, Role::Operator];

    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Placement => "placement",
            Role::Node => "node",
            Role::Operator => "operator",
        }
    }

    /// `placement.ukai`: the second name in every certificate of the role, for clients that check
    /// names in the usual way and reach whichever process has the role.
    pub fn dns_name(self) -> String {
        format!("{self}.{DOMAIN}")
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A process as its certificate names it. For an operator, `host` is the person's name.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Identity {
    pub role: Role,
    pub host: HostName,
}

impl Identity {
    pub fn new(role: Role, host: HostName) -> Self {
        Identity { role, host }
    }

    /// `tokyo-1.node.ukai`.
    pub fn dns_name(&self) -> String {
        format!("{}.{}", self.host, self.role.dns_name())
    }

    /// Reads a name as [`Identity::dns_name`] writes it.
    pub fn from_dns_name(name: &str) -> Option<Identity> {
        let (name, domain) = name.rsplit_once('.')?;
        let (host, role) = name.rsplit_once('.')?;
        let role = Role::ALL.into_iter().find(|known| known.as_str() == role)?;
        let host = HostName::new(host).ok()?;
        (domain == DOMAIN).then_some(Identity { role, host })
    }

    /// Whom a certificate names: exactly one of ours, or nobody. Says nothing of who signed it.
    pub fn named_by(certificate: &CertificateDer<'_>) -> Result<Identity, Fault> {
        let parsed =
            webpki::EndEntityCert::try_from(certificate).map_err(|fault| Fault::Malformed {
                why: fault.to_string(),
            })?;
        let mut named = parsed.valid_dns_names().filter_map(Identity::from_dns_name);
        match (named.next(), named.next()) {
            (Some(identity), None) => Ok(identity),
            _ => Err(Fault::Nameless),
        }
    }

    /// Whom an established connection leads to. The handshake has checked it; every connection
    /// that a [`super::Gate`] let in or a [`super::Dial`] made has one.
    pub fn of(connection: &quinn::Connection) -> Result<Identity, Fault> {
        Identity::named_by(&certificate_of(connection).ok_or(Fault::NoCertificate)?)
    }

    /// Whether the name can stand in a certificate: two dots in a row, say, cannot.
    pub(super) fn is_dns_name(&self) -> bool {
        DnsName::try_from(self.dns_name()).is_ok()
    }
}

/// What the peer of an established connection has shown.
pub(super) fn certificate_of(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let any = connection.peer_identity()?;
    let certificates = any.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    certificates.first().cloned()
}

impl fmt::Display for Identity {
    /// `node tokyo-1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.host)
    }
}
