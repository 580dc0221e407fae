//! The placement service's own misfortunes: its catalog is an older one, or two of it lead.

use super::Told;
use crate::sim::world::{Violation, World};
use replicator::words::{Change, StoreId};

fn id(w: &World, store: usize) -> StoreId {
    w.stores[store].id
}

/// Epochs were opened, and copies went elsewhere, after the backup was taken. Nobody may get one over their heads,
/// and whoever has the disk open goes on.
pub(super) fn restored(w: &mut World, way: u64) -> Told {
    w.open_by_service(0)?;
    w.write(0, 0, 6)?;
    w.flush(0)?;
    let backup = w.backup().expect("a service leads");
    // The disk follows its VM, or a store of it is lost, or only an epoch was opened.
    match way % 3 {
        0 => {
            w.close_by_service(0)?;
            w.open_by_service(1)?;
        }
        1 => {
            let member = w.disks[0].placement.record.members()[0];
            let store = w.stores.iter().position(|s| s.id == member);
            w.process_down(store.expect("a store of this world"));
            w.writer_dies(0);
            w.open_by_service(1)?;
        }
        _ => w.open_by_service(1)?,
    }
    w.write(1, 2, 3)?;
    w.discard(1, 1, 1)?;
    w.flush(1)?;
    if way >= 6 {
        // Whatever is copied and deleted by then.
        let end = w.now + 100_000;
        w.run_until("time passes", 200_000, |w| w.now >= end)?;
    }
    w.restore_from(&backup);
    w.must_not_be_attached(2, 60)?;
    w.issue_write(1, World::span(4, 1), false);
    // Where it had asked for other members it waits for what came of that; otherwise it does not notice.
    if way >= 6 {
        w.done(1)?;
        w.read(1, 0, 6)?;
    }
    (0..w.stores.len()).for_each(|store| w.up(store));
    if way.is_multiple_of(2) {
        // Its writer is gone before anybody has asked the stores.
        w.writer_dies(1);
    }
    w.rebuild();
    w.run_until("the records are rebuilt", 2_000_000, |w| {
        w.managed.as_ref().is_some_and(|managed| !managed.in_doubt)
    })?;
    w.done(1)?;
    w.open_by_service(2)?;
    w.read(2, 0, 6)?;
    w.settles_by_service()?;
    w.read(2, 0, 6)?;
    w.close_by_service(2)
}

/// The one that leads no more has not noticed, and the nodes have not either: what it is asked for does not happen.
pub(super) fn two_that_lead(w: &mut World, way: u64) -> Told {
    w.managed().etcd = true;
    w.open_by_service(0)?;
    w.write(0, 0, 6)?;
    w.flush(0)?;
    let old = w.leader().expect("it leads");
    let before = w.disks[0].placement.record.revision;
    if way >= 8 {
        w.another_leads(true);
    } else {
        w.second_leader();
    }
    for machine in 0..4 {
        if way >= 8 {
            w.asks(machine, 1 - old);
        } else if way.is_multiple_of(2) || machine == 0 {
            w.asks(machine, old);
        }
    }
    if way >= 8 {
        // Another VM is given the disk by the new one. What the first writer had asked for reaches the old one then.
        w.open_by_service(1)?;
        let owner = w.hosts[0].owner();
        let late = Change::Eject {
            by: (owner.backend, owner.life),
            stores: Vec::from_iter(w.disks[0].placement.record.members().last().copied()),
        };
        w.asks(w.hosts[0].machine, old);
        w.swap_by_service(0, before, &late);
    }
    // The first writer wants an ejection, by the old one.
    let mut out = w.disks[0].placement.record.members().into_iter();
    let out = out.rfind(|store| *store != id(w, 0));
    let cut = out.unwrap_or(id(w, 0));
    w.cut(0, cut);
    w.issue_write(0, World::span(1, 3), false);
    w.events(way * 20)?;
    if way >= 4 {
        if way < 8 {
            w.open_by_service(1)?;
        }
        w.write(1, 2, 2)?;
        w.read(1, 0, 6)?;
    } else {
        w.done(0)?;
        w.read(0, 0, 6)?;
    }
    w.mend(0, cut);
    w.open_by_service(2)?;
    w.read(2, 0, 6)?;
    w.settles_by_service()?;
    w.close_by_service(2)
}

impl World {
    /// For so many milliseconds nobody is given the disk here: nobody knows what is true of it.
    fn must_not_be_attached(&mut self, host: usize, ms: u64) -> Told {
        let end = self.now + ms * 1000;
        while self.now < end {
            if self.attach_by_service(host, true) {
                return Err(Violation("a disk in doubt is given away".into()));
            }
            let next = self.now + 5_000;
            self.run_until("time passes", 50_000, |w| w.now >= next)?;
        }
        Ok(())
    }
}
