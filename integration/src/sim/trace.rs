//! What happened, as lines: hashed always, so that two runs of a seed can be compared; kept or printed
//! only when asked for.

use std::collections::VecDeque;
use std::fmt::Arguments;

pub struct Trace {
    hash: u64,
    keep: usize,
    print: bool,
    lines: VecDeque<String>,
}

impl Trace {
    pub fn new(keep: usize, print: bool) -> Trace {
        Trace {
            hash: 0xcbf2_9ce4_8422_2325,
            keep,
            print,
            lines: VecDeque::new(),
        }
    }

    /// A line. `now` in microseconds.
    pub fn line(&mut self, now: u64, line: Arguments<'_>) {
        if self.keep == 0 && !self.print {
            return;
        }
        let line = format!("{:>4}.{:03} {line}", now / 1000, now % 1000);
        if self.print {
            println!("{line}");
        }
        self.lines.push_back(line);
        if self.lines.len() > self.keep {
            self.lines.pop_front();
        }
    }

    /// Takes part of what happened into the hash, FNV-1a.
    pub fn mix(&mut self, number: u64) {
        for byte in number.to_le_bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn last(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}
