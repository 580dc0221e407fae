//! A new disk that is written all over five times: what the first write of a block costs more than later ones. (A thin
//! file was seen to write at a fifth of its later speed the first time.)

use std::time::Duration;

use anyhow::Result;

use super::compare::{Compared, rows};
use super::load::{Doing, Load, Time};
use super::measure::{Target, measure};
use super::side::{HOSTS, Kind, NEAR, Stage};
use super::statistics::Figures;
use crate::processes::Process;

const BOUND: Duration = Duration::from_secs(120);

const PASSES: [(&str, &str); 5] = [
    (
        "thin-1",
        "4 KiB random write, depth 32, each block of a new disk once, first pass",
    ),
    (
        "thin-2",
        "4 KiB random write, depth 32, each block of a new disk once, second pass",
    ),
    (
        "thin-3",
        "4 KiB random write, depth 32, each block of a new disk once, third pass",
    ),
    (
        "thin-4",
        "4 KiB random write, depth 32, each block of a new disk once, fourth pass",
    ),
    (
        "thin-5",
        "4 KiB random write, depth 32, each block of a new disk once, fifth pass",
    ),
];

/// Each block once in each pass, on a disk of ours and on a sparse file of the peer's, new ones for each pair.
pub fn passes(stage: &mut Stage, pairs: usize, _time: Time) -> Result<Vec<Compared>> {
    let bytes = stage.disk_bytes();
    let mut own = stage.own_cluster(&HOSTS[..1], None)?;
    let servers = own.cluster.pids();
    let mut figures = vec![Vec::new(); PASSES.len()];
    for pair in 0..pairs {
        let name = format!("thin-{pair}");
        own.cluster
            .create_disk(&name, &bytes.to_string(), 1, NEAR)?;
        let ours = [own.cluster.attach(&name, NEAR)?];
        let peer = stage.fresh_file(&name)?;
        let pids: Vec<u32> = peer.processes.iter().map(Process::pid).collect();
        let peers = [peer.socket];
        for (pass, figures) in figures.iter_mut().enumerate() {
            let seed = (pair * PASSES.len() + pass) as u64;
            let one_pass = |sockets, pids| -> Result<Figures> {
                let target = Target {
                    sockets,
                    bytes,
                    pids,
                };
                let load = Load::random(Doing::Write, 32).once();
                let time = Time {
                    warm_up: Duration::ZERO,
                    measured: BOUND,
                };
                Ok(Figures::of(&measure(&target, &load, time, seed)?))
            };
            figures.push([one_pass(&ours, &servers)?, one_pass(&peers, &pids)?]);
        }
        own.cluster.detach(&name)?;
    }
    let compared = PASSES.iter().zip(figures);
    Ok(compared
        .map(|((name, what), pairs)| Compared {
            name,
            what,
            sides: [Kind::OneCopy.name(), Kind::File.name()],
            rows: rows(&pairs, &[]),
            pairs,
        })
        .collect())
}
