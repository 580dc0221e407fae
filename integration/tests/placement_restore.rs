//! The catalog is lost under a disk that is written all the while. An old backup of it is put back: no old epoch
//! comes back with it, and rebuilt from the stores it knows all that happened since. Without a backup the stores
//! know enough.

use anyhow::{Context, Result, ensure};
use integration::cluster::{Cluster, TOKYO_AND_OSAKA, TWO_AND_TWO, wait_for};
use integration::lone_writer::LoneWriter;
use integration::processes::{Lifetime, Scratch, scenario};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

const MIB: usize = 1 << 20;
/// Nothing here may take longer, whatever the machine is busy with.
const BOUND: Duration = Duration::from_secs(90);
/// Longer than a store may be silent before it is to be ejected.
const LONGER_THAN_AN_EJECTION: Duration = Duration::from_secs(7);
/// Exit code: the state of the cluster does not allow it.
const REFUSED: i32 = 3;
const NOT_FOUND: i32 = 4;

#[test]
fn an_old_backup_brings_no_old_epoch_back_and_the_stores_know_the_rest() {
    scenario("placement-restore", restores);
}

#[test]
fn without_a_backup_the_stores_know_enough() {
    scenario("placement-lost", comes_back);
}

fn comes_back(scratch: &Scratch) -> Result<()> {
    let mut cluster = Cluster::start(scratch, &TOKYO_AND_OSAKA, Lifetime::Ours)?;
    cluster.create_disk("open", "32M", 2, "tokyo-1")?;
    cluster.create_disk("closed", "32M", 2, "tokyo-1")?;
    let closed = import(&cluster, scratch, "closed", 1)?;
    let mut writer = LoneWriter::attach(&cluster, "open", "tokyo")?;
    let before = epoch(&cluster, "open")?;
    cluster.kill_placement_9()?;
    cluster.set_catalog(scratch.path("empty.redb"));
    cluster.start_placement()?;
    cluster.wait_up()?;
    // A catalog that knows nothing ends nobody, and nobody knows yet what it has lost.
    writer.progress(3)?;
    let (code, why) = cluster.refused(&["disk", "map", "open"])?;
    ensure!(code == NOT_FOUND, "{code}: {why}");
    let rebuilt = cluster.ukai(&["placement", "rebuild", "--from-stores"])?;
    ensure!(rebuilt["complete"] == true, "{rebuilt}");
    ensure!(epoch(&cluster, "open")? == before, "it is open as it was");
    cluster.kill_node_9("tokyo-2")?;
    writer.progress(3)?;
    ensure!(epoch(&cluster, "open")? > before, "nobody was ejected");
    cluster.start_node("tokyo-2")?;
    cluster.wait_up()?;
    let written = writer.finish()?;
    cluster.detach("open")?;
    ensure!(export(&cluster, scratch, "open")? == written, "open");
    ensure!(export(&cluster, scratch, "closed")? == closed, "closed");
    Ok(())
}

fn restores(scratch: &Scratch) -> Result<()> {
    let mut cluster = Cluster::start(scratch, &TWO_AND_TWO, Lifetime::Ours)?;
    cluster.create_disk("open", "64M", 2, "tokyo-1")?;
    cluster.create_disk("moved", "32M", 2, "tokyo-1")?;
    cluster.create_disk("deleted", "16M", 2, "tokyo-1")?;
    import(&cluster, scratch, "moved", 1)?;
    import(&cluster, scratch, "deleted", 2)?;
    let mut writer = LoneWriter::attach(&cluster, "open", "tokyo")?;
    let backup = scratch.path("backup");
    cluster.ukai(&["placement", "backup", text(&backup)?])?;

    let moved = go_on(&mut cluster, scratch, &writer)?;
    let made = import(&cluster, scratch, "made", 4)?;
    let disks = ["open", "moved", "made"];
    let before = disks.map(|disk| epoch(&cluster, disk));

    let generation = lose_the_catalog(&mut cluster, scratch, &backup)?;
    nothing_old_comes_back(&mut cluster, &writer)?;
    cluster.start_node("osaka-1")?;
    cluster.start_node("osaka-2")?;
    cluster.wait_up()?;

    let plan = cluster.ukai(&["placement", "rebuild", "--from-stores", "--plan"])?;
    ensure!(plan["done"] == false && plan["complete"] == true, "{plan}");
    let rebuilt = cluster.ukai(&["placement", "rebuild", "--from-stores"])?;
    ensure!(rebuilt["complete"] == true, "{rebuilt}");
    for (disk, wanted) in [
        ("open", "newer"),
        ("moved", "newer"),
        ("made", "found"),
        ("deleted", "as-it-is"),
    ] {
        let disks = rebuilt["disks"].as_array().context("disks")?;
        let found = disks.iter().find(|found| found["name"] == disk);
        let verdict = found.map(|found| &found["verdict"]);
        ensure!(verdict == Some(&wanted.into()), "{disk}: {rebuilt}");
    }
    let now = rebuilt["generation"].as_u64().context("a generation")?;
    ensure!(now > generation, "{now} after {generation}");
    for (disk, before) in disks.into_iter().zip(before) {
        let (before, after) = (before?, epoch(&cluster, disk)?);
        ensure!(after >= before, "{disk}: epoch {after} after {before}");
    }

    // Whoever has it open goes on, and without a member again: in the new generation.
    writer.progress(3)?;
    cluster.kill_node_9("tokyo-2")?;
    writer.progress(3)?;
    let after = epoch(&cluster, "open")?;
    ensure!(after >> 48 == now, "epoch {after} is of generation {now}");
    cluster.start_node("tokyo-2")?;
    cluster.wait_up()?;
    let written = writer.finish()?;
    cluster.detach("open")?;
    ensure!(export(&cluster, scratch, "open")? == written, "open");
    ensure!(export(&cluster, scratch, "moved")? == moved, "moved");
    ensure!(export(&cluster, scratch, "made")? == made, "made");

    // It was deleted after the backup: what the backup knew of it is deleted again.
    cluster.ukai(&["disk", "delete", "deleted", "--yes"])?;
    ensure!(cluster.ukai(&["status"])?["generation"] == now);
    Ok(())
}

/// What the backup knows nothing of: members that went and came, stores that were started anew, a disk that
/// moved and was written, one that is made, one that is deleted. What the moved one holds.
fn go_on(cluster: &mut Cluster, scratch: &Scratch, writer: &LoneWriter) -> Result<Vec<u8>> {
    let before = epoch(cluster, "open")?;
    cluster.kill_node_9("tokyo-2")?;
    writer.progress(3)?;
    ensure!(epoch(cluster, "open")? > before, "nobody was ejected");
    for host in ["osaka-1", "osaka-2"] {
        cluster.kill_node_9(host)?;
        cluster.start_node(host)?;
    }
    cluster.start_node("tokyo-2")?;
    cluster.wait_up()?;
    cluster.ukai(&["disk", "move", "moved", "--to", "osaka", "--leave"])?;
    wait_for("copy in osaka alone", BOUND, || {
        let map = cluster.ukai(&["disk", "map", "moved"])?;
        let stores = map["stores"].as_array().context("a map lists stores")?;
        let mut datacenters = stores.iter().map(|store| &store["datacenter"]);
        Ok(datacenters.all(|name| name == "osaka").then_some(()))
    })?;
    wait_for("whole copies", BOUND, || {
        Ok((cluster.ukai(&["status"])?["disks_short"] == 0).then_some(()))
    })?;
    let moved = import_over(cluster, scratch, "moved", 3)?;
    cluster.ukai(&["disk", "delete", "deleted", "--yes"])?;
    cluster.create_disk("made", "32M", 2, "osaka-1")?;
    wait_for("end of the deletion", BOUND, || {
        let status = cluster.ukai(&["status"])?;
        let problems = status["problems"].as_array().context("problems")?;
        Ok(problems.is_empty().then_some(()))
    })?;
    writer.progress(3)?;
    Ok(moved)
}

/// The placement service and its catalog are gone, and half of the stores at the same time; the old backup
/// is all that is left. The generation that it is restored as.
fn lose_the_catalog(cluster: &mut Cluster, scratch: &Scratch, backup: &Path) -> Result<u64> {
    cluster.kill_placement_9()?;
    cluster.kill_node_9("osaka-1")?;
    cluster.kill_node_9("osaka-2")?;
    let (lost, restored) = (scratch.path("catalog.redb"), scratch.path("restored.redb"));
    let (code, why) = cluster.refused(&restore(backup, &lost)?)?;
    ensure!(
        code == REFUSED && why.contains("not empty"),
        "{code}: {why}"
    );
    let done = cluster.ukai(&restore(backup, &restored)?)?;
    cluster.set_catalog(restored);
    cluster.start_placement()?;
    wait_for("two stores", BOUND, || {
        Ok((cluster.ukai(&["status"])?["stores_up"] == 2).then_some(()))
    })?;
    done["generation"].as_u64().context("a generation")
}

/// While the stores of a disk know better, or have not been heard, it is not touched.
fn nothing_old_comes_back(cluster: &mut Cluster, writer: &LoneWriter) -> Result<()> {
    for disk in ["moved", "open"] {
        let attach = ["disk", "attach", disk, "--node", "tokyo-1", "--takeover"];
        let (code, why) = cluster.refused(&attach)?;
        let tells = why.contains("ukai placement rebuild");
        ensure!(code == REFUSED && tells, "{disk}: {code}: {why}");
    }
    let status = cluster.table(&["status"])?;
    ensure!(status.contains("ukai placement rebuild"), "{status}");
    let stores = cluster.ukai(&["store", "list"])?;
    let stores = stores.as_array().context("stores")?;
    ensure!(
        stores.iter().all(|store| store["refused"] == Value::Null),
        "a store that was started since the backup is refused: {stores:?}"
    );
    let plan = ["placement", "rebuild", "--from-stores", "--plan"];
    let (code, why) = cluster.refused(&plan)?;
    ensure!(code == REFUSED, "{code}: {why}");
    // What is open goes on. It is not ended either when it needs what it cannot have now, but waits.
    writer.progress(3)?;
    cluster.kill_node_9("tokyo-2")?;
    std::thread::sleep(LONGER_THAN_AN_EJECTION);
    cluster.start_node("tokyo-2")?;
    writer.progress(3)
}

fn restore<'a>(backup: &'a Path, catalog: &'a Path) -> Result<[&'a str; 5]> {
    Ok([
        "placement",
        "restore",
        text(backup)?,
        "--catalog",
        text(catalog)?,
    ])
}

/// Fills a new disk; what it holds then.
fn import(cluster: &Cluster, scratch: &Scratch, disk: &str, seed: usize) -> Result<Vec<u8>> {
    import_with(cluster, scratch, disk, seed, &[])
}

fn import_over(cluster: &Cluster, scratch: &Scratch, disk: &str, seed: usize) -> Result<Vec<u8>> {
    import_with(cluster, scratch, disk, seed, &["--overwrite"])
}

fn import_with(
    cluster: &Cluster,
    scratch: &Scratch,
    disk: &str,
    seed: usize,
    more: &[&str],
) -> Result<Vec<u8>> {
    let file = scratch.path(&format!("{disk}-{seed}.raw"));
    let mut image: Vec<u8> = (0..8 * MIB)
        .map(|at| (at / 4096 * 31 + at % 251 + seed) as u8)
        .collect();
    fs::write(&file, &image)?;
    let import = [&["disk", "import", disk, text(&file)?], more].concat();
    let done = cluster.ukai(&import)?;
    let bytes = done["bytes"].as_u64().context("a size")?;
    image.resize(bytes as usize, 0);
    Ok(image)
}

fn export(cluster: &Cluster, scratch: &Scratch, disk: &str) -> Result<Vec<u8>> {
    let file = scratch.path(&format!("{disk}-out.raw"));
    cluster.ukai(&["disk", "export", disk, text(&file)?])?;
    Ok(fs::read(&file)?)
}

fn epoch(cluster: &Cluster, disk: &str) -> Result<u64> {
    let map = cluster.ukai(&["disk", "map", disk])?;
    map["epoch"].as_u64().context("a map has an epoch")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of text")
}
