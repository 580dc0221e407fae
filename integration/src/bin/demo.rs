//! `cargo xtask demo`: the main job, from an empty directory to a disk that survived.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use integration::cluster::{Cluster, TOKYO_AND_OSAKA};
use integration::guest::{Guest, GuestConfig, manual_command};
use integration::processes::{Lifetime, Scratch};

/// Boot a guest on a replicated disk, kill it, and show that nothing is lost.
#[derive(Parser)]
struct Arguments {
    /// Leave the cluster running and print how to go on
    #[arg(long)]
    keep: bool,
}

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
    match demo(&mut scratch, arguments.keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            scratch.keep_logs();
            ExitCode::FAILURE
        }
    }
}

fn demo(scratch: &mut Scratch, keep: bool) -> Result<()> {
    let begun = Instant::now();
    let lifetime = if keep {
        Lifetime::MayStay
    } else {
        Lifetime::Ours
    };
    let mut cluster = step(
        "a placement service and three nodes are up: tokyo-1, tokyo-2, osaka-1",
        || Cluster::start(scratch, &TOKYO_AND_OSAKA, lifetime),
    )?;
    let socket = step(
        "disk web1 of 2 GiB, two copies, attached at tokyo-1",
        || {
            cluster.create_disk("web1", "2G", 2, "tokyo-1")?;
            cluster.attach("web1", "tokyo-1")
        },
    )?;
    let config = GuestConfig::new(socket);
    let mut guest = step("a guest booted on it", || {
        Guest::boot("guest", &config, scratch.data(), &scratch.log("guest"))
    })?;
    step("the guest made ext4", || {
        guest.must("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt", LONG)
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
    let mut guest = step("the guest booted again", || {
        Guest::boot(
            "guest-again",
            &config,
            scratch.data(),
            &scratch.log("guest-again"),
        )
    })?;
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
    let map = step("the disk's map", || {
        cluster.wait_allocated("web1", |bytes| bytes > 0)?;
        cluster.table(&["disk", "map", "web1"])
    })?;
    println!("\n{}\n", map.trim_end());
    println!("ok   {:>6.1}s in all", begun.elapsed().as_secs_f64());
    if keep {
        cluster.leave();
        scratch.keep_data();
        say_how_to_go_on(scratch, &mut cluster, &config);
    }
    Ok(())
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
