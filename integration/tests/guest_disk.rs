//! What a guest may rely on, shown with real guests on a real cluster: every process its own, every
//! failure a SIGKILL.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cluster::{Cluster, TOKYO_AND_OSAKA};
use integration::guest::ticks::{PORT, Stamp, Ticks};
use integration::guest::{Guest, GuestConfig, Task};
use integration::processes::{Lifetime, Scratch, scenario};

const SHORT: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);

/// The verifying writer's region: behind the file system, on the last extents of the disk.
const WRITER: &str = "/dev/vda --offset 1073741824 --blocks 512 --threads 2 --seed 42";

#[test]
fn what_was_flushed_survives_a_killed_guest() {
    scenario("killed-guest", survive_a_killed_guest);
}

fn survive_a_killed_guest(scratch: &Scratch) -> Result<()> {
    let (_cluster, config) = cluster_with_disk(scratch)?;
    let mut guest = boot("guest", &config, scratch)?;
    guest.must("mkfs.ext4 -q /dev/vda 512M && mount /dev/vda /mnt", LONG)?;
    let filled = guest.must(
        "ukai-guest fill /mnt/files --seed 3 --files 100 --bytes 16777216",
        LONG,
    )?;
    let mut writer = start_writer(&mut guest)?;
    // More files, never synced: the file system must be found whole around them.
    guest.start("while :; do cp -r /mnt/files /mnt/unsynced; rm -r /mnt/unsynced; done")?;
    let flushed = [flushed(&mut writer, 0, 600)?, flushed(&mut writer, 1, 600)?];
    guest.kill_9();

    let mut guest = boot("again", &config, scratch)?;
    guest.must("e2fsck -p /dev/vda; test $? -le 1", LONG)?;
    guest.must("e2fsck -f -n /dev/vda", LONG)?;
    guest.must("mount /dev/vda /mnt", SHORT)?;
    let checked = guest.must("ukai-guest check /mnt/files", LONG)?;
    ensure!(
        filled.trim().strip_prefix("filled") == checked.trim().strip_prefix("checked"),
        "written: {filled}; found: {checked}"
    );
    let [first, second] = flushed;
    guest.must(
        &format!("ukai-guest verify-check {WRITER} --flushed {first},{second}"),
        LONG,
    )?;
    guest.shutdown()
}

#[test]
fn queues_serial_sectors_and_discard() {
    scenario("device", look_at_the_device);
}

fn look_at_the_device(scratch: &Scratch) -> Result<()> {
    let (cluster, config) = cluster_with_disk(scratch)?;
    let config = GuestConfig {
        queues: 2,
        cpus: 2,
        memory_mib: 384,
        ..config
    };
    let mut guest = boot("guest", &config, scratch)?;

    let queues = guest.must("ls /sys/block/vda/mq | wc -l", SHORT)?;
    ensure!(queues.trim() == "2", "the guest sees {queues} queues");
    let size = guest.must("cat /sys/block/vda/size", SHORT)?;
    ensure!(
        size.trim() == (2_u64 << 30 >> 9).to_string(),
        "the guest sees {size} sectors"
    );
    let serial = guest.must("cat /sys/block/vda/serial", SHORT)?;
    ensure!(!serial.trim().is_empty(), "the disk has no serial number");

    let sectors = "ukai-guest sectors /dev/vda --offset 4096 --sectors 1024 --threads 8 --rounds 3";
    guest.must(sectors, LONG)?;

    give_space_back(&cluster, &mut guest)?;
    let zero =
        "dd if=/dev/vda bs=1M skip=64 count=64 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c";
    ensure!(
        guest.must(zero, LONG)?.trim() == "0",
        "a discarded range is not zero"
    );

    // File systems ask by themselves too.
    guest.must("mkfs.ext4 -q /dev/vda 512M && mount /dev/vda /mnt", LONG)?;
    guest.must(
        "ukai-guest fill /mnt/files --seed 5 --files 50 --bytes 67108864",
        LONG,
    )?;
    let written = cluster.wait_allocated("web1", |bytes| bytes >= 100 << 20)?;
    guest.must("rm -r /mnt/files && sync && fstrim /mnt", LONG)?;
    cluster.wait_allocated("web1", |bytes| bytes <= written - (80 << 20))?;

    // The same disk shows the same number when it comes back.
    guest.shutdown()?;
    let mut guest = boot("again", &config, scratch)?;
    ensure!(
        guest.must("cat /sys/block/vda/serial", SHORT)? == serial,
        "the serial number changed"
    );
    guest.shutdown()
}

/// 64 MiB written and discarded, six times over: the disk's blocks go at once, and the files that held
/// them when the cleaner has come by. It leaves two segments of garbage a store, and a part of one.
fn give_space_back(cluster: &Cluster, guest: &mut Guest) -> Result<()> {
    // What `sectors` wrote, on both stores: they report a moment later.
    let at_rest = cluster.wait_allocated("web1", |bytes| bytes >= 1 << 20)?;
    let files_at_rest = file_bytes(cluster)?;
    guest.must("dd if=/dev/urandom of=/tmp/random bs=1M count=64", LONG)?;
    for _ in 0..6 {
        guest.must(
            "dd if=/tmp/random of=/dev/vda bs=1M seek=64 oflag=direct && sync",
            LONG,
        )?;
        cluster.wait_allocated("web1", |bytes| bytes >= at_rest + (2 * 64 << 20))?;
        guest.must(
            "ukai-guest discard /dev/vda --offset 67108864 --bytes 67108864",
            SHORT,
        )?;
        cluster.wait_allocated("web1", |bytes| bytes <= at_rest)?;
    }
    guest.must("rm /tmp/random && ukai-guest flush /dev/vda", SHORT)?;
    let deadline = Instant::now() + SHORT;
    let most = files_at_rest + 2 * (3 * 64 << 20);
    while file_bytes(cluster)? > most {
        ensure!(
            Instant::now() < deadline,
            "files: {} bytes, at most {most}",
            file_bytes(cluster)?
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// What the stores' files occupy on this machine's file system.
fn file_bytes(cluster: &Cluster) -> Result<u64> {
    let mut bytes = 0;
    for spec in &TOKYO_AND_OSAKA {
        for entry in std::fs::read_dir(cluster.store_dir(spec.host))? {
            // The cleaner may remove a file between the listing and the look at it.
            bytes += entry?
                .metadata()
                .map_or(0, |metadata| metadata.blocks() * 512);
        }
    }
    Ok(bytes)
}

#[test]
fn a_guest_outlives_its_nodes() {
    scenario("killed-node", outlive_nodes);
}

/// The node that serves the guest, and the one with the other copy, each killed under a writer that
/// would notice one lost, stale or repeated block, and started again.
fn outlive_nodes(scratch: &Scratch) -> Result<()> {
    let (mut cluster, config) = cluster_with_disk(scratch)?;
    let config = GuestConfig {
        queues: 2,
        cpus: 2,
        ..config
    };
    let mut guest = boot("guest", &config, scratch)?;
    let mut writer = start_writer(&mut guest)?;
    let other = other_copy(&cluster)?;
    let mut reached = 100;
    for host in ["tokyo-1", &other, "tokyo-1"] {
        reached = flushed(&mut writer, 0, reached)?;
        cluster.kill_node_9(host)?;
        std::thread::sleep(Duration::from_millis(700));
        cluster.start_node(host)?;
        // Some writes were under way, and were completed afterwards: the writer goes on from there.
        reached = flushed(&mut writer, 0, reached + 200)
            .with_context(|| format!("after {host} was killed and started again"))?;
        cluster.wait_up()?;
    }
    // The placement service is not in the way of a write: away for many of them, back with all it knew.
    cluster.kill_placement_9()?;
    flushed(&mut writer, 0, reached + 400)?;
    cluster.start_placement()?;
    cluster.wait_up()?;
    let disk = cluster.ukai(&["disk", "show", "web1"])?;
    ensure!(
        disk["open_for"] == "tokyo-1",
        "after its restart the placement service says {disk}"
    );
    let totals = writer.stopped(LONG)?;
    ensure!(totals.contains("verified writes="), "{totals}");
    let console = std::fs::read_to_string(scratch.log("guest"))?;
    ensure!(
        !console.contains("I/O error"),
        "the guest saw an error:\n{console}"
    );
    guest.shutdown()
}

#[test]
fn an_upgrade_is_a_short_pause_for_the_guest() {
    scenario("upgrade", upgrade_under_a_guest);
}

type Again = fn(&mut Cluster, &str) -> Result<()>;

/// The node that serves the guest becomes its own successor three times, then the other member's does; both
/// are stopped and started, and killed and started. How long the guest waited is printed: look with `--nocapture`.
fn upgrade_under_a_guest(scratch: &Scratch) -> Result<()> {
    let (mut cluster, config) = cluster_with_disk(scratch)?;
    cluster.run_a_copy(scratch)?;
    let ticks = Ticks::listen()?;
    let config = GuestConfig {
        devices: ticks.device().to_vec(),
        ..config
    };
    let mut guest = boot("guest", &config, scratch)?;
    let mut writer = guest.start(&format!(
        "ukai-guest verify-writer {WRITER} --flush-every 16 --ticks {PORT}"
    ))?;
    let other = other_copy(&cluster)?;
    let upgraded: Again = |cluster, host| {
        cluster.replace_program()?;
        ensure!(!cluster.is_upgraded(host)?, "it runs the old program");
        cluster.upgrade_node(host)
    };
    let stopped: Again = |cluster, host| cluster.restart_node(host);
    let killed: Again = |cluster, host| {
        cluster.kill_node_9(host)?;
        cluster.start_node(host)
    };
    let ways = [
        ("upgraded", "tokyo-1", upgraded),
        ("upgraded", "tokyo-1", upgraded),
        ("upgraded", "tokyo-1", upgraded),
        ("upgraded", other.as_str(), upgraded),
        ("stopped and started", "tokyo-1", stopped),
        ("stopped and started", other.as_str(), stopped),
        ("killed and started", "tokyo-1", killed),
        ("killed and started", other.as_str(), killed),
    ];
    let mut reached = 100;
    for (way, host, again) in ways {
        reached = flushed(&mut writer, 0, reached)?;
        let members = members(&cluster)?;
        let from = Stamp::now();
        again(&mut cluster, host)?;
        // Past what was under way, so that it is the new process that serves.
        std::thread::sleep(Duration::from_millis(1500));
        reached = flushed(&mut writer, 0, reached + 200)
            .with_context(|| format!("after {host} was {way}"))?;
        cluster.wait_up()?;
        ensure!(
            way != "upgraded" || cluster.is_upgraded(host)?,
            "{host} runs the old program"
        );
        let operations = ticks.operations()?;
        let since: Vec<_> = operations.iter().filter(|o| o.ended >= from).collect();
        let gap = since
            .windows(2)
            .map(|pair| pair[1].ended.since(pair[0].ended))
            .max();
        let longest = since.iter().map(|operation| operation.took()).max();
        let ejected = match self::members(&cluster)? == members {
            true => "",
            false => ", and a member was ejected for it",
        };
        println!(
            "{host} {way}: nothing completed for {} ms, the longest request took {} ms{ejected}",
            gap.unwrap_or_default().as_millis(),
            longest.unwrap_or_default().as_millis()
        );
    }
    let totals = writer.stopped(LONG)?;
    ensure!(totals.contains("verified writes="), "{totals}");
    let console = std::fs::read_to_string(scratch.log("guest"))?;
    ensure!(
        !console.contains("I/O error"),
        "the guest saw an error:\n{console}"
    );
    let log = std::fs::read_to_string(scratch.log("tokyo-1"))?;
    let successors = log.matches("found what comes next").count();
    ensure!(successors == 3, "tokyo-1 was upgraded {successors} times");
    guest.shutdown()
}

/// The hosts that have a copy.
fn members(cluster: &Cluster) -> Result<Vec<String>> {
    let map = cluster.ukai(&["disk", "map", "web1"])?;
    let stores = map["stores"].as_array().context("stores")?.iter();
    let hosts = stores.filter_map(|store| store["host"].as_str());
    Ok(hosts.map(str::to_owned).collect())
}

fn cluster_with_disk(scratch: &Scratch) -> Result<(Cluster, GuestConfig)> {
    let cluster = Cluster::start(scratch, &TOKYO_AND_OSAKA, Lifetime::Ours)?;
    cluster.create_disk("web1", "2G", 2, "tokyo-1")?;
    let socket = cluster.attach("web1", "tokyo-1")?;
    Ok((cluster, GuestConfig::new(socket)))
}

fn boot(name: &str, config: &GuestConfig, scratch: &Scratch) -> Result<Guest> {
    Guest::boot(name, config, scratch.data(), &scratch.log(name))
}

fn start_writer(guest: &mut Guest) -> Result<Task> {
    guest.start(&format!(
        "ukai-guest verify-writer {WRITER} --flush-every 16"
    ))
}

/// Waits until the writer's thread has had write `at_least` flushed; returns the one it reported.
fn flushed(writer: &mut Task, thread: u64, at_least: u64) -> Result<u64> {
    let head = format!("flushed thread={thread} seq=");
    loop {
        let line = writer.wait_for(&head, LONG)?;
        let sequence = line.strip_prefix(&head).context("a whole line")?.parse()?;
        if sequence >= at_least {
            return Ok(sequence);
        }
    }
}

/// The host, beside tokyo-1, that the disk's first extent stands on.
fn other_copy(cluster: &Cluster) -> Result<String> {
    let map = cluster.ukai(&["disk", "map", "web1"])?;
    let hosts = map["stores"].as_array().context("stores")?.iter();
    let other = hosts
        .filter_map(|store| store["host"].as_str())
        .find(|host| *host != "tokyo-1");
    Ok(other.context("two copies on two hosts")?.to_owned())
}
