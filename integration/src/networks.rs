//! Hosts with networks of their own: a network namespace each, joined by a bridge in one more.
//!
//! ```text
//!  namespace tokyo-1          the switch's namespace           namespace osaka-1
//!   net0 10.117.0.2 ──veth── port2 ── bridge ── port3 ──veth── net0 10.117.0.3
//! ```
//! Nothing has a name outside of this process: the namespaces live as long as somebody has them open or
//! runs in them, and their links with them. So nothing stays behind, however this process ends.
//!
//! Every host is told the hardware addresses of all others and asks nobody for them. That is what makes
//! a cut one way simple, and silent as real ones are: the sender is told one that nobody has.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{io, process, thread};

use anyhow::{Context, Result, bail, ensure};

use crate::processes::ask;

const IP_BOUND: Duration = Duration::from_secs(10);
/// What a cut host's packets are sent to: an address of the range that nobody assigns.
const NOBODY: &str = "02:75:6b:61:69:ff";
/// Jumbo frames, as between hosts that serve disks: a block fits in one.
const MTU: &str = "9000";
const MOST_HOSTS: usize = 200;

pub struct Networks {
    switch: Namespace,
    hosts: Vec<Host>,
}

struct Host {
    name: String,
    namespace: Namespace,
    number: usize,
}

/// Open, and thereby alive.
#[derive(Clone)]
struct Namespace(Arc<File>);

/// One host's network, for whoever outlives what is borrowed.
#[derive(Clone)]
pub struct Door(Namespace);

impl Door {
    /// The command will run on that host.
    pub fn enter(&self, command: &mut Command) {
        self.0.enter(command);
    }

    /// What is asked of others from there.
    pub fn inside<T: Send + 'static>(&self, ask: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = self.0.clone();
        let asked = thread::spawn(move || {
            // SAFETY: a plain system call; only this thread, and what it starts, changes its namespace.
            let status = unsafe { libc::setns(namespace.0.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(status, 0, "root may enter its own namespaces");
            ask()
        });
        asked.join().expect("no panic in it")
    }
}

impl Networks {
    /// Why there can be none here; `Ok` if there can.
    pub fn possible() -> Result<()> {
        // SAFETY: a plain system call.
        ensure!(
            unsafe { libc::geteuid() } == 0,
            "network namespaces need root"
        );
        let namespace = Namespace::new().context("make a network namespace")?;
        namespace.ip("link set lo up").map(drop)
    }

    /// One network for each of these hosts, all of them joined.
    pub fn lay<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Networks> {
        let mut networks = Networks {
            switch: Namespace::new()?,
            hosts: Vec::new(),
        };
        networks.switch.ip("link add bridge type bridge")?;
        networks.switch.ip("link set bridge up")?;
        for (number, name) in names.into_iter().enumerate() {
            ensure!(number < MOST_HOSTS, "too many hosts");
            let host = Host {
                name: name.to_owned(),
                namespace: Namespace::new()?,
                number,
            };
            networks.join(&host)?;
            networks.hosts.push(host);
        }
        for from in &networks.hosts {
            for to in networks.hosts.iter().filter(|to| to.number != from.number) {
                from.send_to(to, &to.hardware_address())?;
            }
        }
        Ok(networks)
    }

    /// Where the host is reached by the others.
    pub fn address(&self, host: &str) -> Result<IpAddr> {
        Ok(IpAddr::V4(self.host(host)?.address()))
    }

    /// The command will run on that host.
    pub fn enter(&self, host: &str, command: &mut Command) -> Result<()> {
        self.host(host)?.namespace.enter(command);
        Ok(())
    }

    /// The same for whoever goes there later.
    pub fn door(&self, host: &str) -> Result<Door> {
        Ok(Door(self.host(host)?.namespace.clone()))
    }

    /// Nothing that `from` sends reaches `to` any more; what `to` sends still reaches `from`.
    pub fn cut(&self, from: &str, to: &str) -> Result<()> {
        self.host(from)?.send_to(self.host(to)?, NOBODY)
    }

    pub fn heal(&self, from: &str, to: &str) -> Result<()> {
        let to = self.host(to)?;
        self.host(from)?.send_to(to, &to.hardware_address())
    }

    /// Pulls the host's cable at the switch.
    pub fn unplug(&self, host: &str) -> Result<()> {
        let port = self.host(host)?.port();
        self.switch.ip(&format!("link set {port} down")).map(drop)
    }

    pub fn plug(&self, host: &str) -> Result<()> {
        let port = self.host(host)?.port();
        self.switch.ip(&format!("link set {port} up")).map(drop)
    }

    fn join(&self, host: &Host) -> Result<()> {
        let (port, inside) = (host.port(), host.namespace.path());
        let hardware = host.hardware_address();
        self.switch.ip(&format!(
            "link add {port} mtu {MTU} type veth peer name net0 mtu {MTU} address {hardware} netns {inside}"
        ))?;
        self.switch
            .ip(&format!("link set {port} master bridge up"))?;
        let address = host.address();
        for line in [
            "link set lo up".to_owned(),
            format!("address add {address}/24 dev net0"),
            "link set net0 up".to_owned(),
        ] {
            host.namespace.ip(&line)?;
        }
        Ok(())
    }

    fn host(&self, name: &str) -> Result<&Host> {
        let found = self.hosts.iter().find(|host| host.name == name);
        found.with_context(|| format!("no host {name}"))
    }
}

impl Host {
    fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 117, 0, self.number as u8 + 1)
    }

    fn hardware_address(&self) -> String {
        format!("02:75:6b:61:69:{:02x}", self.number + 1)
    }

    fn port(&self) -> String {
        format!("port{}", self.number)
    }

    fn send_to(&self, other: &Host, hardware: &str) -> Result<()> {
        let address = other.address();
        self.namespace
            .ip(&format!(
                "neighbour replace {address} lladdr {hardware} dev net0 nud permanent"
            ))
            .map(drop)
    }
}

impl Namespace {
    /// Made by a thread that ends in it: ours stays where it is.
    fn new() -> Result<Namespace> {
        let made = thread::spawn(|| {
            // SAFETY: a plain system call; only this thread changes its namespace.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            File::open("/proc/thread-self/ns/net")
        });
        let file = made.join().expect("no panic in it")?;
        Ok(Namespace(Arc::new(file)))
    }

    /// As other programs can open it while we have it open.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())
    }

    fn enter(&self, command: &mut Command) {
        let namespace = self.0.clone();
        // SAFETY: setns is async-signal-safe; the descriptor is open as long as the closure has it.
        unsafe {
            command.pre_exec(
                move || match libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                },
            )
        };
    }

    fn ip(&self, words: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(words.split(' '));
        self.enter(&mut command);
        let line = format!("ip {words}");
        let answer = ask(&line, command, IP_BOUND)?;
        if !answer.status.success() {
            bail!("{line}: {}{}", answer.out, answer.err);
        }
        Ok(answer.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who can be pinged from whom; `ping` itself may be missing, and UDP shows as much.
    fn reaches(networks: &Networks, from: &str, to: &str) -> Result<bool> {
        use std::net::UdpSocket;
        let inside = |host: &str| -> Result<UdpSocket> {
            let address = networks.address(host)?;
            let socket = networks
                .door(host)?
                .inside(move || UdpSocket::bind((address, 0)));
            Ok(socket?)
        };
        let (sender, receiver) = (inside(from)?, inside(to)?);
        receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
        sender.send_to(b"hello", receiver.local_addr()?)?;
        Ok(receiver.recv(&mut [0; 8]).is_ok())
    }

    #[test]
    fn hosts_are_joined_and_cut_one_way_and_both() -> Result<()> {
        if let Err(why) = Networks::possible() {
            eprintln!("left out: {why:#}");
            return Ok(());
        }
        let networks = Networks::lay(["a", "b", "c"])?;
        assert!(reaches(&networks, "a", "b")? && reaches(&networks, "b", "a")?);
        networks.cut("a", "b")?;
        assert!(!reaches(&networks, "a", "b")?, "cut");
        assert!(
            reaches(&networks, "b", "a")?,
            "the other way is not affected"
        );
        assert!(reaches(&networks, "a", "c")?, "nor is another host");
        networks.heal("a", "b")?;
        assert!(reaches(&networks, "a", "b")?, "healed");
        networks.unplug("c")?;
        assert!(!reaches(&networks, "a", "c")? && !reaches(&networks, "c", "a")?);
        networks.plug("c")?;
        assert!(reaches(&networks, "a", "c")?);
        Ok(())
    }
}
