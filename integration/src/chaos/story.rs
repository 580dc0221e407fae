//! What goes wrong when: drawn from a seed, so that a bad run can be had again.
//!
//! A turn is one fault, or two that overlap; after it everything heals before the next one begins. Faults
//! are drawn from a bag that is filled again when it is empty: none is left out for long.

use std::collections::VecDeque;
use std::time::Duration;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::fault::{Fault, Part, Stall, Step};

/// One turn in so many has two faults.
const OVERLAPPING: u32 = 3;

/// A node gives a thread up that has stood still for three seconds.
const REPLACED_AFTER: Duration = Duration::from_secs(4);

/// How long things take, and may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The nodes' `eject-after`.
    pub eject_after: Duration,
    /// What a busy machine may add to any wait.
    pub slack: Duration,
    /// Until another placement service leads; nothing where there is only one.
    pub election: Duration,
}

impl Times {
    /// Whoever waited until such a fault is undone would have waited for too long.
    fn longer_than_replacement(self) -> Duration {
        self.slack + REPLACED_AFTER + self.eject_after
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    pub faults: Vec<Planned>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Planned {
    pub fault: Fault,
    /// From the turn's beginning.
    pub at: Duration,
    pub holds: Duration,
}

pub struct Story {
    dice: ChaCha8Rng,
    possible: Vec<Fault>,
    bag: Vec<Fault>,
    times: Times,
}

impl Story {
    pub fn new(seed: u64, possible: &[Fault], times: Times) -> Story {
        assert!(!possible.is_empty(), "a story about nothing");
        Story {
            dice: ChaCha8Rng::seed_from_u64(seed),
            possible: possible.to_vec(),
            bag: Vec::new(),
            times,
        }
    }

    pub fn next_turn(&mut self) -> Turn {
        let first = self.draw();
        let mut faults = vec![self.plan(first, Duration::ZERO)];
        if self.dice.random_ratio(1, OVERLAPPING)
            && let Some(at) = self.bag.iter().rposition(|one| one.may_overlap(first))
        {
            let second = self.bag.remove(at);
            // Somewhere in the first one's time.
            let at = faults[0].holds.mul_f64(self.dice.random_range(0.0..0.9));
            faults.push(self.plan(second, at));
        }
        Turn { faults }
    }

    fn draw(&mut self) -> Fault {
        if self.bag.is_empty() {
            self.bag = self.possible.clone();
            self.bag.shuffle(&mut self.dice);
        }
        self.bag.pop().expect("just filled")
    }

    /// Long enough for what must happen meanwhile, and not always as long.
    fn plan(&mut self, fault: Fault, at: Duration) -> Planned {
        let longer = Duration::from_millis(self.dice.random_range(500..3000));
        let holds = match fault.stall() {
            Stall::Ejection => self.times.eject_after * 2 + longer,
            Stall::Replacement => self.times.longer_than_replacement() + longer,
            Stall::None | Stall::UntilUndone | Stall::Gone | Stall::LeftBehind => {
                self.times.eject_after + longer
            }
        };
        Planned { fault, at, holds }
    }
}

impl Turn {
    /// One fault by itself, with nothing left to chance.
    pub fn of(fault: Fault, times: Times) -> Turn {
        let holds = match fault.stall() {
            Stall::Replacement => times.longer_than_replacement() + Duration::from_secs(2),
            _ => times.eject_after * 2 + Duration::from_secs(2),
        };
        let at = Duration::ZERO;
        Turn {
            faults: vec![Planned { fault, at, holds }],
        }
    }

    pub fn script(&self) -> Script {
        let faults = self.faults.iter().map(|planned| {
            let steps = planned.fault.script(planned.holds).into_iter();
            steps.map(|(at, step)| (planned.at + at, step)).collect()
        });
        Script {
            faults: faults.collect(),
        }
    }

    /// The longest that one request of the guest may wait.
    pub fn bound(&self, times: Times) -> Duration {
        let mut bound = times.slack;
        for planned in &self.faults {
            bound += match planned.fault.stall() {
                Stall::None => Duration::ZERO,
                Stall::Ejection | Stall::LeftBehind => times.eject_after,
                Stall::Replacement => REPLACED_AFTER + times.eject_after,
                // Who comes back waits for the others, as long as for a silent member.
                Stall::UntilUndone => planned.holds * 2 + times.eject_after,
                Stall::Gone => Duration::ZERO,
            };
            if planned.fault.elects() && planned.fault.stall() == Stall::UntilUndone {
                bound += times.election;
            }
        }
        // Nobody is ejected, and no node comes back, while the placement service is away.
        if self.faults.len() > 1 {
            let away = self
                .faults
                .iter()
                .filter(|planned| planned.fault.touches().contains(&Part::Control));
            bound += away
                .map(|planned| planned.holds + times.election)
                .sum::<Duration>();
        }
        bound
    }
}

/// What is still to be done when, of each of a turn's faults.
pub struct Script {
    faults: Vec<VecDeque<(Duration, Step)>>,
}

impl Script {
    /// The next step of that fault, if its time has come.
    pub fn due(&self, fault: usize, now: Duration) -> Option<Step> {
        let (at, step) = self.faults[fault].front()?;
        (*at <= now).then_some(*step)
    }

    pub fn done(&mut self, fault: usize) {
        let done = self.faults[fault].pop_front();
        assert!(done.is_some(), "only what is due is done");
    }

    /// What the fault's next step waited for has come: the others follow in their distance from it.
    pub fn came(&mut self, fault: usize, now: Duration) {
        let steps = &mut self.faults[fault];
        let (planned, _) = *steps.front().expect("something waited");
        let late = now.saturating_sub(planned);
        for (at, _) in steps.iter_mut() {
            *at += late;
        }
    }

    pub fn is_over(&self) -> bool {
        self.faults.iter().all(VecDeque::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times {
        eject_after: Duration::from_secs(2),
        slack: Duration::from_secs(5),
        election: Duration::ZERO,
    };

    #[test]
    fn the_same_seed_tells_the_same_story() {
        let told = |seed| {
            let mut story = Story::new(seed, Fault::all(), TIMES);
            (0..50).map(|_| story.next_turn()).collect::<Vec<_>>()
        };
        assert_eq!(told(7), told(7));
        assert_ne!(told(7), told(8));
    }

    #[test]
    fn nothing_is_left_out_and_what_overlaps_may() {
        let mut story = Story::new(1, Fault::all(), TIMES);
        let count = Fault::all().len() * 10;
        let turns: Vec<Turn> = (0..count).map(|_| story.next_turn()).collect();
        for fault in Fault::all() {
            let times = turns.iter().flat_map(|turn| &turn.faults);
            let count = times.filter(|planned| planned.fault == *fault).count();
            assert!(count >= 10, "{fault:?} came {count} times");
        }
        let pairs: Vec<&Turn> = turns.iter().filter(|turn| turn.faults.len() == 2).collect();
        assert!(pairs.len() > 20);
        for turn in pairs {
            let [first, second] = &turn.faults[..] else {
                unreachable!("two");
            };
            assert!(first.fault.may_overlap(second.fault));
            assert!(second.at < first.holds, "they overlap");
        }
    }

    #[test]
    fn what_waits_for_something_delays_what_follows_it_and_nothing_else() {
        let s = Duration::from_secs;
        let mut turn = Turn::of(Fault::StoreFull, TIMES);
        turn.faults.extend(Turn::of(Fault::LinkCut, TIMES).faults);
        let mut script = turn.script();
        assert!(matches!(script.due(0, s(0)), Some(Step::FillStore(_))));
        script.done(0);
        assert!(matches!(script.due(0, s(0)), Some(Step::AwaitFull(_))));
        script.came(0, s(20));
        script.done(0);
        assert_eq!(script.due(0, s(25)), None, "it holds for 6 s from then on");
        assert!(matches!(script.due(0, s(26)), Some(Step::FreeStore(_))));
        script.done(0);
        assert_eq!(script.due(1, s(6)), Some(Step::CutLink));
        script.done(1);
        assert_eq!(script.due(1, s(6)), Some(Step::HealLink));
        assert!(!script.is_over());
        script.done(1);
        assert!(script.is_over());
    }

    #[test]
    fn a_member_that_hangs_may_hold_a_guest_up_for_the_bound_only() {
        let alone = Turn::of(Fault::StoreHangs, TIMES);
        assert_eq!(alone.bound(TIMES), Duration::from_secs(7));
        let mut both = alone.clone();
        both.faults
            .extend(Turn::of(Fault::PlacementAway, TIMES).faults);
        assert_eq!(
            both.bound(TIMES),
            Duration::from_secs(13),
            "nobody can be ejected"
        );
    }
}
