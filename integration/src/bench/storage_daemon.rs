//! The peers that qemu-storage-daemon can be, each with a vhost-user-blk socket like ours:
//!
//! ```text
//!  a file            daemon ── raw, O_DIRECT, io_uring ── file      (or in tmpfs, without O_DIRECT)
//!  one remote copy   daemon ── NBD, TLS ── daemon ── file
//!  two copies        daemon ── quorum ─┬─ file
//!                                      └─ NBD, TLS ── daemon ── file
//! ```
//! (Over what others serve: [`iscsi`](super::iscsi), [`ceph`](super::ceph).)
//!
//! What crosses the network is under TLS 1.3 with AES-128-GCM, both ends show certificates, as ours do.
//! (GnuTLS would take a slower cipher by itself.)

use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::processes::{Process, Scratch, listens};

pub const PROGRAM: &str = "qemu-storage-daemon";
const UP_BOUND: Duration = Duration::from_secs(20);
const PRIORITY: &str = "NORMAL:-CIPHER-ALL:+AES-128-GCM";
/// Who the server's certificate is for.
const SERVER: &str = "server";

/// Where a peer's bytes stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A file of the file system that our stores stand on: O_DIRECT, io_uring.
    File,
    /// A file in memory.
    Memory,
}

/// How a peer reaches a file that another process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Plain,
    Tls,
}

/// Makes peers in the directories that it was given.
pub struct Peers<'a> {
    pub scratch: &'a Scratch,
    pub memory: &'a Scratch,
    pub bytes: u64,
    pub queues: u16,
}

/// Processes, the first of which has the socket.
pub struct Served {
    pub socket: PathBuf,
    pub processes: Vec<Process>,
}

impl Peers<'_> {
    /// Over a file, in one process.
    pub fn local(&self, name: &str, medium: Medium) -> Result<Served> {
        let mut command = Command::new(PROGRAM);
        command.args(["--blockdev", &self.file(name, "disk", medium)?]);
        self.serve(name, command, Vec::new())
    }

    /// Over another process's file.
    pub fn remote(&self, name: &str, medium: Medium, wire: Wire) -> Result<Served> {
        let (server, at) = self.nbd_server(name, medium, wire)?;
        let mut command = Command::new(PROGRAM);
        command.args(self.nbd_client("disk", at, wire)?);
        self.serve(name, command, vec![server])
    }

    /// Each write goes to a file and over the network to another one; reads come from the near one.
    pub fn mirrored(&self, name: &str) -> Result<Served> {
        let (server, at) = self.nbd_server(name, Medium::File, Wire::Tls)?;
        let mut command = Command::new(PROGRAM);
        let near = self.file(&format!("{name}-near"), "near", Medium::File)?;
        command.args(["--blockdev", &near]);
        command.args(self.nbd_client("far", at, Wire::Tls)?);
        command.args([
            "--blockdev",
            "driver=quorum,node-name=disk,children.0=near,children.1=far,\
             vote-threshold=2,read-pattern=fifo",
        ]);
        self.serve(name, command, vec![server])
    }

    /// A block node over a sparse file `NAME.raw`, as a value of QEMU's option `blockdev`.
    pub fn file(&self, name: &str, node: &str, medium: Medium) -> Result<String> {
        let (scratch, options) = match medium {
            Medium::File => (self.scratch, "cache.direct=on,aio=io_uring"),
            Medium::Memory => (self.memory, "aio=io_uring"),
        };
        let image = scratch.path(&format!("{name}.raw"));
        fs::File::create(&image)?.set_len(self.bytes)?;
        Ok(format!(
            "driver=file,node-name={node},filename={},discard=unmap,{options}",
            image.display()
        ))
    }

    /// Adds the export of the node `disk` to the command and starts it. `behind`: who it asks.
    pub(super) fn serve(
        &self,
        name: &str,
        mut command: Command,
        behind: Vec<Process>,
    ) -> Result<Served> {
        let socket = self.scratch.path(&format!("{name}.sock"));
        // Of one that was stopped since.
        forget(fs::remove_file(&socket))?;
        command.args([
            "--export",
            &format!(
                "vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={},\
                 addr.type=unix,addr.path={}",
                self.queues,
                socket.display()
            ),
        ]);
        let mut process = Process::start(name, command, &self.scratch.log(name))?;
        until_up(name, &mut process, || listens(&socket))?;
        let processes = std::iter::once(process).chain(behind).collect();
        Ok(Served { socket, processes })
    }

    /// A process that exports a sparse file `NAME-far.raw`.
    pub fn nbd_server(
        &self,
        name: &str,
        medium: Medium,
        wire: Wire,
    ) -> Result<(Process, SocketAddr)> {
        let at = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut command = Command::new(PROGRAM);
        let mut server = format!("addr.type=inet,addr.host=127.0.0.1,addr.port={}", at.port());
        if wire == Wire::Tls {
            command.args(["--object", &self.credentials("server")?]);
            server += ",tls-creds=tls";
        }
        command
            .args([
                "--blockdev",
                &self.file(&format!("{name}-far"), "disk", medium)?,
            ])
            .args(["--nbd-server", &server])
            .args([
                "--export",
                "nbd,id=export,node-name=disk,name=disk,writable=on",
            ]);
        let name = format!("{name}-server");
        let mut process = Process::start(&name, command, &self.scratch.log(&name))?;
        until_up(&name, &mut process, || TcpStream::connect(at).is_ok())?;
        Ok((process, at))
    }

    /// Arguments that make it a block node, for QEMU and its storage daemon.
    pub fn nbd_client(&self, node: &str, at: SocketAddr, wire: Wire) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        let mut blockdev = format!(
            "driver=nbd,node-name={node},server.type=inet,server.host=127.0.0.1,server.port={},\
             export=disk",
            at.port()
        );
        if wire == Wire::Tls {
            arguments.extend(["--object".to_owned(), self.credentials("client")?]);
            blockdev += &format!(",tls-creds=tls,tls-hostname={SERVER}");
        }
        arguments.extend(["--blockdev".to_owned(), blockdev]);
        Ok(arguments)
    }

    /// The certificates of one endpoint, under the names that QEMU wants.
    fn credentials(&self, endpoint: &str) -> Result<String> {
        let dir = self.scratch.path("peer-pki");
        if !dir.exists() {
            make_certificates(&dir)?;
        }
        Ok(format!(
            "tls-creds-x509,id=tls,endpoint={endpoint},dir={},verify-peer=on,priority={PRIORITY}",
            dir.display()
        ))
    }
}

/// A file of zeroes that the file system has found all blocks for, on media: what stands on it needs no FLUSH for that.
pub(super) fn written_full(path: &Path, bytes: u64) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    io::copy(&mut io::repeat(0).take(bytes), &mut file)?;
    file.flush()?;
    file.get_ref().sync_all()?;
    Ok(())
}

/// What is to be removed may not be there.
pub(super) fn forget(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Waits for a process that was just started.
pub(super) fn until_up(name: &str, process: &mut Process, up: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + UP_BOUND;
    while !up() {
        process.must_run()?;
        if Instant::now() >= deadline {
            bail!("{name} is not up in time");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// An authority, and a certificate for each end. Not as `ukai init` makes them: GnuTLS asks for key
/// encipherment, which nobody needs since TLS 1.3.
fn make_certificates(dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    fs::write(dir.join("ca-cert.pem"), authority.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(authority, key);
    for (endpoint, purpose) in [
        (SERVER, ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![endpoint.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, endpoint);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &issuer)?;
        let file = |kind: &str| dir.join(format!("{endpoint}-{kind}.pem"));
        fs::write(file("cert"), certificate.pem())?;
        fs::write(file("key"), key.serialize_pem())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_that_is_written_full_has_its_blocks() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("full");
        written_full(&path, (2 << 20) + 512)?;
        let found = fs::metadata(&path)?;
        assert_eq!(found.len(), (2 << 20) + 512);
        assert!(found.blocks() * 512 >= 2 << 20, "not sparse");
        Ok(())
    }
}
