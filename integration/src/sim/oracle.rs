//! What a read may return, sector by sector, given what guests were told. It knows nothing of epochs,
//! stores and versions.
//!
//! Each write of a guest has a number, which it puts into every sector that it writes (zero for
//! zeroes). Per sector there are two sets: `may`, what a read may return now, and `kept`, what may
//! stand on media if all that is not flushed is lost.
//!
//! - issued: the number joins both sets: it may or may not be there;
//! - acknowledged: older ones leave `may`; those that were issued later stay (I1);
//! - never answered (the writer died or was superseded): it stays possible until something newer is
//!   acknowledged, or a read has shown which it is;
//! - flushed: `kept` is what was possible when the flush began, and what was issued since (I2);
//! - all members of an extent have lost what they had not synced: `may` takes `kept` in, and a writer that was
//!   superseded and hears of its answers only now acknowledges what may be gone, as it would have a moment before;
//! - read: what was possible when it began, or was issued since (I5); with nothing in flight it
//!   settles the question.

use std::collections::{BTreeMap, BTreeSet};

pub type WriteNumber = u64;

/// What was there before every write.
const NOTHING: WriteNumber = 0;

#[derive(Default)]
pub struct Oracle {
    sectors: BTreeMap<u64, Sector>,
    in_flight: BTreeMap<WriteNumber, InFlight>,
    /// Writes of zeroes.
    zeroes: BTreeSet<WriteNumber>,
    reads: BTreeMap<u64, Reading>,
    flushes: BTreeMap<u64, Flushing>,
    last_write: WriteNumber,
    last_ticket: u64,
}

struct Sector {
    may: BTreeSet<WriteNumber>,
    kept: BTreeSet<WriteNumber>,
    acknowledged: WriteNumber,
}

impl Default for Sector {
    fn default() -> Self {
        Sector {
            may: BTreeSet::from([NOTHING]),
            kept: BTreeSet::from([NOTHING]),
            acknowledged: NOTHING,
        }
    }
}

struct InFlight {
    sectors: Vec<u64>,
    /// Another writer serves by now: what it sees shows whether this write took place.
    overtaken: bool,
    /// Members answered, and all of them lost it since: who hears of the answers now hears of the past.
    lost: bool,
}

struct Reading {
    /// Sector -> what it may return, and whether the answer settles the question.
    sectors: BTreeMap<u64, (BTreeSet<WriteNumber>, bool)>,
}

struct Flushing {
    may: BTreeMap<u64, BTreeSet<WriteNumber>>,
    after: WriteNumber,
}

/// A read returned what it must not.
#[derive(Debug)]
pub struct Wrong {
    pub sector: u64,
    pub got: Option<WriteNumber>,
    pub may: Vec<WriteNumber>,
}

impl Oracle {
    /// Its first write has the number after this one.
    pub fn after(last_write: WriteNumber) -> Oracle {
        Oracle {
            last_write,
            ..Oracle::default()
        }
    }

    /// A guest writes these sectors; returns the number to put into them.
    pub fn write(&mut self, sectors: impl Iterator<Item = u64>, zeroes: bool) -> WriteNumber {
        self.last_write += 1;
        let number = self.last_write;
        if zeroes {
            self.zeroes.insert(number);
        }
        let sectors: Vec<u64> = sectors.collect();
        for sector in &sectors {
            let state = self.sectors.entry(*sector).or_default();
            state.may.insert(number);
            state.kept.insert(number);
            for reading in self.reads.values_mut() {
                if let Some((may, settles)) = reading.sectors.get_mut(sector) {
                    may.insert(number);
                    *settles = false;
                }
            }
        }
        let write = InFlight {
            sectors,
            overtaken: false,
            lost: false,
        };
        self.in_flight.insert(number, write);
        number
    }

    /// The writer of this write was superseded, and the next one serves.
    pub fn overtaken(&mut self, number: WriteNumber) {
        if let Some(write) = self.in_flight.get_mut(&number) {
            write.overtaken = true;
        }
    }

    /// A guest hears that its write is done. The error names a sector in which a later writer has
    /// shown that it never took place (I3).
    pub fn acknowledged(&mut self, number: WriteNumber) -> Result<(), u64> {
        let write = self.in_flight.remove(&number).expect("it was in flight");
        if write.overtaken && write.lost {
            return Ok(());
        }
        for sector in write.sectors {
            let state = self.sectors.get_mut(&sector).expect("it was written");
            if state.acknowledged > number {
                continue;
            }
            // Later ones are in flight, or never answered; either may have come on top of this one.
            state.may.retain(|other| *other >= number);
            if state.may.is_empty() {
                return Err(sector);
            }
            state.acknowledged = number;
        }
        Ok(())
    }

    /// Nobody will hear how it ended.
    pub fn abandoned(&mut self, number: WriteNumber) {
        self.in_flight.remove(&number);
    }

    pub fn read(&mut self, sectors: impl Iterator<Item = u64>) -> u64 {
        self.last_ticket += 1;
        let sectors = sectors
            .map(|sector| {
                let may = self.sectors.entry(sector).or_default().may.clone();
                let mut writes = self.in_flight.values().filter(|write| !write.overtaken);
                let busy = writes.any(|write| write.sectors.contains(&sector));
                (sector, (may, !busy))
            })
            .collect();
        self.reads.insert(self.last_ticket, Reading { sectors });
        self.last_ticket
    }

    pub fn read_failed(&mut self, ticket: u64) {
        self.reads.remove(&ticket);
    }

    /// `content` gives what was read of a sector. `settles`: the reader is the only writer there is.
    pub fn read_done(
        &mut self,
        ticket: u64,
        settles: bool,
        content: impl Fn(u64) -> Content,
    ) -> Result<(), Wrong> {
        let reading = self.reads.remove(&ticket).expect("it was begun");
        for (sector, (may, undisturbed)) in reading.sectors {
            let got = content(sector);
            let fits = |number: &WriteNumber| match got {
                Content::Zeroes => *number == NOTHING || self.zeroes.contains(number),
                Content::Number(n) => n == *number,
                Content::Garbage => false,
            };
            let fitting: BTreeSet<WriteNumber> = may.iter().copied().filter(fits).collect();
            if fitting.is_empty() {
                let got = match got {
                    Content::Zeroes => Some(NOTHING),
                    Content::Number(n) => Some(n),
                    Content::Garbage => None,
                };
                let may = may.into_iter().collect();
                return Err(Wrong { sector, got, may });
            }
            let state = self.sectors.get_mut(&sector).expect("it is known");
            if settles && undisturbed && state.may.iter().any(|n| fitting.contains(n)) {
                state.may.retain(|number| fitting.contains(number));
            }
        }
        Ok(())
    }

    pub fn flush(&mut self) -> u64 {
        self.last_ticket += 1;
        let may = self
            .sectors
            .iter()
            .map(|(s, state)| (*s, state.may.clone()));
        let flushing = Flushing {
            may: may.collect(),
            after: self.last_write,
        };
        self.flushes.insert(self.last_ticket, flushing);
        self.last_ticket
    }

    pub fn flush_failed(&mut self, ticket: u64) {
        self.flushes.remove(&ticket);
    }

    pub fn flushed(&mut self, ticket: u64) {
        let flushing = self.flushes.remove(&ticket).expect("it was begun");
        for (sector, state) in &mut self.sectors {
            let mut kept = flushing.may.get(sector).cloned().unwrap_or_default();
            if kept.is_empty() {
                kept.insert(NOTHING);
            }
            kept.extend(state.kept.iter().filter(|n| **n > flushing.after));
            // Another flush may have narrowed it further meanwhile.
            let both: BTreeSet<_> = kept.intersection(&state.kept).copied().collect();
            state.kept = if both.is_empty() { kept } else { both };
        }
    }

    /// Everything that may be there is on media: a close, or the end of a take-over.
    pub fn all_synced(&mut self) {
        for state in self.sectors.values_mut() {
            state.kept = state.may.clone();
        }
    }

    /// Every member that held these sectors lost what it had not synced.
    pub fn lost_unsynced(&mut self, sectors: std::ops::Range<u64>) {
        for write in self.in_flight.values_mut() {
            write.lost |= write.sectors.iter().any(|sector| sectors.contains(sector));
        }
        for (sector, state) in self.sectors.range_mut(sectors) {
            state.may.extend(&state.kept);
            state.acknowledged = NOTHING;
            for reading in self.reads.values_mut() {
                if let Some((may, settles)) = reading.sectors.get_mut(sector) {
                    may.extend(&state.kept);
                    *settles = false;
                }
            }
        }
    }

    /// Sectors of which there is no doubt what they hold, and that is data.
    pub fn certain(&self) -> impl Iterator<Item = (u64, WriteNumber)> + '_ {
        self.sectors.iter().filter_map(|(sector, state)| {
            let mut may = state.may.iter().copied();
            let number = may.next().filter(|_| state.may.len() == 1)?;
            (number != NOTHING && !self.zeroes.contains(&number)).then_some((*sector, number))
        })
    }

    /// Sectors that were ever written or read.
    pub fn known_sectors(&self) -> impl Iterator<Item = u64> + '_ {
        self.sectors.keys().copied()
    }
}

/// What stands in a sector that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    Zeroes,
    Number(WriteNumber),
    /// No single write ever put this there: torn, misplaced or made up.
    Garbage,
}

impl Content {
    /// The bytes that write `number` puts into `sector`.
    pub fn bytes(number: WriteNumber, sector: u64) -> [u8; 512] {
        let mut bytes = [0; 512];
        for (i, chunk) in bytes.chunks_exact_mut(16).enumerate() {
            chunk[..8].copy_from_slice(&number.to_le_bytes());
            chunk[8..].copy_from_slice(&(sector << 8 | i as u64).to_le_bytes());
        }
        bytes
    }

    pub fn of(bytes: &[u8], sector: u64) -> Content {
        if bytes.iter().all(|byte| *byte == 0) {
            return Content::Zeroes;
        }
        let number = u64::from_le_bytes(bytes[..8].try_into().expect("a sector"));
        if bytes == Self::bytes(number, sector) {
            Content::Number(number)
        } else {
            Content::Garbage
        }
    }
}
