//! A move survives: whoever is killed and whatever is cut while a disk follows its guest, the guest sees
//! no wrong block and no error, and in the end all is near.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cluster::{Cluster, TWO_AND_TWO};
use integration::guest::ticks::Ticks;
use integration::guest::{MIGRATION_BOUND, Terms};
use integration::migration::ours::{is_near, moves, newest, wait_near};
use integration::migration::traveller::{Traveller, way};
use integration::migration::workload::{Workload, Writer};
use integration::processes::{Lifetime, Scratch, scenario};
use integration::relay::{Conditions, Link};
use placement_service::api::MoveState;

const DISK_BYTES: u64 = 128 << 20;
/// Time enough to hurt somebody while the disk follows.
const LINK_BYTES_PER_SECOND: u64 = 16 << 20;
const DELAY: Duration = Duration::from_millis(10);
const MOMENT: Duration = Duration::from_secs(1);
/// Room for either disk, not for both.
const STORE_BYTES: u64 = 576 << 20;
const BALLAST_BYTES: u64 = 448 << 20;
const STUCK_BOUND: Duration = Duration::from_secs(60);
/// Back at once is what these journeys are made of.
const FOLLOW: &str = "hold-down = \"0s\"\n";
/// The same, but so slowly that something else is done before.
const CRAWL: &str = "hold-down = \"0s\"\n[copy]\nlimit = \"1MiB/s\"\n";
const DATACENTERS: [&str; 2] = ["tokyo", "osaka"];

#[test]
fn a_move_survives_the_placement_service() {
    scenario("moves-placement", without_placement);
}

/// Killed after the destination stands by, when the guest has stopped at the source, and while the
/// blocks follow; started again a moment later each time.
fn without_placement(scratch: &Scratch) -> Result<()> {
    let mut journey = Journey::begin(scratch)?;
    journey.leg("osaka-1", |journey, to| {
        let Journey {
            cluster, traveller, ..
        } = journey;
        let destination = traveller.prepare(cluster, to)?;
        cluster.kill_placement_9()?;
        std::thread::sleep(MOMENT);
        // The source cannot close its epoch without it: back, but of nobody has it heard yet.
        cluster.start_placement()?;
        traveller.depart(cluster, destination, to)
    })?;
    journey.leg("tokyo-1", |journey, to| {
        let Journey {
            cluster, traveller, ..
        } = journey;
        let terms = Terms {
            pause_before_switchover: true,
            ..Terms::default()
        };
        let mut destination = traveller.prepare(cluster, to)?;
        destination.agree(&terms)?;
        let source = traveller.guest();
        source.agree(&terms)?;
        let memory = cluster.link()?.tcp(way(to), destination.listen()?)?;
        source.depart(memory.address)?;
        source.wait_migration("pre-switchover", MIGRATION_BOUND)?;
        cluster.kill_placement_9()?;
        source.switch_over()?;
        source.wait_migration("completed", MIGRATION_BOUND)?;
        traveller.settle_in(destination, to)?;
        std::thread::sleep(MOMENT);
        cluster.start_placement()
    })?;
    journey.leg("osaka-1", |journey, to| {
        journey.traveller.go(&journey.cluster, to)?;
        journey.must_not_be_near(to)?;
        journey.cluster.kill_placement_9()?;
        journey.writer.must_go_on()?;
        std::thread::sleep(MOMENT);
        journey.cluster.start_placement()
    })?;
    journey.end()
}

#[test]
fn a_move_survives_killed_nodes_and_a_cut_link() {
    scenario("moves-nodes", without_nodes);
}

fn without_nodes(scratch: &Scratch) -> Result<()> {
    let mut journey = Journey::begin(scratch)?;
    journey.leg("osaka-1", |journey, to| {
        journey.traveller.go(&journey.cluster, to)?;
        journey.must_not_be_near(to)?;
        journey.cluster.link()?.cut();
        std::thread::sleep(cut_for());
        journey.cluster.link()?.heal();
        Ok(())
    })?;
    for (victim, to) in [("osaka-1", "tokyo-1"), ("osaka-1", "osaka-1")] {
        journey
            .leg(to, |journey, to| {
                journey.traveller.go(&journey.cluster, to)?;
                journey.must_not_be_near(to)?;
                journey.cluster.kill_node_9(victim)?;
                std::thread::sleep(MOMENT);
                journey.cluster.start_node(victim)
            })
            .with_context(|| format!("{victim} killed on the way to {to}"))?;
    }
    journey.end()
}

#[test]
fn a_move_waits_for_room() {
    scenario("moves-room", wait_for_room);
}

/// Another disk takes the room that osaka's stores had left: the move stops and says why, the guest
/// goes on or waits, and when there is room again all comes to its end.
fn wait_for_room(scratch: &Scratch) -> Result<()> {
    let mut journey = Journey::begin(scratch)?;
    for host in ["osaka-1", "osaka-2"] {
        journey.cluster.set_capacity(host, STORE_BYTES)?;
    }
    let ballast = scratch.path("ballast.raw");
    Workload::full(BALLAST_BYTES).image(&ballast)?;
    let ballast = ballast.to_str().context("a path of text")?;
    let size = BALLAST_BYTES.to_string();
    journey.leg("osaka-1", |journey, to| {
        let cluster = &journey.cluster;
        // Two copies of something else: planned before it holds anything, as disks are.
        cluster.create_disk("ballast", &size, 2, "osaka-1")?;
        for datacenter in DATACENTERS {
            cluster.apply_policy(datacenter, CRAWL)?;
        }
        journey.traveller.go(cluster, to)?;
        wait_begun(cluster)?;
        // It may not have room for all of itself either.
        let _ = cluster.ukai(&["disk", "import", "ballast", ballast]);
        journey.must_not_be_near(to)?;
        for datacenter in DATACENTERS {
            cluster.apply_policy(datacenter, FOLLOW)?;
        }
        let why = wait_stuck(cluster)?;
        println!("     the move says: {why}");
        cluster
            .ukai(&["disk", "delete", "ballast", "--yes"])
            .map(drop)
    })?;
    journey.end()
}

fn wait_begun(cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + STUCK_BOUND;
    while newest(&moves(cluster)?, "web1").is_none() {
        ensure!(Instant::now() < deadline, "no move of web1 begins");
        std::thread::sleep(MOMENT / 4);
    }
    Ok(())
}

fn wait_stuck(cluster: &Cluster) -> Result<String> {
    let deadline = Instant::now() + STUCK_BOUND;
    loop {
        let moves = moves(cluster)?;
        let this = newest(&moves, "web1").context("a move of web1")?;
        if let MoveState::Stuck { why } = &this.state {
            return Ok(why.clone());
        }
        ensure!(Instant::now() < deadline, "not stuck: {this:?}");
        std::thread::sleep(MOMENT / 4);
    }
}

/// A minute is what operators ask about; a test that everybody runs takes less.
fn cut_for() -> Duration {
    let seconds = std::env::var("UKAI_TEST_CUT_S").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(6);
    Duration::from_secs(seconds)
}

/// A guest on a full disk, with its writer at work.
struct Journey<'a> {
    cluster: Cluster,
    traveller: Traveller<'a>,
    writer: Writer,
    _ticks: Ticks,
}

impl<'a> Journey<'a> {
    fn begin(scratch: &'a Scratch) -> Result<Journey<'a>> {
        let workload = Workload::full(DISK_BYTES);
        let image = scratch.path("image.raw");
        workload.image(&image)?;
        let link = Link::new(Conditions::fixed(DELAY).limited(LINK_BYTES_PER_SECOND));
        let cluster = Cluster::start_across(scratch, &TWO_AND_TWO, Lifetime::Ours, Some(link))?;
        for datacenter in DATACENTERS {
            cluster.apply_policy(datacenter, FOLLOW)?;
        }
        cluster.create_disk("web1", &DISK_BYTES.to_string(), 2, "tokyo-1")?;
        let image = image.to_str().context("a path of text")?;
        cluster.ukai(&["disk", "import", "web1", image])?;
        let ticks = Ticks::listen()?;
        let config = workload.config(&ticks);
        let mut traveller = Traveller::board(scratch, &cluster, "web1", "tokyo-1", &config)?;
        let writer = workload.start(traveller.guest())?;
        Ok(Journey {
            cluster,
            traveller,
            writer,
            _ticks: ticks,
        })
    }

    /// One move with something in its way; afterwards all is near, and the writer goes on.
    fn leg(
        &mut self,
        to: &'static str,
        go: impl FnOnce(&mut Journey, &'static str) -> Result<()>,
    ) -> Result<()> {
        let number = self.traveller.moves() + 1;
        let context = || format!("move {number}, to {to}");
        go(self, to).with_context(context)?;
        self.writer.must_go_on().with_context(context)?;
        self.cluster.wait_up().with_context(context)?;
        let (datacenter, _) = to.split_once('-').expect("hosts are named so");
        wait_near(&self.cluster, "web1", datacenter).with_context(context)?;
        self.writer.must_go_on().with_context(context)?;
        println!("ok   {}", context());
        Ok(())
    }

    /// What is done to a move that is over shows nothing.
    fn must_not_be_near(&self, to: &str) -> Result<()> {
        let map = self.cluster.ukai(&["disk", "map", "web1"])?;
        let (datacenter, _) = to.split_once('-').expect("hosts are named so");
        ensure!(!is_near(&map, datacenter)?, "all is near already: {map}");
        Ok(())
    }

    fn end(self) -> Result<()> {
        self.writer.finish()?;
        self.traveller.shutdown()
    }
}
