//! The main job, shown: builds the product and runs the demo program of the `integration` crate.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::run::{self, Program};
use crate::setup;
use crate::workspace::Workspace;

/// On a slow machine without KVM two boots, the checks and a move take a minute.
pub const BOUND: Duration = Duration::from_secs(400);
pub const BUILD_BOUND: Duration = Duration::from_secs(1800);

pub fn run(workspace: &Workspace, keep: bool, plot: Option<&Path>) -> Result<()> {
    prepare(workspace)?;
    run::inherit(program(workspace, keep, plot), BOUND)
}

/// What every program with guests wants: their kernel, and the product.
pub fn prepare(workspace: &Workspace) -> Result<()> {
    setup::run(workspace)?;
    let begun = Instant::now();
    println!("..           building (the first time takes minutes)");
    run::inherit(build(workspace).arg("--quiet"), BUILD_BOUND)?;
    println!("ok   {:>6.1}s built", begun.elapsed().as_secs_f64());
    Ok(())
}

/// The daemons and the programs that drive them. The whole workspace, because cargo would choose other
/// features for a part of it, and compile dependencies twice.
pub fn build(workspace: &Workspace) -> Program {
    workspace
        .cargo("build")
        .args(["--release", "--locked", "--workspace", "--bins"])
}

pub fn program(workspace: &Workspace, keep: bool, plot: Option<&Path>) -> Program {
    let program = guest_program(workspace, "ukai-demo").args(keep.then_some("--keep"));
    match plot {
        Some(file) => program.arg("--plot").arg(file),
        None => program,
    }
}

/// A program of the integration crate that drives guests.
pub fn guest_program(workspace: &Workspace, name: &str) -> Program {
    Program::new(workspace.target.join("release").join(name))
        .env("UKAI_XTASK_DIR", &workspace.cache)
}
