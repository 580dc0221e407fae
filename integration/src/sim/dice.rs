//! The one source of chance in a simulation: the seed decides everything.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;

pub struct Dice(ChaCha8Rng);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.0.random::<f64>() < probability
    }

    pub fn range(&mut self, range: Range<u64>) -> u64 {
        self.0.random_range(range)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.range(0..from.len() as u64) as usize]
    }

    /// Mostly near `typical`, now and then far above: waits of a network or a disk, in microseconds.
    pub fn wait(&mut self, typical: u64) -> u64 {
        let spread = self.range(typical / 2..typical * 2 + 1);
        if self.chance(0.02) {
            spread * self.range(2..20)
        } else {
            spread
        }
    }
}
