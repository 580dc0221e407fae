//! QEMU's monitor: one JSON object a line, answers in order, events in between.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::control::connect;
use crate::processes::Process;

const ANSWER_BOUND: Duration = Duration::from_secs(20);
/// Kept for a later [`Qmp::event`]; a guest that reboots for ever must not fill our memory.
const KEPT_EVENTS: usize = 256;

pub struct Qmp {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    partial: String,
    events: VecDeque<Value>,
}

impl Qmp {
    pub fn connect(path: &Path, deadline: Instant, qemu: &mut Process) -> Result<Qmp> {
        let writer = connect(path, deadline, qemu)?;
        let reader = BufReader::new(writer.try_clone()?);
        let mut qmp = Qmp {
            writer,
            reader,
            partial: String::new(),
            events: VecDeque::new(),
        };
        qmp.receive(deadline)?.get("QMP").context("no greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.writer.write_all(format!("{line}\n").as_bytes())?;
        let deadline = Instant::now() + ANSWER_BOUND;
        loop {
            let mut message = self.receive(deadline).with_context(|| command.to_owned())?;
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = message.get("error") {
                bail!("{command}: {error}");
            }
            self.keep(message);
        }
    }

    /// The next event of that name, one that has come already first.
    pub fn event(&mut self, name: &str, bound: Duration) -> Result<Value> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at).expect("just found"));
            }
            let message = self
                .receive(deadline)
                .with_context(|| format!("event {name}"))?;
            self.keep(message);
        }
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() == KEPT_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn receive(&mut self, deadline: Instant) -> Result<Value> {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        self.writer.set_read_timeout(Some(left))?;
        // What was read before a timeout stays in `partial`: the next call goes on from there.
        if self.reader.read_line(&mut self.partial)? == 0 {
            bail!("QEMU closed its monitor");
        }
        Ok(serde_json::from_str(&std::mem::take(&mut self.partial))?)
    }
}
