//! The pass over the disks: plans each, decides what it does next, keeps what has to be kept. Every write
//! is a compare-and-swap against what was judged; one that loses is judged anew in the next pass.

use super::course::Course;
use super::decide::{Copier, Decision, Seen, decide, has_work, retired_seeds};
use super::news::hosts;
use super::pulse::Moment;
use super::retire::{drops, joined, put_retired, still_retired};
use super::scene::{DiskNow, Scene};
use super::{MAX_TRIES, Service};
use crate::api::{MoveState, Place, Wanted};
use crate::catalog::{CatalogError, Committed, Expect, Transaction};
use crate::model::{
    Attachment, ENDED_MOVES_KEPT, Kept, MoveRecord, Rollout, json, key, list, load, load_disk,
    load_or_default, suffixes, unchanged,
};
use crate::planner::{Plan, rollout};
use crate::service::wish::put_attachments;
use replicator::words::{BackendId, DatacenterName, DiskId, DiskRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// All disks are looked at this often, if that takes a small part of the time...
const EVERY: Duration = Duration::from_secs(2);
/// ...that is, no more often than after so many times what the last look took.
const REST: u32 = 10;
/// Repairs come before what policy would rather have, and are bounded too, by what a fleet can take.
const REPAIRS_AT_ONCE: usize = 64;

impl Service {
    /// Looks at what changed and, every few seconds, at everything. `fresh` makes ids for backends.
    pub fn pass(
        &self,
        now: Moment,
        fresh: &mut dyn FnMut() -> BackendId,
    ) -> Result<(), CatalogError> {
        if !self.fleet_is_known(now)? {
            return Ok(());
        }
        let (whole, touched) = {
            let mut course = self.course();
            let whole = course.take_look_at_all() || is_due(&course, now);
            (whole, course.take_touched())
        };
        if whole {
            self.count_unwritten()?;
            self.note_absences(now)?;
            let records = list::<DiskRecord>(&*self.catalog, key::DISKS)?;
            self.look_at(
                records.into_iter().map(|kept| kept.value.id).collect(),
                true,
                now,
                fresh,
            )?;
            self.forget_old_moves()?;
            self.course().last_whole_pass = Some((now, Duration::ZERO));
        } else if !touched.is_empty() {
            self.look_at(touched, false, now, fresh)?;
        }
        Ok(())
    }

    /// How long the pass of that moment took: the longer, the longer it rests.
    pub fn took(&self, pass: Moment, time: Duration) {
        if let Some((at, took)) = &mut self.course().last_whole_pass
            && *at == pass
        {
            *took = time;
        }
    }

    fn look_at(
        &self,
        disks: BTreeSet<DiskId>,
        whole: bool,
        now: Moment,
        fresh: &mut dyn FnMut() -> BackendId,
    ) -> Result<(), CatalogError> {
        let scene = self.scene(now)?;
        let mut loaded: Vec<DiskNow> = Vec::with_capacity(disks.len());
        let known = disks.clone();
        for id in disks {
            match load_disk(&*self.catalog, id)? {
                // Nothing is decided by what may be old.
                Some(record) if self.doubt(&record.value).is_some() => {}
                Some(record) => loaded.push(self.disk_now(record, &scene)?),
                None => self.course().forget(id),
            }
        }
        let planner = scene.planner();
        let plans = planner.plan_all(loaded.iter().map(DiskNow::subject));
        if whole {
            self.forget_moves_of_nothing(&known)?;
        }
        let under_way = list::<MoveRecord>(&*self.catalog, key::MOVES)?;
        let under_way: Vec<MoveRecord> = under_way.into_iter().map(Kept::into_value).collect();
        if whole {
            let limit = self.admit(&loaded, &plans, &under_way)?;
            self.keep_tracks(&loaded);
            self.rebalance(&scene, &planner, (&loaded, &plans), &under_way, limit)?;
        }
        let filling = filling(&under_way);
        let mut to_tell = BTreeSet::new();
        for (disk, plan) in loaded.iter().zip(&plans) {
            let seen = self.seen(disk, &filling);
            let decision = decide(&scene, &planner, disk, &seen, plan);
            if self.carry_out(disk, decision, &scene, fresh)? {
                let now = self.attachments(disk.record.value.id)?;
                to_tell.extend(now.iter().flat_map(|kept| hosts(&kept.value)));
                to_tell.extend(hosts(&disk.attachments));
            }
            if self.drop_superfluous(disk, plan, &scene)? {
                let stores = disk.retired().iter().map(|copy| copy.store);
                to_tell.extend(stores.filter_map(|store| scene.places.host(store).cloned()));
            }
        }
        if !to_tell.is_empty() {
            self.changed_at(to_tell);
        }
        Ok(())
    }

    /// Which disks policy may begin to move: a bounded number at a time, repairs first. Returns that number.
    fn admit(
        &self,
        disks: &[DiskNow],
        plans: &[Plan],
        under_way: &[MoveRecord],
    ) -> Result<usize, CatalogError> {
        let (_, limit) = load_or_default::<Rollout>(&*self.catalog, key::ROLLOUT)?;
        let begun = |moving: &&MoveRecord| {
            moving.why.takes_turns() && !matches!(moving.state, MoveState::Planned { .. })
        };
        let begun: BTreeSet<DiskId> = under_way.iter().filter(begun).map(|m| m.disk).collect();
        let work = disks.iter().zip(plans);
        let work = work.filter(|(disk, plan)| has_work(&disk.record.value, plan));
        let (repairs, others): (Vec<Plan>, Vec<Plan>) = work
            .map(|(_, plan)| plan.clone())
            .partition(|plan| plan.repair);
        let mut admitted: BTreeSet<DiskId> = rollout(&repairs, &begun, REPAIRS_AT_ONCE)
            .into_iter()
            .collect();
        admitted.extend(rollout(&others, &begun, limit.at_once as usize));
        self.course().admit(admitted);
        Ok(limit.at_once as usize)
    }

    fn keep_tracks(&self, disks: &[DiskNow]) {
        let attached = disks.iter().flat_map(|disk| &disk.attachments.0);
        let backends = attached.map(|attachment| attachment.backend).collect();
        self.course().keep_tracks(&backends);
    }

    fn seen(&self, disk: &DiskNow, filling: &BTreeMap<DatacenterName, usize>) -> Seen {
        let course = self.course();
        let writer = disk.record.value.owner().map(|owner| owner.backend);
        Seen {
            admitted: course.is_admitted(disk.record.value.id),
            heard: writer.and_then(|backend| course.heard(backend)),
            hindrance: writer.and_then(|backend| course.hindrance(backend)),
            filling: filling.clone(),
        }
    }

    /// Keeps what was decided. True: something is wanted of a node that was not wanted before.
    fn carry_out(
        &self,
        disk: &DiskNow,
        decision: Decision,
        scene: &Scene,
        fresh: &mut dyn FnMut() -> BackendId,
    ) -> Result<bool, CatalogError> {
        let id = disk.record.value.id;
        let mut changed = self.course().set_orders(id, decision.orders);
        changed |= self.keep_copier(disk, decision.copier, fresh)?;
        if !decision.leftover.is_empty() {
            let mut copies = disk.retired().to_vec();
            copies.extend(retired_seeds(
                &disk.record.value,
                &decision.leftover,
                scene.wall,
            ));
            let write = Transaction::new()
                .expect(key::disk(id), disk.record.unchanged())
                .expect(key::retired(id), unchanged(&disk.retired_kept));
            let copies = still_retired(&disk.record.value, &joined(copies));
            let write = put_retired(write, id, &copies);
            if self.catalog.commit(&write)? == Committed::No {
                self.touch(id);
                return Ok(changed);
            }
        }
        self.keep_moves(disk, decision.ended, decision.moving)?;
        Ok(changed)
    }

    pub(super) fn keep_moves(
        &self,
        disk: &DiskNow,
        ended: Vec<MoveRecord>,
        moving: Option<MoveRecord>,
    ) -> Result<(), CatalogError> {
        let id = disk.record.value.id;
        // What a backend says every second is kept only with something else that changes.
        let same = ended.is_empty()
            && match (disk.moving(), &moving) {
                (None, None) => true,
                (Some(kept), Some(moving)) => {
                    kept.number == moving.number && kept.state == moving.state
                }
                _ => false,
            };
        if same {
            return Ok(());
        }
        // Its name goes with it: of a disk that was deleted meanwhile nobody would ever end a move. The record
        // itself changes too often to be expected.
        let name = key::name(&disk.record.value.name);
        let named = load::<DiskId>(&*self.catalog, &name)?;
        let Some(named) = named.filter(|named| *named.value == id) else {
            return Ok(());
        };
        let mut write = Transaction::new()
            .expect(name, named.unchanged())
            .expect(key::moving(id), unchanged(&disk.moving));
        for ended in ended {
            let number = match ended.number {
                0 => self.next_move()?,
                number => number,
            };
            let ended = MoveRecord { number, ..ended };
            tracing::info!(disk = %ended.name, number, state = ?ended.state, "a move has ended");
            write = write.put(key::ended(number), json(&ended));
        }
        write = match moving {
            None if disk.moving.is_none() => write,
            None => write.delete(key::moving(id)),
            Some(moving) => {
                let number = match moving.number {
                    0 => self.next_move()?,
                    number => number,
                };
                tracing::info!(disk = %moving.name, number, why = ?moving.why, state = ?moving.state, "moving");
                write.put(key::moving(id), json(&MoveRecord { number, ..moving }))
            }
        };
        // If somebody steered it meanwhile, the next pass goes by that.
        if self.catalog.commit(&write)? == Committed::No {
            self.touch(id);
        }
        Ok(())
    }

    /// A number that no other move has.
    pub(super) fn next_move(&self) -> Result<u64, CatalogError> {
        for _ in 0..MAX_TRIES {
            let (expect, last) = load_or_default::<u64>(&*self.catalog, key::LAST_MOVE)?;
            let write = Transaction::new()
                .expect(key::LAST_MOVE, expect)
                .put(key::LAST_MOVE, json(&(last + 1)));
            if self.catalog.commit(&write)? == Committed::Yes {
                return Ok(last + 1);
            }
        }
        Err(CatalogError::Failed(format!(
            "{} kept changing",
            key::LAST_MOVE
        )))
    }

    /// Moves of disks that there are no more would be under way for ever.
    fn forget_moves_of_nothing(&self, disks: &BTreeSet<DiskId>) -> Result<(), CatalogError> {
        for disk in suffixes(&*self.catalog, key::MOVES)? {
            let Ok(disk) = disk.parse::<DiskId>() else {
                continue;
            };
            if disks.contains(&disk) {
                continue;
            }
            let write = Transaction::new()
                .expect(key::disk(disk), Expect::Absent)
                .delete(key::moving(disk));
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::warn!(%disk, "a move is forgotten: there is no such disk");
            }
        }
        Ok(())
    }

    fn forget_old_moves(&self) -> Result<(), CatalogError> {
        let numbers = suffixes(&*self.catalog, key::ENDED)?;
        let old = numbers.len().saturating_sub(ENDED_MOVES_KEPT);
        // A few a pass: a transaction is bounded, and the next pass comes soon.
        let mut write = Transaction::new();
        for number in numbers.iter().take(old.min(32)) {
            write = write.delete(format!("{}{number}", key::ENDED));
        }
        if !write.write.is_empty() {
            let _ = self.catalog.commit(&write)?;
        }
        Ok(())
    }

    fn keep_copier(
        &self,
        disk: &DiskNow,
        copier: Copier,
        fresh: &mut dyn FnMut() -> BackendId,
    ) -> Result<bool, CatalogError> {
        let before = &disk.attachments;
        let record = &disk.record.value;
        let after = match copier {
            Copier::AsItIs => return Ok(false),
            Copier::Start(host) => before.with(Attachment {
                disk: record.id,
                name: record.name.clone(),
                backend: fresh(),
                place: Place::Node(host),
                wanted: Wanted::Copying,
                take_over: false,
            }),
            Copier::End(backend) => {
                let Some(ending) = before.backend(backend) else {
                    return Ok(false);
                };
                before.with(Attachment {
                    wanted: Wanted::Detached,
                    ..ending.clone()
                })
            }
        };
        let write = Transaction::new()
            .expect(key::disk(record.id), disk.record.unchanged())
            .expect(
                key::attachment(record.id),
                unchanged(&disk.attachments_kept),
            );
        let write = put_attachments(write, record.id, before, &after);
        Ok(self.catalog.commit(&write)? == Committed::Yes)
    }

    fn drop_superfluous(
        &self,
        disk: &DiskNow,
        plan: &Plan,
        scene: &Scene,
    ) -> Result<bool, CatalogError> {
        let id = disk.record.value.id;
        if let Some(kept) = &disk.retired_kept {
            let held = self.order_drops(disk, kept, plan, scene)?;
            self.course().set_held(id, held);
        } else {
            self.course().set_held(id, Vec::new());
        }
        let copies = self.retired_copies(id)?;
        let copies = copies.map(|kept| kept.value).unwrap_or_default();
        Ok(self.course().set_drops(id, drops(id, &copies)))
    }
}

fn is_due(course: &Course, now: Moment) -> bool {
    course
        .last_whole_pass
        .is_none_or(|(at, took)| now.0.saturating_sub(at.0) >= EVERY.max(took.saturating_mul(REST)))
}

/// How many disks are being filled in each datacenter.
fn filling(under_way: &[MoveRecord]) -> BTreeMap<DatacenterName, usize> {
    let mut filling: BTreeMap<DatacenterName, usize> = BTreeMap::new();
    let fills = |m: &&MoveRecord| matches!(m.state, MoveState::Filling | MoveState::Switching);
    for to in under_way.iter().filter(fills).flat_map(|m| &m.to) {
        *filling.entry(to.clone()).or_default() += 1;
    }
    filling
}
