//! A disk's record, read and changed: one compare-and-swap at a time, by the one backend that the
//! disk is attached to (I3, I8).

use super::doubt::REBUILD;
use super::pulse::Moment;
use super::retire::{put_retired, retired};
use super::wish::put_attachments;
use super::{MAX_TRIES, Service};
use crate::api::{Liveness, Place, StoreAddress, Wanted};
use crate::catalog::{CatalogError, Committed, Transaction};
use crate::model::{
    Attachment, Attachments, HostRecord, RetiredCopy, StoreRecord, json, key, load, load_disk,
    load_or_default, unchanged,
};
use crate::node_protocol::{Refusal, Response};
use crate::policy::Until;
use replicator::net::identity::{Identity, Role};
use replicator::words::{
    BackendId, Change, ChangeRefused, DiskId, DiskRecord, Owner, Revision, StoreId,
};

impl Service {
    pub(super) fn record(&self, disk: DiskId) -> Result<Response, CatalogError> {
        Ok(match load_disk(&*self.catalog, disk)? {
            Some(kept) => Response::Record(Box::new(kept.into_value().into())),
            None => Response::Refused(Refusal::NoSuchDisk { disk }),
        })
    }

    pub(super) fn swap(
        &self,
        who: &Identity,
        asked: Swap,
        now: Moment,
    ) -> Result<Response, CatalogError> {
        let Swap {
            disk,
            backend,
            expected,
            change,
        } = &asked;
        for _ in 0..MAX_TRIES {
            let Some(kept) = load_disk(&*self.catalog, *disk)? else {
                return Ok(Response::Refused(match self.may_be_forgotten(*disk)? {
                    true => in_doubt("this catalog may have lost the disk"),
                    false => Refusal::NoSuchDisk { disk: *disk },
                }));
            };
            // An older record would issue an epoch over others' heads, take the revision of its past for that of
            // another present, or tell the disk's own writer that it is superseded.
            if let Some(doubt) = self.doubt(&kept.value) {
                return Ok(match change {
                    Change::Attach { .. } | Change::TakeOver { .. } => {
                        let why = format!("{doubt}; {REBUILD}");
                        Response::ChangeRefused(ChangeRefused::InDoubt { why })
                    }
                    // Whoever has it open waits, as for a service that is away.
                    _ => Response::Refused(in_doubt(doubt)),
                });
            }
            // First of all else: whoever asks again after a lost answer has to see what it has done.
            if kept.value.revision != *expected {
                return Ok(Response::Conflict(Box::new(kept.into_value().into())));
            }
            let attachments = self.attachments(*disk)?;
            let mine = attachments
                .as_ref()
                .and_then(|kept| kept.value.backend(*backend))
                .filter(|a| names(a, who));
            let (Some(attachments), Some(mine)) = (&attachments, mine) else {
                return Ok(Response::ChangeRefused(ChangeRefused::NotOwner));
            };
            if let Err(response) = self.check(who, mine, &kept.value, change)? {
                return Ok(response);
            }
            let next = match kept.value.apply(self.generation(), change) {
                Ok(next) => next,
                Err(why) => return Ok(Response::ChangeRefused(why)),
            };
            let write = Transaction::new()
                .expect(key::disk(*disk), kept.unchanged())
                // An attachment that is withdrawn now withdraws the right to this change.
                .expect(key::attachment(*disk), attachments.unchanged())
                .put(key::disk(*disk), json(&next));
            let write = self.with_retired(write, &kept.value, &next, change, now)?;
            let write = if matches!(change, Change::Attach { .. } | Change::TakeOver { .. }) {
                let write = self.with_home(write, &next, mine, now)?;
                let after = opened(&attachments.value, mine);
                put_attachments(write, *disk, &attachments.value, &after)
            } else {
                write
            };
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(disk = %next.name, epoch = %next.epoch, revision = next.revision.0, by = %who, "{}", what(change));
                self.touch_after(*disk, &attachments.value);
                return Ok(Response::Swapped(Box::new(next.into())));
            }
        }
        Ok(Response::Refused(Refusal::Catalog {
            why: "the disk's record kept changing".into(),
        }))
    }

    /// Notes which copies the change makes superfluous, in the transaction that makes it.
    fn with_retired(
        &self,
        write: Transaction,
        before: &DiskRecord,
        after: &DiskRecord,
        change: &Change,
        now: Moment,
    ) -> Result<Transaction, CatalogError> {
        let disk = before.id;
        let (expect, known) =
            load_or_default::<Vec<RetiredCopy>>(&*self.catalog, &key::retired(disk))?;
        let ejected = matches!(change, Change::Eject { .. } | Change::Settle { .. });
        let wall = self.wall(now);
        let copies = retired(before, after, &known, ejected, self.generation(), wall);
        if copies == known {
            return Ok(write);
        }
        let write = write.expect(key::retired(disk), expect);
        Ok(put_retired(write, disk, &copies))
    }

    /// The disk's home is where its VM runs from now on.
    fn with_home(
        &self,
        write: Transaction,
        record: &DiskRecord,
        attachment: &Attachment,
        now: Moment,
    ) -> Result<Transaction, CatalogError> {
        let Place::Node(host) = &attachment.place else {
            return Ok(write);
        };
        if attachment.wanted == Wanted::Copying {
            return Ok(write);
        }
        let places = self.places()?;
        let Some(here) = places.hosts.get(host) else {
            return Ok(write);
        };
        let (kept, mut terms) = self.terms(record, &places)?;
        let hold_down = self.policies()?.class(here, terms.class.as_ref()).hold_down;
        let home = terms.home.moved_to(here, self.wall(now), hold_down);
        if home == terms.home && kept.is_some() {
            return Ok(write);
        }
        // A pin that held until its VM left is over also when the VM comes back.
        let ended =
            |until: &Until| matches!(until, Until::VmLeaves(from) if *from != home.datacenter);
        terms.pins.retain(|pin| !ended(&pin.until));
        terms.home = home;
        let key = key::terms(record.id);
        Ok(write.expect(&key, unchanged(&kept)).put(&key, json(&terms)))
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
        if let Change::Attach { sets, .. } | Change::Switch { sets, .. } = change {
            for store in sets.iter().flat_map(|set| &set.stores) {
                if self.catalog.get(&key::store(*store))?.is_none() {
                    return Ok(Err(malformed(&format!("there is no store {store}"))));
                }
            }
        }
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
        // A backend that is to go does not open another epoch; one that stands by does, when its VM is there.
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
            let host = record.into_value().host;
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

fn in_doubt(why: impl std::fmt::Display) -> Refusal {
    Refusal::InDoubt {
        why: format!("{why}; {REBUILD}"),
    }
}

/// What a backend asks of a disk's record.
pub(super) struct Swap {
    pub disk: DiskId,
    pub backend: BackendId,
    pub expected: Revision,
    pub change: Change,
}

/// The attachments once `mine` has opened the disk: whoever had it before has it no more.
fn opened(attachments: &Attachments, mine: &Attachment) -> Attachments {
    let stays = |a: &&Attachment| {
        a.backend != mine.backend && matches!(a.wanted, Wanted::Standby | Wanted::Detached)
    };
    let mut after = Attachments(attachments.0.iter().filter(stays).cloned().collect());
    let wanted = match mine.wanted {
        Wanted::Copying => Wanted::Copying,
        _ => Wanted::Attached,
    };
    after.0.push(Attachment {
        wanted,
        ..mine.clone()
    });
    after
}

/// Whether the attachment is one of the process that asks.
pub(super) fn names(attachment: &Attachment, who: &Identity) -> bool {
    let place = match who.role {
        Role::Node => Place::Node(who.host.clone()),
        Role::Operator => Place::Operator(who.host.clone()),
        Role::Placement => return false,
    };
    attachment.place == place
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
