//! A whole cluster in one thread and in virtual time: the real writer, the real stores on simulated
//! disks, the real rules of the placement map; the network, the clock, the guests and all misfortune
//! are drawn from a seed. The same seed gives the same run, event for event.
//!
//! Read [`oracle`] for how it would notice if anything were wrong, `world` for how time passes,
//! `network`, `pulls`, `shell` and `guests` for who does what, `load` for how much of it, `managed` for what the
//! placement service wants, `orders` and `drops` for what is wanted where that is drawn, `life`, `pause` and `rot` for what goes wrong, `quiet` and
//! `members` for the end, [`rare`] for where a run has to have been, and [`planted`] for how we know that it bites.

mod brief;
mod dice;
mod disk;
mod drops;
mod guests;
mod host;
mod life;
pub mod load;
mod managed;
mod members;
mod network;
pub mod oracle;
mod orders;
pub mod page;
mod pause;
mod placement;
pub mod planted;
mod pulls;
mod quiet;
pub mod rare;
mod rot;
pub mod scripts;
mod shell;
pub mod stats;
mod store_node;
pub mod trace;
mod world;

use replicator::plant::{Plant, plant};
use stats::Stats;
use std::panic::AssertUnwindSafe;
use trace::Trace;
use world::World;

/// What came of one seed.
pub struct Outcome {
    pub seed: u64,
    pub stats: Stats,
    /// Equal for equal runs.
    pub hash: u64,
    /// What was wrong, and what happened before.
    pub violation: Option<(String, Vec<String>)>,
}

/// What to show of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Show {
    Nothing,
    /// Keep the last lines, in case of a violation.
    Last,
    /// Print every line at once.
    All,
}

/// Runs one seed, with a planted bug or none.
pub fn run(seed: u64, bug: Option<Plant>, show: Show) -> Outcome {
    let keep = if show == Show::Nothing { 0 } else { 80 };
    let mut world = World::new(seed, Trace::new(keep, show == Show::All));
    plant(bug);
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| live(&mut world)));
    plant(None);
    outcome(seed, &world, ended)
}

fn outcome(
    seed: u64,
    world: &World,
    ended: std::thread::Result<Result<(), world::Violation>>,
) -> Outcome {
    let violation = match ended {
        Ok(Ok(())) => None,
        Ok(Err(world::Violation(what))) => Some(what),
        Err(panic) => Some(format!("an assertion failed: {}", message(&panic))),
    };
    Outcome {
        seed,
        stats: world.stats.clone(),
        hash: world.trace.hash(),
        violation: violation.map(|what| (what, world.trace.last().map(String::from).collect())),
    }
}

fn live(world: &mut World) -> Result<(), world::Violation> {
    for _ in 0..world.events {
        if !world.step()? {
            break;
        }
    }
    world.finish()
}

fn message(panic: &Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
    text.unwrap_or_else(|| "without a message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything() {
        for seed in [1, 7] {
            let (one, other) = (
                run(seed, None, Show::Nothing),
                run(seed, None, Show::Nothing),
            );
            assert_eq!((one.hash, one.stats), (other.hash, other.stats));
        }
    }

    #[test]
    fn some_seeds_are_clean() {
        for seed in 0..20 {
            let outcome = run(seed, None, Show::Nothing);
            let what = outcome.violation.map(|(what, _)| what);
            assert_eq!(what, None, "replay: cargo xtask sim --seed {seed}");
        }
    }
}
