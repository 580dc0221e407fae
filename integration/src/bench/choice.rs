//! Which tasks a run has: all of them, or those that were asked for by name; less those that this machine cannot do.

use anyhow::{Result, bail};

use super::compare::{Compared, compare};
use super::job::{JOBS, Job, SPECIALS, Special};
use super::load::Time;
use super::needs::Needs;
use super::side::{Kind, Stage};

/// One that can be asked for by its name.
#[derive(Clone, Copy)]
pub enum Task {
    Job(&'static Job),
    Special(&'static Special),
}

impl Task {
    pub fn name(&self) -> &'static str {
        match self {
            Task::Job(job) => job.name,
            Task::Special(special) => special.name,
        }
    }

    pub fn what(&self) -> String {
        match self {
            Task::Job(job) => format!("{}; {}, {}", job.what, job.ours.name(), job.peer.name()),
            Task::Special(special) => special.what.to_owned(),
        }
    }

    pub fn needs(&self) -> Option<Needs> {
        self.kinds().into_iter().find_map(Kind::needs)
    }

    pub fn has(&self, kind: Kind) -> bool {
        self.kinds().contains(&kind)
    }

    fn kinds(&self) -> Vec<Kind> {
        match self {
            Task::Job(job) => vec![job.ours, job.peer],
            Task::Special(_) => Vec::new(),
        }
    }

    pub fn run(&self, stage: &mut Stage, pairs: usize, time: Time) -> Result<Vec<Compared>> {
        match self {
            Task::Job(job) => Ok(vec![compare(stage, job, pairs, time)?]),
            Task::Special(special) => (special.run)(stage, pairs, time),
        }
    }
}

pub struct Choice {
    pub tasks: Vec<Task>,
    /// With what each lacks.
    pub left_out: Vec<(Task, String)>,
}

/// Those with goals first, and Ceph's last. `only`: by its name, or, where none has this name, all whose names begin so.
/// `lacks`: why this run has not what a task needs. An error if of one of `only` nothing is left.
pub fn choose(only: &[String], lacks: impl Fn(Needs) -> Option<String>) -> Result<Choice> {
    let without = JOBS.partition_point(|job| !job.goals.is_empty());
    let (with, without) = JOBS.split_at(without);
    let all = with.iter().map(Task::Job);
    let all = all.chain(SPECIALS.iter().map(Task::Special));
    let mut all: Vec<Task> = all.chain(without.iter().map(Task::Job)).collect();
    // While it is set up the others' disks lie idle, and what lay idle may be slow to read.
    all.sort_by_key(|task| task.needs() == Some(Needs::Ceph));
    let named = |task: &Task, only: &str| match all.iter().any(|task| task.name() == only) {
        true => task.name() == only,
        false => task.name().starts_with(only),
    };
    let lacking = |task: &Task| task.needs().and_then(&lacks);
    for only in only {
        let named: Vec<&Task> = all.iter().filter(|task| named(task, only)).collect();
        if named.is_empty() {
            bail!("no job has the name {only}; see --list");
        }
        let lacking: Vec<String> = named.iter().filter_map(|task| lacking(task)).collect();
        if lacking.len() == named.len() {
            bail!("{only}: {}", lacking[0]);
        }
    }
    let mut choice = Choice {
        tasks: Vec::new(),
        left_out: Vec::new(),
    };
    for task in &all {
        if only.is_empty() || only.iter().any(|only| named(task, only)) {
            match lacking(task) {
                None => choice.tasks.push(*task),
                Some(why) => choice.left_out.push((*task, why)),
            }
        }
    }
    Ok(choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(only: &[&str], lacking: Option<Needs>) -> Result<Vec<&'static str>> {
        let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
        let lacks = |needs| (lacking == Some(needs)).then(|| "it is not here".to_owned());
        let choice = choose(&only, lacks)?;
        Ok(choice.tasks.iter().map(Task::name).collect())
    }

    #[test]
    fn a_name_or_how_names_begin() -> Result<()> {
        assert_eq!(chosen(&["write-1"], None)?, ["write-1"], "not write-128");
        assert_eq!(
            chosen(&["second-write", "flush-1"], None)?,
            ["flush-1", "second-write-1", "second-write-32"]
        );
        assert_eq!(chosen(&[], None)?.len(), JOBS.len() + SPECIALS.len());
        assert!(chosen(&["write-1", "no-such"], None).is_err());
        Ok(())
    }

    #[test]
    fn what_cannot_run_is_left_out_unless_it_alone_was_asked_for() -> Result<()> {
        let lacking = Some(Needs::Ceph);
        let all = chosen(&[], lacking)?;
        assert!(all.contains(&"write-1") && all.contains(&"iscsi-write-1"));
        assert!(!all.iter().any(|name| name.starts_with("ceph")));
        assert!(chosen(&["c"], lacking)?.contains(&"cleaner"));
        let error = chosen(&["write-1", "ceph-write-1"], lacking).expect_err("it cannot run");
        assert_eq!(error.to_string(), "ceph-write-1: it is not here");
        assert_eq!(chosen(&["ceph-write-1"], None)?, ["ceph-write-1"]);
        Ok(())
    }
}
