//! The guest, and the two oracles in it: the verifying writer on a part of the raw disk, and files with
//! checksums on a file system on another part.
//!
//! ```text
//!  0         256 MiB     512 MiB         520 MiB
//!  | ext4    | burst     | writer, life 0 | writer, life 1 | ...
//! ```
//! A VM that is lost with its host is started again elsewhere, as another life: it first checks what the
//! lost one had flushed, then writes in a region of its own. So it is with one that was only given up for lost,
//! and runs on ([`left_behind`](super::left_behind)).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::guest::ticks::Ticks;
use crate::guest::{Disk, Guest, GuestConfig, Task};
use crate::migration::Workload;
use crate::migration::workload::{Writer, no_disk_errors};
use crate::processes::Scratch;

pub const DISK: &str = "web1";
pub const DISK_BYTES: u64 = 1 << 30;
const FILES_BYTES: u64 = 256 << 20;
const BURST_OFFSET: u64 = FILES_BYTES;
/// More than a store takes in before it needs another segment.
const BURST_BYTES: u64 = 240 << 20;
const LIVES_OFFSET: u64 = 512 << 20;
const LIFE_BYTES: u64 = 8 << 20;
const MOST_LIVES: u64 = (DISK_BYTES - LIVES_OFFSET) / LIFE_BYTES;
const BLOCK: u64 = 4096;
const LONG: Duration = Duration::from_secs(120);

pub struct Tenant {
    guest: Guest,
    writer: Writer,
    files: Task,
    burst: Option<Task>,
    host: &'static str,
    life: u64,
}

/// What a lost VM leaves: how far its writer and its files had been flushed.
#[derive(Clone)]
pub struct Lost {
    pub life: u64,
    /// Of each of the writer's threads.
    pub flushed: Vec<u64>,
    round: u64,
}

impl Tenant {
    /// Boots on a new disk that is attached at `host`.
    pub fn move_in(
        scratch: &Scratch,
        cluster: &Cluster,
        ticks: &Ticks,
        host: &'static str,
    ) -> Result<Tenant> {
        let socket = cluster.attach(DISK, host)?;
        let mut guest = boot(scratch, ticks, socket, 0, host)?;
        let make = format!("mkfs.ext4 -q /dev/vda {}M", FILES_BYTES >> 20);
        guest.must(&format!("{make} && mount /dev/vda /mnt"), LONG)?;
        Tenant::settle(guest, host, 0, 1)
    }

    /// Boots again where the disk was taken over to, and checks what the lost VM had been promised.
    pub fn move_after(
        scratch: &Scratch,
        socket: PathBuf,
        ticks: &Ticks,
        host: &'static str,
        lost: &Lost,
    ) -> Result<Tenant> {
        let life = lost.life + 1;
        ensure!(life < MOST_LIVES, "no room for another life of the VM");
        let mut guest = boot(scratch, ticks, socket, life, host)?;
        let was = workload(lost.life);
        let flushed: Vec<String> = lost.flushed.iter().map(u64::to_string).collect();
        guest
            .must(
                &format!(
                    "ukai-guest verify-check /dev/vda --offset {} --blocks {} --threads {} --seed 42 --flushed {}",
                    was.hot_offset,
                    was.hot_blocks,
                    was.threads,
                    flushed.join(",")
                ),
                LONG,
            )
            .context("what the lost VM's writer had flushed")?;
        guest.must("e2fsck -p /dev/vda; test $? -le 1", LONG)?;
        guest.must("e2fsck -f -n /dev/vda", LONG)?;
        guest.must("mount /dev/vda /mnt", LONG)?;
        if lost.round > 0 {
            guest
                .must(&format!("ukai-guest check /mnt/d{}", lost.round), LONG)
                .context("files that the lost VM had synced")?;
        }
        // The round that it was lost in may be half there.
        guest.must("rm -rf /mnt/d*", LONG)?;
        Tenant::settle(guest, host, life, lost.round + 1)
    }

    fn settle(mut guest: Guest, host: &'static str, life: u64, round: u64) -> Result<Tenant> {
        let writer = workload(life).start(&mut guest)?;
        let files = guest.start(&format!(
            "i={round}; while [ ! -e /tmp/stop ]; do \
             ukai-guest fill /mnt/d$i --seed $i --files 20 --bytes 1000000 || exit 1; \
             echo 3 > /proc/sys/vm/drop_caches; \
             ukai-guest check /mnt/d$i || exit 1; \
             echo round $i; rm -rf /mnt/d$((i-1)); i=$((i+1)); sleep 1; done"
        ))?;
        Ok(Tenant {
            guest,
            writer,
            files,
            burst: None,
            host,
            life,
        })
    }

    pub fn host(&self) -> &'static str {
        self.host
    }

    /// An error if one of the oracles has ended: something was wrong.
    pub fn must_be_well(&mut self) -> Result<()> {
        self.writer.must_not_have_ended()?;
        let ended = self.files.look();
        ensure!(ended.is_none(), "the files: {}", self.files.text());
        if let Some(burst) = &mut self.burst
            && let Some(status) = burst.look()
        {
            ensure!(status == 0, "the burst: {}", burst.text());
            self.burst = None;
        }
        Ok(())
    }

    /// Returns when the guest has got on: another flush, and no burst under way.
    pub fn must_go_on(&mut self) -> Result<()> {
        self.must_be_well()?;
        if let Some(mut burst) = self.burst.take() {
            let ended = burst.finish(Instant::now() + LONG)?;
            ensure!(ended.status == 0, "the burst: {}", ended.text);
        }
        self.writer.must_go_on()
    }

    /// Many bytes at once, to fill a store that is short of room.
    pub fn burst(&mut self) -> Result<()> {
        let task = self.guest.start(&format!(
            "dd if=/dev/urandom of=/dev/vda bs=1M seek={} count={} oflag=direct conv=notrunc",
            BURST_OFFSET >> 20,
            BURST_BYTES >> 20
        ))?;
        self.burst = Some(task);
        Ok(())
    }

    /// Another one, if the last has ended.
    pub fn keep_bursting(&mut self) -> Result<()> {
        match self.burst {
            Some(_) => Ok(()),
            None => self.burst(),
        }
    }

    /// Its host loses power, as far as the VM can tell.
    pub fn lose(mut self) -> Lost {
        let lost = self.promised();
        self.guest.kill_9();
        lost
    }

    /// All that it has said to be flushed.
    pub fn promised(&mut self) -> Lost {
        let flushed = self.writer.flushed(workload(self.life).threads);
        self.files.look();
        let rounds = self.files.text().lines();
        let mut round = rounds.filter_map(|line| line.strip_prefix("round ")?.parse().ok());
        Lost {
            life: self.life,
            flushed,
            round: round.next_back().unwrap_or(0),
        }
    }

    /// All that its writer has said, if that has ended.
    pub fn writer_ended(&mut self) -> Option<&str> {
        self.writer.ended()
    }

    /// Every block and every file is read once more. Returns what the writer says. The disk may have failed the
    /// `fenced` lives of the VM, and no other.
    pub fn move_out(mut self, scratch: &Scratch, fenced: &[u64]) -> Result<String> {
        self.must_go_on()?;
        self.guest.must("touch /tmp/stop", LONG)?;
        let ended = self.files.finish(Instant::now() + LONG)?;
        ensure!(ended.status == 0, "the files: {}", ended.text);
        let verified = self.writer.finish()?;
        self.guest
            .must("umount /mnt && e2fsck -f -n /dev/vda", LONG)?;
        self.guest.shutdown()?;
        let lives = (0..=self.life).filter(|life| !fenced.contains(life));
        let consoles: Vec<String> = lives.map(name).collect();
        let consoles: Vec<&str> = consoles.iter().map(String::as_str).collect();
        no_disk_errors(scratch, &consoles)?;
        Ok(verified)
    }
}

fn name(life: u64) -> String {
    format!("{DISK}-{life}")
}

fn boot(scratch: &Scratch, ticks: &Ticks, socket: PathBuf, life: u64, host: &str) -> Result<Guest> {
    let config = GuestConfig {
        disk: Disk::VhostUser(socket),
        ..workload(life).config(ticks)
    };
    let name = name(life);
    Guest::boot(&name, &config, scratch.data(), &scratch.log(&name))
        .with_context(|| format!("boot on {host}"))
}

fn workload(life: u64) -> Workload {
    Workload {
        hot_offset: LIVES_OFFSET + life * LIFE_BYTES,
        hot_blocks: LIFE_BYTES / BLOCK,
        full_bytes: 0,
        ..Workload::full(DISK_BYTES)
    }
}
