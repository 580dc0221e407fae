//! The quiet end, in which everything heals: the disk must come up, get the members that are wanted,
//! have them filled, read back and close, and its members must be the same.

use super::brief::brief_map;
use super::world::{Violation, World};
use replicator::words::{SECTOR_BYTES, Span};
use replicator::writer::{Event, TakeOver};

impl World {
    /// Everything heals. Then each disk must come up, read back, and close.
    pub fn finish(&mut self) -> Result<(), Violation> {
        self.say(format_args!("everything heals"));
        self.quiet = true;
        for host in 0..self.hosts.len() {
            if self.dice.chance(0.5) {
                self.maybe_stop(host);
            }
        }
        self.heal_everything();
        self.run_until("stops end", 200_000, |w| {
            !w.hosts.iter().any(|h| h.stopping)
        })?;
        for host in 0..self.hosts.len() {
            self.writer_dies(host);
        }
        let per_disk = self.hosts.len() / self.disks.len();
        let (ones, others) = (self.each_disk(per_disk, 0), self.each_disk(per_disk, 1));
        if self.managed.is_some() {
            self.quiet_service()?;
        } else {
            for host in &ones {
                self.last_goals(*host);
            }
        }
        for host in &ones {
            self.open(*host)?;
            self.read_all(*host)?;
        }
        if self.managed.is_some() {
            self.settles_by_service()?;
        } else {
            self.run_until("the wanted members are whole", 5_000_000, |w| {
                w.disks.iter().all(|disk| disk.placement.is_settled())
            })?;
        }
        // I7: what nobody needs is gone before all is read again.
        self.run_until("superfluous replicas are gone", 4_000_000, |w| {
            w.disks.iter().all(|disk| disk.drops_pending == 0)
        })?;
        for _ in 0..self.rot_later.min(20) {
            let store = self.dice.range(0..self.stores.len() as u64) as usize;
            self.rot(store);
        }
        for hosts in [ones, others] {
            for (disk, host) in hosts.into_iter().enumerate() {
                self.open(host)?;
                self.read_all(host)?;
                self.close(host)?;
                self.compare_members(disk)?;
            }
        }
        if self.managed.is_some() {
            // The disks have followed their VMs, or do it now, by themselves.
            self.settles_by_service()?;
            self.run_until("nobody has a disk open", 2_000_000, |w| {
                let mut disks = w.disks.iter();
                disks.all(|disk| disk.placement.record.owner().is_none())
            })?;
            for disk in 0..self.disks.len() {
                self.compare_members(disk)?;
            }
        }
        Ok(())
    }

    /// Of each disk the host of that number.
    fn each_disk(&self, per_disk: usize, number: usize) -> Vec<usize> {
        (0..self.disks.len())
            .map(|disk| disk * per_disk + number)
            .collect()
    }

    fn heal_everything(&mut self) {
        self.faults = Default::default();
        for link in self.links.values_mut() {
            link.heal();
        }
        self.cut_stores.clear();
        self.placement_away_until = 0;
        self.resume_all();
        for store in 0..self.stores.len() {
            let (id, process) = (self.stores[store].id, self.stores[store].process);
            self.stores[store].held = false;
            self.stores[store].media.fail_syncs(false);
            self.stores[store].media.set_capacity(None);
            self.stores[store].tears = false;
            self.stores[store].media.tear_after(u64::MAX);
            self.start_store(id, process);
        }
    }

    /// What is wanted in the end: what was, or another move, without limits.
    fn last_goals(&mut self, host: usize) {
        let disk = self.hosts[host].disk;
        if self.dice.chance(0.4) {
            self.want_near(host);
        }
        let chance = self.dice.chance(0.5);
        let goals = &mut self.disks[disk].placement.goals;
        if chance {
            goals.seed.clear();
        }
        goals.fill = Default::default();
        self.give_orders(disk);
    }

    /// A fresh writer attaches or takes over.
    pub(super) fn open(&mut self, host: usize) -> Result<(), Violation> {
        if self.managed.is_some() {
            return self.open_by_service(host);
        }
        // Late swaps of the dead may still come between.
        while !self.serves(host) {
            self.start_writer(host, TakeOver::Ordered);
            self.run_until("the disk opens", 2_000_000, |w| !w.hosts[host].starting)?;
        }
        Ok(())
    }

    /// It reads everything that was ever written or read.
    pub(super) fn read_all(&mut self, host: usize) -> Result<(), Violation> {
        let sectors: Vec<u64> = self.disk_of(host).oracle.known_sectors().collect();
        for run in sectors.chunk_by(|a, b| a + 1 == *b) {
            let span = Span::new(run[0] * SECTOR_BYTES, run.len() as u64 * SECTOR_BYTES);
            self.issue_read(host, span);
        }
        self.run_until("reads end", 2_000_000, |w| {
            w.hosts[host].requests.is_empty()
        })
    }

    pub(super) fn close(&mut self, host: usize) -> Result<(), Violation> {
        if self.managed.is_some() {
            return self.close_by_service(host);
        }
        self.hosts[host].stopping = true;
        let life = self.hosts[host].life;
        self.tell(host, life, Event::Stop { successor: None });
        self.run_until("the disk closes", 2_000_000, |w| !w.hosts[host].stopping)?;
        if self.disk_of(host).placement.record.owner().is_some() {
            return Err(Violation(
                "the disk did not close although all is well".into(),
            ));
        }
        Ok(())
    }

    pub(super) fn serves(&self, host: usize) -> bool {
        let writer = self.hosts[host].writer.as_ref();
        writer.is_some_and(|writer| writer.is_serving()) && !self.hosts[host].starting
    }

    pub(super) fn run_until(
        &mut self,
        what: &str,
        patience: u64,
        done: impl Fn(&World) -> bool,
    ) -> Result<(), Violation> {
        let end = self.now + patience;
        while !done(self) {
            if self.now > end || !self.step()? {
                let stalls: Vec<String> = self
                    .hosts
                    .iter()
                    .filter_map(|h| h.writer.as_ref()?.stall())
                    .map(|stall| stall.to_string())
                    .collect();
                let maps = self.disks.iter();
                let maps: String = maps.map(|d| brief_map(&d.placement.record.map)).collect();
                return Err(Violation(format!(
                    "all is well and yet it takes more than {} ms until {what}: {stalls:?},{maps}",
                    patience / 1000
                )));
            }
        }
        Ok(())
    }
}
