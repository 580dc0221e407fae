//! The private authority: `ukai init` makes it and signs a certificate for each process.
//!
//! A key is readable by its owner only from the moment that its file exists, and nothing that exists
//! is ever overwritten: losing `ca.key` by accident would mean new certificates for every host.

use super::{Identity, Role};
use crate::words::HostName;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long a certificate is good for unless its maker says otherwise: two years.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
/// The authority outlives many generations of certificates: twenty years.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Clocks of hosts differ a little; a certificate is good from this much before it was made.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// The authority's key, opened to sign certificates.
pub struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(
        "{path} exists already, and nothing is overwritten; move it away, or use another directory"
    )]
    Exists { path: PathBuf },
    #[error(
        "there is no {path}; run `ukai init` first, or name the directory where it made its keys"
    )]
    Missing { path: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not what `ukai init` writes: {why}")]
    Malformed { path: PathBuf, why: String },
    #[error(
        "{name} cannot stand in a certificate: use a host name without '..', '.-' or '-.', not ending in '.', '-' or '_'"
    )]
    Name { name: String },
    #[error("the certificate could not be made: {0}")]
    Sign(#[from] rcgen::Error),
}

impl Pki {
    /// Makes `dir` and in it a new authority: `ca.crt` and `ca.key`.
    pub fn init(dir: &Path) -> Result<Pki, PkiError> {
        let io = |source| PkiError::Io {
            path: dir.to_path_buf(),
            source,
        };
        fs::create_dir_all(dir).map_err(io)?;
        for file in ["ca.crt", "ca.key"] {
            let path = dir.join(file);
            if path.exists() {
                return Err(PkiError::Exists { path });
            }
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        // Two authorities never have the same name, or a certificate of the one would be taken for
        // a broken one of the other instead of a foreign one.
        let name = format!("Ukai authority {}", uuid::Uuid::new_v4());
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let now = SystemTime::now();
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + AUTHORITY_VALIDITY).into();
        let certificate = params.self_signed(&key)?;
        write_new(&dir.join("ca.key"), &key.serialize_pem(), 0o600)?;
        write_new(&dir.join("ca.crt"), &certificate.pem(), 0o644)?;
        Pki::open(dir)
    }

    /// Opens the authority that [`Pki::init`] made in `dir`.
    pub fn open(dir: &Path) -> Result<Pki, PkiError> {
        let key_path = dir.join("ca.key");
        let certificate_path = dir.join("ca.crt");
        let key =
            KeyPair::from_pem(&read(&key_path)?).map_err(|fault| malformed(&key_path, &fault))?;
        let issuer = Issuer::from_ca_cert_pem(&read(&certificate_path)?, key)
            .map_err(|fault| malformed(&certificate_path, &fault))?;
        Ok(Pki {
            dir: dir.to_path_buf(),
            issuer,
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes `<host>.<role>.crt` and `.key`, good from about now for `validity`.
    pub fn issue(
        &self,
        role: Role,
        host: &HostName,
        validity: Duration,
    ) -> Result<Identity, PkiError> {
        let now = SystemTime::now();
        self.issue_between(role, host, now - CLOCK_SKEW, now + validity)
    }

    /// As [`Pki::issue`], good in exactly this time.
    pub fn issue_between(
        &self,
        role: Role,
        host: &HostName,
        from: SystemTime,
        until: SystemTime,
    ) -> Result<Identity, PkiError> {
        let identity = Identity::new(role, host.clone());
        if !identity.is_dns_name() {
            return Err(PkiError::Name {
                name: identity.dns_name(),
            });
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![identity.dns_name(), role.dns_name()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, identity.dns_name());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if role != Role::Operator {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.not_before = from.into();
        params.not_after = until.into();
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write_new(&key_path(&self.dir, &identity), &key.serialize_pem(), 0o600)?;
        write_new(
            &certificate_path(&self.dir, &identity),
            &certificate.pem(),
            0o644,
        )?;
        Ok(identity)
    }
}

pub(super) fn certificate_path(dir: &Path, identity: &Identity) -> PathBuf {
    dir.join(format!("{}.{}.crt", identity.host, identity.role))
}

pub(super) fn key_path(dir: &Path, identity: &Identity) -> PathBuf {
    dir.join(format!("{}.{}.key", identity.host, identity.role))
}

/// Writes a file that must not exist yet, with its final permissions from the first moment, synced.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists {
            path: path.to_path_buf(),
        },
        _ => PkiError::Io {
            path: path.to_path_buf(),
            source,
        },
    })
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => PkiError::Missing {
            path: path.to_path_buf(),
        },
        _ => PkiError::Io {
            path: path.to_path_buf(),
            source,
        },
    })
}

fn malformed(path: &Path, fault: &rcgen::Error) -> PkiError {
    PkiError::Malformed {
        path: path.to_path_buf(),
        why: fault.to_string(),
    }
}
