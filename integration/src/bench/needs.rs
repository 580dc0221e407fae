//! What some peers need that is not on every machine, and whether it is here. `cargo xtask bench` installs it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::storage_daemon::PROGRAM;
use crate::processes::ask;

const BOUND: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Iscsi,
    Ceph,
}

impl Needs {
    /// An error says what is missing.
    pub fn present(self) -> Result<()> {
        for (program, package) in self.programs() {
            ensure!(
                find(program).is_some(),
                "there is no {program} (package {package})"
            );
        }
        let (driver, probe) = self.probe();
        let answer = ask("a probe of its drivers", probe, BOUND)?;
        ensure!(
            !answer.err.contains("Unknown driver"),
            "{PROGRAM} has no driver {driver} (package qemu-block-extra)"
        );
        Ok(())
    }

    /// Who keeps the data, and tells its version.
    pub fn server(self) -> PathBuf {
        let name = match self {
            Needs::Iscsi => "tgtd",
            Needs::Ceph => "ceph-osd",
        };
        find(name).unwrap_or(name.into())
    }

    fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Needs::Iscsi => &[("tgtd", "tgt"), ("tgtadm", "tgt")],
            Needs::Ceph => &[
                ("ceph-mon", "ceph-mon"),
                ("ceph-osd", "ceph-osd"),
                ("ceph", "ceph-common"),
                ("rbd", "ceph-common"),
            ],
        }
    }

    /// A disk that nobody serves: a driver that is there says so.
    fn probe(self) -> (&'static str, Command) {
        let (driver, nowhere) = match self {
            Needs::Iscsi => (
                "iscsi",
                "transport=tcp,portal=127.0.0.1:1,target=iqn.none,lun=1",
            ),
            Needs::Ceph => ("rbd", "pool=none,image=none,conf=/dev/null/none"),
        };
        let mut command = Command::new(PROGRAM);
        command.args([
            "--blockdev",
            &format!("driver={driver},node-name=probe,{nowhere}"),
        ]);
        (driver, command)
    }
}

/// On PATH, or where administrators' tools live.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn programs_are_found_by_their_whole_name() {
        assert!(find("sh").is_some_and(|path| path.ends_with("sh")));
        assert_eq!(find("no-such-program"), None);
    }
}
