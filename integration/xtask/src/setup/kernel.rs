//! A kernel, busybox and other programs for guests: packages of this machine's own distribution, unpacked
//! into the cache and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::apt;
use crate::run::{self, Program, answer};

const TRIES: u32 = 3;

pub struct Kernel {
    pub release: String,
    pub image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

pub fn fetch(cache: &Path, log: &Path) -> Result<Kernel> {
    let unpacked = cache.join("kernel");
    if let Ok(kernel) = find(&unpacked) {
        return Ok(kernel);
    }
    // Debian's kernel for clouds; Ubuntu's for virtual machines.
    let names = ["linux-image-cloud-amd64", "linux-image-virtual"];
    if !names.iter().any(|name| apt::known(name)) {
        apt::know(names[0])?;
    }
    let Some(meta) = names.into_iter().find(|name| apt::known(name)) else {
        bail!("apt knows none of {}", names.join(", "));
    };
    let image = dependency(meta, "linux-image-")?;
    let mut packages = vec![image.clone()];
    // Ubuntu keeps the modules apart from the kernel.
    packages.extend(dependency(&image, "linux-modules-").ok());
    unpack(&packages, &unpacked, log)?;
    find(&unpacked)
}

pub fn busybox(cache: &Path, log: &Path) -> Result<PathBuf> {
    let unpacked = cache.join("busybox");
    program("busybox", "busybox-static", &unpacked, log)
}

/// What speed in a guest is measured with.
pub fn benchmarks(cache: &Path, log: &Path) -> Result<Vec<PathBuf>> {
    let names = ["bonnie++", "postmark"];
    let each = names.map(|name| program(name, name, &cache.join(name), log));
    each.into_iter().collect()
}

/// An NFS server that needs nothing of the kernel, and those of its libraries that are not here. Installed it would
/// run, and own this machine's ports.
pub fn nfs_server(cache: &Path, log: &Path) -> Result<()> {
    let unpacked = cache.join("nfs-ganesha");
    if unpacked.is_dir() {
        return Ok(());
    }
    let server = "nfs-ganesha";
    apt::know(server)?;
    let mut packages = vec![server.to_owned(), format!("{server}-vfs")];
    let libraries = dependencies(server).filter(|name| name.starts_with("lib"));
    packages.extend(libraries.filter(|name| !apt::installed(name)));
    unpack(&packages, &unpacked, log)
}

/// One program of a package that has been unpacked there, or is now.
fn program(name: &str, package: &str, unpacked: &Path, log: &Path) -> Result<PathBuf> {
    let found = || {
        ["bin", "sbin", "usr/bin", "usr/sbin"]
            .map(|at| unpacked.join(at).join(name))
            .into_iter()
            .find(|at| at.is_file())
    };
    if let Some(program) = found() {
        return Ok(program);
    }
    apt::know(package)?;
    unpack(&[package.to_owned()], unpacked, log)?;
    found().with_context(|| format!("{package} holds no {name}"))
}

fn find(unpacked: &Path) -> Result<Kernel> {
    let boot = unpacked.join("boot");
    let image = fs::read_dir(&boot)
        .with_context(|| format!("no kernel in {}", boot.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| name(path).starts_with("vmlinuz-"))
        .context("the kernel package holds no vmlinuz")?;
    let release = name(&image).trim_start_matches("vmlinuz-").to_owned();
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|at| unpacked.join(at).join(&release))
        .into_iter()
        .find(|path| path.join("kernel").is_dir())
        .context("the kernel package holds no modules")?;
    Ok(Kernel {
        release,
        image,
        modules,
    })
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The first package that `package` depends on whose name begins so.
fn dependency(package: &str, prefix: &str) -> Result<String> {
    dependencies(package)
        .find(|name| name.starts_with(prefix))
        .with_context(|| format!("{package} depends on no {prefix}…"))
}

fn dependencies(package: &str) -> impl Iterator<Item = String> {
    let record = answer("apt-cache", &["show", "--no-all-versions", package]).unwrap_or_default();
    let depends = record
        .lines()
        .filter_map(|line| line.strip_prefix("Depends: "));
    let names = depends
        .flat_map(|line| line.split([',', '|']))
        .filter_map(|entry| entry.split_whitespace().next())
        .map(str::to_owned);
    names.collect::<Vec<_>>().into_iter()
}

/// Into a directory beside, then renamed: what stands under the final name is whole.
fn unpack(packages: &[String], into: &Path, log: &Path) -> Result<()> {
    println!("..           fetching {}", packages.join(", "));
    let parent = into.parent().context("a cache directory has a parent")?;
    let work = tempfile::Builder::new()
        .prefix("unpack-")
        .tempdir_in(parent)?;
    for attempt in 1.. {
        let download = Program::new("apt-get")
            // The sandbox user may not enter a private directory.
            .args([
                "-o",
                "APT::Sandbox::User=",
                "-o",
                "Acquire::Retries=3",
                "download",
            ])
            .args(packages)
            .directory(work.path());
        match run::logged(download, Duration::from_secs(600), log) {
            Ok(()) => break,
            Err(error) if attempt == TRIES => {
                return Err(error)
                    .with_context(|| format!("fetch packages (see {})", log.display()));
            }
            Err(error) => println!("{error:#}; trying again"),
        }
        run::interrupted()?;
    }
    let tree = work.path().join("tree");
    for entry in fs::read_dir(work.path())? {
        let archive = entry?.path();
        if archive
            .extension()
            .is_some_and(|extension| extension == "deb")
        {
            let unpack = Program::new("dpkg").arg("-x").arg(&archive).arg(&tree);
            run::logged(unpack, Duration::from_secs(300), log)?;
        }
    }
    if into.exists() {
        fs::remove_dir_all(into)?;
    }
    fs::rename(&tree, into).with_context(|| format!("keep {}", into.display()))
}
