//! Where things are.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::run::Program;

pub struct Workspace {
    pub root: PathBuf,
    /// Cargo's own target directory, wherever the user put it.
    pub target: PathBuf,
    /// What setup fetched and built, and logs. Outlives `cargo clean`; ignored by git.
    pub cache: PathBuf,
    cargo: OsString,
}

impl Workspace {
    pub fn find() -> Result<Workspace> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .context("the workspace two levels above this crate")?
            .to_owned();
        let target = env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), |dir| root.join(dir));
        let cache =
            env::var_os("UKAI_XTASK_DIR").map_or_else(|| root.join(".xtask"), |dir| root.join(dir));
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Ok(Workspace {
            root,
            target,
            cache,
            cargo,
        })
    }

    /// What a guest boots from.
    pub fn guest(&self) -> PathBuf {
        self.cache.join("guest")
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.cache.join("logs").join(format!("{name}.log"))
    }

    /// `cargo SUBCOMMAND`, in the workspace, with what the integration crate wants to know.
    pub fn cargo(&self, subcommand: &str) -> Program {
        Program::new(&self.cargo)
            .arg(subcommand)
            .directory(&self.root)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("UKAI_XTASK_DIR", &self.cache)
    }
}
