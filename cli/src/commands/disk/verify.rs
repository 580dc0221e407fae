//! `ukai disk verify`: whether a disk's copies agree and are intact. An open disk is verified by the backend
//! that serves it, a detached one by this process, which becomes its writer for the time being.

use super::image::{stopped_early, with_disk};
use crate::exit::{Code, Failure};
use crate::operator::{Connection, Service};
use crate::output::{Output, human_bytes};
use crate::signals::Stop;
use indicatif::ProgressBar;
use placement_service::api::{Disk, Verification, VerifyDisk};
use replicator::words::{BLOCK_BYTES, Block, DiskName, StoreId, Version};
use replicator::writer::{CopyOfBlock, Verdict, VerifyOrder};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Between two looks at how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// When nothing new was heard for so long it is asked whether the disk is open at all: longer than a node takes
/// to be started anew.
const SILENCE: Duration = Duration::from_secs(30);

/// Compare a disk's copies, and heal what is damaged of them.
///
/// Copies are compared by digests of what they hold, without moving data; with --deep all of it is read
/// from the media, too, and checked. A guest that uses the disk goes on. The exit code is 1 if copies
/// disagree, or if something is damaged and could not be healed.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ukai disk verify web1 --deep")]
pub struct Args {
    disk: DiskName,
    /// Read and check all data on all stores.
    #[arg(long)]
    deep: bool,
}

#[derive(Serialize)]
struct Verified {
    disk: DiskName,
    /// All copies that should be whole were looked at, agree, and are intact.
    good: bool,
    #[serde(flatten)]
    verdict: Verdict,
}

pub fn run(args: Args, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    let disk: Disk = service.get(&format!("/v1/disks/{}", args.disk))?;
    let bar = output.progress(disk.bytes, "verifying");
    let extent_bytes = disk.extent_size.bytes();
    let shown = |verdict: &Verdict| show_progress(&bar, verdict, extent_bytes);
    let verdict = if disk.attachment.is_some() {
        where_it_is(&args, &service, shown)
    } else {
        here(&args, connection, &service, shown)
    };
    bar.finish_and_clear();
    let verified = Verified {
        disk: args.disk,
        good: false,
        verdict: verdict?,
    };
    let verified = Verified {
        good: verified.verdict.is_good(),
        ..verified
    };
    output.show(&verified, |verified| describe(&verified.verdict));
    match failure(&verified) {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}

fn show_progress(bar: &ProgressBar, verdict: &Verdict, extent_bytes: u64) {
    bar.set_position(verdict.extents_done * extent_bytes);
}

/// The backend that has it open does it.
fn where_it_is(
    args: &Args,
    service: &Service,
    shown: impl Fn(&Verdict),
) -> anyhow::Result<Verdict> {
    let path = format!("/v1/disks/{}/verify", args.disk);
    let order = VerifyDisk { deep: args.deep };
    let begun: Verification = service.post(&path, &order)?;
    let watched: anyhow::Result<Watched> = service.run(async {
        let mut stop = Stop::of_command();
        let mut heard: (Option<Verdict>, Instant) = (None, Instant::now());
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.asked() => return Ok(Watched::Stopped),
            }
            let now: Verification = service.look(&path).await?;
            if now.order != begun.order {
                let what = format!("{} is verified by somebody else now", args.disk);
                return Err(Failure::new(Code::Refused, what)
                    .because("a later order took the place of this one")
                    .into());
            }
            if now.verdict != heard.0 {
                heard = (now.verdict, Instant::now());
            }
            match &heard.0 {
                Some(verdict) if verdict.finished => return Ok(Watched::Finished(verdict.clone())),
                Some(verdict) => shown(verdict),
                None => {}
            }
            if heard.1.elapsed() >= SILENCE {
                let disk: Disk = service.look(&format!("/v1/disks/{}", args.disk)).await?;
                if disk.open_for.is_none() {
                    return Ok(Watched::Closed);
                }
                heard.1 = Instant::now();
            }
        }
    });
    if watched.is_ok() {
        let _: Verification = service.delete(&path)?;
    }
    match watched? {
        Watched::Finished(verdict) => Ok(verdict),
        Watched::Stopped => Err(stopped_early()),
        Watched::Closed => Err(Failure::new(
            Code::Refused,
            format!("{} was not verified to the end", args.disk),
        )
        .because("it is attached, but not open any more: its VM has stopped")
        .try_next("verify it again when its VM runs, or detach it first")
        .into()),
    }
}

/// How an order ended that nobody else took the place of.
enum Watched {
    Finished(Verdict),
    Stopped,
    Closed,
}

fn here(
    args: &Args,
    connection: &Connection,
    service: &Service,
    shown: impl Fn(&Verdict),
) -> anyhow::Result<Verdict> {
    let order = VerifyOrder {
        id: 1,
        deep: args.deep,
    };
    with_disk(&args.disk, connection, service, async |io| {
        io.disk().verify(order, shown).await
    })
}

fn describe(verdict: &Verdict) -> String {
    let how = if verdict.deep {
        let bytes = human_bytes(verdict.blocks_read * BLOCK_BYTES);
        format!("compared, and {bytes} read from media and checked")
    } else {
        "compared by digests".into()
    };
    let mut lines = vec![format!("{} extents {how}", verdict.extents)];
    for difference in &verdict.differing {
        lines.push(format!(
            "block {} differs: {}",
            difference.block.0,
            copies(&difference.copies)
        ));
    }
    more(
        &mut lines,
        verdict.differing_blocks,
        verdict.differing.len(),
    );
    for damaged in &verdict.damaged {
        lines.push(one_damaged(damaged.store, damaged.block, damaged.version));
    }
    let unhealed = verdict.damaged_blocks - verdict.healed_blocks.min(verdict.damaged_blocks);
    more(&mut lines, unhealed, verdict.damaged.len());
    if verdict.healed_blocks > 0 {
        lines.push(format!(
            "{} damaged blocks were healed from other copies",
            verdict.healed_blocks
        ));
    }
    let stores = |stores: &[StoreId]| -> String {
        let names: Vec<String> = stores.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    if !verdict.filling.is_empty() {
        let names = stores(&verdict.filling);
        lines.push(format!("left out, since it is still being filled: {names}"));
    }
    if !verdict.silent.is_empty() {
        let names = stores(&verdict.silent);
        lines.push(format!("left out, since it did not answer: {names}"));
    }
    if verdict.single > 0 {
        lines.push(format!(
            "{} extents have a single whole copy within reach: there was nothing to compare",
            verdict.single
        ));
    }
    if verdict.busy > 0 {
        lines.push(format!(
            "{} extents were written all the time, and could not be compared",
            verdict.busy
        ));
    }
    lines.push(if verdict.is_good() {
        "good: the copies agree, and no damage is known".into()
    } else if verdict.has_no_faults() {
        "no fault was found, but not all copies could be looked at".into()
    } else {
        "NOT good".into()
    });
    lines.join("\n")
}

fn more(lines: &mut Vec<String>, all: u64, named: usize) {
    let more = all.saturating_sub(named as u64);
    if more > 0 {
        lines.push(format!("... and {more} more"));
    }
}

fn copies(copies: &[CopyOfBlock]) -> String {
    let said = copies.iter().map(|copy| match copy.version {
        None => format!("{} does not have it", copy.store),
        Some(version) if copy.zeroes => format!("{} has zeroes of {version}", copy.store),
        Some(version) => format!("{} has {version}", copy.store),
    });
    said.collect::<Vec<_>>().join("; ")
}

fn one_damaged(store: StoreId, block: Block, version: Option<Version>) -> String {
    match version {
        Some(version) => {
            format!(
                "block {} {version} is damaged on {store}, and no other copy could heal it",
                block.0
            )
        }
        None => format!("the index on {store} is damaged around block {}", block.0),
    }
}

fn failure(verified: &Verified) -> Option<Failure> {
    let (verdict, disk) = (&verified.verdict, &verified.disk);
    if verdict.has_no_faults() {
        let silent = !verdict.silent.is_empty();
        return silent.then(|| {
            Failure::new(
                Code::Unreachable,
                format!("{disk} could not be verified completely"),
            )
            .because("some of its stores did not answer")
            .try_next("see `ukai store list`, and verify it again when they are back")
        });
    }
    let what = format!("{disk} is not good");
    let failed = Failure::new(Code::Failed, what);
    Some(if verdict.differing_blocks > 0 {
        failed
            .because("copies that should be the same differ: the report above says where")
            .try_next(
                "keep all of them; export the disk from the store that you trust, and report this: it should never happen",
            )
    } else {
        failed
            .because("blocks are damaged and no other copy has them intact")
            .try_next("restore these blocks from a backup; writing to them makes them whole again")
    })
}
