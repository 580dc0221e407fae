//! Media that can be made to hang, and to go on: a file system on a file that another process serves (FUSE), which
//! can be stopped. Whoever reads what is not cached, or syncs, waits until it goes on, and cannot be killed before.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::room::Room;
use crate::cluster::wait_for;
use crate::processes::{Process, Scratch};

const PROGRAM: &str = "qemu-storage-daemon";
const UP: Duration = Duration::from_secs(20);

pub struct Hanging {
    // Unmounted before its server ends.
    _room: Room,
    server: Process,
}

impl Hanging {
    /// A file system of so many bytes at `at`; see [`Room::keep_mounts_to_ourselves`].
    pub fn new(scratch: &Scratch, name: &str, at: &Path, bytes: u64) -> Result<Hanging> {
        let under = scratch.path(&format!("{name}.raw"));
        let over = scratch.path(&format!("{name}.served"));
        File::create(&under)?.set_len(bytes)?;
        File::create(&over)?;
        let mut command = Command::new(PROGRAM);
        command
            .arg("--blockdev")
            .arg(format!(
                "driver=file,node-name=disk,filename={}",
                under.display()
            ))
            .arg("--export")
            .arg(format!(
                "type=fuse,id=export,node-name=disk,mountpoint={},writable=on",
                over.display()
            ));
        let mut server = Process::start(name, command, &scratch.log(name))?;
        wait_for("served file", UP, || {
            server.must_run()?;
            Ok((fs::metadata(&over)?.len() == bytes).then_some(()))
        })?;
        Ok(Hanging {
            _room: Room::on(&over, at)?,
            server,
        })
    }

    pub fn hang(&mut self) {
        self.server.pause();
    }

    pub fn go_on(&mut self) {
        self.server.resume();
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.server.resume();
    }
}
