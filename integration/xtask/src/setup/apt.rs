//! Packages, by apt-get: as root or by sudo, said before it is done.
//!
//! One trap (Debian 12): a qemu-utils from backports cannot live beside a plain qemu-system-x86 or
//! qemu-block-extra, which is older. Then they come from backports too, also if apt's sources no
//! longer name them.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::run::{self, answer};

/// A mirror that stumbles is asked again this often.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(3);

/// Packages that must be of the version of the qemu-utils present.
const OF_QEMU: [&str; 2] = ["qemu-system-x86", "qemu-block-extra"];

pub struct Need {
    pub package: &'static str,
    pub why: &'static str,
}

pub fn install(needs: &[Need]) -> Result<()> {
    if needs.is_empty() {
        return Ok(());
    }
    if run::which("apt-get").is_none() {
        let names: Vec<_> = needs.iter().map(|need| need.package).collect();
        bail!(
            "no apt-get here; install the equivalents of: {}",
            names.join(" ")
        );
    }
    let root = Root::find()?;
    println!("{} will install:", root.said());
    for need in needs {
        println!("  {:<16} {}", need.package, need.why);
    }
    let packages: Vec<&str> = needs.iter().map(|need| need.package).collect();
    let mut source = Source::for_packages(&packages)?;
    if source.is_some() || !all_known(&packages) {
        update(&root, source.as_ref())?;
        // The suites of this machine may be known only now.
        source = Source::for_packages(&packages)?;
    }
    for attempt in 1.. {
        let mut words = vec!["install", "--yes", "--no-install-recommends", "--quiet"];
        let options = source.as_ref().map(Source::options).unwrap_or_default();
        words.extend(options.iter().map(String::as_str));
        if let Some(source) = &source {
            words.extend(["--target-release", &source.suite]);
        }
        words.extend(&packages);
        match root.apt_get(&words) {
            Ok(()) => return Ok(()),
            Err(error) if attempt == TRIES => return Err(error),
            Err(error) => println!("{error:#}; trying again"),
        }
        run::interrupted()?;
        std::thread::sleep(PAUSE);
        update(&root, source.as_ref())?;
    }
    unreachable!("the loop returns")
}

/// Makes sure that apt knows `package`, updating its lists at most once.
pub fn know(package: &str) -> Result<()> {
    if all_known(&[package]) {
        return Ok(());
    }
    let root = Root::find()?;
    println!(
        "{} will update the package lists, to find {package}",
        root.said()
    );
    update(&root, None)
}

pub fn known(package: &str) -> bool {
    answer("apt-cache", &["policy", package]).is_some_and(|policy| {
        policy.lines().any(|line| {
            line.trim()
                .strip_prefix("Candidate: ")
                .is_some_and(|version| version != "(none)")
        })
    })
}

pub fn installed(package: &str) -> bool {
    let status = ["--show", "--showformat", "${db:Status-Abbrev}", package];
    answer("dpkg-query", &status).is_some_and(|status| status.starts_with("ii"))
}

fn all_known(packages: &[&str]) -> bool {
    packages.iter().all(|package| known(package))
}

fn update(root: &Root, source: Option<&Source>) -> Result<()> {
    let options = source.map(Source::options).unwrap_or_default();
    let mut words = vec!["update", "--quiet"];
    words.extend(options.iter().map(String::as_str));
    for attempt in 1.. {
        match root.apt_get(&words) {
            Ok(()) => break,
            Err(error) if attempt == TRIES => return Err(error),
            Err(error) => println!("{error:#}; trying again"),
        }
        run::interrupted()?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Who may install.
pub enum Root {
    Already,
    Sudo,
}

impl Root {
    pub fn find() -> Result<Root> {
        // SAFETY: geteuid cannot fail and touches nothing.
        if unsafe { libc::geteuid() } == 0 {
            return Ok(Root::Already);
        }
        match run::which("sudo") {
            Some(_) => Ok(Root::Sudo),
            None => bail!("packages have to be installed: run this as root, or install sudo"),
        }
    }

    fn said(&self) -> &'static str {
        match self {
            Root::Already => "As root, apt-get",
            Root::Sudo => "By way of sudo, apt-get",
        }
    }

    /// Unattended; and it waits for another apt that is running (unattended upgrades on a new VM).
    fn apt_get(&self, words: &[&str]) -> Result<()> {
        let mut line = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"];
        line.extend(["-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3"]);
        line.extend([
            "-o",
            "Acquire::http::Timeout=30",
            "-o",
            "Acquire::https::Timeout=30",
        ]);
        line.extend(["-o", "Dpkg::Use-Pty=0"]);
        line.extend(words);
        self.run(&line)
    }

    pub fn run(&self, line: &[&str]) -> Result<()> {
        match self {
            Root::Already => run::foreground(line[0], &line[1..]),
            Root::Sudo => run::foreground("sudo", line),
        }
    }
}

/// A suite that apt does not prefer by itself, with a list that names it for this one run: nothing
/// under /etc changes.
struct Source {
    suite: String,
    list: tempfile::NamedTempFile,
}

impl Source {
    /// The suite of the qemu-utils present, if that is newer than what apt would choose.
    fn for_packages(packages: &[&str]) -> Result<Option<Source>> {
        let Some(package) = packages.iter().find(|package| OF_QEMU.contains(package)) else {
            return Ok(None);
        };
        let Some(installed) = answer(
            "dpkg-query",
            &[
                "--show",
                "--showformat",
                "${db:Status-Abbrev}${Version}",
                "qemu-utils",
            ],
        )
        .and_then(|text| text.strip_prefix("ii ").map(str::to_owned)) else {
            return Ok(None);
        };
        let versions = answer("apt-cache", &["madison", package]).unwrap_or_default();
        let plain = answer("apt-cache", &["policy", package]).unwrap_or_default();
        if plain.contains(&format!("Candidate: {installed}\n")) || !installed.contains("~bpo") {
            return Ok(None);
        }
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("/etc/os-release names no VERSION_CODENAME")?;
        let suite = format!("{codename}-backports");
        let sources = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
        let mut list = tempfile::Builder::new()
            .prefix("ukai-")
            .suffix(".list")
            .tempfile()?;
        let mut text = sources;
        if !versions.contains(&suite) {
            println!("qemu-utils {installed} is here: {package} must come from {suite} as well");
            text += &backports_line(codename, &suite)?;
        }
        std::io::Write::write_all(&mut list, text.as_bytes())?;
        // apt's own user reads it.
        fs::set_permissions(
            list.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o644),
        )?;
        Ok(Some(Source { suite, list }))
    }

    fn options(&self) -> Vec<String> {
        let list = self.list.path().display();
        vec!["-o".to_owned(), format!("Dir::Etc::sourcelist={list}")]
    }
}

/// Backports of the mirror that serves this machine's main suite, under the same key.
fn backports_line(codename: &str, suite: &str) -> Result<String> {
    let targets = answer(
        "apt-get",
        &[
            "indextargets",
            "--format",
            "$(CODENAME)|$(REPO_URI)|$(SIGNED_BY)",
            "Created-By: Packages",
        ],
    )
    .unwrap_or_default();
    let found = targets
        .lines()
        .find_map(|line| match line.split('|').collect::<Vec<_>>()[..] {
            [name, uri, key] if name == codename => Some((uri.to_owned(), key.to_owned())),
            _ => None,
        });
    let (uri, key) = found.with_context(|| {
        format!("apt knows no mirror of {codename}: add {suite} to its sources, and try again")
    })?;
    let signed = if key.starts_with('/') {
        format!("[signed-by={key}] ")
    } else {
        String::new()
    };
    Ok(format!("\ndeb {signed}{uri} {suite} main\n"))
}
