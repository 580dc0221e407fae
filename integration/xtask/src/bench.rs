//! How fast it is, beside its peers: a program of the integration crate.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::demo;
use crate::run::{self, Program};
use crate::setup;
use crate::workspace::Workspace;

/// All jobs, five pairs each, take about twenty minutes.
const BOUND: Duration = Duration::from_secs(3 * 3600);
const SMOKE_BOUND: Duration = Duration::from_secs(90);
/// Of what is measured.
const PROFILE: &str = "production";
const PAGE: &str = "docs/performance.md";
const PICTURES: &str = "docs/images";

/// A run of all jobs is written into the docs; a part of them is for looking at.
pub fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let has = |name: &str| {
        let mut names = arguments.iter();
        names.any(|argument| argument == name || argument.starts_with(&format!("{name}=")))
    };
    if has("--list") || has("--help") {
        run::inherit(build(workspace).arg("--quiet"), demo::BUILD_BOUND)?;
        return run::inherit(program(workspace).args(arguments), BOUND);
    }
    let log = workspace.log("build");
    // What grows is looked at without peers.
    if !has("--growth") {
        setup::peers()?;
    }
    if !has("--profile") && !has("--guest") && !has("--growth") {
        other_peers(arguments, has("--with-ceph"))?;
    }
    if has("--profile") {
        setup::perf()?;
    }
    if has("--guest") {
        match has("--json") {
            true => {
                let own = Program::new(std::env::current_exe()?).args(["setup", "--bench"]);
                run::logged(own, demo::BUILD_BOUND, &log)?;
            }
            false => set_up_guests(workspace)?,
        }
    }
    // What grows is shown by programs of its own.
    let product = (!has("--growth")).then(|| product(workspace));
    for build in [Some(build(workspace)), product].into_iter().flatten() {
        // Machines read the standard output.
        match has("--json") {
            true => run::logged(build, demo::BUILD_BOUND, &log),
            false => run::inherit(build.arg("--quiet"), demo::BUILD_BOUND),
        }?;
    }
    let ukai = workspace.target.join(PROFILE).join("ukai");
    let mut program = program(workspace).args(arguments).env("UKAI_BIN", ukai);
    if !has("--quick") && !has("--only") && !has("--document") {
        program = program
            .arg("--document")
            .arg(workspace.root.join(PAGE))
            .arg("--pictures")
            .arg(workspace.root.join(PICTURES));
    }
    run::inherit(program, BOUND)
}

/// What only some jobs are compared with, as far as those were asked for.
fn other_peers(arguments: &[String], with_ceph: bool) -> Result<()> {
    if may_run("iscsi", arguments)
        && let Err(error) = setup::iscsi()
    {
        // Not every machine has the packages; the program says which jobs it leaves out, or that none is left.
        eprintln!("no iSCSI here: {error:#}");
    }
    match with_ceph {
        true => setup::ceph(),
        false => Ok(()),
    }
}

/// Whether jobs whose names begin with `family` may be among those that are asked for.
fn may_run(family: &str, arguments: &[String]) -> bool {
    let (mut all, mut wanted) = (true, false);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let name = match word.strip_prefix("--only") {
            Some("") => words.next().map(String::as_str),
            Some(rest) => rest.strip_prefix('='),
            None => None,
        };
        if let Some(name) = name {
            all = false;
            wanted |= name.starts_with(family) || family.starts_with(name);
        }
    }
    all || wanted
}

/// Guests, and what their speed is measured with.
pub fn set_up_guests(workspace: &Workspace) -> Result<()> {
    setup::run(workspace)?;
    setup::benchmarks(workspace)
}

/// One tiny job, to see that it still works. Its figures mean nothing on a machine that is busy.
pub fn smoke(workspace: &Workspace, log: &Path) -> Result<()> {
    let tiny = [
        "--quick",
        "--only",
        "two-write-1",
        "--pairs",
        "1",
        "--run-ms",
        "100",
        "--disk-mib",
        "32",
    ];
    run::logged(program(workspace).args(tiny), SMOKE_BOUND, log)
}

fn program(workspace: &Workspace) -> Program {
    demo::guest_program(workspace, "ukai-bench")
}

fn build(workspace: &Workspace) -> Program {
    workspace.cargo("build").args([
        "--release",
        "--locked",
        "--package",
        "integration",
        "--bin",
        "ukai-bench",
    ])
}

/// The product as hosts run it: built as a whole, without the hooks for planted bugs that the simulator switches on.
fn product(workspace: &Workspace) -> Program {
    workspace
        .cargo("build")
        .args(["--profile", PROFILE, "--locked", "--package", "cli"])
}

#[cfg(test)]
mod tests {
    use super::may_run;

    #[test]
    fn what_nobody_asks_for_is_not_installed() {
        let iscsi = |line: &str| {
            let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            may_run("iscsi", &arguments)
        };
        assert!(iscsi("") && iscsi("--quick --pairs 2"));
        assert!(iscsi("--only iscsi-write-1") && iscsi("--only=is --json"));
        assert!(iscsi("--only write-1 --only iscsi"));
        assert!(!iscsi("--quick --only two-write-1") && !iscsi("--only=idle-disks"));
    }
}
