//! The ways that a guest's disk can be served, each started when it is first wanted. All of them keep their
//! bytes on one file system, and every disk has been written full before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::nfs::NfsServer;
use crate::bench::load::MIB;
use crate::bench::side::{Kind, Stage};
use crate::bench::storage_daemon::{Medium, Wire};
use crate::bench::tgt::{self, Backing};
use crate::guest::Disk;
use crate::networks::Door;
use crate::processes::{Process, Scratch};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    Local,
    OneCopy,
    TwoCopies,
    FarCopy,
    Nbd,
    Iscsi,
    Nfs,
}

pub const WAYS: [Way; 7] = [
    Way::Local,
    Way::OneCopy,
    Way::TwoCopies,
    Way::FarCopy,
    Way::Nbd,
    Way::Iscsi,
    Way::Nfs,
];

/// Those with these short names, and the local disk; of no names, all.
pub fn wanted(names: &[String]) -> Result<Vec<Way>> {
    let named = |way: &Way| names.iter().any(|name| way.short() == name);
    let all = WAYS.map(Way::short);
    for name in names {
        ensure!(
            all.contains(&name.as_str()),
            "no disk of guests has the name {name}: there are {}",
            all.join(", ")
        );
    }
    let wanted = |way: &Way| names.is_empty() || *way == Way::Local || named(way);
    Ok(WAYS.into_iter().filter(wanted).collect())
}

impl Way {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Way::Local => "local raw file",
            Way::OneCopy => "Ukai, one copy",
            Way::TwoCopies => "Ukai, two copies",
            Way::FarCopy => "Ukai, far copy only",
            Way::Nbd => "NBD over TLS",
            Way::Iscsi => "iSCSI",
            Way::Nfs => "file on NFS",
        }
    }

    /// As people ask for it, and as files are named.
    pub fn short(self) -> &'static str {
        match self {
            Way::Local => "local",
            Way::OneCopy => "one",
            Way::TwoCopies => "two",
            Way::FarCopy => "far",
            Way::Nbd => "nbd",
            Way::Iscsi => "iscsi",
            Way::Nfs => "nfs",
        }
    }

    /// Others' programs may not be there, or not run here. Without the local disk there is nothing to compare
    /// with, and ours have to work.
    pub fn may_be_missing(self) -> bool {
        matches!(self, Way::Nbd | Way::Iscsi | Way::Nfs)
    }

    fn ours(self) -> Option<Kind> {
        match self {
            Way::OneCopy => Some(Kind::OneCopy),
            Way::TwoCopies => Some(Kind::TwoCopies),
            Way::FarCopy => Some(Kind::FarCopy),
            Way::Local | Way::Nbd | Way::Iscsi | Way::Nfs => None,
        }
    }
}

/// A disk that waits for its guest.
pub struct Served {
    pub disk: Disk,
    /// Where QEMU has to run to reach it.
    pub network: Option<Door>,
    /// Who serves it, besides QEMU.
    pub pids: Vec<u32>,
    _processes: Vec<Process>,
    _nfs: Option<NfsServer>,
}

pub struct Ways<'a> {
    stage: &'a mut Stage,
    served: BTreeMap<Way, Served>,
}

impl Ways<'_> {
    pub fn new(stage: &mut Stage) -> Ways<'_> {
        Ways {
            stage,
            served: BTreeMap::new(),
        }
    }

    /// Does nothing for a way that runs already.
    pub fn start(&mut self, way: Way) -> Result<()> {
        if !self.served.contains_key(&way) {
            let served = self
                .serve(way)
                .with_context(|| format!("start {}", way.name()))?;
            self.served.insert(way, served);
        }
        Ok(())
    }

    pub fn served(&self, way: Way) -> Result<&Served> {
        self.served.get(&way).context("not started")
    }

    pub fn scratch(&self) -> &Scratch {
        self.stage.scratch()
    }

    fn serve(&mut self, way: Way) -> Result<Served> {
        if let Some(kind) = way.ours() {
            let target = self.stage.target(kind)?;
            return Ok(Served {
                disk: Disk::VhostUser(target.sockets[0].clone()),
                pids: target.pids.to_vec(),
                ..Served::by_qemu(Vec::new())
            });
        }
        match way {
            Way::Nbd => self.nbd(),
            Way::Iscsi => self.iscsi(),
            Way::Nfs => self.nfs(),
            _ => self.local(),
        }
    }

    fn local(&self) -> Result<Served> {
        let peers = self.stage.peers();
        let node = peers.file("guest-local", "disk", Medium::File)?;
        self.fill("guest-local.raw")?;
        Ok(Served::by_qemu(vec!["-blockdev".to_owned(), node]))
    }

    fn nbd(&self) -> Result<Served> {
        let peers = self.stage.peers();
        let (server, at) = peers.nbd_server("guest-nbd", Medium::File, Wire::Tls)?;
        self.fill("guest-nbd-far.raw")?;
        Ok(Served {
            pids: vec![server.pid()],
            _processes: vec![server],
            ..Served::by_qemu(peers.nbd_client("disk", at, Wire::Tls)?)
        })
    }

    fn iscsi(&self) -> Result<Served> {
        let name = "guest-iscsi.raw";
        self.make(name)?;
        let image = self.stage.path(name);
        let (server, at) = tgt::serve(self.scratch(), "guest-tgtd", &image, Backing::Cached)?;
        let node = format!("{},cache.direct=on", tgt::block_node("disk", at));
        let arguments = vec!["-blockdev".to_owned(), node];
        Ok(Served {
            pids: vec![server.pid()],
            _processes: vec![server],
            ..Served::by_qemu(arguments)
        })
    }

    fn nfs(&self) -> Result<Served> {
        let server = NfsServer::start(self.scratch())?;
        self.make("nfs/disk.raw")?;
        Ok(Served {
            network: Some(server.network()?),
            pids: vec![server.pid()],
            ..Served::by_qemu(server.client("disk", "disk.raw"))
        }
        .with_nfs(server))
    }

    fn make(&self, name: &str) -> Result<()> {
        File::create(self.stage.path(name))?;
        self.fill(name)
    }

    /// Data that cannot be compressed, and none of it in the page cache.
    fn fill(&self, name: &str) -> Result<()> {
        let path = self.stage.path(name);
        fill(&path, self.stage.disk_bytes()).with_context(|| format!("fill {}", path.display()))
    }
}

impl Served {
    fn by_qemu(arguments: Vec<String>) -> Served {
        Served {
            disk: Disk::Node(arguments),
            network: None,
            pids: Vec::new(),
            _processes: Vec::new(),
            _nfs: None,
        }
    }

    fn with_nfs(mut self, server: NfsServer) -> Served {
        self._nfs = Some(server);
        self
    }
}

fn fill(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::options().write(true).open(path)?;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut chunk = vec![0; MIB as usize];
    for _ in 0..bytes / u64::from(MIB) {
        random.fill_bytes(&mut chunk);
        file.write_all(&chunk)?;
    }
    crate::bench::side::forget(&file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_disk_is_always_there() -> Result<()> {
        let named = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            wanted(&names)
        };
        assert_eq!(named(&[])?, WAYS);
        assert_eq!(
            named(&["nfs", "one"])?,
            [Way::Local, Way::OneCopy, Way::Nfs]
        );
        assert!(named(&["floppy"]).is_err());
        Ok(())
    }
}
