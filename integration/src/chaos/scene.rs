//! Where it happens: placement services and five nodes in two datacenters, a disk with copies in both,
//! and a guest that uses it. Carries out [`Step`]s.

use std::fs;
use std::mem;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use placement_service::api::{DiskMap, Evacuation, Status, Store, StoreOrderKind};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::damage;
use super::fault::{ONE_COPY, REPAIR_AFTER, Step, Who};
use super::left_behind::{LeftBehind, Noticed};
use super::room::Room;
use super::story::Times;
use super::tenant::{DISK, DISK_BYTES, Lost, Tenant};
use crate::cluster::{Cluster, Ground, NodeSpec, SERVICES};
use crate::etcd::{EtcdMembers, MEMBERS};
use crate::guest::ticks::Ticks;
use crate::networks::Networks;
use crate::processes::{Lifetime, Scratch, ask};
use crate::relay::{Conditions, Link};

/// A datacenter that can repair by itself, and another one that can too.
const NODES: [NodeSpec; 5] = [
    node("tokyo-1", "tokyo", "t1"),
    node("tokyo-2", "tokyo", "t2"),
    node("tokyo-3", "tokyo", "t3"),
    node("osaka-1", "osaka", "o1"),
    node("osaka-2", "osaka", "o2"),
];
/// Segments are reserved in it, not written: most of it never exists.
const ROOM_BYTES: u64 = 3 << 30;
const COPY_TRIES: u32 = 5;
const COPY_BOUND: Duration = Duration::from_secs(120);
/// Without networks of their own the datacenters are this far apart.
const DELAY: Duration = Duration::from_millis(2);

const fn node(host: &'static str, datacenter: &'static str, rack: &'static str) -> NodeSpec {
    NodeSpec {
        host,
        datacenter,
        rack,
    }
}

pub struct Scene<'a> {
    scratch: &'a Scratch,
    pub ticks: Ticks,
    tenant: Option<Tenant>,
    lost: Option<Lost>,
    left: Option<LeftBehind>,
    /// Lives of the VM that were left behind.
    fenced: Vec<u64>,
    pub cluster: Cluster,
    /// Of the stores of the first datacenter; empty without root. After the processes that use them.
    rooms: Vec<(&'static str, Room)>,
    dice: ChaCha8Rng,
}

/// Who is who, when a turn begins.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    pub writer: &'static str,
    pub near: &'static str,
    pub far: &'static str,
}

impl Cast {
    pub fn host(&self, who: Who) -> &'static str {
        match who {
            Who::Writer => self.writer,
            Who::Near => self.near,
            Who::Far => self.far,
        }
    }
}

/// What the placement service says.
pub struct Sight {
    pub status: Status,
    /// Hosts whose stores hold every extent of the disk, whole or not, as members.
    pub members: Vec<String>,
}

impl Sight {
    pub fn all_is_well(&self) -> bool {
        let status = &self.status;
        status.hosts_up == status.hosts
            && status.stores_up == status.stores
            && status.disks_short == 0
            && status.moving.is_empty()
            && status.problems.is_empty()
    }
}

impl<'a> Scene<'a> {
    /// With `etcd` the catalog is in one of three members, and as many placement services run.
    pub fn set(scratch: &'a Scratch, seed: u64, times: Times, etcd: bool) -> Result<Scene<'a>> {
        let rooted = Networks::possible().is_ok();
        let (mut rooms, mut networks, mut link) = (Vec::new(), None, None);
        let mut members = None;
        if rooted {
            Room::keep_mounts_to_ourselves()?;
            for spec in NODES.iter().filter(|spec| spec.datacenter == "tokyo") {
                let image = scratch.path(&format!("{}.img", spec.host));
                let room = Room::new(&image, &scratch.path(spec.host), ROOM_BYTES)?;
                rooms.push((spec.host, room));
            }
            let hosts = NODES.iter().map(|spec| spec.host);
            let laid = Networks::lay(hosts.chain(SERVICES))?;
            if etcd {
                members = Some(EtcdMembers::start(scratch, Some(&laid))?);
            }
            networks = Some(laid);
        } else {
            link = Some(Link::new(Conditions::fixed(DELAY)));
        }
        let ground = Ground {
            link,
            networks,
            eject_after: Some(times.eject_after),
            etcd: members,
        };
        let mut cluster = Cluster::start_on(scratch, &NODES, Lifetime::Ours, ground)?;
        cluster.run_a_copy(scratch)?;
        cluster.wait_up()?;
        apply_policies(&cluster, REPAIR_AFTER, ONE_COPY)?;
        cluster.create_disk(DISK, &DISK_BYTES.to_string(), 2, "tokyo-1")?;
        let ticks = Ticks::listen()?;
        let tenant = Tenant::move_in(scratch, &cluster, &ticks, "tokyo-1")?;
        Ok(Scene {
            scratch,
            ticks,
            tenant: Some(tenant),
            lost: None,
            left: None,
            fenced: Vec::new(),
            cluster,
            rooms,
            dice: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    /// None while the VM is lost.
    pub fn tenant(&mut self) -> Option<&mut Tenant> {
        self.tenant.as_mut()
    }

    /// All that all copies have is read and compared.
    fn verify(&self) -> Result<()> {
        let found = self.cluster.ukai(&["disk", "verify", DISK, "--deep"])?;
        ensure!(found["good"] == true, "the copies: {found}");
        Ok(())
    }

    /// The end of it: the copies agree, and what the guest's writer says.
    pub fn strike(mut self) -> Result<String> {
        self.verify()?;
        let tenant = self.tenant.take().context("the VM is lost")?;
        tenant.move_out(self.scratch, &self.fenced)
    }

    /// None while the placement service does not answer.
    pub fn look(&self) -> Option<Sight> {
        let map = self.cluster.ukai(&["disk", "map", DISK]).ok()?;
        let map: DiskMap = serde_json::from_value(map).ok()?;
        // After the map: copies that are not missing, though a member is none any more, were made meanwhile.
        let status = serde_json::from_value(self.cluster.ukai(&["status"]).ok()?).ok()?;
        let everywhere = |id| {
            map.ranges.iter().all(|range| {
                let live = range.history.iter().filter(|entry| entry.until.is_none());
                live.into_iter().any(|entry| entry.stores.contains(&id))
            })
        };
        let members = map.stores.iter().filter(|store| everywhere(store.id));
        let members = members.filter_map(|store| Some(store.host.as_ref()?.to_string()));
        Some(Sight {
            status,
            members: members.collect(),
        })
    }

    pub fn wait_well(&mut self, bound: Duration) -> Result<Sight> {
        let deadline = Instant::now() + bound;
        loop {
            let sight = self.look();
            match sight {
                // What comes next wants somebody to happen to.
                Some(sight) if sight.all_is_well() && self.cast(&sight).is_ok() => {
                    return Ok(sight);
                }
                _ if Instant::now() < deadline => {}
                Some(sight) => bail!("not well in time: {:?}", sight.status),
                None => bail!("the placement service does not answer"),
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    pub fn cast(&self, sight: &Sight) -> Result<Cast> {
        let writer = self.tenant.as_ref().context("the VM is lost")?.host();
        let home = datacenter(writer);
        let member = |near: bool| {
            let hosts = NODES.iter().map(|spec| spec.host);
            let mut fit =
                hosts.filter(|host| (datacenter(host) == home) == near && *host != writer);
            fit.find(|host| sight.members.iter().any(|member| member == host))
        };
        Ok(Cast {
            writer,
            near: member(true).context("no member near the writer")?,
            far: member(false).context("no member far from the writer")?,
        })
    }

    pub fn perform(&mut self, step: Step, cast: &Cast) -> Result<Option<Outcome>> {
        let host = |who| cast.host(who);
        match step {
            Step::Kill(who) => self.cluster.kill_node_9(host(who))?,
            Step::Start(who) => self.cluster.start_node(host(who))?,
            Step::Pause(who) => self.cluster.pause_node(host(who))?,
            Step::Resume(who) => self.cluster.resume_node(host(who))?,
            Step::Upgrade(who) => {
                self.cluster.replace_program()?;
                self.cluster.upgrade_node(host(who))?;
            }
            Step::KillPlacement => self.kill_placement()?,
            Step::KillLeader => {
                let leader = self.cluster.leader()?.context("nobody leads")?;
                self.cluster.kill_service_9(&leader)?;
            }
            Step::StartPlacement => self.start_placement()?,
            Step::KillEtcd(members) => self.kill_etcd(members)?,
            Step::StartEtcd => self.start_etcd()?,
            Step::KillAll => {
                if self.cluster.etcd().is_ok() {
                    self.kill_etcd(MEMBERS)?;
                }
                self.kill_placement()?;
                for spec in &NODES {
                    self.cluster.kill_node_9(spec.host)?;
                }
            }
            Step::StartAll => {
                if self.cluster.etcd().is_ok() {
                    self.start_etcd()?;
                }
                self.start_placement()?;
                for spec in &NODES {
                    self.cluster.start_node(spec.host)?;
                }
            }
            Step::CutLink => self.link(|networks, from, to| networks.cut(from, to), Link::cut)?,
            Step::HealLink => {
                self.link(|networks, from, to| networks.heal(from, to), Link::heal)?
            }
            Step::CutOff(who) => self.networks()?.unplug(host(who))?,
            Step::Hear(who) => self.networks()?.cut(cast.writer, host(who))?,
            Step::Speak(who) => self.networks()?.cut(host(who), cast.writer)?,
            Step::Heal(who) => {
                let networks = self.networks()?;
                networks.plug(host(who))?;
                networks.heal(cast.writer, host(who))?;
                networks.heal(host(who), cast.writer)?;
            }
            Step::FillStore(who) => {
                self.room(host(who))?.fill()?;
                self.tenant.as_mut().context("the VM is lost")?.burst()?;
            }
            // Whoever waits for it looks at what is said.
            Step::AwaitFull(_) | Step::AwaitCopies(_) | Step::AwaitEmpty(_) | Step::AwaitVm => {}
            Step::RepairAfter(time) => apply_policies(&self.cluster, time, ONE_COPY)?,
            Step::MinCopies(least) => apply_policies(&self.cluster, REPAIR_AFTER, least)?,
            Step::DeclareLost(who) => _ = self.cluster.ukai(&["store", "lost", host(who)])?,
            Step::DeclareFound(who) => _ = self.cluster.ukai(&["store", "found", host(who)])?,
            Step::PlanEvacuation(who) => self.plan_evacuation(host(who))?,
            Step::Evacuate(who) => _ = self.cluster.ukai(&["store", "evacuate", host(who)])?,
            Step::CancelEvacuation(who) => {
                let cancel = ["store", "evacuate", host(who), "--cancel"];
                _ = self.cluster.ukai(&cancel)?;
            }
            Step::FreeStore(who) => self.room(host(who))?.free()?,
            Step::Freeze(who) => self.room(host(who))?.freeze()?,
            Step::Thaw(who) => self.room(host(who))?.thaw()?,
            Step::CopyStore { of, to } => {
                let (from, to) = (host(of), host(to));
                let to = self.cluster.store_dir(to).with_extension("copy");
                copy(&self.cluster.store_dir(from), &to)?;
            }
            Step::SwapStore(who) => {
                let store = self.cluster.store_dir(host(who));
                fs::rename(&store, store.with_extension("kept"))?;
                fs::rename(store.with_extension("copy"), &store)?;
            }
            Step::UnswapStore(who) => {
                let store = self.cluster.store_dir(host(who));
                fs::remove_dir_all(&store)?;
                fs::rename(store.with_extension("kept"), &store)?;
            }
            Step::Verify => self.verify()?,
            Step::Damage(who) => {
                let seed = self.dice.random();
                damage::flip(&self.cluster.store_dir(host(who)), seed)?;
            }
            Step::LoseWriter => {
                let tenant = self.tenant.take().context("the VM is lost already")?;
                self.cluster.kill_node_9(cast.writer)?;
                self.lost = Some(tenant.lose());
                self.ticks.guest_is_gone();
            }
            Step::TakeOver => return self.take_over(cast.near).map(Some),
            Step::LeaveVm => {
                let tenant = self.tenant.take().context("the VM is lost already")?;
                let ticks = mem::replace(&mut self.ticks, Ticks::listen()?);
                self.left = Some(LeftBehind::new(tenant, ticks));
            }
            Step::EndVm => {
                let left = self.left.take().context("no VM is left behind")?;
                return Ok(Some(Outcome::Noticed(left.end()?)));
            }
        }
        Ok(None)
    }

    /// Whether no copy is missing, and others have those that the store had.
    pub fn has_copies_without(&self, host: &str) -> Result<bool> {
        let Some(sight) = self.look() else {
            return Ok(false);
        };
        let near = self.cast(&sight).is_ok_and(|cast| cast.near != host);
        Ok(near && sight.status.disks_short == 0)
    }

    /// It says where the disk's copy would go, and changes nothing.
    fn plan_evacuation(&self, host: &str) -> Result<()> {
        let plan = ["store", "evacuate", host, "--plan"];
        let plan: Evacuation = serde_json::from_value(self.cluster.ukai(&plan)?)?;
        let disk = plan.disks.iter().find(|one| one.disk.to_string() == DISK);
        let goes = disk.is_some_and(|disk| !disk.to.is_empty() && disk.bytes > 0);
        ensure!(goes && plan.stuck.is_empty(), "the plan: {plan:?}");
        let order = self.store(host)?.order;
        ensure!(order.is_none(), "only planned: {order:?}");
        Ok(())
    }

    /// Whether a store that is being evacuated has nothing left.
    pub fn is_empty(&self, host: &str) -> Result<bool> {
        let store = self.store(host)?;
        let order = store.order.context("nobody has the store emptied")?;
        Ok(order.kind == StoreOrderKind::Evacuate && store.task.disks_left == 0)
    }

    /// As `ukai store list` has it.
    fn store(&self, host: &str) -> Result<Store> {
        let stores = self.cluster.ukai(&["store", "list"])?;
        let stores: Vec<Store> = serde_json::from_value(stores)?;
        let mut stores = stores.into_iter();
        let store = stores.find(|store| store.host.to_string() == host);
        store.with_context(|| format!("{host} has no store"))
    }

    fn kill_placement(&mut self) -> Result<()> {
        for host in self.cluster.services_that_run(true) {
            self.cluster.kill_service_9(host)?;
        }
        Ok(())
    }

    fn start_placement(&mut self) -> Result<()> {
        for host in self.cluster.services_that_run(false) {
            self.cluster.start_service(host)?;
        }
        Ok(())
    }

    fn kill_etcd(&mut self, members: usize) -> Result<()> {
        let etcd = self.cluster.etcd_mut()?;
        let mut running = etcd.members(true);
        running.shuffle(&mut self.dice);
        for member in running.into_iter().take(members) {
            etcd.kill_9(member)?;
        }
        Ok(())
    }

    fn start_etcd(&mut self) -> Result<()> {
        let etcd = self.cluster.etcd_mut()?;
        for member in etcd.members(false) {
            etcd.start_member(member)?;
        }
        Ok(())
    }

    /// What the store gives back meanwhile is taken as well, and what the guest writes does not end.
    pub fn keep_full(&mut self, who: Who, cast: &Cast) -> Result<()> {
        self.room(cast.host(who))?.fill()?;
        self.tenant
            .as_mut()
            .context("the VM is lost")?
            .keep_bursting()
    }

    fn take_over(&mut self, host: &'static str) -> Result<Outcome> {
        let begun = Instant::now();
        let attached =
            self.cluster
                .ukai(&["disk", "attach", DISK, "--node", host, "--take-over"])?;
        let socket = attached["socket"]
            .as_str()
            .context("attach names no socket")?;
        // It is served there at once, before a VM has booted so far.
        ensure!(!attached["open"].is_null(), "not taken over: {attached}");
        let attached = begun.elapsed();
        let lost = match &mut self.left {
            Some(left) => {
                let lost = left.is_fenced();
                self.fenced.push(lost.life);
                lost
            }
            None => self.lost.take().context("no VM is lost")?,
        };
        let socket = PathBuf::from(socket);
        let tenant = Tenant::move_after(self.scratch, socket, &self.ticks, host, &lost)?;
        self.tenant = Some(tenant);
        Ok(Outcome::TakenOver {
            attached,
            running: begun.elapsed(),
        })
    }

    fn link(
        &self,
        change: impl Fn(&Networks, &str, &str) -> Result<()>,
        relay: impl Fn(&Link),
    ) -> Result<()> {
        let Ok(networks) = self.networks() else {
            relay(self.cluster.link()?);
            return Ok(());
        };
        // The placement services stand with the first datacenter.
        let places = NODES.iter().map(|spec| (spec.host, spec.datacenter));
        let control = SERVICES.iter().map(|host| (*host, NODES[0].datacenter));
        let places: Vec<_> = places.chain(control).collect();
        for (from, here) in &places {
            for (to, there) in &places {
                if here != there {
                    change(networks, from, to)?;
                }
            }
        }
        Ok(())
    }

    fn networks(&self) -> Result<&Networks> {
        let networks = self.cluster.networks();
        networks.context("these hosts have no networks of their own")
    }

    fn room(&self, host: &str) -> Result<&Room> {
        let room = self.rooms.iter().find(|(of, _)| *of == host);
        let (_, room) = room.with_context(|| format!("{host} has no small file system"))?;
        Ok(room)
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        for (_, room) in &self.rooms {
            // Before the processes end: who stands still there cannot be killed. Most are not frozen.
            let _ = room.thaw();
        }
    }
}

/// What there is to tell of a step.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// How long a take-over took.
    TakenOver {
        /// Until the new host had the disk.
        attached: Duration,
        /// Until a VM had booted there, checked all that was promised, and writes.
        running: Duration,
    },
    /// By the VM that was left behind.
    Noticed(Noticed),
}

fn apply_policies(cluster: &Cluster, repair_after: Duration, min_copies: u8) -> Result<()> {
    let seconds = repair_after.as_secs();
    for (datacenter, other) in [("tokyo", "osaka"), ("osaka", "tokyo")] {
        let policy = format!(
            "hold-down = \"0s\"\nrepair-after = \"{seconds}s\"\nmin-copies = {min_copies}\naway = {{ {other} = 1 }}\n"
        );
        cluster.apply_policy(datacenter, &policy)?;
    }
    Ok(())
}

/// Hosts are named after their datacenters here.
fn datacenter(host: &str) -> &str {
    host.split_once('-')
        .map_or(host, |(datacenter, _)| datacenter)
}

/// As a snapshot would have it, nearly: what the checkpoint says is there, or comes after it. A checkpoint
/// that is replaced meanwhile makes it begin again.
fn copy(from: &Path, to: &Path) -> Result<()> {
    for _ in 0..COPY_TRIES {
        let mut command = Command::new("cp");
        command.args(["-a", "--sparse=always"]).arg(from).arg(to);
        let answer = ask("cp", command, COPY_BOUND)?;
        if answer.status.success() {
            return Ok(());
        }
        fs::remove_dir_all(to)?;
    }
    bail!("{} changes too fast to be copied", from.display())
}
