//! A guest that goes from host to host, with its disk attached ahead of it.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::cross;
use crate::cluster::Cluster;
use crate::guest::{Disk, Guest, GuestConfig};
use crate::processes::Scratch;
use crate::relay::Way;

pub struct Traveller<'a> {
    scratch: &'a Scratch,
    disk: String,
    config: GuestConfig,
    host: &'static str,
    guest: Guest,
    /// Every QEMU that it has been in or was to go to.
    consoles: Vec<String>,
}

impl<'a> Traveller<'a> {
    /// Attaches the disk at `host` and boots there. `config` says all but the disk's socket.
    pub fn board(
        scratch: &'a Scratch,
        cluster: &Cluster,
        disk: &str,
        host: &'static str,
        config: &GuestConfig,
    ) -> Result<Traveller<'a>> {
        let socket = cluster.attach(disk, host)?;
        let config = GuestConfig {
            disk: Disk::VhostUser(socket),
            ..config.clone()
        };
        let name = format!("{disk}-0-{host}");
        let guest = Guest::boot(&name, &config, scratch.data(), &scratch.log(&name))?;
        Ok(Traveller {
            scratch,
            disk: disk.to_owned(),
            config,
            host,
            guest,
            consoles: vec![name],
        })
    }

    pub fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }

    pub fn host(&self) -> &'static str {
        self.host
    }

    /// How many QEMUs it was to go to so far.
    pub fn moves(&self) -> usize {
        self.consoles.len() - 1
    }

    /// Attaches the disk at another host too, and starts the QEMU there that will take the guest in.
    pub fn prepare(&mut self, cluster: &Cluster, host: &str) -> Result<Guest> {
        let socket = cluster.attach(&self.disk, host)?;
        let config = self.incoming_on(socket);
        self.destination_with(host, &config)
    }

    /// What a destination on that socket has to be.
    pub fn incoming_on(&self, socket: PathBuf) -> GuestConfig {
        self.config.incoming_on(Disk::VhostUser(socket))
    }

    /// A destination of any kind: one that is not the same machine as the source must fail.
    pub fn destination_with(&mut self, host: &str, config: &GuestConfig) -> Result<Guest> {
        let name = format!("{}-{}-{host}", self.disk, self.consoles.len());
        let log = self.scratch.log(&name);
        let guest = Guest::boot(&name, config, self.scratch.data(), &log)?;
        self.consoles.push(name);
        Ok(guest)
    }

    /// Live-migrates to a prepared destination.
    pub fn depart(
        &mut self,
        cluster: &Cluster,
        mut destination: Guest,
        host: &'static str,
    ) -> Result<()> {
        cross(
            &mut self.guest,
            &mut destination,
            cluster.link()?,
            way(host),
        )
        .with_context(|| format!("from {} to {host}", self.host))?;
        self.settle_in(destination, host)
    }

    /// All of it: attach there, start a QEMU there, live-migrate.
    pub fn go(&mut self, cluster: &Cluster, host: &'static str) -> Result<()> {
        let destination = self.prepare(cluster, host)?;
        self.depart(cluster, destination, host)
    }

    /// After a migration that somebody else has driven to its end.
    pub fn settle_in(&mut self, mut destination: Guest, host: &'static str) -> Result<()> {
        std::mem::swap(&mut self.guest, &mut destination);
        self.host = host;
        self.guest.arrive(destination)
    }

    /// Powers off; an error if any of its consoles speaks of a failed disk.
    pub fn shutdown(self) -> Result<()> {
        self.guest.shutdown()?;
        let names: Vec<&str> = self.consoles.iter().map(String::as_str).collect();
        super::workload::no_disk_errors(self.scratch, &names)
    }
}

/// The link's way to that host.
pub fn way(host: &str) -> Way {
    match host.starts_with("tokyo") {
        true => Way::Back,
        false => Way::There,
    }
}
