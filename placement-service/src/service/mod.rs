//! Every decision of the placement service, as plain calls: who asks, what, and what time it is.
//!
//! No sockets, no clock, no random numbers: a shell gives the time and fresh ids. What must last is in
//! the [`Catalog`]; what nodes repeat every second (usage, backends) is in memory, and after a
//! restart it is simply heard again.

mod afar;
mod attach;
mod course;
mod decide;
mod disks;
mod doubt;
mod error;
mod fleet;
mod grant;
mod heartbeat;
mod links;
mod moves;
mod news;
mod orders;
mod passes;
mod policies;
mod pulse;
mod reach;
mod rebalance;
mod rebuild;
mod repairs;
mod retire;
mod scene;
mod stores;
mod swap;
mod terms;
mod verify;
mod wish;

pub use attach::{AttachState, DetachState};
pub use error::{Kind, ServiceError};
pub use pulse::Moment;
use reach::Reached;

use crate::catalog::{Catalog, CatalogError};
use crate::model;
use crate::node_protocol::{Desired, Refusal, Request, Response};
use crate::policy::UnixSeconds;
use course::Course;
use doubt::{Shown, load_shown};
use news::News;
use pulse::Pulses;
use rebuild::Gathering;
use replicator::net::identity::{Credentials, Identity, Role};
use replicator::words::{Generation, HostName};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

#[cfg(test)]
mod tests;

/// A compare-and-swap that others win this often in a row is given up, and the caller told so.
const MAX_TRIES: u32 = 16;

/// Shared by all shells; calls block on the catalog.
pub struct Service {
    catalog: Arc<dyn Catalog>,
    /// In which epochs are issued; only grows.
    generation: AtomicU16,
    pulses: Pulses,
    reached: Reached,
    /// What stores were shown, as far as the catalog may not know it.
    shown: Mutex<Shown>,
    /// What they told of the records that they keep.
    gathering: Mutex<Gathering>,
    /// The time of day at [`Moment`] zero.
    started: UnixSeconds,
    /// What the last passes over the disks came to.
    course: Mutex<Course>,
    /// Changes that somebody may be waiting for: of what is wanted of nodes, and of what they said of their
    /// backends.
    news: News,
    /// With which grants are signed; none: nobody gets one.
    credentials: Option<Credentials>,
}

impl Service {
    /// `started` is the time of day at [`Moment`] zero.
    pub fn new(catalog: Arc<dyn Catalog>, started: UnixSeconds) -> Result<Service, CatalogError> {
        Ok(Service {
            started,
            course: Mutex::default(),
            generation: AtomicU16::new(model::generation(&*catalog)?.0),
            shown: Mutex::new(load_shown(&*catalog)?),
            gathering: Mutex::default(),
            catalog,
            pulses: Pulses::default(),
            reached: Reached::default(),
            news: News::default(),
            credentials: None,
        })
    }

    /// Signs with these what proves to stores who holds an epoch.
    pub fn granting(mut self, credentials: Credentials) -> Service {
        self.credentials = Some(credentials);
        self
    }

    /// Answers one call of the node protocol. `from` is where the peer's connection comes from.
    pub fn handle(&self, who: &Identity, from: IpAddr, request: Request, now: Moment) -> Response {
        let allowed = match request {
            Request::Heartbeat(_) | Request::Brief(_) | Request::Records(_) => {
                who.role == Role::Node
            }
            _ => matches!(who.role, Role::Node | Role::Operator),
        };
        if !allowed {
            return Response::Refused(Refusal::NotAllowed {
                role: who.role.to_string(),
            });
        }
        let answer = match request {
            Request::Heartbeat(heartbeat) | Request::Brief(heartbeat) => {
                self.hear(&who.host, from, heartbeat, now)
            }
            Request::Record { disk } => self.record(disk),
            Request::Swap {
                disk,
                backend,
                expected,
                change,
            } => {
                let asked = swap::Swap {
                    disk,
                    backend,
                    expected,
                    change,
                };
                self.swap(who, asked, now)
            }
            Request::Stores { stores } => self.store_addresses(&stores, now).map(Response::Stores),
            Request::Records(records) => self.take_records(who, records),
        };
        let answer = answer.and_then(|answer| self.with_grant(who, answer));
        answer.unwrap_or_else(|error| {
            tracing::error!(peer = %who, "{error}");
            Response::Refused(error.into())
        })
    }

    /// What is wanted of a host's node now.
    pub fn desired(&self, host: &HostName) -> Result<Desired, CatalogError> {
        heartbeat::desired(self, host)
    }

    fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    fn begin_generation(&self, generation: Generation) {
        self.generation.fetch_max(generation.0, Ordering::AcqRel);
    }

    /// A copy of the catalog, as text.
    pub fn backup(&self, now: Moment) -> Result<String, ServiceError> {
        Ok(crate::backup::take(&*self.catalog, self.wall(now))?)
    }

    fn wall(&self, now: Moment) -> UnixSeconds {
        self.started.after(now.0)
    }
}
