//! What an operator promises about the disks of a datacenter: one small file each.
//!
//! The file of the datacenter where a VM runs (or ran last) governs its disk; a class of that file if
//! the disk has one; and a [`Pin`] above both. Where wishes conflict, one order decides everywhere
//! ([`crate::planner`] places by it, [`check`] explains by it):
//!
//! 1. **residency**: no block ever stands in a datacenter that `never` names;
//! 2. **durability**: as many copies as `copies` and `away` ask for, kept apart as `spread` says;
//! 3. **locality**: the copies stand where the VM runs, or where a pin wants them.
//!
//! So a copy that finds no room near the VM is made elsewhere, and one that is allowed nowhere is
//! missing and said to be missing; it is never put where it must not be.
//!
//! - [`class`]: what can be promised, and what holds where nobody wrote anything.
//! - [`file`]: the TOML, strictly: each error names its line, its key and what was probably meant.
//! - [`check`]: whether the fleet as it is can keep a policy, and the nearest that it can.
//! - [`topology`]: that fleet: datacenters, racks, hosts, stores, and the links between them.

pub mod check;
pub mod class;
pub mod file;
pub mod pin;
pub mod topology;
pub mod units;

pub use check::{Checked, Infeasible, check};
pub use class::{Class, Copying, DropWhen, Follow, Prepare, Rigor, Spread};
pub use file::{Fault, PolicyError};
pub use pin::{Hold, Home, Pin, Until};
pub use topology::{Health, HostPlace, Link, StorePlace, Topology};
pub use units::{UnixSeconds, Window};

use replicator::words::DatacenterName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What one file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    pub datacenter: DatacenterName,
    pub default: Class,
    pub classes: BTreeMap<ClassName, Class>,
}

impl Policy {
    /// What holds in a datacenter without a file.
    pub fn unwritten(datacenter: DatacenterName) -> Policy {
        Policy {
            datacenter,
            default: Class::default(),
            classes: BTreeMap::new(),
        }
    }

    /// The class of that name, or the default one.
    pub fn class(&self, name: Option<&ClassName>) -> &Class {
        name.and_then(|name| self.classes.get(name))
            .unwrap_or(&self.default)
    }
}

/// The policies of all datacenters. One that has no file is governed by the defaults.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policies {
    written: BTreeMap<DatacenterName, Policy>,
    unwritten: Class,
}

impl Policies {
    pub fn of(&self, datacenter: &DatacenterName) -> Option<&Policy> {
        self.written.get(datacenter)
    }

    /// What governs the disks of `class` whose VM runs in `datacenter`.
    pub fn class(&self, datacenter: &DatacenterName, class: Option<&ClassName>) -> &Class {
        self.written
            .get(datacenter)
            .map_or(&self.unwritten, |policy| policy.class(class))
    }

    /// The same policies, with this one in place of its datacenter's.
    pub fn with(mut self, policy: Policy) -> Policies {
        self.written.insert(policy.datacenter.clone(), policy);
        self
    }

    /// The same policies, with the defaults in place of `datacenter`'s file.
    pub fn without(mut self, datacenter: &DatacenterName) -> Policies {
        self.written.remove(datacenter);
        self
    }

    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.written.values()
    }
}

impl FromIterator<Policy> for Policies {
    fn from_iter<I: IntoIterator<Item = Policy>>(policies: I) -> Policies {
        policies
            .into_iter()
            .fold(Policies::default(), Policies::with)
    }
}

/// A named class of disks: the rules of a host's name hold for it, too.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClassName(String);

impl ClassName {
    pub fn new(name: impl Into<String>) -> Result<Self, String> {
        let name = name.into();
        match replicator::words::DiskName::new(name.as_str()) {
            Ok(_) => Ok(ClassName(name)),
            Err(error) => Err(error.to_string().replacen("disk name", "class name", 1)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ClassName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::new(name)
    }
}

impl TryFrom<String> for ClassName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::new(name)
    }
}

impl From<ClassName> for String {
    fn from(name: ClassName) -> String {
        name.0
    }
}

/// Which of `known` somebody who wrote `word` probably meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
