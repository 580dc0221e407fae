//! A file that tgt serves over iSCSI, before it qemu-storage-daemon with its initiator (libiscsi, no kernel's):
//!
//! ```text
//!  daemon ── iSCSI, plain TCP ── tgtd ── aio, O_DIRECT ── file
//! ```
//! It is compared with our far copy, which is under TLS all the same. tgtd acknowledges a write when the
//! file system has it under O_DIRECT, and no job that flushes is compared with it ([`Backing::Direct`]), and its file is
//! written full beforehand.

use std::process::Command;

use anyhow::Result;

use super::storage_daemon::{PROGRAM, Peers, Served, written_full};
use super::tgt::{self, Backing};

impl Peers<'_> {
    /// Over a file that tgtd serves.
    pub fn iscsi(&self, name: &str) -> Result<Served> {
        let image = self.scratch.path(&format!("{name}-far.raw"));
        written_full(&image, self.bytes)?;
        let server = format!("{name}-server");
        let (server, at) = tgt::serve(self.scratch, &server, &image, Backing::Direct)?;
        let mut command = Command::new(PROGRAM);
        command.args(["--blockdev", &tgt::block_node("disk", at)]);
        self.serve(name, command, vec![server])
    }
}
