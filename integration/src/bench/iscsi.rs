//! A file that tgt serves over iSCSI, before it qemu-storage-daemon with its initiator (libiscsi, no kernel's):
//!
//! ```text
//!  daemon ── iSCSI, plain TCP ── tgtd ── aio, O_DIRECT ── file
//! ```
//! iSCSI has no TLS: it is compared with our far copy, which is under TLS all the same. tgtd acknowledges a write when the
//! file system has it under O_DIRECT. Its aio backing store answers FLUSH without doing anything (usr/bs_aio.c): it is
//! the faster of its two, and no job that flushes is compared with it.
//!
//! tgtd runs in the foreground; its socket for tgtadm stands in the bench's directory, so it takes no root.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::needs::find;
use super::storage_daemon::{PROGRAM, Peers, Served, until_up, written_full};
use crate::processes::{Process, ask};

const TARGET: &str = "iqn.2026-01.example.ukai:disk";
const INITIATOR: &str = "iqn.2026-01.example.ukai:bench";
/// LUN 0 is the target itself.
const LUN: &str = "1";
/// Of several tgtd; ours is alone in its directory.
const CONTROL_PORT: &str = "1";
const ASK_BOUND: Duration = Duration::from_secs(20);

impl Peers<'_> {
    /// Over a file that tgtd serves.
    pub fn iscsi(&self, name: &str) -> Result<Served> {
        let image = self.scratch.path(&format!("{name}-far.raw"));
        written_full(&image, self.bytes)?;
        let (server, at) = self.tgtd(name, &image)?;
        let mut command = Command::new(PROGRAM);
        command.args([
            "--blockdev",
            &format!(
                "driver=iscsi,node-name=disk,transport=tcp,portal={at},target={TARGET},lun={LUN},\
                 initiator-name={INITIATOR}"
            ),
        ]);
        self.serve(name, command, vec![server])
    }

    fn tgtd(&self, name: &str, image: &Path) -> Result<(Process, SocketAddr)> {
        let at = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let control = Control {
            socket: self.scratch.path("tgtd"),
        };
        let mut command = control.command("tgtd")?;
        command.args(["-f", "--iscsi", &format!("portal={at}")]);
        let name = format!("{name}-server");
        let mut process = Process::start(&name, command, &self.scratch.log(&name))?;
        until_up(&name, &mut process, || control.is_there())?;
        control.set_up(image)?;
        Ok((process, at))
    }
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

    /// One target with one disk, for whoever is on this machine.
    fn set_up(&self, image: &Path) -> Result<()> {
        let image = image.display().to_string();
        let steps: [&[&str]; 3] = [
            &["new", "--mode", "target", "-T", TARGET],
            &[
                "new",
                "--mode",
                "logicalunit",
                "--lun",
                LUN,
                "--bstype",
                "aio",
                "-b",
                &image,
            ],
            &["bind", "--mode", "target", "-I", "127.0.0.1"],
        ];
        for step in steps {
            let mut command = self.command("tgtadm")?;
            command
                .args(["--lld", "iscsi", "--tid", "1", "--op"])
                .args(step);
            let answer = ask("tgtadm", command, ASK_BOUND)?;
            ensure!(
                answer.status.success(),
                "tgtadm {step:?}: {}",
                answer.err.trim()
            );
        }
        Ok(())
    }
}
