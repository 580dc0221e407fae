//! Rebalancing: one shift after another, each between stores that take part in no other, and only when there is
//! nothing else that policy has to move.

use super::Service;
use super::decide::{begin, has_work};
use super::scene::{DiskNow, Scene};
use crate::api::MoveWhy;
use crate::catalog::{CatalogError, Committed, Transaction};
use crate::model::{MoveRecord, json, key, unchanged};
use crate::planner::{Plan, Planner, Subject};
use replicator::words::StoreId;
use std::collections::BTreeSet;

impl Service {
    /// Begins the shift that evens out the fleet most, if there is one, and at most so many at once.
    pub(super) fn rebalance(
        &self,
        scene: &Scene,
        planner: &Planner,
        (disks, plans): (&[DiskNow], &[Plan]),
        under_way: &[MoveRecord],
        at_once: usize,
    ) -> Result<(), CatalogError> {
        let mut busy: BTreeSet<StoreId> = BTreeSet::new();
        let mut shifts = 0;
        for (disk, plan) in disks.iter().zip(plans) {
            let shifting = disk
                .moving()
                .filter(|moving| matches!(moving.why, MoveWhy::Rebalance(_)));
            match shifting {
                Some(moving) => {
                    shifts += 1;
                    busy.extend(&moving.leaves);
                    busy.extend(disk.record.value.members());
                    let sets = plan.next_sets().into_iter().flatten();
                    busy.extend(sets.flat_map(|set| &set.stores));
                }
                // Whatever else is to be done comes first: it may even out the fleet by itself.
                None if disk.moving().is_some()
                    || plan.repair
                    || has_work(&disk.record.value, plan) =>
                {
                    return Ok(());
                }
                None => {}
            }
        }
        if shifts >= at_once || under_way.len() > shifts {
            return Ok(());
        }
        let subjects: Vec<Subject> = disks.iter().map(DiskNow::subject).collect();
        let Some(shift) = planner.shift(&subjects, &busy) else {
            return Ok(());
        };
        let mut all = disks.iter();
        let disk = all.find(|disk| disk.record.value.id == shift.disk);
        let disk = disk.expect("a shift is of one of these disks");
        let leaves = [shift.from];
        let subject = Subject {
            leaving: &leaves,
            ..disk.subject()
        };
        let plan = planner.plan(&subject);
        let why = MoveWhy::Rebalance(shift.from);
        let Some(moving) = begin(scene, planner, &subject, &plan, why) else {
            return Ok(());
        };
        let moving = MoveRecord {
            number: self.next_move()?,
            leaves: leaves.to_vec(),
            base: self.base(&disk.record.value),
            ..moving
        };
        let id = disk.record.value.id;
        let write = Transaction::new()
            .expect(key::disk(id), disk.record.unchanged())
            .expect(key::terms(id), unchanged(&disk.terms_kept))
            .expect(key::moving(id), unchanged(&disk.moving))
            .put(key::moving(id), json(&moving));
        // If something has changed meanwhile, the next pass looks anew.
        if self.catalog.commit(&write)? == Committed::Yes {
            tracing::info!(disk = %moving.name, from = %shift.from, to = %shift.to, "rebalancing");
            self.touch(id);
        }
        Ok(())
    }
}
