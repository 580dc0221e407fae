//! A cluster of real processes on this machine: one placement service over a file, or several over
//! etcd, and nodes that share nothing but loopback, or a network between hosts. All that knows the command
//! line of `ukai` is in this file.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::etcd::EtcdMembers;
use crate::guest::kit;
use crate::networks::Networks;
use crate::processes::{Lifetime, Process, Scratch, ask};
use crate::relay::{Link, Way};

const UP_BOUND: Duration = Duration::from_secs(30);
const COMMAND_BOUND: Duration = Duration::from_secs(70);
/// Three heartbeats: stores say what they hold when they are heard.
const USAGE_BOUND: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
pub struct NodeSpec {
    pub host: &'static str,
    pub datacenter: &'static str,
    pub rack: &'static str,
}

/// Two datacenters with two hosts each, a rack each: what a disk with two copies wants in both.
pub const TWO_AND_TWO: [NodeSpec; 4] = [
    TOKYO_AND_OSAKA[0],
    TOKYO_AND_OSAKA[1],
    TOKYO_AND_OSAKA[2],
    NodeSpec {
        host: "osaka-2",
        datacenter: "osaka",
        rack: "o2",
    },
];

/// Two datacenters, three hosts, a rack each.
pub const TOKYO_AND_OSAKA: [NodeSpec; 3] = [
    NodeSpec {
        host: "tokyo-1",
        datacenter: "tokyo",
        rack: "t1",
    },
    NodeSpec {
        host: "tokyo-2",
        datacenter: "tokyo",
        rack: "t2",
    },
    NodeSpec {
        host: "osaka-1",
        datacenter: "osaka",
        rack: "o1",
    },
];

pub struct Cluster {
    ukai: PathBuf,
    data: PathBuf,
    /// Of the placement service, unless it is in etcd.
    catalog: PathBuf,
    lifetime: Lifetime,
    services: Vec<Service>,
    etcd: Option<EtcdMembers>,
    nodes: Vec<Node>,
    link: Option<Link>,
    networks: Option<Networks>,
    eject_after: Option<Duration>,
}

/// Where the placement service runs.
pub const CONTROL: &str = "control";
const NODES_PORT: u16 = 7400;
const OPERATORS_PORT: u16 = 7401;
const STORE_PORT: u16 = 7410;

/// What the processes of a cluster stand on. Left out: all of them on loopback.
#[derive(Default)]
pub struct Ground {
    /// A distance between the datacenters, from the first node's to all others (its way there). The
    /// placement service stands with the first node.
    pub link: Option<Link>,
    /// A network for each host, and one for [`CONTROL`].
    pub networks: Option<Networks>,
    /// None: what nodes do when nobody says otherwise.
    pub eject_after: Option<Duration>,
    /// Where the catalog of three placement services is. None: one service, with a file.
    pub etcd: Option<EtcdMembers>,
}

/// A placement service.
struct Service {
    host: &'static str,
    nodes_at: SocketAddr,
    operators_at: SocketAddr,
    log: PathBuf,
    process: Option<Process>,
}

/// One over a file is the first.
pub const SERVICES: [&str; 3] = [CONTROL, "control-2", "control-3"];

struct Node {
    spec: &'static NodeSpec,
    listen: SocketAddr,
    /// Where it finds the placement service, and hosts that are reached over the link: HOST=ADDRESS.
    placement: Vec<SocketAddr>,
    via: Vec<String>,
    capacity: Option<u64>,
    /// How fast its store is scrubbed, as the node's setting has it.
    scrub: Option<String>,
    /// The sockets' group may connect.
    group_sockets: bool,
    log: PathBuf,
    process: Option<Process>,
}

impl Cluster {
    /// Returns when every node and every store has been heard of.
    pub fn start(
        scratch: &Scratch,
        specs: &'static [NodeSpec],
        lifetime: Lifetime,
    ) -> Result<Cluster> {
        Cluster::start_across(scratch, specs, lifetime, None)
    }

    /// The same with a link between the datacenters.
    pub fn start_across(
        scratch: &Scratch,
        specs: &'static [NodeSpec],
        lifetime: Lifetime,
        link: Option<Link>,
    ) -> Result<Cluster> {
        let ground = Ground {
            link,
            ..Ground::default()
        };
        Cluster::start_on(scratch, specs, lifetime, ground)
    }

    /// Three placement services over three members of etcd.
    pub fn start_over_etcd(scratch: &Scratch, specs: &'static [NodeSpec]) -> Result<Cluster> {
        let ground = Ground {
            etcd: Some(EtcdMembers::start(scratch, None)?),
            ..Ground::default()
        };
        Cluster::start_on(scratch, specs, Lifetime::Ours, ground)
    }

    pub fn start_on(
        scratch: &Scratch,
        specs: &'static [NodeSpec],
        lifetime: Lifetime,
        ground: Ground,
    ) -> Result<Cluster> {
        let Ground {
            link,
            networks,
            eject_after,
            etcd,
        } = ground;
        let hosts = match &etcd {
            Some(_) => &SERVICES[..],
            None => &SERVICES[..1],
        };
        let mut services = Vec::new();
        for host in hosts {
            let (nodes_at, operators_at) = match &networks {
                None => (free_udp()?, free_tcp()?),
                Some(networks) => {
                    let control = networks.address(host)?;
                    let at = |port| SocketAddr::new(control, port);
                    (at(NODES_PORT), at(OPERATORS_PORT))
                }
            };
            services.push(Service {
                host,
                nodes_at,
                operators_at,
                log: scratch.log(&format!("placement-{host}")),
                process: None,
            });
        }
        let mut cluster = Cluster {
            ukai: kit::built("ukai", "UKAI_BIN")?,
            data: scratch.data().to_owned(),
            catalog: scratch.path("catalog.redb"),
            lifetime,
            services,
            etcd,
            nodes: Vec::new(),
            link,
            networks,
            eject_after,
        };
        let nodes_at: Vec<SocketAddr> = cluster.services.iter().map(|s| s.nodes_at).collect();
        for spec in specs {
            let listen = match &cluster.networks {
                None => free_udp()?,
                Some(networks) => SocketAddr::new(networks.address(spec.host)?, STORE_PORT),
            };
            cluster.nodes.push(Node {
                spec,
                listen,
                placement: nodes_at.clone(),
                via: Vec::new(),
                capacity: None,
                scrub: None,
                group_sockets: false,
                log: scratch.log(spec.host),
                process: None,
            });
        }
        cluster.lay_out_link()?;
        cluster.make_certificates()?;
        for host in hosts {
            cluster.start_service(host)?;
        }
        for spec in specs {
            cluster.start_node(spec.host)?;
        }
        cluster.wait_up()?;
        Ok(cluster)
    }

    /// One relay a far host for all nodes of a datacenter, and one to the placement service.
    fn lay_out_link(&mut self) -> Result<()> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        let home = self.nodes[0].spec.datacenter;
        let is_home = |node: &Node| node.spec.datacenter == home;
        let (mut from_home, mut to_home) = (Vec::new(), Vec::new());
        for node in &self.nodes {
            let (way, list) = match is_home(node) {
                true => (Way::Back, &mut to_home),
                false => (Way::There, &mut from_home),
            };
            let at = link.udp(way, node.listen)?.address;
            list.push(format!("{}={at}", node.spec.host));
        }
        let placement = link.udp(Way::Back, self.services[0].nodes_at)?.address;
        for node in &mut self.nodes {
            if is_home(node) {
                node.via = from_home.clone();
            } else {
                node.via = to_home.clone();
                node.placement = vec![placement];
            }
        }
        Ok(())
    }

    /// The distance between the datacenters, if there is one.
    pub fn link(&self) -> Result<&Link> {
        self.link.as_ref().context("this cluster has no link")
    }

    /// The networks of the hosts, if they have some.
    pub fn networks(&self) -> Option<&Networks> {
        self.networks.as_ref()
    }

    /// Takes the distance away: the nodes are started anew without it.
    pub fn unlink(&mut self) -> Result<()> {
        let hosts: Vec<&str> = self.nodes.iter().map(|node| node.spec.host).collect();
        for host in hosts {
            self.kill_node_9(host)?;
            let placement = vec![self.services[0].nodes_at];
            let node = self.node(host)?;
            node.via.clear();
            node.placement = placement;
            self.start_node(host)?;
        }
        self.link = None;
        self.wait_up()
    }

    pub fn create_disk(&self, name: &str, size: &str, copies: u8, near: &str) -> Result<Value> {
        let copies = copies.to_string();
        self.ukai(&[
            "disk", "create", name, "--size", size, "--copies", &copies, "--near", near,
        ])
    }

    /// What a datacenter's policy is from now on, as TOML.
    pub fn apply_policy(&self, datacenter: &str, text: &str) -> Result<()> {
        let file = self.data.join(format!("{datacenter}.toml"));
        std::fs::write(&file, text)?;
        let file = file.to_str().context("a path of text")?;
        self.ukai(&["policy", "apply", file]).map(drop)
    }

    /// The socket where QEMU connects.
    pub fn attach(&self, disk: &str, host: &str) -> Result<PathBuf> {
        let attached = self.ukai(&["disk", "attach", disk, "--node", host])?;
        let socket = attached["socket"]
            .as_str()
            .context("attach names no socket")?;
        Ok(PathBuf::from(socket))
    }

    pub fn detach(&self, disk: &str) -> Result<Value> {
        self.ukai(&["disk", "detach", disk])
    }

    /// What the disk occupies on all of its stores, as they last said.
    pub fn allocated(&self, disk: &str) -> Result<u64> {
        let map = self.ukai(&["disk", "map", disk])?;
        let stores = map["stores"].as_array().context("a map lists stores")?;
        Ok(stores
            .iter()
            .filter_map(|store| store["allocated_bytes"].as_u64())
            .sum())
    }

    /// Polls [`Cluster::allocated`] until it is as wanted: stores report with their heartbeats.
    pub fn wait_allocated(&self, disk: &str, wanted: impl Fn(u64) -> bool) -> Result<u64> {
        let deadline = Instant::now() + USAGE_BOUND;
        loop {
            let bytes = self.allocated(disk)?;
            if wanted(bytes) {
                return Ok(bytes);
            }
            if Instant::now() >= deadline {
                bail!("{disk} still occupies {bytes} bytes");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Where the files of a host's store are.
    pub fn store_dir(&self, host: &str) -> PathBuf {
        self.data.join(host).join("store")
    }

    pub fn kill_node_9(&mut self, host: &str) -> Result<()> {
        let mut process = self
            .node(host)?
            .process
            .take()
            .context("the node is not running")?;
        process.kill_9();
        Ok(())
    }

    /// From now on its nodes run a copy of the program that is their own, and can be replaced.
    pub fn run_a_copy(&mut self, scratch: &Scratch) -> Result<()> {
        let copy = scratch.path("ukai");
        std::fs::copy(&self.ukai, &copy).context("copy the program")?;
        self.ukai = copy;
        let hosts: Vec<_> = self.nodes.iter().map(|node| node.spec.host).collect();
        hosts
            .into_iter()
            .try_for_each(|host| self.restart_node(host))
    }

    /// Another file takes the program's place, as when a package is upgraded; see [`Cluster::run_a_copy`].
    pub fn replace_program(&self) -> Result<()> {
        let next = self.ukai.with_extension("next");
        std::fs::copy(&self.ukai, &next).context("copy the program")?;
        std::fs::rename(&next, &self.ukai).context("replace the program")
    }

    /// The same process goes on as the program that stands where it was started from.
    pub fn upgrade_node(&mut self, host: &str) -> Result<()> {
        self.running_node(host)?.upgrade();
        Ok(())
    }

    /// Whether the node is the program that stands in its place now, and not one that stood there before.
    pub fn is_upgraded(&mut self, host: &str) -> Result<bool> {
        let runs = format!("/proc/{}/exe", self.running_node(host)?.pid());
        let file = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
        Ok(file(Path::new(&runs))? == file(&self.ukai)?)
    }

    /// Stops the node as a supervisor would, and starts it again.
    pub fn restart_node(&mut self, host: &str) -> Result<()> {
        let process = self.node(host)?.process.take();
        let mut process = process.context("the node is not running")?;
        if !process.terminate(UP_BOUND) {
            bail!("{host} did not stop by itself");
        }
        self.start_node(host)
    }

    /// The node neither answers nor ends, until [`Cluster::resume_node`].
    pub fn pause_node(&mut self, host: &str) -> Result<()> {
        self.running_node(host)?.pause();
        Ok(())
    }

    pub fn resume_node(&mut self, host: &str) -> Result<()> {
        self.running_node(host)?.resume();
        Ok(())
    }

    fn running_node(&mut self, host: &str) -> Result<&mut Process> {
        let process = self.node(host)?.process.as_mut();
        process.with_context(|| format!("the node of {host} is not running"))
    }

    pub fn start_node(&mut self, host: &str) -> Result<()> {
        let mut command = self.command(host)?;
        let own = self.data.join(host);
        std::fs::create_dir_all(&own)?;
        // Not beside the store, whose media may be made to fail.
        let sockets = self.data.join("run").join(host);
        let (lifetime, eject_after) = (self.lifetime, self.eject_after);
        let node = self.node(host)?;
        command
            .args(["node", "--host", host])
            .args([
                "--datacenter",
                node.spec.datacenter,
                "--rack",
                node.spec.rack,
            ])
            .args([
                "--placement",
                &listed(&node.placement),
                "--listen",
                &node.listen.to_string(),
            ])
            .arg("--store")
            .arg(own.join("store"))
            .arg("--sockets")
            .arg(sockets);
        if let Some(bound) = eject_after {
            command.args(["--eject-after", &format!("{}ms", bound.as_millis())]);
        }
        if let Some(bytes) = node.capacity {
            command.args(["--capacity", &bytes.to_string()]);
        }
        if let Some(rate) = &node.scrub {
            command.args(["--scrub", rate]);
        }
        if node.group_sockets {
            command.arg("--group-sockets");
        }
        if !node.via.is_empty() {
            command.args(["--via", &node.via.join(",")]);
        }
        node.process = Some(Process::start_for(lifetime, host, command, &node.log)?);
        Ok(())
    }

    /// Kills the node and starts it again, with that much room in its store.
    pub fn set_capacity(&mut self, host: &str, bytes: u64) -> Result<()> {
        self.node(host)?.capacity = Some(bytes);
        self.kill_node_9(host)?;
        self.start_node(host)?;
        self.wait_up()
    }

    /// Stops the node and starts it again, with its store scrubbed at this rate.
    pub fn scrub_at(&mut self, host: &str, rate: &str) -> Result<()> {
        self.node(host)?.scrub = Some(rate.to_owned());
        self.restart_node(host)?;
        self.wait_up()
    }

    /// Stops the node and starts it again, with sockets that their group may use.
    pub fn group_sockets_at(&mut self, host: &str) -> Result<()> {
        self.node(host)?.group_sockets = true;
        self.restart_node(host)?;
        self.wait_up()
    }

    pub fn kill_placement_9(&mut self) -> Result<()> {
        self.kill_service_9(SERVICES[0])
    }

    pub fn start_placement(&mut self) -> Result<()> {
        self.start_service(SERVICES[0])
    }

    /// One of several placement services, by its host.
    pub fn kill_service_9(&mut self, host: &str) -> Result<()> {
        self.service(host)?
            .process
            .take()
            .context("the placement service is not running")?
            .kill_9();
        Ok(())
    }

    pub fn start_service(&mut self, host: &str) -> Result<()> {
        let mut command = self.command(host)?;
        command.args(["placement", "--host", host, "--catalog"]);
        match &self.etcd {
            Some(etcd) => command
                .arg(etcd.address())
                .arg("--etcd-pki")
                .arg(etcd.pki()),
            None => command.arg(&self.catalog),
        };
        let lifetime = self.lifetime;
        let service = self.service(host)?;
        command
            .args(["--nodes", &service.nodes_at.to_string()])
            .args(["--operators", &service.operators_at.to_string()]);
        let name = format!("the placement service {host}");
        let started = Process::start_for(lifetime, &name, command, &service.log)?;
        service.process = Some(started);
        Ok(())
    }

    /// The file where the placement service keeps its catalog from its next start on.
    pub fn set_catalog(&mut self, file: PathBuf) {
        self.catalog = file;
    }

    /// The hosts of the placement services that run, or that do not.
    pub fn services_that_run(&self, running: bool) -> Vec<&'static str> {
        let services = self.services.iter();
        let wanted = services.filter(|service| service.process.is_some() == running);
        wanted.map(|service| service.host).collect()
    }

    /// The host of the placement service that leads, as etcd knows it.
    pub fn leader(&self) -> Result<Option<String>> {
        self.etcd()?.leader()
    }

    pub fn etcd(&self) -> Result<&EtcdMembers> {
        self.etcd.as_ref().context("this cluster has no etcd")
    }

    pub fn etcd_mut(&mut self) -> Result<&mut EtcdMembers> {
        self.etcd.as_mut().context("this cluster has no etcd")
    }

    /// The hosts of the placement services.
    pub fn services(&self) -> Vec<&'static str> {
        self.services.iter().map(|service| service.host).collect()
    }

    /// How many hosts the cluster was made with.
    pub fn hosts(&self) -> usize {
        self.nodes.len()
    }

    /// Where nodes reach the placement services.
    pub fn nodes_at(&self) -> Vec<SocketAddr> {
        self.services.iter().map(|s| s.nodes_at).collect()
    }

    pub fn wait_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + UP_BOUND;
        let wanted = self.nodes.len() as u64;
        loop {
            let status = self.ukai(&["status"]);
            if let Ok(status) = &status
                && status["hosts_up"].as_u64() >= Some(wanted)
                && status["stores_up"] == wanted
            {
                return Ok(());
            }
            for process in self.processes() {
                process.must_run()?;
            }
            if Instant::now() >= deadline {
                bail!("the cluster is not up in time: {status:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// An operator's command, its answer as JSON.
    pub fn ukai(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.table(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("ukai {}: {text}", arguments.join(" ")))
    }

    /// An operator's command that is to be refused: its exit code, and what it says.
    pub fn refused(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let mut command = self.command(CONTROL)?;
        command.args(arguments);
        let line = format!("ukai {}", arguments.join(" "));
        let answer = ask(&line, command, COMMAND_BOUND)?;
        let code = answer.status.code().filter(|code| *code != 0);
        let code = code.with_context(|| format!("{line}: {}\n{}", answer.status, answer.out))?;
        Ok((code, answer.err))
    }

    /// An operator's command, its answer as people see it.
    pub fn table(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(CONTROL)?;
        command.args(arguments);
        let line = format!("ukai {}", arguments.join(" "));
        let answer = ask(&line, command, COMMAND_BOUND)?;
        if !answer.status.success() {
            bail!("{line}: {}\n{}{}", answer.status, answer.out, answer.err);
        }
        Ok(answer.out)
    }

    /// Leaves everything running.
    pub fn leave(&mut self) {
        for process in self.processes() {
            process.leave();
        }
    }

    pub fn pids(&mut self) -> Vec<u32> {
        self.processes().map(|process| process.pid()).collect()
    }

    /// For a person's shell: what lets `ukai` find this cluster.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let services: Vec<SocketAddr> = self.services.iter().map(|s| s.operators_at).collect();
        vec![
            ("UKAI_SERVICE", listed(&services)),
            ("UKAI_PKI", self.pki().display().to_string()),
        ]
    }

    pub fn program(&self) -> &Path {
        &self.ukai
    }

    fn make_certificates(&self) -> Result<()> {
        let pki = self.pki().display().to_string();
        let mut arguments = vec!["init", "--dir", &pki, "--operator", "operator"];
        for service in &self.services {
            arguments.extend(["--placement", service.host]);
        }
        for node in &self.nodes {
            arguments.extend(["--node", node.spec.host]);
        }
        self.table(&arguments).map(drop)
    }

    /// `ukai`, to run on that host.
    fn command(&self, host: &str) -> Result<Command> {
        let mut command = Command::new(&self.ukai);
        command.envs(self.environment()).current_dir(&self.data);
        if let Some(networks) = &self.networks {
            networks.enter(host, &mut command)?;
        }
        Ok(command)
    }

    pub fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        let services = self.services.iter_mut();
        let nodes = self.nodes.iter_mut();
        services
            .filter_map(|service| service.process.as_mut())
            .chain(nodes.filter_map(|node| node.process.as_mut()))
    }

    fn service(&mut self, host: &str) -> Result<&mut Service> {
        let found = self.services.iter_mut().find(|s| s.host == host);
        found.with_context(|| format!("no placement service {host}"))
    }

    fn node(&mut self, host: &str) -> Result<&mut Node> {
        let found = self.nodes.iter_mut().find(|node| node.spec.host == host);
        found.with_context(|| format!("no node {host}"))
    }
}

/// Looks until something is there. Questions may fail meanwhile: of the last one it is said why.
pub fn wait_for<T>(
    what: &str,
    bound: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + bound;
    loop {
        let seen = look();
        if let Ok(Some(found)) = seen {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            let why = seen.err().map(|error| format!(": {error:#}"));
            bail!("there is no {what}{}", why.unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn listed(all: &[SocketAddr]) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.join(",")
}

/// Free now; nobody else on a test machine is likely to take it before the daemon does.
fn free_udp() -> Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

pub(crate) fn free_tcp() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
