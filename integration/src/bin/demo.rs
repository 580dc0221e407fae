//! `cargo xtask demo`: the main job, from an empty directory to a disk that survived.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use integration::cluster::{Cluster, TWO_AND_TWO};
use integration::guest::ticks::{Doing, Ticks};
use integration::guest::{Guest, GuestConfig, manual_command};
use integration::migration::{Course, Traveller, Workload, ours, plot, timeline};
use integration::processes::{Lifetime, Scratch};
use integration::relay::{Conditions, Link};

/// Boot a guest on a replicated disk, kill it, and show that nothing is lost; then move it to the other
/// datacenter while it writes, and show how its disk follows.
#[derive(Parser)]
struct Arguments {
    /// Leave the cluster running and print how to go on
    #[arg(long)]
    keep: bool,
    /// Draw the move into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Between the datacenters, each way.
const DELAY: Duration = Duration::from_millis(10);

/// A guest without KVM on a busy machine.
const LONG: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut scratch = match Scratch::new("demo") {
        Ok(scratch) => scratch,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match demo(&mut scratch, &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            scratch.keep_logs();
            ExitCode::FAILURE
        }
    }
}

fn demo(scratch: &mut Scratch, arguments: &Arguments) -> Result<()> {
    let begun = Instant::now();
    let lifetime = if arguments.keep {
        Lifetime::MayStay
    } else {
        Lifetime::Ours
    };
    let mut cluster = step(
        "a placement service and four nodes are up, tokyo-1 and -2, osaka-1 and -2: 10 ms each way between them",
        || {
            let link = Link::new(Conditions::fixed(DELAY));
            Cluster::start_across(scratch, &TWO_AND_TWO, lifetime, Some(link))
        },
    )?;
    let config = survive(scratch, &cluster)?;
    follow(scratch, &cluster, arguments.plot.as_deref())?;
    let map = step("the disk's map", || {
        cluster.wait_allocated("web1", |bytes| bytes > 0)?;
        cluster.table(&["disk", "map", "web1"])
    })?;
    println!("\n{}\n", map.trim_end());
    println!("ok   {:>6.1}s in all", begun.elapsed().as_secs_f64());
    if arguments.keep {
        step("the distance is taken away", || cluster.unlink())?;
        cluster.leave();
        scratch.keep_data();
        say_how_to_go_on(scratch, &mut cluster, &config);
    }
    Ok(())
}

/// A guest is killed; nothing that it was promised is lost.
fn survive(scratch: &Scratch, cluster: &Cluster) -> Result<GuestConfig> {
    let socket = step(
        "disk web1 of 2 GiB, two copies, attached at tokyo-1",
        || {
            cluster.create_disk("web1", "2G", 2, "tokyo-1")?;
            cluster.attach("web1", "tokyo-1")
        },
    )?;
    let config = GuestConfig::new(socket);
    let boot = |name| Guest::boot(name, &config, scratch.data(), &scratch.log(name));
    let mut guest = step("a guest booted on it", || boot("guest"))?;
    step("the guest made ext4", || {
        guest.must("mkfs.ext4 -q /dev/vda 1G && mount /dev/vda /mnt", LONG)
    })?;
    let filled = step("the guest wrote 200 files, and synced", || {
        guest.must(
            "ukai-guest fill /mnt/files --seed 1 --files 200 --bytes 33554432 && sync",
            LONG,
        )
    })?;
    step("QEMU killed with -9", || {
        guest.kill_9();
        Ok(())
    })?;
    let mut guest = step("the guest booted again", || boot("guest-again"))?;
    step(
        "fsck: replayed the journal, then found nothing wrong",
        || {
            guest.must("e2fsck -p /dev/vda; test $? -le 1", LONG)?;
            guest.must("e2fsck -f -n /dev/vda", LONG)
        },
    )?;
    let checked = step(
        "every file is there, with the checksum that it was written with",
        || guest.must("mount /dev/vda /mnt && ukai-guest check /mnt/files", LONG),
    )?;
    let (filled, checked) = (filled.trim(), checked.trim());
    ensure!(
        filled.strip_prefix("filled ") == checked.strip_prefix("checked "),
        "written: {filled}; found: {checked}"
    );
    println!("             {checked}");
    step("the guest shut down", || guest.shutdown())?;
    Ok(config)
}

/// The guest moves while it writes; its disk follows it, and it notices next to nothing.
fn follow(scratch: &Scratch, cluster: &Cluster, plot: Option<&Path>) -> Result<()> {
    let workload = Workload {
        // Behind the file system, which is mounted meanwhile.
        hot_offset: 3 << 29,
        full_bytes: cluster.allocated("web1")? / 2,
        quiet: Duration::from_secs(5),
        ..Workload::full(2 << 30)
    };
    let ticks = Ticks::listen()?;
    let config = workload.config(&ticks);
    let (mut traveller, writer) = step(
        "the guest booted in tokyo; its writer writes, flushes and verifies",
        || {
            let mut traveller = Traveller::board(scratch, cluster, "web1", "tokyo-1", &config)?;
            traveller.guest().must("mount /dev/vda /mnt", LONG)?;
            let writer = workload.start(traveller.guest())?;
            Ok((traveller, writer))
        },
    )?;
    let course = step("live-migrated to osaka-1, and its disk is all near", || {
        ours::record(cluster, &mut traveller, "osaka-1", &ticks, &workload)
    })?;
    let verified = step("the writer found every block as it wrote it", || {
        writer.finish()
    })?;
    println!("             {verified}");
    let checked = step("every file is there, on osaka's stores", || {
        traveller.guest().must(
            "echo 3 > /proc/sys/vm/drop_caches; ukai-guest check /mnt/files",
            LONG,
        )
    })?;
    println!("             {}", checked.trim());
    step("the guest shut down", || traveller.shutdown())?;
    println!("\n{}", timeline::table(&course));
    println!("{}", summary(&course));
    if let Some(file) = plot {
        plot::draw(&[&course], file)?;
        println!("             drawn into {}", file.display());
    }
    Ok(())
}

fn summary(course: &Course) -> String {
    let marks = course.marks;
    let p50 = |from, to| {
        let latency = course.latency(Doing::Write, from..to);
        latency.map_or(f64::NAN, |latency| latency.p50_ms)
    };
    let resumed = course.resumed();
    format!(
        "the VM could move {:.2} s after it was wanted in osaka; all was near after {:.1} s\n\
         no answer for {:.0} ms at the switch-over\n\
         write p50: {:.2} ms in tokyo, {:.2} ms in the first second in osaka, {:.2} ms when all is near\n\
         {:.1} MB of the disk crossed the link\n",
        course.until_may_move().as_secs_f64(),
        course.whole().as_secs_f64(),
        course.downtime().as_secs_f64() * 1e3,
        p50(marks.begin, marks.go),
        p50(resumed, resumed.plus(Duration::from_secs(1))),
        p50(marks.settled, marks.end),
        course.crossed_bytes() as f64 / 1e6,
    )
}

fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let result = work();
    let mark = if result.is_ok() { "ok  " } else { "FAIL" };
    println!("{mark} {:>6.1}s {name}", begun.elapsed().as_secs_f64());
    result
}

fn say_how_to_go_on(scratch: &Scratch, cluster: &mut Cluster, config: &GuestConfig) {
    println!("\nThe cluster goes on. In a shell:");
    for (name, value) in cluster.environment() {
        println!("  export {name}={value}");
    }
    let program = cluster.program().display().to_string();
    println!("  {program} status");
    println!("  {program} disk map web1");
    println!("A guest on the disk, with a shell (poweroff -f ends it):");
    if let Ok(command) = manual_command(config) {
        println!("  {command}");
    }
    let pids: Vec<String> = cluster.pids().iter().map(u32::to_string).collect();
    println!("Its logs are in {}. To end it:", scratch.logs().display());
    println!(
        "  kill {}; rm -r {}",
        pids.join(" "),
        scratch.data().display()
    );
}
