//! Live migration, as QEMU's monitor drives it: prepare both ends, go, wait, hand over or cancel.
//!
//! ```text
//! source                                    destination
//!   |  migrate-set-capabilities               |  migrate-set-capabilities
//!   |                                         |  migrate-incoming tcp:127.0.0.1:0 -> its port
//!   |  migrate ── (a relay) ────────────────> |
//!   |  setup, active: memory, round by round  |
//!   |  [pre-switchover: stopped, its rings too, until migrate-continue]
//!   |  device: state of the devices ────────> |
//!   |  completed <──── return path ────────── |  running
//! ```
//! Always with the return path: without it a load that failed at the destination reads as completed.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Guest;

/// A guest's memory at a few MB a second.
pub const MIGRATION_BOUND: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(5);

/// How the two ends are prepared.
#[derive(Clone, Copy)]
pub struct Terms {
    /// The source stops and waits for [`Guest::switch_over`].
    pub pause_before_switchover: bool,
    pub postcopy: bool,
    /// What QEMU may take for the last round.
    pub downtime_limit: Duration,
}

impl Default for Terms {
    fn default() -> Terms {
        Terms {
            pause_before_switchover: false,
            postcopy: false,
            downtime_limit: Duration::from_millis(50),
        }
    }
}

impl Guest {
    /// At both ends, before anything else.
    pub fn agree(&mut self, terms: &Terms) -> Result<()> {
        let wanted = [
            ("return-path", true),
            ("events", true),
            ("pause-before-switchover", terms.pause_before_switchover),
            ("postcopy-ram", terms.postcopy),
        ];
        let capabilities: Vec<Value> = wanted
            .iter()
            .map(|(name, state)| json!({ "capability": name, "state": state }))
            .collect();
        self.qmp(
            "migrate-set-capabilities",
            json!({ "capabilities": capabilities }),
        )?;
        let parameters = json!({
            "downtime-limit": terms.downtime_limit.as_millis() as u64,
            // The link is what limits, not QEMU.
            "max-bandwidth": 10_u64 << 30,
        });
        self.qmp("migrate-set-parameters", parameters).map(drop)
    }

    /// At the destination: where it listens for the source.
    pub fn listen(&mut self) -> Result<SocketAddr> {
        self.qmp("migrate-incoming", json!({ "uri": "tcp:127.0.0.1:0" }))?;
        let state = self.qmp("query-migrate", json!({}))?;
        let port = state["socket-address"][0]["port"]
            .as_str()
            .and_then(|port| port.parse().ok())
            .with_context(|| format!("where it listens: {state}"))?;
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// At the source: begins to move to whoever listens at `to`.
    pub fn depart(&mut self, to: SocketAddr) -> Result<()> {
        if super::migration_loses_memory() {
            eprintln!(
                "note: this QEMU (7.2 or older), without KVM, may lose what the guest writes to its memory while it moves, and \
                 so the guest, whatever its disk is; 10.0 does not"
            );
        }
        self.qmp("migrate", json!({ "uri": format!("tcp:{to}") }))
            .map(drop)
    }

    /// As `query-migrate` says it.
    pub fn migration(&mut self) -> Result<Value> {
        self.qmp("query-migrate", json!({}))
    }

    /// Waits for a state of the migration; an end that is another one is an error.
    pub fn wait_migration(&mut self, wanted: &str, bound: Duration) -> Result<Value> {
        let deadline = Instant::now() + bound;
        loop {
            let state = self.migration()?;
            let status = state["status"].as_str().unwrap_or("none");
            if status == wanted {
                return Ok(state);
            }
            if matches!(status, "completed" | "failed" | "cancelled") {
                bail!("the migration is {status}, not {wanted}: {state}");
            }
            if Instant::now() >= deadline {
                bail!("the migration is still {status}, not {wanted}: {state}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// At the source, when it waits before the switch-over.
    pub fn switch_over(&mut self) -> Result<()> {
        self.qmp("migrate-continue", json!({ "state": "pre-switchover" }))
            .map(drop)
    }

    /// At the source; returns when the guest runs there again.
    pub fn stay(&mut self) -> Result<()> {
        self.qmp("migrate_cancel", json!({}))?;
        // QEMU shuts the return path before it notes that it cancels: the thread that sends may see
        // that first, and take it for a broken connection. The outcome is the same.
        let ended = self.wait_migration("cancelled", MIGRATION_BOUND);
        if self.migration()?["status"] != "failed" {
            ended?;
        }
        self.wait_running(MIGRATION_BOUND)
    }

    pub fn wait_running(&mut self, bound: Duration) -> Result<()> {
        let deadline = Instant::now() + bound;
        loop {
            let state = self.qmp("query-status", json!({}))?;
            if state["running"] == true {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("the guest does not run: {state}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// At the destination, once the migration is completed: goes on with the source's commands, and ends
    /// the source's QEMU.
    pub fn arrive(&mut self, source: Guest) -> Result<()> {
        self.wait_running(MIGRATION_BOUND)?;
        let Guest {
            control, mut qemu, ..
        } = source;
        self.control.take_over(control)?;
        qemu.kill_9();
        Ok(())
    }
}
