//! `ukai placement backup|restore|rebuild`: the catalog is copied, put back, or rebuilt from the stores.

use crate::exit::{Code, Failure};
use crate::operator::{BACKUP, Connection};
use crate::output::{Output, human_bytes, table};
use anyhow::Context;
use placement_service::api::{Rebuild, RebuildDisk, RebuildVerdict, Rebuilt};
use placement_service::backup::{self, Head};
use placement_service::catalog::{Announcement, Campaign, Catalog, Etcd, EtcdCatalog, RedbCatalog};
use placement_service::policy::UnixSeconds;
use placement_service::server::CatalogAt;
use replicator::words::{DiskName, Generation};
use serde::Serialize;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Copy the whole catalog, as it is at one moment, to a file.
    #[command(
        after_help = "Asks the running placement service. With --catalog it reads a stopped one's.\n\n\
            Examples:\n  ukai placement backup /backup/catalog-monday\n  \
            ukai placement backup /backup/catalog-monday --catalog /var/lib/ukai/catalog.redb"
    )]
    Backup {
        file: PathBuf,
        #[command(flatten)]
        at: At,
    },
    /// Put a backup back, into an empty place; the placement service must be stopped.
    #[command(
        after_help = "The catalog begins a new generation: no epoch that was ever issued is issued again. What happened \
            since the backup the stores know: start the placement service, then run\n  \
            ukai placement rebuild --from-stores --plan\n\n\
            Example:\n  mv /var/lib/ukai/catalog.redb /var/lib/ukai/lost.redb\n  \
            ukai placement restore /backup/catalog-monday --catalog /var/lib/ukai/catalog.redb"
    )]
    Restore {
        file: PathBuf,
        /// The generation of the catalog that was lost, if it had been restored or rebuilt itself since this backup
        /// was taken.
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        lost_generation: u16,
        #[command(flatten)]
        at: At,
    },
    /// Rebuild the disks' records from what the stores keep, after a restore or without any backup.
    #[command(
        after_help = "A disk is refused if a store that may know better is silent: start its node, or, if it is gone for \
            good, say --accept DISK. Policies, pins and classes are not in the stores.\n\n\
            Examples:\n  ukai placement rebuild --from-stores --plan\n  \
            ukai placement rebuild --from-stores --accept web1"
    )]
    Rebuild {
        /// Where the records come from.
        #[arg(long, required = true)]
        from_stores: bool,
        /// Show what would be done, and do nothing.
        #[arg(long)]
        plan: bool,
        /// Rebuild this disk although a store that may know better is silent; several, separated by commas.
        #[arg(long, value_name = "DISK", value_delimiter = ',')]
        accept: Vec<DiskName>,
    },
}

#[derive(clap::Args)]
pub struct At {
    /// The catalog of a stopped placement service: a file, or etcd://HOST[:PORT],….
    #[arg(long, value_name = "FILE|ETCD", env = "UKAI_PLACEMENT_CATALOG")]
    catalog: Option<String>,

    /// For etcds://, as for the placement service.
    #[arg(long, value_name = "DIR", env = "UKAI_PLACEMENT_ETCD_PKI")]
    etcd_pki: Option<PathBuf>,
}

pub fn run(command: Command, connection: &Connection, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Backup { file, at } => copy(&file, &at, connection, output),
        Command::Restore {
            file,
            lost_generation,
            at,
        } => restore(&file, Generation(lost_generation), &at, output),
        Command::Rebuild {
            plan,
            accept,
            from_stores: _,
        } => rebuild(plan, accept, connection, output),
    }
}

#[derive(Serialize)]
struct Copied {
    file: PathBuf,
    #[serde(flatten)]
    head: Head,
}

fn copy(file: &Path, at: &At, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let text = match &at.catalog {
        None => connection.service()?.get::<String>(BACKUP)?,
        Some(_) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let now = UnixSeconds(now.unwrap_or_default().as_secs());
            backup::take(&*at.open(true)?.catalog, now)?
        }
    };
    let head = backup::head(&text)?;
    write_new(file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    let copied = Copied {
        file: file.to_path_buf(),
        head,
    };
    output.show(&copied, |copied| {
        let Head { keys, taken, .. } = &copied.head;
        format!("{keys} keys as of {taken} are in {}", copied.file.display())
    });
    Ok(())
}

/// Whole and synced, or not there; one that is there is not written over.
fn write_new(file: &Path, text: &str) -> std::io::Result<()> {
    let mut to = File::options().write(true).create_new(true).open(file)?;
    let written = to.write_all(text.as_bytes()).and_then(|()| to.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(file);
    }
    written
}

fn restore(file: &Path, lost: Generation, at: &At, output: Output) -> anyhow::Result<()> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    if at.catalog.is_none() {
        return Err(Failure::new(Code::Failed, "nothing was restored")
            .because("it is not said where to")
            .try_next("say --catalog, as the placement service has it")
            .into());
    }
    // Before anything is made there.
    backup::head(&text)?;
    let open = at.open(false)?;
    let restored = backup::restore(&text, &*open.catalog, lost).map_err(|error| {
        let failure = Failure::new(Code::Refused, "nothing was restored").because(error);
        failure.try_next("a restore goes to an empty place, with every placement service stopped")
    })?;
    open.close();
    output.show(&restored, |restored| {
        format!(
            "{} keys as of {} are restored, as generation {}\nstart the placement service, then compare it with the stores: ukai placement rebuild --from-stores --plan",
            restored.keys, restored.taken, restored.generation.0
        )
    });
    Ok(())
}

/// A catalog without its service.
struct Open {
    catalog: Box<dyn Catalog>,
    /// In etcd we lead meanwhile.
    lead: Option<(Arc<Etcd>, Arc<placement_service::catalog::Leadership>)>,
}

impl Open {
    fn close(self) {
        if let Some((etcd, leadership)) = self.lead {
            etcd.resign(&leadership);
        }
    }
}

impl At {
    fn open(&self, must_exist: bool) -> anyhow::Result<Open> {
        let text = self.catalog.as_deref().unwrap_or_default();
        match text.parse()? {
            CatalogAt::File(path) => {
                anyhow::ensure!(
                    !must_exist || path.exists(),
                    "there is no {}",
                    path.display()
                );
                let catalog = Box::new(RedbCatalog::open(&path)?);
                Ok(Open {
                    catalog,
                    lead: None,
                })
            }
            CatalogAt::Etcd(address) => {
                let etcd = Arc::new(Etcd::new(address, self.etcd_pki.as_deref())?);
                let me = Announcement {
                    name: "an operator's command".into(),
                    nodes: None,
                    operators: None,
                };
                let leadership = match etcd.campaign(&me)? {
                    Campaign::Won(leadership) => Arc::new(leadership),
                    Campaign::Lost(leader) => {
                        let leader = leader.map_or("somebody".into(), |leader| leader.name);
                        return Err(Failure::new(Code::Refused, "the catalog is in use")
                            .because(format!("{leader} leads"))
                            .try_next("stop every placement service, or leave out --catalog")
                            .into());
                    }
                };
                Ok(Open {
                    catalog: Box::new(EtcdCatalog::new(etcd.clone(), leadership.clone())),
                    lead: Some((etcd, leadership)),
                })
            }
        }
    }
}

fn rebuild(
    plan: bool,
    accept: Vec<DiskName>,
    connection: &Connection,
    output: Output,
) -> anyhow::Result<()> {
    let request = Rebuild {
        plan,
        accept: accept.iter().map(ToString::to_string).collect(),
        wait_ms: None,
    };
    let rebuilt: Rebuilt = connection.service()?.post("/v1/rebuild", &request)?;
    output.show(&rebuilt, describe);
    if rebuilt.complete {
        return Ok(());
    }
    Err(Failure::new(Code::Refused, "not all disks could be rebuilt")
        .because("the table above says of each why")
        .try_next("start the nodes that are silent, and rebuild again; --accept DISK if they are gone for good")
        .into())
}

fn describe(rebuilt: &Rebuilt) -> String {
    let rows = rebuilt.disks.iter().map(|disk| {
        [
            disk.name.to_string(),
            human_bytes(disk.bytes),
            disk.epoch.to_string(),
            disk.revision.0.to_string(),
            verdict(disk, rebuilt.done),
            disk.why.clone().unwrap_or_default(),
        ]
    });
    let mut lines = vec![table(
        ["DISK", "SIZE", "EPOCH", "REVISION", "RECORD", "WHY"],
        rows,
    )];
    let silent: Vec<String> = rebuilt.silent.iter().map(ToString::to_string).collect();
    lines.push(format!("{} stores have answered", rebuilt.answered.len()));
    if !silent.is_empty() {
        lines.push(format!("silent: {}", silent.join(", ")));
    }
    lines.push(match rebuilt.done {
        true => format!("the catalog is of generation {} now", rebuilt.generation.0),
        false => "nothing was changed: this is a plan".into(),
    });
    lines.join("\n")
}

fn verdict(disk: &RebuildDisk, done: bool) -> String {
    let from = disk.from.len();
    match (disk.verdict, done) {
        (RebuildVerdict::AsItIs, _) => "is the newest".into(),
        (RebuildVerdict::Newer, true) => format!("replaced, {from} stores keep it"),
        (RebuildVerdict::Newer, false) => format!("to be replaced, {from} stores keep it"),
        (RebuildVerdict::Found, true) => format!("found, {from} stores keep it"),
        (RebuildVerdict::Found, false) => format!("to be taken, {from} stores keep it"),
        (RebuildVerdict::Refused, _) => "refused".into(),
    }
}
