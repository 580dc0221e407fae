//! Who leads, and what becomes of the catalog.

use super::catalog::{Shared, SimCatalog};
use super::{Led, Placing, START, wall};
use crate::sim::world::{What, World};
use placement_service::api::{Rebuild, RebuildVerdict};
use placement_service::backup;
use placement_service::catalog::CachedCatalog;
use placement_service::model::generation;
use placement_service::policy::UnixSeconds;
use placement_service::service::Service;
use replicator::words::BackendId;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How many backups are kept; the oldest goes.
const BACKUPS: usize = 3;

impl World {
    /// The process in that place is elected, or is the only one there is.
    pub(super) fn lead(&mut self, slot: usize) {
        let now = self.now;
        let managed = self.managed();
        managed.services += 1;
        let number = managed.services;
        managed.shared.leader.store(number, Ordering::Relaxed);
        let catalog = Arc::new(SimCatalog::new(managed.shared.clone(), number));
        let cached = CachedCatalog::new(catalog.clone()).expect("memory does not fail");
        let service = Service::new(Arc::new(cached), wall(now)).expect("the catalog is sound");
        managed.led[slot] = Some(Led {
            service,
            catalog,
            began: now,
            number,
        });
        managed.gathering = None;
        self.say(format_args!("placement service {number} leads"));
        self.stats.count("service: began to lead");
        self.after(1_000, What::Placing(Placing::Pass(number)));
    }

    pub(super) fn leads(&self, slot: usize) -> bool {
        let managed = self.managed.as_ref().expect("a seed with a service");
        let leader = managed.shared.leader.load(Ordering::Relaxed);
        let led = managed.led[slot].as_ref();
        led.is_some_and(|led| led.number == leader)
    }

    /// In which of the two places.
    pub(in crate::sim) fn leader(&self) -> Option<usize> {
        (0..2).find(|slot| self.leads(*slot))
    }

    fn slot_of(&self, number: u64) -> Option<usize> {
        let managed = self.managed.as_ref().expect("a seed with a service");
        let is_it = |led: &Option<Led>| led.as_ref().is_some_and(|led| led.number == number);
        managed.led.iter().position(is_it)
    }

    pub(super) fn service_dies(&mut self, slot: usize) {
        if let Some(led) = self.managed().led[slot].take() {
            let number = led.number;
            self.say(format_args!("placement service {number} dies"));
            self.stats.count("service: died");
            let wait = self.dice.wait(8_000);
            self.after(wait, What::Placing(Placing::Elect));
        }
    }

    pub(super) fn deposed(&mut self, number: u64) {
        if let Some(slot) = self.slot_of(number)
            && !self.leads(slot)
        {
            self.managed().led[slot] = None;
        }
    }

    /// Whoever is there begins to lead, if nobody does.
    pub(super) fn elect(&mut self) {
        if self.leader().is_some() {
            return;
        }
        let managed = self.managed();
        let slot = match managed.etcd {
            true => managed.led.iter().position(Option::is_none).unwrap_or(0),
            false => 0,
        };
        self.lead(slot);
    }

    /// The placement service is in trouble of its own.
    pub(in crate::sim) fn trouble_with_placement(&mut self) {
        let etcd = self.managed().etcd;
        match (self.dice.range(0..10), etcd) {
            (0..3, _) => {
                self.stats.count("placement service away");
                self.placement_away_until = self.now + self.dice.wait(20_000);
            }
            (3..6, true) => self.second_leader(),
            (3..8, _) => {
                if let Some(slot) = self.leader() {
                    self.service_dies(slot);
                }
            }
            _ => self.restore(),
        }
    }

    /// The leader's lease ends without its knowing: for a while two of them believe that they lead.
    pub(in crate::sim) fn second_leader(&mut self) {
        let sleeps = self.dice.chance(0.5);
        if let Some(old) = self.another_leads(sleeps) {
            let wait = self.dice.wait(15_000);
            self.after(wait, What::Placing(Placing::Deposed(old)));
        }
    }

    /// Returns the number of the one that led. `sleeps`: it goes on with what it had read.
    pub(in crate::sim) fn another_leads(&mut self, sleeps: bool) -> Option<u64> {
        let slot = self.leader()?;
        let old = self.managed().led[slot].as_ref()?;
        let number = old.number;
        if sleeps {
            old.catalog.falls_asleep();
        }
        self.stats.count("service: two that lead");
        self.lead(1 - slot);
        Some(number)
    }

    pub(super) fn back_up(&mut self) {
        let wait = self.dice.wait(40_000);
        self.after(wait, What::Placing(Placing::Backup));
        if let Some(text) = self.backup() {
            let backups = &mut self.managed().backups;
            backups.push(text);
            if backups.len() > BACKUPS {
                backups.remove(0);
            }
        }
    }

    pub(in crate::sim) fn backup(&mut self) -> Option<String> {
        let slot = self.leader()?;
        let backup = self.ask(slot, |service, now| service.backup(now));
        backup.and_then(Result::ok)
    }

    /// Its machine is lost, catalog and all; what there is is a backup, and not the last one at that.
    fn restore(&mut self) {
        let count = self.managed().backups.len() as u64;
        if count == 0 {
            return;
        }
        let which = self.dice.range(0..count) as usize;
        let backup = self.managed().backups[which].clone();
        self.restore_from(&backup);
        let wait = self.dice.wait(15_000);
        self.after(wait, What::Placing(Placing::Rebuild));
    }

    pub(in crate::sim) fn restore_from(&mut self, backup: &str) {
        let managed = self.managed();
        managed.led = [None, None];
        let shared = Shared::default();
        let changes = managed.shared.changes.load(Ordering::Relaxed) + 1;
        shared.changes.store(changes, Ordering::Relaxed);
        // Each restore and rebuild said of which generation it is.
        let lost = generation(&*managed.shared.kept).expect("memory does not fail");
        managed.generation = managed.generation.max(lost);
        let restored = backup::restore(backup, &*shared.kept, managed.generation);
        let restored = restored.expect("a whole backup");
        managed.shared = shared;
        managed.in_doubt = true;
        let UnixSeconds(taken) = restored.taken;
        self.say(format_args!(
            "the catalog is restored from a backup, taken at {} s",
            taken - START
        ));
        self.stats.count("service: restored from a backup");
        self.lead(0);
        // What a store that is declared lost knew counts for nothing: so nobody says that of one that will be back.
        let stores: Vec<_> = self.stores.iter().map(|store| store.id).collect();
        for store in stores {
            self.ask(0, |service, now| {
                let _ = service.declare_found(store, "sim", now);
            });
        }
    }

    /// Asks the stores, and when those that are up have told, takes their word.
    pub(in crate::sim) fn rebuild(&mut self) {
        if !self.managed().in_doubt {
            return;
        }
        let wait = self.dice.wait(8_000);
        self.after(wait, What::Placing(Placing::Rebuild));
        let Some(slot) = self.leader() else {
            return;
        };
        let Some(round) = self.managed().gathering else {
            let round = self.ask(slot, |service, _| service.gather_records());
            self.managed().gathering = round;
            return;
        };
        let quiet = self.quiet;
        let told = self.ask(slot, |service, now| {
            if !service.is_gathered(round, now).unwrap_or(false) {
                return None;
            }
            let plan = Rebuild {
                plan: true,
                ..Rebuild::default()
            };
            let planned = service.rebuild(&plan, now).ok()?;
            // A store that was never shown anything is named all the same, where an attach came no further:
            // once all have answered an operator knows that.
            let sure = quiet && planned.silent.is_empty();
            let refused = planned.disks.iter();
            let refused = refused.filter(|d| sure && d.verdict == RebuildVerdict::Refused);
            let rebuild = Rebuild {
                accept: refused.map(|disk| disk.name.to_string()).collect(),
                ..Rebuild::default()
            };
            service.rebuild(&rebuild, now).ok()
        });
        let Some(Some(rebuilt)) = told else {
            // Somebody who was to tell is away: all are asked once more.
            if self.dice.chance(0.3) {
                self.managed().gathering = None;
            }
            return;
        };
        for disk in &rebuilt.disks {
            self.say(format_args!(
                "rebuilt: {} {:?} epoch {} revision {} {:?}",
                disk.name, disk.verdict, disk.epoch, disk.revision.0, disk.why
            ));
        }
        self.stats.count(match rebuilt.complete {
            true => "service: records rebuilt from the stores",
            false => "service: rebuilds that a store was missing for",
        });
        let managed = self.managed();
        managed.gathering = None;
        managed.in_doubt = !rebuilt.complete;
    }

    /// The service looks at the disks.
    pub(super) fn pass(&mut self, number: u64) {
        let Some(slot) = self.slot_of(number) else {
            return;
        };
        let wait = self.dice.wait(3_000);
        self.after(wait, What::Placing(Placing::Pass(number)));
        let mut ids = self.managed().backends;
        let mut fresh = || {
            ids += 1;
            BackendId::from_u128(ids)
        };
        let passed = self.ask(slot, |service, now| service.pass(now, &mut fresh));
        self.managed().backends = ids;
        self.stats
            .count_if(matches!(passed, Some(Ok(()))), "service: passes");
        if self.quiet && self.leads(slot) {
            let settled = self.is_settled_by(slot);
            self.managed().settled = settled;
        }
    }
}
