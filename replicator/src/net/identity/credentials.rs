//! What a process shows of itself, and whose certificates it believes: three PEM files.

use super::pki::{certificate_path, key_path};
use super::revoked::{self, Revoked};
use super::{Fault, Identity, Role, provider};
use crate::words::HostName;
use ring::hmac;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs, io};

/// A PEM file holds one certificate or key; more than this is not one of ours.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// A process's own certificate and key, and the authority that it believes. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    identity: Identity,
    certified: Arc<CertifiedKey>,
    authority: Arc<RootCertStore>,
    revoked: Arc<Revoked>,
    reset_seed: [u8; 32],
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error(
        "there is no {what} at {path}; run `ukai init` to make one, or copy it from where that was run"
    )]
    Missing { what: &'static str, path: PathBuf },
    #[error(
        "{dir} holds no {role} certificate; run `ukai init` to make one, or copy it from where that was run"
    )]
    NoneOf { role: Role, dir: PathBuf },
    #[error("{dir} holds several {role} certificates ({names}); say which of them to use")]
    SeveralOf {
        role: Role,
        dir: PathBuf,
        names: String,
    },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not a good {what}: {why}; was it cut short or mixed up?")]
    Malformed {
        what: &'static str,
        path: PathBuf,
        why: String,
    },
    #[error("{path}: {fault}")]
    Certificate { path: PathBuf, fault: Fault },
    #[error("{certificate} and {key} do not belong together")]
    Mismatch { certificate: PathBuf, key: PathBuf },
}

impl Credentials {
    /// Loads what [`super::Pki`] wrote to `dir` for this process.
    pub fn load(dir: &Path, role: Role, host: &HostName) -> Result<Self, CredentialsError> {
        let identity = Identity::new(role, host.clone());
        Self::from_files(
            &dir.join("ca.crt"),
            &certificate_path(dir, &identity),
            &key_path(dir, &identity),
        )
    }

    /// Loads the only certificate of `role` in `dir`.
    pub fn load_only(dir: &Path, role: Role) -> Result<Self, CredentialsError> {
        let hosts = hosts_with(dir, role)?;
        match hosts.as_slice() {
            [] => Err(CredentialsError::NoneOf {
                role,
                dir: dir.to_path_buf(),
            }),
            [host] => Self::load(dir, role, host),
            several => Err(CredentialsError::SeveralOf {
                role,
                dir: dir.to_path_buf(),
                names: several
                    .iter()
                    .map(HostName::as_str)
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }

    pub fn from_files(
        authority: &Path,
        certificate: &Path,
        key: &Path,
    ) -> Result<Self, CredentialsError> {
        let mut roots = RootCertStore::empty();
        let ca = read_certificate("authority's certificate", authority)?;
        roots
            .add(ca)
            .map_err(|fault| malformed("authority's certificate", authority, &fault))?;
        let list = authority.with_file_name(revoked::FILE);
        let revoked = Revoked::load(list.clone())
            .map_err(|why| malformed("list of revoked certificates", &list, &why))?;
        let own = read_certificate("certificate", certificate)?;
        let identity = Identity::named_by(&own).map_err(|fault| CredentialsError::Certificate {
            path: certificate.to_path_buf(),
            fault,
        })?;
        let pem = read("private key", key)?;
        let reset_seed = reset_seed(&pem);
        let signing = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|fault| malformed("private key", key, &fault))
            .and_then(|der| {
                provider()
                    .key_provider
                    .load_private_key(der)
                    .map_err(|fault| malformed("private key", key, &fault))
            })?;
        let certified = CertifiedKey::new(vec![own], signing);
        certified
            .keys_match()
            .map_err(|_| CredentialsError::Mismatch {
                certificate: certificate.to_path_buf(),
                key: key.to_path_buf(),
            })?;
        Ok(Credentials {
            identity,
            certified: Arc::new(certified),
            authority: Arc::new(roots),
            revoked: Arc::new(revoked),
            reset_seed,
        })
    }

    /// Who this process is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What this process and whoever is started with the same key after it know, and nobody else.
    pub(in crate::net) fn reset_seed(&self) -> [u8; 32] {
        self.reset_seed
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    /// The certificates that are refused although they have not expired.
    pub(super) fn revoked(&self) -> Arc<Revoked> {
        self.revoked.clone()
    }

    pub(super) fn authority(&self) -> Arc<RootCertStore> {
        self.authority.clone()
    }
}

impl fmt::Debug for Credentials {
    /// Who, never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.identity)
    }
}

fn reset_seed(private_key: &[u8]) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, private_key);
    let seed = hmac::sign(&key, b"ukai: stateless resets");
    seed.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
}

fn hosts_with(dir: &Path, role: Role) -> Result<Vec<HostName>, CredentialsError> {
    let io = |source| unreadable("folder of certificates", dir, source);
    let suffix = format!(".{role}.crt");
    let mut hosts = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let host = name.to_str().and_then(|name| name.strip_suffix(&suffix));
        hosts.extend(host.and_then(|host| HostName::new(host).ok()));
    }
    hosts.sort();
    Ok(hosts)
}

pub(super) fn read_certificate(
    what: &'static str,
    path: &Path,
) -> Result<CertificateDer<'static>, CredentialsError> {
    CertificateDer::from_pem_slice(&read(what, path)?)
        .map_err(|fault| malformed(what, path, &fault))
}

fn unreadable(what: &'static str, path: &Path, source: io::Error) -> CredentialsError {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::NotFound => CredentialsError::Missing { what, path },
        _ => CredentialsError::Io { path, source },
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let io = |source| unreadable(what, path, source);
    if fs::metadata(path).map_err(io)?.len() > MAX_FILE_BYTES {
        return Err(malformed(what, path, &"it is far too long"));
    }
    fs::read(path).map_err(io)
}

fn malformed(what: &'static str, path: &Path, why: &dyn fmt::Display) -> CredentialsError {
    CredentialsError::Malformed {
        what,
        path: path.to_path_buf(),
        why: why.to_string(),
    }
}
