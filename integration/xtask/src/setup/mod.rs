//! Finds or installs what guests and tests need. Run again, it finds everything there and is done
//! in a moment.
//!
//! Only what has to run on this machine is installed into it (QEMU, file system tools); a kernel and
//! busybox for the guest are unpacked into the cache, no root needed.

mod apt;
mod contents;
mod cpio;
mod kernel;
mod modules;
mod servers;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run::{self, which};
use crate::workspace::Workspace;
use apt::Need;
pub use servers::{ceph, iscsi};

pub fn run(workspace: &Workspace) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("guests are set up on x86-64 Linux only (Debian 12 or newer, Ubuntu 22.04 or newer)");
    }
    let begun = Instant::now();
    fs::create_dir_all(&workspace.cache)
        .with_context(|| format!("make {}", workspace.cache.display()))?;
    let log = workspace.log("setup");
    let _ = fs::remove_file(&log);
    apt::install(&missing())?;
    if let Some(Need { package, why }) = missing().first() {
        bail!("{package} is installed, but what {why} is still not found");
    }
    let kernel = kernel::fetch(&workspace.cache, &log)?;
    let busybox = kernel::busybox(&workspace.cache, &log)?;
    let tools = guest_tools(workspace, &log)?;
    contents::assemble(&workspace.guest(), &kernel, &busybox, &tools)?;
    println!(
        "ok   {:>6.1}s set up: QEMU, kernel {}, guest programs",
        begun.elapsed().as_secs_f64(),
        kernel.release
    );
    Ok(())
}

/// What the bench compares with.
pub fn peers() -> Result<()> {
    let all = missing().into_iter();
    let needs: Vec<Need> = all.filter(|need| need.package == "qemu-utils").collect();
    apt::install(&needs)
}

/// The same for guests whose speed is measured, after [`run`].
pub fn benchmarks(workspace: &Workspace) -> Result<()> {
    let log = workspace.log("setup");
    let programs = kernel::benchmarks(&workspace.cache, &log)?;
    contents::with_programs(&workspace.guest(), &programs)?;
    if let Err(error) = iscsi() {
        println!("no iSCSI, which is one of the ways to compare with: {error:#}");
    }
    if let Err(error) = kernel::nfs_server(&workspace.cache, &log) {
        println!("no NFS server, which is one of the ways to compare with: {error:#}");
    }
    Ok(())
}

/// What a profile is made with.
pub fn perf() -> Result<()> {
    match which("perf") {
        Some(_) => Ok(()),
        None => apt::install(&[Need {
            package: "linux-perf",
            why: "counts system calls and samples functions",
        }]),
    }
}

/// A C++ compiler is only for libFuzzer.
pub fn cxx() -> Result<()> {
    match which("c++") {
        Some(_) => Ok(()),
        None => apt::install(&[Need {
            package: "g++",
            why: "compiles libFuzzer",
        }]),
    }
}

fn missing() -> Vec<Need> {
    let libc_a = [
        "/usr/lib/x86_64-linux-gnu/libc.a",
        "/usr/lib64/libc.a",
        "/usr/lib/libc.a",
    ];
    let all = [
        (
            which("cc").is_some(),
            Need {
                package: "gcc",
                why: "compiles the C parts of ring and zstd",
            },
        ),
        (
            libc_a.iter().any(|file| Path::new(file).exists()),
            Need {
                package: "libc6-dev",
                why: "links the programs that run in the guest",
            },
        ),
        (
            which("qemu-system-x86_64").is_some(),
            Need {
                package: "qemu-system-x86",
                why: "runs the guests",
            },
        ),
        (
            which("qemu-storage-daemon").is_some() && which("qemu-img").is_some(),
            Need {
                package: "qemu-utils",
                why: "serves disks as a second opinion on vhost-user-blk",
            },
        ),
        (
            which("mke2fs").is_some() && which("e2fsck").is_some(),
            Need {
                package: "e2fsprogs",
                why: "makes and checks the guest's file system",
            },
        ),
        (
            which("etcd").is_some(),
            Need {
                package: "etcd-server",
                why: "keeps the catalog where the placement service survives a machine",
            },
        ),
    ];
    all.into_iter()
        .filter_map(|(there, need)| (!there).then_some(need))
        .collect()
}

/// Statically linked: the guest has no libraries but those that it is given.
fn guest_tools(workspace: &Workspace, log: &Path) -> Result<std::path::PathBuf> {
    let target = workspace.target.join("guest");
    let build = workspace
        .cargo("build")
        .args(["--release", "--locked", "--package", "guest-tools"])
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static -Cstrip=symbols");
    run::logged(build, Duration::from_secs(600), log)
        .with_context(|| format!("build the guest's programs (see {})", log.display()))?;
    Ok(target.join("release/ukai-guest"))
}
