//! A disk's record, read and changed: one compare-and-swap at a time, by the one backend that the
//! disk is attached to (I3, I8).

use super::pulse::Moment;
use super::{MAX_TRIES, Service};
use crate::api::{Liveness, Place, StoreAddress, Wanted};
use crate::catalog::{CatalogError, Committed, Transaction};
use crate::model::{Attachment, HostRecord, StoreRecord, json, key, load, load_disk};
use crate::node_protocol::{Refusal, Response};
use replicator::net::identity::{Identity, Role};
use replicator::words::{
    BackendId, Change, ChangeRefused, DiskId, DiskRecord, Owner, Revision, StoreId,
};

impl Service {
    pub(super) fn record(&self, disk: DiskId) -> Result<Response, CatalogError> {
        Ok(match load_disk(&*self.catalog, disk)? {
            Some(kept) => Response::Record(Box::new(kept.value)),
            None => Response::Refused(Refusal::NoSuchDisk { disk }),
        })
    }

    pub(super) fn swap(
        &self,
        who: &Identity,
        disk: DiskId,
        backend: BackendId,
        expected: Revision,
        change: &Change,
    ) -> Result<Response, CatalogError> {
        for _ in 0..MAX_TRIES {
            let Some(kept) = load_disk(&*self.catalog, disk)? else {
                return Ok(Response::Refused(Refusal::NoSuchDisk { disk }));
            };
            // First of all: whoever asks again after a lost answer has to see what it has done.
            if kept.value.revision != expected {
                return Ok(Response::Conflict(Box::new(kept.value)));
            }
            let key = key::attachment(disk);
            let attachment = load::<Attachment>(&*self.catalog, &key)?;
            let Some(attachment) = attachment.filter(|a| names(&a.value, who, backend)) else {
                return Ok(Response::ChangeRefused(ChangeRefused::NotOwner));
            };
            if let Err(response) = self.check(who, &attachment.value, &kept.value, change)? {
                return Ok(response);
            }
            let next = match kept.value.apply(self.generation, change) {
                Ok(next) => next,
                Err(why) => return Ok(Response::ChangeRefused(why)),
            };
            let write = Transaction::new()
                .expect(key::disk(disk), kept.unchanged())
                // An attachment that is withdrawn now withdraws the right to this change.
                .expect(&key, attachment.unchanged())
                .put(key::disk(disk), json(&next));
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(disk = %next.name, epoch = %next.epoch, revision = next.revision.0, by = %who, "{}", what(change));
                self.changed();
                return Ok(Response::Swapped(Box::new(next)));
            }
        }
        Ok(Response::Refused(Refusal::Catalog {
            why: "the disk's record kept changing".into(),
        }))
    }

    /// Whether this backend may make this change at all. The inner error is the answer if not.
    fn check(
        &self,
        who: &Identity,
        attachment: &Attachment,
        record: &DiskRecord,
        change: &Change,
    ) -> Result<Result<(), Response>, CatalogError> {
        let malformed = |why: &str| {
            Response::Refused(Refusal::Malformed {
                why: why.to_owned(),
            })
        };
        let (Change::Attach { owner, .. } | Change::TakeOver { owner }) = change else {
            let by = match change {
                Change::Settle { by, .. }
                | Change::Eject { by, .. }
                | Change::Switch { by, .. }
                | Change::Complete { by, .. }
                | Change::Close { by, .. } => by.0,
                Change::Attach { .. } | Change::TakeOver { .. } => unreachable!("matched above"),
            };
            let mine = by == attachment.backend;
            return Ok(if mine {
                Ok(())
            } else {
                Err(Response::ChangeRefused(ChangeRefused::NotOwner))
            });
        };
        if owner.backend != attachment.backend || owner.host != who.host {
            return Ok(Err(malformed("the owner is not the one who asks")));
        }
        // A backend that is to go does not open another epoch.
        if attachment.wanted == Wanted::Detached {
            return Ok(Err(Response::ChangeRefused(ChangeRefused::NotOwner)));
        }
        if let (Change::TakeOver { owner }, Some(current)) = (change, record.owner())
            && !may_take_over(attachment, owner, current)
        {
            return Ok(Err(Response::ChangeRefused(ChangeRefused::AlreadyOpen {
                host: current.host.to_string(),
            })));
        }
        if let Change::Attach { sets, .. } = change {
            for store in sets.iter().flat_map(|set| &set.stores) {
                if self.catalog.get(&key::store(*store))?.is_none() {
                    return Ok(Err(malformed(&format!("there is no store {store}"))));
                }
            }
        }
        Ok(Ok(()))
    }

    pub(super) fn store_addresses(
        &self,
        stores: &[StoreId],
        now: Moment,
    ) -> Result<Vec<StoreAddress>, CatalogError> {
        let mut addresses = Vec::new();
        for store in stores {
            let Some(record) = load::<StoreRecord>(&*self.catalog, &key::store(*store))? else {
                continue;
            };
            let host = record.value.host;
            // Only a store that was heard since this service started is known not to be rolled back.
            if self.pulses.store(&host, *store).is_none() {
                continue;
            }
            let Some(at) = load::<HostRecord>(&*self.catalog, &key::host(&host))? else {
                continue;
            };
            addresses.push(StoreAddress {
                store: *store,
                up: self.pulses.liveness(&host, now) == Liveness::Up,
                address: at.value.listen,
                host,
            });
        }
        Ok(addresses)
    }
}

/// Whether the disk is attached to this backend of the process that asks.
fn names(attachment: &Attachment, who: &Identity, backend: BackendId) -> bool {
    let place = match who.role {
        Role::Node => Place::Node(who.host.clone()),
        Role::Operator => Place::Operator(who.host.clone()),
        Role::Placement => return false,
    };
    attachment.place == place && attachment.backend == backend
}

/// A restarted backend takes over what it held itself; another's only with an operator's word (rule A3).
fn may_take_over(attachment: &Attachment, owner: &Owner, current: &Owner) -> bool {
    attachment.take_over || current.backend == owner.backend
}

fn what(change: &Change) -> &'static str {
    match change {
        Change::Attach { .. } => "epoch opened",
        Change::TakeOver { .. } => "epoch taken over",
        Change::Settle { .. } => "copies settled",
        Change::Switch { .. } => "members switched",
        Change::Complete { .. } => "copies complete",
        Change::Eject { .. } => "stores ejected",
        Change::Close { .. } => "epoch closed",
    }
}
