//! Servers that the bench compares with. It starts them by itself and ends them: their packages shall start none, not
//! when they are installed, and not at the next boot.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::apt::{self, Need, Root};
use crate::run::which;

/// What Debian's packages ask before they start anything.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Of the packages below: what they enable that would run a daemon.
const UNITS: [&str; 2] = ["tgt.service", "ceph-crash.service"];

const TGT: Need = Need {
    package: "tgt",
    why: "serves a file over iSCSI, to compare with",
};
const CEPH: [Need; 3] = [
    Need {
        package: "ceph-mon",
        why: "Ceph's monitor, to compare with its RBD",
    },
    Need {
        package: "ceph-osd",
        why: "keeps Ceph's data, one for each copy",
    },
    Need {
        package: "ceph-common",
        why: "makes Ceph's pool and image",
    },
];

pub fn iscsi() -> Result<()> {
    qemu_drivers()?;
    install(vec![TGT], &["tgtd"])
}

pub fn ceph() -> Result<()> {
    qemu_drivers()?;
    install(CEPH.into(), &["ceph-mon", "ceph-osd", "rbd"])
}

/// By itself: apt takes it, and it alone, from where the QEMU that is here came from.
fn qemu_drivers() -> Result<()> {
    let directories = ["/usr/lib/x86_64-linux-gnu/qemu", "/usr/lib/qemu"];
    let there = |driver: &str| {
        let mut files = directories.iter().map(|dir| Path::new(dir).join(driver));
        files.any(|file| file.exists())
    };
    if there("block-iscsi.so") && there("block-rbd.so") {
        return Ok(());
    }
    apt::install(&[Need {
        package: "qemu-block-extra",
        why: "qemu-storage-daemon's drivers for iSCSI and Ceph RBD",
    }])
}

/// Unless all of these programs are here already: then their daemons are somebody else's business.
fn install(needs: Vec<Need>, programs: &[&str]) -> Result<()> {
    if programs.iter().all(|program| which(program).is_some()) {
        return Ok(());
    }
    let root = Root::find()?;
    let quiet = Quiet::please(&root)?;
    let installed = apt::install(&needs);
    drop(quiet);
    let disabled = disable(&root);
    installed.and(disabled)
}

fn disable(root: &Root) -> Result<()> {
    let there = |unit: &&str| {
        let directories = ["/lib/systemd/system", "/usr/lib/systemd/system"];
        let mut files = directories.iter().map(|dir| Path::new(dir).join(unit));
        files.any(|file| file.exists())
    };
    let units: Vec<&str> = UNITS.into_iter().filter(there).collect();
    if units.is_empty() || which("systemctl").is_none() {
        return Ok(());
    }
    println!(
        "They shall not run by themselves: systemctl disable {}",
        units.join(" ")
    );
    // By its files: a container may have no systemd that runs.
    let words = ["systemctl", "--root=/", "--quiet", "disable"];
    root.run(&[&words, &units[..]].concat())
}

/// While it lives, packages start nothing.
struct Quiet<'a> {
    root: &'a Root,
    ours: bool,
}

impl Quiet<'_> {
    /// Where somebody has a policy, it stays as it is.
    fn please(root: &Root) -> Result<Quiet<'_>> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            let mut file = tempfile::NamedTempFile::new()?;
            file.write_all(policy(std::process::id()).as_bytes())?;
            let path = file.path().to_str().context("a path in words")?;
            root.run(&["install", "--mode=755", path, POLICY])?;
        }
        Ok(Quiet { root, ours })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        if self.ours && fs::exists(POLICY).unwrap_or(true) {
            // If that fails, it removes itself when it is asked next.
            let _ = self.root.run(&["rm", "--force", POLICY]);
        }
    }
}

/// "No" while the process lives; if that was killed, the policy is gone with the next question.
fn policy(process: u32) -> String {
    format!(
        "#!/bin/sh\n# Of `cargo xtask bench`: the servers that it installs shall not run by themselves.\n\
         [ -d /proc/{process} ] && exit 101\nrm -f -- \"$0\"\nexit 0\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_policy_ends_with_its_process() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("policy");
        let asked = |process| -> Result<_> {
            fs::write(&file, policy(process))?;
            Ok(Command::new("sh").arg(&file).status()?.code())
        };
        assert_eq!(asked(std::process::id())?, Some(101));
        assert!(file.exists());
        // No kernel gives out a number beyond 2^22.
        assert_eq!(asked(1 << 23)?, Some(0));
        assert!(!file.exists(), "it is not asked again");
        Ok(())
    }
}
