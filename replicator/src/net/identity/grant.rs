//! Grants: what proves to a store that the placement service gave an epoch of a disk to a peer.
//!
//! The placement service signs one for whoever opened an epoch, with the key of its own certificate, and
//! puts that certificate in. Writers pass it on without looking; a store checks it once, when it is shown
//! the epoch, and keeps it with the epoch.
//!
//! ```text
//!  0        8         10       12            14           16      32       40     48        50
//!  +--------+---------+--------+-------------+-----------+-------+--------+------+---------+--------+-------------+-----------+
//!  |ukaigrnt| version | scheme | certificate | signature | disk  | epoch  | life | holder  | holder | certificate | signature |
//!  |        |    1    |        |    bytes    |   bytes   |       |        |      |  bytes  |        |    (DER)    |           |
//!  +--------+---------+--------+-------------+-----------+-------+--------+------+---------+--------+-------------+-----------+
//!                                                        <-------- what is signed -------->
//! ```
//!
//! There is no time in it: an epoch ends when the next one is shown, by whatever clock.

use super::verify::revoked_or;
use super::{Claimed, Credentials, Fault, Identity, Role, provider};
use crate::message::MAX_GRANT_BYTES;
use crate::words::{DiskId, Epoch, Life};
use bytes::{BufMut, Bytes, BytesMut};
use rustls::SignatureScheme;
use rustls::pki_types::{CertificateDer, UnixTime};

const MAGIC: &[u8; 8] = b"ukaigrnt";
const VERSION: u16 = 1;
/// Where what is signed begins.
const CLAIMS: usize = 16;
const FIXED: usize = CLAIMS + 16 + 8 + 8 + 2;
/// In front of what is signed, so that a signature of anything else cannot pass for one of a grant.
const CONTEXT: &[u8] = b"ukai: an epoch of a disk is granted, version 1\0";

/// What a grant says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claims {
    pub disk: DiskId,
    pub epoch: Epoch,
    /// The run of the backend that opened the epoch.
    pub life: Life,
    /// Whose certificate a peer must show to use the epoch.
    pub holder: Identity,
}

/// Why a grant proves nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GrantFault {
    #[error("it is no grant that this program knows")]
    Malformed,
    #[error("it is too long for a grant")]
    TooLong,
    #[error("it was not signed by the placement service: {0}")]
    Signer(Fault),
    #[error("it was changed after it was signed")]
    Signature,
    #[error("it cannot be signed with this key")]
    Key,
}

impl Credentials {
    /// Signs a grant. Stores believe it if these are the placement service's.
    pub fn grant(&self, claims: &Claims) -> Result<Bytes, GrantFault> {
        let certified = self.certified();
        let certificate = certified.cert.first().ok_or(GrantFault::Key)?;
        let schemes: Vec<SignatureScheme> = provider()
            .signature_verification_algorithms
            .mapping
            .iter()
            .map(|(scheme, _)| *scheme)
            .collect();
        let signer = certified.key.choose_scheme(&schemes);
        let signer = signer.ok_or(GrantFault::Key)?;
        let said = claims.encode();
        let signature = signer
            .sign(&[CONTEXT, &said].concat())
            .map_err(|_| GrantFault::Key)?;
        let mut grant = BytesMut::new();
        grant.put_slice(MAGIC);
        grant.put_u16_le(VERSION);
        grant.put_u16_le(signer.scheme().into());
        for part in [certificate.len(), signature.len()] {
            grant.put_u16_le(u16::try_from(part).map_err(|_| GrantFault::TooLong)?);
        }
        grant.put_slice(&said);
        grant.put_slice(certificate);
        grant.put_slice(&signature);
        match grant.len() <= MAX_GRANT_BYTES {
            true => Ok(grant.freeze()),
            false => Err(GrantFault::TooLong),
        }
    }

    /// What a grant says, if the placement service of this cluster has signed it and its certificate
    /// is good at `now`.
    pub fn granted(&self, grant: &[u8], now: UnixTime) -> Result<Claims, GrantFault> {
        let parts = Parts::of(grant)?;
        let claims = Claims::decode(parts.said)?;
        let certificate = CertificateDer::from(parts.certificate);
        let signer = Identity::named_by(&certificate).map_err(GrantFault::Signer)?;
        if signer.role != Role::Placement {
            return Err(GrantFault::Signer(Fault::WrongRole {
                who: signer,
                expected: super::Expected::role(Role::Placement),
            }));
        }
        let fault = |why: &dyn std::fmt::Display| {
            GrantFault::Signer(Fault::Malformed {
                why: why.to_string(),
            })
        };
        let parsed = webpki::EndEntityCert::try_from(&certificate).map_err(|why| fault(&why))?;
        let algorithms = provider().signature_verification_algorithms;
        let authority = self.authority();
        parsed
            .verify_for_usage(
                algorithms.all,
                &authority.roots,
                &[],
                now,
                webpki::KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(|error| GrantFault::Signer(chain_fault(error, &signer)))?;
        revoked_or(self, &certificate, &signer).map_err(GrantFault::Signer)?;
        let scheme = SignatureScheme::from(parts.scheme);
        let known = algorithms
            .mapping
            .iter()
            .find(|(known, _)| *known == scheme)
            .ok_or(GrantFault::Signature)?;
        let signed = [CONTEXT, parts.said].concat();
        let good = known.1.iter().any(|algorithm| {
            parsed
                .verify_signature(*algorithm, &signed, parts.signature)
                .is_ok()
        });
        match good {
            true => Ok(claims),
            false => Err(GrantFault::Signature),
        }
    }
}

fn chain_fault(error: webpki::Error, signer: &Identity) -> Fault {
    let who = Claimed(Some(signer.clone()));
    match error {
        webpki::Error::CertExpired { .. } => Fault::Expired { who },
        webpki::Error::CertNotValidYet { .. } => Fault::NotYetValid { who },
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            Fault::ForeignAuthority { who }
        }
        other => Fault::Malformed {
            why: other.to_string(),
        },
    }
}

impl Claims {
    /// What a grant says that was verified before, when it was taken in.
    pub fn of_verified(grant: &[u8]) -> Result<Claims, GrantFault> {
        Claims::decode(Parts::of(grant)?.said)
    }

    fn encode(&self) -> Vec<u8> {
        let holder = self.holder.dns_name();
        let mut said = Vec::with_capacity(FIXED - CLAIMS + holder.len());
        said.put_u128_le(self.disk.as_u128());
        said.put_u64_le(self.epoch.as_u64());
        said.put_u64_le(self.life.0);
        said.put_u16_le(holder.len() as u16);
        said.put_slice(holder.as_bytes());
        said
    }

    fn decode(said: &[u8]) -> Result<Claims, GrantFault> {
        let mut from = Cursor(said);
        let claims = Claims {
            disk: DiskId::from_u128(u128::from_le_bytes(from.array()?)),
            epoch: Epoch::from_u64(u64::from_le_bytes(from.array()?)),
            life: Life(u64::from_le_bytes(from.array()?)),
            holder: {
                let len = u16::from_le_bytes(from.array()?);
                let name = std::str::from_utf8(from.take(len.into())?);
                let name = name.map_err(|_| GrantFault::Malformed)?;
                Identity::from_dns_name(name).ok_or(GrantFault::Malformed)?
            },
        };
        match from.0.is_empty() {
            true => Ok(claims),
            false => Err(GrantFault::Malformed),
        }
    }
}

/// A grant taken apart, nothing of it believed.
struct Parts<'a> {
    scheme: u16,
    said: &'a [u8],
    certificate: &'a [u8],
    signature: &'a [u8],
}

impl Parts<'_> {
    fn of(grant: &[u8]) -> Result<Parts<'_>, GrantFault> {
        if grant.len() > MAX_GRANT_BYTES {
            return Err(GrantFault::TooLong);
        }
        let mut from = Cursor(grant);
        let magic = from.take(MAGIC.len())?;
        let version = u16::from_le_bytes(from.array()?);
        if magic != MAGIC || version != VERSION {
            return Err(GrantFault::Malformed);
        }
        let scheme = u16::from_le_bytes(from.array()?);
        let certificate = usize::from(u16::from_le_bytes(from.array()?));
        let signature = usize::from(u16::from_le_bytes(from.array()?));
        let rest = from.0;
        let said = rest
            .len()
            .checked_sub(certificate + signature)
            .ok_or(GrantFault::Malformed)?;
        let (said, rest) = rest.split_at(said);
        let (certificate, signature) = rest.split_at(certificate);
        Ok(Parts {
            scheme,
            said,
            certificate,
            signature,
        })
    }
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], GrantFault> {
        let (taken, rest) = self
            .0
            .split_at_checked(bytes)
            .ok_or(GrantFault::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GrantFault> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("as long as was asked for"))
    }
}

/// Any bytes, as a grant: for fuzzing.
pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(claims) = Claims::of_verified(bytes) {
        let parts = Parts::of(bytes).expect("it was just taken apart");
        assert_eq!(claims.encode(), parts.said, "encode undoes decode");
    }
}
