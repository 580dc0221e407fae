//! Damage: whatever bit flips, it is noticed and named, or it was of no use to anybody; no block is
//! ever served with another content than was written.

use super::{Bench, DISK, STORE};
use crate::message::{Found, Refusal, Reply, Request};
use crate::store::check::check_media;
use crate::store::media::Media;
use crate::store::media::sim::SimMedia;
use crate::store::{BootId, Options, Store, StoreError, fuzz_recover};
use crate::words::{Block, Blocks, Epoch, Extent, Extents, StoreId};

/// A store with every kind of frame, a checkpoint in the middle, and a clean end.
fn sample() -> (SimMedia, super::bench::Oracle, Options) {
    let mut bench = Bench::ready();
    bench.write(0, 2, false);
    bench.write(6, 3, true);
    bench.flush();
    bench.store.start_checkpoint();
    bench.tidy();
    bench.seal(2);
    bench.join(0..64, 2);
    bench.write(1, 1, false);
    bench.flush();
    let newest = bench.newest();
    let source = |block: Block| newest.get(&block).map(|version| (*version, block.0 > 5));
    bench
        .fill(2, Blocks::new(Block(0), 9), source)
        .expect("there is room");
    let extents = Extents::new(Extent(32), Extent(64));
    let (asker, below) = (bench.asker(), Epoch::from_u64(2));
    let request = Request::Keep {
        asker,
        extents,
        below,
    };
    assert_eq!(bench.ask(request), Reply::KEPT);
    let request = Request::Collapse {
        asker,
        extents,
        oldest: below,
    };
    assert_eq!(bench.ask(request), Reply::Collapsed);
    let extents = Extents::new(Extent(48), Extent(64));
    let dropped = bench.store.drop_replica(DISK, extents, Epoch::from_u64(3));
    assert!(matches!(dropped, Ok(Some(_))));
    bench.write(2, 1, true);
    bench.write(3, 1, false);
    bench.close()
}

/// Opens and reads everything. True: somebody said that something is wrong.
fn is_noticed(media: &SimMedia, oracle: &super::bench::Oracle, options: &Options) -> bool {
    let checked = check_media(media);
    let named = match &checked {
        Ok(report) => !report.damage.is_empty(),
        Err(_) => true,
    };
    let opened = Bench::open(media.clone(), options.clone(), oracle.clone());
    let mut bench = match opened {
        Ok(bench) => bench,
        Err(
            StoreError::Damaged { .. } | StoreError::NotAStore { .. } | StoreError::Newer { .. },
        ) => {
            assert!(named, "an open refuses, so a check must say why");
            return true;
        }
        Err(other) => panic!("{other}"),
    };
    let mut noticed = named || !bench.recovery.damage.is_empty();
    assert_eq!(bench.store.shown(DISK), Epoch::from_u64(2), "I4");
    bench.epoch = Epoch::from_u64(2);
    // The store says itself that it may have lost what it had not synced.
    let lost = bench.recovery.lost_tail;
    noticed |= lost;
    for (block, last) in bench.newest() {
        match bench.version(block) {
            Ok(found) => assert!(
                found == Some(last) || lost && found < Some(last),
                "block {block:?} silently lost: {found:?}, not {last:?}"
            ),
            Err(Refusal::Damaged { .. }) => noticed = true,
            Err(other) => panic!("{other:?}"),
        }
    }
    noticed
}

/// Changes each byte of a file in some ways. Returns how many changes nobody noticed.
fn flip_all(name: &str, step: u64, ways: &[u8]) -> (u64, u64) {
    let (media, oracle, options) = sample();
    assert!(
        !is_noticed(&media.fork(), &oracle, &options),
        "intact, nobody complains"
    );
    let len = media.content(name).len() as u64;
    let (mut silent, mut total) = (0, 0);
    let content = media.content(name);
    for at in (0..len).step_by(step as usize) {
        // Far from everything that was written a few samples are enough.
        let around = at.saturating_sub(600) as usize..(at as usize + 600).min(content.len());
        let empty = content[around].iter().all(|byte| *byte == 0);
        if empty && at % 509 != 0 {
            continue;
        }
        for way in ways {
            let media = media.fork();
            media.change(name, at, |byte| byte ^ way);
            total += 1;
            silent += u64::from(!is_noticed(&media, &oracle, &options));
        }
    }
    (silent, total)
}

#[test]
fn a_flipped_bit_in_a_segment_is_noticed_or_harmless() {
    let (media, ..) = sample();
    let segments: Vec<String> = media.list().unwrap();
    let written = |name: &&String| {
        name.starts_with("segment.") && media.content(name).iter().any(|byte| *byte != 0)
    };
    for name in segments.iter().filter(written) {
        let (silent, total) = flip_all(name, 3, &[1, 0x80]);
        println!("{name}: {silent} of {total} changes were in bytes that nobody uses");
        // Padding is checked, what lies behind the end of the log is not.
        assert!(silent * 10 < total, "{name}: {silent} of {total}");
    }
}

#[test]
fn every_flipped_bit_of_a_checkpoint_and_of_the_identity_is_noticed() {
    let (media, ..) = sample();
    for name in media.list().unwrap() {
        let ways: Vec<u8> = (0..8).map(|bit| 1 << bit).collect();
        if name.starts_with("checkpoint.") || name.starts_with("mirror.") {
            let (silent, total) = flip_all(&name, 1, &ways);
            assert_eq!(silent, 0, "{name}: of {total}");
        }
        if name == "UKAI-STORE" {
            let (silent, total) = flip_all(&name, 1, &ways);
            // The two bytes of padding are not silent either: the checksum covers them.
            assert_eq!(silent, 0, "{name}: of {total}");
        }
    }
}

#[test]
fn one_copy_of_the_checkpoint_is_enough() {
    let (media, oracle, options) = sample();
    let name = media
        .list()
        .unwrap()
        .into_iter()
        .find(|name| name.starts_with("checkpoint."))
        .unwrap();
    media.flip(&name, 100, 3);
    let mut bench = Bench::open(media.clone(), options.clone(), oracle.clone()).unwrap();
    assert!(bench.recovery.damage[0].contains(&name));
    bench.check(true);
    let (media, ..) = bench.close();
    media.flip(&name.replace("checkpoint", "mirror"), 100, 3);
    let error = Bench::open(media, options, oracle)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("no checkpoint is left") && error.contains(&name),
        "{error}"
    );
}

#[test]
fn a_damaged_block_is_named_and_its_neighbours_are_served() {
    let mut bench = Bench::ready();
    bench.write(10, 3, false);
    bench.flush();
    let name = "segment.00000001";
    let content = bench.media.content(name);
    let wanted = super::bench::content(
        DISK,
        Block(11),
        crate::words::Version::new(Epoch::from_u64(1), crate::words::Seq(1)),
    );
    let at = content
        .windows(64)
        .position(|bytes| bytes == &wanted[..64])
        .unwrap();
    bench.media.flip(name, at as u64 + 1000, 5);
    assert_eq!(
        bench.read(10, 3),
        Err(Refusal::Damaged { block: Block(11) })
    );
    assert!(matches!(
        bench.read(10, 1).unwrap().found[0],
        Found::Data { .. }
    ));
    assert!(matches!(
        bench.read(12, 1).unwrap().found[0],
        Found::Data { .. }
    ));
    let (media, ..) = bench.close();
    let report = check_media(&media).unwrap();
    assert_eq!(report.damage.len(), 2, "{:?}", report.damage);
    let text = report.damage[0].to_string();
    assert!(
        text.contains(name) && text.contains("block 11 version 1:1"),
        "{text}"
    );
}

#[test]
fn damage_below_a_synced_point_is_no_torn_end() {
    let mut bench = Bench::ready();
    bench.write(0, 1, false);
    bench.flush();
    bench.write(1, 1, false);
    bench.flush();
    bench.write(2, 1, false);
    let content = bench.media.content("segment.00000001");
    // The header of the first write: a frame of kind data for block 0.
    let at = (0..content.len())
        .step_by(64)
        .find(|at| content[at + 4] == 0xD1)
        .unwrap();
    let Bench {
        media,
        store,
        oracle,
        options,
        ..
    } = bench;
    for crash in [false, true] {
        let media = media.fork();
        media.flip("segment.00000001", at as u64 + 9, 0);
        if crash {
            media.crash(|| true);
        }
        let error = Bench::open(media, options.clone(), oracle.clone())
            .err()
            .unwrap();
        let text = error.to_string();
        assert!(matches!(error, StoreError::Damaged { .. }), "{text}");
        assert!(
            text.contains("segment.00000001") && text.contains(&at.to_string()),
            "{text}"
        );
    }
    drop(store);
}

/// A process died, and nothing else: what stands before frames of the same boot was whole once.
#[test]
fn a_block_that_rots_before_the_next_sync_costs_nothing_but_itself() {
    for power_lost in [false, true] {
        let mut bench = Bench::ready();
        for block in 0..3 {
            bench.write(block, 1, false);
        }
        bench.flush();
        let rots = bench.place_of(1).payload() + 36;
        bench.media.flip("segment.00000001", rots, 0);
        if power_lost {
            // Then nobody can tell it from what the power took, unless somebody had said that it was synced.
            let mut bench = bench.crash(|| true);
            assert!(bench.seal(2).replicas[0].lost);
            continue;
        }
        let mut bench = bench.kill();
        assert!(!bench.recovery.lost_tail && bench.recovery.damage.len() == 1);
        assert!(!bench.seal(2).replicas[0].lost);
        let damaged = Refusal::Damaged { block: Block(1) };
        assert_eq!(bench.read(0, 3), Err(damaged));
        assert!(bench.read(0, 1).is_ok() && bench.read(2, 1).is_ok());
    }
}

/// Once the store has said that all was synced, what rots is told from what the power takes.
#[test]
fn a_block_that_rots_after_a_quiet_while_costs_nothing_but_itself_even_with_the_power() {
    let mut bench = Bench::ready();
    for block in 0..3 {
        bench.write(block, 1, false);
    }
    bench.seal(5);
    bench.flush();
    let rots = bench.place_of(1).payload() + 36;
    assert!(bench.store.wants_note() && !bench.store.is_proven("segment.00000001", rots));
    bench.store.state_synced();
    bench.flush();
    assert!(bench.store.is_proven("segment.00000001", rots));
    assert!(!bench.store.wants_note(), "that is said once");
    bench.media.flip("segment.00000001", rots, 0);
    let mut bench = bench.crash(|| false);
    assert_eq!(bench.recovery.damage.len(), 1);
    assert_eq!(bench.store.shown(DISK), Epoch::from_u64(5), "I4");
    bench.seal(6);
    assert!(bench.read(0, 1).is_ok() && bench.read(2, 1).is_ok());
}

#[test]
fn unsynced_damage_within_a_boot_counts_as_a_lost_tail() {
    let mut bench = Bench::ready();
    bench.flush();
    for block in 0..3 {
        bench.write(block, 1, false);
    }
    let content = bench.media.content("segment.00000001");
    let frames: Vec<usize> = (0..content.len())
        .step_by(64)
        .filter(|at| content[at + 4] == 0xD1)
        .collect();
    bench
        .media
        .flip("segment.00000001", frames[1] as u64 + 9, 0);
    let mut bench = bench.kill();
    assert!(bench.recovery.lost_tail);
    assert!(bench.seal(2).replicas[0].lost);
}

#[test]
fn foreign_newer_busy_and_missing_directories_are_refused_with_what_to_do() {
    let options = Options::tiny();
    let media = SimMedia::new();
    let open = |media: &SimMedia| Store::open(media.clone(), options.clone(), BootId(1));
    assert!(matches!(open(&media), Err(StoreError::NotAStore { .. })));
    media.plant("letters.txt", b"dear");
    let made = Store::format(&media, STORE, &options);
    assert!(matches!(made, Err(StoreError::NotEmpty { found, .. }) if found == "letters.txt"));
    media.plant("UKAI-STORE", b"something else altogether");
    assert!(matches!(open(&media), Err(StoreError::NotAStore { .. })));

    let media = SimMedia::new();
    Store::format(&media, StoreId::from_u128(3), &options).unwrap();
    let again = Store::format(&media, STORE, &options);
    assert!(matches!(again, Err(StoreError::NotEmpty { .. })));
    let first = open(&media).ok().unwrap().0;
    let Err(error) = open(&media) else {
        panic!("two at once");
    };
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(first);
    let mut identity = media.content("UKAI-STORE");
    let now = crate::store::frame::FORMAT_VERSION as u8;
    identity[12] = now + 1;
    let sum = crate::message::checksum(&identity[..32]).to_le_bytes();
    identity[32..36].copy_from_slice(&sum);
    media.plant("UKAI-STORE", &identity);
    let Err(error) = open(&media) else {
        panic!("a newer format");
    };
    assert!(error.to_string().contains("newer program"), "{error}");

    // An older one is taken, and is this program's from then on.
    identity[12] = 1;
    let sum = crate::message::checksum(&identity[..32]).to_le_bytes();
    identity[32..36].copy_from_slice(&sum);
    media.plant("UKAI-STORE", &identity);
    drop(open(&media).ok().unwrap());
    assert_eq!(media.content("UKAI-STORE")[12], now);

    let (media, ..) = sample();
    media.remove("segment.00000001").unwrap();
    let Err(error) = open(&media) else {
        panic!("a segment is missing");
    };
    assert!(error.to_string().contains("segment.00000001"), "{error}");
}

/// The files of the sample as `fuzz_recover` takes them: which, and the content.
fn files_to_fuzz() -> Vec<(u8, Vec<u8>)> {
    let (media, ..) = sample();
    let names = media.list().unwrap();
    let files = names.iter().filter_map(|name| {
        let which = match name.split_once('.')? {
            ("segment", id) => u8::try_from(u32::from_str_radix(id, 16).ok()? + 1).ok()?,
            ("checkpoint", _) => 0,
            ("mirror", _) => 1,
            _ => return None,
        };
        let mut content = media.content(name);
        if which < 2 {
            // The target puts its own head before it, and calls it the first.
            content.drain(..40);
            content[..4].copy_from_slice(&1u32.to_le_bytes());
        } else {
            let last = content.iter().rposition(|byte| *byte != 0)?;
            content.truncate((last + 1).next_multiple_of(64).min(content.len()));
        }
        Some((which, content))
    });
    files.filter(|(_, content)| !content.is_empty()).collect()
}

#[test]
fn recovery_survives_any_bytes() {
    fuzz_recover(&[]);
    // Real files, cut, mixed and changed: closer to sense than random bytes.
    let files = files_to_fuzz();
    let mut rng = super::rng::Rng(5);
    for _ in 0..400 {
        let mut input = Vec::new();
        for (which, content) in &files {
            let mut content = content.clone();
            for _ in 0..rng.below(4) {
                let at = rng.below(content.len() as u64) as usize;
                // Headers are what is worth changing.
                let at = if rng.below(2) == 0 {
                    at
                } else {
                    at / 64 * 64 + rng.below(64) as usize % 64
                };
                let at = at.min(content.len() - 1);
                content[at] = rng.next() as u8;
            }
            if rng.below(8) == 0 {
                content.truncate(rng.below(content.len() as u64) as usize);
            }
            input.push(*which);
            input.extend_from_slice(&(content.len() as u32).to_le_bytes()[..3]);
            input.extend(content);
        }
        fuzz_recover(&input);
    }
}

#[test]
fn an_answer_that_was_promised_is_not_given_after_a_failed_sync() {
    let mut bench = Bench::ready();
    bench.write(0, 1, false);
    bench.media.fail_syncs(true);
    let asker = bench.asker();
    let failed = Reply::Refused(Refusal::Failed);
    assert_eq!(bench.ask(Request::Sync { asker }), failed);
    assert!(bench.store.has_failed());
    assert_eq!(bench.write(1, 1, false), failed);
    assert_eq!(bench.read(0, 1), Err(Refusal::Failed));
    // What the cache still shows is not on media. The next start reads past it.
    // The next sync of the kernel may well succeed, and mean nothing: it has dropped what it could not write.
    let before = bench.store.incarnation();
    bench.media.fail_syncs(false);
    for _ in 0..2 {
        assert_eq!(
            bench.ask(Request::Sync { asker }),
            failed,
            "a failed sync is final"
        );
        assert!(bench.store.begin_sync().is_none());
    }
    assert_eq!(bench.write(1, 1, false), failed);
    let Bench {
        media,
        store,
        mut oracle,
        options,
        ..
    } = bench;
    drop(store);
    media.kill();
    oracle.flushed.clear();
    let mut bench = Bench::open(media, options, oracle).unwrap();
    assert!(bench.recovery.lost_tail && bench.store.incarnation() > before);
    assert_eq!(
        bench.version(Block(0)).unwrap(),
        None,
        "it was never on media"
    );
    assert!(!bench.kill().recovery.lost_tail, "the mark is used up");
}

#[test]
fn a_forged_checkpoint_that_points_beyond_any_segment_is_damage() {
    let mut body = Vec::new();
    body.extend(1u32.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    body.extend((1u64 << 38).to_le_bytes());
    // The point of the sync, starts, incarnation, boot, control frames, and no segments or disks.
    body.extend([0; 12 + 8 + 8 + 16 + 8 + 4 + 4]);
    let mut input = Vec::new();
    for which in [0u8, 1] {
        input.push(which);
        input.extend(&(body.len() as u32).to_le_bytes()[..3]);
        input.extend(&body);
    }
    input.extend([1, 0, 0, 0]);
    fuzz_recover(&input);
}

#[test]
fn a_forged_checkpoint_whose_points_are_no_frames_is_damage() {
    let files = files_to_fuzz();
    assert!(files.iter().filter(|(which, _)| *which < 2).count() == 2);
    // Replay begins at an offset that no frame can have: in the first unit of its segment, and where the log had been.
    for (keep, add) in [(0, 1), (0, 36), (0, 63), (!63, 36), (!63, 1)] {
        let mut input = Vec::new();
        for (which, content) in &files {
            let mut content = content.clone();
            if *which < 2 {
                let offset: [u8; 8] = content[8..16].try_into().unwrap();
                let offset = u64::from_le_bytes(offset) & keep;
                content[8..16].copy_from_slice(&(offset + add).to_le_bytes());
            }
            input.push(*which);
            input.extend(&(content.len() as u32).to_le_bytes()[..3]);
            input.extend(&content);
        }
        fuzz_recover(&input);
    }
}
