//! Somebody else's vhost-user-blk backend over a plain file: shows that a failure of a guest test is
//! ours, and not the harness's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::processes::{Process, Scratch, listens};

pub struct StorageDaemon {
    process: Process,
    socket: PathBuf,
    image: PathBuf,
}

impl StorageDaemon {
    pub fn start(scratch: &Scratch, bytes: u64, queues: u16) -> Result<StorageDaemon> {
        let (image, socket) = (scratch.path("image"), scratch.path("peer.sock"));
        File::create(&image)?.set_len(bytes)?;
        let mut command = Command::new("qemu-storage-daemon");
        command
            .arg("--blockdev")
            .arg(format!(
                "file,node-name=image,filename={},discard=unmap",
                image.display()
            ))
            .arg("--export")
            .arg(format!(
                "vhost-user-blk,id=export,node-name=image,writable=on,num-queues={queues},\
                 addr.type=unix,addr.path={}",
                socket.display()
            ));
        let mut process = Process::start("storage daemon", command, &scratch.log("peer"))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !listens(&socket) && Instant::now() < deadline {
            process.must_run()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(StorageDaemon {
            process,
            socket,
            image,
        })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn image(&self) -> &Path {
        &self.image
    }

    pub fn must_run(&mut self) -> Result<()> {
        self.process.must_run()
    }
}
