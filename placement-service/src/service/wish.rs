//! What becomes of a disk's attachments when somebody wants it at a place: pure, over what there is.

use super::news::hosts;
use crate::api::{Place, Wanted};
use crate::catalog::Transaction;
use crate::model::{Attachment, Attachments, json, key};
use replicator::words::{BackendId, DiskId, DiskRecord};

/// Somebody wants a disk at a place.
pub(super) struct Wish<'a> {
    pub record: &'a DiskRecord,
    pub before: &'a Attachments,
    pub place: &'a Place,
    pub take_over: bool,
    pub fresh: BackendId,
}

impl<'a> Wish<'a> {
    /// The backend that gets it, and all attachments as they are to be. The error is who has it instead.
    pub fn granted(&self) -> Result<(BackendId, Attachments), &'a Attachment> {
        let before = self.before;
        let serves = |a: &&Attachment| matches!(a.wanted, Wanted::Attached | Wanted::Detached);
        let other = before
            .0
            .iter()
            .filter(serves)
            .find(|a| a.place != *self.place);
        let is_node = |place: &Place| place.node().is_some();
        match before.at(self.place) {
            Some(here) if self.take_over => {
                let keeps = is_node(self.place)
                    && matches!(here.wanted, Wanted::Attached | Wanted::Standby);
                let backend = if keeps { here.backend } else { self.fresh };
                Ok(self.instead_of_all(backend))
            }
            None if self.take_over => Ok(self.instead_of_all(self.fresh)),
            Some(here) if here.wanted == Wanted::Detached || !is_node(self.place) => Err(here),
            Some(here) if here.wanted == Wanted::Attached => Ok((here.backend, before.clone())),
            Some(here) if here.wanted == Wanted::Standby && other.is_some() => {
                Ok((here.backend, before.clone()))
            }
            Some(here) if here.wanted == Wanted::Standby => {
                let attached = Attachment {
                    wanted: Wanted::Attached,
                    ..here.clone()
                };
                Ok((here.backend, self.without_copier().with(attached)))
            }
            // It copies here; its node ends that before it serves a guest.
            Some(_) => Ok(self.beside(Wanted::Attached)),
            None => match other {
                Some(other) if !is_node(&other.place) || !is_node(self.place) => Err(other),
                Some(other) if before.0.len() >= Attachments::MAX => Err(other),
                Some(other) if other.wanted == Wanted::Attached => Ok(self.beside(Wanted::Standby)),
                _ => Ok(self.beside(Wanted::Attached)),
            },
        }
    }

    /// Those that there are; whoever only copies is to let go.
    fn without_copier(&self) -> Attachments {
        let mut after = self.before.clone();
        for attachment in &mut after.0 {
            if attachment.wanted == Wanted::Copying {
                attachment.wanted = Wanted::Detached;
            }
        }
        after
    }

    /// A new one besides those that there are.
    fn beside(&self, wanted: Wanted) -> (BackendId, Attachments) {
        let mut after = self.without_copier();
        // Nobody is attached any more: whoever left the epoch open was detached by force, or its node
        // said that it is gone. That was the explicit word that A3 asks for.
        let left_open = self.record.owner().is_some() && self.before.0.is_empty();
        after.0.push(self.attachment(self.fresh, wanted, left_open));
        (self.fresh, after)
    }

    /// The word that every other writer is gone; who stands by elsewhere goes on doing so.
    fn instead_of_all(&self, backend: BackendId) -> (BackendId, Attachments) {
        let standbys = self.before.standbys().filter(|a| a.place != *self.place);
        let mut after = Attachments(standbys.cloned().collect());
        after
            .0
            .push(self.attachment(backend, Wanted::Attached, true));
        (backend, after)
    }

    fn attachment(&self, backend: BackendId, wanted: Wanted, take_over: bool) -> Attachment {
        Attachment {
            disk: self.record.id,
            name: self.record.name.clone(),
            backend,
            place: self.place.clone(),
            wanted,
            take_over,
        }
    }
}

/// Adds the attachments as they are to be, and where nodes find theirs.
pub(super) fn put_attachments(
    mut write: Transaction,
    disk: DiskId,
    before: &Attachments,
    after: &Attachments,
) -> Transaction {
    write = match after.0.is_empty() {
        true => write.delete(key::attachment(disk)),
        false => write.put(key::attachment(disk), json(after)),
    };
    let (before, after) = (hosts(before), hosts(after));
    for left in before.difference(&after) {
        write = write.delete(key::at(left, disk));
    }
    for new in after.difference(&before) {
        write = write.put(key::at(new, disk), Vec::new());
    }
    write
}
