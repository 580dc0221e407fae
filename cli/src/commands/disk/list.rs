//! `ukai disk list` and `ukai disk show`.

use crate::commands::moves;
use crate::operator::Connection;
use crate::output::{Output, human_bytes, percent, table};
use placement_service::api::{AttachmentView, Disk, MoveBrief, Place, Wanted};
use replicator::words::DiskName;

pub fn list(connection: &Connection, output: Output) -> anyhow::Result<()> {
    let disks: Vec<Disk> = connection.service()?.get("/v1/disks")?;
    output.show(&disks, |disks| rows(disks));
    Ok(())
}

pub fn show(name: &DiskName, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let disk: Disk = connection.service()?.get(&format!("/v1/disks/{name}"))?;
    output.show(&disk, describe);
    Ok(())
}

fn rows(disks: &[Disk]) -> String {
    let rows = disks.iter().map(|disk| {
        [
            disk.name.to_string(),
            human_bytes(disk.bytes),
            human_bytes(disk.allocated_bytes),
            copies(disk),
            nearness(disk),
            attached(disk),
            state(disk),
        ]
    });
    table(
        [
            "DISK",
            "SIZE",
            "ALLOCATED",
            "COPIES",
            "HOME",
            "ATTACHED TO",
            "STATE",
        ],
        rows,
    )
}

fn describe(disk: &Disk) -> String {
    let mut lines = vec![
        format!("disk       {} ({})", disk.name, disk.id),
        format!(
            "size       {}, {} allocated on all stores",
            human_bytes(disk.bytes),
            human_bytes(disk.allocated_bytes)
        ),
        format!(
            "extents    {} of {}",
            disk.extents,
            human_bytes(disk.extent_size.bytes())
        ),
        format!("copies     {}", copies(disk)),
        format!("home       {}, {}", disk.home, near(disk)),
        format!("class      {}", class(disk)),
        format!("epoch      {}, {}", disk.epoch, open(disk)),
    ];
    if let Some(attachment) = &disk.attachment {
        let place = place(&attachment.place);
        lines.push(match attachment.wanted {
            Wanted::Copying => format!("copied by  {place}, while it is attached nowhere"),
            _ => format!("attached   to {place}"),
        });
        lines.extend(backend(attachment));
    }
    for standby in &disk.standbys {
        let host = place(&standby.place);
        lines.push(format!("standby    on {host}, until its VM arrives there"));
        lines.extend(backend(standby));
    }
    if let Some(brief) = &disk.moving {
        lines.push(format!("moving     {}", moving(brief)));
    }
    lines.join("\n")
}

fn backend(attachment: &AttachmentView) -> Vec<String> {
    let socket = attachment.socket.as_deref().unwrap_or("not ready");
    let status = status(attachment);
    let mut lines = vec![format!("  backend  {}: {status}", attachment.backend)];
    if attachment.wanted != Wanted::Copying {
        lines.push(format!("  socket   {socket}"));
    }
    lines
}

/// Complete copies of the worst placed extent, and how many policy asks for.
fn copies(disk: &Disk) -> String {
    match disk.short_extents {
        0 => disk.copies_now.to_string(),
        short => format!(
            "{} of {} copies ({short} extents short)",
            disk.copies_now, disk.wanted_copies
        ),
    }
}

/// How much of the disk is where its VM runs.
fn nearness(disk: &Disk) -> String {
    match disk.near_extents {
        near if near == disk.extents => disk.home.to_string(),
        near => format!("{}, {} near", disk.home, percent(near, disk.extents)),
    }
}

fn near(disk: &Disk) -> String {
    let (near, written, all) = (disk.near_extents, disk.near_member_extents, disk.extents);
    match (near == all, written == all) {
        (true, _) => "all of it stands there".into(),
        (false, true) => format!(
            "written there; {} of it stands there whole",
            percent(near, all)
        ),
        (false, false) => format!(
            "{} of it is written there, {} stands there whole",
            percent(written, all),
            percent(near, all)
        ),
    }
}

fn class(disk: &Disk) -> String {
    match &disk.class {
        Some(class) => format!("{class}, of the policy of {}", disk.home),
        None => format!("the default one of the policy of {}", disk.home),
    }
}

fn open(disk: &Disk) -> String {
    disk.open_for
        .as_ref()
        .map_or("closed".into(), |host| format!("open for {host}"))
}

fn attached(disk: &Disk) -> String {
    let main = disk.attachment.as_ref();
    let main = main.filter(|attachment| attachment.wanted != Wanted::Copying);
    let mut text = main.map_or("-".into(), |attachment| place(&attachment.place));
    if !disk.standbys.is_empty() {
        let standbys = disk.standbys.iter();
        let hosts: Vec<String> = standbys.map(|standby| place(&standby.place)).collect();
        text += &format!(" (standby: {})", hosts.join(", "));
    }
    text
}

fn state(disk: &Disk) -> String {
    let attachment = disk.attachment.as_ref();
    let mut text = attachment.map_or_else(|| open(disk), status);
    if let Some(brief) = &disk.moving {
        text += &format!("; {}", moving(brief));
    }
    text
}

fn moving(brief: &MoveBrief) -> String {
    let [_, what, state, done, ..] = moves::brief(brief);
    format!("{what}, {state}, {done} done")
}

fn status(attachment: &AttachmentView) -> String {
    let status = &attachment.status;
    match attachment.wanted {
        Wanted::Attached => status.clone(),
        Wanted::Standby => format!("stands by: {status}"),
        Wanted::Copying => status.clone(),
        Wanted::Detached => format!("detaching, {status}"),
    }
}

fn place(place: &Place) -> String {
    match place {
        Place::Node(host) => host.to_string(),
        Place::Operator(name) => format!("{name} (operator)"),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use replicator::words::{
        BackendId, DatacenterName, DiskId, Epoch, ExtentSize, Generation, HostName,
    };

    /// Closed, whole, in tokyo.
    pub fn disk(name: &str) -> Disk {
        Disk {
            id: DiskId::from_u128(1),
            name: DiskName::new(name).unwrap(),
            bytes: 2 << 30,
            extent_size: ExtentSize::DEFAULT,
            copies: 2,
            epoch: Epoch::first(Generation(1)),
            open_for: None,
            allocated_bytes: 3 << 30,
            attachment: None,
            standbys: Vec::new(),
            class: None,
            home: DatacenterName::new("tokyo").unwrap(),
            wanted_copies: 2,
            copies_now: 2,
            short_extents: 0,
            extents: 32,
            near_extents: 32,
            near_member_extents: 32,
            moving: None,
        }
    }

    fn on(host: &str, wanted: Wanted) -> AttachmentView {
        AttachmentView {
            backend: BackendId::from_u128(5),
            place: Place::Node(HostName::new(host).unwrap()),
            wanted,
            socket: Some(format!("/run/ukai/{host}.sock")),
            status: "ready".into(),
        }
    }

    #[test]
    fn a_standby_is_shown_beside_the_attachment() {
        let mut web1 = disk("web1");
        web1.attachment = Some(on("tokyo-1", Wanted::Attached));
        web1.standbys = vec![on("osaka-1", Wanted::Standby)];
        assert_eq!(
            rows(&[web1.clone(), disk("web2")]),
            "DISK  SIZE   ALLOCATED  COPIES  HOME   ATTACHED TO                 STATE
web1  2 GiB  3 GiB      2       tokyo  tokyo-1 (standby: osaka-1)  ready
web2  2 GiB  3 GiB      2       tokyo  -                           closed"
        );
        let text = describe(&web1);
        assert!(
            text.contains("standby    on osaka-1, until its VM arrives there\n  backend  "),
            "{text}"
        );
        assert!(
            text.contains("home       tokyo, all of it stands there"),
            "{text}"
        );
    }

    #[test]
    fn a_disk_that_is_copied_is_not_called_attached() {
        let mut web1 = disk("web1");
        web1.attachment = Some(AttachmentView {
            socket: None,
            status: "open in epoch 6".into(),
            ..on("tokyo-2", Wanted::Copying)
        });
        assert_eq!(attached(&web1), "-");
        let text = describe(&web1);
        assert!(
            text.contains("copied by  tokyo-2, while it is attached nowhere"),
            "{text}"
        );
        assert!(!text.contains("socket"), "{text}");
    }

    #[test]
    fn what_is_not_near_is_said() {
        let mut web1 = disk("web1");
        web1.near_extents = 8;
        assert_eq!(nearness(&web1), "tokyo, 25% near");
        assert_eq!(near(&web1), "written there; 25% of it stands there whole");
        web1.near_member_extents = 16;
        assert_eq!(
            near(&web1),
            "50% of it is written there, 25% stands there whole"
        );
    }
}
