//! Heartbeats without what has been said before. The long lists of a heartbeat, of a node's backends and of its stores'
//! disks, seldom change from one second to the next; nor does what is wanted of the node.
//!
//! ```text
//!  node                                    placement service
//!   | --- all lists, named 7 ----------------> |   keeps them: it has to, as what the node said last
//!   | <-- Desired, remembered: 7 ------------- |
//!   | --- no lists: as 7 --------------------> |   a second later, for as long as they are the same
//!   | <-- Same ------------------------------- |   what is wanted is what the heartbeat says that it has seen
//!   | <-- TellAll ---------------------------- |   or: another service leads now, and knows no 7
//! ```

use crate::node_protocol::{
    BackendReport, Desired, DiskShown, DiskUse, Heartbeat, Lists, Request, Response,
};
use replicator::words::StoreId;

/// What a node remembers of what it has told and heard.
#[derive(Debug)]
pub struct Brief {
    name: u64,
    told: Option<Told>,
    /// The service has said that it keeps them under that name.
    remembered: bool,
    wanted: Option<Desired>,
    seen: u64,
}

#[derive(PartialEq, Debug)]
struct Told {
    backends: Vec<BackendReport>,
    stores: Vec<(StoreId, Vec<DiskUse>, Vec<DiskShown>)>,
}

impl Brief {
    /// `first` must be drawn anew for each process: the service may remember what another one told.
    pub fn new(first: u64) -> Brief {
        Brief {
            name: first,
            told: None,
            remembered: false,
            wanted: None,
            seen: 0,
        }
    }

    /// The service may be another one from now on, and of an earlier version: everything is told again.
    pub fn forget(&mut self) {
        self.remembered = false;
    }

    /// The heartbeat as it is sent.
    pub fn shorten(&mut self, mut heartbeat: Heartbeat) -> Request {
        self.seen = heartbeat.seen;
        let stores = heartbeat.stores.iter();
        let told = Told {
            backends: heartbeat.backends.clone(),
            stores: stores
                .map(|store| (store.id, store.disks.clone(), store.shown.clone()))
                .collect(),
        };
        if self.remembered && self.told.as_ref() == Some(&told) {
            heartbeat.backends.clear();
            for store in &mut heartbeat.stores {
                store.disks.clear();
                store.shown.clear();
            }
            heartbeat.lists = Lists::AsNamed(self.name);
            Request::Brief(heartbeat)
        } else {
            // Not the same name again: the service may have heard the other one, and its answer be lost.
            self.name = self.name.wrapping_add(1);
            self.remembered = false;
            self.told = Some(told);
            heartbeat.lists = Lists::Named(self.name);
            Request::Heartbeat(heartbeat)
        }
    }

    /// What is wanted. None: the same heartbeat has to be told with all its lists. The error is an answer to something else.
    pub fn hear(&mut self, answer: Response) -> Result<Option<Desired>, Box<Response>> {
        match answer {
            Response::Desired(desired) => {
                self.remembered = desired.remembered == Some(self.name);
                self.wanted = Some(desired.clone());
                Ok(Some(desired))
            }
            Response::Same => {
                let wanted = self.wanted.as_ref();
                let wanted = wanted.filter(|wanted| wanted.digest == self.seen);
                let wanted = wanted.cloned().ok_or(Box::new(Response::Same))?;
                self.remembered = true;
                Ok(Some(wanted))
            }
            Response::TellAll if self.remembered => {
                self.remembered = false;
                Ok(None)
            }
            other => Err(Box::new(other)),
        }
    }
}
