//! Operators' own placement: moves, copies, preparations, classes and pins.
//!
//! An order becomes pins ([`crate::planner::Order`]) and a move that carries them out, kept with one
//! compare-and-swap. What policy promises is refused to be broken unless forced, and then said.

use super::decide::{begin, prepare, retired_seeds};
use super::pulse::Moment;
use super::retire::{joined, put_retired, still_retired};
use super::scene::{DiskNow, Scene};
use super::{Kind, MAX_TRIES, Service, ServiceError};
use crate::api::{
    AddCopy, AddPin, ByteRange, Disk, DropCopy, LiftPins, Move, MoveDisk, MoveKind, MoveState,
    MoveWhy, Ordered, PrepareDisk, SetClass,
};
use crate::catalog::{Committed, Transaction};
use crate::model::{Base, MoveRecord, Terms, json, key, unchanged};
use crate::planner::{Explanation, Order, Plan, Planner, Proposal, Refused, Subject};
use crate::policy::{Hold, Pin, Until};
use replicator::words::{DatacenterName, DiskName, DiskRecord, Extent, Extents, StoreId};

impl Service {
    pub fn move_disk(
        &self,
        name: &DiskName,
        request: &MoveDisk,
        by: &str,
        now: Moment,
    ) -> Result<Ordered, ServiceError> {
        let order = |extents| Order::Move {
            to: request.to.clone(),
            extents,
        };
        let asked = Asked {
            by,
            reason: &request.reason,
            plan_only: request.plan_only,
        };
        self.order(name, request.range, order, asked, now)
    }

    pub fn add_copy(
        &self,
        name: &DiskName,
        request: &AddCopy,
        by: &str,
        now: Moment,
    ) -> Result<Ordered, ServiceError> {
        let order = |extents| Order::AddCopy {
            to: request.to.clone(),
            extents,
        };
        let asked = Asked {
            by,
            reason: &request.reason,
            plan_only: request.plan_only,
        };
        self.order(name, request.range, order, asked, now)
    }

    pub fn drop_copy(
        &self,
        name: &DiskName,
        request: &DropCopy,
        by: &str,
        now: Moment,
    ) -> Result<Ordered, ServiceError> {
        let order = |extents| Order::DropCopy {
            store: request.store,
            extents,
            force: request.force,
        };
        let asked = Asked {
            by,
            reason: &request.reason,
            plan_only: request.plan_only,
        };
        self.order(name, request.range, order, asked, now)
    }

    fn order(
        &self,
        name: &DiskName,
        range: Option<ByteRange>,
        order: impl Fn(Option<Extents>) -> Order,
        asked: Asked,
        now: Moment,
    ) -> Result<Ordered, ServiceError> {
        for _ in 0..MAX_TRIES {
            let scene = self.scene(now)?;
            let disk = self.disk_now(self.disk_named(name)?, &scene)?;
            self.not_in_doubt(&disk.record.value, "moved")?;
            let planner = scene.planner();
            let order = order(extents(&disk.record.value, range)?);
            let reason = match asked.reason {
                "" => format!("{order}, as {} asked", asked.by),
                reason => reason.to_owned(),
            };
            let proposal = planner.propose(&disk.subject(), &order, &reason)?;
            if asked.plan_only {
                return Ok(Ordered {
                    plan: proposal.plan,
                    losses: proposal.losses,
                    under_way: None,
                });
            }
            let ordering = Ordering {
                scene: &scene,
                planner: &planner,
                disk: &disk,
                order: &order,
                why: MoveWhy::Order(format!("{}: {reason}", asked.by)),
            };
            if let Some(moving) = self.keep_order(&ordering, &proposal)? {
                let under_way = moving.map(|moving| self.move_view(&moving, Some(&disk)));
                return Ok(Ordered {
                    plan: proposal.plan,
                    losses: proposal.losses,
                    under_way,
                });
            }
        }
        Err(ServiceError::contended(&format!("disk {name}")))
    }

    /// The outer none: something has changed meanwhile. The inner one: there is nothing to do.
    fn keep_order(
        &self,
        ordering: &Ordering,
        proposal: &Proposal,
    ) -> Result<Option<Option<MoveRecord>>, ServiceError> {
        let disk = ordering.disk;
        let id = disk.record.value.id;
        if proposal.pins.len() > Terms::MAX_PINS {
            return Err(too_many_pins(&disk.record.value.name));
        }
        let terms = Terms {
            pins: proposal.pins.clone(),
            ..disk.terms.clone()
        };
        let mut write = Transaction::new()
            .expect(key::disk(id), disk.record.unchanged())
            .expect(key::terms(id), unchanged(&disk.terms_kept))
            .expect(key::moving(id), unchanged(&disk.moving))
            .put(key::terms(id), json(&terms));
        let subject = Subject {
            pins: &proposal.pins,
            ..disk.subject()
        };
        let moving = begin(
            ordering.scene,
            ordering.planner,
            &subject,
            &proposal.plan,
            ordering.why.clone(),
        );
        let moving = match moving {
            Some(moving) => Some(MoveRecord {
                number: self.next_move()?,
                pins_before: Some(disk.terms.pins.clone()),
                drops: match ordering.order {
                    Order::DropCopy { store, .. } => Some(*store),
                    _ => None,
                },
                base: self.base(&disk.record.value),
                ..moving
            }),
            None => None,
        };
        let mut copies = disk.retired().to_vec();
        for before in disk.moving().into_iter().flat_map(MoveRecord::each) {
            // Copies that were made ahead for it are nobody's now.
            let (record, wall) = (&disk.record.value, ordering.scene.wall);
            copies.extend(retired_seeds(record, &before.seeds, wall));
            let number = before.number;
            let ended = MoveRecord {
                state: MoveState::Cancelled,
                ended: Some(wall),
                afterwards: None,
                ..before.clone()
            };
            write = write.put(key::ended(number), json(&ended));
        }
        write = match &moving {
            Some(moving) => write.put(key::moving(id), json(moving)),
            None => write.delete(key::moving(id)),
        };
        if let Order::DropCopy { store, .. } = ordering.order {
            for copy in copies.iter_mut().filter(|copy| copy.store == *store) {
                copy.unwanted = true;
            }
        }
        if copies != disk.retired() {
            let copies = still_retired(&disk.record.value, &joined(copies));
            write = write.expect(key::retired(id), unchanged(&disk.retired_kept));
            write = put_retired(write, id, &copies);
        }
        if self.catalog.commit(&write)? == Committed::No {
            return Ok(None);
        }
        tracing::info!(disk = %disk.record.value.name, why = ?ordering.why, "ordered: {}", ordering.order);
        self.touch(id);
        Ok(Some(moving))
    }

    /// Copies ahead to where the VM is about to run.
    pub fn prepare_disk(
        &self,
        name: &DiskName,
        request: &PrepareDisk,
        by: &str,
        now: Moment,
    ) -> Result<Move, ServiceError> {
        self.known_datacenter(&request.to)?;
        let error = format!("disk {name} is not prepared for {}", request.to);
        for _ in 0..MAX_TRIES {
            let scene = self.scene(now)?;
            let disk = self.disk_now(self.disk_named(name)?, &scene)?;
            self.not_in_doubt(&disk.record.value, "prepared")?;
            let planner = scene.planner();
            if disk.terms.home.datacenter == request.to {
                return Err(ServiceError::new(
                    Kind::Impossible,
                    error,
                    "that is where its VM runs",
                    "name the datacenter that the VM is about to move to",
                ));
            }
            if let Some(moving) = disk.moving() {
                return Err(ServiceError::new(
                    Kind::NotNow,
                    error,
                    format!("it is moving already (number {})", moving.number),
                    "wait until that is done, or cancel it: see `ukai moves`",
                ));
            }
            if disk.record.value.owner().is_none() {
                return Err(ServiceError::new(
                    Kind::NotNow,
                    error,
                    "nobody has it open, and what is copied ahead is copied by its writer",
                    format!(
                        "start its VM, or move the disk itself: ukai disk move {name} --to {}",
                        request.to
                    ),
                ));
            }
            let node = request.node.as_ref();
            let Some(moving) = prepare(&scene, &planner, &disk, &request.to, node) else {
                return Err(ServiceError::new(
                    Kind::Impossible,
                    error,
                    "it has complete copies there already, or its policies let none stand there",
                    format!("see `ukai disk explain {name}`"),
                ));
            };
            let moving = MoveRecord {
                number: self.next_move()?,
                why: MoveWhy::Order(format!("{by}: prepare for {}", request.to)),
                base: self.base(&disk.record.value),
                ..moving
            };
            let id = disk.record.value.id;
            let write = Transaction::new()
                .expect(key::disk(id), disk.record.unchanged())
                .expect(key::moving(id), unchanged(&disk.moving))
                .put(key::moving(id), json(&moving));
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(disk = %name, to = %request.to, "preparing");
                self.touch(id);
                return Ok(self.move_view(&moving, Some(&disk)));
            }
        }
        Err(ServiceError::contended(&format!("disk {name}")))
    }

    /// What a disk's writer has copied already, for other moves.
    pub(super) fn base(&self, record: &DiskRecord) -> Option<Base> {
        let writer = record.owner()?.backend;
        Some(self.course().heard(writer)?.base())
    }

    /// What is still to be done of a disk.
    pub fn plan(&self, name: &DiskName, now: Moment) -> Result<Plan, ServiceError> {
        let scene = self.scene(now)?;
        let disk = self.disk_now(self.disk_named(name)?, &scene)?;
        Ok(scene.planner().plan(&disk.subject()))
    }

    pub fn explain(&self, name: &DiskName, now: Moment) -> Result<Explanation, ServiceError> {
        let scene = self.scene(now)?;
        let disk = self.disk_now(self.disk_named(name)?, &scene)?;
        Ok(scene.planner().explain(&disk.subject()))
    }

    pub fn pins(&self, name: &DiskName) -> Result<Vec<Pin>, ServiceError> {
        let record = self.disk_named(name)?;
        let places = self.places()?;
        let (_, terms) = self.terms(&record.value, &places)?;
        Ok(terms.pins)
    }

    pub fn add_pin(&self, name: &DiskName, request: &AddPin) -> Result<Vec<Pin>, ServiceError> {
        self.check_hold(name, &request.hold)?;
        let terms = self.change_terms(name, |record, terms| {
            if terms.pins.len() >= Terms::MAX_PINS {
                return Err(too_many_pins(name));
            }
            terms.pins.push(Pin {
                disk: record.id,
                extents: extents(record, request.range)?,
                hold: request.hold.clone(),
                reason: request.reason.clone(),
                until: request.until.clone(),
            });
            Ok(())
        })?;
        Ok(terms.pins)
    }

    fn check_hold(&self, name: &DiskName, hold: &Hold) -> Result<(), ServiceError> {
        let stores: &[StoreId] = match hold {
            Hold::In(datacenter) => return self.known_datacenter(datacenter),
            Hold::On(stores) | Hold::Also(stores) | Hold::Off(stores) => stores,
            // It may go below what policy promises: what is lost by it has to be named first.
            Hold::Without(_) => {
                return Err(ServiceError::new(
                    Kind::Impossible,
                    format!("disk {name} was not pinned"),
                    "only a forced order leaves a disk with fewer copies than its policy asks for",
                    "pin it off the store, or use `ukai disk drop-copy --force`",
                ));
            }
        };
        for store in stores {
            if self.catalog.get(&key::store(*store))?.is_none() {
                return Err(ServiceError::new(
                    Kind::NoSuchThing,
                    format!("disk {name} was not pinned"),
                    format!("there is no store {store}"),
                    "see `ukai store list` for those that there are",
                ));
            }
        }
        Ok(())
    }

    pub fn lift_pins(&self, name: &DiskName, request: &LiftPins) -> Result<Vec<Pin>, ServiceError> {
        let terms = self.change_terms(name, |_, terms| {
            match request.pin {
                None => terms.pins.clear(),
                Some(pin) if pin < terms.pins.len() => drop(terms.pins.remove(pin)),
                Some(pin) => {
                    return Err(ServiceError::new(
                        Kind::NoSuchThing,
                        format!("no pin of disk {name} was lifted"),
                        format!(
                            "it has {} pins, and none with number {pin}",
                            terms.pins.len()
                        ),
                        "they are numbered from 0, as they are listed",
                    ));
                }
            }
            Ok(())
        })?;
        Ok(terms.pins)
    }

    pub fn set_class(
        &self,
        name: &DiskName,
        request: &SetClass,
        now: Moment,
    ) -> Result<Disk, ServiceError> {
        self.change_terms(name, |_, terms| {
            terms.class.clone_from(&request.class);
            Ok(())
        })?;
        self.disk(name, now)
    }

    fn change_terms(
        &self,
        name: &DiskName,
        change: impl Fn(&DiskRecord, &mut Terms) -> Result<(), ServiceError>,
    ) -> Result<Terms, ServiceError> {
        for _ in 0..MAX_TRIES {
            let record = self.disk_named(name)?;
            let id = record.value.id;
            let places = self.places()?;
            let (kept, mut terms) = self.terms(&record.value, &places)?;
            change(&record.value, &mut terms)?;
            let write = Transaction::new()
                .expect(key::disk(id), record.unchanged())
                .expect(key::terms(id), unchanged(&kept))
                .put(key::terms(id), json(&terms));
            if self.catalog.commit(&write)? == Committed::Yes {
                self.touch(id);
                return Ok(terms);
            }
        }
        Err(ServiceError::contended(&format!("disk {name}")))
    }

    /// Takes a move back: the pins of its order go, or the copies that follow the VM are pinned where they
    /// were. The outer none: something has changed meanwhile.
    pub(super) fn taken_back(
        &self,
        disk: &DiskNow,
        moving: &MoveRecord,
        by: &str,
        scene: &Scene,
    ) -> Result<Option<MoveRecord>, ServiceError> {
        let name = &disk.record.value.name;
        let id = disk.record.value.id;
        let ended = MoveRecord {
            state: MoveState::Cancelled,
            ended: Some(scene.wall),
            afterwards: None,
            ..moving.clone()
        };
        let mut write = Transaction::new()
            .expect(key::disk(id), disk.record.unchanged())
            .expect(key::terms(id), unchanged(&disk.terms_kept))
            .expect(key::moving(id), unchanged(&disk.moving))
            .put(key::ended(moving.number), json(&ended));
        write = match moving.resumed(self.base(&disk.record.value)) {
            Some(ahead) => write.put(key::moving(id), json(&ahead)),
            None => write.delete(key::moving(id)),
        };
        if moving.kind == MoveKind::Move {
            let pins = match (&moving.pins_before, &moving.from[..]) {
                (Some(before), _) => before.clone(),
                // Pinned there, so that the next look does not begin it again.
                _ if !moving.leaves.is_empty() => {
                    let mut pins = disk.terms.pins.clone();
                    pins.push(Pin {
                        disk: id,
                        extents: None,
                        hold: Hold::On(moving.leaves.clone()),
                        reason: format!("{by} cancelled its move away from here"),
                        until: Until::VmLeaves(disk.terms.home.datacenter.clone()),
                    });
                    pins
                }
                (None, [from]) if moving.why != MoveWhy::Repair && moving.to != [from.clone()] => {
                    self.pinned_back(disk, from, by, scene)?
                }
                _ => {
                    return Err(ServiceError::new(
                        Kind::NotNow,
                        format!("the move of disk {name} was not cancelled"),
                        "it is what policy promises: there is no other place that it could go back to",
                        match moving.why {
                            MoveWhy::Evacuation(store) => format!(
                                "cancel the evacuation: ukai store evacuate {store} --cancel; or pause it: ukai moves pause {name}"
                            ),
                            _ => format!(
                                "pause it: ukai moves pause {name}; or change the policy, or pin the disk"
                            ),
                        },
                    ));
                }
            };
            let terms = Terms {
                pins,
                ..disk.terms.clone()
            };
            write = write.put(key::terms(id), json(&terms));
        } else {
            let left = retired_seeds(&disk.record.value, &moving.seeds, scene.wall);
            let mut copies = disk.retired().to_vec();
            copies.extend(left);
            write = write.expect(key::retired(id), unchanged(&disk.retired_kept));
            let copies = still_retired(&disk.record.value, &joined(copies));
            write = put_retired(write, id, &copies);
        }
        if self.catalog.commit(&write)? == Committed::No {
            return Ok(None);
        }
        tracing::info!(disk = %name, number = moving.number, by, "a move was cancelled");
        self.touch(id);
        Ok(Some(ended))
    }

    fn pinned_back(
        &self,
        disk: &DiskNow,
        from: &DatacenterName,
        by: &str,
        scene: &Scene,
    ) -> Result<Vec<Pin>, ServiceError> {
        let order = Order::Move {
            to: from.clone(),
            extents: None,
        };
        let reason = format!("{by} cancelled its move away from here");
        let planner = scene.planner();
        Ok(planner.propose(&disk.subject(), &order, &reason)?.pins)
    }
}

/// Who asks for what.
#[derive(Clone, Copy)]
struct Asked<'a> {
    by: &'a str,
    reason: &'a str,
    plan_only: bool,
}

/// An order that is to be kept.
struct Ordering<'a> {
    scene: &'a Scene,
    planner: &'a Planner<'a>,
    disk: &'a DiskNow,
    order: &'a Order,
    why: MoveWhy,
}

impl From<Refused> for ServiceError {
    fn from(refused: Refused) -> Self {
        ServiceError::new(
            Kind::Impossible,
            refused.error,
            refused.why,
            refused.try_next,
        )
    }
}

/// The extents that a range of bytes touches; none: all.
fn extents(record: &DiskRecord, range: Option<ByteRange>) -> Result<Option<Extents>, ServiceError> {
    let Some(ByteRange { first, end }) = range else {
        return Ok(None);
    };
    if first >= end || end > record.bytes {
        return Err(ServiceError::new(
            Kind::Impossible,
            format!("disk {} was not changed", record.name),
            format!(
                "it has {} bytes, and {first}..{end} is no part of them",
                record.bytes
            ),
            "name a range that lies on the disk",
        ));
    }
    let extent = record.extent_size.bytes();
    // Below the disk's own count of extents, which is 32 bits.
    let extents = Extents::new(
        Extent((first / extent) as u32),
        Extent(end.div_ceil(extent) as u32),
    );
    Ok(Some(extents).filter(|extents| *extents != record.extents()))
}

fn too_many_pins(name: &DiskName) -> ServiceError {
    ServiceError::new(
        Kind::NotNow,
        format!("disk {name} was not changed"),
        format!("it has {} pins, and that is the most", Terms::MAX_PINS),
        format!("lift those that are no longer needed: ukai disk unpin {name}"),
    )
}
