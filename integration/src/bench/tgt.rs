//! A file that tgt serves over iSCSI. tgtd runs in the foreground, and its socket for tgtadm stands in a directory of
//! ours, so it takes no root. iSCSI has no TLS.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::needs::find;
use super::storage_daemon::until_up;
use crate::processes::{Process, Scratch, ask};

const TARGET: &str = "iqn.2026-01.example.ukai:disk";
const INITIATOR: &str = "iqn.2026-01.example.ukai:initiator";
/// LUN 0 is the target itself.
const LUN: &str = "1";
/// Of several tgtd; ours is alone in its directory.
const CONTROL_PORT: &str = "1";
const ASK_BOUND: Duration = Duration::from_secs(20);

/// How tgtd reads and writes its file.
#[derive(Clone, Copy)]
pub enum Backing {
    /// O_DIRECT, by the kernel's AIO. A FLUSH is answered without doing anything (usr/bs_aio.c): for loads that do
    /// not flush. It is the faster of the two for reads and for one write at a time, and the cheaper one; with 32 writes
    /// at once the other was about as fast.
    Direct,
    /// By way of the page cache, and synced when it is told to.
    Cached,
}

/// Serves `image` to whoever is on this machine.
pub fn serve(
    scratch: &Scratch,
    name: &str,
    image: &Path,
    backing: Backing,
) -> Result<(Process, SocketAddr)> {
    let at = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let control = Control {
        socket: scratch.path(name),
    };
    let mut command = control.command("tgtd")?;
    command.args(["-f", "--iscsi", &format!("portal={at}")]);
    let mut process = Process::start(name, command, &scratch.log(name))?;
    until_up(name, &mut process, || control.is_there())?;
    control.set_up(image, backing)?;
    Ok((process, at))
}

/// What QEMU and its daemons call the disk that is served there.
pub fn block_node(name: &str, at: SocketAddr) -> String {
    format!(
        "driver=iscsi,node-name={name},transport=tcp,portal={at},target={TARGET},lun={LUN},\
         initiator-name={INITIATOR}"
    )
}

/// How tgtd is told what to serve.
struct Control {
    /// tgtd adds the control port to its name.
    socket: PathBuf,
}

impl Control {
    fn command(&self, program: &str) -> Result<Command> {
        let program = find(program).with_context(|| format!("there is no {program}"))?;
        let mut command = Command::new(program);
        command
            .env("TGT_IPC_SOCKET", &self.socket)
            .args(["-C", CONTROL_PORT]);
        Ok(command)
    }

    fn is_there(&self) -> bool {
        self.socket.with_extension(CONTROL_PORT).exists()
    }

    /// One target with one disk.
    fn set_up(&self, image: &Path, backing: Backing) -> Result<()> {
        let image = image.to_str().context("a path of text")?;
        let backing = match backing {
            Backing::Direct => "aio",
            Backing::Cached => "rdwr",
        };
        let unit = ["--lun", LUN, "--bstype", backing, "-b", image];
        self.tell(&["new", "--mode", "target", "-T", TARGET])?;
        self.tell(&[&["new", "--mode", "logicalunit"][..], &unit].concat())?;
        self.tell(&["bind", "--mode", "target", "-I", "127.0.0.1"])
    }

    fn tell(&self, words: &[&str]) -> Result<()> {
        let mut command = self.command("tgtadm")?;
        command
            .args(["--lld", "iscsi", "--tid", "1", "--op"])
            .args(words);
        let answer = ask("tgtadm", command, ASK_BOUND)?;
        let said = answer.err.trim();
        ensure!(answer.status.success(), "tgtadm {words:?}: {said}");
        Ok(())
    }
}
