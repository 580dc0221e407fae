//! Who may write a disk: at most one backend at a time, on a node or in an operator's own process; and
//! who stands by for a VM that is about to move.
//!
//! A disk that is attached to one node and asked for on another gets a standby there: its socket is
//! ready, it has no epoch. When the VM arrives it opens the disk, and that makes it the attachment; the
//! old one is gone with the same transaction ([`super::swap`]). A migration that fails changes nothing:
//! the source opens the disk again, and the standby stays one until somebody detaches it.
//!
//! Attaching and detaching only say what is wanted; the node carries it out, and says in its
//! heartbeats how far it is. Fencing does not rest on any of this: it rests on the epoch that the
//! backend takes (I3), and a backend whose attachment is gone can take none.

use super::pulse::Moment;
use super::wish::{Wish, put_attachments};
use super::{Kind, MAX_TRIES, Service, ServiceError};
use crate::api::{
    Attach, Attached, AttachmentView, Detach, Detached, Liveness, Place, TakeWriter, Wanted, Writer,
};
use crate::catalog::{CatalogError, Committed, Transaction};
use crate::model::{Attachment, Attachments, HostRecord, Kept, key, load, unchanged};
use crate::node_protocol::BackendState;
use replicator::words::{BackendId, DiskId, DiskName, DiskRecord, HostName};

/// How far an attachment has come.
#[derive(Clone, PartialEq, Debug)]
pub enum AttachState {
    Ready(Attached),
    /// The socket is there, and the epoch is still another one's, or its copies are being settled: it opens after a
    /// take-over, or when its VM has come.
    NotOpen(Attached),
    Waiting {
        status: String,
    },
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
        let (record, attachments) = self.disk_and_attachments(name)?;
        let record = record.into_value();
        let attachment = attachments
            .as_ref()
            .and_then(|kept| kept.value.backend(backend));
        let take_over = attachment.is_some_and(|attachment| attachment.take_over);
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
            let (record, kept) = self.disk_and_attachments(name)?;
            self.not_in_doubt(&record.value, "attached")?;
            let id = record.value.id;
            let before = kept.clone().map(Kept::into_value);
            let before = before.unwrap_or_default();
            let wish = Wish {
                record: &record.value,
                before: &before,
                place: &place,
                take_over,
                fresh,
            };
            let (backend, after) = match wish.granted() {
                Ok(granted) => granted,
                Err(current) => return Err(self.is_elsewhere(current, now)),
            };
            if after == before {
                return Ok(backend);
            }
            if let Some(gone) = self.gone(&record.value, &before, &after, now) {
                return Err(self.is_elsewhere(gone, now));
            }
            let write = Transaction::new()
                .expect(key::disk(id), record.unchanged())
                .expect(key::attachment(id), unchanged(&kept));
            let write = put_attachments(write, id, &before, &after);
            if self.catalog.commit(&write)? == Committed::Yes {
                let standby = after.backend(backend).map(|a| a.wanted) == Some(Wanted::Standby);
                tracing::info!(disk = %name, to = %at(&place), %backend, take_over, standby, "attaching");
                self.touch_after(id, &before);
                return Ok(backend);
            }
        }
        Err(ServiceError::contended(&format!("disk {name}")))
    }

    /// The attachment that a new standby would wait for in vain: nobody migrates away from a node that is
    /// silent, so whoever asks has to say that the VM there is dead.
    fn gone<'a>(
        &self,
        record: &DiskRecord,
        before: &'a Attachments,
        after: &Attachments,
        now: Moment,
    ) -> Option<&'a Attachment> {
        let owner = record.owner()?;
        let main = before.main().filter(|main| main.backend == owner.backend)?;
        let stays = after.backend(main.backend).is_some();
        let is_up = |host| self.pulses.liveness(host, now) == Liveness::Up;
        let silent = main.place.node().is_some_and(|host| !is_up(host));
        (stays && silent).then_some(main)
    }

    /// Why a disk that `current` has is not given to somebody else as well.
    fn is_elsewhere(&self, current: &Attachment, now: Moment) -> ServiceError {
        let name = &current.name;
        let status = self.attachment_status(current, now);
        match current.wanted {
            Wanted::Detached => ServiceError::new(
                Kind::NotNow,
                format!("disk {name} is being detached from {}", at(&current.place)),
                status,
                "wait until it is detached; if that writer is gone for good, ask again with take-over",
            ),
            _ => ServiceError::new(
                Kind::NotNow,
                format!("disk {name} is attached to {}", at(&current.place)),
                status,
                "detach it first; if its VM or process is gone for good, ask again with take-over",
            ),
        }
    }

    /// Whether the node has the socket ready.
    pub fn attach_state(
        &self,
        name: &DiskName,
        backend: BackendId,
        now: Moment,
    ) -> Result<AttachState, ServiceError> {
        let (record, kept) = self.disk_and_attachments(name)?;
        let attachments = kept.map(|kept| kept.value).unwrap_or_default();
        let attachment = attachments
            .backend(backend)
            .filter(|a| matches!(a.wanted, Wanted::Attached | Wanted::Standby))
            .ok_or_else(|| {
                ServiceError::new(
                    Kind::NotNow,
                    format!("disk {name} was not attached"),
                    "it was detached or given to another node meanwhile",
                    "see `ukai disk list` for where it is",
                )
            })?;
        let standby_of = attachments
            .main()
            .filter(|main| main.backend != backend)
            .and_then(|main| main.place.node());
        let Place::Node(host) = &attachment.place else {
            return Ok(AttachState::Waiting {
                status: "an operator's process has it".into(),
            });
        };
        match self.pulses.backend(host, backend) {
            Some(BackendState::Ready { socket, .. }) => {
                let attached = Attached {
                    disk: name.clone(),
                    id: record.value.id,
                    bytes: record.value.bytes,
                    node: host.clone(),
                    backend,
                    socket,
                    standby_of: standby_of.cloned(),
                    open: self.pulses.open_epoch(host, backend),
                    open_after_ms: None,
                };
                Ok(match (attached.open, record.value.owner()) {
                    (None, Some(_)) => AttachState::NotOpen(attached),
                    _ => AttachState::Ready(attached),
                })
            }
            Some(BackendState::Failed { why }) => Err(ServiceError::new(
                Kind::NotNow,
                format!("{host} could not serve disk {name}"),
                why,
                "mend that, then detach the disk and attach it again",
            )),
            _ => Ok(AttachState::Waiting {
                status: self.attachment_status(attachment, now),
            }),
        }
    }

    /// Wants `name` detached: everywhere, or from the node that is named. Asking again changes nothing.
    pub fn detach(
        &self,
        name: &DiskName,
        request: &Detach,
        now: Moment,
    ) -> Result<DetachState, ServiceError> {
        for _ in 0..MAX_TRIES {
            let (record, kept) = self.disk_and_attachments(name)?;
            let Some(kept) = kept else {
                return Ok(DetachState::Done(detached(&record.value)));
            };
            let meant = |a: &&Attachment| request.means(a);
            let here = kept.value.0.iter().filter(meant);
            let backends: Vec<BackendId> = here.map(|a| a.backend).collect();
            let mut after = kept.clone().into_value();
            for attachment in kept.value.0.iter().filter(meant) {
                after = match self.without(&record.value, attachment, request.force)? {
                    Some(going) => after.with(going),
                    None => after.without(attachment.backend),
                };
            }
            if after == *kept.value {
                return self.detach_state(name, &backends, now);
            }
            let id = record.value.id;
            let write = Transaction::new()
                .expect(key::attachment(id), kept.unchanged())
                .expect(key::disk(id), record.unchanged());
            let write = put_attachments(write, id, &kept.value, &after);
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(disk = %name, node = ?request.node, force = request.force, "detaching");
                self.touch_after(id, &kept.value);
                return self.detach_state(name, &backends, now);
            }
        }
        Err(ServiceError::contended(&format!("disk {name}")))
    }

    /// What becomes of an attachment that is to end: it goes when its node has let go, or at once.
    fn without(
        &self,
        record: &DiskRecord,
        attachment: &Attachment,
        force: bool,
    ) -> Result<Option<Attachment>, ServiceError> {
        let holds_epoch = record
            .owner()
            .is_some_and(|owner| owner.backend == attachment.backend);
        match &attachment.place {
            Place::Node(_) if force => Ok(None),
            Place::Node(_) => Ok(Some(Attachment {
                wanted: Wanted::Detached,
                ..attachment.clone()
            })),
            Place::Operator(_) if force || !holds_epoch => Ok(None),
            Place::Operator(_) => Err(ServiceError::new(
                Kind::NotNow,
                format!("disk {} was not detached", record.name),
                format!("a process of {} is writing it", at(&attachment.place)),
                "let it finish; if it is gone for good, detach with force",
            )),
        }
    }

    /// Whether these backends are gone.
    pub fn detach_state(
        &self,
        name: &DiskName,
        backends: &[BackendId],
        now: Moment,
    ) -> Result<DetachState, ServiceError> {
        let (record, kept) = self.disk_and_attachments(name)?;
        let attachments = kept.map(|kept| kept.value).unwrap_or_default();
        let left = attachments.0.iter().find(|a| backends.contains(&a.backend));
        match left {
            Some(attachment) => Ok(DetachState::Waiting {
                status: self.attachment_status(attachment, now),
            }),
            None => Ok(DetachState::Done(detached(&record.value))),
        }
    }

    /// The backends that an order to detach is about.
    pub fn attached_backends(
        &self,
        name: &DiskName,
        request: &Detach,
    ) -> Result<Vec<BackendId>, ServiceError> {
        let (_, kept) = self.disk_and_attachments(name)?;
        let attachments = kept.map(|kept| kept.value).unwrap_or_default();
        let meant = |a: &&Attachment| request.means(a);
        Ok(attachments
            .0
            .iter()
            .filter(meant)
            .map(|a| a.backend)
            .collect())
    }

    pub(super) fn disk_and_attachments(
        &self,
        name: &DiskName,
    ) -> Result<(Kept<DiskRecord>, Option<Kept<Attachments>>), ServiceError> {
        let record = self.disk_named(name)?;
        let attachments = self.attachments(record.value.id)?;
        Ok((record, attachments))
    }

    pub(super) fn attachments(
        &self,
        disk: DiskId,
    ) -> Result<Option<Kept<Attachments>>, CatalogError> {
        load::<Attachments>(&*self.catalog, &key::attachment(disk))
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
            Some(BackendState::Ready { .. }) if attachment.wanted == Wanted::Standby => {
                format!("node {host} is ready for its VM")
            }
            Some(BackendState::Ready { status, .. }) if !status.is_empty() => status,
            Some(BackendState::Ready { .. }) => format!("node {host} serves it"),
            Some(BackendState::Stopping) => format!("node {host} is closing it"),
            Some(BackendState::Failed { why }) => format!("node {host} could not serve it: {why}"),
        }
    }
}

impl Detach {
    fn means(&self, attachment: &Attachment) -> bool {
        let node = |node| attachment.place.node() == Some(node);
        let backend = |backend| attachment.backend == backend;
        self.node.as_ref().is_none_or(node) && self.backend.is_none_or(backend)
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
