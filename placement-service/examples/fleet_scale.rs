//! What a fleet of attached disks costs the placement service while nothing happens to it, and what one more disk does:
//! 20 datacenters with 12 nodes each, 10,000 disks unless said otherwise.
//!
//! ```sh
//! cargo run --release -p placement-service --example fleet_scale [-- [--json] DISKS...]
//! ```
//!
//! The real service, over a catalog that counts who reads it: each read would be a question to etcd. Times are CPU
//! time of one thread, with the JSON of heartbeats and answers, without the network.

use placement_service::api::{Attach, CreateDisk};
use placement_service::brief::Brief;
use placement_service::catalog::{
    CachedCatalog, Catalog, CatalogError, KeyRevision, MemoryCatalog, Stored, Transaction,
};
use placement_service::node_protocol::{
    BackendReport, BackendState, DiskShown, DiskUse, Heartbeat, Lists, Request, Response,
    StoreReport,
};
use placement_service::policy::UnixSeconds;
use placement_service::service::{Moment, Service};
use replicator::net::identity::{Identity, Role};
use replicator::words::{
    BackendId, Change, DatacenterName, DiskId, DiskName, DiskRecord, ExtentSize, HostName, Life,
    Owner, RackName, StoreId,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const DATACENTERS: u32 = 20;
const HOSTS_EACH: u32 = 12;
const HOSTS: u32 = DATACENTERS * HOSTS_EACH;
const DISKS: u32 = 10_000;
/// How many are made, attached and opened besides.
const MORE: u32 = 20;
const DISK_BYTES: u64 = 1 << 30;
const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

/// Counts questions: gets, and pages of a prefix.
#[derive(Default)]
struct Counting {
    catalog: MemoryCatalog,
    reads: AtomicU64,
}

impl Catalog for Counting {
    fn get(&self, key: &str) -> Result<Option<Stored>, CatalogError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.catalog.get(key)
    }

    fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, Stored)>, CatalogError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.catalog.page(prefix, after)
    }

    fn snapshot(
        &self,
        each: &mut dyn FnMut(&str, &Stored) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        self.catalog.snapshot(each)
    }

    fn commit_at(&self, transaction: &Transaction) -> Result<Option<KeyRevision>, CatalogError> {
        self.catalog.commit_at(transaction)
    }
}

struct Fleet {
    catalog: Arc<Counting>,
    service: Service,
    now: Moment,
    disks: Vec<(DiskId, BackendId, DiskRecord)>,
    seen: Vec<u64>,
    briefs: Vec<Brief>,
    /// What the service took for the last heartbeats of all.
    beats: Duration,
}

/// CPU time of this thread, questions to the catalog.
#[derive(Clone, Copy)]
struct Cost {
    cpu: Duration,
    reads: u64,
}

fn main() {
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
        measure(disks, json);
    }
}

fn measure(disks: u32, json: bool) {
    let mut fleet = Fleet::new();
    fleet.beat_all();
    fleet.add(disks);
    // What is new is told, and heard of.
    fleet.beat_all();
    fleet.beat_all();
    let (mut up, mut down) = (0, 0);
    let beats = fleet.cost(|fleet| (up, down) = fleet.beat_all());
    fleet.now = Moment(Duration::from_secs(60));
    fleet.beat_all();
    let mut fresh = BackendId::random;
    let pass = fleet.cost(|fleet| fleet.service.pass(fleet.now, &mut fresh).expect("a pass"));
    let more = fleet.cost(|fleet| fleet.add(MORE));
    let each = f64::from(HOSTS);
    let (heartbeat_us, pass_seconds) = (micros(fleet.beats) / each, pass.cpu.as_secs_f64());
    let (up, down) = (up as f64 / each, down as f64 / each);
    let more_us = micros(more.cpu) / f64::from(MORE);
    let reads = beats.reads + pass.reads + more.reads;
    if json {
        println!(
            r#"{{"disks":{disks},"nodes":{HOSTS},"heartbeat_us":{heartbeat_us:.1},"up":{up:.0},"down":{down:.0},"pass_seconds":{pass_seconds:.3},"more_us":{more_us:.1},"reads":{reads}}}"#
        );
        return;
    }
    println!(
        "{disks} disks, attached to {HOSTS} nodes: a heartbeat takes {heartbeat_us:.0} us, {up:.0} bytes, and {down:.0} for the answer; a look at all disks {pass_seconds:.2} s; one more disk {more_us:.0} us; {reads} questions to the catalog"
    );
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl Fleet {
    fn new() -> Fleet {
        let catalog = Arc::new(Counting::default());
        let cached = CachedCatalog::new(catalog.clone()).expect("a catalog in memory");
        Fleet {
            service: Service::new(Arc::new(cached), UnixSeconds(1_795_298_400)).expect("a service"),
            catalog,
            now: Moment(Duration::from_secs(1)),
            disks: Vec::new(),
            seen: vec![0; HOSTS as usize],
            beats: Duration::ZERO,
            briefs: (0..HOSTS).map(|_| Brief::new(0)).collect(),
        }
    }

    fn cost(&mut self, run: impl FnOnce(&mut Fleet)) -> Cost {
        let (cpu, reads) = (cpu_time(), self.catalog.reads.load(Ordering::Relaxed));
        run(self);
        Cost {
            cpu: cpu_time() - cpu,
            reads: self.catalog.reads.load(Ordering::Relaxed) - reads,
        }
    }

    /// Disks of two copies, attached to a node each and open.
    fn add(&mut self, disks: u32) {
        for _ in 0..disks {
            let n = self.disks.len() as u32;
            let name = DiskName::new(format!("disk-{n}")).expect("a name");
            let (id, backend) = (DiskId::random(), BackendId::random());
            let create = CreateDisk {
                name: name.clone(),
                bytes: DISK_BYTES,
                copies: 2,
                extent_size: ExtentSize::DEFAULT,
                datacenter: Some(datacenter(n % HOSTS / HOSTS_EACH)),
                near: None,
                class: None,
            };
            self.service
                .create_disk(&create, id, self.now)
                .expect("room for a disk");
            let attach = Attach {
                node: host(n % HOSTS),
                take_over: false,
                wait_ms: None,
            };
            self.service
                .attach(&name, &attach, backend, self.now)
                .expect("a free disk");
            let record = self.open(id, backend, n % HOSTS);
            self.disks.push((id, backend, record));
        }
    }

    fn open(&self, disk: DiskId, backend: BackendId, n: u32) -> DiskRecord {
        let ask = |request| self.service.handle(&node(n), FROM, request, self.now);
        let Response::Record(found) = ask(Request::Record { disk }) else {
            panic!("no record");
        };
        let change = Change::Attach {
            owner: Owner {
                backend,
                life: Life(1),
                host: host(n),
            },
            sets: vec![],
        };
        let expected = found.record.revision;
        let swap = Request::Swap {
            disk,
            backend,
            expected,
            change,
        };
        match ask(swap) {
            Response::Swapped(granted) => granted.record,
            other => panic!("{other:?}"),
        }
    }

    /// Every node says once what it has. Returns the bytes that went to the service, and came from it.
    fn beat_all(&mut self) -> (usize, usize) {
        let (mut up, mut down) = (0, 0);
        let mut kept: BTreeMap<StoreId, Vec<&DiskRecord>> = BTreeMap::new();
        for (_, _, record) in &self.disks {
            for store in record.stores() {
                kept.entry(store).or_default().push(record);
            }
        }
        let whole: Vec<Heartbeat> = (0..HOSTS)
            .map(|n| {
                let kept = kept.get(&store(n)).map_or(&[][..], |kept| &kept[..]);
                self.heartbeat(n, kept)
            })
            .collect();
        let briefs = self.briefs.iter_mut();
        let heartbeats: Vec<Vec<u8>> = briefs
            .zip(whole)
            .map(|(brief, whole)| serde_json::to_vec(&brief.shorten(whole)).expect("plain data"))
            .collect();
        let before = cpu_time();
        for (n, heartbeat) in (0..HOSTS).zip(heartbeats) {
            up += heartbeat.len();
            let request: Request = serde_json::from_slice(&heartbeat).expect("our own words");
            let seen = self.seen[n as usize];
            // The server answers who has seen it all in a word.
            let answer = match self.service.handle(&node(n), FROM, request, self.now) {
                Response::Desired(desired) if desired.digest == seen => Response::Same,
                answer => answer,
            };
            down += serde_json::to_vec(&answer).expect("plain data").len();
            let brief = &mut self.briefs[n as usize];
            let desired = brief.hear(answer).expect("an answer to a heartbeat");
            self.seen[n as usize] = desired.expect("nothing was forgotten").digest;
        }
        self.beats = cpu_time() - before;
        (up, down)
    }

    fn heartbeat(&self, n: u32, kept: &[&DiskRecord]) -> Heartbeat {
        let mut report = StoreReport::of_new(store(n), 1 << 50);
        for record in kept {
            report.disks.push(DiskUse {
                disk: record.id,
                allocated_bytes: DISK_BYTES / 2,
            });
            report.shown.push(DiskShown {
                disk: record.id,
                epoch: record.epoch,
                revision: Some(record.revision),
            });
        }
        let backends = self.disks.iter().skip(n as usize).step_by(HOSTS as usize);
        let backends = backends.map(|(disk, backend, record)| BackendReport {
            disk: *disk,
            backend: *backend,
            state: BackendState::Ready {
                socket: format!("/run/ukai/disks/{}.sock", record.name),
                status: "serving".into(),
            },
            epoch: Some(record.epoch),
            stall: None,
            hindrance: None,
            verdict: None,
            unreachable: vec![],
            progress: None,
        });
        Heartbeat {
            datacenter: datacenter(n / HOSTS_EACH),
            rack: RackName::new(format!("r{}", n % HOSTS_EACH / 2)).expect("a name"),
            listen: "0.0.0.0:7000".parse().expect("an address"),
            stores: vec![report],
            backends: backends.collect(),
            links: vec![],
            seen: self.seen[n as usize],
            lists: Lists::default(),
        }
    }
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: it writes to `time` only.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(done, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn host(n: u32) -> HostName {
    HostName::new(format!("host-{n}")).expect("a name")
}

fn node(n: u32) -> Identity {
    Identity::new(Role::Node, host(n))
}

fn datacenter(n: u32) -> DatacenterName {
    DatacenterName::new(format!("dc{n:02}")).expect("a name")
}

fn store(n: u32) -> StoreId {
    StoreId::from_u128(u128::from(n) + 1)
}
