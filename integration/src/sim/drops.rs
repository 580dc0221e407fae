//! Replicas that the record names no more are deleted, some time later: the service looks whether
//! those that made it superfluous are whole and there, orders it, and the order may be late.

use super::placement::Retired;
use super::store_node::name;
use super::world::{What, World};
use replicator::plant::{Plant, planted};
use replicator::words::{Extent, Extents, StoreId};

impl World {
    pub(super) fn note_retired(&mut self, retired: Vec<Retired>) {
        for retired in retired {
            self.stats.count("replicas retired");
            self.disks[retired.disk].drops_pending += 1;
            let wait = self.dice.pick(&[500, 3_000, 20_000]);
            let wait = self.dice.wait(wait);
            self.after(wait, What::ConsiderDrop(retired));
        }
    }

    pub(super) fn consider_drop(&mut self, retired: Retired) {
        if self.now < self.placement_away_until {
            return self.after(5_000, What::ConsiderDrop(retired));
        }
        if !planted(Plant::DeletedBeforeComplete) {
            // It is needed again; when it is not any more, that will be noted anew.
            let disk = &mut self.disks[retired.disk];
            // As a copy ahead, too: what is wanted there is not deleted.
            let placement = &disk.placement;
            if placement.names(retired.store, retired.extent)
                || placement.seeds(retired.store, retired.extent)
            {
                self.stats.count("drops not ordered: named again");
                disk.drops_pending -= 1;
                return;
            }
            let history = disk.placement.history(retired.extent);
            let members: Vec<StoreId> = history.members().collect();
            let whole = history.is_whole();
            let there = members.iter().all(|id| self.store(*id).core.is_some());
            if !whole || !there {
                self.stats.count("drops put off");
                return self.after(5_000, What::ConsiderDrop(retired));
            }
        }
        self.stats.count("drops ordered");
        let typical = self.dice.pick(&[300, 300, 30_000]);
        let wait = self.dice.wait(typical);
        self.after(wait, What::Drop(retired));
        if self.dice.chance(self.faults.double) {
            let wait = self.dice.wait(40_000);
            self.disks[retired.disk].drops_pending += 1;
            self.after(wait, What::Drop(retired));
        }
    }

    /// Nobody waits for the answer: what is not synced is dropped again by the next order, or never.
    pub(super) fn drop_arrives(&mut self, retired: Retired) {
        let disk = &self.disks[retired.disk];
        let (id, named) = (disk.id, disk.placement.names(retired.store, retired.extent));
        if named {
            self.stats.count("drops that race with a rejoin");
        }
        let extent = retired.extent;
        if disk.placement.seeds(retired.store, extent) {
            self.stats.count("drops of a copy ahead");
        }
        let extents = Extents::new(extent, Extent(extent.0 + 1));
        let Some(core) = self.store(retired.store).core.as_mut() else {
            return self.after(5_000, What::ConsiderDrop(retired));
        };
        let dropped = core.drop_replica(id, extents, retired.joined_below);
        let what = match dropped {
            Ok(Some(_)) => "drops carried out",
            Ok(None) => "drops of nothing that is left",
            Err(_) => "drops refused",
        };
        match dropped {
            // It may have been a part of it.
            Ok(Some(_)) => self.after(200, What::Drop(retired)),
            Err(_) => self.after(2_000, What::ConsiderDrop(retired)),
            Ok(None) => self.disks[retired.disk].drops_pending -= 1,
        }
        self.stats.count(what);
        self.say(format_args!(
            "{} drops {extents} if joined below {}: {what}",
            name(retired.store),
            retired.joined_below
        ));
        let process = self.store(retired.store).process;
        self.after(1, What::SyncBegins(retired.store, process));
    }
}
