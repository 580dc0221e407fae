//! Who can be asked: a disk of ours, or one of a peer's. Each is started when it is first wanted, and its
//! disk is written full then, so that everybody overwrites.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::load::{Doing, Load, MIB, Time};
use super::measure::{Target, measure};
use super::needs::Needs;
use super::storage_daemon::{Medium, Peers, Served, Wire};
use super::verify;
use crate::cluster::{Cluster, NodeSpec, TOKYO_AND_OSAKA};
use crate::processes::{Lifetime, Process, Scratch};
use crate::relay::Link;

/// One datacenter, two hosts: the guest's, and the one with the other copy.
pub static HOSTS: [NodeSpec; 2] = [TOKYO_AND_OSAKA[0], TOKYO_AND_OSAKA[1]];
pub const NEAR: &str = "tokyo-1";
pub const FAR: &str = "tokyo-2";
/// Where the disk under this machine is one of a cloud, what was not read for a while may come at 2 MB/s.
const FILL_BOUND: Duration = Duration::from_secs(900);
/// Queues of a peer's disk; ours have as many as a front-end asks for.
const PEER_QUEUES: u16 = 4;
/// A store that is nearly full wants segments to spare: of a smaller one a fifth is less than those.
const LEAST_TIGHT: u64 = 4 << 30;
const VERIFIED_BLOCKS: u32 = 8192;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    OneCopy,
    TwoCopies,
    FarCopy,
    /// 64 disks of one copy.
    Crowd,
    /// One copy in a store that is full to 80 %.
    Tight,
    File,
    Memory,
    Nbd,
    NbdTls,
    MemoryNbdTls,
    Quorum,
    Iscsi,
    CephRbd,
}

impl Kind {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::OneCopy => "Ukai, one copy",
            Kind::TwoCopies => "Ukai, two copies",
            Kind::FarCopy => "Ukai, far copy only",
            Kind::Crowd => "Ukai, 64 disks",
            Kind::Tight => "Ukai, store 80 % full",
            Kind::File => "qsd, raw file",
            Kind::Memory => "qsd, file in tmpfs",
            Kind::Nbd => "qsd, NBD",
            Kind::NbdTls => "qsd, NBD over TLS",
            Kind::MemoryNbdTls => "qsd, NBD over TLS, tmpfs",
            Kind::Quorum => "qsd, quorum(file, NBD over TLS)",
            Kind::Iscsi => "qsd, iSCSI, tgt",
            Kind::CephRbd => "qsd, Ceph RBD, two copies",
        }
    }

    /// What not every machine has.
    pub fn needs(self) -> Option<Needs> {
        match self {
            Kind::Iscsi => Some(Needs::Iscsi),
            Kind::CephRbd => Some(Needs::Ceph),
            _ => None,
        }
    }

    fn is_ours(self) -> bool {
        matches!(
            self,
            Kind::OneCopy | Kind::TwoCopies | Kind::FarCopy | Kind::Crowd | Kind::Tight
        )
    }
}

/// All sides of one run of the bench, and what they stand on.
pub struct Stage {
    // Processes before the directories that they use.
    sides: BTreeMap<Kind, Side>,
    cluster: Option<Cluster>,
    scratch: Scratch,
    memory: Scratch,
    parent: PathBuf,
    disk_bytes: u64,
    verify_operations: u64,
}

struct Side {
    sockets: Vec<PathBuf>,
    pids: Vec<u32>,
    /// Of each disk.
    bytes: u64,
    /// Where its bytes stand, for those who use the page cache.
    store: Option<PathBuf>,
    processes: Vec<Process>,
    verified: bool,
    /// If it is alone there.
    own: Option<Own>,
}

/// A cluster for one purpose.
pub struct Own {
    pub cluster: Cluster,
    pub scratch: Scratch,
}

impl Stage {
    /// `parent`: on the file system to be measured.
    pub fn new(parent: &Path, disk_bytes: u64, verify_operations: u64) -> Result<Stage> {
        Ok(Stage {
            sides: BTreeMap::new(),
            cluster: None,
            scratch: Scratch::new_in(parent, "bench")?,
            memory: Scratch::new_in(Path::new("/dev/shm"), "bench")?,
            parent: parent.to_owned(),
            disk_bytes,
            verify_operations,
        })
    }

    /// For files of this run.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// A cluster besides the one of most sides.
    pub fn own_cluster(&self, specs: &'static [NodeSpec], link: Option<Link>) -> Result<Own> {
        let scratch = Scratch::new_in(&self.parent, "bench-own")?;
        let cluster = Cluster::start_across(&scratch, specs, Lifetime::Ours, link)?;
        Ok(Own { cluster, scratch })
    }

    /// Ends it: it shall cost nothing while others are measured.
    pub fn stop(&mut self, kind: Kind) {
        self.sides.remove(&kind);
    }

    pub fn keep_logs(&mut self) {
        self.scratch.keep_logs();
        let own = self.sides.values_mut().filter_map(|side| side.own.as_mut());
        own.for_each(|own| own.scratch.keep_logs());
    }

    /// Starts it if it does not run yet, and fills its disk.
    pub fn target(&mut self, kind: Kind) -> Result<Target<'_>> {
        if !self.sides.contains_key(&kind) {
            let begun = Instant::now();
            let side = self
                .start(kind)
                .with_context(|| format!("start {}", kind.name()))?;
            self.sides.insert(kind, side);
            self.through(kind, Load::sequential(Doing::Write, MIB, 4))
                .with_context(|| format!("fill the disk of {}", kind.name()))?;
            eprintln!(
                "ok   {:>6.1}s {} runs, its disk is full",
                begun.elapsed().as_secs_f64(),
                kind.name()
            );
        }
        let side = self.sides.get_mut(&kind).expect("just started");
        for process in &mut side.processes {
            process.must_run()?;
        }
        Ok(Target {
            sockets: &side.sockets,
            bytes: side.bytes,
            pids: &side.pids,
        })
    }

    /// All of the disk is read, in pieces that stay in the page cache of whoever has one.
    pub fn warm(&mut self, kind: Kind) -> Result<()> {
        self.target(kind)?;
        self.through(kind, Load::sequential(Doing::Read, 64 << 10, 4))
    }

    /// Nothing of the disk is in the page cache.
    pub fn chill(&mut self, kind: Kind) -> Result<()> {
        self.target(kind)?;
        match &self.sides[&kind].store {
            Some(store) => forget_cached(store),
            None => Ok(()),
        }
    }

    /// That the side answers what was written to it, also when it has to read it from its media. Once.
    pub fn verify(&mut self, kind: Kind) -> Result<()> {
        self.target(kind)?;
        let side = &self.sides[&kind];
        if side.verified {
            return Ok(());
        }
        let begun = Instant::now();
        let blocks = VERIFIED_BLOCKS.min((side.bytes / 4096) as u32);
        let verified =
            verify::verify(
                &side.sockets[0],
                blocks,
                self.verify_operations,
                || match &side.store {
                    Some(store) => forget_cached(store),
                    None => Ok(()),
                },
            );
        let verified = verified.with_context(|| format!("{} is wrong", kind.name()))?;
        eprintln!(
            "ok   {:>6.1}s {}: {} writes and {} reads verified",
            begun.elapsed().as_secs_f64(),
            kind.name(),
            verified.writes,
            verified.reads
        );
        self.sides.get_mut(&kind).expect("just seen").verified = true;
        Ok(())
    }

    /// From the disk's start to its end, once.
    fn through(&mut self, kind: Kind, load: Load) -> Result<()> {
        let load = load.through();
        let time = Time {
            warm_up: Duration::ZERO,
            measured: FILL_BOUND,
        };
        let target = self.target(kind)?;
        let wanted = target.bytes * target.sockets.len() as u64;
        let sample = measure(&target, &load, time, 0)?;
        ensure!(
            sample.bytes == wanted,
            "only {} bytes in time",
            sample.bytes
        );
        Ok(())
    }

    /// A peer's disk over a sparse file that nobody has written to. It is gone when its processes are.
    pub fn fresh_file(&self, name: &str) -> Result<Served> {
        self.peers().local(name, Medium::File)
    }

    pub fn peers(&self) -> Peers<'_> {
        Peers {
            scratch: &self.scratch,
            memory: &self.memory,
            bytes: self.disk_bytes,
            queues: PEER_QUEUES,
        }
    }

    fn start(&mut self, kind: Kind) -> Result<Side> {
        if kind.is_ours() {
            return self.start_ours(kind);
        }
        let peers = self.peers();
        let Served { socket, processes } = match kind {
            Kind::File => peers.local("file", Medium::File),
            Kind::Memory => peers.local("memory", Medium::Memory),
            Kind::Nbd => peers.remote("nbd", Medium::File, Wire::Plain),
            Kind::NbdTls => peers.remote("nbd-tls", Medium::File, Wire::Tls),
            Kind::MemoryNbdTls => peers.remote("memory-nbd-tls", Medium::Memory, Wire::Tls),
            Kind::Quorum => peers.mirrored("quorum"),
            Kind::Iscsi => peers.iscsi("iscsi"),
            Kind::CephRbd => peers.ceph("ceph"),
            _ => unreachable!("ours"),
        }?;
        Ok(Side {
            sockets: vec![socket],
            pids: processes.iter().map(Process::pid).collect(),
            bytes: self.disk_bytes,
            store: None,
            processes,
            verified: false,
            own: None,
        })
    }

    fn start_ours(&mut self, kind: Kind) -> Result<Side> {
        let bytes = match kind {
            Kind::Crowd => self.disk_bytes / CROWD as u64,
            Kind::Tight => self.disk_bytes.max(LEAST_TIGHT),
            _ => self.disk_bytes,
        };
        let (name, copies, near, store) = match kind {
            Kind::TwoCopies => ("two", 2, NEAR, NEAR),
            Kind::FarCopy => ("far", 1, FAR, FAR),
            _ => ("one", 1, NEAR, NEAR),
        };
        let mut own = match kind {
            Kind::Crowd | Kind::Tight => Some(self.own_cluster(&HOSTS[..1], None)?),
            _ => None,
        };
        if own.is_none() && self.cluster.is_none() {
            self.cluster = Some(Cluster::start(&self.scratch, &HOSTS, Lifetime::Ours)?);
        }
        let cluster = match &mut own {
            Some(own) => &mut own.cluster,
            None => self.cluster.as_mut().expect("just started"),
        };
        let names = match kind {
            Kind::Crowd => crowd().collect(),
            _ => vec![name.to_owned()],
        };
        let mut sockets = Vec::new();
        for name in names {
            cluster.create_disk(&name, &bytes.to_string(), copies, near)?;
            if kind == Kind::Tight {
                // Now that it has its place: a new disk is not put where it would fill so much.
                cluster.set_capacity(NEAR, bytes * 5 / 4)?;
            }
            sockets.push(cluster.attach(&name, NEAR)?);
        }
        Ok(Side {
            sockets,
            pids: cluster.pids(),
            bytes,
            store: Some(cluster.store_dir(store)),
            processes: Vec::new(),
            verified: false,
            own,
        })
    }
}

/// How many disks are many.
pub const CROWD: usize = 64;

pub fn crowd() -> impl Iterator<Item = String> {
    (0..CROWD).map(|number| format!("crowd-{number}"))
}

/// Has the kernel drop what it keeps of the files in a directory; what is not on media yet goes there first.
pub fn forget_cached(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            forget_cached(&path)?;
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue; // The cleaner has removed it.
        };
        forget(&file)?;
    }
    Ok(())
}

/// The same of one file.
pub fn forget(file: &File) -> Result<()> {
    file.sync_data()?;
    // SAFETY: a plain system call on a descriptor that is open.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}
