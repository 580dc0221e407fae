//! The host's hand inside the guest: shell commands in, their output and status back, as lines.
//!
//! ```text
//! host -> guest   ID run COMMAND     start COMMAND with sh -c
//!                 ID end             close its standard input
//!                 ID kill            SIGKILL
//! guest -> host   ready              once, at the start
//!                 ID out TEXT        one line of its standard output or error
//!                 ID exit STATUS     it ended, and all its output is above (128 + N: by signal N)
//! ```
//! Commands run side by side. The port is in raw mode (`/init` sees to that).

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::Result;

type Port = Arc<Mutex<File>>;

struct Job {
    pid: u32,
    stdin: Option<ChildStdin>,
}

pub fn serve(tty: &str) -> Result<()> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(tty)
            .map_err(|error| format!("open {tty}: {error}"))
    };
    let port: Port = Arc::new(Mutex::new(open()?));
    let jobs: Arc<Mutex<HashMap<String, Job>>> = Arc::default();
    say(&port, "ready");
    for line in BufReader::new(open()?).lines() {
        let line = line.map_err(|error| format!("read {tty}: {error}"))?;
        let mut words = line.splitn(3, ' ');
        let (Some(id), Some(verb)) = (words.next(), words.next()) else {
            continue;
        };
        let mut running = jobs.lock().expect("no panic while held");
        match (verb, words.next()) {
            ("run", Some(command)) => match spawn(command) {
                Err(error) => {
                    say(&port, &format!("{id} out sh: {error}"));
                    say(&port, &format!("{id} exit 127"));
                }
                Ok(mut child) => {
                    let stdin = child.stdin.take();
                    running.insert(
                        id.to_owned(),
                        Job {
                            pid: child.id(),
                            stdin,
                        },
                    );
                    let (id, port, jobs) = (id.to_owned(), port.clone(), jobs.clone());
                    std::thread::spawn(move || {
                        follow(&mut child, &id, &port);
                        // Out of the table before it is reaped: nobody kills a pid that is free again.
                        jobs.lock().expect("no panic while held").remove(&id);
                        say(&port, &format!("{id} exit {}", status(&mut child)));
                    });
                }
            },
            ("end", _) => {
                if let Some(job) = running.get_mut(id) {
                    job.stdin = None;
                }
            }
            ("kill", _) => {
                if let Some(job) = running.get(id) {
                    // SAFETY: a plain system call; a child in the table is not reaped yet.
                    unsafe { libc::kill(job.pid as i32, libc::SIGKILL) };
                }
            }
            _ => say(&port, &format!("{id} out agent: cannot {line:?}")),
        }
    }
    Ok(())
}

fn spawn(command: &str) -> std::io::Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Returns when nobody can write to the command's output any more.
fn follow(child: &mut Child, id: &str, port: &Port) {
    let (out, err) = (
        child.stdout.take().expect("piped"),
        child.stderr.take().expect("piped"),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| copy_lines(out, id, port));
        scope.spawn(|| copy_lines(err, id, port));
    });
}

fn status(child: &mut Child) -> i32 {
    match child.wait() {
        Ok(status) => status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        Err(_) => 127,
    }
}

fn copy_lines(from: impl Read, id: &str, port: &Port) {
    for line in BufReader::new(from).split(b'\n') {
        let Ok(line) = line else { return };
        let text = String::from_utf8_lossy(&line).replace('\r', " ");
        say(port, &format!("{id} out {text}"));
    }
}

/// One write a line, so that lines of several commands never mix. Without a host that listens there
/// is nobody to tell about an error.
fn say(port: &Port, line: &str) {
    let mut port = port.lock().expect("no panic while held");
    let _ = port.write_all(format!("{line}\n").as_bytes());
}
