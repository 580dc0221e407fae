//! Three members of a real etcd, each with its own data, for a cluster's catalog: on loopback, or beside the
//! placement services on hosts of their own. They speak TLS to clients, and let in those that show a
//! certificate.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use placement_service::catalog::Etcd;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::cluster::{SERVICES, free_tcp, wait_for};
use crate::networks::{Door, Networks};
use crate::processes::{Process, Scratch};

pub const MEMBERS: usize = SERVICES.len();
const CLIENTS_PORT: u16 = 2379;
const PEERS_PORT: u16 = 2380;
const UP_BOUND: Duration = Duration::from_secs(60);

pub struct EtcdMembers {
    members: Vec<Member>,
    /// What clients want to have: `--etcd-pki`.
    pki: PathBuf,
}

struct Member {
    /// None: loopback.
    host: Option<Door>,
    clients_at: SocketAddr,
    peers_at: SocketAddr,
    data: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

impl EtcdMembers {
    /// Returns when they have chosen their leader.
    pub fn start(scratch: &Scratch, networks: Option<&Networks>) -> Result<EtcdMembers> {
        let mut members = EtcdMembers {
            members: Vec::new(),
            pki: scratch.path("etcd-pki"),
        };
        for (index, host) in SERVICES.into_iter().enumerate() {
            let at = |port| match networks {
                None => free_tcp(),
                Some(networks) => Ok(SocketAddr::new(networks.address(host)?, port)),
            };
            members.members.push(Member {
                host: networks.map(|networks| networks.door(host)).transpose()?,
                clients_at: at(CLIENTS_PORT)?,
                peers_at: at(PEERS_PORT)?,
                data: scratch.path(&format!("etcd-{index}")),
                log: scratch.log(&format!("etcd-{index}")),
                process: None,
            });
        }
        let addresses = members.members.iter().map(|member| member.clients_at.ip());
        make_certificates(&members.pki, addresses)?;
        for index in 0..MEMBERS {
            members.start_member(index)?;
        }
        wait_for("etcd", UP_BOUND, || members.leader().map(Some))?;
        Ok(members)
    }

    /// For `--catalog`.
    pub fn address(&self) -> String {
        let members = self.members.iter();
        let members: Vec<String> = members.map(|m| m.clients_at.to_string()).collect();
        format!("etcds://{}", members.join(","))
    }

    /// For `--etcd-pki`.
    pub fn pki(&self) -> &Path {
        &self.pki
    }

    /// The host of the placement service that leads.
    pub fn leader(&self) -> Result<Option<String>> {
        let (address, pki) = (self.address().parse()?, self.pki.clone());
        let ask = move || -> Result<_> { Ok(Etcd::new(address, Some(&pki))?.leads()?) };
        let leader = match &self.members[0].host {
            None => ask(),
            Some(host) => host.inside(ask),
        };
        Ok(leader?.map(|leader| leader.name))
    }

    /// Those that run, or that do not.
    pub fn members(&self, running: bool) -> Vec<usize> {
        let members = self.members.iter().enumerate();
        let wanted = members.filter(|(_, member)| member.process.is_some() == running);
        wanted.map(|(index, _)| index).collect()
    }

    pub fn start_member(&mut self, index: usize) -> Result<()> {
        let cluster: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(index, member)| format!("m{index}=http://{}", member.peers_at))
            .collect();
        let member = &mut self.members[index];
        let clients = format!("https://{}", member.clients_at);
        let peers = format!("http://{}", member.peers_at);
        let mut command = Command::new("etcd");
        command
            .args(["--name", &format!("m{index}"), "--data-dir"])
            .arg(&member.data)
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .arg("--cert-file")
            .arg(self.pki.join("server.crt"))
            .arg("--key-file")
            .arg(self.pki.join("server.key"))
            .arg("--trusted-ca-file")
            .arg(self.pki.join("ca.crt"))
            .arg("--client-cert-auth")
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--logger", "zap", "--log-level", "warn"]);
        if let Some(host) = &member.host {
            host.enter(&mut command);
        }
        let name = format!("etcd member {index}");
        let started = Process::start(&name, command, &member.log)
            .context("is etcd installed? `cargo xtask setup` does it")?;
        member.process = Some(started);
        Ok(())
    }

    pub fn kill_9(&mut self, index: usize) -> Result<()> {
        self.members[index]
            .process
            .take()
            .context("the member is not running")?
            .kill_9();
        Ok(())
    }
}

/// An authority of etcd's own, a certificate of its members, and one of its clients.
fn make_certificates(dir: &Path, addresses: impl Iterator<Item = IpAddr>) -> Result<()> {
    let names: Vec<String> = addresses.map(|address| address.to_string()).collect();
    fs::create_dir_all(dir)?;
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    fs::write(dir.join("ca.crt"), authority.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(authority, key);
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    // A member's gateway is itself a client of the member.
    let both = vec![ExtendedKeyUsagePurpose::ServerAuth, client.clone()];
    for (name, purposes) in [("server", both), ("client", vec![client])] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.clone())?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes;
        let certificate = params.signed_by(&key, &issuer)?;
        fs::write(dir.join(format!("{name}.crt")), certificate.pem())?;
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
