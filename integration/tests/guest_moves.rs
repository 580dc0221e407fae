//! A move survives: whoever is killed and whatever is cut while a disk follows its guest, the guest sees
//! no wrong block and no error, and in the end all is near.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cluster::{Cluster, TWO_AND_TWO};
use integration::guest::ticks::Ticks;
use integration::migration::ours::{is_near, wait_near};
use integration::migration::traveller::Traveller;
use integration::migration::workload::{Workload, Writer};
use integration::processes::{Lifetime, Scratch, scenario};
use integration::relay::{Conditions, Link};

const DISK_BYTES: u64 = 128 << 20;
/// Time enough to hurt somebody while the disk follows.
const LINK_BYTES_PER_SECOND: u64 = 16 << 20;
const DELAY: Duration = Duration::from_millis(10);
const MOMENT: Duration = Duration::from_secs(1);

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
        for datacenter in ["tokyo", "osaka"] {
            // Back at once is what these journeys are made of.
            cluster.apply_policy(datacenter, "hold-down = \"0s\"\n")?;
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
