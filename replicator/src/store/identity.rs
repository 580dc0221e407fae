//! The file UKAI-STORE: that this directory is a store, which one, and in what format.
//!
//! ```text
//! 0             10      12        16        32    36
//! "UKAI-STORE"  2 zero  version   store id  sum
//! ```
//!
//! Written when the store is made, after everything else is in place, and when its format changes.

use super::Store;
use super::directory;
use super::error::{Doing, StoreError};
use super::frame::FORMAT_VERSION;
use super::media::{Media, MediaFile};
use super::options::Options;
use crate::message::checksum;
use crate::words::StoreId;
use std::io::{self, IoSlice};

pub(super) const IDENTITY: &str = "UKAI-STORE";
const IDENTITY_BYTES: usize = 36;

impl<M: Media> Store<M> {
    /// Makes a new, empty store; the directory must be empty.
    pub fn format(media: &M, id: StoreId, options: &Options) -> Result<(), StoreError> {
        options.check()?;
        let dir = media.name();
        // Twice: a directory that is not empty does not even get a lock file, and nobody must come
        // between the look and the lock.
        check_empty(media, &dir)?;
        let _lock = lock(media)?;
        check_empty(media, &dir)?;
        directory::write_first(media, id).doing(&dir, "writing the first checkpoint")?;
        write(media, id).doing(&dir, "writing UKAI-STORE")
    }
}

fn write<M: Media>(media: &M, id: StoreId) -> io::Result<()> {
    let mut bytes = [0; IDENTITY_BYTES];
    bytes[..10].copy_from_slice(IDENTITY.as_bytes());
    bytes[12..16].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(&id.as_u128().to_le_bytes());
    let sum = checksum(&bytes[..32]);
    bytes[32..].copy_from_slice(&sum.to_le_bytes());
    write_whole(media, IDENTITY, &bytes)?;
    media.sync_dir()
}

/// Says that the store has this program's format from now on. Before anything new is appended: a program
/// that does not know new frames would take them for the log's end.
pub(super) fn upgrade<M: Media>(media: &M, id: StoreId) -> Result<(), StoreError> {
    let dir = media.name();
    let mut version = [0; 4];
    let file = media.open(IDENTITY).doing(&dir, "opening UKAI-STORE")?;
    file.read_at(12, &mut version)
        .doing(&dir, "reading UKAI-STORE")?;
    if u32::from_le_bytes(version) == FORMAT_VERSION {
        return Ok(());
    }
    tracing::info!(store = %id, "the store has format {FORMAT_VERSION} from now on");
    write(media, id).doing(&dir, "writing UKAI-STORE")
}

/// What a format that was cut short left behind is in nobody's way.
fn check_empty<M: Media>(media: &M, dir: &str) -> Result<(), StoreError> {
    let names = media.list().doing(dir, "listing the directory")?;
    let foreign = |name: &&String| {
        let known = ["lock", "lost+found"].contains(&name.as_str())
            || directory::is_temporary(name)
            || directory::names(1).contains(name);
        !known
    };
    match names.iter().find(foreign) {
        None => Ok(()),
        Some(found) => Err(StoreError::NotEmpty {
            dir: dir.into(),
            found: found.clone(),
        }),
    }
}

/// Which store this directory is.
pub(super) fn read<M: Media>(media: &M) -> Result<StoreId, StoreError> {
    let dir = media.name();
    let file = match media.open(IDENTITY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::NotAStore { dir });
        }
        other => other.doing(&dir, "opening UKAI-STORE")?,
    };
    let mut bytes = [0; IDENTITY_BYTES];
    file.read_at(0, &mut bytes)
        .doing(&dir, "reading UKAI-STORE")?;
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    if &bytes[..10] != IDENTITY.as_bytes() {
        return Err(StoreError::NotAStore { dir });
    }
    // A newer format may look different from here on: its version comes before the checksum.
    let found = word(12);
    let intact = checksum(&bytes[..32]) == word(32);
    if found > FORMAT_VERSION && (intact || file.size().is_ok_and(|len| len != 36)) {
        return Err(StoreError::Newer {
            dir,
            found,
            known: FORMAT_VERSION,
        });
    }
    if !intact || found == 0 {
        return Err(StoreError::Damaged {
            dir,
            what: "the store's identity does not match its checksum".into(),
            place: IDENTITY.into(),
        });
    }
    let id = bytes[16..32].try_into().expect("sixteen bytes");
    Ok(StoreId::from_u128(u128::from_le_bytes(id)))
}

pub(super) fn lock<M: Media>(media: &M) -> Result<M::Lock, StoreError> {
    let dir = media.name();
    match media.lock() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(StoreError::InUse { dir }),
        other => other.doing(&dir, "locking the directory"),
    }
}

/// Writes a file so that it is there whole or not at all. The caller syncs the directory.
pub(super) fn write_whole<M: Media>(media: &M, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.tmp");
    match media.remove(&temporary) {
        // A power loss that keeps this name, and not its removal, must not have it take the place of the new one's.
        Ok(()) => media.sync_dir()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = media.create(&temporary, bytes.len() as u64)?;
    file.write_at(0, &[IoSlice::new(bytes)])?;
    file.sync()?;
    media.rename(&temporary, name)
}
