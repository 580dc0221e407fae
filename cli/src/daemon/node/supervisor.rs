//! Makes what runs on this node the same as what the placement service wants of it.

use super::backend::{Running, Spawn};
use placement_service::api::Wanted;
use placement_service::node_protocol::{BackendReport, Desired, DesiredAttachment};
use replicator::words::BackendId;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;

/// The backends of this node, by the attachment that each serves.
pub struct Supervisor<S> {
    spawn: S,
    running: BTreeMap<BackendId, Running>,
    changed: Arc<Notify>,
}

impl<S: Spawn> Supervisor<S> {
    /// `changed` is told whenever a backend's state changes.
    pub fn new(spawn: S, changed: Arc<Notify>) -> Self {
        Supervisor {
            spawn,
            running: BTreeMap::new(),
            changed,
        }
    }

    /// Starts what is wanted, stops what no longer is, and ends what has lost its disk.
    pub fn follow(&mut self, desired: &Desired) {
        self.running.retain(|_, running| !running.is_gone());
        for running in self.running.values_mut() {
            let of_disk = desired
                .attachments
                .iter()
                .filter(|a| a.disk == running.disk);
            let wanted = of_disk.clone().find(|a| a.backend == running.backend);
            match wanted {
                Some(attachment) if goes_on(running, attachment) => running.instruct(attachment),
                // A new one of the same disk needs its socket.
                None if of_disk.count() == 0 => running.leave(),
                _ => running.stop(),
            }
        }
        for attachment in &desired.attachments {
            if attachment.wanted != Wanted::Detached {
                self.start(attachment);
            }
        }
    }

    fn start(&mut self, attachment: &DesiredAttachment) {
        // A former backend of the same disk still drains: its socket is in the way until it is gone.
        if self
            .running
            .values()
            .any(|running| running.disk == attachment.disk)
        {
            return;
        }
        tracing::info!(disk = %attachment.name, backend = %attachment.backend, "starting a backend");
        self.running
            .insert(attachment.backend, self.spawn.spawn(attachment));
    }

    /// Parts from those whose thread was given up; the next [`Supervisor::follow`] starts them anew. Whether there were any.
    pub fn part(&mut self) -> bool {
        let before = self.running.len();
        self.running.retain(|backend, running| {
            let given_up = running.is_given_up();
            if given_up {
                tracing::warn!(disk = %running.disk, %backend, "its thread stands still: it is served anew");
                running.cut();
            }
            !given_up
        });
        self.running.len() < before
    }

    /// What to tell the placement service.
    pub fn reports(&self) -> Vec<BackendReport> {
        self.running.values().filter_map(Running::report).collect()
    }

    /// Waits until a backend's state changes.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Has the disks synced all the time from now on, because they are to stop soon.
    pub fn sync_ahead(&self) {
        self.running.values().for_each(Running::sync_ahead);
    }

    /// Stops all of them, and waits until each has drained and closed its epoch, or given up on it.
    pub async fn stop_all(&mut self) {
        for running in self.running.values() {
            running.stop();
        }
        for (_, running) in std::mem::take(&mut self.running) {
            running.gone().await;
        }
    }
}

/// A backend that no VM uses is started anew once a take-over is ordered: it then fences the other writer at once.
fn goes_on(running: &Running, attachment: &DesiredAttachment) -> bool {
    let ordered_since = attachment.take_over && !running.take_over;
    attachment.wanted != Wanted::Detached && !(ordered_since && running.is_without_vm())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::node::backend::Serving;
    use replicator::words::{DiskId, DiskName};

    #[derive(Default)]
    struct Fake {
        changed: Arc<Notify>,
        serving: Vec<(BackendId, Serving)>,
    }

    impl Spawn for Fake {
        fn spawn(&mut self, attachment: &DesiredAttachment) -> Running {
            let (running, serving) = Running::new(attachment, self.changed.clone());
            self.serving.push((attachment.backend, serving));
            running
        }
    }

    fn attachment(backend: u128, disk: u128, wanted: Wanted) -> DesiredAttachment {
        DesiredAttachment {
            disk: DiskId::from_u128(disk),
            name: DiskName::new(format!("disk{disk}")).unwrap(),
            backend: BackendId::from_u128(backend),
            wanted,
            take_over: false,
            orders: None,
            successor: None,
        }
    }

    fn desired(attachments: Vec<DesiredAttachment>) -> Desired {
        Desired {
            attachments,
            ..Desired::default()
        }
    }

    fn running(supervisor: &Supervisor<Fake>) -> Vec<u128> {
        supervisor
            .reports()
            .iter()
            .map(|report| report.backend.as_u128())
            .collect()
    }

    #[test]
    fn it_starts_once_what_is_wanted_and_stops_what_is_not() {
        let mut supervisor = Supervisor::new(Fake::default(), Arc::default());
        let both = desired(vec![
            attachment(1, 1, Wanted::Attached),
            attachment(2, 2, Wanted::Attached),
        ]);
        supervisor.follow(&both);
        supervisor.follow(&both);
        assert_eq!(supervisor.spawn.serving.len(), 2, "each is started once");

        supervisor.follow(&desired(vec![attachment(1, 1, Wanted::Detached)]));
        assert_eq!(
            running(&supervisor),
            [1, 2],
            "both are asked to stop, and run until they have"
        );
        supervisor.spawn.serving.clear();
        assert!(running(&supervisor).is_empty());
    }

    #[test]
    fn standbys_and_copiers_run_and_hear_what_is_wanted_of_them() {
        let mut supervisor = Supervisor::new(Fake::default(), Arc::default());
        let wanted = vec![
            attachment(1, 1, Wanted::Standby),
            attachment(2, 2, Wanted::Copying),
        ];
        supervisor.follow(&desired(wanted));
        assert_eq!(running(&supervisor), [1, 2]);
        supervisor.follow(&desired(vec![attachment(1, 1, Wanted::Attached)]));
        assert_eq!(
            supervisor.spawn.serving.len(),
            2,
            "one that has become the attachment goes on as it is"
        );
        assert!(!supervisor.running[&BackendId::from_u128(1)].is_told_to_stop());
        assert!(supervisor.running[&BackendId::from_u128(2)].is_told_to_stop());
    }

    #[test]
    fn a_new_backend_of_a_disk_waits_until_the_old_one_is_gone() {
        let mut supervisor = Supervisor::new(Fake::default(), Arc::default());
        supervisor.follow(&desired(vec![attachment(1, 1, Wanted::Attached)]));
        let next = desired(vec![attachment(2, 1, Wanted::Attached)]);
        supervisor.follow(&next);
        assert_eq!(running(&supervisor), [1]);
        supervisor.spawn.serving.clear();
        supervisor.follow(&next);
        assert_eq!(running(&supervisor), [2]);
    }
}
