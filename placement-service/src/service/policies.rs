//! Policies: kept as the text that was applied, checked against the fleet before that, and shown with what
//! they would change.

use super::pulse::Moment;
use super::scene::{DiskNow, Scene};
use super::{Kind, MAX_TRIES, Service, ServiceError};
use crate::api::{ApplyPolicy, PolicyCheck, PolicyDiff, PolicyText, PolicyView};
use crate::catalog::{CatalogError, Committed, Transaction};
use crate::model::{
    DatacenterRecord, Kept, PolicyRecord, Rollout, json, key, list, load, load_or_default,
    unchanged,
};
use crate::planner::{Planner, diff};
use crate::policy::{self, Checked, Policies, Policy};
use replicator::words::{DatacenterName, DiskRecord};
use std::sync::Arc;

impl Service {
    /// Those that are in force.
    pub(super) fn policies(&self) -> Result<Arc<Policies>, CatalogError> {
        let records = list::<PolicyRecord>(&*self.catalog, key::POLICIES)?;
        let revisions: Vec<_> = records.iter().map(|kept| kept.revision).collect();
        if let Some(known) = self.course().policies(&revisions) {
            return Ok(known);
        }
        let parse = |record: PolicyRecord| {
            let datacenter = record.datacenter.clone();
            Policy::parse(record.datacenter, &record.text).unwrap_or_else(|error| {
                tracing::error!("{error}; the defaults hold");
                Policy::unwritten(datacenter)
            })
        };
        let policies: Policies = records
            .into_iter()
            .map(|kept| parse(kept.into_value()))
            .collect();
        let policies = Arc::new(policies);
        self.course().set_policies(revisions, policies.clone());
        Ok(policies)
    }

    pub fn policy_views(&self) -> Result<Vec<PolicyView>, ServiceError> {
        let datacenters = list::<DatacenterRecord>(&*self.catalog, key::DATACENTERS)?;
        datacenters
            .into_iter()
            .map(|kept| self.policy_view(&kept.value.name))
            .collect()
    }

    pub fn policy_view(&self, datacenter: &DatacenterName) -> Result<PolicyView, ServiceError> {
        self.known_datacenter(datacenter)?;
        let kept = load::<PolicyRecord>(&*self.catalog, &key::policy(datacenter))?;
        let record = kept.map(Kept::into_value);
        let policies = self.policies()?;
        let policy = policies.of(datacenter).cloned();
        let policy = policy.unwrap_or_else(|| Policy::unwritten(datacenter.clone()));
        let (_, rollout) = load_or_default::<Rollout>(&*self.catalog, key::ROLLOUT)?;
        let places = self.places()?;
        let mut disks = 0;
        for kept in list::<DiskRecord>(&*self.catalog, key::DISKS)? {
            let (_, terms) = self.terms(&kept.value, &places)?;
            disks += u64::from(terms.home.datacenter == *datacenter);
        }
        let classes = policy.classes.iter();
        Ok(PolicyView {
            datacenter: datacenter.clone(),
            applied: record.as_ref().map(|record| record.applied),
            applied_by: record.as_ref().map(|record| record.by.clone()),
            text: record.map(|record| record.text),
            default: policy.default.to_string(),
            classes: classes
                .map(|(name, class)| (name.clone(), class.to_string()))
                .collect(),
            at_once: rollout.at_once,
            disks,
        })
    }

    /// Whether `text` is a policy that the fleet can keep.
    pub fn check_policy(
        &self,
        datacenter: &DatacenterName,
        request: &PolicyText,
        now: Moment,
    ) -> Result<PolicyCheck, ServiceError> {
        let scene = self.scene(now)?;
        Ok(checked(datacenter, &request.text, &scene).0)
    }

    /// What it would change.
    pub fn diff_policy(
        &self,
        datacenter: &DatacenterName,
        request: &PolicyText,
        now: Moment,
    ) -> Result<PolicyDiff, ServiceError> {
        let scene = self.scene(now)?;
        let (check, policy) = checked(datacenter, &request.text, &scene);
        let diff = match policy {
            Some(policy) => Some(self.difference(policy, &scene)?),
            None => None,
        };
        Ok(PolicyDiff {
            check,
            diff,
            applied: false,
        })
    }

    /// Keeps it, if it can be kept. What it changes is then done for a bounded number of disks at a time.
    pub fn apply_policy(
        &self,
        datacenter: &DatacenterName,
        request: &ApplyPolicy,
        by: &str,
        now: Moment,
    ) -> Result<PolicyDiff, ServiceError> {
        let text = PolicyText {
            text: request.text.clone(),
        };
        let change = self.diff_policy(datacenter, &text, now)?;
        if !change.check.may_be_applied() {
            let refused = change.check.checked.refused.iter();
            let why: Vec<String> = change
                .check
                .faults
                .iter()
                .cloned()
                .chain(refused.map(ToString::to_string))
                .collect();
            return Err(ServiceError::new(
                Kind::Impossible,
                format!("the policy of {datacenter} was not applied"),
                why.join("; "),
                "correct it, and look at it with `ukai policy diff` first",
            ));
        }
        if request.at_once == Some(0) {
            return Err(ServiceError::new(
                Kind::Impossible,
                format!("the policy of {datacenter} was not applied"),
                "nothing would ever move with 0 disks at a time",
                "use 1 or more",
            ));
        }
        let record = PolicyRecord {
            datacenter: datacenter.clone(),
            text: request.text.clone(),
            applied: self.wall(now),
            by: by.to_owned(),
        };
        for _ in 0..MAX_TRIES {
            let key = key::policy(datacenter);
            let kept = load::<PolicyRecord>(&*self.catalog, &key)?;
            let mut write = Transaction::new()
                .expect(&key, unchanged(&kept))
                .put(&key, json(&record));
            if let Some(at_once) = request.at_once {
                write = write.put(key::ROLLOUT, json(&Rollout { at_once }));
            }
            if self.catalog.commit(&write)? == Committed::Yes {
                tracing::info!(%datacenter, by, "policy applied");
                self.course().look_at_all();
                self.changed();
                return Ok(PolicyDiff {
                    applied: true,
                    ..change
                });
            }
        }
        Err(ServiceError::contended(&format!(
            "the policy of {datacenter}"
        )))
    }

    fn difference(
        &self,
        policy: Policy,
        scene: &Scene,
    ) -> Result<crate::planner::Diff, ServiceError> {
        let new = (*scene.policies).clone().with(policy);
        let before = scene.planner();
        let after = Planner::new(&scene.topology, &new, scene.wall);
        let mut disks: Vec<DiskNow> = Vec::new();
        for kept in list::<DiskRecord>(&*self.catalog, key::DISKS)? {
            disks.push(self.disk_now(kept, scene)?);
        }
        Ok(diff(&before, &after, disks.iter().map(DiskNow::subject)))
    }

    pub(super) fn known_datacenter(&self, name: &DatacenterName) -> Result<(), ServiceError> {
        if self.catalog.get(&key::datacenter(name))?.is_some() {
            return Ok(());
        }
        Err(ServiceError::new(
            Kind::NoSuchThing,
            format!("there is no datacenter {name}"),
            "no node there has announced itself, and nobody made it",
            "see `ukai datacenter list` for those that there are",
        ))
    }
}

/// What is to be said about a file, and what it says if it is a policy.
fn checked(
    datacenter: &DatacenterName,
    text: &str,
    scene: &Scene,
) -> (PolicyCheck, Option<Policy>) {
    match Policy::parse(datacenter.clone(), text) {
        Ok(policy) => {
            let check = PolicyCheck {
                faults: Vec::new(),
                checked: policy::check(&policy, &scene.policies, &scene.topology),
            };
            (check, Some(policy))
        }
        Err(error) => {
            let check = PolicyCheck {
                faults: error.faults.iter().map(ToString::to_string).collect(),
                checked: Checked::default(),
            };
            (check, None)
        }
    }
}
