//! Media that lie: bits of a store's segments are flipped under it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const PAGE: usize = 4096;
/// So many places: enough that a guest which reads its files meets some of them.
const FLIPS: usize = 64;
/// Places that hold nothing are passed over; a store of a few MiB is found this way.
const TRIES: usize = 100_000;

/// Flips a bit in each of some pages that hold data. Returns how many.
pub fn flip(store: &Path, seed: u64) -> Result<usize> {
    let mut dice = ChaCha8Rng::seed_from_u64(seed);
    let mut segments: Vec<_> = fs::read_dir(store)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("segment")
        })
        .collect();
    segments.sort();
    ensure!(!segments.is_empty(), "no segments in {}", store.display());
    let mut flipped = 0;
    let mut page = [0; PAGE];
    for _ in 0..TRIES {
        let file = File::options()
            .read(true)
            .write(true)
            .open(&segments[dice.random_range(0..segments.len())])?;
        let pages = file.metadata()?.len() / PAGE as u64;
        if pages == 0 {
            continue;
        }
        let at = dice.random_range(0..pages) * PAGE as u64;
        file.read_exact_at(&mut page, at)?;
        if page.iter().filter(|byte| **byte != 0).count() < PAGE / 2 {
            continue;
        }
        let byte = dice.random_range(0..PAGE);
        file.write_all_at(
            &[page[byte] ^ 1 << dice.random_range(0..8)],
            at + byte as u64,
        )?;
        flipped += 1;
        if flipped == FLIPS {
            break;
        }
    }
    ensure!(flipped > 0, "no data in {}", store.display());
    Ok(flipped)
}
