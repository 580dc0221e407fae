//! What can fail, and what each failure calls for: no clock, no process, no randomness.
//!
//! A fault is a few [`Step`]s in time; the last of them undoes it. What its story allows the guest to
//! notice is its [`Stall`]; whatever else the guest sees is an error of ours.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use Part::{Control, Everything, Far, Near, Writer};
use Step::{
    AwaitCopies, AwaitEmpty, AwaitFull, AwaitVm, CancelEvacuation, CopyStore, CutOff, Damage,
    DeclareFound, DeclareLost, EndVm, Evacuate, FillStore, FreeStore, Freeze, Heal, Hear, Kill,
    KillEtcd, KillLeader, KillPlacement, LeaveVm, LoseWriter, Pause, PlanEvacuation, Resume, Speak,
    Start, StartEtcd, StartPlacement, SwapStore, TakeOver, Thaw, UnswapStore, Upgrade, Verify,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    StoreKilled,
    FarStoreKilled,
    StoreHangs,
    FarStoreHangs,
    TooFewCopies,
    LinkCut,
    HostCutOff,
    DeafStore,
    MuteStore,
    WriterKilled,
    WriterHangs,
    WriterUpgraded,
    WriterHostLost,
    WriterCutOff,
    PlacementAway,
    PlacementAwayStoreKilled,
    LeaderKilled,
    EtcdMember,
    EtcdMajority,
    StoreFull,
    WriterStoreFrozen,
    StoreLost,
    StoreEvacuated,
    StoreRolledBack,
    WriterStoreRolledBack,
    StoreSwapped,
    StoreDamaged,
    AllKilled,
}

/// How long the policies of a story wait for a store that is away, and how long those of a fault whose repair is
/// not to begin by itself: longer than any turn.
pub const REPAIR_AFTER: Duration = Duration::from_secs(3);
pub const REPAIR_NEVER: Duration = Duration::from_secs(3600);

/// As many copies as there are, and as few as go on.
pub const ALL_COPIES: u8 = 3;
pub const ONE_COPY: u8 = 1;
/// A policy has reached the writers after so long.
const HEARD: Duration = Duration::from_secs(3);

/// What a fault touches. Two that touch nothing in common may overlap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The member of the write set near the writer.
    Near,
    /// The member in the other datacenter, and the link to it.
    Far,
    /// The node that serves the guest.
    Writer,
    Control,
    Everything,
}

/// One of the hosts, by what it is to the disk when the fault begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    Near,
    Far,
    Writer,
}

/// What is done to the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// SIGKILL to the node.
    Kill(Who),
    Start(Who),
    /// SIGSTOP and SIGCONT to the node.
    Pause(Who),
    Resume(Who),
    /// Another file takes the program's place, and the node becomes that.
    Upgrade(Who),
    /// SIGKILL to the placement services: to all of them, or to the one that leads; and all that do not run
    /// are started again.
    KillPlacement,
    KillLeader,
    StartPlacement,
    /// SIGKILL to so many of the three members of etcd.
    KillEtcd(usize),
    StartEtcd,
    KillAll,
    StartAll,
    /// The datacenters do not reach one another.
    CutLink,
    HealLink,
    /// The host's cable is pulled.
    CutOff(Who),
    /// It no longer hears the writer's host, or is no longer heard by it.
    Hear(Who),
    Speak(Who),
    /// Undoes the three above.
    Heal(Who),
    /// A file takes what is left of the store's file system, and the guest writes more than the store had
    /// set aside.
    FillStore(Who),
    /// Until somebody says that it is full.
    AwaitFull(Who),
    FreeStore(Who),
    /// Nothing can be written to the store's file system: who tries stands still.
    Freeze(Who),
    Thaw(Who),
    /// A store's directory, copied; put in place of a stopped one's; and the right one again.
    CopyStore {
        of: Who,
        to: Who,
    },
    SwapStore(Who),
    UnswapStore(Who),
    /// `ukai disk verify --deep`: must find the copies good, or make them so.
    Verify,
    /// Bits are flipped in what the store has on its media.
    Damage(Who),
    /// The writer's node and its VM, at once; then the disk is taken over where the near member is, and
    /// a VM started there.
    LoseWriter,
    TakeOver,
    /// Until it runs: that takes as long as it takes.
    AwaitVm,
    /// The writer's VM is given up for lost, and runs on; in the end it must have noticed.
    LeaveVm,
    EndVm,
    /// What the policies' `repair-after` is from now on.
    RepairAfter(Duration),
    /// And what `min-copies` is.
    MinCopies(u8),
    /// An operator says that the store is lost, and takes it back.
    DeclareLost(Who),
    DeclareFound(Who),
    /// Until no copy is missing, without the store that is away.
    AwaitCopies(Who),
    /// An operator asks what it would take to empty a store, has it emptied, and ends that.
    PlanEvacuation(Who),
    Evacuate(Who),
    CancelEvacuation(Who),
    /// Until `ukai store list` says that it is empty.
    AwaitEmpty(Who),
}

/// How long the story lets one request of the guest wait, beyond what a busy machine adds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stall {
    /// It does not notice.
    None,
    /// Until the member that does not answer is ejected.
    Ejection,
    /// Until the thread that stands still in it is replaced, and then the same.
    Replacement,
    /// Until the fault is undone.
    UntilUndone,
    /// The VM is gone with its host.
    Gone,
    /// It is given up with its host; the one that is started elsewhere waits as for an ejection.
    LeftBehind,
}

impl Fault {
    pub fn all() -> &'static [Fault] {
        Fault::value_variants()
    }

    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("none is hidden");
        value.get_name().to_owned()
    }

    pub fn touches(self) -> &'static [Part] {
        match self {
            Fault::StoreKilled
            | Fault::StoreHangs
            | Fault::HostCutOff
            | Fault::DeafStore
            | Fault::MuteStore
            | Fault::StoreFull => &[Near],
            Fault::FarStoreKilled | Fault::FarStoreHangs | Fault::LinkCut => &[Far],
            Fault::WriterKilled | Fault::WriterHangs | Fault::WriterUpgraded => &[Writer],
            Fault::PlacementAway
            | Fault::LeaderKilled
            | Fault::EtcdMember
            | Fault::EtcdMajority => &[Control],
            Fault::WriterHostLost
            | Fault::WriterCutOff
            | Fault::PlacementAwayStoreKilled
            | Fault::StoreRolledBack
            | Fault::WriterStoreRolledBack
            | Fault::StoreSwapped
            | Fault::StoreDamaged
            | Fault::WriterStoreFrozen
            | Fault::TooFewCopies
            | Fault::AllKilled => &[Everything],
            // What an operator orders needs the placement service, and all but one of the nodes that can have copies.
            Fault::StoreLost | Fault::StoreEvacuated => &[Everything],
        }
    }

    pub fn may_overlap(self, other: Fault) -> bool {
        let (these, those) = (self.touches(), other.touches());
        let everything = these.iter().chain(those).any(|part| *part == Everything);
        !everything && these.iter().all(|part| !those.contains(part))
    }

    pub fn stall(self) -> Stall {
        match self {
            Fault::PlacementAway
            | Fault::LeaderKilled
            | Fault::EtcdMember
            | Fault::EtcdMajority
            | Fault::StoreEvacuated
            | Fault::WriterUpgraded
            | Fault::StoreDamaged => Stall::None,
            Fault::StoreKilled
            | Fault::StoreLost
            | Fault::StoreRolledBack
            | Fault::StoreSwapped
            | Fault::FarStoreKilled
            | Fault::StoreHangs
            | Fault::FarStoreHangs
            | Fault::LinkCut
            | Fault::HostCutOff
            | Fault::DeafStore
            | Fault::MuteStore => Stall::Ejection,
            Fault::WriterKilled
            | Fault::WriterHangs
            | Fault::TooFewCopies
            | Fault::PlacementAwayStoreKilled
            | Fault::StoreFull
            | Fault::WriterStoreRolledBack
            | Fault::AllKilled => Stall::UntilUndone,
            Fault::WriterStoreFrozen => Stall::Replacement,
            Fault::WriterHostLost => Stall::Gone,
            Fault::WriterCutOff => Stall::LeftBehind,
        }
    }

    /// It needs hosts with networks or file systems of their own.
    pub fn needs_root(self) -> bool {
        let of_hosts = matches!(
            self,
            Fault::HostCutOff
                | Fault::DeafStore
                | Fault::MuteStore
                | Fault::WriterCutOff
                | Fault::StoreFull
                | Fault::WriterStoreFrozen
        );
        of_hosts || self.needs_etcd()
    }

    /// It needs several placement services, and the catalog in etcd.
    pub fn needs_etcd(self) -> bool {
        matches!(
            self,
            Fault::LeaderKilled | Fault::EtcdMember | Fault::EtcdMajority
        )
    }

    /// Somebody has to be elected before the placement service is there again.
    pub fn elects(self) -> bool {
        self.touches().contains(&Control)
            || matches!(self, Fault::PlacementAwayStoreKilled | Fault::AllKilled)
    }

    /// What is done when, from the fault's beginning on; `holds` is how long it lasts.
    pub fn script(self, holds: Duration) -> Vec<(Duration, Step)> {
        let now = Duration::ZERO;
        let then = |first, last| vec![(now, first), (holds, last)];
        match self {
            Fault::StoreKilled => then(Kill(Who::Near), Start(Who::Near)),
            Fault::FarStoreKilled => then(Kill(Who::Far), Start(Who::Far)),
            Fault::StoreHangs => then(Pause(Who::Near), Resume(Who::Near)),
            Fault::FarStoreHangs => then(Pause(Who::Far), Resume(Who::Far)),
            Fault::TooFewCopies => vec![
                (now, Step::MinCopies(ALL_COPIES)),
                (HEARD, Kill(Who::Near)),
                (HEARD + holds, Start(Who::Near)),
                // Later: the node alone ends it.
                (HEARD + holds * 2, Step::MinCopies(ONE_COPY)),
            ],
            Fault::WriterUpgraded => vec![(now, Upgrade(Who::Writer))],
            Fault::LinkCut => then(Step::CutLink, Step::HealLink),
            Fault::HostCutOff => then(CutOff(Who::Near), Heal(Who::Near)),
            Fault::DeafStore => then(Hear(Who::Near), Heal(Who::Near)),
            Fault::MuteStore => then(Speak(Who::Near), Heal(Who::Near)),
            Fault::WriterKilled => then(Kill(Who::Writer), Start(Who::Writer)),
            Fault::WriterHangs => then(Pause(Who::Writer), Resume(Who::Writer)),
            Fault::WriterHostLost => vec![
                (now, LoseWriter),
                (now, TakeOver),
                (holds, Start(Who::Writer)),
            ],
            Fault::WriterCutOff => vec![
                (now, CutOff(Who::Writer)),
                (now, LeaveVm),
                (now, TakeOver),
                (holds, AwaitVm),
                (holds, Heal(Who::Writer)),
                // Both VMs, both nodes and all stores reach one another meanwhile.
                (holds * 2, EndVm),
            ],
            Fault::PlacementAway => then(KillPlacement, StartPlacement),
            Fault::LeaderKilled => then(KillLeader, StartPlacement),
            Fault::EtcdMember => then(KillEtcd(1), StartEtcd),
            Fault::EtcdMajority => then(KillEtcd(2), StartEtcd),
            Fault::PlacementAwayStoreKilled => vec![
                (now, KillPlacement),
                (now, Kill(Who::Near)),
                (holds, StartPlacement),
                (holds * 2, Start(Who::Near)),
            ],
            Fault::StoreFull => vec![
                (now, FillStore(Who::Near)),
                (now, AwaitFull(Who::Near)),
                (holds, FreeStore(Who::Near)),
            ],
            Fault::WriterStoreFrozen => then(Freeze(Who::Writer), Thaw(Who::Writer)),
            Fault::StoreLost => vec![
                (now, Step::RepairAfter(REPAIR_NEVER)),
                (now, Kill(Who::Near)),
                (now, DeclareLost(Who::Near)),
                (now, AwaitCopies(Who::Near)),
                (holds, Start(Who::Near)),
                (holds, DeclareFound(Who::Near)),
                (holds, Step::RepairAfter(REPAIR_AFTER)),
            ],
            Fault::StoreEvacuated => vec![
                (now, PlanEvacuation(Who::Near)),
                (now, Evacuate(Who::Near)),
                (now, AwaitEmpty(Who::Near)),
                (holds, CancelEvacuation(Who::Near)),
            ],
            Fault::StoreRolledBack => rolled_back(Who::Near, holds),
            Fault::WriterStoreRolledBack => rolled_back(Who::Writer, holds),
            Fault::StoreSwapped => vec![
                (
                    now,
                    CopyStore {
                        of: Who::Far,
                        to: Who::Near,
                    },
                ),
                (now, Kill(Who::Near)),
                (now, SwapStore(Who::Near)),
                (now, Start(Who::Near)),
                (holds, Kill(Who::Near)),
                (holds, UnswapStore(Who::Near)),
                (holds, Start(Who::Near)),
            ],
            Fault::StoreDamaged => vec![(now, Damage(Who::Writer)), (holds, Verify)],
            Fault::AllKilled => then(Step::KillAll, Step::StartAll),
        }
    }
}

/// A snapshot is made of the running store; later it is put in its place, faster than anybody misses it.
fn rolled_back(who: Who, holds: Duration) -> Vec<(Duration, Step)> {
    vec![
        (Duration::ZERO, CopyStore { of: who, to: who }),
        (holds, Kill(who)),
        (holds, SwapStore(who)),
        (holds, Start(who)),
        (holds * 2, Kill(who)),
        (holds * 2, UnswapStore(who)),
        (holds * 2, Start(who)),
    ]
}

impl Step {
    /// The host that is hurt by it, and may have to leave the write set for it.
    pub fn hurts(self) -> Option<Who> {
        match self {
            Kill(who) | Pause(who) | CutOff(who) | Hear(who) | Speak(who) | FillStore(who)
            | Freeze(who) | Evacuate(who) => Some(who),
            Step::CutLink => Some(Who::Far),
            LoseWriter => Some(Who::Writer),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every host and process that a script takes away, it gives back.
    #[test]
    fn every_fault_is_undone() {
        for fault in Fault::all() {
            let script = fault.script(Duration::from_secs(5));
            assert!(script.is_sorted_by_key(|(at, _)| *at), "{fault:?}");
            let count = |wanted: &dyn Fn(Step) -> bool| {
                script.iter().filter(|(_, step)| wanted(*step)).count()
            };
            for who in [Who::Near, Who::Far, Who::Writer] {
                let lost =
                    count(&|step| step == Kill(who) || (who == Who::Writer && step == LoseWriter));
                assert_eq!(lost, count(&|step| step == Start(who)), "{fault:?}");
                assert_eq!(
                    count(&|step| step == Pause(who)),
                    count(&|step| step == Resume(who)),
                    "{fault:?}"
                );
                assert_eq!(
                    count(&|step| matches!(step, CutOff(w) | Hear(w) | Speak(w) if w == who)),
                    count(&|step| step == Heal(who)),
                    "{fault:?}"
                );
            }
            let placement = |step| matches!(step, KillPlacement | KillLeader);
            let pairs: [(&dyn Fn(Step) -> bool, Step); 11] = [
                (&placement, StartPlacement),
                (&|step| matches!(step, KillEtcd(_)), StartEtcd),
                (&|step| step == Step::KillAll, Step::StartAll),
                (&|step| step == Step::CutLink, Step::HealLink),
                (&|step| step == LeaveVm, EndVm),
                (
                    &|step| step == Step::RepairAfter(REPAIR_NEVER),
                    Step::RepairAfter(REPAIR_AFTER),
                ),
                (
                    &|step| step == Step::MinCopies(ALL_COPIES),
                    Step::MinCopies(ONE_COPY),
                ),
                (
                    &|step| matches!(step, DeclareLost(_)),
                    DeclareFound(Who::Near),
                ),
                (
                    &|step| matches!(step, Evacuate(_)),
                    CancelEvacuation(Who::Near),
                ),
                (&|step| matches!(step, FillStore(_)), FreeStore(Who::Near)),
                (&|step| matches!(step, Freeze(_)), Thaw(Who::Writer)),
            ];
            for (done, undone) in pairs {
                let undone = count(&|step| step == undone);
                assert_eq!(count(done), undone, "{fault:?}");
            }
        }
    }

    #[test]
    fn what_overlaps_leaves_the_writer_a_way_on() {
        assert!(Fault::StoreKilled.may_overlap(Fault::LinkCut));
        assert!(Fault::StoreHangs.may_overlap(Fault::PlacementAway));
        assert!(!Fault::StoreKilled.may_overlap(Fault::StoreHangs));
        assert!(!Fault::AllKilled.may_overlap(Fault::PlacementAway));
        for fault in Fault::all() {
            assert!(!fault.may_overlap(*fault), "{fault:?}");
        }
    }
}
