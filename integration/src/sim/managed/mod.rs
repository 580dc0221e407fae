//! Seeds whose orders come from the real placement service: its decisions, over a catalog as it fails
//! ([`catalog`]), asked by nodes that do what they are told ([`node`]), steered by operators and VM managers who
//! change their minds ([`operator`]). It dies, loses its machine and is restored from an old backup, or two of
//! it believe that they lead ([`lead`]).
//!
//! What the oracle compares with is the newest record that any catalog ever committed: the world keeps it in
//! its disks, as it does where orders are drawn.
//!
//! The service thinks in seconds, this world in milliseconds: its clock runs [`SCALE`] times as fast.

mod catalog;
mod lead;
mod node;
mod operator;
mod quiet;

pub(super) use node::Told;

use super::placement::EXTENT_BYTES;
use super::world::{Shape, What, World};
use catalog::{Ended, Fate, Shared, SimCatalog, Trouble};
use node::Node;
use placement_service::api::CreateDisk;
use placement_service::model::{Kept, load_disk};
use placement_service::node_protocol::{DropReplica, Refusal, Request, Response};
use placement_service::policy::UnixSeconds;
use placement_service::service::{Moment, Service};
use replicator::net::identity::{Identity, Role};
use replicator::store::LogPoint;
use replicator::words::{
    BackendId, Change, ChangeRefused, DatacenterName, DiskName, DiskRecord, ExtentSize, Generation,
    HostName, Revision,
};
use replicator::writer::SwapOutcome;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Heartbeats each second, and five of them missed, are 5 ms and 25 ms here. An ejection after 20 ms is one after 2 s
/// there, by a factor of 100: near enough.
const SCALE: u64 = 200;
/// Noon: no window is near.
const START: u64 = 1_795_262_400;
const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

pub struct Managed {
    /// Otherwise a file.
    pub etcd: bool,
    shared: Shared,
    /// Two processes that may lead; the second one only over etcd.
    led: [Option<Led>; 2],
    services: u64,
    nodes: Vec<Node>,
    backups: Vec<String>,
    /// The highest of the catalogs that were lost.
    generation: Generation,
    backends: u128,
    /// Its catalog was restored, and not compared with all stores since.
    pub in_doubt: bool,
    gathering: Option<u64>,
    /// As of the last pass in the quiet end: nothing is left to do.
    pub settled: bool,
    patient_until: u64,
    /// The number of the last one.
    moves_counted: u64,
    changes_seen: u64,
}

/// A service that leads, or believes so.
struct Led {
    service: Service,
    catalog: Arc<SimCatalog>,
    /// When it was started, in the world's microseconds.
    began: u64,
    number: u64,
}

pub(super) enum Placing {
    /// A node's heartbeat is due; by its machine.
    Beat(usize),
    /// What it is answered, in this process of the node.
    Told(usize, u64, Box<Told>),
    /// A node tells the records that its store keeps.
    Records(usize, u64, u64),
    /// A store deletes what it was told to.
    Drop(usize, u64, DropReplica),
    /// It may be durable by now.
    Dropped(usize, u64, DropReplica, LogPoint),
    /// The service of that number looks at the disks.
    Pass(u64),
    /// A service notices that it does not lead any more.
    Deposed(u64),
    /// Somebody begins to lead, if nobody does.
    Elect,
    Backup,
    /// An operator has the records rebuilt from the stores.
    Rebuild,
}

impl Placing {
    /// The machine whose node this happens in.
    pub fn machine(&self) -> Option<usize> {
        match self {
            Placing::Beat(machine)
            | Placing::Told(machine, ..)
            | Placing::Records(machine, ..)
            | Placing::Drop(machine, ..)
            | Placing::Dropped(machine, ..) => Some(*machine),
            Placing::Pass(_)
            | Placing::Deposed(_)
            | Placing::Elect
            | Placing::Backup
            | Placing::Rebuild => None,
        }
    }
}

impl Led {
    fn moment(&self, now: u64) -> Moment {
        Moment(Duration::from_micros((now - self.began) * SCALE))
    }
}

fn wall(now: u64) -> UnixSeconds {
    UnixSeconds(START + now * SCALE / 1_000_000)
}

pub(super) fn node_name(machine: usize) -> HostName {
    HostName::new(format!("m{machine}")).expect("a fine name")
}

fn site_name(site: usize) -> DatacenterName {
    DatacenterName::new(format!("dc{site}")).expect("a fine name")
}

fn by(change: &Change) -> BackendId {
    match change {
        Change::Attach { owner, .. } | Change::TakeOver { owner } => owner.backend,
        Change::Settle { by, .. }
        | Change::Eject { by, .. }
        | Change::Switch { by, .. }
        | Change::Complete { by, .. }
        | Change::Close { by, .. } => by.0,
    }
}

impl World {
    /// From now on the real service decides. Before anything else happened.
    pub(super) fn manage(&mut self, shape: Shape) {
        let nodes = (0..shape.stores).map(Node::new).collect();
        self.managed = Some(Box::new(Managed {
            etcd: self.dice.chance(0.5),
            shared: Shared::default(),
            led: [None, None],
            services: 0,
            nodes,
            backups: Vec::new(),
            generation: Generation(0),
            backends: 0xb000,
            in_doubt: false,
            gathering: None,
            settled: false,
            patient_until: 0,
            moves_counted: 0,
            changes_seen: 0,
        }));
        self.lead(0);
        for machine in (0..shape.stores).chain(0..shape.stores) {
            self.beat(machine);
        }
        for disk in 0..self.disks.len() {
            self.create(disk, &shape);
        }
        for site in 0..shape.sites {
            match self.quiet {
                true => self.usual_policy(site),
                false => self.apply_policy(site, shape.sites, false),
            }
        }
        for machine in 0..shape.stores {
            self.after(1_000, What::Placing(Placing::Beat(machine)));
        }
        self.after(10_000, What::Placing(Placing::Backup));
    }

    fn create(&mut self, disk: usize, shape: &Shape) {
        let id = self.disks[disk].id;
        let near = self.dice.range(0..shape.stores as u64) as usize;
        let request = CreateDisk {
            name: self.disk_name(disk),
            bytes: u64::from(shape.extents) * EXTENT_BYTES,
            copies: shape.copies as u8,
            extent_size: ExtentSize::new(EXTENT_BYTES).expect("a legal size"),
            datacenter: None,
            near: Some(node_name(near)),
            class: None,
        };
        let created = self.ask(0, |service, now| service.create_disk(&request, id, now));
        let created = created.expect("it leads");
        created.expect("there is room");
    }

    fn disk_name(&self, disk: usize) -> DiskName {
        self.disks[disk].placement.record.name.clone()
    }

    pub(super) fn managed(&mut self) -> &mut Managed {
        self.managed.as_mut().expect("a seed with a service")
    }

    /// This machine's node takes that service for the leader.
    pub(super) fn asks(&mut self, machine: usize, slot: usize) {
        self.managed().nodes[machine].asks = slot;
    }

    /// One call of a service, if there is one in that place, and if it lives to answer.
    fn ask<T>(&mut self, slot: usize, call: impl FnOnce(&Service, Moment) -> T) -> Option<T> {
        let often = self.faults.lose_swap * 0.15;
        let trouble = self.dice.chance(often).then(|| Trouble {
            after: self.dice.range(0..3) as u32,
            fate: match self.dice.range(0..4) {
                0 => Fate::Never,
                1 => Fate::Late,
                _ => Fate::Done,
            },
        });
        let now = self.now;
        let managed = self.managed.as_mut().expect("a seed with a service");
        let led = managed.led[slot].as_ref()?;
        led.catalog.begin_call(trouble);
        let answer = call(&led.service, led.moment(now));
        let Ended {
            struck,
            refused,
            lost,
        } = led.catalog.end_call();
        let number = led.number;
        let dies = struck && !managed.etcd;
        self.learn();
        if let Some(lost) = lost {
            self.violate(lost);
        }
        if refused {
            self.stats
                .count("service: commits of one that leads no more");
            self.after(0, What::Placing(Placing::Deposed(number)));
        }
        if struck {
            self.stats.count(match dies {
                true => "service: died amid a call",
                false => "service: commits of unknown outcome",
            });
        }
        if dies {
            self.service_dies(slot);
            return None;
        }
        Some(answer)
    }

    /// Takes in what the catalog says of the disks, where that is news.
    fn learn(&mut self) {
        let managed = self.managed.as_mut().expect("a seed with a service");
        let changes = managed.shared.changes.load(Ordering::Relaxed);
        if std::mem::replace(&mut managed.changes_seen, changes) == changes {
            return;
        }
        let kept = managed.shared.kept.clone();
        for disk in &mut self.disks {
            let record = load_disk(&*kept, disk.id).expect("the catalog is sound");
            let Some(record) = record.map(|kept| kept.value) else {
                continue;
            };
            let known = &disk.placement.record;
            if (record.epoch, record.revision) > (known.epoch, known.revision)
                || disk.placement.is_new
            {
                disk.placement.is_new = false;
                disk.placement.record = Arc::unwrap_or_clone(record);
            }
        }
    }

    /// The record as the catalog has it, which may be an older one than the newest that there was.
    pub(super) fn catalogued(&self, disk: usize) -> Option<DiskRecord> {
        let managed = self.managed.as_ref().expect("a seed with a service");
        let kept = load_disk(&*managed.shared.kept, self.disks[disk].id);
        kept.expect("the catalog is sound").map(Kept::into_value)
    }

    /// A node asks whom it takes for the leader, and another one if that one is not.
    fn ask_as_node(&mut self, machine: usize, request: &Request) -> Option<Response> {
        for _ in 0..2 {
            let who = Identity::new(Role::Node, node_name(machine));
            let slot = self.managed().nodes[machine].asks;
            let leads = self.leads(slot);
            let answer = self.ask(slot, |service, now| {
                service.handle(&who, FROM, request.clone(), now)
            });
            match answer {
                Some(Response::Refused(Refusal::NotLeader { .. })) | None => {
                    self.managed().nodes[machine].asks = 1 - slot;
                }
                Some(answer) => {
                    if !leads {
                        self.stats
                            .count("service: answers of one that leads no more");
                    }
                    return Some(answer);
                }
            }
        }
        None
    }

    /// What came of a swap, and what its asker is told of it.
    pub(super) fn swap_by_service(
        &mut self,
        host: usize,
        expected: Revision,
        change: &Change,
    ) -> (SwapOutcome, SwapOutcome) {
        let (machine, disk) = (self.hosts[host].machine, self.hosts[host].disk);
        let at = |w: &World| {
            let record = &w.disks[disk].placement.record;
            (record.epoch, record.revision)
        };
        let before = at(self);
        let request = Request::Swap {
            disk: self.disks[disk].id,
            backend: by(change),
            expected,
            change: change.clone(),
        };
        let told = match self.ask_as_node(machine, &request) {
            Some(Response::Swapped(granted)) => SwapOutcome::Done(Box::new(granted.record)),
            Some(Response::Conflict(granted)) => SwapOutcome::Conflict(Box::new(granted.record)),
            Some(Response::ChangeRefused(why)) => {
                if matches!(why, ChangeRefused::InDoubt { .. }) {
                    self.stats.count("service: epochs refused, being in doubt");
                }
                SwapOutcome::Refused(why)
            }
            Some(Response::Refused(Refusal::NotAllowed { .. } | Refusal::NoSuchDisk { .. })) => {
                SwapOutcome::Refused(ChangeRefused::NotOwner)
            }
            _ => SwapOutcome::Unknown,
        };
        let unknown = matches!(told, SwapOutcome::Unknown);
        if unknown && at(self) != before {
            let record = self.disks[disk].placement.record.clone();
            return (SwapOutcome::Done(Box::new(record)), told);
        }
        (told.clone(), told)
    }

    /// A disk's record, as a writer that inspects it hears it.
    pub(super) fn record_by_service(&mut self, host: usize) -> Option<Box<DiskRecord>> {
        let (machine, disk) = (self.hosts[host].machine, self.hosts[host].disk);
        let request = Request::Record {
            disk: self.disks[disk].id,
        };
        match self.ask_as_node(machine, &request) {
            Some(Response::Record(granted)) => Some(Box::new(granted.record)),
            _ => None,
        }
    }

    pub(super) fn placing(&mut self, placing: Placing) {
        match placing {
            Placing::Beat(machine) => {
                // A second there; where all is well nobody misses five of them.
                let wait = match self.quiet {
                    true => self.dice.range(1_500..4_500),
                    false => self.dice.wait(2_500),
                };
                self.after(wait, What::Placing(Placing::Beat(machine)));
                self.beat(machine);
            }
            Placing::Told(machine, process, told) => self.told(machine, process, *told),
            Placing::Records(machine, process, round) => self.tell_records(machine, process, round),
            Placing::Drop(machine, process, drop) => self.drop_told(machine, process, drop),
            Placing::Dropped(machine, process, drop, point) => {
                self.drop_durable(machine, process, drop, point);
            }
            Placing::Pass(number) => self.pass(number),
            Placing::Deposed(number) => self.deposed(number),
            Placing::Elect => self.elect(),
            Placing::Backup => self.back_up(),
            Placing::Rebuild => self.rebuild(),
        }
    }
}
