//! `ukai disk list` and `ukai disk show`.

use crate::operator::Connection;
use crate::output::{Output, human_bytes, table};
use placement_service::api::{AttachmentView, Disk, Place, Wanted};
use replicator::words::DiskName;

pub fn list(connection: &Connection, output: Output) -> anyhow::Result<()> {
    let disks: Vec<Disk> = connection.service()?.get("/v1/disks")?;
    output.show(&disks, |disks| {
        let rows = disks.iter().map(|disk| {
            [
                disk.name.to_string(),
                human_bytes(disk.bytes),
                human_bytes(disk.allocated_bytes),
                copies(disk),
                disk.attachment
                    .as_ref()
                    .map_or("-".into(), |attachment| place(&attachment.place)),
                state(disk),
            ]
        });
        table(
            [
                "DISK",
                "SIZE",
                "ALLOCATED",
                "COPIES",
                "ATTACHED TO",
                "STATE",
            ],
            rows,
        )
    });
    Ok(())
}

pub fn show(name: &DiskName, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let disk: Disk = connection.service()?.get(&format!("/v1/disks/{name}"))?;
    output.show(&disk, |disk| {
        let mut lines = vec![
            format!("disk       {} ({})", disk.name, disk.id),
            format!(
                "size       {}, {} allocated on all stores",
                human_bytes(disk.bytes),
                human_bytes(disk.allocated_bytes)
            ),
            format!("extents    of {}", human_bytes(disk.extent_size.bytes())),
            format!("copies     {}", copies(disk)),
            format!("epoch      {}, {}", disk.epoch, open(disk)),
        ];
        if let Some(attachment) = &disk.attachment {
            lines.push(format!("attached   to {}", place(&attachment.place)));
            lines.push(format!(
                "socket     {}",
                attachment.socket.as_deref().unwrap_or("not ready")
            ));
            lines.push(format!(
                "backend    {}: {}",
                attachment.backend,
                status(attachment)
            ));
        }
        lines.join("\n")
    });
    Ok(())
}

fn copies(disk: &Disk) -> String {
    match disk.short_extents {
        0 => disk.copies.to_string(),
        short => format!("{}, but {short} extents have fewer", disk.copies),
    }
}

fn open(disk: &Disk) -> String {
    disk.open_for
        .as_ref()
        .map_or("closed".into(), |host| format!("open for {host}"))
}

fn state(disk: &Disk) -> String {
    disk.attachment.as_ref().map_or_else(|| open(disk), status)
}

fn status(attachment: &AttachmentView) -> String {
    match attachment.wanted {
        Wanted::Attached => attachment.status.clone(),
        Wanted::Standby => format!("standing by, {}", attachment.status),
        Wanted::Copying => format!("copying, {}", attachment.status),
        Wanted::Detached => format!("detaching, {}", attachment.status),
    }
}

fn place(place: &Place) -> String {
    match place {
        Place::Node(host) => host.to_string(),
        Place::Operator(name) => format!("{name} (operator)"),
    }
}
