//! Settings from a file, the environment and flags: a flag wins over the environment, which wins
//! over the file, which wins over the default.
//!
//! One struct serves all of them: clap fills it from flags and `UKAI_…` variables, serde from TOML.

use crate::output::parse_bytes;
use anyhow::Context;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// Reads a TOML file strictly: an unknown key is an error that names it, its place and the known keys.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the settings in {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("the settings in {} are wrong", path.display()))
}

/// Declares settings: every field is optional in each source, and `or` lays one source over another.
#[macro_export]
macro_rules! settings {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(clap::Args, serde::Deserialize, Clone, Default, Debug)]
        #[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
        pub struct $name {
            $($(#[$field_meta])* pub $field: Option<$type>,)*
        }

        impl $name {
            /// These settings, and where they say nothing, those of `below`.
            pub fn or(self, below: $name) -> $name {
                $name { $($field: self.$field.or(below.$field),)* }
            }
        }
    };
}

/// A size as people write it: `500G`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_bytes(text).map(Size)
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// How long to wait: `500ms`, `30s`, `2m`, or `never` to give up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Patience(pub Option<Duration>);

impl FromStr for Patience {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Patience(None));
        }
        humantime::parse_duration(text)
            .map(|duration| Patience(Some(duration)))
            .map_err(|error| format!("{error}; use for example 30s, 2m, or never"))
    }
}

impl TryFrom<String> for Patience {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
