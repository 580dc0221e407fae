//! Tests of the store: scripts, crashes, damage, cost.

mod bench;
mod clean;
mod crash;
mod damage;
mod digest;
mod files;
mod fill;
mod gone;
mod heal;
mod layout;
mod lazy;
mod live;
mod moves;
mod near_full;
mod old_format;
mod prewriting;
mod rng;
mod runs;
mod script;
mod scrub;
mod space;

use bench::{Bench, DISK, STORE};
