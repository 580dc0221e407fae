//! One file a command, or a folder where a command has several verbs. `plan` is what several show.

pub mod datacenter;
pub mod dev;
pub mod disk;
pub mod init;
pub mod links;
pub mod moves;
pub mod node;
pub mod placement;
mod plan;
pub mod policy;
pub mod revoke;
pub mod status;
pub mod store;
