//! What operators say of stores and of hosts that died, through the API: what it answers, and how it refuses.

use super::*;

/// Two nodes with a store each, and a disk on both.
async fn two_nodes(cluster: &Cluster) -> [tokio::task::JoinHandle<()>; 2] {
    let nodes = [
        obedient_node(cluster.node("t1"), 1),
        obedient_node(cluster.node("t2"), 2),
    ];
    until(async || {
        let status: api::Status = cluster.ask("GET", "/v1/status", "").await;
        (status.stores_up == 2).then_some(())
    })
    .await;
    let create = r#"{"name":"web1","bytes":1073741824}"#;
    let _: Created = cluster.ask("POST", "/v1/disks", create).await;
    nodes
}

fn of_store(number: u128, what: &str) -> String {
    format!("/v1/stores/{}/{what}", StoreId::from_u128(number))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_take_over_waits_until_the_disk_is_open_and_says_how_long_that_took() {
    let cluster = Cluster::start().await;
    let nodes = two_nodes(&cluster).await;
    let attach = "/v1/disks/web1/attach";
    let first: Attached = cluster.ask("POST", attach, r#"{"node":"t1"}"#).await;
    assert_eq!((first.open, first.open_after_ms), (None, None));
    let t1 = cluster.node("t1");
    let record = t1.record(first.id).await.unwrap();
    let owner = Owner {
        backend: first.backend,
        life: Life(1),
        host: host("t1"),
    };
    let opened = Change::Attach {
        owner,
        sets: vec![],
    };
    let opened = t1.swap(first.id, first.backend, record.revision, opened);
    let SwapOutcome::Done(open) = opened.await.0 else {
        panic!("it was closed");
    };

    let body = r#"{"node":"t2","take_over":true}"#;
    let taken: Attached = cluster.ask("POST", attach, body).await;
    assert_eq!(taken.node, host("t2"));
    assert!(taken.open > Some(open.epoch), "{taken:?}");
    assert!(taken.open_after_ms.is_some());
    // The old one can do nothing any more, and cannot prove any more that it may.
    let record = t1.record(first.id).await.unwrap();
    assert!(record.grant.is_empty());
    let close = Change::Close {
        by: (first.backend, Life(1)),
        last: Version::new(open.epoch, Seq(1)),
        successor: None,
    };
    let late = t1.swap(first.id, first.backend, record.revision, close);
    let late = late.await.0;
    assert!(matches!(late, SwapOutcome::Refused(_)), "{late:?}");
    // Whom nobody knows takes nothing over.
    let nobody = r#"{"node":"t9","take_over":true}"#;
    let (status, error) = cluster.ask_in_vain("POST", attach, nobody).await;
    assert_eq!(status, 404);
    assert!(error.error.contains("t9"), "{error:?}");
    for node in nodes {
        node.abort();
    }
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_are_lost_and_found() {
    let cluster = Cluster::start().await;
    let nodes = two_nodes(&cluster).await;
    let lost = of_store(2, "lost");
    let (status, error) = cluster.ask_in_vain("DELETE", &lost, "").await;
    assert_eq!(
        (status, error.why.as_str()),
        (409, "nobody declared it lost")
    );

    let body = r#"{"reason":"burnt"}"#;
    let bereaved: api::Bereaved = cluster.ask("POST", &lost, body).await;
    assert_eq!(bereaved.disks.len(), 1);
    assert!(bereaved.last_copies.is_empty(), "there is another copy");
    let order = bereaved.store.order.unwrap();
    let said = (order.reason.as_str(), order.by.as_str(), order.kind);
    assert_eq!(said, ("burnt", "alice", api::StoreOrderKind::Lost));
    // Said twice it is the same; and the other copy is the last one now.
    let again: api::Bereaved = cluster.ask("POST", &lost, "").await;
    assert_eq!(again.store.order.unwrap().reason, "burnt");
    let status: api::Status = cluster.ask("GET", "/v1/status", "").await;
    assert_eq!(status.disks_short, 1);

    let found: api::Store = cluster.ask("DELETE", &lost, "").await;
    assert_eq!(found.order, None);
    for (path, status) in [
        (of_store(77, "lost"), 404),
        ("/v1/stores/burnt/lost".into(), 400),
        (of_store(2, "burnt"), 404),
    ] {
        let (answered, error) = cluster.ask_in_vain("POST", &path, "").await;
        assert_eq!(answered, status, "{path}: {error:?}");
        assert!(!error.why.is_empty() && !error.try_next.is_empty());
    }
    for node in nodes {
        node.abort();
    }
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_emptied_where_something_else_can_take_its_copies() {
    let cluster = Cluster::start().await;
    let nodes = two_nodes(&cluster).await;
    let evacuate = of_store(2, "evacuate");
    let (status, error) = cluster.ask_in_vain("DELETE", &evacuate, "").await;
    assert_eq!(
        (status, error.why.as_str()),
        (409, "it is not being evacuated")
    );
    let plan = r#"{"plan_only":true}"#;
    let planned: api::Evacuation = cluster.ask("POST", &evacuate, plan).await;
    assert_eq!((planned.disks.len(), planned.stuck.len()), (1, 1));
    assert_eq!(planned.store.order, None, "only a plan");
    let (status, error) = cluster.ask_in_vain("POST", &evacuate, "").await;
    assert_eq!(status, 400);
    assert!(error.why.contains("web1"), "{error:?}");
    assert!(error.try_next.contains("--plan"), "{error:?}");

    let third = obedient_node(cluster.node("t3"), 3);
    until(async || {
        let planned: api::Evacuation = cluster.ask("POST", &evacuate, plan).await;
        let to = planned.disks[0].to == [StoreId::from_u128(3)];
        (planned.stuck.is_empty() && to).then_some(())
    })
    .await;
    let body = r#"{"reason":"new disks"}"#;
    let ordered: api::Evacuation = cluster.ask("POST", &evacuate, body).await;
    let order = ordered.store.order.unwrap();
    assert_eq!(order.kind, api::StoreOrderKind::Evacuate);
    // What is lost is not emptied at the same time: the later word holds.
    let lost: api::Bereaved = cluster.ask("POST", &of_store(2, "lost"), "").await;
    assert_eq!(lost.store.order.unwrap().kind, api::StoreOrderKind::Lost);
    let (status, _) = cluster.ask_in_vain("DELETE", &evacuate, "").await;
    assert_eq!(status, 409);
    let _: api::Evacuation = cluster.ask("POST", &evacuate, body).await;
    let stays: api::Store = cluster.ask("DELETE", &evacuate, "").await;
    assert_eq!(stays.order, None);
    for node in nodes.into_iter().chain([third]) {
        node.abort();
    }
    cluster.server.stop().await;
}
