//! The counts of what is live, against somebody who looks at all segments each time.

use super::rng::Rng;
use crate::store::live::{LEVELS, Live};
use std::collections::BTreeMap;

/// Weight, whether it is exact, and the end of those that are closed.
#[derive(Default)]
struct Naive(BTreeMap<u32, (u64, bool, Option<u64>)>);

impl Naive {
    fn at(&mut self, segment: u32) -> &mut (u64, bool, Option<u64>) {
        self.0.entry(segment).or_insert((0, true, None))
    }

    fn closed(&self) -> Vec<(u32, u64, bool, u64)> {
        let all = self.0.iter();
        all.filter_map(|(segment, (weight, exact, end))| Some((*segment, *weight, *exact, (*end)?)))
            .collect()
    }

    fn dead(&self, before: u32) -> Vec<u32> {
        let closed = self.closed().into_iter();
        closed
            .filter(|(segment, weight, exact, _)| *weight == 0 && *exact && *segment < before)
            .map(|(segment, ..)| segment)
            .collect()
    }

    fn emptiest(&self) -> Vec<u32> {
        let closed = self.closed().into_iter();
        let mut rest: Vec<_> = closed
            .filter(|(_, weight, exact, _)| *weight > 0 || !*exact)
            .map(|(segment, weight, _, end)| ((weight * LEVELS / end.max(1)).min(LEVELS), segment))
            .collect();
        rest.sort_unstable();
        rest.into_iter().map(|(_, segment)| segment).collect()
    }
}

fn step(rng: &mut Rng, live: &mut Live, naive: &mut Naive) {
    let segment = rng.below(12) as u32;
    let weight = rng.below(5000);
    match rng.below(32) {
        0..=9 => {
            live.add(segment, weight);
            naive.at(segment).0 += weight;
        }
        10..=19 => {
            if let Some((has, exact, _)) = naive.0.get_mut(&segment)
                && (!*exact || *has >= weight)
            {
                *has = has.saturating_sub(weight);
                live.sub(segment, weight);
            }
        }
        20..=22 => {
            // All that was added before it was closed is behind it: to the last byte, often.
            if let Some((has, exact, _)) = naive.0.get_mut(&segment) {
                let all = *has;
                *has = 0;
                assert!(*exact || all == live.of(segment));
                live.sub(segment, all);
            }
        }
        23..=26 => {
            let end = rng.below(60_000);
            live.close(segment, end);
            naive.at(segment).2 = Some(end);
        }
        27..=28 => {
            let (has, exact, _) = naive.at(segment);
            if !*exact || *has == 0 {
                (*has, *exact) = (0, true);
                live.cleaned(segment);
            } else {
                live.add(segment, 0);
            }
        }
        29 => {
            live.forget(segment);
            naive.0.remove(&segment);
        }
        30 => {
            live.load(segment, weight);
            let at = naive.at(segment);
            (at.0, at.1) = (weight, false);
        }
        _ => {
            live.doubt_all();
            naive
                .0
                .values_mut()
                .for_each(|(_, exact, _)| *exact = false);
        }
    }
}

#[test]
fn it_says_what_a_look_at_all_segments_says() {
    for seed in 0..300 {
        let mut rng = Rng(seed);
        let (mut live, mut naive) = (Live::default(), Naive::default());
        for _ in 0..200 {
            step(&mut rng, &mut live, &mut naive);
            let before = rng.below(14) as u32;
            assert_eq!(
                live.dead(before).collect::<Vec<_>>(),
                naive.dead(before),
                "seed {seed}"
            );
            assert_eq!(
                live.emptiest().collect::<Vec<_>>(),
                naive.emptiest(),
                "seed {seed}"
            );
            let closed = naive.closed();
            let closed = closed.iter().fold((0, 0), |sum, (_, weight, _, end)| {
                (sum.0 + weight, sum.1 + end)
            });
            assert_eq!(live.closed(), closed, "seed {seed}");
            let weight: u64 = naive.0.values().map(|at| at.0).sum();
            assert_eq!(live.weight(), weight, "seed {seed}");
        }
    }
}
