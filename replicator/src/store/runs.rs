//! Which runs of its process a store's log has been through, and where in it each began.
//!
//! Whoever was told by a store how far its log was ([`Reach`]) can ask later whether it still stands on that
//! (rule S6). After a crash of its process it does: what was answered is in the log. A directory that was put back
//! to an older copy of itself has a log that is shorter, or that went on as another run from an earlier point:
//!
//! ```text
//!   the log     --- run 1 ---|--- run 2 ----------*----      told: run 2, at *
//!   started again            |--- run 2 ----------*----|--- run 3 ---     run 2 ends behind *: remembers
//!   put back                 |--- run 2 ---|--- run 4 ------------        run 2 ends before *: has forgotten
//!   put back further         |--- run 5 ---                               no run 2: has forgotten
//! ```

use super::frame::{ALIGN, LogPoint};
use crate::message::Reach;

/// Runs that are remembered. Who has not heard of a store for longer takes it for one that has forgotten.
const MOST: usize = 64;

/// The last runs, oldest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Runs {
    runs: [(u64, LogPoint); MOST],
    count: usize,
}

impl Default for Runs {
    fn default() -> Self {
        Runs {
            runs: [(0, LogPoint::default()); MOST],
            count: 0,
        }
    }
}

impl Runs {
    /// A run began when the log before it ended at `ended`. A replay may say so again.
    pub fn begin(&mut self, run: u64, ended: LogPoint) {
        if run == 0 || self.iter().any(|(known, _)| known == run) {
            return;
        }
        if self.count == MOST {
            self.runs.copy_within(1.., 0);
            self.count -= 1;
        }
        self.runs[self.count] = (run, ended);
        self.count += 1;
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, LogPoint)> + '_ {
        self.runs[..self.count].iter().copied()
    }

    pub fn reach(&self, run: u64, end: LogPoint) -> Reach {
        match run {
            0 => Reach::UNKNOWN,
            run => Reach {
                run,
                at: place(end),
            },
        }
    }

    /// Whether the log, which ends at `end` now, was there in that run.
    pub fn have(&self, reach: Reach, mut end: LogPoint) -> bool {
        for (run, began) in self.iter().rev() {
            if run == reach.run {
                return reach.at <= place(end);
            }
            end = began;
        }
        false
    }
}

fn place(point: LogPoint) -> u64 {
    // A segment is 4 GiB at most, in units of 64 bytes.
    (u64::from(point.segment) << 32) + point.offset / ALIGN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(segment: u32, offset: u64) -> LogPoint {
        LogPoint { segment, offset }
    }

    #[test]
    fn a_log_that_went_on_has_it_and_one_that_was_put_back_has_not() {
        let mut runs = Runs::default();
        runs.begin(11, point(0, 0));
        let copy = runs;
        runs.begin(12, point(1, 640));
        let told = runs.reach(12, point(2, 128));
        assert!(runs.have(told, point(2, 128)));
        assert!(
            !runs.have(told, point(2, 64)),
            "memory and all was put back"
        );
        let mut again = runs;
        again.begin(13, point(2, 128));
        again.begin(13, point(2, 128));
        assert!(again.have(told, point(3, 64)));
        let mut forked = runs;
        forked.begin(14, point(2, 64));
        assert!(!forked.have(told, point(9, 0)));
        let mut further = copy;
        further.begin(15, point(1, 640));
        assert!(!further.have(told, point(9, 0)));
    }

    #[test]
    fn the_oldest_runs_are_forgotten() {
        let mut runs = Runs::default();
        for run in 1..=MOST as u64 + 1 {
            runs.begin(run, point(run as u32, 0));
        }
        let end = point(1000, 0);
        assert!(!runs.have(Reach { run: 1, at: 0 }, end));
        assert!(runs.have(Reach { run: 2, at: 0 }, end));
    }
}
