//! Moves of real guests, compared and repeated: programs of the integration crate.

use std::time::Duration;

use anyhow::Result;

use crate::demo;
use crate::run::{self, Program};
use crate::workspace::Workspace;

/// A person chose how many; the bound is only there to end what hangs.
const BOUND: Duration = Duration::from_secs(3 * 3600);
const FIGURES: &str = "docs/migration-figures.md";
const PICTURE: &str = "docs/images/migration.svg";

/// One of the two ways alone is for looking at: it compares nothing, and writes nothing.
pub fn compare(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let json = arguments.iter().any(|argument| argument == "--json");
    if json {
        // Nothing but the figures on the standard output.
        run::logged(
            demo::build(workspace),
            demo::BUILD_BOUND,
            &workspace.log("build"),
        )?;
    } else {
        demo::prepare(workspace)?;
    }
    let mut program: Program =
        demo::guest_program(workspace, "ukai-compare-migration").args(arguments);
    let alone = |argument: &String| argument.starts_with("--only");
    if !arguments.iter().any(alone) {
        let written = [("--document", FIGURES), ("--plot", PICTURE)];
        for (option, file) in written {
            program = program.arg(option).arg(workspace.root.join(file));
        }
    }
    run::inherit(program, BOUND)
}

pub fn soak(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    demo::prepare(workspace)?;
    run::inherit(
        demo::guest_program(workspace, "ukai-soak").args(arguments),
        BOUND,
    )
}
