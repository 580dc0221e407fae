//! `ukai policy`: one small file a datacenter; checked, compared, applied, shown.

mod describe;

use crate::exit::{Code, Failure};
use crate::operator::{Connection, Service};
use crate::output::Output;
use crate::places::Places;
use anyhow::Context;
use placement_service::api::{ApplyPolicy, PolicyCheck, PolicyDiff, PolicyText, PolicyView};
use placement_service::policy::file::MAX_BYTES;
use replicator::words::DatacenterName;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Say where copies stand: a TOML file a datacenter, named as it is (tokyo.toml).
#[derive(clap::Subcommand)]
pub enum Command {
    /// Say whether files are policies, and whether the fleet as it is can keep them. Changes nothing.
    #[command(
        after_help = "Examples:\n  ukai policy check policies/*.toml\n  ukai policy check draft.toml --datacenter tokyo"
    )]
    Check(Files),
    /// Show what files would change, disk by disk, and how many bytes would cross links for it. Changes nothing.
    #[command(after_help = "Example:\n  ukai policy diff tokyo.toml")]
    Diff(Files),
    /// Have files hold from now on; nothing is applied unless all of them can be kept.
    ///
    /// Shows what changes and how many bytes move. Disks move a few at a time: those that lack copies first.
    #[command(
        after_help = "Examples:\n  ukai policy apply policies/*.toml\n  ukai policy apply tokyo.toml --at-a-time 1"
    )]
    Apply {
        #[command(flatten)]
        files: Files,

        /// How many disks may be under way at the same time because of policy [default: as it is].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        at_a_time: Option<u32>,
    },
    /// Show the policy that holds in a datacenter, with every key, or list those of all.
    #[command(after_help = "Examples:\n  ukai policy show\n  ukai policy show tokyo")]
    Show { datacenter: Option<DatacenterName> },
}

#[derive(clap::Args)]
pub struct Files {
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Whose policy it is, if the file is not named so; for one file.
    #[arg(long)]
    datacenter: Option<DatacenterName>,
}

/// What was found of one file.
#[derive(Serialize)]
struct Found<T> {
    file: PathBuf,
    datacenter: DatacenterName,
    #[serde(flatten)]
    found: T,
}

struct File {
    path: PathBuf,
    datacenter: DatacenterName,
    text: String,
}

pub fn run(command: Command, connection: &Connection, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Check(files) => check(&files.read()?, &connection.service()?, output),
        Command::Diff(files) => diff(&files.read()?, &connection.service()?, output),
        Command::Apply { files, at_a_time } => {
            apply(&files.read()?, at_a_time, &connection.service()?, output)
        }
        Command::Show { datacenter } => {
            let service = connection.service()?;
            match datacenter {
                Some(datacenter) => {
                    let view: PolicyView = service.get(&format!("/v1/policies/{datacenter}"))?;
                    output.show(&view, describe::view);
                }
                None => {
                    let views: Vec<PolicyView> = service.get("/v1/policies")?;
                    output.show(&views, |views| describe::views(views));
                }
            }
            Ok(())
        }
    }
}

fn check(files: &[File], service: &Service, output: Output) -> anyhow::Result<()> {
    let checks = asked::<PolicyCheck>(files, "check", service)?;
    output.show(&checks, |checks| {
        let texts = checks.iter().map(|one| {
            let name = one.file.display().to_string();
            describe::check(&name, &one.datacenter, &one.found)
        });
        texts.collect::<Vec<_>>().join("\n\n")
    });
    let wrong = checks.iter().filter(|one| !one.found.may_be_applied());
    refuse(wrong.map(|one| one.file.as_path()))
}

fn diff(files: &[File], service: &Service, output: Output) -> anyhow::Result<()> {
    let diffs = asked::<PolicyDiff>(files, "diff", service)?;
    show_diffs(&diffs, service, output)?;
    let wrong = diffs.iter().filter(|one| !one.found.check.may_be_applied());
    refuse(wrong.map(|one| one.file.as_path()))
}

/// All files are checked before the first one is applied, so that a mistake in the last one does not
/// leave half a set of policies in force.
fn apply(
    files: &[File],
    at_once: Option<u32>,
    service: &Service,
    output: Output,
) -> anyhow::Result<()> {
    let checks = asked::<PolicyCheck>(files, "check", service)?;
    let wrong: Vec<&Found<PolicyCheck>> = checks
        .iter()
        .filter(|one| !one.found.may_be_applied())
        .collect();
    for one in &wrong {
        let name = one.file.display().to_string();
        output.say(describe::check(&name, &one.datacenter, &one.found));
    }
    refuse(wrong.iter().map(|one| one.file.as_path()))?;
    let mut applied = Vec::new();
    for file in files {
        let request = ApplyPolicy {
            text: file.text.clone(),
            at_once,
        };
        let found = service.put(&format!("/v1/policies/{}", file.datacenter), &request);
        let found: PolicyDiff = found.with_context(|| {
            let before = applied.len();
            format!("{before} of {} files were applied before", files.len())
        })?;
        applied.push(file.found(found));
    }
    show_diffs(&applied, service, output)
}

fn show_diffs(
    diffs: &Vec<Found<PolicyDiff>>,
    service: &Service,
    output: Output,
) -> anyhow::Result<()> {
    let places = Places::of(service)?;
    output.show(diffs, |diffs| {
        let texts = diffs.iter().map(|one| {
            let name = one.file.display().to_string();
            describe::diff(&name, &one.datacenter, &one.found, &places)
        });
        texts.collect::<Vec<_>>().join("\n\n")
    });
    Ok(())
}

fn asked<T: serde::de::DeserializeOwned>(
    files: &[File],
    what: &str,
    service: &Service,
) -> anyhow::Result<Vec<Found<T>>> {
    let ask = |file: &File| {
        let text = PolicyText {
            text: file.text.clone(),
        };
        let path = format!("/v1/policies/{}/{what}", file.datacenter);
        service.post(&path, &text).map(|found| file.found(found))
    };
    files.iter().map(ask).collect()
}

fn refuse<'a>(wrong: impl Iterator<Item = &'a Path>) -> anyhow::Result<()> {
    let wrong: Vec<String> = wrong.map(|file| file.display().to_string()).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let what = format!("{} cannot be applied", wrong.join(", "));
    Err(Failure::new(Code::Refused, what)
        .because("what is wrong, and the nearest that can be kept, stands above")
        .try_next("`ukai policy check` reads a changed file again")
        .into())
}

impl File {
    fn found<T>(&self, found: T) -> Found<T> {
        Found {
            file: self.path.clone(),
            datacenter: self.datacenter.clone(),
            found,
        }
    }
}

impl Files {
    fn read(&self) -> anyhow::Result<Vec<File>> {
        if self.datacenter.is_some() && self.files.len() > 1 {
            let what = "--datacenter names one datacenter, and there are several files";
            return Err(Failure::new(Code::Failed, what)
                .try_next("name each file as its datacenter: tokyo.toml")
                .into());
        }
        let files = self.files.iter().map(|path| self.read_one(path));
        let files = files.collect::<anyhow::Result<Vec<File>>>()?;
        for (i, file) in files.iter().enumerate() {
            let twin = files[..i]
                .iter()
                .find(|other| other.datacenter == file.datacenter);
            if let Some(twin) = twin {
                let what = format!("there are two policies of {}", file.datacenter);
                return Err(Failure::new(Code::Failed, what)
                    .because(format!(
                        "{} and {}",
                        twin.path.display(),
                        file.path.display()
                    ))
                    .try_next("one of them must be another datacenter's")
                    .into());
            }
        }
        Ok(files)
    }

    fn read_one(&self, path: &Path) -> anyhow::Result<File> {
        let datacenter = match &self.datacenter {
            Some(datacenter) => datacenter.clone(),
            None => named_so(path)?,
        };
        let name = path.display();
        let size = std::fs::metadata(path).with_context(|| format!("cannot read {name}"))?;
        if size.len() > MAX_BYTES as u64 {
            let what = format!("{name} is no policy");
            return Err(Failure::new(Code::Failed, what)
                .because(format!("it is larger than {MAX_BYTES} bytes"))
                .into());
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        Ok(File {
            path: path.to_path_buf(),
            datacenter,
            text,
        })
    }
}

/// The datacenter that a file is named as.
fn named_so(path: &Path) -> Result<DatacenterName, Failure> {
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or("");
    DatacenterName::new(stem).map_err(|error| {
        let what = format!("{} names no datacenter", path.display());
        Failure::new(Code::Failed, what)
            .because(error)
            .try_next("name the file as its datacenter (tokyo.toml), or say --datacenter")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_as_its_datacenter() {
        let named = |path: &str| named_so(Path::new(path)).map(|dc| dc.to_string());
        assert_eq!(named("policies/tokyo.toml").unwrap(), "tokyo");
        assert_eq!(named("ap-northeast.1.toml").unwrap(), "ap-northeast.1");
        assert!(named("Tokyo!.toml").unwrap_err().next.is_some());
    }
}
