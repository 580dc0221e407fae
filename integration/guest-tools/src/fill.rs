//! Files whose contents are known: made again from the seed, not believed from the disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::Result;
use crate::pattern::{hash, mix, stream};

const MANIFEST: &str = "MANIFEST";

/// Writes `files` files of up to twice `bytes / files` bytes each, then the manifest; all is synced,
/// the directory too, before the last line is printed.
pub fn fill(dir: &str, seed: u64, files: u64, bytes: u64) -> Result<()> {
    if files == 0 {
        return Err("--files must be at least 1".to_owned());
    }
    let dir = Path::new(dir);
    fs::create_dir_all(dir).map_err(said("make", dir))?;
    let mut manifest = format!("seed {seed}\n");
    let mut total = 0;
    for index in 0..files {
        let contents = contents(seed, index, bytes / files);
        total += contents.len();
        write_synced(&dir.join(name(index)), &contents)?;
        manifest += &format!(
            "{} {} {:016x}\n",
            name(index),
            contents.len(),
            hash(&contents)
        );
    }
    write_synced(&dir.join(MANIFEST), manifest.as_bytes())?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(said("sync", dir))?;
    println!(
        "filled files={files} bytes={total} digest={:016x}",
        hash(manifest.as_bytes())
    );
    Ok(())
}

/// Reads every file of the manifest back. The line that it prints equals that of `fill`, so the host
/// can tell that the manifest is the one that it saw written.
pub fn check(dir: &str) -> Result<()> {
    let dir = Path::new(dir);
    let manifest = fs::read(dir.join(MANIFEST)).map_err(said("read", &dir.join(MANIFEST)))?;
    let text = std::str::from_utf8(&manifest).map_err(|_| "the manifest is not text".to_owned())?;
    let (mut files, mut total, mut wrong) = (0, 0, Vec::new());
    for line in text.lines().skip(1) {
        let [name, length, sum] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(format!("manifest line {line:?}"));
        };
        files += 1;
        match fs::read(dir.join(name)) {
            Err(error) => wrong.push(format!("{name}: {error}")),
            Ok(found) => {
                total += found.len();
                if found.len().to_string() != length || format!("{:016x}", hash(&found)) != sum {
                    wrong.push(format!("{name}: contents differ"));
                }
            }
        }
    }
    if !wrong.is_empty() {
        return Err(format!(
            "{} of {files} files: {}",
            wrong.len(),
            wrong.join("; ")
        ));
    }
    println!(
        "checked files={files} bytes={total} digest={:016x}",
        hash(&manifest)
    );
    Ok(())
}

fn name(index: u64) -> String {
    format!("file-{index:05}")
}

/// Lengths are odd on purpose: ends of files that share no boundary with blocks or sectors.
fn contents(seed: u64, index: u64, average: u64) -> Vec<u8> {
    let own = mix(seed ^ mix(index));
    let mut contents = vec![0; (own % (2 * average + 1)) as usize];
    stream(own, &mut contents);
    contents
}

fn write_synced(path: &Path, contents: &[u8]) -> Result<()> {
    File::create(path)
        .and_then(|mut file| {
            file.write_all(contents)?;
            file.sync_all()
        })
        .map_err(said("write", path))
}

fn said<'a>(what: &'a str, path: &'a Path) -> impl Fn(std::io::Error) -> String + 'a {
    move |error| format!("{what} {}: {error}", path.display())
}
