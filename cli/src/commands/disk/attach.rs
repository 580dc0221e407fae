//! `ukai disk attach` and `ukai disk detach`.

use crate::operator::Connection;
use crate::output::Output;
use placement_service::api::{Attach, Attached, Detach, Detached};
use replicator::words::{DiskName, HostName};
use serde::Serialize;

/// Have a node serve a disk, and print what to start QEMU with.
///
/// The disk's epoch is taken when the guest's driver starts, not now. Asking again is harmless.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ukai disk attach web1 --node tokyo-1")]
pub struct AttachArgs {
    disk: DiskName,

    /// The host where the VM runs.
    #[arg(long)]
    node: HostName,

    /// Take the disk from whoever has it, when that writer's VM is known to be gone. It is fenced:
    /// should it still run, it completes no more writes.
    #[arg(long)]
    take_over: bool,

    /// How long to wait until the socket is there, in seconds.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(0..=120))]
    wait: u64,
}

/// Have the node that serves a disk drain it, close its epoch, and let it go.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ukai disk detach web1")]
pub struct DetachArgs {
    disk: DiskName,

    /// Let go without waiting for the node, which then can write no more: for a host that is gone.
    #[arg(long)]
    force: bool,

    /// How long to wait until it is closed, in seconds.
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
    let request = Attach {
        node: args.node,
        take_over: args.take_over,
        wait_ms: Some(args.wait * 1000),
    };
    let attached: Attached = connection
        .service()?
        .post(&format!("/v1/disks/{}/attach", args.disk), &request)?;
    let qemu = qemu_arguments(&attached);
    output.show(&Ready { attached, qemu }, |ready| {
        let lines = ready
            .qemu
            .chunks(2)
            .map(|pair| format!("  {}", pair.join(" ")));
        format!(
            "{} is ready on {} at {}\nQEMU arguments (the guest's memory must be shared):\n{}",
            ready.attached.disk,
            ready.attached.node,
            ready.attached.socket,
            lines.collect::<Vec<_>>().join(" \\\n")
        )
    });
    Ok(())
}

fn qemu_arguments(attached: &Attached) -> Vec<String> {
    let id = &attached.disk;
    [
        "-object",
        "memory-backend-memfd,id=mem,size=1G,share=on",
        "-machine",
        "q35,memory-backend=mem",
        "-chardev",
        &format!("socket,id={id},path={},reconnect-ms=200", attached.socket),
        "-device",
        &format!("vhost-user-blk-pci,chardev={id}"),
    ]
    .map(String::from)
    .to_vec()
}

pub fn detach(args: DetachArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let request = Detach {
        node: None,
        force: args.force,
        wait_ms: Some(args.wait * 1000),
    };
    let detached: Detached = connection
        .service()?
        .post(&format!("/v1/disks/{}/detach", args.disk), &request)?;
    output.show(&detached, |detached| match detached.clean {
        true => format!("{} is detached and closed", detached.disk),
        false => format!(
            "{} is detached, but was not closed: whoever attaches next settles its copies first",
            detached.disk
        ),
    });
    Ok(())
}
