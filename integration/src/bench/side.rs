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
use super::storage_daemon::{Medium, Peers, Served, Wire};
use super::verify::{self, Verified};
use crate::cluster::{Cluster, NodeSpec, TOKYO_AND_OSAKA};
use crate::processes::{Lifetime, Process, Scratch};

/// One datacenter, two hosts: the guest's, and the one with the other copy.
const HOSTS: [NodeSpec; 2] = [TOKYO_AND_OSAKA[0], TOKYO_AND_OSAKA[1]];
const NEAR: &str = "tokyo-1";
const FAR: &str = "tokyo-2";
const FILL_BOUND: Duration = Duration::from_secs(120);
/// Queues of a peer's disk; ours have as many as a front-end asks for.
const PEER_QUEUES: u16 = 4;
const VERIFIED_BLOCKS: u32 = 8192;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    OneCopy,
    TwoCopies,
    FarCopy,
    File,
    Memory,
    Nbd,
    NbdTls,
    MemoryNbdTls,
    Quorum,
}

impl Kind {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::OneCopy => "Ukai, one copy",
            Kind::TwoCopies => "Ukai, two copies",
            Kind::FarCopy => "Ukai, far copy only",
            Kind::File => "qsd, raw file",
            Kind::Memory => "qsd, file in tmpfs",
            Kind::Nbd => "qsd, NBD",
            Kind::NbdTls => "qsd, NBD over TLS",
            Kind::MemoryNbdTls => "qsd, NBD over TLS, tmpfs",
            Kind::Quorum => "qsd, quorum(file, NBD over TLS)",
        }
    }

    fn is_ours(self) -> bool {
        matches!(self, Kind::OneCopy | Kind::TwoCopies | Kind::FarCopy)
    }
}

/// All sides of one run of the bench, and what they stand on.
pub struct Stage {
    // Processes before the directories that they use.
    sides: BTreeMap<Kind, Side>,
    cluster: Option<Cluster>,
    scratch: Scratch,
    memory: Scratch,
    disk_bytes: u64,
}

struct Side {
    socket: PathBuf,
    pids: Vec<u32>,
    /// Where its bytes stand, for those who use the page cache.
    store: Option<PathBuf>,
    processes: Vec<Process>,
}

impl Stage {
    /// `parent`: on the file system to be measured.
    pub fn new(parent: &Path, disk_bytes: u64) -> Result<Stage> {
        Ok(Stage {
            sides: BTreeMap::new(),
            cluster: None,
            scratch: Scratch::new_in(parent, "bench")?,
            memory: Scratch::new_in(Path::new("/dev/shm"), "bench")?,
            disk_bytes,
        })
    }

    pub fn keep_logs(&mut self) {
        self.scratch.keep_logs();
    }

    /// Starts it if it does not run yet, and fills its disk.
    pub fn target(&mut self, kind: Kind) -> Result<Target<'_>> {
        if !self.sides.contains_key(&kind) {
            let begun = Instant::now();
            let side = self
                .start(kind)
                .with_context(|| format!("start {}", kind.name()))?;
            self.sides.insert(kind, side);
            self.through(kind, Doing::Write)
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
            socket: &side.socket,
            bytes: self.disk_bytes,
            pids: &side.pids,
        })
    }

    /// All of the disk is read: whoever has a page cache has it there.
    pub fn warm(&mut self, kind: Kind) -> Result<()> {
        self.target(kind)?;
        self.through(kind, Doing::Read)
    }

    /// Nothing of the disk is in the page cache.
    pub fn chill(&mut self, kind: Kind) -> Result<()> {
        self.target(kind)?;
        match &self.sides[&kind].store {
            Some(store) => forget_cached(store),
            None => Ok(()),
        }
    }

    /// That the side answers what was written to it, also when it has to read it from its media.
    pub fn verify(&mut self, kind: Kind, operations: u64) -> Result<Verified> {
        let socket = self.target(kind)?.socket.to_owned();
        let blocks = VERIFIED_BLOCKS.min((self.disk_bytes / 4096) as u32);
        let store = self.sides[&kind].store.clone();
        verify::verify(&socket, blocks, operations, || match &store {
            Some(store) => forget_cached(store),
            None => Ok(()),
        })
        .with_context(|| format!("{} is wrong", kind.name()))
    }

    fn through(&mut self, kind: Kind, doing: Doing) -> Result<()> {
        let load = Load::sequential(doing, MIB, 4).through();
        let time = Time {
            warm_up: Duration::ZERO,
            measured: FILL_BOUND,
        };
        let target = self.target(kind)?;
        let wanted = target.bytes;
        let sample = measure(&target, &load, time, 0)?;
        ensure!(
            sample.bytes == wanted,
            "only {} bytes in time",
            sample.bytes
        );
        Ok(())
    }

    fn start(&mut self, kind: Kind) -> Result<Side> {
        if kind.is_ours() {
            return self.start_ours(kind);
        }
        let peers = Peers {
            scratch: &self.scratch,
            memory: &self.memory,
            bytes: self.disk_bytes,
            queues: PEER_QUEUES,
        };
        let Served { socket, processes } = match kind {
            Kind::File => peers.local("file", Medium::File),
            Kind::Memory => peers.local("memory", Medium::Memory),
            Kind::Nbd => peers.remote("nbd", Medium::File, Wire::Plain),
            Kind::NbdTls => peers.remote("nbd-tls", Medium::File, Wire::Tls),
            Kind::MemoryNbdTls => peers.remote("memory-nbd-tls", Medium::Memory, Wire::Tls),
            Kind::Quorum => peers.mirrored("quorum"),
            Kind::OneCopy | Kind::TwoCopies | Kind::FarCopy => unreachable!("ours"),
        }?;
        Ok(Side {
            socket,
            pids: processes.iter().map(Process::pid).collect(),
            store: None,
            processes,
        })
    }

    fn start_ours(&mut self, kind: Kind) -> Result<Side> {
        if self.cluster.is_none() {
            self.cluster = Some(Cluster::start(&self.scratch, &HOSTS, Lifetime::Ours)?);
        }
        let cluster = self.cluster.as_mut().expect("just started");
        let (name, copies, near, store) = match kind {
            Kind::OneCopy => ("one", 1, NEAR, NEAR),
            Kind::TwoCopies => ("two", 2, NEAR, NEAR),
            _ => ("far", 1, FAR, FAR),
        };
        cluster.create_disk(name, &self.disk_bytes.to_string(), copies, near)?;
        let socket = cluster.attach(name, NEAR)?;
        Ok(Side {
            socket,
            pids: cluster.pids(),
            store: Some(cluster.store_dir(store)),
            processes: Vec::new(),
        })
    }
}

/// Has the kernel drop what it keeps of the files in a directory; what is not on media yet goes there first.
fn forget_cached(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            forget_cached(&path)?;
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue; // The cleaner has removed it.
        };
        file.sync_data()?;
        // SAFETY: a plain system call on a descriptor that is open.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
    Ok(())
}
