//! A node that takes the place of itself: the same process, settings and standard streams, another program.
//!
//! The old one stops as it does when it ends, disks closed and store synced; then `execve` puts the new one
//! where it was. Nothing that supervises the process notices, and no time goes by between one and the other.

use anyhow::{Context, ensure};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The program that stands now where this one was started from.
pub struct Successor {
    program: PathBuf,
}

impl Successor {
    /// Looks whether it runs at all, while the old one still serves.
    pub fn find() -> anyhow::Result<Successor> {
        let own = std::env::current_exe().context("cannot see which program this is")?;
        // That is what Linux calls a program that was replaced.
        let path = own.as_os_str().as_bytes();
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        let program = PathBuf::from(OsString::from_vec(path.to_vec()));
        let tried = Command::new(&program)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let version = String::from_utf8_lossy(&tried.stdout).trim().to_owned();
        ensure!(
            tried.status.success(),
            "{} does not run: {}",
            program.display(),
            tried.status
        );
        tracing::info!(program = %program.display(), %version, "found what comes next");
        Ok(Successor { program })
    }

    /// Becomes it. Returns only where that cannot be.
    pub fn take_over(self) -> anyhow::Error {
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_else(|| "ukai".into());
        let mut command = Command::new(&self.program);
        command.arg0(name).args(arguments);
        let error = command.exec();
        anyhow::Error::new(error).context(format!("cannot become {}", self.program.display()))
    }
}
