//! Bugs on purpose: for each rule of the protocol that can be left out, the first seed that notices.

use super::{Show, run, scripts};
use replicator::plant::Plant;
use std::sync::atomic::{AtomicU64, Ordering};

/// The first of `seeds` seeds that finds a violation with `bug` planted, on all cores; and what it says.
pub fn find(bug: Plant, seeds: u64, threads: usize) -> Option<(u64, String)> {
    let next = AtomicU64::new(0);
    let best = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || seed >= best.load(Ordering::Relaxed) {
                        return;
                    }
                    if run(seed, Some(bug), Show::Nothing).violation.is_some() {
                        best.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let seed = best.into_inner();
    let (what, _) = (seed < seeds)
        .then(|| run(seed, Some(bug), Show::Nothing).violation)
        .flatten()?;
    Some((seed, what))
}

/// The first script, and way to tell it, that finds a violation with `bug` planted; and what it says.
pub fn find_in_scripts(bug: Plant) -> Option<(&'static str, u64, String)> {
    scripts::ALL.iter().find_map(|script| {
        (0..script.ways).find_map(|way| {
            let (what, _) = script.run(way, Some(bug), Show::Nothing).violation?;
            Some((script.name, way, what))
        })
    })
}
