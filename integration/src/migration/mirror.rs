//! The way without Ukai: QEMU copies the whole disk to the other side over NBD while the guest writes
//! (blockdev-mirror), and when both are equal, the VM may move. What libvirt's `--copy-storage-all` does.
//!
//! ```text
//!  source QEMU                  link                  destination QEMU
//!   disk.raw <- virtio-blk                             disk.raw (empty), nbd server, -incoming
//!   blockdev-mirror ── NBD, TCP ─────────────────────> all of it, in the background
//!   the last part with writes that wait for the copy
//!   BLOCK_JOB_READY: the VM may move
//!   migrate ── TCP ──────────────────────────────────> memory
//!   pre-switchover: stopped; the mirror ends
//!   migrate-continue ────────────────────────────────> runs, on its own disk.raw
//! ```

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::course::{Course, Gauge, Marks};
use super::workload::{Workload, no_disk_errors};
use crate::guest::ticks::{Stamp, Ticks};
use crate::guest::{Disk, Guest, GuestConfig, MIGRATION_BOUND, Terms};
use crate::processes::Scratch;
use crate::relay::{Link, Way};

/// The whole disk over a slow link.
const MIRROR_BOUND: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(50);
/// More than the guest dirties in the time of a copy: the writer's part of the disk, twice.
const LAST_PART: u64 = 32 << 20;

/// Moves a guest on a copy of `image` once over `link`.
pub fn run(scratch: &Scratch, workload: &Workload, image: &Path, link: &Link) -> Result<Course> {
    let disk = |host: &str| scratch.path(&format!("mirror-{host}.raw"));
    let (tokyo, osaka) = (disk("tokyo"), disk("osaka"));
    std::fs::copy(image, &tokyo).context("copy the image")?;
    File::open(&tokyo)?.sync_all()?;
    let ticks = Ticks::listen()?;
    let config = GuestConfig {
        disk: Disk::Image(tokyo.clone()),
        ..workload.config(&ticks)
    };
    let boot = |name: &str, config| Guest::boot(name, config, scratch.data(), &scratch.log(name));
    let mut source = boot("mirror-tokyo", &config)?;
    let writer = workload.start(&mut source)?;
    let begin = Stamp::now();
    thread::sleep(workload.quiet);

    let go = Stamp::now();
    File::create(&osaka)?.set_len(workload.disk_bytes)?;
    let incoming = config.incoming_on(Disk::Image(osaka.clone()));
    let mut destination = boot("mirror-osaka", &incoming)?;
    let nbd = link.tcp(Way::There, serve(&mut destination)?)?;
    let gauge = Gauge::start(nbd.meter());
    copy(&mut source, nbd.address)?;
    converge(&mut source)?;

    let may_move = Stamp::now();
    let terms = Terms {
        pause_before_switchover: true,
        ..Terms::default()
    };
    destination.agree(&terms)?;
    source.agree(&terms)?;
    let memory = link.tcp(Way::There, destination.listen()?)?;
    source.depart(memory.address)?;
    source.wait_migration("pre-switchover", MIGRATION_BOUND)?;
    // Ready, the mirror's cancellation means: make both equal, and leave the guest where it is.
    source.qmp("block-job-cancel", json!({ "device": "mirror" }))?;
    source.qmp_event("BLOCK_JOB_COMPLETED", MIGRATION_BOUND)?;
    source.switch_over()?;
    source.wait_migration("completed", MIGRATION_BOUND)?;
    destination.arrive(source)?;
    let arrived = Stamp::now();
    destination.qmp("nbd-server-stop", json!({}))?;
    thread::sleep(workload.quiet);

    let end = Stamp::now();
    let operations = ticks.operations()?;
    let crossed = gauge.samples();
    let verified = writer.finish()?;
    destination.shutdown()?;
    no_disk_errors(scratch, &["mirror-tokyo", "mirror-osaka"])?;
    remove([tokyo, osaka])?;
    Ok(Course {
        name: "mirror",
        operations,
        marks: Marks {
            begin,
            go,
            may_move,
            arrived,
            settled: arrived,
            dropped: arrived,
            end,
        },
        crossed,
        near_reads: Vec::new(),
        allocated_bytes: workload.full_bytes,
        read_far_bytes: 0,
        verified,
    })
}

/// The destination offers its empty disk.
fn serve(destination: &mut Guest) -> Result<SocketAddr> {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let address = json!({
        "type": "inet",
        "data": { "host": "127.0.0.1", "port": free.port().to_string() },
    });
    destination.qmp("nbd-server-start", json!({ "addr": address }))?;
    let export = json!({
        "type": "nbd", "id": "disk", "node-name": "disk", "name": "disk", "writable": true,
    });
    destination.qmp("block-export-add", export)?;
    Ok(free)
}

/// The source begins to copy all of its disk there.
fn copy(source: &mut Guest, to: SocketAddr) -> Result<()> {
    let server = json!({ "type": "inet", "host": "127.0.0.1", "port": to.port().to_string() });
    let target = json!({
        "driver": "nbd", "node-name": "target", "server": server, "export": "disk",
        "discard": "unmap",
    });
    source.qmp("blockdev-add", target)?;
    let job = json!({
        "job-id": "mirror", "device": "disk", "target": "target", "sync": "full",
    });
    source.qmp("blockdev-mirror", job).map(drop)
}

/// Waits until both disks are equal. Copied in the background, they never are while a guest writes: the
/// job wants one moment with nothing left and nothing under way, and each copy is under way for a round
/// trip. So the last part goes on with the guest's writes waiting for the far side, as QEMU offers.
fn converge(source: &mut Guest) -> Result<()> {
    let deadline = Instant::now() + MIRROR_BOUND;
    loop {
        let jobs = source.qmp("query-block-jobs", json!({}))?;
        let job = &jobs[0];
        let number = |name: &str| job[name].as_u64().context("a job that reports progress");
        let (all, done) = (number("len")?, number("offset")?);
        // It has not counted yet when it says that all is nothing.
        if all > 0 && all.saturating_sub(done) < LAST_PART {
            break;
        }
        ensure!(Instant::now() < deadline, "not mirrored in time: {jobs}");
        thread::sleep(POLL);
    }
    let change = json!({ "id": "mirror", "type": "mirror", "copy-mode": "write-blocking" });
    source.qmp("block-job-change", change)?;
    source.qmp_event("BLOCK_JOB_READY", MIRROR_BOUND).map(drop)
}

fn remove(images: [PathBuf; 2]) -> Result<()> {
    for image in images {
        std::fs::remove_file(image)?;
    }
    Ok(())
}
