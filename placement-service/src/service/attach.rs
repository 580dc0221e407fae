//! Who may write a disk: at most one backend at a time, on a node or in an operator's own process.
//!
//! Attaching and detaching only say what is wanted; the node carries it out, and says in its
//! heartbeats how far it is. Fencing does not rest on any of this: it rests on the epoch that the
//! backend takes (I3), and a backend whose attachment is gone can take none.

use super::pulse::Moment;
use super::{Kind, MAX_TRIES, Service, ServiceError};
use crate::api::{
    Attach, Attached, AttachmentView, Detach, Detached, Liveness, Place, TakeWriter, Wanted, Writer,
};
use crate::catalog::{Committed, Transaction};
use crate::model::{Attachment, HostRecord, Kept, json, key, load, unchanged};
use crate::node_protocol::BackendState;
use replicator::words::{BackendId, DiskName, DiskRecord, HostName};

/// How far an attachment has come.
#[derive(Clone, PartialEq, Debug)]
pub enum AttachState {
    Ready(Attached),
    Waiting { status: String },
}

/// How far a detachment has come.
#[derive(Clone, PartialEq, Debug)]
pub enum DetachState {
    Done(Detached),
    Waiting { status: String },
}

impl Service {
    /// Wants `name` attached to a node. Asking again changes nothing. `fresh` is the backend's id if
    /// it takes a new one; the id that counts is returned.
    pub fn attach(
        &self,
        name: &DiskName,
        request: &Attach,
        fresh: BackendId,
        now: Moment,
    ) -> Result<BackendId, ServiceError> {
        let host = &request.node;
        if load::<HostRecord>(&*self.catalog, &key::host(host))?.is_none() {
            return Err(ServiceError::new(
                Kind::NoSuchThing,
                format!("there is no node {host}"),
                "no node with a certificate for that host has announced itself",
                "start it with `ukai node`, or see `ukai status` for those that there are",
            ));
        }
        let place = Place::Node(host.clone());
        self.place(name, place, request.take_over, fresh, now)
    }

    /// Gives `name` to a writer in the operator's own process.
    pub fn take_writer(
        &self,
        name: &DiskName,
        operator: &HostName,
        request: &TakeWriter,
        fresh: BackendId,
        now: Moment,
    ) -> Result<Writer, ServiceError> {
        let place = Place::Operator(operator.clone());
        let backend = self.place(name, place, request.take_over, fresh, now)?;
        let (record, attachment) = self.disk_and_attachment(name)?;
        let record = record.value;
        let take_over = attachment.is_some_and(|kept| kept.value.take_over);
        Ok(Writer {
            backend,
            stores: self.store_addresses(&record.stores(), now)?,
            record,
            take_over,
            // The shell knows where it listens.
            node_port: 0,
        })
    }

    fn place(
        &self,
        name: &DiskName,
        place: Place,
        take_over: bool,
        fresh: BackendId,
        now: Moment,
    ) -> Result<BackendId, ServiceError> {
        for _ in 0..MAX_TRIES {
            let (record, current) = self.disk_and_attachment(name)?;
            let record_is_open = record.value.owner().is_some();
            let wanted = match &current {
                None => Attachment {
                    disk: record.value.id,
                    name: name.clone(),
                    backend: fresh,
                    place: place.clone(),
                    wanted: Wanted::Attached,
                    // Nobody is attached any more: whoever left the epoch open was detached by force,
                    // or its node said that it is gone. That was the explicit word that A3 asks for.
                    take_over: take_over || record_is_open,
                },
                Some(kept) => match self.replace(&kept.value, &place, take_over, fresh, now)? {
                    wanted if wanted == kept.value => return Ok(wanted.backend),
                    wanted => wanted,
                },
            };
            let mut write = Transaction::new()
                .expect(key::disk(record.value.id), record.unchanged())
                .expect(key::attachment(record.value.id), unchanged(&current))
                .put(key::attachment(record.value.id), json(&wanted));
            if let Some(Place::Node(old)) = current.map(|kept| kept.value.place)
                && place != Place::Node(old.clone())
            {
                write = write.delete(key::at(&old, record.value.id));
            }
            if let Place::Node(host) = &place {
                write = write.put(key::at(host, record.value.id), Vec::new());
            }
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(disk = %name, to = %at(&place), backend = %wanted.backend, take_over = wanted.take_over, "attaching");
                self.changed();
                return Ok(wanted.backend);
            }
        }
        Err(ServiceError::contended(&format!("disk {name}")))
    }

    /// What the attachment becomes when `place` wants a disk that has one.
    fn replace(
        &self,
        current: &Attachment,
        place: &Place,
        take_over: bool,
        fresh: BackendId,
        now: Moment,
    ) -> Result<Attachment, ServiceError> {
        let name = &current.name;
        let same_node = current.place == *place && matches!(place, Place::Node(_));
        if same_node && current.wanted == Wanted::Attached {
            return Ok(Attachment {
                take_over: current.take_over || take_over,
                ..current.clone()
            });
        }
        if take_over {
            return Ok(Attachment {
                backend: fresh,
                place: place.clone(),
                wanted: Wanted::Attached,
                take_over: true,
                ..current.clone()
            });
        }
        let status = self.attachment_status(current, now);
        Err(match current.wanted {
            Wanted::Detached | Wanted::Standby | Wanted::Copying => ServiceError::new(
                Kind::NotNow,
                format!("disk {name} is being detached from {}", at(&current.place)),
                status,
                "wait until it is detached; if that writer is gone for good, ask again with take-over",
            ),
            Wanted::Attached => ServiceError::new(
                Kind::NotNow,
                format!("disk {name} is attached to {}", at(&current.place)),
                status,
                "detach it first; if its VM or process is gone for good, ask again with take-over",
            ),
        })
    }

    /// Whether the node has the socket ready.
    pub fn attach_state(
        &self,
        name: &DiskName,
        backend: BackendId,
        now: Moment,
    ) -> Result<AttachState, ServiceError> {
        let (record, attachment) = self.disk_and_attachment(name)?;
        let attachment = attachment
            .map(|kept| kept.value)
            .filter(|a| a.backend == backend && a.wanted == Wanted::Attached)
            .ok_or_else(|| {
                ServiceError::new(
                    Kind::NotNow,
                    format!("disk {name} was not attached"),
                    "it was detached or given to another node meanwhile",
                    "see `ukai disk list` for where it is",
                )
            })?;
        let Place::Node(host) = &attachment.place else {
            return Ok(AttachState::Waiting {
                status: "an operator's process has it".into(),
            });
        };
        match self.pulses.backend(host, backend) {
            Some(BackendState::Ready { socket, .. }) => Ok(AttachState::Ready(Attached {
                disk: name.clone(),
                id: record.value.id,
                bytes: record.value.bytes,
                node: host.clone(),
                backend,
                socket,
                standby_of: None,
            })),
            Some(BackendState::Failed { why }) => Err(ServiceError::new(
                Kind::NotNow,
                format!("{host} could not serve disk {name}"),
                why,
                "mend that, then detach the disk and attach it again",
            )),
            _ => Ok(AttachState::Waiting {
                status: self.attachment_status(&attachment, now),
            }),
        }
    }

    /// Wants `name` detached. Asking again changes nothing.
    pub fn detach(
        &self,
        name: &DiskName,
        request: &Detach,
        now: Moment,
    ) -> Result<DetachState, ServiceError> {
        for _ in 0..MAX_TRIES {
            let (record, attachment) = self.disk_and_attachment(name)?;
            let Some(attachment) = attachment else {
                return Ok(DetachState::Done(detached(&record.value)));
            };
            let backend = attachment.value.backend;
            let holds_epoch = record
                .value
                .owner()
                .is_some_and(|owner| owner.backend == backend);
            let id = record.value.id;
            let key = key::attachment(id);
            let write = Transaction::new()
                .expect(&key, attachment.unchanged())
                .expect(key::disk(id), record.unchanged());
            let write = match &attachment.value.place {
                Place::Node(host) if request.force => write.delete(&key).delete(key::at(host, id)),
                Place::Node(_) if attachment.value.wanted == Wanted::Detached => {
                    return self.detach_state(name, backend, now);
                }
                Place::Node(_) => write.put(
                    &key,
                    json(&Attachment {
                        wanted: Wanted::Detached,
                        ..attachment.value.clone()
                    }),
                ),
                Place::Operator(_) if request.force || !holds_epoch => write.delete(&key),
                Place::Operator(_) => {
                    return Err(ServiceError::new(
                        Kind::NotNow,
                        format!("disk {name} was not detached"),
                        format!("a process of {} is writing it", at(&attachment.value.place)),
                        "let it finish; if it is gone for good, detach with force",
                    ));
                }
            };
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(disk = %name, from = %at(&attachment.value.place), force = request.force, "detaching");
                self.changed();
                return self.detach_state(name, backend, now);
            }
        }
        Err(ServiceError::contended(&format!("disk {name}")))
    }

    /// Whether the backend is gone.
    pub fn detach_state(
        &self,
        name: &DiskName,
        backend: BackendId,
        now: Moment,
    ) -> Result<DetachState, ServiceError> {
        let (record, attachment) = self.disk_and_attachment(name)?;
        match attachment.filter(|kept| kept.value.backend == backend) {
            Some(kept) => Ok(DetachState::Waiting {
                status: self.attachment_status(&kept.value, now),
            }),
            None => Ok(DetachState::Done(detached(&record.value))),
        }
    }

    /// The backend that a disk is attached to.
    pub fn attached_backend(&self, name: &DiskName) -> Result<Option<BackendId>, ServiceError> {
        let (_, attachment) = self.disk_and_attachment(name)?;
        Ok(attachment.map(|kept| kept.value.backend))
    }

    pub(super) fn disk_and_attachment(
        &self,
        name: &DiskName,
    ) -> Result<(Kept<DiskRecord>, Option<Kept<Attachment>>), ServiceError> {
        let record = self.disk_named(name)?;
        let key = key::attachment(record.value.id);
        let attachment = load::<Attachment>(&*self.catalog, &key)?;
        Ok((record, attachment))
    }

    pub(super) fn attachment_view(&self, attachment: &Attachment, now: Moment) -> AttachmentView {
        let state = match &attachment.place {
            Place::Node(host) => self.pulses.backend(host, attachment.backend),
            Place::Operator(_) => None,
        };
        let socket = match state {
            Some(BackendState::Ready { socket, .. }) => Some(socket),
            _ => None,
        };
        AttachmentView {
            backend: attachment.backend,
            place: attachment.place.clone(),
            wanted: attachment.wanted,
            socket,
            status: self.attachment_status(attachment, now),
        }
    }

    /// What is known of an attachment, in words.
    fn attachment_status(&self, attachment: &Attachment, now: Moment) -> String {
        let Place::Node(host) = &attachment.place else {
            return "an operator's process has it".into();
        };
        let heard = match self.pulses.liveness(host, now) {
            Liveness::Unheard => {
                return format!(
                    "node {host} has not been heard of since the placement service started"
                );
            }
            Liveness::Silent { for_ms } => {
                return format!("node {host} has been silent for {} s", for_ms / 1000);
            }
            Liveness::Up => self.pulses.backend(host, attachment.backend),
        };
        match heard {
            None => format!("node {host} has not begun to serve it"),
            Some(BackendState::Starting) => format!("node {host} is starting to serve it"),
            Some(BackendState::Ready { status, .. }) if !status.is_empty() => status,
            Some(BackendState::Ready { .. }) => format!("node {host} serves it"),
            Some(BackendState::Stopping) => format!("node {host} is closing it"),
            Some(BackendState::Failed { why }) => format!("node {host} could not serve it: {why}"),
        }
    }
}

fn detached(record: &DiskRecord) -> Detached {
    Detached {
        disk: record.name.clone(),
        clean: record.owner().is_none(),
    }
}

fn at(place: &Place) -> String {
    match place {
        Place::Node(host) => format!("node {host}"),
        Place::Operator(name) => format!("operator {name}"),
    }
}
