//! What is asked of a disk, and in which order.

use std::time::Duration;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::front_end::Request;

pub const BLOCK: u32 = 4096;
pub const MIB: u32 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    Read,
    Write,
    /// So many of a hundred are reads.
    Mixed(u8),
    /// Each write is followed by a flush, and both together are one operation.
    WriteAndFlush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Random,
    /// Each place once, in random order; then it is over.
    Once,
    /// From the start of the disk, and again.
    Sequential,
    /// From the start to the end of the disk, once.
    Through,
}

/// So many requests of such a size at once, all the time.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub doing: Doing,
    pub order: Order,
    pub bytes: u32,
    /// On each queue.
    pub depth: u16,
    pub queues: u16,
    /// Operations a second on all queues of all disks, evenly; without it as many as are answered. The
    /// time that an operation takes counts from when it was due.
    pub rate: Option<u32>,
    pub data: Data,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// What nobody can compress.
    Random,
    /// What a compressor makes half of.
    Half,
}

impl Load {
    pub const fn random(doing: Doing, depth: u16) -> Load {
        Load {
            doing,
            order: Order::Random,
            bytes: BLOCK,
            depth,
            queues: 1,
            rate: None,
            data: Data::Random,
        }
    }

    pub const fn sequential(doing: Doing, bytes: u32, depth: u16) -> Load {
        Load {
            doing,
            order: Order::Sequential,
            bytes,
            depth,
            queues: 1,
            rate: None,
            data: Data::Random,
        }
    }

    pub const fn once(self) -> Load {
        Load {
            order: Order::Once,
            ..self
        }
    }

    pub const fn through(self) -> Load {
        Load {
            order: Order::Through,
            ..self
        }
    }

    pub const fn of_bytes(self, bytes: u32) -> Load {
        Load { bytes, ..self }
    }

    pub const fn on_queues(self, queues: u16) -> Load {
        Load { queues, ..self }
    }

    pub const fn at_rate(self, rate: u32) -> Load {
        Load {
            rate: Some(rate),
            ..self
        }
    }

    pub const fn of_data(self, data: Data) -> Load {
        Load { data, ..self }
    }

    pub fn writes(&self) -> bool {
        self.doing != Doing::Read
    }
}

/// How long a load is on, and how much of that is not measured.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    pub warm_up: Duration,
    pub measured: Duration,
}

/// The places of one queue's requests.
pub struct Places {
    order: Order,
    bytes: u64,
    /// Places in the whole disk; ours are the `queue`th of `queues`, by turns.
    count: u64,
    next: u64,
    step: u64,
    shuffled: Vec<u32>,
    state: u64,
}

impl Places {
    pub fn new(load: &Load, disk_bytes: u64, queue: u16, seed: u64) -> Places {
        let bytes = u64::from(load.bytes);
        let count = disk_bytes / bytes;
        let (queue, step) = (u64::from(queue), u64::from(load.queues));
        assert!(count >= step, "a disk with room for one request a queue");
        let mut shuffled = Vec::new();
        if load.order == Order::Once {
            shuffled.extend(
                (queue..count)
                    .step_by(step as usize)
                    .map(|place| place as u32),
            );
            shuffled.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        }
        Places {
            order: load.order,
            bytes,
            count,
            next: queue,
            step,
            shuffled,
            state: ChaCha8Rng::seed_from_u64(seed ^ queue).random::<u64>() | 1,
        }
    }

    /// None: it is over.
    pub fn offset(&mut self) -> Option<u64> {
        let place = match self.order {
            Order::Random => ((u128::from(self.random()) * u128::from(self.count)) >> 64) as u64,
            Order::Once => u64::from(self.shuffled.pop()?),
            Order::Sequential | Order::Through => {
                if self.next >= self.count {
                    if self.order == Order::Through {
                        return None;
                    }
                    self.next %= self.step;
                }
                let place = self.next;
                self.next += self.step;
                place
            }
        };
        Some(place * self.bytes)
    }

    /// xorshift64*: a few cycles, so that the front-end costs little.
    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// What to do at the next place.
    pub fn request(&mut self, doing: Doing) -> Option<Request> {
        let reads = match doing {
            Doing::Read => true,
            Doing::Write | Doing::WriteAndFlush => false,
            Doing::Mixed(reads) => self.random() % 100 < u64::from(reads),
        };
        let offset = self.offset()?;
        Some(match reads {
            true => Request::Read { offset },
            false => Request::Write { offset },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = 1 << 20;

    fn all(load: &Load, queue: u16) -> Vec<u64> {
        let mut places = Places::new(load, DISK, queue, 1);
        std::iter::from_fn(|| places.offset())
            .take(10_000)
            .collect()
    }

    #[test]
    fn each_place_once() {
        let load = Load::random(Doing::Read, 1).once();
        let mut offsets = all(&load, 0);
        assert_ne!(offsets[..4], [0, 4096, 8192, 12288], "in random order");
        offsets.sort_unstable();
        let wanted: Vec<u64> = (0..256).map(|place| place * 4096).collect();
        assert_eq!(offsets, wanted);
    }

    #[test]
    fn queues_share_a_sequence() {
        let load = Load::sequential(Doing::Write, BLOCK, 1)
            .through()
            .on_queues(2);
        let (first, second) = (all(&load, 0), all(&load, 1));
        assert_eq!(first[..3], [0, 8192, 16384]);
        assert_eq!(second[..2], [4096, 12288]);
        assert_eq!(first.len() + second.len(), 256);
        let again = Load::sequential(Doing::Write, BLOCK, 1);
        assert_eq!(all(&again, 0)[255..258], [255 * 4096, 0, 4096]);
    }

    #[test]
    fn random_places_are_all_over_the_disk_and_within() {
        let offsets = all(&Load::random(Doing::Read, 1), 0);
        assert!(
            offsets
                .iter()
                .all(|offset| offset % 4096 == 0 && *offset < DISK)
        );
        for quarter in 0..4 {
            let range = quarter * DISK / 4..(quarter + 1) * DISK / 4;
            let inside = offsets
                .iter()
                .filter(|offset| range.contains(offset))
                .count();
            assert!((2000..3000).contains(&inside), "{inside} of 10,000");
        }
    }

    #[test]
    fn a_mix_is_as_mixed_as_said() {
        let mut places = Places::new(&Load::random(Doing::Read, 1), DISK, 0, 1);
        let requests = (0..10_000).filter_map(|_| places.request(Doing::Mixed(70)));
        let reads = requests
            .filter(|request| matches!(request, Request::Read { .. }))
            .count();
        assert!((6700..7300).contains(&reads), "{reads} of 10,000");
    }
}
