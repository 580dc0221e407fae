//! What there is to fill, and how far it is: every extent of every live entry that is not whole, store
//! by store; and the stores that are to have copies ahead. backfill.rs does it.
//!
//! "Done" is known for a store, the epoch that it joined at and an extent, in the memory of one writer:
//! every block that the older entries have was pulled, or was there. Whoever becomes the writer next
//! asks anew, and what is there already is not copied again.

use super::backfill::{Completing, Work};
use super::heat::Heat;
use super::{Hindrance, Now, Progress, Writer};
use crate::words::{BLOCK_BYTES, Blocks, Epoch, Extent, Extents, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Extents that are looked at together where nothing says that one of them matters more: a disk that
/// is mostly holes is surveyed in few questions.
const SPAN_EXTENTS: u32 = 16;

#[derive(Default)]
pub(super) struct Fill {
    pub jobs: Vec<Job>,
    done: BTreeMap<(StoreId, Epoch), Done>,
    pub heat: Heat,
    pub bucket: Bucket,
    pub works: BTreeMap<u64, Work>,
    pub last_work: u64,
    pub completing: Option<Completing>,
    /// Extents that were not whole in maps of before: their members may keep what nobody needs any more.
    pub unfinished: Vec<Extents>,
    /// Seeded stores that were made to join, in this epoch, and those that were asked to.
    pub joined: BTreeSet<(StoreId, Extent)>,
    pub joining: BTreeSet<(StoreId, Extent)>,
    /// Something could not be done; not before then again.
    pub not_before: Option<Now>,
    /// The same of some extents at a store, by the first of them: others are filled meanwhile.
    put_off: BTreeMap<(StoreId, Extent), PutOff>,
    pub hindrance: Option<Hindrance>,
    /// Since when nobody was found who could give what is missing.
    pub sourceless_since: Option<Now>,
    /// Something was finished: perhaps an entry is whole.
    pub look_for_whole: bool,
    /// Whatever is left is being worked on.
    pub exhausted: bool,
}

/// Some extents that some stores are to hold wholly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Job {
    pub extents: Extents,
    /// When these stores joined.
    pub from: Epoch,
    /// In the order in which they are filled: the later from the earlier.
    pub targets: Vec<StoreId>,
    /// They are no members: a copy ahead.
    pub seed: bool,
    /// On how many stores these extents stand now: the fewer, the sooner they are filled.
    pub copies: usize,
}

/// A part of a job: one store, extents that hang together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub target: StoreId,
    pub from: Epoch,
    pub extents: Extents,
    pub seed: bool,
    /// All extents of the job.
    pub of: Extents,
}

struct PutOff {
    end: Extent,
    until: Now,
}

#[derive(Default)]
struct Done {
    bits: Vec<u64>,
}

impl Done {
    fn has(&self, extent: Extent) -> bool {
        let word = self.bits.get(extent.0 as usize / 64);
        word.is_some_and(|word| word & (1 << (extent.0 % 64)) != 0)
    }

    fn add(&mut self, extent: Extent) {
        let at = extent.0 as usize / 64;
        if self.bits.len() <= at {
            self.bits.resize(at + 1, 0);
        }
        self.bits[at] |= 1 << (extent.0 % 64);
    }

    fn count(&self, extents: Extents) -> u64 {
        extents.iter().filter(|extent| self.has(*extent)).count() as u64
    }
}

impl Fill {
    /// Whether `store`, which joined at `from`, holds all that was ever written to `extent`, as far as we
    /// have filled it.
    pub fn is_done(&self, store: StoreId, from: Epoch, extent: Extent) -> bool {
        self.done
            .get(&(store, from))
            .is_some_and(|done| done.has(extent))
    }

    pub fn finish(&mut self, span: &Span) {
        let done = self.done.entry((span.target, span.from)).or_default();
        for extent in span.extents.iter() {
            done.add(extent);
            self.heat.forget(extent);
        }
        self.look_for_whole = true;
        self.exhausted = false;
    }

    /// Pulls under way.
    pub fn pulls(&self) -> usize {
        self.works.values().map(Work::pulls).sum()
    }

    /// It may have lost what was filled in and not synced: whatever it was to have is looked for again (S1).
    pub fn forget_done_by(&mut self, store: StoreId) {
        self.done.retain(|(of, _), _| *of != store);
        self.exhausted = false;
    }

    /// Forgets everything but how hot extents are: another writer may have been here.
    pub fn forget(&mut self) {
        let heat = std::mem::take(&mut self.heat);
        *self = Fill {
            heat,
            last_work: self.last_work,
            ..Fill::default()
        };
    }

    /// What the current epoch was asked is void; what was done in it is done.
    pub fn begin_epoch(&mut self) {
        self.works.clear();
        self.completing = None;
        self.joined.clear();
        self.joining.clear();
        self.not_before = None;
        self.put_off.clear();
        self.exhausted = false;
        self.look_for_whole = true;
    }

    pub fn set_jobs(&mut self, jobs: Vec<Job>) {
        self.done.retain(|(store, from), _| {
            let of = |job: &Job| job.from == *from && job.targets.contains(store);
            jobs.iter().any(of)
        });
        if jobs.is_empty() {
            self.hindrance = None;
            self.sourceless_since = None;
        }
        self.jobs = jobs;
        self.look_for_whole = true;
        self.exhausted = false;
    }

    /// Nobody gives now what `extents` lack at `store`: others come first for a while, longer where there are many.
    pub fn put_off(&mut self, store: StoreId, extents: Extents, now: Now, pause: Duration) {
        let until = now + pause * (5 + self.put_off.len() as u32);
        // They stand side by side, so that one look says whether an extent is among them.
        self.put_off
            .retain(|(of, first), _| *of != store || !extents.contains(*first));
        let put_off = PutOff {
            end: extents.end,
            until,
        };
        self.put_off.insert((store, extents.first), put_off);
    }

    fn is_put_off(&self, store: StoreId, extent: Extent, now: Now) -> bool {
        let before = self.put_off.range(..=(store, extent)).next_back();
        before.is_some_and(|((of, _), put_off)| {
            *of == store && extent < put_off.end && now < put_off.until
        })
    }

    /// When something that was put off is looked at again.
    pub fn put_off_until(&self) -> Option<Now> {
        self.put_off.values().map(|put_off| put_off.until).min()
    }

    /// A store is there that was not.
    pub fn look_again(&mut self) {
        self.put_off.clear();
        self.exhausted = false;
    }

    /// What was put off until now is no more.
    pub fn take_up(&mut self, now: Now) {
        let before = self.put_off.len();
        self.put_off.retain(|_, put_off| now < put_off.until);
        self.exhausted &= self.put_off.len() == before;
    }

    /// The jobs of an entry that are done, as one range of extents where they stand side by side.
    pub fn whole(&self) -> Option<(Extents, Epoch)> {
        let is_done = |job: &&Job| {
            let all = u64::from(job.extents.count());
            let done = |store: &StoreId| {
                let done = self.done.get(&(*store, job.from));
                done.is_some_and(|done| done.count(job.extents) == all)
            };
            !job.seed && job.targets.iter().all(done)
        };
        let mut whole: Vec<&Job> = self.jobs.iter().filter(is_done).collect();
        whole.sort_by_key(|job| (job.from, job.extents.first));
        let first = whole.first()?;
        let (from, mut extents) = (first.from, first.extents);
        for job in &whole[1..] {
            if job.from == from && job.extents.first == extents.end {
                extents.end = job.extents.end;
            }
        }
        Some((extents, from))
    }

    /// What to fill next: members before copies ahead; of those the extents with the fewest copies, and of these the
    /// hottest first.
    pub fn next_span(&self, now: Now, usable: impl Fn(StoreId) -> bool) -> Option<Span> {
        let hot = self.heat.hottest(now);
        let members = || self.jobs.iter().filter(|job| !job.seed);
        let coldest = |job: &Job| {
            let mut extents = job.extents.iter();
            extents.find_map(|extent| self.span_at(job, extent, SPAN_EXTENTS, now, &usable))
        };
        let mut endangered: Vec<usize> = members().map(|job| job.copies).collect();
        endangered.sort_unstable();
        endangered.dedup();
        let of_members = endangered.into_iter().find_map(|copies| {
            let alike = || members().filter(move |job| job.copies == copies);
            let hottest = hot.iter().find_map(|extent| {
                alike()
                    .filter(|job| job.extents.contains(*extent))
                    .find_map(|job| self.span_at(job, *extent, 1, now, &usable))
            });
            hottest.or_else(|| alike().find_map(coldest))
        });
        of_members.or_else(|| self.jobs.iter().filter(|job| job.seed).find_map(coldest))
    }

    /// The extents from `first` on, up to `most`, that the same target lacks, nobody works on, and somebody may have.
    fn span_at(
        &self,
        job: &Job,
        first: Extent,
        most: u32,
        now: Now,
        usable: &impl Fn(StoreId) -> bool,
    ) -> Option<Span> {
        let target_of = |extent: Extent| {
            let busy = self.works.values().any(|work| {
                work.span.extents.contains(extent)
                    && (!job.seed || job.targets.contains(&work.span.target))
            });
            let lacks =
                |store: &&StoreId| usable(**store) && !self.is_done(**store, job.from, extent);
            // Who is filled after another has no other sources than that one and its own.
            let put_off = |store: &StoreId| self.is_put_off(*store, extent, now);
            let mut targets = job.targets.iter();
            let target = targets.find(lacks).copied();
            target.filter(|store| !busy && !put_off(store))
        };
        let target = target_of(first)?;
        let mut end = Extent(first.0 + 1);
        while end < job.extents.end && end.0 - first.0 < most && target_of(end) == Some(target) {
            end = Extent(end.0 + 1);
        }
        Some(Span {
            target,
            from: job.from,
            extents: Extents::new(first, end),
            seed: job.seed,
            of: job.extents,
        })
    }

    /// What crossed a link counts against the limit, whoever asked for it.
    pub fn spend(&mut self, bytes: u64) {
        self.bucket.left -= bytes as i64;
    }

    fn count(&self, seed: bool) -> (u64, u64) {
        let jobs = self.jobs.iter().filter(|job| job.seed == seed);
        let mut all = 0;
        let mut done = 0;
        for job in jobs {
            for store in &job.targets {
                all += u64::from(job.extents.count());
                let of = self.done.get(&(*store, job.from));
                done += of.map_or(0, |of| of.count(job.extents));
            }
        }
        (all, done)
    }
}

impl Writer {
    /// How far the filling is, and who answers reads.
    pub fn progress(&self) -> Progress {
        let (extents, extents_done) = self.fill.count(false);
        let (seed_extents, seed_extents_done) = self.fill.count(true);
        let missing: u64 = self.fill.works.values().map(Work::missing_blocks).sum();
        Progress {
            extents,
            extents_done,
            seed_extents,
            seed_extents_done,
            missing_bytes: missing * BLOCK_BYTES,
            ..self.progress
        }
    }

    /// The guest uses these blocks.
    pub(super) fn warm(&mut self, blocks: Blocks, heat: u32) {
        if !self.fill.jobs.is_empty() {
            let extent = self.record.extent_size.of(blocks.first);
            self.fill.heat.add(extent, heat, self.now);
        }
    }

    /// The record or the orders have changed: what is there to do?
    pub(super) fn find_jobs(&mut self) {
        let near = self.config.near;
        let mut jobs = Vec::new();
        for range in &self.record.map {
            for entry in range.history.live().filter(|entry| !entry.whole) {
                let mut targets = entry.stores.clone();
                targets.sort_by_key(|store| near != Some(*store));
                jobs.push(Job {
                    extents: range.extents,
                    from: entry.from,
                    targets,
                    seed: false,
                    copies: range.history.copies(),
                });
            }
        }
        jobs.sort_by_key(|job| near != job.targets.first().copied());
        for set in &self.orders.seed {
            for range in &self.record.map {
                let Some(extents) = set.extents.intersect(range.extents) else {
                    continue;
                };
                let stores = set.stores.iter();
                let ahead = stores.filter(|store| range.history.member(**store).is_none());
                jobs.extend(ahead.map(|store| Job {
                    extents,
                    from: self.record.epoch,
                    targets: vec![*store],
                    seed: true,
                    copies: range.history.copies(),
                }));
            }
        }
        for store in jobs.iter().flat_map(|job| &job.targets) {
            self.connect(*store);
        }
        if jobs != self.fill.jobs {
            // Works of jobs that are no more would finish what nobody wants.
            self.fill.works.retain(|_, work| {
                jobs.iter().any(|job| {
                    job.from == work.span.from
                        && job.targets.contains(&work.span.target)
                        && job.extents.contains(work.span.extents.first)
                        && job.extents.end >= work.span.extents.end
                })
            });
            self.fill.set_jobs(jobs);
        }
    }
}

/// A limit of bytes a second, with a little room for what comes at once.
#[derive(Default, Debug)]
pub(super) struct Bucket {
    left: i64,
    at: Now,
}

impl Bucket {
    /// A quarter of a second's worth, and at least one full pull.
    fn room(rate: u64) -> i64 {
        (rate / 4).max(1 << 20) as i64
    }

    /// Whether something may begin now.
    pub fn is_open(&mut self, rate: Option<u64>, now: Now) -> bool {
        let Some(rate) = rate else {
            self.left = 0;
            self.at = now;
            return true;
        };
        let passed = now.0.saturating_sub(self.at.0);
        let gained = passed.as_nanos() * u128::from(rate) / 1_000_000_000;
        if gained > 0 {
            let room = Bucket::room(rate);
            let debt = -16 * room;
            let gained = i64::try_from(gained).unwrap_or(room);
            self.left = self.left.max(debt).saturating_add(gained).min(room);
            self.at = now;
        }
        self.left > 0
    }

    /// Nothing may begin before [`Bucket::opens_at`].
    pub fn is_empty(&self) -> bool {
        self.left <= 0
    }

    /// It was thought to take more than it did.
    pub fn give_back(&mut self, estimated: u64, truly: u64) {
        self.left = self
            .left
            .saturating_add(estimated as i64)
            .saturating_sub(truly as i64);
    }

    /// When something may begin again.
    pub fn opens_at(&self, rate: u64) -> Now {
        let owed = (1 - self.left).max(0) as u128;
        let nanos = owed * 1_000_000_000 / u128::from(rate.max(1));
        let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX >> 1));
        self.at + wait.max(Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_kept_over_time() {
        let mut bucket = Bucket::default();
        let rate = 10 << 20;
        let mut sent = 0u64;
        for ms in 0..10_000 {
            let now = Now(Duration::from_millis(ms));
            while bucket.is_open(Some(rate), now) {
                bucket.left -= 1 << 20;
                sent += 1 << 20;
            }
        }
        let most = 10 * rate + rate / 2;
        assert!(sent > 9 * rate && sent < most, "{sent}");
    }

    #[test]
    fn what_is_done_is_known_by_store_epoch_and_extent() {
        let (a, b) = (StoreId::from_u128(1), StoreId::from_u128(2));
        let (from, all) = (Epoch::from_u64(3), Extents::new(Extent(0), Extent(40)));
        let mut fill = Fill::default();
        fill.set_jobs(vec![Job {
            extents: all,
            from,
            targets: vec![a, b],
            seed: false,
            copies: 1,
        }]);
        let mut spans = Vec::new();
        while let Some(span) = fill.next_span(Now::default(), |_| true) {
            fill.finish(&span);
            spans.push((span.target, span.extents.count()));
        }
        let one = |store| [(store, 16), (store, 16), (store, 8)];
        assert_eq!(spans.len(), 6);
        for store in [a, b] {
            assert!(one(store).iter().all(|span| spans.contains(span)));
        }
        assert_eq!(fill.whole(), Some((all, from)));
        assert!(!fill.is_done(a, Epoch::from_u64(4), Extent(0)));
    }

    #[test]
    fn the_most_endangered_extents_are_filled_first_and_of_those_the_hottest() {
        let extents = |first, end| Extents::new(Extent(first), Extent(end));
        let job = |part, copies, seed| Job {
            extents: part,
            from: Epoch::from_u64(3),
            targets: vec![StoreId::from_u128(1)],
            seed,
            copies,
        };
        let mut fill = Fill::default();
        fill.set_jobs(vec![
            job(extents(0, 4), 2, false),
            job(extents(4, 8), 1, false),
            job(extents(8, 12), 1, true),
        ]);
        for hot in [2, 6, 9] {
            fill.heat.add(Extent(hot), 8, Now::default());
        }
        let mut order = Vec::new();
        while let Some(span) = fill.next_span(Now::default(), |_| true) {
            fill.finish(&span);
            order.push(span.extents.first.0);
        }
        assert_eq!(order, [6, 4, 7, 2, 0, 3, 8]);
    }
}
