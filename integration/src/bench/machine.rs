//! What was measured on, and with what: figures mean nothing without it.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Machine {
    pub processor: String,
    pub processors: usize,
    pub memory_gib: u64,
    pub kernel: String,
    pub file_system: String,
    pub load: String,
    pub versions: Vec<String>,
}

impl Machine {
    /// `dir`: on the file system that is measured.
    pub fn look(dir: &Path, ukai: &Path) -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mounts = read("/proc/self/mounts");
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        Machine {
            processor: value(&read("/proc/cpuinfo"), "model name").unwrap_or("unknown".into()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: value(&read("/proc/meminfo"), "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
                .map_or(0, |kib| kib.div_ceil(1 << 20)),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: file_system(&mounts, &dir).unwrap_or("unknown".into()),
            load: read("/proc/loadavg")
                .split(' ')
                .take(3)
                .collect::<Vec<_>>()
                .join(" "),
            versions: [ukai, Path::new("qemu-storage-daemon")]
                .into_iter()
                .filter_map(version)
                .collect(),
        }
    }

    /// One more that takes part.
    pub fn with(mut self, program: &Path) -> Machine {
        self.versions.extend(version(program));
        self
    }

    pub fn text(&self) -> String {
        let mut text = format!(
            "{}, {} processors, {} GiB; Linux {}; {}; load before: {}",
            self.processor,
            self.processors,
            self.memory_gib,
            self.kernel,
            self.file_system,
            self.load
        );
        for version in &self.versions {
            let _ = write!(text, "; {version}");
        }
        text
    }
}

/// Of a line `name : value` of /proc.
fn value(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Type and options of the mount with the longest path above `dir`.
fn file_system(mounts: &str, dir: &Path) -> Option<String> {
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| fields.len() > 3 && dir.starts_with(fields[1]))
        .max_by_key(|fields| fields[1].len())
        .map(|fields| format!("{} ({})", fields[2], fields[3]))
}

fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(named(program, text.lines().next()?))
}

/// Some say nothing but a number.
fn named(program: &Path, version: &str) -> String {
    match version.starts_with(|first: char| first.is_ascii_digit()) {
        true => format!(
            "{} {version}",
            program.file_name().unwrap_or_default().display()
        ),
        false => version.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_says_of_what() {
        let tgtd = Path::new("/usr/sbin/tgtd");
        assert_eq!(named(tgtd, "1.0.85"), "tgtd 1.0.85");
        assert_eq!(named(tgtd, "ceph version 16"), "ceph version 16");
    }

    #[test]
    fn the_nearest_mount_counts() {
        let mounts = "/dev/a / ext4 rw,relatime 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n";
        let found = |dir| file_system(mounts, Path::new(dir));
        assert_eq!(found("/tmp/x").as_deref(), Some("ext4 (rw,relatime)"));
        assert_eq!(found("/dev/shm/x").as_deref(), Some("tmpfs (rw)"));
        assert_eq!(
            value("model name\t: A B\n", "model name").as_deref(),
            Some("A B")
        );
    }
}
