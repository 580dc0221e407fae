//! What a disk costs that nobody uses: memory of its node, and wake-ups.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::compare::{Compared, Row};
use super::cost;
use super::front_end::FrontEnd;
use super::job::Metric;
use super::load::Time;
use super::side::{CROWD, HOSTS, NEAR, Stage, crowd};
use crate::migration::figures::Bound;

const DISK_BYTES: &str = "1073741824";
/// Five seconds after it was opened a disk looks whether its copies agree; after that every ten minutes.
const SETTLE: Duration = Duration::from_secs(8);
const WATCHED: Duration = Duration::from_secs(5);
/// What a disk may occupy, in KiB.
const ALLOWED: f64 = 1024.0;

/// A node with 64 attached disks, each with a guest that does nothing, and the same node before.
pub fn idle(stage: &mut Stage, pairs: usize, _time: Time) -> Result<Vec<Compared>> {
    let (mut memory, mut wake_ups) = (Vec::new(), Vec::new());
    for _ in 0..pairs.min(3) {
        let mut own = stage.own_cluster(&HOSTS[..1], None)?;
        let pids = own.cluster.pids();
        let before = watch(&pids);
        let mut guests = Vec::new();
        for name in crowd() {
            own.cluster.create_disk(&name, DISK_BYTES, 1, NEAR)?;
            let socket = own.cluster.attach(&name, NEAR)?;
            guests.push(FrontEnd::connect(&socket, 1, 1, 4096)?);
        }
        let after = watch(&pids);
        let each = (after.resident_kib - before.resident_kib) / CROWD as f64;
        memory.push((each, ALLOWED));
        wake_ups.push((after.sleeps_a_second, before.sleeps_a_second));
    }
    Ok(vec![Compared {
        name: "idle-disks",
        what: "64 attached disks that nobody uses",
        sides: [
            "Ukai, 64 idle disks",
            "1 MiB a disk; the node without disks",
        ],
        pairs: Vec::new(),
        rows: vec![
            Row::new(Metric::IdleMemory, &memory, Some(Bound::AtMost(1.0))),
            Row::new(Metric::Sleeps, &wake_ups, Some(Bound::AtMost(1.1))),
        ],
    }])
}

struct Watched {
    resident_kib: f64,
    sleeps_a_second: f64,
}

fn watch(pids: &[u32]) -> Watched {
    thread::sleep(SETTLE);
    let before = cost::sleeps(pids);
    thread::sleep(WATCHED);
    let sleeps = cost::sleeps(pids).saturating_sub(before);
    Watched {
        resident_kib: cost::resident_kib(pids) as f64,
        sleeps_a_second: sleeps as f64 / WATCHED.as_secs_f64(),
    }
}
