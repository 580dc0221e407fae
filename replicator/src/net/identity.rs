//! Who a peer is: every process has one certificate of the cluster's own authority, and the
//! certificate's name says what the process may do ([`Role`]) and where it runs.
//!
//! ```text
//! ca.crt, ca.key                      the authority, made once by `ukai init`
//! tokyo-1.node.crt, tokyo-1.node.key  one process; its name is tokyo-1.node.ukai
//! ```
//!
//! TLS is always mutual and always 1.3. Whoever accepts a connection says which roles it lets in
//! ([`Gate`]), whoever opens one says whom it means to reach ([`Dial`]); anybody else is refused with
//! a [`Fault`], and a line in the log says which fault, and from where.

mod credentials;
mod dial;
mod gate;
mod grant;
mod name;
mod pki;
mod revoked;
mod verify;

pub use credentials::{Credentials, CredentialsError};
pub use dial::{Dial, DialError};
pub use gate::{Admitted, Gate, Refused, Watch};
pub use grant::{Claims, GrantFault};
pub use name::{Identity, Role};
pub use pki::{DEFAULT_VALIDITY, Pki, PkiError};
pub(crate) use revoked::sha256;
pub use revoked::{Fingerprint, Revocation, revoke};
pub use verify::{Claimed, Expected, Fault, Verdict};

use rustls::crypto::CryptoProvider;
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// The one provider of cryptography (ring), AES-128-GCM first: with it, sealing a 4 KiB message
/// costs a fifth of what ChaCha20 costs. Always passed on explicitly, never the process's default.
pub fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::ring::{cipher_suite, default_provider};
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..default_provider()
    })
}

/// Any bytes, as what others hand us in writing: for fuzzing.
pub fn fuzz_papers(bytes: &[u8]) {
    grant::fuzz(bytes);
    revoked::fuzz(bytes);
}
