//! Operators and VM managers: what they order, with no regard to what is going on. Much of it is refused.

use super::{node_name, site_name};
use crate::sim::world::World;
use placement_service::api::{
    AddCopy, AddPin, ApplyPolicy, Attach, ByteRange, Control, DeclareLost, Detach, DropCopy,
    Evacuate, LiftPins, MoveDisk, PolicyDiff, PrepareDisk,
};
use placement_service::planner::Target;
use placement_service::policy::{Hold, Until};
use placement_service::service::{Moment, Service, ServiceError};
use replicator::words::{BackendId, DatacenterName, StoreId};

impl World {
    /// An order to the service that leads. Counts whether it was taken.
    fn order_service<T>(
        &mut self,
        what: &'static str,
        call: impl FnOnce(&Service, Moment) -> Result<T, ServiceError>,
    ) -> Option<T> {
        let slot = self.leader()?;
        let answer = self.ask(slot, call)?;
        match answer {
            Ok(answer) => {
                self.say(format_args!("{what}"));
                self.stats.count(what);
                Some(answer)
            }
            Err(error) => {
                self.say(format_args!("{what}, refused: {error}"));
                self.stats.count("service: orders refused");
                None
            }
        }
    }

    /// Wants the disk attached to this host's node.
    pub(in crate::sim) fn attach_by_service(&mut self, host: usize, take_over: bool) -> bool {
        let name = self.disk_name(self.hosts[host].disk);
        let request = Attach {
            node: self.node_of(host),
            take_over,
            wait_ms: None,
        };
        let managed = self.managed();
        managed.backends += 1;
        let fresh = BackendId::from_u128(managed.backends);
        let what = match take_over {
            true => "service: attached with take-over",
            false => "service: attached",
        };
        let attached = self.order_service(what, |service, now| {
            service.attach(&name, &request, fresh, now)
        });
        attached.is_some()
    }

    pub(super) fn detach_by_service(&mut self, host: usize, everywhere: bool, force: bool) -> bool {
        let name = self.disk_name(self.hosts[host].disk);
        let request = Detach {
            node: Some(self.node_of(host)).filter(|_| !everywhere),
            force,
            ..Detach::default()
        };
        let what = match force {
            true => "service: detached by force",
            false => "service: detached",
        };
        let detached =
            self.order_service(what, |service, now| service.detach(&name, &request, now));
        detached.is_some()
    }

    /// A VM is to run here: it is started, it migrates, or what had the disk is said to be gone.
    pub(in crate::sim) fn vm_is_wanted(&mut self, host: usize, ordered: bool, alive: bool) {
        if alive && !ordered {
            // It migrates: a standby first, then the source stops, then this one starts.
            let disk = self.hosts[host].disk;
            let mut source = self.hosts.iter();
            let source = source.position(|h| h.disk == disk && h.guest_on && !h.stopping);
            if self.attach_by_service(host, false)
                && let Some(source) = source
            {
                self.hosts[source].moves_to = Some(host);
                self.hosts[source].vm = false;
                if self.dice.chance(0.7) {
                    self.stop_vm(source);
                }
            }
            return;
        }
        if self.hosts[host].runs && self.dice.chance(0.6) || self.attach_by_service(host, ordered) {
            self.hosts[host].vm = true;
            self.vm_starts(host);
        }
    }

    /// A VM stops, and its disk is detached or not.
    pub(in crate::sim) fn vm_is_stopped(&mut self, host: usize) {
        self.hosts[host].vm = false;
        match self.dice.range(0..10) {
            0..4 => {
                let everywhere = self.dice.chance(0.5);
                self.detach_by_service(host, everywhere, false);
            }
            4 => drop(self.detach_by_service(host, true, true)),
            _ => self.stop_vm(host),
        }
    }

    fn stop_vm(&mut self, host: usize) {
        if self.hosts[host].guest_on || self.hosts[host].starting {
            self.stop_writer(host);
        }
    }

    fn any_store(&mut self) -> StoreId {
        let at = self.dice.range(0..self.stores.len() as u64) as usize;
        self.stores[at].id
    }

    fn any_site(&mut self) -> DatacenterName {
        let at = self.dice.range(0..self.stores.len() as u64) as usize;
        site_name(self.stores[at].site)
    }

    fn any_range(&mut self, disk: usize) -> Option<ByteRange> {
        if self.dice.chance(0.6) {
            return None;
        }
        let bytes = self.disks[disk].placement.record.bytes;
        let first = self.dice.range(0..bytes);
        let end = self.dice.range(first + 1..bytes + 1);
        Some(ByteRange { first, end })
    }

    /// Somebody orders something of this disk, of a store, or of all disks of a site.
    pub(in crate::sim) fn something_is_ordered(&mut self, disk: usize) {
        let name = self.disk_name(disk);
        let (store, to) = (self.any_store(), self.any_site());
        let range = self.any_range(disk);
        let (reason, plan_only) = (String::new(), false);
        match self.dice.range(0..100) {
            0..22 => {
                let request = MoveDisk {
                    to,
                    range,
                    reason,
                    plan_only,
                };
                self.order_service("service: moves ordered", |s, now| {
                    s.move_disk(&name, &request, "sim", now)
                });
            }
            22..32 => {
                let to = match self.dice.chance(0.5) {
                    true => Target::Store(store),
                    false => Target::Datacenter(to),
                };
                let request = AddCopy {
                    to,
                    range,
                    reason,
                    plan_only,
                };
                self.order_service("service: copies added", |s, now| {
                    s.add_copy(&name, &request, "sim", now)
                });
            }
            32..44 => {
                let members = self.disks[disk].placement.record.members();
                let at = self.dice.range(0..members.len() as u64) as usize;
                let request = DropCopy {
                    store: members[at],
                    range,
                    force: self.dice.chance(0.4),
                    reason,
                    plan_only,
                };
                self.order_service("service: copies dropped", |s, now| {
                    s.drop_copy(&name, &request, "sim", now)
                });
            }
            44..51 => {
                let node = self.dice.range(0..self.stores.len() as u64) as usize;
                let node = Some(node_name(node)).filter(|_| self.dice.chance(0.5));
                let request = PrepareDisk { to, node };
                self.order_service("service: copies ahead ordered", |s, now| {
                    s.prepare_disk(&name, &request, "sim", now)
                });
            }
            51..65 => {
                let control = self.dice.pick(&[
                    Control::Pause,
                    Control::Resume,
                    Control::Resume,
                    Control::Limit(1 << 20),
                    Control::NoLimit,
                    Control::Cancel,
                    Control::Cancel,
                ]);
                let what = match control {
                    Control::Cancel => "service: moves cancelled",
                    _ => "service: moves steered",
                };
                self.order_service(what, |s, now| s.control_move(&name, control, "sim", now));
            }
            65..72 => {
                let hold = match self.dice.range(0..4) {
                    0 => Hold::In(to),
                    1 => Hold::On(vec![store]),
                    2 => Hold::Also(vec![store]),
                    _ => Hold::Off(vec![store]),
                };
                let request = AddPin {
                    hold,
                    range,
                    reason: "sim".into(),
                    until: Until::Lifted,
                };
                self.order_service("service: pins made", |s, _| s.add_pin(&name, &request));
            }
            72..78 => {
                let request = LiftPins::default();
                self.order_service("service: pins lifted", |s, _| s.lift_pins(&name, &request));
            }
            78..84 => {
                let request = Evacuate::default();
                self.order_service("service: evacuations ordered", |s, now| {
                    s.evacuate(store, &request, "sim", now)
                });
            }
            84..87 => {
                self.order_service("service: evacuations cancelled", |s, now| {
                    s.cancel_evacuation(store, "sim", now)
                });
            }
            // With a catalog that was restored, who is wrong about that loses what only this store knew.
            87..92 if self.managed().in_doubt => {}
            87..92 => {
                let down = self.stores.iter().find(|store| store.core.is_none());
                let lost = down.map_or(store, |down| down.id);
                let request = DeclareLost::default();
                self.order_service("service: stores declared lost", |s, now| {
                    s.declare_lost(lost, &request, "sim", now)
                });
            }
            92..95 => {
                self.order_service("service: stores found again", |s, now| {
                    s.declare_found(store, "sim", now)
                });
            }
            _ => {
                let sites = 1 + self.stores.iter().map(|s| s.site).max().unwrap_or(0);
                let site = self.dice.range(0..sites as u64) as usize;
                self.apply_policy(site, sites, false);
            }
        }
    }

    /// A site's policy is another one from now on. `last`: one that leaves nothing to wait for.
    pub(super) fn apply_policy(&mut self, site: usize, sites: usize, last: bool) {
        let dice = &mut self.dice;
        let mut text = String::new();
        let mut line = |chance: f64, dice: &mut crate::sim::dice::Dice, values: &[&'static str]| {
            let value = dice.pick(values);
            if dice.chance(chance) {
                text += value;
                text += "\n";
            }
        };
        line(
            0.4,
            dice,
            &["copies = 1", "copies = 2", "copies = 2", "copies = 3"],
        );
        line(0.3, dice, &["spread = \"host\""]);
        line(0.3, dice, &["follow = \"extend\"", "follow = \"manual\""]);
        line(0.3, dice, &["rigor = \"strict\""]);
        if last {
            line(1.0, dice, &["repair-after = \"1s\""]);
            line(1.0, dice, &["hold-down = \"1s\""]);
        } else {
            line(0.2, dice, &["min-copies = 2"]);
            line(
                0.9,
                dice,
                &[
                    "repair-after = \"1s\"",
                    "repair-after = \"5s\"",
                    "repair-after = \"30s\"",
                ],
            );
            line(0.8, dice, &["hold-down = \"1s\"", "hold-down = \"10s\""]);
            line(
                0.4,
                dice,
                &[
                    "drop = \"manual\"",
                    "drop = \"after 3s\"",
                    "drop = \"after 30s\"",
                ],
            );
            line(0.3, dice, &["prepare = \"standby\""]);
        }
        if sites > 1 && dice.chance(0.25) {
            text += &format!("away = {{ dc{} = 1 }}\n", (site + 1) % sites);
        }
        if sites > 1 && dice.chance(0.1) {
            text += &format!("never = [\"dc{}\"]\n", (site + 1) % sites);
        }
        let limit = match last {
            true => "unlimited",
            false => dice.pick(&["unlimited", "unlimited", "1MiB/s", "100MiB/s"]),
        };
        text += &format!("[copy]\nlimit = \"{limit}\"\n");
        if self.policy_is(site, text).is_none() && last {
            // The fleet cannot keep that one.
            let text = "repair-after = \"1s\"\nhold-down = \"1s\"\n[copy]\nlimit = \"unlimited\"\n";
            self.policy_is(site, text.into());
        }
    }

    /// Stories have one that keeps nobody waiting.
    pub(super) fn usual_policy(&mut self, site: usize) {
        let text = "copies = 2\nrepair-after = \"1s\"\nhold-down = \"1s\"\n";
        self.policy_is(site, text.into());
    }

    fn policy_is(&mut self, site: usize, text: String) -> Option<PolicyDiff> {
        let request = ApplyPolicy {
            text,
            at_once: Some(4),
        };
        let of = site_name(site);
        self.order_service("service: policies applied", |s, now| {
            s.apply_policy(&of, &request, "sim", now)
        })
    }
}
