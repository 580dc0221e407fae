//! Scrubbing: whatever the media spoilt is found, named once, and not again when it is healed.

use super::bench::content;
use super::{Bench, DISK, STORE};
use crate::store::Options;
use crate::store::frame::{Kind, RawHeader};
use crate::store::media::Media;
use crate::store::place::Place;
use crate::store::segment::parse_name;
use crate::words::{Block, Blocks, Epoch, Seq, Version};

/// One pass over everything.
fn pass(bench: &mut Bench) -> usize {
    let mut stretches = 0;
    while let Some(scrub) = bench.store.next_scrub() {
        let read = scrub.run();
        bench.store.finish_scrub(scrub, read);
        while bench.store.search_spoilt() {}
        stretches += 1;
        assert!(stretches < 10_000, "it comes to an end");
    }
    stretches
}

/// Where the frame of a block's version stands: its file, and where in it.
fn frame_of(bench: &Bench, block: u64, version: Version) -> (String, Place) {
    let names = bench.media.list().unwrap().into_iter();
    let mut segments = names.filter_map(|name| Some((parse_name(&name)?, name)));
    let found = segments.find_map(|(segment, name)| {
        let bytes = bench.media.content(&name);
        let mut units = (0..bytes.len()).step_by(64);
        let place = units.find_map(|at| {
            let place = Place::new(segment, at as u64);
            let header = RawHeader::decode(&bytes[at..], STORE, place)?;
            let of = header.kind == Kind::Data && header.block == block;
            (of && header.version() == version).then(|| header.place_at(place.point()))
        })?;
        let wanted = content(DISK, Block(block), version);
        assert!(bytes[place.payload() as usize..].starts_with(&wanted));
        Some((name, place))
    });
    found.expect("it is on the media")
}

fn filled() -> Bench {
    let mut bench = Bench::ready();
    for block in 0..120 {
        bench.write(block % 40, 1, block % 7 == 0);
        if block % 9 == 0 {
            bench.flush();
        }
    }
    bench.flush();
    bench.store.start_checkpoint();
    bench.tidy();
    bench.write(50, 3, false);
    bench.flush();
    bench
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let mut bench = filled();
    assert!(pass(&mut bench) > 2);
    assert_eq!(bench.store.damaged_blocks(), 0);
    assert_eq!(bench.store.scrub_progress().passes, 1);
    bench = bench.kill();
    pass(&mut bench);
    assert_eq!(bench.store.damaged_blocks(), 0);
}

#[test]
fn every_flipped_bit_of_a_live_frame_is_found() {
    let bench = filled();
    let newest = bench.newest();
    let (media, oracle, options) = bench.close();
    let header = [1, 9, 40].map(|at| (false, at));
    let payload = [0, 836, 4095].map(|at| (true, at));
    for (within_payload, at) in header.into_iter().chain(payload) {
        for block in [5, 13, 51] {
            let media = media.fork();
            let mut bench = Bench::open(media, options.clone(), oracle.clone()).unwrap();
            bench.epoch = Epoch::from_u64(1);
            let version = newest[&Block(block)];
            let (name, frame) = frame_of(&bench, block, version);
            let from = match within_payload {
                true => frame.payload(),
                false => frame.offset(),
            };
            bench.media.flip(&name, from + at, 4);
            pass(&mut bench);
            assert_eq!(bench.store.damaged_blocks(), 1, "block {block}, byte {at}");
            let blocks = Blocks::new(Block(block), 1);
            assert_eq!(bench.heal(9, blocks, version).unwrap().copied, 1);
            assert_eq!(bench.version(Block(block)), Ok(Some(version)));
            bench.flush();
            pass(&mut bench);
            assert_eq!(
                bench.store.damaged_blocks(),
                0,
                "nobody needs the old frame"
            );
        }
    }
}

#[test]
fn what_is_found_and_how_far_it_is_outlives_a_restart() {
    let mut bench = filled();
    let version = bench.newest()[&Block(13)];
    let (name, frame) = frame_of(&bench, 13, version);
    bench.media.flip(&name, frame.payload() + 36, 0);
    pass(&mut bench);
    // Into the second segment: the one where it stands is begun anew.
    for _ in 0..2 {
        let scrub = bench.store.next_scrub().unwrap();
        let read = scrub.run();
        bench.store.finish_scrub(scrub, read);
    }
    let before = bench.store.scrub_progress();
    assert_eq!((before.passes, bench.store.damaged_blocks()), (1, 1));
    let (media, oracle, options) = bench.close();
    let mut bench = Bench::open(media, options, oracle).unwrap();
    assert_eq!(bench.store.damaged_blocks(), 1);
    let now = bench.store.scrub_progress();
    assert_eq!(now.passes, 1);
    assert!(now.permille > 0);
    bench.epoch = Epoch::from_u64(1);
    bench.heal(9, Blocks::new(Block(13), 1), version).unwrap();
    assert_eq!(bench.version(Block(13)), Ok(Some(version)));
}

#[test]
fn a_damaged_part_of_the_index_and_of_the_checkpoint_is_written_anew_in_time() {
    let mut bench = filled();
    let names = bench.media.list().unwrap();
    let mirror = names
        .iter()
        .find(|name| name.starts_with("mirror."))
        .unwrap();
    bench.media.flip(mirror, 77, 1);
    let mut spoilt = 0;
    for name in &names {
        let Some(segment) = parse_name(name) else {
            continue;
        };
        let bytes = bench.media.content(name);
        for at in (0..bytes.len()).step_by(64) {
            let place = Place::new(segment, at as u64);
            let header = RawHeader::decode(&bytes[at..], STORE, place);
            if header.is_some_and(|header| header.kind == Kind::Index) {
                bench.media.flip(name, at as u64 + 70, 1);
                spoilt += 1;
            }
        }
    }
    assert!(spoilt > 0);
    pass(&mut bench);
    assert_eq!(bench.store.damaged_blocks(), 0);
    bench.tidy();
    let mut bench = bench.kill();
    assert_eq!(bench.recovery.damage, Vec::<String>::new());
    bench.check(true);
}

#[test]
fn media_that_fail_to_read_are_found_too_and_cleaning_in_between_does_no_harm() {
    let mut bench = Bench::ready_with(Options::tiny());
    for round in 0..30 {
        for block in 0..8 {
            bench.write(block * 8, 8, false);
        }
        bench.flush();
        if let Some(scrub) = bench.store.next_scrub() {
            bench.tidy();
            let read = scrub.run();
            bench.store.finish_scrub(scrub, read);
        }
        assert_eq!(bench.store.damaged_blocks(), 0, "round {round}");
    }
    let scrub = bench.store.next_scrub();
    if let Some(scrub) = scrub {
        bench.media.fail_direct_reads(true);
        let read = scrub.run();
        bench.media.fail_direct_reads(false);
        bench.store.finish_scrub(scrub, read);
    }
    pass(&mut bench);
    bench.check(true);
}

#[test]
fn after_a_segment_that_cannot_be_opened_it_goes_on_with_the_next() {
    for count in [1, 2, 5] {
        let mut bench = Bench::ready_with(Options::tiny());
        let step = |bench: &mut Bench| bench.store.next_scrub().expect("there is more to read");
        bench.write(0, count, false);
        bench.flush();
        let scrub = step(&mut bench);
        let read = scrub.run();
        bench.store.finish_scrub(scrub, read);
        // It stands behind headers with blocks now.
        bench.write(8, 1, false);
        bench.flush();
        let scrub = step(&mut bench);
        bench
            .store
            .finish_scrub(scrub, Err(std::io::Error::other("too many files are open")));
        for round in 0..4 {
            bench.write(16 + round * 8, 8, false);
            bench.flush();
        }
        assert!(pass(&mut bench) > 0);
        assert_eq!(bench.store.damaged_blocks(), 0);
    }
}

/// Blocks in many chunks of the index, none of which is in memory.
fn scattered(chunks: u64) -> Bench {
    let mut bench = Bench::new();
    bench.seal(1);
    bench.join(0..16 * chunks as u32, 1);
    for chunk in 0..chunks {
        bench.write(4096 * chunk, 2, false);
    }
    bench.flush();
    bench.store.start_checkpoint();
    bench.tidy();
    bench.kill()
}

fn in_memory(bench: &Bench) -> usize {
    let slots = bench.store.holdings.disks[&DISK].chunks.values();
    slots.filter(|slot| slot.chunk.is_some()).count()
}

#[test]
fn where_no_header_is_left_the_index_is_looked_through_a_little_at_a_time() {
    const CHUNKS: u64 = 100;
    let mut bench = scattered(CHUNKS);
    let spoilt = [7, 50].map(|chunk| Block(4096 * chunk));
    for block in spoilt {
        let version = bench.newest()[&block];
        let (name, frame) = frame_of(&bench, block.0, version);
        for at in 0..64 {
            bench.media.change(&name, frame.offset() + at, |_| 0);
        }
    }
    let mut steps = 0;
    while let Some(scrub) = bench.store.next_scrub() {
        let read = scrub.run();
        bench.store.finish_scrub(scrub, read);
        assert!(in_memory(&bench) <= 2, "nothing is looked through here");
        loop {
            let before = bench.media.work().bytes_read;
            if !bench.store.search_spoilt() {
                break;
            }
            let read = bench.media.work().bytes_read - before;
            assert!(read < 4096, "one chunk at a time");
            steps += 1;
        }
    }
    assert!(steps >= CHUNKS, "{steps}");
    assert_eq!(bench.store.damaged_blocks(), 2);
    assert_eq!(in_memory(&bench), 2, "only what refers to them stays");
}

#[test]
fn where_nothing_stands_any_more_nothing_is_looked_for() {
    let mut bench = Bench::ready();
    for _ in 0..9 {
        bench.write(0, 8, false);
        bench.flush();
    }
    let (name, frame) = frame_of(&bench, 3, Version::new(bench.epoch, Seq(1)));
    for at in 0..64 {
        bench.media.change(&name, frame.offset() + at, |_| 0);
    }
    let segment = parse_name(&name).unwrap();
    assert!(bench.store.holdings.live.is_dead(segment));
    while let Some(scrub) = bench.store.next_scrub() {
        let read = scrub.run();
        bench.store.finish_scrub(scrub, read);
        assert!(!bench.store.search_spoilt());
    }
    assert_eq!(bench.store.damaged_blocks(), 0);
}
