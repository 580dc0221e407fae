//! How long planning takes, and how much memory: disks of 1 TiB over 20 datacenters, 10,000 of them unless said otherwise.
//!
//! ```sh
//! cargo run --release -p placement-service --example plan_scale [-- [--json] DISKS...]
//! ```
//!
//! prints a line for each kind of fleet: maps that never changed, maps in 64 pieces of which a part is
//! being moved, and the same with every VM having just arrived in another datacenter. With `--json` each as JSON, for
//! `cargo xtask bench --growth`, which draws them.

use placement_service::planner::{Plan, Planner, Subject};
use placement_service::policy::{
    Health, Home, HostPlace, Link, Policies, Policy, StorePlace, Topology, UnixSeconds,
};
use replicator::words::{
    DatacenterName, DiskId, DiskName, DiskRecord, Entry, Epoch, Extent, ExtentSize, Extents,
    Generation, History, HostName, MapRange, RackName, Revision, Seq, State, StoreId, Version,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const DATACENTERS: u32 = 20;
const HOSTS_EACH: u32 = 12;
const DISKS: u32 = 10_000;
const DISK_BYTES: u64 = 1 << 40;
const PIECES: u32 = 64;
const NOW: UnixSeconds = UnixSeconds(1_795_298_400);

/// Bytes that are allocated now, and the most that ever were since it was last set back.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is; counting touches no memory of
// the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let topology = topology();
    let file = "copies = 2\naway = { dc00 = 1 }\n[class.scratch]\ncopies = 1\naway = {}";
    let policies: Policies = (1..DATACENTERS)
        .map(|n| Policy::parse(datacenter(n), file).expect("a policy"))
        .collect();
    let (flags, asked): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .partition(|arg| arg.starts_with('-'));
    let json = flags == ["--json"];
    assert!(json || flags.is_empty(), "the only flag is --json");
    let asked: Vec<u32> = asked
        .iter()
        .map(|arg| arg.parse().expect("a number of disks"))
        .collect();
    for disks in if asked.is_empty() { vec![DISKS] } else { asked } {
        if !json {
            println!(
                "{disks} disks of 1 TiB, {DATACENTERS} datacenters, {} stores",
                topology.stores.len()
            );
            println!(
                "{:<34} {:>8} {:>12} {:>12} {:>10} {:>8}",
                "maps", "ranges", "as JSON", "in memory", "planning", "seconds"
            );
        }
        let measure = |what: &str, pieces, moved| {
            measure(what, disks, (&topology, &policies), pieces, moved, json);
        };
        measure("never moved", 1, false);
        measure("in 64 pieces, some being moved", PIECES, false);
        measure("the same, every VM just moved", PIECES, true);
    }
}

fn measure(
    what: &str,
    disks: u32,
    (topology, policies): (&Topology, &Policies),
    pieces: u32,
    moved: bool,
    json: bool,
) {
    let before = LIVE.load(Ordering::Relaxed);
    let records: Vec<DiskRecord> = (0..disks).map(|n| record(n, pieces)).collect();
    let records_bytes = LIVE.load(Ordering::Relaxed) - before;
    let encoded: usize = records
        .iter()
        .map(|record| serde_json::to_vec(record).expect("plain data").len())
        .sum();
    let ranges: usize = records.iter().map(|record| record.map.len()).sum();
    let homes: Vec<Home> = (0..disks)
        .map(|n| {
            let home = Home::new(datacenter(near_of(n)));
            let next = datacenter(1 + (near_of(n) % (DATACENTERS - 1)));
            if moved {
                home.moved_to(&next, NOW, Duration::ZERO)
            } else {
                home
            }
        })
        .collect();
    let allocated = BTreeMap::new();
    let subjects = records.iter().zip(&homes).map(|(record, home)| Subject {
        record,
        class: None,
        home,
        host: None,
        pins: &[],
        allocated: &allocated,
        retired: &[],
        leaving: &[],
        unreachable: &[],
    });

    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let started = Instant::now();
    let plans: Vec<Plan> = Planner::new(topology, policies, NOW).plan_all(subjects);
    let seconds = started.elapsed().as_secs_f64();
    let peak = PEAK.load(Ordering::Relaxed) - before;

    let changing = plans.iter().filter(|plan| !plan.is_empty()).count();
    if json {
        println!(
            r#"{{"disks":{disks},"maps":"{what}","ranges":{ranges},"encoded":{encoded},"memory":{records_bytes},"planning_memory":{peak},"seconds":{seconds:.3}}}"#
        );
        return;
    }
    println!(
        "{what:<34} {ranges:>8} {:>12} {:>12} {:>10} {seconds:>8.2}   ({changing} plans with steps)",
        mib(encoded),
        mib(records_bytes),
        mib(peak)
    );
}

fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

/// The datacenter of a disk's copies; the first keeps everybody's copies away.
fn near_of(disk: u32) -> u32 {
    1 + disk % (DATACENTERS - 1)
}

/// A disk whose pieces stand on different pairs of its datacenter's stores, and one copy away; each
/// eighth piece is on its way to another pair.
fn record(n: u32, pieces: u32) -> DiskRecord {
    let epoch = Epoch::first(Generation(0));
    let later = epoch.next(Generation(0));
    let extents = ExtentSize::DEFAULT.count(DISK_BYTES);
    let near = |i: u32| store(near_of(n), (n / DATACENTERS + i) % HOSTS_EACH);
    let away = store(0, n % HOSTS_EACH);
    let map = (0..pieces).map(|piece| {
        let first = extents / pieces * piece;
        let end = if piece + 1 == pieces {
            extents
        } else {
            extents / pieces * (piece + 1)
        };
        let pair = [near(piece % 3), near(3 + piece % 3), away];
        let history = if pieces > 1 && piece % 8 == 0 {
            History(vec![
                Entry::new(later, [near(7), near(8)]),
                Entry::whole(epoch, [away]),
                Entry::whole(epoch, [pair[0], pair[1]]).sealed(later),
            ])
        } else {
            History(vec![Entry::whole(epoch, pair)])
        };
        MapRange {
            extents: Extents::new(Extent(first), Extent(end)),
            history,
        }
    });
    let record = DiskRecord {
        id: DiskId::from_u128(u128::from(n) + 1),
        name: DiskName::new(format!("disk-{n}")).expect("a name"),
        bytes: DISK_BYTES,
        extent_size: ExtentSize::DEFAULT,
        copies: 2,
        revision: Revision(3),
        epoch: later,
        even_below: later,
        state: State::Closed {
            last: Version::new(later, Seq(1)),
            successor: None,
        },
        map: map.collect(),
    };
    assert_eq!(record.check(), Ok(()));
    record
}

fn topology() -> Topology {
    let mut topology = Topology::default();
    for n in 0..DATACENTERS {
        topology.datacenters.insert(datacenter(n));
        for to in 0..n {
            let link = Link {
                round_trip: Duration::from_millis(u64::from(n - to)),
                bytes_per_second: Some(1 << 30),
            };
            topology.links.insert((datacenter(n), datacenter(to)), link);
        }
        for i in 0..HOSTS_EACH {
            let host = HostName::new(format!("host-{n}-{i}")).expect("a name");
            let place = HostPlace {
                datacenter: Some(datacenter(n)),
                rack: Some(RackName::new(format!("r{}", i / 2)).expect("a name")),
            };
            topology.hosts.insert(host.clone(), place);
            let place = StorePlace {
                host,
                capacity_bytes: 1 << 50,
                used_bytes: 0,
                unwritten_bytes: 0,
                health: Health::Up,
                evacuating: false,
            };
            topology.stores.insert(store(n, i), place);
        }
    }
    topology
}

fn datacenter(n: u32) -> DatacenterName {
    DatacenterName::new(format!("dc{n:02}")).expect("a name")
}

fn store(datacenter: u32, host: u32) -> StoreId {
    StoreId::from_u128((u128::from(datacenter) << 32) | (u128::from(host) + 1))
}
