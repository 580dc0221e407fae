//! The backend: one vhost-user-blk device that serves one disk to one VM.
//!
//! Follow a request: `device` takes it from a virtqueue, [`disk`] carries it to the writer engine and
//! the stores, `device` puts its status back and tells the guest.

pub mod device;
pub mod disk;
