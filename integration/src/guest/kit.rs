//! What guests boot from, as `cargo xtask setup` left it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

pub struct Kit {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// The same with the programs that measure speed, where somebody wanted to.
    pub benchmarks: PathBuf,
}

impl Kit {
    pub fn find() -> Result<Kit> {
        let guest = cache().join("guest");
        let kit = Kit {
            kernel: guest.join("vmlinuz"),
            initramfs: guest.join("initramfs.cpio"),
            benchmarks: guest.join("bench.cpio"),
        };
        if !kit.kernel.is_file() || !kit.initramfs.is_file() {
            bail!(
                "no kernel for guests in {}: run `cargo xtask setup`",
                guest.display()
            );
        }
        Ok(kit)
    }

    /// The same, where guests can have the programs that measure speed.
    pub fn with_benchmarks() -> Result<Kit> {
        let kit = Kit::find()?;
        if !kit.benchmarks.is_file() {
            bail!(
                "no {}: run `cargo xtask setup --bench`",
                kit.benchmarks.display()
            );
        }
        Ok(kit)
    }
}

/// Where xtask keeps what outlives a build.
pub fn cache() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a crate of a workspace");
    env::var_os("UKAI_XTASK_DIR").map_or_else(|| root.join(".xtask"), |dir| root.join(dir))
}

/// A program that was built beside the one that is running, or the one that `variable` names.
pub fn built(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(PathBuf::from(path));
    }
    let own = env::current_exe()?;
    // target/release/deps/guest_disk-… and target/release/ukai-demo both have it above or beside.
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|at| at.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!(
            "no {name} beside {}: build it, or name it by {variable}",
            own.display()
        ),
    }
}
