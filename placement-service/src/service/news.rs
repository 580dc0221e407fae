//! Who has to look again. Nodes wait with their heartbeats for what is wanted of them, operators for what they
//! asked for: all are woken by a change, and a node's heartbeat looks only at what may concern its node.

use super::Service;
use crate::model::Attachments;
use replicator::words::{DiskId, HostName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Only a hint: a heartbeat that nobody woke hears what there is a second later.
pub(super) struct News {
    changes: watch::Sender<u64>,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    of_all: u64,
    of_one: BTreeMap<HostName, u64>,
}

impl Default for News {
    fn default() -> Self {
        News {
            changes: watch::Sender::new(0),
            counts: Mutex::default(),
        }
    }
}

impl News {
    fn tell_all(&self) {
        self.counts().of_all += 1;
        self.wake();
    }

    fn tell(&self, hosts: BTreeSet<HostName>) {
        let mut counts = self.counts();
        for host in hosts {
            *counts.of_one.entry(host).or_default() += 1;
        }
        drop(counts);
        self.wake();
    }

    fn wake(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Wakes whoever waits for something to change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.news.changes.subscribe()
    }

    /// Another number than before: something else may be wanted of that host's node.
    pub fn news_for(&self, host: &HostName) -> u64 {
        let counts = self.news.counts();
        counts.of_all + counts.of_one.get(host).copied().unwrap_or(0)
    }

    /// What is wanted of any node may have changed.
    pub(super) fn changed(&self) {
        self.news.tell_all();
    }

    /// What is wanted of these nodes may have changed.
    pub(super) fn changed_at(&self, hosts: BTreeSet<HostName>) {
        self.news.tell(hosts);
    }

    /// The disk is looked at in the next pass, and by the nodes that have it.
    pub(super) fn touch(&self, disk: DiskId) {
        self.touch_where(disk, BTreeSet::new());
    }

    /// The same, and by those that had it.
    pub(super) fn touch_after(&self, disk: DiskId, before: &Attachments) {
        self.touch_where(disk, hosts(before));
    }

    fn touch_where(&self, disk: DiskId, mut at: BTreeSet<HostName>) {
        self.course().look_at(disk);
        match self.attachments(disk) {
            Ok(now) => {
                at.extend(now.iter().flat_map(|kept| hosts(&kept.value)));
                self.changed_at(at);
            }
            Err(_) => self.changed(),
        }
    }
}

/// Where a disk is attached.
pub(super) fn hosts(attachments: &Attachments) -> BTreeSet<HostName> {
    let nodes = attachments.0.iter().filter_map(|a| a.place.node());
    nodes.cloned().collect()
}
