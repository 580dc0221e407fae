//! Event descriptors that a front-end hands us.

use super::Refused;
use rustix::fs::OFlags;
use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vmm_sys_util::event::EventNotifier;

/// It must never block us, whatever it really is: both front-ends make theirs non-blocking anyway.
pub fn unblocking(file: File) -> Result<File, Refused> {
    rustix::fs::fcntl_getfl(&file)
        .and_then(|flags| rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK))
        .map_err(|error| Refused(format!("an event descriptor that cannot be used: {error}")))?;
    Ok(file)
}

/// A descriptor that we wait for.
pub fn waited_for(file: File) -> Result<AsyncFd<File>, Refused> {
    // SAFETY: a `File` names the same open descriptor for all its life, and the result owns it.
    unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }
        .map_err(|error| Refused(format!("a descriptor that cannot be waited for: {error:?}")))
}

/// A descriptor that we write to.
pub fn notifier(file: File) -> Result<EventNotifier, Refused> {
    let file = unblocking(file)?;
    // SAFETY: the descriptor is open and ours alone: `file` has just given it up.
    Ok(unsafe { EventNotifier::from_raw_fd(file.into_raw_fd()) })
}
