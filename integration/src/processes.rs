//! Other programs that a test or the demo runs, and the directory that they live in: nothing of either
//! is left behind, whether the caller succeeds, panics, or is ended by ctrl-c.
//!
//! Only processes started here are ever signalled, each by its pid while it is still our unreaped child.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const POLL: Duration = Duration::from_millis(10);
const LOG_TAIL_LINES: usize = 25;

/// What a signal must end and remove. A pid is in it exactly while it is an unreaped child.
static LEFT_BEHIND: Mutex<LeftBehind> = Mutex::new(LeftBehind {
    pids: BTreeMap::new(),
    directories: BTreeMap::new(),
});
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

struct LeftBehind {
    pids: BTreeMap<u32, ()>,
    directories: BTreeMap<PathBuf, ()>,
}

/// From here on SIGINT, SIGTERM and SIGHUP end our processes, remove our directories, and then us.
pub fn clean_up_on_signals() {
    static ONCE: Once = Once::new();
    extern "C" fn note(_signal: libc::c_int) {
        // SAFETY: write is async-signal-safe; the descriptor is never closed.
        unsafe {
            libc::write(
                SIGNAL_PIPE.load(Ordering::Relaxed),
                [0_u8].as_ptr().cast(),
                1,
            )
        };
    }
    ONCE.call_once(|| {
        let mut ends = [0; 2];
        // SAFETY: pipe2 fills both ends, which belong to nobody else yet.
        let mut reader = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0, "a pipe");
            File::from_raw_fd(ends[0])
        };
        SIGNAL_PIPE.store(ends[1], Ordering::Relaxed);
        let handler = note as extern "C" fn(libc::c_int);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: the handler does nothing but one write.
            unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        }
        std::thread::spawn(move || {
            if reader.read_exact(&mut [0]).is_ok() {
                // Held to the end: nobody starts anything new meanwhile.
                let left = LEFT_BEHIND
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
                for &pid in left.pids.keys() {
                    // SAFETY: a plain system call on our own unreaped child.
                    unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
                }
                for directory in left.directories.keys() {
                    let _ = fs::remove_dir_all(directory);
                }
                std::process::exit(130);
            }
        });
    });
}

fn left_behind<T>(change: impl FnOnce(&mut LeftBehind) -> T) -> T {
    change(
        &mut LEFT_BEHIND
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()),
    )
}

/// What every thread of our processes does, a line each: for the story of a test that waited in vain.
pub fn threads() -> String {
    let pids: Vec<u32> = left_behind(|left| left.pids.keys().copied().collect());
    let mut lines = Vec::new();
    for pid in pids {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten();
        for task in tasks.flatten() {
            let told = |of: &str| {
                let told = fs::read_to_string(task.path().join(of)).unwrap_or_default();
                told.trim_end().to_owned()
            };
            let stat = told("stat");
            let state = stat.rsplit_once(')').map_or("", |(_, rest)| rest.trim());
            let state = state.split(' ').next().unwrap_or_default();
            let (name, waits_in) = (told("comm"), told("wchan"));
            lines.push(format!("{pid} {name}: {state} {waits_in}"));
        }
    }
    lines.sort();
    lines.join("\n")
}

/// A running program; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
    left: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Dies with the thread that started it, whatever happens to that.
    Ours,
    /// May be [left](Process::leave) running when all went well.
    MayStay,
}

impl Process {
    /// Starts it with its output appended to `log`.
    pub fn start(name: &str, command: Command, log: &Path) -> Result<Process> {
        Process::start_for(Lifetime::Ours, name, command, log)
    }

    pub fn start_for(
        lifetime: Lifetime,
        name: &str,
        mut command: Command,
        log: &Path,
    ) -> Result<Process> {
        clean_up_on_signals();
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        if lifetime == Lifetime::MayStay {
            // A later ctrl-c in this terminal is not meant for it.
            command.process_group(0);
        } else {
            // SAFETY: prctl is async-signal-safe and touches no memory of ours.
            unsafe {
                command.pre_exec(
                    || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                        0 => Ok(()),
                        _ => Err(io::Error::last_os_error()),
                    },
                )
            };
        }
        let child = spawn_registered(&mut command)
            .with_context(|| format!("start {name}: {:?}", command.get_program()))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            ended: None,
            left: false,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn running(&mut self) -> bool {
        self.reap().is_none()
    }

    /// An error that names the log, if it is not running any more.
    pub fn must_run(&mut self) -> Result<()> {
        match self.reap() {
            None => Ok(()),
            Some(status) => {
                bail!("{} ended ({status}); see {}", self.name, self.log.display())
            }
        }
    }

    pub fn kill_9(&mut self) {
        self.signal(libc::SIGKILL);
        while self.reap().is_none() {
            std::thread::sleep(POLL);
        }
    }

    /// Has a node make room for the program that stands in its place now.
    pub fn upgrade(&mut self) {
        self.signal(libc::SIGUSR2);
    }

    /// It does nothing more until [`Process::resume`]; others see a process that does not answer.
    pub fn pause(&mut self) {
        self.signal(libc::SIGSTOP);
    }

    pub fn resume(&mut self) {
        self.signal(libc::SIGCONT);
    }

    /// SIGTERM, then SIGKILL if it is still there after `grace`. True: it ended by itself in time.
    pub fn terminate(&mut self, grace: Duration) -> bool {
        self.signal(libc::SIGTERM);
        let ended = self.wait(grace).is_some();
        if !ended {
            self.kill_9();
        }
        ended
    }

    pub fn wait(&mut self, bound: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + bound;
        loop {
            match self.reap() {
                None if Instant::now() < deadline => std::thread::sleep(POLL),
                ended => return ended,
            }
        }
    }

    /// Lets it go on when we end; only for one that was started with [`Lifetime::MayStay`].
    pub fn leave(&mut self) {
        left_behind(|left| left.pids.remove(&self.child.id()));
        self.left = true;
    }

    fn signal(&mut self, signal: libc::c_int) {
        if self.reap().is_none() {
            // SAFETY: a plain system call on our own unreaped child.
            unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        }
    }

    fn reap(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = left_behind(|left| {
                let ended = self.child.try_wait().expect("our own child");
                if ended.is_some() {
                    left.pids.remove(&self.child.id());
                }
                ended
            });
        }
        self.ended
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.left {
            self.kill_9();
        }
    }
}

fn spawn_registered(command: &mut Command) -> io::Result<Child> {
    left_behind(|left| {
        let child = command.spawn()?;
        left.pids.insert(child.id(), ());
        Ok(child)
    })
}

pub struct Answer {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

/// Whether somebody listens at this Unix socket: its file is there a moment before.
pub fn listens(socket: &Path) -> bool {
    // Num RefCount Protocol Flags Type St Inode Path; the flag is __SO_ACCEPTCON.
    const LISTENING: &str = "00010000";
    let Ok(sockets) = fs::read_to_string("/proc/net/unix") else {
        return false;
    };
    let name = socket.to_string_lossy();
    sockets.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(3) == Some(LISTENING) && fields.nth(3) == Some(&*name)
    })
}

/// Runs a short command to its end; kills it when it takes longer than `bound`.
pub fn ask(name: &str, mut command: Command, bound: Duration) -> Result<Answer> {
    clean_up_on_signals();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn_registered(&mut command).with_context(|| format!("start {name}"))?;
    let out = read_to_end(child.stdout.take().expect("piped"));
    let err = read_to_end(child.stderr.take().expect("piped"));
    let mut process = Process {
        name: name.to_owned(),
        child,
        log: PathBuf::new(),
        ended: None,
        left: false,
    };
    let Some(status) = process.wait(bound) else {
        bail!("{name} is not done after {} s", bound.as_secs());
    };
    let joined = |thread: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().expect("no panic while reading")).into_owned()
    };
    Ok(Answer {
        status,
        out: joined(out),
        err: joined(err),
    })
}

fn read_to_end(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is all there is to show.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// Runs one test in a directory of its own; panics with the whole story of an error.
pub fn scenario(name: &str, test: impl FnOnce(&Scratch) -> Result<()>) {
    let scratch = Scratch::new(name).expect("a directory for the test");
    if let Err(error) = test(&scratch) {
        panic!("{error:#}");
    }
}

/// A directory for one test or demo: data that is removed, and logs that stay if it fails.
pub struct Scratch {
    data: PathBuf,
    logs: PathBuf,
    keep_data: bool,
    keep_logs: bool,
}

impl Scratch {
    pub fn new(name: &str) -> Result<Scratch> {
        Scratch::new_in(&std::env::temp_dir(), name)
    }

    /// The same with its data in a directory of a certain file system.
    pub fn new_in(parent: &Path, name: &str) -> Result<Scratch> {
        clean_up_on_signals();
        let data = tempfile::Builder::new()
            .prefix(&format!("ukai-{name}-"))
            .tempdir_in(parent)
            .with_context(|| format!("make a directory in {}", parent.display()))?
            .keep();
        left_behind(|left| left.directories.insert(data.clone(), ()));
        let logs = crate::guest::kit::cache()
            .join("logs")
            .join(data.file_name().expect("made from a name"));
        fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
        Ok(Scratch {
            data,
            logs,
            keep_data: false,
            keep_logs: false,
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// For a demo whose cluster goes on; the logs stay too.
    pub fn keep_data(&mut self) {
        self.keep_data = true;
        self.keep_logs = true;
    }

    /// For callers that fail without a panic.
    pub fn keep_logs(&mut self) {
        self.keep_logs = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        left_behind(|left| left.directories.remove(&self.data));
        if !self.keep_data {
            let _ = fs::remove_dir_all(&self.data);
        }
        if std::thread::panicking() || (self.keep_logs && !self.keep_data) {
            print_tails(&self.logs);
            eprintln!("the logs are in {}", self.logs.display());
        } else if !self.keep_logs {
            let _ = fs::remove_dir_all(&self.logs);
        }
    }
}

/// The last lines of each log: where only the output of a test is kept, they are all that is left of it.
fn print_tails(logs: &Path) {
    let mut paths: Vec<PathBuf> = fs::read_dir(logs)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    for path in paths {
        let log = fs::read(&path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        let name = path.file_name().unwrap_or_default().display();
        eprintln!(
            "---- {name}, the last of {} lines:\n{}",
            lines.len(),
            tail.join("\n")
        );
    }
}
