//! Recovery from arbitrary bytes, for fuzzing: it must neither panic nor allocate without bound (I9).

use super::directory;
use super::frame::{HEADER_BYTES, Header, Kind, RawHeader};
use super::media::sim::SimMedia;
use super::place::Place;
use super::segment::file_name;
use super::{BootId, Filling, Handled, Options, Store};
use crate::message::{Asker, Fetch, Request, checksum};
use crate::words::{Block, Blocks, DiskId, Epoch, Extent, Extents, StoreId, Version};
use bytes::Bytes;

const STORE: StoreId = StoreId::from_u128(7);
const MOST_BYTES: usize = 1 << 20;

/// Opens a store whose files hold these bytes, and reads what it then claims to have.
///
/// The input is a list of files, each: one byte that says which (0 and 1 the copies of the checkpoint,
/// n > 1 segment n - 1), three bytes of length, the content. Checksums are put right wherever a
/// frame's kind stands, since no fuzzer guesses them.
pub fn fuzz_recover(input: &[u8]) {
    let media = SimMedia::new();
    let options = Options::tiny();
    Store::format(&media, STORE, &options).expect("an empty directory");
    let mut rest = &input[..input.len().min(MOST_BYTES)];
    while let [which, a, b, c, content @ ..] = rest {
        let len = u32::from_le_bytes([*a, *b, *c, 0]) as usize;
        let (content, behind) = content.split_at(len.min(content.len()));
        rest = behind;
        match which {
            0 | 1 => {
                let name = &directory::names(1)[usize::from(*which)];
                media.plant(name, &directory::with_sum(STORE, content));
            }
            segment => {
                let segment = u32::from(segment - 1);
                media.plant(&file_name(segment), &with_sums(segment, content));
            }
        }
    }
    // Reads and checks whatever it makes of them; damage is an answer.
    let _ = super::check::check_media(&media);
    let Ok((mut store, _)) = Store::open(media, options, BootId(2)) else {
        return;
    };
    let disks: Vec<DiskId> = store.disks().collect();
    for disk in disks {
        let asker = Asker {
            disk,
            epoch: store.shown(disk),
            incarnation: store.incarnation(),
        };
        for first in [0, 200, 4090] {
            let read = Request::Read {
                asker,
                from: Epoch::ZERO,
                below: Epoch::MAX,
                blocks: Blocks::new(Block(first), 16),
            };
            if let Handled::Read(plan) = store.handle(read) {
                let _ = plan.run();
            }
        }
        let list = Request::List {
            asker,
            extents: Extents::new(Extent(0), Extent(4)),
            above: Version::ZERO,
            start: Block(0),
        };
        let _ = store.handle(list);
        move_it(&mut store, asker);
    }
    for _ in 0..64 {
        store.housekeep();
    }
}

/// What a move does to a store, with whatever replica that makes.
fn move_it(store: &mut Store<SimMedia>, asker: Asker) {
    let extents = Extents::new(Extent(0), Extent(4));
    let survey = Request::Survey {
        asker,
        from: Epoch::ZERO,
        below: Epoch::MAX,
        extents,
        start: Block(0),
    };
    let _ = store.handle(survey);
    for first in [0, 200] {
        let blocks = Blocks::new(Block(first), 16);
        let Ok(missing) = store.missing(asker, Epoch::MAX, blocks) else {
            continue;
        };
        let fetch = Request::Fetch {
            asker,
            from: Epoch::ZERO,
            below: Epoch::MAX,
            blocks: missing.blocks.clone(),
            known: missing.known.clone(),
            compress: false,
            proof: None,
        };
        if let Handled::Fetch(plan) = store.handle(fetch) {
            let _ = plan.run();
        }
        let filling = Filling {
            found: vec![Fetch::Same; missing.known.len()],
            data: Bytes::new(),
            wire_bytes: 0,
        };
        let _ = store.fill(asker, Epoch::MAX, &missing, &filling);
    }
    let collapse = Request::Collapse {
        asker,
        extents,
        oldest: asker.epoch,
    };
    let _ = store.handle(collapse);
    for _ in 0..4 {
        let _ = store.drop_replica(asker.disk, extents, Epoch::MAX);
    }
}

/// The same bytes, with the checksum of every frame that they might hold put right.
fn with_sums(segment: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = content.to_vec();
    let mut at = 0;
    while at + HEADER_BYTES as usize <= bytes.len() {
        let place = Place::new(segment, at as u64);
        let header = RawHeader::corrected(&bytes[at..], STORE, place, |header: &Header| {
            let place = header.place_at(place.point());
            let from = place.payload() as usize;
            let payload = match header.kind {
                Kind::Zeroes => Some(&[][..]),
                _ => bytes.get(from..from + header.payload_bytes() as usize),
            };
            payload.map_or(0, checksum)
        });
        match header {
            Some((header, raw)) => {
                bytes[at..at + raw.len()].copy_from_slice(&raw);
                at += header.frame_bytes() as usize;
            }
            None => at += 64,
        }
    }
    bytes
}
