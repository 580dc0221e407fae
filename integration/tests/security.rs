//! What a cluster of real processes shows and hides: who may write is proven all the way, sockets are their
//! owner's, names stay names, and no secret is in a log or an answer. The rows of docs/security.md that need
//! processes; the others are tests of the crates.

use anyhow::{Context, Result, ensure};
use integration::cluster::{Cluster, TOKYO_AND_OSAKA};
use integration::processes::{Lifetime, Scratch, scenario};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const MIB: usize = 1 << 20;

#[test]
fn a_cluster_keeps_its_secrets_and_its_names() {
    // SAFETY: the only test of this program, and no thread of it has begun.
    unsafe { std::env::set_var("UKAI_LOG", "debug") };
    scenario("security", |scratch| {
        let mut cluster = Cluster::start(scratch, &TOKYO_AND_OSAKA, Lifetime::Ours)?;
        writing_is_granted(&cluster, scratch)?;
        sockets_are_their_owners(&mut cluster)?;
        let shown = everything_shown(&cluster)?;
        names_stay_names(&cluster, scratch)?;
        no_secret_is_shown(scratch, &shown)
    });
}

/// An operator's own process writes and reads a disk on two stores: with the grants that it was given, since
/// without one no store answers. (That others are refused: `net::admission`.)
fn writing_is_granted(cluster: &Cluster, scratch: &Scratch) -> Result<()> {
    cluster.create_disk("web1", "64M", 2, "tokyo-1")?;
    let image: Vec<u8> = (0..8 * MIB)
        .map(|at| (at / 4096 * 31 + at % 251) as u8)
        .collect();
    let (from, to) = (scratch.path("in.raw"), scratch.path("out.raw"));
    fs::write(&from, &image)?;
    cluster.ukai(&["disk", "import", "web1", text(&from)?])?;
    cluster.ukai(&["disk", "export", "web1", text(&to)?])?;
    let read = fs::read(&to)?;
    ensure!(
        read[..image.len()] == image[..],
        "it reads back as it was written"
    );
    Ok(())
}

fn sockets_are_their_owners(cluster: &mut Cluster) -> Result<()> {
    has_mode(&cluster.attach("web1", "tokyo-1")?, 0o600)?;
    cluster.detach("web1")?;
    cluster.group_sockets_at("tokyo-1")?;
    has_mode(&cluster.attach("web1", "tokyo-1")?, 0o660)?;
    cluster.detach("web1").map(drop)
}

fn has_mode(socket: &Path, wanted: u32) -> Result<()> {
    let mode = fs::metadata(socket)?.permissions().mode() & 0o777;
    ensure!(mode == wanted, "{} has mode {mode:o}", socket.display());
    Ok(())
}

/// What operators can ask for, as programs and as people see it.
fn everything_shown(cluster: &Cluster) -> Result<String> {
    let mut shown = String::new();
    for command in [
        &["status"][..],
        &["store", "list"],
        &["disk", "list"],
        &["disk", "map", "web1"],
        &["disk", "explain", "web1"],
        &["moves"],
    ] {
        shown += &cluster.table(command)?;
        shown += &cluster.ukai(command)?.to_string();
    }
    Ok(shown)
}

/// Names that would be paths, or more than one word: refused, and nothing comes of them anywhere.
fn names_stay_names(cluster: &Cluster, scratch: &Scratch) -> Result<()> {
    let before = files_below(scratch.data());
    for name in [
        "../web2",
        "/tmp/web2",
        "..",
        ".",
        "a/b",
        "a\\b",
        "a b",
        "a\nb",
        "%2e%2e",
        "",
        "-x",
    ] {
        let created = cluster.ukai(&["disk", "create", "--size", "64M", "--", name]);
        ensure!(created.is_err(), "{name:?} was taken for a name");
        let removed = cluster.ukai(&["disk", "delete", "--yes", "--", name]);
        ensure!(removed.is_err(), "{name:?} was taken for a name");
    }
    let names = |files: &[PathBuf]| -> Vec<PathBuf> {
        let grows = |path: &&PathBuf| !path.to_string_lossy().contains("/store/");
        files.iter().filter(grows).cloned().collect()
    };
    let after = files_below(scratch.data());
    ensure!(names(&before) == names(&after), "{before:?} {after:?}");
    Ok(())
}

/// Neither keys nor grants, in logs (which are at `debug`) and answers.
fn no_secret_is_shown(scratch: &Scratch, shown: &str) -> Result<()> {
    let pki = scratch.path("pki");
    let mut secrets = vec![
        "PRIVATE KEY".to_owned(),
        // How a grant begins, as bytes and as digits.
        "ukaigrnt".to_owned(),
        "756b616967726e74".to_owned(),
    ];
    for file in fs::read_dir(&pki)? {
        let path = file?.path();
        if path.extension().is_some_and(|end| end == "key") {
            let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "{} has mode {mode:o}", path.display());
            let key = fs::read_to_string(&path)?;
            let line = key.lines().nth(1).context("a key in PEM form has lines")?;
            secrets.push(line.to_owned());
        }
    }
    ensure!(
        secrets.len() >= 3 + 6,
        "every process has a key: {}",
        secrets.len()
    );
    let mut told = vec![("an answer".to_owned(), shown.as_bytes().to_vec())];
    for file in fs::read_dir(scratch.logs())? {
        let path = file?.path();
        told.push((path.display().to_string(), fs::read(&path)?));
    }
    ensure!(told.len() >= 1 + 4, "every process has a log");
    for (place, bytes) in &told {
        for secret in &secrets {
            let found = bytes
                .windows(secret.len())
                .any(|some| some == secret.as_bytes());
            ensure!(!found, "{place} shows a secret: {secret}");
        }
    }
    Ok(())
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => todo.push(path),
                path => files.push(path),
            }
        }
    }
    files.sort();
    files
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of text")
}
