//! What runs for long: a node. (The placement service brings its own `server::run`.)

mod files;
pub mod node;
pub mod upgrade;

use tokio::signal::unix::{SignalKind, signal};

/// Waits until somebody asks the process to stop: ctrl-c or SIGTERM.
pub async fn asked_to_stop() {
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be waited for");
    let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be waited for");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// What a node is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    Stop,
    /// Make room for the program that stands in this one's place by now: SIGUSR2.
    Upgrade,
}

/// Waits until somebody asks the process to stop, or to be upgraded.
pub async fn asked() -> Asked {
    let mut upgrade = signal(SignalKind::user_defined2()).expect("SIGUSR2 can be waited for");
    tokio::select! {
        () = asked_to_stop() => Asked::Stop,
        _ = upgrade.recv() => Asked::Upgrade,
    }
}

/// A daemon in which anything has panicked ends at once, like one that was killed: what starts it
/// again takes its disks over and finishes their requests. Going on without a part of itself would
/// leave guests waiting for ever.
pub fn end_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        std::process::abort();
    }));
}
