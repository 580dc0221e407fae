//! Nobody is fast by being wrong: random writes, reads among them, a flush, and everything is read again.
//! Each block tells which write it is from.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::front_end::{FrontEnd, Queue, Request};

const BLOCK: usize = 4096;
const DEPTH: u16 = 32;
const BOUND: Duration = Duration::from_secs(120);

/// What was asked and found right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    pub writes: u64,
    pub reads: u64,
}

/// So many operations in the first `blocks` blocks of the disk; an error names the first wrong block.
pub fn verify(
    socket: &Path,
    blocks: u32,
    operations: u64,
    between: impl FnOnce() -> Result<()>,
) -> Result<Verified> {
    let mut front_end = FrontEnd::connect(socket, 1, DEPTH, BLOCK)?;
    let watchdog = front_end.watchdog();
    let (ended, endings) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if endings.recv_timeout(BOUND) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                watchdog.abandon();
            }
        });
        let mut checker = Checker::new(&mut front_end.queues()[0], blocks);
        let result = checker.run(operations, between);
        drop(ended);
        result
    })
}

struct Checker<'a> {
    queue: &'a mut Queue,
    /// What each block holds: which write, 0 if none of ours.
    newest: Vec<u64>,
    /// The block of each slot's request, and what it must be afterwards.
    under_way: Vec<Option<(u32, Request)>>,
    busy_blocks: Vec<bool>,
    free: Vec<u16>,
    verified: Verified,
}

impl Checker<'_> {
    fn new(queue: &mut Queue, blocks: u32) -> Checker<'_> {
        Checker {
            queue,
            newest: vec![0; blocks as usize],
            under_way: vec![None; usize::from(DEPTH)],
            busy_blocks: vec![false; blocks as usize],
            free: (0..DEPTH).collect(),
            verified: Verified {
                writes: 0,
                reads: 0,
            },
        }
    }

    fn run(&mut self, operations: u64, between: impl FnOnce() -> Result<()>) -> Result<Verified> {
        let begun = Instant::now();
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let blocks = self.newest.len() as u32;
        for number in 1..=operations {
            let mut block = random.random_range(0..blocks);
            while self.busy_blocks[block as usize] {
                block = (block + 1) % blocks;
            }
            let reads = self.newest[block as usize] != 0 && random.random_bool(0.3);
            self.ask(block, (!reads).then_some(number))?;
            ensure!(begun.elapsed() < BOUND, "verifying takes too long");
        }
        self.drain()?;
        self.queue.submit(0, Request::Flush)?;
        self.queue.announce()?;
        self.queue.wait(&mut Vec::new())?;
        between()?;
        for block in 0..blocks {
            if self.newest[block as usize] != 0 {
                self.ask(block, None)?;
            }
        }
        self.drain()?;
        Ok(self.verified)
    }

    /// A write with that number, or a read.
    fn ask(&mut self, block: u32, write: Option<u64>) -> Result<()> {
        while self.free.is_empty() {
            self.reap()?;
        }
        let slot = self.free.pop().expect("just seen");
        let offset = u64::from(block) * BLOCK as u64;
        let request = match write {
            Some(number) => {
                self.newest[block as usize] = number;
                stamp(self.queue.buffer(slot), block, number);
                Request::Write { offset }
            }
            None => {
                self.queue.buffer(slot).fill(0xa5);
                Request::Read { offset }
            }
        };
        self.busy_blocks[block as usize] = true;
        self.under_way[usize::from(slot)] = Some((block, request));
        self.queue.submit(slot, request)?;
        self.queue.announce()
    }

    fn drain(&mut self) -> Result<()> {
        while self.free.len() < usize::from(DEPTH) {
            self.reap()?;
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<()> {
        let mut done = Vec::new();
        self.queue.wait(&mut done)?;
        for slot in done {
            let under_way = self.under_way[usize::from(slot)].take();
            let (block, request) = under_way.expect("a completion of a request of ours");
            if matches!(request, Request::Read { .. }) {
                let newest = self.newest[block as usize];
                check(self.queue.buffer(slot), block, newest)?;
                self.verified.reads += 1;
            } else {
                self.verified.writes += 1;
            }
            self.busy_blocks[block as usize] = false;
            self.free.push(slot);
        }
        Ok(())
    }
}

/// Each eight bytes tell the block, the write and where in the block they stand.
fn word(block: u32, number: u64, index: usize) -> u64 {
    let mixed = (u64::from(block) << 32 | index as u64) ^ number.rotate_left(17);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn stamp(buffer: &mut [u8], block: u32, number: u64) {
    for (index, bytes) in buffer.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word(block, number, index).to_ne_bytes());
    }
}

fn check(buffer: &[u8], block: u32, number: u64) -> Result<()> {
    let right = |(index, bytes): (usize, &[u8])| bytes == word(block, number, index).to_ne_bytes();
    ensure!(
        buffer.chunks_exact(8).enumerate().all(right),
        "block {block} is not what write {number} left there"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_another_place_or_write_or_with_a_wrong_byte_is_seen() {
        let mut buffer = vec![0; BLOCK];
        stamp(&mut buffer, 3, 9);
        assert!(check(&buffer, 3, 9).is_ok());
        assert!(check(&buffer, 4, 9).is_err() && check(&buffer, 3, 8).is_err());
        buffer[4095] ^= 1;
        assert!(check(&buffer, 3, 9).is_err());
    }
}
