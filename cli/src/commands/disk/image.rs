//! `ukai disk import` and `ukai disk export`: raw images in and out of a detached disk.
//!
//! This process becomes the disk's writer for the time being, with an attachment of its own.

use super::image_file::{Target, to_read};
use crate::addresses::Addresses;
use crate::commands::node::DEFAULT_EJECT_AFTER;
use crate::exit::{Code, Failure};
use crate::operator::{Connection, Service};
use crate::output::{Output, human_bytes};
use crate::signals::Stop;
use placement_service::api::{Detach, Detached, Disk, StoreAddress, TakeWriter, Writer};
use placement_service::client::PlacementClient;
use replicator::net::{Links, Place};
use replicator::words::{DiskName, Epoch, Life, Owner};
use replicator::writer::{self, NotStarted, TakeOver};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;
use uuid::Uuid;
use vhost_backend::disk::image::{self, Before, ImageError, Progress};
use vhost_backend::disk::{DiskIo, ReplicatedDisk, Surroundings};

/// How long a node may take to close a disk that it only copied for.
const LETTING_GO: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(200);

/// Write a raw image to a detached disk.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  qemu-img convert -O raw base.qcow2 base.raw && ukai disk import web1 base.raw"
)]
pub struct ImportArgs {
    disk: DiskName,
    /// A raw image, no larger than the disk: a file or a block device; what is behind its end becomes zero.
    file: PathBuf,
    /// Overwrite a disk that holds data.
    #[arg(long)]
    overwrite: bool,
}

/// Write a detached disk to a raw image, with holes where it is zero.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  ukai disk export web1 web1.raw && qemu-img convert -O qcow2 web1.raw web1.qcow2"
)]
pub struct ExportArgs {
    disk: DiskName,
    /// The image to make: a file.
    file: PathBuf,
    /// Replace a file that exists.
    #[arg(long)]
    overwrite: bool,
}

#[derive(Serialize)]
struct Copied {
    disk: DiskName,
    file: PathBuf,
    bytes: u64,
    /// Of these, what was not zero.
    data_bytes: u64,
}

pub fn import(args: ImportArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let file = to_read(&args.file)?;
    let service = connection.service()?;
    let disk: Disk = service.get(&format!("/v1/disks/{}", args.disk))?;
    // What its stores last said of its bytes may be old; whether it ever was open is certain.
    let never_opened = disk.epoch == Epoch::first(disk.epoch.generation());
    if !never_opened && !args.overwrite {
        let allocated = human_bytes(disk.allocated_bytes);
        let what = format!("{} may hold data ({allocated} on its stores)", args.disk);
        return Err(Failure::new(Code::Refused, what)
            .because("it was open before")
            .try_next("--overwrite replaces all of it")
            .into());
    }
    let before = if never_opened {
        Before::Empty
    } else {
        Before::Anything
    };
    let bar = output.progress(disk.bytes, "importing");
    let done = with_disk(&args.disk, connection, &service, async |io| {
        image::import(io, &file, before, |progress| {
            bar.set_position(progress.done)
        })
        .await
    })?;
    bar.finish_and_clear();
    show(args.disk, args.file, done, "imported", output);
    Ok(())
}

pub fn export(args: ExportArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    let disk: Disk = service.get(&format!("/v1/disks/{}", args.disk))?;
    let target = Target::open(&args.file, args.overwrite)?;
    let bar = output.progress(disk.bytes, "exporting");
    let file = &target.file;
    let done = with_disk(&args.disk, connection, &service, async |io| {
        let done = image::export(io, file, |progress| bar.set_position(progress.done)).await?;
        file.sync_all()?;
        Ok::<_, ImageError>(done)
    });
    let done = match done {
        Ok(done) => done,
        Err(error) => {
            target.give_up();
            return Err(error);
        }
    };
    bar.finish_and_clear();
    show(args.disk, args.file, done, "exported", output);
    Ok(())
}

fn show(disk: DiskName, file: PathBuf, done: Progress, verb: &str, output: Output) {
    let copied = Copied {
        disk,
        file,
        bytes: done.total,
        data_bytes: done.copied,
    };
    output.show(&copied, |copied| {
        let (bytes, data) = (human_bytes(copied.bytes), human_bytes(copied.data_bytes));
        format!(
            "{verb} {} ({bytes}, {data} of it not zero) and {}",
            copied.disk,
            copied.file.display()
        )
    });
}

/// Becomes the disk's writer, lets `work` use it, closes it and gives the attachment back, also when
/// `work` failed or somebody stopped it: by ctrl-c, SIGTERM, or a terminal that hung up.
pub(super) fn with_disk<T, E: Into<anyhow::Error>>(
    name: &DiskName,
    connection: &Connection,
    service: &Service,
    work: impl AsyncFnOnce(&mut DiskIo) -> Result<T, E>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // From before the disk is ours, so that it does not stay so.
    let mut stop = {
        let _inside = runtime.enter();
        Stop::of_command()
    };
    let writer: Writer =
        service.post(&format!("/v1/disks/{name}/writer"), &TakeWriter::default())?;
    // Of our own attachment only: who has taken the disk over meanwhile keeps it. Where the epoch could not be closed nobody
    // writes in it any more, and the next writer settles the copies.
    let detach = Detach {
        backend: Some(writer.backend),
        force: true,
        ..Detach::default()
    };
    let local = LocalSet::new();
    let result = local.block_on(&runtime, async {
        let mut io = tokio::select! {
            io = open(connection, writer) => io?,
            () = stop.asked() => return Err(stopped_early()),
        };
        let result = tokio::select! {
            result = work(&mut io) => result.map_err(Into::into),
            () = stop.asked() => Err(stopped_early()),
        };
        // Who is asked again does not wait for stores that are away.
        tokio::select! {
            _ = io.close() => {}
            () = stop.asked() => {}
        }
        result
    });
    let detached: anyhow::Result<Detached> =
        service.post(&format!("/v1/disks/{name}/detach"), &detach);
    let value = result?;
    if !detached?.clean {
        let what = format!("{name} was done with, but its epoch could not be closed");
        return Err(Failure::new(Code::Failed, what)
            .because("a store or the placement service was away")
            .try_next("attach it again when they are back: its copies are settled then")
            .into());
    }
    Ok(value)
}

pub(super) fn stopped_early() -> anyhow::Error {
    Failure::new(Code::Failed, "stopped before it was complete").into()
}

async fn open(connection: &Connection, writer: Writer) -> anyhow::Result<DiskIo> {
    let credentials = connection.credentials()?;
    let placement = connection.service_names()?.into_iter();
    let placement = placement.map(|name| name.at_port(writer.node_port));
    let client = PlacementClient::new(&credentials, placement.collect())?;
    let addresses = Addresses::default();
    for StoreAddress {
        store,
        host,
        address: addr,
        ..
    } in writer.stores
    {
        addresses.learn(store, Place { addr, host });
    }
    tokio::task::spawn_local(addresses.clone().keep(client.clone()));
    let links = Links::new(&credentials, move |store| addresses.place(store))?;
    let owner = Owner {
        backend: writer.backend,
        life: Life(Uuid::new_v4().as_u64_pair().0),
        host: credentials.identity().host.clone(),
    };
    // As patient as a node: who is ejected here is out for the next writer too.
    let config = writer::Config {
        eject_after: Some(DEFAULT_EJECT_AFTER),
        settle_patience: DEFAULT_EJECT_AFTER,
        ..writer::Config::default()
    };
    let take_over = match writer.take_over {
        true => TakeOver::Ordered,
        false => TakeOver::Own,
    };
    let until = Instant::now() + LETTING_GO;
    let mut record = writer.record;
    loop {
        let id = record.id;
        let around = Surroundings {
            near: None,
            links: links.clone(),
            placement: Arc::new(client.clone()),
        };
        let disk = ReplicatedDisk::new(record, owner.clone(), config.clone(), around);
        disk.orders().change(|orders| orders.take_over = take_over);
        match DiskIo::open(disk).await {
            Ok(io) => return Ok(io),
            // Whoever copied for it while nobody had it has been told to let go.
            Err(NotStarted::AlreadyOpen { .. }) if Instant::now() < until => {}
            Err(why) => {
                let failure = Failure::new(Code::Refused, "the disk could not be opened");
                return Err(failure.because(why).into());
            }
        }
        tokio::time::sleep(PAUSE).await;
        record = client.record(id).await?.record;
    }
}
