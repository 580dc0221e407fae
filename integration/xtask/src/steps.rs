//! A line and a time for each step, and the sum at the end.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Of a failed step's log, this much is shown: enough for a panic and what led to it.
const SHOWN_LINES: usize = 60;

#[derive(Default)]
pub struct Steps {
    done: Vec<Step>,
}

struct Step {
    name: String,
    time: Duration,
    passed: bool,
}

impl Steps {
    /// Runs one step; a failure is reported and counted, and the next step goes on.
    pub fn step(
        &mut self,
        name: &str,
        log: &Path,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        crate::run::interrupted()?;
        println!("..           {name}");
        let _ = fs::remove_file(log);
        let begun = Instant::now();
        let result = work();
        let time = begun.elapsed();
        crate::run::interrupted()?;
        match &result {
            Ok(()) => println!("ok   {:>6.1}s {name}", time.as_secs_f64()),
            Err(error) => {
                show_end(log);
                println!("FAIL {:>6.1}s {name}: {error:#}", time.as_secs_f64());
            }
        }
        self.done.push(Step {
            name: name.to_owned(),
            time,
            passed: result.is_ok(),
        });
        Ok(())
    }

    pub fn skip(&self, name: &str, why: &str) {
        println!("--           {name}: left out, {why}");
    }

    /// The table, the line that machines read, and an error if anything failed.
    pub fn finish(&self) -> Result<()> {
        println!();
        for Step { name, time, passed } in &self.done {
            let mark = if *passed { "ok" } else { "FAIL" };
            println!("{mark:<4} {:>6.1}s {name}", time.as_secs_f64());
        }
        let total: Duration = self.done.iter().map(|step| step.time).sum();
        let failed = self.done.iter().filter(|step| !step.passed).count();
        println!("     {:>6.1}s in all", total.as_secs_f64());
        println!("{} passed, {failed} failed", self.done.len() - failed);
        if failed > 0 {
            bail!("{failed} of {} steps failed", self.done.len());
        }
        Ok(())
    }
}

fn show_end(log: &Path) {
    let Ok(text) = fs::read(log) else { return };
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    println!("---- the end of {}", log.display());
    for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
        println!("{line}");
    }
    println!("----");
}
