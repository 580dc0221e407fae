//! The quiet end, in which everything heals: the disk must come up, read back and close, and its
//! members must be the same.

use super::store_node::{DISK, name};
use super::world::{Violation, World};
use replicator::message::{Asker, ListedBlock, Reply, Request};
use replicator::store::Handled;
use replicator::words::{Block, Epoch, Extents, SECTOR_BYTES, Seq, Span, StoreId, Version};
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
        for store in 0..self.stores.len() {
            let (id, process) = (self.stores[store].id, self.stores[store].process);
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
        for auditor in [0, 1] {
            self.audit(auditor)?;
        }
        self.compare_members()
    }

    /// A fresh writer attaches or takes over, reads everything that was ever written, and closes.
    fn audit(&mut self, host: usize) -> Result<(), Violation> {
        // Late swaps of the dead may still come between.
        while !self.is_served(host) {
            self.start_writer(host, TakeOver::Ordered);
            self.run_until("the disk opens", 2_000_000, |w| !w.hosts[host].starting)?;
        }
        let sectors: Vec<u64> = self.oracle.known_sectors().collect();
        for run in sectors.chunk_by(|a, b| a + 1 == *b) {
            let span = Span::new(run[0] * SECTOR_BYTES, run.len() as u64 * SECTOR_BYTES);
            self.issue_read(host, span);
        }
        self.run_until("reads end", 2_000_000, |w| {
            w.hosts[host].requests.is_empty()
        })?;
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

    fn is_served(&self, host: usize) -> bool {
        let writer = self.hosts[host].writer.as_ref();
        writer.is_some_and(|writer| writer.is_serving()) && !self.hosts[host].starting
    }

    fn run_until(
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
                return Err(Violation(format!(
                    "all is well and yet it takes more than {} ms until {what}: {stalls:?}",
                    patience / 1000
                )));
            }
        }
        Ok(())
    }

    /// I6: with no write in flight, the members of an extent list the same blocks in the same versions.
    fn compare_members(&mut self) -> Result<(), Violation> {
        let record = self.placement.record.clone();
        for range in &record.map {
            // What each of them has written itself: who joined last has seen the least.
            let from = range.history.live().map(|entry| entry.from).max();
            let from = from.expect("somebody is live");
            let before = Version::new(Epoch::from_u64(from.as_u64() - 1), Seq::MAX);
            let mut first: Option<(StoreId, Vec<ListedBlock>)> = None;
            for id in range.history.members() {
                let listed = self.list(id, record.epoch, range.extents, before)?;
                match &first {
                    None => first = Some((id, listed)),
                    Some((_, same)) if *same == listed => self.stats.count("members compared"),
                    Some((one, other)) => {
                        let differs = other.iter().find(|b| !listed.contains(b));
                        let differs = differs.or(listed.iter().find(|b| !other.contains(b)));
                        return Err(Violation(format!(
                            "I6: {} and {} differ in extents {}: {differs:?}",
                            name(*one),
                            name(id),
                            range.extents
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    fn list(
        &mut self,
        id: StoreId,
        epoch: Epoch,
        extents: Extents,
        above: Version,
    ) -> Result<Vec<ListedBlock>, Violation> {
        let core = self.store(id).core.as_mut().expect("all stores are up");
        let asker = Asker {
            disk: DISK,
            epoch,
            incarnation: core.incarnation(),
        };
        let request = Request::List {
            asker,
            extents,
            above,
            start: Block(0),
        };
        match core.handle(request) {
            Handled::Now(Reply::Listed { blocks, .. }) => Ok(blocks),
            Handled::Now(other) => Err(Violation(format!("I6: {} lists {other:?}", name(id)))),
            _ => Err(Violation("a list is answered at once".into())),
        }
    }
}
