//! Certificates that are good no more although they have not expired: a list of fingerprints in a file
//! `revoked` beside `ca.crt`, looked at again while the process runs.
//!
//! A line is the SHA-256 of a certificate in hexadecimal digits, with or without colons, and whatever
//! behind `#`. No file: nothing is revoked. A file that cannot be read leaves what was read last.

use super::{CredentialsError, Identity, provider};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use serde::{Serialize, Serializer};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use std::{fmt, fs, io};

pub(super) const FILE: &str = "revoked";
/// Between two looks at the file.
const LOOK: Duration = Duration::from_secs(1);
/// How often connections that stand are looked at.
pub(super) const RECHECK: Duration = Duration::from_secs(2);
/// Some ten thousand certificates.
const MAX_BYTES: u64 = 1 << 20;

/// The SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// See the module's documentation. Shared by all that check certificates with one set of credentials.
pub struct Revoked {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    looked: Option<Instant>,
    /// Of the file that was read last.
    stamp: Option<(SystemTime, u64)>,
    list: HashSet<Fingerprint>,
}

impl Fingerprint {
    pub fn of(certificate: &CertificateDer<'_>) -> Fingerprint {
        Fingerprint(sha256(certificate))
    }

    fn parse(text: &str) -> Option<Fingerprint> {
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16).map(|digit| digit as u8))
            .collect::<Option<_>>()?;
        let bytes: Vec<u8> = digits
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => high << 4 | low,
                _ => 0,
            })
            .collect();
        match digits.len() {
            64 => Some(Fingerprint(bytes.try_into().ok()?)),
            _ => None,
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let provider = provider();
    let suite = provider.cipher_suites[0]
        .tls13()
        .expect("TLS 1.3 suites only");
    let hash = suite.common.hash_provider.hash(bytes);
    hash.as_ref()
        .try_into()
        .expect("the first suite's hash is SHA-256")
}

impl fmt::Debug for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Revoked({})", self.path.display())
    }
}

impl Revoked {
    /// Reads the list; an error if it is there and cannot be read.
    pub(super) fn load(path: PathBuf) -> Result<Revoked, String> {
        let state = State {
            looked: Some(Instant::now()),
            stamp: stamp(&path).map_err(|error| error.to_string())?,
            list: read(&path)?,
        };
        Ok(Revoked {
            path,
            state: Mutex::new(state),
        })
    }

    /// As the file says now, or said a moment ago.
    pub fn has(&self, certificate: &CertificateDer<'_>) -> bool {
        let mut state = self.state.lock();
        if state.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            state.looked = Some(Instant::now());
            self.look(&mut state);
        }
        !state.list.is_empty() && state.list.contains(&Fingerprint::of(certificate))
    }

    fn look(&self, state: &mut State) {
        let found = stamp(&self.path);
        if found.as_ref().is_ok_and(|stamp| *stamp == state.stamp) {
            return;
        }
        let list = found.map_err(|error| error.to_string()).and_then(|stamp| {
            // Also of a file that makes no sense: it is said once.
            state.stamp = stamp;
            read(&self.path)
        });
        match list {
            Ok(list) => {
                tracing::info!(file = %self.path.display(), certificates = list.len(), "the list of revoked certificates was read again");
                state.list = list;
            }
            Err(why) => {
                tracing::error!(file = %self.path.display(), "the list of revoked certificates cannot be read; what it said before goes on to hold: {why}");
            }
        }
    }
}

/// What [`revoke`] did.
pub struct Revocation {
    pub identity: Identity,
    pub fingerprint: Fingerprint,
    /// It stood in the list before.
    pub already: bool,
}

/// Adds the certificate in a PEM file to the list in `dir`.
pub fn revoke(dir: &Path, certificate: &Path) -> Result<Revocation, CredentialsError> {
    let list = dir.join(FILE);
    let io = |source| CredentialsError::Io {
        path: list.clone(),
        source,
    };
    let certificate = super::credentials::read_certificate("certificate", certificate)?;
    let identity =
        Identity::named_by(&certificate).map_err(|fault| CredentialsError::Certificate {
            path: list.clone(),
            fault,
        })?;
    let known = read(&list).map_err(|why| CredentialsError::Malformed {
        what: "list of revoked certificates",
        path: list.clone(),
        why,
    })?;
    let fingerprint = Fingerprint::of(&certificate);
    let already = known.contains(&fingerprint);
    if !already {
        let mut text = fs::read_to_string(&list).unwrap_or_default();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text += &format!("{fingerprint}  # {identity}\n");
        // A process that looks meanwhile sees the list before or after.
        let whole = list.with_extension("new");
        fs::write(&whole, text).map_err(io)?;
        fs::rename(&whole, &list).map_err(io)?;
    }
    Ok(Revocation {
        identity,
        fingerprint,
        already,
    })
}

/// When the file was written last, and its length; None: there is none.
fn stamp(path: &Path) -> io::Result<Option<(SystemTime, u64)>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some((found.modified()?, found.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(path: &Path) -> Result<HashSet<Fingerprint>, String> {
    match fs::metadata(path) {
        Ok(found) if found.len() > MAX_BYTES => return Err("it is far too long".into()),
        _ => {}
    }
    match fs::read_to_string(path) {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(error) => Err(error.to_string()),
    }
}

/// The list, or which line of it makes no sense.
pub(super) fn parse(text: &str) -> Result<HashSet<Fingerprint>, String> {
    let lines = text.lines().enumerate().filter_map(|(at, line)| {
        let said = line.split('#').next().unwrap_or_default().trim();
        (!said.is_empty()).then_some((at + 1, said))
    });
    lines
        .map(|(at, said)| {
            Fingerprint::parse(said)
                .ok_or_else(|| format!("line {at} is not the SHA-256 of a certificate"))
        })
        .collect()
}

/// Any bytes, as a list: for fuzzing.
pub(super) fn fuzz(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(list) = parse(&text) {
        let again: String = list.iter().map(|one| format!("{one}\n")).collect();
        assert_eq!(parse(&again), Ok(list));
    }
}
