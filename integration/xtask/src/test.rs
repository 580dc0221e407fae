//! Everything that must hold, in order. A step that fails is counted, and the next one still runs.
//!
//! All of it builds in one profile, release: dependencies are compiled once, and the simulator and the
//! guests run at full speed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench;
use crate::demo;
use crate::run::{self, Program};
use crate::setup;
use crate::steps::Steps;
use crate::workspace::Workspace;

const MINUTE: Duration = Duration::from_secs(60);
/// Test programs that need a guest; one after the other, for two cores carry one guest well.
const GUEST_TESTS: [&str; 5] = [
    "guest_harness",
    "guest_disk",
    "guest_migration",
    "guest_moves",
    "guest_chaos",
];

pub fn run(workspace: &Workspace, quick: bool) -> Result<()> {
    let seeds = if quick { "100" } else { "2000" };
    let simulate = |arguments: &[&str]| {
        Program::new(workspace.target.join("release/ukai-sim")).args(arguments)
    };
    // What an earlier run left of its failures would be taken for ours.
    let _ = std::fs::remove_dir_all(workspace.cache.join("logs"));
    let mut run = Run {
        workspace,
        steps: Steps::default(),
    };

    run.steps
        .step("setup", &workspace.log("setup"), || setup::run(workspace))?;
    run.program(
        "format",
        workspace.cargo("fmt").args(["--all", "--check"]),
        MINUTE,
    )?;
    if quick {
        run.steps.skip("clippy", "--quick");
    } else if run::answer("cargo", &["clippy", "--version"]).is_none() {
        run.steps.skip("clippy", "it is not installed");
    } else {
        let clippy = workspace.cargo("clippy").args([
            "--release",
            "--locked",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]);
        run.program("clippy", clippy, 15 * MINUTE)?;
    }
    run.step("build", |log| {
        run::logged(demo::build(workspace), demo::BUILD_BOUND, log)?;
        run::logged(
            tests(workspace).args(["--workspace", "--no-run"]),
            demo::BUILD_BOUND,
            log,
        )?;
        run::logged(
            guest_tests(workspace).arg("--no-run"),
            demo::BUILD_BOUND,
            log,
        )
    })?;
    run.program(
        "tests of the workspace",
        tests(workspace).arg("--workspace"),
        10 * MINUTE,
    )?;
    run.program(
        "fuzz corpora",
        tests(workspace).args(["--package", "integration", "--test", "fuzz_corpora"]),
        5 * MINUTE,
    )?;
    run.program(
        &format!("simulation, {seeds} seeds"),
        simulate(&["--seeds", seeds]),
        10 * MINUTE,
    )?;
    run.program(
        "simulation, planted bugs",
        simulate(&["--planted"]),
        10 * MINUTE,
    )?;
    run.program(
        "security, with real processes",
        tests(workspace).args(["--package", "integration", "--test", "security"]),
        5 * MINUTE,
    )?;
    run.program(
        "placement services over etcd",
        tests(workspace).args(["--package", "integration", "--test", "placement_ha"]),
        5 * MINUTE,
    )?;
    run.program(
        "a catalog that is restored",
        tests(workspace).args(["--package", "integration", "--test", "placement_restore"]),
        5 * MINUTE,
    )?;
    run.step("bench, one tiny job", |log| bench::smoke(workspace, log))?;
    run.program(
        "media that lie, with real processes",
        tests(workspace).args(["--package", "integration", "--test", "media"]),
        5 * MINUTE,
    )?;
    let guests = guest_tests(workspace).args(["--", "--test-threads=1"]);
    run.program("guests", guests, 30 * MINUTE)?;
    if quick {
        run.steps.skip("demo", "--quick");
    } else {
        run.program("demo", demo::program(workspace, false, None), demo::BOUND)?;
    }
    run.steps.finish()
}

struct Run<'a> {
    workspace: &'a Workspace,
    steps: Steps,
}

impl Run<'_> {
    fn step(&mut self, name: &str, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let log = self.workspace.log(&name.replace([' ', ','], "-"));
        self.steps.step(name, &log, || {
            work(&log).with_context(|| format!("see {}", log.display()))
        })
    }

    fn program(&mut self, name: &str, program: Program, bound: Duration) -> Result<()> {
        self.step(name, |log| run::logged(program, bound, log))
    }
}

fn tests(workspace: &Workspace) -> Program {
    workspace
        .cargo("test")
        .args(["--release", "--locked", "--no-fail-fast"])
}

fn guest_tests(workspace: &Workspace) -> Program {
    let names = GUEST_TESTS.iter().flat_map(|name| ["--test", *name]);
    tests(workspace)
        .args(["--package", "integration"])
        .args(names)
}
