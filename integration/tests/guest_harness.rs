//! The guest harness and the guest's own oracles, against a backend that is not ours. What fails here
//! is no fault of Ukai's.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use integration::guest::{Guest, GuestConfig, StorageDaemon};
use integration::processes::{Scratch, scenario};

const SHORT: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(90);

#[test]
fn a_guest_on_a_foreign_backend() {
    scenario("harness", on_a_foreign_backend);
}

fn on_a_foreign_backend(scratch: &Scratch) -> Result<()> {
    let mut daemon = StorageDaemon::start(scratch, 256 << 20, 2)?;
    let config = GuestConfig {
        queues: 2,
        cpus: 2,
        ..GuestConfig::new(daemon.socket())
    };
    let log = scratch.log("guest");
    let mut guest = Guest::boot("guest", &config, scratch.data(), &log)?;

    let queues = guest.must("ls /sys/block/vda/mq | wc -l", SHORT)?;
    ensure!(queues.trim() == "2", "queues: {queues}");
    let status = guest.run("echo one; echo two >&2; exit 3", SHORT)?;
    ensure!(
        status.status == 3 && status.text.lines().count() == 2,
        "{status:?}"
    );
    ensure!(guest.qmp("query-status", serde_json::json!({}))?["running"] == true);

    guest.must(
        "ukai-guest sectors /dev/vda --offset 1048576 --sectors 256 --threads 4 --rounds 2",
        LONG,
    )?;
    let before = allocated(&daemon);
    guest.must(
        "ukai-guest discard /dev/vda --offset 1048576 --bytes 131072",
        SHORT,
    )?;
    ensure!(allocated(&daemon) < before, "discard gave nothing back");

    let mut writer = guest.start(
        "ukai-guest verify-writer /dev/vda --offset 134217728 --blocks 64 --threads 2 --seed 1 --flush-every 16",
    )?;
    writer.wait_for("flushed thread=0", SHORT)?;
    writer.wait_for("flushed thread=1", SHORT)?;
    writer.stopped(SHORT)?;

    guest.must(
        "mkfs.ext4 -q -F -E nodiscard /dev/vda 100M && mkdir -p /mnt && mount /dev/vda /mnt",
        LONG,
    )?;
    let filled = guest.must(
        "ukai-guest fill /mnt/files --seed 7 --files 20 --bytes 2000000 && sync",
        LONG,
    )?;
    guest.kill_9();

    let log = scratch.log("guest-again");
    let mut guest = Guest::boot("again", &config, scratch.data(), &log)?;
    guest.must(
        "e2fsck -p /dev/vda; test $? -le 1 && e2fsck -f -n /dev/vda",
        LONG,
    )?;
    guest.must("mount /dev/vda /mnt", SHORT)?;
    let checked = guest.must("ukai-guest check /mnt/files", LONG)?;
    ensure!(filled.trim().strip_prefix("filled") == checked.trim().strip_prefix("checked"));
    guest.shutdown()?;
    daemon.must_run()
}

/// The oracle must see a fault: one changed byte under the writer's feet.
#[test]
fn the_verifying_writer_notices_a_changed_block() {
    scenario("harness-planted", notice_a_changed_block);
}

fn notice_a_changed_block(scratch: &Scratch) -> Result<()> {
    let daemon = StorageDaemon::start(scratch, 16 << 20, 1)?;
    let log = scratch.log("guest");
    let mut guest = Guest::boot(
        "guest",
        &GuestConfig::new(daemon.socket()),
        scratch.data(),
        &log,
    )?;
    let mut writer = guest.start(
        "ukai-guest verify-writer /dev/vda --offset 0 --blocks 16 --threads 1 --seed 1 --flush-every 8",
    )?;
    writer.wait_for("flushed", SHORT)?;
    let image = std::fs::File::options().write(true).open(daemon.image())?;
    let deadline = Instant::now() + SHORT;
    let mut at = 0;
    while Instant::now() < deadline {
        std::os::unix::fs::FileExt::write_all_at(&image, &[0xff; 8], at % 16 * 4096 + 2048)?;
        at += 1;
        if let Err(error) = writer.wait_for("nothing", Duration::from_millis(10)) {
            if error.to_string().contains("FAILED block") {
                return Ok(());
            }
            ensure!(error.to_string().contains("no end in time"), "{error}");
        }
    }
    bail!("it noticed nothing:\n{}", writer.text())
}

fn allocated(daemon: &StorageDaemon) -> u64 {
    std::fs::metadata(daemon.image())
        .expect("the image")
        .blocks()
        * 512
}
