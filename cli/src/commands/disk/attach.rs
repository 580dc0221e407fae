//! `ukai disk attach` and `ukai disk detach`.

use crate::operator::Connection;
use crate::output::Output;
use placement_service::api::{Attach, Attached, Detach, Detached, Disk, Host, Place};
use replicator::words::{DiskName, HostName};
use serde::Serialize;
use std::time::Duration;

/// Have a node serve a disk, and print what to start QEMU with.
///
/// The disk's epoch is taken when the guest's driver starts, not now. Asking again is harmless. While the disk is
/// attached elsewhere the node stands by: it gets the disk when its VM arrives there.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ukai disk attach web1 --node tokyo-1\n  ukai disk attach web1 --node osaka-1   # before the VM is migrated there"
)]
pub struct AttachArgs {
    disk: DiskName,

    /// The host where the VM runs.
    #[arg(long, value_name = "HOST")]
    node: HostName,

    /// Take the disk from whoever has it, when that writer's VM is known to be gone. It is fenced:
    /// should it still run, it completes no more writes.
    #[arg(long, alias = "takeover")]
    take_over: bool,

    /// How long to wait until the socket is there, in seconds; also for a placement service that is away.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(0..=120))]
    wait: u64,
}

/// Have the node that serves a disk drain it, close its epoch, and let it go.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ukai disk detach web1\n  ukai disk detach web1 --node osaka-1   # it stands by no more"
)]
pub struct DetachArgs {
    disk: DiskName,

    /// Only what is attached, or stands by, there [default: everywhere].
    #[arg(long, value_name = "HOST")]
    node: Option<HostName>,

    /// Let go without waiting for the node, which then can write no more: for a host that is gone.
    #[arg(long)]
    force: bool,

    /// How long to wait until it is closed, in seconds; also for a placement service that is away.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(0..=120))]
    wait: u64,
}

#[derive(Serialize)]
struct Ready {
    #[serde(flatten)]
    attached: Attached,
    qemu: Vec<String>,
}

pub fn attach(args: AttachArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let limit = Duration::from_secs(args.wait);
    let service = connection.service()?.patient(limit, output);
    let request = |left: Duration| Attach {
        node: args.node.clone(),
        take_over: args.take_over,
        wait_ms: Some(left.as_millis() as u64),
    };
    let attached: Attached =
        service.post_within(&format!("/v1/disks/{}/attach", args.disk), request)?;
    let qemu = qemu_arguments(&attached);
    let hosts: Vec<Host> = match attached.standby_of {
        Some(_) if !output.is_json() => service.get("/v1/hosts")?,
        _ => Vec::new(),
    };
    output.show(&Ready { attached, qemu }, |ready| describe(ready, &hosts));
    Ok(())
}

/// `hosts` are needed only where it stands by.
fn describe(ready: &Ready, hosts: &[Host]) -> String {
    let Attached {
        disk, node, socket, ..
    } = &ready.attached;
    let site = |name: &HostName| {
        let host = hosts.iter().find(|host| host.name == *name);
        host.map(|host| &host.datacenter)
    };
    let pairs = ready.qemu.chunks(2);
    let lines: Vec<String> = pairs.map(|pair| format!("  {}", pair.join(" "))).collect();
    let arguments = lines.join(" \\\n");
    match &ready.attached.standby_of {
        None => format!(
            "{disk} is ready on {node} at {socket}{}\nQEMU arguments (the guest's memory must be shared; before QEMU 9.2 write reconnect=1 for reconnect-ms=50):\n{arguments}",
            taken(&ready.attached)
        ),
        Some(source) => format!(
            "{disk} stands by on {node} at {socket}: it stays attached to {source} until its VM arrives\n\
             next:\n\
             \x20 1. on {node}, start QEMU as it runs on {source}, with -incoming and this disk:\n{arguments} \\\n  -incoming tcp:0.0.0.0:4444\n\
             \x20 2. migrate the VM from {source} to {node}; nothing has to be copied before\n\
             \x20 3. `ukai moves {disk} --watch` shows its blocks follow; {source} lets go by itself\n\
             {}`ukai disk detach {disk} --node {node}` ends the standby",
            match site(node) {
                Some(there) if site(source) != Some(there) =>
                    format!("`ukai disk prepare {disk} --to {there}` copies blocks ahead; "),
                _ => String::new(),
            }
        ),
    }
}

/// Of a take-over: whether the old writer is fenced, and how long that took.
fn taken(attached: &Attached) -> String {
    match (attached.open, attached.open_after_ms) {
        (Some(epoch), Some(ms)) => format!(
            "\nits former writer is fenced, and the disk is open in epoch {epoch}: that took {}",
            seconds(ms)
        ),
        _ => String::new(),
    }
}

fn seconds(ms: u64) -> String {
    format!("{:.2} s", ms as f64 / 1e3)
}

fn qemu_arguments(attached: &Attached) -> Vec<String> {
    let id = &attached.disk;
    [
        "-object",
        "memory-backend-memfd,id=mem,size=1G,share=on",
        "-machine",
        "q35,memory-backend=mem",
        "-chardev",
        &format!("socket,id={id},path={},reconnect-ms=50", attached.socket),
        "-device",
        &format!("vhost-user-blk-pci,chardev={id}"),
    ]
    .map(String::from)
    .to_vec()
}

pub fn detach(args: DetachArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let limit = Duration::from_secs(args.wait);
    let service = connection.service()?.patient(limit, output);
    let disk: Disk = service.get(&format!("/v1/disks/{}", args.disk))?;
    let stood_by = args.node.as_ref().is_some_and(|node| {
        let mut standbys = disk.standbys.iter();
        standbys.any(|standby| standby.place == Place::Node(node.clone()))
    });
    let request = |left: Duration| Detach {
        node: args.node.clone(),
        force: args.force,
        wait_ms: Some(left.as_millis() as u64),
        ..Detach::default()
    };
    let detached: Detached =
        service.post_within(&format!("/v1/disks/{}/detach", args.disk), request)?;
    let node = args.node;
    output.show(&detached, |detached| {
        let_go(detached, node.as_ref(), stood_by)
    });
    Ok(())
}

fn let_go(detached: &Detached, node: Option<&HostName>, stood_by: bool) -> String {
    let disk = &detached.disk;
    match (node, detached.clean) {
        (Some(node), _) if stood_by => format!("{node} stands by for {disk} no more"),
        (Some(node), true) => format!("{node} has let {disk} go"),
        (None, true) => format!("{disk} is detached and closed"),
        (_, false) => format!(
            "{disk} is detached, but was not closed: whoever attaches next settles its copies first"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use placement_service::api::Liveness;
    use replicator::words::{BackendId, DatacenterName, DiskId, Epoch, RackName};

    #[test]
    fn a_standby_says_what_to_do_next() {
        let host = |name: &str| HostName::new(name).unwrap();
        let attached = Attached {
            disk: DiskName::new("web1").unwrap(),
            id: DiskId::from_u128(1),
            bytes: 1 << 30,
            node: host("osaka-1"),
            backend: BackendId::from_u128(2),
            socket: "/run/ukai/web1.sock".into(),
            standby_of: Some(host("tokyo-1")),
            open: None,
            open_after_ms: None,
        };
        let qemu = qemu_arguments(&attached);
        let at = |name: &str, datacenter: &str| Host {
            name: host(name),
            datacenter: DatacenterName::new(datacenter).unwrap(),
            rack: RackName::new("r1").unwrap(),
            liveness: Liveness::Up,
            address: None,
            stores: Vec::new(),
            backends: 1,
        };
        let hosts = [at("tokyo-1", "tokyo"), at("osaka-1", "osaka")];
        let waiting = Ready {
            attached: attached.clone(),
            qemu: qemu.clone(),
        };
        let text = describe(&waiting, &hosts);
        assert!(
            text.contains("`ukai disk prepare web1 --to osaka` copies"),
            "{text}"
        );
        assert!(!describe(&waiting, &[]).contains("prepare"));
        assert!(text.starts_with("web1 stands by on osaka-1 at /run/ukai/web1.sock: it stays attached to tokyo-1 until its VM arrives\nnext:\n  1. on osaka-1"), "{text}");
        assert!(
            text.contains("-device vhost-user-blk-pci,chardev=web1 \\\n  -incoming"),
            "{text}"
        );
        let mut ready = Ready {
            attached: Attached {
                standby_of: None,
                ..attached
            },
            qemu,
        };
        assert!(describe(&ready, &[]).starts_with("web1 is ready on osaka-1"));
        assert!(!describe(&ready, &[]).contains("fenced"));
        ready.attached.open = Some(Epoch::from_u64(7));
        ready.attached.open_after_ms = Some(1234);
        let text = describe(&ready, &[]);
        assert!(
            text.contains("is fenced, and the disk is open in epoch 7: that took 1.23 s\nQEMU"),
            "{text}"
        );
    }
}
