//! The records of the disks, as their stores know them: what to do when the catalog has lost them, or has
//! older ones.
//!
//! Each store keeps, with the epoch that it was shown, the record that the writer had. Of all that is told
//! of a disk the one with the highest (epoch, revision) counts. It is the last one if every store has answered:
//! whoever opened a later epoch has shown it to its members before anything was acknowledged in it. Those that
//! the record names are not enough: members that were replaced before the disk was ever written, or that were
//! out of reach when they were, have heard of nothing. Where some are silent, one of them may know better: then
//! disks are left as they are, unless the operator says that those stores are gone for good.

use super::pulse::Moment;
use super::retire::{put_retired, still_retired};
use super::wish::put_attachments;
use super::{Kind, MAX_TRIES, Service, ServiceError};
use crate::api::{Place, Rebuild, RebuildDisk, RebuildVerdict, Rebuilt, Wanted};
use crate::catalog::{CatalogError, Committed, Transaction};
use crate::model::{
    Attachment, Attachments, Dropping, Kept, StoreRecord, json, key, list, load, load_disk,
    unchanged,
};
use crate::node_protocol::{KeptDisk, Records, Response};
use replicator::net::identity::Identity;
use replicator::words::{
    BackendId, DiskId, DiskRecord, Epoch, Generation, HostName, Life, Owner, Revision, State,
    StoreId,
};
use std::collections::{BTreeMap, BTreeSet};

/// What stores have told since they were asked last.
#[derive(Default)]
pub(super) struct Gathering {
    /// Zero: nobody was asked yet.
    pub round: u64,
    told: BTreeMap<StoreId, Told>,
}

#[derive(Default)]
struct Told {
    all: bool,
    disks: BTreeMap<DiskId, KeptDisk>,
}

/// What one store says of a disk.
struct Word<'a> {
    store: StoreId,
    epoch: Epoch,
    record: Option<&'a DiskRecord>,
}

/// What is to become of a disk's record.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Judgement {
    verdict: RebuildVerdict,
    record: DiskRecord,
    /// Those that told it.
    from: Vec<StoreId>,
    /// The latest epoch that any store was shown.
    shown: Option<Epoch>,
    why: Option<String>,
}

impl Service {
    /// Asks all stores for the records that they keep. The answers come with their nodes' next heartbeats.
    pub fn gather_records(&self) -> u64 {
        let mut gathering = self.gathering();
        // Rounds of a service that led before are not taken for ours.
        gathering.round = (gathering.round + 1).max(self.started.0);
        gathering.told.clear();
        let round = gathering.round;
        drop(gathering);
        self.changed();
        round
    }

    /// Whether every store that is up has told all.
    pub fn is_gathered(&self, round: u64, now: Moment) -> Result<bool, ServiceError> {
        let up = self.stores(now)?;
        let gathering = self.gathering();
        let told = |id: &StoreId| gathering.told.get(id).is_some_and(|told| told.all);
        let mut up = up.iter().filter(|s| s.liveness == crate::api::Liveness::Up);
        Ok(gathering.round == round && up.all(|store| told(&store.id)))
    }

    pub(super) fn take_records(
        &self,
        who: &Identity,
        records: Records,
    ) -> Result<Response, CatalogError> {
        let store = load::<StoreRecord>(&*self.catalog, &key::store(records.store))?;
        let own = store.is_some_and(|store| store.value.host == who.host);
        let mut gathering = self.gathering();
        if own && gathering.round == records.round {
            let told = gathering.told.entry(records.store).or_default();
            told.all |= records.last;
            for kept in records.disks {
                told.disks.insert(kept.disk, kept);
            }
        }
        drop(gathering);
        self.changed();
        Ok(Response::Noted)
    }

    /// What the records would be, from what stores have told; and unless it is only a plan, makes them so.
    pub fn rebuild(&self, request: &Rebuild, now: Moment) -> Result<Rebuilt, ServiceError> {
        let (judged, highest, answered) = self.judge_all(&request.accept)?;
        let silent = self.stores(now)?;
        let silent = silent.iter().filter(|store| !answered.contains(&store.id));
        let silent: Vec<StoreId> = silent.map(|store| store.id).collect();
        let refused = judged.iter().any(|j| j.verdict == RebuildVerdict::Refused);
        let mut generation = self.generation();
        if !request.plan {
            generation = self.next_generation(highest)?;
            for judgement in &judged {
                let takes = matches!(
                    judgement.verdict,
                    RebuildVerdict::Found | RebuildVerdict::Newer
                );
                if takes {
                    self.take_record(&judgement.record)?;
                }
            }
            if !refused {
                let verified = Transaction::new().delete(key::UNVERIFIED);
                let _ = self.catalog.commit(&verified)?;
                let mut shown = self.shown_epochs();
                shown.unverified = None;
                for judgement in &judged {
                    shown.agreed(&judgement.record, &answered);
                }
            }
            self.look_behind_all()?;
            self.course().places_changed();
            self.changed();
        }
        Ok(Rebuilt {
            done: !request.plan,
            complete: !refused,
            generation,
            answered: answered.into_iter().collect(),
            silent,
            disks: judged.into_iter().map(Judgement::shown).collect(),
        })
    }

    fn judge_all(
        &self,
        accept: &[String],
    ) -> Result<(Vec<Judgement>, Generation, BTreeSet<StoreId>), ServiceError> {
        let mut known: BTreeMap<DiskId, DiskRecord> = BTreeMap::new();
        for kept in list::<DiskRecord>(&*self.catalog, key::DISKS)? {
            known.insert(kept.value.id, kept.into_value());
        }
        let gone = list::<Dropping>(&*self.catalog, key::DROPPING)?;
        let gone: BTreeSet<DiskId> = gone.into_iter().map(|kept| kept.value.disk).collect();
        let gathering = self.gathering();
        if gathering.told.is_empty() {
            return Err(ServiceError::new(
                Kind::NotYet,
                "nothing was rebuilt",
                "no store has answered",
                "start the nodes, see `ukai status`, and try again",
            ));
        }
        let all = gathering.told.iter().filter(|(_, told)| told.all);
        let answered: BTreeSet<StoreId> = all.map(|(store, _)| *store).collect();
        let mut words: BTreeMap<DiskId, Vec<Word>> = BTreeMap::new();
        let mut highest = Generation(0);
        for (store, told) in &gathering.told {
            for kept in told.disks.values() {
                highest = highest.max(kept.epoch.generation());
                words.entry(kept.disk).or_default().push(Word {
                    store: *store,
                    epoch: kept.epoch,
                    record: kept.record.as_deref().filter(|r| r.id == kept.disk),
                });
            }
        }
        let mut judged = Vec::new();
        let disks: BTreeSet<DiskId> = known.keys().chain(words.keys()).copied().collect();
        for disk in disks.difference(&gone) {
            let said = words.get(disk).map_or(&[][..], Vec::as_slice);
            judged.extend(judge(known.get(disk), said, &answered));
        }
        let silent = self.stores_but(|store| !answered.contains(store))?;
        if !silent.is_empty() {
            let silent: Vec<String> = silent.iter().map(ToString::to_string).collect();
            let why = format!(
                "stores have not answered, and may know a later record: {}; declare those lost that are gone for good",
                silent.join(", ")
            );
            let sure = |judgement: &&mut Judgement| judgement.verdict != RebuildVerdict::Refused;
            for judgement in judged.iter_mut().filter(sure) {
                judgement.verdict = RebuildVerdict::Refused;
                judgement.why = Some(why.clone());
            }
        }
        for judgement in &mut judged {
            // Declared lost since, and nobody else may know.
            if let Some((store, shown)) = self.knew_better(&judgement.record, &answered) {
                judgement.shown = judgement.shown.max(Some(shown));
                if judgement.verdict != RebuildVerdict::Refused {
                    judgement.verdict = RebuildVerdict::Refused;
                    judgement.why = Some(format!(
                        "store {store}, which has not answered now, has told of a later record"
                    ));
                }
            }
            let name = judgement.record.name.as_str();
            if judgement.verdict == RebuildVerdict::Refused && accept.iter().any(|a| a == name) {
                judgement.accept(known.get(&judgement.record.id));
            }
        }
        refuse_names_twice(&mut judged);
        Ok((judged, highest, answered))
    }

    /// From now on epochs are later than all that any store was shown.
    fn next_generation(&self, highest: Generation) -> Result<Generation, ServiceError> {
        for _ in 0..MAX_TRIES {
            let kept = load::<Generation>(&*self.catalog, key::GENERATION)?;
            let now = kept.as_ref().map_or(Generation(0), |kept| *kept.value);
            let next = Generation(now.max(highest).0.checked_add(1).ok_or_else(|| {
                ServiceError::new(
                    Kind::Impossible,
                    "nothing was rebuilt",
                    "there is no later generation of the catalog",
                    "format the stores anew, and import the disks",
                )
            })?);
            let write = Transaction::new()
                .expect(key::GENERATION, unchanged(&kept))
                .put(key::GENERATION, json(&next));
            if self.catalog.commit(&write)? == Committed::Yes {
                self.begin_generation(next);
                tracing::warn!(generation = next.0, "the catalog begins a new generation");
                return Ok(next);
            }
        }
        Err(ServiceError::contended("the generation"))
    }

    /// Keeps `record` as the disk's; what serves it, if it is said to run, keeps its attachment.
    fn take_record(&self, record: &DiskRecord) -> Result<(), ServiceError> {
        let id = record.id;
        for _ in 0..MAX_TRIES {
            let before = load_disk(&*self.catalog, id)?;
            if let Some(before) = &before
                && (before.value.epoch, before.value.revision) >= (record.epoch, record.revision)
            {
                return Ok(());
            }
            let name = load::<DiskId>(&*self.catalog, &key::name(&record.name))?;
            if name.as_ref().is_some_and(|name| *name.value != id) {
                return Err(ServiceError::contended(&format!("disk {}", record.name)));
            }
            let kept = self.attachments(id)?;
            let attached = kept.clone().map(Kept::into_value).unwrap_or_default();
            let after = self.serving(record);
            // Whoever goes by the record that stands here must not take this one for it.
            let stands = before.as_ref().map(|before| before.value.revision);
            let stands = stands.filter(|stands| *stands >= record.revision);
            let rebuilt = DiskRecord {
                revision: stands.map_or(record.revision, Revision::next),
                ..record.clone()
            };
            // What was superfluous as of the backup may be in use since.
            let retired = self.retired_copies(id)?;
            let known = retired.as_ref().map_or(&[][..], |kept| &kept.value);
            let write = Transaction::new()
                .expect(key::retired(id), unchanged(&retired))
                .expect(key::disk(id), unchanged(&before))
                .expect(key::name(&record.name), unchanged(&name))
                .expect(key::attachment(id), unchanged(&kept))
                .put(key::disk(id), json(&rebuilt))
                .put(key::name(&record.name), json(&id));
            let write = put_retired(write, id, &still_retired(record, known));
            let write = match attached == after {
                true => write,
                false => put_attachments(write, id, &attached, &after),
            };
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::warn!(disk = %record.name, epoch = %record.epoch, revision = record.revision.0, "the record is rebuilt from the stores");
                self.touch_after(id, &attached);
                return Ok(());
            }
        }
        Err(ServiceError::contended(&format!("disk {}", record.name)))
    }

    /// The record's owner, where its node says that it runs.
    fn serving(&self, record: &DiskRecord) -> Attachments {
        let owner = record.owner().filter(|owner| {
            let pulse = self.pulses.of(&owner.host);
            let mut backends = pulse.iter().flat_map(|pulse| &pulse.backends);
            backends.any(|report| report.backend == owner.backend)
        });
        let attachment = |owner: &replicator::words::Owner| Attachment {
            disk: record.id,
            name: record.name.clone(),
            backend: owner.backend,
            place: Place::Node(owner.host.clone()),
            wanted: Wanted::Attached,
            take_over: false,
        };
        Attachments(owner.map(attachment).into_iter().collect())
    }

    pub(super) fn gathering(&self) -> std::sync::MutexGuard<'_, Gathering> {
        // Each change is one insertion, or a clearing.
        let locked = self.gathering.lock();
        locked.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What the record of a disk is, from the catalog's and what stores say. None: nobody has a record, so there
/// was never anything in it.
fn judge(
    known: Option<&DiskRecord>,
    said: &[Word<'_>],
    answered: &BTreeSet<StoreId>,
) -> Option<Judgement> {
    let at = |record: &DiskRecord| (record.epoch, record.revision);
    let told = said.iter().filter_map(|word| word.record);
    let latest = told.max_by_key(|record| at(record));
    let (record, verdict) = match (known, latest) {
        (None, None) => return None,
        (None, Some(latest)) => (latest, RebuildVerdict::Found),
        (Some(known), Some(latest)) if at(latest) > at(known) => (latest, RebuildVerdict::Newer),
        (Some(known), _) => (known, RebuildVerdict::AsItIs),
    };
    let same = said.iter().filter(|word| word.record == Some(record));
    let judgement = Judgement {
        verdict,
        from: same.map(|word| word.store).collect(),
        record: record.clone(),
        shown: said.iter().map(|word| word.epoch).max(),
        why: None,
    };
    let refuse = |why: String| {
        Some(Judgement {
            verdict: RebuildVerdict::Refused,
            why: Some(why),
            ..judgement.clone()
        })
    };
    let mut told = said.iter().filter_map(|word| word.record);
    if told.any(|other| at(other) == at(record) && other != record) {
        return refuse("stores keep different records of the same epoch and revision".into());
    }
    if let Some(word) = said.iter().find(|word| word.epoch > record.epoch) {
        return refuse(format!(
            "store {} was shown epoch {}, but nobody keeps its record",
            word.store, word.epoch
        ));
    }
    let silent = record.stores();
    let silent = silent.iter().filter(|store| !answered.contains(store));
    let silent: Vec<String> = silent.map(ToString::to_string).collect();
    if !silent.is_empty() {
        return refuse(format!(
            "the record names stores that have not answered, and may know a later one: {}",
            silent.join(", ")
        ));
    }
    let holds = |store: &StoreId| said.iter().any(|word| word.store == *store);
    // Before its first epoch no store was shown anything.
    let opened = !said.is_empty();
    let empty: Vec<StoreId> = record.stores().into_iter().filter(|s| !holds(s)).collect();
    if opened && verdict != RebuildVerdict::AsItIs && !empty.is_empty() {
        return refuse(format!(
            "the record names stores that know nothing of the disk: {empty:?}"
        ));
    }
    Some(judgement)
}

impl Judgement {
    /// The operator has said that whoever could know better is gone. Where stores were shown a later epoch, the record
    /// counts as that epoch's: else it would stay in doubt. Who opened that one may have written in it, to some members and
    /// not to others; so the disk is open for somebody, and the take-over that this asks for makes them even (A3).
    fn accept(&mut self, known: Option<&DiskRecord>) {
        if let Some(shown) = self.shown.filter(|shown| *shown > self.record.epoch) {
            self.record.epoch = shown;
            self.record.revision = self.record.revision.next();
            if let State::Closed { .. } = self.record.state {
                self.record.state = State::Open { owner: unknown() };
            }
        }
        self.verdict = match known {
            None => RebuildVerdict::Found,
            Some(known) if *known == self.record => RebuildVerdict::AsItIs,
            Some(_) => RebuildVerdict::Newer,
        };
    }

    fn shown(self) -> RebuildDisk {
        RebuildDisk {
            id: self.record.id,
            bytes: self.record.bytes,
            epoch: self.record.epoch,
            revision: self.record.revision,
            open_for: self.record.owner().map(|owner| owner.host.clone()),
            name: self.record.name,
            verdict: self.verdict,
            from: self.from,
            why: self.why,
        }
    }
}

/// Whoever had a disk open in an epoch that only stores know of.
fn unknown() -> Owner {
    Owner {
        backend: BackendId::from_u128(0),
        life: Life(0),
        host: HostName::new("unknown").expect("a name"),
    }
}

/// A disk was deleted, another one took its name, and a store that was away keeps the record of the first.
fn refuse_names_twice(judged: &mut [Judgement]) {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for judgement in judged.iter() {
        *names.entry(judgement.record.name.to_string()).or_default() += 1;
    }
    for judgement in judged {
        let twice = names[judgement.record.name.as_str()] > 1;
        if twice && judgement.verdict == RebuildVerdict::Found {
            judgement.verdict = RebuildVerdict::Refused;
            judgement.why =
                Some("another disk has the same name; this one may have been deleted".into());
        }
    }
}

#[cfg(test)]
mod tests;
