//! A file on NFS: QEMU's own client (libnfs) of a server without the kernel (nfs-ganesha).
//!
//! ```text
//!  a network of its own (no port of this machine is taken)
//!   QEMU ── TCP ──> port 111: we say where the server listens
//!     └──── TCP ──> nfs-ganesha ── file
//!                     └── /run/rpcbind.sock: registers, with us
//! ```
//! The client asks a port mapper where mountd and nfsd are, and the server will not run without one that it
//! told so. We answer both ([`answer`]): rpcbind would have to be installed, and to own this machine's port 111.
//! The server sees a directory of ours as /run.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::guest::kit;
use crate::networks::{Door, Networks};
use crate::processes::{Process, Scratch};

const UP_BOUND: Duration = Duration::from_secs(30);
const HOST: &str = "client";
const PORT_MAPPER: u16 = 111;
const NFS_PORT: u16 = 2049;
const MOUNT_PORT: u16 = 20048;
/// As RFC 1813 numbers the programs.
const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;

pub struct NfsServer {
    process: Process,
    networks: Networks,
    exported: PathBuf,
}

impl NfsServer {
    /// Exports `nfs/` of the scratch directory.
    pub fn start(scratch: &Scratch) -> Result<NfsServer> {
        let unpacked = kit::cache().join("nfs-ganesha");
        ensure!(
            unpacked.is_dir(),
            "no NFS server: `cargo xtask setup --bench` fetches one"
        );
        Networks::possible()?;
        let networks = Networks::lay([HOST])?;
        let (exported, run) = (scratch.path("nfs"), scratch.path("nfs-run"));
        fs::create_dir_all(&exported)?;
        fs::create_dir_all(&run)?;
        map_ports(&networks.door(HOST)?, &run)?;
        let settings = scratch.path("ganesha.conf");
        fs::write(&settings, configuration(&unpacked, &exported, &run))?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .args(["mount --bind \"$0\" /run && exec \"$@\""])
            .arg(&run)
            .arg(unpacked.join("usr/bin/ganesha.nfsd"))
            .args(["-F", "-L", "/dev/stderr", "-p", "/run/ganesha.pid", "-f"])
            .arg(&settings)
            .env("LD_LIBRARY_PATH", libraries(&unpacked));
        networks.enter(HOST, &mut command)?;
        let process = Process::start("nfs-ganesha", command, &scratch.log("nfs"))?;
        let mut server = NfsServer {
            process,
            networks,
            exported,
        };
        server.wait_up()?;
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where it is reached.
    pub fn network(&self) -> Result<Door> {
        self.networks.door(HOST)
    }

    /// QEMU's arguments for a file of it.
    pub fn client(&self, node: &str, file: &str) -> Vec<String> {
        let path = self.exported.join(file);
        let node = format!(
            "driver=nfs,node-name={node},server.type=inet,server.host=127.0.0.1,path={},\
             cache.direct=on",
            path.display()
        );
        vec!["-blockdev".to_owned(), node]
    }

    fn wait_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + UP_BOUND;
        let door = self.network()?;
        let listens = || TcpStream::connect((Ipv4Addr::LOCALHOST, NFS_PORT)).is_ok();
        while !door.inside(listens) {
            self.process.must_run()?;
            if Instant::now() >= deadline {
                bail!("nfs-ganesha is not up in time");
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// NFS 3 over TCP only, which is what QEMU speaks; no locks, no quotas, no names of users.
fn configuration(unpacked: &Path, exported: &Path, run: &Path) -> String {
    format!(
        "NFS_Core_Param {{ Protocols = 3; Enable_UDP = false; Enable_NLM = false; Enable_RQUOTA = false;\n\
         NFS_Port = {NFS_PORT}; MNT_Port = {MOUNT_PORT}; Plugins_Dir = \"{}\"; }}\n\
         NFSv4 {{ Graceless = true; UseGetpwnam = true; RecoveryRoot = \"{}\"; }}\n\
         EXPORT {{ Export_Id = 1; Path = \"{}\"; Pseudo = \"/disk\"; Protocols = 3; Access_Type = RW;\n\
         Squash = None; SecType = sys; Transports = TCP; FSAL {{ Name = VFS; }} }}\n\
         LOG {{ Default_Log_Level = EVENT; }}\n",
        unpacked.join("usr/lib/x86_64-linux-gnu/ganesha").display(),
        run.display(),
        exported.display()
    )
}

/// It is unpacked, not installed.
fn libraries(unpacked: &Path) -> String {
    let at = [
        "usr/lib/x86_64-linux-gnu",
        "lib/x86_64-linux-gnu",
        "usr/lib/ganesha",
    ];
    at.map(|dir| unpacked.join(dir).display().to_string())
        .join(":")
}

/// Answers until this process ends, in the network and on the socket.
fn map_ports(door: &Door, run: &Path) -> Result<()> {
    let inside = door.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, PORT_MAPPER)));
    let tcp = inside.context("listen as port mapper")?;
    let unix = UnixListener::bind(run.join("rpcbind.sock"))?;
    thread::spawn(move || {
        for caller in tcp.incoming().flatten() {
            thread::spawn(move || serve(caller));
        }
    });
    thread::spawn(move || {
        for caller in unix.incoming().flatten() {
            thread::spawn(move || serve(caller));
        }
    });
    Ok(())
}

/// Each message has its length before it, with the highest bit set: it is the last of its record.
fn serve(mut caller: impl Read + Write) {
    const LAST: u32 = 1 << 31;
    const MOST: u32 = 4096;
    let mut length = [0; 4];
    while caller.read_exact(&mut length).is_ok() {
        let bytes = u32::from_be_bytes(length) & !LAST;
        let mut call = vec![0; bytes.min(MOST) as usize];
        let Some(reply) = caller
            .read_exact(&mut call)
            .ok()
            .and_then(|()| answer(&call))
        else {
            return;
        };
        let mut record = (reply.len() as u32 | LAST).to_be_bytes().to_vec();
        record.extend(reply);
        if caller.write_all(&record).is_err() {
            return;
        }
    }
}

/// Of a port mapper (RFC 1833). Whoever registers is told that it did; who asks for a program, its port.
///
/// ```text
/// call:   xid, 0, 2, program, version, procedure, credentials, verifier, arguments
/// reply:  xid, 1, 0, no verifier (0, 0), 0, result         all of them 32 bits, big-endian
/// ```
fn answer(call: &[u8]) -> Option<Vec<u8>> {
    const GET_PORT: (u32, u32) = (2, 3);
    const NOTHING: u32 = 0;
    let word = |at: usize| Some(u32::from_be_bytes(call.get(at..at + 4)?.try_into().ok()?));
    let (version, procedure) = (word(16)?, word(20)?);
    let mut arguments = 24;
    for _credentials_then_verifier in 0..2 {
        arguments += 8 + (word(arguments + 4)? as usize).next_multiple_of(4);
    }
    let result = match (version, procedure) {
        (_, NOTHING) => None,
        GET_PORT => Some(match word(arguments)? {
            NFS => u32::from(NFS_PORT),
            MOUNT => u32::from(MOUNT_PORT),
            _ => 0,
        }),
        _registered => Some(1),
    };
    let reply = [word(0)?, 1, 0, 0, 0, 0].into_iter().chain(result);
    Some(reply.flat_map(u32::to_be_bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(version: u32, procedure: u32, arguments: &[u32]) -> Vec<u8> {
        let head = [7, 0, 2, 100_000, version, procedure];
        // Credentials of five bytes, padded to eight; no verifier.
        let who = [1, 5, 0, 0, 0, 0];
        let words = head.iter().chain(&who).chain(arguments);
        words.flat_map(|word| word.to_be_bytes()).collect()
    }

    fn words(bytes: &[u8]) -> Vec<u32> {
        let words = bytes.chunks_exact(4);
        words
            .map(|word| u32::from_be_bytes(word.try_into().expect("four bytes")))
            .collect()
    }

    #[test]
    fn programs_have_their_ports() {
        let ask = |program| words(&answer(&call(2, 3, &[program, 3, 6, 0])).expect("a reply"));
        assert_eq!(ask(NFS), [7, 1, 0, 0, 0, 0, 2049]);
        assert_eq!(ask(MOUNT), [7, 1, 0, 0, 0, 0, 20048]);
        assert_eq!(ask(1).last(), Some(&0), "nobody's");
    }

    #[test]
    fn whoever_registers_has_done_so() {
        let reply = answer(&call(3, 1, &[NFS, 3])).expect("a reply");
        assert_eq!(words(&reply), [7, 1, 0, 0, 0, 0, 1]);
        let nothing = answer(&call(2, 0, &[])).expect("a reply");
        assert_eq!(words(&nothing), [7, 1, 0, 0, 0, 0]);
        assert_eq!(answer(&call(2, 3, &[])), None, "cut off");
        assert_eq!(answer(&[0; 9]), None);
    }
}
