//! The placement service: which disks there are, where their extents stand, and who may write them.
//!
//! It alone issues epochs, each by one compare-and-swap of a disk's record (I8). Nothing in the data
//! path waits for it while write sets are healthy: guests do not notice that it is away.
//!
//! - [`catalog`]: what must not be lost: keys, values, and compare-and-swap over them.
//! - [`model`]: what the keys mean: datacenters, hosts, stores, disks, attachments.
//! - [`backup`]: a copy of the catalog, and putting it back.
//! - [`choose`]: where a new disk's copies go; a pure function.
//! - [`policy`] and [`planner`]: what operators promise, and the steps that lead there; pure, too.
//! - [`service`]: every decision, as calls that are given the time and who asks.
//! - [`node_protocol`] with [`client`] and [`brief`], and [`api`]: what nodes and operators say to it.
//! - [`server`]: the shells around it: QUIC for nodes, HTTPS for operators.

pub mod api;
pub mod backup;
pub mod brief;
pub mod catalog;
pub mod choose;
pub mod client;
mod frame;
pub mod fuzz;
mod granted;
pub mod model;
pub mod node_protocol;
pub mod planner;
pub mod policy;
pub mod server;
pub mod service;
pub mod service_name;
mod text;
