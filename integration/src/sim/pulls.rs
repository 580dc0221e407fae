//! Pulls: a store that is asked for one finds out what it lacks, asks the other store for that over
//! the same bad network, and puts in what came back, as its node does.
//!
//! ```text
//!   writer -- Pull --> store: missing?          -- Fetch --> source: read
//!   writer <- Pulled-- store: fill what came   <- Fetched --
//! ```

use super::brief::{brief, brief_reply};
use super::store_node::{Return, name};
use super::world::{What, World};
use replicator::message::{Asker, Refusal, Reply, Request, Source, SourceFault};
use replicator::packed::Packed;
use replicator::store::{Filling, Handled, Missing};
use replicator::words::{Blocks, Epoch, StoreId};

/// Names one fetch between two stores.
pub type PullId = u64;

/// A store waits no longer than this for another one, in microseconds.
const PATIENCE: u64 = 8_000;

/// What a pulling store waits with.
pub(super) struct Fetching {
    pub store: StoreId,
    process: u64,
    source: StoreId,
    asker: Asker,
    below: Epoch,
    missing: Missing,
    to: Return,
    /// The writer has heard; what still comes is a copy.
    answered: bool,
    heals: bool,
}

/// What a writer asked of the pulling store.
pub(super) struct Pull {
    pub asker: Asker,
    pub source: Source,
    pub from: Epoch,
    pub below: Epoch,
    pub blocks: Blocks,
    /// Only what is known to be damaged there.
    pub heals: bool,
}

impl World {
    /// A pull reaches the store that is to have the blocks.
    pub(super) fn pull_arrives(&mut self, store: StoreId, to: Return, pull: Pull) {
        let Some(core) = self.store(store).core.as_mut() else {
            return;
        };
        let missing = match pull.heals {
            true => core.spoilt(pull.asker, pull.blocks),
            false => core.missing(pull.asker, pull.below, pull.blocks),
        };
        let missing = match missing {
            Ok(missing) => missing,
            Err(refusal) => return self.reply(store, to, Reply::Refused(refusal)),
        };
        if missing.blocks.is_empty() {
            self.stats.count("pulls of what was there");
            return self.reply(store, to, Reply::Pulled(Default::default()));
        }
        let process = self.store(store).process;
        self.last_pull += 1;
        let id = self.last_pull;
        let request = Request::Fetch {
            asker: Asker {
                incarnation: pull.source.incarnation,
                ..pull.asker
            },
            from: pull.from,
            below: pull.below,
            blocks: missing.blocks.clone(),
            known: missing.known.clone(),
            compress: false,
            proof: None,
        };
        let fetching = Fetching {
            store,
            process,
            source: pull.source.store,
            asker: pull.asker,
            below: pull.below,
            missing,
            to,
            answered: false,
            heals: pull.heals,
        };
        self.pulls.insert(id, fetching);
        self.after(PATIENCE, What::PullOver(id));
        let source = pull.source.store;
        for wait in self.travel_between(store, source) {
            self.after(wait, What::Fetch(id, source, request.clone()));
        }
    }

    /// How long each copy of a message from one store to another takes: none if it is lost.
    fn travel_between(&mut self, one: StoreId, other: StoreId) -> Vec<u64> {
        if self.cut_stores.contains(&(one, other)) || self.dice.chance(self.faults.fetch_drop) {
            self.stats.count("fetches lost");
            return Vec::new();
        }
        let far = self.store(one).site != self.store(other).site;
        let copies = 1 + usize::from(self.dice.chance(self.faults.fetch_double));
        (0..copies)
            .map(|_| {
                if self.dice.chance(self.faults.fetch_slow) {
                    return self.dice.range(1_000..2 * PATIENCE);
                }
                let typical = if far { self.far } else { 100 };
                self.dice.wait(typical)
            })
            .collect()
    }

    pub(super) fn fetch_arrives(&mut self, pull: PullId, source: StoreId, request: Request) {
        self.say(format_args!(
            "  {} <- pull {pull} {}",
            name(source),
            brief(&request)
        ));
        let node = self.store(source);
        let process = node.process;
        let Some(core) = &mut node.core else {
            return;
        };
        match core.handle(request) {
            Handled::Now(reply) => self.fetch_answered(pull, source, reply),
            Handled::Fetch(plan) => {
                let wait = self.dice.wait(30);
                self.after(wait, What::RunFetch(pull, source, process, plan));
            }
            Handled::Read(_) | Handled::Verify(_) | Handled::AfterSync(_) => {
                self.violate("a fetch is answered by a fetch".into());
            }
        }
    }

    /// The source's answer sets out.
    pub(super) fn fetch_answered(&mut self, pull: PullId, source: StoreId, reply: Reply) {
        let Some(fetching) = self.pulls.get(&pull) else {
            return;
        };
        for wait in self.travel_between(source, fetching.store) {
            self.after(wait, What::Fetched(pull, reply.clone()));
        }
    }

    /// It is back. A doubled answer is put in twice: that must do no harm.
    pub(super) fn fetched(&mut self, pull: PullId, reply: Reply) {
        let Some(fetching) = self.pulls.get(&pull) else {
            self.stats.count("fetches that came too late");
            return;
        };
        let (store, to) = (fetching.store, fetching.to);
        let (asker, process) = (fetching.asker, fetching.process);
        self.say(format_args!(
            "  {} pull {pull}: {}",
            name(store),
            brief_reply(&reply)
        ));
        let at = self.stores.iter().position(|s| s.id == store);
        let node = &mut self.stores[at.expect("a store")];
        let core = node.core.as_mut().filter(|_| node.process == process);
        let Some(core) = core else {
            self.stats.count("stores that died amid a pull");
            self.pulls.remove(&pull);
            return;
        };
        let reply = match reply {
            Reply::Fetched(found) => {
                let fetching = &self.pulls[&pull];
                let filling = Filling {
                    wire_bytes: found.data.len() as u64,
                    found: found.found,
                    data: match found.data {
                        Packed::Plain(data) | Packed::Zstd(data) => data,
                    },
                };
                match core.fill(asker, fetching.below, &fetching.missing, &filling) {
                    Ok(pulled) => Reply::Pulled(pulled),
                    Err(refusal) => Reply::Refused(refusal),
                }
            }
            Reply::Refused(why) => {
                // What the source has against it is not this store's own refusal.
                let fault = match why {
                    Refusal::Superseded { shown } => Err(Refusal::Superseded { shown }),
                    Refusal::NotShown { .. } | Refusal::OtherIncarnation { .. } => {
                        Ok(SourceFault::Unsealed)
                    }
                    Refusal::Failed => Ok(SourceFault::Away),
                    _ => Ok(SourceFault::Useless),
                };
                Reply::Refused(fault.map_or_else(|why| why, Refusal::Source))
            }
            other => {
                return self.violate(format!("a fetch is answered with {other:?}"));
            }
        };
        if self.died_writing(store) {
            self.pulls.remove(&pull);
            return;
        }
        match &reply {
            Reply::Pulled(pulled) => {
                self.stats.count("pulls");
                let heals = self.pulls[&pull].heals;
                self.stats
                    .count_if(heals && pulled.copied > 0, "rotten blocks that were healed");
                if pulled.same > 0 {
                    self.stats.count("pulls that found something there already");
                }
                if pulled.zeroes > 0 {
                    self.stats.count("pulls of zeroes");
                }
            }
            _ => self.stats.count("pulls refused"),
        }
        let fetching = self.pulls.get_mut(&pull).expect("it is filled");
        if std::mem::replace(&mut fetching.answered, true) {
            self.stats.count("fills done twice");
        } else {
            self.reply(store, to, reply);
        }
        if self.store(store).has_failed() {
            self.stats.count("failed stores");
            let wait = self.dice.wait(10_000);
            self.after(wait, What::StartStore(store, process));
        }
    }

    pub(super) fn pull_over(&mut self, pull: PullId) {
        let Some(fetching) = self.pulls.remove(&pull) else {
            return;
        };
        let (store, to) = (fetching.store, fetching.to);
        if fetching.answered || self.store(store).process != fetching.process {
            return;
        }
        self.stats.count("pulls whose source was away");
        self.say(format_args!(
            "  {} pull {pull}: {} does not answer",
            name(store),
            name(fetching.source)
        ));
        let away = Refusal::Source(SourceFault::Away);
        self.reply(store, to, Reply::Refused(away));
    }
}
