//! What came of it.

use std::time::Duration;

use serde::Serialize;

use super::Catalog;
use super::fault::{Fault, REPAIR_AFTER, Stall, Step};
use super::left_behind::Noticed;
use super::scene::{Cast, Outcome};
use super::story::{Planned, Times};

/// As `--json` prints it: times in seconds.
#[derive(Serialize)]
pub struct Report {
    pub seed: u64,
    pub catalog: Catalog,
    /// Why the hosts have no networks of their own, if they have not.
    pub on_loopback: Option<String>,
    #[serde(serialize_with = "seconds", rename = "eject_after_s")]
    pub eject_after: Duration,
    pub turns: Vec<TurnTold>,
    /// The guest's writer, at the end: every block was read once more.
    pub verified: Option<String>,
    /// What was wrong after all turns.
    pub at_the_end: Option<String>,
}

#[derive(Serialize, Default)]
pub struct TurnTold {
    pub faults: Vec<FaultTold>,
    /// The longest that one request of the guest waited, and may wait.
    #[serde(serialize_with = "some_seconds", rename = "longest_wait_s")]
    pub longest_wait: Option<Duration>,
    #[serde(serialize_with = "seconds", rename = "bound_s")]
    pub bound: Duration,
    /// From the turn's beginning: no host silent, no copy missing, nothing under way.
    #[serde(serialize_with = "some_seconds", rename = "well_after_s")]
    pub well_after: Option<Duration>,
    /// What `ukai status` named as problems meanwhile.
    pub said: Vec<String>,
    pub wrong: Vec<String>,
}

#[derive(Serialize)]
pub struct FaultTold {
    pub fault: Fault,
    #[serde(skip)]
    pub stall: Stall,
    #[serde(serialize_with = "seconds", rename = "held_s")]
    pub holds: Duration,
    /// The host that was hurt, and when.
    #[serde(skip)]
    pub hurt: Option<(String, Duration)>,
    pub host: Option<String>,
    /// Since the fault began: until the host was no member any more; then until no copy was missing.
    #[serde(serialize_with = "some_seconds", rename = "ejected_after_s")]
    pub ejected_after: Option<Duration>,
    #[serde(serialize_with = "some_seconds", rename = "full_after_s")]
    pub full_after: Option<Duration>,
    /// Of a take-over: until the new host had the disk, and until a VM ran there.
    #[serde(serialize_with = "some_seconds", rename = "attached_after_s")]
    pub attached_after: Option<Duration>,
    #[serde(serialize_with = "some_seconds", rename = "running_after_s")]
    pub running_after: Option<Duration>,
    /// Of an evacuation: until the store had nothing left.
    #[serde(serialize_with = "some_seconds", rename = "empty_after_s")]
    pub empty_after: Option<Duration>,
    /// Another `repair-after` than the others had.
    #[serde(serialize_with = "some_seconds", rename = "repair_after_s")]
    pub repair_after: Option<Duration>,
    /// Of a VM that ran on after its disk was taken over.
    #[serde(serialize_with = "told", rename = "old_vm")]
    pub noticed: Option<Noticed>,
    #[serde(skip)]
    cast: Cast,
}

impl Report {
    pub fn new(seed: u64, times: Times, catalog: Catalog) -> Report {
        Report {
            seed,
            catalog,
            on_loopback: None,
            eject_after: times.eject_after,
            turns: Vec::new(),
            verified: None,
            at_the_end: None,
        }
    }

    pub fn wrong(&self) -> Vec<&String> {
        let turns = self.turns.iter().flat_map(|turn| &turn.wrong);
        turns.chain(&self.at_the_end).collect()
    }

    /// One line for all of it.
    pub fn line(&self) -> String {
        let faults: usize = self.turns.iter().map(|turn| turn.faults.len()).sum();
        let waits = self.turns.iter().filter_map(|turn| turn.longest_wait);
        let longest = waits.max().unwrap_or_default();
        let verified = self.verified.as_deref().unwrap_or("not verified");
        format!(
            "{faults} faults, {} wrong; the guest waited {:.1} s at most; {verified}",
            self.wrong().len(),
            longest.as_secs_f64()
        )
    }
}

impl TurnTold {
    pub fn line(&self) -> String {
        let mark = if self.wrong.is_empty() {
            "ok  "
        } else {
            "FAIL"
        };
        let faults: Vec<String> = self.faults.iter().map(FaultTold::words).collect();
        let well = self.well_after.unwrap_or_default().as_secs_f64();
        let mut line = format!("{mark} {well:>6.1}s {}", faults.join(", and "));
        if let Some(longest) = self.longest_wait {
            line += &format!(
                "; the guest waited {:.1} s (at most {:.1})",
                longest.as_secs_f64(),
                self.bound.as_secs_f64()
            );
        }
        for wrong in &self.wrong {
            line += &format!("\n     {wrong}");
        }
        line
    }
}

impl FaultTold {
    pub fn new(planned: &Planned, cast: &Cast) -> FaultTold {
        FaultTold {
            fault: planned.fault,
            stall: planned.fault.stall(),
            holds: planned.holds,
            hurt: None,
            host: None,
            ejected_after: None,
            full_after: None,
            attached_after: None,
            running_after: None,
            empty_after: None,
            repair_after: None,
            noticed: None,
            cast: *cast,
        }
    }

    /// A step was begun at that time of the turn, and is done.
    pub fn performed(&mut self, step: Step, at: Duration, outcome: Option<Outcome>) {
        match step {
            Step::AwaitEmpty(_) => self.empty_after = Some(at),
            Step::RepairAfter(time) if time > REPAIR_AFTER => self.repair_after = Some(time),
            _ => {}
        }
        if let Some(who) = step.hurts()
            && self.hurt.is_none()
        {
            let host = self.cast.host(who).to_owned();
            self.host = Some(host.clone());
            self.hurt = Some((host, at));
        }
        match outcome {
            Some(Outcome::TakenOver { attached, running }) => {
                self.attached_after = Some(attached);
                self.running_after = Some(running);
            }
            Some(Outcome::Noticed(noticed)) => self.noticed = Some(noticed),
            None => {}
        }
    }

    fn words(&self) -> String {
        let mut words = self.fault.name().to_string();
        if let Some(host) = &self.host {
            words += &format!(" ({host})");
        }
        words += &format!(" for {:.1} s", self.holds.as_secs_f64());
        let steps = [
            ("out", self.ejected_after),
            ("full copies", self.full_after),
            ("empty", self.empty_after),
            ("taken over", self.attached_after),
            ("VM runs", self.running_after),
        ];
        for (what, after) in steps {
            if let Some(after) = after {
                words += &format!(", {what} after {:.1} s", after.as_secs_f64());
            }
        }
        if let Some(time) = self.repair_after {
            words += &format!(" with repair-after {} s", time.as_secs());
        }
        if let Some(noticed) = self.noticed {
            words += &format!(", the old VM {}", noticed.words());
        }
        words
    }
}

impl Noticed {
    pub fn words(self) -> String {
        match self {
            Noticed::Waits => "waits".into(),
            Noticed::Errors(after) => {
                format!("got I/O errors after {:.1} s", after.as_secs_f64())
            }
        }
    }
}

fn seconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(rounded(*time))
}

fn some_seconds<S: serde::Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    time.map(rounded).serialize(to)
}

fn told<S: serde::Serializer>(noticed: &Option<Noticed>, to: S) -> Result<S::Ok, S::Error> {
    noticed.map(Noticed::words).serialize(to)
}

fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}
