//! TLS towards etcd: its own authority and certificates, which are not the cluster's.

use crate::catalog::CatalogError;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// From a folder with `ca.crt`, which signed etcd's certificates, and `client.crt` with `client.key`, which
/// we show; without these two we show nothing.
pub(super) fn client_tls(dir: &Path) -> Result<Arc<ClientConfig>, CatalogError> {
    let authority = dir.join("ca.crt");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&authority)? {
        let added = roots.add(certificate);
        added.map_err(|error| unfit(&authority, error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unfit(&authority, error.to_string()))?
        .with_root_certificates(roots);
    let (own, key) = (dir.join("client.crt"), dir.join("client.key"));
    if !own.exists() {
        return Ok(Arc::new(config.with_no_client_auth()));
    }
    let private =
        PrivateKeyDer::from_pem_file(&key).map_err(|error| unfit(&key, error.to_string()))?;
    let config = config
        .with_client_auth_cert(certificates(&own)?, private)
        .map_err(|error| unfit(&own, error.to_string()))?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CatalogError> {
    let failed = |error: rustls::pki_types::pem::Error| unfit(path, error.to_string());
    let all = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(failed)?;
    match all.is_empty() {
        true => Err(unfit(path, "there is no certificate in it".into())),
        false => Ok(all),
    }
}

fn unfit(path: &Path, why: String) -> CatalogError {
    CatalogError::Open {
        path: PathBuf::from(path),
        why,
    }
}
