//! One store of the simulation: the real core on simulated media, its syncs as events of their own.

use super::dice::Dice;
use super::stats::Stats;
use replicator::message::{Reply, Request};
use replicator::store::media::sim::SimMedia;
use replicator::store::{BootId, Handled, Options, Promise, ReadPlan, Store, SyncJob};
use replicator::words::{DiskId, Epoch, StoreId};
use std::collections::BTreeMap;

/// Whom an answer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Return {
    pub host: usize,
    pub life: u64,
    pub session: u64,
    pub call: replicator::writer::CallId,
}

pub struct StoreNode {
    pub id: StoreId,
    pub site: usize,
    pub media: SimMedia,
    /// `None` while its process is down.
    pub core: Option<Store<SimMedia>>,
    /// Counts processes, so that what was begun in one does not end in the next.
    pub process: u64,
    job: Option<SyncJob<SimMedia>>,
    promises: Vec<(Promise, Return)>,
    /// The highest epoch of each disk that anybody was answered in.
    answered: BTreeMap<DiskId, Epoch>,
    /// How often it may have lost what was not synced.
    pub losses: u64,
    lost_power: bool,
    /// How much of what was not synced survives the next power loss; drawn if not given.
    pub survive: Option<f64>,
    /// It does not come up before somebody says so.
    pub held: bool,
    /// The most starts that the placement service saw of it; one that shows fewer is let in nowhere.
    pub starts_seen: u64,
    pub refused: bool,
    /// Some of what it had synced has rotted.
    pub rotted: bool,
    /// Where something rotted of which nothing on media says that it was synced: until that is so, power is
    /// not lost and no sync fails, since nobody could tell it from a torn tail (rule S5).
    fragile: Vec<(String, u64)>,
    /// A write of its is going to tear.
    pub tears: bool,
    /// Its process does nothing before this moment of the world.
    pub paused_until: u64,
}

pub enum Answer {
    Now(Reply),
    Read(ReadPlan<SimMedia>),
    /// Later; a sync is wanted.
    AfterSync,
}

impl StoreNode {
    pub fn new(number: usize, site: usize) -> StoreNode {
        let id = StoreId::from_u128(0xa0 + number as u128);
        let media = SimMedia::new();
        Store::<SimMedia>::format(&media, id, &options()).expect("an empty directory");
        let mut node = StoreNode {
            id,
            site,
            media,
            core: None,
            process: 0,
            job: None,
            promises: Vec::new(),
            answered: BTreeMap::new(),
            losses: 0,
            lost_power: false,
            survive: None,
            held: false,
            starts_seen: 0,
            refused: false,
            tears: false,
            rotted: false,
            fragile: Vec::new(),
            paused_until: 0,
        };
        node.start().expect("a new store opens");
        node.losses = 0;
        node
    }

    /// Opens the store in a new process. The error is a violation, or says that the disk is full.
    pub fn start(&mut self) -> Result<(), String> {
        let boot = BootId(self.media.boot());
        match Store::open(self.media.clone(), self.options(), boot) {
            Ok((core, recovery)) => {
                // A power loss was counted when it happened; a failed sync is seen now.
                let counted = std::mem::take(&mut self.lost_power);
                self.losses += u64::from(recovery.lost_tail && !counted);
                let rolled_back = core.starts().0 < self.starts_seen;
                for (disk, answered) in &self.answered {
                    let shown = core.shown(*disk);
                    if shown < *answered && !rolled_back {
                        return Err(format!(
                            "I4: {} answered in epoch {answered} and shows {shown} after a restart",
                            name(self.id)
                        ));
                    }
                }
                // What rotted is named, too.
                if !recovery.damage.is_empty() && !self.rotted {
                    return Err(format!("damage without a cause: {:?}", recovery.damage));
                }
                self.refused = core.starts().0 < self.starts_seen;
                self.starts_seen = self.starts_seen.max(core.starts().0);
                self.core = Some(core);
                Ok(())
            }
            Err(error) => Err(format!("{} does not open: {error}", name(self.id))),
        }
    }

    /// Each process is a run of its own, also of a directory that was put back.
    fn options(&self) -> Options {
        Options {
            run: self.process + 1,
            ..options()
        }
    }

    /// The process dies; the machine does not.
    pub fn kill(&mut self) {
        self.stop();
        self.media.kill();
    }

    /// The machine dies: of what was not synced, any sectors survive.
    pub fn power_loss(&mut self, dice: &mut Dice) {
        self.stop();
        let survive = dice.pick(&[0.0, 0.3, 0.7, 1.0]);
        let survive = self.survive.take().unwrap_or(survive);
        self.media.crash(|| dice.chance(survive));
        self.losses += u64::from(!self.lost_power);
        self.lost_power = true;
    }

    fn stop(&mut self) {
        self.core = None;
        self.job = None;
        self.promises.clear();
        self.process += 1;
        self.paused_until = 0;
        self.tears = false;
    }

    pub fn handle(&mut self, request: Request, to: Return) -> Option<Answer> {
        match self.core.as_mut()?.handle(request) {
            Handled::Now(reply) => Some(Answer::Now(reply)),
            Handled::Read(plan) => Some(Answer::Read(plan)),
            Handled::Fetch(_) => panic!("stores fetch from each other by themselves"),
            Handled::Verify(plan) => Some(Answer::Now(Reply::Verified(plan.run()))),
            Handled::AfterSync(promise) => {
                self.promises.push((promise, to));
                Some(Answer::AfterSync)
            }
        }
    }

    /// Begins a sync if none runs and something is not synced. `true`: one began.
    pub fn sync_begins(&mut self) -> bool {
        if self.job.is_none()
            && let Some(core) = &mut self.core
        {
            self.job = core.begin_sync();
            return self.job.is_some();
        }
        false
    }

    /// Ends the sync that runs.
    pub fn sync_ends(&mut self) {
        if let (Some(core), Some(job)) = (&mut self.core, self.job.take()) {
            let result = job.run();
            core.finish_sync(job, result);
        }
    }

    /// Says up to where all is synced. `true`: that is to be synced.
    pub fn notes(&mut self) -> bool {
        let core = self.core.as_mut().filter(|core| core.wants_note());
        core.map(Store::state_synced).is_some()
    }

    pub fn wants_note(&self) -> bool {
        self.core.as_ref().is_some_and(Store::wants_note)
    }

    /// Not where nobody could tell it from what a failed sync leaves.
    pub fn may_rot(&self, file: &str, at: u64) -> bool {
        let Some(core) = &self.core else { return false };
        let syncs_fail = core.has_failed() || self.media.is_failing_syncs();
        core.is_proven(file, at) || !syncs_fail
    }

    /// Something of what was synced rots there.
    pub fn rots(&mut self, file: &str, at: u64) {
        self.rotted = true;
        let core = self.core.as_ref().expect("it rots while it is up");
        if !core.is_proven(file, at) {
            self.fragile.push((file.to_owned(), at));
        }
    }

    pub fn may_lose_power(&mut self) -> bool {
        if let Some(core) = &self.core {
            self.fragile.retain(|(file, at)| !core.is_proven(file, *at));
        }
        self.fragile.is_empty()
    }

    /// The answers whose sync has come, by whoever ran it; and whether more wait.
    pub fn kept_promises(&mut self) -> (Vec<(Reply, Return)>, bool) {
        let Some(core) = &mut self.core else {
            return (Vec::new(), false);
        };
        let mut answers = Vec::new();
        let mut waiting = Vec::new();
        for (promise, to) in std::mem::take(&mut self.promises) {
            if core.has_failed() || promise.point() <= core.synced() {
                answers.push((core.keep(promise), to));
            } else {
                waiting.push((promise, to));
            }
        }
        self.promises = waiting;
        (answers, !self.promises.is_empty())
    }

    /// A seal was answered: the epoch that it shows must never go back (I4).
    pub fn was_sealed(&mut self) {
        if let Some(core) = &self.core {
            for disk in core.disks() {
                let answered = self.answered.entry(disk).or_insert(Epoch::ZERO);
                *answered = core.shown(disk).max(*answered);
            }
        }
    }

    pub fn housekeep(&mut self, stats: &mut Stats) {
        if let Some(core) = &mut self.core
            && core.housekeep()
        {
            stats.count("housekeeping steps");
        }
    }

    pub fn has_failed(&self) -> bool {
        self.core.as_ref().is_some_and(Store::has_failed)
    }
}

/// Small segments, so that many are filled, checkpointed and cleaned in a short life.
fn options() -> Options {
    Options {
        segment_bytes: 128 << 10,
        checkpoint_bytes: 256 << 10,
        open_files: 4,
        ..Options::default()
    }
}

/// What traces call a store.
pub fn name(id: StoreId) -> String {
    format!("S{}", id.as_u128() - 0xa0)
}
