//! `ukai revoke`: certificates that are good no more.

use crate::operator::pki_dir;
use crate::output::Output;
use anyhow::Context;
use replicator::net::identity::{Fingerprint, Revocation};
use serde::Serialize;
use std::path::PathBuf;

/// Refuse certificates from now on although they have not expired.
///
/// Adds them to the file `revoked` beside ca.crt. Copy that file to the same folder of every host: processes
/// look at it each second, refuse who shows such a certificate, and end its connections within seconds.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ukai revoke pki/alice.operator.crt")]
pub struct Args {
    /// Certificates in PEM form: what `ukai init` wrote, or what was found somewhere.
    #[arg(required = true, value_name = "FILE.crt")]
    certificates: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Revoked {
    list: PathBuf,
    certificates: Vec<Certificate>,
}

#[derive(Serialize)]
struct Certificate {
    name: String,
    sha256: Fingerprint,
    /// It was in the list before.
    already: bool,
}

pub fn run(args: Args, pki: Option<PathBuf>, output: Output) -> anyhow::Result<()> {
    let pki = pki_dir(pki.as_deref());
    let mut revoked = Revoked {
        list: pki.join("revoked"),
        certificates: Vec::new(),
    };
    for file in &args.certificates {
        let Revocation {
            identity,
            fingerprint,
            already,
        } = replicator::net::identity::revoke(&pki, file)
            .with_context(|| format!("{} was not revoked", file.display()))?;
        revoked.certificates.push(Certificate {
            name: identity.to_string(),
            sha256: fingerprint,
            already,
        });
    }
    output.show(&revoked, describe);
    Ok(())
}

fn describe(revoked: &Revoked) -> String {
    let line = |certificate: &Certificate| match certificate.already {
        true => format!("{} was revoked before", certificate.name),
        false => format!("revoked {}", certificate.name),
    };
    let mut lines: Vec<String> = revoked.certificates.iter().map(line).collect();
    lines.push(format!(
        "copy {} to every host, beside its ca.crt; a new certificate of the same name comes from `ukai init` once the old files are moved away",
        revoked.list.display()
    ));
    lines.join("\n")
}
