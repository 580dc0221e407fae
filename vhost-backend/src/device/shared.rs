//! Memory that a front-end shares with us as a file.

use super::Refused;
use rustix::fs::SealFlags;
use std::fs::File;
use vm_memory::{FileOffset, MmapRegion};

/// Maps `bytes` of `file` from `offset` on; not where the file is shorter: touching what is not
/// there would be a SIGBUS, for every disk of this process. What can be sealed (memfd) is, so
/// that it stays so; a front-end that shares another kind of file could still shorten it later. It is the
/// VMM, not the guest; those that we trust with a socket do not.
pub fn map(what: &str, file: File, offset: u64, bytes: u64) -> Result<MmapRegion, Refused> {
    let refused = |why: &dyn std::fmt::Display| Refused(format!("cannot map {what}: {why}"));
    let metadata = file.metadata().map_err(|error| refused(&error))?;
    let end = offset
        .checked_add(bytes)
        .ok_or_else(|| refused(&"an absurd size"))?;
    // Memory files can be kept from getting shorter. Where the front-end has sealed it already, or it is not
    // such a file, there is nothing that we could do.
    let _ = rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK);
    // Devices (persistent memory, say) do not tell their size this way.
    if metadata.is_file() && metadata.len() < end {
        return Err(refused(&"the file is shorter"));
    }
    let bytes = usize::try_from(bytes).map_err(|_| refused(&"an absurd size"))?;
    MmapRegion::from_file(FileOffset::new(file, offset), bytes).map_err(|error| refused(&error))
}
