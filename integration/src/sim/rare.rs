//! States that are rare and that bugs like: a run that is large enough has to have been in each of them, or
//! its dice are wrong and its silence says little.

use super::stats::Stats;

/// So many seeds reach all of them.
pub const ENOUGH_SEEDS: u64 = 2000;

/// As [`Stats`] counts them.
pub const STATES: [&str; 81] = [
    // Writes and ejections.
    "ejections with requests in flight",
    "ejections while filling",
    "ejections by the dead",
    "writers that died within an ejection",
    "writers that died between a swap and hearing of it",
    "swaps done and not heard of",
    "swaps that arrived after another writer's",
    // Take-overs.
    "take-overs of the living",
    "take-overs amid a settling",
    "take-overs while filling",
    "writers that died on the way to serving",
    "writes that a superseded writer completes",
    "writes of unknown outcome",
    // Moves.
    "switches while filling",
    "switches with requests waiting",
    "switches raced",
    "completions raced",
    "closes raced",
    "closes while filling",
    "rejoins during a move",
    "moves with both ends dead",
    "stores that died while they were filled",
    "stores that died while others were filled from them",
    "stores that died amid a pull",
    "fills done twice",
    "fetches that came too late",
    "histories of five entries and more",
    "bounces before all was filled",
    "drops that race with a rejoin",
    "drops not ordered: named again",
    "drops put off",
    // Media.
    "extents whose members were all lost",
    "failed syncs",
    "syncs that would succeed after one failed",
    "torn writes",
    "full disks",
    "disks that were full while they were filled",
    "bits that flipped",
    "rotten blocks that were healed",
    "power losses of stores that serve several disks",
    // Links, clocks, processes.
    "doubled questions",
    "doubled answers",
    "questions of a session that was over",
    "links cut one way: questions",
    "links cut one way: answers",
    "clocks that jumped",
    "writers that stood still",
    "stores that stood still",
    "processes that stood still for a minute",
    "bits that flipped while things went on",
    "rotten sectors that were the last",
    // The placement service, where it is the real one.
    "service: died",
    "service: died amid a call",
    "service: commits of unknown outcome",
    "service: two that lead",
    "service: answers of one that leads no more",
    "service: commits of one that leads no more",
    "service: restored from a backup",
    "service: epochs refused, being in doubt",
    "service: records rebuilt from the stores",
    "service: rebuilds that a store was missing for",
    "service: VMs that moved",
    "service: copiers",
    "service: attached with take-over",
    "service: detached by force",
    "service: moves ordered",
    "service: moves cancelled",
    "service: moves steered",
    "service: copies added",
    "service: copies dropped",
    "service: copies ahead ordered",
    "service: pins made",
    "service: evacuations ordered",
    "service: evacuations cancelled",
    "service: stores declared lost",
    "service: stores found again",
    "service: policies applied",
    "service: copies deleted",
    "service: arrivals done",
    "service: repairs done",
    "service: evacuations done",
];

/// Those that were never reached.
pub fn missing(stats: &Stats) -> Vec<&'static str> {
    let never = |state: &&str| stats.of(state) == 0;
    STATES.iter().copied().filter(never).collect()
}

/// The table, one state a line.
pub fn table(stats: &Stats) -> String {
    let lines = STATES
        .iter()
        .map(|state| format!("{:>12}  {state}\n", stats.of(state)));
    lines.collect()
}
