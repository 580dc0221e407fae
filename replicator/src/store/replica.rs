//! Replica records: for which extents this store is (or was) a member, since when, and whether whole.
//!
//! The records of a disk are ranges of extents in order, without overlap. Without a record the
//! answer to anything about a block is "no replica", never "absent".

use crate::message::ReplicaState;
use crate::words::{Epoch, Extent, Extents, History, Incarnation};
use smallvec::SmallVec;

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
    /// Epochs below which reads of older entries look (rule R2): each join's, but the first one's.
    pub bounds: SmallVec<[Epoch; 1]>,
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
            .any(|replica| replica.from < from && replica.bounds.len() >= History::MAX_ENTRIES)
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
                replica.bounds.push(from);
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
            bounds: SmallVec::new(),
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
                && before.bounds == behind.bounds;
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
