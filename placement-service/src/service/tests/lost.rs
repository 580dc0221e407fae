//! The catalog is an older copy of itself, or gone: what the stores were shown counts.

use super::*;
use crate::api::{MoveDisk, PrepareDisk, Rebuild, RebuildVerdict};
use crate::backup;
use crate::node_protocol::{DiskShown, KeptDisk, Records};
use replicator::words::Generation;

/// A store that was shown what the record says.
fn shown(number: u128, record: &DiskRecord) -> StoreReport {
    StoreReport {
        shown: vec![DiskShown {
            disk: record.id,
            epoch: record.epoch,
            revision: Some(record.revision),
        }],
        ..store(number)
    }
}

fn beat_as(play: &Play, number: u128, record: &DiskRecord, runs: Vec<BackendReport>) -> Desired {
    let beat = Heartbeat {
        backends: runs,
        ..heartbeat(vec![shown(number, record)])
    };
    play.beat(&format!("t{number}"), beat)
}

fn runs(disk: DiskId, backend: BackendId) -> Vec<BackendReport> {
    vec![BackendReport {
        disk,
        backend,
        state: ready(),
        stall: None,
        hindrance: None,
        epoch: None,
        unreachable: vec![],
        verdict: None,
        progress: None,
    }]
}

/// Every store tells what it keeps.
fn tell_all(play: &Play, record: &DiskRecord) {
    let round = play.service.gather_records();
    for number in 1..=3 {
        let records = Records {
            round,
            store: store_id(number),
            last: true,
            disks: vec![KeptDisk {
                disk: record.id,
                epoch: record.epoch,
                record: Some(Box::new(record.clone())),
            }],
        };
        let told = play.service.handle(
            &node(&format!("t{number}")),
            FROM,
            Request::Records(records),
            play.now,
        );
        assert_eq!(told, Response::Noted);
    }
    assert!(play.service.is_gathered(round, play.now).unwrap());
}

/// A disk that was opened after the backup was taken: the backup, the record as it is, and who has it open.
fn history() -> (String, DiskRecord, BackendId) {
    let play = Play::new();
    let id = play.create("web1");
    let backend = play.attach("web1", "t1", false).unwrap();
    let backup = play.service.backup(play.now).unwrap();
    play.swap(&node("t1"), id, backend, open(backend, 1, "t1"));
    (backup, play.record(id), backend)
}

fn restored(text: &str) -> Play {
    let catalog = Arc::new(MemoryCatalog::new());
    let restored = backup::restore(text, &*catalog, Generation(0)).unwrap();
    assert_eq!(restored.generation, Generation(1));
    Play::over(catalog)
}

#[test]
fn a_disk_that_was_opened_since_the_backup_gets_no_epoch_and_keeps_its_writer() {
    let (text, record, backend) = history();
    let play = restored(&text);
    // Before the stores are heard nothing is known, and nobody is stopped or started.
    let desired = play.beat("t1", heartbeat(vec![]));
    assert!(desired.attachments.is_empty());
    let refused = play.attach("web1", "t2", false).unwrap_err().to_string();
    assert!(refused.contains("silent"), "{refused}");
    let problems = |play: &Play| play.service.status(play.now).unwrap().problems.join("\n");
    let said = problems(&play);
    assert!(said.contains("restored from a backup") && said.contains("1 disk is left"));
    let desired = beat_as(&play, 1, &record, runs(record.id, backend));
    assert_eq!(desired.attachments[0].backend, backend, "it goes on");
    beat_as(&play, 2, &record, vec![]);
    beat_as(&play, 3, &record, vec![]);
    let refused = play.attach("web1", "t2", false).unwrap_err().to_string();
    assert!(refused.contains("ukai placement rebuild"), "{refused}");
    let said = problems(&play);
    assert!(
        said.contains("disk web1: the catalog has an older record"),
        "{said}"
    );
    let again = play.swap(&node("t1"), record.id, backend, open(backend, 2, "t1"));
    assert!(
        matches!(
            again,
            Response::ChangeRefused(ChangeRefused::InDoubt { .. })
        ),
        "{again:?}"
    );
}

#[test]
fn a_disk_in_doubt_is_not_deleted_moved_or_prepared() {
    let play = Play::new();
    let id = play.create("web1");
    let text = play.service.backup(play.now).unwrap();
    let backend = play.attach("web1", "t1", false).unwrap();
    play.swap(&node("t1"), id, backend, open(backend, 1, "t1"));
    let record = play.record(id);

    let play = restored(&text);
    let name = disk("web1");
    let delete = || play.service.delete_disk(&name).unwrap_err().to_string();
    assert!(delete().contains("silent"), "{}", delete());
    for number in 1..=3 {
        beat_as(&play, number, &record, vec![]);
    }
    let tokyo = DatacenterName::new("tokyo").unwrap();
    let order = MoveDisk {
        to: tokyo.clone(),
        range: None,
        reason: String::new(),
        plan_only: false,
    };
    let moved = play.service.move_disk(&name, &order, "alice", play.now);
    let prepare = PrepareDisk {
        to: tokyo,
        node: None,
    };
    let prepared = play
        .service
        .prepare_disk(&name, &prepare, "alice", play.now);
    for refused in [
        delete(),
        moved.unwrap_err().to_string(),
        prepared.unwrap_err().to_string(),
    ] {
        assert!(refused.contains("ukai placement rebuild"), "{refused}");
    }
    let desired = beat_as(&play, 1, &record, runs(id, backend));
    assert!(desired.drop.is_empty());
    assert_eq!(desired.attachments[0].backend, backend, "it goes on");

    tell_all(&play, &record);
    play.service.rebuild(&Rebuild::default(), play.now).unwrap();
    assert!(delete().contains("it is attached"), "{}", delete());
}

#[test]
fn a_store_that_has_left_something_out_was_not_heard() {
    let play = restored(&history().0);
    let beat = |number, all_shown| {
        let report = StoreReport {
            all_shown,
            ..store(number)
        };
        play.beat(&format!("t{number}"), heartbeat(vec![report]));
    };
    beat(1, false);
    beat(2, true);
    beat(3, true);
    let refused = play.attach("web1", "t2", false).unwrap_err().to_string();
    assert!(refused.contains(&store_id(1).to_string()), "{refused}");
    assert!(!refused.contains(&store_id(2).to_string()), "{refused}");
    beat(1, true);
    play.attach("web1", "t2", true).unwrap();
}

#[test]
fn a_rebuild_takes_the_newest_record_and_epochs_go_on_above_it() {
    let (text, record, backend) = history();
    let play = restored(&text);
    for number in 1..=3 {
        beat_as(&play, number, &record, runs(record.id, backend));
    }
    tell_all(&play, &record);
    let plan = Rebuild {
        plan: true,
        ..Rebuild::default()
    };
    let planned = play.service.rebuild(&plan, play.now).unwrap();
    assert!(!planned.done && planned.complete);
    assert_eq!(planned.disks[0].verdict, RebuildVerdict::Newer);
    assert!(play.record(record.id).epoch < record.epoch, "only a plan");

    let done = play.service.rebuild(&Rebuild::default(), play.now).unwrap();
    assert!(done.done && done.complete);
    assert_eq!(done.generation, Generation(2));
    assert_eq!(play.record(record.id), record);
    let problems = play.service.status(play.now).unwrap().problems.join("\n");
    assert!(!problems.contains("rebuild"), "{problems}");
    // Its writer is known again, and goes on as it was: with the next epoch, in the new generation.
    let desired = beat_as(&play, 1, &record, runs(record.id, backend));
    assert_eq!(desired.attachments[0].backend, backend);
    let eject = Change::Eject {
        by: (backend, Life(1)),
        stores: vec![*record.members().last().unwrap()],
    };
    match play.swap(&node("t1"), record.id, backend, eject) {
        Response::Swapped(next) => assert_eq!(next.epoch.generation(), Generation(2)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rebuilt_record_has_no_revision_that_another_one_had() {
    let (text, record, backend) = history();
    let play = restored(&text);
    let stands = play.record(record.id);
    let told = DiskRecord {
        revision: stands.revision,
        ..record
    };
    for number in 1..=3 {
        beat_as(&play, number, &told, runs(told.id, backend));
    }
    tell_all(&play, &told);
    play.service.rebuild(&Rebuild::default(), play.now).unwrap();
    let rebuilt = DiskRecord {
        revision: stands.revision.next(),
        ..told
    };
    assert_eq!(play.record(rebuilt.id), rebuilt);
}

#[test]
fn a_catalog_that_is_gone_comes_back_from_the_stores_without_stopping_anybody() {
    let (_, record, backend) = history();
    let play = Play::over(Arc::new(MemoryCatalog::new()));
    for number in 1..=3 {
        let desired = beat_as(&play, number, &record, runs(record.id, backend));
        assert_eq!(desired.attachments.len(), 1, "what runs is left alone");
    }
    tell_all(&play, &record);
    let done = play.service.rebuild(&Rebuild::default(), play.now).unwrap();
    assert_eq!(done.disks[0].verdict, RebuildVerdict::Found);
    assert_eq!(play.record(record.id), record);
    assert_eq!(play.service.disks(play.now).unwrap()[0].name, disk("web1"));
}

#[test]
fn a_disk_whose_store_is_silent_is_refused_until_somebody_takes_the_blame() {
    let (text, record, _) = history();
    let play = restored(&text);
    let member = record.members()[0];
    let number = (1..=3).find(|n| store_id(*n) == member).unwrap();
    let others: Vec<u128> = (1..=3).filter(|n| *n != number).collect();
    for number in &others {
        beat_as(&play, *number, &record, vec![]);
    }
    let round = play.service.gather_records();
    for number in others {
        let records = Records {
            round,
            store: store_id(number),
            last: true,
            disks: vec![KeptDisk {
                disk: record.id,
                epoch: record.epoch,
                record: Some(Box::new(record.clone())),
            }],
        };
        let who = node(&format!("t{number}"));
        let request = Request::Records(records);
        let told = play.service.handle(&who, FROM, request, play.now);
        assert_eq!(told, Response::Noted);
    }
    let refused = play.service.rebuild(&Rebuild::default(), play.now).unwrap();
    assert!(!refused.complete);
    assert_eq!(refused.disks[0].verdict, RebuildVerdict::Refused);
    assert!(play.record(record.id).epoch < record.epoch);
    let accept = Rebuild {
        accept: vec!["web1".into()],
        ..Rebuild::default()
    };
    let accepted = play.service.rebuild(&accept, play.now).unwrap();
    assert!(accepted.complete);
    assert_eq!(play.record(record.id), record);
}

#[test]
fn no_swap_goes_through_or_ends_a_writer_while_its_record_is_in_doubt() {
    let play = Play::new();
    let id = play.create("web1");
    let backend = play.attach("web1", "t1", false).unwrap();
    play.swap(&node("t1"), id, backend, open(backend, 1, "t1"));
    let text = play.service.backup(play.now).unwrap();
    let then = play.record(id);
    let lost = *then.members().last().unwrap();
    let eject = Change::Eject {
        by: (backend, Life(1)),
        stores: vec![lost],
    };
    play.swap(&node("t1"), id, backend, eject.clone());
    let now = play.record(id);

    let play = restored(&text);
    let swap = |play: &Play, expected: Revision, change: &Change| {
        let request = Request::Swap {
            disk: id,
            backend,
            expected,
            change: change.clone(),
        };
        play.service.handle(&node("t1"), FROM, request, play.now)
    };
    let waits = |answer: Response| {
        let is_told = matches!(answer, Response::Refused(Refusal::InDoubt { .. }));
        assert!(is_told, "{answer:?}");
    };
    // The revision of then is that of another present.
    waits(swap(&play, then.revision, &eject));
    waits(swap(&play, now.revision, &eject));
    for number in 1..=3 {
        beat_as(&play, number, &now, runs(id, backend));
    }
    waits(swap(&play, then.revision, &eject));
    // And this is not superseded, though the catalog has another revision.
    let last = Version::new(now.epoch, replicator::words::Seq(9));
    let close = Change::Close {
        by: (backend, Life(1)),
        last,
        successor: None,
    };
    waits(swap(&play, now.revision, &close));
    tell_all(&play, &now);
    play.service.rebuild(&Rebuild::default(), play.now).unwrap();
    let answer = swap(&play, then.revision, &eject);
    assert!(matches!(answer, Response::Conflict(_)), "{answer:?}");
    let answer = swap(&play, now.revision, &close);
    assert!(matches!(answer, Response::Swapped(_)), "{answer:?}");
}

#[test]
fn a_catalog_that_knows_nothing_ends_no_writer() {
    let (_, record, backend) = history();
    let play = Play::over(Arc::new(MemoryCatalog::new()));
    let request = Request::Swap {
        disk: record.id,
        backend,
        expected: record.revision,
        change: Change::Eject {
            by: (backend, Life(1)),
            stores: record.members(),
        },
    };
    let answer = play
        .service
        .handle(&node("t1"), FROM, request.clone(), play.now);
    let waits = matches!(answer, Response::Refused(Refusal::InDoubt { .. }));
    assert!(waits, "{answer:?}");
    // One that does know others has never had this one.
    let play = Play::new();
    play.create("web2");
    let answer = play.service.handle(&node("t1"), FROM, request, play.now);
    let unknown = matches!(answer, Response::Refused(Refusal::NoSuchDisk { .. }));
    assert!(unknown, "{answer:?}");
}
