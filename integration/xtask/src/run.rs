//! Runs other programs: bounded in time, ended with all their children, also when we are interrupted.
//!
//! Each program gets a process group of its own. On ctrl-c (or SIGTERM) only we hear the signal; the
//! group is told with SIGTERM, has a few seconds to clean up after itself, and is then killed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Long enough for a demo to stop its guest and four daemons.
const CLEAN_UP: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From here on a signal ends the running program, then us, by way of ordinary errors.
pub fn catch_signals() {
    extern "C" fn note(_signal: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let handler = note as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

pub fn interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// A command line, built up by value.
pub struct Program {
    command: Command,
    words: Vec<OsString>,
}

impl Program {
    pub fn new(name: impl AsRef<OsStr>) -> Program {
        let words = vec![name.as_ref().to_owned()];
        let mut command = Command::new(name);
        command.stdin(Stdio::null());
        Program { command, words }
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Program {
        self.words.push(argument.as_ref().to_owned());
        self.command.arg(argument);
        self
    }

    pub fn args<A: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = A>) -> Program {
        arguments.into_iter().fold(self, Program::arg)
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Program {
        self.command.env(name, value);
        self
    }

    pub fn directory(mut self, path: &Path) -> Program {
        self.command.current_dir(path);
        self
    }

    fn line(&self) -> String {
        let words: Vec<_> = self
            .words
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        words.join(" ")
    }
}

/// Its output goes where ours goes.
pub fn inherit(mut program: Program, bound: Duration) -> Result<()> {
    let line = program.line();
    let child = spawn(&mut program.command, &line)?;
    finish(child, &line, bound)
}

/// Its output goes to the end of `log`.
pub fn logged(mut program: Program, bound: Duration, log: &Path) -> Result<()> {
    let line = program.line();
    if let Some(directory) = log.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    std::io::Write::write_all(&mut file, format!("$ {line}\n").as_bytes())?;
    program.command.stdout(file.try_clone()?).stderr(file);
    let child = spawn(&mut program.command, &line)?;
    finish(child, &line, bound)
}

/// A short question to a tool: what it printed, if it ended well.
pub fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first file of that name on PATH or in the places where administrators' tools live.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// In the foreground and in our own group, because sudo may have to ask for a password.
pub fn foreground(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .status()
        .with_context(|| format!("start {program}"))?;
    interrupted()?;
    well(status, &format!("{program} {}", arguments.join(" ")))
}

fn spawn(command: &mut Command, line: &str) -> Result<Child> {
    interrupted()?;
    command
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {line}"))
}

fn finish(mut child: Child, line: &str, bound: Duration) -> Result<()> {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(status) = child.try_wait()? {
            return well(status, line);
        }
        let interruption = interrupted();
        if interruption.is_err() || Instant::now() >= deadline {
            end(&mut child);
            interruption?;
            bail!("{line}: not done after {} s, ended", bound.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

fn end(child: &mut Child) {
    let group = -(child.id() as libc::pid_t);
    // SAFETY: plain system calls. The leader is our unreaped child, so the group is ours.
    unsafe { libc::kill(group, libc::SIGTERM) };
    let deadline = Instant::now() + CLEAN_UP;
    while Instant::now() < deadline && unreaped_and_ended(child).is_none() {
        std::thread::sleep(POLL);
    }
    unsafe { libc::kill(group, libc::SIGKILL) };
    let _ = child.wait();
}

/// Whether it ended, without reaping it: its group must stay ours until the last signal is sent.
fn unreaped_and_ended(child: &Child) -> Option<()> {
    // SAFETY: an all-zero siginfo_t is valid, and waitid writes only to it.
    let pid = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        libc::waitid(libc::P_PID, child.id(), &mut info, options);
        info.si_pid()
    };
    (pid != 0).then_some(())
}

fn well(status: ExitStatus, line: &str) -> Result<()> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => bail!("{line}: ended with status {code}"),
        (None, signal) => bail!("{line}: killed by signal {}", signal.unwrap_or(0)),
    }
}
