//! What this node's store keeps of disks' records, for a placement service that lost its catalog.

use placement_service::client::{ClientError, PlacementClient};
use placement_service::node_protocol::{DiskShown, KeptDisk, MAX_RECORDS, Records};
use replicator::store::{SharedStore, ShownDisk};
use replicator::words::{DiskId, DiskRecord, Revision};
use std::collections::BTreeMap;

/// What was read of them, so that it is not read anew with every heartbeat.
#[derive(Default)]
pub struct Kept {
    read: BTreeMap<DiskId, (ShownDisk, Option<Revision>)>,
    /// The last time that somebody asked for all of them.
    round: u64,
}

impl Kept {
    /// For a heartbeat: of what the store was shown.
    pub fn shown(&mut self, shown: &[ShownDisk]) -> Vec<DiskShown> {
        let mut read = std::mem::take(&mut self.read);
        let mut report = Vec::with_capacity(shown.len());
        for shown in shown {
            let known = read.remove(&shown.disk).filter(|(of, _)| of == shown);
            let revision = known.map_or_else(|| revision(shown), |(_, revision)| revision);
            report.push(DiskShown {
                disk: shown.disk,
                epoch: shown.epoch,
                revision,
            });
            self.read.insert(shown.disk, (shown.clone(), revision));
        }
        report
    }

    /// Whether this is the first that is heard of a round.
    pub fn begins(&mut self, round: u64) -> bool {
        let begins = round != 0 && round != self.round;
        self.round = round;
        begins
    }

    /// It is begun again with the next heartbeat.
    pub fn ended_early(&mut self, round: u64) {
        if self.round == round {
            self.round = 0;
        }
    }
}

/// Of the record of the very epoch that was shown.
fn revision(shown: &ShownDisk) -> Option<Revision> {
    let record = record(shown)?;
    (record.epoch == shown.epoch).then_some(record.revision)
}

fn record(shown: &ShownDisk) -> Option<DiskRecord> {
    if shown.record.is_empty() {
        return None;
    }
    match DiskRecord::from_kept(&shown.record) {
        Ok(record) if record.id == shown.disk => Some(record),
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(disk = %shown.disk, "the store keeps {error}");
            None
        }
    }
}

/// Tells all of them, some at a time. No: of one of them the newest is not on media yet.
pub async fn tell(
    client: &PlacementClient,
    store: &SharedStore,
    round: u64,
) -> Result<bool, ClientError> {
    let asked = store.clone();
    // Nothing but that waits for the store.
    let all = tokio::task::spawn_blocking(move || asked.shown_disks());
    let all = all.await.expect("it does not panic");
    if !all.complete {
        return Ok(false);
    }
    let mut parts = all.disks.chunks(MAX_RECORDS).peekable();
    loop {
        let part = parts.next().unwrap_or_default();
        let last = parts.peek().is_none();
        let disks = part.iter().map(|shown| KeptDisk {
            disk: shown.disk,
            epoch: shown.epoch,
            record: record(shown).map(Box::new),
        });
        let records = Records {
            round,
            store: store.id(),
            last,
            disks: disks.collect(),
        };
        client.tell_records(records).await?;
        if last {
            return Ok(true);
        }
    }
}
