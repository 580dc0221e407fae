//! A file on iSCSI: QEMU's own initiator (libiscsi) of tgt's target.
//!
//! As tgt serves a file by itself (`rdwr`): by way of the page cache, and synced when it is told to. Its other way,
//! `aio`, answers a FLUSH without doing anything: no file system should stand on that.
//! iSCSI knows no TLS. tgtd stays in the foreground, and its socket for tgtadm in a directory of ours.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::processes::{Process, Scratch, ask};

const UP_BOUND: Duration = Duration::from_secs(20);
const ASK_BOUND: Duration = Duration::from_secs(20);
const TARGET: &str = "iqn.2026-01.example.ukai:guest";
const INITIATOR: &str = "iqn.2026-01.example.ukai:qemu";
/// LUN 0 is the target itself.
const LUN: &str = "1";
/// Of several tgtd; ours is alone in its directory.
const CONTROL_PORT: &str = "1";

/// Serves the file; returns QEMU's arguments for it as well.
pub fn serve(scratch: &Scratch, file: &Path, node: &str) -> Result<(Process, Vec<String>)> {
    let portal = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let target = Target {
        control: scratch.path("guest-tgtd"),
    };
    let mut command = target.command("tgtd");
    command.args(["-f", "--iscsi", &format!("portal={portal}")]);
    let process = Process::start("tgtd", command, &scratch.log("iscsi"));
    let mut process = process.context("tgtd (package tgt)")?;
    target.wait_up(&mut process)?;
    target.add(file)?;
    Ok((process, initiator(node, portal)))
}

fn initiator(node: &str, portal: SocketAddr) -> Vec<String> {
    let node = format!(
        "driver=iscsi,node-name={node},transport=tcp,portal={portal},target={TARGET},lun={LUN},\
         initiator-name={INITIATOR},cache.direct=on"
    );
    vec!["-blockdev".to_owned(), node]
}

struct Target {
    /// tgtd adds the control port to its name.
    control: PathBuf,
}

impl Target {
    fn command(&self, program: &str) -> Command {
        // Where administrators' tools live.
        let at = Path::new("/usr/sbin").join(program);
        let mut command = match at.is_file() {
            true => Command::new(at),
            false => Command::new(program),
        };
        command
            .env("TGT_IPC_SOCKET", &self.control)
            .args(["-C", CONTROL_PORT]);
        command
    }

    fn wait_up(&self, process: &mut Process) -> Result<()> {
        let socket = self.control.with_extension(CONTROL_PORT);
        let deadline = Instant::now() + UP_BOUND;
        while !socket.exists() {
            process.must_run()?;
            if Instant::now() >= deadline {
                bail!("tgtd is not up in time");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// One target with one disk, for whoever is on this machine.
    fn add(&self, file: &Path) -> Result<()> {
        self.tell(&["new", "--mode", "target", "-T", TARGET])?;
        let file = file.to_str().context("a path of text")?;
        let unit = ["--lun", LUN, "--bstype", "rdwr", "-b", file];
        self.tell(&[&["new", "--mode", "logicalunit"][..], &unit].concat())?;
        self.tell(&["bind", "--mode", "target", "-I", "127.0.0.1"])
    }

    fn tell(&self, words: &[&str]) -> Result<()> {
        let mut command = self.command("tgtadm");
        command
            .args(["--lld", "iscsi", "--tid", "1", "--op"])
            .args(words);
        let answer = ask("tgtadm", command, ASK_BOUND)?;
        let said = answer.err.trim();
        ensure!(answer.status.success(), "tgtadm {words:?}: {said}");
        Ok(())
    }
}
