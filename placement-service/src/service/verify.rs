//! Verifying open disks: an order to the backend that serves one, and what it says of it. Neither is kept in
//! the catalog: after a restart of the service there is no such order, and the backend stops.

use super::{Kind, Service, ServiceError};
use crate::api::{Verification, VerifyDisk};
use crate::node_protocol::BackendReport;
use replicator::words::{BackendId, DiskId, DiskName};
use replicator::writer::{Orders, Verdict, VerifyOrder};
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Verifications(BTreeMap<DiskId, Ordered>);

struct Ordered {
    order: VerifyOrder,
    backend: BackendId,
    verdict: Option<Verdict>,
}

impl Verifications {
    /// Orders of a backend, with what it is to verify.
    pub fn added(
        &self,
        disk: DiskId,
        backend: BackendId,
        orders: Option<Orders>,
    ) -> Option<Orders> {
        let ordered = self.0.get(&disk).filter(|one| one.backend == backend);
        match ordered {
            None => orders,
            Some(ordered) => Some(Orders {
                verify: Some(ordered.order),
                ..orders?
            }),
        }
    }

    pub fn hear(&mut self, report: &BackendReport) {
        let Some(verdict) = &report.verdict else {
            return;
        };
        if let Some(ordered) = self.0.get_mut(&report.disk)
            && (ordered.backend, ordered.order.id) == (report.backend, verdict.order)
        {
            ordered.verdict = Some(verdict.clone());
        }
    }

    pub fn forget(&mut self, disk: DiskId) {
        self.0.remove(&disk);
    }
}

impl Service {
    /// `fresh` names the order, and no other.
    pub fn verify_disk(
        &self,
        name: &DiskName,
        request: &VerifyDisk,
        fresh: u64,
    ) -> Result<Verification, ServiceError> {
        let disk = self.disk_named(name)?.value;
        let attachments = self.attachments(disk.id)?;
        let owner = disk.owner().map(|owner| owner.backend);
        let served = |backend: &BackendId| {
            let all = attachments.iter().flat_map(|kept| &kept.value.0);
            all.map(|attachment| attachment.backend)
                .any(|other| other == *backend)
        };
        let Some(backend) = owner.filter(served) else {
            return Err(ServiceError::new(
                Kind::NotNow,
                format!("disk {name} was not verified"),
                "no backend of a node has it open",
                "start its VM, or detach it: `ukai disk verify` opens a detached disk itself",
            ));
        };
        let order = VerifyOrder {
            id: fresh,
            deep: request.deep,
        };
        let ordered = Ordered {
            order,
            backend,
            verdict: None,
        };
        let verification = ordered.view(name);
        self.course().verifications.0.insert(disk.id, ordered);
        self.touch(disk.id);
        Ok(verification)
    }

    /// How far it is. An order whose backend does not have the disk any more is over: nobody would ever
    /// end it.
    pub fn verification(&self, name: &DiskName) -> Result<Verification, ServiceError> {
        let disk = self.disk_named(name)?.value;
        let attachments = self.attachments(disk.id)?;
        let owner = disk.owner().map(|owner| owner.backend);
        let goes_on = |backend: BackendId| {
            let mut all = attachments.iter().flat_map(|kept| &kept.value.0);
            owner.is_none_or(|owner| owner == backend)
                && all.any(|attachment| attachment.backend == backend)
        };
        let mut course = self.course();
        let ordered = course.verifications.0.get(&disk.id);
        let ordered = ordered.ok_or_else(|| not_ordered(name))?;
        if ordered.is_finished() || goes_on(ordered.backend) {
            return Ok(ordered.view(name));
        }
        course.verifications.forget(disk.id);
        drop(course);
        self.touch(disk.id);
        Err(ServiceError::new(
            Kind::NotNow,
            format!("disk {name} was not verified to the end"),
            "the backend that did it does not have the disk any more",
            format!("ukai disk verify {name}"),
        ))
    }

    /// Stops it, or forgets what it came to.
    pub fn stop_verifying(&self, name: &DiskName) -> Result<Verification, ServiceError> {
        let disk = self.disk_named(name)?.value;
        let ordered = self.course().verifications.0.remove(&disk.id);
        let ordered = ordered.ok_or_else(|| not_ordered(name))?;
        self.touch(disk.id);
        Ok(ordered.view(name))
    }
}

fn not_ordered(name: &DiskName) -> ServiceError {
    ServiceError::new(
        Kind::NoSuchThing,
        format!("disk {name} is not being verified"),
        "nobody has asked for it, or the placement service was restarted since",
        format!("ukai disk verify {name}"),
    )
}

impl Ordered {
    fn is_finished(&self) -> bool {
        self.verdict
            .as_ref()
            .is_some_and(|verdict| verdict.finished)
    }

    fn view(&self, name: &DiskName) -> Verification {
        Verification {
            disk: name.clone(),
            order: self.order.id,
            deep: self.order.deep,
            backend: self.backend,
            verdict: self.verdict.clone(),
        }
    }
}
