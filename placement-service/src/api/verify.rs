//! Verifying a disk: whether its copies agree and are intact.

use replicator::words::{BackendId, DiskName};
use replicator::writer::Verdict;
use serde::{Deserialize, Serialize};

/// Verify an open disk, through the backend that serves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct VerifyDisk {
    /// Read everything from the media and check it; otherwise only compare digests.
    #[serde(default)]
    pub deep: bool,
}

/// What was ordered last, and how far it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Verification {
    pub disk: DiskName,
    /// Names the order.
    pub order: u64,
    pub deep: bool,
    /// Who carries it out.
    pub backend: BackendId,
    /// None: it has not begun.
    pub verdict: Option<Verdict>,
}
