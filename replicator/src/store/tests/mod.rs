//! Tests of the store: scripts, crashes, damage, cost.

mod bench;
mod script;

use bench::{Bench, DISK};
