//! Disks that are not near their VMs, and why nothing is under way to change that.

use super::pulse::Moment;
use super::scene::Scene;
use super::{Service, ServiceError};
use crate::api::{Disk, FarDisk, Wanted};

/// So many are named, and planned anew to say why; the others are counted.
const NAMED: usize = 32;

impl Service {
    /// The first of those that are open and not near, by their names.
    pub(super) fn far_disks(
        &self,
        disks: &[Disk],
        now: Moment,
    ) -> Result<Vec<FarDisk>, ServiceError> {
        let far = disks.iter().filter(|disk| is_far(disk)).take(NAMED);
        let mut far = far.peekable();
        if far.peek().is_none() {
            return Ok(Vec::new());
        }
        let scene = self.scene(now)?;
        far.map(|disk| {
            Ok(FarDisk {
                disk: disk.name.clone(),
                home: disk.home.clone(),
                extents: disk.extents,
                near_extents: disk.near_extents,
                why: match disk.moving {
                    Some(_) => None,
                    None => Some(self.why_far(disk, &scene)?),
                },
            })
        })
        .collect()
    }

    fn why_far(&self, disk: &Disk, scene: &Scene) -> Result<String, ServiceError> {
        let now = self.disk_now(self.disk_named(&disk.name)?, scene)?;
        let planner = scene.planner();
        let plan = planner.plan(&now.subject());
        Ok(match super::decide::has_work(&now.record.value, &plan) {
            true => "it waits for its turn to move".into(),
            false => planner.why_far(&now.subject()),
        })
    }
}

/// It serves a VM, and some of its blocks have no complete copy in the VM's datacenter.
pub(super) fn is_far(disk: &Disk) -> bool {
    let serves = disk.attachment.as_ref();
    disk.open_for.is_some()
        && disk.near_extents < disk.extents
        && serves.is_some_and(|attachment| attachment.wanted != Wanted::Copying)
}
