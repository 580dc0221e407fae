//! What runs for long: a node. (The placement service brings its own `server::run`.)

pub mod node;

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
