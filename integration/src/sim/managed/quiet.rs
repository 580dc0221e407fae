//! The quiet end of a seed with a service: one leads, its records are the newest, what operators held up goes on,
//! and then all that policy asks for has to come true by itself.

use super::Placing;
use crate::sim::world::{Violation, What, World};
use placement_service::api::{Control, MoveState, MoveWhy};
use placement_service::planner::Action;
use placement_service::service::{Moment, Service};
use replicator::words::DiskId;

/// Microseconds: ten seconds, and half an hour for the service ([`super::SCALE`]).
const PATIENCE: u64 = 10_000_000;

impl World {
    /// Before anybody opens a disk: everything that could hold something up is taken back.
    pub(in crate::sim) fn quiet_service(&mut self) -> Result<(), Violation> {
        for slot in 0..2 {
            if !self.leads(slot) {
                self.managed().led[slot] = None;
            }
        }
        self.after(0, What::Placing(Placing::Elect));
        self.run_until("a placement service leads", PATIENCE, |w| {
            w.leader().is_some()
        })?;
        if self.managed().in_doubt {
            self.after(0, What::Placing(Placing::Rebuild));
        }
        self.run_until("the records are rebuilt", PATIENCE, |w| {
            w.managed.as_ref().is_some_and(|managed| !managed.in_doubt)
        })?;
        let sites = 1 + self.stores.iter().map(|s| s.site).max().unwrap_or(0);
        for site in 0..sites {
            self.apply_policy(site, sites, true);
        }
        let slot = self.leader().expect("it was waited for");
        let stores: Vec<_> = self.stores.iter().map(|store| store.id).collect();
        let keeps = self.dice.chance(0.5);
        for store in stores {
            self.ask(slot, |service, now| {
                // Where nothing of it was ordered there is nothing to take back.
                let _ = service.declare_found(store, "sim", now);
                if !keeps {
                    let _ = service.cancel_evacuation(store, "sim", now);
                }
            });
        }
        Ok(())
    }

    /// What is under way and would wait for somebody.
    fn let_moves_go_on(&mut self, slot: usize) {
        self.ask(slot, |service, now| {
            let moves = service.moves(now).map(|moves| moves.under_way);
            for moving in moves.unwrap_or_default() {
                if moving.paused || moving.own_limit.is_some() {
                    for control in [Control::Resume, Control::NoLimit] {
                        let _ = service.control_move(&moving.disk, control, "sim", now);
                    }
                }
            }
        });
    }

    /// Every disk stands as policy asks for, and nothing else is left of it.
    pub(super) fn is_settled_by(&mut self, slot: usize) -> bool {
        self.let_moves_go_on(slot);
        let disks: Vec<DiskId> = self.disks.iter().map(|disk| disk.id).collect();
        let names: Vec<_> = (0..disks.len()).map(|disk| self.disk_name(disk)).collect();
        let unsettled = |service: &Service, now: Moment| {
            names.iter().find_map(|name| {
                let plan = service.plan(name, now).ok()?;
                let map = service.disk_map(name, now).ok()?;
                let disk = service.disk(name, now).ok()?;
                // What cannot be had is said to be missing, and then old copies stay to make new ones from.
                let missing = !plan.shortfalls.is_empty();
                let steps = plan.steps.iter();
                let mut steps =
                    steps.filter(|s| !(missing && matches!(s.action, Action::Retire { .. })));
                let left = steps.next().is_some()
                    || !missing && (!map.retired.is_empty() || disk.short_extents > 0);
                left.then(|| {
                    format!(
                        "{name}: {:?}, superfluous {:?}, {} extents short",
                        plan.steps, map.retired, disk.short_extents
                    )
                })
            })
        };
        let Some(unsettled) = self.ask(slot, unsettled) else {
            return false;
        };
        if let Some(why) = unsettled {
            self.say(format_args!("not settled: {why}"));
            // Long after it should have been: what does it say itself?
            if self.now > self.managed().patient_until {
                let problems = self.ask(slot, |service, now| {
                    service
                        .status(now)
                        .map_or(Vec::new(), |status| status.problems)
                });
                self.say(format_args!("its problems: {problems:?}"));
            }
            return false;
        }
        // The newest record that there was is the one that it has.
        (0..disks.len()).all(|disk| {
            let catalogued = self.catalogued(disk).expect("no disk was deleted");
            let is_whole = catalogued.map.iter().all(|range| range.history.is_whole());
            is_whole && catalogued == self.disks[disk].placement.record
        })
    }

    pub(in crate::sim) fn settles_by_service(&mut self) -> Result<(), Violation> {
        self.managed().settled = false;
        self.managed().patient_until = self.now + PATIENCE * 9 / 10;
        self.run_until("all stands as policy asks for", PATIENCE, |w| {
            w.managed.as_ref().is_some_and(|managed| managed.settled)
        })?;
        self.count_moves_done();
        Ok(())
    }

    /// Each once: by its number.
    fn count_moves_done(&mut self) {
        let Some(slot) = self.leader() else { return };
        let ended = self.ask(slot, |service, now| service.moves(now));
        let ended = ended.and_then(Result::ok).map(|moves| moves.ended);
        let counted = self.managed().moves_counted;
        for moving in ended.unwrap_or_default() {
            // Newest first.
            if moving.number <= counted || moving.state != MoveState::Done {
                continue;
            }
            self.stats.count(match moving.why {
                MoveWhy::Arrival(_) => "service: arrivals done",
                MoveWhy::Repair => "service: repairs done",
                MoveWhy::Evacuation(_) => "service: evacuations done",
                MoveWhy::Policy | MoveWhy::Rebalance(_) => "service: policy's moves done",
                MoveWhy::Order(_) => "service: ordered moves done",
            });
            let highest = self.managed().moves_counted.max(moving.number);
            self.managed().moves_counted = highest;
        }
    }

    /// The VM runs here and nowhere else.
    pub(in crate::sim) fn open_by_service(&mut self, host: usize) -> Result<(), Violation> {
        let disk = self.hosts[host].disk;
        for other in 0..self.hosts.len() {
            if self.hosts[other].disk == disk {
                self.hosts[other].vm = other == host;
                // Nor does it move away when a writer that is still stopping has stopped.
                self.hosts[other].moves_to = None;
            }
        }
        let has_it = |w: &World| {
            let serves = w.serves(host) && w.is_owner(host);
            serves && !w.hosts[host].copies && !w.hosts[host].stopping
        };
        let end = self.now + PATIENCE;
        // Whoever stood by may open it first, with what it asked for long ago: then it is asked for again.
        while !has_it(self) && self.now < end {
            if !self.attach_by_service(host, true) {
                // Somebody who held a grant of the lost catalog may have shown it since: it says what to do.
                self.managed().in_doubt = true;
                self.after(0, What::Placing(Placing::Rebuild));
            }
            let next = self.now + 100_000;
            self.run_until("time passes", 200_000, |w| has_it(w) || w.now >= next)?;
        }
        self.run_until("the disk opens", 0, has_it)
    }

    pub(in crate::sim) fn close_by_service(&mut self, host: usize) -> Result<(), Violation> {
        self.hosts[host].vm = false;
        if !self.detach_by_service(host, true, false) {
            return Err(Violation("the disk cannot be detached".into()));
        }
        self.run_until("the disk is detached", PATIENCE, |w| !w.hosts[host].runs)?;
        if self.disk_of(host).placement.record.owner().is_some() {
            return Err(Violation(
                "the disk did not close although all is well".into(),
            ));
        }
        Ok(())
    }
}
