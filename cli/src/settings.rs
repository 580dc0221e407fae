//! Settings from a file, the environment and flags: a flag wins over the environment, which wins
//! over the file, which wins over the default.
//!
//! One struct serves all of them: clap fills it from flags and `UKAI_…` variables, serde from TOML.

use crate::output::parse_bytes;
use anyhow::Context;
use replicator::store::ScrubRate;
use replicator::words::HostName;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
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

/// Where a host is reached from here: `osaka-1=203.0.113.7:7410`.
#[derive(Clone, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Gateway {
    pub host: HostName,
    pub address: SocketAddr,
}

impl FromStr for Gateway {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |why: String| format!("{text}: {why}; use for example osaka-1=203.0.113.7:7410");
        let (host, address) = text
            .split_once('=')
            .ok_or_else(|| wrong("no = between the host and the address".into()))?;
        Ok(Gateway {
            host: host.parse().map_err(|error| wrong(format!("{error}")))?,
            address: address.parse().map_err(|error| wrong(format!("{error}")))?,
        })
    }
}

impl TryFrom<String> for Gateway {
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

/// How fast a store is scrubbed: `10MiB/s`, `monthly` or `off`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Scrub(pub ScrubRate);

impl FromStr for Scrub {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rate = match text {
            "off" => ScrubRate::Off,
            "monthly" => ScrubRate::Monthly,
            rate => {
                let bytes = rate.strip_suffix("/s").map(parse_bytes);
                match bytes {
                    Some(Ok(bytes)) if bytes > 0 => ScrubRate::BytesPerSecond(bytes),
                    _ => return Err(format!("{text}: use for example 10MiB/s, monthly, or off")),
                }
            }
        };
        Ok(Scrub(rate))
    }
}

impl TryFrom<String> for Scrub {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Any bytes, as a file of settings, and as the values that are text: for fuzzing.
pub fn fuzz_settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _ = toml::from_str::<crate::commands::node::NodeSettings>(text);
    let _ = toml::from_str::<crate::commands::placement::PlacementSettings>(text);
    for line in text.lines() {
        let _ = line.parse::<Size>();
        let _ = line.parse::<Patience>();
        let _ = line.parse::<Scrub>();
        if let Ok(gateway) = line.parse::<Gateway>() {
            let again = format!("{}={}", gateway.host, gateway.address);
            assert_eq!(again.parse(), Ok(gateway));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Gateway, Scrub, ScrubRate};

    #[test]
    fn a_scrub_has_a_rate() {
        let rate = |text: &str| text.parse::<Scrub>().map(|scrub| scrub.0);
        assert_eq!(rate("off"), Ok(ScrubRate::Off));
        assert_eq!(rate("monthly"), Ok(ScrubRate::Monthly));
        let ten = ScrubRate::BytesPerSecond(10 << 20);
        assert_eq!(rate("10MiB/s"), Ok(ten));
        for wrong in ["", "10MiB", "0/s", "fast/s", "weekly"] {
            assert!(rate(wrong).unwrap_err().contains("monthly"), "{wrong}");
        }
    }

    #[test]
    fn a_gateway_names_a_host_and_an_address() {
        let gateway: Gateway = "osaka-1=203.0.113.7:7410".parse().unwrap();
        assert_eq!(gateway.host.to_string(), "osaka-1");
        assert_eq!(gateway.address, "203.0.113.7:7410".parse().unwrap());
        for wrong in ["osaka-1", "osaka-1=", "osaka-1=203.0.113.7", "=1.2.3.4:5"] {
            let error = wrong.parse::<Gateway>().unwrap_err();
            assert!(error.starts_with(wrong), "{error}");
        }
    }
}
