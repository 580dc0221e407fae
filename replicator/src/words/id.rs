//! Who is who: identifiers that are never reused, and the names that people give.

use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// An id that nobody has had before. Shells call this; decisions are given their ids.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            pub const fn from_u128(bits: u128) -> Self {
                Self(Uuid::from_u128(bits))
            }

            pub const fn as_u128(self) -> u128 {
                self.0.as_u128()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_id! {
    /// A disk, for life: it keeps this id through renames and moves.
    DiskId
}
uuid_id! {
    /// A replica store. A directory that is formatted anew is a new store.
    StoreId
}
uuid_id! {
    /// One attachment of a disk to a node. It survives restarts of the node; [`super::Life`] does not.
    BackendId
}

/// A name that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} name {name:?} {why}; use 1 to 63 of a-z, 0-9, '-', '_' and '.', starting with a letter or digit"
)]
pub struct BadName {
    what: &'static str,
    name: String,
    why: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// 1 to 63 of `a-z 0-9 - _ .`, starting with a letter or digit: safe in a file name, a
        /// certificate, a URL and a virtio serial number.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn new(name: impl Into<String>) -> Result<Self, BadName> {
                let name = name.into();
                match name_fault(&name) {
                    None => Ok(Self(name)),
                    Some(why) => Err(BadName { what: $what, name: name.chars().take(80).collect(), why }),
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(name: String) -> Result<Self, BadName> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadName;

            fn from_str(name: &str) -> Result<Self, BadName> {
                Self::new(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

name! {
    /// What people call a disk.
    DiskName, "disk"
}
name! {
    /// A host, which is also the name of the node that runs on it.
    HostName, "host"
}
name! {
    /// A rack: hosts that fail together.
    RackName, "rack"
}
name! {
    /// A datacenter.
    DatacenterName, "datacenter"
}

fn name_fault(name: &str) -> Option<&'static str> {
    let Some(first) = name.bytes().next() else {
        return Some("is empty");
    };
    if name.len() > 63 {
        return Some("is longer than 63 characters");
    }
    if !(first.is_ascii_lowercase() || first.is_ascii_digit()) {
        return Some("does not start with a-z or 0-9");
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    (!name.bytes().all(allowed)).then_some("has a character that is not allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_everywhere_or_refused() {
        for good in ["web1", "0", "a.b-c_d", &"x".repeat(63)] {
            assert_eq!(DiskName::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "../etc",
            "-x",
            "A",
            "web 1",
            "a/b",
            "naïve",
            "a\0",
            &"x".repeat(64),
        ] {
            let error = DiskName::new(bad).unwrap_err().to_string();
            assert!(error.contains("disk name"), "{error}");
        }
    }
}
