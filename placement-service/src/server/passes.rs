//! Wakes the service's passes over the disks: soon after a change, and every second at the latest.

use super::{Shell, told_to_stop};
use crate::catalog::CatalogError;
use crate::service::Service;
use replicator::words::BackendId;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Windows open and stores fall silent without any event.
const EVERY: Duration = Duration::from_secs(1);
/// What changes together is looked at together.
const GATHER: Duration = Duration::from_millis(10);

pub(super) async fn run(mut shell: Shell, mut stopped: watch::Receiver<bool>) {
    loop {
        let Ok(leading) = shell.leading() else {
            tokio::select! {
                () = told_to_stop(&mut stopped) => return,
                () = shell.changed() => continue,
            }
        };
        let mut changes = leading.service.changes();
        tokio::select! {
            () = told_to_stop(&mut stopped) => return,
            // However the wait ends, the pass finds what there is to do.
            _ = timeout(EVERY, changes.changed()) => sleep(GATHER).await,
        }
        let pass = |service: &Service, now| {
            let began = Instant::now();
            let passed = service.pass(now, &mut BackendId::random);
            service.took(now, began.elapsed());
            passed
        };
        match leading.ask(pass).await {
            Ok(()) => {}
            Err(CatalogError::NotLeader) => sleep(EVERY).await,
            Err(error) => tracing::error!("looking at the disks: {error}"),
        }
    }
}
