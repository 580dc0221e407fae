//! What a link is good for: how long a round trip takes, and how much it carries.
//!
//! The round trip is QUIC's own estimate, kept fresh by its keep-alives. How much a link could carry shows
//! only when much is sent: so the best of the last while is remembered, and slowly forgotten.

use crate::words::{HostName, StoreId};
use std::time::Duration;
use tokio::time::Instant;

/// The best rate seen counts half after this.
const HALF_LIFE: Duration = Duration::from_secs(300);
/// Two looks closer together than this say nothing about a rate.
const LEAST: Duration = Duration::from_millis(100);
/// Between two looks fewer bytes than this are requests and keep-alives, and say nothing about a link.
const LOAD_BYTES: u64 = 1 << 20;

/// A link to a store, as measured from here.
#[derive(Clone, PartialEq, Debug)]
pub struct LinkMeasurement {
    pub store: StoreId,
    /// Where it stands, if that is known now.
    pub host: Option<HostName>,
    pub round_trip: Duration,
    /// The most that went one way lately, under load; zero where there was none. No less than this is possible.
    pub bytes_per_second: u64,
}

/// Makes a rate of byte counters that are looked at now and then.
#[derive(Debug, Default)]
pub(super) struct Meter {
    last: Option<(Instant, [u64; 2])>,
    best: f64,
}

impl Meter {
    /// Bytes a second; `bytes` counts both ways since the connection began.
    pub fn look(&mut self, now: Instant, bytes: [u64; 2]) -> u64 {
        let Some((before, counted)) = self.last else {
            self.last = Some((now, bytes));
            return self.best as u64;
        };
        let passed = now.saturating_duration_since(before);
        if passed < LEAST {
            return self.best as u64;
        }
        self.last = Some((now, bytes));
        // Counters that went back are of a new connection.
        let renewed = bytes.iter().zip(counted).any(|(now, before)| *now < before);
        let counted = if renewed { [0; 2] } else { counted };
        let ways = bytes.iter().zip(counted);
        let most = ways.map(|(now, before)| now - before).max();
        let most = most.filter(|most| *most >= LOAD_BYTES).unwrap_or(0);
        let rate = most as f64 / passed.as_secs_f64();
        let faded = 0.5f64.powf(passed.as_secs_f64() / HALF_LIFE.as_secs_f64());
        self.best = (self.best * faded).max(rate);
        self.best as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_rate_is_remembered_and_slowly_forgotten() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mib = |mib: u64| mib << 20;
        let mut meter = Meter::default();
        assert_eq!(meter.look(at(0), [mib(5), 0]), 0, "one look is no rate");
        assert_eq!(meter.look(at(1), [mib(5) + 100, mib(2)]), mib(2));
        assert_eq!(meter.look(at(1), [mib(9), mib(9)]), mib(2), "too soon");
        let later = meter.look(at(301), [mib(5) + 200, mib(2) + 100]);
        assert!((mib(1) - 9000..=mib(1) + 9000).contains(&later), "{later}");
        // A new connection counts from zero.
        assert_eq!(meter.look(at(302), [mib(4), 10]), mib(4));
    }

    #[test]
    fn what_is_not_loaded_says_nothing_about_what_it_carries() {
        let start = Instant::now();
        let mut meter = Meter::default();
        for second in 0..100 {
            let bytes = second * 5000;
            let rate = meter.look(start + Duration::from_secs(second), [bytes, bytes / 2]);
            assert_eq!(rate, 0, "keep-alives are no load");
        }
    }
}
