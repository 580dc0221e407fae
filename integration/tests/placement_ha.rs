//! The placement service loses its machine: with the catalog in etcd another one leads, under a disk that
//! is written all the while. What the disk needs of it meanwhile waits, and goes on.

use anyhow::{Context, Result, ensure};
use integration::cluster::{Cluster, TOKYO_AND_OSAKA, wait_for};
use integration::lone_writer::LoneWriter;
use integration::processes::{Scratch, scenario};
use std::time::Duration;

/// Nothing here may take longer, whatever the machine is busy with.
const BOUND: Duration = Duration::from_secs(90);

#[test]
fn a_disk_outlives_the_leading_placement_service_and_a_member_of_etcd() {
    scenario("placement-ha", outlives);
}

fn outlives(scratch: &Scratch) -> Result<()> {
    let mut cluster = Cluster::start_over_etcd(scratch, &TOKYO_AND_OSAKA)?;
    cluster.create_disk("web1", "64M", 2, "tokyo-1")?;
    cluster.create_disk("web2", "16M", 1, "tokyo-1")?;
    let mut writer = LoneWriter::attach(&cluster, "web1", "tokyo")?;
    writer.progress(3)?;
    let before = epoch(&cluster)?;

    let leader = leader(&cluster)?;
    cluster.etcd_mut()?.kill_9(0)?;
    cluster.kill_service_9(&leader)?;
    // Healthy disks do not notice.
    writer.progress(3)?;
    // A member of the write set is lost: to go on without it takes a placement service.
    cluster.kill_node_9("tokyo-2")?;
    writer.progress(3)?;
    let next = self::leader(&cluster)?;
    ensure!(next != leader, "{leader} was killed and still leads");
    ensure!(epoch(&cluster)? > before, "nobody was ejected");

    // Orders are followed, too; the command finds the one that leads.
    cluster.start_node("tokyo-2")?;
    cluster.wait_up()?;
    cluster.ukai(&["disk", "move", "web2", "--to", "osaka", "--leave"])?;
    wait_for("copy of web2 in osaka alone", BOUND, || {
        let map = cluster.ukai(&["disk", "map", "web2"])?;
        let stores = map["stores"].as_array().context("a map lists stores")?;
        let mut hosts = stores.iter().map(|store| &store["host"]);
        Ok(hosts.all(|host| host == "osaka-1").then_some(()))
    })?;
    writer.progress(3)?;

    // The one that was killed comes back and stands by; so does etcd's member.
    cluster.start_service(&leader)?;
    cluster.etcd_mut()?.start_member(0)?;
    cluster.wait_up()?;
    cluster.kill_service_9(&next)?;
    let third = wait_for("third leader", BOUND, || {
        Ok(cluster.leader()?.filter(|leader| *leader != next))
    })?;
    writer.progress(3)?;
    cluster.attach("web2", "tokyo-1")?;
    wait_for("whole second copy", BOUND, || {
        Ok((cluster.ukai(&["status"])?["disks_short"] == 0).then_some(()))
    })?;

    let image = writer.finish()?;
    cluster.detach("web1")?;
    let out = scratch.path("web1.raw");
    let to = out.to_str().context("a path of text")?;
    cluster.ukai(&["disk", "export", "web1", to])?;
    ensure!(std::fs::read(&out)? == image, "what was written is lost");
    ensure!(self::leader(&cluster)? == third);
    copies_of_etcd(&mut cluster, scratch, &third)
}

/// The catalog in etcd is copied and put back, when no service uses it.
fn copies_of_etcd(cluster: &mut Cluster, scratch: &Scratch, leader: &str) -> Result<()> {
    let etcd = cluster.etcd()?;
    let (from, pki) = (etcd.address(), etcd.pki().display().to_string());
    let to = format!("{from}/after");
    let backup = scratch.path("backup").display().to_string();
    let copy = [
        "placement",
        "backup",
        &backup,
        "--catalog",
        &from,
        "--etcd-pki",
        &pki,
    ];
    let (code, why) = cluster.refused(&copy)?;
    ensure!(code == 3 && why.contains(leader), "{code}: {why}");
    for host in cluster.services() {
        // One of them was killed above.
        let _ = cluster.kill_service_9(host);
    }
    let copied = wait_for("backup once nobody leads", BOUND, || {
        cluster.ukai(&copy).map(Some)
    })?;
    let restored = cluster.ukai(&[
        "placement",
        "restore",
        &backup,
        "--catalog",
        &to,
        "--etcd-pki",
        &pki,
    ])?;
    ensure!(restored["keys"] == copied["keys"], "{restored} {copied}");
    ensure!(restored["generation"] == 1, "{restored}");
    // TLS is not left out by mistake.
    let clear = ["placement", "restore", &backup, "--catalog", &to];
    let (_, why) = cluster.refused(&clear)?;
    ensure!(why.contains("--etcd-pki"), "{why}");
    Ok(())
}

fn leader(cluster: &Cluster) -> Result<String> {
    wait_for("leader", BOUND, || cluster.leader())
}

/// web1's, as a number.
fn epoch(cluster: &Cluster) -> Result<u64> {
    let map = cluster.ukai(&["disk", "map", "web1"])?;
    map["epoch"].as_u64().context("a map has an epoch")
}
