//! What is compared with whom, and how well it should do.

use anyhow::Result;
use serde::Serialize;

use super::compare::Compared;
use super::load::{Doing, Load, MIB, Time};
use super::side::{Kind, Stage};
use super::statistics::Figures;
use super::{backfill, comes_back, idle, thin};
use crate::migration::figures::Bound;
use Bound::{AtLeast, AtMost};
use Metric::{Cpu, Iops, P50, P99};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    Iops,
    P50,
    P99,
    /// CPU time a request, of all processes of the side.
    Cpu,
    /// Bytes of a disk that were copied in a second.
    Copied,
    /// What a disk costs that nobody uses.
    IdleMemory,
    Sleeps,
    /// Until something is done.
    Seconds,
}

impl Metric {
    /// NaN of what a load does not show.
    pub fn of(self, figures: &Figures) -> f64 {
        match self {
            Metric::Iops => figures.iops,
            Metric::P50 => figures.p50_us,
            Metric::P99 => figures.p99_us,
            Metric::Cpu => figures.cpu_us,
            Metric::Copied | Metric::IdleMemory | Metric::Sleeps | Metric::Seconds => f64::NAN,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Metric::Iops => "IOPS",
            Metric::P50 => "p50, us",
            Metric::P99 => "p99, us",
            Metric::Cpu => "CPU, us a request",
            Metric::Copied => "MB/s",
            Metric::IdleMemory => "KiB a disk",
            Metric::Sleeps => "wake-ups a second",
            Metric::Seconds => "seconds",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Goal {
    pub metric: Metric,
    pub bound: Bound,
}

pub const fn goal(metric: Metric, bound: Bound) -> Goal {
    Goal { metric, bound }
}

/// Whether what is read may be in the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// All of it is, for those who have one.
    Warm,
    /// Nothing is.
    Cold,
    /// As it comes.
    Any,
}

#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub name: &'static str,
    pub what: &'static str,
    pub ours: Kind,
    pub peer: Kind,
    pub load: Load,
    pub cache: Cache,
    /// What is asked for as long right before, and not measured.
    pub first: Option<Load>,
    pub goals: &'static [Goal],
}

const READ_1: Load = Load::random(Doing::Read, 1);
const READ_32: Load = Load::random(Doing::Read, 32);
const READ_128: Load = Load::random(Doing::Read, 128);
const WRITE_1: Load = Load::random(Doing::Write, 1);
const WRITE_16: Load = Load::random(Doing::Write, 16);
const WRITE_32: Load = Load::random(Doing::Write, 32);
const WRITE_128: Load = Load::random(Doing::Write, 128);
const FLUSH_1: Load = Load::random(Doing::WriteAndFlush, 1);
const FLUSH_16: Load = Load::random(Doing::WriteAndFlush, 16);

const AS_GOOD: &[Goal] = &[goal(Iops, AtLeast(1.0)), goal(Cpu, AtMost(1.0))];
const NEARLY: &[Goal] = &[goal(Iops, AtLeast(0.95))];
const SOONER: &[Goal] = &[goal(P50, AtMost(0.6))];
const TWICE: &[Goal] = &[goal(Iops, AtLeast(2.0))];
const SOONER_CHEAPER: &[Goal] = &[goal(P50, AtMost(0.6)), goal(Cpu, AtMost(0.6))];
const TWICE_CHEAPER: &[Goal] = &[goal(Iops, AtLeast(2.0)), goal(Cpu, AtMost(0.6))];
const FIVE_TIMES_CHEAPER: &[Goal] = &[goal(Iops, AtLeast(5.0)), goal(Cpu, AtMost(0.15))];
const HALF: &[Goal] = &[goal(Iops, AtLeast(0.5))];

const fn job(
    name: &'static str,
    what: &'static str,
    sides: (Kind, Kind),
    load: Load,
    goals: &'static [Goal],
) -> Job {
    Job {
        name,
        what,
        ours: sides.0,
        peer: sides.1,
        load,
        cache: Cache::Any,
        first: None,
        goals,
    }
}

const fn warm(job: Job) -> Job {
    Job {
        cache: Cache::Warm,
        ..job
    }
}

const fn cold(job: Job) -> Job {
    Job {
        cache: Cache::Cold,
        load: job.load.once(),
        ..job
    }
}

const fn after(first: Load, job: Job) -> Job {
    Job {
        first: Some(first),
        ..job
    }
}

const CACHED: (Kind, Kind) = (Kind::OneCopy, Kind::Memory);
const LOCAL: (Kind, Kind) = (Kind::OneCopy, Kind::File);
const MIRROR: (Kind, Kind) = (Kind::TwoCopies, Kind::Quorum);
const CEPH: (Kind, Kind) = (Kind::TwoCopies, Kind::CephRbd);
const SECOND: (Kind, Kind) = (Kind::TwoCopies, Kind::OneCopy);
const CROWDED: (Kind, Kind) = (Kind::Crowd, Kind::OneCopy);
const CLEANED: (Kind, Kind) = (Kind::Tight, Kind::OneCopy);
const PLAIN: (Kind, Kind) = (Kind::FarCopy, Kind::Nbd);
const ISCSI: (Kind, Kind) = (Kind::FarCopy, Kind::Iscsi);
const REMOTE_FILE: (Kind, Kind) = (Kind::FarCopy, Kind::NbdTls);
const REMOTE: (Kind, Kind) = (Kind::FarCopy, Kind::MemoryNbdTls);

/// What is no load on two sides.
pub struct Special {
    pub name: &'static str,
    pub what: &'static str,
    pub run: fn(&mut Stage, usize, Time) -> Result<Vec<Compared>>,
}

pub const SPECIALS: &[Special] = &[
    Special {
        name: "backfill",
        what: "a move over a link of 100 MB/s, against a raw QUIC stream and the link",
        run: backfill::over_a_link,
    },
    Special {
        name: "during-backfill",
        what: "a guest's latency while its disk gets a copy, and while not",
        run: backfill::under_a_guest,
    },
    Special {
        name: "comes-back",
        what: "a store that was away, until it has all again, by how much was written meanwhile",
        run: comes_back::store,
    },
    Special {
        name: "idle-disks",
        what: "memory and wake-ups of 64 disks that nobody uses",
        run: idle::idle,
    },
    Special {
        name: "thin",
        what: "a new disk written all over five times, each pass by itself",
        run: thin::passes,
    },
];

/// Those with goals first, in the order of the table of goals.
pub const JOBS: &[Job] = &[
    warm(job(
        "cached-read-1",
        "4 KiB random read, cached, depth 1",
        CACHED,
        READ_1,
        AS_GOOD,
    )),
    warm(job(
        "cached-read-32",
        "4 KiB random read, cached, depth 32",
        CACHED,
        READ_32,
        AS_GOOD,
    )),
    cold(job(
        "cold-read-1",
        "4 KiB random read, cold, depth 1",
        LOCAL,
        READ_1,
        NEARLY,
    )),
    cold(job(
        "cold-read-32",
        "4 KiB random read, cold, depth 32",
        LOCAL,
        READ_32,
        NEARLY,
    )),
    job(
        "write-1",
        "4 KiB random write, depth 1",
        LOCAL,
        WRITE_1,
        SOONER,
    ),
    job(
        "write-32",
        "4 KiB random write, depth 32",
        LOCAL,
        WRITE_32,
        TWICE,
    ),
    job(
        "flush-1",
        "4 KiB write + FLUSH each, depth 1",
        LOCAL,
        FLUSH_1,
        &[goal(Iops, AtLeast(1.0))],
    ),
    job(
        "flush-16",
        "4 KiB write + FLUSH each, 16 writers",
        LOCAL,
        FLUSH_16,
        &[goal(Iops, AtLeast(3.0))],
    ),
    job(
        "two-write-1",
        "4 KiB random write, two copies, depth 1",
        MIRROR,
        WRITE_1,
        SOONER_CHEAPER,
    ),
    job(
        "two-write-32",
        "4 KiB random write, two copies, depth 32",
        MIRROR,
        WRITE_32,
        TWICE_CHEAPER,
    ),
    job(
        "second-write-1",
        "4 KiB random write, two copies and one, depth 1",
        SECOND,
        WRITE_1,
        HALF,
    ),
    job(
        "second-write-32",
        "4 KiB random write, two copies and one, depth 32",
        SECOND,
        WRITE_32,
        HALF,
    ),
    job(
        "two-sequential",
        "1 MiB sequential write, two copies",
        MIRROR,
        Load::sequential(Doing::Write, MIB, 4),
        &[goal(Iops, AtLeast(1.2))],
    ),
    warm(job(
        "far-read-1",
        "4 KiB random read, far copy, depth 1",
        REMOTE,
        READ_1,
        &[goal(P50, AtMost(1.1))],
    )),
    warm(job(
        "far-read-32",
        "4 KiB random read, far copy, depth 32",
        REMOTE,
        READ_32,
        &[goal(Iops, AtLeast(1.0))],
    )),
    job(
        "disks-64",
        "4 KiB random write, 8,000 a second, on 64 disks and on one",
        CROWDED,
        WRITE_16.at_rate(8000),
        &[goal(Cpu, AtMost(1.2))],
    ),
    after(
        WRITE_32,
        job(
            "cleaner",
            "4 KiB random write, 4,000 a second, while the cleaner runs and while not",
            CLEANED,
            WRITE_32.at_rate(4000),
            &[goal(P99, AtMost(2.0))],
        ),
    ),
    job(
        "ceph-write-1",
        "4 KiB random write, two copies, depth 1, against Ceph",
        CEPH,
        WRITE_1,
        FIVE_TIMES_CHEAPER,
    ),
    job(
        "ceph-write-32",
        "4 KiB random write, two copies, depth 32, against Ceph",
        CEPH,
        WRITE_32,
        FIVE_TIMES_CHEAPER,
    ),
    // Without goals: what is left of the picture.
    warm(job(
        "ceph-read-32",
        "4 KiB random read, cached, two copies, depth 32, against Ceph",
        CEPH,
        READ_32,
        &[],
    )),
    warm(job(
        "cached-read-128",
        "4 KiB random read, cached, depth 128",
        CACHED,
        READ_128,
        &[],
    )),
    cold(job(
        "cold-read-128",
        "4 KiB random read, cold, depth 128",
        LOCAL,
        READ_128,
        &[],
    )),
    job(
        "write-128",
        "4 KiB random write, depth 128",
        LOCAL,
        WRITE_128,
        &[],
    ),
    job(
        "mixed-32",
        "4 KiB random, 70 % reads, depth 32",
        LOCAL,
        Load::random(Doing::Mixed(70), 32),
        &[],
    ),
    job(
        "two-mixed-32",
        "4 KiB random, 70 % reads, two copies, depth 32",
        MIRROR,
        Load::random(Doing::Mixed(70), 32),
        &[],
    ),
    job(
        "write-16k-32",
        "16 KiB random write, depth 32",
        LOCAL,
        WRITE_32.of_bytes(16 << 10),
        &[],
    ),
    warm(job(
        "cached-read-16k-32",
        "16 KiB random read, cached, depth 32",
        CACHED,
        READ_32.of_bytes(16 << 10),
        &[],
    )),
    job(
        "two-write-16k-32",
        "16 KiB random write, two copies, depth 32",
        MIRROR,
        WRITE_32.of_bytes(16 << 10),
        &[],
    ),
    job(
        "two-write-128",
        "4 KiB random write, two copies, depth 128",
        MIRROR,
        WRITE_128,
        &[],
    ),
    job(
        "two-flush-1",
        "4 KiB write + FLUSH each, two copies, depth 1",
        MIRROR,
        FLUSH_1,
        &[],
    ),
    job(
        "two-flush-16",
        "4 KiB write + FLUSH each, two copies, 16 writers",
        MIRROR,
        FLUSH_16,
        &[],
    ),
    job(
        "far-write-1",
        "4 KiB random write, far copy only, depth 1",
        REMOTE_FILE,
        WRITE_1,
        &[],
    ),
    job(
        "far-write-32",
        "4 KiB random write, far copy only, depth 32",
        REMOTE_FILE,
        WRITE_32,
        &[],
    ),
    job(
        "far-write-plain-32",
        "4 KiB random write, far copy only, depth 32, against NBD without TLS",
        PLAIN,
        WRITE_32,
        &[],
    ),
    job(
        "iscsi-write-1",
        "4 KiB random write, far copy only, depth 1, against iSCSI without TLS",
        ISCSI,
        WRITE_1,
        &[],
    ),
    job(
        "iscsi-write-32",
        "4 KiB random write, far copy only, depth 32, against iSCSI without TLS",
        ISCSI,
        WRITE_32,
        &[],
    ),
    cold(job(
        "iscsi-read-32",
        "4 KiB random read, cold, far copy only, depth 32, against iSCSI without TLS",
        ISCSI,
        READ_32,
        &[],
    )),
    job(
        "sequential-write",
        "1 MiB sequential write",
        LOCAL,
        Load::sequential(Doing::Write, MIB, 4),
        &[],
    ),
    warm(job(
        "sequential-read",
        "1 MiB sequential read, cached",
        CACHED,
        Load::sequential(Doing::Read, MIB, 4),
        &[],
    )),
    cold(job(
        "cold-sequential-read",
        "1 MiB read, cold",
        LOCAL,
        Load::sequential(Doing::Read, MIB, 4),
        &[],
    )),
    job(
        "write-4-queues",
        "4 KiB random write, 4 queues, depth 8 each",
        LOCAL,
        Load::random(Doing::Write, 8).on_queues(4),
        &[],
    ),
    warm(job(
        "cached-read-4-queues",
        "4 KiB random read, cached, 4 queues, depth 8 each",
        CACHED,
        Load::random(Doing::Read, 8).on_queues(4),
        &[],
    )),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unlike_and_those_with_goals_come_first() {
        let names: BTreeSet<_> = JOBS.iter().map(|job| job.name).collect();
        assert_eq!(names.len(), JOBS.len());
        let without = JOBS.iter().position(|job| job.goals.is_empty());
        let first = without.unwrap_or(JOBS.len());
        assert!(JOBS[first..].iter().all(|job| job.goals.is_empty()));
    }
}
