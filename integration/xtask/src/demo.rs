//! The main job, shown: builds the product and runs the demo program of the `integration` crate.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::run::{self, Program};
use crate::setup;
use crate::workspace::Workspace;

/// On a slow machine without KVM two boots and the checks take half a minute.
pub const BOUND: Duration = Duration::from_secs(300);
pub const BUILD_BOUND: Duration = Duration::from_secs(1800);

pub fn run(workspace: &Workspace, keep: bool) -> Result<()> {
    setup::run(workspace)?;
    let begun = Instant::now();
    println!("..           building (the first time takes minutes)");
    run::inherit(build(workspace).arg("--quiet"), BUILD_BOUND)?;
    println!("ok   {:>6.1}s built", begun.elapsed().as_secs_f64());
    run::inherit(program(workspace, keep), BOUND)
}

/// The daemons and the programs that drive them. The whole workspace, because cargo would choose other
/// features for a part of it, and compile dependencies twice.
pub fn build(workspace: &Workspace) -> Program {
    workspace
        .cargo("build")
        .args(["--release", "--locked", "--workspace", "--bins"])
}

pub fn program(workspace: &Workspace, keep: bool) -> Program {
    Program::new(workspace.target.join("release/ukai-demo"))
        .args(keep.then_some("--keep"))
        .env("UKAI_XTASK_DIR", &workspace.cache)
}
