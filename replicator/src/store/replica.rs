//! Replica records: for which extents this store is (or was) a member, since when, and whether whole.
//!
//! The records of a disk are ranges of extents in order, without overlap. Without a record the
//! answer to anything about a block is "no replica", never "absent".

use super::index::Entry;
use crate::message::ReplicaState;
use crate::plant::{Plant, planted};
use crate::words::{Epoch, Extent, Extents, History, Incarnation};
use smallvec::SmallVec;

/// How many earlier memberships a replica remembers. More than a history has entries: those that ended with
/// an ejection are named by none, and stay until a collapse says so.
const MOST_MEMBERSHIPS: usize = 64;
/// Below how many epochs a replica keeps what stood there. More than a history has entries: where the store does not know
/// the disk's record, those that no entry begins with any more stay until a collapse says so.
const MOST_KEPT: usize = 2 * History::MAX_ENTRIES;

/// One range's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replica {
    pub extents: Extents,
    /// The epoch that it last joined at.
    pub from: Epoch,
    /// Which membership this is; fills carry it (rule R1).
    pub join: u16,
    /// The store's incarnation when the replica was last whole: at its join, or when it was settled.
    /// "May have lost its tail" is derived from it, so that no restart can wipe that mark (rule S2).
    pub incarnation: Incarnation,
    /// Earlier memberships, oldest first, that entries of a history may still name (rule R2).
    pub past: SmallVec<[Membership; 1]>,
    /// Epochs at which others joined beside it: what stood below them is kept (rule R2). Sorted.
    pub kept: SmallVec<[Epoch; 1]>,
}

/// An earlier membership of a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Membership {
    pub from: Epoch,
    pub join: u16,
}

/// What proves that the entry that began at some epoch has a version of a block (rule R1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proof {
    from: Epoch,
    /// None: this store never joined for such an entry, so nothing was filled in for it.
    join: Option<u16>,
}

impl Proof {
    /// A write since the entry began, or a fill during that membership. Or a later one: what is filled in
    /// then stands below the later beginning, and so is what this entry has, too.
    pub fn covers(&self, entry: &Entry) -> bool {
        entry.version.epoch >= self.from
            || self
                .join
                .is_some_and(|join| entry.filled.is_some_and(|filled| filled >= join))
    }
}

impl Replica {
    /// Epochs below which reads of older entries look (rule R2): each join's, but its own first one.
    pub fn bounds(&self) -> impl Iterator<Item = Epoch> + '_ {
        let later = self.past.iter().skip(1).map(|membership| membership.from);
        let forgotten = planted(Plant::NothingKept);
        let kept = self.kept.iter().copied().filter(move |_| !forgotten);
        let newest = (!self.past.is_empty()).then_some(self.from);
        later.chain(newest).chain(kept)
    }

    /// Whether it keeps something that nobody needs when no entry is older than `oldest`.
    fn keeps(&self, oldest: Epoch) -> bool {
        self.kept.iter().any(|below| *below <= oldest)
    }

    /// What an entry that began at `from` has here.
    pub fn proof(&self, from: Epoch) -> Proof {
        let past = self.past.iter().find(|past| past.from == from);
        let join = match from == self.from {
            true => Some(self.join),
            false => past.map(|past| past.join),
        };
        Proof { from, join }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Replicas(pub Vec<Replica>);

impl Replicas {
    pub fn of(&self, extent: Extent) -> Option<&Replica> {
        let behind = self
            .0
            .partition_point(|replica| replica.extents.end <= extent);
        self.0
            .get(behind)
            .filter(|replica| replica.extents.contains(extent))
    }

    /// Whether every one of `extents` has a record.
    pub fn cover(&self, extents: Extents) -> bool {
        let mut next = extents.first;
        while next < extents.end {
            match self.of(next) {
                Some(replica) => next = replica.extents.end,
                None => return false,
            }
        }
        true
    }

    pub fn states(&self, whole_since: Incarnation) -> Vec<ReplicaState> {
        self.0
            .iter()
            .map(|replica| ReplicaState {
                extents: replica.extents,
                from: replica.from,
                lost: replica.incarnation < whole_since,
            })
            .collect()
    }

    /// Whether a join may be made; and if so, whether it changes anything.
    pub fn may_join(&self, extents: Extents, from: Epoch) -> Result<bool, &'static str> {
        let touched = self.touched(extents);
        if touched.clone().any(|replica| replica.from > from) {
            return Err("the replica has joined at a later epoch already");
        }
        if touched
            .clone()
            .any(|replica| replica.from < from && replica.past.len() >= MOST_MEMBERSHIPS)
        {
            return Err("the replica is needed by too many older entries");
        }
        Ok(!self.cover(extents) || touched.clone().any(|replica| replica.from < from))
    }

    /// Joins `extents` at `from`. Where a record has that `from` already nothing changes, not even
    /// "lost": what is lost stays so until it joins at a later epoch or is settled.
    pub fn join(&mut self, extents: Extents, from: Epoch, join: u16, incarnation: Incarnation) {
        self.split_at(extents);
        let mut gaps = Vec::new();
        let mut next = extents.first;
        for replica in self.0.iter_mut().filter(|r| overlap(r.extents, extents)) {
            if next < replica.extents.first {
                gaps.push(Extents::new(next, replica.extents.first));
            }
            next = replica.extents.end;
            if replica.from < from {
                replica.past.push(Membership {
                    from: replica.from,
                    join: replica.join,
                });
                replica.from = from;
                replica.join = join;
                replica.incarnation = incarnation;
            }
        }
        if next < extents.end {
            gaps.push(Extents::new(next, extents.end));
        }
        self.0.extend(gaps.into_iter().map(|extents| Replica {
            extents,
            from,
            join,
            incarnation,
            past: SmallVec::new(),
            kept: SmallVec::new(),
        }));
        self.tidy();
    }

    /// `extents` are whole again.
    pub fn settle(&mut self, extents: Extents, incarnation: Incarnation) {
        self.split_at(extents);
        for replica in self.0.iter_mut().filter(|r| overlap(r.extents, extents)) {
            replica.incarnation = incarnation;
        }
        self.tidy();
    }

    /// Whether a replica of `extents` remembers a membership that began before an epoch.
    pub fn has_older_than(&self, extents: Extents, oldest: Epoch) -> bool {
        self.touched(extents).any(|replica| {
            replica.past.iter().any(|past| past.from < oldest) || replica.keeps(oldest)
        })
    }

    /// Whether something of `extents` is kept though it is written over.
    pub fn keep_any(&self, extents: Extents) -> bool {
        self.touched(extents)
            .any(|replica| !replica.kept.is_empty())
    }

    /// Whether something of `extents` is not kept below an epoch yet; or why it cannot be, beside what is needed still.
    pub fn may_keep(
        &self,
        extents: Extents,
        below: Epoch,
        is_needed: impl Fn(Epoch) -> bool,
    ) -> Result<bool, &'static str> {
        let mut lacking = self
            .touched(extents)
            .filter(|replica| !replica.kept.contains(&below))
            .peekable();
        if lacking.peek().is_none() {
            return Ok(false);
        }
        let needed =
            |replica: &Replica| replica.kept.iter().filter(|kept| is_needed(**kept)).count();
        match lacking.any(|replica| needed(replica) >= MOST_KEPT) {
            true => Err("the replica keeps too many older versions already"),
            false => Ok(true),
        }
    }

    /// Of `extents`, what stands below an epoch is kept though it is written over. What was kept below others is kept
    /// on as far as it is needed.
    pub fn keep(&mut self, extents: Extents, below: Epoch, is_needed: impl Fn(Epoch) -> bool) {
        self.split_at(extents);
        for replica in self.0.iter_mut().filter(|r| overlap(r.extents, extents)) {
            replica.kept.retain(|kept| is_needed(*kept));
            if let Err(at) = replica.kept.binary_search(&below) {
                replica.kept.insert(at, below);
            }
        }
        self.tidy();
    }

    /// No entry of `extents` is older than `oldest` by now.
    pub fn collapse(&mut self, extents: Extents, oldest: Epoch) {
        self.split_at(extents);
        for replica in self.0.iter_mut().filter(|r| overlap(r.extents, extents)) {
            replica.past.retain(|past| past.from >= oldest);
            replica.kept.retain(|below| *below > oldest);
        }
        self.tidy();
    }

    /// The parts of `extents` that joined below an epoch.
    pub fn joined_below(&self, extents: Extents, epoch: Epoch) -> Vec<Extents> {
        self.touched(extents)
            .filter(|replica| replica.from < epoch)
            .map(|replica| {
                let (first, end) = (replica.extents.first, replica.extents.end);
                Extents::new(first.max(extents.first), end.min(extents.end))
            })
            .collect()
    }

    /// There is no replica of `extents` any more.
    pub fn forget(&mut self, extents: Extents) {
        self.split_at(extents);
        self.0.retain(|replica| !overlap(replica.extents, extents));
    }

    fn touched(&self, extents: Extents) -> impl Iterator<Item = &Replica> + Clone {
        self.0
            .iter()
            .filter(move |replica| overlap(replica.extents, extents))
    }

    fn split_at(&mut self, extents: Extents) {
        for cut in [extents.first, extents.end] {
            let Some(i) = self
                .0
                .iter()
                .position(|r| r.extents.first < cut && r.extents.contains(cut))
            else {
                continue;
            };
            let mut behind = self.0[i].clone();
            self.0[i].extents.end = cut;
            behind.extents.first = cut;
            self.0.insert(i + 1, behind);
        }
    }

    fn tidy(&mut self) {
        self.0.sort_by_key(|replica| replica.extents.first);
        self.0.dedup_by(|behind, before| {
            let alike = before.extents.end == behind.extents.first
                && (before.from, before.join, before.incarnation)
                    == (behind.from, behind.join, behind.incarnation)
                && before.past == behind.past
                && before.kept == behind.kept;
            if alike {
                before.extents.end = behind.extents.end;
            }
            alike
        });
    }
}

fn overlap(a: Extents, b: Extents) -> bool {
    a.first < b.end && b.first < a.end
}
