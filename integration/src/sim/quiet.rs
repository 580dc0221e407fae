//! The quiet end, in which everything heals: the disk must come up, get the members that are wanted,
//! have them filled, read back and close, and its members must be the same.

use super::brief::brief_map;
use super::world::{Violation, World};
use replicator::words::{SECTOR_BYTES, Span};
use replicator::writer::{Event, TakeOver};

impl World {
    /// Everything heals. Then the disk must come up, read back, and close.
    pub fn finish(&mut self) -> Result<(), Violation> {
        self.say(format_args!("everything heals"));
        self.quiet = true;
        self.faults = Default::default();
        for host in 0..self.hosts.len() {
            if self.dice.chance(0.5) {
                self.maybe_stop(host);
            }
        }
        for link in self.links.values_mut() {
            link.cut = false;
        }
        self.cut_stores.clear();
        self.placement_away_until = 0;
        for store in 0..self.stores.len() {
            let (id, process) = (self.stores[store].id, self.stores[store].process);
            self.stores[store].held = false;
            self.stores[store].media.fail_syncs(false);
            self.stores[store].media.set_capacity(None);
            self.start_store(id, process);
        }
        self.run_until("stops end", 200_000, |w| {
            !w.hosts.iter().any(|h| h.stopping)
        })?;
        for host in 0..self.hosts.len() {
            self.writer_dies(host);
        }
        self.last_goals();
        self.open(0)?;
        self.read_all(0)?;
        self.run_until("the wanted members are whole", 5_000_000, |w| {
            w.placement.is_settled()
        })?;
        // I7: what nobody needs is gone before all is read again.
        self.run_until("superfluous replicas are gone", 4_000_000, |w| {
            w.drops_pending == 0
        })?;
        self.read_all(0)?;
        self.close(0)?;
        self.compare_members()?;
        self.open(1)?;
        self.read_all(1)?;
        self.close(1)?;
        self.compare_members()
    }

    /// What is wanted in the end: what was, or another move, without limits.
    fn last_goals(&mut self) {
        if self.dice.chance(0.4) {
            self.want_near(0);
        }
        if self.dice.chance(0.5) {
            self.placement.goals.seed.clear();
        }
        self.placement.goals.fill = Default::default();
        self.give_orders();
    }

    /// A fresh writer attaches or takes over.
    pub(super) fn open(&mut self, host: usize) -> Result<(), Violation> {
        // Late swaps of the dead may still come between.
        while !self.serves(host) {
            self.start_writer(host, TakeOver::Ordered);
            self.run_until("the disk opens", 2_000_000, |w| !w.hosts[host].starting)?;
        }
        Ok(())
    }

    /// It reads everything that was ever written or read.
    pub(super) fn read_all(&mut self, host: usize) -> Result<(), Violation> {
        let sectors: Vec<u64> = self.oracle.known_sectors().collect();
        for run in sectors.chunk_by(|a, b| a + 1 == *b) {
            let span = Span::new(run[0] * SECTOR_BYTES, run.len() as u64 * SECTOR_BYTES);
            self.issue_read(host, span);
        }
        self.run_until("reads end", 2_000_000, |w| {
            w.hosts[host].requests.is_empty()
        })
    }

    pub(super) fn close(&mut self, host: usize) -> Result<(), Violation> {
        self.hosts[host].stopping = true;
        let life = self.hosts[host].life;
        self.tell(host, life, Event::Stop { successor: None });
        self.run_until("the disk closes", 2_000_000, |w| !w.hosts[host].stopping)?;
        if self.placement.record.owner().is_some() {
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
                let map = brief_map(&self.placement.record.map);
                return Err(Violation(format!(
                    "all is well and yet it takes more than {} ms until {what}: {stalls:?},{map}",
                    patience / 1000
                )));
            }
        }
        Ok(())
    }
}
