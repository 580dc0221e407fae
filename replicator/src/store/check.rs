//! `store check`: reads all of a directory and reports what is damaged. Changes nothing.
//!
//! It walks every segment frame by frame, checks every header and payload, reads both copies of the
//! checkpoint, and then walks the log as an open would. Damage is named by file and offset, and by
//! disk, block and version where the header still says so.

use super::directory::{names, parse_name, read_file};
use super::error::{Doing, StoreError};
use super::frame::{ALIGN, HEADER_BYTES, Header, Kind, frame_bytes};
use super::index::blocks_of;
use super::media::{FileMedia, Media, MediaFile};
use super::options::Options;
use super::place::{MAX_UNITS, PAGE};
use super::segment::{self, file_name};
use super::stretch::{Spot, Stands, Stretch, is_intact};
use super::walk::Walk;
use super::{directory, identity};
use crate::words::StoreId;
use std::collections::BTreeMap;
use std::path::Path;

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    pub segments: u64,
    pub frames: u64,
    pub bytes: u64,
    pub damage: Vec<Damage>,
}

/// One piece of damage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    pub file: String,
    /// Bytes from the file's start; None: the file as a whole.
    pub offset: Option<u64>,
    pub what: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "{} offset {offset}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

/// Checks a directory of real files. Errors only where the directory cannot be read at all, or
/// belongs to a running store.
pub fn check(dir: &Path) -> Result<Report, StoreError> {
    let media = FileMedia::new(dir).doing(&dir.display().to_string(), "opening the directory")?;
    check_media(&media)
}

pub fn check_media<M: Media>(media: &M) -> Result<Report, StoreError> {
    let dir = media.name();
    let id = identity::read(media)?;
    let _lock = identity::lock(media)?;
    let found = media.list().doing(&dir, "listing the directory")?;
    let mut report = Report::default();
    check_checkpoints(media, id, &found, &mut report)?;

    let walked = Walk::from_checkpoint(media, id, &Options::default(), &found)
        .and_then(|mut walk| walk.run().map(|()| walk));
    let mut walk = match walked {
        Ok(walk) => Some(walk),
        Err(StoreError::Damaged { what, place, .. }) => {
            report.damage.push(Damage {
                file: place,
                offset: None,
                what,
            });
            None
        }
        Err(other) => return Err(other),
    };
    // How far each segment's frames go: nothing behind that is part of the log.
    let ends: BTreeMap<u32, u64> = match &walk {
        Some(walk) => walk
            .segments
            .iter()
            .map(|(id, segment)| match *id == walk.end.segment {
                true => (*id, walk.end.offset),
                false => (*id, segment.end),
            })
            .collect(),
        None => found
            .iter()
            .filter_map(|name| segment::parse_name(name))
            .map(|id| (id, u64::MAX))
            .collect(),
    };
    for (segment, end) in ends {
        check_segment(media, id, segment, end, &mut report)?;
    }
    if let Some(walk) = &mut walk {
        check_index(walk, id, &mut report);
    }
    Ok(report)
}

fn check_checkpoints<M: Media>(
    media: &M,
    id: StoreId,
    found: &[String],
    report: &mut Report,
) -> Result<(), StoreError> {
    let newest = found.iter().filter_map(|name| parse_name(name)).max();
    let Some(newest) = newest else {
        return Ok(());
    };
    for file in names(newest) {
        let bytes = read_file(media, &file).doing(&media.name(), "reading a checkpoint")?;
        let what = match bytes {
            None => Some("one of the checkpoint's two copies is missing"),
            Some(bytes) => {
                report.bytes += bytes.len() as u64;
                let intact = directory::Directory::decode(id, &bytes).is_some();
                (!intact).then_some("the checkpoint does not match its checksum")
            }
        };
        report.damage.extend(what.map(|what| Damage {
            file,
            offset: None,
            what: what.into(),
        }));
    }
    Ok(())
}

fn check_segment<M: Media>(
    media: &M,
    id: StoreId,
    segment: u32,
    end: u64,
    report: &mut Report,
) -> Result<(), StoreError> {
    let dir = media.name();
    let opened = media
        .open_direct(&file_name(segment))
        .and_then(|file| Ok((file.size()?, file)))
        .doing(&dir, "opening a segment");
    let (len, file) = opened?;
    let known_end = end != u64::MAX;
    let end = end.min(len).min(MAX_UNITS * ALIGN);
    let mut damage = |offset: u64, what: String| {
        report.damage.push(Damage {
            file: file_name(segment),
            offset: Some(offset),
            what,
        });
    };
    report.segments += 1;
    let mut bytes = Vec::new();
    let mut at = Spot::default();
    let mut bad = false;
    while at.offset < end {
        let from = at;
        let start = Stretch::start_for(at.offset);
        let left = len.saturating_sub(start);
        bytes.resize(READ_BYTES.min(left) as usize, 0);
        file.read_at(start, &mut bytes)
            .doing(&dir, "reading a segment")?;
        let stretch = Stretch {
            store: id,
            segment,
            start,
            bytes: &bytes,
            more: READ_BYTES < left,
            end,
        };
        loop {
            match stretch.at(at) {
                Stands::Frame {
                    header,
                    payload,
                    next,
                    ..
                } => {
                    bad = false;
                    report.frames += 1;
                    report.bytes += frame_bytes(header.payload_bytes());
                    if !is_intact(&header, payload) {
                        damage(at.offset, what_is_damaged(&header));
                    }
                    at = next;
                }
                Stands::Gap { mark, next } => {
                    let padding = at.offset..at.offset.next_multiple_of(PAGE).min(mark);
                    let mut padding = padding.map(|at| bytes[(at - start) as usize]);
                    if padding.any(|byte| byte != 0) {
                        damage(
                            at.offset,
                            "padding is not zero (harmless, but the media changed it)".into(),
                        );
                    }
                    report.frames += 1;
                    report.bytes += HEADER_BYTES;
                    at = next;
                }
                Stands::End => break,
                Stands::Unknown if at != from && stretch.more => break,
                Stands::Unknown | Stands::Nothing => {
                    // In a segment whose end is unknown emptiness is no fault.
                    let here = bytes.get((at.offset - start) as usize..);
                    let mut header = here.unwrap_or_default().iter().take(HEADER_BYTES as usize);
                    let blank = at.is_among_blocks() || header.all(|byte| *byte == 0);
                    if !bad && (known_end || !blank) {
                        damage(at.offset, "no valid frame where one should be".into());
                        bad = true;
                    }
                    at = at.skip();
                }
            }
        }
    }
    Ok(())
}

fn what_is_damaged(header: &Header) -> String {
    match header.kind {
        Kind::Data => format!(
            "the content of disk {} block {} version {} does not match its checksum",
            header.disk,
            header.block,
            header.version()
        ),
        Kind::Index => format!(
            "the index of disk {} from block {} on does not match its checksum",
            header.disk, header.block
        ),
        kind => format!("a frame of kind {kind:?} does not match its checksum"),
    }
}

/// How much of a segment is read at once.
const READ_BYTES: u64 = (1 << 20) + PAGE;

/// Loads every part of the index that the checkpoint names.
fn check_index<M: Media>(walk: &mut Walk<M>, id: StoreId, report: &mut Report) {
    let disks: Vec<_> = walk.holdings.disks.keys().copied().collect();
    for disk in disks {
        let chunks: Vec<u64> = walk.holdings.disks[&disk].chunks.keys().copied().collect();
        for chunk in chunks {
            let blocks = blocks_of(chunk);
            if walk
                .holdings
                .load(&mut walk.files, id, disk, blocks)
                .is_err()
            {
                report.damage.push(Damage {
                    file: "index".into(),
                    offset: None,
                    what: format!("the index of disk {disk} blocks {blocks} cannot be read"),
                });
            }
        }
    }
    if walk.lost {
        report.damage.push(Damage {
            file: file_name(walk.end.segment),
            offset: Some(walk.end.offset),
            what: "the log ends at a frame that is not intact, with intact ones behind it: either the \
                   host crashed, or the media changed the frame"
                .into(),
        });
    }
    for what in &walk.damage {
        report.damage.push(Damage {
            file: "log".into(),
            offset: None,
            what: what.clone(),
        });
    }
}
