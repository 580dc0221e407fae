//! Processes that stand still: nothing reaches them, and all of it comes at once when they go on.

use super::store_node::name;
use super::world::{What, World};
use replicator::words::StoreId;

/// In microseconds: thirty times what a store has to answer in, which is 20 ms here and 2 s elsewhere.
const MINUTE: u64 = 600_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Process {
    Writer(usize),
    Store(StoreId),
}

impl World {
    /// A process, or all of a machine, stands still for longer than anybody is waited for.
    pub(super) fn pause(&mut self, host: usize, store: usize) {
        let long = self.dice.pick(&[10_000, 40_000, 150_000]);
        let wait = self.dice.wait(long);
        let die = self.dice.range(0..3);
        if die != 1 && self.hosts[host].writer.is_some() {
            self.say(format_args!("W{host} stands still"));
            self.count_pause("writers that stood still", wait);
            self.hosts[host].paused_until = self.now + wait;
            self.after(wait, What::Resume(Process::Writer(host)));
        }
        let machine = self.hosts[host].machine;
        let beside = die == 2 && machine < self.stores.len();
        let store = if beside { machine } else { store };
        if die != 0 && self.stores[store].core.is_some() {
            let id = self.stores[store].id;
            self.say(format_args!("{} stands still", name(id)));
            self.count_pause("stores that stood still", wait);
            self.stores[store].paused_until = self.now + wait;
            self.after(wait, What::Resume(Process::Store(id)));
        }
    }

    fn count_pause(&mut self, of: &'static str, wait: u64) {
        self.stats.count(of);
        let minute = wait >= MINUTE;
        self.stats
            .count_if(minute, "processes that stood still for a minute");
    }

    pub(super) fn is_paused(&mut self, who: Process) -> bool {
        let until = match who {
            Process::Writer(host) => self.hosts[host].paused_until,
            Process::Store(store) => self.store(store).paused_until,
        };
        until > self.now
    }

    pub(super) fn resume(&mut self, who: Process) {
        for what in self.backlog.remove(&who).unwrap_or_default() {
            self.after(0, what);
        }
    }

    /// Everybody goes on.
    pub(super) fn resume_all(&mut self) {
        self.hosts.iter_mut().for_each(|host| host.paused_until = 0);
        let stores = self.stores.iter_mut();
        stores.for_each(|store| store.paused_until = 0);
        for who in self.backlog.keys().copied().collect::<Vec<_>>() {
            self.resume(who);
        }
    }

    /// In which process this happens.
    pub(super) fn process_of(&self, what: &What) -> Option<Process> {
        Some(match what {
            What::ToStore(store, ..)
            | What::RunRead(store, ..)
            | What::Fetch(_, store, _)
            | What::RunFetch(_, store, ..)
            | What::SyncBegins(store, _)
            | What::Note(store, _)
            | What::SyncEnds(store, _)
            | What::Housekeep(store) => Process::Store(*store),
            What::Drop(retired) => Process::Store(retired.store),
            What::Fetched(pull, _) | What::PullOver(pull) => {
                Process::Store(self.pulls.get(pull)?.store)
            }
            What::Answer(_, to, _) => Process::Writer(to.host),
            What::Orders(host, _)
            | What::Connect(host, ..)
            | What::Break(host, ..)
            | What::Swapped(host, ..)
            | What::Inspected(host, ..)
            | What::Withdrawn(host, ..)
            | What::Timeout(host, ..)
            | What::Guest(host, _) => Process::Writer(*host),
            What::Placing(placing) => Process::Store(self.stores[placing.machine()?].id),
            What::ConsiderDrop(_)
            | What::StartStore(..)
            | What::Swap(..)
            | What::Inspect(..)
            | What::Resume(_)
            | What::Fate
            | What::Heal(_) => return None,
        })
    }
}
