//! Guests that are moved between datacenters, and migrations that come to nothing: no wrong block, no
//! error in the guest, wherever it ends up.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cluster::{Cluster, TWO_AND_TWO};
use integration::guest::ticks::Ticks;
use integration::guest::{Guest, MIGRATION_BOUND, Terms};
use integration::migration::soak::Soak;
use integration::migration::traveller::{Traveller, way};
use integration::migration::workload::{Workload, Writer};
use integration::processes::{Lifetime, Scratch, scenario};
use integration::relay::{Conditions, Link};

/// Its state is sent among the last things.
const UNUSED_DEVICE: [&str; 2] = ["-device", "virtio-rng-pci"];
const MOMENT: Duration = Duration::from_millis(400);

#[test]
fn a_disk_follows_its_guest_back_and_forth() {
    scenario("migrations", |scratch| {
        let soak = Soak {
            migrations: 4,
            most_delay: Duration::from_millis(15),
            seed: 1,
        };
        soak.run(scratch, |line| println!("{line}")).map(drop)
    });
}

#[test]
fn a_migration_that_comes_to_nothing_leaves_the_guest_where_it_is() {
    scenario("migrations-failed", come_to_nothing);
}

/// Every stage at which a migration can end, one after the other, on one guest; then one that succeeds.
fn come_to_nothing(scratch: &Scratch) -> Result<()> {
    let journey = Journey::begin(scratch)?;
    let Journey {
        cluster,
        mut traveller,
        mut writer,
        ..
    } = journey;
    let attempts: [(&str, Attempt); 6] = [
        ("cancelled in pre-copy", cancel_in_precopy),
        ("cancelled before the switch-over", cancel_before_switchover),
        ("destination killed in pre-copy", kill_in_precopy),
        (
            "destination killed before the switch-over",
            kill_before_switchover,
        ),
        ("destination cannot load it", fail_to_load),
        ("post-copy", refuse_postcopy),
    ];
    for (name, attempt) in attempts {
        attempt(&cluster, &mut traveller).with_context(|| name)?;
        traveller
            .guest()
            .wait_running(MIGRATION_BOUND)
            .with_context(|| name)?;
        writer
            .must_go_on()
            .with_context(|| format!("after: {name}: {}", state(&cluster)))?;
        // The source may still be taking the next epoch: what the writer had said before goes on first.
        let begun = std::time::Instant::now();
        loop {
            let disk = cluster.ukai(&["disk", "show", "web1"])?;
            if disk["open_for"] == "tokyo-1" {
                break;
            }
            ensure!(begun.elapsed() < MIGRATION_BOUND, "after: {name}: {disk}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        writer
            .must_go_on()
            .with_context(|| format!("open again after: {name}: {}", state(&cluster)))?;
    }
    traveller.go(&cluster, "osaka-1")?;
    writer.must_go_on()?;
    writer.finish()?;
    traveller.shutdown()
}

fn state(cluster: &Cluster) -> String {
    match cluster.ukai(&["disk", "show", "web1"]) {
        Ok(disk) => disk.to_string(),
        Err(error) => format!("{error:#}"),
    }
}

type Attempt = fn(&Cluster, &mut Traveller) -> Result<()>;

fn cancel_in_precopy(cluster: &Cluster, traveller: &mut Traveller) -> Result<()> {
    let destination = traveller.prepare(cluster, "osaka-1")?;
    let destination = under_way(cluster, traveller, destination, &Terms::default(), true)?;
    traveller.guest().stay()?;
    destination.kill_9();
    full_speed(cluster)
}

fn cancel_before_switchover(cluster: &Cluster, traveller: &mut Traveller) -> Result<()> {
    let destination = at_switchover(cluster, traveller)?;
    traveller.guest().stay()?;
    destination.kill_9();
    Ok(())
}

fn kill_in_precopy(cluster: &Cluster, traveller: &mut Traveller) -> Result<()> {
    let destination = traveller.prepare(cluster, "osaka-1")?;
    let destination = under_way(cluster, traveller, destination, &Terms::default(), true)?;
    destination.kill_9();
    traveller
        .guest()
        .wait_migration("failed", MIGRATION_BOUND)?;
    full_speed(cluster)
}

fn kill_before_switchover(cluster: &Cluster, traveller: &mut Traveller) -> Result<()> {
    let destination = at_switchover(cluster, traveller)?;
    destination.kill_9();
    // It may have noticed by itself that nobody is there.
    let _ = traveller.guest().switch_over();
    traveller
        .guest()
        .wait_migration("failed", MIGRATION_BOUND)
        .map(drop)
}

/// A destination that lacks a device: it finds out when the guest is stopped and all has crossed.
fn fail_to_load(cluster: &Cluster, traveller: &mut Traveller) -> Result<()> {
    let socket = cluster.attach("web1", "osaka-1")?;
    let mut other = traveller.incoming_on(socket);
    let lacking = other.devices.len() - UNUSED_DEVICE.len();
    other.devices.truncate(lacking);
    let destination = traveller.destination_with("osaka-1", &other)?;
    let destination = under_way(cluster, traveller, destination, &Terms::default(), false)?;
    traveller
        .guest()
        .wait_migration("failed", MIGRATION_BOUND)?;
    destination.kill_9();
    Ok(())
}

/// The guest would run on memory that the backend cannot reach: refused, and QEMU says why.
fn refuse_postcopy(cluster: &Cluster, traveller: &mut Traveller) -> Result<()> {
    let terms = Terms {
        postcopy: true,
        ..Terms::default()
    };
    let destination = traveller.prepare(cluster, "osaka-1")?;
    let refusal = match under_way(cluster, traveller, destination, &terms, false) {
        Err(refusal) => format!("{refusal:#}"),
        Ok(destination) => {
            let state = traveller
                .guest()
                .wait_migration("failed", MIGRATION_BOUND)?;
            destination.kill_9();
            state.to_string()
        }
    };
    ensure!(refusal.to_lowercase().contains("postcopy"), "{refusal}");
    Ok(())
}

/// A migration that has begun; a slow one stays in pre-copy for as long as it takes.
fn under_way(
    cluster: &Cluster,
    traveller: &mut Traveller,
    mut destination: Guest,
    terms: &Terms,
    slow: bool,
) -> Result<Guest> {
    if slow {
        cluster.link()?.set(conditions().limited(2 << 20));
    }
    destination.agree(terms)?;
    traveller.guest().agree(terms)?;
    let memory = cluster.link()?.tcp(way("osaka-1"), destination.listen()?)?;
    traveller.guest().depart(memory.address)?;
    if slow {
        traveller
            .guest()
            .wait_migration("active", MIGRATION_BOUND)?;
        std::thread::sleep(MOMENT);
    }
    Ok(destination)
}

/// The source is stopped, and its rings are; the destination has everything but the last word.
fn at_switchover(cluster: &Cluster, traveller: &mut Traveller) -> Result<Guest> {
    let terms = Terms {
        pause_before_switchover: true,
        ..Terms::default()
    };
    let destination = traveller.prepare(cluster, "osaka-1")?;
    let destination = under_way(cluster, traveller, destination, &terms, false)?;
    traveller
        .guest()
        .wait_migration("pre-switchover", MIGRATION_BOUND)?;
    Ok(destination)
}

fn full_speed(cluster: &Cluster) -> Result<()> {
    cluster.link()?.set(conditions());
    Ok(())
}

fn conditions() -> Conditions {
    Conditions::fixed(Duration::from_millis(10))
}

/// A guest in tokyo on a disk of 256 MiB, with its writer at work.
struct Journey<'a> {
    cluster: Cluster,
    traveller: Traveller<'a>,
    writer: Writer,
    _ticks: Ticks,
}

impl<'a> Journey<'a> {
    fn begin(scratch: &'a Scratch) -> Result<Journey<'a>> {
        let workload = Workload::full(256 << 20);
        let link = Some(Link::new(conditions()));
        let cluster = Cluster::start_across(scratch, &TWO_AND_TWO, Lifetime::Ours, link)?;
        cluster.create_disk("web1", "256M", 2, "tokyo-1")?;
        let ticks = Ticks::listen()?;
        let mut config = workload.config(&ticks);
        config.devices.extend(UNUSED_DEVICE.map(str::to_owned));
        let mut traveller = Traveller::board(scratch, &cluster, "web1", "tokyo-1", &config)?;
        let writer = workload.start(traveller.guest())?;
        Ok(Journey {
            cluster,
            traveller,
            writer,
            _ticks: ticks,
        })
    }
}
