//! Every change of a disk record, as a pure function: the catalog applies it, the writer predicts
//! it, the simulator runs it. Only the placement service commits the result, and so issues epochs.

use super::{
    BackendId, DiskRecord, Entry, Epoch, Extents, Generation, History, Life, Owner, State, StoreId,
    Version,
};
use serde::{Deserialize, Serialize};

/// What a backend asks the placement service to change, against the revision that it last saw.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// A closed disk gets a writer (rule A1), perhaps with new write sets for some extents.
    Attach { owner: Owner, sets: Vec<NewSet> },
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

/// New members for some extents.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
    #[error("extents {extents} do not lie on the disk")]
    NoSuchExtents { extents: Extents },
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

    /// Takes `stores` out of every newest entry. Older entries stand: they are sealed and synced.
    fn remove(&mut self, stores: &[StoreId]) -> Result<(), ChangeRefused> {
        for range in &mut self.map {
            let newest = &mut range.history.0[0];
            newest.stores.retain(|store| !stores.contains(store));
            if newest.stores.is_empty() {
                return Err(ChangeRefused::NoStoreLeft {
                    extents: range.extents,
                });
            }
        }
        self.join_alike();
        Ok(())
    }

    /// Gives `set.extents` new members from this record's epoch on.
    fn switch(&mut self, set: &NewSet, never_opened: bool) -> Result<(), ChangeRefused> {
        if set.extents.count() == 0 || set.extents.end > self.extents().end {
            return Err(ChangeRefused::NoSuchExtents {
                extents: set.extents,
            });
        }
        if set.stores.is_empty() {
            return Err(ChangeRefused::NoStoreLeft {
                extents: set.extents,
            });
        }
        self.split_at(set.extents);
        let epoch = self.epoch;
        for range in self
            .map
            .iter_mut()
            .filter(|range| set.extents.contains(range.extents.first))
        {
            let entry = Entry::new(epoch, set.stores.iter().copied());
            if never_opened {
                range.history = History(vec![entry]);
            } else {
                range.history.push(entry, range.extents)?;
            }
        }
        self.join_alike();
        Ok(())
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
    /// Puts `entry` on top. The same members need no new entry, and fewer of them only shrink the
    /// newest: all of them hold what it promises.
    fn push(&mut self, entry: Entry, extents: Extents) -> Result<(), ChangeRefused> {
        let newest = &mut self.0[0];
        if entry.stores.iter().all(|store| newest.has(*store)) {
            newest.stores = entry.stores;
            return Ok(());
        }
        if self.0.len() == History::MAX_ENTRIES {
            return Err(ChangeRefused::HistoryFull { extents });
        }
        self.0.insert(0, entry);
        Ok(())
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
                history: History(vec![Entry::new(epoch, [store(1), store(2)])]),
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
        let bounded: Vec<_> = history
            .bounded()
            .map(|(entry, below)| (entry.from, below))
            .collect();
        assert_eq!(
            bounded,
            [(open.epoch, Epoch::MAX), (disk().epoch, open.epoch)]
        );
    }

    #[test]
    fn before_its_first_epoch_a_disk_has_no_older_entry_to_read() {
        let set = NewSet {
            extents: disk().extents(),
            stores: vec![store(3)],
        };
        let open = attach(&disk(), 1, vec![set]).unwrap();
        assert_eq!(open.map[0].history.0, [Entry::new(open.epoch, [store(3)])]);
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
}
