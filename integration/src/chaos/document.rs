//! `docs/failures.md`: what each failure means to people, with the figures of one run.

use std::fmt::Write;

use super::fault::Fault;
use super::report::{FaultTold, TurnTold};
use super::{Catalog, Report};

/// What is said about one failure; the figures come from a run.
struct Said {
    what: &'static str,
    guest: &'static str,
    operator: &'static str,
    repair: &'static str,
}

/// The page; a failure that this run did not play has no figures.
pub fn page(report: &Report) -> String {
    let mut text = format!(
        "# Failures\n\n\
         Each failure: what the guest sees and for how long, what the operator sees, and what repairs it. The figures were\n\
         measured by `cargo xtask chaos --each`, which wrote this page: real processes, five nodes and {} with a network\n\
         namespace each, a guest under QEMU without KVM that writes, flushes, reads back and verifies all the while, on two cores.\n\
         One failure alone: `cargo xtask chaos --only NAME`. All of them by chance, overlapping: `cargo xtask chaos --minutes 10`.\n\n\
         The disk has two copies in tokyo, where its VM runs, and one in osaka (`away`); `eject-after` is {} s. *Waits* is the\n\
         longest that one request of the guest took, first to last byte; *out* is when the failed member was no member any\n\
         more, *whole* when no copy was missing any more, *well* when `ukai status` had nothing left to say: all from the\n\
         moment of the failure, which lasted as long as the second column says. 0 errors in the guest (but in a VM whose disk\n\
         was taken over, where they are called for) and 0 wrong blocks in every row, or the command fails. A failure without a\n\
         row was not played in the run that wrote this page.\n\n\
         | failure | lasts | guest waits | out | whole | well |\n| --- | --- | --- | --- | --- | --- |\n",
        match report.catalog {
            Catalog::Etcd => "three hosts with a placement service and a member of etcd",
            Catalog::Redb => "a placement service",
        },
        report.eject_after.as_secs_f64()
    );
    let played = |fault: Fault| {
        let turns = report.turns.iter().filter(|turn| turn.wrong.is_empty());
        let mut alone = turns.filter(|turn| turn.faults.len() == 1);
        alone.find(|turn| turn.faults[0].fault == fault)
    };
    for fault in Fault::all() {
        if let Some(turn) = played(*fault) {
            let _ = writeln!(text, "{}", row(*fault, turn, &turn.faults[0]));
        }
    }
    for fault in Fault::all() {
        let Said {
            what,
            guest,
            operator,
            repair,
        } = said(*fault);
        let _ = write!(
            text,
            "\n## {what}\n\n`cargo xtask chaos --only {}`\n\n\
             - **The guest:** {guest}\n- **The operator:** {operator}\n",
            fault.name()
        );
        if let Some(turn) = played(*fault) {
            for line in turn.said.iter().take(3) {
                let _ = writeln!(text, "  - `{line}`");
            }
        }
        let _ = writeln!(text, "- **What repairs it:** {repair}");
    }
    text += BESIDES;
    text
}

fn row(fault: Fault, turn: &TurnTold, told: &FaultTold) -> String {
    let seconds = |time: Option<std::time::Duration>| {
        time.map_or("-".into(), |time| format!("{:.1} s", time.as_secs_f64()))
    };
    let waits = match told.running_after {
        Some(running) => format!(
            "{}; disk taken over after {}, VM runs after {:.1} s",
            told.noticed.map_or("VM gone".into(), |noticed| format!(
                "old VM {}",
                noticed.words()
            )),
            seconds(told.attached_after),
            running.as_secs_f64()
        ),
        None => seconds(turn.longest_wait),
    };
    format!(
        "| {} | {:.1} s | {waits} | {} | {} | {} |",
        said(fault).what,
        told.holds.as_secs_f64(),
        seconds(told.ejected_after),
        seconds(told.full_after),
        seconds(turn.well_after)
    )
}

const BESIDES: &str = "\n## What is not played here\n\n\
- **Every host loses power.** Killed processes keep what they wrote in the kernel; power loss is simulated, sector by\n  \
  sector (`cargo xtask sim`): what was flushed is there, and members even out what was not.\n\
- **A store is put back to a copy that is younger than its last heartbeat** (a second), **or while the placement service is\n  \
  away or has just changed its leader:** only the writer of an open disk knows then how far its log went (rule S6); copies of a closed one\n  \
  are compared when it is opened, or by `ukai disk verify`. A copy from before its last start is known at any time.\n\
- **The media of the writer's own store hang in a sync or a read** (a disk that does not answer, not a file system that is frozen): its guest\n  \
  waited for 2.0 s, those of disks beside it for 23 ms (`cargo test --release -p integration --test media -- --nocapture`, which prints it, and plays the frozen one with\n  \
  disks beside it that have no copy there: 3.3 s).\n\
- **A store comes back after long:** it takes the difference (`cargo xtask bench --only comes-back`; [policy](policy.md#repair) has the figures).\n\
- **The placement service has lost its machine, and an old backup is restored, or there is none:** no old epoch comes back, and stores say what the\n  \
  backup does not know (`cargo test --release -p integration --test placement_restore`).\n\
- **A guest that dies, moves or is moved back:** `cargo test --release -p integration --test guest_disk`, `guest_moves`.\n";

fn said(fault: Fault) -> Said {
    match fault {
        Fault::StoreKilled => Said {
            what: "A store's node is killed, near",
            guest: "one pause of at most `eject-after`, then it goes on with the members that are left",
            operator: "the host is silent; disks have fewer copies than their policy asks for",
            repair: "nothing to do: the member is ejected; its place is filled from the others, or it rejoins and takes what it missed",
        },
        Fault::FarStoreKilled => Said {
            what: "A store's node is killed, in the other datacenter",
            guest: "the same: one pause of at most `eject-after`",
            operator: "the same; what policy wants away is missing until it is repaired there",
            repair: "nothing to do",
        },
        Fault::StoreHangs => Said {
            what: "A store's node hangs (SIGSTOP)",
            guest: "one pause of at most `eject-after`: silence is noticed by latency, not by a broken connection",
            operator: "the host is silent, though its machine answers",
            repair: "nothing to do: it is ejected; when it goes on, its late answers count for nothing, and it rejoins",
        },
        Fault::FarStoreHangs => Said {
            what: "A store's node hangs, in the other datacenter",
            guest: "one pause of at most `eject-after`",
            operator: "the host is silent",
            repair: "nothing to do",
        },
        Fault::TooFewCopies => Said {
            what: "A store's node is killed, and fewer copies than `min-copies` would be left",
            guest: "it waits until the node is back: no error, and nothing is acknowledged that has fewer copies than that",
            operator: "`ukai status` says that the guest waits, for which stores, and for what (`min-copies` was 3 here, as many as there are copies)",
            repair: "the node, started again; or `ukai store lost`, or a lower `min-copies`: then it goes on with those that are left",
        },
        Fault::WriterUpgraded => Said {
            what: "The writer's node is upgraded (SIGUSR2), and goes on as another program file",
            guest: "one short pause; what was in flight is answered before it",
            operator: "nothing, or a host that is silent for a moment",
            repair: "nothing to do",
        },
        Fault::LinkCut => Said {
            what: "The link between the datacenters is cut",
            guest: "one pause of at most `eject-after`, on the side that reaches the placement service",
            operator: "all hosts of the other side are silent; what policy wants there is missing",
            repair: "the link: the members there rejoin by themselves and take the difference",
        },
        Fault::HostCutOff => Said {
            what: "A member's host is cut off from everybody",
            guest: "one pause of at most `eject-after`",
            operator: "the host is silent",
            repair: "nothing to do: as if it were killed; when it is back it is told that it is out, and rejoins",
        },
        Fault::DeafStore => Said {
            what: "One way: a member no longer hears the writer",
            guest: "one pause of at most `eject-after`",
            operator: "no host is silent, since the placement service hears them all; copies are missing",
            repair: "the network; the member rejoins by itself",
        },
        Fault::MuteStore => Said {
            what: "One way: a member hears the writer, and is not heard by it",
            guest: "one pause of at most `eject-after`. What it appended without being heard was acknowledged to nobody",
            operator: "no host is silent; copies are missing",
            repair: "the network; the member rejoins by itself",
        },
        Fault::WriterKilled => Said {
            what: "The writer's node is killed and started again",
            guest: "a pause until it is back; its requests in flight complete, each once",
            operator: "the host is silent",
            repair: "nothing to do: the node takes the disk over from its former self",
        },
        Fault::WriterHangs => Said {
            what: "The writer's node hangs (SIGSTOP)",
            guest: "a pause until it goes on",
            operator: "the host is silent",
            repair: "nothing to do. Nobody else opens the disk unless told to: `ukai disk attach --take-over`",
        },
        Fault::WriterHostLost => Said {
            what: "The writer's host is gone",
            guest: "the VM is gone with it; started on another host it finds all that was flushed",
            operator: "the host is silent, the disk is attached there",
            repair: "`ukai disk attach web1 --node tokyo-2 --take-over`, and the VM started there: no lease has to run out",
        },
        Fault::WriterCutOff => Said {
            what: "The writer's host is only cut off, and the disk is taken over",
            guest: "the old VM runs on, and its requests wait; when its host is back they fail with I/O errors. From the take-over on no write and no flush of it is acknowledged. The VM that is started on another host finds all that was flushed",
            operator: "the host is silent, the disk is attached there; `ukai disk attach` says that the former writer is fenced",
            repair: "`ukai disk attach web1 --node tokyo-2 --take-over`, and the VM started there; the old VM has to be ended by whoever finds it. The old host's store rejoins by itself",
        },
        Fault::PlacementAway => Said {
            what: "The placement service is away, all else is healthy",
            guest: "nothing",
            operator: "`ukai` cannot reach it: what looks says so at once, attaching and moving wait for it and say so; ejecting waits",
            repair: "start it again; it knows what it knew",
        },
        Fault::PlacementAwayStoreKilled => Said {
            what: "The placement service is away, and then a member fails",
            guest: "a stall until either is back: no error, and nothing is acknowledged that could be lost",
            operator: "`ukai` cannot reach the service; when it is back, the host is silent and copies are missing",
            repair: "start either; then as above",
        },
        Fault::LeaderKilled => Said {
            what: "The placement service that leads is killed, two more stand by",
            guest: "nothing",
            operator: "for some seconds no placement service leads: `ukai` asks all of them and waits; attaching, moving and ejecting wait as well",
            repair: "nothing to do: another one leads as soon as the lease of the first has ended (5 s), and nodes find it; the first one stands by when it is back",
        },
        Fault::EtcdMember => Said {
            what: "One of three members of etcd is killed",
            guest: "nothing",
            operator: "nothing, or a command that takes a second longer; etcd's own tools name the member",
            repair: "start it again before a second one goes: two of three must be there",
        },
        Fault::EtcdMajority => Said {
            what: "Two of three members of etcd are killed",
            guest: "nothing, as if the placement service were away: disks whose members are well do not ask it",
            operator: "`ukai` says that the catalog cannot be reached; attaching, moving and ejecting wait",
            repair: "start one of them: etcd elects, a placement service leads again, and goes on",
        },
        Fault::StoreFull => Said {
            what: "A store's file system is full (ENOSPC)",
            guest: "writes and flushes wait until there is room: no error, and nothing is acknowledged that only some copies have; reads go on",
            operator: "`ukai status` says which disk's guest waits for which store, `ukai store list` that it has no room",
            repair: "room, given back or added: it goes on by itself within a second. A store that cannot have any: its node stopped, or `ukai store lost`: it leaves the disks like one that fails. `ukai store evacuate` comes before that: it keeps each copy until another one is complete, and changes no members of a disk while one of its writes waits",
        },
        Fault::WriterStoreFrozen => Said {
            what: "The file system under the writer's own store is frozen (fsfreeze)",
            guest: "one pause: the thread that stands still in the store is given up after 3 s, and its disks, those without a copy there as well, are served anew by another one; a disk that has a copy there waits for `eject-after` besides. Its VM has to connect again by itself (`reconnect-ms`)",
            operator: "the store does not answer; copies are missing",
            repair: "nothing to do; when the file system is thawed the store rejoins. Its node cannot be stopped before: who stands still in the kernel cannot be killed",
        },
        Fault::StoreLost => Said {
            what: "A store's node is killed, and the store declared lost at once",
            guest: "one pause of at most `eject-after`, as if nothing had been declared",
            operator: "`ukai store lost` says of how many disks copies are made anew; `ukai store list` how much is left of that, and in the end that it is replaced. `repair-after` was an hour here: nothing of it was waited for",
            repair: "nothing to do. If the store comes back all the same: `ukai store found tokyo-2`",
        },
        Fault::StoreEvacuated => Said {
            what: "A store that works is evacuated",
            guest: "nothing",
            operator: "`ukai store evacuate tokyo-2 --plan` says which disks would leave, and where to; `ukai store list` how much is left, and then that it is empty and gets nothing new. No copy is missing meanwhile",
            repair: "nothing was broken: the store can be taken away when it is empty; `ukai store evacuate tokyo-2 --cancel` takes the order back",
        },
        Fault::StoreRolledBack => Said {
            what: "A stopped store's directory is put back to an old copy",
            guest: "the pauses of its node being stopped, nothing else: the old copy serves nobody",
            operator: "the store is refused, and named; copies are missing, and made elsewhere",
            repair: "the right directory put back; or an empty one, which is a new store and is filled",
        },
        Fault::WriterStoreRolledBack => Said {
            what: "The directory of the writer's own store is put back to an old copy",
            guest: "the pauses of its node being stopped",
            operator: "the store is refused, and named",
            repair: "the right directory put back; or an empty one, which is a new store and is filled",
        },
        Fault::StoreSwapped => Said {
            what: "A store's directory is that of another host's store",
            guest: "one pause of at most `eject-after`, as if the node had been killed",
            operator: "the store is refused, and named with both hosts",
            repair: "the right directory put back; or, if it was carried over on purpose, `ukai store moved`",
        },
        Fault::StoreDamaged => Said {
            what: "Bits flip on a member's media",
            guest: "nothing: each read is verified; what fails is read from another member and written anew",
            operator: "`ukai disk verify web1 --deep` reads all that all copies have, and says what it healed",
            repair: "nothing to do: reads heal what they find, and what is not read is compared in the background",
        },
        Fault::AllKilled => Said {
            what: "Every process is killed at once",
            guest: "a pause until they are back",
            operator: "nothing answers; then hosts come up one by one",
            repair: "start all of them: the writer settles what its members do not agree on, and goes on",
        },
    }
}
