//! Where blocks stand, and what that means where something is cut off or spoilt.

use super::Bench;
use super::rng::Rng;
use crate::message::{Content, Found, Payload, Refusal, Reply, Request};
use crate::store::Options;
use crate::store::check::check_media;
use crate::store::place::{MAX_APART, PAGE};
use crate::store::segment::file_name;
use crate::store::sync::NO_SYNC_FAILED;
use crate::words::{Block, Blocks, Seq, Version};
use bytes::Bytes;
use std::collections::BTreeSet;

fn roomy() -> Options {
    Options {
        segment_bytes: 1 << 20,
        open_files: 64,
        ..Options::tiny()
    }
}

#[test]
fn every_block_stands_on_a_page_of_its_own() {
    let mut bench = Bench::ready_with(roomy());
    let mut rng = Rng(5);
    for _ in 0..200 {
        let first = rng.below(500);
        // Within an extent.
        let count = (1 + rng.below(70)).min(256 - first % 256);
        bench.write(first, count as u32, rng.below(4) == 0);
        match rng.below(5) {
            0 => drop(bench.flush()),
            1 => bench.tidy(),
            _ => {}
        }
    }
    let data = bench.oracle.written.clone().into_iter();
    let data = data.filter(|(_, versions)| versions.values().next_back() == Some(&false));
    let mut pages = BTreeSet::new();
    for (block, _) in data {
        let place = bench.place_of(block.0);
        assert!(place.payload().is_multiple_of(PAGE) && place.apart() > 0);
        assert!(pages.insert((place.segment, place.payload())), "{place}");
    }
    assert!(pages.len() > 200, "{}", pages.len());
    bench.check(true);
    bench.kill().check(true);
}

#[test]
fn blocks_that_are_written_in_order_stand_in_order_and_are_read_at_once() {
    let mut bench = Bench::ready_with(roomy());
    for first in (0..192).step_by(3) {
        bench.write(first, 3, false);
    }
    let first = bench.place_of(0);
    for block in 0..192 {
        let place = bench.place_of(block);
        assert_eq!(place, first.nth(block as u32), "block {block}");
    }
    // With the pages of headers between them.
    let read = |bench: &mut Bench| {
        let before = bench.media.work().bytes_read;
        bench.read(0, 192).unwrap();
        bench.media.work().bytes_read - before - 195 * PAGE
    };
    assert_eq!(read(&mut bench), 0, "what was written is known");
    bench.store.start_checkpoint();
    bench.flush();
    bench.tidy();
    let mut bench = bench.kill();
    bench.version(Block(191)).unwrap();
    let headers = u64::from(MAX_APART) * 64;
    assert_eq!(read(&mut bench), headers, "those of the first page");
    assert_eq!(read(&mut bench), 0, "what was read is known");
}

/// In a page that has blocks already, in a new one, and over the end of one: blocks, zeroes, and blocks that are zeroes.
#[test]
fn a_process_that_dies_within_a_write_loses_nothing_but_that_write() {
    let bytes = (3 + 66 + 3) * PAGE;
    for before in [0, 1, 5, 60] {
        for tear in (0..bytes).step_by(2039) {
            let mut bench = Bench::ready_with(roomy());
            bench.flush();
            if before > 0 {
                bench.write(0, before, false);
            }
            let kept = Version::new(bench.epoch, Seq(bench.seq));
            bench.media.tear_after(tear);
            bench.write_all(&[(100, 3, false), (110, 9, true), (256, 66, false)]);
            let mut bench = died(bench);
            for block in 0..before {
                let version = bench.version(Block(block.into()));
                assert_eq!(version, Ok(Some(kept)), "{before} blocks, {tear} bytes");
            }
            bench.check(false);
            bench.believe();
            assert_eq!(bench.write(100, 70, false), Reply::WRITTEN);
            bench.flush();
            bench.check(true);
            while let Some(scrub) = bench.store.next_scrub() {
                let read = scrub.run();
                bench.store.finish_scrub(scrub, read);
                assert!(
                    !bench.store.search_spoilt(),
                    "{before} blocks, {tear} bytes"
                );
            }
            assert_eq!(bench.store.damaged_blocks(), 0);
            let (media, ..) = bench.close();
            let report = check_media(&media).unwrap();
            assert_eq!(report.damage, vec![], "{before} blocks, {tear} bytes");
        }
    }
}

/// Blocks of zeroes look as if they had been written where they were not.
#[test]
fn blocks_of_zeroes_whose_write_was_cut_off_prove_nothing() {
    for tear in (0..12 * PAGE).step_by(509) {
        let mut bench = Bench::ready_with(roomy());
        bench.write(0, 2, false);
        bench.flush();
        let first = Version::new(bench.epoch, Seq(bench.seq));
        bench.media.tear_after(tear);
        let (some, none) = (vec![7; 4096], vec![0; 4096]);
        let content = [&some[..], &none, &some, &none, &none].concat();
        let request = Request::Write {
            asker: bench.asker(),
            seq: Seq(bench.seq + 1),
            watermark: Seq(0),
            blocks: Blocks::new(Block(0), 5),
            content: Content::Data(Payload::new(Bytes::from(content))),
        };
        bench.ask(request);
        let mut bench = died(bench);
        for block in 0..2 {
            let read = bench.read(block, 1).expect("whole, before or after");
            let Found::Data { version, .. } = read.found[0] else {
                panic!("{:?}", read.found);
            };
            let whole = if block == 0 { &some } else { &none };
            assert!(version == first || read.data[..] == whole[..], "{tear}");
        }
    }
}

/// The process is gone, in the middle of what it wrote last: nobody is left to say that it failed.
fn died(bench: Bench) -> Bench {
    bench.media.plant(NO_SYNC_FAILED, &[]);
    let bench = bench.kill();
    let recovery = &bench.recovery;
    assert!(
        !recovery.lost_tail && recovery.damage.is_empty(),
        "{recovery:?}"
    );
    bench
}

#[test]
fn the_cleaner_that_dies_within_a_step_loses_nothing() {
    for tear in (0..20 * PAGE).step_by(1021) {
        let mut bench = Bench::ready();
        for round in 0..12 {
            for block in 0..40 {
                bench.write(block * 2, 1, (block + round) % 5 == 0);
            }
        }
        bench.flush();
        bench.tidy();
        for block in 0..40 {
            bench.write(block * 2, 1, block % 3 == 0);
        }
        bench.flush();
        bench.media.tear_after(tear);
        for _ in 0..30 {
            bench.store.housekeep();
        }
        bench.media.plant(NO_SYNC_FAILED, &[]);
        let mut bench = bench.kill();
        assert!(bench.recovery.damage.is_empty(), "{:?}", bench.recovery);
        bench.check(true);
    }
}

#[test]
fn a_page_of_headers_that_is_gone_spoils_its_blocks_and_no_others_and_all_of_them_heal() {
    let mut bench = Bench::ready_with(roomy());
    bench.write(0, 150, false);
    bench.flush();
    bench.store.start_checkpoint();
    bench.tidy();
    let newest = bench.newest();
    let place = bench.place_of(100);
    let page = place.offset() / PAGE * PAGE;
    let on_it: Vec<u64> = (0..150)
        .filter(|block| bench.place_of(*block).offset() / PAGE * PAGE == page)
        .collect();
    assert_eq!(on_it.len(), usize::from(MAX_APART));
    for at in page..page + PAGE {
        bench.media.change(&file_name(place.segment), at, |_| 0);
    }
    assert!(bench.read(0, 150).is_ok(), "nobody looks there");
    let mut bench = bench.kill();
    for block in 0..150 {
        let read = bench.version(Block(block));
        let damaged = Refusal::Damaged {
            block: Block(block),
        };
        let expected = match on_it.contains(&block) {
            true => Err(damaged),
            false => Ok(Some(newest[&Block(block)])),
        };
        assert_eq!(read, expected);
    }
    while let Some(scrub) = bench.store.next_scrub() {
        let read = scrub.run();
        bench.store.finish_scrub(scrub, read);
        while bench.store.search_spoilt() {}
    }
    assert_eq!(bench.store.damaged_blocks(), on_it.len());
    for block in on_it {
        let blocks = Blocks::new(Block(block), 1);
        let version = newest[&Block(block)];
        assert_eq!(bench.heal(9, blocks, version).unwrap().copied, 1);
    }
    bench.flush();
    assert_eq!(bench.store.damaged_blocks(), 0);
    bench.check(true);
}
