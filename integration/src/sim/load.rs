//! What kind of load a seed's guests make: each seed draws one, so that some overwrite the same few blocks
//! over and over, some go along the disk, some mostly read, some flush after each write.

use super::dice::Dice;
use replicator::words::{BLOCK_BYTES, SECTOR_BYTES, Span};

#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Of a hundred requests; the rest are flushes.
    pub writes: u64,
    pub zeroes: u64,
    pub reads: u64,
    /// Of spans that are not whole blocks.
    partial: f64,
    /// Of requests onto a few blocks.
    hot: f64,
    /// Blocks around each border of extents that are used at all.
    spread: u64,
    /// The most blocks of one request.
    longest: u64,
    /// The most requests at once.
    pub depth: u64,
    /// Between two requests, in microseconds.
    pub pause: u64,
}

impl Load {
    /// As scripts and calm worlds have it.
    pub fn common() -> Load {
        Load {
            writes: 45,
            zeroes: 10,
            reads: 35,
            partial: 0.4,
            hot: 0.0,
            spread: 5,
            longest: 6,
            depth: 4,
            pause: 150,
        }
    }

    pub fn draw(dice: &mut Dice) -> Load {
        let (writes, zeroes, reads) = dice.pick(&[
            (45, 10, 35),
            (45, 10, 35),
            (70, 5, 20),
            (25, 25, 40),
            (15, 5, 75),
            (45, 5, 15),
        ]);
        Load {
            writes,
            zeroes,
            reads,
            partial: dice.pick(&[0.4, 0.4, 0.0, 0.9]),
            hot: dice.pick(&[0.0, 0.0, 0.5, 0.9]),
            spread: dice.pick(&[5, 5, 2, 24]),
            longest: dice.pick(&[6, 6, 1, 20]),
            depth: dice.pick(&[4, 4, 1, 12]),
            pause: dice.pick(&[150, 150, 60, 600]),
        }
    }

    /// Around the borders of extents, so that requests cross them.
    pub fn span(&self, dice: &mut Dice, extent_bytes: u64, bytes: u64) -> Span {
        let border = dice.range(0..bytes / extent_bytes) * extent_bytes;
        let first = border.saturating_sub(self.spread * BLOCK_BYTES);
        let last = (border + (self.spread + 1) * BLOCK_BYTES).min(bytes);
        let last = match dice.chance(self.hot) {
            true => last.min(first + 2 * BLOCK_BYTES),
            false => last,
        };
        if !dice.chance(self.partial) {
            let at = first + dice.range(0..(last - first) / BLOCK_BYTES) * BLOCK_BYTES;
            let len = dice.pick(&[1, 1, 1, 2, 3, self.longest]).min(self.longest);
            Span::new(at, (len * BLOCK_BYTES).min(bytes - at))
        } else {
            let at = first + dice.range(0..(last - first) / SECTOR_BYTES) * SECTOR_BYTES;
            let len = dice.pick(&[1, 1, 2, 3, 7, 9, 16, 20]) * SECTOR_BYTES;
            Span::new(at, len.min(bytes - at))
        }
    }
}
