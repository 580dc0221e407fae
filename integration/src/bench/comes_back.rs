//! A store that comes back after writes went on without it: how long until the disk has all its copies again, by how
//! much was written meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::backfill::{UNLIMITED, fill};
use super::compare::{Compared, Row};
use super::front_end::{FrontEnd, Request};
use super::job::Metric;
use super::load::{Data, Time};
use super::side::{FAR, HOSTS, Stage};
use crate::cluster::wait_for;

const BLOCK: usize = 4096;
/// Blocks at once. The first of them have the store that is away ejected.
const AT_ONCE: u16 = 32;
const BOUND: Duration = Duration::from_secs(120);
/// The share of the disk that is written, in thousandths.
const CHANGED: [(&str, &str, u64); 3] = [
    (
        "comes-back-0",
        "a store comes back, nothing was written but 32 blocks",
        0,
    ),
    (
        "comes-back-10",
        "a store comes back, one block in a hundred was written",
        10,
    ),
    (
        "comes-back-100",
        "a store comes back, one block in ten was written",
        100,
    ),
];

/// Against one that missed a write of every block.
pub fn store(stage: &mut Stage, pairs: usize, _time: Time) -> Result<Vec<Compared>> {
    let bytes = stage.disk_bytes();
    let mut took = vec![Vec::new(); CHANGED.len()];
    for pair in 0..pairs.min(3) {
        let mut own = stage.own_cluster(&HOSTS, None)?;
        own.cluster.apply_policy("tokyo", UNLIMITED)?;
        let name = format!("back-{pair}");
        let socket = fill(&own, &name, 2, bytes, Data::Random)?;
        let mut away = |thousandths| -> Result<f64> {
            own.cluster.kill_node_9(FAR)?;
            // Who has the disk open repairs it.
            let _guest = overwrite(&socket, bytes, thousandths)?;
            own.cluster.start_node(FAR)?;
            let began = Instant::now();
            wait_for("all copies", BOUND, || {
                let status = own.cluster.ukai(&["status"])?;
                Ok((status["disks_short"] == 0).then_some(()))
            })?;
            Ok(began.elapsed().as_secs_f64())
        };
        let mut some = Vec::new();
        for (.., thousandths) in CHANGED {
            some.push(away(thousandths)?);
        }
        let all = away(1000)?;
        for (took, some) in took.iter_mut().zip(some) {
            took.push((some, all));
        }
    }
    let jobs = CHANGED.into_iter().zip(took);
    Ok(jobs
        .map(|((name, what, _), took)| Compared {
            name,
            what,
            sides: ["Ukai", "Ukai, every block was written"],
            pairs: Vec::new(),
            rows: vec![Row::new(Metric::Seconds, &took, None)],
        })
        .collect())
}

/// Blocks all over the disk, at the same distance, and the flush after them. The first ones wait for the ejection.
fn overwrite(socket: &Path, bytes: u64, thousandths: u64) -> Result<FrontEnd> {
    let blocks = bytes / BLOCK as u64;
    let wanted = (blocks * thousandths / 1000).max(u64::from(AT_ONCE));
    let mut guest = FrontEnd::connect(socket, 1, AT_ONCE, BLOCK)?;
    let queue = &mut guest.queues()[0];
    let mut next = 0;
    while next < wanted {
        let now = (wanted - next).min(u64::from(AT_ONCE)) as u16;
        for slot in 0..now {
            let block = (next + u64::from(slot)) * blocks / wanted;
            queue.buffer(slot).fill(block as u8 ^ thousandths as u8);
            let offset = block * BLOCK as u64;
            queue.submit(slot, Request::Write { offset })?;
        }
        answered(queue, now)?;
        next += u64::from(now);
    }
    queue.submit(0, Request::Flush)?;
    answered(queue, 1)?;
    Ok(guest)
}

fn answered(queue: &mut super::front_end::Queue, requests: u16) -> Result<()> {
    queue.announce()?;
    let (mut done, mut left) = (Vec::new(), usize::from(requests));
    while left > 0 {
        queue.wait_until(&mut done, Some(Instant::now() + BOUND))?;
        ensure!(!done.is_empty(), "{left} requests are not answered");
        left -= done.len();
    }
    Ok(())
}
