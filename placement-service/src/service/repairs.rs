//! Why disks have fewer copies than their policy asks for, and what becomes of that, in words.

use super::pulse::Moment;
use super::scene::Scene;
use super::{Service, ServiceError};
use crate::api::{Disk, MoveState, StoreOrderKind};
use crate::planner::Plan;
use crate::text::counted;
use replicator::words::{DatacenterName, StoreId};
use std::collections::BTreeMap;

/// So many disks are planned anew to say why they are short; the others are named only.
const EXPLAINED: usize = 32;

impl Service {
    /// A line for each disk that is short of copies.
    pub(super) fn shortages(
        &self,
        disks: &[Disk],
        now: Moment,
    ) -> Result<Vec<String>, ServiceError> {
        let short: Vec<&Disk> = disks.iter().filter(|disk| disk.short_extents > 0).collect();
        if short.is_empty() {
            return Ok(Vec::new());
        }
        let scene = self.scene(now)?;
        let mut lines = Vec::new();
        for (at, disk) in short.into_iter().enumerate() {
            let why = match at < EXPLAINED {
                true => format!(": {}", self.shortage(disk, &scene)?),
                false => String::new(),
            };
            lines.push(format!(
                "disk {}: {} {} fewer than {} complete copies{why}",
                disk.name,
                counted(disk.short_extents, "extent"),
                if disk.short_extents == 1 {
                    "has"
                } else {
                    "have"
                },
                disk.wanted_copies
            ));
        }
        Ok(lines)
    }

    fn shortage(&self, disk: &Disk, scene: &Scene) -> Result<String, ServiceError> {
        let now = self.disk_now(self.disk_named(&disk.name)?, scene)?;
        let plan = scene.planner().plan(&now.subject());
        let mut parts = Vec::new();
        match &disk.moving {
            Some(moving) => parts.push(match &moving.state {
                MoveState::Planned { waits_for } => format!("its repair waits for {waits_for}"),
                MoveState::Stuck { why } => format!("its repair is stuck: {why}"),
                MoveState::Paused => "its repair is paused".into(),
                _ => "it is being repaired".into(),
            }),
            None if super::decide::has_work(&now.record.value, &plan) => {
                parts.push("its repair waits for its turn".into());
            }
            None => {}
        }
        parts.extend(awaited(&plan, scene));
        parts.extend(
            plan.shortfalls
                .first()
                .map(|shortfall| shortfall.why.clone()),
        );
        if parts.is_empty() {
            parts.push("it is looked into".into());
        }
        Ok(parts.join("; "))
    }

    /// What should be looked at of stores that are lost, or are being emptied.
    pub(super) fn store_troubles(
        &self,
        stores: &[crate::api::Store],
        moving: &BTreeMap<StoreId, usize>,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        for store in stores {
            let Some(order) = &store.order else {
                continue;
            };
            let (id, host) = (store.id, &store.host);
            let left = store.task.disks_left;
            let disks = counted(left, "disk");
            match order.kind {
                StoreOrderKind::Lost if store.away_since.is_none() => lines.push(format!(
                    "store {id} on {host} is declared lost, and is up: `ukai store found` uses it again"
                )),
                StoreOrderKind::Lost if left > 0 => lines.push(format!(
                    "store {id} on {host} is declared lost; its copies of {disks} are being replaced"
                )),
                StoreOrderKind::Evacuate if left > 0 && store.away_since.is_some() => {
                    lines.push(format!(
                        "store {id} on {host} is being emptied, and is not up; {disks} left on it"
                    ));
                }
                StoreOrderKind::Evacuate if left > 0 && !moving.contains_key(&id) => {
                    lines.push(format!(
                        "store {id} on {host} is being emptied; {disks} left on it, for which there is no turn yet, or a copy is missing"
                    ));
                }
                _ => {}
            }
        }
        lines
    }
}

/// Whom a missing copy waits for, and until when.
fn awaited(plan: &Plan, scene: &Scene) -> Option<String> {
    let one = plan.awaited.first()?;
    let host = scene.places.host(one.store);
    let place = host.map_or(String::new(), |host| format!(" on {host}"));
    let datacenter: Option<&DatacenterName> = scene.places.datacenter(one.store);
    let place = match datacenter {
        Some(datacenter) => format!("{place} in {datacenter}"),
        None => place,
    };
    Some(format!(
        "store {}{place} is away, and is waited for until {}; then another copy is made (`ukai store lost` does it now)",
        one.store, one.until
    ))
}
