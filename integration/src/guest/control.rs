//! The host's end of the agent's protocol (drawn in `guest-tools/src/agent.rs`).

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::processes::Process;

#[derive(Debug)]
pub struct Output {
    pub status: i32,
    pub text: String,
}

enum Event {
    Line(String),
    Exit(i32),
}

pub struct Control {
    port: Arc<Mutex<UnixStream>>,
    shared: Arc<Shared>,
    next: u32,
    /// Returns the line that was cut off by the end of the stream.
    reader: Option<JoinHandle<Vec<u8>>>,
}

#[derive(Default)]
struct Shared {
    ready: AtomicBool,
    /// The guest goes on in another QEMU: the end of this one's stream is not the end of its tasks.
    moves: AtomicBool,
    tasks: Mutex<HashMap<u32, Sender<Event>>>,
}

impl Control {
    pub fn connect(path: &Path, deadline: Instant, qemu: &mut Process) -> Result<Control> {
        Ok(Control {
            port: Arc::new(Mutex::new(connect(path, deadline, qemu)?)),
            shared: Arc::default(),
            next: 0,
            reader: None,
        })
    }

    /// Takes in what the guest says; one that waits for a migration says nothing yet.
    pub fn read(&mut self) -> Result<()> {
        self.read_after(Vec::new())
    }

    pub fn ready(&self) -> bool {
        self.shared.ready.load(Ordering::Acquire)
    }

    pub fn start(&mut self, command: &str) -> Result<Task> {
        assert!(!command.contains('\n'), "a command is one line");
        self.next += 1;
        let (sender, events) = channel();
        self.shared
            .tasks
            .lock()
            .expect("no panic while held")
            .insert(self.next, sender);
        let task = Task {
            id: self.next,
            port: self.port.clone(),
            events,
            text: String::new(),
        };
        task.say(&format!("run {command}"))?;
        Ok(task)
    }

    /// Goes on where the source's port ended, in the middle of a line as it may be. The source is
    /// stopped: all that it will ever say is in its socket.
    pub fn take_over(&mut self, mut source: Control) -> Result<()> {
        source.shared.moves.store(true, Ordering::Release);
        let begun_line = {
            let port = source.port.lock().expect("no panic while held");
            // What has come is still read; then the reader sees the end.
            port.shutdown(Shutdown::Both)?;
            drop(port);
            let reader = source.reader.take().expect("the source was read");
            reader.join().expect("no panic while reading")
        };
        source.shared.moves.store(false, Ordering::Release);
        let own = self.port.lock().expect("no panic while held").try_clone()?;
        *source.port.lock().expect("no panic while held") = own;
        *self = source;
        self.read_after(begun_line)
    }

    fn read_after(&mut self, mut line: Vec<u8>) -> Result<()> {
        assert!(self.reader.is_none(), "one reader a port");
        let stream = self.port.lock().expect("no panic while held").try_clone()?;
        let shared = self.shared.clone();
        self.reader = Some(std::thread::spawn(move || {
            let mut bytes = BufReader::new(stream);
            while let Ok(1..) = bytes.read_until(b'\n', &mut line) {
                if line.pop_if(|last| *last == b'\n').is_none() {
                    break;
                }
                shared.take(String::from_utf8_lossy(&line).trim_end_matches('\r'));
                line.clear();
            }
            if !shared.moves.load(Ordering::Acquire) {
                // QEMU is gone: whoever waits for a task learns it by the closed channel.
                shared.tasks.lock().expect("no panic while held").clear();
            }
            line
        }));
        Ok(())
    }
}

impl Shared {
    fn take(&self, line: &str) {
        if line == "ready" {
            self.ready.store(true, Ordering::Release);
            return;
        }
        let mut words = line.splitn(3, ' ');
        let (Some(Ok(id)), Some(verb)) = (words.next().map(str::parse), words.next()) else {
            return;
        };
        let rest = words.next().unwrap_or_default();
        let mut tasks = self.tasks.lock().expect("no panic while held");
        // A task that nobody follows any more is no error.
        match verb {
            "out" => {
                if let Some(task) = tasks.get(&id) {
                    let _ = task.send(Event::Line(rest.to_owned()));
                }
            }
            "exit" => {
                if let Some(task) = tasks.remove(&id) {
                    let _ = task.send(Event::Exit(rest.parse().unwrap_or(-1)));
                }
            }
            _ => {}
        }
    }
}

/// A command that runs in the guest.
pub struct Task {
    id: u32,
    port: Arc<Mutex<UnixStream>>,
    events: Receiver<Event>,
    text: String,
}

impl Task {
    /// All that it has printed, as far as it was waited for.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Takes in what has come. `Some`: it has ended, with this status.
    pub fn look(&mut self) -> Option<i32> {
        loop {
            match self.events.try_recv() {
                Ok(Event::Line(line)) => {
                    self.text.push_str(&line);
                    self.text.push('\n');
                }
                Ok(Event::Exit(status)) => return Some(status),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some(-1),
            }
        }
    }

    /// Takes in what has come, and waits for a line that contains `needle`.
    pub fn wait_for(&mut self, needle: &str, bound: Duration) -> Result<String> {
        let deadline = Instant::now() + bound;
        loop {
            match self.next(deadline)? {
                Event::Line(line) if line.contains(needle) => return Ok(line),
                Event::Line(_) => {}
                Event::Exit(status) => bail!("ended with status {status}:\n{}", self.text),
            }
        }
    }

    /// Closes its standard input, which the long-running tools take as the order to finish.
    pub fn stop(&self) -> Result<()> {
        self.say("end")
    }

    pub fn kill(&self) -> Result<()> {
        self.say("kill")
    }

    pub fn finish(&mut self, deadline: Instant) -> Result<Output> {
        loop {
            if let Event::Exit(status) = self.next(deadline)? {
                return Ok(Output {
                    status,
                    text: std::mem::take(&mut self.text),
                });
            }
        }
    }

    /// Stops it and waits for a good end.
    pub fn stopped(mut self, bound: Duration) -> Result<String> {
        self.stop()?;
        let Output { status, text } = self.finish(Instant::now() + bound)?;
        if status != 0 {
            bail!("ended with status {status}:\n{text}");
        }
        Ok(text)
    }

    fn next(&mut self, deadline: Instant) -> Result<Event> {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = match self.events.recv_timeout(left) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => bail!("no end in time; so far:\n{}", self.text),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest is gone:\n{}", self.text),
        };
        if let Event::Line(line) = &event {
            self.text.push_str(line);
            self.text.push('\n');
        }
        Ok(event)
    }

    fn say(&self, order: &str) -> Result<()> {
        let line = format!("{} {order}\n", self.id);
        Ok(self
            .port
            .lock()
            .expect("no panic while held")
            .write_all(line.as_bytes())?)
    }
}

/// QEMU listens soon after it started.
pub fn connect(path: &Path, deadline: Instant, qemu: &mut Process) -> Result<UnixStream> {
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => bail!("{}: {error}", path.display()),
            Err(_) => qemu.must_run()?,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
