//! What a guest boots from: `vmlinuz` and `initramfs.cpio` in one directory. `bench.cpio` beside them is for
//! guests whose speed is measured: the same, and the programs that measure it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::kernel::Kernel;
use super::modules;
use crate::run::{answer, which};

const INIT: &str = include_str!("init.sh");

pub fn assemble(guest: &Path, kernel: &Kernel, busybox: &Path, tools: &Path) -> Result<()> {
    fs::create_dir_all(guest)?;
    let mut archive = Archive::new();
    for directory in ["bin", "sbin", "lib", "lib64", "modules", "dev", "etc"] {
        archive.directory(directory);
    }
    archive.file("init", INIT.as_bytes());
    archive.file("bin/busybox", &read(busybox)?);
    archive.file("bin/ukai-guest", &read(tools)?);
    let mut order = String::new();
    for module in modules::in_order(&kernel.modules)? {
        archive.file(&format!("modules/{}.ko", module.name), &module.bytes);
        order += &format!("{}\n", module.name);
    }
    archive.file("modules/order", order.as_bytes());
    let mut libraries = BTreeSet::new();
    for (tool, alias) in [("mke2fs", "mkfs.ext4"), ("e2fsck", "fsck.ext4")] {
        let path = which(tool).with_context(|| format!("no {tool} here"))?;
        archive.file(&format!("sbin/{tool}"), &read(&path)?);
        archive.link(&format!("sbin/{alias}"), tool);
        libraries.extend(needed_libraries(&path)?);
    }
    add_libraries(&mut archive, libraries)?;
    // mke2fs reads the meaning of `-t ext4` from here.
    if let Ok(settings) = fs::read("/etc/mke2fs.conf") {
        archive.file("etc/mke2fs.conf", &settings);
    }
    replace(&guest.join("initramfs.cpio"), &archive.finish())?;
    replace(&guest.join("vmlinuz"), &read(&kernel.image)?)
}

/// The kernel takes several archives in a row, each file from the last one that holds it.
pub fn with_programs(guest: &Path, programs: &[PathBuf]) -> Result<()> {
    let mut archive = Archive::new();
    let mut libraries = BTreeSet::new();
    for program in programs {
        archive.file(&format!("bin/{}", name(program)), &read(program)?);
        libraries.extend(needed_libraries(program)?);
    }
    add_libraries(&mut archive, libraries)?;
    let mut both = read(&guest.join("initramfs.cpio"))?;
    both.extend(archive.finish());
    replace(&guest.join("bench.cpio"), &both)
}

fn add_libraries(archive: &mut Archive, libraries: BTreeSet<PathBuf>) -> Result<()> {
    for library in libraries {
        let name = name(&library);
        // The loader is found by its full path, all others in /lib.
        let at = if name.starts_with("ld-") {
            "lib64"
        } else {
            "lib"
        };
        archive.file(&format!("{at}/{name}"), &read(&library)?);
    }
    Ok(())
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// As ldd prints them: `name => /path (address)`, or `/path (address)` for the loader.
fn needed_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let program = program.to_str().context("a path of text")?;
    let listing = answer("ldd", &[program]).with_context(|| format!("ldd {program} failed"))?;
    Ok(listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}

/// A running guest may be reading the old one.
fn replace(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(());
    }
    let new = path.with_extension("new");
    fs::write(&new, contents)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("write {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}
