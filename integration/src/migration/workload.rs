//! What is moved: a disk full of data that cannot be compressed, and a guest that writes, flushes and
//! verifies in a part of it all the while.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::guest::ticks::{PORT, Ticks};
use crate::guest::{Guest, GuestConfig, Task};
use crate::processes::{Scratch, threads};

const LONG: Duration = Duration::from_secs(120);
const BLOCK: u64 = 4096;
const PIECE: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub disk_bytes: u64,
    /// From its start on, this much of the disk is full before the guest starts.
    pub full_bytes: u64,
    /// The guest's writer works in this many blocks from here on.
    pub hot_offset: u64,
    pub hot_blocks: u64,
    pub threads: u64,
    pub flush_every: u64,
    /// How long the guest is watched before it moves, and after everything is over.
    pub quiet: Duration,
}

impl Workload {
    /// A full disk of that size.
    pub fn full(disk_bytes: u64) -> Workload {
        Workload {
            disk_bytes,
            full_bytes: disk_bytes,
            hot_offset: disk_bytes / 2 / BLOCK * BLOCK,
            hot_blocks: 4096,
            threads: 2,
            flush_every: 16,
            quiet: Duration::from_secs(10),
        }
    }

    /// An image with what the disk holds at the start. The same for every run.
    pub fn image(&self, path: &Path) -> Result<()> {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut file = BufWriter::with_capacity(PIECE, File::create(path)?);
        let mut piece = vec![0; PIECE];
        let mut left = self.full_bytes;
        while left > 0 {
            let bytes = left.min(PIECE as u64) as usize;
            random.fill_bytes(&mut piece[..bytes]);
            file.write_all(&piece[..bytes])?;
            left -= bytes as u64;
        }
        file.flush()?;
        file.get_ref().set_len(self.disk_bytes)?;
        // Both ways begin with a disk that has come to rest.
        Ok(file.get_ref().sync_all()?)
    }

    /// A guest that can be timed; on which disk is still to be said.
    pub fn config(&self, ticks: &Ticks) -> GuestConfig {
        GuestConfig {
            devices: ticks.device().to_vec(),
            ..GuestConfig::new("")
        }
    }

    /// The verifying writer, with ticks, until it is stopped.
    pub fn start(&self, guest: &mut Guest) -> Result<Writer> {
        let mut task = guest.start(&format!(
            "ukai-guest verify-writer /dev/vda --offset {} --blocks {} --threads {} \
             --seed 42 --flush-every {} --ticks {PORT}",
            self.hot_offset, self.hot_blocks, self.threads, self.flush_every
        ))?;
        task.wait_for("flushed", LONG)?;
        Ok(Writer { task })
    }
}

/// The guest's verifying writer, wherever the guest is.
pub struct Writer {
    task: Task,
}

impl Writer {
    /// Ends it: every block is read once more, and must be what was written last.
    pub fn finish(self) -> Result<String> {
        let text = self.task.stopped(LONG)?;
        let last = text.lines().last().unwrap_or_default();
        ensure!(last.starts_with("verified writes="), "{text}");
        Ok(last.to_owned())
    }

    /// The same, without waiting for it to go on.
    pub fn must_not_have_ended(&mut self) -> Result<()> {
        if let Some(said) = self.ended() {
            bail!("the writer ended: {said}");
        }
        Ok(())
    }

    /// All that it has said, if it has ended by itself.
    pub fn ended(&mut self) -> Option<&str> {
        self.task.look()?;
        Some(self.task.text())
    }

    /// The last write of each thread that it reported as flushed, for `ukai-guest verify-check`.
    pub fn flushed(&mut self, threads: u64) -> Vec<u64> {
        self.task.look();
        let mut newest = vec![0; threads as usize];
        for line in self.task.text().lines() {
            if let Some((thread, sequence)) = flushed(line)
                && let Some(newest) = newest.get_mut(thread)
            {
                *newest = sequence;
            }
        }
        newest
    }

    /// An error if it has ended by itself: it found a wrong block, or the disk failed; or if it hangs.
    pub fn must_go_on(&mut self) -> Result<()> {
        let went_on = self.task.wait_for("flushed", LONG).map(drop);
        went_on.with_context(|| format!("the threads of all:\n{}", threads()))
    }
}

/// `flushed thread=T seq=K`
fn flushed(line: &str) -> Option<(usize, u64)> {
    let (thread, sequence) = line.strip_prefix("flushed thread=")?.split_once(" seq=")?;
    Some((thread.parse().ok()?, sequence.parse().ok()?))
}

/// What a guest's console must not hold.
pub fn no_disk_errors(scratch: &Scratch, names: &[&str]) -> Result<()> {
    for name in names {
        let log = scratch.log(name);
        let console = std::fs::read(&log).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        for trouble in ["I/O error", "blk_update_request", "hung_task", "Call Trace"] {
            ensure!(
                !console.contains(trouble),
                "{}: {trouble}\n{console}",
                log.display()
            );
        }
    }
    Ok(())
}
