//! Real processes, a real guest, and everything that can be done to them: `cargo xtask chaos`.
//!
//! - [`fault`]: what can fail, and what each failure allows the guest to notice.
//! - [`story`]: what fails when, drawn from a seed.
//! - [`scene`]: the cluster and its guest, and how each step is carried out; [`room`] and [`damage`] are the
//!   stores' media ([`hanging`]: those of a test that can hang), [`tenant`] is the guest with its oracles, and
//!   [`left_behind`] one whose disk was taken over while it ran.
//! - [`judge`]: one turn of the story, watched: what the guest saw, and when all was well again.
//! - [`report`], [`document`]: what came of it, for people, for machines and for `docs/failures.md`.

mod damage;
pub mod document;
pub mod fault;
pub mod hanging;
mod judge;
mod left_behind;
pub mod report;
pub mod room;
mod scene;
mod story;
mod tenant;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

pub use fault::Fault;
pub use report::Report;

use crate::networks::Networks;
use crate::processes::Scratch;
use judge::Judge;
use scene::Scene;
use story::{Story, Times, Turn};

/// What the docs promise: well under the timeout of any guest.
const EJECT_AFTER: Duration = Duration::from_secs(2);
/// Two busy cores carry six daemons and a guest without KVM.
const SLACK: Duration = Duration::from_secs(8);
/// A leader is given up after five seconds without a sign of life; etcd elects its own before.
const ELECTION: Duration = Duration::from_secs(10);
/// Nodes that start, stores that are heard, copies that are made.
const WELL_BOUND: Duration = Duration::from_secs(240);
const _: () = assert!(fault::REPAIR_NEVER.as_secs() > WELL_BOUND.as_secs());

/// What is to go wrong.
pub enum Plot {
    /// One of these after another until the time is over.
    For(Duration, Vec<Fault>),
    /// Each of these once, by itself.
    Each(Vec<Fault>),
}

/// Where the placement services keep what they know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Catalog {
    /// Three members of etcd, and as many placement services.
    Etcd,
    /// A file, and one placement service.
    Redb,
}

pub struct Chaos {
    pub plot: Plot,
    pub catalog: Catalog,
    pub seed: u64,
}

impl Chaos {
    /// An error is something that kept it from being played; what is wrong with Ukai is in the report.
    pub fn run(&self, scratch: &Scratch, say: impl Fn(&str)) -> Result<Report> {
        // Members of etcd stand on hosts of their own.
        let etcd = self.catalog == Catalog::Etcd && Networks::possible().is_ok();
        let (election, catalog) = match etcd {
            true => (ELECTION, Catalog::Etcd),
            false => (Duration::ZERO, Catalog::Redb),
        };
        let times = Times {
            eject_after: EJECT_AFTER,
            slack: SLACK,
            election,
        };
        let mut report = Report::new(self.seed, times, catalog);
        if let Err(why) = Networks::possible() {
            say(&format!(
                "--           all hosts share loopback, and some faults are left out: {why:#}"
            ));
            report.on_loopback = Some(format!("{why:#}"));
        }
        let rooted = report.on_loopback.is_none();
        let possible =
            |fault: &Fault| (rooted || !fault.needs_root()) && (etcd || !fault.needs_etcd());
        let mut scene = Scene::set(scratch, self.seed, times, etcd)?;
        let began = Instant::now();
        scene
            .wait_well(WELL_BOUND)
            .context("before anything went wrong")?;
        say(&format!(
            "ok   {:>6.1}s all is well, and nothing has failed yet",
            began.elapsed().as_secs_f64()
        ));
        let mut play = |scene: &mut Scene, turn: &Turn| -> bool {
            let told = Judge::new(times, WELL_BOUND).watch(scene, turn);
            say(&told.line());
            let well = told.wrong.is_empty();
            report.turns.push(told);
            well
        };
        match &self.plot {
            Plot::Each(faults) => {
                for fault in faults.iter().filter(|fault| possible(fault)) {
                    if !play(&mut scene, &Turn::of(*fault, times)) {
                        break;
                    }
                }
            }
            Plot::For(time, faults) => {
                let faults: Vec<Fault> = faults.iter().copied().filter(possible).collect();
                let mut story = Story::new(self.seed, &faults, times);
                let begun = Instant::now();
                while begun.elapsed() < *time && play(&mut scene, &story.next_turn()) {}
            }
        }
        if report.wrong().is_empty() {
            match scene.strike() {
                Ok(verified) => report.verified = Some(verified),
                Err(error) => report.at_the_end = Some(format!("{error:#}")),
            }
        }
        Ok(report)
    }
}
