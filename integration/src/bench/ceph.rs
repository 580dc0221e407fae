//! Ceph RBD with two copies, before it qemu-storage-daemon with its driver `rbd` (librbd):
//!
//! ```text
//!  daemon ── librbd ── msgr2, secure ── osd.0 ── BlueStore ── file
//!                       (a PG's first)   └── msgr2, secure ── osd.1 ── BlueStore ── file      (and a monitor)
//! ```
//! As far as possible as Ceph is by itself, and where that cannot be, in its favour:
//!
//! - Pool size 2, and so `min_size` 1: a write is acknowledged when both OSDs have it, with one OSD away when one has it.
//!   BlueStore commits it durably first (there is no other way to ask it), ours and the other peers at FLUSH.
//! - `rbd_cache` is off (by default librbd writes through until the first FLUSH, and back from then on): with it a write
//!   would be acknowledged when nobody but librbd has it, and would not be a write of two copies.
//! - msgr2 in its secure mode (AES-128-GCM) between all: ours and other peers encrypt what crosses the network too.
//! - Each OSD's file is written full once before BlueStore gets it, as a device is: otherwise the file system
//!   would have to find it blocks, and to write its journal, under each of BlueStore's first writes.
//! - What is for flash and what for turning disks Ceph decides by itself, by what the kernel says of the device. Where it
//!   says that flash turns (as it does of many VMs' disks), 32 writes at once went 1.6 times as fast as with what is for flash.
//! - No manager: it has no part in reading and writing, and would cost CPU.
//!
//! All of it is in one directory and on 127.0.0.1, started in the foreground, as children of the bench.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::storage_daemon::{PROGRAM, Peers, Served, forget, written_full};
use crate::cluster::{free_tcp, wait_for};
use crate::processes::{Process, Scratch, ask};

const OSDS: usize = 2;
const POOL: &str = "rbd";
const IMAGE: &str = "disk";
/// Some hundred for each OSD are recommended. With two copies on two OSDs each has a copy of all of these.
const PLACEMENT_GROUPS: &str = "64";
/// `ceph` waits that long for a monitor, and `rbd create` for OSDs that have just begun.
const ASK_BOUND: Duration = Duration::from_secs(60);
const UP_BOUND: Duration = Duration::from_secs(60);
/// RocksDB, its log, and room for BlueStore to write beside what it overwrites.
const OVERHEAD: u64 = 2 << 30;
/// Bytes that each OSD may use; by default 4 GiB, which a machine with all of it may not have to spare.
const OSD_MEMORY: u64 = 2 << 30;
/// BlueStore's file is whole ones of these.
const BLOCK: u64 = 1 << 20;

impl Peers<'_> {
    /// Two copies in Ceph.
    pub fn ceph(&self, name: &str) -> Result<Served> {
        let ceph = Ceph {
            dir: self.scratch.path(name),
            scratch: self.scratch,
            monitor_at: free_tcp()?,
            osd_bytes: osd_bytes(self.bytes),
        };
        // Of one that ran before, and was ended to cost nothing while others were measured.
        forget(fs::remove_dir_all(&ceph.dir))?;
        let processes = ceph.start()?;
        ceph.make_image(self.bytes)?;
        let mut command = ceph.with_config(PROGRAM);
        command.args([
            "--blockdev",
            &format!(
                "driver=rbd,node-name=disk,pool={POOL},image={IMAGE},user=admin,cache.direct=on,conf={}",
                ceph.config().display()
            ),
        ]);
        self.serve(name, command, processes)
    }
}

/// Twice the image, because what is overwritten is free only when its transaction is over.
fn osd_bytes(image_bytes: u64) -> u64 {
    (2 * image_bytes + OVERHEAD).next_multiple_of(BLOCK)
}

struct Ceph<'a> {
    dir: PathBuf,
    scratch: &'a Scratch,
    monitor_at: SocketAddr,
    osd_bytes: u64,
}

impl Ceph<'_> {
    /// The monitor and the OSDs, which see each other.
    fn start(&self) -> Result<Vec<Process>> {
        fs::create_dir(&self.dir)?;
        let id = new_id()?;
        fs::write(
            self.config(),
            config(&self.dir, &id, self.monitor_at, self.osd_bytes),
        )?;
        let mut processes = vec![self.start_monitor(&id)?];
        for osd in 0..OSDS {
            processes.push(self.start_osd(osd)?);
        }
        wait_for("Ceph with all its OSDs", UP_BOUND, || {
            for process in &mut processes {
                process.must_run()?;
            }
            let seen: Value = serde_json::from_str(&self.ceph(&["osd", "stat", "-f", "json"])?)?;
            Ok((seen["num_up_osds"] == OSDS).then_some(()))
        })?;
        Ok(processes)
    }

    fn start_monitor(&self, id: &str) -> Result<Process> {
        let (keyring, map) = (self.path("keyring"), self.path("monmap"));
        let (keyring, map) = (keyring.as_str(), map.as_str());
        let address = format!("[v2:{}]", self.monitor_at);
        let create = [
            "--create-keyring",
            keyring,
            "--gen-key",
            "-n",
            "mon.",
            "--cap",
            "mon",
            "allow *",
        ];
        self.run("ceph-authtool", &create)?;
        let admin = [
            "--gen-key",
            "-n",
            "client.admin",
            "--cap",
            "mon",
            "allow *",
            "--cap",
            "osd",
            "allow *",
        ];
        self.run("ceph-authtool", &[&[keyring], &admin[..]].concat())?;
        self.run(
            "monmaptool",
            &["--create", "--fsid", id, "--addv", "a", &address, map],
        )?;
        self.run(
            "ceph-mon",
            &["--mkfs", "-i", "a", "--monmap", map, "--keyring", keyring],
        )?;
        self.start_daemon("ceph-mon", "a")
    }

    fn start_osd(&self, osd: usize) -> Result<Process> {
        let (id, number) = (new_id()?, osd.to_string());
        let dir = self.dir.join(format!("osd.{osd}"));
        fs::create_dir(&dir)?;
        written_full(&dir.join("block"), self.osd_bytes)?;
        let key = self.run("ceph-authtool", &["--gen-print-key"])?;
        let secret = self.path("secret");
        fs::write(
            &secret,
            serde_json::json!({"cephx_secret": key.trim()}).to_string(),
        )?;
        self.ceph(&["osd", "new", &id, &number, "-i", &secret])?;
        let keyring = dir.join("keyring").display().to_string();
        let name = format!("osd.{osd}");
        let with_key = [
            "--create-keyring",
            &keyring,
            "--name",
            &name,
            "--add-key",
            key.trim(),
        ];
        self.run("ceph-authtool", &with_key)?;
        self.run("ceph-osd", &["--mkfs", "-i", &number, "--osd-uuid", &id])?;
        self.start_daemon("ceph-osd", &number)
    }

    fn start_daemon(&self, program: &str, id: &str) -> Result<Process> {
        let name = format!("{program}-{id}");
        let mut command = self.with_config(program);
        command.args(["-f", "-i", id]);
        Process::start(&name, command, &self.scratch.log(&name))
    }

    /// A pool of two copies and an image in it, when both OSDs take part.
    fn make_image(&self, bytes: u64) -> Result<()> {
        self.ceph(&["osd", "pool", "create", POOL, PLACEMENT_GROUPS])?;
        self.run("rbd", &["create", "--size", &format!("{bytes}B"), IMAGE])?;
        let seen = self.ceph(&["osd", "map", POOL, IMAGE, "-f", "json"])?;
        let seen: Value = serde_json::from_str(&seen)?;
        let acting = seen["acting"].as_array().map_or(0, Vec::len);
        ensure!(
            acting == OSDS,
            "{acting} of {OSDS} OSDs have a copy: {seen}"
        );
        Ok(())
    }

    fn ceph(&self, words: &[&str]) -> Result<String> {
        self.run("ceph", words)
    }

    /// What it printed.
    fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        let mut command = self.with_config(program);
        command.args(words);
        let answer = ask(program, command, ASK_BOUND)?;
        ensure!(
            answer.status.success(),
            "{program} {}: {}",
            words.join(" "),
            last_lines(&answer.err)
        );
        Ok(answer.out)
    }

    fn with_config(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("CEPH_CONF", self.config())
            .env_remove("CEPH_ARGS");
        command
    }

    fn config(&self) -> PathBuf {
        self.dir.join("ceph.conf")
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// Of all daemons and of librbd.
fn config(dir: &Path, id: &str, monitor_at: SocketAddr, osd_bytes: u64) -> String {
    let dir = dir.display();
    format!(
        "[global]
fsid = {id}
mon host = [v2:{monitor_at}/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
ms cluster mode = secure
ms service mode = secure
ms client mode = secure
keyring = {dir}/keyring
run dir = {dir}
crash dir = {dir}
log to file = false
log to stderr = true
osd pool default size = {OSDS}
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
[mon]
mon data = {dir}/mon.$id
admin socket = {dir}/$name.asok
mon cluster log to file = false
[osd]
osd data = {dir}/$name
keyring = {dir}/$name/keyring
admin socket = {dir}/$name.asok
osd memory target = {OSD_MEMORY}
bluestore block size = {osd_bytes}
[client]
rbd cache = false
"
    )
}

fn new_id() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(id.trim().to_owned())
}

/// `ceph-osd --mkfs` says a thousand lines before the one that tells.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Ceph would otherwise put under /var, /run and /etc, or on other addresses.
    #[test]
    fn all_is_in_one_directory_on_loopback_and_secure() -> Result<()> {
        let config = config(
            Path::new("/bench/ceph"),
            "id",
            "127.0.0.1:7".parse()?,
            1 << 30,
        );
        for place in [
            "keyring",
            "run dir",
            "crash dir",
            "mon data",
            "osd data",
            "admin socket",
        ] {
            let named = format!("{place} = ");
            let mut lines = config
                .lines()
                .filter_map(|line| line.strip_prefix(&named))
                .peekable();
            assert!(lines.peek().is_some(), "{place}");
            assert!(lines.all(|at| at.starts_with("/bench/ceph")), "{place}");
        }
        for mode in ["cluster", "service", "client"] {
            assert!(
                config.contains(&format!("ms {mode} mode = secure\n")),
                "{mode}"
            );
        }
        assert!(config.contains("mon host = [v2:127.0.0.1:7/0]\npublic addr = 127.0.0.1\n"));
        Ok(())
    }

    #[test]
    fn an_osd_has_room_for_the_image_twice() {
        assert_eq!(osd_bytes(1 << 30), 4 << 30);
        assert_eq!(
            osd_bytes(BLOCK + 1),
            OVERHEAD + 3 * BLOCK,
            "no part of a block"
        );
    }

    #[test]
    fn of_many_lines_the_last_ones() {
        assert_eq!(last_lines("1\n2\n3\n4\n5\n6\n"), "2\n3\n4\n5\n6");
        assert_eq!(last_lines("one\n"), "one");
    }
}
