//! Foreign bytes into everything of the placement service that reads some: for fuzzing, and for tests that
//! replay what was found. Nothing may panic, and nothing that is answered may break what comes after it (I9).

use crate::api;
use crate::catalog::MemoryCatalog;
use crate::node_protocol::{Desired, Heartbeat, Hello, Refusal, Request, Response, Welcome};
use crate::policy::{self, Policies, Policy, Topology, UnixSeconds};
use crate::service::{Moment, Service};
use replicator::net::identity::{Identity, Role};
use replicator::words::{BackendId, DatacenterName, DiskId, DiskName, HostName, StoreId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

/// Calls that one input makes; more only take time.
const MAX_CALLS: usize = 24;
const FROM: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A policy's text, as an operator writes it.
pub fn fuzz_policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(policy) = Policy::parse(datacenter("tokyo"), text) {
        let checked = policy::check(&policy, &Policies::default(), &Topology::default());
        let _ = format!("{checked:?}");
    }
}

/// Operators' calls, a line each: the call, the disk or datacenter, the JSON body. `say web1 {}`.
pub fn fuzz_api(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let play = Play::new();
    for (at, line) in text.lines().take(MAX_CALLS).enumerate() {
        let mut words = line.splitn(3, ' ');
        let (call, name) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        play.call(at, call, name, words.next().unwrap_or("{}"));
    }
    play.look();
}

/// What peers of the node protocol say, a JSON text a line: requests are answered, as to a node.
pub fn fuzz_node_protocol(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let play = Play::new();
    play.call(
        0,
        "create",
        "",
        r#"{"name":"web1","bytes":1073741824,"copies":2}"#,
    );
    play.call(1, "attach", "web1", r#"{"node":"t1"}"#);
    for line in text.lines().take(MAX_CALLS) {
        said_again::<Hello>(line);
        said_again::<Welcome>(line);
        said_again::<Refusal>(line);
        said_again::<Response>(line);
        said_again::<Desired>(line);
        if let Some(request) = said_again::<Request>(line) {
            let answer = play.service.handle(&node("t1"), FROM, request, play.now);
            let text = serde_json::to_string(&answer).expect("an answer can be said");
            assert_eq!(serde_json::from_str::<Response>(&text).ok(), Some(answer));
        }
    }
    play.look();
}

/// What can be understood can be said again, and is understood as the same.
fn said_again<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &str) -> Option<T> {
    let value: T = serde_json::from_str(text).ok()?;
    let again = serde_json::to_string(&value).expect("what was read can be written");
    let again: T = serde_json::from_str(&again).expect("what was written can be read");
    assert_eq!(value, again);
    Some(value)
}

/// Three nodes with a store each.
struct Play {
    service: Service,
    now: Moment,
}

impl Play {
    fn new() -> Play {
        let catalog = Arc::new(MemoryCatalog::new());
        let service = Service::new(catalog, UnixSeconds(1_795_298_400));
        let play = Play {
            service: service.expect("a catalog in memory"),
            now: Moment(Duration::from_secs(1)),
        };
        for (number, name) in ["t1", "t2", "o1"].into_iter().enumerate() {
            let heartbeat = serde_json::json!({
                "datacenter": if name == "o1" { "osaka" } else { "tokyo" },
                "rack": name,
                "listen": "127.0.0.1:7000",
                "stores": [{
                    "id": StoreId::from_u128(number as u128 + 1),
                    "starts": 1,
                    "incarnation": 1,
                    "capacity_bytes": 1u64 << 40,
                    "used_bytes": 0,
                }],
            });
            let heartbeat: Heartbeat = serde_json::from_value(heartbeat).expect("a heartbeat");
            let beat = Request::Heartbeat(heartbeat);
            let answer = play.service.handle(&node(name), FROM, beat, play.now);
            assert!(matches!(answer, Response::Desired(_)), "{answer:?}");
        }
        play
    }

    fn call(&self, at: usize, call: &str, name: &str, body: &str) {
        let (service, now) = (&self.service, self.now);
        let disk = DiskName::new(name);
        let fresh = BackendId::from_u128(at as u128 + 1);
        // What is refused has changed nothing; `look` sees to it that all goes on.
        match (call, &disk) {
            ("create", _) => with(body, |request: api::CreateDisk| {
                drop(service.create_disk(&request, DiskId::from_u128(at as u128 + 1), now));
            }),
            ("datacenter", _) => with(body, |request: api::CreateDatacenter| {
                drop(service.create_datacenter(&request.name, now));
            }),
            ("store", _) => with(body, |request: api::MoveStore| {
                drop(service.move_store(StoreId::from_u128(1), &request, now));
            }),
            ("policy", _) => {
                if let Ok(name) = DatacenterName::new(name) {
                    with(body, |request: api::PolicyText| {
                        drop(service.check_policy(&name, &request, now));
                        drop(service.diff_policy(&name, &request, now));
                    });
                    with(body, |request: api::ApplyPolicy| {
                        drop(service.apply_policy(&name, &request, "alice", now));
                    });
                }
            }
            ("attach", Ok(name)) => with(body, |request: api::Attach| {
                if let Ok(backend) = service.attach(name, &request, fresh, now) {
                    drop(service.attach_state(name, backend, now));
                }
            }),
            ("detach", Ok(name)) => with(body, |request: api::Detach| {
                drop(service.detach(name, &request, now));
            }),
            ("writer", Ok(name)) => with(body, |request: api::TakeWriter| {
                drop(service.take_writer(name, &host("alice"), &request, fresh, now));
            }),
            ("class", Ok(name)) => with(body, |request: api::SetClass| {
                drop(service.set_class(name, &request, now));
            }),
            ("pin", Ok(name)) => with(body, |request: api::AddPin| {
                drop(service.add_pin(name, &request));
            }),
            ("lift", Ok(name)) => with(body, |request: api::LiftPins| {
                drop(service.lift_pins(name, &request));
            }),
            ("move", Ok(name)) => with(body, |request: api::MoveDisk| {
                drop(service.move_disk(name, &request, "alice", now));
            }),
            ("prepare", Ok(name)) => with(body, |request: api::PrepareDisk| {
                drop(service.prepare_disk(name, &request, "alice", now));
            }),
            ("control", Ok(name)) => with(body, |request: api::ControlMove| {
                drop(service.control_move(name, request.control, "alice", now));
            }),
            ("copy", Ok(name)) => with(body, |request: api::AddCopy| {
                drop(service.add_copy(name, &request, "alice", now));
            }),
            ("drop", Ok(name)) => with(body, |request: api::DropCopy| {
                drop(service.drop_copy(name, &request, "alice", now));
            }),
            ("delete", Ok(name)) => drop(service.delete_disk(name)),
            _ => {}
        }
    }

    /// Whatever was said: everything can be asked for, and every node hears what is wanted of it.
    fn look(&self) {
        let (service, now) = (&self.service, self.now);
        let disks = service.disks(now).expect("disks can be listed");
        service.status(now).expect("the status can be asked for");
        service.moves(now).expect("moves can be listed");
        for disk in disks {
            service.disk_map(&disk.name, now).expect("a disk has a map");
            drop(service.plan(&disk.name, now));
            drop(service.explain(&disk.name, now));
        }
        for name in ["t1", "t2", "o1"] {
            service.desired(&host(name)).expect("a node has a lot");
        }
    }
}

fn with<T: DeserializeOwned>(body: &str, call: impl FnOnce(T)) {
    if let Ok(request) = serde_json::from_str(body) {
        call(request);
    }
}

fn datacenter(name: &str) -> DatacenterName {
    DatacenterName::new(name).expect("a name")
}

fn host(name: &str) -> HostName {
    HostName::new(name).expect("a name")
}

fn node(name: &str) -> Identity {
    Identity::new(Role::Node, host(name))
}
