//! The shells around the writers: their errands to the placement map, and their effects.

use super::brief::{brief_change, brief_map};
use super::host::Kind;
use super::placement::EXTENT_BYTES;
use super::world::{What, World};
use replicator::words::{Change, DiskRecord, Epoch, Owner, Revision, SECTOR_BYTES};
use replicator::writer::{CallId, Effect, Event, NotStarted, Now, SwapOutcome};
use std::time::Duration;

impl World {
    pub(super) fn ask_swap(
        &mut self,
        host: usize,
        call: CallId,
        expected: Revision,
        change: Change,
    ) {
        let life = self.hosts[host].life;
        let wait = self.dice.wait(300);
        let away = self.now < self.placement_away_until;
        let arrives = !away && !self.dice.chance(self.faults.lose_swap);
        let heard = arrives && !self.dice.chance(self.faults.lose_swap);
        if !arrives || !heard {
            let patience = self.dice.wait(3000);
            let outcome = SwapOutcome::Unknown;
            self.after(patience, What::Swapped(host, life, call, outcome));
        }
        if arrives {
            // It may arrive long after its asker stopped waiting, or died.
            let late = if heard { 0 } else { self.dice.range(0..6000) };
            self.after(
                wait + late,
                What::Swap(host, life, call, expected, change, heard),
            );
        }
    }

    pub(super) fn swap(
        &mut self,
        host: usize,
        life: u64,
        call: CallId,
        expected: Revision,
        change: Change,
        heard: bool,
    ) {
        let disk = self.hosts[host].disk;
        let placement = &self.disks[disk].placement;
        let before = match self.managed {
            // A catalog that was restored may not know of an epoch of which no store ever heard.
            Some(_) => self.catalogued(disk),
            None => Some(placement.record.clone()),
        };
        let before = before.and_then(|record| record.owner().cloned());
        let placement = &mut self.disks[disk].placement;
        let filling = !placement.is_whole();
        let older = placement.record.clone();
        let (outcome, told) = match self.managed {
            Some(_) => self.swap_by_service(host, expected, &change),
            None => {
                let (outcome, retired) = placement.swap(expected, &change);
                self.note_retired(retired);
                (outcome.clone(), outcome)
            }
        };
        let how = match &outcome {
            SwapOutcome::Done(_) => "done",
            SwapOutcome::Conflict(_) => "conflict",
            SwapOutcome::Refused(_) => "refused",
            SwapOutcome::Unknown => "unknown",
        };
        self.say(format_args!(
            "W{host}.{life} swaps {}: {how}",
            brief_change(&change)
        ));
        if let SwapOutcome::Done(record) = &outcome {
            self.trace.mix(record.revision.0);
            let map = record.map.clone();
            let epoch = record.epoch;
            self.say(format_args!("record: epoch {epoch}, {}", brief_map(&map)));
            self.stats.count(match change {
                Change::Attach { .. } => "attaches",
                Change::Switch { .. } => "switches",
                Change::Complete { .. } => "completions",
                Change::TakeOver { .. } => "take-overs",
                Change::Settle { .. } => "settles",
                Change::Eject { .. } => "ejections",
                Change::Close { .. } => "closes",
            });
            if matches!(change, Change::TakeOver { .. }) {
                self.check_order(host, life, &before);
            }
            if !heard {
                self.stats.count("swaps done and not heard of");
            }
            if self.hosts[host].life == life {
                self.hosts[host].unheard = true;
            }
            if self.disks[disk].settling {
                self.stats.count_if(
                    matches!(change, Change::TakeOver { .. }),
                    "take-overs amid a settling",
                );
            }
            self.disks[disk].settling = match change {
                Change::TakeOver { .. } => true,
                Change::Settle { .. } => false,
                _ => self.disks[disk].settling,
            };
            if matches!(change, Change::Eject { .. }) && self.hosts[host].life != life {
                self.stats.count("ejections by the dead");
            }
            // The switch was drained and synced before it was asked for (S4, W8).
            if matches!(change, Change::Switch { .. }) {
                self.disks[disk].oracle.all_synced();
            }
            self.count_moves(disk, &change, filling);
            self.count_rejoins(disk, &older);
            self.consider_losses();
        }
        let raced = match (&outcome, &change) {
            (SwapOutcome::Conflict(now), _)
                if !heard
                    && now
                        .owner()
                        .is_some_and(|o| o.backend != self.hosts[host].owner().backend) =>
            {
                Some("swaps that arrived after another writer's")
            }
            (SwapOutcome::Conflict(_), Change::Close { .. }) => Some("closes raced"),
            (SwapOutcome::Conflict(_), Change::Complete { .. }) => Some("completions raced"),
            (SwapOutcome::Conflict(_), Change::Switch { .. }) => Some("switches raced"),
            (SwapOutcome::Refused(_), Change::Complete { .. }) => Some("completions refused"),
            (SwapOutcome::Refused(_), Change::Switch { .. }) => Some("switches refused"),
            _ => None,
        };
        raced.into_iter().for_each(|what| self.stats.count(what));
        if heard {
            let wait = self.dice.wait(300);
            self.after(wait, What::Swapped(host, life, call, told));
        }
    }

    /// States of a move that are worth having been in. `filling`: some member was not whole before.
    fn count_moves(&mut self, disk: usize, change: &Change, filling: bool) {
        let placement = &self.disks[disk].placement;
        let still = !placement.is_whole();
        let longest = placement.record.map.iter();
        let what = match change {
            Change::Attach { sets, .. } if filling && !sets.is_empty() => {
                "bounces before all was filled"
            }
            Change::Attach { .. } if filling => "attaches while filling",
            Change::TakeOver { .. } if filling => "take-overs while filling",
            Change::Switch { .. } if filling => "switches while filling",
            Change::Eject { .. } if filling => "ejections while filling",
            Change::Close { .. } if filling => "closes while filling",
            Change::Complete { .. } if still => "completions with more to fill",
            Change::Complete { .. } => "completions of all",
            _ => return,
        };
        self.stats.count(what);
        let longest = longest.map(|range| range.history.0.len()).max();
        if longest >= Some(5) {
            self.stats.count("histories of five entries and more");
        }
    }

    /// Stores that join again while what they had as members before is still needed.
    fn count_rejoins(&mut self, disk: usize, before: &DiskRecord) {
        let after = &self.disks[disk].placement.record;
        for range in &after.map {
            let of = replicator::words::Block(
                u64::from(range.extents.first.0) * u64::from(after.extent_size.blocks()),
            );
            let was = &before.range_of(of).expect("the same disk").history;
            let back = range.history.members().filter(|store| {
                let sealed = was
                    .0
                    .iter()
                    .any(|entry| !entry.is_live() && entry.has(*store));
                was.member(*store).is_none() && sealed
            });
            if !was.is_whole() && back.count() > 0 {
                self.stats.count("rejoins during a move");
            }
        }
    }

    /// A1, A3: nobody takes another backend's epoch over without an order.
    pub(super) fn check_order(&mut self, host: usize, life: u64, before: &Option<Owner>) {
        let asker = &self.hosts[host];
        let others = before
            .as_ref()
            .is_some_and(|owner| owner.backend != asker.owner().backend);
        if others && asker.life == life && !asker.ordered {
            self.violate(format!("A1: W{host} takes over without an order"));
        }
    }

    /// Extents all of whose members lost what was not synced since they were whole: nobody can
    /// have it any more.
    pub(super) fn consider_losses(&mut self) {
        for disk in &mut self.disks {
            for range in &disk.placement.record.map {
                let lost = range.history.members().all(|id| {
                    let node = self.stores.iter().find(|s| s.id == id).expect("a store");
                    node.losses > disk.whole_at.get(&id).copied().unwrap_or(0)
                });
                if lost {
                    self.stats.count("extents whose members were all lost");
                    let per_extent = EXTENT_BYTES / SECTOR_BYTES;
                    let first = u64::from(range.extents.first.0) * per_extent;
                    let end = u64::from(range.extents.end.0) * per_extent;
                    disk.oracle.lost_unsynced(first..end);
                }
            }
        }
        self.spare_the_last();
    }

    /// An event for a writer, if it still lives, and all that follows from it.
    pub(super) fn tell(&mut self, host: usize, life: u64, event: Event) {
        if self.hosts[host].life != life {
            return;
        }
        let clock = self.hosts[host].clock;
        let now = Now(Duration::from_micros(self.now + clock));
        let Some(writer) = &mut self.hosts[host].writer else {
            return;
        };
        writer.handle(now, event);
        while let Some(effect) = self.hosts[host].writer.as_mut().and_then(|w| w.poll()) {
            self.act(host, effect);
        }
        let Some(writer) = &self.hosts[host].writer else {
            return;
        };
        let next = writer.next_timeout();
        if next != self.hosts[host].timeout {
            self.hosts[host].timeout = next;
            if let Some(at) = next {
                let wait = (at.0.as_micros() as u64).saturating_sub(self.now + clock);
                self.after(wait, What::Timeout(host, life, at));
            }
        }
    }

    pub(super) fn act(&mut self, host: usize, effect: Effect) {
        let life = self.hosts[host].life;
        match effect {
            Effect::Connect { store } => {
                self.hosts[host].wanted.insert(store);
                let wait = self.dice.range(1..200);
                self.after(wait, What::Connect(host, life, store));
            }
            // There are no connections of the store's own here.
            Effect::PrepareToPull { .. } => {}
            Effect::Send {
                store,
                call,
                request,
                aim,
            } => self.send(host, store, call, request, aim),
            Effect::Withdraw { call } => {
                self.stats.count("withdrawn reads");
                self.hosts[host].withdrawn.insert(call);
                let wait = self.dice.range(1..100);
                self.after(wait, What::Withdrawn(host, life, call));
            }
            Effect::Swap {
                call,
                expected,
                change,
            } => self.ask_swap(host, call, expected, change),
            Effect::Inspect { call } => {
                let wait = self.dice.wait(300);
                let away = self.now < self.placement_away_until;
                let what = if away || self.dice.chance(self.faults.lose_swap) {
                    What::Inspected(host, life, call, None)
                } else {
                    What::Inspect(host, life, call)
                };
                self.after(wait, what);
            }
            Effect::Zero { id, span } => {
                let Some(asked) = self.hosts[host].requests.get_mut(&id) else {
                    return self.violate(format!("request {} is zeroed after its end", id.0));
                };
                let from = (span.offset - asked.span.offset) as usize;
                asked.landing[from..from + span.len as usize].fill(0);
            }
            Effect::Complete { id, result } => self.completed(host, id, result.is_ok()),
            Effect::Opened { epoch } => self.opens(host, epoch),
            Effect::NotStarted { why } => {
                self.hosts[host].starting = false;
                self.hosts[host].engaged = false;
                self.say(format_args!("W{host}.{life} not started: {why}"));
                if matches!(why, NotStarted::AlreadyOpen { .. }) {
                    self.stats.count("starts refused");
                }
            }
            Effect::Stopped { clean } => {
                self.hosts[host].stopping = false;
                self.hosts[host].starting = false;
                self.hosts[host].guest_on = false;
                self.hosts[host].engaged = false;
                self.say(format_args!("W{host}.{life} stopped, clean: {clean}"));
                self.stats.count(if clean {
                    "clean stops"
                } else {
                    "unclean stops"
                });
                let disk = self.disk_of(host);
                if clean && disk.placement.record.owner().is_none() {
                    disk.oracle.all_synced();
                }
                if self.managed.is_some() {
                    self.stopped_by_service(host);
                }
            }
            Effect::Superseded { shown } => {
                self.hosts[host].guest_on = false;
                self.hosts[host].starting = false;
                self.hosts[host].engaged = false;
                self.say(format_args!("W{host}.{life} superseded by epoch {shown}"));
                self.stats.count("superseded writers");
            }
            Effect::Stalled(stall) => {
                self.say(format_args!("W{host}.{life} stalls: {stall}"));
                self.stats.count("stalls");
            }
            Effect::Hindered(hindrance) => {
                self.say(format_args!("W{host}.{life} is hindered: {hindrance}"));
                self.stats.count("hindrances");
            }
            Effect::Resumed | Effect::Unhindered | Effect::Verified(_) => {}
        }
    }

    pub(super) fn opens(&mut self, host: usize, epoch: Epoch) {
        let (life, disk) = (self.hosts[host].life, self.hosts[host].disk);
        self.say(format_args!("W{host}.{life} opens epoch {epoch}"));
        self.trace.mix(epoch.as_u64());
        let first = self.hosts[host].starting;
        if self.is_owner(host) {
            if first {
                // What an attach or a take-over opens is synced and whole on every member.
                self.members_are_whole(disk);
                self.disks[disk].oracle.all_synced();
                let others = self.hosts.iter();
                for other in others.filter(|o| o.number != host && o.disk == disk) {
                    for asked in other.requests.values() {
                        if let Kind::Write(number) = asked.kind {
                            self.disks[disk].oracle.overtaken(number);
                        }
                    }
                }
            } else if self.disks[disk].placement.record.even_below == epoch {
                // A switch: what was written before it is synced on who stays.
                self.members_are_whole(disk);
                self.stats.count("epochs opened by a switch");
                if !self.hosts[host].requests.is_empty() {
                    self.stats.count("switches with requests waiting");
                }
            } else {
                self.stats.count("epochs opened by ejection");
                if !self.hosts[host].requests.is_empty() {
                    self.stats.count("ejections with requests in flight");
                }
            }
        }
        self.hosts[host].starting = false;
        if first && !self.hosts[host].stopping && !self.quiet && !self.hosts[host].copies {
            self.hosts[host].guest_on = true;
            self.hosts[host].depth = self.dice.range(1..self.load.depth + 1) as usize;
            self.after(1, What::Guest(host, life));
        }
    }

    fn members_are_whole(&mut self, disk: usize) {
        for id in self.disks[disk].placement.record.members() {
            let losses = self.store(id).losses;
            self.disks[disk].whole_at.insert(id, losses);
        }
    }

    /// Whether the record says that this host's writer owns the disk.
    pub(super) fn is_owner(&self, host: usize) -> bool {
        let owner = self.hosts[host].owner();
        let disk = &self.disks[self.hosts[host].disk];
        let recorded = disk.placement.record.owner();
        recorded.is_some_and(|o| (o.backend, o.life) == (owner.backend, owner.life))
    }
}
