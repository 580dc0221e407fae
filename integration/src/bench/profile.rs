//! What one 4 KiB request costs the processes that serve it: system calls, wake-ups, allocations, and in
//! which functions the time goes. By `perf`, while the bench's load is on.
//!
//! Counting costs something itself, so these figures are no measure of speed.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::load::{Doing, Load, Time};
use super::measure::{Target, measure};
use super::report::number;
use super::side::{Kind, Stage};
use super::statistics::{Figures, Sample};
use crate::processes::ask;

const COUNTED: Duration = Duration::from_millis(1500);
const BOUND: Duration = Duration::from_secs(30);
/// Functions with less than this of the samples are not shown.
const LEAST_PERCENT: f64 = 2.0;
const MOST_FUNCTIONS: usize = 14;
const MALLOC: &str = "probe_libc:malloc";

const LOADS: [(Kind, &str, Load); 8] = [
    (
        Kind::OneCopy,
        "write, one copy, depth 1",
        Load::random(Doing::Write, 1),
    ),
    (
        Kind::OneCopy,
        "write, one copy, depth 32",
        Load::random(Doing::Write, 32),
    ),
    (
        Kind::OneCopy,
        "write + FLUSH, one copy, 16 writers",
        Load::random(Doing::WriteAndFlush, 16),
    ),
    (
        Kind::OneCopy,
        "read, cached, depth 1",
        Load::random(Doing::Read, 1),
    ),
    (
        Kind::OneCopy,
        "read, cached, depth 32",
        Load::random(Doing::Read, 32),
    ),
    (
        Kind::TwoCopies,
        "write, two copies, depth 1",
        Load::random(Doing::Write, 1),
    ),
    (
        Kind::TwoCopies,
        "write, two copies, depth 32",
        Load::random(Doing::Write, 32),
    ),
    (
        Kind::FarCopy,
        "read, far copy, depth 32",
        Load::random(Doing::Read, 32),
    ),
];

/// The profile as Markdown.
pub fn profile(stage: &mut Stage) -> Result<String> {
    let probe = Probe::set();
    let mut text = String::from(
        "| 4 KiB | requests a second | CPU | wake-ups | allocations | system calls, each per request |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut functions = String::new();
    for (kind, what, load) in LOADS {
        stage.target(kind)?;
        if load.doing == Doing::Read {
            stage.warm(kind)?;
        }
        let (plain, counts) = counted(stage, kind, &load, probe.is_some())?;
        let mut calls = String::new();
        for (name, each) in counts
            .iter()
            .filter(|(name, each)| name != MALLOC && *each >= 0.005)
        {
            let _ = write!(calls, "{name} {each:.2}, ");
        }
        let total: f64 = counts
            .iter()
            .filter(|(name, _)| name != MALLOC)
            .map(|(_, each)| each)
            .sum();
        let malloc = counts.iter().find(|(name, _)| name == MALLOC);
        let _ = writeln!(
            text,
            "| {what} | {} | {} us | {:.2} | {} | {} (in all {total:.2}) |",
            number(plain.iops),
            number(plain.cpu_us),
            plain.sleeps,
            malloc.map_or("-".into(), |(_, each)| format!("{each:.2}")),
            calls.trim_end_matches(", "),
        );
        let _ = writeln!(
            functions,
            "{what}:\n\n```\n{}```\n",
            sampled(stage, kind, &load)?
        );
    }
    Ok(format!(
        "Of all processes of the side. Allocations are calls of malloc. CPU, wake-ups and requests a second are from a run\n\
         without perf.\n\n{text}\nWhere the time goes, in percent of the samples:\n\n{functions}"
    ))
}

/// A run without perf, and what perf counted in another one, per request: from before its first to behind its last, since
/// perf takes its time to begin, and what it counts is slow.
fn counted(
    stage: &mut Stage,
    kind: Kind,
    load: &Load,
    malloc: bool,
) -> Result<(Figures, Vec<(String, f64)>)> {
    let plain = run(stage, kind, load, |_| Ok(()))?.0;
    let (begun, over) = (stage.path("perf.begun"), stage.path("perf.over"));
    for stale in [&begun, &over] {
        let _ = std::fs::remove_file(stale);
    }
    let target = stage.target(kind)?;
    let mut command = Command::new("perf");
    command.args(["stat", "-x,", "-e", "syscalls:sys_enter_*"]);
    if malloc {
        command.args(["-e", MALLOC]);
    }
    command.args(["-p", &pids(&target), "--", "sh", "-c", WHILE_WANTED]);
    command.args([&begun, &over]);
    let time = Time {
        warm_up: Duration::ZERO,
        measured: COUNTED,
    };
    let (sample, counts) = thread::scope(|scope| {
        let counter = scope.spawn(|| ask("perf stat", command, BOUND));
        let sample = wait_for(&begun).and_then(|()| measure(&target, load, time, 1));
        std::fs::write(&over, "")?;
        let answer = counter.join().expect("no panic in it")?;
        ensure!(answer.status.success(), "perf stat: {}", answer.err);
        anyhow::Ok((sample?, counts_in(&answer.err)))
    })?;
    let mut each: Vec<_> = counts
        .into_iter()
        .map(|(name, count)| (name, count as f64 / sample.operations as f64))
        .collect();
    each.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok((Figures::of(&plain), each))
}

/// What perf counts during: says that it has begun, and waits to be told that it is over.
const WHILE_WANTED: &str = r#"touch "$0"; until [ -e "$1" ]; do sleep 0.02; done"#;

fn wait_for(file: &Path) -> Result<()> {
    let deadline = Instant::now() + BOUND / 2;
    while !file.exists() {
        ensure!(Instant::now() < deadline, "perf stat does not begin");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn sampled(stage: &mut Stage, kind: Kind, load: &Load) -> Result<String> {
    let data = stage.path("perf.data");
    run(stage, kind, load, |pids| {
        let mut command = Command::new("perf");
        command
            .args(["record", "-F", "999", "-o"])
            .arg(&data)
            .args(["-p", pids, "--", "sleep", &seconds()]);
        let answer = ask("perf record", command, BOUND)?;
        ensure!(answer.status.success(), "perf record: {}", answer.err);
        Ok(())
    })?;
    let mut command = Command::new("perf");
    command
        .args([
            "report",
            "--stdio",
            "--no-children",
            "--sort",
            "comm,sym",
            "-i",
        ])
        .arg(&data);
    let answer = ask("perf report", command, BOUND)?;
    ensure!(answer.status.success(), "perf report: {}", answer.err);
    Ok(functions_in(&answer.out))
}

/// The load for as long as `look` takes, and a little before.
fn run<T: Send>(
    stage: &mut Stage,
    kind: Kind,
    load: &Load,
    look: impl FnOnce(&str) -> Result<T> + Send,
) -> Result<(Sample, T)> {
    let target = stage.target(kind)?;
    let pids = pids(&target);
    let warm_up = Duration::from_millis(300);
    thread::scope(|scope| {
        let looker = scope.spawn(|| {
            thread::sleep(warm_up);
            look(&pids)
        });
        let time = Time {
            warm_up,
            measured: COUNTED + Duration::from_millis(700),
        };
        let sample = measure(&target, load, time, 1)?;
        let seen = looker.join().expect("no panic in it")?;
        Ok((sample, seen))
    })
}

fn pids(target: &Target) -> String {
    let pids: Vec<String> = target.pids.iter().map(u32::to_string).collect();
    pids.join(",")
}

fn seconds() -> String {
    COUNTED.as_secs_f64().to_string()
}

/// Lines of `perf stat -x,`: `21,,syscalls:sys_enter_futex,…`.
fn counts_in(text: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let mut fields = line.split(',');
        let count: u64 = fields.next()?.parse().ok()?;
        let name = fields.nth(1)?;
        let name = name.strip_prefix("syscalls:sys_enter_").unwrap_or(name);
        (count > 0).then(|| (name.to_owned(), count))
    };
    text.lines().filter_map(line).collect()
}

/// Lines of `perf report --stdio`, without those about little.
fn functions_in(text: &str) -> String {
    let percent = |line: &&str| {
        let (percent, _) = line.trim_start().split_once('%')?;
        percent.parse::<f64>().ok()
    };
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.filter(|line| percent(line).is_some_and(|percent| percent >= LEAST_PERCENT));
    lines
        .take(MOST_FUNCTIONS)
        .map(|line| {
            format!(
                "{}\n",
                line.trim_end().chars().take(118).collect::<String>()
            )
        })
        .collect()
}

/// On the C library's malloc, for the whole machine, as long as this lives.
struct Probe;

impl Probe {
    /// None: this kernel has none, or somebody else has set it.
    fn set() -> Option<Probe> {
        let library = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/usr/lib64/libc.so.6",
            "/lib64/libc.so.6",
        ];
        let library = library.into_iter().find(|file| Path::new(file).exists())?;
        let mut command = Command::new("perf");
        command.args(["probe", "-q", "-x", library, "malloc"]);
        let answer = ask("perf probe", command, BOUND).ok()?;
        answer.status.success().then_some(Probe)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let mut command = Command::new("perf");
        command.args(["probe", "-q", "-d", MALLOC]);
        let _ = ask("perf probe", command, BOUND);
    }
}

/// That there is a perf which may look at processes.
pub fn possible() -> Result<()> {
    let mut command = Command::new("perf");
    command.args(["stat", "-e", "raw_syscalls:sys_enter", "--", "true"]);
    let answer = ask("perf stat", command, BOUND).context("a profile wants perf (linux-perf)")?;
    ensure!(
        answer.status.success(),
        "perf may not count here: {}",
        answer.err
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_perf_stat() {
        let text = "21,,syscalls:sys_enter_futex,8421799,100.00,,\n\
                    0,,syscalls:sys_enter_write,8421799,100.00,,\n\
                    <not counted>,,syscalls:sys_enter_read,0,0.00,,\n\
                    7,,probe_libc:malloc,8421799,100.00,,\n";
        let wanted = [("futex".to_owned(), 21), (MALLOC.to_owned(), 7)];
        assert_eq!(counts_in(text), wanted);
    }

    #[test]
    fn functions_of_perf_report() {
        let text = "# Overhead  Command  Symbol\n#\n\n    12.50%  ukai  [k] copy\n     0.90%  ukai  [.] small\n";
        assert_eq!(functions_in(text), "    12.50%  ukai  [k] copy\n");
    }
}
