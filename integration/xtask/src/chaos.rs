//! Failures of real processes under a real guest: a program of the integration crate.

use std::time::Duration;

use anyhow::Result;

use crate::demo;
use crate::run;
use crate::workspace::Workspace;

/// A person chose how many minutes; the bound is only there to end what hangs.
const BOUND: Duration = Duration::from_secs(3 * 3600);
const PAGE: &str = "docs/failures.md";

pub fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|argument| argument == "--json") {
        // Nothing but the report on the standard output.
        run::logged(
            demo::build(workspace),
            demo::BUILD_BOUND,
            &workspace.log("build"),
        )?;
    } else {
        demo::prepare(workspace)?;
    }
    let mut program = demo::guest_program(workspace, "ukai-chaos").args(arguments);
    if arguments.iter().any(|argument| argument == "--each") {
        program = program.arg("--document").arg(workspace.root.join(PAGE));
    }
    run::inherit(program, BOUND)
}
