//! `ukai init`: a private authority, and one certificate a process.

use crate::output::Output;
use replicator::net::identity::{DEFAULT_VALIDITY, Identity, Pki, Role};
use replicator::words::HostName;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Make the cluster's private authority, and one certificate and key for each process.
///
/// Run again with more names to add them; what exists is never overwritten.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  ukai init --dir pki --placement control-1 --node tokyo-1 --node osaka-1 --operator alice"
)]
pub struct Args {
    /// Where to put them. Keep ca.key away from the hosts: only this command needs it.
    #[arg(long, default_value = "pki", value_name = "DIR")]
    dir: PathBuf,

    /// A host that will run the placement service.
    #[arg(long, value_name = "HOST")]
    placement: Vec<HostName>,

    /// A host that will run a node.
    #[arg(long, value_name = "HOST")]
    node: Vec<HostName>,

    /// A person or tool that will use the operator's commands.
    #[arg(long, value_name = "NAME")]
    operator: Vec<HostName>,

    /// How long the certificates are good for, in days.
    #[arg(long, default_value_t = DEFAULT_VALIDITY.as_secs() / 86_400, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=3650))]
    days: u64,
}

#[derive(Serialize)]
struct Made {
    dir: PathBuf,
    new_authority: bool,
    issued: Vec<String>,
    kept: Vec<String>,
}

pub fn run(args: Args, output: Output) -> anyhow::Result<()> {
    let new_authority = !args.dir.join("ca.crt").exists();
    let pki = if new_authority {
        Pki::init(&args.dir)?
    } else {
        Pki::open(&args.dir)?
    };
    let validity = Duration::from_secs(args.days * 86_400);
    let mut made = Made {
        dir: args.dir.clone(),
        new_authority,
        issued: vec![],
        kept: vec![],
    };
    let wanted = [
        (Role::Placement, &args.placement),
        (Role::Node, &args.node),
        (Role::Operator, &args.operator),
    ];
    for (role, host) in wanted
        .into_iter()
        .flat_map(|(role, hosts)| hosts.iter().map(move |host| (role, host)))
    {
        let identity = Identity::new(role, host.clone());
        if args.dir.join(format!("{host}.{role}.crt")).exists() {
            made.kept.push(identity.to_string());
            continue;
        }
        pki.issue(role, host, validity)?;
        made.issued.push(identity.to_string());
    }
    output.show(&made, describe);
    Ok(())
}

fn describe(made: &Made) -> String {
    let mut lines = vec![];
    if made.new_authority {
        lines.push(format!(
            "new authority in {}: keep ca.key there and safe, no process needs it",
            made.dir.display()
        ));
    }
    lines.extend(made.issued.iter().map(|name| format!("issued {name}")));
    lines.extend(made.kept.iter().map(|name| format!("kept   {name}")));
    if made.issued.is_empty() && made.kept.is_empty() {
        lines.push(
            "no certificates asked for; name hosts with --placement, --node and --operator".into(),
        );
    }
    lines.join("\n")
}
