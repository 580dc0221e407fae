//! Policies, classes and pins, as operators write and see them.

use super::ByteRange;
use crate::planner::Diff;
use crate::policy::{Checked, ClassName, Hold, UnixSeconds, Until};
use replicator::words::DatacenterName;
use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyText {
    /// The file; see `policy::file`.
    pub text: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ApplyPolicy {
    pub text: String,
    /// How many disks may be under way at the same time because of policy; none: as it is.
    #[serde(default)]
    pub at_once: Option<u32>,
}

/// Whether a file is a policy, and whether the fleet can keep it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyCheck {
    /// What is wrong in the file, with its lines.
    pub faults: Vec<String>,
    pub checked: Checked,
}

impl PolicyCheck {
    pub fn may_be_applied(&self) -> bool {
        self.faults.is_empty() && self.checked.refused.is_empty()
    }
}

/// What a policy would change, and what would cross links for that.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyDiff {
    pub check: PolicyCheck,
    /// None: the file is no policy.
    pub diff: Option<Diff>,
    /// It holds from now on.
    pub applied: bool,
}

/// The policy of a datacenter.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyView {
    pub datacenter: DatacenterName,
    /// As it was applied; none: the defaults hold.
    pub text: Option<String>,
    pub applied: Option<UnixSeconds>,
    pub applied_by: Option<String>,
    /// Every key of the default class with what holds.
    pub default: String,
    /// The same for its named classes.
    pub classes: Vec<(ClassName, String)>,
    /// How many disks may be under way at the same time because of policy.
    pub at_once: u32,
    /// Disks whose VMs run, or ran last, there.
    pub disks: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetClass {
    /// None: the default class.
    pub class: Option<ClassName>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddPin {
    pub hold: Hold,
    #[serde(default)]
    pub range: Option<ByteRange>,
    /// Why, for those who come later.
    pub reason: String,
    pub until: Until,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LiftPins {
    /// Its place in the list, from 0; none: all of them.
    #[serde(default)]
    pub pin: Option<usize>,
}
