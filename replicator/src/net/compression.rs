//! Whether a disk's data from one store comes compressed: whichever way has brought more blocks a second.
//!
//! Both ways are measured as they are used; now and then the other one is tried, since links, load and
//! content change: again and again less often, as long as it loses.

use std::time::Duration;

/// How often the way that looks worse is tried, at first and at least.
const TRY_OTHER: u32 = 32;
const TRY_OTHER_AT_LEAST: u32 = 128;
/// Each way is tried so often before either is believed.
const TRIALS: u32 = 4;
/// How much a new measurement counts against all before, out of 1.
const WEIGHT: f64 = 0.2;
/// Compressed data that is hardly smaller is not worth anybody's time: wire bytes by bytes.
const USELESS: f64 = 0.95;

/// What is known of one disk's data from one source.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Compression {
    plain: Measured,
    packed: Measured,
    /// Whether compressed data is the better way, since that was last decided.
    wins: bool,
    /// Since the worse way was tried, and when it will be again.
    since: u32,
    try_at: u32,
}

/// One way's measurements.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Measured {
    /// How often it was decided for, and how many of those have been answered.
    asked: u32,
    count: u32,
    /// Seconds a byte of blocks, smoothed.
    seconds: f64,
    /// Bytes on the wire by bytes of blocks, smoothed.
    ratio: f64,
}

impl Compression {
    /// Whether to ask for compressed data now.
    pub fn decide(&mut self) -> bool {
        let packed = self.choose();
        let way = self.way(packed);
        way.asked = way.asked.saturating_add(1);
        packed
    }

    fn choose(&mut self) -> bool {
        // Several are asked for before the first is answered: it is what was asked that takes turns.
        let untried = |way: &Measured| way.asked < TRIALS || way.count == 0;
        if untried(&self.plain) || untried(&self.packed) {
            return self.packed.asked <= self.plain.asked;
        }
        let wins = self.packed_wins();
        if wins != self.wins || self.try_at == 0 {
            (self.wins, self.since, self.try_at) = (wins, 0, TRY_OTHER);
        }
        self.since += 1;
        if self.since >= self.try_at {
            (self.since, self.try_at) = (0, TRY_OTHER_AT_LEAST.min(self.try_at * 2));
            return !wins;
        }
        wins
    }

    fn way(&mut self, packed: bool) -> &mut Measured {
        match packed {
            true => &mut self.packed,
            false => &mut self.plain,
        }
    }

    /// What one answer took: bytes of blocks, bytes on the wire, and the time that it kept others waiting:
    /// those before it are not its fault. Answers without data say nothing.
    pub fn measured(&mut self, packed: bool, bytes: u64, wire_bytes: u64, took: Duration) {
        if bytes == 0 {
            return;
        }
        let way = self.way(packed);
        let weight = match way.count {
            0 => 1.0,
            _ => WEIGHT,
        };
        let mix = |old: f64, new: f64| old + (new - old) * weight;
        way.seconds = mix(way.seconds, took.as_secs_f64() / bytes as f64);
        way.ratio = mix(way.ratio, wire_bytes as f64 / bytes as f64);
        way.count = way.count.saturating_add(1);
    }

    fn packed_wins(&self) -> bool {
        self.packed.ratio < USELESS && self.packed.seconds < self.plain.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of so many bytes a second; content that shrinks to `ratio` at so many bytes a second. Returns how
    /// many of `count` answers came compressed.
    fn compressed(
        choice: &mut Compression,
        count: u32,
        link: f64,
        (ratio, zstd): (f64, f64),
    ) -> u32 {
        const BYTES: u64 = 1 << 20;
        (0..count)
            .map(|_| {
                let packed = choice.decide();
                let wire = if packed {
                    BYTES as f64 * ratio
                } else {
                    BYTES as f64
                };
                let cpu = if packed { BYTES as f64 / zstd } else { 0.0 };
                let took = Duration::from_secs_f64(0.02 + wire / link + cpu);
                choice.measured(packed, BYTES, wire as u64, took);
                u32::from(packed)
            })
            .sum()
    }

    #[test]
    fn a_slow_link_gets_compressed_data_and_a_fast_one_does_not() {
        let slow = compressed(&mut Compression::default(), 1000, 10e6, (0.5, 300e6));
        assert!(slow > 950, "{slow}");
        let fast = compressed(&mut Compression::default(), 1000, 2e9, (0.5, 300e6));
        assert!(fast < 50, "{fast}");
        let noise = compressed(&mut Compression::default(), 1000, 10e6, (1.0, 1e12));
        assert!(noise < 50, "{noise}");
    }

    #[test]
    fn it_changes_its_mind_when_the_link_does() {
        let mut choice = Compression::default();
        compressed(&mut choice, 500, 2e9, (0.4, 300e6));
        compressed(&mut choice, 500, 10e6, (0.4, 300e6));
        let after = compressed(&mut choice, 500, 10e6, (0.4, 300e6));
        assert!(after > 450, "{after}");
    }

    #[test]
    fn the_first_that_are_asked_for_together_are_of_both_kinds() {
        let mut choice = Compression::default();
        let packed = (0..8).filter(|_| choice.decide()).count();
        assert_eq!(packed, 4);
    }

    #[test]
    fn what_loses_is_tried_ever_less_often() {
        let mut choice = Compression::default();
        compressed(&mut choice, 200, 10e6, (0.5, 300e6));
        let packed = compressed(&mut choice, 1024, 10e6, (0.5, 300e6));
        assert_eq!(packed, 1024 - 1024 / TRY_OTHER_AT_LEAST);
    }

    #[test]
    fn answers_without_data_say_nothing() {
        let mut choice = Compression::default();
        choice.measured(true, 0, 0, Duration::from_secs(9));
        assert_eq!(choice, Compression::default());
    }
}
