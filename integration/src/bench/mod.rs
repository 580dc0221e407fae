//! How fast it is, beside others that do the same, in one run: `cargo xtask bench`.
//!
//! - [`front_end`]: the guest's half of a disk, the same for all.
//! - [`load`]: what is asked, and in which order; [`measure`]: one load on one side, and its cost;
//!   [`verify`]: that the answers are right.
//! - [`side`]: who can be asked: ours with one copy and more, and the peers ([`storage_daemon`], [`iscsi`] by way of [`tgt`],
//!   [`ceph`]).
//! - [`job`]: what is compared with whom, and what the goal is; [`choice`]: what of it a run has; [`needs`]: what some of it
//!   wants to be installed.
//! - [`backfill`], [`comes_back`], [`thin`], [`idle`]: what is no load on two sides as they stand: copying, a store
//!   that was away, new disks, and doing nothing.
//! - [`compare`]: both sides by turns; [`statistics`], [`cost`]: figures out of that.
//! - [`guest`]: what a real guest's programs get of disks that are served in seven ways.
//! - [`profile`]: what a request costs, by system calls and functions; [`growth`]: what it costs as data and disks grow.
//! - [`report`], [`document`], [`plot`]: the figures for people; [`machine`]: what they were measured on.

pub mod backfill;
pub mod ceph;
pub mod choice;
pub mod comes_back;
pub mod compare;
pub mod cost;
pub mod document;
pub mod front_end;
pub mod growth;
pub mod guest;
pub mod idle;
pub mod iscsi;
pub mod job;
pub mod load;
pub mod machine;
pub mod measure;
pub mod needs;
pub mod plot;
pub mod profile;
pub mod report;
pub mod side;
pub mod statistics;
pub mod storage_daemon;
pub mod tgt;
pub mod thin;
pub mod verify;
