//! Orders to verify an open disk, and what becomes of them when the disk changes hands.

use super::*;
use crate::api::VerifyDisk;
use replicator::writer::Verdict;

const ORDER: u64 = 7;

/// A disk that t1 has open and is to verify.
fn ordered() -> (Play, DiskId, BackendId) {
    let play = Play::new();
    let id = play.create("web1");
    let first = play.attach("web1", "t1", false).unwrap();
    play.swap(&node("t1"), id, first, open(first, 1, "t1"));
    let request = VerifyDisk::default();
    let begun = play.service.verify_disk(&disk("web1"), &request, ORDER);
    assert_eq!(begun.unwrap().backend, first);
    (play, id, first)
}

fn is_over(play: &Play) {
    let over = play.service.verification(&disk("web1")).unwrap_err();
    assert_eq!(over.kind, Kind::NotNow, "{over}");
    let none = play.service.verification(&disk("web1")).unwrap_err();
    assert_eq!(none.kind, Kind::NoSuchThing, "it is said once: {none}");
}

#[test]
fn an_order_ends_when_its_backend_loses_the_disk() {
    let (play, id, _) = ordered();
    let second = play.attach("web1", "t2", true).unwrap();
    is_over(&play);

    let take = Change::TakeOver {
        owner: owner(second, 3, "t2"),
    };
    play.swap(&node("t2"), id, second, take);
    let request = VerifyDisk::default();
    let again = play.service.verify_disk(&disk("web1"), &request, ORDER);
    assert_eq!(again.unwrap().backend, second);
    assert!(play.service.verification(&disk("web1")).is_ok());
    let force = Detach {
        force: true,
        ..Detach::default()
    };
    play.service
        .detach(&disk("web1"), &force, play.now)
        .unwrap();
    is_over(&play);
}

#[test]
fn an_order_outlives_a_restart_of_its_node_and_its_end_that_of_the_attachment() {
    let (play, id, first) = ordered();
    // The node is upgraded.
    play.swap(&node("t1"), id, first, close(first, 1));
    assert!(play.service.verification(&disk("web1")).is_ok());
    play.swap(&node("t1"), id, first, open(first, 2, "t1"));
    assert!(play.service.verification(&disk("web1")).is_ok());

    let finished = Verdict {
        order: ORDER,
        finished: true,
        ..Verdict::default()
    };
    let report = BackendReport {
        disk: id,
        backend: first,
        state: ready(),
        epoch: None,
        stall: None,
        hindrance: None,
        verdict: Some(finished),
        unreachable: vec![],
        progress: None,
    };
    let beat = Heartbeat {
        backends: vec![report],
        ..heartbeat(vec![store(1)])
    };
    play.beat("t1", beat);
    play.attach("web1", "t2", true).unwrap();
    let heard = play.service.verification(&disk("web1")).unwrap();
    assert!(heard.verdict.unwrap().finished);
}
