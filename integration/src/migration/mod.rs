//! A guest's move from tokyo to osaka, recorded by the host: with Ukai, and with what QEMU brings along.
//!
//! - [`workload`]: the disk's contents and what the guest does with it, the same for both.
//! - [`ours`], [`mirror`]: the two ways of moving; each returns a [`Course`].
//! - [`traveller`]: a guest that goes from host to host.
//! - [`course`]: what was recorded, and what can be said about it.
//! - [`timeline`], [`plot`]: a course for people, as text and as a picture.
//! - [`soak`]: many moves in a row.
//! - [`figures`]: two ways side by side, as ratios with their goals.

pub mod course;
pub mod figures;
pub mod mirror;
pub mod ours;
pub mod plot;
pub mod soak;
pub mod timeline;
pub mod traveller;
pub mod workload;

pub use course::Course;
pub use traveller::Traveller;
pub use workload::Workload;

use anyhow::Result;

use crate::guest::{Guest, MIGRATION_BOUND, Terms};
use crate::relay::{Link, Way};

/// Moves a running guest over the link; it runs at the destination when this returns.
pub fn cross(source: &mut Guest, destination: &mut Guest, link: &Link, way: Way) -> Result<()> {
    let terms = Terms::default();
    destination.agree(&terms)?;
    source.agree(&terms)?;
    let memory = link.tcp(way, destination.listen()?)?;
    source.depart(memory.address)?;
    source.wait_migration("completed", MIGRATION_BOUND)?;
    destination.wait_running(MIGRATION_BOUND)
}
