//! The way with Ukai: the disk is attached at both hosts, the VM moves, and its blocks follow it.
//!
//! ```text
//!  source QEMU     node tokyo-1         link          node osaka-1        destination QEMU
//!   vhost-user ──── open, epoch E                      standby ──────────── -incoming
//!   migrate ── TCP ──────────────────────────────────────────────────────> memory
//!   stopped: drained, synced, E closed                 epoch E+1 ────────── runs
//!                   sealed copies ─── QUIC ──────────> near copies fill, hot blocks first
//!                   dropped                            all near
//! ```

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use placement_service::api::{Move, MoveState, Moves};
use serde_json::Value;

use super::course::{Course, Gauge, Marks};
use super::traveller::Traveller;
use super::workload::Workload;
use crate::cluster::{Cluster, TWO_AND_TWO};
use crate::guest::ticks::{Stamp, Ticks};
use crate::processes::{Lifetime, Scratch};
use crate::relay::Link;

/// The whole disk over a slow link.
const FOLLOW_BOUND: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(250);

/// Moves a guest on a disk with the contents of `image` once over `link`.
pub fn run(scratch: &Scratch, workload: &Workload, image: &Path, link: Link) -> Result<Course> {
    let cluster = Cluster::start_across(scratch, &TWO_AND_TWO, Lifetime::Ours, Some(link))?;
    let size = workload.disk_bytes.to_string();
    cluster.create_disk("web1", &size, 2, "tokyo-1")?;
    let image = image.to_str().context("a path of text")?;
    cluster.ukai(&["disk", "import", "web1", image])?;
    let ticks = Ticks::listen()?;
    let config = workload.config(&ticks);
    let mut traveller = Traveller::board(scratch, &cluster, "web1", "tokyo-1", &config)?;
    let writer = workload.start(traveller.guest())?;
    let mut course = record(&cluster, &mut traveller, "osaka-1", &ticks, workload)?;
    course.verified = writer.finish()?;
    traveller.shutdown()?;
    Ok(course)
}

/// Moves a guest whose writer runs, with its disk, to the other datacenter, and records it.
pub fn record(
    cluster: &Cluster,
    traveller: &mut Traveller,
    to: &'static str,
    ticks: &Ticks,
    workload: &Workload,
) -> Result<Course> {
    let allocated_bytes = workload.full_bytes;
    let gauge = Gauge::start(cluster.link()?.datagrams());
    let begin = Stamp::now();
    thread::sleep(workload.quiet);
    let go = Stamp::now();
    let destination = traveller.prepare(cluster, to)?;
    let may_move = Stamp::now();
    traveller.depart(cluster, destination, to)?;
    let arrived = Stamp::now();
    let (datacenter, _) = to.split_once('-').context("hosts are named so")?;
    let followed = follow(cluster, "web1", datacenter)?;
    thread::sleep(workload.quiet);
    let end = Stamp::now();
    Ok(Course {
        name: "Ukai",
        operations: ticks.operations()?,
        marks: Marks {
            begin,
            go,
            may_move,
            arrived,
            settled: followed.near,
            dropped: followed.dropped,
            end,
        },
        crossed: gauge.samples(),
        near_reads: followed.near_reads,
        allocated_bytes,
        read_far_bytes: followed.read_through_bytes,
        verified: String::new(),
    })
}

/// How a disk came after its guest.
pub struct Followed {
    pub near: Stamp,
    /// The copies that it left behind are deleted.
    pub dropped: Stamp,
    pub near_reads: Vec<(Stamp, f64)>,
    pub read_through_bytes: u64,
}

/// Watches the disk's move until all is near and what it left behind is deleted.
pub fn follow(cluster: &Cluster, disk: &str, datacenter: &str) -> Result<Followed> {
    let deadline = Instant::now() + FOLLOW_BOUND;
    let (mut near, mut near_reads) = (None, Vec::new());
    loop {
        if near.is_none() && is_near(&cluster.ukai(&["disk", "map", disk])?, datacenter)? {
            near = Some(Stamp::now());
        }
        let moves = moves(cluster)?;
        let this = newest(&moves, disk);
        if let Some(permille) = this.and_then(|this| this.progress.near_reads_permille)
            && near.is_none()
        {
            near_reads.push((Stamp::now(), f64::from(permille) / 1000.0));
        }
        if let (Some(near), Some(this)) = (near, this)
            && this.state == MoveState::Done
        {
            return Ok(Followed {
                near,
                dropped: Stamp::now(),
                near_reads,
                read_through_bytes: this.progress.read_through_bytes,
            });
        }
        if Instant::now() >= deadline {
            bail!("{disk} is not in {datacenter} in time: {this:?}");
        }
        thread::sleep(POLL);
    }
}

pub fn moves(cluster: &Cluster) -> Result<Moves> {
    Ok(serde_json::from_value(cluster.ukai(&["moves"])?)?)
}

/// The disk's last move, under way or ended.
pub fn newest<'a>(moves: &'a Moves, disk: &str) -> Option<&'a Move> {
    let all = moves.under_way.iter().chain(&moves.ended);
    all.filter(|one| one.disk.to_string() == disk)
        .max_by_key(|one| one.number)
}

/// Waits until the disk's map names stores of that datacenter only, each with everything.
pub fn wait_near(cluster: &Cluster, disk: &str, datacenter: &str) -> Result<Stamp> {
    let deadline = Instant::now() + FOLLOW_BOUND;
    loop {
        let map = cluster.ukai(&["disk", "map", disk])?;
        if is_near(&map, datacenter)? {
            return Ok(Stamp::now());
        }
        if Instant::now() >= deadline {
            bail!("{disk} is not in {datacenter} in time: {map}");
        }
        thread::sleep(POLL);
    }
}

/// As `disk map` shows it.
pub fn is_near(map: &Value, datacenter: &str) -> Result<bool> {
    let stores = map["stores"].as_array().context("a map lists stores")?;
    let ranges = map["ranges"].as_array().context("a map lists ranges")?;
    // Hosts are named after their datacenters here.
    let here = |store: &Value| {
        let host = store["host"].as_str();
        host.is_some_and(|host| host.starts_with(datacenter))
    };
    let mut entries = ranges
        .iter()
        .flat_map(|range| range["history"].as_array().into_iter().flatten());
    Ok(stores.iter().all(here) && entries.all(|entry| entry["whole"] != false))
}
