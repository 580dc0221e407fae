//! One turn of the story, watched from outside: the guest through its ticks, the cluster through
//! `ukai status`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::fault::{Fault, Stall, Step};
use super::report::{FaultTold, TurnTold};
use super::scene::{Cast, Scene, Sight};
use super::story::{Times, Turn};
use crate::guest::ticks::Stamp;

const POLL: Duration = Duration::from_millis(50);
/// How often the operator looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// All is well when it has been for so long: what is about to move has begun by then.
const STEADY: Duration = Duration::from_secs(2);
/// A line that was said is kept once; a story does not say more different ones.
const MOST_SAID: usize = 40;

pub struct Judge {
    times: Times,
    well_bound: Duration,
}

impl Judge {
    pub fn new(times: Times, well_bound: Duration) -> Judge {
        Judge { times, well_bound }
    }

    /// Plays one turn to its end, or to the first thing that is wrong.
    pub fn watch(&self, scene: &mut Scene, turn: &Turn) -> TurnTold {
        let mut told = TurnTold {
            bound: turn.bound(self.times),
            ..TurnTold::default()
        };
        if let Err(error) = self.play(scene, turn, &mut told) {
            told.wrong.push(format!("{error:#}"));
        }
        told
    }

    fn play(&self, scene: &mut Scene, turn: &Turn, told: &mut TurnTold) -> Result<()> {
        let sight = scene.wait_well(self.well_bound)?;
        let cast = scene.cast(&sight)?;
        told.faults = turn
            .faults
            .iter()
            .map(|planned| FaultTold::new(planned, &cast))
            .collect();
        let (begun, begun_at) = (Instant::now(), Stamp::now());
        let mut script = turn.script();
        let mut looked: Option<Instant> = None;
        let mut well_since: Option<Instant> = None;
        // The writer's own clock is not stopped by what we do: one request that waits too long is wrong
        // even if it never ends.
        loop {
            for number in 0..turn.faults.len() {
                while let Some(step) = script.due(number, begun.elapsed()) {
                    match self.has_come(scene, step, &told.said, &told.faults[number], &cast)? {
                        None => {}
                        Some(true) => script.came(number, begun.elapsed()),
                        Some(false) => break,
                    }
                    script.done(number);
                    let when = begun.elapsed();
                    let outcome = scene
                        .perform(step, &cast)
                        .with_context(|| format!("{step:?} of {:?}", turn.faults[number].fault))?;
                    told.faults[number].performed(step, when, outcome);
                }
            }
            if let Some(tenant) = scene.tenant() {
                tenant.must_be_well()?;
            }
            if looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                looked = Some(Instant::now());
                self.waits(scene, told, begun_at)?;
                if let Some(sight) = scene.look() {
                    note(told, &sight, begun.elapsed());
                    match sight.all_is_well() && script.is_over() {
                        true => _ = well_since.get_or_insert_with(Instant::now),
                        false => well_since = None,
                    }
                }
            }
            if script.is_over()
                && let Some(since) = well_since
                && since.elapsed() >= STEADY
            {
                told.well_after = Some(since - begun);
                break;
            }
            if begun.elapsed() > self.well_bound {
                let sight = scene.look().map(|sight| sight.status);
                anyhow::bail!("not well again in time: {sight:?}");
            }
            std::thread::sleep(POLL);
        }
        scene.tenant().context("the VM is lost")?.must_go_on()?;
        self.longest_wait(scene, turn, told, begun_at)?;
        self.as_called_for(turn, told, &cast);
        Ok(())
    }

    /// Whether what the step waits for has come; none if it waits for nothing.
    fn has_come(
        &self,
        scene: &mut Scene,
        step: Step,
        said: &[String],
        fault: &FaultTold,
        cast: &Cast,
    ) -> Result<Option<bool>> {
        let come = match step {
            Step::AwaitFull(who) => {
                let full = said.iter().any(|line| line.contains("is full"));
                if !full {
                    scene.keep_full(who, cast)?;
                }
                full
            }
            Step::AwaitVm => scene.tenant().is_some(),
            Step::AwaitCopies(who) => {
                let full = fault.full_after.is_some();
                full && scene.has_copies_without(cast.host(who))?
            }
            // It is asked for only when the disk's map no longer names the store.
            Step::AwaitEmpty(who) => {
                fault.ejected_after.is_some() && scene.is_empty(cast.host(who))?
            }
            _ => return Ok(None),
        };
        Ok(Some(come))
    }

    /// The guest may be waiting right now, and for too long.
    fn waits(&self, scene: &mut Scene, told: &TurnTold, begun: Stamp) -> Result<()> {
        if scene.tenant().is_none() || told.faults.iter().any(|one| one.stall == Stall::Gone) {
            return Ok(());
        }
        if let Some(since) = scene.ticks.waiting_since()? {
            let waits = Stamp::now().since(since.max(begun));
            anyhow::ensure!(
                waits <= told.bound,
                "the guest has been waiting for {:.1} s; the story allows {:.1} s",
                waits.as_secs_f64(),
                told.bound.as_secs_f64()
            );
        }
        Ok(())
    }

    /// Of all requests that were under way during this turn.
    fn longest_wait(
        &self,
        scene: &Scene,
        turn: &Turn,
        told: &mut TurnTold,
        begun: Stamp,
    ) -> Result<()> {
        let operations = scene.ticks.operations()?;
        let during = operations.iter().filter(|one| one.ended >= begun);
        let longest = during.map(|one| one.took()).max().unwrap_or_default();
        told.longest_wait = Some(longest);
        let gone = turn
            .faults
            .iter()
            .any(|one| one.fault.stall() == Stall::Gone);
        if longest > told.bound && !gone {
            told.wrong.push(format!(
                "the guest waited {:.1} s; the story allows {:.1} s",
                longest.as_secs_f64(),
                told.bound.as_secs_f64()
            ));
        }
        Ok(())
    }

    /// What must have been said, was.
    fn as_called_for(&self, turn: &Turn, told: &mut TurnTold, cast: &Cast) {
        for planned in &turn.faults {
            if planned.fault == Fault::TooFewCopies
                && !told.said.iter().any(|line| line.contains("min-copies"))
            {
                let wrong = "the guest was to wait for `min-copies`, and nobody said that it did";
                told.wrong.push(wrong.into());
            }
            let host = match planned.fault {
                Fault::StoreRolledBack | Fault::StoreSwapped => cast.near,
                Fault::WriterStoreRolledBack => cast.writer,
                _ => continue,
            };
            let refused = |line: &String| line.starts_with("store ") && line.contains(host);
            if !told.said.iter().any(refused) {
                told.wrong.push(format!(
                    "the store of {host} was not what it had been, and nobody said so"
                ));
            }
        }
    }
}

fn note(told: &mut TurnTold, sight: &Sight, at: Duration) {
    for problem in &sight.status.problems {
        let line = without_numbers(problem);
        if told.said.len() < MOST_SAID && !told.said.iter().any(|one| without_numbers(one) == line)
        {
            told.said.push(problem.clone());
        }
    }
    for fault in &mut told.faults {
        let Some((hurt, since)) = fault.hurt.clone() else {
            continue;
        };
        let is_member = sight.members.contains(&hurt);
        if !is_member && fault.ejected_after.is_none() {
            fault.ejected_after = Some(at.saturating_sub(since));
        }
        if fault.ejected_after.is_some()
            && fault.full_after.is_none()
            && sight.status.disks_short == 0
        {
            fault.full_after = Some(at.saturating_sub(since));
        }
    }
}

/// "silent for 3 s" and "silent for 4 s" are one thing said.
fn without_numbers(line: &str) -> String {
    line.chars().filter(|c| !c.is_ascii_digit()).collect()
}
