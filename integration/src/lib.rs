//! Tests that see the whole: the simulator, and real processes with real guests.
//!
//! - [`cluster`]: a placement service and nodes as processes of this machine.
//! - [`guest`]: QEMU guests that are driven by commands.
//! - [`migration`]: a guest's move between datacenters, recorded and compared.
//! - [`processes`]: programs that a test starts, and nothing of them left behind.
//! - [`relay`]: a distance between datacenters, with delay, a rate and cuts.
//! - [`sim`]: writers, stores and the placement map in virtual time, with everything going wrong.

pub mod cluster;
pub mod guest;
pub mod migration;
pub mod processes;
pub mod relay;
pub mod sim;
