//! Wakes the service's passes over the disks: soon after a change, and every second at the latest.

use super::{Shell, told_to_stop};
use replicator::words::BackendId;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Windows open and stores fall silent without any event.
const EVERY: Duration = Duration::from_secs(1);
/// What changes together is looked at together.
const GATHER: Duration = Duration::from_millis(10);

pub(super) async fn run(shell: Shell, mut stopped: watch::Receiver<bool>) {
    let mut changes = shell.service.changes();
    loop {
        tokio::select! {
            () = told_to_stop(&mut stopped) => return,
            // However the wait ends, the pass finds what there is to do.
            _ = timeout(EVERY, changes.changed()) => sleep(GATHER).await,
        }
        changes.mark_unchanged();
        let pass =
            |service: &crate::service::Service, now| service.pass(now, &mut BackendId::random);
        if let Err(error) = shell.ask(pass).await {
            tracing::error!("looking at the disks: {error}");
        }
    }
}
