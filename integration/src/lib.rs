//! Tests that see the whole: the simulator, and real processes with real guests.
//!
//! - [`bench`]: how fast it is, beside others.
//! - [`chaos`]: everything that can be done to real processes under a guest that verifies.
//! - [`cluster`]: a placement service and nodes as processes of this machine.
//! - [`etcd`]: what keeps the catalog where there are several placement services.
//! - [`guest`]: QEMU guests that are driven by commands.
//! - [`lone_writer`]: a disk that is written all the while, without a guest.
//! - [`migration`]: a guest's move between datacenters, recorded and compared.
//! - [`networks`]: a network namespace for each host, with cuts.
//! - [`processes`]: programs that a test starts, and nothing of them left behind.
//! - [`relay`]: a distance between datacenters, with delay, a rate and cuts.
//! - [`sim`]: writers, stores and the placement map in virtual time, with everything going wrong.

pub mod bench;
pub mod chaos;
pub mod cluster;
pub mod etcd;
pub mod guest;
pub mod lone_writer;
pub mod migration;
pub mod networks;
pub mod processes;
pub mod relay;
pub mod sim;
