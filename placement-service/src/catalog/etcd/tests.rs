//! What is etcd's own: who leads, and what a service that no longer does can still do. Nothing.

use super::testing::{TestEtcd, make_certificates, named, won};
use super::*;
use crate::catalog::Committed;
use std::fs;
use tempfile::TempDir;

fn put(key: &str, value: &str) -> Transaction {
    Transaction::new().put(key, value.into())
}

#[test]
fn one_leads_and_the_others_hear_who() {
    let etcd = TestEtcd::start();
    let (one, two) = (etcd.connect("a"), etcd.connect("a"));
    let mut first = named("first");
    first.nodes = Some("10.0.0.1:7400".parse().unwrap());
    let leadership = match one.campaign(&first).unwrap() {
        Campaign::Won(leadership) => leadership,
        Campaign::Lost(_) => panic!("nobody else is there"),
    };
    match two.campaign(&named("second")).unwrap() {
        Campaign::Lost(leader) => assert_eq!(leader, Some(first)),
        Campaign::Won(_) => panic!("two lead"),
    }
    assert!(one.keep_alive(&leadership).unwrap());
    // Another cluster in the same etcd has its own leader.
    won(&etcd.connect("b"), "elsewhere");
    one.resign(&leadership);
    assert!(!one.keep_alive(&leadership).unwrap());
    let next = won(&two, "second");
    assert!(two.keep_alive(&next).unwrap());
}

#[test]
fn a_leader_that_was_replaced_commits_nothing_whatever_it_believes() {
    let etcd = TestEtcd::start();
    let old = Arc::new(etcd.connect("a"));
    let new = Arc::new(etcd.connect("a"));
    let leadership = Arc::new(won(&old, "old"));
    let before = EtcdCatalog::new(old.clone(), leadership.clone());
    assert_eq!(before.commit(&put("k", "1")).unwrap(), Committed::Yes);

    assert!(before.is_alone());
    // Its lease ends without its noticing: as after a pause of the whole machine.
    old.revoke(leadership.lease_for_tests());
    let refused = before.commit(&put("k", "between"));
    assert!(
        matches!(refused, Err(CatalogError::NotLeader)),
        "{refused:?}"
    );
    assert!(!before.is_alone());
    let after = EtcdCatalog::new(new.clone(), Arc::new(won(&new, "new")));
    assert_eq!(after.commit(&put("k", "2")).unwrap(), Committed::Yes);

    let unaware = EtcdCatalog::new(old, Arc::new(leadership.unaware_for_tests()));
    assert!(matches!(unaware.settle(), Err(CatalogError::NotLeader)));
    let refused = unaware.commit(&put("k", "3"));
    assert!(
        matches!(refused, Err(CatalogError::NotLeader)),
        "{refused:?}"
    );
    // An expectation that fails is told apart from a lead that was lost.
    let lost = put("k", "4").expect("k", Expect::Absent);
    assert_eq!(after.commit(&lost).unwrap(), Committed::No);
    assert_eq!(&after.get("k").unwrap().unwrap().value[..], b"2");
    // Reading is harmless: it sees what stands.
    assert_eq!(&before.get("k").unwrap().unwrap().value[..], b"2");
}

#[test]
fn what_was_on_its_way_comes_too_late_once_it_was_waited_out() {
    let etcd = TestEtcd::start();
    let ours = Arc::new(etcd.connect("a"));
    let leadership = Arc::new(won(&ours, "me"));
    let catalog = EtcdCatalog::new(ours.clone(), leadership.clone());
    let late = catalog.txn(&put("k", "late"));
    catalog.settle().unwrap();
    let done: Txned = ours.gateway.ask(TXN, &late, Repeat::Never).unwrap();
    assert!(!done.succeeded);
    assert_eq!(catalog.get("k").unwrap(), None);
    // It leads as before, to itself and to others.
    assert!(ours.keep_alive(&leadership).unwrap());
    assert_eq!(ours.leads().unwrap(), Some(named("me")));
    assert_eq!(catalog.commit(&put("k", "1")).unwrap(), Committed::Yes);
    // The answer to that may be lost.
    let unheard = Arc::new(leadership.unaware_for_tests());
    EtcdCatalog::new(ours, unheard).settle().unwrap();
    let taken = put("k", "2").expect("k", Expect::Absent);
    assert_eq!(catalog.commit(&taken).unwrap(), Committed::No);
    assert_eq!(catalog.commit(&put("k", "2")).unwrap(), Committed::Yes);
}

#[test]
fn a_member_that_is_not_there_costs_no_question() {
    let etcd = TestEtcd::start();
    let there = etcd.connect("a");
    let text = there.address().to_string();
    let text = text.replace("etcd://", "etcd://127.0.0.1:1,");
    let address: EtcdAddress = text.parse().unwrap();
    let etcd = Arc::new(Etcd::new(address, None).unwrap());
    let catalog = EtcdCatalog::new(etcd.clone(), Arc::new(won(&etcd, "me")));
    assert_eq!(catalog.commit(&put("k", "1")).unwrap(), Committed::Yes);
    assert_eq!(&catalog.get("k").unwrap().unwrap().value[..], b"1");
}

#[test]
fn nobody_there_is_an_error_and_nothing_else() {
    let address: EtcdAddress = "etcd://127.0.0.1:1".parse().unwrap();
    let etcd = Etcd::new(address, None).unwrap();
    match etcd.campaign(&named("me")) {
        Err(CatalogError::Refused(why)) => assert!(why.contains("127.0.0.1:1"), "{why}"),
        _ => panic!("nobody answers there"),
    }
}

/// Why somebody who comes with this folder is not served.
fn turned_away(etcd: &TestEtcd, pki: &std::path::Path) -> String {
    let stranger = etcd.connect_tls("a", pki).unwrap();
    match stranger.campaign(&named("stranger")) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it is let in"),
    }
}

#[test]
fn over_tls_both_show_a_certificate_and_nobody_else_gets_in() {
    let etcd = TestEtcd::start_tls();
    let ours = Arc::new(etcd.connect_tls("a", etcd.pki()).unwrap());
    let catalog = EtcdCatalog::new(ours.clone(), Arc::new(won(&ours, "me")));
    assert_eq!(catalog.commit(&put("k", "1")).unwrap(), Committed::Yes);
    assert_eq!(&catalog.get("k").unwrap().unwrap().value[..], b"1");

    // Another authority: to us, etcd is not the one that we mean.
    let other = TempDir::new().unwrap();
    make_certificates(other.path());
    let why = turned_away(&etcd, other.path());
    assert!(why.contains("certificate"), "{why}");
    // The right authority, and no certificate, or one of another authority: etcd does not let us in.
    fs::copy(etcd.pki().join("ca.crt"), other.path().join("ca.crt")).unwrap();
    turned_away(&etcd, other.path());
    fs::remove_file(other.path().join("client.crt")).unwrap();
    turned_away(&etcd, other.path());
    // In the clear.
    let clear = etcd.connect("a");
    assert!(clear.campaign(&named("me")).is_err());
    assert_eq!(&catalog.get("k").unwrap().unwrap().value[..], b"1");
}

#[test]
fn tls_is_never_left_out_by_mistake() {
    let parsed = |text: &str| text.parse::<EtcdAddress>().unwrap();
    let refused = |address: &str, pki| match Etcd::new(parsed(address), pki) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{address} is taken"),
    };
    let dir = TempDir::new().unwrap();
    let why = refused("etcds://127.0.0.1:1", None);
    assert!(why.contains("--etcd-pki"), "{why}");
    let why = refused("etcd://127.0.0.1:1", Some(dir.path()));
    assert!(why.contains("etcds://"), "{why}");
    let why = refused("etcds://127.0.0.1:1", Some(dir.path()));
    assert!(why.contains("ca.crt"), "{why}");
    make_certificates(dir.path());
    fs::remove_file(dir.path().join("client.key")).unwrap();
    let why = refused("etcds://127.0.0.1:1", Some(dir.path()));
    assert!(why.contains("client.key"), "{why}");
}
