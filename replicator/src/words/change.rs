//! Every change of a disk record, as a pure function: the catalog applies it, the writer predicts
//! it, the simulator runs it. Only the placement service commits the result, and so issues epochs.

use super::{
    BackendId, DiskRecord, Entry, Epoch, Extents, Generation, History, Life, MapRange, Owner,
    State, StoreId, Version,
};
use serde::{Deserialize, Serialize};

/// What a backend asks the placement service to change, against the revision that it last saw.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// A closed disk gets a writer (rule A1), perhaps with new write sets for some extents.
    Attach { owner: Owner, sets: Vec<NewSet> },
    /// The writer of an open disk, having drained and synced it, changes the members of some extents
    /// (rules W8, S4).
    Switch {
        by: (BackendId, Life),
        sets: Vec<NewSet>,
    },
    /// The live entry of `extents` that began at `from` has been filled and synced: it is whole now
    /// (rule F2).
    Complete {
        by: (BackendId, Life),
        extents: Extents,
        from: Epoch,
    },
    /// An open disk gets another writer, which must settle it before it serves anything (rule A3).
    TakeOver { owner: Owner },
    /// The taker has evened out and synced the members; `drop` did not answer or lost their tails
    /// and leave the newest entries (rule A5).
    Settle {
        by: (BackendId, Life),
        drop: Vec<StoreId>,
    },
    /// `stores` missed a write and leave the newest entries, before that write is acknowledged (rule W6).
    Eject {
        by: (BackendId, Life),
        stores: Vec<StoreId>,
    },
    /// The writer has drained and synced (rules A1, S4).
    Close {
        by: (BackendId, Life),
        last: Version,
        successor: Option<BackendId>,
    },
}

/// Who shall be the members of some extents. Those that are stay what they are; others join, and are
/// filled; members that are not named are sealed, and go when nobody needs them any more.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct NewSet {
    pub extents: Extents,
    pub stores: Vec<StoreId>,
}

/// Why a change was not made. Nothing has happened then.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeRefused {
    #[error("the disk is open for {host}: close it there, or take it over on purpose")]
    AlreadyOpen { host: String },
    #[error("the disk is closed: attach it instead of taking it over")]
    AlreadyClosed,
    #[error("the disk belongs to another backend now")]
    NotOwner,
    #[error("extents {extents} would be left without any store")]
    NoStoreLeft { extents: Extents },
    #[error("the history of extents {extents} is full; it shortens as moves complete")]
    HistoryFull { extents: Extents },
    #[error("no live entry of extents {extents} began at epoch {from}")]
    NoSuchEntry { extents: Extents, from: Epoch },
    #[error("extents {extents} do not lie on the disk")]
    NoSuchExtents { extents: Extents },
    /// The catalog's record is perhaps not the newest.
    #[error("{why}")]
    InDoubt { why: String },
}

impl DiskRecord {
    /// The record after `change`, with the next revision, and the next epoch of `generation` where
    /// the change opens one. The result always passes [`DiskRecord::check`].
    pub fn apply(
        &self,
        generation: Generation,
        change: &Change,
    ) -> Result<DiskRecord, ChangeRefused> {
        let mut next = self.clone();
        next.revision = self.revision.next();
        match change {
            Change::Attach { owner, sets } => {
                if let State::Open { owner } = &self.state {
                    return Err(ChangeRefused::AlreadyOpen {
                        host: owner.host.to_string(),
                    });
                }
                next.open(generation, owner);
                next.even_below = next.epoch;
                // Before its first epoch nobody has joined, and there is nothing below to read.
                let never_opened =
                    matches!(&self.state, State::Closed { last, .. } if *last == Version::ZERO);
                for set in sets {
                    next.switch(set, never_opened)?;
                }
            }
            Change::Switch { by, sets } => {
                self.check_owner(by)?;
                next.epoch = self.epoch.next(generation);
                next.even_below = next.epoch;
                for set in sets {
                    next.switch(set, false)?;
                }
            }
            Change::Complete { by, extents, from } => {
                self.check_owner(by)?;
                next.complete(*extents, *from)?;
            }
            Change::TakeOver { owner } => {
                if self.owner().is_none() {
                    return Err(ChangeRefused::AlreadyClosed);
                }
                next.open(generation, owner);
            }
            Change::Settle { by, drop } => {
                self.check_owner(by)?;
                next.remove(drop)?;
                next.even_below = next.epoch;
            }
            Change::Eject { by, stores } => {
                self.check_owner(by)?;
                next.epoch = self.epoch.next(generation);
                next.remove(stores)?;
            }
            Change::Close {
                by,
                last,
                successor,
            } => {
                self.check_owner(by)?;
                next.state = State::Closed {
                    last: *last,
                    successor: *successor,
                };
            }
        }
        assert_eq!(next.check(), Ok(()), "a change keeps a true record true");
        assert!(
            next.epoch >= self.epoch,
            "I4 for the catalog: an epoch never goes back"
        );
        Ok(next)
    }

    fn open(&mut self, generation: Generation, owner: &Owner) {
        self.epoch = self.epoch.next(generation);
        self.state = State::Open {
            owner: owner.clone(),
        };
    }

    fn check_owner(&self, (backend, life): &(BackendId, Life)) -> Result<(), ChangeRefused> {
        match self.owner() {
            Some(owner) if owner.backend == *backend && owner.life == *life => Ok(()),
            _ => Err(ChangeRefused::NotOwner),
        }
    }

    /// Whether every extent could do without these members.
    pub fn may_remove(&self, stores: &[StoreId]) -> bool {
        self.clone().remove(stores).is_ok()
    }

    /// Takes `stores` out of every live entry. What they held when all was last even is synced and
    /// stands, sealed, as long as somebody may need it.
    fn remove(&mut self, stores: &[StoreId]) -> Result<(), ChangeRefused> {
        let even_below = self.even_below;
        for range in &mut self.map {
            range.history.remove(stores, even_below);
            if range.history.live().next().is_none() || !range.history.covers() {
                return Err(ChangeRefused::NoStoreLeft {
                    extents: range.extents,
                });
            }
        }
        self.join_alike();
        Ok(())
    }

    fn complete(&mut self, extents: Extents, from: Epoch) -> Result<(), ChangeRefused> {
        self.check_extents(extents)?;
        self.split_at(extents);
        for range in self.ranges_of(extents) {
            if !range.history.complete(from) {
                let extents = range.extents;
                return Err(ChangeRefused::NoSuchEntry { extents, from });
            }
        }
        self.join_alike();
        Ok(())
    }

    /// Gives `set.extents` new members from this record's epoch on.
    fn switch(&mut self, set: &NewSet, never_opened: bool) -> Result<(), ChangeRefused> {
        self.check_extents(set.extents)?;
        if set.stores.is_empty() {
            return Err(ChangeRefused::NoStoreLeft {
                extents: set.extents,
            });
        }
        self.split_at(set.extents);
        let epoch = self.epoch;
        for range in self.ranges_of(set.extents) {
            if never_opened {
                let entry = Entry::whole(epoch, set.stores.iter().copied());
                range.history = History(vec![entry]);
                continue;
            }
            range.history.switch(epoch, &set.stores);
            if range.history.0.len() > History::MAX_ENTRIES {
                return Err(ChangeRefused::HistoryFull {
                    extents: range.extents,
                });
            }
        }
        self.join_alike();
        Ok(())
    }

    fn check_extents(&self, extents: Extents) -> Result<(), ChangeRefused> {
        if extents.count() == 0 || extents.end > self.extents().end {
            return Err(ChangeRefused::NoSuchExtents { extents });
        }
        Ok(())
    }

    /// The ranges of `extents`, at whose ends the map was split.
    fn ranges_of(&mut self, extents: Extents) -> impl Iterator<Item = &mut MapRange> {
        self.map
            .iter_mut()
            .filter(move |range| extents.contains(range.extents.first))
    }

    /// Splits ranges so that `extents` begins and ends at a boundary.
    fn split_at(&mut self, extents: Extents) {
        for cut in [extents.first, extents.end] {
            let Some(i) = self
                .map
                .iter()
                .position(|r| r.extents.first < cut && r.extents.contains(cut))
            else {
                continue;
            };
            let mut behind = self.map[i].clone();
            self.map[i].extents.end = cut;
            behind.extents.first = cut;
            self.map.insert(i + 1, behind);
        }
    }

    /// Merges neighbours with equal histories, so that the map stays as small as it can be.
    fn join_alike(&mut self) {
        self.map.dedup_by(|behind, before| {
            let alike = behind.history == before.history;
            if alike {
                before.extents.end = behind.extents.end;
            }
            alike
        });
    }
}

impl History {
    /// From `epoch` on `stores` are the write set.
    fn switch(&mut self, epoch: Epoch, stores: &[StoreId]) {
        let joining: Vec<StoreId> = stores
            .iter()
            .copied()
            .filter(|store| self.member(*store).is_none())
            .collect();
        let mut entries = Vec::with_capacity(self.0.len() + 2);
        if !joining.is_empty() {
            entries.push(Entry::new(epoch, joining));
        }
        for entry in self.0.drain(..) {
            let stays = |store: &StoreId| !entry.is_live() || stores.contains(store);
            entries.extend(entry.split(stays, epoch));
        }
        self.0 = entries;
        self.tidy();
    }

    /// `stores` are members no longer; what they held below `even_below` they still do.
    fn remove(&mut self, stores: &[StoreId], even_below: Epoch) {
        let mut entries = Vec::with_capacity(self.0.len() + 1);
        for entry in self.0.drain(..) {
            let stays = |store: &StoreId| !entry.is_live() || !stores.contains(store);
            entries.extend(entry.split(stays, even_below));
        }
        self.0 = entries;
        self.tidy();
        // An ejection is not a voluntary move: it has to fit, and what it would keep is the newest
        // of many. The history that is left covers all, or the ejection is refused.
        while self.0.len() > History::MAX_ENTRIES {
            let spare = (0..self.0.len()).rev().find(|i| {
                let mut without = self.clone();
                let entry = without.0.remove(*i);
                !entry.is_live() && without.covers()
            });
            match spare {
                Some(i) => drop(self.0.remove(i)),
                None => return,
            }
            self.drop_groundless();
        }
    }

    /// The live entry that began at `from` is whole. False: there is none.
    fn complete(&mut self, from: Epoch) -> bool {
        let Some(entry) = self
            .0
            .iter_mut()
            .find(|entry| entry.is_live() && entry.from == from)
        else {
            return false;
        };
        entry.whole = true;
        // Who left before it was whole holds nothing that those who stayed do not.
        self.0
            .retain(|entry| entry.from != from || entry.is_live() || entry.whole);
        self.tidy();
        true
    }

    /// In order, and without what nobody can need.
    fn tidy(&mut self) {
        if self.is_whole() {
            self.0.retain(Entry::is_live);
        }
        self.0
            .sort_by_key(|entry| std::cmp::Reverse((entry.from, entry.is_live(), entry.until)));
        self.0.dedup_by(|behind, before| {
            let alike = (behind.from, behind.until) == (before.from, before.until);
            if alike {
                let stores = before.stores.iter().chain(&behind.stores).copied();
                before.stores = Entry::new(before.from, stores).stores;
            }
            alike
        });
        self.drop_groundless();
    }

    /// What a sealed entry lacks is found in older ones, down to a whole one; or it is a way to nowhere, and goes.
    fn drop_groundless(&mut self) {
        let mut grounded: Vec<Entry> = Vec::with_capacity(self.0.len());
        for entry in self.0.drain(..).rev() {
            let older = |older: &Entry| older.from < entry.from && older.reaches(entry.from);
            if entry.is_live() || entry.whole || grounded.iter().any(older) {
                grounded.push(entry);
            }
        }
        grounded.reverse();
        self.0 = grounded;
    }
}

impl Entry {
    /// Those of its stores that stay as they are, and the others, sealed at `until`.
    fn split(&self, stays: impl Fn(&StoreId) -> bool, until: Epoch) -> impl Iterator<Item = Entry> {
        let (stay, leave): (Vec<StoreId>, Vec<StoreId>) =
            self.stores.iter().copied().partition(|store| stays(store));
        let with = |stores: Vec<StoreId>| Entry {
            stores,
            ..self.clone()
        };
        let stay = Some(with(stay)).filter(|entry| !entry.stores.is_empty());
        let leave = Some(with(leave).sealed(until))
            .filter(|entry| !entry.stores.is_empty() && until > entry.from);
        stay.into_iter().chain(leave)
    }
}

/// Whether `record` shows that a change of unknown outcome by `owner` went through: only an epoch's
/// owner changes an open disk, so a later epoch of one's own is one's own change.
pub fn opened_by(record: &DiskRecord, backend: BackendId, life: Life, later_than: Epoch) -> bool {
    let mine = record
        .owner()
        .is_some_and(|owner| owner.backend == backend && owner.life == life);
    mine && record.epoch > later_than
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{DiskId, DiskName, Extent, ExtentSize, HostName, MapRange, Revision, Seq};

    const G: Generation = Generation(0);

    fn store(n: u128) -> StoreId {
        StoreId::from_u128(n)
    }

    fn owner(n: u64) -> Owner {
        Owner {
            backend: BackendId::from_u128(n.into()),
            life: Life(n),
            host: HostName::new("tokyo-1").unwrap(),
        }
    }

    fn by(n: u64) -> (BackendId, Life) {
        (owner(n).backend, owner(n).life)
    }

    fn disk() -> DiskRecord {
        let epoch = Epoch::first(G);
        let extents = Extents::new(Extent(0), Extent(8));
        DiskRecord {
            id: DiskId::from_u128(1),
            name: DiskName::new("web1").unwrap(),
            bytes: 8 * ExtentSize::DEFAULT.bytes(),
            extent_size: ExtentSize::DEFAULT,
            copies: 2,
            revision: Revision(0),
            epoch,
            even_below: epoch,
            state: State::Closed {
                last: Version::ZERO,
                successor: None,
            },
            map: vec![MapRange {
                extents,
                history: History(vec![Entry::whole(epoch, [store(1), store(2)])]),
            }],
        }
    }

    /// The same, after it was open once.
    fn used() -> DiskRecord {
        let mut record = disk();
        record.state = State::Closed {
            last: Version::new(record.epoch, Seq(1)),
            successor: None,
        };
        record
    }

    fn attach(record: &DiskRecord, n: u64, sets: Vec<NewSet>) -> Result<DiskRecord, ChangeRefused> {
        record.apply(
            G,
            &Change::Attach {
                owner: owner(n),
                sets,
            },
        )
    }

    #[test]
    fn one_attach_wins_and_the_loser_learns_who_did() {
        let open = attach(&disk(), 1, vec![]).unwrap();
        assert_eq!(open.epoch, disk().epoch.next(G));
        assert_eq!(open.map, disk().map, "the same members need no new entry");
        let error = attach(&open, 2, vec![]).unwrap_err();
        assert_eq!(
            error,
            ChangeRefused::AlreadyOpen {
                host: "tokyo-1".into()
            }
        );
    }

    #[test]
    fn a_superseded_owner_changes_nothing() {
        let open = attach(&disk(), 1, vec![]).unwrap();
        let taken = open
            .apply(G, &Change::TakeOver { owner: owner(2) })
            .unwrap();
        for change in [
            Change::Eject {
                by: by(1),
                stores: vec![store(1)],
            },
            Change::Close {
                by: by(1),
                last: Version::ZERO,
                successor: None,
            },
            Change::Settle {
                by: by(1),
                drop: vec![],
            },
        ] {
            assert_eq!(taken.apply(G, &change), Err(ChangeRefused::NotOwner));
        }
    }

    #[test]
    fn the_last_member_is_never_ejected() {
        let open = attach(&disk(), 1, vec![]).unwrap();
        let one = open
            .apply(
                G,
                &Change::Eject {
                    by: by(1),
                    stores: vec![store(2)],
                },
            )
            .unwrap();
        assert_eq!(one.members(), [store(1)]);
        assert!(one.epoch > open.epoch);
        let none = one.apply(
            G,
            &Change::Eject {
                by: by(1),
                stores: vec![store(1)],
            },
        );
        assert!(matches!(none, Err(ChangeRefused::NoStoreLeft { .. })));
    }

    #[test]
    fn switching_some_extents_splits_the_map_and_bounds_the_older_entry() {
        let far = Extents::new(Extent(2), Extent(4));
        let open = attach(
            &used(),
            1,
            vec![NewSet {
                extents: far,
                stores: vec![store(3)],
            }],
        )
        .unwrap();
        assert_eq!(open.map.len(), 3);
        let history = &open
            .range_of(open.extent_size.blocks_of(Extent(3)).first)
            .unwrap()
            .history;
        let from = disk().epoch;
        assert_eq!(
            history.0,
            [
                Entry::new(open.epoch, [store(3)]),
                Entry::whole(from, [store(1), store(2)]).sealed(open.epoch)
            ]
        );
        assert_eq!(history.older(open.epoch), Some(from));
        assert_eq!(history.older(from), None, "it is whole");
        assert_eq!(history.copies(), 1, "what is written from now on");
    }

    #[test]
    fn before_its_first_epoch_a_disk_has_no_older_entry_to_read() {
        let set = NewSet {
            extents: disk().extents(),
            stores: vec![store(3)],
        };
        let open = attach(&disk(), 1, vec![set]).unwrap();
        assert_eq!(
            open.map[0].history.0,
            [Entry::whole(open.epoch, [store(3)])]
        );
    }

    #[test]
    fn a_full_history_refuses_a_voluntary_switch_only() {
        let mut record = used();
        let all = record.extents();
        for n in 0..7 {
            let set = NewSet {
                extents: all,
                stores: vec![store(10 + n)],
            };
            record = attach(&record, 1, vec![set]).unwrap();
            record = record
                .apply(
                    G,
                    &Change::Close {
                        by: by(1),
                        last: Version::new(record.epoch, Seq(1)),
                        successor: None,
                    },
                )
                .unwrap();
        }
        let set = NewSet {
            extents: all,
            stores: vec![store(99)],
        };
        assert_eq!(
            attach(&record, 1, vec![set]),
            Err(ChangeRefused::HistoryFull { extents: all })
        );
        assert!(attach(&record, 1, vec![]).is_ok());
    }

    #[test]
    fn a_full_history_forgets_no_ground_of_what_it_keeps() {
        let epoch = Epoch::from_u64;
        let sealed = |from, until, whole, n| Entry {
            from: epoch(from),
            until: Some(epoch(until)),
            whole,
            stores: vec![store(n)],
        };
        let mut history = History(vec![
            Entry::new(epoch(12), vec![store(10), store(13)]),
            sealed(9, 10, false, 13),
            sealed(8, 12, false, 14),
            sealed(8, 9, false, 10),
            sealed(7, 8, true, 11),
            sealed(5, 8, false, 13),
            sealed(4, 5, false, 11),
            sealed(3, 4, true, 13),
        ]);
        history.remove(&[store(10)], epoch(13));
        assert!(history.covers() && history.0.len() <= History::MAX_ENTRIES);
        // One that is whole went for want of room, and with it those that had led to it only.
        let left: Vec<(Epoch, Option<Epoch>)> =
            history.0.iter().map(|e| (e.from, e.until)).collect();
        let kept = [
            (12, None),
            (12, Some(13)),
            (9, Some(10)),
            (8, Some(12)),
            (8, Some(9)),
            (7, Some(8)),
        ];
        let kept = kept.map(|(from, until)| (epoch(from), until.map(epoch)));
        assert_eq!(left, kept);
    }

    fn switch(record: &DiskRecord, stores: &[u128]) -> DiskRecord {
        let sets = vec![NewSet {
            extents: record.extents(),
            stores: stores.iter().map(|n| store(*n)).collect(),
        }];
        record
            .apply(G, &Change::Switch { by: by(1), sets })
            .unwrap()
    }

    fn complete(record: &DiskRecord, from: Epoch) -> DiskRecord {
        let extents = record.extents();
        let by = by(1);
        record
            .apply(G, &Change::Complete { by, extents, from })
            .unwrap()
    }

    #[test]
    fn who_is_added_joins_beside_the_others_and_is_whole_once_filled() {
        let open = attach(&used(), 1, vec![]).unwrap();
        let more = switch(&open, &[1, 2, 3]);
        assert_eq!(
            more.map[0].history.0,
            [
                Entry::new(more.epoch, [store(3)]),
                Entry::whole(disk().epoch, [store(1), store(2)])
            ]
        );
        assert_eq!(more.members(), [store(1), store(2), store(3)]);
        assert_eq!(more.map[0].history.copies(), 2);
        let whole = complete(&more, more.epoch);
        assert_eq!(whole.epoch, more.epoch, "filling opens no epoch");
        assert_eq!(whole.map[0].history.copies(), 3);
        let fewer = switch(&whole, &[3]);
        assert_eq!(
            fewer.map[0].history.0,
            [Entry::whole(more.epoch, [store(3)])]
        );
    }

    #[test]
    fn who_leaves_before_the_others_are_filled_stays_to_be_read() {
        let open = attach(&used(), 1, vec![]).unwrap();
        let moved = switch(&open, &[2, 3]);
        let history = &moved.map[0].history;
        assert_eq!(moved.members(), [store(2), store(3)]);
        assert_eq!(history.0.len(), 3);
        assert_eq!(
            history.copies(),
            2,
            "old blocks on 1 and 2, new ones on 2 and 3"
        );
        let done = complete(&moved, moved.epoch);
        assert_eq!(done.stores(), [store(2), store(3)]);
    }

    #[test]
    fn a_bounce_reads_through_where_it_has_been() {
        let open = attach(&used(), 1, vec![]).unwrap();
        let away = switch(&open, &[3]);
        let back = switch(&away, &[1, 2]);
        let history = &back.map[0].history;
        assert_eq!(history.older(back.epoch), Some(away.epoch));
        assert_eq!(history.older(away.epoch), Some(disk().epoch));
        let done = complete(&back, back.epoch);
        assert_eq!(
            done.map[0].history.0,
            [Entry::whole(back.epoch, [store(1), store(2)])]
        );
    }

    #[test]
    fn who_is_ejected_keeps_what_it_synced_while_somebody_needs_it() {
        let open = attach(&used(), 1, vec![]).unwrap();
        let more = switch(&open, &[1, 3]);
        let eject = |record: &DiskRecord, n| {
            let stores = vec![store(n)];
            record.apply(G, &Change::Eject { by: by(1), stores })
        };
        let without = eject(&more, 1).unwrap();
        assert_eq!(without.members(), [store(3)]);
        assert_eq!(without.map[0].history.older(more.epoch), Some(disk().epoch));
        assert!(matches!(
            eject(&without, 3),
            Err(ChangeRefused::NoStoreLeft { .. })
        ));
        // Who is whole needs nobody, and nobody needs who is ejected beside it.
        let other = eject(&more, 3).unwrap();
        assert_eq!(
            other.map[0].history.0,
            [Entry::whole(disk().epoch, [store(1)])]
        );
    }

    #[test]
    fn only_a_live_entry_becomes_whole() {
        let open = attach(&used(), 1, vec![]).unwrap();
        let extents = open.extents();
        let (by, from) = (by(1), open.epoch);
        assert_eq!(
            open.apply(G, &Change::Complete { by, extents, from }),
            Err(ChangeRefused::NoSuchEntry { extents, from })
        );
    }
}
