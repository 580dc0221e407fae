//! A guest and its VMM in small, for tests: memory, split rings, and the order of messages in which
//! QEMU and cloud-hypervisor set a device up.
//!
//! Panics where something is not as it should be: this is a test's hand, not a driver.

mod driver;
mod ram;
mod server;
mod vmm;

pub use driver::{DriverRing, Reply, Ticket};
pub use ram::GuestRam;
pub use server::Server;
pub use vmm::{Log, Order, Vmm, VmmOptions};

use std::time::{Duration, Instant};

/// Longer than anything in a test takes, shorter than anybody waits.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `true`, or fails the test.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not so in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
