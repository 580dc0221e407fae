//! Whether the fleet as it is can keep a policy: if not, why, and the nearest that it can.
//!
//! A policy that cannot be kept is refused when it is applied, not found out when a host has failed.
//! What it does keep but somebody may not expect is a note.

use super::class::{Class, Rigor, Spread};
use super::topology::{Health, Topology};
use super::{ClassName, Policies, Policy, nearest};
use crate::text::counted;
use replicator::words::{DatacenterName, HostName, RackName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// What a check found. Only a policy without `refused` may be applied.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Checked {
    pub refused: Vec<Infeasible>,
    pub notes: Vec<String>,
}

/// What cannot be kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Infeasible {
    /// None: the default class, or the fleet itself.
    pub class: Option<ClassName>,
    /// As the file writes it; empty: not the file is wrong, but the fleet's labels.
    pub key: String,
    pub why: String,
    /// What to write, or do, instead.
    pub nearest: String,
}

impl fmt::Display for Infeasible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(class) = &self.class {
            write!(f, "class {class}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.why, self.nearest)
    }
}

/// Checks `policy` against the fleet. `others` are the policies of the other datacenters.
pub fn check(policy: &Policy, others: &Policies, topology: &Topology) -> Checked {
    let mut checked = Checked::default();
    let refuse = |why: String| Infeasible {
        class: None,
        key: String::new(),
        why,
        nearest:
            "give it its labels, or take it out; a place that is not known is no rack of its own"
                .into(),
    };
    checked
        .refused
        .extend(topology.unlabelled().into_iter().map(refuse));
    if !topology.datacenters.contains(&policy.datacenter) {
        checked.refused.push(Infeasible {
            class: None,
            key: String::new(),
            why: format!("there is no datacenter {}", policy.datacenter),
            nearest: meant(&policy.datacenter, topology),
        });
        return checked;
    }
    let classes = policy
        .classes
        .iter()
        .map(|(name, class)| (Some(name), class));
    for (name, class) in std::iter::once((None, &policy.default)).chain(classes) {
        let mut one = OneClass {
            policy,
            name,
            class,
            topology,
            checked: &mut checked,
        };
        one.names_exist();
        one.copies_here();
        one.copies_away();
        one.what_it_promises(others);
    }
    checked
}

struct OneClass<'a> {
    policy: &'a Policy,
    name: Option<&'a ClassName>,
    class: &'a Class,
    topology: &'a Topology,
    checked: &'a mut Checked,
}

/// What of a datacenter copies can stand on.
#[derive(Default)]
struct Room {
    hosts: usize,
    racks: usize,
}

impl OneClass<'_> {
    fn names_exist(&mut self) {
        let Class {
            away, never, copy, ..
        } = self.class;
        let named = away.keys().map(|dc| ("away", dc));
        let named = named.chain(never.iter().map(|dc| ("never", dc)));
        let named = named.chain(copy.to.keys().map(|dc| ("copy.to", dc)));
        for (key, datacenter) in named {
            if !self.topology.datacenters.contains(datacenter) {
                let why = format!("there is no datacenter {datacenter}");
                self.refuse(key, why, meant(datacenter, self.topology));
            }
        }
    }

    fn copies_here(&mut self) {
        let here = self.policy.datacenter.clone();
        if self.class.never.contains(&here) {
            self.note(format!(
                "no copy ever stands in {here} itself: VMs there reach their disks elsewhere"
            ));
            return;
        }
        let room = self.room(&here);
        match self.class.copies.map(usize::from) {
            Some(copies) => self.fits("copies", copies, &here, &room),
            // Without `copies` each disk asks for its own number, which nobody knows here.
            None if room.hosts == 0 => self.note(format!(
                "{here} has no host with a store: the copies of its VMs' disks stand elsewhere"
            )),
            None => {}
        }
    }

    fn copies_away(&mut self) {
        for (datacenter, copies) in &self.class.away {
            if self.topology.datacenters.contains(datacenter) {
                let room = self.room(datacenter);
                self.fits(
                    &format!("away.{datacenter}"),
                    usize::from(*copies),
                    datacenter,
                    &room,
                );
            }
        }
    }

    fn fits(&mut self, key: &str, copies: usize, datacenter: &DatacenterName, room: &Room) {
        let by_rack = self.class.spread == Spread::Rack;
        let strict = self.class.rigor == Rigor::Strict;
        let written = format!("{key} = {copies}");
        if room.hosts == 0 {
            let why = format!("{datacenter} has no host with a store");
            let instead = "start a node with a store there, or leave it out";
            self.refuse(&written, why, instead.into());
        } else if by_rack && strict && room.racks < copies {
            let (racks, hosts) = (
                counted(room.racks as u64, "rack"),
                counted(room.hosts as u64, "host"),
            );
            let why =
                format!("{datacenter} has stores in {racks}, and spread is by rack, strictly");
            let mut instead = format!("the nearest that can be kept is {key} = {}", room.racks);
            if room.hosts >= copies {
                instead += &format!(", or rigor = \"prefer\", or spread = \"host\" ({hosts})");
            }
            self.refuse(&written, why, instead);
        } else if room.hosts < copies {
            let hosts = counted(room.hosts as u64, "host");
            let why = format!("{datacenter} has stores on {hosts}, and copies never share one");
            let instead = format!("the nearest that can be kept is {key} = {}", room.hosts);
            self.refuse(&written, why, instead);
        } else if by_rack && room.racks < copies {
            let racks = counted(room.racks as u64, "rack");
            self.note(format!(
                "{written}: {datacenter} has stores in {racks}, so copies will share one: its loss loses them together"
            ));
        }
    }

    /// What it does not promise, and might be taken to.
    fn what_it_promises(&mut self, others: &Policies) {
        let here = &self.policy.datacenter;
        if self.class.away.is_empty() && self.topology.datacenters.len() > 1 {
            self.note(format!(
                "nothing is kept away: the loss of {here} loses what its VMs wrote; `away` would keep it"
            ));
        }
        let total = self.class.total(1);
        if self.class.copies.is_some() && total > 1 && self.class.min_copies == total {
            self.note(format!(
                "min-copies = {total} is all copies: guests wait whenever one store fails, until it is back or declared lost"
            ));
        }
        if self.class.copies.is_none() && self.class.min_copies > 1 {
            self.note(format!(
                "min-copies = {} is all copies of disks that were created with no more: their guests wait whenever one store fails, until it is back or declared lost",
                self.class.min_copies
            ));
        }
        let elsewhere = |barred: &DatacenterName| {
            let silent = self.topology.datacenters.iter().filter(|dc| {
                *dc != here && *dc != barred && !others.class(dc, self.name).never.contains(barred)
            });
            silent.map(DatacenterName::as_str).collect::<Vec<_>>()
        };
        let notes: Vec<String> = self
            .class
            .never
            .iter()
            .map(|barred| (barred, elsewhere(barred)))
            .filter(|(_, silent)| !silent.is_empty())
            .map(|(barred, silent)| {
                format!(
                    "never {barred} goes along with disks that have run in {here}; those that have run only in {} are not bound by it",
                    silent.join(", ")
                )
            })
            .collect();
        notes.into_iter().for_each(|note| self.note(note));
    }

    fn room(&self, datacenter: &DatacenterName) -> Room {
        let mut hosts: BTreeSet<&HostName> = BTreeSet::new();
        let mut racks: BTreeSet<&RackName> = BTreeSet::new();
        for store in self.topology.stores.values() {
            let Some(place) = self.topology.hosts.get(&store.host) else {
                continue;
            };
            if place.datacenter.as_ref() == Some(datacenter)
                && store.health != Health::Gone
                && !store.evacuating
                && let Some(rack) = &place.rack
            {
                hosts.insert(&store.host);
                racks.insert(rack);
            }
        }
        Room {
            hosts: hosts.len(),
            racks: racks.len(),
        }
    }

    fn refuse(&mut self, key: &str, why: String, nearest: String) {
        self.checked.refused.push(Infeasible {
            class: self.name.cloned(),
            key: key.to_owned(),
            why,
            nearest,
        });
    }

    fn note(&mut self, note: String) {
        self.checked.notes.push(match self.name {
            Some(class) => format!("class {class}: {note}"),
            None => note,
        });
    }
}

fn meant(datacenter: &DatacenterName, topology: &Topology) -> String {
    let known: Vec<&str> = topology
        .datacenters
        .iter()
        .map(DatacenterName::as_str)
        .collect();
    match nearest(datacenter.as_str(), known.iter().copied()) {
        Some(meant) => format!("did you mean {meant}?"),
        None if known.is_empty() => "there are none yet".into(),
        None => format!("there are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::topology::{HostPlace, StorePlace};
    use replicator::words::StoreId;

    fn dc(name: &str) -> DatacenterName {
        DatacenterName::new(name).unwrap()
    }

    /// tokyo: three hosts in two racks; osaka: one host; frankfurt: none.
    fn fleet() -> Topology {
        let mut topology = Topology::default();
        topology
            .datacenters
            .extend([dc("tokyo"), dc("osaka"), dc("frankfurt")]);
        let hosts = [
            ("t1", "r1", "tokyo"),
            ("t2", "r1", "tokyo"),
            ("t3", "r2", "tokyo"),
            ("o1", "r1", "osaka"),
        ];
        for (id, (host, rack, datacenter)) in (1..).zip(hosts) {
            let host = HostName::new(host).unwrap();
            let place = HostPlace {
                datacenter: Some(dc(datacenter)),
                rack: Some(RackName::new(rack).unwrap()),
            };
            topology.hosts.insert(host.clone(), place);
            let store = StorePlace {
                host,
                capacity_bytes: 1 << 40,
                used_bytes: 0,
                unwritten_bytes: 0,
                health: Health::Up,
                evacuating: false,
            };
            topology.stores.insert(StoreId::from_u128(id), store);
        }
        topology
    }

    fn checked(text: &str, topology: &Topology) -> Checked {
        let policy = Policy::parse(dc("tokyo"), text).unwrap();
        check(&policy, &Policies::default(), topology)
    }

    fn refusals(text: &str) -> Vec<String> {
        checked(text, &fleet())
            .refused
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn what_can_be_kept_passes() {
        for text in [
            "",
            "copies = 2\nrigor = \"strict\"",
            "copies = 3\naway = { osaka = 1 }",
            "never = [\"frankfurt\"]",
            "never = [\"tokyo\"]\ncopies = 8",
        ] {
            assert_eq!(refusals(text), [] as [&str; 0], "{text}");
        }
    }

    #[test]
    fn what_cannot_is_refused_with_the_nearest_that_can() {
        assert_eq!(
            refusals("copies = 3\nrigor = \"strict\""),
            [
                "copies = 3: tokyo has stores in 2 racks, and spread is by rack, strictly; the nearest that can be kept is copies = 2, or rigor = \"prefer\", or spread = \"host\" (3 hosts)"
            ]
        );
        assert_eq!(
            refusals("copies = 2\n[class.db]\ncopies = 4"),
            [
                "class db: copies = 4: tokyo has stores on 3 hosts, and copies never share one; the nearest that can be kept is copies = 3"
            ]
        );
        assert_eq!(
            refusals("away = { osaka = 2 }"),
            [
                "away.osaka = 2: osaka has stores on 1 host, and copies never share one; the nearest that can be kept is away.osaka = 1"
            ]
        );
        assert!(refusals("away = { frankfurt = 1 }")[0].contains("no host with a store"));
    }

    #[test]
    fn a_name_that_is_nobodys_is_refused_with_the_one_that_was_meant() {
        assert_eq!(
            refusals("never = [\"frankfrut\"]"),
            ["never: there is no datacenter frankfrut; did you mean frankfurt?"]
        );
        assert!(refusals("copy.to.oska = \"1MB/s\"")[0].contains("did you mean osaka?"));
        let elsewhere = Policy::unwritten(dc("tokio"));
        let refused = check(&elsewhere, &Policies::default(), &fleet()).refused;
        assert!(refused[0].to_string().contains("did you mean tokyo?"));
    }

    #[test]
    fn a_missing_label_is_an_error_and_no_rack_of_its_own() {
        let mut topology = fleet();
        topology
            .hosts
            .get_mut(&HostName::new("t3").unwrap())
            .unwrap()
            .rack = None;
        let refused = checked("copies = 2", &topology).refused;
        assert!(
            refused[0].to_string().contains("host t3 has no rack"),
            "{refused:?}"
        );
        topology.hosts.remove(&HostName::new("t3").unwrap());
        let refused = checked("copies = 2", &topology).refused;
        assert!(
            refused[0]
                .to_string()
                .contains("on host t3, which nobody placed"),
            "{refused:?}"
        );
    }

    #[test]
    fn notes_say_what_is_not_promised() {
        let notes = |text| checked(text, &fleet()).notes.join("\n");
        assert!(notes("").contains("nothing is kept away"));
        assert!(!notes("away = { osaka = 1 }").contains("nothing is kept away"));
        assert!(notes("copies = 3").contains("will share one"));
        assert!(
            notes("copies = 2\nmin-copies = 2").contains("guests wait whenever one store fails")
        );
        assert!(!notes("copies = 2").contains("guests wait"));
        assert!(notes("min-copies = 2").contains("created with no more: their guests wait"));
        assert!(notes("never = [\"frankfurt\"]").contains("only in osaka are not bound"));
        assert!(notes("never = [\"tokyo\"]").contains("reach their disks elsewhere"));
    }
}
