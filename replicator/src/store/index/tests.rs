//! The index against a plain map, and what it costs.

use super::{CHUNK_BLOCKS, Chunk, Entry};
use crate::store::frame::DATA_FRAME_BYTES;
use crate::store::place::Place;
use crate::words::{BLOCK_BYTES, Epoch, Seq, Version};
use std::collections::BTreeMap;

fn entry(epoch: u64, seq: u64, segment: u32, offset: u64, zeroes: bool) -> Entry {
    Entry {
        version: Version::new(Epoch::from_u64(epoch), Seq(seq)),
        place: Place::new(segment, offset),
        zeroes,
        filled: None,
    }
}

/// Numbers that look random and are the same each time.
fn numbers(mut state: u64) -> impl FnMut(u64) -> u64 {
    move |bound| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    }
}

#[test]
fn it_says_what_a_plain_map_says() {
    for seed in 0..40 {
        let mut random = numbers(seed);
        let mut chunk = Chunk::new();
        let mut model: BTreeMap<u16, BTreeMap<Version, Entry>> = BTreeMap::new();
        let (mut segment, mut offset) = (1, 0);
        let mut next = 0;
        for step in 1..400u64 {
            // Mostly in order, like a guest that writes a file; sometimes anywhere.
            let count = 1 + random(6) as u32;
            let first = match random(4) {
                0 => random(u64::from(CHUNK_BLOCKS) - 8) as u16,
                _ => next % (CHUNK_BLOCKS as u16 - 8),
            };
            next = first + count as u16;
            if random(30) == 0 {
                (segment, offset) = (segment + 1, 0);
            }
            let zeroes = random(7) == 0;
            let late = if random(8) == 0 { random(step) } else { 0 };
            let new = entry(1 + step / 150, step - late + 1, segment, offset, zeroes);
            offset += if zeroes {
                64
            } else {
                u64::from(count) * DATA_FRAME_BYTES
            };
            // The store never puts a version there that is older and not known: see `older_than`.
            let stale = !chunk.all_below(first, count, new.version);
            if stale {
                continue;
            }
            let mut freed = Vec::new();
            chunk
                .put(first, count, new, |_, _| (), |e| freed.push(e))
                .unwrap();
            let mut hidden = Vec::new();
            for i in 0..count {
                let versions = model.entry(first + i as u16).or_default();
                if versions
                    .last_key_value()
                    .is_some_and(|(_, old)| new.hides(old))
                {
                    hidden.extend(versions.pop_last().map(|(_, old)| old));
                }
                versions.insert(new.version, new.nth(i));
            }
            assert_eq!(freed, hidden, "nothing else is let go of");
        }
        let mut decoded = Chunk::decode(&chunk.encode()).unwrap();
        assert_eq!(chunk.encode().len(), chunk.encoded_bytes());
        for (block, versions) in &model {
            let expected: Vec<Entry> = versions.values().rev().copied().collect();
            for chunk in [&chunk, &decoded] {
                assert_eq!(
                    chunk.versions(*block).collect::<Vec<_>>(),
                    expected,
                    "{block}"
                );
            }
        }
        let listed: Vec<u16> = chunk
            .entries(0, CHUNK_BLOCKS)
            .map(|(block, _)| block)
            .collect();
        assert_eq!(listed, model.keys().copied().collect::<Vec<_>>());
        // Moved, every version is found at its new place, and the old places are free.
        for (block, versions) in &model {
            for old in versions.values() {
                let mut freed = Vec::new();
                let moved = Entry {
                    place: Place::new(99, u64::from(old.place.unit) * 64),
                    ..*old
                };
                let put = decoded.put(
                    *block,
                    1,
                    moved,
                    |_, _| panic!("no new version"),
                    |e| freed.push(e),
                );
                put.unwrap();
                assert_eq!(freed, [*old]);
            }
            assert!(
                decoded
                    .versions(*block)
                    .all(|entry| entry.place.segment == 99)
            );
        }
    }
}

#[test]
fn bytes_that_are_no_chunk_are_refused() {
    let mut chunk = Chunk::new();
    for i in 0..64u16 {
        let new = entry(1, u64::from(i) + 1, 1, u64::from(i) * 8192, i % 3 == 0);
        chunk.put(i * 7, 5, new, |_, _| (), |_| ()).unwrap();
    }
    let bytes = chunk.encode();
    for len in 0..bytes.len() {
        assert!(Chunk::decode(&bytes[..len]).is_none(), "cut at {len}");
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0xFF;
        // A checksum guards these bytes; without it, nothing worse may come of them than wrong entries.
        if let Some(chunk) = Chunk::decode(&changed) {
            chunk.entries(0, CHUNK_BLOCKS).for_each(drop);
        }
    }
}

/// What the index of `chunks` chunks costs, in hundredths of a percent of the data that it maps.
fn cost(chunks: &[Chunk]) -> f64 {
    let mapped: usize = chunks
        .iter()
        .map(|chunk| chunk.entries(0, CHUNK_BLOCKS).count())
        .sum();
    // A slot in its tree, as `Store::usage` counts it.
    let slots = chunks.len() * (8 + size_of::<crate::store::disk::Slot>()) * 3 / 2;
    let memory: usize = chunks.iter().map(Chunk::memory_bytes).sum();
    (memory + slots) as f64 * 100.0 / (mapped as f64 * BLOCK_BYTES as f64)
}

/// 1 GiB is counted; an index of 64 GiB is 64 of these, for chunks share nothing.
const GIB_CHUNKS: u64 = (1 << 30) / (CHUNK_BLOCKS as u64 * BLOCK_BYTES);

#[test]
fn a_gibibyte_of_random_blocks_costs_at_most_0_6_percent() {
    let mut random = numbers(7);
    let mut chunks = vec![Chunk::new(); GIB_CHUNKS as usize];
    let blocks = GIB_CHUNKS * u64::from(CHUNK_BLOCKS);
    // Every block once, in random order: the worst case, with no two neighbours alike.
    let mut order: Vec<u64> = (0..blocks).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, random(i as u64 + 1) as usize);
    }
    for (half, order) in order.chunks(order.len() / 2).enumerate() {
        for (i, block) in order.iter().enumerate() {
            let i = half as u64 * blocks / 2 + i as u64;
            let per_segment = (64 << 20) / DATA_FRAME_BYTES;
            let place = (1 + i / per_segment) as u32;
            let new = entry(1, i + 1, place, i % per_segment * DATA_FRAME_BYTES, false);
            let chunk = &mut chunks[(block / u64::from(CHUNK_BLOCKS)) as usize];
            let within = (block % u64::from(CHUNK_BLOCKS)) as u16;
            chunk.put(within, 1, new, |_, _| (), |_| ()).unwrap();
        }
        let cost = cost(&chunks);
        println!("random 4 KiB, {} %: {cost:.3} %", 50 * (half + 1));
        assert!(cost <= 0.6, "{cost} %");
    }
}

#[test]
fn written_in_order_it_costs_at_most_a_tenth_of_that() {
    for write_blocks in [1u32, 4, 16, 100, 256] {
        let mut chunks = vec![Chunk::new(); GIB_CHUNKS as usize];
        let (mut block, mut seq, mut offset, mut segment) = (0u64, 1, 0, 1);
        let blocks = GIB_CHUNKS * u64::from(CHUNK_BLOCKS);
        while block < blocks {
            let chunk = &mut chunks[(block / u64::from(CHUNK_BLOCKS)) as usize];
            let within = (block % u64::from(CHUNK_BLOCKS)) as u16;
            let count = write_blocks.min(CHUNK_BLOCKS - u32::from(within));
            let bytes = u64::from(count) * DATA_FRAME_BYTES;
            if offset + bytes > 64 << 20 {
                (segment, offset) = (segment + 1, 64);
            }
            let new = entry(1, seq, segment, offset, false);
            chunk.put(within, count, new, |_, _| (), |_| ()).unwrap();
            (block, seq, offset) = (block + u64::from(count), seq + 1, offset + bytes);
        }
        let cost = cost(&chunks);
        println!("in order, {write_blocks} blocks a write: {cost:.4} %");
        assert!(cost <= 0.06, "{write_blocks} blocks a write: {cost} %");
    }
}

#[test]
fn zeroes_whose_frame_stands_at_the_very_end_of_the_largest_segment_are_read_back() {
    let mut chunk = Chunk::new();
    let entry = Entry {
        version: Version::new(Epoch::from_u64(1), Seq(1)),
        place: Place {
            segment: 1,
            unit: (crate::store::place::MAX_UNITS - 1) as u32,
        },
        zeroes: true,
        filled: None,
    };
    chunk.put(0, 200, entry, |_, _| (), |_| ()).unwrap();
    assert_eq!(Chunk::decode(&chunk.encode()), Some(chunk));
}
