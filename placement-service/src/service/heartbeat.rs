//! A node says what it has, and hears what is wanted of it.
//!
//! A node is admitted at its first heartbeat, since its certificate names the host; so is the
//! datacenter that its configuration names. A store belongs to the host that first showed it, and its
//! starts may only grow.

use super::pulse::{Moment, Pulse};
use super::wish::put_attachments;
use super::{MAX_TRIES, Service};
use crate::api::Wanted;
use crate::catalog::{CatalogError, Committed, Expect, Transaction};
use crate::model::{
    self, DatacenterRecord, Dropping, HostRecord, StoreRecord, json, key, load, unchanged,
};
use crate::node_protocol::{
    BackendReport, Desired, DesiredAttachment, Heartbeat, Lists, Response, StoreFault,
    StoreRefused, StoreReport,
};
use replicator::words::{DiskId, HostName, StoreId};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

impl Service {
    pub(super) fn hear(
        &self,
        host: &HostName,
        from: IpAddr,
        mut heartbeat: Heartbeat,
        now: Moment,
    ) -> Result<Response, CatalogError> {
        if let Lists::AsNamed(name) = heartbeat.lists
            && !self.pulses.fill_in(host, name, &mut heartbeat)
        {
            return Ok(Response::TellAll);
        }
        let remembered = heartbeat.lists.name();
        let desired = self.heartbeat(host, from, heartbeat, now)?;
        Ok(Response::Desired(Desired {
            remembered,
            ..desired
        }))
    }

    fn heartbeat(
        &self,
        host: &HostName,
        from: IpAddr,
        heartbeat: Heartbeat,
        now: Moment,
    ) -> Result<Desired, CatalogError> {
        self.admit_host(host, from, &heartbeat)?;
        let mut pulse = Pulse {
            at: now,
            stores: Vec::new(),
            refused: Vec::new(),
            lists: heartbeat.lists.name(),
            backends: heartbeat.backends,
            links: heartbeat.links,
        };
        for report in heartbeat.stores {
            match self.admit_store(host, &report)? {
                Ok(()) => pulse.stores.push(Arc::new(report)),
                Err(why) => pulse.refused.push(StoreRefused {
                    store: report.id,
                    why,
                }),
            }
        }
        self.notice_loss(&pulse.backends)?;
        self.hear_shown(&pulse.stores)?;
        let mut changed = self.note_dropped(&pulse.stores)?;
        for report in &pulse.stores {
            changed |= self.note_dropped_replicas(report, now)?;
        }
        let wanted = desired(self, host)?;
        if wanted.digest == heartbeat.seen {
            changed |= self.end_detached(host, &wanted, &pulse.backends)?;
        }
        self.course().hear(&pulse.backends, now);
        let pulse = Arc::new(pulse);
        let before = self.pulses.beat(host, pulse.clone());
        let others_may_care = before
            .as_ref()
            .is_none_or(|before| !before.shows_what(&pulse));
        if others_may_care {
            self.course().stores_shown_changed();
            self.changed();
        } else if changed || !before.is_some_and(|before| before.is_like(&pulse)) {
            self.changed_at(BTreeSet::from([host.clone()]));
        }
        // What a node runs, shows and has dropped is part of what is wanted of it.
        match changed || others_may_care || !self.shown_epochs().is_sound() {
            true => self.desired(host),
            false => Ok(wanted),
        }
    }

    fn admit_host(
        &self,
        host: &HostName,
        from: IpAddr,
        heartbeat: &Heartbeat,
    ) -> Result<(), CatalogError> {
        let datacenter = key::datacenter(&heartbeat.datacenter);
        if self.catalog.get(&datacenter)?.is_none() {
            let record = DatacenterRecord {
                name: heartbeat.datacenter.clone(),
            };
            let create = Transaction::new()
                .expect(&datacenter, Expect::Absent)
                .put(&datacenter, json(&record));
            if self.catalog.commit(&create)? == Committed::Yes {
                tracing::info!(%host, datacenter = %record.name, "a node announced a new datacenter");
            }
        }
        let listen = match heartbeat.listen {
            listen if listen.ip().is_unspecified() => SocketAddr::new(from, listen.port()),
            listen => listen,
        };
        let record = HostRecord {
            name: host.clone(),
            datacenter: heartbeat.datacenter.clone(),
            rack: heartbeat.rack.clone(),
            listen,
        };
        let key = key::host(host);
        let kept = load::<HostRecord>(&*self.catalog, &key)?;
        if kept.as_ref().is_some_and(|kept| *kept.value == record) {
            return Ok(());
        }
        let write = Transaction::new()
            .expect(&key, unchanged(&kept))
            .put(&key, json(&record));
        let committed = self.catalog.commit(&write);
        // Also where nobody knows.
        self.course().places_changed();
        // Losing to another heartbeat of the same node is as good: the next one says it again.
        if committed? == Committed::Yes {
            tracing::info!(%host, datacenter = %record.datacenter, rack = %record.rack, %listen, "a node announced itself");
        }
        Ok(())
    }

    /// The inner error is why the store is in no set.
    fn admit_store(
        &self,
        host: &HostName,
        report: &StoreReport,
    ) -> Result<Result<(), StoreFault>, CatalogError> {
        let key = key::store(report.id);
        for _ in 0..MAX_TRIES {
            let kept = load::<StoreRecord>(&*self.catalog, &key)?;
            let recorded = kept.as_ref().map(|kept| &kept.value);
            let run = report.runs.first().copied();
            let is_known = recorded
                .is_some_and(|recorded| recorded.starts == report.starts && recorded.run == run);
            let shortened = || (!is_known).then(|| self.reached.lacks(report)).flatten();
            let fault = recorded.and_then(|recorded| fault(recorded, host, report));
            if let Some(fault) = fault.or_else(shortened) {
                tracing::warn!(%host, store = %report.id, "store refused: {fault}");
                return Ok(Err(fault));
            }
            if is_known {
                self.reached.hear(report);
                return Ok(Ok(()));
            }
            let record = StoreRecord {
                id: report.id,
                host: host.clone(),
                starts: report.starts,
                run,
            };
            let write = Transaction::new()
                .expect(&key, unchanged(&kept))
                .put(&key, json(&record));
            let committed = self.catalog.commit(&write);
            self.course().places_changed();
            // If another heartbeat showed it at the same moment, it is judged by what that one left.
            if committed? == Committed::Yes {
                self.reached.hear(report);
                tracing::info!(%host, store = %report.id, starts = report.starts.0, "a store started");
                return Ok(Ok(()));
            }
        }
        Err(CatalogError::Failed(format!("{key} kept changing")))
    }

    /// Takes stores off the lists of those that still have to drop a disk.
    fn note_dropped(&self, stores: &[Arc<StoreReport>]) -> Result<bool, CatalogError> {
        let mut changed = false;
        for report in stores {
            for disk in &report.dropped {
                changed |= self.note_drop(*disk, report)?;
            }
        }
        Ok(changed)
    }

    fn note_drop(&self, disk: DiskId, report: &StoreReport) -> Result<bool, CatalogError> {
        let key = key::dropping(disk);
        for _ in 0..MAX_TRIES {
            let Some(kept) = load::<Dropping>(&*self.catalog, &key)? else {
                return Ok(false);
            };
            let expect = kept.unchanged();
            let mut dropping = kept.into_value();
            let before = dropping.stores.len();
            dropping.stores.retain(|store| *store != report.id);
            if dropping.stores.len() == before {
                return Ok(false);
            }
            let write = Transaction::new().expect(&key, expect);
            let write = if dropping.stores.is_empty() {
                write.delete(&key)
            } else {
                write.put(&key, json(&dropping))
            };
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(%disk, name = %dropping.name, store = %report.id, left = dropping.stores.len(), "a store dropped a deleted disk");
                return Ok(true);
            }
        }
        // The store says it again in its next heartbeat.
        Ok(false)
    }

    /// Ends attachments that the node was told to detach and runs no more.
    fn end_detached(
        &self,
        host: &HostName,
        wanted: &Desired,
        running: &[BackendReport],
    ) -> Result<bool, CatalogError> {
        let mut changed = false;
        for attachment in &wanted.attachments {
            let runs = running
                .iter()
                .any(|report| report.backend == attachment.backend);
            if attachment.wanted != Wanted::Detached || runs {
                continue;
            }
            let Some(kept) = self.attachments(attachment.disk)? else {
                continue;
            };
            let ends = kept
                .value
                .backend(attachment.backend)
                .is_some_and(|a| a.wanted == Wanted::Detached);
            if !ends {
                continue;
            }
            let disk = attachment.disk;
            let after = kept.value.without(attachment.backend);
            let write = Transaction::new().expect(key::attachment(disk), kept.unchanged());
            let write = put_attachments(write, disk, &kept.value, &after);
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(%host, disk = %attachment.name, "detached");
                self.touch_after(disk, &kept.value);
                changed = true;
            }
        }
        Ok(changed)
    }
}

fn fault(recorded: &StoreRecord, host: &HostName, report: &StoreReport) -> Option<StoreFault> {
    if recorded.host != *host {
        Some(StoreFault::Moved {
            recorded: recorded.host.clone(),
            shown: host.clone(),
        })
    } else if recorded.starts > report.starts {
        Some(StoreFault::RolledBack {
            recorded: recorded.starts.0,
            shown: report.starts.0,
        })
    } else if !report.runs.is_empty() && recorded.run.is_some_and(|run| !report.runs.contains(&run))
    {
        // A copy that was made before the last start has as many behind it as the right one has now, or
        // soon: the number does not tell them apart.
        Some(StoreFault::Forked {
            recorded: recorded.starts.0,
        })
    } else {
        None
    }
}

pub(super) fn desired(service: &Service, host: &HostName) -> Result<Desired, CatalogError> {
    let (catalog, pulses) = (&*service.catalog, &service.pulses);
    let mut desired = Desired::default();
    for disk in model::suffixes(catalog, &key::at_host(host))? {
        let Ok(disk) = disk.parse::<DiskId>() else {
            continue;
        };
        let Some(kept) = service.attachments(disk)? else {
            continue;
        };
        if service.leaves_alone(disk)? {
            continue;
        }
        let course = service.course();
        let here = kept.value.0.iter();
        for attachment in here.filter(|a| a.place.node() == Some(host)) {
            let successor = kept.value.standbys().last().map(|a| a.backend);
            desired.attachments.push(DesiredAttachment {
                disk,
                name: attachment.name.clone(),
                backend: attachment.backend,
                wanted: attachment.wanted,
                take_over: attachment.take_over,
                orders: course.orders(disk, attachment.backend),
                successor: successor.filter(|_| attachment.wanted == Wanted::Attached),
            });
        }
    }
    desired.attachments.extend(service.left_alone(host)?);
    desired.records = service.gathering().round;
    let places = service.places()?;
    let here: Vec<StoreId> = places.stores_at(host).collect();
    for kept in model::list::<Dropping>(catalog, key::DROPPING)? {
        if here.iter().any(|store| kept.value.stores.contains(store)) {
            desired.drop.push(kept.value.disk);
        }
    }
    desired.drop_replicas = service.course().drops(&pulses.stores_at(host));
    desired.probe = service.probes(host)?;
    desired.refused = pulses.refused_at(host);
    let mut hasher = DefaultHasher::new();
    desired.hash(&mut hasher);
    // Zero stands for "nothing seen yet".
    desired.digest = hasher.finish() | 1;
    Ok(desired)
}
