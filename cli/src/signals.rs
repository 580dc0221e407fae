//! What a process is asked to do from outside, by signals.

use std::future::pending;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// For the signals that have come already to be noticed.
const LOOK: Duration = Duration::from_millis(1);

/// Waits until somebody asks the daemon to stop: ctrl-c or SIGTERM.
pub async fn asked_to_stop() {
    Stop::of_daemon().asked().await;
}

/// Whether, and when, somebody asks the process to stop. Each signal counts from when this was made: the
/// process does not die of it any more.
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl Stop {
    /// Ctrl-c or SIGTERM. Has to be called inside a runtime.
    pub fn of_daemon() -> Stop {
        Stop {
            terminate: listen(SignalKind::terminate()),
            interrupt: listen(SignalKind::interrupt()),
            hangup: None,
        }
    }

    /// The same for a command, of whose terminal nothing may be left (SIGHUP), unless `nohup` says that this
    /// is nothing to it.
    pub fn of_command() -> Stop {
        let hangup = SignalKind::hangup();
        Stop {
            hangup: (!is_ignored(hangup)).then(|| listen(hangup)),
            ..Stop::of_daemon()
        }
    }

    /// Waits for the next signal.
    pub async fn asked(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }

    /// Whether there was one that nobody has waited for.
    pub async fn was_asked(&mut self) -> bool {
        tokio::time::timeout(LOOK, self.asked()).await.is_ok()
    }
}

/// Whether, and when, a node is to make room for the program that stands in its place by now: SIGUSR2.
pub struct Upgrades(Signal);

impl Upgrades {
    /// Has to be called inside a runtime.
    pub fn listen() -> Upgrades {
        Upgrades(listen(SignalKind::user_defined2()))
    }

    pub async fn asked(&mut self) {
        self.0.recv().await;
    }
}

/// Only nodes act on SIGUSR2, those that listen for it. Nobody else is to die of it, nor a node that does
/// not listen yet.
pub fn ignore_upgrades() {
    set(SignalKind::user_defined2(), libc::SIG_IGN);
}

/// Just before this program becomes another, which none of its handlers survives: from here on being asked to stop
/// ends the process, and being asked for an upgrade does nothing until the other one listens.
pub fn hand_over() {
    ignore_upgrades();
    set(SignalKind::terminate(), libc::SIG_DFL);
    set(SignalKind::interrupt(), libc::SIG_DFL);
}

fn listen(kind: SignalKind) -> Signal {
    signal(kind).expect("these signals can be waited for")
}

fn set(kind: SignalKind, disposition: libc::sighandler_t) {
    // SAFETY: a plain system call; what it sets is no function of ours.
    unsafe { libc::signal(kind.as_raw_value(), disposition) };
}

fn is_ignored(kind: SignalKind) -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a plain system call, which changes nothing and writes to `now` only, which is zeroed: a valid value.
    let now = unsafe {
        libc::sigaction(kind.as_raw_value(), ptr::null(), now.as_mut_ptr());
        now.assume_init()
    };
    now.sa_sigaction == libc::SIG_IGN
}
