//! One file a command.

pub mod datacenter;
pub mod dev;
pub mod disk;
pub mod init;
pub mod node;
pub mod placement;
pub mod status;
pub mod store;
