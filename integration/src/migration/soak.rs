//! Many live migrations in a row, with an oracle in the guest.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Traveller;
use super::ours::wait_near;
use super::workload::Workload;
use crate::cluster::{Cluster, TWO_AND_TWO};
use crate::guest::ticks::Ticks;
use crate::processes::{Lifetime, Scratch};
use crate::relay::{Conditions, Link};

/// Small enough to come near within a second or two, and with data in every extent.
const DISK_BYTES: u64 = 256 << 20;
/// One move in so many is awaited to its end; the others are overtaken by the next one.
const AWAITED: u32 = 3;

pub struct Soak {
    pub migrations: usize,
    /// Each way.
    pub most_delay: Duration,
    pub seed: u64,
}

pub struct Told {
    /// The longest time without an answer to the guest.
    pub longest_gap: Duration,
    /// The verifying writer's last line.
    pub verified: String,
}

impl Soak {
    pub fn run(&self, scratch: &Scratch, say: impl Fn(&str)) -> Result<Told> {
        let mut dice = ChaCha8Rng::seed_from_u64(self.seed);
        let workload = Workload::full(DISK_BYTES);
        let image = scratch.path("image.raw");
        workload.image(&image)?;
        let link = Link::new(self.conditions(&mut dice));
        let cluster = Cluster::start_across(scratch, &TWO_AND_TWO, Lifetime::Ours, Some(link))?;
        for datacenter in ["tokyo", "osaka"] {
            // A guest that bounces is what this is about.
            cluster.apply_policy(datacenter, "hold-down = \"0s\"\n")?;
        }
        cluster.create_disk("web1", &DISK_BYTES.to_string(), 2, "tokyo-1")?;
        let image = image.to_str().context("a path of text")?;
        cluster.ukai(&["disk", "import", "web1", image])?;
        let ticks = Ticks::listen()?;
        let config = workload.config(&ticks);
        let mut traveller = Traveller::board(scratch, &cluster, "web1", "tokyo-1", &config)?;
        let mut writer = workload.start(traveller.guest())?;
        for number in 1..=self.migrations {
            let begun = Instant::now();
            cluster.link()?.set(self.conditions(&mut dice));
            let to = match traveller.host() {
                "tokyo-1" => "osaka-1",
                _ => "tokyo-1",
            };
            traveller
                .go(&cluster, to)
                .with_context(|| format!("migration {number}"))?;
            writer
                .must_go_on()
                .with_context(|| format!("after migration {number}"))?;
            let awaited = dice.random_ratio(1, AWAITED) || number == self.migrations;
            if awaited {
                let (datacenter, _) = to.split_once('-').expect("hosts are named so");
                wait_near(&cluster, "web1", datacenter)
                    .with_context(|| format!("after migration {number}"))?;
            } else {
                std::thread::sleep(Duration::from_millis(dice.random_range(0..1500)));
            }
            let all_near = if awaited { ", all near" } else { "" };
            let took = begun.elapsed().as_secs_f64();
            say(&format!("ok   {took:>6.1}s {number}: {to}{all_near}"));
        }
        let operations = ticks.operations()?;
        let gaps = operations.windows(2);
        let longest_gap = gaps
            .map(|pair| pair[1].ended.since(pair[0].ended))
            .max()
            .unwrap_or_default();
        let verified = writer.finish()?;
        traveller.shutdown()?;
        Ok(Told {
            longest_gap,
            verified,
        })
    }

    /// Between no distance at all and the most.
    fn conditions(&self, dice: &mut ChaCha8Rng) -> Conditions {
        let most = dice.random_range(Duration::ZERO..=self.most_delay);
        let least = dice.random_range(Duration::ZERO..=most);
        Conditions {
            delay: least..=most,
            bytes_per_second: None,
        }
    }
}
