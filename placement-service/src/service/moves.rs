//! Moves, as they are shown and steered while they run.

use super::course::Heard;
use super::pulse::Moment;
use super::scene::DiskNow;
use super::{Kind, MAX_TRIES, Service, ServiceError};
use crate::api::{Control, Move, MoveBrief, MoveProgress, MoveState, Moves};
use crate::catalog::{CatalogError, Committed, Transaction};
use crate::model::{MoveRecord, json, key, list, load, load_disk};
use replicator::words::{DiskId, DiskName};

impl Service {
    pub fn moves(&self, now: Moment) -> Result<Moves, ServiceError> {
        let scene = self.scene(now)?;
        let mut under_way = Vec::new();
        for kept in list::<MoveRecord>(&*self.catalog, key::MOVES)? {
            let disk = match load_disk(&*self.catalog, kept.value.disk)? {
                Some(record) => Some(self.disk_now(record, &scene)?),
                None => None,
            };
            under_way.push(self.move_view(&kept.value, disk.as_ref()));
            let waits = kept.value.afterwards.as_deref();
            under_way.extend(waits.map(|ahead| self.move_view(ahead, None)));
        }
        under_way.sort_by_key(|moving| moving.number);
        let ended = list::<MoveRecord>(&*self.catalog, key::ENDED)?;
        let ended = ended.into_iter().rev();
        Ok(Moves {
            under_way,
            ended: ended
                .map(|kept| self.move_view(&kept.value, None))
                .collect(),
        })
    }

    /// A disk's move that is under way, or else its last one.
    pub fn disk_move(&self, name: &DiskName, now: Moment) -> Result<Move, ServiceError> {
        let scene = self.scene(now)?;
        let disk = self.disk_now(self.disk_named(name)?, &scene)?;
        if let Some(moving) = disk.moving() {
            return Ok(self.move_view(moving, Some(&disk)));
        }
        let id = disk.record.value.id;
        let ended = list::<MoveRecord>(&*self.catalog, key::ENDED)?;
        let last = ended.into_iter().rev().find(|kept| kept.value.disk == id);
        match last {
            Some(kept) => Ok(self.move_view(&kept.value, None)),
            None => Err(ServiceError::new(
                Kind::NoSuchThing,
                format!("disk {name} is not moving"),
                "it has not moved lately either",
                "see `ukai moves` for those that do",
            )),
        }
    }

    pub fn control_move(
        &self,
        name: &DiskName,
        control: Control,
        by: &str,
        now: Moment,
    ) -> Result<Move, ServiceError> {
        for _ in 0..MAX_TRIES {
            let scene = self.scene(now)?;
            let disk = self.disk_now(self.disk_named(name)?, &scene)?;
            let Some(kept) = &disk.moving else {
                return Err(ServiceError::new(
                    Kind::NotNow,
                    format!("disk {name} is not moving"),
                    "there is nothing to steer",
                    "see `ukai moves` for those that do",
                ));
            };
            let mut moving = kept.clone().into_value();
            match control {
                Control::Pause => moving.paused = true,
                Control::Resume => moving.paused = false,
                Control::NoLimit => moving.own_limit = None,
                Control::Limit(0) => {
                    return Err(ServiceError::new(
                        Kind::Impossible,
                        format!("the move of disk {name} was not throttled"),
                        "at 0 bytes a second it would never end",
                        format!("pause it: ukai moves pause {name}"),
                    ));
                }
                Control::Limit(limit) => moving.own_limit = Some(limit),
                Control::Cancel => match self.taken_back(&disk, &moving, by, &scene)? {
                    Some(ended) => return Ok(self.move_view(&ended, None)),
                    None => continue,
                },
            }
            let id = moving.disk;
            let write = Transaction::new()
                .expect(key::moving(id), kept.unchanged())
                .put(key::moving(id), json(&moving));
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(disk = %name, number = moving.number, ?control, by, "a move is steered");
                self.touch(id);
                return Ok(self.move_view(&moving, Some(&disk)));
            }
        }
        Err(ServiceError::contended(&format!("disk {name}")))
    }

    /// As it is now, where `disk` is still moving.
    pub(super) fn move_view(&self, moving: &MoveRecord, disk: Option<&DiskNow>) -> Move {
        let record = disk.map(|disk| &disk.record.value);
        let writer = record.and_then(|record| record.owner());
        let course = self.course();
        let fill = writer.and_then(|owner| course.orders(moving.disk, owner.backend));
        let heard = writer.and_then(|owner| course.heard(owner.backend));
        Move {
            number: moving.number,
            disk: moving.name.clone(),
            id: moving.disk,
            kind: moving.kind,
            from: moving.from.clone(),
            to: moving.to.clone(),
            why: moving.why.clone(),
            state: shown_state(moving),
            paused: moving.paused,
            own_limit: moving.own_limit,
            limit: fill.and_then(|orders| orders.fill.bytes_per_second),
            began: moving.began,
            ended: moving.ended,
            progress: progress(moving, heard),
            plan: moving.plan.clone(),
        }
    }

    pub(super) fn move_brief(&self, disk: DiskId) -> Result<Option<MoveBrief>, CatalogError> {
        let Some(kept) = load::<MoveRecord>(&*self.catalog, &key::moving(disk))? else {
            return Ok(None);
        };
        let moving = kept.into_value();
        let writer = load_disk(&*self.catalog, disk)?;
        let writer = writer.and_then(|kept| Some(kept.value.owner()?.backend));
        let heard = writer.and_then(|backend| self.course().heard(backend));
        Ok(Some(MoveBrief {
            number: moving.number,
            state: shown_state(&moving),
            progress: progress(&moving, heard),
            disk: moving.name,
            kind: moving.kind,
            from: moving.from,
            to: moving.to,
        }))
    }
}

/// An operator sees at once that a move is paused, before the next pass has kept it.
fn shown_state(moving: &MoveRecord) -> MoveState {
    match moving.paused && !moving.state.has_ended() {
        true => MoveState::Paused,
        false => moving.state.clone(),
    }
}

fn progress(moving: &MoveRecord, heard: Option<Heard>) -> MoveProgress {
    match heard {
        Some(heard) if !moving.state.has_ended() => heard.since(moving.base.as_ref(), moving.kind),
        _ => moving.progress,
    }
}
